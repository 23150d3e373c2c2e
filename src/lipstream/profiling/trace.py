"""Record spans per thread and write them in the Trace Event Format, which Perfetto and Chrome open.

Format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lipstream.profiling.machine import wait_for

_PROCESS = 1
_FIRST_THREAD = 1  # viewers treat thread 0 as the idle thread


@dataclass(frozen=True)
class Span:
    """An interval of work of one thread. track: index of the thread. Times in seconds of perf_counter."""

    kind: str
    name: str
    track: int
    begun_s: float
    ended_s: float


class Trace:
    """Collects spans from any thread, one track per thread. Times are relative to the creation of the trace."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.threads: list[str] = []
        self._origin_s = time.perf_counter()
        self._here = threading.local()
        self._lock = threading.Lock()

    def add_stage(self, name: str, begun_s: float, ended_s: float) -> None:
        """Record a call of a stage in the calling thread (see StageClock.on_span)."""
        self._add("stage", name, begun_s, ended_s)

    @contextmanager
    def layers_of(self, unet: nn.Module, device: torch.device) -> Iterator[None]:
        """Record each call of the network's modules that have children, and of its top-level layers.

        Synchronises the device around each call, so that a span is the module's own time; this slows the run.
        """
        open_spans = _OpenSpans()

        def before(module: nn.Module, inputs: Any) -> None:
            wait_for(device)
            open_spans.begun_s.append(time.perf_counter())

        def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                wait_for(device)
                self._add("layer", name, open_spans.begun_s.pop(), time.perf_counter())

            return hook

        hooks = []
        for name, module in unet.named_modules():
            if any(True for _ in module.children()) or "." not in name:
                hooks.append(module.register_forward_pre_hook(before))
                hooks.append(module.register_forward_hook(after(name or "unet")))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def write(self, path: Path) -> None:
        """Write the trace as JSON, times in microseconds, each track in time order. Raises OSError."""
        events: list[dict[str, Any]] = [_metadata("process_name", _FIRST_THREAD, "lipstream")]
        events += [_metadata("thread_name", thread, name) for thread, name in enumerate(self.threads, _FIRST_THREAD)]
        for span in sorted(self.spans, key=lambda span: (span.track, span.begun_s, -span.ended_s)):
            events.append(
                {
                    "ph": "X",
                    "cat": span.kind,
                    "name": span.name,
                    "pid": _PROCESS,
                    "tid": span.track + _FIRST_THREAD,
                    "ts": round((span.begun_s - self._origin_s) * 1e6, 3),
                    "dur": round((span.ended_s - span.begun_s) * 1e6, 3),
                }
            )
        path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), "utf-8")

    def _add(self, kind: str, name: str, begun_s: float, ended_s: float) -> None:
        track = getattr(self._here, "track", None)
        with self._lock:
            if track is None:
                track = self._here.track = len(self.threads)
                self.threads.append(threading.current_thread().name)
            self.spans.append(Span(kind, name, track, begun_s, ended_s))


class _OpenSpans(threading.local):
    """Start times of the module calls in progress in this thread, the innermost last."""

    def __init__(self) -> None:
        self.begun_s: list[float] = []


def _metadata(kind: str, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": _PROCESS, "tid": thread, "args": {"name": name}}
