"""Standard output and standard error, which may be closed, full, broken or unable to show a name."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from lipstream.errors import OutputError

BROKEN_PIPE = 141
"""Exit code of a program whose reader went away, as a shell reports it."""

_AS_NAMED = "lipstream.as_named"


def prepare_streams() -> None:
    """Give closed standard streams a place to write to, and let names that a terminal cannot show be escaped."""
    # A closed descriptor would be taken by the next file opened, and what libraries write to it would go into that.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    codecs.register_error(_AS_NAMED, _as_named)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_AS_NAMED)


def _as_named(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write the bytes of a file's name that Python could not decode as they are, and escape the rest."""
    if isinstance(error, UnicodeEncodeError):
        first = error.object[error.start]
        if "\udc80" <= first <= "\udcff":
            return bytes([ord(first) - 0xDC00]), error.start + 1
    return codecs.backslashreplace_errors(error)


def write_result(text: str) -> None:
    """Write a command's result to standard output. Raises OutputError where it is full, BrokenPipeError if unread."""
    try:
        try:
            print(text, flush=True)
        except UnicodeEncodeError:  # standard output is somebody's own stream
            print(text.encode("ascii", "backslashreplace").decode(), flush=True)
    except BrokenPipeError:
        _discard_stdout()
        raise
    except OSError as error:
        _discard_stdout()
        raise OutputError(
            f"cannot be written ({error.strerror})", file="standard output", fix="free some space or redirect it"
        ) from error


def write_json(value: Any) -> None:
    """Write one JSON object as a command's result, as `write_result` does."""
    write_result(json.dumps(value))


def say(text: str) -> None:
    """Write a line for a person to standard error; where nobody can read it, nothing happens."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def start_logging(*, quiet: bool, verbose: bool, debug: bool) -> None:
    """Show warnings on standard error; more or less of them where asked for.

    quiet: errors alone. verbose: what lipstream does too. debug: everything that any library logs.
    """
    root, ours = logging.getLogger(), logging.getLogger("lipstream")
    root.setLevel(logging.DEBUG if debug else logging.ERROR if quiet else logging.WARNING)
    ours.setLevel(logging.DEBUG if debug else logging.INFO if verbose else logging.NOTSET)
    for handler in list(root.handlers):
        if isinstance(handler, _StderrHandler):
            root.removeHandler(handler)
    root.addHandler(_StderrHandler())


class _StderrHandler(logging.Handler):
    """Writes to what is standard error at that moment, above the progress bars if there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        name = "" if record.name.startswith("lipstream") else f"{record.name}: "
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        say(f"lipstream: {level}{name}{record.getMessage()}")


def _discard_stdout() -> None:
    """Keep the interpreter from failing once more when it flushes standard output at its end."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
