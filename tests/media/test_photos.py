"""Stills as the video: all orientations that a camera notes, and side data that nobody knows."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.media import smooth_image
from lipstream.media.reader import probe, read_frames

Image = NDArray[np.uint8]

# What was seen when a camera stored a picture with each orientation, given what it stored.
UPRIGHT: dict[int, Callable[[Image], Image]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda stored: np.rot90(stored),
}


def write_still(path: Path, image: Image, codec: str, pix_fmt: str) -> bytes:
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = image.shape[:2]
        stream.pix_fmt = pix_fmt
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


def write_photo(path: Path, image: Image, orientation: int, order: str = ">") -> Path:
    """A JPEG with EXIF, in either byte order."""
    content = write_still(path, image, "mjpeg", "yuvj444p")
    mark = b"MM\0*" if order == ">" else b"II*\0"
    tiff = mark + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    segment = b"Exif\0\0" + tiff
    path.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + content[2:])
    return path


@pytest.mark.parametrize("order", [">", "<"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_photos_stand_upright(orientation: int, order: str, tmp_path: Path) -> None:
    stored = smooth_image(48, 80)
    photo = write_photo(tmp_path / "photo.jpg", stored, orientation, order)
    expected = UPRIGHT[orientation](stored)
    info, frame = probe(photo), next(read_frames(photo))
    assert frame.image.shape == expected.shape == (info.height, info.width, 3)
    assert np.abs(frame.image.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("exif", [b"", b"MM", b"MM\0*\0\0\0\x08", b"MM\0*\xff\xff\xff\xff\0\1", b"junk" * 9])
def test_broken_exif_is_no_orientation(exif: bytes, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    content = write_still(photo, smooth_image(48, 80), "mjpeg", "yuvj420p")
    segment = b"Exif\0\0" + exif
    photo.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + content[2:])
    assert next(read_frames(photo)).image.shape == (48, 80, 3)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.png", "png", "rgba"),
        ("a.png", "png", "gray16be"),
        ("a.bmp", "bmp", "bgr24"),
        ("a.tiff", "tiff", "rgb24"),
        ("a.webp", "libwebp", "yuv420p"),
        ("a.jpg", "mjpeg", "yuvj420p"),
    ],
)
def test_any_still_is_a_video_of_one_frame(name: str, codec: str, pix_fmt: str, tmp_path: Path) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"no encoder {codec} here")
    write_still(tmp_path / name, smooth_image(50, 71), codec, pix_fmt)
    assert [frame.image.shape for frame in read_frames(tmp_path / name)] == [(50, 71, 3)]
