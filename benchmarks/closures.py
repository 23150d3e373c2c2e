"""Do the lips shut on p, b and m? Of models, on GRID clips, whose file names spell what is said.

python benchmarks/closures.py --videos CLIP.mpg [CLIP.mpg ...] [--model FOLDER ...]

A clip is synced to its own sound. espeak-ng says the same sentence, and its log-mel is warped onto the recording's
(dynamic time warping, Sakoe and Chiba 1978, with free ends), which gives each p, b and m a time. Lips count as shut
below a quarter of the way from the least opening of the clip's true mouth to its 95th percentile. The true mouth has to
be shut within 0.12 s of that time; else the sound is left out. Hit: the made mouth is shut, too, in the frame of
that closure or one beside it. By chance: what it would hit at random times between the sentence's first and last sound.
JSON, a line a model.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipstream import LipSync
from lipstream.audio_features import mel
from lipstream.errors import InputError
from lipstream.media.audio import read_mono
from lipstream_lab.train import data, espeak
from mouths import FRAME_RATE_HZ, Cutter, Floats

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
_SHUT = 0.25
_STEP_COST = 0.05  # of a step that stays in one of the two recordings


@dataclass(frozen=True)
class Clip:
    """A clip with its true openings, the frames of its bilabial closures, and where its sentence begins and ends."""

    path: Path
    matrices: list[object]
    opening: Floats
    closures: list[int]
    left_out: int
    spoken: slice


def shut_below(opening: Floats) -> float:
    """The opening below which lips count as shut, from a clip's true openings."""
    least, wide = np.nanmin(opening), np.nanpercentile(opening, 95)
    return float(least + _SHUT * (wide - least))


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
    """Find a clip's face, and when its lips shut."""
    speech = speaker.say(sentence(path), _VOICE, _WORDS_PER_MINUTE)
    said = speech.at_rate(mel.SAMPLE_RATE_HZ)
    recorded = np.concatenate(list(read_mono(path)))
    onto = warped(*(data.normalised_mel(np.asarray(x, np.float32)).numpy() for x in (said, recorded)))
    per_s = data.MEL_PER_FRAME * FRAME_RATE_HZ
    matrices = cutter.matrices(path)
    opening = cutter.faces(path, matrices).openings()
    shut = np.flatnonzero(opening < shut_below(opening)).tolist()
    closures, left_out = [], 0
    for phoneme in speech.phonemes:
        if not phoneme.name.startswith(("p", "b", "m")):
            continue
        frame = int(onto[min(round(phoneme.time_s * per_s), len(onto) - 1)] // data.MEL_PER_FRAME)
        nearest = min(shut, key=lambda one: abs(one - frame))
        if abs(nearest - frame) <= _NEAR:
            closures.append(nearest)
        else:
            left_out += 1
    spoken = slice(int(onto[0] // data.MEL_PER_FRAME), int(onto[-1] // data.MEL_PER_FRAME) + 1)
    return Clip(path, matrices, opening, closures, left_out, spoken)


def hits(clip: Clip, made: Floats) -> tuple[int, float]:
    """How many closures the made mouth has, and how many it would have at random times."""
    shut = np.concatenate(([False] * _HIT, made < shut_below(clip.opening), [False] * _HIT))
    near = np.lib.stride_tricks.sliding_window_view(shut, 2 * _HIT + 1).any(1)
    return int(sum(near[frame] for frame in clip.closures)), float(near[clip.spoken].mean()) * len(clip.closures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, nargs="+", required=True)
    parser.add_argument("--model", nargs="+", default=["tiny"])
    args = parser.parse_args()
    cutter, speaker = Cutter(), espeak.Speaker()
    clips = [read_clip(path, speaker, cutter) for path in args.videos]
    total = sum(len(clip.closures) for clip in clips)
    for model in args.model:
        found, by_chance, per_clip = 0, 0.0, {}
        with LipSync.load(model, detector="mediapipe") as sync, tempfile.TemporaryDirectory() as folder:
            for clip in clips:
                result = Path(folder) / "made.mp4"
                sync(clip.path, clip.path, result, overwrite=True)
                n, random = hits(clip, cutter.faces(result, clip.matrices).openings())
                found, by_chance = found + n, by_chance + random
                per_clip[clip.path.stem] = f"{n} of {len(clip.closures)}"
        summary = {"closures": total, "left_out": sum(clip.left_out for clip in clips), "hit": found}
        print(model, json.dumps({**summary, "by_chance": round(by_chance, 1), "clips": per_clip}), flush=True)


if __name__ == "__main__":
    main()
