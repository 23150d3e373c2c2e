"""Each exact saving in denoising, with and without it: seconds, and the greatest difference of the results.

Without a saving means calling the same plain functions in the way that does without: preparing again at every step,
both branches of guidance as one batch, windows one by one. Random weights of the published shape: a narrow U-Net, or
with --full the published widths at 256 px. Both ways of a saving run by turns; two rows a saving go to results.csv
(the median; fastest and slowest in the description). In fp32 the results must agree within 1e-4. From the root:

    python -m benchmarks.denoise_savings
    python -m benchmarks.denoise_savings --full --device cuda --precision fp16 --steps 20 --compile
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from benchmarks.gpu.full_size import PUBLISHED_VAE_WIDTHS, make_vae
from benchmarks.rows import DTYPES, add_row, by_turns, row
from benchmarks.unsaved_denoisers import (
    AudioKeysEveryStep,
    InputConvolutionEveryStep,
    PublishedDenoiser,
    SeparateBranches,
    ZeroAudioComputed,
)
from torch import Tensor

from lipstream.diffusion import conditioning
from lipstream.diffusion.conditioning import Conditioning
from lipstream.diffusion.sampling import Denoiser, UNetDenoiser, initial_noise, sample
from lipstream.models.load import read_config, vae_factor
from lipstream.models.unet import UNet
from lipstream.models.unet_config import UNetConfig
from lipstream.models.upsample_conv import merge_enlargements
from lipstream.pipeline.clocks import StageClock
from lipstream.pipeline.threads import ThreadGroup
from lipstream.presets import Sampling
from lipstream.runtime.compile import compiled_step
from lipstream.runtime.device_stream import DeviceStream

NARROW = UNetConfig(block_out_channels=(64, 128, 256, 256))
NARROW_VAE_WIDTHS = (32, 64, 64, 64)
NUM_FRAMES, AUDIO_TOKENS = 16, 50
SCHEDULER_CONFIG = read_config("latentsync-1.5")[0].scheduler
SAME = 1e-4

Denoise = Callable[[], Tensor]


@dataclass(frozen=True)
class Setup:
    """What every saving is measured on. crops: (windows * 16, 3, res, res) uint8 on the CPU."""

    unet: UNet
    vae: Any
    crops: Tensor
    mask: Tensor
    audio: Tensor
    noise: Tensor
    seen: Conditioning
    device: torch.device
    steps: int
    guidance_scale: float

    @property
    def windows(self) -> int:
        return len(self.crops) // NUM_FRAMES

    def sample(self, denoiser: Denoiser, seen: Conditioning | None = None) -> Tensor:
        sampling = Sampling(self.steps, self.guidance_scale)
        return sample(denoiser, SCHEDULER_CONFIG, self.noise, seen or self.seen, sampling)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="published widths at 256 px; else narrow ones at 128 px")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance-scale", type=float, default=1.5)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="torch.compile as well, which takes minutes")
    parser.add_argument("--no-row", action="store_true", help="leave results.csv alone")
    parser.add_argument("--only", metavar="WORD", default="", help="the savings with this in their name")
    args = parser.parse_args()
    if args.guidance_scale <= 1.0:
        parser.error("--guidance-scale must be above 1.0: most savings are in guidance")
    setup = make_setup(args)
    model = f"random weights, widths {setup.unet.config.block_out_channels}".replace(",", "")
    settings = f"{args.precision}, {args.steps} steps, guidance {args.guidance_scale}"
    differ = []
    for name, pair in savings(setup, args.compile):
        if args.only not in name:
            continue
        ways = dict(zip(("without", "with"), pair(), strict=True))
        results, times, peaks = by_turns(ways, args.rounds, setup.device)
        difference = float((results["with"] - results["without"]).abs().max())
        for way, seconds in times.items():
            description = f"{way}; {settings}; {min(seconds):.4g} to {max(seconds):.4g} s in {args.rounds} rounds"
            description += f"; greatest difference {difference:.1e}"
            median_s = statistics.median(seconds)
            if not args.no_row:
                add_row(
                    row(f"denoise: {name}", model, description, len(setup.crops), median_s, peaks[way], setup.device)
                )
            print(f"{name:36} {way:8} {median_s:8.3f} s  {description}", flush=True)
        if args.precision == "fp32" and not difference <= SAME:
            differ.append(name)
        del ways  # a full-size copy of the U-Net is gone before the next is made
    if differ:
        raise SystemExit(f"not the same within {SAME}: {', '.join(differ)}")


def savings(setup: Setup, with_compile: bool) -> Iterator[tuple[str, Callable[[], tuple[Denoise, Denoise]]]]:
    """Each saving's name, and what makes the two ways: without it and with it. Made when it is their turn."""
    unet = setup.unet
    ours = UNetDenoiser(unet)

    def pair(without: Denoiser, with_: Denoiser) -> tuple[Denoise, Denoise]:
        return lambda: setup.sample(without), lambda: setup.sample(with_)

    yield "audio keys and values once", lambda: pair(AudioKeysEveryStep(unet), ours)
    yield "constant of first convolution once", lambda: pair(InputConvolutionEveryStep(unet), ours)
    yield "silence is its bias", lambda: pair(ZeroAudioComputed(unet), SeparateBranches(unet))
    yield "prefix shared by both branches", lambda: pair(SeparateBranches(unet), ours)
    yield "windows in one call", lambda: (lambda: by_calls(setup, ours), lambda: setup.sample(ours))
    yield "channels last", lambda: pair(UNetDenoiser(contiguous(unet)), ours)
    yield "fused projections", lambda: pair(UNetDenoiser(unfused(unet)), ours)
    yield "enlarging convolutions merged", lambda: pair(ours, UNetDenoiser(merged(unet)))
    yield "enlarging convolutions merged, VAE", lambda: decoding(setup, merged(setup.vae))
    line = partial(clip, setup, ours)
    if setup.device.type == "cpu":
        yield "VAE images as caches hold", lambda: coding(setup)
        yield "windows side by side", lambda: (lambda: line(ahead=False), lambda: side_by_side(setup, ours))
    else:
        yield "encodings beside denoising", lambda: (lambda: line(ahead=False), line)
    if setup.device.type == "cuda":
        yield "pinned copies beside compute", lambda: (lambda: line(pinned=False), line)
    yield "all of these", lambda: all_of_these(setup, ours)
    if with_compile:
        frames = len(setup.crops)
        yield "torch.compile", lambda: pair(ours, UNetDenoiser(unet, compiled_step(unet, frames)))


