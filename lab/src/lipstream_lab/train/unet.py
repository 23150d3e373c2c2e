"""Train the U-Net on a frozen audio encoder, to sample in one step from pure noise or in many.

With zero terminal signal-to-noise ratio (Lin et al. 2024, https://arxiv.org/abs/2305.08891) and prediction of the clean
latents, one step is a plain regression, which a small model learns in little time.
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
from lipstream_lab.train.lip_reader import Judge, LipReader, train_reader, update_reader
from lipstream_lab.train.loop import CHECKPOINT_NAME, LoopSettings, Report, Run, step_generator

SCHEDULER_CONFIG: dict[str, Any] = {
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
# Positions repeat after this many rows (0.4 s), which divides the encoder's block: they distinguish the ten rows of a
# frame, but do not let the model memorise the time within a clip.
POSITION_PERIOD = 20


@dataclass(frozen=True)
class UNetSettings:
    """Sizes, batch and loss weights.

    unconditional_share: windows without audio, for guidance at inference. noisy_share: windows with a random timestep,
    for sampling in many steps; the others start from pure noise. audio_encoder_steps: of
    pretraining the audio encoder; 0 leaves it as it is.
    judge_every: steps between updates of the lip reader, each on `judged_batches` batches.
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
    footage_share: float = 0.45
    dubbed_share: float = 0.2
    large_mask_share: float = 0.35
    mouth_gain: float = 12.0
    latent_weight: float = 1.0
    motion_weight: float = 8.0
    lips_weight: float = 4.0
    pixel_weight: float = 2.0
    judge_every: int = 200
    judged_batches: int = 10

    def __post_init__(self) -> None:
        if self.audio_channels % 8 != 0 or self.audio_channels < 24:
            raise SettingsError(
                f"audio_channels = {self.audio_channels}: not supported", fix="use a multiple of 8, at least 24"
            )

    def unet_config(self, latent_channels: int) -> dict[str, Any]:
        """Return the U-Net's configuration with the published keys."""
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

    def audio_config(self) -> dict[str, Any]:
        """Return the audio encoder's configuration: Whisper's two convolutions, wider, and no transformer block."""
        return {
            "n_mels": data.N_MELS,
            "n_audio_ctx": 1500,
            "n_audio_state": self.audio_channels,
            "n_audio_head": self.heads,
            "n_audio_layer": 0,
            "kernel_sizes": list(self.audio_kernel_sizes),
            "position_period": POSITION_PERIOD,
        }


