"""Layers left out of a filled U-Net, by the checkpoint's names, and the list that says which.

A part is a ResNet block, a spatial attention or a motion module of one layer, such as `down_blocks.1.attentions.0`.
What is left out is not computed and its weights are let go. An attention or a motion module leaves its input as it is;
of a ResNet block the shortcut stays.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from lipstream.errors import ModelError, OutputError
from lipstream.models.unet import UNet
from lipstream.models.unet_layers import MotionModule, ResnetBlock, Shortcut, SpatialTransformer

FORMAT = 1


def parts(unet: UNet) -> list[str]:
    """Return the names of what can be left out of `unet`."""
    kinds = (ResnetBlock, SpatialTransformer, MotionModule)
    return [name for name, module in unet.named_modules() if isinstance(module, kinds)]


def drop(unet: UNet, names: Iterable[str], origin: str) -> None:
    """Take the named parts out of `unet`. Raises ModelError that names `origin` and what `unet` has not."""
    names, known = list(names), parts(unet)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ModelError(
            f"the U-Net has no layer {', '.join(unknown[:8])}",
            file=origin,
            fix=f"use the names of its own layers, such as {', '.join(known[:4])}",
        )
    for name in dict.fromkeys(names):
        place, _, layer = name.rpartition(".")
        layers, part = unet.get_submodule(place), unet.get_submodule(name)
        if isinstance(part, ResnetBlock):
            layers.register_module(layer, Shortcut(part))  # the list keeps its length
        else:
            del cast(nn.ModuleDict, layers)[layer]


def without(unet: UNet, names: Iterable[str]) -> UNet:
    """Return a second U-Net without the named parts, on the same weights; `unet` stays whole. Raises ModelError."""
    weights = {id(tensor): tensor for tensor in itertools.chain(unet.parameters(), unet.buffers())}
    lesser: UNet = copy.deepcopy(unet, weights)
    drop(lesser, names, "the parts to leave out")
    return lesser


@dataclass(frozen=True)
class Dropped:
    """A part that was left out, and the SSIM of the repainted region after it and all before it were."""

    name: str
    ssim: float


@dataclass(frozen=True)
class PruneList:
    """What was left out of a model, in that order, and how that was found: see lipstream_lab.prune.search."""

    model: str
    dropped: tuple[Dropped, ...]
    floor: float
    calibration: str
    num_inference_steps: int
    guidance_scale: float
    seed: int
    version: str

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parts to leave out."""
        return tuple(part.name for part in self.dropped)

    def write(self, path: Path) -> None:
        """Write the list as JSON. Raises OutputError."""
        try:
            path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n", "utf-8")
        except OSError as error:
            raise OutputError(
                f"cannot be written ({error.strerror})", file=path, fix="name another file with -o"
            ) from error


def read_list(path: str | Path, model: str) -> PruneList:
    """Read a list that was made for the model named `model`. Raises ModelError."""
    fix = "make it again with lipstream prune"
    try:
        values: Any = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"not readable as a list of layers ({error})", file=path, fix=fix) from error
    found = values.pop("format", None) if isinstance(values, dict) else None
    if found != FORMAT:
        raise ModelError(f"not a list of layers in format {FORMAT}", file=path, fix=fix)
    try:
        dropped = tuple(Dropped(str(part["name"]), float(part["ssim"])) for part in values.pop("dropped"))
        pruned = PruneList(dropped=dropped, **values)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"not a complete list of layers ({error})", file=path, fix=fix) from error
    if pruned.model != model:
        raise ModelError(
            f"was made for the model {pruned.model}, not for {model}", file=path, fix=f"{fix} --model {model}"
        )
    return pruned
