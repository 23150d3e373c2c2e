"""Downloads from the model hub: resumed, cached, and quick to say that the hub can't be reached."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from lipstream.errors import ModelError

_TIMEOUT_S = 5.0


def fetch(repo: str, filename: str, model: str, *, download: bool = True) -> Path:
    """The file's path in the hub's cache; downloaded, or a broken download resumed, where `download` allows it.

    A cached file is used without asking the hub. Progress is shown on stderr. Raises ModelError that names the mend.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    cached = try_to_load_from_cache(repo, filename)
    if isinstance(cached, str):
        return Path(cached)
    mend = f"once online, run `lipstream models download {model}`, or pass a folder of the files with --model FOLDER"
    if not download:
        raise ModelError(f"{repo}/{filename}: not on this machine; {mend}")
    # The library's transport (httpx since 1.0, requests before) has errors of its own: the parent of the one it wraps.
    parents = [c for c in HfHubHTTPError.__mro__ if c.__name__ == "HTTPError"]
    network_errors = cast("tuple[type[Exception], ...]", (OSError, *parents))
    try:
        # One quick question first: the download itself would ask an unreachable hub six times before giving up.
        get_hf_file_metadata(hf_hub_url(repo, filename), timeout=_TIMEOUT_S)
        return Path(hf_hub_download(repo, filename, etag_timeout=_TIMEOUT_S))
    except network_errors as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{repo}/{filename}: can't be had from the hub ({reason}); {mend}") from error
