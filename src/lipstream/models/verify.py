"""Check a model's files without running it: damage, numbers that are none, and which published files they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lipstream.errors import ModelError
from lipstream.models.catalogue import PinnedFile
from lipstream.models.checkpoint import check_archive, read_tensors
from lipstream.models.hub import sha256
from lipstream.models.load import load_model
from lipstream.models.locate import locate, read_config


@dataclass(frozen=True)
class VerifiedFile:
    """A file of weights that was read completely: its tensors belong to the model and are finite.

    is_published: its SHA-256 is that of the published file.
    """

    path: Path
    tensors: int
    size_bytes: int
    is_published: bool


def verify_model(model: str | Path) -> list[VerifiedFile]:
    """Check every file of a named model or a folder on this machine. Raises ModelError for the first fault.

    A file of a published one's size is compared by SHA-256, any other torch checkpoint with its archive's checksums.
    """
    config, folder = read_config(model)
    paths = locate(config, folder, download=False)
    load_model(model, torch.device("meta"), torch.float32)  # maps the files: reads names and shapes, no weights
    pinned = {} if config.hub is None else config.hub.pinned
    if folder is None:
        _is_published(paths.vae_config, pinned.get("vae_config"), must_be=True)
    return [
        _verified(path, wrapper, pinned.get(role), must_be=folder is None)
        for role, path, wrapper in (
            ("unet", paths.unet, "state_dict"),
            ("audio_encoder", paths.audio_encoder, "model_state_dict"),
            ("vae_weights", paths.vae_weights, None),
        )
    ]


def _verified(path: Path, wrapper: str | None, pin: PinnedFile | None, *, must_be: bool) -> VerifiedFile:
    is_published = _is_published(path, pin, must_be=must_be)
    if not is_published:
        check_archive(path)
    tensors = read_tensors(path, wrapper)
    if not is_published:
        _check_finite(tensors, path)
    return VerifiedFile(path, len(tensors), path.stat().st_size, is_published)


def _is_published(path: Path, pin: PinnedFile | None, *, must_be: bool) -> bool:
    """Whether the file has the published size and SHA-256. Raises ModelError where it `must_be` and has not."""
    if pin is not None and path.stat().st_size == pin.size_bytes and sha256(path) == pin.sha256:
        return True
    if must_be and pin is not None:
        raise ModelError(
            "damaged: its SHA-256 is not the published one", file=path, fix="delete it and download it again"
        )
    return False


def _check_finite(tensors: dict[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"tensor {name} holds values that are not numbers", file=path, fix="download it again")
