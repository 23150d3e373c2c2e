"""A LiveKit avatar on one's own machine: a `VideoGenerator` that gives the face of a lipstream session.

with LipSync.load("tiny") as sync, sync.live("anna.avatar") as session:
    audio, options = QueueAudioOutput(sample_rate=24000), avatar_options(Avatar.open("anna.avatar"), 24000)
    runner = AvatarRunner(room, audio_recv=audio, video_gen=LipstreamVideo(session, options), options=options)
    await runner.start()
    agent_session.output.audio = audio
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from livekit import rtc
from livekit.agents.voice.avatar import AudioSegmentEnd, AvatarOptions, VideoGenerator


def avatar_options(avatar: Any, sample_rate_hz: int = 24000, channels: int = 1) -> AvatarOptions:
    """Return the options of an AvatarRunner for an avatar (a lipstream Avatar).

    sample_rate_hz, channels: of the sound that the room gets; the agent's voice may have others.
    """
    return AvatarOptions(avatar.width, avatar.height, float(avatar.frame_rate), sample_rate_hz, channels)


class LipstreamVideo(VideoGenerator):
    """Gives the pictures and the sound of a live session (`LipSync.live`), which stays the caller's to close.

    Sound comes with speech only, each part after its picture: AvatarRunner counts it as what has been played.
    """

    def __init__(self, session: Any, options: AvatarOptions) -> None:
        """Take a session, and the options that the AvatarRunner has too."""
        self._session, self._options = session, options
        self._resampler: rtc.AudioResampler | None = None
        self._resampled_from_hz = 0
        self._n_cleared = 0

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        """Hand over speech of any rate and number of channels, or say that the segment ends here."""
        if isinstance(frame, AudioSegmentEnd):
            self._session.end_segment()
            return
        samples = np.frombuffer(frame.data, np.int16).reshape(-1, frame.num_channels)
        self._session.push_audio(samples, frame.sample_rate)

    def clear_buffer(self) -> None:
        """Throw away the speech that has not been given out."""
        self._n_cleared += 1
        self._resampler = None
        self._session.interrupt()

    async def __aiter__(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        async for frame in self._session:
            n_cleared = self._n_cleared
            height, width, _ = frame.picture.shape
            yield rtc.VideoFrame(width, height, rtc.VideoBufferType.RGB24, frame.picture.tobytes())
            if n_cleared == self._n_cleared and (frame.is_speech or frame.ends_segment):
                for sound in self._sounds(frame):
                    yield sound
            if n_cleared == self._n_cleared and frame.ends_segment:  # else it was cleared while the runner had the rest
                yield AudioSegmentEnd()

    def _sounds(self, frame: Any) -> list[rtc.AudioFrame]:
        """Return a frame's samples at the options' rate and in their channels; at a segment's end what is left too."""
        samples = np.rint(np.clip(frame.samples, -1, 1) * 32767).astype(np.int16)
        from_hz, to_hz = frame.sample_rate_hz, self._options.audio_sample_rate
        if from_hz == to_hz:
            return [self._in_channels(samples)]
        if self._resampler is None or self._resampled_from_hz != from_hz:
            self._resampler = rtc.AudioResampler(from_hz, to_hz, quality=rtc.AudioResamplerQuality.HIGH)
            self._resampled_from_hz = from_hz
        made = self._resampler.push(bytearray(samples.tobytes()))
        if frame.ends_segment:
            made, self._resampler = made + self._resampler.flush(), None
        return [self._in_channels(np.frombuffer(one.data, np.int16)) for one in made]

    def _in_channels(self, mono: np.ndarray) -> rtc.AudioFrame:
        channels = self._options.audio_channels
        return rtc.AudioFrame(np.repeat(mono, channels).tobytes(), self._options.audio_sample_rate, channels, len(mono))
