"""Do the lips shut on p, b and m, close on f and v, round on oo and w? Of models, on GRID clips, named by what is said.

python benchmarks/lip_shapes.py --videos CLIP.mpg [CLIP.mpg ...] [--model FOLDER ...]

A clip is synced to its own sound, and with several clips its face to the sound of the one before it, which tells what
the mouth owes to the sound. espeak-ng says the same sentence, and its log-mel is warped onto the recording's (dynamic
time warping, Sakoe and Chiba 1978, with free ends), which gives each phoneme a time. Lips count as shut below a quarter
of the way from the least opening of the clip's true mouth to its 95th percentile, as closed on f and v below half of
it, as round below half of the way of its widths. The true mouth has to have the shape within 0.12 s of that time; else
the sound is left out. Hit: the made mouth has it, too, in that frame or one beside it; on another's face by that face's
own bounds. By chance: what it would hit at random times between the sentence's first and last sound. Whether teeth
show on f and v is not measured. JSON, a line a model and shape.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipstream import LipSync
from lipstream.audio_features import mel
from lipstream.errors import InputError
from lipstream.media.audio import read_mono
from lipstream_lab.train import data, espeak
from mouths import FRAME_RATE_HZ, Cutter, Faces, Floats

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# The sentences of GRID, letter by letter of the file's name.
_WORDS = (
    {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    {"b": "blue", "g": "green", "r": "red", "w": "white"},
    {"a": "at", "b": "by", "i": "in", "w": "with"},
    {letter: f"{letter}," for letter in "abcdefghijklmnopqrstuvxyz"},
    dict(zip("z123456789", _DIGITS, strict=True)),
    {"a": "again", "n": "now", "p": "please", "s": "soon"},
)
_NAME = re.compile(r"(?:^|_)([blps][bgrw][abiw][a-z][z1-9][anps])$")
_VOICE, _WORDS_PER_MINUTE = "en-gb-x-rp", 165
_NEAR, _HIT = 3, 1  # frames
_STEP_COST = 0.05  # of a step that stays in one of the two recordings


@dataclass(frozen=True)
class Shape:
    """What lips do on some phonemes, by how espeak-ng's names for them begin.

    share: how far up from the least to the 95th percentile of the true openings or widths a mouth counts as that shape.
    """

    name: str
    phonemes: tuple[str, ...]
    of_width: bool
    share: float

    def bound(self, true: Floats) -> float:
        """Return the opening or width below which a mouth has this shape, from a clip's true ones."""
        least, most = np.nanmin(true), np.nanpercentile(true, 95)
        return float(least + self.share * (most - least))

    def measured(self, faces: Faces) -> Floats:
        return faces.widths() if self.of_width else faces.openings()


SHAPES = (
    Shape("shut on p, b, m", ("p", "b", "m"), False, 0.25),
    Shape("closed on f, v", ("f", "v"), False, 0.5),
    Shape("round on oo, w", ("u", "U", "w", "oU", "O"), True, 0.5),
)


@dataclass(frozen=True)
class Clip:
    """A clip with its true mouth, and where its sentence begins and ends.

    frames: of each of SHAPES, when the true mouth has it on one of its sounds. left_out: sounds without it.
    """

    path: Path
    matrices: list[Any]
    true: Faces
    frames: list[list[int]]
    left_out: list[int]
    spoken: slice


def sentence(path: Path) -> str:
    """What is said in a clip. Raises InputError where the name does not say."""
    name = _NAME.search(path.stem)
    if name is None:
        raise InputError("no name of GRID's", file=path, fix="give clips like bbaf2n.mpg")
    return " ".join(words[letter] for words, letter in zip(_WORDS, name[1], strict=True))


def warped(spoken: NDArray[np.float32], recorded: NDArray[np.float32]) -> NDArray[np.int64]:
    """For each column of `spoken` (bands, n), that of `recorded` (bands, m) that it is warped onto, with free ends."""
    one, other = ((x - x.mean(1, keepdims=True)) for x in (spoken, recorded))
    one, other = (x / np.linalg.norm(x, axis=0).clip(1e-6) for x in (one, other))
    distance = 1 - one.T @ other
    n, m = distance.shape
    total = np.full((n, m), np.inf)
    total[0] = distance[0]
    came = np.zeros((n, m), np.int8)
    for i in range(1, n):
        for j in range(m):
            ways = [total[i - 1, j] + _STEP_COST]
            if j > 0:
                ways += [total[i - 1, j - 1], total[i, j - 1] + _STEP_COST]
            came[i, j] = int(np.argmin(ways))
            total[i, j] = min(ways) + distance[i, j]
    i, j, onto = n - 1, int(np.argmin(total[-1])), np.zeros(n, np.int64)
    while i > 0:
        onto[i] = j
        step = came[i, j]
        i, j = (i if step == 2 else i - 1), (j if step == 0 else j - 1)
    onto[0] = j
    return onto


