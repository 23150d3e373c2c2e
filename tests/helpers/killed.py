"""A program that lip-syncs a clip in segments, kills itself at random moments, and goes on until the output is there.

python -m helpers.killed MODEL VIDEO SPEECH FOLDER KILLS: prints the digests of an undisturbed output and of the one
whose run was killed KILLS times, and how many pieces were there after each kill.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from helpers.pipeline import FAST, KnownFace
from lipstream import LipSync, RuntimeSettings
from lipstream.models.load import load_model
from lipstream.scale.segments import sync_in_segments


def begin(model: str, video: str, speech: str, output: Path, work: Path) -> int:
    """Begin a run in a process of its own; return its id. What takes long to import is imported already."""
    process = os.fork()
    if process:
        return process
    import torch

    detector = KnownFace(np.array([[130.0, 90.0], [190.0, 90.0], [160.0, 125.0]]))
    loaded = load_model(model, torch.device("cpu"), torch.float32)
    sync = LipSync(loaded, detector, RuntimeSettings(device="cpu", threads=2))
    sync_in_segments([sync], video, speech, output, FAST, work=work, segment_s=0.3)
    os._exit(0)


def main(model: str, video: str, speech: str, folder: str, kills: str) -> None:
    """Run, kill, run again; see above."""
    output, work, dice = Path(folder) / "out.mp4", Path(folder) / "work", random.Random(int(kills))
    begun_s = time.monotonic()
    assert os.waitpid(begin(model, video, speech, Path(folder) / "whole.mp4", work), 0)[1] == 0
    whole_s = time.monotonic() - begun_s
    pieces_after, n_killed = [], 0
    while n_killed < int(kills):
        process = begin(model, video, speech, output, work)
        time.sleep(dice.uniform(0, whole_s))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if status == 0:  # it had ended before
            output.unlink()
            continue
        n_killed += 1
        pieces_after.append(len(list(work.glob("*/pieces/0*.mp4"))))
    if not output.exists():
        assert os.waitpid(begin(model, video, speech, output, work), 0)[1] == 0
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (Path(folder) / "whole.mp4", output)]
    print(json.dumps({"digests": digests, "pieces_after": pieces_after, "work_is_left": work.exists()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
