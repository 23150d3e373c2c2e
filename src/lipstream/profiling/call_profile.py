"""A profile of every Python call in every thread, in the format that pstats reads.

Up to Python 3.11 each thread gets a cProfile of its own. From 3.12 on cProfile sees the calls of all threads at once
and takes them for those of one (it stands on sys.monitoring, where only one profiler may be active): its times are
wrong as soon as two threads run. There a recorder in Python, one a thread, writes the same table, at a higher price a
call.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

# File, first line and name, as pstats has them.
Place = tuple[str, int, str]


class CallProfiles:
    """One profile a thread that runs, or starts, inside `recording`."""

    def __init__(self) -> None:
        self._make = cProfile.Profile if sys.version_info < (3, 12) else PythonProfile
        self._profiles: list[cProfile.Profile | PythonProfile] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Profile this thread and those that it starts inside."""
        threading.setprofile(self._begin)
        profile = self._add()
        profile.enable()
        try:
            yield
        finally:
            profile.disable()
            threading.setprofile(None)

    def _begin(self, frame: FrameType, event: str, arg: object) -> None:
        # The first event of a new thread: the profile takes this function's place.
        self._add().enable()

    def _add(self) -> cProfile.Profile | PythonProfile:
        profile = self._make()
        self._profiles.append(profile)
        return profile

    def write(self, path: Path) -> None:
        """Add up the threads' profiles and write them for pstats, snakeviz and the like. Raises OSError."""
        total = pstats.Stats()
        for profile in self._profiles:
            profile.create_stats()
            if profile.stats:
                total.add(profile)  # type: ignore[arg-type]
        total.dump_stats(path)


@dataclass
class _Call:
    """A call that has not returned yet; a built-in's `frame` is its caller's. child_s: in the calls that it made."""

    frame: FrameType
    is_builtin: bool
    place: Place
    begun_s: float
    child_s: float = 0.0


@dataclass
class _Count:
    """pstats' numbers: calls, those not from within themselves, seconds without and with what was called."""

    primitive: int = 0
    calls: int = 0
    own_s: float = 0.0
    with_called_s: float = 0.0

    def add(self, own_s: float, with_called_s: float, *, is_outermost: bool) -> None:
        self.calls += 1
        self.own_s += own_s
        if is_outermost:
            self.primitive += 1
            self.with_called_s += with_called_s

    def as_tuple(self) -> tuple[int, int, float, float]:
        return self.primitive, self.calls, self.own_s, self.with_called_s


@dataclass
class PythonProfile:
    """What cProfile.Profile records, of the thread that it is enabled in, through sys.setprofile."""

    stats: dict[Place, Any] = field(default_factory=dict)
    _stack: list[_Call] = field(default_factory=list)
    _depths: dict[Place, int] = field(default_factory=dict)
    _counts: dict[Place, _Count] = field(default_factory=dict)
    _pairs: dict[tuple[Place, Place], _Count] = field(default_factory=dict)

    def enable(self) -> None:
        """Record this thread's calls from here on."""
        sys.setprofile(self._on_event)

    def disable(self) -> None:
        """Stop recording; what has not returned yet is counted up to now."""
        sys.setprofile(None)
        while self._stack:
            self._pop(time.perf_counter())

    def create_stats(self) -> None:
        """Fill `stats`: place to (primitive calls, calls, own s, s with what it called, the same by caller)."""
        callers: dict[Place, dict[Place, tuple[int, int, float, float]]] = {place: {} for place in self._counts}
        for (caller, place), count in self._pairs.items():
            callers[place][caller] = count.as_tuple()
        self.stats = {place: (*count.as_tuple(), callers[place]) for place, count in self._counts.items()}

    def _on_event(self, frame: FrameType, event: str, arg: Any) -> None:
        now_s = time.perf_counter()
        if event == "call":
            code = frame.f_code
            self._push(_Call(frame, False, (code.co_filename, code.co_firstlineno, code.co_name), now_s))
        elif event == "c_call":
            name = f"{arg.__module__}.{arg.__qualname__}" if arg.__module__ else arg.__qualname__
            self._push(_Call(frame, True, ("~", 0, f"<built-in method {name}>"), now_s))
        else:
            self._return(frame, event != "return", now_s)

    def _return(self, frame: FrameType, is_builtin: bool, now_s: float) -> None:
        """End the call, and any above it that no event ended; one from before `enable` is not known."""
        for index in range(len(self._stack) - 1, -1, -1):
            call = self._stack[index]
            if call.frame is frame and call.is_builtin == is_builtin:
                while len(self._stack) > index:
                    self._pop(now_s)
                return

    def _push(self, call: _Call) -> None:
        self._depths[call.place] = self._depths.get(call.place, 0) + 1
        self._stack.append(call)

    def _pop(self, now_s: float) -> None:
        call = self._stack.pop()
        took_s = now_s - call.begun_s
        self._depths[call.place] -= 1
        is_outermost = self._depths[call.place] == 0
        self._counts.setdefault(call.place, _Count()).add(took_s - call.child_s, took_s, is_outermost=is_outermost)
        if self._stack:
            caller = self._stack[-1]
            caller.child_s += took_s
            pair = self._pairs.setdefault((caller.place, call.place), _Count())
            pair.add(took_s - call.child_s, took_s, is_outermost=is_outermost)
