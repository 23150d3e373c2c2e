"""Aligning and restoring faces, ours beside the straightforward whole-frame way, in one run and interleaved.

Times both ways on the same 1080x1920 frames (synthetic ones with a moving face, or those of --video): the whole-frame
way with torch's own number of threads; ours in one thread; ours as the line runs it on a CPU, several frames in flight;
and as it runs on a GPU, all frames at once on --device. Says milliseconds a frame (median and spread of the rounds),
how many times as fast, and the PSNR between the pictures of both; adds a row a way to results.csv. Needs the measure
extra: python -m benchmarks.face_geometry
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks import whole_frame
from benchmarks.rows import add_row, row
from numpy.typing import NDArray
from torch import Tensor

from lipstream.face.align import crop_face, crop_faces, similarity_transform, template
from lipstream.face.composite import paste_faces, resize_face
from lipstream.face.mediapipe.detector import MediapipeDetector
from lipstream.media.picture import RgbPicture
from lipstream.media.reader import read_frames
from lipstream.pipeline.clocks import StageClock
from lipstream.pipeline.threads import ThreadGroup, grouped
from lipstream.runtime.device_stream import DeviceStream

WIDTH, HEIGHT = 1080, 1920
# How large the face of the synthetic frames is: brows and nose of a face some 300 px high.
EYES_APART_PX = 130


@dataclass(frozen=True)
class Item:
    """A frame (h, w, 3) uint8 RGB, its affine matrix (2, 3) and a repainted crop (3, res, res) in [-1, 1]."""

    image: NDArray[np.uint8]
    affine_matrix: NDArray[np.float32]
    crop: Tensor

    def copy(self) -> Item:
        """With a frame of its own, which may be changed."""
        return replace(self, image=self.image.copy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--video", type=Path, help="a clip with a face, instead of synthetic frames")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--resolution", type=int, default=256, help="of the model: 256 or 512")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu", help="of the frames worked on at once")
    parser.add_argument("--no-row", action="store_true", help="leave results.csv alone")
    args = parser.parse_args()
    items = from_video(args.video, args) if args.video else synthetic(args)
    height, width = items[0].image.shape[:2]
    where = f"{width}x{height}, {args.video.name if args.video else 'synthetic'}, {args.resolution} px"
    print(f"{where}, {len(items)} frames, {args.rounds} rounds")
    for name, whole, ours in ways(args.resolution, DeviceStream(torch.device(args.device))):
        expected, alone = [whole(item) for item in items], [ours([item.copy()])[0] for item in items]
        together = ours([item.copy() for item in items])
        psnr_db = min(psnr(*pair) for pair in zip(expected * 2, alone + together, strict=True))
        times = measure(items, whole, ours, args)
        for words, seconds in times.items():
            spread = f"{describe(seconds, len(items))}, {speedup(times, words):.1f} times as fast"
            print(f"{name:8} {words:24} {spread}")
            if not args.no_row:
                note = f"{where}, {words}, {spread}, PSNR {psnr_db:.1f} dB"
                cpu = torch.device("cpu")
                add_row(row(f"face geometry {name}", "", note, len(items), statistics.median(seconds), None, cpu))
        print(f"{name:8} PSNR of the worst frame {psnr_db:.1f} dB")


Whole = Callable[[Item], NDArray[np.uint8]]
Ours = Callable[[Sequence[Item]], list[NDArray[np.uint8]]]


def ways(resolution: int, stream: DeviceStream) -> Iterator[tuple[str, Whole, Ours]]:
    """Of aligning and of restoring: its name, the whole-frame way, and ours, which paints on the frames it is given."""
    cpu = DeviceStream(torch.device("cpu"))

    def align(items: Sequence[Item]) -> list[NDArray[np.uint8]]:
        pictures, matrices = [RgbPicture(item.image) for item in items], [item.affine_matrix for item in items]
        where = stream if len(items) > 1 else cpu
        with where.running():
            crops = crop_faces(pictures, matrices, resolution, where).cpu()
        return list(crops.permute(0, 2, 3, 1).numpy())

    def restore(items: Sequence[Item]) -> list[NDArray[np.uint8]]:
        images, matrices = [item.image for item in items], [item.affine_matrix for item in items]
        where = stream if len(items) > 1 else cpu
        with where.running():
            faces = resize_face(where.upload(torch.stack([item.crop for item in items])))
            paste_faces([RgbPicture(image) for image in images], faces, matrices, where)
        return images

    yield "align", lambda item: whole_frame.align(item.image, item.affine_matrix, resolution), align
    yield "restore", lambda item: whole_frame.restore(item.image, item.crop, item.affine_matrix), restore


def measure(items: list[Item], whole: Whole, ours: Ours, args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds for all frames, a list over the rounds, of each way. The ways take turns."""

    def one_by_one(items: list[Item]) -> None:
        for item in items:
            whole(item)

    def in_one_thread(items: list[Item]) -> None:
        with torch_threads(1):
            for item in items:
                ours([item])

    def in_flight(items: list[Item]) -> None:
        with ThreadGroup() as threads:
            for _ in threads.ordered_map(ours, grouped(items, 1), args.threads, StageClock("ours")):
                pass

    runs = {
        f"whole frame, torch's {torch.get_num_threads()} threads": one_by_one,
        "ours, 1 thread": in_one_thread,
        f"ours, {args.threads} threads": in_flight,
        f"ours, all at once, {args.device}": ours,
    }
    times: dict[str, list[float]] = {words: [] for words in runs}
    for round_ in range(args.rounds + 1):
        for words, run in runs.items():
            # As in the line, ours paints on the frame itself: on copies here, so that all rounds see the same.
            scratch = [item.copy() for item in items]
            begun_s = time.perf_counter()
            run(scratch)
            if round_ > 0:  # the first warms up
                times[words].append(time.perf_counter() - begun_s)
    return times


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Torch's own threads set to a number meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def speedup(times: dict[str, list[float]], words: str) -> float:
    """How many times as fast as the first way, by the medians."""
    return statistics.median(next(iter(times.values()))) / statistics.median(times[words])


