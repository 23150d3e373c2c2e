"""Files that are written whole or not at all: checked before, hidden meanwhile, named at the end."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

import av.error

from lipstream.errors import OutputError

CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""What can be written, by the end of its name."""

_MOST_NAME_BYTES = 255

_unfinished: set[Path] = set()


def same_file(one: str | Path, other: str | Path) -> bool:
    """Return whether two paths lead to the same file, links of both kinds included; False where either is missing."""
    try:
        return Path(one).samefile(other)
    except OSError:
        return False


def link_target(path: Path) -> Path:
    """Return the file that a symbolic link leads to in the end, whether or not it exists; other paths unchanged."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def check_output(path: str | Path, *, inputs: Iterable[str | Path] = (), overwrite: bool = False) -> None:
    """Refuse, before any work is done, an output that cannot or must not be written.

    Raises OutputError: container other than mp4, mov, mkv; a folder; no such folder; not writable; one of the `inputs`
    (even with `overwrite`); already there (without).
    """
    path = Path(path)
    check_name(path)
    if path.suffix.lower() not in CONTAINERS:
        raise OutputError("cannot write this kind of file", file=path, fix="name it .mp4, .mov or .mkv")
    if path.is_dir():
        raise OutputError("it is a folder", file=path, fix="name a file in it")
    folder = link_target(path).parent
    if not folder.is_dir():
        raise OutputError("its folder does not exist", file=path, fix=f"create {folder} first")
    for source in inputs:
        if same_file(path, source):
            raise OutputError(f"it is also an input ({source})", file=path, fix="choose another name")
    if path.exists() and not path.is_file():
        raise OutputError("it is not a regular file", file=path, fix="choose another name")
    if os.path.lexists(path) and not overwrite:
        raise OutputError("it already exists", file=path, fix="choose another name or allow overwriting (--overwrite)")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"no permission to write in {folder}", file=path, fix="choose another folder")


def check_name(path: Path) -> None:
    """Refuse a name that no file can have. Raises OutputError."""
    if len(os.fsencode(path.name)) > _MOST_NAME_BYTES:
        raise OutputError(f"its name is longer than {_MOST_NAME_BYTES} bytes", file=path, fix="choose a shorter name")


def hidden_name(target: Path) -> Path:
    """Return a new hidden name beside `target`, with its beginning and its end."""
    end = f".{secrets.token_hex(4)}.part{target.suffix}"
    stem = os.fsencode(target.stem)[: _MOST_NAME_BYTES - len(os.fsencode(end)) - 1]
    # A character that was cut in two is left out; bytes that are none stay as they are.
    beginning = os.fsdecode(stem)
    while beginning and not target.stem.startswith(beginning):
        beginning = beginning[:-1]
    return target.with_name(f".{beginning}{end}")


def create_hidden(path: Path, target: Path) -> Path:
    """Create an empty hidden file beside `target` with the rights of a new file; `path` is its name in errors."""
    hidden = hidden_name(target)
    with output_errors(path):
        os.close(os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    _unfinished.add(hidden)
    return hidden


def remove_unfinished() -> None:
    """Remove the hidden files of all writers, for a process that ends without unwinding."""
    for path in list(_unfinished):
        path.unlink(missing_ok=True)


def forget(hidden: Path) -> None:
    """Take a hidden file for finished, or removed."""
    _unfinished.discard(hidden)


def rename_to_new(source: Path, target: Path) -> None:
    """Rename, refusing a target that appeared meanwhile; the target is never there half-made."""
    appeared = OutputError("appeared while the output was being written", file=target, fix="choose another name")
    try:
        target.hardlink_to(source)
    except FileExistsError as error:
        raise appeared from error
    except OSError:  # a file system without hard links: look before renaming, which is all that can be done
        if os.path.lexists(target):
            raise appeared from None
        source.replace(target)
    else:
        source.unlink()


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Raise what goes wrong while `path` is written as OutputError."""
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        fix = "free some space or choose another folder"
        raise OutputError(f"cannot be written ({reason})", file=path, fix=fix) from error
