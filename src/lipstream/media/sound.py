"""Decode the sound of a file, block by block, each in its place by the time stamps.

Samples are taken as libav decodes them, after it has removed an encoder's priming and padding. Where time stamps leave
a gap (Opus sends nothing while nobody speaks), or the sound begins later than the picture beside it, there is silence.
Samples that are not numbers, or far beyond full scale, are silence everywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from numpy.typing import NDArray

from lipstream.errors import InputError
from lipstream.media.container import decode, open_input

logger = logging.getLogger(__name__)

Samples = NDArray[np.float32]

_LARGEST_SAMPLE = 1e6  # full scale is 1; beyond this AAC refuses to encode

_TOLERANCE_S = Fraction(1, 50)
"""Time stamps in whole milliseconds, or of a browser's recorder, stray by some; Opus sends a packet every 20 ms."""

_LONGEST_GAP_S = 600
"""Time stamps that jump farther, or more than a second back, begin to count from elsewhere."""


@dataclass(frozen=True)
class Block:
    """Samples (channels, n) as decoded, silence in place of the `n_invalid` that cannot be played, and their rate.

    track: among the file's sound tracks, from 0.
    """

    samples: Samples
    sample_rate_hz: int
    layout: str
    n_invalid: int
    track: int


def decoded_blocks(path: Path, track: int | None) -> Generator[Block, None, None]:
    """Decode a recording. track: the sound track among the file's, from 0; None: the one marked as default, or else the
    best by libav's rule.

    Raises InputError where there is no such track, its sample rate changes or there is not one sample.
    """
    first: Block | None = None
    with open_input(path, "recording") as container:
        stream = _stream(path, container, track)
        track = container.streams.audio.index(stream)
        timeline = _Timeline(_picture_start_s(container))
        for frame in decode(path, container, stream):
            if not frame.samples:
                continue
            block = _block(frame, track)
            first = first or block
            if block.sample_rate_hz != first.sample_rate_hz:
                change = f"from {first.sample_rate_hz} to {block.sample_rate_hz} Hz"
                raise InputError(f"its sample rate changes {change}", file=path, fix="convert it to wav first")
            yield from timeline.silence_before(frame, block)
            yield block
    if first is None:
        raise InputError("it holds no sound (zero samples)", file=path, fix="record or export it again")


def without_invalid(samples: Samples) -> tuple[Samples, int]:
    """Return the samples, silence in place of those that are not finite or far beyond full scale, and their number."""
    if np.abs(samples).max() <= _LARGEST_SAMPLE:  # False for NaN too
        return samples, 0
    is_valid = np.abs(samples) <= _LARGEST_SAMPLE
    return np.where(is_valid, samples, np.float32(0)), is_valid.size - int(np.count_nonzero(is_valid))


class _Timeline:
    """Counts the samples of a track, and finds what is missing before a frame."""

    def __init__(self, start_s: Fraction | None) -> None:
        """start_s: when the file's picture begins, if it has one."""
        self._start_s = start_s
        self._n_samples = 0

    def silence_before(self, frame: AudioFrame, block: Block) -> Generator[Block, None, None]:
        """Yield the silence that a frame's time stamp leaves before it, a second at a time, and count the frame."""
        rate_hz = block.sample_rate_hz
        n_missing = 0
        if frame.pts is not None and frame.time_base is not None:
            time_s = frame.pts * frame.time_base
            if self._start_s is None:
                self._start_s = time_s - Fraction(self._n_samples, rate_hz)
            late_s = time_s - self._start_s - Fraction(self._n_samples, rate_hz)
            if late_s > _LONGEST_GAP_S or (late_s < -1 and self._n_samples):
                self._start_s += late_s
            elif late_s > _TOLERANCE_S:
                n_missing = round(late_s * rate_hz)
        self._n_samples += n_missing + frame.samples
        while n_missing > 0:
            n = min(n_missing, rate_hz)
            yield replace(block, samples=np.zeros((len(block.samples), n), np.float32), n_invalid=0)
            n_missing -= n


def _stream(path: Path, container: InputContainer, track: int | None) -> AudioStream:
    streams = container.streams.audio
    if not streams:
        raise InputError("no audio stream in it", file=path, fix="name a recording, or a video with sound")
    if track is not None and track >= len(streams):
        known = "one sound track" if len(streams) == 1 else f"{len(streams)} sound tracks"
        raise InputError(
            f"it has no sound track {track}: it has {known}, counted from 0",
            file=path,
            fix="choose another --audio-track",
        )
    stream = container.streams.best("audio") if track is None else streams[track]
    if not isinstance(stream, AudioStream) or stream.codec_context is None:
        raise InputError("no decoder for its audio codec here", file=path, fix="convert it to wav first")
    return stream


def _picture_start_s(container: InputContainer) -> Fraction | None:
    """Return when the picture of a file begins; None where there is none (cover art does not count)."""
    starts = [
        stream.start_time * stream.time_base
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic and stream.start_time is not None and stream.time_base
    ]
    return min(starts, default=None)


def _block(frame: AudioFrame, track: int) -> Block:
    samples, n_invalid = without_invalid(_planar(frame))
    return Block(samples, frame.sample_rate, frame.layout.name, n_invalid, track)


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
