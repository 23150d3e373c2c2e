"""Read speech from any audio file, or the sound track of a video, as blocks of float32 samples.

Samples are taken as libav decodes them, after it has removed an encoder's priming and padding, one block after the
other: time stamps are ignored, so the first sample belongs to the first frame, and the model's input and the output's
sound track never disagree. Samples that are not numbers, or far beyond full scale, are silence everywhere.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from lipstream.errors import InputError
from lipstream.media.container import decode, open_input

logger = logging.getLogger(__name__)

Samples = NDArray[np.float32]
LogMelMaximum = Callable[[Iterable[Samples]], float]

MODEL_SAMPLE_RATE_HZ = 16000

_LARGEST_SAMPLE = 1e6  # full scale is 1; beyond this AAC refuses to encode
_SILENT_PEAK = 1e-4  # -80 dB of full scale


@dataclass(frozen=True)
class SpeechInfo:
    """A recording as it decodes: `n_samples` per channel, counted, at its own `sample_rate_hz`.

    `peak`: largest magnitude of any sample, 1.0 being full scale. `log_mel_max`: what `probe_speech` was asked to
    compute from the model's input, or None.
    """

    path: Path
    sample_rate_hz: int
    channels: int
    layout: str
    n_samples: int
    peak: float
    log_mel_max: float | None = None

    @property
    def duration_s(self) -> Fraction:
        return Fraction(self.n_samples, self.sample_rate_hz)


def probe_speech(path: str | Path, log_mel_maximum: LogMelMaximum | None = None) -> SpeechInfo:
    """Decode a recording once to learn its exact length and peak.

    log_mel_maximum: computes the maximum that Whisper's floor needs (see speech/mel.py) from the samples that
    read_mono yields; it gets them while they are counted, so that this takes no decoding of its own.

    Logs one warning where the recording is silent, and one where it holds samples that are not finite. Raises
    InputError when it is missing, holds no sound or not one sample.
    """
    path = Path(path)
    counter = _Counter(path)
    log_mel_max: float | None = None
    with closing(_blocks(path)) as blocks:
        counted = counter.count(blocks)
        if log_mel_maximum is None:
            for _ in counted:
                pass
        else:
            log_mel_max = log_mel_maximum(_to_mono(counted, MODEL_SAMPLE_RATE_HZ))
            for _ in counted:  # whatever it did not ask for
                pass
    return counter.info(log_mel_max)


def read_planar(info: SpeechInfo) -> Generator[Samples, None, None]:
    """Yield the recording's own samples: (channels, n) float32 blocks, 1.0 being full scale, n_samples in all."""
    with closing(_blocks(info.path)) as blocks:
        for block in blocks:
            yield _with_channels(block, info)


def read_mono(path: str | Path, sample_rate_hz: int = MODEL_SAMPLE_RATE_HZ) -> Generator[Samples, None, None]:
    """Yield a recording as mono: (n,) float32 blocks in [-1, 1], the mean of its channels, resampled.

    round(n_samples x sample_rate_hz / own rate) samples in all; a recording that is mono and at that rate already
    comes unchanged (16-bit samples divided by 32768). Raises InputError as probe_speech does.
    """
    path = Path(path)
    with closing(_blocks(path)) as blocks:
        yield from _to_mono(blocks, sample_rate_hz)


