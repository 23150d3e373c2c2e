"""Stages that run beside one another: ordered thread maps, bounded queues and clocks.

Order is never lost, at most a few items are in flight, and an error or an early end anywhere closes all the rest.

A stage is at work, or it waits for its input (an empty queue before it), or it waits for room (a full queue behind it,
or nobody who asks). Its clock keeps the three apart, and what other stages do on the same thread is never its work.
"""

from __future__ import annotations

import functools
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

import torch
from threadpoolctl import ThreadpoolController

T = TypeVar("T")
R = TypeVar("R")

_POLL_S = 0.1

OnSpan = Callable[[str, float, float], None]
"""Told of every call of a stage, in the thread that made it: the stage's name, begin and end on perf_counter, s."""


class Wait(Enum):
    """What a stage waits for."""

    INPUT = "input"
    ROOM = "room"


@dataclass
class StageClock:
    """What one stage did, summed over its `threads`, seconds of wall time but for `cpu_s`.

    seconds: at work. cpu_s: CPU time of its threads at work; threads that a library keeps for itself are not in it.
    waiting_for_input_s: had nothing to work on. waiting_for_room_s: the next stage took nothing more. calls and
    frames: of those that ended without an error.
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

        What is spent inside another stage's `running`, or blocked in this module, is a wait for input instead. The
        thread must not leave it and do other things meanwhile: no `yield` inside.
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


class _Elsewhere(threading.local):
    """Time of the `running` that this thread is in which was not its work: other stages' work, and blocking."""

    wall_s = 0.0
    cpu_s = 0.0


_elsewhere = _Elsewhere()


def _blocking(wait: Callable[[], R]) -> R:
    """What `wait` returns; the time until then is no work of the stage that asked."""
    begun_s = time.perf_counter()
    try:
        return wait()
    finally:
        _elsewhere.wall_s += time.perf_counter() - begun_s


def timed(items: Iterable[T], clock: StageClock) -> Generator[T, None, None]:
    """The items as they are, with the work of making each one counted, and the wait until the next is asked for."""
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
        _close(source)


def arriving(items: Iterable[T], clock: StageClock) -> Generator[T, None, None]:
    """The items as they are, with the time until each one comes counted as the stage's wait for its input."""
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
        _close(source)


def grouped(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items on end, the last one of what is left."""
    source = iter(items)
    while group := list(itertools.islice(source, size)):
        yield group


class _Idle:
    """Adds up how long each thread of a map has nothing to do, and whether input or room is what it waits for."""

    def __init__(self, clock: StageClock) -> None:
        self._clock = clock
        self._threads = clock.threads
        self._wait: Wait | None = None
        self._since_s = time.perf_counter()
        self._lock = threading.Lock()

    def wait_for(self, wait: Wait | None) -> None:
        """From here on idle threads wait for this; None once no item will come."""
        with self._lock:
            self._add_up()
            self._wait = wait

    def change(self, threads: int) -> None:
        """So many threads more are idle, or less."""
        with self._lock:
            self._add_up()
            self._threads += threads

    def _add_up(self) -> None:
        now_s = time.perf_counter()
        if self._wait is not None and self._threads:
            self._clock.waited(self._wait, self._threads * (now_s - self._since_s))
        self._since_s = now_s


def ordered_map(
    function: Callable[[T], R],
    items: Iterable[T],
    threads: int,
    clock: StageClock,
    frames: Callable[[T], int] = lambda _: 1,
    *,
    in_flight: int | None = None,
    on_one_core: bool = True,
) -> Generator[R, None, None]:
    """`function` of each item in `threads` threads, results in the items' order.

    frames: how many an item counts for. in_flight: items held at most, twice the threads unless told. on_one_core:
    torch does not split the work of these threads among cores once more.
    """
    clock.threads = threads
    idle = _Idle(clock)

    def run(item: T) -> R:
        idle.change(-1)
        try:
            with clock.running(frames(item)):
                return function(item)
        finally:
            idle.change(1)

    def fed(source: Iterator[T]) -> Iterator[T]:
        while True:
            idle.wait_for(Wait.INPUT)
            try:
                item = next(source)
            except StopIteration:
                idle.wait_for(None)
                return
            idle.wait_for(Wait.ROOM)
            yield item

    source = iter(items)
    initializer = _on_one_core if on_one_core else None
    pool = ThreadPoolExecutor(threads, thread_name_prefix=clock.name, initializer=initializer)
    pending: deque[Future[R]] = deque()
    try:
        for item in fed(source):
            pending.append(pool.submit(run, item))
            if len(pending) >= (in_flight or 2 * threads):
                yield _blocking(pending.popleft().result)
        while pending:
            yield _blocking(pending.popleft().result)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        _close(source)


def _on_one_core() -> None:
    """From here on this thread's work in torch stays in it; torch's own call for that changes other threads too."""
    torch.get_num_threads()  # the first call in a thread sets their number
    _openmp().limit(limits=1)


@functools.cache
def _openmp() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="openmp")


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True)
class _End:
    error: BaseException | None


def prefetch(items: Iterable[T], size: int, name: str = "prefetch") -> Generator[T, None, None]:
    """Make the items in a thread of their own, called `name`, at most `size` ahead of who takes them."""
    waiting: queue.Queue[_Item[T] | _End] = queue.Queue(size)
    stopped = threading.Event()

    def put(entry: _Item[T] | _End) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(entry, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        source = iter(items)
        try:
            try:
                for item in source:
                    if not put(_Item(item)):
                        return
            finally:
                _close(source)
        except BaseException as error:  # noqa: BLE001  (raised again where the items are taken)
            put(_End(error))
        else:
            put(_End(None))

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        while True:
            entry = _blocking(waiting.get)
            if isinstance(entry, _End):
                if entry.error is not None:
                    raise entry.error
                return
            yield entry.value
    finally:
        stopped.set()
        thread.join()


def _close(source: Iterator[T]) -> None:
    if isinstance(source, Generator):
        source.close()
