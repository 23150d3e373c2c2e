"""DDIM without noise added, as diffusers' DDIMScheduler computes it.

Source: Song et al. 2021 (https://arxiv.org/abs/2010.02502). Written out because importing diffusers takes longer than
a clip's denoising.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_COMPUTED: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "trained_betas": (None,),
    "thresholding": (False,),
}
# Of these nothing depends without thresholding.
_IDLE = ("dynamic_thresholding_ratio", "sample_max_value")


@dataclass(frozen=True)
class DDIMConfig:
    """Settings, by the names and with the defaults of DDIMScheduler."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    rescale_betas_zero_snr: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DDIMConfig | None:
        """Return the settings of a model's configuration, or None where they ask for what is not computed here."""
        known = {field.name for field in fields(cls)}
        config = {name: value for name, value in config.items() if not name.startswith("_") and name not in _IDLE}
        if any(config.get(name, values[0]) not in values for name, values in _COMPUTED.items()):
            return None
        if not known.union(_COMPUTED).issuperset(config):
            return None
        return cls(**{name: value for name, value in config.items() if name in known})

    @property
    def takes_one_step_alike(self) -> bool:
        """Whether a single step leads from the noisiest timestep to the predicted picture, as any solver's does."""
        return self.timestep_spacing == "trailing" and self.set_alpha_to_one and not self.clip_sample


class Stepped(NamedTuple):
    """What a step returns."""

    prev_sample: Tensor


class DDIM:
    """The steps of one call. timesteps: falling, int64 (num_inference_steps,)."""

    init_noise_sigma = 1.0

    def __init__(self, config: DDIMConfig, num_inference_steps: int) -> None:
        self._config = config
        self._stride = config.num_train_timesteps // num_inference_steps
        self._kept = _share_kept(config)
        self._kept_at_end = torch.tensor(1.0) if config.set_alpha_to_one else self._kept[0]
        self.timesteps = torch.from_numpy(_timesteps(config, num_inference_steps))

    def step(self, predicted: Tensor, timestep: Tensor, latents: Tensor) -> Stepped:
        """Return the latents one step further. predicted: of `prediction_type`, at `timestep`, of `latents`."""
        at, before = int(timestep), int(timestep) - self._stride
        kept = self._kept[at]
        kept_before = self._kept[before] if before >= 0 else self._kept_at_end
        noise_share, signal_share = (1 - kept) ** 0.5, kept**0.5
        if self._config.prediction_type == "epsilon":
            picture, noise = (latents - noise_share * predicted) / signal_share, predicted
        elif self._config.prediction_type == "sample":
            picture, noise = predicted, (latents - signal_share * predicted) / noise_share
        else:
            picture = signal_share * latents - noise_share * predicted
            noise = signal_share * predicted + noise_share * latents
        if self._config.clip_sample:
            picture = picture.clamp(-self._config.clip_sample_range, self._config.clip_sample_range)
        return Stepped(kept_before**0.5 * picture + (1 - kept_before) ** 0.5 * noise)


def _share_kept(config: DDIMConfig) -> Tensor:
    """Return the share of the signal's variance at each timestep of training, float32."""
    start, end, n = config.beta_start, config.beta_end, config.num_train_timesteps
    if config.beta_schedule == "linear":
        betas = torch.linspace(start, end, n, dtype=torch.float32)
    else:
        betas = torch.linspace(start**0.5, end**0.5, n, dtype=torch.float32) ** 2
    kept = torch.cumprod(1.0 - betas, dim=0)
    if not config.rescale_betas_zero_snr:
        return kept
    # Shifted to end at zero and scaled to begin where it did (Lin et al. 2024, https://arxiv.org/abs/2305.08891).
    root = kept.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    kept = ((root - last) * (first / (first - last))) ** 2
    # By way of the betas, as diffusers computes it.
    return torch.cumprod(1 - (1 - torch.cat((kept[:1], kept[1:] / kept[:-1]))), dim=0)


def _timesteps(config: DDIMConfig, steps: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    n = config.num_train_timesteps
    if config.timestep_spacing == "linspace":
        return np.linspace(0, n - 1, steps).round()[::-1].astype(np.int64)
    if config.timestep_spacing == "leading":
        return (np.arange(steps) * (n // steps))[::-1].astype(np.int64) + config.steps_offset
    # Rounding makes one too many of some numbers of steps: 61, say.
    return np.round(np.arange(n, 0, -n / steps)).astype(np.int64)[:steps] - 1
