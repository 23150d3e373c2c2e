"""Living with the face libraries: their output kept off the terminal, their absence described with the fix."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple, TextIO, cast

_one_at_a_time = threading.Lock()
_hiding = threading.Event()
_NATIVE_LOG = re.compile(rb"INFO: Created TensorFlow|WARNING: All log messages before absl|[IW]\d{4} ")


class Problem(NamedTuple):
    """Why something cannot be used, and what the user can do: the message and the fix of an error."""

    message: str
    fix: str


IMPORT_ERRORS = (ImportError, AttributeError, OSError, ValueError)
"""What importing a library raises that is absent, or does not fit the other ones (another numpy, no libGL)."""


def hide_native_logs() -> None:
    """Let `native_logs_hidden` drop lines from now on. For programs that own their standard error, not libraries."""
    _hiding.set()


@contextlib.contextmanager
def native_logs_hidden() -> Iterator[None]:
    """Drop the information and warning lines that C++ libraries write to file descriptor 2 in the meantime.

    Does nothing unless the program has called `hide_native_logs`, since it swaps a descriptor of the whole process.
    No setting of the libraries stops these lines. What else any thread writes there is held back and written at the
    end.
    """
    if not _hiding.is_set():
        yield
        return
    with _one_at_a_time, tempfile.TemporaryFile() as held, contextlib.ExitStack() as undo:
        try:
            terminal = os.dup(2)
        except OSError:  # a process without standard error has nothing to keep clean
            yield
            return
        undo.callback(os.close, terminal)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            held.seek(0)
            for line in held:
                if not _NATIVE_LOG.match(line):
                    os.write(2, line)


class _StdoutOfOthers:
    """A standard output that drops what one thread prints and passes on what all others print."""

    def __init__(self, stdout: TextIO) -> None:
        self._stdout = stdout
        self._silenced = threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._silenced else self._stdout.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdout, name)


def own_prints_dropped() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which `print` of the calling thread writes nothing; other threads print as before."""
    return contextlib.redirect_stdout(cast(TextIO, _StdoutOfOthers(sys.stdout)))


def import_problem(requirement: str, error: Exception) -> Problem:
    """Return why a library cannot be imported and the fix. requirement: what pip installs it with."""
    if "libGL" in str(error):
        fix = "apt-get install libgl1, or pip install --no-deps --force-reinstall opencv-python-headless"
        return Problem(f"OpenCV cannot be loaded ({error})", fix)
    quoted = f'"{requirement}"' if "[" in requirement else requirement
    if isinstance(error, ModuleNotFoundError):
        return Problem(f"{error.name} is not installed", f"pip install {quoted}")
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return Problem(f"{requirement} cannot be imported ({reason})", f"pip install --force-reinstall {quoted}")
