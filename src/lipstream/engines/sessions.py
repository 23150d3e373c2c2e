"""What an engine answers: one graph opened, run on tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor


class Session(Protocol):
    """An opened graph. May be called from several threads at the same time."""

    @property
    def inputs(self) -> frozenset[str]:
        """Names of the graph's inputs."""

    def __call__(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs by name, on the device of the inputs.

        feeds: the inputs by name, of the graph's own dtypes; others are left alone.
        """


class Engine(Protocol):
    """Opens graphs."""

    def open(self, path: Path, cache: Path | None = None) -> Session:
        """Open a graph file. Raises ModelError for one that it cannot read.

        cache: a folder for what the engine makes of the model's graphs; None keeps nothing.
        """


def unreadable(path: Path, engine: str, error: Exception) -> str:
    """Return one line about a graph that an engine does not take."""
    reason = str(error).strip().splitlines()
    return f"{engine} cannot load it ({reason[0][:200] if reason else type(error).__name__})"
