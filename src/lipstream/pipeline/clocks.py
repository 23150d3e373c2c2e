"""Clocks of the stages: time at work, time spent waiting, calls and frames.

A stage is at work, or it waits for its input (an empty queue before it), or it waits for room (a full queue behind it,
or nobody who asks). Its clock keeps the three apart, and work that other stages do on the same thread is not counted
as its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

OnSpan = Callable[[str, float, float], None]
"""Called after each call of a stage, in the thread that made it: the stage's name, begin and end on perf_counter, s."""


class Wait(Enum):
    """What a stage waits for."""

    INPUT = "input"
    ROOM = "room"


@dataclass
class StageClock:
    """What one stage did, summed over its `threads`; seconds of wall time except for `cpu_s`.

    seconds: at work. cpu_s: CPU time of its threads at work, without the threads that a library keeps for itself.
    waiting_for_input_s: had nothing to work on. waiting_for_room_s: the next stage took nothing more. calls and
    frames: of the calls that ended without an error.
    """

    name: str
    threads: int = 1
    seconds: float = 0.0
    cpu_s: float = 0.0
    waiting_for_input_s: float = 0.0
    waiting_for_room_s: float = 0.0
    calls: int = 0
    frames: int = 0
    on_span: OnSpan | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def running(self, frames: int = 1) -> Iterator[None]:
        """Count the time spent inside as work, and `frames` once it is left without an error.

        Time spent inside another stage's `running`, or in `blocking`, counts as a wait for input instead. The thread
        must not leave the block and do other things meanwhile: no `yield` inside.
        """
        outer_s, outer_cpu_s = _elsewhere.wall_s, _elsewhere.cpu_s
        _elsewhere.wall_s = _elsewhere.cpu_s = 0.0
        calls = 1
        begun_s, begun_cpu_s = time.perf_counter(), time.thread_time()
        try:
            yield
        except BaseException:
            calls = frames = 0
            raise
        finally:
            ended_s, cpu_s = time.perf_counter(), time.thread_time() - begun_cpu_s
            with self._lock:
                self.seconds += ended_s - begun_s - _elsewhere.wall_s
                self.cpu_s += cpu_s - _elsewhere.cpu_s
                self.waiting_for_input_s += _elsewhere.wall_s
                self.calls += calls
                self.frames += frames
            _elsewhere.wall_s, _elsewhere.cpu_s = outer_s + ended_s - begun_s, outer_cpu_s + cpu_s
            if self.on_span is not None and calls:
                self.on_span(self.name, begun_s, ended_s)

    def waited(self, wait: Wait, duration_s: float) -> None:
        """Count time in which the stage had nothing to do."""
        with self._lock:
            if wait is Wait.INPUT:
                self.waiting_for_input_s += duration_s
            else:
                self.waiting_for_room_s += duration_s

    def count(self, frames: int) -> None:
        """Count frames that took no call of their own."""
        with self._lock:
            self.frames += frames


class _Elsewhere(threading.local):
    """Time inside the current `running` of this thread that was not its own work: other stages' work, and blocking."""

    wall_s = 0.0
    cpu_s = 0.0


_elsewhere = _Elsewhere()


def blocking(wait: Callable[[], R]) -> R:
    """Return what `wait` returns; the time until then is not counted as work of the stage that called."""
    begun_s = time.perf_counter()
    try:
        return wait()
    finally:
        _elsewhere.wall_s += time.perf_counter() - begun_s


def timed(items: Iterable[T], clock: StageClock) -> Generator[T, None, None]:
    """Yield the items unchanged, counting the work of making each one, and the wait until the next is asked for."""
    source = iter(items)
    try:
        while True:
            try:
                with clock.running():
                    item = next(source)
            except StopIteration:
                return
            begun_s = time.perf_counter()
            yield item
            clock.waited(Wait.ROOM, time.perf_counter() - begun_s)
    finally:
        close(source)


def arriving(items: Iterable[T], clock: StageClock) -> Generator[T, None, None]:
    """Yield the items unchanged, counting the time until each one comes as the stage's wait for its input."""
    source = iter(items)
    try:
        while True:
            begun_s = time.perf_counter()
            try:
                item = next(source)
            except StopIteration:
                return
            clock.waited(Wait.INPUT, time.perf_counter() - begun_s)
            yield item
    finally:
        close(source)


def close(source: Iterator[T]) -> None:
    """Close a generator; does nothing for other iterators."""
    if isinstance(source, Generator):
        source.close()


class IdleTime:
    """Add up how long the threads of a map have nothing to do, and whether they wait for input or for room."""

    def __init__(self, clock: StageClock) -> None:
        self._clock = clock
        self._threads = clock.threads
        self._wait: Wait | None = None
        self._since_s = time.perf_counter()
        self._lock = threading.Lock()

    def wait_for(self, wait: Wait | None) -> None:
        """Count idle threads as waiting for this from now on; None once no item will come."""
        with self._lock:
            self._add_up()
            self._wait = wait

    def change(self, threads: int) -> None:
        """Change the number of idle threads by `threads`."""
        with self._lock:
            self._add_up()
            self._threads += threads

    def _add_up(self) -> None:
        now_s = time.perf_counter()
        if self._wait is not None and self._threads:
            self._clock.waited(self._wait, self._threads * (now_s - self._since_s))
        self._since_s = now_s


@dataclass(frozen=True)
class Clocks:
    """One clock per stage, in the order of the pipeline."""

    read: StageClock
    detect: StageClock
    align: StageClock
    features: StageClock
    encode: StageClock
    denoise: StageClock
    composite: StageClock
    write: StageClock

    @classmethod
    def start(cls) -> Clocks:
        """Return clocks at zero."""
        return cls(**{name: StageClock(name) for name in cls.__dataclass_fields__})

    def in_order(self) -> list[StageClock]:
        """Return the clocks from the first stage to the last."""
        return [getattr(self, name) for name in self.__dataclass_fields__]
