"""Downloading a zip archive into a folder, wholly or not at all."""

from __future__ import annotations

import hashlib
import http.client
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from lipstream.errors import ModelError

_TIMEOUT_S = 30.0  # without a byte
_REPORT_S = 10.0
_CHUNK_BYTES = 2**20


def fetch_archive(
    url: str, folder: Path, announce: Callable[[str], None], *, needed: Sequence[str] = (), sha256: str | None = None
) -> None:
    """Download a zip archive and put the files at its top level into `folder`, which need not exist.

    Nothing appears in the folder before all of the archive is there and has been checked; each file then replaces one
    of its name. announce: is given lines for the user. needed: patterns, of each of which there must be a file. sha256:
    of the archive. Raises ModelError: unreachable, broken off, another archive, damaged, paths that leave the folder,
    or no room for it.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            archive, unpacked = Path(scratch) / "archive.zip", Path(scratch) / "files"
            digest = _download(url, archive, announce)
            if sha256 is not None and digest != sha256:
                raise ModelError(
                    "not the published archive (its SHA-256 is another)", file=url, fix="try again on another network"
                )
            _unpack(archive, unpacked, url)
            for pattern in needed:
                if not any(unpacked.glob(pattern)):
                    raise ModelError(f"no file {pattern} is in it", file=url, fix="try again on another network")
            if folder.exists():
                for file in sorted(unpacked.iterdir()):
                    file.replace(folder / file.name)
            else:
                unpacked.replace(folder)
    except OSError as error:
        raise ModelError(
            f"cannot be stored ({error.strerror or error})", file=folder, fix="free space there, or allow writing"
        ) from error


def _download(url: str, target: Path, announce: Callable[[str], None]) -> str:
    """Write what is at an address to a file; return its SHA-256."""
    digest, done, said_s = hashlib.sha256(), 0, time.monotonic()
    with _open(url) as answer, target.open("wb") as file:
        length = answer.headers.get("Content-Length")
        of = "" if length is None else f" of {int(length) / 1e6:.1f} MB"
        announce(f"downloading {url}")
        while chunk := _read(answer, url):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if time.monotonic() - said_s > _REPORT_S:
                announce(f"{done / 1e6:.1f} MB{of}")
                said_s = time.monotonic()
    if length is not None and done != int(length):
        raise _broken_off(f"{done} of {length} bytes", url)
    return digest.hexdigest()


def _open(url: str) -> http.client.HTTPResponse:
    try:
        answer: http.client.HTTPResponse = urllib.request.urlopen(url, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as refusal:
        refusal.close()
        raise ModelError(f"the server answers {refusal.code}", file=url, fix="try again later") from refusal
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ModelError(f"the server cannot be reached ({reason})", file=url, fix="try again once online") from error
    return answer


def _read(answer: http.client.HTTPResponse, url: str) -> bytes:
    try:
        return answer.read(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _broken_off(str(error) or type(error).__name__, url) from error


def _broken_off(reason: str, url: str) -> ModelError:
    return ModelError(f"the download broke off ({reason})", file=url, fix="run it again")


def _unpack(archive: Path, folder: Path, url: str) -> None:
    """Write the files of an archive's top level to a new folder."""
    folder.mkdir()
    try:
        with zipfile.ZipFile(archive) as contents:
            for entry in contents.infolist():
                paths = PurePosixPath(entry.filename), PureWindowsPath(entry.filename)
                if any(path.anchor or ".." in path.parts for path in paths):
                    raise ModelError(
                        f"its entry {entry.filename!r} leads out of the folder", file=url, fix="do not use this server"
                    )
                if not entry.is_dir() and all(len(path.parts) == 1 for path in paths):
                    contents.extract(entry, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"damaged, or not a zip archive ({error})", file=url, fix="download it again") from error
