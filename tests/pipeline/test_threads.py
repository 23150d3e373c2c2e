"""Thread maps and queues: order, bounds, errors and early ends."""

from __future__ import annotations

import collections
import gc
import itertools
import threading
import time
import weakref
from collections.abc import Iterator

import pytest
import torch

from lipstream.pipeline.clocks import StageClock, arriving, timed
from lipstream.pipeline.threads import FrameBudget, Stopped, ThreadGroup


@pytest.fixture
def group() -> Iterator[ThreadGroup]:
    with ThreadGroup() as threads:
        yield threads
    assert not threads.unfinished()


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_results_come_in_the_items_order(group: ThreadGroup, threads: int) -> None:
    def slow_when_even(number: int) -> int:
        time.sleep(0.002 * (number % 2 == 0))
        return number * number

    clock = StageClock("square")
    assert list(group.ordered_map(slow_when_even, range(40), threads, clock)) == [n * n for n in range(40)]
    assert clock.frames == 40
    assert clock.seconds >= 20 * 0.002


def test_an_endless_source_is_only_read_a_little_ahead(group: ThreadGroup) -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    results = group.ordered_map(lambda n: n, source(), 2, StageClock("same"), in_flight=3)
    for begun in range(10):
        assert next(results) == begun
        assert len(taken) <= begun + 1 + 3
    time.sleep(0.05)
    assert len(taken) == 10 + 3


