"""Light of HDR pictures for models that know none: tone-mapped to 0 to 255, and back by the inverse.

Each of red, green and blue is mapped by one curve that rises everywhere, so nothing is lost on the way and back: the
code's light (SMPTE ST 2084, or ARIB STD-B67 as a display of 1000 cd/m2 shows it), 203 cd/m2 being white as in BT.2408;
straight up to half of that, bent towards 1 above; then the curve of an SDR display (BT.1886).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

PQ, HLG = 16, 18
"""libav's numbers (AVColorTransferCharacteristic)."""

_CODES = 1 << 16
_LEVELS = 257  # 16-bit codes a level of 255
_WHITE = 203.0
_KNEE = 0.5
_DISPLAY_GAMMA = 2.4


def is_hdr(transfer: int) -> bool:
    """Return whether a transfer characteristic is one of HDR."""
    return transfer in (PQ, HLG)


def levels_of(codes: NDArray[np.uint16], transfer: int) -> NDArray[np.float32]:
    """Return 16-bit RGB as levels from 0 to 255, tone-mapped where it is HDR."""
    if not is_hdr(transfer):
        return np.asarray(codes / np.float32(_LEVELS), np.float32)
    return _tables(transfer)[0][codes]


def codes_of(levels: NDArray[Any], transfer: int) -> NDArray[np.uint16]:
    """Return what `levels_of` gives `levels` for."""
    steps = np.rint(np.asarray(levels, np.float32) * _LEVELS).clip(0, _CODES - 1).astype(np.uint16)
    return _tables(transfer)[1][steps] if is_hdr(transfer) else steps


@lru_cache(maxsize=2)
def _tables(transfer: int) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """Return the level of each code, and the code of each 257th of a level."""
    code = np.arange(_CODES) / (_CODES - 1)
    light = (_pq(code) if transfer == PQ else _hlg(code)) / _WHITE
    above = np.maximum(light - _KNEE, 0) / (1 - _KNEE)
    shown = np.minimum(light, _KNEE) + (1 - _KNEE) * above / (1 + above)
    levels = 255 * shown ** (1 / _DISPLAY_GAMMA)
    steps = np.arange(_CODES) / _LEVELS
    codes = np.rint(np.interp(steps, levels, np.arange(_CODES)))
    return levels.astype(np.float32), codes.astype(np.uint16)


def _pq(code: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the light of a PQ code, cd/m2."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = code ** (1 / m2)
    return np.asarray(10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1))


def _hlg(code: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the light of an HLG code on a display of 1000 cd/m2, its system gamma taken for each colour by itself."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    return np.asarray(1000 * scene**1.2)
