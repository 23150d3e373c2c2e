"""Runs a graph with ONNX Runtime inside Triton's Python backend, for servers without the ONNX Runtime backend.

`lipstream export triton --backend python` copies this file as a model's model.py. It runs in the server's Python, which
needs numpy and onnxruntime, not lipstream. Tensors pass through DLPack: as_numpy() and pb_utils.Tensor(name, array) of
servers built for numpy 1 (24.10 is one) take the size of numpy 2's elements for 0, and give wrong values.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

_USED = b"used_dltensor"


class TritonPythonModel:
    """The graph in the file model.onnx beside this one."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph, on CUDA where onnxruntime has a provider for it."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Idle threads that spin would take the cores from the other graphs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        path = Path(__file__).with_name("model.onnx")
        self._session = onnxruntime.InferenceSession(str(path), options, providers)
        self._inputs = [one.name for one in self._session.get_inputs()]
        self._outputs = [one.name for one in self._session.get_outputs()]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests that the server's batcher put together as one batch, and answer each."""
        given = {
            name: [np.from_dlpack(pb_utils.get_input_tensor_by_name(one, name)) for one in requests]
            for name in self._inputs
        }
        feeds = {name: np.concatenate(arrays) for name, arrays in given.items()}
        try:
            results = self._session.run(self._outputs, feeds)
        except Exception as error:  # noqa: BLE001  (whatever it is, the clients are to see it)
            failed = pb_utils.TritonError(str(error))
            return [pb_utils.InferenceResponse(error=failed) for _ in requests]
        ends = np.cumsum([len(array) for array in given[self._inputs[0]]])[:-1]
        split = [np.split(result, ends) for result in results]
        return [
            pb_utils.InferenceResponse([_tensor(*named) for named in zip(self._outputs, parts, strict=True)])
            for parts in zip(*split, strict=True)
        ]


def _tensor(name: str, array: Any) -> Any:
    """Return the server's tensor of an array.

    The server leaves a name on the capsule that numpy complains of in the end; the standard's own takes its place.
    """
    capsule = np.ascontiguousarray(array).__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(capsule), ctypes.c_char_p(_USED))
    return tensor
