"""Training of the U-Net, conditioned on a frozen audio encoder, for one step from pure noise, or for many.

With zero terminal signal-to-noise and the prediction of the clean latents themselves, one step is a plain regression:
what a small model can learn in little time (few-step training: Lin et al. 2024, https://arxiv.org/abs/2305.08891).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor, nn

from lipstream.audio_features.features import ROWS_PER_FRAME
from lipstream.diffusion import conditioning
from lipstream.errors import SettingsError
from lipstream.models.unet import UNet
from lipstream.models.unet_config import UNetConfig
from lipstream.models.whisper import AudioEncoder, AudioEncoderConfig
from lipstream_lab.train import audio_encoder, data, losses
from lipstream_lab.train.latents import Batch, LatentClip, Sampler
from lipstream_lab.train.lip_reader import Judge, LipReader, relearn, train_reader
from lipstream_lab.train.loop import CHECKPOINT_NAME, LoopSettings, Report, Run, step_generator

SCHEDULER_WORDS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "sample",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
}
FIRST_TIMESTEP = 999
# Positions repeat after this many rows (0.4 s), which divides the encoder's block: enough to tell the ten rows that a
# frame is conditioned on apart, nothing to remember a clip's instant by.
POSITION_PERIOD = 20


@dataclass(frozen=True)
class UNetSettings:
    """Sizes, batch and loss weights.

    unconditional_share: windows without audio, which guidance needs at inference. noisy_share: windows that begin
    anywhere between pure noise and the picture, which a model of many steps needs; the rest begin at pure noise.
    audio_encoder_steps: of the audio encoder's own training. judge_every: steps between lessons of the lip reader, each
    on `judged_batches` batches.
    """

    block_out_channels: tuple[int, ...] = (64, 96, 128)
    layers_per_block: int = 1
    heads: int = 4
    audio_channels: int = 128
    audio_kernel_sizes: tuple[int, int] = (5, 31)
    audio_encoder_steps: int = 1000
    windows: int = 3
    num_frames: int = 8
    long_num_frames: int = 16
    long_share: float = 0.15
    unconditional_share: float = 0.1
    noisy_share: float = 0.0
    decoded_frames: int = 3
    footage_share: float = 0.25
    dubbed_share: float = 0.25
    hidden_share: float = 0.35
    mouth_gain: float = 12.0
    latent_weight: float = 1.0
    motion_weight: float = 8.0
    lips_weight: float = 4.0
    pixel_weight: float = 2.0
    judge_every: int = 200
    judged_batches: int = 10

    def __post_init__(self) -> None:
        if self.audio_channels % 8 != 0 or self.audio_channels < 24:
            raise SettingsError(f"audio_channels = {self.audio_channels}: must be a multiple of 8, at least 24")

    def unet_words(self, latent_channels: int) -> dict[str, Any]:
        """The U-Net's configuration in the published words."""
        levels = len(self.block_out_channels)
        return {
            "in_channels": 3 * latent_channels + 1,
            "out_channels": latent_channels,
            "block_out_channels": list(self.block_out_channels),
            "down_block_types": ["CrossAttnDownBlock3D"] * levels,
            "up_block_types": ["CrossAttnUpBlock3D"] * levels,
            "layers_per_block": self.layers_per_block,
            "cross_attention_dim": self.audio_channels,
            "attention_head_dim": self.heads,
            "norm_num_groups": 32,
            "use_motion_module": True,
            "motion_module_kwargs": {"num_attention_heads": self.heads, "attention_block_types": ["Temporal_Self"]},
        }

    def audio_words(self) -> dict[str, Any]:
        """The audio encoder's sizes: Whisper's two convolutions, which look further, and no transformer block."""
        return {
            "n_mels": data.N_MELS,
            "n_audio_ctx": 1500,
            "n_audio_state": self.audio_channels,
            "n_audio_head": self.heads,
            "n_audio_layer": 0,
            "kernel_sizes": list(self.audio_kernel_sizes),
            "position_period": POSITION_PERIOD,
        }