def all_of_these(setup: Setup, ours: Denoiser) -> tuple[Denoise, Denoise]:
    plain = PublishedDenoiser(contiguous(unfused(setup.unet)))
    return lambda: by_calls(setup, plain), lambda: setup.sample(ours)


def merged(network: Any) -> Any:
    """The same weights with what enlarges as one transposed convolution, which on a CPU is always on."""
    twin = copy.deepcopy(network)
    merge_enlargements(twin)
    return twin.to(memory_format=torch.channels_last)


def decoding(setup: Setup, vae: Any) -> tuple[Denoise, Denoise]:
    """All windows' latents decoded by the setup's VAE and by another."""
    latents = setup.seen.channels[:, -setup.unet.config.out_channels :]
    return lambda: conditioning.decode(setup.vae, latents), lambda: conditioning.decode(vae, latents)


def coding(setup: Setup) -> tuple[Denoise, Denoise]:
    """All windows' crops encoded and decoded: a window's frames at once, and as many as `conditioning` takes."""
    vae, pixels = setup.vae, conditioning.to_pixels(setup.crops)

    def windows_at_once() -> Tensor:
        latents = torch.cat([vae.encode(part).latent_dist.mode() for part in pixels.split(NUM_FRAMES)])
        return torch.cat([vae.decode(part).sample for part in latents.split(NUM_FRAMES)])

    return windows_at_once, lambda: conditioning.decode(vae, conditioning.encode(vae, pixels))


def side_by_side(setup: Setup, denoiser: Denoiser) -> Tensor:
    """As `clip`, in the way of lipstream.pipeline for small models on a CPU: a window a core."""

    @torch.inference_mode()
    def repaint(window: tuple[Tensor, Tensor]) -> Tensor:
        crops, audio = window
        seen = conditioning.condition(setup.vae, conditioning.to_pixels(crops), setup.mask, audio, NUM_FRAMES)
        return conditioning.decode(setup.vae, setup.sample(denoiser, seen))

    windows = zip(setup.crops.split(NUM_FRAMES), setup.audio.split(NUM_FRAMES), strict=True)
    with ThreadGroup() as threads:
        return torch.cat(list(threads.ordered_map(repaint, windows, os.cpu_count() or 1, StageClock("denoise"))))


def by_calls(setup: Setup, denoiser: Denoiser, windows: int = 1) -> Tensor:
    """Latents of all windows, so many of them in a call."""
    return torch.cat([setup.sample(denoiser, seen) for seen in each_call(setup.seen, windows)])


