"""Writing a clip with x264's presets, by turns: seconds, CPU time, size, and how near it comes to what was written.

Encodes the first frames of --video at crf 18; says for each preset the median of the rounds, the size of the file and
the PSNR of its frames, and adds a row a preset to results.csv. From the repository's root:

    python -m benchmarks.encoding --video CLIP
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import get_args

import torch
from benchmarks.rows import add_row, row

from lipstream.encoding_settings import EncodingSettings, X264Preset
from lipstream.evaluate.quality import psnr_db
from lipstream.media.reader import Frame, VideoInfo, probe, read_frames
from lipstream.media.writer import VideoWriter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=75, help="held in memory: 6 MB each at 1080x1920")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--presets", nargs="+", choices=get_args(X264Preset), default=["medium", "fast", "faster"])
    parser.add_argument("--no-row", action="store_true", help="leave results.csv alone")
    args = parser.parse_args()
    info, frames = probe(args.video), list(itertools.islice(read_frames(args.video), args.frames))
    wall: dict[str, list[float]] = {preset: [] for preset in args.presets}
    cpu: dict[str, list[float]] = {preset: [] for preset in args.presets}
    alike: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _, preset in itertools.product(range(args.rounds), args.presets):
            out = Path(folder) / f"{preset}.mp4"
            begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
            write(out, info, frames, preset)
            wall[preset].append(time.perf_counter() - begun_s)
            cpu[preset].append(time.process_time() - begun_cpu_s)
        for preset in args.presets:  # every round writes the same
            out = Path(folder) / f"{preset}.mp4"
            written = (frame.image for frame in read_frames(out))
            likeness_db = psnr_db((frame.image for frame in frames), written)
            alike[preset] = f"{out.stat().st_size / 1e3:.0f} kB, PSNR {likeness_db:.2f} dB"
    for preset in args.presets:
        wall_s, cpu_s = statistics.median(wall[preset]), statistics.median(cpu[preset])
        description = (
            f"{info.width}x{info.height}, {args.video.name}, x264 {preset}, crf 18, CPU {cpu_s:.2f} s, {alike[preset]}"
        )
        print(f"{wall_s:.2f} s  {description}")
        if not args.no_row:
            add_row(row("encoding", "", description, len(frames), wall_s, None, torch.device("cpu")))


def write(out: Path, info: VideoInfo, frames: list[Frame], preset: str) -> None:
    """Encode the frames as a run would."""
    size = {"width": info.width, "height": info.height}
    with VideoWriter(
        out,
        **size,
        color=info.color,
        speech=None,
        n_frames=len(frames),
        encoding=EncodingSettings(x264_preset=preset),
        overwrite=True,
    ) as writer:
        for frame in frames:
            writer.write(frame.image)


if __name__ == "__main__":
    main()
