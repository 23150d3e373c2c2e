"""Read speech from any audio file, or the sound track of a video, as blocks of float32 samples.

The model's input and the output's sound track are of the same blocks (see sound.py) and never disagree.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from lipstream.media.sound import Block, Samples, decoded_blocks

logger = logging.getLogger(__name__)

LogMelMaximum = Callable[[Iterable[Samples]], float]

MODEL_SAMPLE_RATE_HZ = 16000

_SILENT_PEAK = 1e-4  # -80 dB of full scale
_CANCELLED = 0.1
"""Channels whose mean is weaker than this share of the strongest one cancel each other out."""


@dataclass(frozen=True)
class SpeechInfo:
    """A recording as it decodes: `n_samples` per channel, counted, at its own `sample_rate_hz`.

    `peak`: largest magnitude of any sample, 1.0 being full scale. `log_mel_max`: what `probe_speech` was asked to
    compute from the model's input, or None. `track`: among the file's sound tracks, from 0. `mono_channel`: what the
    model is given, None for the mean of the channels.
    """

    path: Path
    sample_rate_hz: int
    channels: int
    layout: str
    n_samples: int
    peak: float
    log_mel_max: float | None = None
    track: int | None = None
    mono_channel: int | None = None

    @property
    def duration_s(self) -> Fraction:
        return Fraction(self.n_samples, self.sample_rate_hz)


def probe_speech(
    path: str | Path, log_mel_maximum: LogMelMaximum | None = None, *, track: int | None = None
) -> SpeechInfo:
    """Decode a recording once to learn its exact length and peak.

    log_mel_maximum: computes the maximum that Whisper's floor needs (see audio_features/mel.py) from the samples that
    read_mono yields; it gets them while they are counted, so that this takes no decoding of its own, but where the
    channels turn out to cancel each other out. track: the sound track, from 0; None: the default one.

    Logs one warning where the recording is silent, and one where it holds samples that are not finite. Raises
    InputError when it is missing, holds no sound or not one sample.
    """
    path = Path(path)
    counter = _Counter(path)
    log_mel_max: float | None = None
    with closing(decoded_blocks(path, track)) as blocks:
        counted = counter.count(blocks)
        if log_mel_maximum is not None:
            log_mel_max = log_mel_maximum(_to_mono(counted, MODEL_SAMPLE_RATE_HZ, None))
        for _ in counted:  # whatever it did not ask for
            pass
    info = counter.info(log_mel_max)
    if info.mono_channel is not None and log_mel_maximum is not None:
        info = replace(info, log_mel_max=log_mel_maximum(read_mono(info)))
    return info


def read_planar(info: SpeechInfo) -> Generator[Samples, None, None]:
    """Yield the recording's own samples: (channels, n) float32 blocks, 1.0 being full scale, n_samples in all."""
    with closing(decoded_blocks(info.path, info.track)) as blocks:
        for block in blocks:
            yield _with_channels(block, info)


def read_mono(
    recording: str | Path | SpeechInfo, sample_rate_hz: int = MODEL_SAMPLE_RATE_HZ
) -> Generator[Samples, None, None]:
    """Yield a recording as mono: (n,) float32 blocks in [-1, 1], the mean of its channels, resampled.

    Of a recording that was probed, its track, and the strongest channel where the channels cancel each other out.
    round(n_samples x sample_rate_hz / own rate) samples in all; a recording that is mono and at that rate already
    comes unchanged (16-bit samples divided by 32768). Raises InputError as probe_speech does.
    """
    if isinstance(recording, SpeechInfo):
        path, track, channel = recording.path, recording.track, recording.mono_channel
    else:
        path, track, channel = Path(recording), None, None
    with closing(decoded_blocks(path, track)) as blocks:
        yield from _to_mono(blocks, sample_rate_hz, channel)


class SharedSpeech:
    """One decoding of a recording for two readers: the model, and the output's sound track some way behind it.

    Each of `mono` and `planar` is called once, and each may be read in a thread of its own. What one reader has had and
    the other has not is held, so memory grows with the distance between them and not with the recording. A reader that
    is closed has nothing held for it. A context manager that closes the file.
    """

    def __init__(self, info: SpeechInfo) -> None:
        self.info = info
        self._lock = threading.Lock()
        self._blocks = decoded_blocks(info.path, info.track)
        self._waiting: dict[str, deque[Block]] = {"mono": deque(), "planar": deque()}

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
        """Yield what `read_mono` does of the probed recording."""
        yield from _to_mono(self._read("mono"), MODEL_SAMPLE_RATE_HZ, self.info.mono_channel)

    def planar(self) -> Generator[Samples, None, None]:
        """Yield what `read_planar` does."""
        for block in self._read("planar"):
            yield _with_channels(block, self.info)

    def _read(self, reader: str) -> Generator[Block, None, None]:
        try:
            while (block := self._next(reader)) is not None:
                yield block
        finally:
            with self._lock:
                self._waiting.pop(reader, None)

    def _next(self, reader: str) -> Block | None:
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


