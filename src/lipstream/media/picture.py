"""Pictures of a run: as they were filmed, of which only what a face touches is turned into RGB, or RGB in memory."""

from __future__ import annotations

import itertools
import zlib
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lipstream.media.color import YuvColor, to_rgb, to_yuv
from lipstream.media.pixel_format import Layout, Planes, frame_of, layout_of, planes_of
from lipstream.media.tone import codes_of, is_hdr, levels_of

# Pixels that are converted round a rectangle so that chroma at its borders has its neighbours, a multiple of 4.
_MARGIN = 8

# Pictures of up to so many pixels across and down are looked at whole.
_SMALL = 768


class Rectangle(NamedTuple):
    """A part of a picture, in pixels; it lies inside the picture."""

    left: int
    top: int
    width: int
    height: int


class Picture(Protocol):
    """A picture that is looked at, and changed, in parts."""

    width: int
    height: int

    def rgb(self, part: Rectangle) -> NDArray[Any]:
        """Return a part as RGB (h, w, 3), uint8, or float32 from 0 to 255 where the picture is finer than that."""

    def image(self) -> NDArray[np.uint8]:
        """Return the whole as uint8 RGB (height, width, 3)."""

    def view(self) -> Any:
        """Return the whole as an array that gives parts of `image`; only those that are asked for are converted."""

    def paste(self, part: Rectangle, rgb: NDArray[Any]) -> None:
        """Replace a part by what is like `rgb` returned it, but for pixels that have not changed."""

    def copy(self) -> Picture:
        """Return a picture of its own."""

    def mixed(self, other: Any, share: float) -> Picture:
        """Return a picture that has gone over to another one, of the same kind, by a share of the way."""


class RgbPicture:
    """A uint8 RGB image (height, width, 3), which is changed in place."""

    def __init__(self, image: NDArray[np.uint8]) -> None:
        self._image = image
        self.height, self.width = image.shape[:2]

    def rgb(self, part: Rectangle) -> NDArray[Any]:
        """Return a part, a view."""
        return self._image[part.top : part.top + part.height, part.left : part.left + part.width]

    def image(self) -> NDArray[np.uint8]:
        """Return the image itself."""
        return self._image

    def view(self) -> NDArray[np.uint8]:
        """Return the image itself."""
        return self._image

    def paste(self, part: Rectangle, rgb: NDArray[Any]) -> None:
        """Replace a part."""
        self.rgb(part)[:] = rgb

    def copy(self) -> RgbPicture:
        """Return a picture of its own."""
        return RgbPicture(self._image.copy())

    def checksum(self) -> int:
        """Return the CRC of every fourth row, see FilmedPicture."""
        return zlib.crc32(self._image[::4].tobytes())

    def mixed(self, other: RgbPicture, share: float) -> RgbPicture:
        """Return a picture between this one and another."""
        return RgbPicture(_between(self._image, other.image(), share))


