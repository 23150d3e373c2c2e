"""Out of memory: recognising it, freeing what can be freed, and what to advise."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lipstream.errors import OutOfMemoryError

PIXELS_PER_GPU_CALL = 512 * 512
"""Of the VAE, on CUDA and Metal: one image of 512 px or four of 256 px.

Memory is in proportion to them: counted in fp16 at 512 px, encoding and decoding a window peak at 0.5 GiB each; with 16
images a call at 6 and 8. So many are 2.5 TFLOP to decode, enough to fill a GPU.
"""

# Of RuntimeErrors: the CPU's allocator, C++, Metal, and CUDA's libraries.
_MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_FIX = (
    "use --batch 1, then --precision fp16 (on a GPU), --quantize int8, a smaller --resolution, or close other programs"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the host or the device has too little memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError, OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def out_of_memory(error: BaseException, device: torch.device) -> OutOfMemoryError:
    """Return the error to raise for one that `is_out_of_memory`, with what helps in the order in which to try it."""
    on_host = isinstance(error, MemoryError) or "CPUAllocator" in str(error) or "bad_alloc" in str(error)
    return OutOfMemoryError(f"out of memory on {'the host' if on_host else device}", fix=_FIX)


def free_caches(device: torch.device) -> None:
    """Give back memory that nothing uses: reference cycles and what torch keeps for the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


@contextmanager
def memory_errors(device: torch.device) -> Iterator[None]:
    """Turn every kind of running out of memory into an OutOfMemoryError."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(error, device) from error
