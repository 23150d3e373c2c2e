"""Pasting a generated face back into its frame: the published blending, only where the face reaches.

Follows LatentSync's restore_img in float32. Everything outside the rectangle that the warped face touches
would be blended with weight zero, so it is never computed and the result is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lipstream.face.align import cut_out, face_size
from lipstream.imaging import (
    affine_grid,
    bilinear_coverage,
    bilinear_sample,
    equal_rectangles,
    erode,
    gaussian_blur,
    invert_affine,
    warped_bounds,
)
from lipstream.media.picture import Picture, Rectangle, RgbPicture
from lipstream.runtime.device_stream import DeviceStream

# The published code fills with 127 also here, where the face is in [-1, 1]: white once clamped.
_FILL = 127.0
_MARGIN = 2
_FINER = 2


def resize_face(faces: Tensor) -> Tensor:
    """Resize decoded crops (..., c, resolution, resolution) to the face rectangle's size, bicubic with antialias.

    Of four channels (see `latent.texture`) at _FINER times that: the rectangle is narrower than the crop, and what the
    model generated would be lost.
    """
    width, height = (length * _finer(faces.shape[-3]) for length in face_size(faces.shape[-1]))
    flat = faces.float().reshape(-1, *faces.shape[-3:])
    resized = F.interpolate(flat, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized.reshape(*faces.shape[:-2], height, width)


def paste_faces(
    pictures: Sequence[Picture],
    faces: Tensor,
    affine_matrices: Sequence[NDArray[np.float32]],
    stream: DeviceStream,
    weights: Sequence[float] | None = None,
) -> None:
    """Blend faces into frames of one size, in place.

    The pictures are n, at least one. `faces` is float (n, 3, h, w) in [-1, 1] at
    the face rectangle's size (see `resize_face`), on the stream's device, or has the frame's share as a fourth channel
    (see `latent.texture`); the matrices (2, 3) are those the crops were taken with. weights: of the faces beside the
    frames as filmed; None: 1 for all. To be called inside the stream's `running`.
    """
    finer = _finer(faces.shape[1])
    face_width, face_height = faces.shape[3] // finer, faces.shape[2] // finer
    corners, size = touched(affine_matrices, (face_width, face_height), (pictures[0].width, pictures[0].height))
    matrices = np.stack(affine_matrices).astype(np.float64)
    matrices[:, :, 2] += (matrices[:, :, :2] @ corners[..., None])[..., 0]
    grid = affine_grid(matrices, size, (face_width, face_height), faces.device)
    reach = bilinear_coverage(face_width, face_height, grid)
    warped = bilinear_sample(faces.float(), grid)
    warped[:, :3].add_((1 - reach).mul_(_FILL)[:, None])
    inner = erode(reach, before=1, after=0)
    as_filmed = cut_out(pictures, corners, size)
    originals = stream.upload(as_filmed).permute(0, 3, 1, 2).contiguous().float()
    generated = _levels(warped, originals).mul_(inner[:, None])
    blended = torch.lerp(originals, generated, _soft_masks(inner)[:, None])
    levels = blended.permute(0, 2, 3, 1).to(as_filmed.dtype, memory_format=torch.contiguous_format)
    new = stream.download(levels)
    stream.wait()
    shares = weights or [1.0] * len(pictures)
    for picture, corner, filmed, pixels, share in zip(pictures, corners.tolist(), as_filmed, new, shares, strict=True):
        if share < 1:
            faded = torch.lerp(filmed.float(), pixels.float(), share)
            pixels = faded.round().to(pixels.dtype) if pixels.dtype == torch.uint8 else faded
        picture.paste(Rectangle(corner[0], corner[1], *size), pixels.numpy())


def paste_face(
    image: NDArray[np.uint8], face: Tensor, affine_matrix: NDArray[np.float32], *, in_place: bool = False
) -> NDArray[np.uint8]:
    """One frame with its face (3 or 4, h, w) blended in, on the CPU: uint8 RGB (h, w, 3). See `paste_faces`.

    `image` is left as it was and the result is a copy, unless `in_place`: copying a large frame takes as long as the
    blending.
    """
    restored = image if in_place else np.array(image)
    paste_faces([RgbPicture(restored)], face[None], [affine_matrix], DeviceStream(torch.device("cpu")))
    return restored


def _finer(n_channels: int) -> int:
    return 1 if n_channels == 3 else _FINER


def _levels(faces: Tensor, originals: Tensor) -> Tensor:
    """Faces (n, 3 or 4, h, w) as they lie on frames, `originals` (n, 3, h, w), 0 to 255; `faces` is overwritten."""
    generated, share = faces[:, :3], faces[:, 3:]
    if share.shape[1] == 0:
        return generated.div_(2).add_(0.5).clamp_(0, 1).mul_(255)
    return generated.sub_(share).add_(1).mul_(127.5).addcmul_(share, originals).clamp_(0, 255)


def touched(
    matrices: Sequence[NDArray[np.float32]], size: tuple[int, int], frame_size: tuple[int, int]
) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """Rectangles that the warped faces can reach, and a margin where the frame goes on: see `equal_rectangles`.

    That margin makes erosion and blur on the rectangle equal to those on the whole frame: a window that
    leaves the rectangle inside the frame has already met a zero.
    """
    width, height = size
    bounds = np.array([warped_bounds(invert_affine(matrix), -1, -1, width, height) for matrix in matrices])
    low, high = np.floor(bounds[:, 0]).astype(np.int64) - _MARGIN, np.ceil(bounds[:, 1]).astype(np.int64) + _MARGIN + 1
    return equal_rectangles(low, high, frame_size)


def _soft_masks(masks: Tensor) -> Tensor:
    """Return the blending weights of masks (n, h, w): each shrunk by a twentieth of its size, its edge as blurred."""
    edges = [int(area**0.5) // 20 for area in masks.sum(dim=(1, 2)).tolist()]
    weights: dict[int, Tensor] = {}
    for edge in set(edges):
        # An empty structuring element, for a face of some twenty pixels, stands for a 3 x 3 square in OpenCV.
        before, after = (edge, edge - 1) if edge else (1, 1)
        alike = [index for index, other in enumerate(edges) if other == edge]
        shrunk = erode(torch.stack([masks[index] for index in alike]), before, after)
        weights.update(zip(alike, gaussian_blur(shrunk, edge, 0.3 * (edge - 1) + 0.8), strict=True))
    return torch.stack([weights[index] for index in range(len(masks))])
