"""Train a lip reader, which estimates the mouth opening from latents, as a loss for the U-Net.

Losses on latents and pixels hardly penalise a mouth that stays half open. The lip reader does, as the lip-sync expert
of Prajwal et al. 2020 (https://arxiv.org/abs/2008.10010), but for openings only.

A fixed reader is soon exploited: the U-Net finds grey mouths that it rates as open. At intervals the U-Net's output is
therefore decoded and measured by the face mesh, and the reader trained on the result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipstream.diffusion import conditioning
from lipstream.evaluate.mouth import FaceMesh, mouth_opening
from lipstream_lab.train.data import upscaled
from lipstream_lab.train.groups import by_kind
from lipstream_lab.train.latents import LatentClip
from lipstream_lab.train.loop import step_generator
from lipstream_lab.train.portraits import FULL_GAP

logger = logging.getLogger(__name__)

_NOISE = 0.3
_CLIPS_PER_BATCH = 12
_MAX_OPENING = 1.5

Judge = Callable[[Tensor], Tensor]
"""Maps latents (n, channels, size, size) to the measured openings (n,) of the decoded images, NaN without a face."""
MakeJudge = Callable[[Any], Judge]
"""Returns the judge of what an autoencoder decodes."""


class LipReader(nn.Module):
    """Maps latents (n, channels, size, size) to mouth openings (n,), in units of portraits.FULL_GAP."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(32 * ((size + 1) // 2) ** 2, 64),
            nn.GELU(),
            nn.Linear(64, 1),
        )

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)[:, 0]


def train_reader(clips: list[LatentClip], seed: int, steps: int = 600, batch: int = 96) -> LipReader:
    """Train a reader on the clips, on the CPU, and freeze it. Deterministic for a seed.

    Trained on mixtures of two frames of a clip, with interpolated openings, and noise, so that it copes with blurred
    mouths.
    """
    torch.manual_seed(seed)
    reader = LipReader(clips[0].latents.shape[1], clips[0].latents.shape[-1])
    optimizer = torch.optim.AdamW(reader.parameters(), 1e-3, weight_decay=0.05)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / steps) + 1e-5
        mouths, openings = _draw(clips, batch, step_generator(seed, step))
        read = reader(mouths)
        loss = F.smooth_l1_loss(read, openings, beta=0.2)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    r = torch.corrcoef(torch.stack((read.detach(), openings)))[0, 1]
    logger.info("lip reader: correlation of read and true opening %.2f", r)
    return reader.requires_grad_(False).eval()


def mesh_judge(vae: Any) -> Judge:
    """Return a judge that uses the face mesh. Raises ModelError if LiteRT cannot be used."""
    face_mesh = FaceMesh()

    def judge(latents: Tensor) -> Tensor:
        with torch.inference_mode():
            pictures = ((conditioning.decode(vae, latents).float().cpu() + 1) * 127.5).round().clamp(0, 255)
        meshes = [face_mesh.points(upscaled(picture)) for picture in pictures]
        openings = [float("nan") if points is None else mouth_opening(points) / FULL_GAP for points in meshes]
        return torch.tensor(openings).clamp_max(_MAX_OPENING)  # the mesh is unreliable on blurred mouths

    return judge


def update_reader(
    reader: LipReader, mouths: Tensor, openings: Tensor, clips: list[LatentClip], seed: int, steps: int = 150
) -> LipReader:
    """Train the reader on latents `mouths` (n, channels, size, size) with openings (n,), besides the clips.

    NaN openings are left out. Trained on the CPU, then frozen and returned on its device.
    """
    device = next(reader.parameters()).device
    is_valid = ~openings.isnan()
    mouths, openings = mouths.cpu()[is_valid], openings[is_valid]
    if len(mouths) == 0:
        return reader
    reader = reader.cpu().requires_grad_(True).train()
    optimizer = torch.optim.AdamW(reader.parameters(), 1e-3, weight_decay=0.05)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / steps) + 1e-5
        generator = step_generator(seed, step)
        clip_mouths, clip_openings = _draw(clips, 48, generator)
        chosen = torch.randint(len(mouths), (48,), generator=generator)
        # Within a training step's autocast, cached weight copies would become stale as the weights change here.
        with torch.autocast("cpu", enabled=False):
            read = reader(torch.cat((clip_mouths, mouths[chosen].float())))
        loss = F.smooth_l1_loss(read, torch.cat((clip_openings, openings[chosen])), beta=0.2)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        r = torch.corrcoef(torch.stack((reader(mouths.float()), openings)))[0, 1]
    logger.info("lip reader: correlation of read and measured opening of %d mouths = %.2f", len(mouths), r)
    return reader.requires_grad_(False).eval().to(device)


def _draw(clips: list[LatentClip], batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw noisy mixtures of two frames of a clip, equally from all kinds of clips, and their openings."""
    kinds = list(by_kind(clips).values())
    mouths, openings = [], []
    for index in range(_CLIPS_PER_BATCH):
        clip = kinds[index % len(kinds)].draw(generator)
        one, other = torch.randint(clip.n_frames, (2, batch // _CLIPS_PER_BATCH), generator=generator)
        share = torch.rand(len(one), generator=generator) * (torch.rand(len(one), generator=generator) < 0.5)
        mouths.append(torch.lerp(clip.latents[one].float(), clip.latents[other].float(), share[:, None, None, None]))
        openings.append(torch.lerp(clip.opening[one], clip.opening[other], share))
    joined = torch.cat(mouths)
    noise = torch.randn(joined.shape, generator=generator)
    return joined + noise * torch.rand(len(joined), 1, 1, 1, generator=generator) * _NOISE, torch.cat(openings)
