"""The face geometry done the straightforward way: float32, every pixel of the frame, one frame at a time.

The published recipe step by step, as a yardstick for `face_geometry.py`: the frame is converted to float whole,
warps sample the picture and a picture of ones, and the blending runs over the whole frame. Erosion and the Lanczos
resize are OpenCV's, which comes with the measure extra.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lipstream.face.align import face_size

GREY = 127.0


def align(image: NDArray[np.uint8], affine_matrix: NDArray[np.float32], resolution: int) -> NDArray[np.uint8]:
    """The aligned face (resolution, resolution, 3) of a frame (h, w, 3), both uint8 RGB."""
    frame = torch.from_numpy(image).permute(2, 0, 1).contiguous().float()
    width, height = face_size(resolution)
    warped = warp(frame, inverse(affine_matrix), width, height, GREY)
    face = warped.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return cv2.resize(face, (resolution, resolution), interpolation=cv2.INTER_LANCZOS4)


def restore(image: NDArray[np.uint8], crop: Tensor, affine_matrix: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The frame (h, w, 3) uint8 RGB with a repainted crop (3, resolution, resolution) in [-1, 1] pasted back."""
    height, width = image.shape[:2]
    face_width, face_height = face_size(crop.shape[-1])
    size = (face_height, face_width)
    face = F.interpolate(crop[None], size=size, mode="bicubic", antialias=True, align_corners=False)[0]
    generated = (warp(face, affine_matrix, width, height, GREY) / 2 + 0.5).clamp(0, 1) * 255
    mask = warp(torch.ones(1, *size), affine_matrix, width, height, 0.0)

    inner = torch.from_numpy(cv2.erode(mask[0].numpy(), np.ones((2, 2), np.uint8)))[None]
    edge = int(float(inner.sum()) ** 0.5) // 20
    centre = torch.from_numpy(cv2.erode(inner[0].numpy(), np.ones((2 * edge, 2 * edge), np.uint8)))
    soft = blur(centre[None], edge, 0.3 * (edge - 1) + 0.8)

    original = torch.from_numpy(image).permute(2, 0, 1).contiguous().float()
    blended = soft * (inner * generated) + (1 - soft) * original
    return blended.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def warp(image: Tensor, matrix: NDArray[np.float32], width: int, height: int, fill: float) -> Tensor:
    """A float picture (c, h, w) sampled, bilinearly, where `matrix` sends the pixels of a new one."""
    theta = normalising(image.shape[2], image.shape[1]) @ np.vstack([matrix, [0, 0, 1]])
    theta = (theta @ np.linalg.inv(normalising(width, height)))[:2].astype(np.float32)
    grid = F.affine_grid(torch.from_numpy(theta)[None], (1, 1, height, width), align_corners=True)
    sampled = F.grid_sample(image[None], grid, align_corners=True)
    covered = F.grid_sample(torch.ones_like(image)[None], grid, align_corners=True)
    return (sampled + (1 - covered) * fill)[0]


def normalising(width: int, height: int) -> NDArray[np.float64]:
    """The (3, 3) matrix from pixels to coordinates from -1 to 1, corners aligned."""
    return np.array([[2 / (width - 1), 0, -1], [0, 2 / (height - 1), -1], [0, 0, 1]])


def inverse(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """The inverse of a (2, 3) affine matrix."""
    return np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2].astype(np.float32)


def blur(mask: Tensor, radius: int, sigma: float) -> Tensor:
    """A mask (1, h, w) blurred with a separable Gaussian of 2 radius + 1 taps, mirrored at its borders."""
    taps = torch.exp(-torch.arange(-radius, radius + 1.0).square() / (2 * sigma**2))
    taps /= taps.sum()
    padded = F.pad(mask[None], (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))[0]
