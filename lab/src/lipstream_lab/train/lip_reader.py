"""A reader of lips: how far a mouth in latents is open. It judges the U-Net in training and is not part of a model.

Losses on latents and pixels are content with a mouth that hardly moves, half open all the time; a reader is not. The
idea is that of the lip-sync expert (Prajwal et al. 2020, https://arxiv.org/abs/2008.10010), for openings alone.

A reader that never changes is soon fooled: the U-Net finds grey mouths that it takes for open ones. So every so often
what the U-Net makes is decoded, a face mesh tells how far those mouths are really open, and the reader learns that.
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
from lipstream_lab.train.latents import LatentClip, by_kind
from lipstream_lab.train.loop import step_generator
from lipstream_lab.train.portraits import FULL_GAP

logger = logging.getLogger(__name__)

_NOISE = 0.3
_CLIPS = 12  # a batch is of so many clips

_WIDEST = 1.5

Judge = Callable[[Tensor], Tensor]
"""Latents (n, channels, size, size) to the openings of what is seen when they are decoded, not a number where none."""


class LipReader(nn.Module):
    """Latents (n, channels, size, size) to openings (n,), 1 = stills.FULL_GAP."""

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
    """A reader trained on the clips, on the CPU, then frozen. The same seed gives the same reader.

    It sees frames mixed with others of their clip, whose opening lies between, and noise: what a blurred mouth is to
    be read as, and nothing that a U-Net could fool it with.
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
    logger.info("lip reader: read opening against the true one, r = %.2f", r)
    return reader.requires_grad_(False).eval()


def mesh_judge(vae: Any) -> Judge:
    """Return a judge by the face mesh. Raises ModelError where LiteRT cannot be used."""
    face_mesh = FaceMesh()

    def judge(latents: Tensor) -> Tensor:
        with torch.inference_mode():
            pictures = ((conditioning.decode(vae, latents).float().cpu() + 1) * 127.5).round().clamp(0, 255)
        found = [face_mesh.points(upscaled(picture)) for picture in pictures]
        openings = [float("nan") if p is None else mouth_opening(p) / FULL_GAP for p in found]
        return torch.tensor(openings).clamp_max(_WIDEST)  # a mesh on a blur may be anything

    return judge


def relearn(
    reader: LipReader, mouths: Tensor, openings: Tensor, clips: list[LatentClip], seed: int, steps: int = 150
) -> LipReader:
    """A reader that has learnt the openings (n,) of `mouths` (n, channels, size, size) besides those of the clips.

    Those that are not a number are left out. Trained on the CPU, frozen again, on the device of the one given.
    """
    device = next(reader.parameters()).device
    seen = ~openings.isnan()
    mouths, openings = mouths.cpu()[seen], openings[seen]
    if len(mouths) == 0:
        return reader
    reader = reader.cpu().requires_grad_(True).train()
    optimizer = torch.optim.AdamW(reader.parameters(), 1e-3, weight_decay=0.05)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / steps) + 1e-5
        generator = step_generator(seed, step)
        known, known_openings = _draw(clips, 48, generator)
        chosen = torch.randint(len(mouths), (48,), generator=generator)
        # Autocast, where a training step asks for this, keeps its copies of the weights while they change here.
        with torch.autocast("cpu", enabled=False):
            read = reader(torch.cat((known, mouths[chosen].float())))
        loss = F.smooth_l1_loss(read, torch.cat((known_openings, openings[chosen])), beta=0.2)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        r = torch.corrcoef(torch.stack((reader(mouths.float()), openings)))[0, 1]
    logger.info("lip reader: read opening of %d made mouths against the seen one, r = %.2f", len(mouths), r)
    return reader.requires_grad_(False).eval().to(device)


def _draw(clips: list[LatentClip], batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy mixtures of two frames of a clip, all kinds of clips in equal parts, and their openings."""
    kinds = list(by_kind(clips).values())
    mouths, openings = [], []
    for index in range(_CLIPS):
        found = kinds[index % len(kinds)]
        clip = found[int(torch.randint(len(found), (), generator=generator))]
        one, other = torch.randint(clip.n_frames, (2, batch // _CLIPS), generator=generator)
        share = torch.rand(len(one), generator=generator) * (torch.rand(len(one), generator=generator) < 0.5)
        mouths.append(torch.lerp(clip.latents[one].float(), clip.latents[other].float(), share[:, None, None, None]))
        openings.append(torch.lerp(clip.opening[one], clip.opening[other], share))
    joined = torch.cat(mouths)
    noise = torch.randn(joined.shape, generator=generator)
    return joined + noise * torch.rand(len(joined), 1, 1, 1, generator=generator) * _NOISE, torch.cat(openings)
