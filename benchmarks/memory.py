"""Peak memory and CPU time of a run; memory must grow neither with the clip's length nor with the number of threads.

Makes a clip with a face (the bundled sample on a larger canvas) and speech, runs `lipstream sync` on it as a process of
its own and adds a row per run to results.csv: for each length, and for each number of threads.

    python -m benchmarks.memory --seconds 20 180
    python -m benchmarks.memory --seconds 4 --size 3840x2160 --threads 2 16 64
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

import av
import numpy as np
import torch
from benchmarks.rows import add_row, row

from lipstream.bundled import sample
from lipstream.encoding_settings import EncodingSettings
from lipstream.media.color import ColorTags
from lipstream.media.writer import VideoWriter

WIDTH, HEIGHT = 1920, 1080


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, nargs="+", default=[20, 180])
    parser.add_argument("--size", default=f"{WIDTH}x{HEIGHT}")
    parser.add_argument("--threads", type=int, nargs="+", help="[as many as lipstream takes by itself]")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--detector", default="mediapipe")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        for duration_s in args.seconds:
            video, speech = make_inputs(Path(folder), duration_s, width, height)
            for threads in args.threads or [None]:
                options = [] if threads is None else ["--threads", str(threads)]
                command = ["sync", str(video), str(speech), "-o", str(Path(folder) / "out.mp4"), "--overwrite"]
                command += ["--model", args.model, "--detector", args.detector, *options]
                begun_s = time.perf_counter()
                peak_mb, cpu_s = run(command)
                wall_s = time.perf_counter() - begun_s
                settings = f"exact, {args.detector}" + ("" if threads is None else f", {threads} threads")
                settings += f", CPU {cpu_s:.1f} s"
                name = f"memory {args.size} {duration_s} s"
                cpu = torch.device("cpu")
                add_row(row(name, args.model, settings, duration_s * 25, wall_s, peak_mb, cpu))
                print(f"{duration_s:4} s of video, {settings}: peak {peak_mb:.0f} MB, {wall_s:.1f} s", flush=True)


def run(command: list[str]) -> tuple[float, float]:
    """Run the command line; return its peak memory, MB, and CPU seconds, as the operating system counted them."""
    process = subprocess.Popen([sys.executable, "-m", "lipstream.cli", *command])
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"lipstream {' '.join(command)} failed")
    return usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def make_inputs(folder: Path, duration_s: int, width: int = WIDTH, height: int = HEIGHT) -> tuple[Path, Path]:
    """Make a clip as long as the speech, so that every frame is decoded once, and the speech."""
    with av.open(str(sample.VIDEO)) as container:
        faces = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    backdrop = np.linspace(40, 120, width, dtype=np.uint8)[None, :, None].repeat(height, 0).repeat(3, 2)
    video = folder / f"{duration_s}.mp4"
    with VideoWriter(
        video,
        width=width,
        height=height,
        color=ColorTags(),
        speech=None,
        n_frames=duration_s * 25,
        encoding=EncodingSettings(x264_preset="ultrafast"),
    ) as writer:
        for index in range(duration_s * 25):
            lap, step = divmod(index, len(faces))
            face = faces[step if lap % 2 == 0 else -1 - step]
            image = backdrop.copy()
            top, left = (height - face.shape[0]) // 2, (width - face.shape[1]) // 2
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


if __name__ == "__main__":
    main()
