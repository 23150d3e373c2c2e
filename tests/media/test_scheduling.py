"""Encoders leave the threads of the process as they were."""

from __future__ import annotations

import os
import sys
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lipstream.encoding_settings import EncodingSettings
from lipstream.media.color import ColorTags
from lipstream.media.writer import VideoWriter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="schedules threads otherwise")


def test_av1_makes_no_real_time_threads(tmp_path: Path) -> None:
    """As root SVT-AV1 makes its caller, and so all that is begun from there, starve the machine."""
    seen: list[set[int]] = []

    def encode() -> None:
        settings = EncodingSettings(codec="av1", encoder="software")
        with VideoWriter(
            tmp_path / "out.mp4",
            width=128,
            height=128,
            color=ColorTags(),
            speech=None,
            n_frames=2,
            frame_rate=Fraction(25),
            encoding=settings,
        ) as writer:
            for _ in range(2):
                writer.write(np.zeros((128, 128, 3), np.uint8))
                threads = [int(path.name) for path in Path("/proc/self/task").iterdir()]
                seen.append({os.sched_getscheduler(thread) for thread in threads})

    thread = threading.Thread(target=encode)
    thread.start()
    thread.join()
    assert seen == [{os.SCHED_OTHER}, {os.SCHED_OTHER}]
    assert (tmp_path / "out.mp4").stat().st_size > 0
