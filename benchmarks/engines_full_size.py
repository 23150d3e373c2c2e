"""A model of the published size in each engine: one window exported, opened and computed, with its time and memory.

The weights are random (they say nothing of quality), the layout is the published one. Each engine runs in a process of
its own, so that peak memory is its own; how far its results are from the first engine's is said at the end. Writes a
row a call to results.csv.

    python -m benchmarks.engines_full_size WORK make              # random weights and the export, once
    python -m benchmarks.engines_full_size WORK torch onnxruntime openvino
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.gpu.full_size import make_folder
from benchmarks.rows import add_row, row
from torch import Tensor

from lipstream.diffusion.conditioning import Conditioning, decode, encode
from lipstream.diffusion.sampling import Denoiser
from lipstream.pipeline.build import load_networks, make_denoiser
from lipstream.runtime.device import torch_device
from lipstream.settings import RuntimeSettings

RESOLUTION, FRAMES = 256, 16
TIMESTEP = 951.0
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK", help="folder for weights, graphs and results: 13 GB")
    parser.add_argument("parts", nargs="+", choices=["make", "torch", "onnxruntime", "openvino"])
    parser.add_argument("--narrow", action="store_true", help="a narrow model instead, to try the script")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        measure(args.work, args.parts[0], args.narrow)
        return
    for part in args.parts:
        narrow = ["--narrow"] if args.narrow else []
        subprocess.run([sys.executable, "-m", __spec__.name, str(args.work), part, "--alone", *narrow], check=True)
    compare(args.work, [part for part in args.parts if part != "make"])


def measure(work: Path, part: str, narrow: bool) -> None:
    """Export; or open the networks in an engine and compute each twice for one window, both times measured."""
    begun_s = time.perf_counter()
    model = make_folder(work, RESOLUTION, narrow=narrow, device="cpu")
    if part == "make":
        command = ["export", "onnx", str(model), "-o", str(work / "onnx")]
        subprocess.run([sys.executable, "-m", "lipstream", *command], check=True)
        note("exported", time.perf_counter() - begun_s, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
        return
    runtime = RuntimeSettings(device="cpu", engine=part)  # type: ignore[arg-type]
    model = model if part == "torch" else work / "onnx"
    begun_s = time.perf_counter()
    networks = load_networks(model, runtime, torch_device(runtime))
    note(f"{part} loading", time.perf_counter() - begun_s, peak_kb())
    denoiser = make_denoiser(networks, runtime, batch=1)
    results: dict[str, np.ndarray] = {}
    for turn in ("first", "second"):
        for name, call in calls(networks, denoiser).items():
            begun_s = time.perf_counter()
            with torch.inference_mode():
                results[name] = call().float().numpy()
            note(f"{part} {name} {turn}", time.perf_counter() - begun_s, peak_kb())
    np.savez(work / f"{part}.npz", **results)


def calls(networks: Any, denoiser: Denoiser) -> dict[str, Callable[[], Tensor]]:
    """Return each network's call on inputs drawn with a seed, by its name."""
    config = networks.config
    resolution, frames = config.resolution, FRAMES
    size, unet, encoder = networks.latent_size(resolution), config.unet, config.audio_encoder
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    latents, pixels = draw(frames, unet.out_channels, size, size), draw(1, 3, resolution, resolution).clamp(-1, 1)
    channels = draw(frames, unet.in_channels - unet.out_channels, size, size)
    audio = draw(frames, encoder.tokens_per_frame, unet.cross_attention_dim)
    mel, timestep = draw(1, encoder.n_mels, 2 * encoder.n_audio_ctx), torch.tensor(TIMESTEP)
    conditioning = Conditioning(channels, audio, frames)

    def guided_step() -> Tensor:
        return denoiser(latents, timestep, denoiser.prepare(conditioning), True)[0]

    return {
        "U-Net guided step": guided_step,
        "VAE encode": lambda: encode(networks.vae, pixels),
        "VAE decode": lambda: decode(networks.vae, latents[:1]),
        "audio encoder": lambda: networks.audio_encoder(mel),
    }


def peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def note(summary: str, wall_s: float, peak: int) -> None:
    """Print one measured call and append its row."""
    print(f"{wall_s:8.2f} s {peak / 1024:8.0f} MB  {summary}", flush=True)
    model = f"random weights {RESOLUTION} px"
    add_row(row("engines at full size", model, summary, FRAMES, wall_s, peak / 1024, CPU))


def compare(work: Path, engines: list[str]) -> None:
    """Print how far each engine's results are from the first one's: relative L2."""
    results = [(engine, np.load(work / f"{engine}.npz")) for engine in engines]
    for engine, values in results[1:]:
        for name, truth in results[0][1].items():
            error = np.linalg.norm(values[name] - truth) / np.linalg.norm(truth)
            print(f"{engine} {name}: relative L2 {error:.1e} from {engines[0]}", flush=True)


if __name__ == "__main__":
    main()
