"""Points and pictures for the tests of the face stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F


def turned(points: np.ndarray, angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ rotation.T * scale + shift


def picture(height: int, width: int) -> np.ndarray:
    coarse = torch.rand(1, 3, height // 6 + 2, width // 6 + 2, generator=torch.Generator().manual_seed(1))
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear")[0]
    return (smooth * 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def write_files(tmp_path: Path, name: str) -> Path:
    """Make a folder that looks like insightface's model in a home folder; return it."""
    folder = tmp_path / ".insightface/models" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "2d106det.onnx").touch()
    (folder / "det_500m.onnx").touch()
    return folder
