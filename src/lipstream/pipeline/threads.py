"""The threads of one run: ordered maps with a bound, one stop flag for all of them, and a budget of frames.

Every thread of a run belongs to its ThreadGroup. Closing the group sets the stop flag, which every wait and every
`check` looks at, and then joins the threads. Order is never lost, and an error comes out where the results are taken.

A thread cannot be interrupted inside a library's call. The threads are daemons and joining them has a time limit, so
that the caller goes on, and the process may end, while a call that takes long (a step of a large model on a CPU) runs
to its end; the thread ends at its next check.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

from lipstream.pipeline.clocks import StageClock, close
from lipstream.pipeline.ordered_map import OrderedMap, without_this_frame

T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger(__name__)

# Together with noticing a request to stop it is less than the 2 s within which a run has to end.
JOIN_S = 1.5
# Waits are woken when something happens; this is how often they look whether the thread they wait for is still alive.
_POLL_S = 0.5


class Stopped(Exception):
    """Raised in the threads of a run that was stopped; never leaves the run."""


class ThreadGroup:
    """All threads of one run; a context manager that stops and joins them."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._conditions: list[threading.Condition] = []
        self._maps: list[OrderedMap[Any, Any]] = []
        self._subgroups: list[ThreadGroup] = []
        self._if_unfinished: list[Callable[[], None]] = []

    def __enter__(self) -> ThreadGroup:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def check(self) -> None:
        """Raise Stopped once the run is stopped. For loops whose single items take long."""
        if self._stop.is_set():
            raise Stopped

    def subgroup(self) -> ThreadGroup:
        """Return a group that may be closed before this one, and is closed with it."""
        group = ThreadGroup()
        self._subgroups.append(group)
        if self._stop.is_set():
            group.stop()
        return group

    def stop(self) -> None:
        """Ask all threads to end."""
        self._stop.set()
        for group in list(self._subgroups):
            group.stop()
        for condition in list(self._conditions):
            with condition:
                condition.notify_all()

    def if_unfinished(self, clean_up: Callable[[], None]) -> None:
        """Call `clean_up` when the group is closed and a thread, perhaps the one that made this call, goes on."""
        self._if_unfinished.append(clean_up)

    def close(self) -> None:
        """Stop all threads, then join them, for JOIN_S in all."""
        self.stop()
        if not self.join(JOIN_S):
            for clean_up in self._if_unfinished:
                clean_up()
        for thread in self.unfinished():
            logger.info("thread %s is inside a call that cannot be interrupted; it ends after it", thread.name)
        self._forget()

    def join(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` for the threads to end; return whether all of them have."""
        until_s = time.monotonic() + timeout_s
        # Asked for again after each: a thread may start another one just before it notices the stop.
        while (threads := self.unfinished()) and time.monotonic() < until_s:
            threads[0].join(until_s - time.monotonic())
        return not self.unfinished()

    def unfinished(self) -> list[threading.Thread]:
        """Return the threads that still run."""
        own = [thread for thread in list(self._threads) if thread.is_alive()]
        return own + [thread for group in list(self._subgroups) for thread in group.unfinished()]

    def _forget(self) -> None:
        for mapped in self._maps:
            mapped.forget()
        for group in self._subgroups:
            group._forget()

    def call(self, function: Callable[[], R], name: str) -> Future[R]:
        """Call `function` in a thread of its own."""
        future: Future[R] = Future()
        self.start(functools.partial(_settle, future, function), name)
        return future

    def start(self, target: Callable[[], None], name: str) -> threading.Thread:
        """Start a thread of the group."""

        def run() -> None:
            with contextlib.suppress(Stopped):
                target()

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def condition(self) -> threading.Condition:
        """Return a condition for `wait`."""
        condition = threading.Condition()
        self._conditions.append(condition)
        return condition

    def wait(
        self, condition: threading.Condition, ready: Callable[[], bool], alive: Callable[[], bool] | None = None
    ) -> None:
        """Wait until `ready`, with `condition` held. Raises Stopped once the run is stopped.

        alive: whether a thread is left that could make it ready; RuntimeError is raised if not.
        """
        while not ready():
            self.check()
            if not condition.wait(_POLL_S) and alive is not None and not alive() and not ready():
                raise RuntimeError("a thread of the pipeline ended without a result")
        self.check()

    def ordered_map(
        self,
        function: Callable[[T], R],
        items: Iterable[T],
        threads: int,
        clock: StageClock,
        frames: Callable[[T], int] = lambda _: 1,
        *,
        in_flight: int | None = None,
        on_one_core: bool = True,
    ) -> Iterator[R]:
        """Yield `function` of each item, computed in up to `threads` threads, in the items' order.

        The items are made in one more thread. frames: the number that an item counts for. in_flight: items begun and
        not yet taken, twice the threads if None. on_one_core: torch does not split the work of these threads among
        cores once more.
        """
        clock.threads = threads
        mapped = OrderedMap(self, function, items, threads, clock, frames, in_flight or 2 * threads, on_one_core)
        self._maps.append(mapped)
        mapped.start()
        return mapped.results()


def _settle(future: Future[R], function: Callable[[], R]) -> None:
    try:
        result = function()
    except BaseException as error:  # noqa: BLE001  (raised again where the result is taken)
        future.set_exception(without_this_frame(error))
    else:
        future.set_result(result)
    finally:
        del future, function  # this frame lives as long as the error's traceback


class FrameBudget:
    """The bound of frames in flight in a whole run: taken before a frame is read, given back when it is written."""

    def __init__(self, group: ThreadGroup, frames: int) -> None:
        self._group, self._free = group, frames
        self._changed = group.condition()

    def spend(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, asking for each only when there is room for it. Raises Stopped."""
        source = iter(items)
        try:
            while True:
                with self._changed:
                    self._group.wait(self._changed, lambda: self._free > 0)
                    self._free -= 1
                try:
                    item = next(source)
                except StopIteration:
                    return
                yield item
                del item
        finally:
            close(source)

    def give_back(self) -> None:
        """One frame has left the run."""
        with self._changed:
            self._free += 1
            self._changed.notify_all()


def grouped(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` consecutive items, the last one of what is left."""
    source = iter(items)
    while True:
        group = list(itertools.islice(source, size))
        if not group:
            return
        yield group
        del group  # waiting for the next one must not keep this one in memory
