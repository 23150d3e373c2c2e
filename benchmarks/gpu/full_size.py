"""The published model's full size with random weights: frames a second end to end and for the U-Net alone.

Makes weights in the published layout (latentsync_unet.pt, whisper/tiny.pt, vae/), which the models of both resolutions
share, and syncs a 1080p clip with each, then times the U-Net's steps alone. Random weights say nothing of quality. The
share of the chip is what the U-Net's matrix work needs, counted operation by operation, beside a timed matrix product
of the same precision. Two rows a resolution go to results.csv. Needs 3 GB of disk; from the repository's root:

    python -m benchmarks.gpu.full_size FOLDER
    python -m benchmarks.gpu.full_size FOLDER --batch auto --compile
    python -m benchmarks.gpu.full_size FOLDER --narrow --device cpu --seconds 1 --steps 2   # only that it runs
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.memory import HEIGHT, WIDTH, make_inputs
from benchmarks.rows import DTYPES, add_row, row, timed_s
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode

from lipstream import LipSync, SyncSettings
from lipstream.diffusion.conditioning import Conditioning
from lipstream.diffusion.sampling import Denoiser, UNetDenoiser, initial_noise, sample
from lipstream.models.catalogue import CONFIG_NAME, ModelConfig
from lipstream.models.load import Model, read_config
from lipstream.models.unet import UNet
from lipstream.models.whisper import AudioEncoder
from lipstream.presets import PRESETS, Sampling
from lipstream.settings import FRAME_RATE_HZ

PUBLISHED_VAE_WIDTHS = (128, 256, 512, 512)
# The deepest level is a single pixel: group norm of fewer than four channels there would magnify rounding.
NARROW_UNET_WIDTHS, NARROW_VAE_WIDTHS = (32, 32, 64, 128), (32, 32, 32, 32)
NAMES = {256: "latentsync-1.5", 512: "latentsync-1.6"}
AUDIO_TOKENS = 50
TERA = 1e12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="models are made in it where they do not exist yet")
    parser.add_argument("--resolution", type=int, nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seconds", type=int, default=20, help="of the clip")
    parser.add_argument("--preset", choices=PRESETS, default="exact")
    parser.add_argument("--steps", type=int, help="[the model's 20, or the preset's share of them]")
    parser.add_argument("--guidance-scale", type=float, default=1.5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=DTYPES, help="[fp16, on a CPU fp32]")
    parser.add_argument("--detector", default="mediapipe")
    parser.add_argument("--batch", default="1", metavar="auto|WINDOWS")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=5, help="of the U-Net alone")
    parser.add_argument("--no-row", action="store_true", help="leave results.csv alone")
    parser.add_argument(
        "--narrow", action="store_true", help="narrow networks, a quarter of the size, to see that all runs"
    )
    args = parser.parse_args()
    precision = args.precision or ("fp32" if args.device == "cpu" else "fp16")
    settings = SyncSettings(args.preset, num_inference_steps=args.steps, guidance_scale=args.guidance_scale)
    with tempfile.TemporaryDirectory() as clips:
        clip = make_inputs(Path(clips), args.seconds)
        measure_each(args, precision, clip, settings)


def measure_each(args: argparse.Namespace, precision: str, clip: tuple[Path, Path], settings: SyncSettings) -> None:
    """Make and measure the model of each resolution."""
    for resolution in args.resolution:
        model = make_folder(args.folder, resolution, narrow=args.narrow, device=args.device)
        sync = LipSync.load(
            model,
            device=args.device,
            precision=precision,
            detector=args.detector,
            batch=args.batch if args.batch == "auto" else int(args.batch),
            compile=args.compile,
        )
        measure(sync, clip, settings, args)


def measure(sync: LipSync, clip: tuple[Path, Path], settings: SyncSettings, args: argparse.Namespace) -> None:
    """Time the whole line, then the U-Net alone; print and add a row each."""
    video, speech = clip
    line, device = sync._components, sync._components.device
    resolution, num_frames = line.model.config.resolution, line.model.config.num_frames
    out = video.with_name("out.mp4")
    with tempfile.TemporaryDirectory() as folder:
        warm_up = make_inputs(Path(folder), math.ceil(line.batch * num_frames / FRAME_RATE_HZ))  # one whole batch
        sync(*warm_up, out, settings, overwrite=True)  # all its steps: each kind is compiled for itself
    reset_peak(device)
    result = sync(video, speech, out, settings, overwrite=True)
    used = result.settings
    words = f"{used['preset']}: {used['precision']}, {used['num_inference_steps']} steps of {used['scheduler']}"
    words += f", guidance {used['guidance_scale']} in {used['guidance_interval']}, step cache {used['step_cache']}"
    words += f", batch {used['batch']}{', compile' if used['compile'] else ''}, {used['detector']}"
    name = f"full size {resolution} px{', narrow' if args.narrow else ''}"
    clip_name = f"{WIDTH}x{HEIGHT}, {args.seconds} s"
    whole = row(f"{name}, end to end", "random weights", f"{words}, {clip_name}", result.frames, result.wall_s,
                peak_mb(device), device)  # fmt: skip
    if not args.no_row:
        add_row(whole)
    print(f"{name}: {whole['frames_per_s']} frames/s end to end, peak {whole['peak_mb']} MB; {words}")
    for stage in result.stages:
        print(f"  {stage.name:10} {stage.seconds:8.2f} s  {stage.frames} frames")

    reset_peak(device)
    seconds, flop = unet_alone(
        line.model, next(line.networks.unet.attempts(0, 0)), line.batch, settings, device, args.rounds
    )
    median_s = statistics.median(seconds)
    rate, chip = flop / median_s / TERA, matmul_rate(line.model.unet.conv_in.weight.dtype, device) / TERA
    description = f"{words}; {min(seconds):.4g} to {max(seconds):.4g} s; {flop / TERA:.4g} TFLOP, {rate:.4g} TFLOP/s"
    description += f" = {rate / chip:.1%} of the {chip:.4g} of a matrix product"
    frames = line.batch * num_frames
    alone = row(f"{name}, U-Net alone", "random weights", description, frames, median_s, peak_mb(device), device)
    if not args.no_row:
        add_row(alone)
    print(f"{name}: {alone['frames_per_s']} frames/s for the U-Net alone, peak {alone['peak_mb']} MB; {description}")


@torch.inference_mode()
def unet_alone(
    model: Model,
    denoiser: Denoiser,
    windows: int,
    settings: SyncSettings,
    device: torch.device,
    rounds: int,
) -> tuple[list[float], int]:
    """Seconds of each round of sampling `windows` windows, and what a round takes, FLOP."""
    config = model.config
    n, size = windows * config.num_frames, model.latent_size(config.resolution)
    generator = torch.Generator().manual_seed(0)
    channels = torch.randn(n, config.unet.in_channels - config.unet.out_channels, size, size, generator=generator)
    audio = torch.randn(n, AUDIO_TOKENS, config.unet.cross_attention_dim, generator=generator)
    noise = initial_noise(config.unet.out_channels, size, size, seed=0).to(device)
    seen = Conditioning(channels.to(device), audio.to(device), config.num_frames)
    sampling = settings.sampling(config.num_inference_steps, config.guidance_scale)

    def sample_once() -> None:
        sample(denoiser, config.scheduler, noise, seen, sampling)

    sample_once()
    seconds = [timed_s(sample_once, device) for _ in range(rounds)]
    return seconds, count_flop(model, seen, sampling)


def count_flop(model: Model, seen: Conditioning, sampling: Sampling) -> int:
    """What sampling takes, a multiplication and an addition counted as two; computes nothing."""
    config = model.config
    with torch.device("meta"):
        twin: Any = UNet(config.unet).eval()
        given = Conditioning(torch.empty(seen.channels.shape), torch.empty(seen.audio.shape), seen.num_frames)
        noise = torch.empty(1, config.unet.out_channels, *seen.channels.shape[-2:])
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        sample(UNetDenoiser(twin), config.scheduler, noise, given, sampling)
    return int(counter.get_total_flops())


@torch.inference_mode()
def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP a second of a large square matrix product, the median of several: what the chip really gives."""
    size, repeats = (8192, 10) if device.type == "cuda" else (1024, 3)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def multiply() -> None:
        for _ in range(repeats):
            a @ b

    multiply()
    return 2 * size**3 * repeats / statistics.median(timed_s(multiply, device) for _ in range(5))


