"""Checkpoints: read tensors without running code, find damage, and fill a network, every tensor accounted for."""

from __future__ import annotations

import logging
import pickle
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lipstream.errors import ModelError
from lipstream.models.mapped_file import MappedFile
from lipstream.models.quantized_layers import SCALE
from lipstream.models.unet_layers import sinusoidal_positions

logger = logging.getLogger(__name__)

_POSITIONS = ".pos_encoder.pe"
_FIX = "download it again"


def read_tensors(path: Path, wrapper: str | None) -> dict[str, Tensor]:
    """Read a .safetensors file, or a torch checkpoint without running any code in it.

    wrapper: the key under which a torch checkpoint holds its tensors. Raises ModelError.
    """
    try:
        _refuse_other_content(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        # mmap keeps a 5 GB checkpoint from being in memory twice; files of torch before 1.6 cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # torch's own text advises to load the file unsafely: it is not passed on.
        raise ModelError("holds code, or objects other than tensors; it was not loaded", file=path, fix=_FIX) from error
    except SafetensorError as error:
        raise ModelError(
            f"damaged or truncated: not a whole safetensors file ({error})", file=path, fix=_FIX
        ) from error
    except (OSError, ValueError, RuntimeError, EOFError, KeyError) as error:
        raise ModelError(f"not a readable checkpoint ({type(error).__name__})", file=path, fix=_FIX) from error
    if isinstance(content, Mapping) and wrapper in content:
        content = content[wrapper]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise ModelError("holds no tensors", file=path, fix=_FIX)
    return tensors


def _refuse_other_content(path: Path) -> None:
    """Raise ModelError for what is often found in a checkpoint's place: git-lfs pointers, web pages, partial files."""
    with path.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise ModelError("empty", file=path, fix=_FIX)
    if head.startswith(b"version https://git-lfs"):
        raise ModelError(
            "a git-lfs pointer, not the file itself", file=path, fix="run `git lfs pull` in the folder it was cloned to"
        )
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ModelError("a web page, not a checkpoint", file=path, fix=f"{_FIX} from the file's own address")
    if path.suffix == ".safetensors":
        return
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise ModelError("truncated: the end of the archive is missing", file=path, fix=_FIX)
    if not head.startswith((b"PK", b"\x80")):
        raise ModelError("not a checkpoint of torch", file=path, fix=_FIX)


def check_archive(path: Path) -> None:
    """Compare every part of a torch checkpoint with its checksum. Raises ModelError; other files have no checksums."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, zlib.error, ValueError, RuntimeError, EOFError) as error:
        raise ModelError(f"damaged ({error})", file=path, fix=_FIX) from error
    if damaged is not None:
        raise ModelError(f"damaged: {damaged} in it does not match its checksum", file=path, fix=_FIX)


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], path: Path, device: torch.device, dtype: torch.dtype
) -> None:
    """Fill a module built on the meta device with tensors, every one accounted for. Raises ModelError."""
    filled: dict[str, Tensor] = {}
    missing, mapped = [], MappedFile(path)
    for name, wanted in module.state_dict().items():
        tensor = tensors.get(name)
        if tensor is None and name.endswith(_POSITIONS):
            tensor = sinusoidal_positions(*wanted.shape[1:])
        if tensor is None:
            missing.append(name)
        elif tensor.shape != wanted.shape:
            raise ModelError(
                f"tensor {name} is {_shape(tensor)}, the model's configuration needs {_shape(wanted)}",
                file=path,
                fix="check that lipstream.json describes this file",
            )
        elif tensor.is_floating_point() != wanted.is_floating_point():
            raise ModelError(
                f"tensor {name} is {_dtype(tensor)}, the model needs {_dtype(wanted)}",
                file=path,
                fix='check "quantized" in lipstream.json',
            )
        else:
            # Whole numbers stay what they are, and so do their scales: half a dtype's digits would cost more than int8.
            keeps = not tensor.is_floating_point() or name.endswith(f".{SCALE}")
            # In the memory format to be computed in at once: changed later, old and new take each other's place badly.
            memory_format = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
            target = wanted.dtype if keeps else dtype
            filled[name] = tensor.to(device=device, dtype=target, memory_format=memory_format)
            if filled[name] is not tensor and not tensor.is_meta:
                mapped.give_back(tensor)
    if missing:
        raise ModelError(
            f"{len(missing)} missing tensors: {_listing(missing)}",
            file=path,
            fix="check that lipstream.json describes this file, or download it again",
        )
    unexpected = [name for name in tensors if name not in filled]
    if unexpected:
        logger.warning("%s: %d unexpected tensors, not used: %s", path, len(unexpected), _listing(unexpected))
    module.load_state_dict(filled, strict=True, assign=True)


def leave_out_absent_motion_modules(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Remove the motion modules that a file does not hold from a network, and log that."""
    # The published code loads loosely, and a motion module that was never filled is an identity there (its last
    # layer starts at zero): the same picture comes from not computing it.
    for block_name, block in module.named_modules():
        motion_modules = getattr(block, "motion_modules", {})
        for index in list(motion_modules):
            prefix = f"{block_name}.motion_modules.{index}."
            if not any(name.startswith(prefix) for name in tensors):
                logger.warning("%s: no motion module %s; left out of the model", path, prefix[:-1])
                del motion_modules[index]


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape(tensor: Tensor) -> str:
    return " x ".join(str(n) for n in tensor.shape) or "a scalar"


def _listing(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