def test_an_error_comes_out_where_the_results_are_taken(group: ThreadGroup) -> None:
    def fail_at_five(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        return number

    mapped = group.ordered_map(fail_at_five, range(100), 4, StageClock("fail"))
    results = group.ordered_map(lambda n: n, mapped, 1, StageClock("next"))
    taken = []
    with pytest.raises(ValueError, match="five"):
        for result in results:
            taken.append(result)
    assert taken == [0, 1, 2, 3, 4]


def test_closing_ends_the_threads_and_closes_the_sources() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    before = threading.active_count()
    kept = source()  # so that nothing but the group can close it
    with ThreadGroup() as group:
        read = group.ordered_map(lambda n: n, kept, 2, StageClock("same"))
        results = group.ordered_map(lambda n: n, read, 1, StageClock("next"))
        next(results)
    assert closed.is_set()
    assert threading.active_count() == before
    with pytest.raises(Stopped):
        next(results)


def test_all_threads_are_asked_to_end_before_any_is_joined() -> None:
    """Ten that look every 0.2 s end together, not one after another."""
    with ThreadGroup() as group:

        def work(_: int) -> None:
            while True:
                time.sleep(0.2)
                group.check()

        for number in range(10):
            group.call(lambda: work(0), f"busy-{number}")
        time.sleep(0.1)
        begun_s = time.monotonic()
    assert time.monotonic() - begun_s < 1.0
    assert not group.unfinished()


def test_a_subgroup_ends_with_its_group() -> None:
    with ThreadGroup() as group:
        inner = group.subgroup()
        results = inner.ordered_map(lambda n: n, itertools.count(), 2, StageClock("inner"))
        next(results)
        outcome = group.call(lambda: [next(results) for _ in itertools.count()], "outer")
    assert isinstance(outcome.exception(timeout=1), Stopped)
    assert not inner.unfinished()
    assert not group.unfinished()


def test_a_thread_started_during_the_join_is_joined_too() -> None:
    group = ThreadGroup()
    group.start(lambda: (time.sleep(0.2), group.start(lambda: time.sleep(0.2), "second"))[0], "first")
    assert group.join(5)
    assert not group.unfinished()


def test_a_thread_inside_a_long_call_is_not_waited_for_longer_than_promised() -> None:
    release = threading.Event()
    begun_s = time.monotonic()
    with ThreadGroup() as group:
        group.call(lambda: release.wait(30), "long")
    assert time.monotonic() - begun_s < 2
    assert [thread.name for thread in group.unfinished()] == ["long"]
    assert all(thread.daemon for thread in group.unfinished())
    release.set()
    assert group.join(5)


def test_a_producer_that_dies_is_noticed(group: ThreadGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipstream.pipeline.ordered_map.OrderedMap._feed", lambda self: None)
    results = group.ordered_map(lambda n: n, range(3), 1, StageClock("dead"))
    with pytest.raises(RuntimeError, match="ended without a result"):
        next(results)


def test_no_cycle_keeps_what_was_in_flight(group: ThreadGroup) -> None:
    class Frame:
        pass

    frames: list[weakref.ref[Frame]] = []

    def source() -> Iterator[Frame]:
        for _ in range(20):
            frame = Frame()
            frames.append(weakref.ref(frame))
            yield frame
            del frame

    def fail_late(frame: Frame) -> Frame:
        if len(frames) > 8:
            raise ValueError("late")
        return frame

    gc.disable()
    try:
        with ThreadGroup() as own:
            results = own.ordered_map(fail_late, source(), 2, StageClock("fail"))
            with pytest.raises(ValueError, match="late"):
                collections.deque(results, maxlen=0)
        del results, own
        assert [frame for frame in frames if frame() is not None] == []
    finally:
        gc.enable()


def test_a_budget_bounds_all_stages_together(group: ThreadGroup) -> None:
    budget = FrameBudget(group, 5)
    made: list[int] = []

    def source() -> Iterator[int]:
        for number in range(30):
            made.append(number)
            yield number

    first = group.ordered_map(lambda n: n, budget.spend(source()), 4, StageClock("first"))
    second = group.ordered_map(lambda n: n, first, 4, StageClock("second"))
    for index, number in enumerate(second):
        assert number == index
        assert len(made) <= index + 5
        budget.give_back()
    assert made == list(range(30))


def test_a_failed_item_is_not_counted() -> None:
    clock = StageClock("stage")
    with pytest.raises(RuntimeError), clock.running(frames=3):
        raise RuntimeError
    assert clock.frames == 0
    with clock.running(frames=3):
        pass
    assert clock.frames == 3
    assert clock.calls == 1


def slowly(count: int, seconds: float) -> Iterator[int]:
    for number in range(count):
        time.sleep(seconds)
        yield number


def test_what_another_stage_does_is_not_a_stages_own_work(group: ThreadGroup) -> None:
    first, second, third = StageClock("first"), StageClock("second"), StageClock("third")
    begun_s = time.perf_counter()
    mapped = group.ordered_map(lambda n: time.sleep(0.01) or n, timed(slowly(10, 0.01), first), 1, second)
    assert list(timed(mapped, third)) == list(range(10))
    wall_s = time.perf_counter() - begun_s
    assert first.seconds >= 0.1
    assert second.seconds >= 0.1
    # The third only hands on: what it waited for the others is no work of its own.
    assert third.seconds < 0.5 * first.seconds
    assert third.seconds + third.waiting_for_input_s + third.waiting_for_room_s <= wall_s

    inner, outer = StageClock("inner"), StageClock("outer")
    begun_s = time.perf_counter()
    assert len(list(timed(timed(slowly(10, 0.01), inner), outer))) == 10
    assert inner.seconds >= 0.1
    assert inner.seconds + outer.seconds <= time.perf_counter() - begun_s
    assert outer.waiting_for_input_s >= inner.seconds


@pytest.mark.parametrize("threads", [1, 3])
def test_idle_threads_of_a_map_wait_for_input_or_for_room(group: ThreadGroup, threads: int) -> None:
    starved, crowded = StageClock("starved"), StageClock("crowded")
    begun_s = time.perf_counter()
    list(group.ordered_map(lambda n: n, slowly(20, 0.005), threads, starved))
    wall_s = time.perf_counter() - begun_s
    assert starved.threads == threads
    assert starved.waiting_for_input_s > 0.5 * threads * 20 * 0.005
    assert starved.waiting_for_input_s > starved.waiting_for_room_s
    assert starved.seconds + starved.waiting_for_input_s + starved.waiting_for_room_s <= threads * wall_s

    for _ in group.ordered_map(lambda n: n, range(20), threads, crowded):
        time.sleep(0.005)
    assert crowded.waiting_for_room_s > crowded.waiting_for_input_s


def test_what_arrives_is_waited_for() -> None:
    clock = StageClock("stage")
    assert list(arriving(slowly(10, 0.01), clock)) == list(range(10))
    assert clock.waiting_for_input_s >= 0.1
    hungry_s = clock.waiting_for_input_s
    for _ in arriving(iter(range(10)), clock):
        time.sleep(0.01)
    assert clock.waiting_for_input_s - hungry_s < 0.05


def test_sleep_takes_no_cpu_time_and_work_does() -> None:
    asleep, awake = StageClock("asleep"), StageClock("awake")
    with asleep.running():
        time.sleep(0.05)
    until_s = time.thread_time() + 0.05
    with awake.running():
        while time.thread_time() < until_s:
            pass
    assert asleep.seconds >= 0.05 > 2 * asleep.cpu_s
    assert awake.cpu_s >= 0.04
    assert awake.cpu_s <= awake.seconds + 0.01


def test_every_call_that_succeeds_is_reported_in_its_own_thread(group: ThreadGroup) -> None:
    spans: list[tuple[str, str, float, float]] = []

    def on_span(name: str, begun_s: float, ended_s: float) -> None:
        spans.append((threading.current_thread().name, name, begun_s, ended_s))

    clock = StageClock("square", on_span=on_span)
    before_s = time.perf_counter()
    list(group.ordered_map(lambda n: n, range(10), 2, clock))
    with pytest.raises(RuntimeError), clock.running():
        raise RuntimeError
    assert len(spans) == clock.calls == 10
    assert {name for _, name, _, _ in spans} == {"square"}
    assert all(thread.startswith("square_") for thread, *_ in spans)
    assert all(before_s <= begun_s <= ended_s <= time.perf_counter() for *_, begun_s, ended_s in spans)


@pytest.mark.skipif("OpenMP" not in torch.__config__.parallel_info(), reason="needs a torch with OpenMP")
def test_torch_splits_no_work_of_a_maps_threads_and_all_others_keep_their_number(
    group: ThreadGroup,
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert set(group.ordered_map(lambda _: torch.get_num_threads(), range(8), 2, StageClock("map"))) == {1}
        everywhere = group.ordered_map(
            lambda _: torch.get_num_threads(), range(8), 2, StageClock("map"), on_one_core=False
        )
        assert set(everywhere) == {3}
        assert torch.get_num_threads() == 3
        made_beside = group.ordered_map(lambda n: n, (torch.get_num_threads() for _ in range(1)), 1, StageClock("map"))
        assert list(made_beside) == [3]
    finally:
        torch.set_num_threads(before)