def reset_peak(device: torch.device) -> None:
    """Begin a new measurement of the peak, where the device counts it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_mb(device: torch.device) -> float:
    """Peak memory, MB: the GPU's since `reset_peak`, elsewhere the process's since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make_folder(root: Path, resolution: int, *, narrow: bool, device: str) -> Path:
    """A model's folder in `root`, made where it does not exist yet, its weights on `device`.

    Both resolutions have the same networks, so the folder holds only what the model is and where its files lie.
    """
    suffix = "-narrow" if narrow else ""
    config, _ = read_config(NAMES[resolution])
    if narrow:
        unet = replace(config.unet, block_out_channels=NARROW_UNET_WIDTHS)
        config = replace(config, unet=unet, resolution=config.resolution // 4)
    vae_widths = NARROW_VAE_WIDTHS if narrow else PUBLISHED_VAE_WIDTHS
    return write_model(root / f"{resolution}{suffix}", root / f"weights{suffix}", config, vae_widths, device)


def write_model(folder: Path, weights: Path, config: ModelConfig, vae_widths: tuple[int, ...], device: str) -> Path:
    """The model's folder; the random weights it refers to lie in `weights`, beside it. What exists is kept."""
    if (folder / CONFIG_NAME).exists():
        return folder
    words = {
        "base": config.name,
        "unet": json.loads(json.dumps(asdict(config.unet))),
        "resolution": config.resolution,
        "files": {name: f"../{weights.name}/{place}" for name, place in asdict(config.files).items()},
    }
    if not (weights / config.files.vae_weights).exists():  # what is written last
        make_weights(weights, config, vae_widths, device)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).write_text(json.dumps(words))
    return folder


