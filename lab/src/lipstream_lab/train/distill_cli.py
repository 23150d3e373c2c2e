"""`lipstream train distill`: a student of few steps from a model of many."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from lipstream.diffusion.sampling import UNetDenoiser, initial_noise
from lipstream.errors import NoFaceError, SettingsError
from lipstream.face.registry import make_detector
from lipstream.models.load import load_model, locate, read_config
from lipstream.models.names import check_model
from lipstream.profiling.clips import prepare
from lipstream.settings import RuntimeSettings, SyncSettings
from lipstream_lab.bench.cases import Parts, Setting, make_sampling
from lipstream_lab.train.distill import (
    DistillSettings,
    Trajectory,
    distill,
    load_trajectories,
    save_trajectories,
    teach,
    write_student,
)
from lipstream_lab.train.loop import LoopSettings

_TRAJECTORIES = "trajectories.pt"


def add_arguments(commands: Any) -> None:
    """Add the stage `distill` to the subparsers of `lipstream train`."""
    parser = commands.add_parser("distill", help="take a many-step model to few steps, or resume")
    parser.set_defaults(train_stage="distill")
    parser.add_argument("model", metavar="NAME|FOLDER", help="the teacher")
    parser.add_argument("videos", nargs="+", type=Path, metavar="VIDEO", help="with the sound of their speech")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="the student's, new")
    parser.add_argument(
        "--work",
        type=Path,
        required=True,
        metavar="WORK",
        help="folder of the runs, to resume, for students of any number of steps",
    )
    parser.add_argument("--student-steps", type=int, default=4, metavar="N", help="[4]")
    parser.add_argument("--teacher-steps", type=int, metavar="N", help="a multiple of the student's [the model's own]")
    parser.add_argument("--guidance-scale", type=float, metavar="G", help="that the student takes over [the model's]")
    parser.add_argument("--noises", type=int, default=2, metavar="N", help="of each window [2]")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of each video [10]")
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="total number of training steps [2000]")
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda[:N]", help="[cpu]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="[0]")
    parser.add_argument("--learning-rate", type=float, default=3e-5, metavar="R", help="[0.00003]")


def run(args: argparse.Namespace, report: Callable[[str], None]) -> None:
    """Follow the teacher once, train the student and write its folder. Raises LipstreamError."""
    check_model(args.model)
    if args.output.exists():
        raise SettingsError("it already exists", file=args.output, fix="choose another folder with -o")
    config, folder = read_config(args.model)
    settings = DistillSettings(
        args.student_steps,
        args.teacher_steps or config.num_inference_steps,
        config.guidance_scale if args.guidance_scale is None else args.guidance_scale,
    )
    paths = locate(config, folder)
    args.work.mkdir(parents=True, exist_ok=True)
    trajectories = _trajectories(args, settings, report)
    loop = LoopSettings(steps=args.steps, learning_rate=args.learning_rate, seed=args.seed)

    def report_step(step: int, steps: int, values: dict[str, float]) -> None:
        report(f"step {step} of {steps}: loss {values['loss']:.5f}")

    folder = args.work / f"student-{settings.student_steps}"
    device = torch.device(args.device)
    student = distill(args.model, paths, trajectories, folder, settings, loop, device, report_step)
    write_student(args.model, paths, student, settings, args.output)
    report(f"{args.output}: {settings.student_steps} steps of {settings.teacher_steps}")


def _trajectories(
    args: argparse.Namespace, settings: DistillSettings, report: Callable[[str], None]
) -> list[Trajectory]:
    """Return the teacher's way through all windows, made once and kept in the work folder.

    Raises NoFaceError without a whole window, SettingsError for a work folder of other settings.
    """
    teacher = settings.teacher_steps, settings.guidance_scale
    key = repr((str(args.model), [str(video) for video in args.videos], teacher, args.noises, args.seconds, args.seed))
    path = args.work / _TRAJECTORIES
    if path.exists():
        return load_trajectories(path, key)
    device = torch.device(args.device)
    model = load_model(args.model, device, torch.float32)
    config, denoiser, trajectories = model.config, UNetDenoiser(model.unet), list[Trajectory]()
    runtime = RuntimeSettings(device=args.device, detector="mediapipe")
    setting = Setting("teacher", "", args.model, SyncSettings(), runtime)
    with closing(make_detector("mediapipe", "cpu")) as detector:
        for video in args.videos:
            with tempfile.TemporaryDirectory() as scratch:
                inputs = prepare(Path(scratch), video, video, duration_s=args.seconds, synthetic=None)
                batches = make_sampling(setting, Parts(model, detector), inputs).batches
            for conditions in batches:
                if conditions.num_frames != config.num_frames:
                    continue  # the clip's tail
                for _ in range(args.noises):
                    size = conditions.channels.shape[-1]
                    noise = initial_noise(config.unet.out_channels, size, size, args.seed + len(trajectories)).to(
                        device
                    )
                    trajectories.append(teach(denoiser, config.scheduler, noise, conditions, settings))
            report(f"{video}: {len(trajectories)} windows in all")
    if not trajectories:
        raise NoFaceError(f"no window of {config.num_frames} frames with a face", fix="give longer videos")
    save_trajectories(path, key, trajectories)
    return trajectories
