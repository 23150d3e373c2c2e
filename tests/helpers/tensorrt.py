"""A stand-in for the library tensorrt: it records what it is asked, and computes plans with ONNX Runtime on the CPU."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from enum import Enum, IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

_TYPES = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF"}
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16}


def stand_in(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Put the stand-in in the place of tensorrt, the CPU in that of CUDA. `calls` of what is returned is the record."""
    calls: list[tuple[Any, ...]] = []

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

        def __init__(self) -> None:
            pass

    class Tensor:
        def __init__(self, value: Any) -> None:
            axes = value.type.tensor_type.shape.dim
            self.name = value.name
            self.shape = tuple(-1 if axis.dim_param else axis.dim_value for axis in axes)
            self._names = [axis.dim_param for axis in axes]

        def get_dimension_name(self, axis: int) -> str:
            return self._names[axis]

    class Network:
        def __init__(self, flags: int) -> None:
            calls.append(("create_network", flags))
            self.path = ""

        def parsed(self, path: str) -> None:
            graph = onnx.load(path, load_external_data=False).graph
            self.path, self._inputs = path, [Tensor(one) for one in graph.input]
            self.num_inputs = len(self._inputs)

        def get_input(self, index: int) -> Tensor:
            return self._inputs[index]

    class OnnxParser:
        def __init__(self, network: Network, log: ILogger) -> None:
            self._network, self.num_errors = network, 0

        def parse_from_file(self, path: str) -> bool:
            try:
                self._network.parsed(path)
            except Exception as error:  # noqa: BLE001  (what protobuf raises)
                self._error, self.num_errors = error, 1
                return False
            return True

        def get_error(self, index: int) -> Any:
            return SimpleNamespace(desc=lambda: f"ModelImporter: {self._error}")

    class Config:
        def clear_flag(self, flag: Enum) -> None:
            calls.append(("clear_flag", flag.name))

        def add_optimization_profile(self, profile: Any) -> None:
            calls.append(("profile", dict(profile.shapes)))

        def create_timing_cache(self, content: bytes) -> Any:
            calls.append(("timing_cache", content))
            return SimpleNamespace(serialize=lambda: content + b"t")

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> None:
            self._cache = cache

        def get_timing_cache(self) -> Any:
            return self._cache

    class Profile:
        def __init__(self) -> None:
            self.shapes: dict[str, Any] = {}

        def set_shape(self, name: str, least: Any, best: Any, greatest: Any) -> None:
            self.shapes[name] = (least, best, greatest)

    class Builder:
        def __init__(self, log: ILogger) -> None:
            self._log = log

        def create_network(self, flags: int) -> Network:
            return Network(flags)

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
            calls.append(("build", Path(network.path).stem))
            if library.refuses:
                self._log.log(ILogger.ERROR, "no implementation found")  # type: ignore[attr-defined]
                return None
            return b"plan:" + network.path.encode()

    class Context:
        def __init__(self, engine: Engine) -> None:
            self._engine, self._shapes, self._addresses = engine, dict[str, Any](), dict[str, int]()

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self._shapes[name] = shape
            return not library.refuses

        def set_tensor_address(self, name: str, address: int) -> None:
            self._addresses[name] = address

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(self._run()[name].shape)

        def _run(self) -> dict[str, Any]:
            feeds = {name: self._array(name, shape) for name, shape in self._shapes.items()}
            return dict(zip(self._engine.outputs, self._engine.session.run(None, feeds), strict=True))

        def _array(self, name: str, shape: tuple[int, ...]) -> Any:
            dtype = np.dtype(_NUMPY[self._engine.types[name]])
            n_bytes = int(np.prod(shape)) * dtype.itemsize
            memory = (ctypes.c_char * n_bytes).from_address(self._addresses[name])
            return np.frombuffer(memory, dtype).reshape(shape)

        def execute_async_v3(self, stream: int) -> bool:
            calls.append(("execute", stream, dict(self._shapes)))
            for name, result in self._run().items():
                self._array(name, result.shape)[...] = result
            return True

    class Engine:
        def __init__(self, path: str) -> None:
            graph = onnx.load(path, load_external_data=False).graph
            values = [*graph.input, *graph.output]
            self.session = onnxruntime.InferenceSession(path)
            self.types = {one.name: _TYPES[one.type.tensor_type.elem_type] for one in values}
            self.outputs = [one.name for one in graph.output]
            self.num_io_tensors = len(values)

        def create_execution_context(self) -> Context:
            return Context(self)

        def get_tensor_name(self, index: int) -> str:
            return list(self.types)[index]

        def get_tensor_mode(self, name: str) -> str:
            return "out" if name in self.outputs else "in"

        def get_tensor_dtype(self, name: str) -> Any:
            return SimpleNamespace(name=self.types[name])

    class Runtime:
        def __init__(self, log: ILogger) -> None:
            pass

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            return Engine(plan.removeprefix(b"plan:").decode()) if plan.startswith(b"plan:") else None

    library = SimpleNamespace(
        __version__="11.4.0",
        ILogger=ILogger,
        Builder=Builder,
        OnnxParser=OnnxParser,
        Runtime=Runtime,
        NetworkDefinitionCreationFlag=IntEnum("Flag", {"STRONGLY_TYPED": 1}),
        BuilderFlag=Enum("BuilderFlag", ["TF32"]),
        TensorIOMode=SimpleNamespace(INPUT="in"),
        calls=calls,
        refuses=False,
    )
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", library)
    _cpu_for_cuda(monkeypatch, calls)
    return library


def _cpu_for_cuda(monkeypatch: pytest.MonkeyPatch, calls: list[tuple[Any, ...]]) -> None:
    """Let tensors "on CUDA" lie on the CPU."""
    stream = SimpleNamespace(cuda_stream=77, wait_event=lambda event: calls.append(("wait",)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA Stand-in 9000")
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda on: calls.append(("record",))))
