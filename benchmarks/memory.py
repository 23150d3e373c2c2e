"""Peak memory of a long clip beside that of a short one: it must not grow with the length.

Makes a 1080p clip with a face (the bundled sample on a larger canvas) and speech of 20 s and of 3 minutes, runs
`lipstream sync` on each as a process of its own and adds a row a run to results.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import subprocess
import sys
import tempfile
import time
import wave
from datetime import date
from pathlib import Path

import av
import numpy as np
import torch

from lipstream import __version__, sample
from lipstream.media.color import ColorTags
from lipstream.media.writer import VideoWriter

RESULTS = Path(__file__).parent / "results.csv"
WIDTH, HEIGHT = 1920, 1080


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, nargs="+", default=[20, 180])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--detector", default="mediapipe")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for duration_s in args.seconds:
            video, speech = make_inputs(Path(folder), duration_s)
            words = ["sync", str(video), str(speech), "-o", str(Path(folder) / "out.mp4"), "--overwrite"]
            words += ["--model", args.model, "--detector", args.detector]
            begun_s = time.perf_counter()
            peak_mb = run(words)
            wall_s = time.perf_counter() - begun_s
            row = {
                "date": date.today().isoformat(),
                "benchmark": f"memory {WIDTH}x{HEIGHT} {duration_s} s",
                "model": args.model,
                "settings": f"exact, {args.detector}",
                "frames": duration_s * 25,
                "wall_s": round(wall_s, 1),
                "frames_per_s": round(duration_s * 25 / wall_s, 2),
                "peak_mb": round(peak_mb),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
                "versions": f"lipstream {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
            }
            add_row(row)
            print(f"{duration_s:4} s of video: peak {peak_mb:.0f} MB, {wall_s:.1f} s")


def run(words: list[str]) -> float:
    """Run the command line and return its peak memory, MB, as the operating system counted it."""
    process = subprocess.Popen([sys.executable, "-m", "lipstream.cli", *words])
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"lipstream {' '.join(words)} failed")
    return usage.ru_maxrss / 1024


def make_inputs(folder: Path, duration_s: int) -> tuple[Path, Path]:
    """A 1080p clip as long as the speech, so that every frame is decoded once, and the speech."""
    with av.open(str(sample.VIDEO)) as container:
        faces = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    backdrop = np.linspace(40, 120, WIDTH, dtype=np.uint8)[None, :, None].repeat(HEIGHT, 0).repeat(3, 2)
    video = folder / f"{duration_s}.mp4"
    with VideoWriter(
        video, width=WIDTH, height=HEIGHT, color=ColorTags(), speech=None, n_frames=duration_s * 25, preset="ultrafast"
    ) as writer:
        for index in range(duration_s * 25):
            lap, step = divmod(index, len(faces))
            face = faces[step if lap % 2 == 0 else -1 - step]
            image = backdrop.copy()
            top, left = (HEIGHT - face.shape[0]) // 2, (WIDTH - face.shape[1]) // 2
            image[top : top + face.shape[0], left : left + face.shape[1]] = face
            writer.write(image)
    speech = folder / f"{duration_s}.wav"
    with wave.open(str(sample.SPEECH)) as source, wave.open(str(speech), "wb") as longer:
        longer.setparams(source.getparams())
        samples = source.readframes(source.getnframes())
        repeats = -(-duration_s * source.getframerate() // source.getnframes())
        size = duration_s * source.getframerate() * source.getsampwidth() * source.getnchannels()
        longer.writeframes((samples * repeats)[:size])
    return video, speech


def add_row(row: dict[str, object]) -> None:
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, row.keys())
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
