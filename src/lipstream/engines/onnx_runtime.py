"""ONNX Runtime, on the CPU, on CUDA without a copy through the host, or on CUDA through TensorRT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipstream.engines.cache import not_writable
from lipstream.engines.extras import needs
from lipstream.engines.sessions import Session, unreadable
from lipstream.errors import ModelError, SettingsError
from lipstream.settings import OnnxProvider

_EXTRA = "onnx"
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(bfloat16)": torch.bfloat16,
    "tensor(int64)": torch.int64,
}
_NUMPY = {torch.float32: np.float32, torch.float16: np.float16, torch.int64: np.int64}


class OnnxRuntime:
    """Opens graphs in ONNX Runtime."""

    def __init__(self, device: torch.device, threads: int, provider: OnnxProvider = "auto") -> None:
        """threads: of one call, on a CPU. provider: what computes; auto is the device's own.

        Raises SettingsError where onnxruntime is not installed, its build has not this provider, or it does not run on
        the device.
        """
        self._ort: Any = needs("onnxruntime", _EXTRA, "--engine onnxruntime")
        self._ort.disable_telemetry_events()
        self._device, self._threads = device, threads
        self._provider = self._checked(device.type if provider == "auto" else provider)

    def open(self, path: Path, cache: Path | None = None) -> Session:
        """Open a graph file. cache: a folder for what the TensorRT provider builds. Raises ModelError."""
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # The arena keeps twice what it was ever asked for: 8 GB of a full-size step. Without it 2 % slower, if at all.
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        # Idle threads that spin take the core from the other stages.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = self._ort.InferenceSession(str(path), options, providers=self._providers(cache))
        except Exception as error:  # ONNX Runtime's errors have no common base but Exception
            raise ModelError(
                unreadable(path, "ONNX Runtime", error), file=path, fix="export the model again"
            ) from error
        return _OnCuda(self._ort, session, self._device) if self._device.type == "cuda" else _OnCpu(session)

    def _checked(self, provider: str) -> str:
        device = {"cpu": "cpu", "cuda": "cuda", "tensorrt": "cuda"}.get(provider)
        if device is None:
            raise SettingsError(f"engine = 'onnxruntime' does not run on {self._device}", fix="use --device cpu")
        if device != self._device.type:
            raise SettingsError(
                f"provider = {provider!r} does not run on {self._device}",
                fix=f"add --device {device}",
                setting="provider",
            )
        available = self._ort.get_available_providers()
        if _PROVIDERS[provider] not in available:
            raise SettingsError(
                f"the installed ONNX Runtime has no {_PROVIDERS[provider]}: it has {', '.join(available)}",
                fix="pip uninstall onnxruntime, then pip install onnxruntime-gpu; or use --device cpu",
            )
        return provider

    def _providers(self, cache: Path | None) -> list[Any]:
        """Return the providers with their options, each for what the one before it cannot compute."""
        if self._provider == "cpu":
            return [_PROVIDERS["cpu"]]
        device = {"device_id": self._device.index or 0}
        cuda = (_PROVIDERS["cuda"], device)
        if self._provider == "cuda":
            return [cuda]
        kept = {} if cache is None else _tensorrt_caches(cache)
        return [(_PROVIDERS["tensorrt"], {**device, **kept}), cuda]


def _tensorrt_caches(folder: Path) -> dict[str, Any]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable("TensorRT's engines", folder, error) from error
    return {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(folder),
    }


class _OnCpu:
    """A session on the CPU, on the tensors' own memory."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._dtypes = {one.name: _DTYPES[one.type] for one in session.get_inputs()}
        self._outputs = [one.name for one in session.get_outputs()]

    @property
    def inputs(self) -> frozenset[str]:
        return frozenset(self._dtypes)

    def __call__(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = {name: feeds[name].to(dtype).contiguous().numpy() for name, dtype in self._dtypes.items()}
        results = self._session.run(self._outputs, given)
        return {name: torch.from_numpy(result) for name, result in zip(self._outputs, results, strict=True)}


class _OnCuda:
    """A session on CUDA, bound to torch's memory: nothing passes through the host."""

    def __init__(self, ort: Any, session: Any, device: torch.device) -> None:
        self._ort, self._session, self._device = ort, session, device
        self._dtypes = {one.name: _DTYPES[one.type] for one in session.get_inputs()}
        self._outputs = [one.name for one in session.get_outputs()]

    @property
    def inputs(self) -> frozenset[str]:
        return frozenset(self._dtypes)

    def __call__(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        index = self._device.index or 0
        binding = self._session.io_binding()
        given = {name: feeds[name].to(self._device, dtype).contiguous() for name, dtype in self._dtypes.items()}
        for name, tensor in given.items():
            shape, pointer = tuple(tensor.shape), tensor.data_ptr()
            binding.bind_input(name, "cuda", index, _NUMPY[tensor.dtype], shape, pointer)
        for name in self._outputs:
            binding.bind_output(name, "cuda", index)
        # ONNX Runtime works in a stream of its own.
        torch.cuda.current_stream(self._device).synchronize()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        outputs = binding.get_outputs()
        # The values' memory is ONNX Runtime's and goes with them: copied on the device.
        return {
            name: torch.utils.dlpack.from_dlpack(value._ortvalue.to_dlpack()).clone()
            for name, value in zip(self._outputs, outputs, strict=True)
        }
