"""A PNG of frames of several videos, one row a video, the same moments in each column.

python tools/contact_sheet.py SHEET.png VIDEO [VIDEO ...] [--columns 8] [--height 360] [--face]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from lipstream.face.align import crop_face
from lipstream.face.registry import make_detector
from lipstream.face.tracking import FaceTrack
from lipstream.media.images import resized, sheet, write_png

Image = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--height", type=int, default=360, help="of one picture, px")
    parser.add_argument("--face", action="store_true", help="the aligned face crop of the first video, in all of them")
    args = parser.parse_args()
    n_frames = min(count_frames(video) for video in args.videos)
    moments = np.linspace(0, n_frames - 1, args.columns).round().astype(int).tolist()
    rows = [frames_at(video, moments) for video in args.videos]
    if args.face:
        rows = crop_alike(rows, args.height)
    write_png(args.sheet, sheet([[resized(image, args.height) for image in row] for row in rows]))
    print(f"{args.sheet}: frames {', '.join(map(str, moments))} of {', '.join(map(str, args.videos))}")


def count_frames(video: Path) -> int:
    with av.open(str(video)) as container:
        return sum(1 for _ in container.decode(video=0))


def frames_at(video: Path, moments: list[int]) -> list[Image]:
    with av.open(str(video)) as container:
        wanted = set(moments)
        found = {i: f.to_ndarray(format="rgb24") for i, f in enumerate(container.decode(video=0)) if i in wanted}
    return [found[i] for i in moments]


def crop_alike(rows: list[list[Image]], size: int) -> list[list[Image]]:
    detector = make_detector("mediapipe", "cpu")
    faces = [detector.detect(image) for image in rows[0]]
    matrices = [None if face is None else FaceTrack(size).update(0, False, face.landmarks) for face in faces]
    blank = np.zeros((size, size, 3), np.uint8)
    return [
        [
            blank if matrix is None else crop_face(image, matrix, size).permute(1, 2, 0).numpy()
            for image, matrix in zip(row, matrices, strict=True)
        ]
        for row in rows
    ]


if __name__ == "__main__":
    main()
