"""Distilling: what the student is to do is what the teacher does, it learns it, resumes, and its folder loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.cli import error_line, run
from helpers.models import make_model_folder
from lipstream.diffusion.conditioning import Conditioning
from lipstream.diffusion.sampling import UNetDenoiser, initial_noise, sample
from lipstream.diffusion.scheduler import diffusers_ddim, make_scheduler
from lipstream.errors import SettingsError
from lipstream.models.load import Model, load_model, locate, read_config
from lipstream.presets import Sampling
from lipstream_lab.train.distill import (
    DistillSettings,
    Trajectory,
    distill,
    load_trajectories,
    save_trajectories,
    scheduler_config,
    student_loss,
    student_target,
    teach,
    write_student,
)
from lipstream_lab.train.loop import LoopSettings, read_log

CPU = torch.device("cpu")
SETTINGS = DistillSettings(student_steps=2, teacher_steps=4, guidance_scale=1.5)
FRAMES = 4


@pytest.fixture(scope="module")
def folder(goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(goldens, tmp_path_factory.mktemp("teacher") / "small", num_inference_steps=4)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_model(folder, CPU, torch.float32)


@pytest.fixture(scope="module")
def conditions(model: Model) -> Conditioning:
    generator = torch.Generator().manual_seed(0)
    sizes = model.config.audio_encoder
    channels = torch.randn(FRAMES, model.config.unet.in_channels - 4, 8, 8, generator=generator)
    audio = torch.randn(FRAMES, sizes.tokens_per_frame, sizes.n_audio_state, generator=generator)
    return Conditioning(channels.half().float(), audio.half().float(), FRAMES)


def trajectory(model: Model, conditions: Conditioning, settings: DistillSettings, seed: int = 1) -> Trajectory:
    noise = initial_noise(4, 8, 8, seed)
    return teach(UNetDenoiser(model.unet), model.config.scheduler, noise, conditions, settings)


def test_the_way_ends_where_the_teacher_does(model: Model, conditions: Conditioning) -> None:
    found = trajectory(model, conditions, SETTINGS)
    config = scheduler_config(model.config.scheduler)
    with torch.inference_mode():
        wanted = sample(UNetDenoiser(model.unet), config, initial_noise(4, 8, 8, 1), conditions, Sampling(4, 1.5))
    # The student's own DDIM steps, given the targets as predictions, arrive there.
    scheduler = make_scheduler({**config, "prediction_type": "sample"}, "ddim", 2)
    student = diffusers_ddim(config, 2)
    latents = found.latents[0]
    for step, timestep in enumerate(scheduler.timesteps):
        target = student_target(found, step, SETTINGS, student)
        latents = scheduler.step(target, timestep, latents).prev_sample
    torch.testing.assert_close(latents, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


def test_a_student_of_as_many_unguided_steps_has_nothing_to_learn(model: Model, conditions: Conditioning) -> None:
    same = DistillSettings(student_steps=2, teacher_steps=2, guidance_scale=1.0)
    with torch.no_grad():
        losses = [
            [
                float(student_loss(model.unet, model.config.scheduler, one, step, settings, CPU))
                for one in [trajectory(model, conditions, settings)]
                for step in range(2)
            ]
            for settings in (same, SETTINGS)
        ]
    assert max(losses[0]) < 5e-3 * min(losses[1])


def test_steps_that_do_not_divide_are_refused() -> None:
    with pytest.raises(SettingsError, match="no multiple"):
        DistillSettings(student_steps=3, teacher_steps=20, guidance_scale=1.5)


def test_the_student_learns_resumes_exactly_and_its_folder_loads(
    folder: Path, model: Model, conditions: Conditioning, tmp_path: Path
) -> None:
    config, place = read_config(folder)
    paths, trajectories = locate(config, place), [trajectory(model, conditions, SETTINGS)]
    loop = LoopSettings(steps=8, learning_rate=3e-5, warmup_steps=1, decay_steps=1, autocast=False, log_every=1)
    student = distill(folder, paths, trajectories, tmp_path / "run", SETTINGS, loop, CPU)
    assert len(read_log(tmp_path / "run")) == 8
    with torch.no_grad():
        before, after = (
            sum(float(student_loss(unet, config.scheduler, trajectories[0], step, SETTINGS, CPU)) for step in range(2))
            for unet in (model.unet, student)
        )
    assert after < 0.75 * before

    half, whole = (replace(loop, steps=steps, decay_steps=0) for steps in (1, 2))
    for steps in (half, whole):
        again = distill(folder, paths, trajectories, tmp_path / "again", SETTINGS, steps, CPU)
    once = distill(folder, paths, trajectories, tmp_path / "once", SETTINGS, whole, CPU)
    for one, other in zip(again.parameters(), once.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)

    write_student(folder, paths, student, SETTINGS, tmp_path / "student")
    loaded = load_model(tmp_path / "student", CPU, torch.float32)
    assert (loaded.config.num_inference_steps, loaded.config.guidance_scale) == (2, 1.0)
    assert loaded.config.name == "small-2-steps"
    with pytest.raises(SettingsError, match="already exists"):
        write_student(folder, paths, student, SETTINGS, tmp_path / "student")


def test_trajectories_are_kept_and_belong_to_their_teacher(
    model: Model, conditions: Conditioning, tmp_path: Path
) -> None:
    found, path = trajectory(model, conditions, SETTINGS), tmp_path / "trajectories.pt"
    save_trajectories(path, "a key", [found])
    (read,) = load_trajectories(path, "a key")
    assert torch.equal(read.latents, found.latents)
    assert torch.equal(read.conditioning.audio, found.conditioning.audio)
    assert read.conditioning.num_frames == FRAMES
    with pytest.raises(SettingsError, match="another teacher"):
        load_trajectories(path, "another key")


def test_the_command_refuses_before_it_works(folder: Path, tmp_path: Path) -> None:
    words = ("train", "distill", folder, "none.mp4", "--work", tmp_path / "work")
    assert "already exists" in error_line(run(*words, "-o", tmp_path), 2)
    assert "no multiple" in error_line(run(*words, "-o", tmp_path / "new", "--student-steps", "3"), 2)
