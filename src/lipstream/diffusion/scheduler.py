"""What solves the way from noise to picture: DDIM, or a scheduler of diffusers, from a model's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lipstream.diffusion.ddim import DDIM, DDIMConfig
from lipstream.errors import SettingsError
from lipstream.presets import SchedulerName
from lipstream.runtime.lazy_import import import_diffusers

# The settings of DDIMScheduler that belong to the model; the others are about its way of solving.
_OF_THE_MODEL = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)


def make_scheduler(config: Mapping[str, Any], name: SchedulerName, num_inference_steps: int) -> Any:
    """Make a scheduler for one call: those of several steps remember what they were given.

    config: settings of diffusers' DDIMScheduler, followed to the letter by "ddim" (Song et al. 2021,
    https://arxiv.org/abs/2010.02502). The others, DPM-Solver++(2M) (Lu et al. 2022, https://arxiv.org/abs/2211.01095)
    and UniPC (Zhao et al. 2023, https://arxiv.org/abs/2302.04867), choose their own timesteps and end where DDIM does.
    Where all would take the same single step, it is DDIM's, for which diffusers need not be imported.
    num_inference_steps: 1 to 100. Raises SettingsError for settings that they can't follow.
    """
    own = DDIMConfig.from_config(config)
    if own is not None and (name == "ddim" or (num_inference_steps == 1 and own.takes_one_step_alike)):
        return DDIM(own, num_inference_steps)
    if name == "ddim":
        return diffusers_ddim(config, num_inference_steps)  # knows settings that no published model has
    return _multi_step(config, name, num_inference_steps)


def diffusers_ddim(config: Mapping[str, Any], num_inference_steps: int) -> Any:
    """Make diffusers' DDIMScheduler, which also says what a prediction means, for one call."""
    scheduler = import_diffusers().DDIMScheduler.from_config(dict(config))
    scheduler.set_timesteps(num_inference_steps)
    # Where timesteps are spaced backwards by floating-point numbers, rounding makes one too many of some: 61, say.
    scheduler.timesteps = scheduler.timesteps[:num_inference_steps]
    return scheduler


def _multi_step(config: Mapping[str, Any], name: SchedulerName, num_inference_steps: int) -> Any:
    for word, default in (("clip_sample", True), ("thresholding", False)):
        if config.get(word, default):
            raise SettingsError(f"scheduler = {name!r}: the model's sampling has {word}", fix="use --scheduler ddim")
    chosen = {word: config[word] for word in _OF_THE_MODEL if word in config}
    chosen["final_sigmas_type"] = "zero" if config.get("set_alpha_to_one", True) else "sigma_min"
    if name == "dpm++2m":
        # The last step is of first order: it goes further down, in terms of the noise, than those it would learn from.
        chosen["euler_at_final"] = True
    library = import_diffusers()
    solver = library.DPMSolverMultistepScheduler if name == "dpm++2m" else library.UniPCMultistepScheduler
    scheduler = solver.from_config(chosen)
    scheduler.set_timesteps(num_inference_steps)
    sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    scheduler.timesteps = _quadratic(len(sigmas), num_inference_steps)
    scheduler.sigmas = torch.cat((sigmas[scheduler.timesteps], scheduler.sigmas[-1:]))
    return scheduler


def _quadratic(num_train_timesteps: int, num_inference_steps: int) -> Tensor:
    """Falling timesteps from the noisiest on, closer to one another the less noise is left (Song et al. 2021).

    Evenly spaced, few steps leave a last one from where detail is still noise to where there is none.
    """
    left = torch.arange(num_inference_steps, 0, -1)
    spaced = (num_train_timesteps - 1) * (left / num_inference_steps).square()
    return torch.maximum(spaced.round().long(), left - 1)  # no timestep twice
