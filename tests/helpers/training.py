"""Small networks, made clips and short runs for the tests of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lipstream.diffusion.mask import face_mask
from lipstream_lab.train import data, latents, unet, vae
from lipstream_lab.train.loop import LoopSettings

CPU = torch.device("cpu")
POLYGON = [(8, 24), (8, 40), (32, 60), (56, 40), (56, 24)]
SMALL_VAE = vae.VaeSettings(resolution=64, latent_channels=4, block_out_channels=(8, 8, 8, 16), batch_size=2)
SMALL_UNET = unet.UNetSettings(
    block_out_channels=(32, 32),
    heads=2,
    audio_channels=32,
    audio_encoder_steps=20,
    windows=2,
    num_frames=3,
    long_num_frames=4,
    decoded_frames=2,
)


def made_clip(name: str = "a", kind: str = "footage", n_frames: int = 14) -> data.Clip:
    generator = np.random.default_rng(len(name))
    return data.Clip(
        name=name,
        kind=kind,
        person=name,
        late_ms=0.0,
        crops=generator.integers(0, 255, (n_frames, 3, 64, 64), dtype=np.uint8),
        mel=generator.normal(size=(data.N_MELS, 4 * n_frames + data.MEL_BEFORE + data.MEL_AFTER)).astype(np.float32),
        opening=generator.random(n_frames).astype(np.float32),
        width=np.ones(n_frames, np.float32),
        extra=generator.integers(0, 255, (1, 3, 64, 64), dtype=np.uint8),
    )


def made_vae():
    torch.manual_seed(0)
    return vae.build(SMALL_VAE).eval()


def made_mask() -> torch.Tensor:
    return face_mask(POLYGON, 64, 64)


def made_latents(tmp_path: Path) -> list[latents.LatentClip]:
    folder = tmp_path / "clips"
    folder.mkdir(exist_ok=True)
    for name, kind in (("a", "footage"), ("bb", "still")):
        made_clip(name, kind).save(folder / f"{name}.npz")
    return latents.prepare(folder, tmp_path / "latents", made_vae(), made_mask(), CPU)


def loop_of(steps: int, **options) -> LoopSettings:
    return LoopSettings(steps=steps, warmup_steps=2, decay_steps=2, log_every=1, **options)
