"""Where the face and its repainted part lie in a frame, by the published mask, whoever made the picture."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lipstream.diffusion.mask import face_mask
from lipstream.face.align import face_size
from lipstream.imaging import invert_affine, warped_bounds
from lipstream.models.locate import read_config

CROP_PX = 256
"""Resolution of the crops whose affine matrices are taken here."""

_MASK_OF = "latentsync-1.6"


def face_regions(
    affine_matrix: NDArray[np.float32], height: int, width: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the repainted region and the whole crop as masks (height, width) of a frame.

    affine_matrix: (2, 3), takes the frame's pixels to the face rectangle of a crop of 256 px.
    """
    face_width, face_height = face_size(CROP_PX)
    corners = -0.5, -0.5, face_width - 0.5, face_height - 0.5
    low, high = warped_bounds(invert_affine(affine_matrix), *corners)
    left, top = (int(n) for n in np.floor(low).clip(0, (width, height)))
    right, bottom = (int(n) + 1 for n in np.ceil(high).clip(-1, (width - 1, height - 1)))
    y, x = np.mgrid[top:bottom, left:right]
    column, row = (
        (a * x + b * y + c + 0.5) * CROP_PX / length
        for (a, b, c), length in zip(affine_matrix.tolist(), (face_width, face_height), strict=True)
    )
    inside = (column >= 0) & (column < CROP_PX) & (row >= 0) & (row < CROP_PX)
    repainted, face = np.zeros((2, height, width), np.bool_)
    face[top:bottom, left:right] = inside
    of_crop = _repainted()[row.astype(int).clip(0, CROP_PX - 1), column.astype(int).clip(0, CROP_PX - 1)]
    repainted[top:bottom, left:right] = inside & of_crop
    return repainted, face


@lru_cache(maxsize=1)
def _repainted() -> NDArray[np.bool_]:
    """Return the published mask's repainted part of a crop, (256, 256)."""
    config, _ = read_config(_MASK_OF)
    kept = face_mask(config.mask_polygon_xy, config.mask_size, CROP_PX)
    return np.asarray(kept[0].numpy() < 0.5)
