"""Look at what a client sent before it costs anything: kinds of file that are safe, sizes, lengths."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import av.error

from lipstream.errors import InputError
from lipstream.media.audio import MODEL_SAMPLE_RATE_HZ, SpeechInfo, probe_speech
from lipstream.media.reader import VideoInfo, probe
from lipstream.media.sound import Samples
from lipstream.serve.refused import Refused
from lipstream.serve.settings import ServiceSettings

_CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,wav,w64,mp3,flac,aac,ac3,eac3,aiff,au,amr,caf,wv,tta,ape,"
    "gif,apng,mxf,nut,h264,hevc,m4v,ivf,dv,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe"
)
"""libav's names of formats that hold their data themselves. Playlists and lists of files name others: never read."""

_SILENT_PEAK = 1e-4  # -80 dB of full scale


@dataclass(frozen=True)
class Understood:
    """What was understood of a job's inputs. width, height: px, of the upright picture. frame_rate: 0 where unknown."""

    width: int
    height: int
    video_s: float | None
    frame_rate: float
    speech_s: float
    is_silent: bool

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON's values."""
        return asdict(self)


def inspect(video: Path, audio: Path, audio_track: int | None, limits: ServiceSettings) -> Understood:
    """Return what two local files hold. Raises Refused (422) for what cannot be used, or is beyond the limits."""
    seen, speech = inspect_video(video, limits), inspect_speech(audio, audio_track, limits.max_duration_s)
    return Understood(
        width=seen.width,
        height=seen.height,
        video_s=seen.duration_s,
        frame_rate=round(float(seen.nominal_rate), 3),
        speech_s=round(float(speech.duration_s), 3),
        is_silent=is_silent(speech),
    )


def is_silent(speech: SpeechInfo) -> bool:
    """Return whether a recording is silent."""
    return speech.peak < _SILENT_PEAK


def inspect_video(video: Path, limits: ServiceSettings) -> VideoInfo:
    """Return what a local video is. Raises Refused (422)."""
    _check_container(video, "video")
    try:
        seen = probe(video)
    except InputError as error:
        raise _unusable(f"video: {error.message}", "input", error.fix) from error
    gc.collect(1)  # PyAV's frame and its side data refer to each other: Python would let many pile up, each megabytes
    if seen.width * seen.height > limits.max_pixels:
        message = f"the video has {seen.width} x {seen.height} pixels, more than {limits.max_pixels}"
        raise _unusable(message, "too_many_pixels", "make it smaller")
    return seen


def inspect_speech(audio: Path, audio_track: int | None, most_s: float) -> SpeechInfo:
    """Return what a local recording is, read to its end. most_s: how long it may be. Raises Refused (422)."""
    _check_container(audio, "recording")
    try:
        return probe_speech(audio, _Bounded(most_s), track=audio_track)
    except InputError as error:
        raise _unusable(f"recording: {error.message}", "input", error.fix) from error


class _Bounded:
    """Reads a recording for `probe_speech`, which it stops when it has decoded more than is allowed."""

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s

    def __call__(self, blocks: Iterable[Samples]) -> float:
        n_samples = 0
        for block in blocks:
            n_samples += block.shape[-1]
            if n_samples > self._most_s * MODEL_SAMPLE_RATE_HZ:
                raise _unusable(f"the speech is longer than {self._most_s:g} s", "too_long", "cut it into parts")
        return 0.0


def _check_container(path: Path, noun: str) -> None:
    if path.stat().st_size == 0:
        raise _unusable(f"{noun}: the file is empty", "input", f"send a {noun}")
    try:
        with av.open(f"file:{path}", options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}):
            pass
    except (av.error.FFmpegError, OSError) as error:
        fix = "send an mp4, a wav or the like"
        raise _unusable(f"{noun}: not a media file of a known kind", "input", fix) from error


def _unusable(message: str, code: str, fix: str | None) -> Refused:
    return Refused(message, status=422, code=code, fix=fix)
