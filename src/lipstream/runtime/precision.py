"""A network in lower precision, and the higher ones it falls back to where its result is not finite."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

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


class _Step(NamedTuple):
    """What computes a network, and in what."""

    engine: str
    dtype: torch.dtype

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return dtype if self.engine == "torch" else f"{dtype} by {self.engine}"


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
        engine: str = "torch",
    ) -> None:
        """network: in `dtype` on `device`. load: the same network in another dtype, and on the CPU if need be.

        engine: what computes `network`; what another one than torch computes is computed again by torch in float32.
        """
        self._name, self._device, self._load = name, device, load
        self._steps = [_Step(engine, dtype), *_higher(engine, dtype)]
        self._first = 0  # of the steps: where an attempt begins
        self._networks = {self._steps[0]: network}
        self._overflows: dict[_Step, int] = {}
        self._lock = threading.Lock()  # the VAE's is used by encoding and by decoding at the same time

    def attempts(self, first: int, last: int) -> Iterator[Network]:
        """Yield the network for frames `first` to `last`, then, each time its result is not finite, the next higher.

        A network that overflowed twice stays in the higher precision. What happens is logged as a warning that names
        the frames. Raises ModelError after float32.
        """
        with self._lock:
            begin = self._first
        frames = f"frames {first} to {last}"
        for index in range(begin, len(self._steps)):
            yield self._at(self._steps[index])
            if index + 1 < len(self._steps):
                self._overflowed(index, frames)
        raise ModelError(
            f"{frames}: the {self._name}'s result is not finite in {self._steps[-1]} either",
            fix="check the model's files with lipstream models verify",
        )

    def _overflowed(self, index: int, frames: str) -> None:
        step, higher = self._steps[index : index + 2]
        with self._lock:
            count = self._overflows[step] = self._overflows.get(step, 0) + 1
            if self._first == index and count == _ENOUGH:
                self._first = index + 1
        if count <= _ENOUGH:
            end = "computed again" if count < _ENOUGH else "it stays from here on"
            logger.warning("%s: the %s's result in %s is not finite; %s in %s", frames, self._name, step, end, higher)

    def _at(self, step: _Step) -> Network:
        with self._lock:
            if step not in self._networks:
                self._networks[step] = self._loaded(step)
            return self._networks[step]

    def _loaded(self, step: _Step) -> Network:
        try:
            return self._load(step.dtype, self._device)
        except Exception as error:
            if self._device.type == "cpu" or not is_out_of_memory(error):
                raise
        free_caches(self._device)
        message = "%s: no memory left for the %s in %s; it runs on the CPU, slowly"
        logger.warning(message, self._device, self._name, step)
        return self._load(step.dtype, _CPU)


def _higher(engine: str, dtype: torch.dtype) -> Iterator[_Step]:
    if engine != "torch":
        yield _Step("torch", torch.float32)
        return
    while dtype in _NEXT:
        dtype = _NEXT[dtype]
        yield _Step(engine, dtype)
