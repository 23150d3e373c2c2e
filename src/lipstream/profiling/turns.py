"""Interleaved timing: measure several things in turns, so that drift affects all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from lipstream.profiling.machine import wait_for

T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    """Wall time of one execution, and CPU time of the whole process during it."""

    wall_s: float
    cpu_s: float


def in_turns(items: Sequence[T], repeats: int) -> Iterator[tuple[int, T]]:
    """Yield (turn, item) for every item in `repeats` turns, counted from 1; every other turn runs in reverse order."""
    for turn in range(repeats):
        for item in items if turn % 2 == 0 else reversed(items):
            yield turn + 1, item


def timed(work: Callable[[], object], device: torch.device) -> Timing:
    """Execute `work` and measure it, the device's queued work included."""
    wait_for(device)
    begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
    work()
    wait_for(device)
    return Timing(time.perf_counter() - begun_s, time.process_time() - begun_cpu_s)
