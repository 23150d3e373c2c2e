"""Write a model repository that NVIDIA Triton serves: a folder for each graph, with its configuration beside it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from lipstream.engines.export import OnGraph, check_exportable, export_graph, graph_metadata, model_graphs
from lipstream.engines.graphs import greatest_lengths
from lipstream.engines.triton_graphs import SERVED, step_graphs
from lipstream.engines.weights import WEIGHTS_NAME, SharedWeights
from lipstream.models.exported import GRAPH_VERSION, ExportedPrecision
from lipstream.models.load import Source
from lipstream.models.whole_folder import whole_folder

TritonBackend = Literal["onnxruntime", "tensorrt", "python"]

DEFAULT_MAX_BATCH = 8
_MODEL_FILES: Mapping[TritonBackend, str] = {
    "onnxruntime": "model.onnx",
    "tensorrt": "model.plan",
    "python": "model.py",
}
_PYTHON_MODEL = Path(__file__).with_name("triton_backend.py")
_BATCHES = ("windows", "images")  # the names of a first axis along which requests are put together


@dataclass(frozen=True)
class ServedTensor:
    """An input or an output of a graph's file. shape: a number, or the name of a free axis, per axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


def served_name(model: str, graph: str) -> str:
    """Return the name under which a server has a graph of a model."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', model)}-{graph}"


def export_triton(
    source: Source,
    folder: Path,
    source_sha256: str,
    *,
    backend: TritonBackend = "onnxruntime",
    precision: ExportedPrecision = "fp32",
    resolution: int | None = None,
    max_batch: int = DEFAULT_MAX_BATCH,
    on_graph: OnGraph = lambda name, done, n: None,
) -> None:
    """Write the repository, whole or not at all.

    source: of the weights, on the CPU. source_sha256: of its weights. precision, resolution: see export_onnx.
    backend: of the server; tensorrt builds for the GPU of this machine, which has to be the server's, with the same
    version of TensorRT. max_batch: windows that the server computes at once. Raises as export_onnx does, and
    SettingsError for tensorrt without a GPU.
    """
    check_exportable(source)
    if backend == "tensorrt":
        from lipstream.engines.tensorrt_runtime import check_tensorrt

        check_tensorrt(torch.device("cuda"), "--backend tensorrt")
    resolution = resolution or source.config.resolution
    parameters = graph_metadata(precision, resolution, source_sha256)
    lengths = greatest_lengths(source.config.num_frames, resolution, max_batch)
    with whole_folder(folder) as repository:
        places = {name: repository / served_name(source.config.name, name) / str(GRAPH_VERSION) for name in SERVED}
        with SharedWeights(repository) as weights:
            for done, graph in enumerate(model_graphs(source, precision, resolution, step_graphs)):
                on_graph(graph.name, done, len(SERVED))
                places[graph.name].mkdir(parents=True)
                export_graph(graph, places[graph.name] / "model.onnx", parameters, weights)
        _give_weights(repository, list(places.values()))
        parameters["vae_config"] = source.paths.vae_config.read_text("utf-8")
        for place in places.values():
            inputs, outputs = _tensors(place / "model.onnx")
            _put_model_file(place, backend, lengths)
            text = config_text(place.parent.name, backend, inputs, outputs, lengths, parameters)
            (place.parent / "config.pbtxt").write_text(text, "utf-8")


def _give_weights(repository: Path, places: list[Path]) -> None:
    """Put the weights that lie beside the graphs where each of the graphs expects them, on disk once."""
    weights = repository / WEIGHTS_NAME
    if not weights.exists():
        return
    for place in places:
        if _refers_to_weights(place / "model.onnx"):
            try:
                (place / WEIGHTS_NAME).hardlink_to(weights)
            except OSError:  # a file system without hard links
                shutil.copyfile(weights, place / WEIGHTS_NAME)
    weights.unlink()


def _refers_to_weights(path: Path) -> bool:
    model = _read(path)
    return any(tensor.external_data for tensor in model.graph.initializer)


def _read(path: Path) -> Any:
    import onnx

    return onnx.load(str(path), load_external_data=False)


def _tensors(path: Path) -> tuple[list[ServedTensor], list[ServedTensor]]:
    """Return the inputs and the outputs of a graph's file."""
    graph = _read(path).graph
    return [_tensor(one) for one in graph.input], [_tensor(one) for one in graph.output]


def _tensor(value: Any) -> ServedTensor:
    import onnx

    kind = value.type.tensor_type
    dtype = {onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.FLOAT16: "FP16"}[kind.elem_type]
    return ServedTensor(value.name, dtype, tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim))


def _put_model_file(place: Path, backend: TritonBackend, lengths: Mapping[str, int]) -> None:
    """Make what the backend runs of the graph in a version's folder."""
    if backend == "python":
        shutil.copyfile(_PYTHON_MODEL, place / _MODEL_FILES[backend])
    if backend == "tensorrt":
        from lipstream.engines.tensorrt_runtime import build_plan

        plan = build_plan(place / "model.onnx", lengths, torch.device("cuda"))
        (place / _MODEL_FILES[backend]).write_bytes(plan)
        (place / "model.onnx").unlink()
        (place / WEIGHTS_NAME).unlink(missing_ok=True)


def config_text(
    name: str,
    backend: TritonBackend,
    inputs: list[ServedTensor],
    outputs: list[ServedTensor],
    lengths: Mapping[str, int],
    parameters: Mapping[str, str],
) -> str:
    """Return a graph's config.pbtxt. parameters: what a client compares with what it expects."""
    first = inputs[0].shape[0]
    max_batch = lengths[str(first)] if first in _BATCHES else 0
    return "\n".join(
        [
            f'name: "{name}"',
            f'backend: "{backend}"',
            f'default_model_filename: "{_MODEL_FILES[backend]}"',
            f"max_batch_size: {max_batch}",
            *_tensor_lines("input", inputs, max_batch > 0),
            *_tensor_lines("output", outputs, max_batch > 0),
            # What waits while a batch runs is the next batch; nothing waits for company.
            *(["dynamic_batching { }"] if max_batch else []),
            "instance_group [ { count: 1 kind: KIND_AUTO } ]",
            "version_policy { latest { num_versions: 1 } }",
            *_warm_up_lines(inputs, lengths, max_batch > 0),
            *(
                f'parameters {{ key: "{key}" value {{ string_value: {_quoted(parameters[key])} }} }}'
                for key in parameters
            ),
            "",
        ]
    )


def _tensor_lines(field: str, tensors: list[ServedTensor], is_batched: bool) -> Iterator[str]:
    for tensor in tensors:
        dims = ", ".join("-1" if isinstance(axis, str) else str(axis) for axis in tensor.shape[is_batched:])
        yield f'{field} {{ name: "{tensor.name}" data_type: TYPE_{tensor.dtype} dims: [ {dims} ] }}'


def _warm_up_lines(inputs: list[ServedTensor], lengths: Mapping[str, int], is_batched: bool) -> Iterator[str]:
    """Have the server run one batch element of zeros before it says that it is ready."""
    yield 'model_warmup { name: "zeros" batch_size: 1'
    for tensor in inputs:
        dims = ", ".join(str(lengths.get(str(axis), axis)) for axis in tensor.shape[is_batched:])
        kind = f"data_type: TYPE_{tensor.dtype} dims: [ {dims} ] zero_data: true"
        yield f'  inputs {{ key: "{tensor.name}" value {{ {kind} }} }}'
    yield "}"


def _quoted(text: str) -> str:
    return json.dumps(text)  # protobuf's text format takes JSON's escapes
