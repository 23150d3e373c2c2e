"""The rules of a live session, on a clock of the test's own: nothing is computed, nothing waits."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from lipstream.live.schedule import LATEST_S, Cost, Schedule, Slot, Turn, Wait, Window
from lipstream.live.speech import Segment

RATE = Fraction(25)
RATE_HZ = 16000
LOOK_AHEAD_S = 0.27


@dataclass
class Simulation:
    """One thread that generates and one that takes frames, as the session has them, played event by event."""

    cost_s: Callable[[int], float]  # of so many faces
    expected: Cost
    frame_rate: Fraction = RATE
    now_s: float = 100.0
    shown: list[tuple[float, Slot | None]] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.schedule = Schedule(self.frame_rate, 16, True, self.expected)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._n = 0
        self._is_busy = False

    def at(self, time_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time_s, self._n, do))
        self._n += 1

    def run(self, until_s: float) -> None:
        end_s = self.now_s + until_s
        self.at(self.now_s, self._take)
        while self._events and self._events[0][0] <= end_s:
            self.now_s, _, do = heapq.heappop(self._events)
            do()
            self._work()

    def _take(self) -> None:
        turn = self.schedule.take(self.now_s)
        if isinstance(turn, Turn):
            self.shown.append((self.now_s, turn.slot))
            self.at(self.now_s, self._take)
        else:
            assert turn.until_s is not None
            self.at(turn.until_s, self._take)

    def _work(self) -> None:
        if self._is_busy:
            return
        window = self.schedule.plan(self.now_s)
        if isinstance(window, Wait):
            if window.until_s is not None:
                self.at(max(window.until_s, self.now_s + 1e-4), lambda: None)
            return
        self._is_busy = True
        self.windows.append(window)
        seconds = self.cost_s(window.faces)

        def done() -> None:
            self._is_busy = False
            self.schedule.done(window, ["picture"] * len(window.slots), seconds)

        self.at(self.now_s + seconds, done)

    def speak(
        self, seconds: float, chunk_s: float, speed: float, start_s: float = 0.0, jitter_s: float = 0.0
    ) -> Segment:
        """Push a segment of so many seconds in chunks, `speed` times as fast as it is spoken."""
        segment = Segment(RATE_HZ, self.frame_rate, LOOK_AHEAD_S)
        rng, n = random.Random(1), round(seconds / chunk_s)
        begin_s = self.now_s + start_s
        self.at(begin_s, lambda: self.schedule.add(segment))
        last_s = begin_s
        for i in range(1, n + 1):
            last_s = max(last_s, begin_s + i * chunk_s / speed + rng.uniform(0, jitter_s))
            self.at(last_s, lambda: segment.add(np.zeros(round(chunk_s * RATE_HZ), np.float32), self.now_s))
        self.at(last_s, lambda: segment.end(self.now_s))
        return segment

    def spoken(self) -> list[tuple[float, Slot]]:
        return [(time_s, slot) for time_s, slot in self.shown if slot is not None]


def simulation(per_face_s: float, base_s: float = 0.02, **more: Any) -> Simulation:
    return Simulation(lambda n: base_s + per_face_s * n, Cost(base_s, per_face_s), **more)


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001), Fraction(24)])
@pytest.mark.parametrize(("chunk_s", "speed"), [(0.02, 1.0), (0.1, 1.0), (0.1, 4.0), (3.0, 100.0)])
def test_every_frame_of_the_speech_is_shown_once_in_order_and_in_time(
    rate: Fraction, chunk_s: float, speed: float
) -> None:
    live = simulation(0.015, frame_rate=rate)
    segment = live.speak(6.0, chunk_s, speed, start_s=0.7)
    live.run(12)
    spoken = live.spoken()
    assert [slot.frame for _, slot in spoken] == list(range(segment.n_frames))
    assert all(slot.picture is not None for _, slot in spoken)
    indices = [slot.index for _, slot in spoken]
    assert indices == list(range(indices[0], indices[0] + len(spoken)))  # without a gap
    for time_s, slot in spoken:
        turn_s = spoken[0][0] + float(slot.frame / rate)
        assert time_s <= max(segment.arrived_s(slot.frame) + LATEST_S, turn_s + 1e-6)
    if speed == 1.0:  # spoken as it comes; that the last frames are the last is known early
        before_end = [(time_s, slot) for time_s, slot in spoken if slot.frame < segment.n_frames - 8]
        assert max(time_s - segment.arrived_s(slot.frame) for time_s, slot in before_end) < 0.5


def test_frames_are_never_ahead_of_or_behind_the_clock_for_ten_minutes() -> None:
    rate = Fraction(30000, 1001)
    live = simulation(0.01, frame_rate=rate)
    live.speak(595.0, 0.1, 1.0, start_s=1.0, jitter_s=0.02)
    live.run(600)
    first_s = live.shown[0][0]
    for index, (time_s, _) in enumerate(live.shown):
        assert abs(time_s - first_s - float(index / rate)) < 0.02
    spoken = live.spoken()
    for time_s, slot in spoken:  # the sound of frame k begins k / rate after the first
        assert abs(time_s - spoken[0][0] - float(slot.frame / rate)) < 0.02
    samples = sum(len(slot.segment.samples(slot.frame)) for _, slot in spoken[-2000:])
    assert abs(samples / RATE_HZ - float(2000 / rate)) < 1e-4


def test_windows_grow_where_the_speech_comes_faster_than_it_is_spoken() -> None:
    live = simulation(0.012)
    live.speak(8.0, 4.0, 100.0)
    live.run(9)
    sizes = [len(window.slots) for window in live.windows]
    assert sizes[0] == 6  # in a tenth of a second
    assert sizes == sorted(sizes[:-1]) + sizes[-1:]
    assert max(sizes) == 16
    assert all(window.faces == len(window.slots) for window in live.windows)


@pytest.mark.parametrize("per_face_s", [0.05, 0.08, 0.2, 0.5])
@pytest.mark.parametrize("speed", [1.0, 50.0])
def test_where_compute_is_short_faces_are_thinned_and_the_sound_goes_on(per_face_s: float, speed: float) -> None:
    live = simulation(per_face_s)
    segment = live.speak(8.0, 0.1, speed)
    live.run(14)
    spoken = live.spoken()
    assert [slot.frame for _, slot in spoken] == list(range(segment.n_frames))
    assert [slot.index for _, slot in spoken] == list(range(spoken[0][1].index, spoken[0][1].index + len(spoken)))
    assert spoken[0][0] <= segment.arrived_s(0) + LATEST_S + 1e-6
    made = sum(window.faces for window in live.windows)
    assert made < 0.9 * segment.n_frames
    assert made * per_face_s > 0.5 * 8  # as many as there was time for
    if per_face_s < 0.1:
        assert np.mean([slot.picture is not None for _, slot in spoken]) > 0.8


def test_speech_as_it_is_spoken_is_held_back_for_windows_that_pay() -> None:
    """Where four faces take longer than four frames last, later frames and larger windows leave fewer faces out."""
    live = simulation(0.03, base_s=0.075)
    segment = live.speak(12.0, 0.02, 1.0)
    live.run(16)
    spoken = live.spoken()
    latest_s = max(time_s - segment.arrived_s(slot.frame) for time_s, slot in spoken if slot.frame < 280)
    assert 0.6 < latest_s < LATEST_S
    assert sum(window.faces for window in live.windows) > 0.85 * segment.n_frames
    assert all(slot.picture is not None for _, slot in spoken)
    sentence = simulation(0.03, base_s=0.075)
    quick = sentence.speak(4.0, 0.1, 50.0)
    sentence.run(2)
    assert sentence.spoken()[0][0] - quick.arrived_s(0) < 0.4  # all there is is there: nothing to wait for


@pytest.mark.parametrize("n", [1, 3, 7, 10])
def test_time_for_so_many_faces_is_what_they_cost(n: int) -> None:
    cost = Cost(0.05, 0.03, factor=1.2)
    assert cost.faces_in(cost.of(n)) == n
    assert cost.faces_in(cost.of(n) - 1e-3) == n - 1


def test_speech_does_not_wait_for_a_window_that_takes_too_long() -> None:
    live = simulation(0.015)
    first = live.speak(0.4, 0.4, 100.0)
    live.cost_s = lambda n: 5.0  # something else takes the processor
    live.run(1)
    second = live.speak(1.0, 1.0, 100.0)
    live.run(3)
    shown = {slot.segment: time_s for time_s, slot in reversed(live.spoken())}
    for segment in (first, second):
        assert shown[segment] <= segment.arrived_s(0) + LATEST_S + 1e-6
    assert [slot.frame for _, slot in live.spoken()] == [*range(10), *range(25)]


def test_speech_waits_while_the_session_gets_ready() -> None:
    live = simulation(0.015)
    live.schedule.ready_s, live._is_busy = math.inf, True
    segment = live.speak(0.8, 0.8, 100.0)

    def ready() -> None:
        live.schedule.ready_s, live._is_busy = live.now_s, False

    live.at(103.0, ready)
    live.run(6)
    spoken = live.spoken()
    assert [slot.frame for _, slot in spoken] == list(range(segment.n_frames))
    assert all(slot.picture is not None for _, slot in spoken)
    assert 103.0 <= spoken[0][0] <= 103.0 + LATEST_S


def test_speech_that_comes_late_pauses_and_goes_on() -> None:
    live = simulation(0.015)
    segment = Segment(RATE_HZ, RATE, LOOK_AHEAD_S)
    live.schedule.add(segment)
    second = np.zeros(RATE_HZ, np.float32)
    live.at(100.5, lambda: segment.add(second, live.now_s))
    live.at(103.5, lambda: segment.add(second, live.now_s))
    live.at(103.6, lambda: segment.end(live.now_s))
    live.run(8)
    spoken = live.spoken()
    assert [slot.frame for _, slot in spoken] == list(range(50))
    assert all(slot.picture is not None for _, slot in spoken)
    jumps = [two.index - one.index for (_, one), (_, two) in itertools.pairwise(spoken)]
    assert sum(jump > 1 for jump in jumps) == 1
    assert sum(slot.place == 0 for _, slot in spoken) == 2


def test_an_interruption_takes_effect_with_the_next_frame() -> None:
    live = simulation(0.015)
    live.speak(5.0, 5.0, 100.0)
    live.at(102.01, live.schedule.clear)
    live.run(4)
    assert any(slot is not None for time_s, slot in live.shown if time_s < 102.01)
    assert all(slot is None for time_s, slot in live.shown if time_s > 102.01)
    again = live.speak(1.0, 0.1, 1.0)
    live.run(4)
    assert [slot.frame for _, slot in live.spoken() if slot.segment is again] == list(range(25))


def test_segments_follow_one_another_without_a_gap() -> None:
    live = simulation(0.015)
    segments = [live.speak(1.0, 1.0, 100.0, start_s=0.1 * n) for n in range(3)]
    live.run(5)
    spoken = live.spoken()
    assert [(segments.index(slot.segment), slot.frame) for _, slot in spoken] == [
        (n, frame) for n in range(3) for frame in range(25)
    ]
    assert [slot.index for _, slot in spoken] == list(range(spoken[0][1].index, spoken[0][1].index + 75))


def test_a_receiver_that_pauses_gets_no_burst_of_frames() -> None:
    schedule = Schedule(RATE, 16, True, Cost(0.0, 0.01))
    assert isinstance(schedule.take(10.0), Turn)
    assert isinstance(schedule.take(15.0), Turn)
    wait = schedule.take(15.0)
    assert isinstance(wait, Wait)
    assert wait.until_s == pytest.approx(15.04)


def test_without_a_clock_only_the_speech_comes_in_whole_windows() -> None:
    schedule = Schedule(RATE, 16, False)
    segment = Segment(RATE_HZ, RATE, LOOK_AHEAD_S)
    schedule.add(segment)
    segment.add(np.zeros(RATE_HZ, np.float32), 0.0)
    segment.end(0.0)
    sizes = []
    while isinstance(window := schedule.plan(0.0), Window):
        sizes.append(len(window.slots))
        assert schedule.take(0.0) == Wait()
        schedule.done(window, ["picture"] * len(window.slots), 0.1)
        for n in range(len(window.slots)):
            turn = schedule.take(0.0)
            assert isinstance(turn, Turn)
            assert turn.slot is window.slots[n]
    assert sizes == [16, 9]


def test_the_cost_rises_at_once_and_falls_little_by_little() -> None:
    cost = Cost(0.02, 0.01)
    cost.correct(8, 0.3)
    assert cost.of(8) == pytest.approx(0.2)
    for _ in range(40):
        cost.correct(8, 0.1)
    assert cost.of(8) == pytest.approx(0.1, rel=0.05)