class Pair(nn.Module):
    """The audio encoder and the U-Net. shape_scale: (2, 2), `scale_of` the audio encoder."""

    shape_scale: Tensor

    def __init__(self, settings: UNetSettings, latent_channels: int) -> None:
        super().__init__()
        self.unet = UNet(UNetConfig.from_dict(settings.unet_words(latent_channels)))
        self.audio_encoder = AudioEncoder(AudioEncoderConfig.from_dict(settings.audio_words()))
        self.audio_encoder.positional_embedding.copy_(periodic_positions(1500, settings.audio_channels))
        self.register_buffer("shape_scale", torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        self.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name, module in self.unet.named_modules():
            # Motion modules start as identities, as AnimateDiff's do. Attention does not: the audio must count.
            if name.endswith("temporal_transformer.proj_out"):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
            if name.endswith(("attn2.to_v", "attn2.to_out.0")):
                with torch.no_grad():
                    module.weight.mul_(2)

    def encode_audio(self, mel: Tensor, phase: Tensor, num_frames: int) -> Tensor:
        """Return the audio features of each frame: (windows * num_frames, 10, channels).

        mel: (windows, N_MELS, 4 num_frames + margins). phase: (windows,) frames, where the positions begin.
        """
        rows = self.audio_encoder.convolve(mel)
        first = ROWS_PER_FRAME * phase - data.MEL_BEFORE // 2
        index = (first[:, None] + torch.arange(rows.shape[1], device=rows.device)) % POSITION_PERIOD
        rows = rows + self.audio_encoder.positional_embedding[index]
        return audio_encoder.feature_windows(rows, num_frames).flatten(0, 1)

    def predict(self, batch: Batch, noise: Tensor, timesteps: Tensor | None = None) -> Tensor:
        """Clean latents (n, C, h, w), of mouths as open as the batch says.

        From noise (n, C, h, w) alone, or with `timesteps` (windows,) from what the noise leaves of them there.
        """
        noisy = noise
        if timesteps is None:
            timesteps = torch.tensor(FIRST_TIMESTEP, device=noise.device)
        else:
            scheduler: Any = DDIMScheduler.from_config(SCHEDULER_WORDS)  # type: ignore[no-untyped-call]
            noisy = scheduler.add_noise(batch.latents, noise, timesteps.repeat_interleave(batch.num_frames, 0))
        sample = torch.cat((noisy, batch.mask, batch.masked, batch.reference), 1)
        wanted = self.shape_scale[0] * audio_encoder.target_shape(batch.opening, batch.width) + self.shape_scale[1]
        audio = audio_encoder.corrected(self.encode_audio(batch.mel, batch.phase, batch.num_frames), wanted)
        audio = audio * batch.has_audio.repeat_interleave(batch.num_frames, 0)
        return self.unet(sample, timesteps, audio, batch.num_frames).float()


def periodic_positions(rows: int, channels: int) -> Tensor:
    """Sine and cosine of 1, 2 and 3 turns per POSITION_PERIOD rows in the first six channels, zero in the others."""
    turn = (torch.arange(rows) % POSITION_PERIOD)[:, None] / POSITION_PERIOD
    angle = turn * (2 * math.pi) * torch.tensor([1.0, 2.0, 3.0])
    positions = torch.zeros(rows, channels)
    positions[:, :6] = torch.cat((angle.sin(), angle.cos()), 1)
    return positions


def training_loss(
    pair: Pair, vae: Any, reader: LipReader, batch: Batch, settings: UNetSettings, generator: torch.Generator
) -> dict[str, Tensor]:
    """Latents in the repainted region, the mouth's motion and opening, pixels of some frames through the decoder."""
    windows = len(batch.latents) // batch.num_frames
    shape = (windows, *batch.latents.shape[1:])
    # One noise image for all frames of a window (published behaviour).
    noise = torch.randn(shape, generator=generator).to(batch.latents.device)
    timesteps = _timesteps(windows, settings.noisy_share, generator).to(noise.device) if settings.noisy_share else None
    predicted = pair.predict(batch, noise.repeat_interleave(batch.num_frames, 0), timesteps)
    weight = losses.mouth_weight(batch.latents.shape[-1], settings.mouth_gain).to(noise.device)
    weight = weight * (0.05 + (1 - batch.mask))
    latent = (F.smooth_l1_loss(predicted, batch.latents, reduction="none", beta=0.2) * weight).mean()
    moving, moved = _moving(batch.latents, batch.num_frames), _moving(predicted, batch.num_frames)
    at_mouth = losses.mouth_weight(batch.latents.shape[-1], settings.mouth_gain).to(noise.device) - 1
    motion = (F.smooth_l1_loss(moved, moving, reduction="none", beta=0.2) * at_mouth).mean()
    still = (F.smooth_l1_loss(torch.zeros_like(moving), moving, reduction="none", beta=0.2) * at_mouth).mean()
    chosen = torch.randperm(len(predicted), generator=generator)[: settings.decoded_frames]
    decoded = conditioning.decode(vae, predicted[chosen])
    size = batch.crops.shape[-1]
    hidden = F.interpolate(1 - batch.mask[chosen], size=(size, size))
    map_ = losses.mouth_weight(size, settings.mouth_gain).to(noise.device) * (0.02 + hidden)
    pixels = losses.pixel_loss(decoded, batch.crops[chosen], map_)
    lips = F.smooth_l1_loss(reader(predicted), reader(batch.latents), beta=0.1)
    return {
        "loss": settings.latent_weight * latent
        + settings.motion_weight * motion
        + settings.lips_weight * lips
        + settings.pixel_weight * pixels,
        "latent": latent,
        "motion": motion,
        "motion_of_a_still_mouth": still,
        "lips": lips,
        "pixels": pixels,
    }


@torch.no_grad()
def _mouths_made(
    pair: Pair, sampler: Sampler, settings: UNetSettings, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Latents (n, C, h, w) float32 that the pair makes of some windows, and the true ones."""
    found = []
    for _ in range(settings.judged_batches):
        batch = sampler.draw(settings.windows, settings.num_frames, generator, device)
        noise = torch.randn((settings.windows, *batch.latents.shape[1:]), generator=generator).to(device)
        found += [pair.predict(batch, noise.repeat_interleave(batch.num_frames, 0)), batch.latents]
    # Autocast would go on with its copies of the weights, which know of no gradient.
    torch.clear_autocast_cache()
    return torch.cat(found)


def _timesteps(windows: int, noisy_share: float, generator: torch.Generator) -> Tensor:
    """Where each window begins: (windows,)."""
    anywhere = torch.randint(FIRST_TIMESTEP, (windows,), generator=generator)
    return torch.where(torch.rand(windows, generator=generator) < noisy_share, anywhere, FIRST_TIMESTEP)


def _moving(latents: Tensor, num_frames: int) -> Tensor:
    """What differs from the mean over each window: the part that only the sound can explain."""
    windows = latents.view(-1, num_frames, *latents.shape[1:])
    return (windows - windows.mean(1, keepdim=True)).flatten(0, 1)


def train(
    clips: list[LatentClip],
    vae: Any,
    mask: Tensor,
    folder: Path,
    settings: UNetSettings,
    loop: LoopSettings,
    device: torch.device,
    report: Report | None = None,
    after_save: Callable[[Pair, int], None] | None = None,
    judge: Judge | None = None,
) -> Pair:
    """Train on clips; returns the averaged pair. vae: frozen; mask: (1, res, res), 1 = keep.

    judge: teaches the lip reader what the U-Net's mouths really are; without one the reader stays as it is.
    """
    torch.manual_seed(loop.seed)
    vae = vae.to(device).eval().requires_grad_(False)
    pair = Pair(settings, clips[0].latents.shape[1])
    if not (folder / CHECKPOINT_NAME).exists():
        audio_encoder.pretrain(pair.audio_encoder, clips, loop.seed, settings.audio_encoder_steps)
        pair.shape_scale.copy_(audio_encoder.scale_of(pair.audio_encoder, clips, loop.seed))
    pair.audio_encoder.requires_grad_(False)
    reader = train_reader(clips, loop.seed).to(device)
    run = Run(folder, pair, loop, device, fast=("attn2",), beside=reader)
    sampler = Sampler(
        clips,
        mask,
        footage_share=settings.footage_share,
        dubbed_share=settings.dubbed_share,
        hidden_share=settings.hidden_share,
        unconditional_share=settings.unconditional_share,
    )

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        if judge is not None and step % settings.judge_every == 0:
            mouths = _mouths_made(run.module, sampler, settings, step_generator(loop.seed + 1, step), device)  # type: ignore[arg-type]
            relearn(reader, mouths, judge(mouths), clips, loop.seed + step)
        long = float(torch.rand((), generator=generator)) < settings.long_share
        num_frames = settings.long_num_frames if long else settings.num_frames
        windows = max(settings.windows * settings.num_frames // num_frames, 1)
        batch = sampler.draw(windows, num_frames, generator, device)
        return training_loss(run.module, vae, reader, batch, settings, generator)  # type: ignore[arg-type]

    run.train(loss, report, None if after_save is None else lambda step: after_save(run.average, step))  # type: ignore[arg-type]
    return run.average  # type: ignore[return-value]