def describe(seconds: list[float], n_frames: int) -> str:
    """Milliseconds a frame: the median of the rounds, the least and the most."""
    per_frame = [1e3 * value / n_frames for value in seconds]
    return f"{statistics.median(per_frame):.2f} ms ({min(per_frame):.2f} to {max(per_frame):.2f})"


def synthetic(args: argparse.Namespace) -> list[Item]:
    """Smooth random pictures with a face that drifts, nods and grows."""
    generator = torch.Generator().manual_seed(0)
    points = template(args.resolution)
    unit = (points - points.mean(0)) / np.ptp(points[:, 0])
    items = []
    for step in range(args.frames):
        coarse = torch.rand(1, 3, HEIGHT // 24, WIDTH // 24, generator=generator)
        smooth = F.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bicubic")[0].clamp(0, 1)
        image = (smooth * 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        angle, size = 0.1 * np.sin(step), EYES_APART_PX * (1 + 0.02 * step)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        landmarks = np.round(unit @ turn.T * size + [520 + 3 * step, 800 - 2 * step])
        items.append(item_of(image, landmarks, args.resolution))
    return items


def from_video(path: Path, args: argparse.Namespace) -> list[Item]:
    """The first frames of a clip that show a face."""
    detector = MediapipeDetector()
    found = ((frame.image, detector.detect(frame.image)) for frame in read_frames(path))
    faces = ((image, face.landmarks) for image, face in found if face is not None)
    items = [item_of(image, landmarks, args.resolution) for image, landmarks in itertools.islice(faces, args.frames)]
    detector.close()
    if not items:
        raise SystemExit(f"{path}: no usable face")
    return items


def item_of(image: NDArray[np.uint8], landmarks: NDArray[np.float64], resolution: int) -> Item:
    """A frame with what is pasted back: its own crop, the lower half turned to its negative."""
    affine_matrix, _ = similarity_transform(landmarks, template(resolution))
    crop = crop_face(image, affine_matrix, resolution) / 127.5 - 1
    crop[:, resolution // 2 :] *= -0.7
    return Item(image, affine_matrix, crop)


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio, dB, of two uint8 pictures."""
    return float(10 * np.log10(255**2 / max(np.square(one.astype(np.float64) - other).mean(), 1e-9)))


if __name__ == "__main__":
    main()
