"""The LiveKit video generator under LiveKit's own AvatarRunner, with a room that is not connected anywhere."""

from __future__ import annotations

import asyncio
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("livekit.agents", reason="livekit-agents is not installed", exc_type=ImportError)

from livekit import rtc
from livekit.agents.voice.avatar import AudioSegmentEnd, AvatarRunner, QueueAudioOutput

from helpers.live import AVATAR, FRAME_RATE, SIDE, DrawnSession, load_plug, tone

VOICE_HZ = 24000

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def plug() -> ModuleType:
    return load_plug("livekit")


def frames_of(samples: np.ndarray, rate_hz: int = VOICE_HZ, n: int = 480) -> list[rtc.AudioFrame]:
    parts = [samples[at : at + n] for at in range(0, len(samples), n)]
    return [rtc.AudioFrame(part.tobytes(), rate_hz, part.shape[1], len(part)) for part in parts]


class Running:
    """An AvatarRunner whose room publishes to nobody. given: what it handed to LiveKit's synchronizer, in order."""

    def __init__(self, plug: ModuleType, session: DrawnSession, rate_hz: int, channels: int) -> None:
        published = SimpleNamespace(wait_for_subscription=lambda: asyncio.sleep(0))

        async def publish(track: Any, options: Any) -> Any:
            return published

        room: Any = SimpleNamespace(
            isconnected=lambda: True,
            on=lambda *args: None,
            off=lambda *args: None,
            local_participant=SimpleNamespace(publish_track=publish),
        )
        self.options = plug.avatar_options(AVATAR, rate_hz, channels)
        self.audio = QueueAudioOutput(sample_rate=VOICE_HZ)
        self.finished: list[Any] = []
        self.audio.on("playback_finished", self.finished.append)
        video = plug.LipstreamVideo(session, self.options)
        self.runner = AvatarRunner(room, audio_recv=self.audio, video_gen=video, options=self.options)
        self.given: list[Any] = []
        push = self.runner.av_sync.push

        async def recorded(frame: Any, timestamp: float | None = None) -> None:
            self.given.append(frame)
            await push(frame, timestamp)

        self.runner.av_sync.push = recorded  # type: ignore[method-assign]

    async def say(self, samples: np.ndarray, rate_hz: int = VOICE_HZ) -> None:
        for frame in frames_of(samples, rate_hz):
            await self.audio.capture_frame(frame)
        self.audio.flush()

    def sounds(self) -> list[rtc.AudioFrame]:
        return [one for one in self.given if isinstance(one, rtc.AudioFrame)]

    async def until(self, condition: Any, within_s: float = 30) -> None:
        async def wait() -> None:
            while not condition():
                await asyncio.sleep(0.02)

        await asyncio.wait_for(wait(), within_s)


@pytest.mark.parametrize(("room_hz", "channels"), [(24000, 1), (48000, 2)])
def test_speech_comes_back_with_pictures_and_its_end(plug: ModuleType, room_hz: int, channels: int) -> None:
    async def run() -> None:
        session = DrawnSession()
        running = Running(plug, session, room_hz, channels)
        await running.runner.start()
        await running.until(lambda: len(running.given) > 5)
        assert not running.sounds()  # in silence there is a face, and nothing that counts as played
        said = tone(0.8, VOICE_HZ)
        await running.say(said)
        await running.until(lambda: running.finished)
        (end,) = running.finished
        assert not end.interrupted
        assert end.playback_position == pytest.approx(0.8, abs=0.045)
        assert {(one.sample_rate, one.num_channels) for one in running.sounds()} == {(room_hz, channels)}
        played = np.concatenate([np.frombuffer(one.data, np.int16).reshape(-1, channels) for one in running.sounds()])
        assert len(played) / room_hz == pytest.approx(0.8, abs=0.045)
        crossings = np.count_nonzero(np.diff(np.signbit(played[: round(0.7 * room_hz), -1])))
        assert crossings / 0.7 / 2 == pytest.approx(300, rel=0.03)
        pictures = [one for one in running.given if isinstance(one, rtc.VideoFrame)]
        assert {(one.width, one.height) for one in pictures} == {(SIDE, SIDE)}
        assert session.pushed[0][0] == VOICE_HZ
        # A second segment follows the first.
        await running.say(said)
        await running.until(lambda: len(running.finished) == 2)
        session.close()
        await running.runner.aclose()

    asyncio.run(run())


def test_each_sound_follows_its_picture(plug: ModuleType) -> None:
    async def run() -> None:
        session = DrawnSession(realtime=False)
        video = plug.LipstreamVideo(session, plug.avatar_options(AVATAR, VOICE_HZ))
        for frame in frames_of(tone(0.4, VOICE_HZ)):
            await video.push_audio(frame)
        await video.push_audio(AudioSegmentEnd())
        kinds = []
        async for one in video:
            kinds.append(type(one))
            if isinstance(one, AudioSegmentEnd):
                break
        assert kinds == [rtc.VideoFrame, rtc.AudioFrame] * round(0.4 * FRAME_RATE) + [AudioSegmentEnd]

    asyncio.run(run())


def test_clearing_ends_the_speech(plug: ModuleType) -> None:
    async def run() -> None:
        session = DrawnSession()
        running = Running(plug, session, VOICE_HZ, 1)
        await running.runner.start()
        await running.say(tone(20.0, VOICE_HZ))
        await running.until(lambda: len(running.sounds()) > 10)
        running.audio.clear_buffer()
        await running.until(lambda: running.finished)
        n_sounds, n_given = len(running.sounds()), len(running.given)
        await running.until(lambda: len(running.given) > n_given + 10)
        assert len(running.sounds()) <= n_sounds + 1
        assert running.finished[0].interrupted
        assert 0.2 < running.finished[0].playback_position < 5
        assert session.n_interrupts == 1
        await running.say(tone(0.4, VOICE_HZ))  # and the next speech is whole
        await running.until(lambda: len(running.finished) == 2)
        assert running.finished[1].playback_position == pytest.approx(0.4, abs=0.045)
        assert not running.finished[1].interrupted
        session.close()
        await running.runner.aclose()

    asyncio.run(run())
