"""The full-size networks by each engine on one GPU: the U-Net's sampling and the VAE, their time and their distance.

Random weights in the published layout, as benchmarks.gpu.full_size makes them. A first call, which exports and builds
(minutes, kept in the cache), is timed by itself; then all engines run by turns. One row an engine and resolution goes
to results.csv. The distance is the relative L2 from the first engine's pixels. From the repository's root:

    python -m benchmarks.gpu.engines FOLDER
    python -m benchmarks.gpu.engines FOLDER --narrow --device cpu --engines torch onnxruntime --steps 2 --no-row
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu.full_size import AUDIO_TOKENS, NAMES, make_folder, peak_mb, reset_peak
from benchmarks.rows import DTYPES, add_row, row, timed_s
from torch import Tensor

from lipstream import LipSync, SyncSettings
from lipstream.diffusion.conditioning import Conditioning, decode
from lipstream.diffusion.sampling import initial_noise, sample
from lipstream.pipeline.records import Components


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="models are made in it where they do not exist yet")
    parser.add_argument("--engines", nargs="+", default=["torch", "torch-compiled", "onnxruntime", "tensorrt"])
    parser.add_argument("--resolution", type=int, nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--windows", type=int, default=1, help="a call")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=DTYPES, help="[fp16, on a CPU fp32]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-row", action="store_true", help="leave results.csv alone")
    parser.add_argument("--narrow", action="store_true", help="narrow networks, a quarter of the size")
    args = parser.parse_args()
    for resolution in args.resolution:
        measure(make_folder(args.folder, resolution, narrow=args.narrow, device=args.device), resolution, args)


def measure(folder: Path, resolution: int, args: argparse.Namespace) -> None:
    """Time every engine by turns; print and add a row each."""
    device = torch.device(args.device)
    syncs = {name: load(folder, name, args) for name in args.engines}
    results: dict[str, Tensor] = {}
    for name, sync in syncs.items():
        begun_s = time.perf_counter()
        results[name] = generate(sync._components, args)  # type: ignore[arg-type]
        print(f"{resolution} px, {name}: first call {time.perf_counter() - begun_s:.1f} s", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in syncs}
    peaks_mb: dict[str, float] = {}
    for _ in range(args.rounds):
        for name, sync in syncs.items():
            reset_peak(device)
            seconds[name].append(timed_s(lambda sync=sync: generate(sync._components, args), device))
            peaks_mb[name] = peak_mb(device)
    first = results[args.engines[0]]
    for name, taken in seconds.items():
        distance = float((results[name] - first).norm() / first.norm())
        summary = f"{name}, {args.steps} steps, guided, batch {args.windows}, and decoding; {min(taken):.4g} to"
        summary += f" {max(taken):.4g} s; relative L2 {distance:.2g} from {args.engines[0]}"
        title = f"engines, full size {resolution} px{', narrow' if args.narrow else ''}"
        frames = len(first)
        values = row(title, "random weights", summary, frames, statistics.median(taken), peaks_mb[name], device)
        print(f"{title}: {values['frames_per_s']} frames/s, peak {values['peak_mb']} MB; {summary}", flush=True)
        if not args.no_row:
            add_row(values)


def load(folder: Path, name: str, args: argparse.Namespace) -> LipSync:
    """Load the model in an engine; "torch-compiled" is torch with --compile."""
    engine, _, compiled = name.partition("-")
    options: dict[str, Any] = {"engine": engine, "compile": bool(compiled), "batch": args.windows}
    precision = args.precision or ("fp32" if args.device == "cpu" else "fp16")
    return LipSync.load(folder, device=args.device, precision=precision, detector="mediapipe", **options)


@torch.inference_mode()
def generate(components: Components, args: argparse.Namespace) -> Tensor:
    """Return the pixels of one call's windows, sampled from the same noise by every engine."""
    model, config, device = components.model, components.model.config, components.device
    n, size = args.windows * config.num_frames, model.latent_size(config.resolution)
    generator = torch.Generator().manual_seed(0)
    channels = torch.randn(n, config.unet.in_channels - config.unet.out_channels, size, size, generator=generator)
    audio = torch.randn(n, AUDIO_TOKENS, config.unet.cross_attention_dim, generator=generator)
    seen = Conditioning(channels.to(device), audio.to(device), config.num_frames)
    noise = initial_noise(config.unet.out_channels, size, size, seed=0).to(device)
    sampling = SyncSettings(num_inference_steps=args.steps, guidance_scale=1.5).sampling(args.steps, 1.5)
    unet, vae = (next(network.attempts(0, 0)) for network in (components.networks.unet, components.networks.vae))
    return decode(vae, sample(unet, config.scheduler, noise, seen, sampling))


if __name__ == "__main__":
    main()
