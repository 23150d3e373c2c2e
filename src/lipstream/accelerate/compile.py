"""torch.compile for the U-Net's step, and on CUDA a recording of all it launches, replayed at every step.

The recording is ours and not that of torch's mode "reduce-overhead": before torch 2.13 that one works only in the
thread that ran it first (https://github.com/pytorch/pytorch/issues/123177), and every sync denoises in a new one.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipstream.errors import SettingsError
from lipstream.models.unet import Prepared, Step, UNet
from lipstream.models.unet_layers import KeysValues

_WARM_UPS = 3
# CUDA allows one recording at a time in a process.
_RECORDING = threading.Lock()


def compiled_step(unet: UNet, frames: int) -> Step:
    """`unet.step`, compiled at its first call with `frames` frames.

    Calls of other sizes, a clip's last windows, take the plain step: compiling takes longer than they do.
    The step raises SettingsError where torch.compile does not work on this machine.
    """
    compiled: Step = torch.compile(unet.step, fullgraph=True, dynamic=False)
    weight = unet.conv_in.weight
    fast = RecordedStep(compiled, weight.device) if weight.is_cuda else compiled

    def step(
        latents: Tensor, timestep: Tensor, prepared: Prepared, guided: bool, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if len(latents) != frames:
            return unet.step(latents, timestep, prepared, guided, deep)
        try:
            return fast(latents, timestep, prepared, guided, deep)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            reason = _first_line(getattr(error, "inner_exception", error))
            raise SettingsError(f"torch.compile does not work here ({reason}); leave --compile out") from error

    return step


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
    """A step on CUDA, recorded once for each shape and for each of guided and not, deep features given and not.

    All on a stream of its own: torch lets go of a stream's work space with any recording that was made there. One call
    at a time, so that the recordings may share their memory.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self._step = step
        self._recordings: dict[tuple[torch.Size, bool, bool], _Recording] = {}
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._memory = torch.cuda.graph_pool_handle()

    def __call__(
        self, latents: Tensor, timestep: Tensor, prepared: Prepared, guided: bool, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See UNet.step."""
        key = (latents.shape, guided, deep is not None)
        if key not in self._recordings:
            copied = None if deep is None else deep.clone()
            with _RECORDING:
                made = self._record(latents.clone(), timestep.clone(), _copied(prepared), guided, copied)
            self._recordings[key] = made
        recording = self._recordings[key]
        for mine, given in zip(recording.inputs, _tensors(latents, timestep, prepared, deep), strict=True):
            mine.copy_(given)
        recording.graph.replay()
        return recording.predicted.clone(), recording.deep.clone() if deep is None else deep

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
