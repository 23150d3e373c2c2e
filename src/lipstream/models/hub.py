"""Downloads from the model hub: pinned by size and SHA-256, resumed, stored as the hub's own cache does."""

from __future__ import annotations

import errno
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse

from lipstream.errors import ModelError
from lipstream.models.catalogue import PinnedFile
from lipstream.models.digest import sha256

_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class HubFile:
    """A file of a hub repository at a commit (or branch); pin: None where its contents are not checked."""

    repo: str
    filename: str
    revision: str
    pin: PinnedFile | None

    def __str__(self) -> str:
        return f"{self.repo}/{self.filename}"


def cached(file: HubFile) -> Path | None:
    """Return the file's path in the hub's cache, asking no network; None where it is absent or of another size.

    A pinned file is also taken from another commit's snapshot, `main`, where its size is right.
    """
    from huggingface_hub import try_to_load_from_cache

    for revision in dict.fromkeys((file.revision, "main") if file.pin else (file.revision,)):
        found = try_to_load_from_cache(file.repo, file.filename, revision=revision)
        if isinstance(found, str) and (file.pin is None or Path(found).stat().st_size == file.pin.size_bytes):
            return Path(found)
    return None


def fetch(file: HubFile, model: str, mirror: HubFile | None = None) -> Path:
    """Download a file into the hub's cache, going on where an earlier download broke off; return its path.

    model: the name for `lipstream models download`, for the errors. mirror: where the bytes come from instead; they are
    stored as `file`. Progress is shown on stderr. Raises ModelError: refused, unreachable, broken off, or other bytes
    than the pinned ones.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    source = mirror or file
    url = hf_hub_url(source.repo, source.filename, revision=source.revision)
    try:
        metadata = get_hf_file_metadata(url, timeout=_TIMEOUT_S)
    except _network_errors() as error:
        raise _refusal(error, source, model) from error
    if file.pin is not None and metadata.size not in (None, file.pin.size_bytes):
        raise _other_bytes(f"{metadata.size} bytes, the published file has {file.pin.size_bytes}", source)
    commit = file.revision if file.pin else metadata.commit_hash or file.revision
    folder = repo_folder_name(repo_id=file.repo, repo_type="model")
    target = Path(HF_HUB_CACHE) / folder / "snapshots" / commit / file.filename
    blob = file.pin.sha256 if file.pin else (metadata.etag or commit).replace("/", "-")
    partial = Path(HF_HUB_CACHE) / folder / "blobs" / f"{blob}.lipstream.incomplete"
    lock = Path(HF_HUB_CACHE) / ".locks" / folder / f"{blob}.lipstream.lock"
    expected = file.pin.size_bytes if file.pin else metadata.size
    try:
        for parent in (target.parent, partial.parent, lock.parent):
            parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if not target.is_file() or target.stat().st_size != expected:
                _transfer(metadata.location, url, partial, expected, source, model)
                _check_hash(partial, file.pin, source)
                partial.replace(target)
    except OSError as error:
        raise ModelError(
            f"cannot be stored in the hub's cache ({error.strerror or error})",
            file=target,
            fix="free space there, or set HF_HUB_CACHE to another folder",
        ) from error
    return target


def _transfer(location: str, url: str, partial: Path, expected: int | None, file: HubFile, model: str) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    have = partial.stat().st_size if partial.exists() else 0
    if expected is not None and have > expected:
        partial.unlink()
        have = 0
    if expected is not None and shutil.disk_usage(partial.parent).free < expected - have:
        raise OSError(errno.ENOSPC, f"{(expected - have) / 1e9:.1f} GB are needed")
    headers = build_hf_headers()
    if urlparse(location).netloc != urlparse(url).netloc:  # a token is the hub's alone, not its file server's
        headers.pop("authorization", None)
    headers["Accept-Encoding"] = "identity"  # ranges count bytes of the file itself
    try:
        with partial.open("ab") as stream:
            http_get(
                location,
                stream,
                resume_size=have,
                headers=headers,
                expected_size=expected,
                displayed_filename=file.filename,
            )
    except _network_errors() as error:
        if getattr(error, "response", None) is not None:
            raise _refusal(error, file, model) from error
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        of = "" if expected is None else f" of {expected}"
        raise ModelError(
            f"the download broke off after {partial.stat().st_size}{of} bytes ({_first_line(error)})",
            file=str(file),
            fix=f"run `lipstream models download {model}` again, which goes on from there",
        ) from error


def _check_hash(path: Path, pin: PinnedFile | None, file: HubFile) -> None:
    if pin is None or sha256(path) == pin.sha256:
        return
    path.unlink()
    raise _other_bytes("bytes whose SHA-256 is not the published one", file)


def _other_bytes(what: str, file: HubFile) -> ModelError:
    return ModelError(
        f"not the published file: the server sends {what}",
        file=str(file),
        fix="download it from another repository with --from REPO or another HF_ENDPOINT; --revision takes a"
        " repository's own files unchecked",
    )


def _network_errors() -> tuple[type[Exception], ...]:
    # The library's transport (httpx since 1.0, requests before) has errors of its own: the parent of the one it wraps.
    from huggingface_hub.errors import HfHubHTTPError

    parents = [c for c in HfHubHTTPError.__mro__ if c.__name__ == "HTTPError"]
    return cast("tuple[type[Exception], ...]", (OSError, *parents))


def _refusal(error: Exception, file: HubFile, model: str) -> ModelError:
    """Return the ModelError for an answer of the hub that is no file, or for no answer."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    again = f"run `lipstream models download {model}`"
    elsewhere = f"name another repository with `lipstream models download {model} --from REPO`, or pass a folder of"
    elsewhere += " the files with --model FOLDER"
    if isinstance(error, OfflineModeIsEnabled):
        return ModelError(
            "not on this machine, and offline mode is set", file=str(file), fix=f"unset HF_HUB_OFFLINE and {again}"
        )
    response: Any = getattr(error, "response", None)
    if response is None:
        return ModelError(
            f"the hub cannot be reached ({_first_line(error)})",
            file=str(file),
            fix=f"once online, {again}, or pass a folder of the files with --model FOLDER",
        )
    status = response.status_code
    said = getattr(error, "server_message", None) or response.headers.get("X-Error-Message") or ""
    login = "log in with `hf auth login`, or set HF_TOKEN to a token that may read it"
    wait = response.headers.get("Retry-After")
    reason, fix = {
        401: ("the hub wants a token, or the repository is private or gone (401)", f"{login}; else {elsewhere}"),
        403: (
            "the hub refuses access (403)",
            f"accept the licence on the model's page, then {login}; else {elsewhere}",
        ),
        404: ("not found on the hub (404): the repository or the file has moved", elsewhere),
        429: (
            "too many requests (429)",
            f"wait{f' {wait} s' if wait else ' some minutes'} and {again} again; a token raises the limit: {login}",
        ),
    }.get(status, (f"the hub answers {status}", f"wait and {again} again" if status >= 500 else elsewhere))
    return ModelError(f"{reason}{f': {_first_line(said)}' if said else ''}", file=str(file), fix=fix)


def _first_line(said: object) -> str:
    lines = str(said).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(said).__name__
