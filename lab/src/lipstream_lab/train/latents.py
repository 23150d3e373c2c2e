"""Encode clips to latents once, cache them, and draw training batches from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lipstream.diffusion import conditioning
from lipstream.runtime.device import computes_bf16
from lipstream_lab.train import augment, data
from lipstream_lab.train.groups import Group, by_kind

# The large mask, used in part of the samples, hides everything below this share of the crop's height.
LARGE_MASK_TOP = 95 / 256
_LIGHTNESS_PARTS = 8


@dataclass(frozen=True)
class LatentClip:
    """One clip, on the CPU. n frames, m extra references, C latent channels, h x w latents.

    latents: (n + m, C, h, w) float16, scaled; the first n are the frames. masked: (2, n or 1, C, h, w) float16, latents
    of the crops under the model's mask and under the large mask. person, opening, width: as in `data.Clip`.
    """

    kind: str
    person: str
    crops: Tensor
    latents: Tensor
    masked: Tensor
    mel: Tensor
    opening: Tensor
    width: Tensor

    @property
    def n_frames(self) -> int:
        """Number of frames that can be targets."""
        return len(self.crops)

    @property
    def lightness(self) -> float:
        """Mean of the first frame between eyes and mouth, 0 to 255: of the light on a face, and of its skin."""
        side = self.crops.shape[-1]
        return float(self.crops[0, :, side * 3 // 10 : side // 2, side * 3 // 10 : side * 7 // 10].float().mean())


def rare_first(values: Sequence[float]) -> list[float]:
    """Return weights that draw rare values more often: one over the root of how many are among their like.

    The like: one of eight parts of equal width between the least and the largest.
    """
    edges = np.linspace(min(values), max(values), _LIGHTNESS_PARTS + 1)[1:-1]
    part = np.digitize(values, edges)
    counts = np.bincount(part, minlength=_LIGHTNESS_PARTS)
    return [float(weight) for weight in 1 / np.sqrt(counts[part])]


def large_mask(resolution: int) -> Tensor:
    """Return the large mask (1, resolution, resolution), 1 = keep."""
    mask = torch.ones(1, resolution, resolution)
    mask[:, round(LARGE_MASK_TOP * resolution) :] = 0
    return mask


@torch.inference_mode()
def encode_clip(clip: data.Clip, vae: Any, mask: Tensor, device: torch.device, batch: int = 32) -> dict[str, Tensor]:
    """Encode a clip's frames ("latents") and its frames under both masks ("masked").

    mask: (1, res, res), 1 = keep. All frames of a still are equal outside the masks, so one is encoded. Of dubbed clips
    the original frames are masked, so that the jaw does not reveal the new speech.
    """
    pixels = conditioning.to_pixels(torch.from_numpy(np.concatenate((clip.crops, clip.extra))))
    split = len(clip.crops)
    visible = {"still": pixels[:1], "dubbed": pixels[split:], "footage": pixels[:split]}[clip.kind]
    masks = (mask, large_mask(mask.shape[-1]))

    def encode(images: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=computes_bf16(device)):
            parts = [conditioning.encode(vae, part.to(device)).float().cpu() for part in torch.split(images, batch)]
        return torch.cat(parts).half()

    return {"latents": encode(pixels), "masked": torch.stack([encode(visible * m) for m in masks])}


def prepare(
    folder: Path,
    cache: Path,
    vae: Any,
    mask: Tensor,
    device: torch.device,
    report: Callable[[str], None] | None = None,
) -> list[LatentClip]:
    """Load all clips of `folder` with latents, encoding those that are not in `cache` yet."""
    cache.mkdir(parents=True, exist_ok=True)
    clips = []
    for path in data.clip_paths(folder):
        clip = data.Clip.load(path)
        target = cache / f"{path.stem}.pt"
        if not target.exists():
            temporary = target.with_suffix(".tmp")
            torch.save(encode_clip(clip, vae, mask, device), temporary)
            temporary.replace(target)
            if report is not None:
                report(path.stem)
        encoded = torch.load(target, weights_only=True)
        clips.append(
            LatentClip(
                kind=clip.kind,
                person=clip.person,
                crops=torch.from_numpy(clip.crops),
                latents=encoded["latents"],
                masked=encoded["masked"],
                mel=torch.from_numpy(clip.mel),
                opening=torch.from_numpy(clip.opening),
                width=torch.from_numpy(clip.width),
            )
        )
    return clips


@dataclass(frozen=True)
class Batch:
    """Windows of one step, on the training device, their frames concatenated.

    crops: (n, 3, res, res) in [-1, 1]; latents, masked, reference: (n, C, h, w); mask: (n, 1, h, w), 1 = keep;
    mel: (windows, N_MELS, 4 num_frames + margins); phase: (windows,), random start of the positions, in frames;
    has_audio: (windows, 1, 1), 0 for unconditional windows. opening, width: (n,), as in `data.Clip`.
    """

    crops: Tensor
    latents: Tensor
    masked: Tensor
    reference: Tensor
    mask: Tensor
    mel: Tensor
    phase: Tensor
    has_audio: Tensor
    opening: Tensor
    width: Tensor
    num_frames: int


class Sampler:
    """Draws random windows.

    footage_share, dubbed_share: of these kinds of clips, the rest being stills. large_mask_share: with the large mask.
    unconditional_share: without audio.
    """

    def __init__(
        self,
        clips: list[LatentClip],
        mask: Tensor,
        *,
        footage_share: float,
        dubbed_share: float = 0.0,
        large_mask_share: float = 0.0,
        unconditional_share: float = 0.0,
    ) -> None:
        shares = {"footage": footage_share, "dubbed": dubbed_share, "still": 1 - footage_share - dubbed_share}
        self._clips = by_kind(clips)
        if stills := self._clips.get("still"):
            # Official portraits show few dark faces, and a model that has seen few hardly moves their lips.
            self._clips["still"] = Group(stills.clips, rare_first([clip.lightness for clip in stills.clips]))
        self._shares = [shares[kind] for kind in self._clips]
        self._large_mask_share, self._unconditional_share = large_mask_share, unconditional_share
        size = clips[0].latents.shape[-2:]
        self._masks = [F.interpolate(m[None], size=size)[0] for m in (mask, large_mask(mask.shape[-1]))]

    def draw(self, windows: int, num_frames: int, generator: torch.Generator, device: torch.device) -> Batch:
        """Draw `windows` windows of `num_frames` frames, each from a randomly chosen clip."""
        parts = [self._window(num_frames, generator) for _ in range(windows)]
        crops, latents, masked, reference, mask, mel, opening, width = (
            torch.cat(column) for column in zip(*parts, strict=True)
        )
        return Batch(
            crops=crops.to(device),
            latents=latents.to(device),
            masked=masked.to(device),
            reference=reference.to(device),
            mask=mask.to(device),
            mel=mel.to(device),
            phase=torch.randint(0, 10, (windows,), generator=generator).to(device),
            has_audio=(torch.rand(windows, 1, 1, generator=generator) >= self._unconditional_share).float().to(device),
            opening=opening.to(device),
            width=width.to(device),
            num_frames=num_frames,
        )

    def _window(self, num_frames: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        clip = self._clip(num_frames, generator)
        start = data.below(clip.n_frames - num_frames + 1, generator)
        frames = slice(start, start + num_frames)
        region = int(torch.rand((), generator=generator) < self._large_mask_share)
        masked = clip.masked[region]
        masked = masked.expand(num_frames, -1, -1, -1) if len(masked) == 1 else masked[frames]
        reference = clip.latents[_references(clip, frames, generator)]
        columns = data.mel_columns(frames.start, frames.stop)
        mask = self._masks[region].expand(num_frames, -1, -1, -1)
        mel = augment.equalise(clip.mel[None, :, columns], generator)
        parts = (clip.latents[frames], masked, reference, mask, mel, clip.opening[frames], clip.width[frames])
        return conditioning.to_pixels(clip.crops[frames]), *(part.float() for part in parts)

    def _clip(self, num_frames: int, generator: torch.Generator) -> LatentClip:
        kinds = list(self._clips)
        if any(self._shares):
            index = int(torch.multinomial(torch.tensor(self._shares), 1, generator=generator))
        else:
            index = data.below(len(kinds), generator)
        return self._clips[kinds[index]].draw(generator, num_frames)


def _references(clip: LatentClip, frames: slice, generator: torch.Generator) -> list[int]:
    """Choose the reference of each frame: one for all, one drawn per frame, or the same frame with a random mouth.

    References drawn per frame have mouths that change at random, which cannot be copied. The frame with a random mouth
    is closest to inference: its own pose and skin, without the target's mouth.
    """
    count = frames.stop - frames.start
    draw = float(torch.rand((), generator=generator))
    if draw < 0.5 and len(clip.latents) == 2 * clip.n_frames:
        return list(range(clip.n_frames + frames.start, clip.n_frames + frames.stop))
    if draw < 0.75:
        return [_reference(clip, frames, generator)] * count
    return [_reference(clip, frames, generator) for _ in range(count)]


def _reference(clip: LatentClip, frames: slice, generator: torch.Generator) -> int:
    """Draw a frame outside the window, in half of the cases the one of three whose opening differs most.

    An unrelated reference keeps the model from copying the mouth.
    """
    others = [i for i in range(len(clip.latents)) if not frames.start <= i < frames.stop]
    if not others:
        return data.below(len(clip.latents), generator)
    candidates = [others[data.below(len(others), generator)] for _ in range(3)]
    if float(torch.rand((), generator=generator)) < 0.5:
        return candidates[0]
    middle = float(clip.opening[frames].mean())

    def difference(i: int) -> float:
        return abs(float(clip.opening[i]) - middle) if i < clip.n_frames else 0.0

    return max(candidates, key=difference)
