"""Make the bundled sample video: a still portrait seen by a slowly moving, hand-held-like camera.

The portrait is NASA's public-domain photograph of the astronaut Eileen Collins, as shipped in scikit-image
(`skimage.data.astronaut()`). Every frame is sampled from it afresh with sub-pixel bicubic interpolation, framed on head
and shoulders and always inside the picture. The motion has whole periods in the clip, so it loops without a jump.

    python tools/make_sample_video.py [OUTPUT.mp4]      needs: pip install scikit-image
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.data import astronaut

from lipstream.encoding_settings import EncodingSettings
from lipstream.media.color import ColorTags
from lipstream.media.writer import VideoWriter

OUTPUT = Path(__file__).parents[1] / "src" / "lipstream" / "sample" / "astronaut.mp4"
SIZE = 512  # pixels, width and height of the clip
N_FRAMES = 125  # five seconds at 25 fps
CENTRE_XY = (225.0, 167.0)  # of the framing, in pixels of the portrait
WIDTH = 322.0  # of the framing, in pixels of the portrait: the face fills a bit more than a third of the height
BT709 = ColorTags(range=1, space=1, primaries=1, transfer=1)


def waves(time: float, *parts: tuple[int, float, float]) -> float:
    """A sum of sines at `time` (0 to 1 over the clip): (periods in the clip, amplitude, phase in turns) each."""
    return sum(amplitude * math.sin(math.tau * (periods * time + phase)) for periods, amplitude, phase in parts)


def camera(time: float) -> tuple[float, float, float, float]:
    """(x, y) of the centre and width of the framing in pixels of the portrait, and its roll in degrees."""
    x = CENTRE_XY[0] + waves(time, (1, 2.6, 0.00), (2, 1.0, 0.30), (5, 0.25, 0.70))
    y = CENTRE_XY[1] + waves(time, (1, 1.6, 0.35), (3, 0.7, 0.10), (6, 0.20, 0.45))
    width = WIDTH * (1 + waves(time, (1, 0.008, 0.60), (2, 0.003, 0.15)))
    roll_deg = waves(time, (1, 0.35, 0.20), (2, 0.15, 0.80), (4, 0.05, 0.50))
    return x, y, width, roll_deg


def frame(portrait: torch.Tensor, time: float) -> NDArray[np.uint8]:
    """The portrait (1, 3, H, W, 0 to 255) through the camera at `time`: (SIZE, SIZE, 3) uint8 RGB."""
    height, width = portrait.shape[-2:]
    x, y, extent, roll_deg = camera(time)
    c, s = math.cos(math.radians(roll_deg)), math.sin(math.radians(roll_deg))
    # Output coordinates in [-1, 1] to the portrait's, in its own [-1, 1].
    half_x, half_y = extent / width, extent / height
    theta = torch.tensor([[c * half_x, -s * half_x, 2 * x / width - 1], [s * half_y, c * half_y, 2 * y / height - 1]])
    grid = torch.nn.functional.affine_grid(theta[None], [1, 3, SIZE, SIZE], align_corners=False)
    if grid.abs().max() > 1:
        raise ValueError(f"at {time:.3f} the camera looks beyond the portrait")
    view = torch.nn.functional.grid_sample(portrait, grid, mode="bicubic", align_corners=False)
    return view[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()


def main() -> None:
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    portrait = torch.from_numpy(astronaut()).permute(2, 0, 1)[None].float()
    with VideoWriter(
        output,
        width=SIZE,
        height=SIZE,
        color=BT709,
        speech=None,
        n_frames=N_FRAMES,
        encoding=EncodingSettings(crf=20, x264_preset="veryslow"),
        overwrite=True,
        metadata={"comment": "NASA portrait of Eileen Collins (public domain), moved by a synthetic camera"},
    ) as writer:
        for i in range(N_FRAMES):
            writer.write(frame(portrait, i / N_FRAMES))
    print(f"{output}: {output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
