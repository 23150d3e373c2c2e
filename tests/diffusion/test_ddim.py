"""DDIM of our own, bit for bit that of diffusers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from lipstream.diffusion.ddim import DDIM, DDIMConfig
from lipstream.diffusion.scheduler import make_scheduler
from lipstream.models.load import read_config


def words() -> list[dict[str, Any]]:
    kinds, spacings = ("epsilon", "sample", "v_prediction"), ("leading", "trailing", "linspace")
    every = [
        {"prediction_type": kind, "timestep_spacing": spacing, "clip_sample": clip, "set_alpha_to_one": clip}
        for kind, spacing, clip in itertools.product(kinds, spacings, (True, False))
    ]
    published = read_config("latentsync-1.6")[0].scheduler
    return [*every, {"beta_schedule": "scaled_linear", "steps_offset": 1}, read_config("tiny")[0].scheduler, published]


@pytest.mark.parametrize("given", words(), ids=lambda given: "-".join(map(str, given.values()))[:60])
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 61])
def test_every_step_is_that_of_diffusers(given: dict[str, Any], steps: int) -> None:
    theirs: Any = DDIMScheduler.from_config(given)
    theirs.set_timesteps(steps)
    ours = make_scheduler(given, "ddim", steps)
    assert isinstance(ours, DDIM)
    assert torch.equal(ours.timesteps, theirs.timesteps[:steps])
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 3, 3, generator=generator)
    for timestep in ours.timesteps:
        predicted = torch.randn(latents.shape, generator=generator)
        stepped = ours.step(predicted, timestep, latents).prev_sample
        expected = theirs.step(predicted, timestep, latents).prev_sample
        assert torch.equal(stepped, expected)
        latents = stepped


@pytest.mark.parametrize("other", [{"beta_schedule": "squaredcos_cap_v2"}, {"thresholding": True}, {"unheard_of": 1}])
def test_other_words_are_left_to_diffusers(other: dict[str, Any]) -> None:
    assert DDIMConfig.from_config(other) is None
    assert isinstance(make_scheduler(other, "ddim", 4), DDIMScheduler)