@torch.no_grad()
def make_weights(folder: Path, config: ModelConfig, vae_widths: tuple[int, ...], device: str) -> None:
    """Random weights: small enough everywhere that 1246 layers on end neither vanish nor overflow."""
    torch.manual_seed(0)
    (folder / config.files.audio_encoder).parent.mkdir(parents=True, exist_ok=True)
    with made_in_half(device):
        torch.save({"global_step": 0, "state_dict": half(UNet(config.unet))}, folder / config.files.unet)
        encoder = {f"encoder.{key}": value for key, value in half(AudioEncoder(config.audio_encoder)).items()}
        dims = {**asdict(config.audio_encoder), "n_vocab": 51865}
        torch.save({"dims": dims, "model_state_dict": encoder}, folder / config.files.audio_encoder)
        make_vae(vae_widths).save_pretrained(folder / config.files.vae)


@contextmanager
def made_in_half(device: str) -> Iterator[None]:
    """Networks made inside get torch's own random weights in half precision, on `device`.

    Halved from float32 on the CPU, they took 31 s and 7.5 GB of memory at full size instead of 19 s and 2.8 GB.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.half)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def make_vae(widths: tuple[int, ...]) -> Any:
    """Stable Diffusion's autoencoder at these widths, with random weights."""
    return AutoencoderKL(
        block_out_channels=widths,
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        scaling_factor=0.18215,
    )


def half(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A network's tensors on the CPU, in half precision those that are not so yet."""
    return {name: tensor.half().cpu() for name, tensor in module.state_dict().items()}


if __name__ == "__main__":
    main()
