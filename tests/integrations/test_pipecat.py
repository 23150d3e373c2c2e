"""The Pipecat processor in a real pipeline, before an output transport that keeps what it would send."""

from __future__ import annotations

import asyncio
import contextlib
import time
import warnings
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of what it imports
    pytest.importorskip("pipecat.transports.base_output", reason="pipecat-ai is not installed")
    pytest.importorskip("pipecat.pipeline.worker", reason="pipecat-ai is older than 1.14")

from pipecat.frames.frames import (
    BotStoppedSpeakingFrame,
    EndFrame,
    ErrorFrame,
    Frame,
    InterruptionFrame,
    OutputAudioRawFrame,
    OutputImageRawFrame,
    SpeechOutputAudioRawFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.workers.runner import WorkerRunner

from helpers.live import FRAME_RATE, MOUTH, SIDE, DrawnSession, load_plug, tone

VOICE_HZ = 24000
PARAMS = TransportParams(
    audio_out_enabled=True,
    audio_out_sample_rate=VOICE_HZ,
    video_out_enabled=True,
    video_out_width=SIDE,
    video_out_height=SIDE,
    video_out_framerate=25,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def plug() -> ModuleType:
    return load_plug("pipecat")


class Seen(FrameProcessor):
    """Keeps what passes, in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.down: list[Frame] = []
        self.up: list[Frame] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        (self.down if direction is FrameDirection.DOWNSTREAM else self.up).append(frame)
        await self.push_frame(frame, direction)

    def of(self, kind: type[Frame]) -> list[Any]:
        return [one for one in self.down if isinstance(one, kind)]


class Loopback(BaseOutputTransport):
    """Plays sound as slowly as a listener would, and keeps sound and pictures in the order in which they went out."""

    def __init__(self) -> None:
        super().__init__(PARAMS)
        self.sent: list[OutputAudioRawFrame | OutputImageRawFrame] = []
        self._due_s = 0.0

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        self.sent.append(frame)
        self._due_s = max(self._due_s, time.monotonic()) + frame.num_frames / frame.sample_rate
        await asyncio.sleep(max(0.0, self._due_s - time.monotonic()))
        return True

    async def write_video_frame(self, frame: OutputImageRawFrame) -> bool:
        self.sent.append(frame)
        return True


Steps = Callable[[PipelineWorker, Seen], Awaitable[None]]


def run(plug: ModuleType, session: DrawnSession, steps: Steps) -> tuple[Seen, Loopback]:
    """Run steps beside a pipeline of the processor; an EndFrame comes after them."""
    before, seen, transport = Seen(), Seen(), Loopback()

    async def both() -> None:
        pipeline = Pipeline([before, plug.LipstreamVideo(session), seen, transport])
        worker = PipelineWorker(pipeline, params=PipelineParams(), cancel_on_idle_timeout=False, enable_rtvi=False)
        started = asyncio.Event()

        @worker.event_handler("on_pipeline_started")
        async def _(worker: PipelineWorker, frame: Frame) -> None:
            started.set()

        async def stepping() -> None:
            await asyncio.wait_for(started.wait(), 20)
            await steps(worker, seen)
            await worker.queue_frame(EndFrame())

        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        await asyncio.wait_for(asyncio.gather(runner.run(), stepping()), 60)

    asyncio.run(both())
    seen.up = before.up
    return seen, transport


async def say(worker: PipelineWorker, duration_s: float, rate_hz: int = VOICE_HZ, channels: int = 1) -> None:
    await worker.queue_frame(TTSStartedFrame())
    samples = tone(duration_s, rate_hz, channels)
    for at in range(0, len(samples), 1000):
        part = samples[at : at + 1000]
        await worker.queue_frame(TTSAudioRawFrame(part.tobytes(), rate_hz, channels))
    await worker.queue_frame(TTSStoppedFrame())


async def until(condition: Callable[[], Any], within_s: float = 30) -> None:
    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.02)

    await asyncio.wait_for(wait(), within_s)


def loudness(frame: OutputAudioRawFrame) -> int:
    return int(np.abs(np.frombuffer(frame.audio, np.int16).astype(int)).max(initial=0))


@pytest.mark.parametrize(("rate_hz", "channels"), [(24000, 1), (44100, 2)])
def test_speech_comes_out_with_pictures_before_its_end(plug: ModuleType, rate_hz: int, channels: int) -> None:
    session = DrawnSession()

    async def steps(worker: PipelineWorker, seen: Seen) -> None:
        await until(lambda: len(seen.of(OutputImageRawFrame)) > 3)
        await say(worker, 0.8, rate_hz, channels)  # the EndFrame comes at once, and waits for it

    seen, transport = run(plug, session, steps)
    assert not seen.of(TTSAudioRawFrame)
    pictures, sounds = seen.of(OutputImageRawFrame), seen.of(SpeechOutputAudioRawFrame)
    assert {(one.size, one.format, len(one.image)) for one in pictures} == {((SIDE, SIDE), "RGB", 3 * SIDE * SIDE)}
    assert len(pictures) == len(sounds)
    loud = [sound for sound in sounds if loudness(sound) > 5000]
    assert len(loud) == pytest.approx(0.8 * FRAME_RATE, abs=1)
    media = [one for one in seen.down if isinstance(one, OutputImageRawFrame | SpeechOutputAudioRawFrame)]
    assert all(isinstance(one, OutputImageRawFrame) == (at % 2 == 0) for at, one in enumerate(media))
    (stopped,) = seen.of(TTSStoppedFrame)
    assert seen.down.index(stopped) > seen.down.index(loud[-1])
    assert seen.down.index(seen.of(TTSStartedFrame)[0]) < seen.down.index(loud[0])
    assert seen.down.index(seen.of(EndFrame)[0]) > seen.down.index(stopped)
    assert session.pushed[0] == (rate_hz, (1000, channels))
    assert {one.sample_rate for one in sounds} == {VOICE_HZ}
    # What the transport plays: all of the tone, and a picture with an open mouth no further away than a few chunks.
    played = sum(one.num_frames for one in transport.sent if isinstance(one, OutputAudioRawFrame) and loudness(one))
    assert played / VOICE_HZ == pytest.approx(0.8, abs=0.08)
    open_mouth = next(picture.image for picture, sound in zip(pictures, sounds, strict=True) if loudness(sound) > 10000)
    is_open = [isinstance(one, OutputImageRawFrame) and one.image == open_mouth for one in transport.sent]
    is_loud = [isinstance(one, OutputAudioRawFrame) and loudness(one) > 0 for one in transport.sent]
    assert abs(is_open.index(True) - is_loud.index(True)) < 12


def test_an_interruption_ends_the_speech_and_the_next_is_whole(plug: ModuleType) -> None:
    session = DrawnSession()
    n_loud = [0, 0]

    async def steps(worker: PipelineWorker, seen: Seen) -> None:
        def loud() -> int:
            return sum(loudness(one) > 5000 for one in seen.of(SpeechOutputAudioRawFrame))

        await say(worker, 20.0)
        await until(lambda: loud() > 5)
        await worker.queue_frame(InterruptionFrame())
        await until(lambda: seen.of(InterruptionFrame))
        n_loud[0] = loud()
        at = len(seen.down)
        await until(lambda: len(seen.down) > at + 20)
        n_loud[1] = loud()
        assert not seen.of(TTSStoppedFrame)
        await say(worker, 0.4)

    seen, _ = run(plug, session, steps)
    assert n_loud[1] <= n_loud[0] + 1
    assert session.n_interrupts == 1
    assert len(seen.of(TTSStoppedFrame)) == 1
    total = sum(loudness(one) > 5000 for one in seen.of(SpeechOutputAudioRawFrame))
    assert total - n_loud[1] == pytest.approx(0.4 * FRAME_RATE, abs=1)


def test_the_transport_learns_that_the_bot_has_stopped(plug: ModuleType) -> None:
    async def steps(worker: PipelineWorker, seen: Seen) -> None:
        await say(worker, 0.4)
        await until(lambda: [one for one in seen.up if isinstance(one, BotStoppedSpeakingFrame)])

    seen, _ = run(plug, DrawnSession(), steps)
    assert seen.of(EndFrame)


def test_a_session_that_fails_is_an_error_of_the_pipeline(plug: ModuleType) -> None:
    async def steps(worker: PipelineWorker, seen: Seen) -> None:
        await say(worker, 0.4)

    session = DrawnSession(error=RuntimeError("out of luck"), fails_after=3)
    seen, _ = run(plug, session, steps)  # and the EndFrame does not wait for ever
    assert "lipstream: out of luck" in [one.error for one in seen.up if isinstance(one, ErrorFrame)]


def test_a_peer_gets_it_over_webrtc(plug: ModuleType) -> None:
    aiortc = pytest.importorskip("aiortc", reason="aiortc is not installed")
    from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection
    from pipecat.transports.smallwebrtc.transport import SmallWebRTCTransport

    loud_s: list[float] = []
    open_s: list[float] = []

    async def keep(track: Any) -> None:
        with contextlib.suppress(aiortc.mediastreams.MediaStreamError):
            while True:
                frame = await track.recv()
                if track.kind == "audio" and np.abs(frame.to_ndarray()).max() > 3000:
                    loud_s.append(time.monotonic())
                if track.kind == "video" and (frame.to_ndarray(format="rgb24")[MOUTH].mean(2) < 90).sum() > 400:
                    open_s.append(time.monotonic())

    async def both() -> None:
        peer = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        tasks: list[asyncio.Task[None]] = []
        peer.on("track", lambda track: tasks.append(asyncio.ensure_future(keep(track))))
        peer.addTransceiver("audio", "sendrecv")
        peer.addTransceiver("video", "sendrecv")
        peer.createDataChannel("chat")
        await peer.setLocalDescription(await peer.createOffer())
        connection = SmallWebRTCConnection()
        await connection.initialize(peer.localDescription.sdp, "offer")
        transport = SmallWebRTCTransport(connection, PARAMS)
        connected = asyncio.Event()

        @transport.event_handler("on_client_connected")
        async def _(transport: Any, client: Any) -> None:
            connected.set()

        pipeline = Pipeline([transport.input(), plug.LipstreamVideo(DrawnSession()), transport.output()])
        worker = PipelineWorker(pipeline, cancel_on_idle_timeout=False, enable_rtvi=False)

        async def stepping() -> None:
            answer = connection.get_answer()
            await peer.setRemoteDescription(aiortc.RTCSessionDescription(answer["sdp"], answer["type"]))
            await asyncio.wait_for(connected.wait(), 20)
            await asyncio.sleep(1)
            await say(worker, 1.0)
            await until(lambda: len(loud_s) > 40 and len(open_s) > 15)
            await worker.queue_frame(EndFrame())

        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        await asyncio.wait_for(asyncio.gather(runner.run(), stepping()), 60)
        await peer.close()
        await asyncio.gather(*tasks)

    asyncio.run(both())
    assert abs(loud_s[0] - open_s[0]) < 0.4
