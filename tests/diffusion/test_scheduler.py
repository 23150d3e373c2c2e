"""Solvers, step caching, the guidance interval and the presets that are made of them."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from helpers.unet import make_inputs, make_unet
from lipstream.cli import options
from lipstream.diffusion.conditioning import Conditioning
from lipstream.diffusion.ddim import DDIMConfig
from lipstream.diffusion.sampling import UNetDenoiser, initial_noise, sample
from lipstream.diffusion.scheduler import make_scheduler
from lipstream.errors import SettingsError
from lipstream.models.load import load_model, read_config
from lipstream.models.unet import UNet
from lipstream.presets import PRESETS, Sampling, SchedulerName
from lipstream.settings import SyncSettings

PUBLISHED = read_config("latentsync-1.5")[0].scheduler
ZERO_TERMINAL_SNR = read_config("tiny")[0].scheduler
EACH_WORDS = pytest.mark.parametrize("model_words", [PUBLISHED, ZERO_TERMINAL_SNR], ids=["published", "zero snr"])
SCHEDULERS: tuple[SchedulerName, ...] = get_args(SchedulerName)


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


class Gaussian:
    """Predicts without a fault where every number of a picture is `mean`, give or take `deviation`.

    Notes each call: guided, and whether deep features were given.
    """

    mean, deviation = 0.6, 0.8

    def __init__(self, model_words: Mapping[str, Any]) -> None:
        self.alphas_cumprod = make_scheduler(model_words, "dpm++2m", 2).alphas_cumprod
        self.predicts_picture = model_words["prediction_type"] == "sample"
        self.end = 1.0 if model_words["set_alpha_to_one"] else float(self.alphas_cumprod[0])
        self.calls: list[tuple[bool, bool]] = []

    def prepare(self, conditioning: Conditioning) -> Any:
        return conditioning

    def __call__(
        self, latents: Tensor, timestep: Tensor, prepared: Any, guided: bool, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self.calls.append((guided, deep is not None))
        signal = self.alphas_cumprod[timestep]
        gain = signal.sqrt() * self.deviation**2 / (signal * self.deviation**2 + 1 - signal)
        picture = self.mean + gain * (latents - signal.sqrt() * self.mean)
        noise = (latents - signal.sqrt() * picture) / (1 - signal).sqrt()
        predicted = picture if self.predicts_picture else noise
        return torch.cat((predicted, predicted)) if guided else predicted, latents

    def solution(self, noise: Tensor) -> Tensor:
        """Where the way from `noise` ends when it is followed in endlessly small steps."""
        begin = float(self.alphas_cumprod[-1])
        scaled = (noise - begin**0.5 * self.mean) / (begin * self.deviation**2 + 1 - begin) ** 0.5
        return self.end**0.5 * self.mean + (self.end * self.deviation**2 + 1 - self.end) ** 0.5 * scaled


def run(denoiser: Any, model_words: Mapping[str, Any], sampling: Sampling) -> Tensor:
    frame = Conditioning(torch.zeros(1, 9, 16, 16), torch.zeros(1, 1, 1), 1)
    return sample(denoiser, model_words, initial_noise(4, 16, 16, seed=1), frame, sampling)


def error(model_words: Mapping[str, Any], scheduler: SchedulerName, steps: int) -> float:
    """How far from the solution a scheduler ends, root mean square."""
    denoiser = Gaussian(model_words)
    latents = run(denoiser, model_words, Sampling(steps, 1.0, scheduler))
    assert len(denoiser.calls) == steps
    return float((latents - denoiser.solution(initial_noise(4, 16, 16, seed=1))).square().mean().sqrt())


@EACH_WORDS
def test_all_solvers_come_to_the_same_picture(model_words: Mapping[str, Any]) -> None:
    for scheduler in SCHEDULERS:
        assert error(model_words, scheduler, 100) < 0.02, scheduler


@EACH_WORDS
@pytest.mark.parametrize("steps", [5, 8, 12])
def test_few_steps_of_a_better_solver_are_nearer(model_words: Mapping[str, Any], steps: int) -> None:
    of_ddim = error(model_words, "ddim", steps)
    for scheduler in ("dpm++2m", "unipc"):
        assert error(model_words, scheduler, steps) < 0.5 * of_ddim, scheduler


@EACH_WORDS
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_any_number_of_steps(model_words: Mapping[str, Any], scheduler: SchedulerName) -> None:
    for steps in range(1, 101):
        timesteps = make_scheduler(model_words, scheduler, steps).timesteps
        assert len(timesteps) == steps
        assert bool((timesteps[:-1] > timesteps[1:]).all())
        assert int(timesteps[-1]) >= 0
        assert int(timesteps[0]) <= 999
    for steps in (1, 2, 3, 4, 14, 15, 61):
        assert bool(run(Gaussian(model_words), model_words, Sampling(steps, 1.0, scheduler)).isfinite().all())


def test_one_step_of_a_model_that_predicts_the_picture_is_the_picture() -> None:
    ours, other, third = (run(Gaussian(ZERO_TERMINAL_SNR), ZERO_TERMINAL_SNR, Sampling(1, 1.5, s)) for s in SCHEDULERS)
    assert torch.allclose(ours, other, atol=1e-5)
    assert torch.allclose(ours, third, atol=1e-5)


def test_one_step_that_all_solvers_take_alike_needs_no_diffusers() -> None:
    """`--preset fast` of the bundled model would import it for nothing, which takes over a second."""
    script = """
