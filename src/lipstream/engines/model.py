"""Open a model in an engine: from a folder of exported networks, or from an export into the cache."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lipstream.engines.cache import CACHE_VARIABLE, cache_folder, weights_sha256
from lipstream.engines.export import OnGraph, export_onnx
from lipstream.engines.graphs import AUDIO_ENCODER, VAE_DECODER, VAE_ENCODER, greatest_lengths
from lipstream.engines.networks import (
    EngineAudioEncoder,
    EngineAutoencoder,
    EngineDenoiser,
    Sessions,
    read_autoencoder_config,
)
from lipstream.engines.sessions import Engine, Session
from lipstream.errors import ModelError, OutputError, SettingsError
from lipstream.models.catalogue import ModelConfig
from lipstream.models.exported import GRAPH_VERSION, ONNX_FOLDER, ExportedPrecision
from lipstream.models.load import Source, model_source
from lipstream.models.locate import read_config, read_config_values
from lipstream.presets import Sampling
from lipstream.runtime.device import Dtypes
from lipstream.settings import RuntimeSettings

if TYPE_CHECKING:
    from lipstream.engines.triton_model import ServedDenoiser

logger = logging.getLogger(__name__)

Wrap = Callable[[str, Session], Session]


@dataclass(frozen=True)
class EngineModel:
    """A model whose networks an engine computes.

    source: torch's files, for results that are not finite; None where the folder holds exported networks alone.
    """

    config: ModelConfig
    engine: str
    denoiser: EngineDenoiser | ServedDenoiser
    vae: EngineAutoencoder
    audio_encoder: EngineAudioEncoder
    dtypes: Dtypes
    source: Source | None

    @property
    def quantized(self) -> str:
        """What the weights are held as: none or int8."""
        exported = self.config.exported
        return "int8" if exported is not None and exported.precision == "int8" else "none"

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the U-Net's parts that are left out."""
        return () if self.source is None else self.source.left_out

    def check(self, sampling: Sampling) -> None:
        """Raise SettingsError for a way of sampling that the engine does not offer."""
        if self.engine == "triton" and sampling.step_cache > 1:
            raise SettingsError(
                f"step_cache = {sampling.step_cache}: a Triton server returns no deep features to reuse",
                fix="leave out --step-cache, or use another engine",
                setting="step_cache",
            )

    def latent_size(self, resolution: int) -> int:
        """Height and width of the latents of a crop. Raises SettingsError for another resolution than was exported."""
        if resolution != self.config.resolution:
            command = "export triton" if self.engine == "triton" else "export onnx"
            raise SettingsError(
                f"resolution = {resolution}: the networks were exported for {self.config.resolution}",
                fix=f"run lipstream {command} with --resolution {resolution}, or use --engine torch",
                setting="resolution",
            )
        return resolution // int(2 ** (len(self.vae.config.block_out_channels) - 1))


def open_model(
    model: str | Path,
    runtime: RuntimeSettings,
    device: torch.device,
    dtypes: Dtypes,
    calls: int,
    on_graph: OnGraph | None = None,
    wrap: Wrap | None = None,
) -> EngineModel:
    """Open a named model or a folder in the engine that `runtime` names, having exported it into the cache if need be.

    dtypes: all the same but for openvino. calls: at the same time, each on one core; 0 for one call on all cores.
    on_graph: called for each graph that is exported. wrap: put round each session, given the graph's name. Raises
    SettingsError for an engine that cannot run here, ModelError.
    """
    if len(set(vars(dtypes).values())) > 1 and runtime.engine != "openvino":
        raise SettingsError(
            f"--engine {runtime.engine} computes all networks in one precision",
            fix="leave out --vae-precision and --audio-precision, or use --engine openvino",
        )
    if runtime.engine == "triton":
        from lipstream.engines.triton_model import open_triton_model

        return open_triton_model(model, runtime, device)
    config, folder = read_config(model)
    source = None
    by_dtype = {dtype: make_engine(runtime, device, dtype, calls, config) for dtype in vars(dtypes).values()}
    if config.exported is None:
        precision = _exported_precision(device, dtypes.unet)
        _check_precision(precision, runtime, dtypes)  # before the export, which takes a while
        source = model_source(model, torch.device("cpu"), pruned=runtime.pruned)
        folder = _cached(source, model, precision, on_graph)
        config, _ = read_config(folder)
    elif runtime.pruned is not None:
        raise SettingsError("--pruned is decided when a model is exported", fix="give it to lipstream export onnx")
    assert folder is not None and config.exported is not None
    config.exported.check(folder)
    _check_precision(config.exported.precision, runtime, dtypes)
    graphs, digest = folder / ONNX_FOLDER, config.exported.digest()[:16]
    compiled = cache_folder() / f"{folder.name}-{digest}-{runtime.engine}"

    def open_graph(name: str) -> Session:
        session = by_dtype[_dtype_of(name, dtypes)].open(graphs / f"{name}.onnx", compiled)
        return session if wrap is None else wrap(name, session)

    sessions = Sessions(open_graph)
    return EngineModel(
        config=config,
        engine=runtime.engine,
        denoiser=EngineDenoiser(sessions),
        vae=EngineAutoencoder(sessions, read_autoencoder_config(folder / config.files.vae_config), device, dtypes.vae),
        audio_encoder=EngineAudioEncoder(sessions, config.audio_encoder, device, dtypes.audio_encoder),
        dtypes=dtypes,
        source=source,
    )


