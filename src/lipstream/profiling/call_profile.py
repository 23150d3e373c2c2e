"""Profile the Python calls of all threads into one file in pstats format, with yappi.

cProfile does not do: from Python 3.12 on it reports the calls of all threads as those of one stack, so that its times
are wrong as soon as two threads run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lipstream.errors import SettingsError
from lipstream.face.quiet import import_problem


class CallProfile:
    """The calls of all threads inside `recording`, in wall time. One at a time per process.

    Raises SettingsError if yappi is not installed.
    """

    def __init__(self) -> None:
        try:
            import yappi
        except ImportError as error:
            problem = import_problem("lipstream[measure]", error)
            raise SettingsError(f"call profile: {problem.message}", fix=problem.fix) from error
        self._yappi: Any = yappi

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the calls of all threads, discarding an earlier recording."""
        self._yappi.stop()
        self._yappi.clear_stats()
        self._yappi.set_clock_type("wall")
        self._yappi.start(builtins=True)
        try:
            yield
        finally:
            self._yappi.stop()

    def write(self, path: Path) -> None:
        """Write the calls of all threads, added up, in pstats format. Raises OSError."""
        self._yappi.get_func_stats().save(str(path), "pstat")
