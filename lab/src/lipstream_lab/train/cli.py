"""`lipstream train data|start|vae|audio|unet|finish|bundle`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipstream.cli.console import say
from lipstream.cli.interrupts import Interrupts
from lipstream.diffusion import conditioning
from lipstream.diffusion.mask import face_mask
from lipstream.errors import InputError, SettingsError
from lipstream.face.registry import make_detector
from lipstream.models.load import read_config
from lipstream.models.whisper import AudioEncoder, AudioEncoderConfig
from lipstream_lab.train import (
    audio_encoder,
    bundle,
    curves,
    data,
    distill_cli,
    finish,
    latents,
    lip_reader,
    maker,
    start,
    unet,
    vae,
)
from lipstream_lab.train.critic import Critic
from lipstream_lab.train.loop import CHECKPOINT_NAME, LoopSettings, load_average
from lipstream_lab.train.videos import find_videos

logger = logging.getLogger(__name__)

# The work folder's parts.
_CLIPS, _LATENTS, _VAE, _AUDIO, _UNET, _FINISH = "clips", "latents", "vae", "audio", "unet", "finish"
_SCALE_PICTURES = 128
_VAE_STEPS, _VAE_STEPS_FROM_NOTHING = 1100, 3200
_CRITIC_STEPS_FROM_NOTHING = 2200  # what is not yet a face, regression improves faster
_NOISY_SHARE = 0.7  # with --many-steps

Report = Callable[[str], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the stages `data`, `start`, `vae`, `unet`, `finish` and `bundle`."""
    commands = parser.add_subparsers(required=True, metavar="data|start|vae|audio|unet|finish|bundle")
    clips = commands.add_parser("data", help="make training clips from videos and portraits")
    clips.set_defaults(train_stage="data")
    clips.add_argument("work", type=Path, metavar="WORK", help="folder for all results of training")
    clips.add_argument(
        "--videos", type=Path, metavar="FOLDER", help="videos of one speaking person each, a person's in a subfolder"
    )
    clips.add_argument("--portraits", type=Path, metavar="FOLDER", help="portraits to animate (needs espeak-ng)")
    clips.add_argument(
        "--shifts", type=Path, metavar="FILE", help='JSON {"clip": delay of its sound in ms} [searched for]'
    )
    clips.add_argument("--leave-out", nargs="+", default=[], metavar="PERSON", help="people to hold out altogether")
    clips.add_argument("--dubs", type=int, default=16, metavar="N", help="dubbed clips per person [16]")
    clips.add_argument(
        "--held-out",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="share of each clip, or of a person's clips, to hold out [0.2]",
    )
    clips.add_argument("--resolution", type=int, default=128, metavar="PX", help="side of the crops [128]")
    clips.add_argument("--seed", type=int, default=0, metavar="N", help="[0]")
    begin = commands.add_parser("start", help="begin from a model's weights: in place of `vae`, before `unet`")
    begin.set_defaults(train_stage="start")
    begin.add_argument("work", type=Path, metavar="WORK")
    begin.add_argument("model", metavar="NAME|FOLDER", help="tiny, or a folder that `bundle` wrote")
    sound = commands.add_parser("audio", help="train the audio encoder alone, longer than `unet` does, or resume")
    sound.set_defaults(train_stage="audio", device="cpu")
    sound.add_argument("work", type=Path, metavar="WORK")
    sound.add_argument("--steps", type=int, default=2000, metavar="N", help="total number of steps [2000]")
    sound.add_argument("--seed", type=int, default=0, metavar="N", help="[0]")
    sound.add_argument("--learning-rate", type=float, default=2e-3, metavar="R", help="[0.002]")
    vae_steps = f"{_VAE_STEPS_FROM_NOTHING}, after `start` {_VAE_STEPS}"
    for name, steps, shown, text in (
        ("vae", None, vae_steps, "train the autoencoder, or resume"),
        ("unet", 3000, "3000", "train the audio encoder and the U-Net, or resume"),
        ("finish", 500, "500", "train U-Net and decoder on pictures, with a critic, or resume"),
    ):
        stage = commands.add_parser(name, help=text)
        stage.set_defaults(train_stage=name)
        stage.add_argument("work", type=Path, metavar="WORK")
        stage.add_argument("--steps", type=int, default=steps, metavar="N", help=f"total number of steps [{shown}]")
        stage.add_argument("--device", default="cpu", metavar="cpu|cuda[:N]", help="[cpu]")
        stage.add_argument("--seed", type=int, default=0, metavar="N", help="[0]")
        rate = 1e-3 if name == "unet" else 8e-4
        stage.add_argument("--learning-rate", type=float, default=rate, metavar="R", help=f"[{rate:g}]")
        if name == "vae":
            stage.add_argument("--decoder-only", action="store_true", help="freeze the encoder")
            stage.add_argument(
                "--widths",
                type=_widths,
                metavar="W,W,...",
                help="channels of each level; others than those of `start`'s autoencoder learn its latents",
            )
        if name == "unet":
            stage.add_argument("--many-steps", action="store_true", help="train for sampling in many steps")
    model = commands.add_parser("bundle", help="write a model folder for `sync --model FOLDER`")
    model.set_defaults(train_stage="bundle")
    model.add_argument("work", type=Path, metavar="WORK")
    model.add_argument("folder", type=Path, metavar="FOLDER")
    model.add_argument("--name", default="tuned", metavar="NAME", help="[tuned]")
    model.add_argument("--guidance-scale", type=float, default=1.0, metavar="G", help="[1.0]")
    model.add_argument(
        "--steps", type=int, default=1, metavar="N", help="sampling steps; more than 1 after --many-steps [1]"
    )
    model.add_argument(
        "--mean-with",
        metavar="NAME|FOLDER",
        help="write the mean of the weights and of those of this model, from which training began",
    )
    model.add_argument("--notes", default="", metavar="TEXT", help="saved in lipstream.json")
    distill_cli.add_arguments(commands)


