"""What a prepared clip saves: sync VIDEO and sync AVATAR by turns, file to file; rows in results.csv.

    python -m benchmarks.prepared --rounds 5     # tiny on the bundled sample
    python -m benchmarks.prepared --counted      # 1.5 and 1.6, counted: what of their TFLOP is saved

Measured and counted without loading; a first run of each warms up.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from benchmarks.rows import add_row, row

from lipstream import LipSync, RuntimeSettings
from lipstream.bundled import sample
from lipstream.presets import PRESETS

FRAMES = 16
# TFLOP on 16 frames: a branch of a step, and of a frame: encoding a picture, of which there are two, and decoding.
PUBLISHED = {"latentsync-1.5": (4.05, 0.27, 0.62), "latentsync-1.6": (17.6, 1.12, 2.51)}
STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--video", type=Path, default=sample.VIDEO)
    parser.add_argument("--counted", action="store_true")
    parser.add_argument("--no-rows", action="store_true", help="print them alone")
    args = parser.parse_args()
    if args.counted:
        counted()
        return
    walls_s: dict[str, list[float]] = {"video": [], "avatar": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        LipSync.load("tiny", RuntimeSettings(device="cpu", detector="mediapipe")) as sync,
    ):
        begun_s = time.perf_counter()
        avatar = sync.prepare_avatar(args.video, Path(folder) / "clip.avatar")
        print(f"prepared in {time.perf_counter() - begun_s:.2f} s: {avatar.path.stat().st_size / 1e6:.1f} MB")
        for n in range(args.rounds + 1):
            for name, source in (("video", args.video), ("avatar", avatar.path)):
                begun_s = time.perf_counter()
                result = sync(source, sample.SPEECH, Path(folder) / "out.mp4", overwrite=True)
                if n:
                    walls_s[name].append(time.perf_counter() - begun_s)
    medians = {name: statistics.median(walls) for name, walls in walls_s.items()}
    print(f"times as fast: {medians['video'] / medians['avatar']:.3f}")
    cpu, by_turns = torch.device("cpu"), f"median of {args.rounds}"
    rows = [
        row("prepared clip", "tiny", f"sync {name}, {by_turns}", result.frames, wall_s, None, cpu)
        for name, wall_s in medians.items()
    ]
    for one in rows:
        print(one)
        if not args.no_rows:
            add_row(one)


def counted() -> None:
    """Print what the published models save, without face search and cropping."""
    for model, (step, encode, decode) in PUBLISHED.items():
        for name, preset in PRESETS.items():
            steps = max(1, round(STEPS * preset.step_share))
            begin, end = preset.guidance_interval
            guided = sum(begin <= n / steps < end for n in range(steps))
            saved = FRAMES * 2 * encode
            whole = step * (steps + guided) + FRAMES * decode + saved
            print(f"{model}, {name}: {saved:.1f} of {whole:.1f} TFLOP for 16 frames, {saved / whole:.1%}")


if __name__ == "__main__":
    main()
