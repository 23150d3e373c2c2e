"""The published LatentSync beside ours, in one run and by turns: frames a second, and how alike the results are.

Imports the published U-Net from a checkout of https://github.com/bytedance/LatentSync (needs einops) and gives it the
random weights of `full_size`, the same that ours gets. Timed are the sampling loop alone, and the model part whole:
crops through the VAE, loop, decoding. The published way is a window after another, both branches of guidance as one
batch; ours is that of lipstream.pipeline. Both see the same crops and audio features and start from the same noise. The
loops are given the same latents of the crops. The VAE is diffusers' for both, taken at the mode of its distribution,
from which the published code draws. On a CPU ours keeps freed memory, as the command line does, and the published code
has it as the C library handles it. Four rows a resolution go to results.csv. In fp32 the latents of both must be the
same. From the repository's root:

    python -m benchmarks.gpu.published FOLDER --published CHECKOUT
    python -m benchmarks.gpu.published FOLDER --published CHECKOUT --batch auto --compile
    python -m benchmarks.gpu.published FOLDER --published CHECKOUT --narrow --device cpu --windows 2 --steps 2
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from benchmarks.denoise_savings import (
    NUM_FRAMES,
    SCHEDULER_CONFIG,
    Denoise,
    Setup,
    by_calls,
    clip,
    contiguous,
    each_call,
    fill_setup,
)
from benchmarks.gpu.full_size import NAMES, make_folder
from benchmarks.rows import DTYPES, add_row, by_turns, row
from diffusers import DDIMScheduler
from torch import Tensor

from lipstream.diffusion import conditioning
from lipstream.diffusion.batching import windows_per_call
from lipstream.diffusion.conditioning import Conditioning
from lipstream.diffusion.mask import face_mask
from lipstream.diffusion.sampling import UNetDenoiser
from lipstream.models.checkpoint import read_tensors
from lipstream.models.load import Model, load_model
from lipstream.runtime.allocator import freed_memory_given_back, keep_freed_memory
from lipstream.runtime.compile import compiled_step

SAME = 1e-3  # of the latents, as a share of their size
UNET_FILE = "latentsync/models/unet.py"
C_LIBRARY_BYTES = 2**25  # what is larger glibc gives back; what is smaller not, once such sizes have been freed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="models are made in it where they do not exist yet")
    parser.add_argument("--published", type=Path, required=True, help="a checkout of the published code")
    parser.add_argument("--resolution", type=int, nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--windows", type=int, default=4, help="of 16 frames, in a round")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=DTYPES, help="[fp16, on a CPU fp32]")
    parser.add_argument("--batch", default="1", metavar="auto|WINDOWS", help="of ours")
    parser.add_argument("--compile", action="store_true", help="ours")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-row", action="store_true", help="leave results.csv alone")
    parser.add_argument("--narrow", action="store_true", help="narrow networks, a quarter of the size")
    args = parser.parse_args()
    args.precision = args.precision or ("fp32" if args.device == "cpu" else "fp16")
    if args.precision == "fp32":
        torch.backends.cudnn.allow_tf32 = False  # its rounding is coarser than SAME
    network = published_network(args.published)  # first: what is made next takes its time
    if args.device == "cpu":
        keep_freed_memory()
    differences = {resolution: compare(network, resolution, args) for resolution in args.resolution}
    if args.precision == "fp32" and not all(difference <= SAME for difference in differences.values()):
        raise SystemExit(f"not the same latents within {SAME}: {differences}")


def published_network(checkout: Path) -> Callable[..., Any]:
    """The published U-Net's class, from its own file."""
    # The U-Net takes one function from there, which says what a checkpoint is loaded from; the file's other imports
    # (decord, imageio, OpenCV, torchvision) are for video and plots, and a GPU machine may have none of them.
    stand_in("latentsync.utils.util", zero_rank_log=lambda logger, message: logger.info(message))
    return import_published(checkout, "latentsync.models.unet").UNet3DConditionModel


def import_published(checkout: Path, name: str) -> Any:
    """A module of the published code. What it imports and is not there can be put in its place before."""
    if not (checkout / UNET_FILE).is_file():
        raise SystemExit(
            f"{checkout}: not a checkout of the published code (it has no {UNET_FILE});"
            f" git clone https://github.com/bytedance/LatentSync {checkout}"
        )
    stand_in("latentsync", __path__=[str(checkout / "latentsync")])
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SystemExit(f"{checkout}: the published code needs {error.name}; pip install {error.name}") from error


def stand_in(name: str, **values: Any) -> ModuleType:
    """Put a module of that name and of these values where Python looks for it first."""
    module = ModuleType(name)
    vars(module).update(values)
    sys.modules[name] = module
    return module


