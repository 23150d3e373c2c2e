"""Finding faces: frame by frame in one thread, in several, and searching the whole of some frames only, interleaved.

Takes the first frames of --video, or the bundled sample on a 1080x1920 canvas. The baseline is InsightFace's own
analysis of whole frames where --detector is one of its models, else our search of whole frames in one thread; beside it
ours with several frames in flight, and searching the whole of every Nth frame only. Says frames per second (median,
least and most of the rounds), in how many frames a face is found, how far boxes and landmarks lie from those of the
whole frame, and that the number of threads changes nothing; adds a row for each to results.csv:
python -m benchmarks.face_detection
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from benchmarks.face_geometry import HEIGHT, WIDTH
from benchmarks.rows import add_row, row
from numpy.typing import NDArray

from lipstream.bundled import sample
from lipstream.face.keyframes import Segment
from lipstream.face.registry import Detector, Face, make_detector
from lipstream.media.picture import RgbPicture
from lipstream.media.reader import Frame, read_frames
from lipstream.pipeline.clocks import StageClock
from lipstream.pipeline.threads import ThreadGroup
from lipstream.settings import DetectorName

Faces = list[Face | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--video", type=Path, help="a clip with a face, instead of the bundled sample")
    parser.add_argument("--frames", type=int, default=75, help="held in memory: 6 MB each at 1080x1920")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--detector", default="mediapipe", choices=[n for n in get_args(DetectorName) if n != "auto"])
    parser.add_argument("--detect-every", type=int, nargs="+", default=[10, 25])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-row", action="store_true", help="leave results.csv alone")
    args = parser.parse_args()
    frames = list(itertools.islice(read_frames(args.video) if args.video else canvas(), args.frames))
    detector = make_detector(args.detector, "cpu")
    runs: dict[str, Callable[[], object]] = {}
    if args.detector == "mediapipe":
        runs["ours, every frame whole, 1 thread"] = lambda: search(detector, frames, 1, 1)
    else:
        library = insightface_library(args.detector)
        runs["library, frame by frame"] = lambda: [library(f.image) for f in frames]
    found: dict[str, Faces] = {}
    for every in (1, *args.detect_every):
        label = f"ours, every frame whole, {args.threads} threads" if every == 1 else f"ours, whole every {every}"
        runs[label] = lambda every=every: search(detector, frames, every, args.threads)
        found[label] = search(detector, frames, every, args.threads)
        if described(search(detector, frames, every, 1)) != described(found[label]):
            raise SystemExit(f"{label}: the number of threads changed the result")

    times: dict[str, list[float]] = {label: [] for label in runs}
    for _, (label, run) in itertools.product(range(args.rounds), runs.items()):
        begun_s = time.perf_counter()
        run()
        times[label].append(time.perf_counter() - begun_s)
    detector.close()

    height, width = frames[0].image.shape[:2]
    where = f"{width}x{height}, {args.video.name if args.video else 'bundled sample'}, {args.detector}"
    print(f"{where}, {len(frames)} frames, {args.rounds} rounds")
    whole = next(iter(found.values()))
    for label, seconds in times.items():
        speed = describe(seconds, len(frames), statistics.median(next(iter(times.values()))))
        note = f"{speed}, {compare(found[label], whole)}" if label in found else speed
        print(f"{label:38} {note}")
        if not args.no_row:
            settings = f"{where}, {label}, {note}"
            cpu = torch.device("cpu")
            add_row(row("face detection", "", settings, len(frames), statistics.median(seconds), None, cpu))


def search(detector: Detector, frames: Sequence[Frame], every: int, threads: int) -> Faces:
    """The face of each frame, found as the line finds it."""
    stretches = [Segment(index - index % every) for index in range(0, len(frames), every)]

    def find(index: int) -> Face | None:
        return next(iter(stretches[index // every].find(detector, index, frames[index].image)), None)

    with ThreadGroup() as group:
        return list(group.ordered_map(find, range(len(frames)), threads, StageClock("detect")))


def insightface_library(name: str) -> Callable[[NDArray[np.uint8]], object]:
    """InsightFace's analysis of the whole frame, set up as the published code does."""
    from insightface.app import FaceAnalysis

    analysis = FaceAnalysis(name, allowed_modules=["detection", "landmark_2d_106"], providers=["CPUExecutionProvider"])
    analysis.prepare(ctx_id=-1, det_size=(512, 512))
    return lambda image: analysis.get(np.ascontiguousarray(image[:, :, ::-1]))


def compare(faces: Faces, whole: Faces) -> str:
    """Count the frames with a face, and say how far from where the whole frame's search found it."""
    pairs = [(face, other) for face, other in zip(faces, whole, strict=True) if face and other]
    boxes = [np.abs(np.subtract(face.box, other.box)).max() for face, other in pairs] or [0.0]
    points = [np.abs(face.landmarks - other.landmarks).max() for face, other in pairs] or [0.0]
    count = sum(face is not None for face in faces)
    return (
        f"{count} of {len(faces)} with a face, boxes off by {np.median(boxes):.1f} px (most {np.max(boxes):.1f}, "
        f"{np.mean(np.array(boxes) <= 1):.0%} within 1), landmarks {np.median(points):.0f} px "
        f"(most {np.max(points):.0f}, {np.mean(np.array(points) <= 1):.0%} within 1)"
    )


def described(faces: Faces) -> list[object]:
    """The faces as plain values, to be compared."""
    return [face and (face.box, face.score, face.landmarks.tolist()) for face in faces]


def describe(seconds: Sequence[float], n_frames: int, baseline_s: float) -> str:
    """Frames per second, the median of the rounds, the least and the most, beside the baseline's."""
    rates = [n_frames / value for value in seconds]
    return (
        f"{statistics.median(rates):.1f} frames per second ({min(rates):.1f} to {max(rates):.1f}), "
        f"{baseline_s / statistics.median(seconds):.2f} times as fast"
    )


def canvas() -> Iterator[Frame]:
    """The bundled sample in the middle of a 1080x1920 frame."""
    for frame in read_frames(sample.VIDEO):
        image, portrait = np.full((HEIGHT, WIDTH, 3), 90, np.uint8), frame.image
        top, left = (HEIGHT - portrait.shape[0]) // 3, (WIDTH - portrait.shape[1]) // 2
        image[top : top + portrait.shape[0], left : left + portrait.shape[1]] = portrait
        yield Frame(frame.index, frame.source_index, False, RgbPicture(image))


if __name__ == "__main__":
    main()
