"""A Pipecat processor that goes after the TTS: speech in, the pictures and the sound of a lipstream session out.

    with LipSync.load("tiny") as sync, sync.live("anna.avatar") as session:
        pipeline = Pipeline([..., tts, LipstreamVideo(session), transport.output(), ...])

The transport needs `video_out_enabled=True` and the avatar's `video_out_width`, `video_out_height` and
`video_out_framerate`; not `video_out_is_live`, since pictures keep their place among the sound.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import numpy as np
from pipecat.audio.utils import create_stream_resampler
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    InterruptionFrame,
    OutputImageRawFrame,
    SpeechOutputAudioRawFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSStoppedFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor


class LipstreamVideo(FrameProcessor):
    """Speaks with the face of a live session (`LipSync.live`), which stays the caller's to close.

    A picture and its sound come for every frame of the avatar, in silence too. TTSStoppedFrame and EndFrame go on once
    the speech before them has been given out.
    """

    def __init__(self, session: Any, **options: Any) -> None:
        """Take a session. options: those of every FrameProcessor."""
        super().__init__(**options)
        self._session = session
        self._task: asyncio.Task[None] | None = None
        self._rate_hz = 0  # of the sound that goes out: the pipeline's
        self._resampler = create_stream_resampler(clear_after_secs=None)
        self._is_open = False  # a segment has begun and not ended
        self._stopped: deque[Frame | None] = deque()  # of segments that are not out yet
        self._all_out = asyncio.Event()
        self._all_out.set()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Take speech, its end and interruptions; pass everything else on."""
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSAudioRawFrame) and direction is FrameDirection.DOWNSTREAM:
            samples = np.frombuffer(frame.audio, np.int16).reshape(-1, frame.num_channels)
            self._session.push_audio(samples, frame.sample_rate)
            self._is_open = True
            return
        if isinstance(frame, TTSStoppedFrame) and direction is FrameDirection.DOWNSTREAM and self._is_open:
            self._end_segment(frame)
            return
        if isinstance(frame, StartFrame):
            self._rate_hz = self.processor_setup.audio_out_sample_rate
            self._task = self.create_task(self._give_out())
        elif isinstance(frame, InterruptionFrame):
            self._session.interrupt()
            self._forget()
        elif isinstance(frame, EndFrame):
            if self._is_open:
                self._end_segment(None)
            await self._all_out.wait()
            await self._stop()
        elif isinstance(frame, CancelFrame):
            await self._stop()
        await self.push_frame(frame, direction)

    async def cleanup(self) -> None:
        """End the task that gives out frames."""
        await super().cleanup()
        await self._stop()

    def _end_segment(self, stopped: Frame | None) -> None:
        self._session.end_segment()
        self._is_open = False
        self._stopped.append(stopped)
        self._all_out.clear()

    def _forget(self) -> None:
        self._is_open = False
        self._stopped.clear()
        self._all_out.set()

    async def _stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            await self.cancel_task(task)

    async def _give_out(self) -> None:
        try:
            async for frame in self._session:
                await self._give(frame)
        except Exception as error:  # noqa: BLE001  (the pipeline decides what follows)
            await self.push_error(f"lipstream: {error}", exception=error, force_treat_as_permanent=True)
        finally:
            self._forget()  # else an EndFrame would wait for what does not come

    async def _give(self, frame: Any) -> None:
        height, width, _ = frame.picture.shape
        picture = OutputImageRawFrame(frame.picture.tobytes(), (width, height), "RGB")
        picture.sync_with_audio = True
        await self.push_frame(picture)
        await self.push_frame(SpeechOutputAudioRawFrame(await self._sound(frame), self._rate_hz, 1))
        if frame.ends_segment and self._stopped:
            stopped = self._stopped.popleft()
            if stopped is not None:
                await self.push_frame(stopped)
            if not self._stopped:
                self._all_out.set()

    async def _sound(self, frame: Any) -> bytes:
        """Return a frame's samples at the pipeline's rate, which transports cannot see change."""
        if not frame.is_speech:
            self._resampler = create_stream_resampler(clear_after_secs=None)
            return bytes(2 * round(len(frame.samples) * self._rate_hz / frame.sample_rate_hz))
        samples = np.rint(np.clip(frame.samples, -1, 1) * 32767).astype(np.int16)
        sound = await self._resampler.resample(samples.tobytes(), frame.sample_rate_hz, self._rate_hz)
        if frame.ends_segment:
            sound += await self._resampler.flush()
            self._resampler = create_stream_resampler(clear_after_secs=None)
        return bytes(sound)
