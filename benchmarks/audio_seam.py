"""How far audio features beside the ends of the published blocks of 30 s are from those that have their context.

Encodes a recording in blocks that end at 30 s (as published) and in blocks that share --overlap seconds, and prints the
relative difference of the rows by their distance from the seam; beside it that of rows in the middle of a block, where
only the place in the block differs. With the encoder of --model, and with random weights of Whisper tiny's shape.

    python benchmarks/audio_seam.py [--model tiny] [--speech FILE] [--overlap 5] [--no-row]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from benchmarks.rows import add_row, row
from torch import Tensor

from lipstream.audio_features.features import feature_rows
from lipstream.bundled import sample
from lipstream.media.audio import read_mono
from lipstream.models.load import load_model
from lipstream.models.whisper import AudioEncoder, AudioEncoderConfig

SEAM = 1500  # rows
DISTANCES_S = ((0.0, 0.1), (0.1, 0.3), (0.3, 1.0), (1.0, 3.0))
LENGTH_S = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--speech", type=Path, default=sample.SPEECH, help="repeated up to a minute")
    parser.add_argument("--overlap", type=float, default=5.0)
    parser.add_argument("--no-row", action="store_true", help="leave results.csv alone")
    args = parser.parse_args()
    samples = np.concatenate(list(read_mono(args.speech)))
    samples = np.resize(samples, LENGTH_S * 16000)
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    encoders = {
        f"{args.model}'s encoder": load_model(args.model, cpu, torch.float32).audio_encoder,
        "Whisper tiny's shape, random weights": AudioEncoder(AudioEncoderConfig()).eval(),
    }
    for name, encoder in encoders.items():
        begun_s = time.perf_counter()
        published = torch.cat(list(feature_rows(lambda: [samples], encoder)))
        wall_s = time.perf_counter() - begun_s
        shared = torch.cat(list(feature_rows(lambda: [samples], encoder, overlap_s=args.overlap)))
        found = [f"middle {difference(published, shared, SEAM // 2, SEAM // 2 + 50):.3f}"]
        for near_s, far_s in DISTANCES_S:
            near, far = round(50 * near_s), round(50 * far_s)
            before = difference(published, shared, SEAM - far, SEAM - near)
            after = difference(published, shared, SEAM + near, SEAM + far)
            found.append(f"{near_s:g} to {far_s:g} s before {before:.3f}, after {after:.3f}")
        note = f"{name}, overlap {args.overlap:g} s, relative difference: {'; '.join(found)}"
        print(note)
        if not args.no_row:
            add_row(row("audio features at 30 s", args.model, note, 25 * LENGTH_S, wall_s, None, cpu))


def difference(one: Tensor, other: Tensor, start: int, stop: int) -> float:
    """Relative difference of rows start .. stop-1, by their root mean squares."""
    a, b = one[start:stop], other[start:stop]
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())


if __name__ == "__main__":
    main()
