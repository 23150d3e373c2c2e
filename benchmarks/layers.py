"""What our own layers save: a window of the U-Net with torch's linear layers, with group norms over a strided view.

The same weights by turns, in as many threads as torch takes. A row each goes to results.csv. What runs beside it
changes the result: an idle machine, from the root:

    python -m benchmarks.layers
"""

from __future__ import annotations

import argparse
import copy
import statistics
from functools import partial

import torch
from benchmarks.rows import add_row, by_turns, row
from torch import Tensor

from lipstream.models.group_norm import PooledGroupNorm, replace_norms
from lipstream.models.load import load_model
from lipstream.models.pointwise import restore_layers
from lipstream.runtime.allocator import keep_freed_memory

CPU = torch.device("cpu")
AUDIO_TOKENS = 50


class StridedGroupNorm(PooledGroupNorm):
    """The same norm by one reduction over a view of channels-last memory, as it was before."""

    def forward(self, x: Tensor, num_frames: int = 1) -> Tensor:
        return self._over_views(x, num_frames)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, metavar="N", help="[torch's own choice]")
    parser.add_argument("--no-row", action="store_true", help="leave results.csv alone")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    own = load_model("tiny", CPU, torch.float32).unet
    torchs, strided = copy.deepcopy(own), copy.deepcopy(own)
    restore_layers(torchs)
    replace_norms(strided, PooledGroupNorm, StridedGroupNorm)
    networks = {"as it is": own, "linear layers as torch's": torchs, "group norms strided": strided}

    frames, size = 16, 16
    # A still: in white noise that changes from frame to frame, as no video does, rounding grows without bound.
    torch.manual_seed(0)
    still = torch.randn(1, own.config.in_channels, size, size).expand(frames, -1, -1, -1)
    sample = still.contiguous(memory_format=torch.channels_last)
    audio = torch.randn(frames, AUDIO_TOKENS, own.config.cross_attention_dim)
    ways = {name: partial(one, sample, torch.tensor(999), audio, frames) for name, one in networks.items()}
    found, times, _ = by_turns(ways, args.rounds, CPU)
    for name, seconds in times.items():
        apart = float((found[name] - found["as it is"]).norm() / found["as it is"].norm())
        settings = (
            f"{name}; a window of the U-Net, {torch.get_num_threads()} threads, fp32; {apart:.1e} apart;"
            f" {min(seconds):.3g} to {max(seconds):.3g} s in {args.rounds} rounds"
        )
        median_s = statistics.median(seconds)
        if not args.no_row:
            add_row(row("own layers", "tiny", settings, frames, median_s, None, CPU))
        print(f"{median_s:7.4f} s  {settings}", flush=True)


if __name__ == "__main__":
    main()
