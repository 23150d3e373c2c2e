"""Thread maps and queues: order, bounds, errors and early ends."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from lipstream.stages import StageClock, ordered_map, prefetch, timed


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
