"""The folder in which networks that were exported or built for this machine are kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from lipstream.errors import ModelError, OutputError
from lipstream.models.digest import sha256
from lipstream.models.load import Source

CACHE_VARIABLE = "LIPSTREAM_CACHE"
"""Environment variable that names another folder for the cache."""

_DIGESTS = "digests.json"


@dataclass(frozen=True)
class CacheEntry:
    """Networks in the cache: one model, precision and version, for one engine."""

    name: str
    path: Path
    size_bytes: int


def cache_folder() -> Path:
    """Return the folder of the cache, which may not exist yet."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else user_cache_path("lipstream", appauthor=False) / "engines"


def entries() -> list[CacheEntry]:
    """Return what the cache holds, by name."""
    folder = cache_folder()
    if not folder.is_dir():
        return []
    paths = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [CacheEntry(path.name, path, _size_bytes(path)) for path in paths]


def clear() -> int:
    """Empty the cache, and return how many bytes that freed. Raises OutputError."""
    folder = cache_folder()
    freed = _size_bytes(folder)
    try:
        if folder.is_dir():
            shutil.rmtree(folder)
    except OSError as error:
        raise OutputError(
            f"cannot be removed ({error.strerror})", file=folder, fix="close what uses it, or remove it by hand"
        ) from error
    return freed


def not_writable(what: str, folder: Path, error: OSError) -> ModelError:
    """Return the error of a part of the cache, `what`, that could not be written into `folder`."""
    return ModelError(
        f"the cache of {what} cannot be written ({error.strerror})",
        file=folder,
        fix=f"free some space, or name another folder with the environment variable {CACHE_VARIABLE}",
    )


def weights_sha256(source: Source) -> str:
    """Return a digest of a model's weights and of the parts that are left out.

    The files' own digests are remembered by path, size and time of change: gigabytes take seconds to read.
    """
    remembered = _Digests(cache_folder() / _DIGESTS)
    paths = (source.paths.unet, source.paths.audio_encoder, source.paths.vae_config, source.paths.vae_weights)
    parts = [remembered.of(path) for path in paths]
    remembered.write()
    return hashlib.sha256("\n".join([*parts, *sorted(source.left_out)]).encode()).hexdigest()


class _Digests:
    """Digests of files, remembered in a file."""

    def __init__(self, path: Path) -> None:
        self._path, self._known, self._is_changed = path, dict[str, str](), False
        with contextlib.suppress(OSError, ValueError):  # absent or damaged: computed again
            content = json.loads(path.read_text("utf-8"))
            self._known = {str(key): str(digest) for key, digest in content.items()}

    def of(self, path: Path) -> str:
        status = path.resolve().stat()
        key = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
        if key not in self._known:
            self._known[key] = sha256(path)
            self._is_changed = True
        return self._known[key]

    def write(self) -> None:
        """Write the file, where that is possible: without it the digests are computed again."""
        if not self._is_changed:
            return
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(self._known), "utf-8")
            partial.replace(self._path)


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
