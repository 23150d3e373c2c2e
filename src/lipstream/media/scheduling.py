"""How the operating system schedules threads that an encoder makes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scheduled_as_before() -> Iterator[None]:
    """Let the calling thread, and all threads that are begun meanwhile, be scheduled as the calling thread was before.

    Where it may, as root and so in most containers, SVT-AV1 makes the thread that opens it and those of its own
    real-time ones of the highest priority. Whatever is begun from there on inherits that, and starves the machine.
    """
    if sys.platform != "linux":
        yield
        return
    policy, parameters, before = os.sched_getscheduler(0), os.sched_getparam(0), _threads()
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)
        for thread in _threads() - before:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.sched_setscheduler(thread, policy, parameters)


def _threads() -> set[int]:
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}
