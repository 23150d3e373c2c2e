"""A network in lower precision, and the higher ones it falls back to where its result is not finite."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch

from lipstream.errors import ModelError
from lipstream.runtime.memory import free_caches, is_out_of_memory

logger = logging.getLogger(__name__)

Network = TypeVar("Network")

# float16 overflows above 65504. bfloat16 would not, but has fewer digits than were asked for: both go to float32.
_NEXT = {torch.float8_e4m3fn: torch.float16, torch.float16: torch.float32, torch.bfloat16: torch.float32}
# Overflows in a precision after which a network stays in the next one.
_ENOUGH = 2
_CPU = torch.device("cpu")


class PrecisionFallback(Generic[Network]):
    """One network and its higher precisions, which are loaded on first need and kept.

    They are read from the files again, so that a result is the one that a run in that precision gives: float8 weights,
    and half-precision ones that are out of range themselves, could not be converted back.
    """

    def __init__(
        self,
        name: str,
        network: Network,
        dtype: torch.dtype,
        device: torch.device,
        load: Callable[[torch.dtype, torch.device], Network],
    ) -> None:
        """network: in `dtype` on `device`. load: the same network in another dtype, and on the CPU if need be."""
        self._name, self._device, self._load = name, device, load
        self._dtype = dtype
        self._networks = {dtype: network}
        self._overflows: dict[torch.dtype, int] = {}
        self._lock = threading.Lock()  # the VAE's is used by encoding and by decoding at the same time

    def attempts(self, first: int, last: int) -> Iterator[Network]:
        """Yield the network for frames `first` to `last`, then, each time its result is not finite, the next higher.

        A network that overflowed twice stays in the higher precision. What happens is logged as a warning that names
        the frames. Raises ModelError after float32.
        """
        with self._lock:
            dtype = self._dtype
        yield self._in(dtype)
        frames = f"frames {first} to {last}"
        while dtype in _NEXT:
            self._overflowed(dtype, frames)
            dtype = _NEXT[dtype]
            yield self._in(dtype)
        raise ModelError(
            f"{frames}: the {self._name}'s result is not finite in float32 either",
            fix="check the model's files with lipstream models verify",
        )

    def _overflowed(self, dtype: torch.dtype, frames: str) -> None:
        with self._lock:
            count = self._overflows[dtype] = self._overflows.get(dtype, 0) + 1
            if self._dtype == dtype and count == _ENOUGH:
                self._dtype = _NEXT[dtype]
        if count <= _ENOUGH:
            end = "computed again" if count < _ENOUGH else "it stays from here on"
            message = "%s: the %s's result in %s is not finite; %s in %s"
            logger.warning(message, frames, self._name, _short(dtype), end, _short(_NEXT[dtype]))

    def _in(self, dtype: torch.dtype) -> Network:
        with self._lock:
            if dtype not in self._networks:
                self._networks[dtype] = self._loaded(dtype)
            return self._networks[dtype]

    def _loaded(self, dtype: torch.dtype) -> Network:
        try:
            return self._load(dtype, self._device)
        except Exception as error:
            if self._device.type == "cpu" or not is_out_of_memory(error):
                raise
        free_caches(self._device)
        message = "%s: no memory left for the %s in %s; it runs on the CPU, slowly"
        logger.warning(message, self._device, self._name, _short(dtype))
        return self._load(dtype, _CPU)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
