"""torch.compile for the U-Net's step, and on CUDA a recording of its kernels, replayed at every step.

The recording is ours and not that of torch's mode "reduce-overhead": before torch 2.13 that one works only in the
thread that ran it first (https://github.com/pytorch/pytorch/issues/123177), and every run denoises in a new one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipstream.errors import SettingsError
from lipstream.models.unet import Prepared, Step, UNet
from lipstream.models.unet_layers import KeysValues

logger = logging.getLogger(__name__)

_WARM_UPS = 3
# CUDA allows one recording at a time in a process.
_RECORDING = threading.Lock()
# Graphs of one step: guided or not, deep features given or not, for each resolution. torch's own limit is 8.
_MAX_GRAPHS = 64
_LIMIT_REACHED = ("FailOnRecompileLimitHit", "RecompileLimitExceeded", "CacheLimitExceeded")


def compiled_step(unet: UNet, frames: int) -> Step:
    """Return `unet.step`, compiled at its first call with `frames` frames and again for every resolution.

    Calls of other sizes, a clip's last windows, take the plain step: compiling takes longer than they do. So do all
    calls after torch has reached its limit of graphs, which logs a warning once. The step raises SettingsError where
    torch.compile does not work on this machine.
    """
    compiled: Step = torch.compile(unet.step, fullgraph=True, dynamic=False)
    weight = unet.conv_in.weight
    fast = RecordedStep(compiled, weight.device) if weight.is_cuda else compiled
    is_exhausted = False

    def step(
        latents: Tensor, timestep: Tensor, prepared: Prepared, guided: bool, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        nonlocal is_exhausted
        if len(latents) != frames or is_exhausted:
            return unet.step(latents, timestep, prepared, guided, deep)
        try:
            with _more_graphs():
                return fast(latents, timestep, prepared, guided, deep)
        except Exception as error:
            if not _is_of_dynamo(error):
                raise
            if type(error).__name__ not in _LIMIT_REACHED:
                reason = _first_line(getattr(error, "inner_exception", error))
                raise SettingsError(
                    f"torch.compile does not work here ({reason})", fix="leave --compile out"
                ) from error
            logger.warning("torch.compile has reached its limit of graphs; the U-Net goes on uncompiled")
            is_exhausted = True
        return unet.step(latents, timestep, prepared, guided, deep)

    return step


@contextmanager
def _more_graphs() -> Iterator[None]:
    """Raise torch's limit of graphs per function, which it reads when it compiles."""
    config = torch._dynamo.config
    # Named cache_size_limit before torch 2.7.
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    with config.patch({name: _MAX_GRAPHS}):
        yield


def _is_of_dynamo(error: Exception) -> bool:
    """Return whether torch.compile raised it: its error classes differ between versions of torch, not their module."""
    return any(kind.__module__ == "torch._dynamo.exc" for kind in type(error).__mro__)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


@dataclass(frozen=True)
class _Recording:
    """A CUDA graph, the tensors it reads, and its prediction and deep features."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    predicted: Tensor
    deep: Tensor


class RecordedStep:
    """A step on CUDA, recorded once for each shape, guided or not, with and without given deep features.

    Recorded on a stream of its own: torch releases a stream's workspace with any recording that was made on it. Calls
    take turns, since a recording has one set of inputs and the recordings share their memory.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self._step = step
        self._recordings: dict[tuple[torch.Size, bool, bool], _Recording] = {}
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._memory = torch.cuda.graph_pool_handle()
        self._turn = threading.Lock()
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def __call__(
        self, latents: Tensor, timestep: Tensor, prepared: Prepared, guided: bool, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See UNet.step."""
        key = (latents.shape, guided, deep is not None)
        with self._turn:
            if key not in self._recordings:
                copied = None if deep is None else deep.clone()
                with _RECORDING:
                    made = self._record(latents.clone(), timestep.clone(), _copied(prepared), guided, copied)
                self._recordings[key] = made
            recording = self._recordings[key]
            stream = torch.cuda.current_stream(latents.device)
            stream.wait_event(self._done)  # the last caller may have used another stream
            for mine, given in zip(recording.inputs, _tensors(latents, timestep, prepared, deep), strict=True):
                mine.copy_(given)
            recording.graph.replay()
            predicted = recording.predicted.clone()
            deep = recording.deep.clone() if deep is None else deep
            self._done.record(stream)
        return predicted, deep

    def _record(
        self, latents: Tensor, timestep: Tensor, prepared: Prepared, guided: bool, deep: Tensor | None
    ) -> _Recording:
        # What is done once (compiling, choosing algorithms, work space) must not be recorded.
        current = torch.cuda.current_stream(latents.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                self._step(latents, timestep, prepared, guided, deep)
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # "thread_local": the next windows are encoded meanwhile, in a thread of their own.
        with torch.cuda.graph(graph, self._memory, self._stream, capture_error_mode="thread_local"):
            predicted, made = self._step(latents, timestep, prepared, guided, deep)
        return _Recording(graph, _tensors(latents, timestep, prepared, deep), predicted, made)


def _copied(prepared: Prepared) -> Prepared:
    audio = tuple(
        {name: KeysValues(kv.keys.clone(), kv.values.clone()) for name, kv in block.items()} for block in prepared.audio
    )
    return replace(prepared, conv_in_features=prepared.conv_in_features.clone(), audio=audio)


def _tensors(latents: Tensor, timestep: Tensor, prepared: Prepared, deep: Tensor | None) -> list[Tensor]:
    audio = [tensor for block in prepared.audio for kv in block.values() for tensor in kv]
    return [latents, timestep, prepared.conv_in_features, *audio, *(() if deep is None else (deep,))]
