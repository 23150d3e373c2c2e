"""What shorter windows and less look-ahead cost in quality: beside windows of 16 that know the whole recording.

    python -m benchmarks.live_windows            # the bundled sample and model; rows in live_windows.csv

Windows of a session begin and end elsewhere as the speech comes; here they have one length. With a look-ahead, the
features of each window are those of the recording up to so long after its last frame.
"""

from __future__ import annotations

import argparse
import csv
import platform
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from pathlib import Path

import numpy as np
import torch
from benchmarks.rows import machine
from numpy.typing import NDArray

from lipstream import Avatar, LipSync, RuntimeSettings, SyncSettings, __version__
from lipstream.bundled import sample
from lipstream.evaluate.lip_metrics import MouthFinder
from lipstream.evaluate.quality import measure
from lipstream.live.mouths import LiveFeatures, Mouths
from lipstream.media.audio import read_mono
from lipstream.media.reader import Frame
from lipstream.media.segment import read_segment
from lipstream.pipeline.threads import ThreadGroup

RESULTS = Path(__file__).parent / "live_windows.csv"
RATE_HZ = 16000
WHOLE_S = 1e6
Images = list[NDArray[np.uint8]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, nargs="+", default=[16, 8, 5, 4, 2])
    parser.add_argument("--look-ahead", type=float, nargs="+", default=[WHOLE_S, 0.27, 0.2, 0.12, 0.0], metavar="S")
    parser.add_argument("--frames", type=int, default=125)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--no-rows", action="store_true", help="print them alone")
    args = parser.parse_args()
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        LipSync.load(args.model, RuntimeSettings(device="cpu", detector="mediapipe")) as sync,
        closing(MouthFinder(sync.detector)) as finder,
    ):
        avatar = sync.prepare_avatar(sample.VIDEO, Path(folder) / "clip.avatar")
        filmed = [frame.image for frame in frames_of(avatar, args.frames)]
        reference = pictures(sync, avatar, args.frames, 16, WHOLE_S)
        settings = [(n, WHOLE_S) for n in args.windows] + [(16, s) for s in args.look_ahead if s != WHOLE_S]
        for n, look_ahead_s in settings:
            is_reference = (n, look_ahead_s) == (16, WHOLE_S)
            made = reference if is_reference else pictures(sync, avatar, args.frames, n, look_ahead_s)
            quality = measure(reference, made, filmed, finder=finder)
            row = {
                "date": date.today().isoformat(),
                "model": args.model,
                "window": n,
                "look_ahead_s": "whole" if look_ahead_s == WHOLE_S else look_ahead_s,
                "frames": args.frames,
                "psnr_db": number(quality.psnr_db, 2),
                "ssim": number(quality.ssim, 5),
                "landmark_distance": number(quality.landmark_distance, 5),
                "opening_correlation": number(quality.opening_correlation, 4),
                "flicker": number(quality.flicker, 3),
                "reference_flicker": number(quality.reference_flicker, 3),
                "machine": machine(torch.device("cpu")),
                "versions": f"lipstream {__version__}, Python {platform.python_version()}",
            }
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            rows.append(row)
    if not args.no_rows:
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def number(value: float | None, digits: int) -> float | str:
    return "" if value is None else round(value, digits)


def frames_of(avatar: Avatar, n: int) -> Iterator[Frame]:
    with avatar.files() as (path, table):
        yield from read_segment(path, table.frames, 0, n, "pingpong", deinterlace=table.deinterlace)


def pictures(sync: LipSync, avatar: Avatar, n_frames: int, window: int, look_ahead_s: float) -> Images:
    """Return the frames with their mouths, generated in windows of one length."""
    speech = np.concatenate(list(read_mono(sample.SPEECH)))
    speech = np.resize(speech, round(n_frames * RATE_HZ / avatar.frame_rate))
    made: Images = []
    with sync._turn(None, None) as components, ThreadGroup() as threads:
        features = LiveFeatures(components, avatar, SyncSettings())
        mouths = Mouths(components, avatar, avatar.settings(SyncSettings()), threads)
        held: list[Frame] = []
        n_known = 0
        for frame in frames_of(avatar, n_frames):
            held.append(frame)
            if len(held) < window and frame.index < n_frames - 1:
                continue
            known_s = (frame.index + 1) / avatar.frame_rate + look_ahead_s
            stop = min(len(speech), round(known_s * RATE_HZ))
            features.add(speech[n_known:stop], is_whole=stop == len(speech))
            n_known = stop
            audio = features.features(held[0].index, len(held))
            made += [one.image for one in mouths.generate(held, audio, len(held))]
            held.clear()
    return made


if __name__ == "__main__":
    main()
