"""Searching the whole of some frames only: what is searched where, in any number of threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lipstream.errors import ModelError
from lipstream.face import keyframes as search
from lipstream.face.detector import Face
from lipstream.face.keyframes import Segment

SHAPE = (96, 128, 3)


def face(left: float, size: float = 100.0) -> Face:
    return Face((left, 0.0, left + size, size), 0.9, np.full((3, 2), left))


class Witness:
    """A detector that sees the face at the frame's brightness, or none in a dark one, and notes what it is asked."""

    name = "witness"

    def __init__(self, reach: float = 1000.0) -> None:
        self.reach = reach
        self.asked: list[str] = []

    def detect(self, image: np.ndarray) -> Face | None:
        self.asked.append("whole")
        return face(float(image[0, 0, 0])) if image.any() else None

    def detect_near(self, image: np.ndarray, held: Face) -> Face | None:
        self.asked.append("near")
        found = face(float(image[0, 0, 0]) + held.box[0] / 1000)
        return found if abs(found.box[0] - held.box[0]) < self.reach else None

    def close(self) -> None:
        pass


def frame(brightness: int) -> np.ndarray:
    return np.full(SHAPE, brightness, np.uint8)


def faces_of(detector: Witness, brightness: list[int]) -> list[Face | None]:
    segment = Segment(7)
    return [next(iter(segment.find(detector, 7 + index, frame(value))), None) for index, value in enumerate(brightness)]


def test_only_the_first_frame_is_searched_whole():
    detector = Witness()
    found = faces_of(detector, [100, 101, 102, 103])
    assert detector.asked == ["whole", "near", "near", "near"]
    assert [f.box[0] for f in found] == pytest.approx([100, 101.1, 102.1, 103.1])


def test_a_face_that_left_is_searched_for_everywhere():
    detector = Witness(reach=5)
    found = faces_of(detector, [100, 104, 110, 102])
    assert detector.asked == ["whole", "near", "near", "whole", "near"]
    assert found[2].box[0] == 110


def test_after_a_cut_the_whole_frame_is_searched():
    detector = Witness()
    found = faces_of(detector, [100, 140, 141, 105])
    assert detector.asked == ["whole", "whole", "whole", "near"]
    assert found[1].box[0] == 140


def test_without_a_face_to_hold_every_frame_is_searched_whole():
    detector = Witness()
    found = faces_of(detector, [0, 0, 20])
    assert found[:2] == [None, None]
    assert found[2].box[0] == 20
    assert detector.asked == ["whole"] * 3


@pytest.mark.parametrize("error", [RuntimeError("broken"), TimeoutError("broken")])
def test_an_error_in_the_first_frame_reaches_those_that_wait_for_it(monkeypatch, error):
    monkeypatch.setattr(search, "_WAIT_S", 5.0)
    segment, begun, fail = Segment(0), threading.Event(), threading.Event()

    class Failing(Witness):
        def detect(self, image: np.ndarray) -> Face | None:
            begun.set()
            fail.wait(5)
            raise error

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(segment.find, Failing(), 0, frame(100))
        assert begun.wait(5)
        others = [pool.submit(segment.find, Witness(), index, frame(100)) for index in (1, 2)]
        fail.set()
        for future in (first, *others):
            with pytest.raises(type(error), match="broken"):
                future.result(20)
    with pytest.raises(type(error), match="broken"):
        segment.find(Witness(), 3, frame(100))


def test_the_wait_for_the_first_frame_has_an_end(monkeypatch):
    monkeypatch.setattr(search, "_WAIT_S", 0.05)
    with pytest.raises(ModelError, match="face search of frame 7 has not ended"):
        Segment(7).find(Witness(), 8, frame(100))


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_the_number_of_threads_changes_nothing(threads):
    brightness = [int(value) for value in np.random.default_rng(0).integers(80, 120, 60)]

    def run(threads: int) -> list[float]:
        segments = [Segment(start) for start in range(0, 60, 10)]
        detector = Witness(reach=15)

        def find(index: int) -> float:
            return segments[index // 10].find(detector, index, frame(brightness[index]))[0].box[0]

        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(find, range(60)))

    assert run(threads) == run(1)
