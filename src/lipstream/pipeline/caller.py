"""What the caller's thread does while the threads of a run work: take results, report progress, look at `cancel`."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from typing import Any, Generic, TypeVar

from lipstream.errors import Cancelled
from lipstream.pipeline.clocks import Clocks, StageClock
from lipstream.pipeline.threads import ThreadGroup
from lipstream.results import Progress, StageTime

T = TypeVar("T")

logger = logging.getLogger(__name__)

POLL_S = 0.1
_PROGRESS_S = 0.5
_LOG_S = 30.0


class Watch:
    """Reports the progress of a run on a clock, logs it now and then, and notices when it is to be cancelled."""

    def __init__(
        self,
        clocks: Clocks,
        n_frames: int,
        on_progress: Callable[[Progress], None] | None,
        cancel: threading.Event | None,
    ) -> None:
        self.clocks, self._n_frames = clocks, n_frames
        self._on_progress, self._cancel = on_progress, cancel
        self._due_s = time.monotonic() + _PROGRESS_S
        self._log_due_s = time.monotonic() + _LOG_S

    def report(self) -> None:
        """Report the progress now."""
        now_s = time.monotonic()
        self._due_s = now_s + _PROGRESS_S
        progress = Progress(self.clocks.write.frames, self._n_frames, stage_times(self.clocks))
        if self._on_progress is not None:
            self._on_progress(progress)
        if now_s >= self._log_due_s:
            self._log_due_s = now_s + _LOG_S
            stages = ", ".join(f"{stage.name} {stage.frames}" for stage in progress.stages)
            logger.info("%d of %d frames (%s)", progress.frames, progress.n_frames, stages)

    @property
    def is_cancelled(self) -> bool:
        """Return whether the caller has asked to stop."""
        return self._cancel is not None and self._cancel.is_set()

    def tick(self) -> None:
        """Report the progress if that is due. Raises Cancelled once the run is to be cancelled."""
        raise_if_cancelled(self._cancel)
        self._report_if_due()

    def wait(self, done: Future[Any]) -> None:
        """Wait until a run is done or to be cancelled."""
        while not wait([done], POLL_S).done:
            if self.is_cancelled:
                return
            self._report_if_due()

    def results(self, handed_over: HandOff[T], done: Future[Any]) -> Iterator[T]:
        """Yield what a run hands over, until it is done. Raises its error, or Cancelled."""
        while True:
            is_done = done.done()  # without having filled anything, if the run failed before
            taken = handed_over.take(POLL_S)
            raise_if_cancelled(self._cancel)
            if not taken and (is_done or handed_over.has_ended):
                break
            self._report_if_due()
            while taken:
                yield taken.pop()
        done.result()

    def _report_if_due(self) -> None:
        if time.monotonic() >= self._due_s:
            self.report()


class HandOff(Generic[T]):
    """The way of results, one at a time, from the thread that makes them to the caller's, which takes them at leisure.

    clock: of the last stage, which counts what is taken.
    """

    def __init__(self, threads: ThreadGroup, clock: StageClock) -> None:
        self._threads, self._clock = threads, clock
        self._changed = threads.condition()
        self._waiting: deque[T] = deque()
        self.has_ended = False

    def fill(self, items: Iterable[T]) -> None:
        """Hand over all items, each when the one before it has been taken. For the thread that makes them."""
        try:
            for item in items:
                with self._changed:
                    self._waiting.append(item)
                    del item
                    self._changed.notify_all()
                    self._threads.wait(self._changed, lambda: not self._waiting)
        finally:
            with self._changed:
                self.has_ended = True
                self._changed.notify_all()

    def take(self, timeout_s: float) -> list[T]:
        """Return the next item in a list; an empty one if none comes in time, or none any more. For the caller."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self.has_ended, timeout_s)
            if not self._waiting:
                return []
            self._clock.count(1)
            self._changed.notify_all()
            return [self._waiting.popleft()]


def stage_times(clocks: Clocks) -> tuple[StageTime, ...]:
    """Return what each stage has done."""
    return tuple(StageTime(clock.name, round(clock.seconds, 4), clock.frames) for clock in clocks.in_order())


def raise_if_cancelled(cancel: threading.Event | None) -> None:
    """Raise Cancelled if the caller has asked to stop."""
    if cancel is not None and cancel.is_set():
        raise cancelled()


def cancelled() -> Cancelled:
    """Return the error of a run that was stopped before its end."""
    return Cancelled("stopped before its end; nothing was written")