def read_clip(path: Path, speaker: espeak.Speaker, cutter: Cutter) -> Clip:
    """Find a clip's face, and when its lips have which shape."""
    speech = speaker.say(sentence(path), _VOICE, _WORDS_PER_MINUTE)
    said = speech.at_rate(mel.SAMPLE_RATE_HZ)
    recorded = np.concatenate(list(read_mono(path)))
    onto = warped(*(data.normalised_mel(np.asarray(x, np.float32)).numpy() for x in (said, recorded)))
    per_s = data.MEL_PER_FRAME * FRAME_RATE_HZ
    matrices = cutter.matrices(path)
    true = cutter.faces(path, matrices)
    frames, left_out = [], []
    for shape in SHAPES:
        times_s = [one.time_s for one in speech.phonemes if one.name.startswith(shape.phonemes)]
        at = [int(onto[min(round(time_s * per_s), len(onto) - 1)] // data.MEL_PER_FRAME) for time_s in times_s]
        found = shaped(shape.measured(true), shape, at)
        frames.append(found)
        left_out.append(len(at) - len(found))
    spoken = slice(int(onto[0] // data.MEL_PER_FRAME), int(onto[-1] // data.MEL_PER_FRAME) + 1)
    return Clip(path, matrices, true, frames, left_out, spoken)


def shaped(true: Floats, shape: Shape, at: list[int]) -> list[int]:
    """For each of some frames, return the nearest in which the true mouth has a shape; none that is not near."""
    has = np.flatnonzero(true < shape.bound(true))
    nearest = [int(has[np.abs(has - frame).argmin()]) for frame in at]
    return [one for one, frame in zip(nearest, at, strict=True) if abs(one - frame) <= _NEAR]


def near(made: Floats, bound: float) -> NDArray[np.bool_]:
    """Return for each frame whether an opening or a width is below a bound in it or in one beside it."""
    has = np.concatenate(([False] * _HIT, made < bound, [False] * _HIT))
    return np.lib.stride_tricks.sliding_window_view(has, 2 * _HIT + 1).any(1)


def hits(frames: list[int], has: NDArray[np.bool_], spoken: slice) -> tuple[int, int, float]:
    """Return how many of the frames are hit, how many there are, and how many would be hit at random times."""
    inside = [frame for frame in frames if frame < len(has)]
    return int(has[inside].sum()), len(inside), float(has[spoken].mean()) * len(inside)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, nargs="+", required=True)
    parser.add_argument("--model", nargs="+", default=["tiny"])
    args = parser.parse_args()
    cutter, speaker = Cutter(), espeak.Speaker()
    clips = [read_clip(path, speaker, cutter) for path in args.videos]
    for model in args.model:
        with LipSync.load(model, detector="mediapipe") as sync:
            own = measure(sync, cutter, list(zip(clips, clips, strict=True)))
            others = list(zip(clips, clips[-1:] + clips[:-1], strict=True)) if len(clips) > 1 else []
            dubbed = measure(sync, cutter, others)
        for index, shape in enumerate(SHAPES):
            left_out = sum(clip.left_out[index] for clip in clips)
            found = {"shape": shape.name, "left_out": left_out, "own": own[index], "dubbed": dubbed[index]}
            print(model, json.dumps(found), flush=True)


def measure(sync: LipSync, cutter: Cutter, pairs: list[tuple[Clip, Clip]]) -> list[dict[str, float]]:
    """Sync each face to the sound of the clip beside it; return for each shape its sounds, hits and those by chance."""
    counts = np.zeros((len(SHAPES), 3))
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "made.mp4"
        for face, sound in pairs:
            sync(face.path, sound.path, result, overwrite=True)
            made = cutter.faces(result, face.matrices)
            for index, shape in enumerate(SHAPES):
                has = near(shape.measured(made), shape.bound(shape.measured(face.true)))
                counts[index] += hits(sound.frames[index], has, sound.spoken)
    return [{"hit": int(n), "of": int(of), "by_chance": round(random, 1)} for n, of, random in counts.tolist()]


if __name__ == "__main__":
    main()
