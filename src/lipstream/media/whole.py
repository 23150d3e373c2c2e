"""Small files that are written beside a video: whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from lipstream.errors import OutputError
from lipstream.media.writer import same_file


def check_beside(path: Path, *, inputs: Iterable[Path], overwrite: bool) -> None:
    """Refuse, before any work is done, a file that must not be written: an input, or there without `overwrite`."""
    for source in inputs:
        if path == source or same_file(path, source):
            raise OutputError(f"{path}: is also an input ({source}); choose another name")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; choose another name")
    if os.path.lexists(path) and not overwrite:
        raise OutputError(f"{path}: already exists; choose another name or allow overwriting (--overwrite)")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file through a hidden one beside it; one that is there is replaced. Raises OutputError."""
    hidden = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        try:
            hidden.write_bytes(content)
            hidden.replace(path)
        finally:
            hidden.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"{path}: cannot be written ({reason}); free some space or choose another folder") from error
