"""The options that several commands share, and what their words mean as settings."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipstream.settings import SyncSettings

_RUNTIME = (
    "device",
    "precision",
    "vae_precision",
    "audio_precision",
    "quantize",
    "detector",
    "threads",
    "batch",
    "compile",
    "pruned",
)


def add_sync(parser: argparse.ArgumentParser) -> None:
    """Add what a sync can be told beside its files and what it runs on."""
    parser.add_argument("--model", default="tiny", metavar="NAME|FOLDER", help="see `lipstream models` [tiny]")
    parser.add_argument(
        "--preset", default="exact", metavar="exact|balanced|fast", help="how much is saved in denoising [exact]"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps [the model's own]")
    parser.add_argument("--guidance-scale", type=float, metavar="G", help="weight of the speech [the model's own]")
    parser.add_argument("--scheduler", metavar="ddim|dpm++2m|unipc", help="solves the steps [the preset's]")
    parser.add_argument(
        "--step-cache",
        type=int,
        metavar="N",
        help="compute the U-Net's deep part every Nth step and keep it for those between; 1: off [the preset's]",
    )
    parser.add_argument(
        "--guidance-interval",
        type=_interval,
        metavar="A,B",
        help="guidance from this to that part of the steps only; 0,1: in all [the preset's]",
    )
    parser.add_argument(
        "--resolution", type=int, metavar="R", help="of the crop, a multiple of 64 px [the model's own]"
    )
    parser.add_argument("--seed", type=int, default=1247, metavar="N", help="of the noise [1247]")
    parser.add_argument(
        "--loop",
        default="pingpong",
        metavar="pingpong|hold|trim",
        help="speech longer than the video: play it back and forth, hold the last frame, or stop [pingpong]",
    )
    parser.add_argument(
        "--no-face",
        default="pass",
        metavar="pass|error",
        help="a frame without a face: pass it through or stop [pass]",
    )
    parser.add_argument(
        "--search-every",
        type=int,
        metavar="N",
        help="look for the face in the whole of every Nth frame only: landmarks move by a pixel or two [the preset's]",
    )
    parser.add_argument(
        "--texture",
        metavar="painted|kept",
        help="kept: the frame's own fine texture where the new face agrees with it [the model's own]",
    )
    parser.add_argument("--crf", type=int, default=18, metavar="N", help="x264's quality, 0 lossless to 51 [18]")
    parser.add_argument(
        "--x264-preset",
        default="medium",
        metavar="ultrafast|...|veryslow",
        help="x264's effort: faster, say, encodes sooner and a little less faithfully [medium]",
    )


def add_runtime(parser: argparse.ArgumentParser, detector: str = "auto") -> None:
    """Add what a sync runs on. detector: the one taken where none is named."""
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda[:N]|mps", help="[auto]")
    parser.add_argument(
        "--precision", default="auto", metavar="auto|fp32|fp16|bf16|fp8", help="auto: fp16 on CUDA, else fp32 [auto]"
    )
    for name, network in (("vae", "VAE"), ("audio", "audio encoder")):
        parser.add_argument(
            f"--{name}-precision", metavar="auto|fp32|fp16|bf16", help=f"of the {network} [as --precision]"
        )
    parser.add_argument(
        "--quantize",
        default="none",
        metavar="none|int8|int8-dynamic",
        help="8-bit weights, or weights and the linear layers' inputs (see docs/precision.md) [none]",
    )
    parser.add_argument(
        "--detector",
        default=detector,
        metavar="auto|buffalo_s|buffalo_l|mediapipe",
        help=f"finds the face [{detector}]",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="for face work [one a core]")
    parser.add_argument(
        "--batch",
        type=_windows,
        default=1,
        metavar="auto|WINDOWS",
        help="windows in one U-Net call; auto: as many as free GPU memory allows [1]",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile the U-Net: minutes first, faster then")
    parser.add_argument("--pruned", metavar="LIST", help="leave out the U-Net's layers that `lipstream prune` listed")


def _windows(word: str) -> int | str:
    if word != "auto" and not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is neither auto nor a number of windows")
    return word if word == "auto" else int(word)


def _interval(word: str) -> tuple[float, float]:
    try:
        begin, end = map(float, word.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not two numbers from 0 to 1, such as 0,0.5") from None
    return begin, end


def sync_settings(args: argparse.Namespace) -> SyncSettings:
    """The settings that the words of `add_sync` mean. Raises SettingsError."""
    from lipstream.settings import SyncSettings  # imports torch

    return SyncSettings(
        preset=args.preset,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
        scheduler=args.scheduler,
        step_cache=args.step_cache,
        guidance_interval=args.guidance_interval,
        resolution=args.resolution,
        seed=args.seed,
        loop=args.loop,
        no_face=args.no_face,
        crf=args.crf,
        x264_preset=args.x264_preset,
        search_every=args.search_every,
        texture=args.texture,
    )


def runtime(args: argparse.Namespace) -> dict[str, Any]:
    """The words of `add_runtime` as the fields of RuntimeSettings."""
    return {name: getattr(args, name) for name in _RUNTIME}
