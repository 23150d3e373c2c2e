"""Time the VAE and measure its peak memory: images per call, channels-last or not, and whose group norm.

Random weights of the published widths at 256 and 512 px. All ways of a resolution run by turns; prints a line each.
From the repository's root:

    python -m benchmarks.gpu.vae
    python -m benchmarks.gpu.vae --narrow --device cpu --frames 2 --rounds 1   # only that it runs
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.gpu.full_size import NARROW_VAE_WIDTHS, PUBLISHED_VAE_WIDTHS, make_vae
from benchmarks.rows import DTYPES, timed_s

from lipstream.models.group_norm import replace_group_norms

IMAGES_PER_CALL = (1, 2, 4, 16)
LAYOUTS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--narrow", action="store_true", help="narrow layers at a quarter of the size")
    args = parser.parse_args()
    device, dtype = torch.device(args.device), DTYPES[args.precision]
    torch.manual_seed(0)
    with device:
        vae = make_vae(NARROW_VAE_WIDTHS if args.narrow else PUBLISHED_VAE_WIDTHS)
    vae = vae.to(dtype).eval().requires_grad_(False)
    for resolution in (64, 128) if args.narrow else (256, 512):
        measure(vae, resolution, device, args.frames, args.rounds)


@torch.inference_mode()
def measure(vae: Any, resolution: int, device: torch.device, frames: int, rounds: int) -> None:
    """Time encoding and decoding `frames` images in every way, by turns."""
    pixels = torch.rand(frames, 3, resolution, resolution, device=device).to(vae.dtype) * 2 - 1
    latents = torch.randn(frames, vae.config.latent_channels, resolution // 8, resolution // 8, device=device)
    latents = latents.to(vae.dtype)
    ways: dict[str, Callable[[], object]] = {}
    for (layout, memory_format), norms in itertools.product(LAYOUTS.items(), ("torch", "lipstream")):
        network = copy.deepcopy(vae).to(memory_format=memory_format)
        if norms == "lipstream":
            replace_group_norms(network)
        for n in IMAGES_PER_CALL:
            name = f"{layout}, norms of {norms}, {n:2} images a call"
            ways[f"encode, {name}"] = lambda net=network, n=n: [net.encode(part) for part in pixels.split(n)]
            ways[f"decode, {name}"] = lambda net=network, n=n: [net.decode(part) for part in latents.split(n)]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks_mb: dict[str, float] = {}
    for turn in range(rounds + 1):  # the first warms up
        for name, work in ways.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                held = torch.cuda.memory_allocated(device)
            taken_s = timed_s(work, device)
            if device.type == "cuda":
                peaks_mb[name] = (torch.cuda.max_memory_allocated(device) - held) / 2**20
            if turn:
                seconds[name].append(taken_s)
    for name, taken in seconds.items():
        peak = f", peak {peaks_mb[name]:.0f} MB" if peaks_mb else ""
        print(f"{resolution} px: {name}: {statistics.median(taken) / frames * 1e3:.2f} ms an image{peak}", flush=True)


if __name__ == "__main__":
    main()
