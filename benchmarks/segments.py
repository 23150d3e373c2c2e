"""What segments cost and what they bring: against a plain run, with several devices, after a kill, with known faces.

    python -m benchmarks.segments overhead   # tiny on a clip of --seconds, plain and with --work by turns, file to file
    python -m benchmarks.segments faces      # a second speech over the same video, with `analyse`'s table
    python -m benchmarks.segments kill       # SIGKILL in the middle, and the same command again
    python -m benchmarks.segments scaling    # 1, 2 and 4 devices that sleep for --window-s instead of denoising

The clip is the bundled sample, forwards and backwards. Prints one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lipstream import Face, LipSync, RuntimeSettings, SyncSettings
from lipstream.bundled import sample
from lipstream.encoding_settings import EncodingSettings
from lipstream.media.audio import read_mono
from lipstream.media.loop import read_looped
from lipstream.media.reader import probe
from lipstream.media.writer import VideoWriter
from lipstream.models.load import load_model
from lipstream.scale.segments import sync_in_segments

RUNTIME = RuntimeSettings(device="cpu", detector="mediapipe")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "faces", "kill", "scaling"])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--window-s", type=float, default=2.0)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video, speech = make_clip(folder, args.seconds)
        {"overhead": overhead, "faces": faces, "kill": kill, "scaling": scaling}[args.what](args, folder, video, speech)


def make_clip(folder: Path, duration_s: float) -> tuple[Path, Path]:
    """Write the sample played to and fro, and its speech again and again, for so many seconds."""
    n_frames, info = round(25 * duration_s), probe(sample.VIDEO)
    video = folder / "video.mp4"
    size = {"width": info.width, "height": info.height}
    with VideoWriter(
        video,
        **size,
        color=info.color,
        speech=None,
        n_frames=n_frames,
        encoding=EncodingSettings(x264_preset="veryfast"),
    ) as writer:
        for frame in read_looped(sample.VIDEO, n_frames):
            writer.write(frame.image)
    samples = np.concatenate(list(read_mono(sample.SPEECH)))
    samples = np.resize(samples, round(16000 * duration_s))
    speech = folder / "speech.wav"
    with wave.open(str(speech), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return video, speech


def timed(call: Any, **described: Any) -> dict[str, Any]:
    """Print and return the wall and CPU seconds of a call, this process and its children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    begun_s = time.perf_counter()
    call()
    wall_s = time.perf_counter() - begun_s
    now = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_s = sum(b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in zip(used, now, strict=True))
    row = {**described, "wall_s": round(wall_s, 2), "cpu_s": round(cpu_s, 2)}
    print(json.dumps(row), flush=True)
    return row


def overhead(args: argparse.Namespace, folder: Path, video: Path, speech: Path) -> None:
    output = folder / "out.mp4"
    with LipSync.load("tiny", RUNTIME) as sync:
        for turn in range(args.rounds):
            timed(lambda: sync(video, speech, output, overwrite=True), run="plain", turn=turn)
            timed(
                lambda: sync_in_segments([sync], video, speech, output, work=folder / "work", overwrite=True),
                run="segments",
                turn=turn,
            )


def faces(args: argparse.Namespace, folder: Path, video: Path, speech: Path) -> None:
    with LipSync.load("tiny", RUNTIME) as sync:
        table: list[Any] = []
        timed(lambda: table.append(sync.analyse(video)), run="analyse")
        table[0].save(folder / "faces")
        print(json.dumps({"table_bytes": (folder / "faces").stat().st_size, "frames": len(table[0])}))
        for turn in range(args.rounds):
            for name, known in (("searched", None), ("known", folder / "faces")):
                output = folder / "out.mp4"
                timed(lambda: sync(video, speech, output, overwrite=True, faces=known), run=name, turn=turn)  # noqa: B023


def kill(args: argparse.Namespace, folder: Path, video: Path, speech: Path) -> None:
    words = [sys.executable, "-m", "lipstream", "sync", video, speech, "-q", "--device", "cpu"]
    words += ["--detector", "mediapipe", "--work", folder / "work", "-o"]
    whole = timed(lambda: subprocess.run([*words, folder / "whole.mp4"], check=True), run="undisturbed")

    def until_killed() -> None:
        process = subprocess.Popen([*words, folder / "out.mp4"])
        time.sleep(whole["wall_s"] * 0.6)
        process.send_signal(signal.SIGKILL)
        process.wait()

    first = timed(until_killed, run="killed")
    print(json.dumps({"pieces": len(list((folder / "work").glob("*/pieces/0*")))}))
    second = timed(lambda: subprocess.run([*words, folder / "out.mp4"], check=True), run="again")
    lost_s = first["wall_s"] + second["wall_s"] - whole["wall_s"]
    same = (folder / "out.mp4").read_bytes() == (folder / "whole.mp4").read_bytes()
    print(json.dumps({"lost_s": round(lost_s, 2), "same_file": same}))


class Sleeping:
    """A denoiser that takes its time and no core."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s

    def prepare(self, conditioning: Any) -> Any:
        return None

    def __call__(
        self, latents: torch.Tensor, timestep: Any, prepared: Any, guided: bool, deep: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(self._window_s)
        return latents, latents


class FixedFace:
    """The sample's face, for nothing."""

    name = "fixed"
    face = Face((170.0, 60.0, 300.0, 230.0), 1.0, np.array([[205.0, 110.0], [260.0, 110.0], [232.0, 160.0]]))

    def detect(self, image: Any) -> Face:
        return self.face

    def detect_near(self, image: Any, held: Face) -> Face:
        return self.face

    def close(self) -> None:
        pass


def scaling(args: argparse.Namespace, folder: Path, video: Path, speech: Path) -> None:
    """Small crops and a face that is known, so that the cores of this machine are not what is measured."""
    settings = SyncSettings(x264_preset="ultrafast", resolution=64)
    runtime = RuntimeSettings(device="cpu", threads=1)
    model = load_model("tiny", torch.device("cpu"), torch.float32)
    sleeping = Sleeping(args.window_s)
    syncs = [LipSync(model, FixedFace(), runtime, denoiser=sleeping) for _ in range(max(args.devices))]
    alone = None
    for n in args.devices:
        output = folder / f"{n}.mp4"
        row = timed(lambda: sync_in_segments(syncs[:n], video, speech, output, settings), devices=n)  # noqa: B023
        alone = alone or row["wall_s"]
        print(json.dumps({"devices": n, "efficiency": round(alone / (n * row["wall_s"]), 3)}), flush=True)


if __name__ == "__main__":
    main()