class ConditionedUNet(nn.Module):
    """The U-Net with its audio encoder. shape_scale: (2, 2), the encoder's `prediction_scale`."""

    shape_scale: Tensor

    def __init__(self, settings: UNetSettings, latent_channels: int) -> None:
        super().__init__()
        self.unet = UNet(UNetConfig.from_dict(settings.unet_config(latent_channels)))
        self.audio_encoder = AudioEncoder(AudioEncoderConfig.from_dict(settings.audio_config()))
        self.audio_encoder.positional_embedding.copy_(periodic_positions(1500, settings.audio_channels))
        self.register_buffer("shape_scale", torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        self.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name, module in self.unet.named_modules():
            # Motion modules start as identities, as AnimateDiff's do. Attention does not, so that the audio has an
            # effect.
            if name.endswith("temporal_transformer.proj_out"):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
            if name.endswith(("attn2.to_v", "attn2.to_out.0")):
                with torch.no_grad():
                    module.weight.mul_(2)

    def encode_audio(self, mel: Tensor, phase: Tensor, num_frames: int) -> Tensor:
        """Return the audio features of each frame: (windows * num_frames, 10, channels).

        mel: (windows, N_MELS, 4 num_frames + margins). phase: (windows,), the frame at which the positions begin.
        """
        rows = self.audio_encoder.convolve(mel)
        first = ROWS_PER_FRAME * phase - data.MEL_BEFORE // 2
        index = (first[:, None] + torch.arange(rows.shape[1], device=rows.device)) % POSITION_PERIOD
        rows = rows + self.audio_encoder.positional_embedding[index]
        return audio_encoder.feature_windows(rows, num_frames).flatten(0, 1)

    def predict(self, batch: Batch, noise: Tensor, timesteps: Tensor | None = None) -> Tensor:
        """Predict the clean latents (n, C, h, w) for the batch's mouth shapes.

        noise: (n, C, h, w). timesteps: (windows,), at which the batch's latents are mixed with it; None: noise only.
        """
        noisy = noise
        if timesteps is None:
            timesteps = torch.tensor(FIRST_TIMESTEP, device=noise.device)
        else:
            scheduler: Any = DDIMScheduler.from_config(SCHEDULER_CONFIG)  # type: ignore[no-untyped-call]
            noisy = scheduler.add_noise(batch.latents, noise, timesteps.repeat_interleave(batch.num_frames, 0))
        sample = torch.cat((noisy, batch.mask, batch.masked, batch.reference), 1)
        shape = self.shape_scale[0] * audio_encoder.target_shape(batch.opening, batch.width) + self.shape_scale[1]
        audio = audio_encoder.with_shape(self.encode_audio(batch.mel, batch.phase, batch.num_frames), shape)
        audio = audio * batch.has_audio.repeat_interleave(batch.num_frames, 0)
        return self.unet(sample, timesteps, audio, batch.num_frames).float()


@torch.no_grad()
def return_reference(unet: UNet) -> None:
    """Have an untrained U-Net predict the reference, which its last input channels are, but for each channel's scale.

    From there training changes mouths; from random weights on it learns for a thousand steps to copy a face. Each
    channel passes through the outermost skip connection twice, once with its sign changed: silu(x) - silu(-x) = x.
    """
    n = unet.config.out_channels
    last: Any = unet.up_blocks[-1]
    resnet = last.resnets[-1]
    outputs = [resnet.conv2, *(last.attentions[name].proj_out for name in list(last.attentions)[-1:])]
    for layer in (unet.conv_in, resnet.conv_shortcut, *outputs):
        layer.weight[: 2 * n] = 0
        layer.bias[: 2 * n] = 0
    for parameter in unet.conv_out.parameters():
        parameter.zero_()
    skip = resnet.conv_shortcut.in_channels - unet.conv_in.out_channels
    for channel in range(n):
        for way, sign in ((2 * channel, 1), (2 * channel + 1, -1)):
            unet.conv_in.weight[way, channel - n, 1, 1] = sign
            resnet.conv_shortcut.weight[way, skip + way] = 1
            unet.conv_out.weight[channel, way, 1, 1] = sign


def periodic_positions(rows: int, channels: int) -> Tensor:
    """Return positions (rows, channels): sine and cosine of 1, 2 and 3 turns per period in six channels, else zero."""
    phase = (torch.arange(rows) % POSITION_PERIOD)[:, None] / POSITION_PERIOD
    angle = phase * (2 * math.pi) * torch.tensor([1.0, 2.0, 3.0])
    positions = torch.zeros(rows, channels)
    positions[:, :6] = torch.cat((angle.sin(), angle.cos()), 1)
    return positions


def training_loss(
    model: ConditionedUNet,
    vae: Any,
    reader: LipReader,
    batch: Batch,
    settings: UNetSettings,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return the total "loss" and its parts: latents, motion and opening of the mouth, pixels of decoded frames."""
    windows = len(batch.latents) // batch.num_frames
    noise = window_noise(batch, generator)
    timesteps = _timesteps(windows, settings.noisy_share, generator).to(noise.device) if settings.noisy_share else None
    predicted = model.predict(batch, noise, timesteps)
    parts = latent_losses(predicted, batch, reader, settings)
    chosen = torch.randperm(len(predicted), generator=generator)[: settings.decoded_frames]
    decoded = conditioning.decode(vae, predicted[chosen])
    size = batch.crops.shape[-1]
    hidden = F.interpolate(1 - batch.mask[chosen], size=(size, size))
    pixel_weight = losses.mouth_weight(size, settings.mouth_gain).to(noise.device) * (0.02 + hidden)
    pixels = losses.pixel_loss(decoded, batch.crops[chosen], pixel_weight)
    return {**parts, "loss": parts["loss"] + settings.pixel_weight * pixels, "pixels": pixels}


def window_noise(batch: Batch, generator: torch.Generator) -> Tensor:
    """Draw one noise image for all frames of a window (published behaviour): (n, C, h, w)."""
    windows = len(batch.latents) // batch.num_frames
    noise = torch.randn((windows, *batch.latents.shape[1:]), generator=generator).to(batch.latents.device)
    return noise.repeat_interleave(batch.num_frames, 0)


def latent_losses(predicted: Tensor, batch: Batch, reader: LipReader, settings: UNetSettings) -> dict[str, Tensor]:
    """Return their sum "loss" and its parts: latents, motion and opening of the mouth. predicted: (n, C, h, w)."""
    at_mouth = losses.mouth_weight(batch.latents.shape[-1], settings.mouth_gain).to(predicted.device)
    weight = at_mouth * (0.05 + (1 - batch.mask))
    latent = (F.smooth_l1_loss(predicted, batch.latents, reduction="none", beta=0.2) * weight).mean()
    true_motion, predicted_motion = (_motion(x, batch.num_frames) for x in (batch.latents, predicted))
    at_mouth = at_mouth - 1
    motion = (F.smooth_l1_loss(predicted_motion, true_motion, reduction="none", beta=0.2) * at_mouth).mean()
    still = (F.smooth_l1_loss(torch.zeros_like(true_motion), true_motion, reduction="none", beta=0.2) * at_mouth).mean()
    lips = F.smooth_l1_loss(reader(predicted), reader(batch.latents), beta=0.1)
    return {
        "loss": settings.latent_weight * latent + settings.motion_weight * motion + settings.lips_weight * lips,
        "latent": latent,
        "motion": motion,
        "motion_of_a_still_mouth": still,
        "lips": lips,
    }


def training_sampler(clips: list[LatentClip], mask: Tensor, settings: UNetSettings) -> Sampler:
    """Return what draws the windows of training. mask: (1, res, res), 1 = keep."""
    return Sampler(
        clips,
        mask,
        footage_share=settings.footage_share,
        dubbed_share=settings.dubbed_share,
        large_mask_share=settings.large_mask_share,
        unconditional_share=settings.unconditional_share,
    )


def judge_reader(
    reader: LipReader,
    judge: Judge,
    model: ConditionedUNet,
    sampler: Sampler,
    clips: list[LatentClip],
    settings: UNetSettings,
    seed: int,
    step: int,
    device: torch.device,
) -> None:
    """Train the lip reader on what the judge measures of the model's own mouths."""
    mouths = _judged_latents(model, sampler, settings, step_generator(seed + 1, step), device)
    update_reader(reader, mouths, judge(mouths), clips, seed + step)


@torch.no_grad()
def _judged_latents(
    model: ConditionedUNet, sampler: Sampler, settings: UNetSettings, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Return predicted and true latents (n, C, h, w) float32 of some windows, for the judge."""
    samples = []
    for _ in range(settings.judged_batches):
        batch = sampler.draw(settings.windows, settings.num_frames, generator, device)
        samples += [model.predict(batch, window_noise(batch, generator)), batch.latents]
    # Autocast would reuse its weight copies made under no_grad, which have no gradient.
    torch.clear_autocast_cache()
    return torch.cat(samples)


def _timesteps(windows: int, noisy_share: float, generator: torch.Generator) -> Tensor:
    """Draw the timestep of each window: (windows,)."""
    random_timesteps = torch.randint(FIRST_TIMESTEP, (windows,), generator=generator)
    return torch.where(torch.rand(windows, generator=generator) < noisy_share, random_timesteps, FIRST_TIMESTEP)


def _motion(latents: Tensor, num_frames: int) -> Tensor:
    """Return the difference from each window's mean, which only the audio determines."""
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
    after_save: Callable[[ConditionedUNet, int], None] | None = None,
    judge: Judge | None = None,
    begin: Callable[[ConditionedUNet], None] | None = None,
) -> ConditionedUNet:
    """Train on clips; return the averaged model. vae: frozen. mask: (1, res, res), 1 = keep.

    judge: measures the openings of generated mouths, from which the lip reader is updated; None keeps it fixed. begin:
    loads the weights to begin from into a new model.
    """
    torch.manual_seed(loop.seed)
    vae = vae.to(device).eval().requires_grad_(False)
    model = ConditionedUNet(settings, clips[0].latents.shape[1])
    if not (folder / CHECKPOINT_NAME).exists():
        return_reference(model.unet)
        if begin is not None:
            begin(model)
        if settings.audio_encoder_steps:
            audio_encoder.pretrain(model.audio_encoder, clips, loop.seed, settings.audio_encoder_steps)
        model.shape_scale.copy_(audio_encoder.prediction_scale(model.audio_encoder, clips, loop.seed))
    model.audio_encoder.requires_grad_(False)
    reader = train_reader(clips, loop.seed).to(device)
    run = Run(folder, model, loop, device, auxiliary=reader)
    sampler = training_sampler(clips, mask, settings)

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        if judge is not None and step % settings.judge_every == 0:
            judge_reader(reader, judge, run.module, sampler, clips, settings, loop.seed, step, device)  # type: ignore[arg-type]
        long = float(torch.rand((), generator=generator)) < settings.long_share
        num_frames = settings.long_num_frames if long else settings.num_frames
        windows = max(settings.windows * settings.num_frames // num_frames, 1)
        batch = sampler.draw(windows, num_frames, generator, device)
        return training_loss(run.module, vae, reader, batch, settings, generator)  # type: ignore[arg-type]

    run.train(loss, report, None if after_save is None else lambda step: after_save(run.average, step))  # type: ignore[arg-type]
    return run.average  # type: ignore[return-value]