def n_output_frames(info: SpeechInfo, frame_rate: int | Fraction = 25) -> int:
    """Return the video frames that the speech lasts: round(frame_rate x n_samples / sample rate), at least 1."""
    return max(1, round(frame_rate * info.duration_s))


class Resampler:
    """Resamples mono as it comes, to round(samples in x to_hz / from_hz) samples in all."""

    def __init__(self, from_hz: int, to_hz: int) -> None:
        self._from_hz, self._to_hz = from_hz, to_hz
        self._resampler = None if from_hz == to_hz else AudioResampler(format="flt", layout="mono", rate=to_hz)
        self._n_in = self._n_out = 0

    def add(self, block: Samples) -> list[Samples]:
        """Return what is known after the next block, (n,) float32."""
        if self._resampler is None:
            return [block]
        frame = AudioFrame.from_ndarray(block[None], format="flt", layout="mono")
        frame.sample_rate = self._from_hz
        frame.time_base = Fraction(1, self._from_hz)
        frame.pts = self._n_in
        self._n_in += len(block)
        resampled = _samples(self._resampler.resample(frame))
        self._n_out += sum(map(len, resampled))
        return resampled

    def end(self) -> Samples:
        """Return the last samples."""
        if self._resampler is None:
            return np.zeros(0, np.float32)
        n_left = max(0, round(Fraction(self._n_in * self._to_hz, self._from_hz)) - self._n_out)
        tail = np.concatenate([*_samples(self._resampler.resample(None)), np.zeros(n_left, np.float32)])
        return tail[:n_left]


def resample(blocks: Iterable[Samples], from_hz: int, to_hz: int) -> Iterator[Samples]:
    """Resample (n,) float32 blocks to round(samples in x to_hz / from_hz) samples in all."""
    resampler = Resampler(from_hz, to_hz)
    for block in blocks:
        yield from resampler.add(block)
    if from_hz != to_hz:
        yield resampler.end()


def mixed_down(blocks: Iterable[Samples], from_hz: int, to_hz: int, channel: int | None = None) -> Iterator[Samples]:
    """Resample the mean of the channels of (channels, n) blocks, or one channel: (n,) blocks in [-1, 1]."""
    mono = (
        block.mean(0) if channel is None or channel >= len(block) else np.ascontiguousarray(block[channel])
        for block in blocks
    )
    for samples in resample(mono, from_hz, to_hz):
        yield np.clip(samples, -1.0, 1.0)


class ChannelPowers:
    """The power of each channel of a recording, and of their mean."""

    def __init__(self) -> None:
        self._of_channels: NDArray[np.float64] | None = None
        self._of_mean = 0.0

    def add(self, samples: Samples) -> None:
        """Count samples (channels, n); those with other channels than the first ones are left out."""
        if len(samples) == 1 or (self._of_channels is not None and len(self._of_channels) != len(samples)):
            return
        powers = np.square(samples).sum(1, dtype=np.float64)
        self._of_channels = powers if self._of_channels is None else self._of_channels + powers
        self._of_mean += float(np.square(samples.mean(0)).sum(dtype=np.float64))

    def strongest_if_cancelled(self) -> int | None:
        """Return the strongest channel where the mean is far weaker, as with opposite phases; else None."""
        if self._of_channels is None or self._of_mean >= _CANCELLED**2 * self._of_channels.max():
            return None
        return int(self._of_channels.argmax())


def _samples(frames: Iterable[AudioFrame]) -> list[Samples]:
    return [np.asarray(frame.to_ndarray()[0], np.float32) for frame in frames]


class _Counter:
    """Counts a recording's blocks as they pass."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.powers = ChannelPowers()
        self.first: Block | None = None
        self.n_samples = self.n_invalid = 0
        self.peak = 0.0

    def count(self, blocks: Iterable[Block]) -> Iterator[Block]:
        for block in blocks:
            self.first = self.first or block
            self.n_samples += block.samples.shape[1]
            self.n_invalid += block.n_invalid
            self.powers.add(block.samples)
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
        mono_channel = self.powers.strongest_if_cancelled()
        if mono_channel is not None:
            logger.warning(
                "%s: its channels cancel each other out; taking channel %d alone", self.path, mono_channel + 1
            )
        return SpeechInfo(
            path=self.path,
            sample_rate_hz=first.sample_rate_hz,
            channels=len(first.samples),
            layout=first.layout,
            n_samples=self.n_samples,
            peak=self.peak,
            log_mel_max=log_mel_max,
            track=first.track,
            mono_channel=mono_channel,
        )


def _to_mono(blocks: Iterator[Block], sample_rate_hz: int, channel: int | None) -> Generator[Samples, None, None]:
    first = next(blocks, None)
    if first is None:
        return

    def samples() -> Iterator[Samples]:
        yield first.samples
        for block in blocks:
            yield block.samples

    yield from mixed_down(samples(), first.sample_rate_hz, sample_rate_hz, channel)


def _with_channels(block: Block, info: SpeechInfo) -> Samples:
    """Return the block's samples with as many channels as the recording began with."""
    samples = block.samples
    return samples if len(samples) == info.channels else np.repeat(samples.mean(0, keepdims=True), info.channels, 0)
