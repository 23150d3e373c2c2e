"""Thread maps and queues: order, bounds, errors and early ends."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from lipstream.stages import StageClock, arriving, ordered_map, prefetch, timed


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_results_come_in_the_items_order(threads: int) -> None:
    def slow_when_even(number: int) -> int:
        time.sleep(0.002 * (number % 2 == 0))
        return number * number

    clock = StageClock("square")
    assert list(ordered_map(slow_when_even, range(40), threads, clock)) == [n * n for n in range(40)]
    assert clock.frames == 40
    assert clock.seconds >= 20 * 0.002


def test_an_endless_source_is_only_read_a_little_ahead() -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    results = prefetch(ordered_map(lambda n: n, source(), 2, StageClock("same")), 3)
    assert list(itertools.islice(results, 10)) == list(range(10))
    time.sleep(0.05)
    assert len(taken) <= 10 + 3 + 1 + 4
    results.close()


def test_an_error_comes_out_where_the_results_are_taken() -> None:
    def fail_at_five(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        return number

    results = prefetch(ordered_map(fail_at_five, range(100), 4, StageClock("fail")), 2)
    seen = []
    with pytest.raises(ValueError, match="five"):
        for result in results:
            seen.append(result)
    assert seen == [0, 1, 2, 3, 4]


def test_an_early_end_closes_the_source_and_the_threads() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    before = threading.active_count()
    results = prefetch(ordered_map(lambda n: n, timed(source(), StageClock("read")), 2, StageClock("same")), 2)
    next(results)
    results.close()
    assert closed.is_set()
    assert threading.active_count() == before


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


def test_what_another_stage_does_is_not_a_stages_own_work() -> None:
    first, second, third = StageClock("first"), StageClock("second"), StageClock("third")
    begun_s = time.perf_counter()
    mapped = ordered_map(lambda n: time.sleep(0.01) or n, timed(slowly(10, 0.01), first), 1, second)
    assert list(timed(prefetch(mapped, 1), third)) == list(range(10))
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
def test_idle_threads_of_a_map_wait_for_input_or_for_room(threads: int) -> None:
    starved, crowded = StageClock("starved"), StageClock("crowded")
    begun_s = time.perf_counter()
    list(ordered_map(lambda n: n, slowly(20, 0.005), threads, starved))
    wall_s = time.perf_counter() - begun_s
    assert starved.threads == threads
    assert starved.waiting_for_input_s > 0.5 * threads * 20 * 0.005
    assert starved.waiting_for_input_s > starved.waiting_for_room_s
    assert starved.seconds + starved.waiting_for_input_s + starved.waiting_for_room_s <= threads * wall_s

    for _ in ordered_map(lambda n: n, range(20), threads, crowded):
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


def test_a_map_holds_no_more_items_than_told() -> None:
    made = []

    def source() -> Iterator[int]:
        for n in range(12):
            made.append(n)
            yield n

    for taken, _ in enumerate(ordered_map(lambda n: n, source(), 2, StageClock("map"), in_flight=3)):
        assert len(made) <= taken + 3


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


def test_every_call_that_succeeds_is_told_in_its_own_thread() -> None:
    told: list[tuple[str, str, float, float]] = []

    def on_span(name: str, begun_s: float, ended_s: float) -> None:
        told.append((threading.current_thread().name, name, begun_s, ended_s))

    clock = StageClock("square", on_span=on_span)
    before_s = time.perf_counter()
    list(ordered_map(lambda n: n, range(10), 2, clock))
    with pytest.raises(RuntimeError), clock.running():
        raise RuntimeError
    assert len(told) == clock.calls == 10
    assert {name for _, name, _, _ in told} == {"square"}
    assert all(thread.startswith("square_") for thread, *_ in told)
    assert all(before_s <= begun_s <= ended_s <= time.perf_counter() for *_, begun_s, ended_s in told)


@pytest.mark.skipif("OpenMP" not in torch.__config__.parallel_info(), reason="needs a torch with OpenMP")
def test_torch_splits_no_work_of_a_maps_threads_and_all_others_keep_their_number() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert set(ordered_map(lambda _: torch.get_num_threads(), range(8), 2, StageClock("map"))) == {1}
        everywhere = ordered_map(lambda _: torch.get_num_threads(), range(8), 2, StageClock("map"), on_one_core=False)
        assert set(everywhere) == {3}
        assert torch.get_num_threads() == 3
        assert list(prefetch((torch.get_num_threads() for _ in range(1)), 1)) == [3]
    finally:
        torch.set_num_threads(before)
