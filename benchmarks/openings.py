"""How well is a mouth's opening determined by its sound? Of models' audio encoders, on what they were not trained on.

python benchmarks/openings.py --videos CLIPS [--leave-out PERSON ...] --model tiny [FOLDER ...]

CLIPS, the held-out share and people: as for `lipstream train data`. Prints, for each model and person, the number of
held-out clips and the means of Pearson's r of predicted and measured opening and width. The sound is taken as it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipstream.media.audio import read_mono
from lipstream_lab.train import data, offset
from lipstream_lab.train.dataset import n_training_frames
from lipstream_lab.train.videos import Video, find_videos
from mouths import Cutter, Floats

Shapes = NDArray[np.float32]


def held_out(video: Video, shapes: Floats, mel: Tensor, predict: Callable[[Tensor, int], Shapes]) -> list[float]:
    """r of opening and of width, in the part that is held out."""
    first = n_training_frames(len(shapes), video.held_out)
    predicted = predict(data.mel_of_frames(mel, 0, len(shapes)), len(shapes))[first:]
    true = shapes[first:]
    seen = ~np.isnan(true[:, 0])
    return [float(np.corrcoef(predicted[seen, i], true[seen, i])[0, 1]) for i in range(2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--held-out", type=float, default=0.2)
    parser.add_argument("--leave-out", nargs="+", default=[], metavar="PERSON")
    parser.add_argument("--model", nargs="+", default=["tiny"])
    args = parser.parse_args()
    cutter = Cutter()
    predictors = {model: offset.predictor(model) for model in args.model}
    found: dict[str, dict[str, list[list[float]]]] = {model: {} for model in args.model}
    for video in find_videos(args.videos, args.held_out, args.leave_out):
        if video.held_out == 0:
            continue
        faces = cutter.faces(video.path, cutter.matrices(video.path))
        shapes = np.stack((faces.openings(), faces.widths()), 1)
        mel = data.normalised_mel(np.concatenate(list(read_mono(video.path))))
        for model, predict in predictors.items():
            found[model].setdefault(video.person, []).append(held_out(video, shapes, mel, predict))
    for model, people in found.items():
        print(model, json.dumps({name: [len(rows), *np.mean(rows, 0).round(3)] for name, rows in people.items()}))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
