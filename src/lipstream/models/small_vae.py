"""A small autoencoder in place of Stable Diffusion's, both ways or to decode alone: TAESD (Bohan 2023).

It takes and gives what AutoencoderKL does, so nothing else knows of it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lipstream.errors import ModelError
from lipstream.models.catalogue import ModelConfig
from lipstream.models.checkpoint import fill, read_tensors
from lipstream.models.network_files import locate_network_file
from lipstream.runtime.lazy_import import import_diffusers

# Repositories of Stable Diffusion 1's autoencoder and of fine-tuned ones with the same latents, which TAESD has too.
_SAME_LATENTS = ("stabilityai/sd-vae-ft-mse", "stabilityai/sd-vae-ft-ema")


def has_taesd(config: ModelConfig) -> bool:
    """Return whether TAESD belongs to a model's latents and its file is on this machine."""
    if not _has_its_latents(config):
        return False
    try:
        return locate_network_file("taesd").is_file()
    except ModelError:
        return False


def _has_its_latents(config: ModelConfig) -> bool:
    return config.hub is not None and config.hub.vae_repo in _SAME_LATENTS


def load_taesd(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """Load diffusers' AutoencoderTiny with TAESD's weights, every tensor accounted for.

    Raises ModelError where they are not here, or do not belong to the model's latents.
    """
    if not _has_its_latents(config):
        raise ModelError(
            "taesd is for the latents of Stable Diffusion's autoencoder, which this model does not have",
            file=config.name,
            fix="leave --vae out",
        )
    tiny = import_diffusers().AutoencoderTiny
    with torch.device("meta"):
        taesd: Any = tiny()
    path = locate_network_file("taesd")
    fill(taesd, read_tensors(path, None), path, device, dtype)
    return taesd


class SmallVae(nn.Module):
    """TAESD to decode, and to encode too where no `encoder` is given.

    encoder: AutoencoderKL, whose decoder is let go.
    """

    def __init__(self, taesd: Any, encoder: Any | None = None) -> None:
        super().__init__()
        self.taesd, self.encoder = taesd, encoder
        scaling_factor, widths = 1.0, taesd.config.decoder_block_out_channels  # its latents are scaled already
        if encoder is not None:
            encoder.decoder = encoder.post_quant_conv = None
            scaling_factor, widths = encoder.config.scaling_factor, encoder.config.block_out_channels
        self.config = SimpleNamespace(
            scaling_factor=scaling_factor,
            block_out_channels=widths,
            latent_channels=taesd.config.latent_channels,
            shift_factor=taesd.config.shift_factor,
        )

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.taesd.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.taesd.parameters()).dtype

    def encode(self, pixels: Tensor) -> Any:
        """Return what holds a distribution of latents, before scaling; TAESD's has its mode alone."""
        if self.encoder is not None:
            return self.encoder.encode(pixels)
        latents = self.taesd.encode(pixels).latents
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    def decode(self, latents: Tensor) -> Any:
        """Return what holds the pixels, about [-1, 1], of latents before scaling."""
        return self.taesd.decode(latents * self.config.scaling_factor)
