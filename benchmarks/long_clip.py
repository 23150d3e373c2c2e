"""A long clip: does memory stay flat, and is the time left well estimated?

Makes a small clip with a face (the bundled sample, forwards and backwards) and speech, runs `lipstream sync` on it as a
process of its own, follows its progress and its memory, and adds a row to results.csv.

    python -m benchmarks.long_clip --minutes 60 --size 256 --frame-rate 10
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import wave
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from benchmarks.rows import add_row, resident_mb, row

from lipstream.bundled import sample


@dataclass(frozen=True)
class Moment:
    """What is seen at one time: seconds since the first progress, frames done, estimated seconds left, memory."""

    time_s: float
    frames: int
    left_s: float | None
    memory_mb: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--size", type=int, default=256, help="side of the picture in pixels [256]")
    parser.add_argument("--frame-rate", type=int, default=10, help="frames a second [10]")
    parser.add_argument("--moments", type=Path, help="file to write what was seen to, as JSON lines")
    args, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        inputs = make_inputs(Path(folder), round(60 * args.minutes), args.size, args.frame_rate)
        begun_s = time.monotonic()
        moments = follow(
            [
                "sync",
                *map(str, inputs),
                "--frame-rate",
                str(args.frame_rate),
                "-o",
                str(Path(folder) / "out.mp4"),
                *options,
            ]
        )
        wall_s = time.monotonic() - begun_s
    if args.moments:
        args.moments.write_text("".join(json.dumps(moment.__dict__) + "\n" for moment in moments))
    memory, worst = summary(moments)
    frames = moments[-1].frames
    print(f"{frames} frames in {wall_s:.0f} s; {memory}; {worst}")
    title = f"long clip {args.minutes:g} min {args.size}x{args.size} {args.frame_rate} fps"
    peak_mb = max(moment.memory_mb for moment in moments)
    settings = " ".join([*options, f"{memory}; {worst}"])
    add_row(row(title, "tiny", settings, frames, wall_s, peak_mb, torch.device("cpu")))


def follow(command: list[str]) -> list[Moment]:
    """Run the command line; return a moment for each report of progress."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lipstream.cli", *command, "--progress", "json"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    moments: list[Moment] = []
    begun_s = 0.0
    for line in process.stderr:
        event = json.loads(line) if line.startswith("{") else {"event": line.strip()}
        if event["event"] != "progress":
            print(event, flush=True)
            continue
        begun_s = begun_s or time.monotonic()
        now_s = time.monotonic() - begun_s
        moments.append(Moment(now_s, event["frames"], event["left_s"], resident_mb(process.pid)))
    if process.wait():
        raise SystemExit(f"lipstream {' '.join(command)} failed")
    return moments


def summary(moments: list[Moment]) -> tuple[str, str]:
    """Return the memory by quarters of the run, and how far the estimates were off from the first minute on."""
    end_s = moments[-1].time_s
    quarters = [[m.memory_mb for m in moments if q <= 4 * m.time_s / end_s < q + 1 and m.memory_mb] for q in range(4)]
    memory = "memory by quarters, median MB: " + " ".join(f"{np.median(quarter):.0f}" for quarter in quarters)
    later = [m for m in moments if m.time_s >= 60 and m.left_s is not None]
    if not later:
        return memory, "shorter than a minute"
    of_total = max(abs(m.time_s + (m.left_s or 0) - end_s) / end_s for m in later)
    of_left = [abs((m.left_s or 0) - (end_s - m.time_s)) / (end_s - m.time_s) for m in later if m.time_s < 0.95 * end_s]
    return memory, f"time left off by {100 * max(of_left):.1f} % at most (of the whole time: {100 * of_total:.1f} %)"


def make_inputs(folder: Path, duration_s: int, size: int, frame_rate_hz: int) -> tuple[Path, Path]:
    """Make a square clip, and speech of the same length."""
    with av.open(str(sample.VIDEO)) as container:
        faces = [
            frame.reformat(width=size, height=size, format="yuv420p").to_ndarray()
            for frame in container.decode(video=0)
        ]
    video, speech = folder / "long.mp4", folder / "long.wav"
    with av.open(str(video), "w") as output:
        stream = output.add_stream("libx264", rate=frame_rate_hz, options={"preset": "ultrafast"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for index in range(duration_s * frame_rate_hz):
            lap, step = divmod(index, len(faces))
            frame = av.VideoFrame.from_ndarray(faces[step if lap % 2 == 0 else -1 - step], format="yuv420p")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with wave.open(str(sample.SPEECH)) as source, wave.open(str(speech), "wb") as longer:
        longer.setparams(source.getparams())
        samples = source.readframes(source.getnframes())
        bytes_per_s = source.getframerate() * source.getsampwidth() * source.getnchannels()
        left = duration_s * bytes_per_s
        while left > 0:
            longer.writeframes(samples[:left])
            left -= len(samples)
    return video, speech


if __name__ == "__main__":
    main()
