"""Write a folder whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lipstream.errors import OutputError

_FIX = "free some space or choose another folder"


@contextmanager
def whole_folder(folder: Path, *, may_exist: bool = False) -> Iterator[Path]:
    """Give a new folder to write to, which becomes `folder` by one rename if the block ends without an exception.

    may_exist: another process may write the same meanwhile; the first one's folder stays. Raises OutputError for a
    folder that exists or cannot be written.
    """
    if folder.exists() and not may_exist:
        raise OutputError("already exists", file=folder, fix="choose another folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent) as temporary:
            partial = Path(temporary) / folder.name
            partial.mkdir()
            yield partial
            try:
                partial.rename(folder)
            except OSError:
                if not (may_exist and folder.is_dir()):
                    raise
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror or error})", file=folder, fix=_FIX) from error
