"""A map over many threads whose results come in the order of the items."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from threadpoolctl import ThreadpoolController

from lipstream.pipeline.clocks import IdleTime, StageClock, Wait, blocking, close

if TYPE_CHECKING:
    from lipstream.pipeline.threads import ThreadGroup

T = TypeVar("T")
R = TypeVar("R")


class _Slot(Generic[T, R]):
    """One item of a map on its way to a result or an error."""

    __slots__ = ("done", "error", "item", "result", "worker")

    def __init__(self, item: T) -> None:
        self.item: T | None = item
        self.result: R | None = None
        self.error: BaseException | None = None
        self.worker: threading.Thread | None = None
        self.done = False

    def take(self) -> R:
        """Return the result, of which nothing stays here, or raise the error."""
        if self.error is not None:
            _raise(self)
        result: R = self.result  # type: ignore[assignment]
        self.result = None
        return result


class OrderedMap(Generic[T, R]):
    """See ThreadGroup.ordered_map. One thread takes the items from their source, others work on them."""

    def __init__(
        self,
        group: ThreadGroup,
        function: Callable[[T], R],
        items: Iterable[T],
        threads: int,
        clock: StageClock,
        frames: Callable[[T], int],
        in_flight: int,
        on_one_core: bool,
    ) -> None:
        self._group, self._function, self._items = group, function, items
        self._n_threads, self._clock, self._frames = threads, clock, frames
        self._in_flight, self._on_one_core = in_flight, on_one_core
        self._idle = IdleTime(clock)
        self._changed = group.condition()
        self._to_do: deque[_Slot[T, R]] = deque()
        self._in_order: deque[_Slot[T, R]] = deque()
        self._threads: list[threading.Thread] = []
        self._n_waiting = 0
        self._ended = False
        self.error: BaseException | None = None

    def start(self) -> None:
        self._threads.append(self._group.start(self._feed, f"{self._clock.name}-input"))

    def forget(self) -> None:
        """Let go of all items and results, for a run that was stopped."""
        with self._changed:
            self._to_do.clear()
            self._in_order.clear()
            self.error = None
            self._items = ()

    def _feed(self) -> None:
        source = iter(self._items)
        try:
            while True:
                self._idle.wait_for(Wait.ROOM)
                with self._changed:
                    self._group.wait(self._changed, lambda: len(self._in_order) < self._in_flight)
                self._idle.wait_for(Wait.INPUT)
                try:
                    item = next(source)
                except StopIteration:
                    return
                self._submit(_Slot(item))
                del item
        except BaseException as error:  # noqa: BLE001  (raised again where the results are taken)
            self.error = without_this_frame(error)
        finally:
            self._idle.wait_for(None)
            try:
                close(source)
            finally:
                with self._changed:
                    self._ended = True
                    self._changed.notify_all()

    def _submit(self, slot: _Slot[T, R]) -> None:
        with self._changed:
            self._to_do.append(slot)
            self._in_order.append(slot)
            self._changed.notify_all()
            n_workers = len(self._threads) - 1
            if len(self._to_do) > self._n_waiting and n_workers < self._n_threads:
                self._threads.append(self._group.start(self._work, f"{self._clock.name}_{n_workers}"))

    def _work(self) -> None:
        if self._on_one_core:
            _stay_on_one_core()
        while (slot := self._next_to_do()) is not None:
            self._run(slot)
            del slot

    def _next_to_do(self) -> _Slot[T, R] | None:
        with self._changed:
            self._n_waiting += 1
            try:
                self._group.wait(self._changed, lambda: bool(self._to_do) or self._ended)
            finally:
                self._n_waiting -= 1
            if not self._to_do:
                return None
            slot = self._to_do.popleft()
            slot.worker = threading.current_thread()
            return slot

    def _run(self, slot: _Slot[T, R]) -> None:
        item: T = slot.item  # type: ignore[assignment]
        slot.item = None
        self._idle.change(-1)
        try:
            with self._clock.running(self._frames(item)):
                slot.result = self._function(item)
        except BaseException as error:  # noqa: BLE001  (raised again where the result is taken)
            slot.error = without_this_frame(error)
        finally:
            self._idle.change(1)
            with self._changed:
                slot.done = True
                self._changed.notify_all()
            del slot, item  # this frame lives as long as the error's traceback

    def results(self) -> Iterator[R]:
        while (slot := blocking(self._next_done)) is not None:
            yield slot.take()
        if self.error is not None:
            _raise(self)

    def _next_done(self) -> _Slot[T, R] | None:
        with self._changed:
            self._group.wait(
                self._changed,
                lambda: self._in_order[0].done if self._in_order else self._ended,
                lambda: any(thread.is_alive() for thread in self._who_makes_the_next()),
            )
            if not self._in_order:
                return None
            slot = self._in_order.popleft()
            self._changed.notify_all()
            return slot

    def _who_makes_the_next(self) -> list[threading.Thread]:
        if not self._in_order:
            return self._threads[:1]
        worker = self._in_order[0].worker
        return self._threads if worker is None else [worker]


def without_this_frame(error: BaseException) -> BaseException:
    """Cut the caller off the traceback: it holds what the error is stored in, a cycle that would keep frames alive."""
    return error if error.__traceback__ is None else error.with_traceback(error.__traceback__.tb_next)


def _raise(source: Any) -> None:
    """Raise `source`'s error without a cycle from its traceback to itself, which would keep what its frames hold."""
    error, source.error = source.error, None
    del source
    try:
        raise error
    finally:
        del error


def _stay_on_one_core() -> None:
    """Keep this thread's work in torch in it; torch's own call for that changes other threads too."""
    torch.get_num_threads()  # the first call in a thread sets their number
    _openmp().limit(limits=1)


@functools.cache
def _openmp() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="openmp")
