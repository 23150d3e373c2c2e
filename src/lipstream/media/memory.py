"""Frames and speech that the caller holds or makes, in place of a video file and a recording."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipstream.errors import InputError, SettingsError
from lipstream.media.again import from_the_start_again, slower
from lipstream.media.audio import MODEL_SAMPLE_RATE_HZ, ChannelPowers, mixed_down
from lipstream.media.loop import MAX_HELD_BYTES
from lipstream.media.picture import Picture, RgbPicture
from lipstream.media.reader import Frame
from lipstream.media.sound import Samples, without_invalid
from lipstream.settings import FRAME_RATE_HZ, Loop

logger = logging.getLogger(__name__)

_MOST_CHANNELS = 64
"""More rows than this are taken for samples: the array is the other way round."""


@dataclass(frozen=True)
class Speech:
    """A recording in memory: `samples` (n,) float32, mono, 16 kHz, in [-1, 1], and the frames that it lasts."""

    samples: Samples
    n_frames: int


def speech_from(samples: ArrayLike | Iterable[ArrayLike], sample_rate_hz: int) -> Speech:
    """Return the recording that `samples` hold, as the model takes it.

    samples: float32 (n,) or (channels, n), full scale 1, or an iterable of such blocks, which is read to its end.
    Samples that are not numbers, or far beyond full scale, are silence, with a warning. Raises InputError for another
    dtype or shape, or without one sample.
    """
    if sample_rate_hz < 1:
        raise SettingsError(f"sample_rate_hz = {sample_rate_hz}: must be at least 1", setting="sample_rate_hz")
    n_samples = n_invalid = 0

    def blocks() -> Iterator[Samples]:
        nonlocal n_samples, n_invalid
        for block in _blocks(samples):
            n_samples += block.shape[1]
            for start in range(0, block.shape[1], sample_rate_hz):
                piece, n = without_invalid(block[:, start : start + sample_rate_hz])
                n_invalid += n
                yield piece

    pieces, powers = list(blocks()), ChannelPowers()
    for piece in pieces:
        powers.add(piece)
    mono = list(mixed_down(pieces, sample_rate_hz, MODEL_SAMPLE_RATE_HZ, powers.strongest_if_cancelled()))
    if n_samples == 0:
        raise InputError("the speech holds no sample", fix="pass at least 0.04 s of speech")
    if n_invalid:
        logger.warning("%d samples are not finite numbers or far too loud; they are replaced by silence", n_invalid)
    return Speech(np.concatenate(mono), max(1, round(FRAME_RATE_HZ * Fraction(n_samples, sample_rate_hz))))


def _blocks(samples: Any) -> Iterator[Samples]:
    """Yield (channels, n) float32 blocks, none of them empty."""
    is_one = hasattr(samples, "ndim")
    for index, block in enumerate([samples] if is_one else samples):
        array = np.asarray(block)
        name = "samples" if is_one else f"block {index} of samples"
        if array.dtype.kind != "f":
            fix = "convert it to float32, int16 by dividing by 32768"
            raise InputError(f"{name} is {array.dtype}, not float32", fix=fix)
        if array.ndim not in (1, 2) or (array.ndim == 2 and not 0 < len(array) <= _MOST_CHANNELS):
            raise InputError(f"{name} is {array.shape}, not (n,) or (channels, n)", fix="pass (channels, n)")
        if array.size:
            yield np.atleast_2d(array.astype(np.float32, copy=False))


class Images:
    """The frames of a run out of images: checked, copied, and continued past their end as `loop` says.

    images: (height, width, 3) uint8 RGB, all of one size, taken one at a time. Raises InputError for anything else and
    for no image at all, when it comes to that.
    """

    def __init__(self, images: Iterable[Any], n_frames: int, loop: Loop) -> None:
        self._images, self._n_frames, self._loop = images, n_frames, loop
        self._source = iter(images)
        self._first = next(self._source, None)
        if self._first is None:
            raise InputError("there is no image", fix="pass at least one image")
        self._shape = _checked(self._first, 0, None).shape
        self.height, self.width = self._shape[:2]

    def frames(self) -> Iterator[Frame]:
        """Yield the frames, which own their images; called once."""
        if self._loop in ("loop", "remap"):
            for index, (source_index, is_repeat, shown) in enumerate(itertools.islice(self._passes(), self._n_frames)):
                yield Frame(index, source_index, is_repeat, shown)
            return
        n, last = 0, None
        for image in itertools.islice(itertools.chain([self._first], self._source), self._n_frames):
            frame = self._frame(n, n, image)
            if self._loop == "hold":
                last = frame.image.copy()  # the receiver may change the frame's, and the caller the one passed in
            self._first = None
            yield frame
            n += 1
            del image, frame
        rest = range(n, self._n_frames)
        if not rest or self._loop == "trim":
            return
        repeats = itertools.repeat((n - 1, last)) if self._loop == "hold" else self._replay(n)
        for index, (source_index, image) in zip(rest, repeats, strict=False):
            yield self._frame(index, source_index, image)

    def _passes(self) -> Iterator[tuple[int, bool, Picture]]:
        """Yield (source index, whether it was there before, picture) as "loop" or "remap" has them."""
        shown = itertools.chain([self._first], self._source)
        pictures = (self._frame(index, index, image).picture for index, image in enumerate(shown))
        if self._loop == "loop":
            return from_the_start_again(pictures, self._from, self._n_frames)
        if not isinstance(self._images, Sized):
            raise SettingsError(
                "loop = 'remap' needs to know how many images there are", fix="pass a sequence", setting="loop"
            )
        return slower(pictures, min(len(self._images), self._n_frames), self._n_frames)

    def _from(self, start: int) -> Iterator[Picture]:
        if iter(self._images) is self._images:
            raise SettingsError(
                "loop = 'loop' needs the images a second time, and this iterator gives them once",
                fix="pass a sequence, or choose loop='hold' or loop='trim'",
                setting="loop",
            )
        for index, image in enumerate(itertools.islice(self._images, start, None), start):
            yield self._frame(index, index, image).picture

    def _frame(self, index: int, source_index: int, image: Any) -> Frame:
        checked = _checked(image, source_index, self._shape)
        return Frame(index, source_index, index != source_index, RgbPicture(np.array(checked, order="C")))

    def _replay(self, n: int) -> Iterator[tuple[int, Any]]:
        """Yield (index, image) backwards, forwards, backwards and so on without end."""
        if hasattr(self._images, "__getitem__") and hasattr(self._images, "__len__"):
            images = cast("Sequence[Any]", self._images)
            while True:
                for index in (*reversed(range(n)), *range(n)):
                    yield index, images[index]
        if iter(self._images) is self._images:
            raise SettingsError(
                f"loop = 'pingpong' needs the {n} images a second time, and this iterator gives them once",
                fix="pass a sequence, or choose loop='hold' or loop='trim'",
                setting="loop",
            )
        n_held = max(1, MAX_HELD_BYTES // math.prod(self._shape))
        while True:
            for stop in range(n, 0, -n_held):
                start = max(0, stop - n_held)
                held = [np.array(image) for _, image in self._again(start, stop)]
                yield from zip(range(stop - 1, start - 1, -1), reversed(held), strict=True)
            yield from self._again(0, n)

    def _again(self, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        """Yield (index, image) of some images, iterated from the first one again."""
        index = start
        for index, image in zip(range(start, stop), itertools.islice(self._images, start, stop), strict=False):
            yield index, image
        if index < stop - 1:
            raise InputError("the images end earlier when iterated again", fix="pass a sequence")


def _checked(image: Any, index: int, shape: tuple[int, ...] | None) -> NDArray[np.uint8]:
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise InputError(
            f"image {index} is {array.shape} {array.dtype}, not (height, width, 3) uint8", fix="convert it to 8-bit RGB"
        )
    if shape is not None and array.shape != shape:
        raise InputError(f"image {index} is {array.shape}, image 0 is {shape}", fix="pass images of one size")
    return array
