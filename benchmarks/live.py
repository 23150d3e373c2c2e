"""A live session for minutes: frames a second, latency, jitter, faces left out and memory; a row in live.csv.

    python -m benchmarks.live --minutes 5                     # speech that comes as it is spoken, in chunks of 20 ms
    python -m benchmarks.live --minutes 5 --source whole      # whole sentences at once, as from a quick text to speech
    python -m benchmarks.live --minutes 5 --busy              # beside a process that keeps a core busy
    python -m benchmarks.live --minutes 1 --source most       # no clock: how many frames a second it could be

The bundled sample's clip and sentence, 5 s, with 2 s of silence after each. Latency: from when the last sample came
that a frame needs (its own and the look-ahead) to when the frame left; of whole sentences, to the first frame of each,
the others wait for their turn. Jitter: how far a frame left from the clock's ticks.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import tempfile
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.rows import add_row, machine, resident_mb

from lipstream import LipSync, LiveSettings, RuntimeSettings, __version__
from lipstream.bundled import sample
from lipstream.media.audio import read_mono
from lipstream.runtime.device import quick_precision

RESULTS = Path(__file__).parent / "live.csv"
RATE_HZ = 16000
CHUNK = RATE_HZ // 50
PAUSE_S = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--source", choices=["spoken", "whole", "most"], default="spoken")
    parser.add_argument("--busy", action="store_true", help="a second process keeps one core busy")
    parser.add_argument("--look-ahead", type=float, default=LiveSettings().look_ahead_s, metavar="S")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--video", type=Path, default=sample.VIDEO)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"], help="[as `lipstream live`]")
    parser.add_argument("--torch-threads", type=int, metavar="N", help="cores for a window [torch's own choice]")
    parser.add_argument("--no-row", action="store_true", help="print it alone")
    args = parser.parse_args()
    if args.torch_threads is not None:
        torch.set_num_threads(args.torch_threads)
    runtime = quick_precision(RuntimeSettings(device=args.device, precision=args.precision, detector="mediapipe"))
    with (
        tempfile.TemporaryDirectory() as folder,
        busy(args.busy),
        LipSync.load(args.model, runtime) as sync,
    ):
        avatar = sync.prepare_avatar(args.video, Path(folder) / "clip.avatar")
        settings = LiveSettings(realtime=args.source != "most", look_ahead_s=args.look_ahead)
        with sync.live(avatar, settings) as session:
            measured = measure(session, args.source, 60 * args.minutes, args.look_ahead, float(avatar.frame_rate))
    row = {
        "date": date.today().isoformat(),
        "model": args.model,
        "source": args.source,
        "size": f"{avatar.width}x{avatar.height}",
        "minutes": args.minutes,
        "busy": int(args.busy),
        "precision": runtime.precision,
        "torch_threads": torch.get_num_threads(),
        "look_ahead_s": args.look_ahead,
        **measured,
        "machine": machine(torch.device(args.device)),
        "versions": f"lipstream {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
    }
    print(", ".join(f"{name} {value}" for name, value in row.items()))
    if not args.no_row:
        add_row(row, RESULTS)


class Speech:
    """Pushes the sentence again and again, and remembers when which sample of each segment came."""

    def __init__(self, session: Any, source: str) -> None:
        self.session, self.source = session, source
        self.sentence = np.concatenate(list(read_mono(sample.SPEECH)))
        self.arrivals: list[list[tuple[int, float]]] = []
        self.stop = threading.Event()
        self.next = threading.Event()  # the segment before has been played

    def __call__(self) -> None:
        chunk = CHUNK if self.source == "spoken" else len(self.sentence)
        while not self.stop.is_set():
            begun_s = time.monotonic()
            came: list[tuple[int, float]] = []
            self.arrivals.append(came)
            for start in range(0, len(self.sentence), chunk):
                stop = min(start + chunk, len(self.sentence))
                if self.source == "spoken":
                    self.stop.wait(max(0.0, begun_s + stop / RATE_HZ - time.monotonic()))
                self.session.push_audio(self.sentence[start:stop], RATE_HZ)
                came.append((stop, time.monotonic()))
            self.session.end_segment()
            self.next.wait()
            self.next.clear()
            if self.source != "most":
                self.stop.wait(PAUSE_S)


def measure(session: Any, source: str, seconds: float, look_ahead_s: float, rate: float) -> dict[str, Any]:
    """Return the row's figures. The first three seconds, in which the session measures, do not count."""
    frames = iter(session)
    begun_s = time.monotonic()
    while source != "most" and time.monotonic() - begun_s < 3:
        next(frames)
    speech = Speech(session, source)
    pushing = threading.Thread(target=speech, daemon=True)
    pushing.start()
    left, latency, first_s, segment, frame, n_spoken = [], [], [], 0, 0, 0
    early_mb: float | None = None
    begun_s = time.monotonic()
    while (now_s := time.monotonic()) - begun_s < seconds:
        if early_mb is None and now_s - begun_s > min(20.0, seconds / 4):
            early_mb = resident_mb()
        one = next(frames)
        now_s = time.monotonic()
        left.append((now_s, one.time_s))
        if not one.is_speech:
            continue
        came = speech.arrivals[segment]
        needed = round(((frame + 1) / rate + look_ahead_s) * RATE_HZ)
        # That nothing follows the last frames is known early: they do not count.
        if needed <= len(speech.sentence) and (source == "spoken" or frame == 0):
            latency.append(now_s - came[bisect_left(came, (needed, 0.0))][1])
        if frame == 0:
            first_s.append(now_s - came[0][1])
        frame, n_spoken = frame + 1, n_spoken + 1
        if one.ends_segment:
            segment, frame = segment + 1, 0
            speech.next.set()
    wall_s = time.monotonic() - begun_s
    speech.stop.set()
    speech.next.set()
    offset = np.array([leaving_s - time_s for leaving_s, time_s in left])
    jitter_ms = 1000 * (offset - np.median(offset))
    return {
        "frames": len(left),
        "frames_per_s": round(len(left) / wall_s, 3),
        "spoken": n_spoken,
        "faces_per_spoken_frame": round(session.n_generated / max(1, n_spoken), 3),
        "latency_median_s": rounded(latency, 50),
        "latency_95_s": rounded(latency, 95),
        "latency_max_s": rounded(latency, 100),
        "first_sample_to_first_frame_s": rounded(first_s, 50),
        "jitter_95_ms": "" if source == "most" else round(float(np.percentile(np.abs(jitter_ms), 95)), 2),
        "drift_ms": "" if source == "most" else round(float(jitter_ms[-25:].mean() - jitter_ms[:25].mean()), 2),
        "resident_mb_early": "" if early_mb is None else round(early_mb),
        "resident_mb_end": round(resident_mb()),
    }


def rounded(values: list[float], percent: int) -> float | str:
    return round(float(np.percentile(values, percent)), 3) if values else ""


@contextmanager
def busy(is_wanted: bool) -> Iterator[None]:
    """Keep a core busy meanwhile."""
    if not is_wanted:
        yield
        return
    process = multiprocessing.get_context("spawn").Process(target=_work, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _work() -> None:
    while True:
        sum(range(100_000))


if __name__ == "__main__":
    main()
