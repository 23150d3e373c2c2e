"""What a tuning may choose: the axes of the search for a model on a device, and the settings that a choice means."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from lipstream.models.catalogue import ModelConfig
from lipstream.presets import PRESETS, WHOLE_INTERVAL
from lipstream.runtime.device import computes_bf16
from lipstream.settings import EngineName, RuntimeSettings, SyncSettings, VaeName

Choice = Mapping[str, Any]
"""A value for each axis, by its name."""


@dataclass(frozen=True)
class Axis:
    """One choice to make: the fields' values, from the published behaviour on. is_range: whole numbers, in between too.

    fields: those of the settings that it decides.
    """

    name: str
    values: tuple[Any, ...]
    fields: tuple[str, ...]
    is_range: bool = False


@dataclass(frozen=True)
class Candidate:
    """Settings that a choice means."""

    sync: SyncSettings
    runtime: RuntimeSettings


@dataclass(frozen=True)
class Space:
    """The axes of a search, and what stays as it is: everything else of `base`.

    model_steps, model_guidance: the model's own.
    """

    axes: tuple[Axis, ...]
    base: Candidate
    model_steps: int
    model_guidance: float

    def candidate(self, choice: Choice) -> Candidate:
        """Return the settings of a choice. What has no effect there is as published, so equal runs are equal."""
        values = {axis.name: choice.get(axis.name, axis.values[0]) for axis in self.axes}
        if values.get("engine", "torch") != "torch":  # its graphs have one size and one precision
            values |= {axis.name: axis.values[0] for axis in self.axes if axis.name in ("precision", "resolution")}
        sync = {name: values[name] for name in _SYNC_FIELDS if name in values}
        runtime = {name: values[name] for name in _RUNTIME_FIELDS if name in values}
        guidance = values.get("guidance_scale", self.base.sync.guidance_scale)
        guided = (self.model_guidance if guidance is None else guidance) > 1.0
        if "guidance_end" in values:
            sync["guidance_interval"] = (0.0, values["guidance_end"]) if guided else WHOLE_INTERVAL
        if sync.get("num_inference_steps") == 1:
            sync |= {name: value for name, value in (("scheduler", "ddim"), ("step_cache", 1)) if name in sync}
        return Candidate(replace(self.base.sync, **sync), replace(self.base.runtime, **runtime))

    def exact(self) -> dict[str, Any]:
        """Return the choice of the published behaviour."""
        return {axis.name: axis.values[0] for axis in self.axes}

    def starts(self) -> list[dict[str, Any]]:
        """Return the choices that a search begins with: the published behaviour, and the presets as far as they fit."""
        starts = [self.exact()]
        for name in ("balanced", "fast"):
            preset = PRESETS[name]
            wanted = {
                "num_inference_steps": max(1, round(self.model_steps * preset.step_share)),
                "scheduler": preset.scheduler,
                "step_cache": preset.step_cache,
                "guidance_end": preset.guidance_interval[1],
                "detect_every": preset.detect_every,
            }
            starts.append({axis.name: wanted.get(axis.name, axis.values[0]) for axis in self.axes})
        starts += [{**starts[-1], axis.name: axis.values[1]} for axis in self.axes if axis.name == "precision"]
        return [choice for place, choice in enumerate(starts) if choice not in starts[:place]]


_SYNC_FIELDS = ("num_inference_steps", "scheduler", "step_cache", "guidance_scale", "detect_every", "resolution")
_RUNTIME_FIELDS = ("precision", "quantize", "batch", "engine", "pruned", "vae")

_DETECT_EVERY = (1, 5, 25)
_GUIDANCE_ENDS = (1.0, 0.75, 0.5, 0.25)
_BATCHES = (1, 2, 4)
_STEP_CACHES = (1, 2, 3)


def search_space(
    config: ModelConfig,
    base: Candidate,
    device: torch.device,
    *,
    fixed: Collection[str] = (),
    engines: tuple[EngineName, ...] = ("torch",),
    vaes: tuple[VaeName, ...] = ("own",),
) -> Space:
    """Return what there is to choose for a model on a device.

    base: settings that the search leaves alone. fixed: fields of the settings that are not searched. engines: those to
    choose from, the first one being the base's; vaes likewise. A list of pruned layers in `base` is an axis: with it or
    without.
    """
    steps, guidance = config.num_inference_steps, config.guidance_scale
    axes = [_one("detect_every", _DETECT_EVERY), _one("precision", _precisions(device))]
    axes += [_one("resolution", _resolutions(config.resolution)), _one("batch", _BATCHES)]
    if steps > 1:
        axes.append(Axis("num_inference_steps", (steps, 1), ("num_inference_steps",), is_range=True))
        axes += [_one("scheduler", ("ddim", "dpm++2m", "unipc")), _one("step_cache", _STEP_CACHES)]
    if guidance > 1.0:
        axes.append(_one("guidance_scale", (guidance, 1.0)))
        axes.append(Axis("guidance_end", _GUIDANCE_ENDS, ("guidance_interval",)))
    if config.quantized == "none" and engines == ("torch",):
        axes.append(_one("quantize", ("none", "int8") if device.type == "mps" else ("none", "int8", "int8-dynamic")))
    if len(vaes) > 1 and engines == ("torch",):
        axes.append(_one("vae", vaes))
    if len(engines) > 1:
        axes.append(_one("engine", engines))
    if base.runtime.pruned is not None:
        axes.append(_one("pruned", (None, str(base.runtime.pruned))))
    open_axes = tuple(axis for axis in axes if len(axis.values) > 1 and not set(axis.fields) & set(fixed))
    return Space(open_axes, base, steps, guidance)


def _one(name: str, values: tuple[Any, ...]) -> Axis:
    return Axis(name, values, (name,))


def _precisions(device: torch.device) -> tuple[str, ...]:
    """Return the precisions to choose from, the device's own first."""
    if device.type == "cpu":
        return ("fp32", "bf16") if computes_bf16(device) else ("fp32",)
    return ("fp16", "bf16") if device.type == "cuda" else ("fp32", "fp16")


def _resolutions(own: int) -> tuple[int, ...]:
    """Return the model's own resolution and those below it, to half of it."""
    return (own, *(r for r in range(own - 64, own // 2 - 1, -64) if r > 0))
