"""Distil a model of many guided steps to a few unguided ones.

The student learns to go in one step where its teacher goes in several: progressive distillation (Salimans and Ho 2022,
https://arxiv.org/abs/2202.00512) in one round, of the guided teacher (Meng et al. 2023,
https://arxiv.org/abs/2210.03142), along the teacher's own trajectories from noise. Teacher and student take evenly
spaced timesteps from the noisiest on, so that each of the student's is one of the teacher's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from lipstream.diffusion.conditioning import Conditioning
from lipstream.diffusion.sampling import Denoiser
from lipstream.diffusion.scheduler import diffusers_ddim
from lipstream.errors import SettingsError
from lipstream.models.checkpoint import fill
from lipstream.models.load import ModelPaths, read_config, read_config_values, read_unet
from lipstream.models.unet import UNet
from lipstream_lab.train.loop import LoopSettings, Report, Run

_BETA = 0.2  # of the Huber loss, in units of latents


@dataclass(frozen=True)
class DistillSettings:
    """The student's steps, the teacher's, which are a multiple, and the guidance that the student takes over."""

    student_steps: int
    teacher_steps: int
    guidance_scale: float

    def __post_init__(self) -> None:
        if self.student_steps < 1 or self.teacher_steps % self.student_steps:
            raise SettingsError(
                f"{self.teacher_steps} steps of the teacher are no multiple of the student's {self.student_steps}",
                fix="choose both so that they are, such as 20 and 4",
            )

    @property
    def stride(self) -> int:
        """Steps of the teacher for one of the student."""
        return self.teacher_steps // self.student_steps


@dataclass(frozen=True)
class Trajectory:
    """A teacher's way through one window, on the CPU, from which students of any number of steps learn.

    conditioning: of the window, float16. latents: (teacher's steps + 1, frames, C, h, w) float32, the noise first.
    """

    conditioning: Conditioning
    latents: Tensor


def save_trajectories(path: Path, key: str, trajectories: Sequence[Trajectory]) -> None:
    """Write trajectories to a file, whole or not at all. key: what they are of."""
    held = [
        {"channels": t.conditioning.channels, "audio": t.conditioning.audio, "num_frames": t.conditioning.num_frames}
        | {"latents": t.latents}
        for t in trajectories
    ]
    temporary = path.with_suffix(".tmp")
    torch.save({"key": key, "trajectories": held}, temporary)
    temporary.replace(path)


def load_trajectories(path: Path, key: str) -> list[Trajectory]:
    """Read what `save_trajectories` wrote. Raises SettingsError where it is of something else."""
    held = torch.load(path, map_location="cpu", weights_only=True)
    if held["key"] != key:
        raise SettingsError("of another teacher, other videos or steps", file=path, fix="name another --work")
    return [
        Trajectory(Conditioning(one["channels"], one["audio"], one["num_frames"]), one["latents"])
        for one in held["trajectories"]
    ]


def scheduler_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's scheduler settings with the timesteps that teacher and student share."""
    return {**config, "timestep_spacing": "trailing", "steps_offset": 0}


@torch.no_grad()
def teach(
    denoiser: Denoiser, config: Mapping[str, Any], noise: Tensor, conditions: Conditioning, settings: DistillSettings
) -> Trajectory:
    """Follow the teacher through one window. config: the scheduler's settings. noise: (1, C, h, w)."""
    teacher = diffusers_ddim(scheduler_config(config), settings.teacher_steps)
    prepared, guided = denoiser.prepare(conditions), settings.guidance_scale > 1.0
    latents = noise.expand(len(conditions.channels), -1, -1, -1) * teacher.init_noise_sigma
    passed = [latents.cpu().float()]
    for timestep in teacher.timesteps:
        predicted, _ = denoiser(latents, timestep.to(latents.device), prepared, guided)
        if guided:
            zero, with_audio = predicted.chunk(2)
            predicted = zero + settings.guidance_scale * (with_audio - zero)
        latents = teacher.step(predicted, timestep, latents).prev_sample
        passed.append(latents.cpu().float())
    on_cpu = Conditioning(conditions.channels.cpu().half(), conditions.audio.cpu().half(), conditions.num_frames)
    return Trajectory(on_cpu, torch.stack(passed))


def student_target(trajectory: Trajectory, step: int, settings: DistillSettings, scheduler: Any) -> Tensor:
    """Return the clean latents that take the student's step number `step` to where the teacher arrives.

    scheduler: the student's, as `diffusers_ddim` makes it.
    """
    begin, end = (trajectory.latents[at * settings.stride] for at in (step, step + 1))
    return clean_target(scheduler, scheduler.timesteps[step], begin, end)


def clean_target(scheduler: Any, timestep: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """Return the clean latents whose prediction takes a DDIM step from `begin` at `timestep` to `end`."""
    before = int(timestep) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    share = float(scheduler.alphas_cumprod[int(timestep)])
    next_share = float(scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod)
    kept = ((1 - next_share) / (1 - share)) ** 0.5  # of the noise
    return (end - kept * begin) / (next_share**0.5 - kept * share**0.5)


def clean_prediction(scheduler: Any, predicted: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
    """Return the clean latents that a prediction means, whatever the model predicts."""
    clean: Tensor = scheduler.step(predicted, timestep, latents).pred_original_sample
    return clean


def student_loss(
    unet: UNet,
    config: Mapping[str, Any],
    trajectory: Trajectory,
    step: int,
    settings: DistillSettings,
    device: torch.device,
) -> Tensor:
    """Return how far the student's step number `step` is from the teacher's, in what the model predicts.

    In clean latents, but for a model of the noise where there is more noise than picture: there in units of the noise,
    or the noisiest step would outweigh all others (Salimans and Ho's truncated weighting is for the same).
    """
    scheduler, conditioning = diffusers_ddim(scheduler_config(config), settings.student_steps), trajectory.conditioning
    timestep, latents = scheduler.timesteps[step], trajectory.latents[step * settings.stride].to(device)
    channels, audio = (t.to(device, torch.float32) for t in (conditioning.channels, conditioning.audio))
    sample = torch.cat((latents, channels), dim=1)
    predicted = unet(sample, timestep.to(device), audio, conditioning.num_frames).float()
    found = clean_prediction(scheduler, predicted, timestep, latents)
    share, unit = float(scheduler.alphas_cumprod[int(timestep)]), 1.0
    if scheduler.config.prediction_type == "epsilon":
        unit = min(1.0, (share / (1 - share)) ** 0.5)
    target = student_target(trajectory, step, settings, scheduler).to(device)
    return F.smooth_l1_loss(unit * found, unit * target, beta=_BETA)


def distill(
    model: str | Path,
    paths: ModelPaths,
    trajectories: Sequence[Trajectory],
    folder: Path,
    settings: DistillSettings,
    loop: LoopSettings,
    device: torch.device,
    report: Report | None = None,
) -> UNet:
    """Train a copy of the teacher's U-Net on its trajectories, or go on; return the averaged student.

    folder: of the run: checkpoint and log. Raises ModelError for weights that are not the model's.
    """
    config, _ = read_config(model)
    unet, tensors = read_unet(config, paths)
    fill(unet, tensors, paths.unet, device, torch.float32)
    run = Run(folder, unet.requires_grad_(True), loop, device)

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        trajectory = trajectories[int(torch.randint(len(trajectories), (), generator=generator))]
        at = int(torch.randint(settings.student_steps, (), generator=generator))
        student: Any = run.module
        return {"loss": student_loss(student, config.scheduler, trajectory, at, settings, device)}

    run.train(loss, report)
    average: Any = run.average
    return average


def write_student(model: str | Path, paths: ModelPaths, unet: UNet, settings: DistillSettings, folder: Path) -> None:
    """Write the student as a model folder for `sync --model FOLDER`: its U-Net, and the teacher's other networks.

    Raises SettingsError where the folder exists.
    """
    if folder.exists():
        raise SettingsError("it already exists", file=folder, fix="choose another folder with -o")
    config, _, _ = read_config_values(model)
    config |= {
        "name": f"{config['name']}-{settings.student_steps}-steps",
        "num_inference_steps": settings.student_steps,
        "guidance_scale": 1.0,
        "scheduler": scheduler_config(config["scheduler"]),
        "files": {
            "unet": "unet.safetensors",
            "audio_encoder": f"audio_encoder{paths.audio_encoder.suffix}",
            "vae": "vae",
        },
        "hub": None,
    }
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "vae").mkdir(parents=True)
    shutil.copyfile(paths.audio_encoder, temporary / config["files"]["audio_encoder"])
    shutil.copyfile(paths.vae_config, temporary / "vae" / "config.json")
    shutil.copyfile(paths.vae_weights, temporary / "vae" / "diffusion_pytorch_model.safetensors")
    weights = {name: t.detach().to("cpu", torch.float16).contiguous() for name, t in unet.state_dict().items()}
    save_file(weights, temporary / "unet.safetensors")
    (temporary / "unet.safetensors").chmod(0o644)
    (temporary / "lipstream.json").write_text(json.dumps(config) + "\n")
    temporary.rename(folder)
