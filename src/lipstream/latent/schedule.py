"""What solves the way from noise to picture: diffusers' schedulers, from the words of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from lipstream.errors import SettingsError
from lipstream.settings import SchedulerName

# What the words of DDIMScheduler say of the model; the others are about its way of solving.
_OF_THE_MODEL = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)


def make_scheduler(words: Mapping[str, Any], name: SchedulerName, num_inference_steps: int) -> Any:
    """A scheduler for one call: those of several steps remember what they were given.

    words: settings of diffusers' DDIMScheduler, followed to the letter by "ddim" (Song et al. 2021). The others,
    DPM-Solver++(2M) (Lu et al. 2022, https://arxiv.org/abs/2211.01095) and UniPC (Zhao et al. 2023,
    https://arxiv.org/abs/2302.04867), begin at the noisiest timestep whatever the model's spacing is: the published
    "leading" has few steps begin where the model expects to see some of the picture (Lin et al. 2024,
    https://arxiv.org/abs/2305.08891). They end where DDIM does. Raises SettingsError for words that they can't follow.
    """
    if name == "ddim":
        scheduler: Any = DDIMScheduler.from_config(dict(words))  # type: ignore[no-untyped-call]
    else:
        scheduler = _multi_step(words, name)
    scheduler.set_timesteps(num_inference_steps)
    # Where timesteps are spaced backwards by floating-point numbers, rounding makes one too many of some: 61, say.
    scheduler.timesteps = scheduler.timesteps[:num_inference_steps]
    return scheduler


def _multi_step(words: Mapping[str, Any], name: SchedulerName) -> Any:
    for word, default in (("clip_sample", True), ("thresholding", False)):
        if words.get(word, default):
            raise SettingsError(f"scheduler = {name!r}: the model's sampling has {word}; use --scheduler ddim")
    chosen = {word: words[word] for word in _OF_THE_MODEL if word in words}
    chosen["timestep_spacing"] = "linspace"
    chosen["final_sigmas_type"] = "zero" if words.get("set_alpha_to_one", True) else "sigma_min"
    if name == "unipc":
        return UniPCMultistepScheduler.from_config(chosen)  # type: ignore[no-untyped-call]
    # The last step is of first order: it goes further down, in terms of the noise, than those it would learn from.
    return DPMSolverMultistepScheduler.from_config({**chosen, "euler_at_final": True})  # type: ignore[no-untyped-call]
