"""Choose how cuDNN computes convolutions while a run lasts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LOCK = threading.Lock()
_runs = 0
_before = (False, True)


@contextmanager
def tuned_convolutions(device: torch.device) -> Iterator[None]:
    """On CUDA time cuDNN's algorithms for each shape and keep the fastest, and compute float32 without TF32.

    The shapes of a run repeat at every step and window. TF32 keeps 10 bits of a number, no more than float16: torch's
    default uses it for convolutions but not for matrix products, where fp32 here means float32 for both.

    torch has these two settings once for a process. What they were is restored when the last of the runs that overlap
    has ended. Does nothing on other devices.
    """
    global _runs, _before
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    with _LOCK:
        if _runs == 0:
            _before = (cudnn.benchmark, cudnn.allow_tf32)
            cudnn.benchmark, cudnn.allow_tf32 = True, False
        _runs += 1
    try:
        yield
    finally:
        with _LOCK:
            _runs -= 1
            if _runs == 0:
                cudnn.benchmark, cudnn.allow_tf32 = _before
