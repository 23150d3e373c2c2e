"""TensorRT on CUDA: plans built from the graphs for this GPU, run on torch's memory in torch's current stream.

All use of the library is in this file. Networks are strongly typed: what is computed in is what the graph's file says.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipstream.engines.cache import not_writable
from lipstream.engines.extras import needs
from lipstream.engines.sessions import Session, unreadable
from lipstream.errors import ModelError, SettingsError

logger = logging.getLogger(__name__)

_EXTRA = "tensorrt"
_TIMINGS = "timings.cache"
_DTYPES = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT64": torch.int64}


def check_tensorrt(device: torch.device, purpose: str) -> Any:
    """Return the library. Raises SettingsError where it is not installed, or the device is not CUDA."""
    trt = needs("tensorrt", _EXTRA, purpose)
    if device.type != "cuda" or not torch.cuda.is_available():
        raise SettingsError(
            f"{purpose} needs an NVIDIA GPU, and this is {device}"
            if device.type != "cuda"
            else f"{purpose} needs an NVIDIA GPU, and torch finds none",
            fix="use --engine onnxruntime, or on a machine with a GPU --device cuda",
        )
    return trt


class TensorRt:
    """Opens graphs in TensorRT, having built a plan for each where there is none yet."""

    def __init__(self, device: torch.device, lengths: Mapping[str, int]) -> None:
        """lengths: the greatest length of each free axis, by its name.

        Raises SettingsError where tensorrt is not installed, or the device is not CUDA.
        """
        self._trt = check_tensorrt(device, "--engine tensorrt")
        self._device, self._lengths = device, dict(lengths)
        words = (self._trt.__version__, torch.cuda.get_device_name(device))
        self._kind = re.sub(r"[^A-Za-z0-9.]+", "_", "-".join(words))

    def open(self, path: Path, cache: Path | None = None) -> Session:
        """Open a graph file. cache: a folder for plans, which gets the chip's name and TensorRT's version added.

        Raises ModelError, also for a cache that cannot be written.
        """
        plan = self._plan(path, None if cache is None else cache.with_name(f"{cache.name}-{self._kind}"))
        engine = self._trt.Runtime(_log(self._trt)).deserialize_cuda_engine(plan)
        if engine is None:
            raise ModelError("TensorRT cannot load the plan built from it", file=path, fix=_CLEAR)
        return _TensorRtSession(self._trt, engine, self._device)

    def _plan(self, path: Path, cache: Path | None) -> bytes:
        if cache is None:
            return build_plan(path, self._lengths, self._device)
        sizes = "-".join(f"{name}{length}" for name, length in sorted(self._lengths.items()))
        place = cache / f"{path.stem}-{sizes}.plan"
        if place.is_file():
            return place.read_bytes()
        logger.warning("%s: TensorRT builds a plan once, which takes minutes, into %s", path.stem, cache)
        plan = build_plan(path, self._lengths, self._device, cache / _TIMINGS)
        _write_whole(place, plan)
        return plan


def build_plan(path: Path, lengths: Mapping[str, int], device: torch.device, timings: Path | None = None) -> bytes:
    """Return what TensorRT makes of a graph file for the device: any length up to `lengths`, best at these.

    timings: a file of timings of earlier builds, read and written, which makes the next build shorter. Raises
    ModelError.
    """
    trt = needs("tensorrt", _EXTRA, "a TensorRT plan")
    log = _log(trt)
    with torch.cuda.device(device):
        builder = trt.Builder(log)
        # Taken for granted from TensorRT 11 on, and needed before.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(path)):
            reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            error = RuntimeError(reasons[0] if reasons else log.last_error)
            raise ModelError(unreadable(path, "TensorRT", error), file=path, fix="export the model again")
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # 10 bits are not what fp32 says
        config.add_optimization_profile(_profile(builder, network, lengths))
        known = timings.read_bytes() if timings is not None and timings.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise ModelError(unreadable(path, "TensorRT", RuntimeError(log.last_error)), file=path, fix=_CLEAR)
        if timings is not None:
            _write_whole(timings, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


_CLEAR = "run lipstream engines clear, then this again; if nothing helps, use --engine onnxruntime"


def _profile(builder: Any, network: Any, lengths: Mapping[str, int]) -> Any:
    """Return the range of each input's shape: 1 to the greatest length along the free axes."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        least, greatest = [], []
        for axis, length in enumerate(tuple(tensor.shape)):
            factor, base = (1, "") if length >= 0 else _factor(tensor.get_dimension_name(axis))
            least.append(length if length >= 0 else factor)
            greatest.append(length if length >= 0 else factor * lengths[base])
        profile.set_shape(tensor.name, tuple(least), tuple(greatest), tuple(greatest))
    return profile


def _factor(name: str) -> tuple[int, str]:
    """Return a free axis's name as a factor and what it multiplies: "2*windows" is twice as long as "windows"."""
    factor, star, base = name.partition("*")
    return (int(factor), base) if star else (1, name)


class _TensorRtSession:
    """A plan that is ready to run. Its calls follow one another on the device, whatever streams they are made in."""

    def __init__(self, trt: Any, engine: Any, device: torch.device) -> None:
        self._device, self._engine = device, engine  # the context needs the engine
        self._context = engine.create_execution_context()
        self._inputs, self._outputs = dict[str, torch.dtype](), dict[str, torch.dtype]()
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self._inputs if is_input else self._outputs)[name] = _DTYPES[engine.get_tensor_dtype(name).name]
        self._one_at_a_time = threading.Lock()
        self._done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]

    @property
    def inputs(self) -> frozenset[str]:
        return frozenset(self._inputs)

    def __call__(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = {name: feeds[name].to(self._device, dtype).contiguous() for name, dtype in self._inputs.items()}
        with self._one_at_a_time, torch.cuda.device(self._device):
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(self._done)
            for name, tensor in given.items():
                if not self._context.set_input_shape(name, tuple(tensor.shape)):
                    raise _refused(f"{name} of shape {tuple(tensor.shape)}")
                self._context.set_tensor_address(name, tensor.data_ptr())
            results = {name: self._result(name, dtype) for name, dtype in self._outputs.items()}
            if not self._context.execute_async_v3(stream.cuda_stream):
                raise _refused("the inputs")
            self._done.record(stream)
        return results

    def _result(self, name: str, dtype: torch.dtype) -> Tensor:
        tensor = torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=dtype, device=self._device)
        self._context.set_tensor_address(name, tensor.data_ptr())
        return tensor


def _refused(what: str) -> ModelError:
    return ModelError(f"TensorRT does not take {what}", fix="give the --batch that is in use, or another --engine")


def _log(trt: Any) -> Any:
    """Return TensorRT's logger that passes on to ours, and keeps the last error for messages."""

    class Log(trt.ILogger):  # type: ignore[misc]
        last_error = "no reason given"

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.last_error = message
            logger.debug("TensorRT: %s", message)

    return Log()


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file of the cache by rename. Raises ModelError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise not_writable("TensorRT's plans", path.parent, error) from error
