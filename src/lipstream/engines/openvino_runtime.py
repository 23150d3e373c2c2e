"""OpenVINO on the CPU: float32, bfloat16 where the CPU multiplies it, and int8 as the graph holds it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipstream.engines.extras import needs
from lipstream.engines.sessions import Session, unreadable
from lipstream.errors import ModelError, SettingsError

_EXTRA = "openvino"
_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}
_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i64": torch.int64}


class OpenVino:
    """Opens graphs in OpenVINO."""

    def __init__(self, device: torch.device, dtype: torch.dtype, threads: int, requests: int) -> None:
        """dtype: what is computed in. threads: of all calls. requests: calls at the same time.

        Raises SettingsError where openvino is not installed, the device is no CPU, or the dtype is not one of
        OpenVINO's on a CPU.
        """
        openvino = needs("openvino", _EXTRA, "--engine openvino")
        if device.type != "cpu":
            raise SettingsError(f"engine = 'openvino' runs on the CPU, not on {device}", fix="add --device cpu")
        if dtype not in _HINTS:
            raise SettingsError(f"engine = 'openvino' does not compute in {dtype}", fix="use --precision fp32 or bf16")
        self._core: Any = openvino.Core()
        self._requests = requests
        self._options = {
            "INFERENCE_PRECISION_HINT": _HINTS[dtype],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": requests,
            "ENABLE_CPU_PINNING": False,  # the other stages' threads need their turns on the same cores
        }

    def open(self, path: Path, cache: Path | None = None) -> Session:
        """Open a graph file. cache: a folder for compiled graphs. Raises ModelError."""
        options = self._options if cache is None else {**self._options, "CACHE_DIR": str(cache)}
        try:
            return _OpenVinoSession(self._core, self._core.read_model(str(path)), options, self._requests)
        except Exception as error:  # OpenVINO raises RuntimeError and its own kinds
            raise ModelError(unreadable(path, "OpenVINO", error), file=path, fix="export the model again") from error


class _OpenVinoSession:
    """A graph compiled for each set of input shapes that comes: kernels for known shapes are the faster ones."""

    def __init__(self, core: Any, graph: Any, options: dict[str, Any], requests: int) -> None:
        self._core, self._graph, self._options, self._n_requests = core, graph, options, requests
        self._dtypes = {one.any_name: _DTYPES[one.element_type.get_type_name()] for one in graph.inputs}
        self._compiled: dict[tuple[torch.Size, ...], queue.SimpleQueue[Any]] = {}
        self._compiling = threading.Lock()

    @property
    def inputs(self) -> frozenset[str]:
        return frozenset(self._dtypes)

    def __call__(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = {name: feeds[name].to(dtype).contiguous() for name, dtype in self._dtypes.items()}
        requests = self._for_shapes(given)
        request = requests.get()
        try:
            results = request.infer({name: tensor.numpy() for name, tensor in given.items()}, share_inputs=True)
            return {output.any_name: torch.from_numpy(array.copy()) for output, array in results.items()}
        finally:
            requests.put(request)

    def _for_shapes(self, given: Mapping[str, Tensor]) -> queue.SimpleQueue[Any]:
        shapes = tuple(tensor.shape for tensor in given.values())
        with self._compiling:
            if shapes not in self._compiled:
                graph = self._graph.clone()
                graph.reshape({name: list(tensor.shape) for name, tensor in given.items()})
                compiled = self._core.compile_model(graph, "CPU", self._options)
                requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
                for _ in range(self._n_requests):
                    requests.put(compiled.create_infer_request())
                self._compiled[shapes] = requests
            return self._compiled[shapes]
