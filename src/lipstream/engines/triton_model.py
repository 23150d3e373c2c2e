"""Open a model whose networks a Triton server runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lipstream.engines.cache import weights_sha256
from lipstream.engines.graphs import by_window
from lipstream.engines.model import EngineModel
from lipstream.engines.networks import (
    ConditioningLike,
    EngineAudioEncoder,
    EngineAutoencoder,
    PreparedTensors,
    Sessions,
    autoencoder_config,
)
from lipstream.engines.triton_client import ServedGraph, ServedSession, TritonServer
from lipstream.engines.triton_graphs import SERVED, step_graph
from lipstream.engines.triton_repository import served_name
from lipstream.errors import ModelError, SettingsError
from lipstream.models.catalogue import ModelConfig
from lipstream.models.exported import GRAPH_VERSION
from lipstream.models.load import Source, locate, read_config
from lipstream.models.prune import read_list
from lipstream.runtime.device import Dtypes
from lipstream.settings import RuntimeSettings

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
_SAME = ("source_sha256", "precision", "resolution")


class ServedDenoiser:
    """The U-Net, a whole step a call: see lipstream.diffusion.sampling.Denoiser. Has no deep features to reuse."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def prepare(self, conditioning: ConditioningLike) -> PreparedTensors:
        """Keep what every step is given."""
        frames = conditioning.num_frames
        tensors = {"channels": conditioning.channels, "audio": conditioning.audio}
        return PreparedTensors({name: by_window(tensor, frames) for name, tensor in tensors.items()}, frames)

    def __call__(
        self, latents: Tensor, timestep: Tensor, prepared: PreparedTensors, guided: bool, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predict the noise of one step: see Denoiser. The deep features are empty."""
        windows = by_window(latents, prepared.num_frames)
        feeds = {"latents": windows, "timestep": timestep.float().expand(len(windows), 1), **prepared.tensors}
        predicted = self._sessions[step_graph(guided)](feeds)["predicted"]
        if guided:
            predicted = predicted.transpose(0, 1).flatten(0, 1)
        return predicted.flatten(0, 1).to(latents.device, torch.float32), latents.new_empty(0)


@dataclass(frozen=True)
class _Expected:
    """What of a model is on this machine. digest: of its weights, None where they are not here, as then `source`."""

    config: ModelConfig
    digest: str | None
    source: Source | None


def open_triton_model(model: str | Path, runtime: RuntimeSettings, device: torch.device) -> EngineModel:
    """Find a model's graphs in the server that `runtime` names.

    Only the model's lipstream.json has to be here; with its weights here, those of the server are compared with them.
    Raises SettingsError, ModelError for a server that is away, or has not this model in this version.
    """
    assert runtime.triton_url is not None
    expected = _expected(model, runtime)
    server = TritonServer(runtime.triton_url)
    graphs = {
        name: _graph(server, runtime.triton_url, model, served_name(expected.config.name, name)) for name in SERVED
    }
    parameters = _same_parameters(graphs, runtime.triton_url, model)
    if expected.digest not in (None, parameters["source_sha256"]):
        raise ModelError(
            f"the server's {expected.config.name} has other weights than {model}",
            file=runtime.triton_url,
            fix=_fix(model),
        )
    precision = parameters["precision"]
    if runtime.precision not in ("auto", precision):
        raise SettingsError(
            f"--precision {runtime.precision} is not what the server computes in ({precision})",
            fix="leave --precision out, or write the repository in that precision",
            setting="precision",
        )
    dtype = _DTYPES[precision]
    sessions = Sessions(lambda name: ServedSession(server, graphs[name]))
    vae_config = autoencoder_config(parameters["vae_config"], runtime.triton_url)
    config = replace(expected.config, resolution=int(parameters["resolution"]))
    return EngineModel(
        config=config,
        engine="triton",
        denoiser=ServedDenoiser(sessions),
        vae=EngineAutoencoder(sessions, vae_config, device, dtype),
        audio_encoder=EngineAudioEncoder(sessions, config.audio_encoder, device, dtype),
        dtypes=Dtypes(dtype, dtype, dtype),
        source=expected.source,
    )


def _expected(model: str | Path, runtime: RuntimeSettings) -> _Expected:
    config, folder = read_config(model)
    if config.exported is not None:
        return _Expected(config, config.exported.source_sha256, None)
    try:
        paths = locate(config, folder, download=False)
    except ModelError:
        return _Expected(config, None, None)
    left_out = () if runtime.pruned is None else read_list(runtime.pruned, config.name).names
    source = Source(config, paths, torch.device("cpu"), config.quantized, left_out, str(runtime.pruned))
    return _Expected(config, weights_sha256(source), source)


def _graph(server: TritonServer, url: str, model: str | Path, name: str) -> ServedGraph:
    graph = server.graph(name, str(GRAPH_VERSION))
    if graph is not None:
        return graph
    other = server.graph(name, "")
    if other is None:
        raise ModelError(f"the server has no model {name!r}", file=url, fix=_fix(model))
    raise ModelError(
        f"the server has {name!r} in version {other.version}, written by lipstream"
        f" {other.parameters.get('lipstream', 'or another program')}; this one asks for {GRAPH_VERSION}",
        file=url,
        fix=_fix(model),
    )


def _same_parameters(graphs: Mapping[str, ServedGraph], url: str, model: str | Path) -> Mapping[str, str]:
    """Return what the graphs say alike of where they come from."""
    first, *others = graphs.values()
    for graph in (first, *others):
        if graph.parameters.get("graph_version") != str(GRAPH_VERSION):
            raise ModelError(f"the server's {graph.name!r} is not one of lipstream's", file=url, fix=_fix(model))
        if any(graph.parameters.get(key) != first.parameters.get(key) for key in _SAME):
            raise ModelError(
                f"the server's {graph.name!r} and {first.name!r} come from different exports", file=url, fix=_fix(model)
            )
    return first.parameters


def _fix(model: str | Path) -> str:
    return f"write a repository with `lipstream export triton {model} -o REPOSITORY`, and have tritonserver load it"