def fill_published(network: Callable[..., Any], model: Model) -> Any:
    """The published U-Net with a model's weights, every one accounted for, in the dtype and on the device of ours."""
    words = {**asdict(model.config.unet), "add_audio_layer": True, "motion_module_type": "Vanilla"}
    with torch.device("meta"):
        unet = network(**words)
    device, dtype = model.source.device, model.dtypes.unet
    tensors = read_tensors(model.source.paths.unet, "state_dict")
    tensors = {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
    # torch's own loading: the published one makes do with what fits.
    torch.nn.Module.load_state_dict(unet, tensors, strict=True, assign=True)
    return unet.eval().requires_grad_(False)


@torch.inference_mode()
def compare(network: Callable[..., Any], resolution: int, args: argparse.Namespace) -> float:
    """Time both at a resolution, print and add rows. Returns the relative difference of the latents."""
    device = torch.device(args.device)
    folder = make_folder(args.folder, resolution, narrow=args.narrow, device=args.device)
    model = load_model(folder, device, DTYPES[args.precision])
    config = model.config
    windows = windows_per_call(args.batch if args.batch == "auto" else int(args.batch), model, device)
    windows = min(windows, args.windows)
    step = compiled_step(model.unet, windows * NUM_FRAMES) if args.compile else None
    ours = UNetDenoiser(model.unet, step)
    theirs = fill_published(network, model)
    mask = face_mask(config.mask_polygon_xy, config.mask_size, config.resolution)
    torch.manual_seed(0)  # the same crops whether the model was made in this run or before
    setup = fill_setup(model.unet, model.vae, mask, args.windows, args.steps, config.guidance_scale)
    plain = replace(setup, vae=contiguous(model.vae))
    words = f"{args.precision}, {args.steps} steps, guidance {config.guidance_scale}"
    words += f"; ours: batch {windows}{', compile' if args.compile else ''}"
    name = f"published code, {config.resolution} px{', narrow' if args.narrow else ''}"
    loops: dict[str, Denoise] = {
        "published": in_c_library_memory(
            lambda: torch.cat([sample_published(theirs, plain, seen) for seen in each_call(setup.seen)])
        ),
        "ours": lambda: by_calls(setup, ours, windows),
    }
    difference = report(f"{name}, sampling", loops, setup, words, args)
    wholes: dict[str, Denoise] = {
        "published": in_c_library_memory(lambda: clip_published(theirs, plain)),
        "ours": lambda: clip(setup, ours, windows, ahead=device.type == "cuda"),
    }
    report(f"{name}, model part", wholes, setup, words, args)
    return difference


def in_c_library_memory(work: Denoise) -> Denoise:
    """The same work without what `keep_freed_memory` does."""

    def run() -> Tensor:
        with freed_memory_given_back(C_LIBRARY_BYTES):
            return work()

    return run


def sample_published(unet: Any, setup: Setup, seen: Conditioning) -> Tensor:
    """Latents (16, C, h, w) of one window, kept in the U-Net's dtype; everything is computed at every step."""
    scheduler: Any = DDIMScheduler.from_config(dict(SCHEDULER_CONFIG))
    scheduler.set_timesteps(setup.steps, device=setup.device)
    latents = as_video(setup.noise.expand(len(seen.channels), -1, -1, -1)).to(unet.dtype)
    given = as_video(seen.channels).to(unet.dtype).repeat(2, 1, 1, 1, 1)
    audio = torch.cat((torch.zeros_like(seen.audio), seen.audio)).to(unet.dtype)
    for timestep in scheduler.timesteps:
        noisy = torch.cat((torch.cat((latents, latents)), given), 1)
        unconditional, conditional = unet(noisy, timestep, encoder_hidden_states=audio).sample.chunk(2)
        predicted = unconditional + setup.guidance_scale * (conditional - unconditional)
        latents = scheduler.step(predicted, timestep, latents).prev_sample
    return latents[0].transpose(0, 1).contiguous()


def as_video(frames: Tensor) -> Tensor:
    """(n, c, h, w) as the published U-Net takes it: (1, c, n, h, w)."""
    return frames.transpose(0, 1)[None].contiguous()


def clip_published(unet: Any, setup: Setup) -> Tensor:
    """Pictures (windows * 16, 3, res, res) on the CPU, a window after another and nothing beside it."""
    pictures = []
    for crops, audio in zip(setup.crops.split(NUM_FRAMES), setup.audio.split(NUM_FRAMES), strict=True):
        pixels = conditioning.to_pixels(crops).to(setup.device)
        seen = conditioning.condition(setup.vae, pixels, setup.mask, audio, NUM_FRAMES)
        pictures.append(conditioning.decode(setup.vae, sample_published(unet, setup, seen)).cpu())
    return torch.cat(pictures)


def report(name: str, ways: dict[str, Denoise], setup: Setup, words: str, args: argparse.Namespace) -> float:
    """Time both ways, print and add a row each. Returns the relative difference of their results."""
    results, times, peaks = by_turns(ways, args.rounds, setup.device)
    published, ours = (results[way].double() for way in ("published", "ours"))
    relative = float((ours - published).norm() / published.norm())
    alike = f"relative difference {relative:.1e}, greatest {float((ours - published).abs().max()):.1e}"
    medians_s = {way: statistics.median(seconds) for way, seconds in times.items()}
    for way, seconds in times.items():
        description = f"{way}; {words}; {min(seconds):.4g} to {max(seconds):.4g} s in {args.rounds} rounds; {alike}"
        if way == "ours":
            description += f"; {medians_s['published'] / medians_s['ours']:.3g} times as fast"
        peak = peaks[way]
        peak_mb = None if peak is None else peak - other_mb(setup)
        measured = row(name, "random weights", description, len(setup.crops), medians_s[way], peak_mb, setup.device)
        if not args.no_row:
            add_row(measured)
        print(f"{name}: {measured['frames_per_s']} frames/s, {description}", flush=True)
    return relative


def other_mb(setup: Setup) -> float:
    """What the U-Net whose turn it is not takes meanwhile, MB: both have the same weights."""
    return sum(tensor.nbytes for tensor in setup.unet.state_dict().values()) / 2**20


if __name__ == "__main__":
    main()
