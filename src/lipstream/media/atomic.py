"""Write small files beside a video, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from lipstream.errors import OutputError
from lipstream.media.output_file import check_name, hidden_name, link_target, same_file


def check_beside(path: Path, *, inputs: Iterable[Path], overwrite: bool) -> None:
    """Refuse, before any work is done, a file that must not be written: an input, or an existing one.

    An existing file is allowed with `overwrite`. Raises OutputError.
    """
    check_name(path)
    for source in inputs:
        if path == source or same_file(path, source):
            raise OutputError(f"it is also an input ({source})", file=path, fix="choose another name")
    if path.is_dir():
        raise OutputError("it is a folder", file=path, fix="choose another name")
    if os.path.lexists(path) and not overwrite:
        raise OutputError("it already exists", file=path, fix="choose another name or allow overwriting (--overwrite)")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file through a hidden one beside it, replacing an existing one. Raises OutputError.

    A symbolic link is followed: the file that it points to is replaced.
    """
    target = link_target(path)
    hidden = hidden_name(target)
    try:
        try:
            hidden.write_bytes(content)
            hidden.replace(target)
        finally:
            hidden.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        fix = "free some space or choose another folder"
        raise OutputError(f"cannot be written ({reason})", file=path, fix=fix) from error
