"""Files from anywhere: addresses that fsspec knows (s3://, gs://, https://, file://), by way of local files.

An input is fetched to a temporary file, since a container is read from both ends; an output is written to one and sent
whole. Credentials come from the libraries' own environment; errors name an address without what may be secret in it.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lipstream.errors import InputError, LipstreamError, OutputError

logger = logging.getLogger(__name__)

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "adl"}
"""Protocols whose uploads appear whole: elsewhere a file is sent under another name and renamed."""
_READ_ONLY = {"http", "https"}


def is_address(name: str | Path) -> bool:
    """Return whether a name is an address and not a path."""
    return _ADDRESS.match(str(name)) is not None


def without_secrets(address: str | Path) -> str:
    """Return an address without its user, password, query (signed addresses) and fragment; paths unchanged."""
    if not is_address(address):
        return str(address)
    parts = urlsplit(str(address))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextmanager
def fetched(*names: str | Path) -> Iterator[list[Path]]:
    """Yield local paths of files, those at addresses fetched to a temporary folder. Raises InputError."""
    with contextlib.ExitStack() as temporary:
        paths = [_fetched(name, temporary) for name in names]
        with _named(dict(zip(paths, names, strict=True))):
            yield paths


def _fetched(name: str | Path, temporary: contextlib.ExitStack) -> Path:
    local = _local(name)
    if local is not None:
        return local
    shown = without_secrets(name)
    with _errors(InputError, shown, "check the address and the credentials"):
        system, path = file_system(str(name))
    folder = temporary.enter_context(tempfile.TemporaryDirectory(prefix="lipstream-"))
    target = Path(folder) / (re.sub(r"[^\w.-]", "_", Path(urlsplit(str(name)).path).name)[-100:] or "file")
    logger.info("%s: fetching it", shown)
    with _errors(InputError, shown, "check the address and the credentials"):
        system.get_file(path, str(target))
    return target


@contextmanager
def sent(name: str | Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield the local path to write an output to, which goes to its address when the block ends without an error.

    Raises OutputError: before the block for an address that cannot be written, or exists (without `overwrite`).
    """
    local = _local(name)
    if local is not None:
        yield local
        return
    shown = without_secrets(name)
    check_address(name, overwrite=overwrite)
    with _errors(OutputError, shown, "check the address and the credentials"):
        system, path = file_system(str(name))
    with tempfile.TemporaryDirectory(prefix="lipstream-") as folder:
        source = Path(folder) / Path(urlsplit(str(name)).path).name
        with _named({source: name}):
            yield source
        logger.info("%s: sending %d bytes", shown, source.stat().st_size)
        with _errors(OutputError, shown, "check the address and the credentials"):
            _send(system, str(source), path, str(name).partition("://")[0].lower())


def check_address(name: str | Path, *, overwrite: bool) -> None:
    """Refuse an address that an output must not or cannot be written to; paths are let pass. Raises OutputError."""
    if _local(name) is not None:
        return
    shown = without_secrets(name)
    if str(name).partition("://")[0].lower() in _READ_ONLY:
        raise OutputError("nothing can be written to a web address", file=shown, fix="name a file, or an s3:// address")
    with _errors(OutputError, shown, "check the address and the credentials"):
        system, path = file_system(str(name))
        exists = system.exists(path)
    if exists and not overwrite:
        raise OutputError("it already exists", file=shown, fix="choose another name or allow overwriting (--overwrite)")


def exists(name: str | Path) -> bool:
    """Return whether there is a file. Raises InputError where that cannot be asked."""
    local = _local(name)
    if local is not None:
        return local.exists()
    with _errors(InputError, without_secrets(name), "check the address and the credentials"):
        system, path = file_system(str(name))
        return bool(system.exists(path))


def _local(name: str | Path) -> Path | None:
    """Return the path of a local file, file:// included; None for other addresses."""
    if not is_address(name):
        return Path(name)
    parts = urlsplit(str(name))
    if parts.scheme.lower() == "file":
        return Path(unquote(parts.path))
    return None


def file_system(address: str) -> tuple[Any, str]:
    """Return fsspec's file system of an address, and its path there."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise InputError(
            "addresses need fsspec", file=without_secrets(address), fix="pip install 'lipstream[remote]'"
        ) from error
    try:
        system, path = url_to_fs(address)
    except ImportError as error:
        raise InputError(
            f"a library for it is missing ({error.name or 'see lipstream[remote]'})",
            file=without_secrets(address),
            fix="pip install 'lipstream[remote]'",
        ) from error
    system.invalidate_cache()  # what another process has written since counts too
    return system, path


def _send(system: Any, source: str, path: str, protocol: str) -> None:
    if protocol in _OBJECT_STORES:
        system.put_file(source, path)
        return
    unfinished = f"{path}.{secrets.token_hex(4)}.part"
    try:
        system.put_file(source, unfinished)
        system.mv(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            system.rm_file(unfinished)
        raise


@contextmanager
def _named(names: Mapping[Path, str | Path]) -> Iterator[None]:
    """Let errors about temporary files name the addresses that these stand for."""
    try:
        yield
    except LipstreamError as error:
        for path, name in names.items():
            if error.file == str(path):
                error.file = without_secrets(name)
        raise


@contextmanager
def _errors(kind: type[LipstreamError], shown: str, fix: str) -> Iterator[None]:
    """Turn what a file system raises into an error without secrets: each library has its own, and names addresses."""
    try:
        yield
    except LipstreamError:
        raise
    except FileNotFoundError:
        raise kind("there is no such file", file=shown, fix=fix) from None
    except Exception as error:  # noqa: BLE001  (see above)
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise kind(f"it cannot be reached ({without_secrets_in(str(reason))})", file=shown, fix=fix) from None


def without_secrets_in(text: str) -> str:
    """Return a message whose addresses have lost what may be secret in them."""
    return re.sub(r"[A-Za-z][A-Za-z0-9+.-]*://\S+", lambda match: without_secrets(match[0]), text)