def each_call(seen: Conditioning, windows: int = 1) -> Iterator[Conditioning]:
    """What conditions each call of so many windows."""
    frames = windows * NUM_FRAMES
    for channels, audio in zip(seen.channels.split(frames), seen.audio.split(frames), strict=True):
        yield Conditioning(channels, audio, NUM_FRAMES)


def contiguous(network: Any) -> Any:
    """A copy in torch's own memory format."""
    return copy.deepcopy(network).to(memory_format=torch.contiguous_format)


def unfused(unet: UNet) -> UNet:
    """The same weights with queries, keys and values projected apart."""
    apart: Any = UNet(unet.config).to(unet.conv_in.weight)
    tensors = {}
    for name, tensor in unet.state_dict().items():
        parts = ("to_q", "to_k", "to_v") if "to_qkv" in name else ()
        tensors.update({name.replace("to_qkv", part): t for part, t in zip(parts, tensor.chunk(3), strict=False)})
        tensors.update({} if parts else {name: tensor})
    apart.load_state_dict(tensors)
    return apart.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def clip(setup: Setup, denoiser: Denoiser, windows: int = 1, *, ahead: bool = True, pinned: bool = True) -> Tensor:
    """All windows through encoding, denoising and decoding, so many a call, in the way of lipstream.pipeline."""
    streams, frames = [DeviceStream(setup.device) for _ in range(3)], windows * NUM_FRAMES

    @torch.inference_mode()
    def encode() -> Iterator[Conditioning]:
        for crops, audio in zip(setup.crops.split(frames), setup.audio.split(frames), strict=True):
            with streams[0].running():
                pixels = conditioning.to_pixels(streams[0].upload(crops) if pinned else crops.to(setup.device))
                seen = conditioning.condition(setup.vae, pixels, setup.mask, audio, NUM_FRAMES)
            yield seen

    @torch.inference_mode()
    def repaint(encoded: Iterable[Conditioning]) -> Iterator[Tensor]:
        for seen in encoded:
            with streams[1].running():
                faces = conditioning.decode(setup.vae, setup.sample(denoiser, seen))
                faces = faces if pinned else faces.cpu()
            yield faces

    @torch.inference_mode()
    def fetch(repainted: Iterable[Tensor]) -> Iterator[Tensor]:
        for faces in repainted:
            with streams[2].running():
                faces = streams[2].download(faces) if pinned else faces
            yield faces

    with ThreadGroup() as threads:

        def beside(items: Iterable[Any], name: str) -> Iterator[Any]:
            """Make the items in another thread."""
            return threads.ordered_map(lambda item: item, items, 1, StageClock(name), in_flight=1)

        encoded = beside(encode(), "encode") if ahead else encode()
        return torch.cat(list(fetch(beside(repaint(encoded), "denoise"))))


@torch.inference_mode()
def make_setup(args: argparse.Namespace) -> Setup:
    torch.manual_seed(0)
    device, dtype = torch.device(args.device), DTYPES[args.precision]
    config, resolution = (UNetConfig(), 256) if args.full else (NARROW, 128)
    with device:
        unet: Any = UNet(config)
        vae = make_vae(PUBLISHED_VAE_WIDTHS if args.full else NARROW_VAE_WIDTHS)
    unet = unet.to(dtype).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    unet.fuse_projections()
    vae = vae.to(dtype).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    mask = (torch.arange(resolution)[:, None] < resolution // 2).expand(1, resolution, resolution).float()
    return fill_setup(unet, vae, mask, args.windows, args.steps, args.guidance_scale)


@torch.inference_mode()
def fill_setup(unet: UNet, vae: Any, mask: Tensor, windows: int, steps: int, guidance_scale: float) -> Setup:
    """Networks with random crops as large as the mask (1, res, res), their audio features and initial noise."""
    weight, resolution, config = unet.conv_in.weight, mask.shape[-1], unet.config
    n, size = windows * NUM_FRAMES, resolution // vae_factor(vae)
    crops = torch.randint(0, 256, (n, 3, resolution, resolution), dtype=torch.uint8)
    audio = torch.randn(n, AUDIO_TOKENS, config.cross_attention_dim).to(weight)
    mask, pixels = mask.to(weight.device), conditioning.to_pixels(crops.to(weight.device))
    return Setup(
        unet=unet,
        vae=vae,
        crops=crops,
        mask=mask,
        audio=audio,
        noise=initial_noise(config.out_channels, size, size, seed=0).to(weight.device),
        seen=conditioning.condition(vae, pixels, mask, audio, NUM_FRAMES),
        device=weight.device,
        steps=steps,
        guidance_scale=guidance_scale,
    )


if __name__ == "__main__":
    with torch.inference_mode():
        main()
