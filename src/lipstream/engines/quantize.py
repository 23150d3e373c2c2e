"""Int8 graphs: convolutions and linear layers with quantized inputs and weights, calibrated on recorded calls.

The graphs hold pairs of QuantizeLinear and DequantizeLinear, which ONNX Runtime, OpenVINO and TensorRT all turn into
int8 kernels. The audio encoder and what is computed once a window stay float32: they take no time worth saving.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from lipstream.engines.export import OnGraph, write_config
from lipstream.engines.extras import needs
from lipstream.engines.graphs import VAE_DECODER, VAE_ENCODER, deep_graph, head_graph
from lipstream.engines.sessions import Session
from lipstream.engines.weights import EMBEDDED_BYTES
from lipstream.errors import ModelError
from lipstream.models.exported import ONNX_FOLDER, ExportedNetworks
from lipstream.models.whole_folder import whole_folder

QUANTIZED = (
    VAE_ENCODER,
    VAE_DECODER,
    *(graph(guided) for graph in (deep_graph, head_graph) for guided in (False, True)),
)
_OPERATORS = ["Conv", "ConvTranspose", "MatMul", "Gemm"]
# Calls of each graph: the ranges of activations hardly grow after a few windows, and each call's are held in memory.
_CALLS = 8

Feeds = dict[str, NDArray[Any]]


class Recorder:
    """Keeps what each graph is called with: up to `calls` calls, spread evenly over all."""

    def __init__(self, calls: int = _CALLS) -> None:
        self._calls = calls
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._every: dict[str, int] = {}
        self._kept: dict[str, list[Feeds]] = {}

    def wrap(self, graph: str, session: Session) -> Session:
        """Return a session that records what it passes on."""
        return _Recorded(self, graph, session)

    def feeds(self, graph: str) -> list[Feeds]:
        """Return the inputs of the calls that were kept, in order."""
        return list(self._kept.get(graph, ()))

    def add(self, graph: str, feeds: Mapping[str, Tensor], inputs: frozenset[str]) -> None:
        """Keep a call, or pass over it."""
        with self._lock:
            count = self._counts[graph] = self._counts.get(graph, -1) + 1
            kept, every = self._kept.setdefault(graph, []), self._every.setdefault(graph, 1)
            if count % every:
                return
            kept.append({name: feeds[name].contiguous().numpy().copy() for name in inputs})
            if len(kept) > self._calls:  # every second of those kept, from here on too
                del kept[1::2]
                self._every[graph] = 2 * every


class _Recorded:
    def __init__(self, recorder: Recorder, graph: str, session: Session) -> None:
        self._recorder, self._graph, self._session = recorder, graph, session

    @property
    def inputs(self) -> frozenset[str]:
        return self._session.inputs

    def __call__(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._recorder.add(self._graph, feeds, self.inputs)
        return self._session(feeds)


def quantize_folder(
    source: Path,
    values: Mapping[str, Any],
    exported: ExportedNetworks,
    folder: Path,
    recorder: Recorder,
    on_graph: OnGraph,
) -> None:
    """Write the float32 graphs in `source` with int8 layers into `folder`, whole or not at all.

    values: the lipstream.json of `source`. recorder: what its graphs were called with. Raises SettingsError without the
    extra `onnx`, ModelError for a graph that was never called, OutputError.
    """
    needs("onnxruntime.quantization", "onnx", "an int8 export")
    with whole_folder(folder) as partial:
        shutil.copytree(source / "vae", partial / "vae")
        (partial / ONNX_FOLDER).mkdir()
        for done, path in enumerate(sorted((source / ONNX_FOLDER).iterdir())):
            on_graph(path.stem, done, len(exported.files))
            target = partial / ONNX_FOLDER / path.name
            if path.stem in QUANTIZED:
                _quantize(path, target, recorder.feeds(path.stem))
            else:
                shutil.copyfile(path, target)
        write_config(partial, values, "int8", exported.source_sha256)


def _quantize(path: Path, target: Path, feeds: list[Feeds]) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    if not feeds:
        raise ModelError(
            f"{path.stem} was not called while it was calibrated", file=path, fix="give a clip in which a face speaks"
        )
    size_bytes = sum(one.stat().st_size for one in path.parent.iterdir())
    with _without_advice():
        quantize_static(
            str(path),
            str(target),
            _Reader(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_OPERATORS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # Weights of 7 bits: processors without VNNI add two products in 16 bits, too few for those of 8.
            reduce_range=True,
            use_external_data_format=size_bytes > EMBEDDED_BYTES,
        )


class _Reader:
    """Answers ONNX Runtime's CalibrationDataReader."""

    def __init__(self, feeds: list[Feeds]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self._feeds, None)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep the quantizer from advising its other tools on the root logger."""

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    root = logging.getLogger()
    root.addFilter(passes)
    try:
        yield
    finally:
        root.removeFilter(passes)
