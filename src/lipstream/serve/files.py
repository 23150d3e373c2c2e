"""The files of jobs: a folder for each, below a folder of this machine or an address that fsspec knows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from lipstream.errors import LipstreamError, OutputError
from lipstream.scale.storage import fetched, file_system, is_address, without_secrets, without_secrets_in
from lipstream.serve.jobs import made_s

VIDEO, AUDIO = "video", "audio"
"""Names of a job's inputs: without an ending, since what they hold decides, not what a client calls them."""

_BLOCK_BYTES = 1 << 18


class Files:
    """Files by job and name. place: a folder, which is made, or an address. Raises OutputError, InputError."""

    def __init__(self, place: str) -> None:
        self._place = place.rstrip("/") if is_address(place) else str(Path(place).absolute())
        self.shown_place = without_secrets(self._place)
        self._system, self._root = file_system(self._place)
        with self._errors():
            self._system.makedirs(self._root, exist_ok=True)

    def put(self, job_id: str, name: str, source: Path) -> int:
        """Store a copy of a local file; return its size in bytes."""
        with self._errors():
            self._system.makedirs(f"{self._root}/{job_id}", exist_ok=True)
            self._system.put_file(str(source), self._path(job_id, name))
        return source.stat().st_size

    def local(self, job_id: str, *names: str) -> AbstractContextManager[list[Path]]:
        """Return a context that yields local paths of files: themselves, or copies that last as long as it does."""
        return fetched(*(f"{self._place}/{job_id}/{name}" for name in names))

    def n_bytes(self, job_id: str, name: str) -> int:
        """Return a file's size in bytes."""
        with self._errors():
            return int(self._system.size(self._path(job_id, name)))

    def read(self, job_id: str, name: str, begin: int, end: int) -> Iterator[bytes]:
        """Yield a file's bytes from `begin` up to `end`, in blocks."""
        with self._errors(), self._system.open(self._path(job_id, name), "rb") as file:
            file.seek(begin)
            while begin < end and (block := file.read(min(_BLOCK_BYTES, end - begin))):
                begin += len(block)
                yield block

    def delete(self, job_id: str, name: str | None = None) -> None:
        """Delete a file, or all of a job's; nothing happens where there is none."""
        with self._errors(), contextlib.suppress(FileNotFoundError):
            path = f"{self._root}/{job_id}" if name is None else self._path(job_id, name)
            self._system.rm(path, recursive=name is None)

    def job_ids(self) -> list[str]:
        """Return the ids of which there are files."""
        with self._errors():
            names = [str(path).rstrip("/").rpartition("/")[2] for path in self._system.ls(self._root, detail=False)]
        return [name for name in names if made_s(name) is not None]

    def _path(self, job_id: str, name: str) -> str:
        return f"{self._root}/{job_id}/{name}"

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what a file system raises into an error that names no more than the place."""
        try:
            yield
        except (LipstreamError, FileNotFoundError):
            raise
        except Exception as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise OutputError(
                f"files cannot be stored or read there ({without_secrets_in(str(reason))})",
                file=self.shown_place,
                fix="check the folder or address of --data, its credentials and its room",
            ) from error
