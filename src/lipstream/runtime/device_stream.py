"""A stage's own queue of work on the device, so that stages in different threads do not wait for one another there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Two threads that ask Metal for work at the same time crash the process, in torch up to 2.14 at least
# (https://github.com/pytorch/pytorch/issues/197805).
_METAL_TURN = threading.Lock()


class DeviceStream:
    """One stage's queue of work on the device. What a stage computes in its stream is complete when it leaves it.

    On CUDA kernels and copies run at the same time as those of other streams, and copies go through pinned memory.
    Keep references to what came from another stream until this one is left: its memory may be reused
    after that. On Metal streams take turns; on a CPU a stream adds nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run what is inside in this stream, after what the thread has queued on the device before."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                yield
                self._stream.synchronize()
        elif self._device.type == "mps":
            with _METAL_TURN:
                yield
        else:
            yield

    def upload(self, tensor: Tensor) -> Tensor:
        """Return a tensor's copy on the device, itself if it is there already. Call it inside `running`."""
        if self._stream is None or tensor.is_cuda:
            return tensor.to(self._device)
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def download(self, tensor: Tensor) -> Tensor:
        """Return a device tensor's copy on the CPU, complete when the stream is left. Call it inside `running`."""
        if self._stream is None:
            return tensor.cpu()
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return pinned.copy_(tensor, non_blocking=True)

    def wait(self) -> None:
        """Wait until all queued work is done, downloads included. Call it inside `running`."""
        if self._stream is not None:
            self._stream.synchronize()
