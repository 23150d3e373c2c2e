"""Taking turns: one call at a time of those that share a model, each with threads of its own."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from numpy.typing import ArrayLike

from lipstream.errors import SettingsError
from lipstream.face.chosen import FaceChoice, choosing
from lipstream.media.memory import speech_from
from lipstream.pipeline.caller import POLL_S, HandOff, Watch, cancelled, raise_if_cancelled
from lipstream.pipeline.clocks import Clocks
from lipstream.pipeline.memory_clip import memory_clip
from lipstream.pipeline.records import Clip, Components
from lipstream.pipeline.threads import ThreadGroup
from lipstream.results import Progress
from lipstream.runtime.cudnn import tuned_convolutions
from lipstream.runtime.memory import memory_errors
from lipstream.runtime.process import check_process
from lipstream.settings import SyncSettings

T = TypeVar("T")


class Turns:
    """The components of a model that is loaded, lent to one call at a time; calls from several threads wait."""

    def __init__(self, components: Components) -> None:
        self._lock = threading.Lock()
        self._threads = ThreadGroup()  # of the last call
        self._generators: WeakSet[Generator[Any, None, None]] = WeakSet()
        self._paused_in: int | None = None  # the thread that took the last result of a generator
        self._components: Components | None = components

    def _free(self, *, detector: bool) -> None:
        """Free the networks, and the detector if asked to, after the call that is at work; see `LipSync.close`."""
        if self._paused_in == threading.get_ident():
            for generator in list(self._generators):
                if inspect.getgeneratorstate(generator) == inspect.GEN_SUSPENDED:
                    generator.close()
        with self._lock:
            if self._components is None:
                return
            while not self._threads.join(POLL_S):
                pass
            components, self._components = self._components, None
            if detector:
                components.detector.close()
            device = components.device
            del components
            if device.type == "cuda":
                torch.cuda.empty_cache()

    def _add(self, generator: Generator[T, None, None]) -> Generator[T, None, None]:
        self._generators.add(generator)
        return generator

    def _in_memory(
        self,
        results: Callable[[Components, Clip, Clocks, ThreadGroup], Iterator[T]],
        images: Iterable[ArrayLike],
        samples: ArrayLike | Iterable[ArrayLike],
        sample_rate_hz: int,
        settings: SyncSettings,
        on_progress: Callable[[Progress], None] | None,
        cancel: threading.Event | None,
        face: FaceChoice | None,
    ) -> Generator[T, None, None]:
        """Yield the results of a run over a clip in memory, in threads of its own; report here."""
        with self._turn(cancel, face) as components, memory_errors(components.device):
            clocks, speech = Clocks.start(), speech_from(samples, sample_rate_hz)
            watch = Watch(clocks, speech.n_frames, on_progress, cancel)
            watch.report()
            threads = self._threads = ThreadGroup()
            handed_over: HandOff[T] = HandOff(threads, clocks.write)

            def work() -> None:
                clip = memory_clip(components, images, speech, settings, clocks)
                handed_over.fill(results(components, clip, clocks, threads))

            with tuned_convolutions(components.device), threads:
                for result in watch.results(handed_over, threads.call(work, "results")):
                    self._paused_in = threading.get_ident()
                    yield result
                    self._paused_in = None
            watch.report()

    def _open(self) -> Components:
        if self._components is None:
            raise SettingsError("this LipSync is closed", fix="load the model again with LipSync.load")
        return self._components

    @contextmanager
    def _turn(self, cancel: threading.Event | None, face: FaceChoice | None) -> Iterator[Components]:
        """Hold the lock, with nothing left at work from the call before."""
        check_process()  # a lock that was held at the fork is held for ever
        while not self._lock.acquire(timeout=POLL_S):
            raise_if_cancelled(cancel)
            if self._paused_in == threading.get_ident():
                raise SettingsError(
                    "this thread has not exhausted the frames or crops of this LipSync that it has begun",
                    fix="exhaust or close that generator, or live session, first",
                )
        try:
            while not self._threads.join(POLL_S):
                raise_if_cancelled(cancel)
            components = self._open()
            yield replace(components, detector=choosing(components.detector, face))
        finally:
            self._paused_in = None
            self._lock.release()

    def _in_threads(self, components: Components, watch: Watch, work: Callable[[ThreadGroup], T]) -> T:
        """Return what `work` returns, done in threads of its own; report here. Raises Cancelled."""
        threads = self._threads = ThreadGroup()
        with tuned_convolutions(components.device), threads:
            done = threads.call(lambda: work(threads), "write")
            watch.wait(done)
        if watch.is_cancelled and (not done.done() or done.exception() is not None):
            raise cancelled()
        return done.result()