class FilmedPicture:
    """Planes as they were decoded, of the picture's own, which are changed in place."""

    def __init__(self, planes: Planes, layout: Layout, color: YuvColor) -> None:
        self.planes, self.layout, self.color = planes, layout, color
        self.height, self.width = planes[0].shape
        self._is_deep = layout.bits > 8 or is_hdr(color.transfer)

    @property
    def n_bytes(self) -> int:
        """Size of the planes."""
        return sum(plane.nbytes for plane in self.planes)

    def rgb(self, part: Rectangle) -> NDArray[Any]:
        """Return a part as RGB, see `Picture.rgb`; HDR is tone-mapped."""
        around = self._around(part)
        return _inner(self._rgb(around), part, around)

    def image(self) -> NDArray[np.uint8]:
        """Return the whole as uint8 RGB, converted at each call."""
        return self.levels(Rectangle(0, 0, self.width, self.height))

    def levels(self, part: Rectangle) -> NDArray[np.uint8]:
        """Return a part as uint8 RGB (h, w, 3), C-contiguous."""
        around = self._around(part)
        if is_hdr(self.color.transfer):
            levels = np.asarray(np.rint(self._rgb(around)), np.uint8)
        else:
            levels = to_rgb(frame_of(self._cuts(around), self.layout), self.color)
        return np.ascontiguousarray(_inner(levels, part, around))

    def rows(self, first: int, step: int) -> NDArray[np.uint8]:
        """Return every `step`th row of `image`, from `first` on."""
        if self.layout.bits > 10 or is_hdr(self.color.transfer):
            return self.image()[first::step]
        places, finer = np.arange(first, self.height, step), 16 - self.layout.bits
        luma, *chroma = self.planes
        # With 16 bits, chroma at a row of luma is as exact as it is inside of the conversion of the whole.
        if self.layout.down == 2:
            chroma = [_at_rows(plane, places) << (finer - 2) for plane in chroma]
        else:
            chroma = [plane[places].astype(np.uint16) << finer for plane in chroma]
        layout = layout_of(f"yuv{'444' if self.layout.across == 1 else '422'}p16le")
        assert layout is not None
        return FilmedPicture((luma[places].astype(np.uint16) << finer, *chroma), layout, self.color).image()

    def view(self) -> Any:
        """Return the image, of which only what is looked at is converted where that pays."""
        return FilmedView(self) if max(self.width, self.height) > _SMALL else self.image()

    def paste(self, part: Rectangle, rgb: NDArray[Any]) -> None:
        """Replace the pixels of a part that have changed; all other samples stay as they are, bit for bit."""
        around = self._around(part)
        old = self._rgb(around)
        new = old.copy()
        _inner(new, part, around)[:] = rgb
        differs = new != old
        changed = differs[..., 0] | differs[..., 1] | differs[..., 2]  # many times as fast as any() along a short axis
        if not changed.any():
            return
        codes = codes_of(new, self.color.transfer) if self._is_deep else new
        even = np.pad(codes, ((0, around.height % 2), (0, around.width % 2), (0, 0)), "edge")
        converted = planes_of(to_yuv(even, self.layout.name, self.color), self.layout)
        cuts = self._cuts(around)
        for plane, cut, (across, down) in zip(converted, cuts, self.layout.steps(), strict=True):
            rows, columns = cut.shape
            np.copyto(cut, plane[:rows, :columns], where=_any_in_blocks(changed, across, down))

    def copy(self) -> FilmedPicture:
        """Return a picture of its own."""
        return FilmedPicture(tuple(plane.copy() for plane in self.planes), self.layout, self.color)

    def mixed(self, other: FilmedPicture, share: float) -> FilmedPicture:
        """Return a picture between this one and another."""
        pairs = zip(self.planes, other.planes, strict=True)
        return FilmedPicture(tuple(_between(one, two, share) for one, two in pairs), self.layout, self.color)

    def checksum(self) -> int:
        """Return the CRC of every fourth row: it finds a wrongly decoded picture, and is cheap beside decoding."""
        value = 0
        for plane in self.planes:
            value = zlib.crc32(plane[::4].tobytes(), value)
        return value

    def _around(self, part: Rectangle) -> Rectangle:
        """Return a part with its margin, beginning where samples of chroma do."""
        left, top = (max(0, (start - _MARGIN) // 4 * 4) for start in part[:2])
        right, bottom = part.left + part.width + _MARGIN, part.top + part.height + _MARGIN
        right, bottom = min(self.width, -(-right // 4) * 4), min(self.height, -(-bottom // 4) * 4)
        return Rectangle(left, top, right - left, bottom - top)

    def _cuts(self, part: Rectangle) -> Planes:
        """Return views of a part that begins where samples of chroma do."""
        left, top, width, height = part
        return tuple(
            plane[top // down : -(-(top + height) // down), left // across : -(-(left + width) // across)]
            for plane, (across, down) in zip(self.planes, self.layout.steps(), strict=True)
        )

    def _rgb(self, part: Rectangle) -> NDArray[Any]:
        rgb = to_rgb(frame_of(self._cuts(part), self.layout), self.color, is_deep=self._is_deep)
        rgb = rgb[: part.height, : part.width]
        return levels_of(rgb, self.color.transfer) if self._is_deep else rgb


class FilmedView:
    """The image of a filmed picture, (height, width, 3) uint8 RGB, as an array that is converted where it is sliced."""

    def __init__(self, picture: FilmedPicture) -> None:
        self._picture = picture
        self.shape = (picture.height, picture.width, 3)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return all of it."""
        return np.asarray(self._picture.image(), dtype)

    def __getitem__(self, key: slice | tuple[slice, slice]) -> NDArray[np.uint8]:
        """Return a part: some rows, or some rows and columns."""
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        top, bottom, down = rows.indices(self.shape[0])
        left, right, across = columns.indices(self.shape[1])
        if bottom <= top or right <= left:
            return np.zeros((max(bottom - top, 0), max(right - left, 0), 3), np.uint8)
        if down == across == 1:
            return self._picture.levels(Rectangle(left, top, right - left, bottom - top))
        return self._picture.rows(top, down)[: len(range(top, bottom, down)), left:right:across]


DecodedPicture = RgbPicture | FilmedPicture
"""What a video file gives."""


def _between(one: NDArray[Any], other: NDArray[Any], share: float) -> NDArray[Any]:
    return np.asarray(np.rint(one + share * (other.astype(np.float32) - one)), one.dtype)


def _at_rows(chroma: NDArray[Any], rows: NDArray[np.intp]) -> NDArray[np.uint16]:
    """Return four times the chroma at some rows of luma, each of which lies nearest to one of two rows of chroma."""
    near = rows // 2
    far = (near - 1 + rows % 2 * 2).clip(0, len(chroma) - 1)
    return np.asarray(3 * chroma[near].astype(np.uint16) + chroma[far])


def _inner(image: NDArray[Any], part: Rectangle, around: Rectangle) -> NDArray[Any]:
    left, top = part.left - around.left, part.top - around.top
    return image[top : top + part.height, left : left + part.width]


def _any_in_blocks(mask: NDArray[np.bool_], across: int, down: int) -> NDArray[np.bool_]:
    """Return whether there is anything in each block of pixels; the last ones may be smaller."""
    if across == down == 1:
        return mask
    height, width = (-(-side // step) for side, step in zip(mask.shape, (down, across), strict=True))
    blocks = np.zeros((height, width), np.bool_)
    for top, left in itertools.product(range(down), range(across)):
        part = mask[top::down, left::across]
        blocks[: part.shape[0], : part.shape[1]] |= part
    return blocks
