"""Living with the face libraries: their chatter kept off the terminal, their absence told with the mend."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, TextIO, cast

_one_at_a_time = threading.Lock()
_NATIVE_LOG = re.compile(rb"INFO: Created TensorFlow|WARNING: All log messages before absl|[IW]\d{4} ")


@contextlib.contextmanager
def native_logs_hidden() -> Iterator[None]:
    """Drop the information and warning lines that C++ libraries write to file descriptor 2 meanwhile.

    They heed no setting. All else that any thread writes there is held back and written at the end.
    """
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
    """A standard output that drops what one thread prints and is the real one to all others."""

    def __init__(self, stdout: TextIO) -> None:
        self._stdout = stdout
        self._silenced = threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._silenced else self._stdout.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdout, name)


def own_prints_dropped() -> contextlib.AbstractContextManager[Any]:
    """A context in which `print` of the calling thread writes nothing; other threads print as ever."""
    return contextlib.redirect_stdout(cast(TextIO, _StdoutOfOthers(sys.stdout)))


def import_mend(extra: str, error: ImportError) -> str:
    """Why the library of an extra cannot be imported, and the mend, in one line."""
    if "libGL" in str(error):
        return (
            f"OpenCV cannot be loaded ({error}); apt-get install libgl1, "
            "or pip install --no-deps --force-reinstall opencv-contrib-python-headless"
        )
    if isinstance(error, ModuleNotFoundError):
        return f'{error.name} is not installed; pip install "lipstream[{extra}]"'
    return f'{extra} cannot be imported ({error}); pip install --force-reinstall "lipstream[{extra}]"'
