"""Write a model's networks as ONNX graphs into a folder that `--model` takes."""

from __future__ import annotations

import inspect
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lipstream.engines.extras import needs
from lipstream.engines.graphs import (
    GRAPHS,
    ExportedGroupNorm,
    Graph,
    audio_encoder_graph,
    unet_graphs,
    vae_graphs,
)
from lipstream.engines.weights import SharedWeights
from lipstream.errors import ModelError, SettingsError
from lipstream.models.catalogue import CONFIG_NAME
from lipstream.models.digest import sha256
from lipstream.models.exported import (
    GRAPH_VERSION,
    ONNX_FOLDER,
    ExportedFile,
    ExportedNetworks,
    ExportedPrecision,
)
from lipstream.models.group_norm import PooledGroupNorm, replace_norms
from lipstream.models.load import Source, vae_factor
from lipstream.models.pointwise import restore_layers
from lipstream.models.unet import UNet
from lipstream.models.whole_folder import whole_folder
from lipstream.version import __version__

OPSET = 23
"""The newest that ONNX Runtime, OpenVINO and TensorRT read alike, and the first with an operator for attention."""

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}

# Called with the graph that is about to be exported, how many are done, and how many there are.
OnGraph = Callable[[str, int, int], None]


def export_onnx(
    source: Source,
    values: Mapping[str, Any],
    folder: Path,
    source_sha256: str,
    *,
    precision: ExportedPrecision = "fp32",
    resolution: int | None = None,
    on_graph: OnGraph = lambda name, done, n: None,
    may_exist: bool = False,
) -> None:
    """Export a model's networks into `folder`, whole or not at all.

    source: of the weights, on the CPU. values: the contents of its lipstream.json. source_sha256: of its weights.
    precision: fp32 or fp16, of the weights and of what is computed. resolution: of the crop, px, the model's own if
    None; it is fixed in the graphs. may_exist: see whole_folder. Raises SettingsError without the extra `onnx` or for a
    resolution that the model can't encode, ModelError, OutputError for a folder that exists or cannot be written.
    """
    check_exportable(source)
    resolution = resolution or source.config.resolution
    metadata = graph_metadata(precision, resolution, source_sha256)
    with whole_folder(folder, may_exist=may_exist) as partial:
        graphs = partial / ONNX_FOLDER
        graphs.mkdir()
        with SharedWeights(graphs) as weights:
            for done, graph in enumerate(model_graphs(source, precision, resolution, unet_graphs)):
                on_graph(graph.name, done, len(GRAPHS))
                export_graph(graph, graphs / f"{graph.name}.onnx", metadata, weights)
        (partial / "vae").mkdir()
        shutil.copyfile(source.paths.vae_config, partial / "vae" / "config.json")
        write_config(partial, {**values, "resolution": resolution}, precision, source_sha256)


def write_config(folder: Path, values: Mapping[str, Any], precision: ExportedPrecision, source_sha256: str) -> None:
    """Write the lipstream.json of an exported folder, with size and SHA-256 of each of its graphs.

    values: that of the model.
    """
    paths = sorted((folder / ONNX_FOLDER).iterdir())
    files = {path.name: ExportedFile(path.stat().st_size, sha256(path)) for path in paths}
    networks = ExportedNetworks(GRAPH_VERSION, __version__, precision, source_sha256, files)
    own = {"files": {**values["files"], "vae": "vae"}, "hub": None, "quantized": "none", "exported": asdict(networks)}
    (folder / CONFIG_NAME).write_text(json.dumps({**values, **own}) + "\n", "utf-8")


def check_exportable(source: Source) -> None:
    """Raise SettingsError without the extra `onnx`, ModelError for weights that are not exported."""
    for module in ("onnx", "onnxscript"):
        needs(module, "onnx", "an export to ONNX")
    if source.quantize != "none":
        raise ModelError(
            "its weights are int8 already", file=source.config.name, fix="export the model that it was made from"
        )


def graph_metadata(precision: ExportedPrecision, resolution: int, source_sha256: str) -> dict[str, str]:
    """Return what stands in each graph's file about where it comes from."""
    return {
        "lipstream": __version__,
        "graph_version": str(GRAPH_VERSION),
        "source_sha256": source_sha256,
        "precision": precision,
        "resolution": str(resolution),
    }


def model_graphs(
    source: Source, precision: ExportedPrecision, resolution: int, of_unet: Callable[[UNet, int, int], Iterator[Graph]]
) -> Iterator[Graph]:
    """Yield all graphs, each network read when its first is asked for.

    of_unet: gives the U-Net's, from it, the latents' height and width, and the audio tokens per frame.
    """
    dtype = _DTYPES[precision]
    vae = source.vae(dtype)
    if resolution % vae_factor(vae):
        raise SettingsError(f"resolution = {resolution}: must be a multiple of {vae_factor(vae)}", setting="resolution")
    size, channels = resolution // vae_factor(vae), source.config.unet.out_channels
    unet = source.unet(dtype)
    _export_layers(unet)
    yield from of_unet(unet, size, source.config.audio_encoder.tokens_per_frame)
    del unet
    _export_layers(vae)
    yield from vae_graphs(vae, resolution, size, channels)
    del vae
    yield audio_encoder_graph(source.audio_encoder(dtype))


def _export_layers(network: nn.Module) -> None:
    restore_layers(network)
    for kind in (PooledGroupNorm, nn.GroupNorm):
        replace_norms(network, kind, ExportedGroupNorm)


def export_graph(graph: Graph, path: Path, metadata: dict[str, str], weights: SharedWeights) -> None:
    """Write a graph's file, whose weights may be beside it."""
    with _quiet_exporter(), torch.inference_mode():
        program = torch.onnx.export(
            graph.module.eval(),
            tuple(graph.inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=_dynamic_shapes(graph),
            verbose=False,
        )
    assert program is not None
    exported: Any = program.model
    exported.metadata_props.clear()
    exported.metadata_props.update(metadata)
    weights.move(exported)
    import onnx_ir

    onnx_ir.save(exported, path)


def _dynamic_shapes(graph: Graph) -> dict[str, Any]:
    """Return the exporter's description of the free axes; inputs after the named ones are those of `*audio`."""
    axes: dict[str, Any] = {}

    def axis(name: str) -> Any:
        factor, _, base = name.rpartition("*")
        # The exporter traces lengths from 2 on; the graphs it writes take 1 as well.
        dim = axes.setdefault(base, torch.export.Dim(base, min=2, max=graph.longest.get(base)))
        return int(factor) * dim if factor else dim

    of_inputs = [{i: axis(name) for i, name in graph.free.get(one, {}).items()} or None for one in graph.inputs]
    parameters = inspect.signature(graph.module.forward).parameters.values()
    named = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]
    shapes: dict[str, Any] = dict(zip(named, of_inputs, strict=False))
    shapes |= {p.name: tuple(of_inputs[len(named) :]) for p in parameters if p.kind is p.VAR_POSITIONAL}
    return shapes


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's notes to itself: each is about its own insides or packages that are not used here."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
