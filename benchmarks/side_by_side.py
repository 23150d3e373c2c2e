"""Up to which size of the U-Net windows side by side, one a core, are faster on a CPU than one after another on all.

Random weights of the published shape, narrower, at 256 px: a window a core and one step without guidance, by turns. A
row each goes to results.csv. What runs beside it changes the result: an idle machine, from the root:

    python -m benchmarks.side_by_side
"""

from __future__ import annotations

import argparse
import statistics

import torch
from benchmarks.rows import add_row, by_turns, row
from torch import Tensor

from lipstream.models.pointwise import use_pointwise_layers
from lipstream.models.unet import UNet
from lipstream.models.unet_config import UNetConfig
from lipstream.models.upsample_conv import merge_enlargements
from lipstream.pipeline.clocks import StageClock
from lipstream.pipeline.threads import ThreadGroup
from lipstream.runtime.allocator import keep_freed_memory
from lipstream.runtime.cpu import cores

NUM_FRAMES, SIZE, AUDIO_TOKENS = 16, 32, 50
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 96, 128, 192], metavar="W", help="of level one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-row", action="store_true", help="leave results.csv alone")
    args = parser.parse_args()
    keep_freed_memory()
    for width in args.widths:
        measure(width, args.rounds, with_row=not args.no_row)


@torch.inference_mode()
def measure(width: int, rounds: int, *, with_row: bool) -> None:
    unet = make_unet(width)
    parameters, n = sum(tensor.numel() for tensor in unet.parameters()), cores()
    windows = [make_window(unet) for _ in range(n)]

    @torch.inference_mode()
    def step(window: tuple[Tensor, Tensor]) -> Tensor:
        return unet(window[0], torch.tensor(500), window[1], NUM_FRAMES)

    def run(threads: int, *, on_one_core: bool) -> Tensor:
        with ThreadGroup() as group:
            clock = StageClock("denoise")
            return torch.cat(list(group.ordered_map(step, windows, threads, clock, on_one_core=on_one_core)))

    ways = {"one by one": lambda: run(1, on_one_core=False), "side by side": lambda: run(n, on_one_core=True)}
    _, times, _ = by_turns(ways, rounds, CPU)
    for way, seconds in times.items():
        median_s, frames = statistics.median(seconds), n * NUM_FRAMES
        settings = f"{way}; {n} windows; fp32, 1 step; {min(seconds):.3g} to {max(seconds):.3g} s in {rounds} rounds"
        if with_row:
            model = f"random weights, {parameters / 1e6:.0f} M parameters"
            add_row(row("windows side by side", model, settings, frames, median_s, None, CPU))
        print(f"{parameters / 1e6:6.0f} M parameters  {median_s:7.3f} s  {settings}", flush=True)


def make_unet(width: int) -> UNet:
    torch.manual_seed(0)
    unet = UNet(UNetConfig(block_out_channels=(width, 2 * width, 4 * width, 4 * width)))
    unet.fuse_projections()
    use_pointwise_layers(unet)
    merge_enlargements(unet)
    return unet.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def make_window(unet: UNet) -> tuple[Tensor, Tensor]:
    config = unet.config
    sample = torch.randn(NUM_FRAMES, config.in_channels, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    return sample, torch.randn(NUM_FRAMES, AUDIO_TOKENS, config.cross_attention_dim)


if __name__ == "__main__":
    main()