def run(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """Execute the parsed stage.

    Raises InputError for unusable inputs, SettingsError if an earlier stage is missing.
    """
    _STAGES[args.train_stage](args, say)
    return 0


def _data(args: argparse.Namespace, report: Report) -> None:
    videos = find_videos(args.videos, args.held_out, args.leave_out) if args.videos else []
    portraits = data.files_of(args.portraits, data.PICTURE_SUFFIXES) if args.portraits else []
    if not videos and not portraits:
        raise InputError("neither videos nor portraits found", fix="give a folder with --videos or --portraits")
    settings = maker.DataSettings(resolution=args.resolution, seed=args.seed, dubs=args.dubs)
    shifts = data.read_shifts(args.shifts) if args.shifts else {}
    count = maker.make(videos, portraits, args.work / _CLIPS, settings, make_detector("auto", "cpu"), shifts, report)
    report(f"{count} clips in {args.work / _CLIPS}")


def _start(args: argparse.Namespace, report: Report) -> None:
    report(f"{start.copy_model(args.model, args.work)}: what `unet` begins from")


def _vae(args: argparse.Namespace, report: Report) -> None:
    crops = np.stack(list(data.all_crops(_clips_of(args.work))))
    settings = vae.VaeSettings(resolution=crops.shape[1])
    folder, begin = args.work / _VAE, args.work / start.FOLDER
    own, teacher = None, None
    if not begin.is_dir():
        steps = _VAE_STEPS_FROM_NOTHING
        settings = replace(settings, critic_steps=_CRITIC_STEPS_FROM_NOTHING)
    else:
        steps = _VAE_STEPS
        model = start.autoencoder(begin)
        settings = replace(settings, block_out_channels=tuple(model.config.block_out_channels))
        if args.widths in (None, settings.block_out_channels):
            own = model.state_dict()
        else:
            teacher = model.to(args.device).eval().requires_grad_(False)
    if args.widths is not None:
        settings = replace(settings, block_out_channels=args.widths)
    vae.train(
        crops,
        folder,
        settings,
        replace(_loop(args), steps=steps if args.steps is None else args.steps),
        torch.device(args.device),
        _step_reporter(report),
        decoder_only=args.decoder_only,
        begin=own,
        teacher=teacher,
    )
    curves.draw_curves(folder, folder / "curves.png")


def _audio(args: argparse.Namespace, report: Report) -> None:
    settings, folder = unet.UNetSettings(), args.work / _AUDIO
    torch.manual_seed(args.seed)
    encoder = AudioEncoder(AudioEncoderConfig.from_dict(settings.audio_config()))
    if (args.work / start.FOLDER).is_dir():
        encoder.load_state_dict(start.audio_encoder(args.work / start.FOLDER))
    sounds = audio_encoder.load_sounds(_clips_of(args.work))
    audio_encoder.train(encoder, sounds, folder, replace(_loop(args), autocast=False), _step_reporter(report))


def _unet(args: argparse.Namespace, report: Report) -> None:
    device = torch.device(args.device)
    stage = _Stage.open(args.work)
    autoencoder = stage.autoencoder.to(device)
    clips = latents.prepare(_clips_of(args.work), args.work / _LATENTS, autoencoder, stage.mask, device, report)
    settings = unet.UNetSettings(noisy_share=_NOISY_SHARE if args.many_steps else 0.0)
    if stage.has_audio_encoder or stage.has_start:
        settings = replace(settings, audio_encoder_steps=0)
    folder = args.work / _UNET

    def after_save(model: unet.ConditionedUNet, step: int) -> None:
        _write_samples(model, autoencoder, clips, stage.mask, settings, folder / "samples.png", device)
        report(f"saved at step {step}")

    unet.train(
        clips,
        autoencoder,
        stage.mask,
        folder,
        settings,
        replace(_loop(args), optimizer="muon"),
        device,
        _step_reporter(report),
        after_save,
        lip_reader.mesh_judge(autoencoder),
        begin=stage.begin,
    )
    curves.draw_curves(folder, folder / "curves.png")


def _finish(args: argparse.Namespace, report: Report) -> None:
    device = torch.device(args.device)
    stage = _Stage.open(args.work)
    autoencoder = stage.autoencoder.to(device)
    clips = latents.prepare(_clips_of(args.work), args.work / _LATENTS, autoencoder, stage.mask, device, report)
    settings, folder = unet.UNetSettings(), args.work / _FINISH
    model = stage.load_trained(settings)[0]

    def after_save(finished: finish.Finishing, step: int) -> None:
        _write_samples(finished.model, finished.vae, clips, stage.mask, settings, folder / "samples.png", device)
        report(f"saved at step {step}")

    finish.train(
        clips,
        model,
        autoencoder,
        stage.mask,
        folder,
        settings,
        finish.FinishSettings(),
        _loop(args),
        device,
        _step_reporter(report),
        after_save,
        lip_reader.mesh_judge,
        stage.critic,
    )
    curves.draw_curves(folder, folder / "curves.png")


@torch.inference_mode()
def _write_samples(
    model: unet.ConditionedUNet,
    autoencoder: Any,
    clips: list[latents.LatentClip],
    mask: Tensor,
    settings: unet.UNetSettings,
    output: Path,
    device: torch.device,
) -> None:
    """Write a sheet of a few fixed windows: ground truth above, the averaged model's output below."""
    generator = torch.Generator().manual_seed(0)
    sampler = latents.Sampler(clips, mask, footage_share=settings.footage_share, dubbed_share=settings.dubbed_share)
    rows = []
    for _ in range(4):
        batch = sampler.draw(1, settings.num_frames, generator, device)
        noise = torch.randn(batch.latents[:1].shape, generator=generator).to(device).expand_as(batch.latents)
        rows += [batch.crops, conditioning.decode(autoencoder, model.predict(batch, noise))]
    curves.write_sheet(rows, output)


def _bundle(args: argparse.Namespace, report: Report) -> None:
    stage = _Stage.open(args.work)
    settings = unet.UNetSettings()
    model, step = stage.load_trained(settings)
    if (args.work / _FINISH / CHECKPOINT_NAME).exists():
        step = finish.load(args.work / _FINISH, model, stage.autoencoder)
    if args.mean_with is not None:
        bundle.take_mean_with(start.folder_of(args.mean_with), model, stage.autoencoder, settings)
    config, _ = read_config("latentsync-1.5")
    description = bundle.BundleSettings(
        args.name,
        stage.resolution,
        config.mask_size,
        config.mask_polygon_xy,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
        notes=args.notes,
    )
    size = bundle.write(args.folder, model, stage.autoencoder, settings, description)
    report(f"{args.folder}: step {step}, {size / 1e6:.1f} MB")


_STAGES: dict[str, Callable[[argparse.Namespace, Report], None]] = {
    "data": _data,
    "start": _start,
    "vae": _vae,
    "audio": _audio,
    "unet": _unet,
    "finish": _finish,
    "bundle": _bundle,
    "distill": distill_cli.run,
}


@dataclass(frozen=True)
class _Stage:
    """The autoencoder and the mask, which all later stages use. critic: of the autoencoder, where one was trained."""

    work: Path
    resolution: int
    autoencoder: Any
    mask: Tensor
    critic: Critic | None

    @classmethod
    def open(cls, work: Path) -> _Stage:
        """Load the autoencoder: as trained, or of the model to begin from.

        One trained from nothing gets a scaling factor measured on clips.
        """
        paths = data.clip_paths(_clips_of(work))[:_SCALE_PICTURES]
        first = torch.from_numpy(np.stack([data.Clip.load(path).crops[0] for path in paths])).float() / 127.5 - 1
        resolution = first.shape[-1]
        begin, critic = work / start.FOLDER, None
        if begin.is_dir():
            autoencoder = start.autoencoder(begin)
            if (work / _VAE / CHECKPOINT_NAME).exists():
                scale = autoencoder.config.scaling_factor
                autoencoder, critic = vae.load(work / _VAE)
                autoencoder.register_to_config(scaling_factor=scale)
        else:
            autoencoder, critic = vae.load(_run_folder(work, _VAE))
            autoencoder.register_to_config(scaling_factor=vae.measured_scale(autoencoder, first))
        config, _ = read_config("latentsync-1.5")  # the published mask
        mask = face_mask(config.mask_polygon_xy, config.mask_size, resolution)
        return cls(work, resolution, autoencoder.eval().requires_grad_(False), mask, critic)

    @property
    def has_start(self) -> bool:
        """Whether there is a model to begin from."""
        return (self.work / start.FOLDER).is_dir()

    @property
    def has_audio_encoder(self) -> bool:
        """Whether the audio encoder was trained by itself."""
        return (self.work / _AUDIO / CHECKPOINT_NAME).exists()

    def begin(self, model: unet.ConditionedUNet) -> None:
        """Load what there is to begin from: a model's weights, an audio encoder trained by itself."""
        if self.has_start:
            start.fill(model, self.work / start.FOLDER)
        if self.has_audio_encoder:
            load_average(self.work / _AUDIO, model.audio_encoder)

    def load_trained(self, settings: unet.UNetSettings) -> tuple[unet.ConditionedUNet, int]:
        """Return the averaged model and its step, or where none was trained the one to begin from, and 0."""
        model = unet.ConditionedUNet(settings, self.autoencoder.config.latent_channels)
        if self.has_start and not (self.work / _UNET / CHECKPOINT_NAME).exists():
            self.begin(model)
            return model, 0
        return model, load_average(_run_folder(self.work, _UNET), model)


def _clips_of(work: Path) -> Path:
    folder = work / _CLIPS
    if not folder.is_dir() or not data.clip_paths(folder):
        raise SettingsError("contains no clips", file=folder, fix="run `lipstream train data` first")
    return folder


def _widths(text: str) -> tuple[int, ...]:
    """Read channels, multiples of 8. Raises ArgumentTypeError."""
    widths = tuple(int(part) if part.isdecimal() else 0 for part in text.split(","))
    if any(width < 8 or width % 8 for width in widths):
        raise argparse.ArgumentTypeError(f"{text!r}: not multiples of 8 like 16,32,64,96")
    return widths


def _run_folder(work: Path, name: str) -> Path:
    folder = work / name
    if not (folder / CHECKPOINT_NAME).exists():
        raise SettingsError("contains no checkpoint", file=folder, fix=f"run `lipstream train {name}` first")
    return folder


def _loop(args: argparse.Namespace) -> LoopSettings:
    return LoopSettings(steps=args.steps, learning_rate=args.learning_rate, seed=args.seed)


def _step_reporter(report: Report) -> Callable[[int, int, dict[str, float]], None]:
    def report_step(step: int, steps: int, values: dict[str, float]) -> None:
        report(f"step {step} of {steps}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))

    return report_step
