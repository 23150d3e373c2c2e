"""SyncNet with the weights that the goldens were recorded with: made by a rule, so that no file is needed."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import Tensor

from lipstream.evaluate.syncnet import SyncNet


def syncnet_tensors(seed: int = 0) -> dict[str, Tensor]:
    """Return the tensors of the published layout, each of its name's own random numbers."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in SyncNet().state_dict().items()}
    return {name: _tensor(name, tuple(shape), seed) for name, shape in shapes.items() if len(shape)}


def _tensor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    x = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape).astype(np.float32)
    if name.endswith("running_mean"):
        x = 0.1 * x
    elif name.endswith("running_var"):
        x = 1 + 0.1 * np.abs(x)
    elif len(shape) == 1:
        x = 1 + 0.1 * x if name.endswith("weight") else 0.01 * x
    else:
        x = x * math.sqrt(2 / math.prod(shape[1:]))
    return torch.from_numpy(np.asarray(x, np.float32))
