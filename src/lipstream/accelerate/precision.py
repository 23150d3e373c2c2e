"""A network in lower precision, and what stands behind it where its result is not finite."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch

from lipstream.errors import ModelError

logger = logging.getLogger(__name__)

Network = TypeVar("Network")

# Where the numbers of a dtype do not suffice. float16 runs out of range (65504), which bfloat16 would mend with fewer
# digits than were asked for: both go to float32.
_NEXT = {torch.float8_e4m3fn: torch.float16, torch.float16: torch.float32, torch.bfloat16: torch.float32}


class Ladder(Generic[Network]):
    """One network in higher precision than it runs in: read on first need, and kept.

    It is read from its files again, so that a result is the one that a run in that precision gives: float8 weights,
    and half-precision ones that are out of range themselves, could not be brought back.
    """

    def __init__(self, name: str, dtype: torch.dtype, read: Callable[[torch.dtype], Network]) -> None:
        self._name, self._dtype, self._read = name, dtype, read
        self._networks: dict[torch.dtype, Network] = {}
        self._lock = threading.Lock()  # the VAE's is asked by who encodes and by who decodes

    def above(self, first: int, last: int) -> Iterator[Network]:
        """The network one precision higher, and higher still, each with a warning that names the frames.

        To be asked for the next each time that a result is not finite; raises ModelError after float32.
        """
        frames, dtype = f"frames {first} to {last}", self._dtype
        while dtype in _NEXT:
            logger.warning(
                "%s: the %s's result in %s is not finite; made again in %s",
                frames,
                self._name,
                _name(dtype),
                _name(_NEXT[dtype]),
            )
            dtype = _NEXT[dtype]
            yield self._in(dtype)
        raise ModelError(
            f"{frames}: the {self._name}'s result is not finite in float32 either; check the model's files with"
            " lipstream models verify"
        )

    def _in(self, dtype: torch.dtype) -> Network:
        with self._lock:
            if dtype not in self._networks:
                self._networks[dtype] = self._read(dtype)
            return self._networks[dtype]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
