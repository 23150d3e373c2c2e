"""Checkpoints: reading their tensors without running code, and filling a network with them, every one accounted for."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lipstream.errors import ModelError
from lipstream.models.eight_bit import SCALE
from lipstream.models.unet_layers import sinusoidal_positions

logger = logging.getLogger(__name__)

_POSITIONS = ".pos_encoder.pe"


def read_tensors(path: Path, wrapper: str | None) -> dict[str, Tensor]:
    """Read a .safetensors file, or a torch checkpoint without running any code in it.

    wrapper: the word under which a torch checkpoint holds its tensors. Raises ModelError.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # mmap keeps a 5 GB checkpoint from being in memory twice; files of torch before 1.6 cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{path}: not a readable checkpoint ({reason}); download it again") from error
    if isinstance(content, Mapping) and wrapper in content:
        content = content[wrapper]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise ModelError(f"{path}: holds no tensors")
    return tensors


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], path: Path, device: torch.device, dtype: torch.dtype
) -> None:
    """Give a module built on the meta device its tensors, every one accounted for. Raises ModelError."""
    filled: dict[str, Tensor] = {}
    missing = []
    for name, wanted in module.state_dict().items():
        tensor = tensors.get(name)
        if tensor is None and name.endswith(_POSITIONS):
            tensor = sinusoidal_positions(*wanted.shape[1:])
        if tensor is None:
            missing.append(name)
        elif tensor.shape != wanted.shape:
            raise ModelError(
                f"{path}: tensor {name} is {_shape(tensor)}, the model's configuration needs {_shape(wanted)}"
            )
        elif tensor.is_floating_point() != wanted.is_floating_point():
            raise ModelError(f"{path}: tensor {name} is {_dtype(tensor)}, the model needs {_dtype(wanted)}")
        else:
            # Whole numbers stay what they are, and so do their scales: half a dtype's digits would cost more than int8.
            keeps = not tensor.is_floating_point() or name.endswith(f".{SCALE}")
            filled[name] = tensor.to(device=device, dtype=wanted.dtype if keeps else dtype)
    if missing:
        raise ModelError(f"{path}: {len(missing)} missing tensors: {_listing(missing)}")
    unexpected = [name for name in tensors if name not in filled]
    if unexpected:
        logger.warning("%s: %d unexpected tensors, not used: %s", path, len(unexpected), _listing(unexpected))
    module.load_state_dict(filled, strict=True, assign=True)


def leave_out_absent_motion_modules(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Take the motion modules that a file does not hold out of a network, and log that."""
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
