"""How a stored picture is turned and mirrored to stand upright: a phone's film by its matrix, a photo by its EXIF."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
from av.buffer import Buffer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame

_MIRRORED_IN_EXIF = {2: 0, 4: 180, 5: 270, 7: 90}
"""Orientations of the EXIF standard that mirror left and right, and the clockwise rotation after that."""

_ORIENTATION_TAG = 0x0112
_HEADER_BYTES = 1 << 18


def orientation(path: Path, frame: VideoFrame) -> tuple[int, bool]:
    """Return (clockwise rotation in degrees, to the nearest quarter; mirrored left-right first) of a file's picture."""
    try:
        side_data = cast("Mapping[SideDataType, Buffer]", frame.side_data)
    except ValueError:  # one of a kind that PyAV does not know, EXIF for instance, hides all others
        mirrored = _MIRRORED_IN_EXIF.get(_exif_orientation(path))
        return (round(-frame.rotation / 90) % 4 * 90, False) if mirrored is None else (mirrored, True)
    if SideDataType.DISPLAYMATRIX not in side_data:
        return 0, False
    matrix = bytes(side_data[SideDataType.DISPLAYMATRIX])
    # x' = a x + c y, y' = b x + d y, with y pointing down
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    mirrored_left_right = a * d - b * c < 0
    if mirrored_left_right:
        a, b = -a, -b
    return round(math.degrees(math.atan2(b, a)) / 90) % 4 * 90, mirrored_left_right


def _exif_orientation(path: Path) -> int:
    """Return the orientation that the EXIF of a JPEG, PNG or WebP file states, 1 where it states none."""
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    for mark, skipped in ((b"Exif\0\0", 6), (b"eXIf", 4), (b"EXIF", 8)):
        place = header.find(mark)
        if place >= 0:
            return _orientation_in_tiff(header[place + skipped :])
    return 1


def _orientation_in_tiff(tiff: bytes) -> int:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (n_entries,) = struct.unpack_from(f"{order}H", tiff, start)
        for i in range(n_entries):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * i)
            if tag == _ORIENTATION_TAG:
                return int(value)
    except struct.error:  # cut off
        return 1
    return 1