def make_engine(
    runtime: RuntimeSettings, device: torch.device, dtype: torch.dtype, calls: int, config: ModelConfig
) -> Engine:
    """Return the engine that `runtime` names. dtype: what it computes in. calls: see open_model.

    Raises SettingsError for one that is not installed or cannot run on the device.
    """
    threads = 1 if calls else torch.get_num_threads()
    if runtime.engine == "openvino":
        from lipstream.engines.openvino_runtime import OpenVino

        return OpenVino(device, dtype, max(threads, calls), max(1, calls))
    if runtime.engine == "onnxruntime":
        from lipstream.engines.onnx_runtime import OnnxRuntime

        return OnnxRuntime(device, threads, runtime.provider)
    if runtime.engine == "tensorrt":
        from lipstream.engines.tensorrt_runtime import TensorRt

        windows = 1 if runtime.batch == "auto" else runtime.batch
        return TensorRt(device, greatest_lengths(config.num_frames, config.resolution, windows))
    raise SettingsError(f"engine = {runtime.engine!r} is not an engine for graphs", setting="engine")


def _dtype_of(graph: str, dtypes: Dtypes) -> torch.dtype:
    """Return what a graph is computed in."""
    if graph == AUDIO_ENCODER:
        return dtypes.audio_encoder
    return dtypes.vae if graph in (VAE_ENCODER, VAE_DECODER) else dtypes.unet


def _cached(source: Source, model: str | Path, precision: ExportedPrecision, on_graph: OnGraph | None) -> Path:
    """Return the folder of a model's graphs in the cache, exported if it is not there."""
    digest = weights_sha256(source)
    name = f"{source.config.name}-{source.config.resolution}px-{precision}-v{GRAPH_VERSION}-{digest[:16]}"
    folder = cache_folder() / name
    if folder.is_dir():
        return folder
    logger.warning("%s is exported once, into %s", source.config.name, folder)
    values, _, _ = read_config_values(model)
    try:
        export_onnx(
            source, values, folder, digest, precision=precision, on_graph=on_graph or _no_report, may_exist=True
        )
    except OutputError as error:
        raise ModelError(
            f"the cache of exported networks {error.message}",
            file=folder.parent,
            fix=f"free some space, or name another folder with the environment variable {CACHE_VARIABLE}",
        ) from error
    return folder


def _no_report(name: str, done: int, n: int) -> None:
    pass


def _exported_precision(device: torch.device, dtype: torch.dtype) -> ExportedPrecision:
    """bfloat16 is what an engine computes in where it may, from float32 graphs."""
    return "fp16" if dtype == torch.float16 and device.type != "cpu" else "fp32"


def _check_precision(exported: ExportedPrecision, runtime: RuntimeSettings, dtypes: Dtypes) -> None:
    computed = torch.float16 if exported == "fp16" else torch.float32
    allowed = {computed, torch.bfloat16} if runtime.engine == "openvino" and exported != "fp16" else {computed}
    if not allowed.issuperset(vars(dtypes).values()):
        raise SettingsError(
            f"--precision {runtime.precision} is not what the graphs ({exported}) are computed in by {runtime.engine}",
            fix="leave --precision out, or export the model in that precision",
            setting="precision",
        )
