"""Stages that run beside one another: ordered thread maps, bounded queues and clocks.

Order is never lost, at most a few items are in flight, and an error or an early end anywhere closes all the rest.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_POLL_S = 0.1


@dataclass
class StageClock:
    """Busy seconds, summed over threads, and frames of one stage."""

    name: str
    seconds: float = 0.0
    frames: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def running(self, frames: int = 1) -> Iterator[None]:
        """Count the time spent inside, and `frames` once it is left without an error."""
        begun_s = time.perf_counter()
        try:
            yield
        except BaseException:
            frames = 0
            raise
        finally:
            with self._lock:
                self.seconds += time.perf_counter() - begun_s
                self.frames += frames


def timed(items: Iterable[T], clock: StageClock) -> Generator[T, None, None]:
    """The items as they are, with the time it takes to make each one counted."""
    source = iter(items)
    try:
        while True:
            try:
                with clock.running():
                    item = next(source)
            except StopIteration:
                return
            yield item
    finally:
        _close(source)


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], threads: int, clock: StageClock
) -> Generator[R, None, None]:
    """`function` of each item in `threads` threads, results in the items' order, at most 2 * threads in flight."""

    def run(item: T) -> R:
        with clock.running():
            return function(item)

    source = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix=clock.name)
    pending: deque[Future[R]] = deque()
    try:
        for item in source:
            pending.append(pool.submit(run, item))
            if len(pending) >= 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        _close(source)


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True)
class _End:
    error: BaseException | None


def prefetch(items: Iterable[T], size: int) -> Generator[T, None, None]:
    """Make the items in a thread of their own, at most `size` ahead of who takes them."""
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

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            entry = waiting.get()
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
