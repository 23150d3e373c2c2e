"""Presets: how much denoising work a run does where its settings leave the choice, and what was chosen in the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PresetName = Literal["exact", "balanced", "fast"]
SchedulerName = Literal["ddim", "dpm++2m", "unipc"]

WHOLE_INTERVAL = (0.0, 1.0)


@dataclass(frozen=True)
class Preset:
    """What a run does where its settings leave the choice: the fields are those of SyncSettings.

    step_share: scales the model's own number of steps.
    """

    step_share: float
    scheduler: SchedulerName
    step_cache: int
    guidance_interval: tuple[float, float]
    detect_every: int


PRESETS: dict[str, Preset] = {
    "exact": Preset(step_share=1.0, scheduler="ddim", step_cache=1, guidance_interval=WHOLE_INTERVAL, detect_every=1),
    "balanced": Preset(
        step_share=0.25, scheduler="dpm++2m", step_cache=1, guidance_interval=WHOLE_INTERVAL, detect_every=1
    ),
    "fast": Preset(step_share=0.2, scheduler="unipc", step_cache=1, guidance_interval=(0.0, 0.5), detect_every=25),
}


@dataclass(frozen=True)
class Sampling:
    """How latents are sampled, every choice made; the fields are those of SyncSettings."""

    num_inference_steps: int
    guidance_scale: float
    scheduler: SchedulerName = "ddim"
    step_cache: int = 1
    guidance_interval: tuple[float, float] = WHOLE_INTERVAL

    def guided(self, step: int) -> bool:
        """Return whether a step, the first being 0, is computed with guidance: with and without audio."""
        begin, end = self.guidance_interval
        return self.guidance_scale > 1.0 and begin <= step / self.num_inference_steps < end
