"""Count the floating-point operations of a run on the meta device, where nothing is computed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lipstream.audio_features.features import ROWS_PER_FRAME
from lipstream.diffusion import conditioning
from lipstream.diffusion.sampling import UNetDenoiser, sample
from lipstream.models.load import Model, load_model
from lipstream.models.upsample_conv import merge_enlargements
from lipstream.settings import SyncSettings, VaeName

_META = torch.device("meta")


@dataclass(frozen=True)
class Flop:
    """Floating-point operations of the matrix products and convolutions per network; a multiply-add counts as two."""

    features: int
    vae: int
    unet: int

    @property
    def total(self) -> int:
        """Operations of a whole run."""
        return self.features + self.vae + self.unet


def calls(n_frames: int, num_frames: int, batch: int) -> list[tuple[int, int]]:
    """Return the U-Net calls for `n_frames` faces: (frames in the call, frames in each of its windows)."""
    full, rest = divmod(n_frames, num_frames)
    sizes = [min(batch, full - first) * num_frames for first in range(0, full, batch)]
    return [(size, num_frames) for size in sizes] + ([(rest, rest)] if rest else [])


@functools.lru_cache  # takes a minute for 20 steps at the published sizes, and settings often share their count
def count(
    model_name: str | Path,
    settings: SyncSettings,
    n_frames: int,
    pruned: str | Path | None = None,
    *,
    merged: bool = False,
    vae: VaeName = "own",
) -> Flop:
    """Count the operations of the networks for `n_frames` frames, all with a face. Raises ModelError.

    Counts what is executed: both branches of guidance, but nothing that is skipped or reused from an earlier step.
    pruned, vae: see load_model. merged: upsampling is merged into the following convolution, as on a CPU.
    """
    model = load_model(model_name, _META, torch.float32, pruned=pruned, vae=vae)
    if merged:
        merge_enlargements(model.unet)
        merge_enlargements(model.vae)
    features = _of_features(model, n_frames)
    of_vae = unet = 0
    for size, window in calls(n_frames, model.config.num_frames, batch=1):
        of_vae, unet = of_vae + _of_vae(model, settings, size), unet + of_unet(model, settings, size, window)
    return Flop(features, of_vae, unet)


def _of_features(model: Model, n_frames: int) -> int:
    sizes = model.config.audio_encoder
    blocks = -(-n_frames * ROWS_PER_FRAME // sizes.n_audio_ctx)
    block = torch.zeros(1, sizes.n_mels, 2 * sizes.n_audio_ctx, device=_META)
    return blocks * counted(lambda: model.audio_encoder(block))


def _of_vae(model: Model, settings: SyncSettings, size: int) -> int:
    resolution = settings.resolution or model.config.resolution
    latent_size = model.latent_size(resolution)
    pixels = torch.zeros(size, 3, resolution, resolution, device=_META)
    mask = torch.zeros(1, resolution, resolution, device=_META)
    latents = torch.zeros(size, model.config.unet.out_channels, latent_size, latent_size, device=_META)
    audio = torch.empty(0, device=_META)
    encoding = counted(lambda: conditioning.condition(model.vae, pixels, mask, audio, size))
    return encoding + counted(lambda: conditioning.decode(model.vae, latents))


def of_unet(model: Model, settings: SyncSettings, size: int, window: int) -> int:
    """Count the operations of the U-Net for `size` faces in windows of `window`; `model` is on the meta device."""
    config = model.config
    latent_size = model.latent_size(settings.resolution or config.resolution)
    noisy, tokens = config.unet.out_channels, config.audio_encoder.tokens_per_frame
    channels = torch.zeros(size, config.unet.in_channels - noisy, latent_size, latent_size, device=_META)
    audio = torch.zeros(size, tokens, config.audio_encoder.n_audio_state, device=_META)
    noise = torch.zeros(1, noisy, latent_size, latent_size, device=_META)
    conditions = conditioning.Conditioning(channels, audio, window)
    denoiser = UNetDenoiser(model.unet)
    sampling = settings.sampling(config.num_inference_steps, config.guidance_scale)
    return counted(lambda: sample(denoiser, config.scheduler, noise, conditions, sampling))


def counted(work: Callable[[], object]) -> int:
    """Count the operations that `work` runs in this thread, on any device."""
    # The counter does not know every device's fused attention, but it knows the plain matrix products.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