class SharedSpeech:
    """One decoding of a recording for two readers: the model, and the output's sound track some way behind it.

    Each of `mono` and `planar` is called once, and each may be read in a thread of its own. What one reader has had and
    the other has not is held, so memory grows with the distance between them and not with the recording. A reader that
    is closed has nothing held for it. A context manager that closes the file.
    """

    def __init__(self, info: SpeechInfo) -> None:
        self.info = info
        self._lock = threading.Lock()
        self._blocks = _blocks(info.path)
        self._waiting: dict[str, deque[_Block]] = {"mono": deque(), "planar": deque()}

    def __enter__(self) -> SharedSpeech:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; both readers end at the block that they are at."""
        with self._lock:
            self._blocks.close()
            self._waiting.clear()

    def mono(self) -> Generator[Samples, None, None]:
        """Yield what `read_mono` does."""
        yield from _to_mono(self._read("mono"), MODEL_SAMPLE_RATE_HZ)

    def planar(self) -> Generator[Samples, None, None]:
        """Yield what `read_planar` does."""
        for block in self._read("planar"):
            yield _with_channels(block, self.info)

    def _read(self, reader: str) -> Generator[_Block, None, None]:
        try:
            while (block := self._next(reader)) is not None:
                yield block
        finally:
            with self._lock:
                self._waiting.pop(reader, None)

    def _next(self, reader: str) -> _Block | None:
        with self._lock:
            if reader not in self._waiting:
                return None
            if not self._waiting[reader]:
                block = next(self._blocks, None)
                if block is None:
                    return None
                for waiting in self._waiting.values():
                    waiting.append(block)
            return self._waiting[reader].popleft()


def n_output_frames(info: SpeechInfo, frame_rate: int = 25) -> int:
    """Return the video frames that the speech lasts: round(frame_rate x n_samples / sample rate), at least 1."""
    return max(1, round(frame_rate * info.duration_s))


def resample(blocks: Iterable[Samples], from_hz: int, to_hz: int) -> Iterator[Samples]:
    """Resample (n,) float32 blocks to round(samples in x to_hz / from_hz) samples in all."""
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


def mixed_down(blocks: Iterable[Samples], from_hz: int, to_hz: int) -> Iterator[Samples]:
    """Resample the mean of the channels of (channels, n) blocks: (n,) blocks in [-1, 1]."""
    for samples in resample((block.mean(0) for block in blocks), from_hz, to_hz):
        yield np.clip(samples, -1.0, 1.0)


def without_invalid(samples: Samples) -> tuple[Samples, int]:
    """Return the samples, silence in place of those that are not finite or far beyond full scale, and their number."""
    if np.abs(samples).max() <= _LARGEST_SAMPLE:  # False for NaN too
        return samples, 0
    is_valid = np.abs(samples) <= _LARGEST_SAMPLE
    return np.where(is_valid, samples, np.float32(0)), is_valid.size - int(np.count_nonzero(is_valid))


def _samples(frames: Iterable[AudioFrame]) -> list[Samples]:
    return [np.asarray(frame.to_ndarray()[0], np.float32) for frame in frames]


@dataclass(frozen=True)
class _Block:
    """Samples (channels, n) as decoded, silence in place of the `n_invalid` that cannot be played, and their rate."""

    samples: Samples
    sample_rate_hz: int
    layout: str
    n_invalid: int


class _Counter:
    """Counts a recording's blocks as they pass."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.first: _Block | None = None
        self.n_samples = self.n_invalid = 0
        self.peak = 0.0

    def count(self, blocks: Iterable[_Block]) -> Iterator[_Block]:
        for block in blocks:
            self.first = self.first or block
            self.n_samples += block.samples.shape[1]
            self.n_invalid += block.n_invalid
            self.peak = max(self.peak, float(np.abs(block.samples).max()))
            yield block

    def info(self, log_mel_max: float | None) -> SpeechInfo:
        first = self.first
        if first is None:
            raise ValueError("no block was counted")
        if self.n_invalid:
            reason = "are not finite numbers or far too loud; they are replaced by silence"
            logger.warning("%s: %d samples %s", self.path, self.n_invalid, reason)
        if self.peak < _SILENT_PEAK:
            logger.warning("%s: silent from beginning to end; the mouth will hardly move", self.path)
        return SpeechInfo(
            path=self.path,
            sample_rate_hz=first.sample_rate_hz,
            channels=len(first.samples),
            layout=first.layout,
            n_samples=self.n_samples,
            peak=self.peak,
            log_mel_max=log_mel_max,
        )


def _blocks(path: Path) -> Generator[_Block, None, None]:
    """Decode a recording; raises InputError where its sample rate changes or there is not one sample."""
    first: _Block | None = None
    with closing(_decode(path)) as frames:
        for frame in frames:
            block = _block(frame)
            first = first or block
            if block.sample_rate_hz != first.sample_rate_hz:
                change = f"from {first.sample_rate_hz} to {block.sample_rate_hz} Hz"
                raise InputError(f"its sample rate changes {change}", file=path, fix="convert it to wav first")
            yield block
    if first is None:
        raise InputError("it holds no sound (zero samples)", file=path, fix="record or export it again")


def _to_mono(blocks: Iterator[_Block], sample_rate_hz: int) -> Generator[Samples, None, None]:
    first = next(blocks, None)
    if first is None:
        return

    def samples() -> Iterator[Samples]:
        yield first.samples
        for block in blocks:
            yield block.samples

    yield from mixed_down(samples(), first.sample_rate_hz, sample_rate_hz)


def _with_channels(block: _Block, info: SpeechInfo) -> Samples:
    """Return the block's samples with as many channels as the recording began with."""
    samples = block.samples
    return samples if len(samples) == info.channels else np.repeat(samples.mean(0, keepdims=True), info.channels, 0)


def _decode(path: Path) -> Generator[AudioFrame, None, None]:
    with open_input(path, "recording") as container:
        if not container.streams.audio:
            raise InputError("no audio stream in it", file=path, fix="name a recording, or a video with sound")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise InputError("no decoder for its audio codec here", file=path, fix="convert it to wav first")
        for frame in decode(path, container, stream):
            if frame.samples:
                yield frame


def _block(frame: AudioFrame) -> _Block:
    samples, n_invalid = without_invalid(_planar(frame))
    return _Block(samples, frame.sample_rate, frame.layout.name, n_invalid)


def _planar(frame: AudioFrame) -> Samples:
    """Convert a decoded frame to (channels, n) float32; integers are scaled by their full range."""
    samples: NDArray[Any] = frame.to_ndarray()
    if frame.format.is_packed:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):  # float64 beyond float32 becomes infinite
            return samples.astype(np.float32)
    if samples.dtype == np.uint8:
        return np.asarray((samples.astype(np.float32) - 128) / 128, np.float32)
    full_scale = float(2 ** (8 * samples.dtype.itemsize - 1))
    return (samples / full_scale).astype(np.float32)
