"""Draw loss curves and sheets of samples of a training run as PNG."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from lipstream.errors import SettingsError
from lipstream_lab.train.loop import read_log


def draw_curves(run_folder: Path, output: Path, smoothing: int = 10) -> None:
    """Plot each logged loss of a run, raw and averaged over `smoothing` lines.

    Raises SettingsError if the run has no log yet.
    """
    lines = read_log(run_folder)
    if not lines:
        raise SettingsError("has no training log", file=run_folder, fix="train first")
    names = [name for name in lines[0] if name not in ("step", "time_s")]
    figure = Figure(figsize=(8, 2.5 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    steps = [line["step"] for line in lines]
    for axis, name in zip(axes, names, strict=True):
        values = [line[name] for line in lines]
        means = [
            sum(values[max(i - smoothing, 0) : i + 1]) / len(values[max(i - smoothing, 0) : i + 1])
            for i in range(len(values))
        ]
        axis.plot(steps, values, alpha=0.3)
        axis.plot(steps, means)
        axis.set_ylabel(name)
    axes[-1].set_xlabel("step")
    figure.savefig(output)


def write_sheet(rows: list[Tensor], output: Path) -> None:
    """Write rows of images (n, 3, h, w) in [-1, 1], all of the same length, as one PNG."""
    joined = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
    pixels = ((joined.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    Image.fromarray(pixels.cpu().numpy()).save(output)