import sys
from lipstream.diffusion.scheduler import make_scheduler
from lipstream.models.load import read_config

make_scheduler(read_config("tiny")[0].scheduler, "unipc", 1)
assert "diffusers" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


@EACH_WORDS
@pytest.mark.parametrize("scheduler", SCHEDULERS[1:])
def test_one_step_is_the_solvers_own(
    model_words: Mapping[str, Any], scheduler: SchedulerName, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = run(Gaussian(model_words), model_words, Sampling(1, 1.0, scheduler))
    monkeypatch.setattr(DDIMConfig, "takes_one_step_alike", False)
    assert torch.allclose(taken, run(Gaussian(model_words), model_words, Sampling(1, 1.0, scheduler)), atol=1e-5)


def test_words_that_only_ddim_follows() -> None:
    clips = {**PUBLISHED, "clip_sample": True}
    assert make_scheduler(clips, "ddim", 2) is not None
    with pytest.raises(SettingsError, match=r"dpm\+\+2m.*clip_sample\. Fix: use --scheduler ddim"):
        make_scheduler(clips, "dpm++2m", 2)


@pytest.mark.parametrize(
    ("interval", "guided"),
    [
        ((0.0, 1.0), "11111111"),
        ((0.25, 0.75), "00111100"),
        ((0.0, 0.3), "11100000"),
        ((0.5, 0.5), "00000000"),
    ],
)
def test_guidance_within_an_interval(interval: tuple[float, float], guided: str) -> None:
    denoiser = Gaussian(PUBLISHED)
    run(denoiser, PUBLISHED, Sampling(8, 1.5, guidance_interval=interval))
    assert [call[0] for call in denoiser.calls] == [word == "1" for word in guided]
    unguided = Gaussian(PUBLISHED)
    run(unguided, PUBLISHED, Sampling(8, 1.0, guidance_interval=interval))
    assert not any(call[0] for call in unguided.calls)


@pytest.mark.parametrize(
    ("interval", "step_cache", "given"),
    [
        ((0.0, 1.0), 1, "00000000"),
        ((0.0, 1.0), 3, "01101101"),
        ((0.0, 1.0), 100, "01111111"),
        ((0.0, 0.6), 3, "01101001"),  # guidance ends with step 5: its features have one branch
        ((0.25, 1.0), 4, "01010111"),
    ],
)
def test_deep_features_are_computed_every_nth_step(interval: tuple[float, float], step_cache: int, given: str) -> None:
    denoiser = Gaussian(PUBLISHED)
    run(denoiser, PUBLISHED, Sampling(8, 1.5, step_cache=step_cache, guidance_interval=interval))
    assert [call[1] for call in denoiser.calls] == [word == "1" for word in given]


@pytest.fixture(scope="module")
def unet() -> UNet:
    return make_unet()


def sampled(unet: UNet, sampling: Sampling) -> Tensor:
    inputs = make_inputs(2, 4)
    seen = Conditioning(inputs.channels, inputs.audio, 4)
    return sample(UNetDenoiser(unet), PUBLISHED, initial_noise(4, 8, 8, 3), seen, sampling)


def test_an_interval_of_everything_and_of_nothing(unet: UNet) -> None:
    guided, plain = Sampling(3, 1.5), Sampling(3, 1.0)
    assert torch.equal(sampled(unet, replace(guided, guidance_interval=(0.0, 1.0))), sampled(unet, guided))
    assert torch.equal(sampled(unet, replace(guided, guidance_interval=(0.4, 0.4))), sampled(unet, plain))
    assert not torch.equal(sampled(unet, guided), sampled(unet, plain))


def test_everything_at_once_on_a_real_unet(unet: UNet) -> None:
    exact = sampled(unet, Sampling(6, 1.5))
    for scheduler in SCHEDULERS:
        all_of_it = Sampling(6, 1.5, scheduler, step_cache=2, guidance_interval=(0.2, 0.7))
        latents = sampled(unet, all_of_it)
        assert bool(latents.isfinite().all())
        assert not torch.equal(latents, exact)
        assert torch.equal(latents, sampled(unet, all_of_it)), "nothing is remembered from call to call"


def test_what_is_saved_is_not_counted() -> None:
    flops = pytest.importorskip("lipstream_lab.bench.flops")
    every = SyncSettings(num_inference_steps=2, guidance_scale=1.5, scheduler="dpm++2m")
    whole = flops.count("tiny", every, 16)
    cached = flops.count("tiny", replace(every, step_cache=2), 16)
    assert 0.5 * whole.unet < cached.unet < 0.9 * whole.unet
    half = flops.count("tiny", replace(every, guidance_interval=(0.0, 0.5), resolution=64), 16)
    assert half.unet < 0.25 * whole.unet
    assert half.vae < 0.3 * whole.vae
    merged = flops.count("tiny", every, 16, merged=True)
    assert 0.8 * whole.vae < merged.vae < 0.95 * whole.vae
    assert 0.9 * whole.unet < merged.unet < whole.unet


def test_a_resolution_that_a_model_cannot_encode() -> None:
    model = load_model("tiny", torch.device("meta"), torch.float32)
    assert model.latent_size(192) == 24
    with pytest.raises(SettingsError, match=r"resolution = 100: tiny takes multiples of 8\. Fix: use its own, 128"):
        model.latent_size(100)


def test_presets() -> None:
    assert SyncSettings().sampling(20, 1.5) == Sampling(20, 1.5, "ddim", 1, (0.0, 1.0))
    assert SyncSettings().frames_per_detection() == 1
    for name, preset in PRESETS.items():
        settings: Any = {"preset": name}
        sampling = SyncSettings(**settings).sampling(20, 1.5)
        chosen = asdict(preset)
        assert sampling.num_inference_steps == round(20 * chosen.pop("step_share"))
        assert SyncSettings(**settings).frames_per_detection() == chosen.pop("detect_every")
        assert {key: asdict(sampling)[key] for key in chosen} == chosen
        # What a model of one step makes does not change.
        one = SyncSettings(**settings).sampling(1, 1.5)
        assert (one.num_inference_steps, one.guided(0)) == (1, True)
        given = replace(SyncSettings(**settings), num_inference_steps=7, step_cache=2, detect_every=3, scheduler="ddim")
        assert given.sampling(20, 1.5).step_cache == 2
        assert given.sampling(20, 1.5).num_inference_steps == 7
        assert given.frames_per_detection() == 3


@pytest.mark.parametrize(("name", "least"), [("balanced", 3.0), ("fast", 6.0)])
def test_what_presets_save(name: str, least: float) -> None:
    """In branches of the U-Net computed; deep features kept are left out of the sum."""
    settings: Any = {"preset": name}
    sampling = SyncSettings(**settings).sampling(20, 1.5)
    assert 2 * 20 / sum(1 + sampling.guided(step) for step in range(sampling.num_inference_steps)) >= least


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_inference_steps": 101}, "num_inference_steps = 101: must be from 1 to 100"),
        ({"scheduler": "euler"}, "scheduler = 'euler': must be one of ddim, "),
        ({"step_cache": 0}, "step_cache = 0"),
        ({"guidance_interval": (0.8, 0.2)}, r"guidance_interval = 0\.8,0\.2"),
        ({"guidance_interval": (0.0, 1.1)}, "two rising numbers from 0 to 1"),
        ({"resolution": 100}, "resolution = 100: must be a multiple of 64"),
        ({"resolution": 0}, "from 64 up"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        SyncSettings(**given)


def test_options_for_sampling() -> None:
    parser = argparse.ArgumentParser()
    options.add_sync_options(options.option_groups(parser))
    assert options.settings_from(SyncSettings, parser.parse_args([])) == SyncSettings()
    given = ["--scheduler", "dpm++2m", "--step-cache", "3", "--guidance-interval", "0.1,0.9", "--resolution", "192"]
    assert options.settings_from(SyncSettings, parser.parse_args(given)) == SyncSettings(
        scheduler="dpm++2m", step_cache=3, guidance_interval=(0.1, 0.9), resolution=192
    )


def test_threads_that_make_the_first_schedulers_at_once_all_get_one() -> None:
    """In a process that has not imported diffusers yet, as in a run of several threads."""
    script = """
import threading
from lipstream.diffusion.scheduler import make_scheduler

made, begin = [], threading.Barrier(4)

def make():
    begin.wait()
    made.append(make_scheduler({"clip_sample": False}, "unipc", 3))

threads = [threading.Thread(target=make) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(made) == 4
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
