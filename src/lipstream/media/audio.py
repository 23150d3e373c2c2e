"""Reading speech: from any audio file, or the sound track of a video, as blocks of float32 samples.

Samples are taken as libav decodes them, after it has removed an encoder's priming and padding, one behind the other:
time stamps are not looked at, so the first sample belongs to the first frame, and the model's input and the output's
sound track can never disagree.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from lipstream.errors import InputError
from lipstream.media.container import decode, open_input

logger = logging.getLogger(__name__)

MODEL_SAMPLE_RATE_HZ = 16000


@dataclass(frozen=True)
class SpeechInfo:
    """A recording as it decodes: `n_samples` a channel, counted, at its own `sample_rate_hz`."""

    path: Path
    sample_rate_hz: int
    channels: int
    layout: str
    n_samples: int

    @property
    def duration_s(self) -> Fraction:
        return Fraction(self.n_samples, self.sample_rate_hz)


def probe_speech(path: str | Path) -> SpeechInfo:
    """Decode a recording once to learn its exact length.

    Raises InputError, naming the file and the mend, when it is missing, holds no sound or not one sample.
    """
    path = Path(path)
    n_samples = 0
    first: AudioFrame | None = None
    for frame in _decode(path):
        first = first or frame
        _refuse_other_rate(path, frame, first.sample_rate)
        n_samples += frame.samples
    if first is None or n_samples == 0:
        raise InputError(f"{path}: holds no sound (zero samples); record or export it again")
    return SpeechInfo(path, first.sample_rate, first.layout.nb_channels, first.layout.name, n_samples)


def read_planar(info: SpeechInfo) -> Generator[NDArray[np.float32], None, None]:
    """Yield the recording's own samples: (channels, n) float32 blocks, 1.0 being full scale, n_samples in all."""
    for frame in _decode(info.path):
        _refuse_other_rate(info.path, frame, info.sample_rate_hz)
        samples = _planar(frame)
        if len(samples) != info.channels:
            samples = np.repeat(samples.mean(0, keepdims=True), info.channels, 0)
        yield samples


def read_mono(path: str | Path, sample_rate_hz: int = MODEL_SAMPLE_RATE_HZ) -> Iterator[NDArray[np.float32]]:
    """Yield a recording as mono: (n,) float32 blocks in [-1, 1], the mean of its channels, resampled.

    In all round(n_samples x sample_rate_hz / own rate) samples; a recording that is mono and at that rate already is
    handed through unchanged (16-bit samples divided by 32768). Raises InputError as probe_speech does.
    """
    path = Path(path)
    frames = _decode(path)
    first = next(frames, None)
    if first is None:
        raise InputError(f"{path}: holds no sound (zero samples); record or export it again")

    def mono() -> Iterator[NDArray[np.float32]]:
        yield _planar(first).mean(0)
        for frame in frames:
            _refuse_other_rate(path, frame, first.sample_rate)
            yield _planar(frame).mean(0)

    for block in resample(mono(), first.sample_rate, sample_rate_hz):
        yield np.clip(block, -1.0, 1.0)


def n_output_frames(info: SpeechInfo, frame_rate: int = 25) -> int:
    """How many video frames the speech lasts: round(frame_rate x n_samples / sample rate), at least 1."""
    return max(1, round(frame_rate * info.duration_s))


def resample(blocks: Iterable[NDArray[np.float32]], from_hz: int, to_hz: int) -> Iterator[NDArray[np.float32]]:
    """Resample (n,) float32 blocks; round(samples in x to / from) samples come out in all."""
    if from_hz == to_hz:
        yield from blocks
        return
    resampler = AudioResampler(format="flt", layout="mono", rate=to_hz)
    n_in = n_out = 0
    for block in blocks:
        frame = AudioFrame.from_ndarray(block[None], format="flt", layout="mono")
        frame.sample_rate = from_hz
        frame.time_base = Fraction(1, from_hz)
        frame.pts = n_in
        n_in += len(block)
        for samples in _samples(resampler.resample(frame)):
            n_out += len(samples)
            yield samples
    n_left = round(Fraction(n_in * to_hz, from_hz)) - n_out
    tail = np.concatenate([*_samples(resampler.resample(None)), np.zeros(max(0, n_left), np.float32)])
    yield tail[: max(0, n_left)]


def _samples(frames: Iterable[AudioFrame]) -> list[NDArray[np.float32]]:
    return [np.asarray(frame.to_ndarray()[0], np.float32) for frame in frames]


def _decode(path: Path) -> Iterator[AudioFrame]:
    with open_input(path, "recording") as container:
        if not container.streams.audio:
            raise InputError(f"{path}: no audio stream in it; name a recording, or a video with sound")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise InputError(f"{path}: no decoder for its audio codec here; convert it to wav first")
        for frame in decode(path, container, stream):
            if frame.samples:
                yield frame


def _refuse_other_rate(path: Path, frame: AudioFrame, sample_rate_hz: int) -> None:
    if frame.sample_rate != sample_rate_hz:
        raise InputError(
            f"{path}: its sample rate changes from {sample_rate_hz} to {frame.sample_rate} Hz; convert it to wav first"
        )


def _planar(frame: AudioFrame) -> NDArray[np.float32]:
    """A decoded frame as (channels, n) float32; integers are scaled by their full range."""
    samples: NDArray[Any] = frame.to_ndarray()
    if frame.format.is_packed:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    if samples.dtype == np.uint8:
        return np.asarray((samples.astype(np.float32) - 128) / 128, np.float32)
    full_scale = float(2 ** (8 * samples.dtype.itemsize - 1))
    return (samples / full_scale).astype(np.float32)
