"""Single networks beside the models, pinned like a model's: found in the hub's cache, downloaded on request."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lipstream.errors import ModelError
from lipstream.models import hub
from lipstream.models.catalogue import PinnedFile
from lipstream.models.digest import sha256
from lipstream.models.hub import HubFile
from lipstream.models.locate import CONFIGS


def network_file(name: str) -> HubFile:
    """Return where the file of one of `names.NETWORKS` is published."""
    values = json.loads((CONFIGS / "networks.json").read_text("utf-8"))[name]
    pin = PinnedFile(values["size_bytes"], values["sha256"])
    return HubFile(values["repo"], values["filename"], values["revision"], pin)


def locate_network_file(name: str) -> Path:
    """Return the file's path on this machine, asking no network. Raises ModelError with the command that fetches it."""
    file = network_file(name)
    path = hub.cached(file)
    if path is None:
        raise ModelError("not on this machine", file=str(file), fix=f"run `lipstream models download {name}`")
    return path


def download_network_file(name: str, announce: Callable[[str], None], *, repo: str | None = None) -> Path:
    """Download the file, verified by SHA-256, where it is not here yet. repo: a mirror. Raises ModelError."""
    file = network_file(name)
    path = hub.cached(file)
    if path is None:
        size_bytes = 0 if file.pin is None else file.pin.size_bytes
        announce(f"{name}: {size_bytes / 1e6:.0f} MB to fetch from {repo or file.repo}")
        mirror = None if repo is None else replace(file, repo=repo, revision="main")
        path = hub.fetch(file, name, mirror)
    return path


def verify_network_file(name: str) -> Path:
    """Compare the file with its SHA-256. Raises ModelError where it is absent or another."""
    path, pin = locate_network_file(name), network_file(name).pin
    if pin is not None and sha256(path) != pin.sha256:
        raise ModelError("damaged: its SHA-256 is not the published one", file=path, fix="delete it and fetch it again")
    return path
