"""Put together what a run is made of: networks with their fallbacks, detector, streams, batch and threads."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from lipstream.diffusion.batching import calls_side_by_side, windows_per_call
from lipstream.diffusion.sampling import Denoiser, UNetDenoiser
from lipstream.engines.export import OnGraph
from lipstream.engines.model import EngineModel, open_model
from lipstream.engines.networks import EngineAudioEncoder
from lipstream.errors import ModelError
from lipstream.face.registry import Detector
from lipstream.models.load import Model, Source, load_model, read_config
from lipstream.models.whisper import AudioEncoder
from lipstream.pipeline.records import Components, DeviceStreams, Networks
from lipstream.runtime.compile import compiled_step
from lipstream.runtime.device import dtypes, face_geometry, face_threads, torch_device
from lipstream.runtime.precision import PrecisionFallback
from lipstream.settings import RuntimeSettings, SyncSettings

logger = logging.getLogger(__name__)

_MB = 1_000_000


def load_networks(
    model: str | Path, runtime: RuntimeSettings, device: torch.device, on_export: OnGraph | None = None
) -> Model | EngineModel:
    """Load a named model or a folder for what `runtime` says. Raises ModelError, SettingsError.

    on_export: see open_model.
    """
    chosen = dtypes(runtime, device)
    if runtime.engine == "torch":
        return load_model(model, device, chosen, quantize=runtime.quantize, pruned=runtime.pruned, vae=runtime.vae)
    calls = calls_side_by_side(read_config(model)[0].unet, runtime)
    return open_model(model, runtime, device, chosen, calls or 0, on_export)


def build_components(
    model: Model | EngineModel, detector: Detector, runtime: RuntimeSettings, denoiser: Denoiser | None = None
) -> Components:
    """Return the components of a run; "auto" of the batch is decided here, by measuring a window on CUDA.

    denoiser: in place of the model's U-Net.
    """
    device, geometry = torch_device(runtime), face_geometry(runtime)
    batch = windows_per_call(runtime.batch, model, device)
    components = Components(
        model=model,
        networks=_networks(model, device, denoiser or make_denoiser(model, runtime, batch)),
        detector=detector,
        device=device,
        threads=face_threads(runtime),
        geometry=geometry,
        streams=DeviceStreams.to(device, geometry),
        batch=batch,
        side_by_side=calls_side_by_side(model.config.unet, runtime),
        frame_memory_bytes=runtime.frame_memory_mb * _MB,
    )
    _log(components)
    return components


def make_denoiser(model: Model | EngineModel, runtime: RuntimeSettings, batch: int) -> Denoiser:
    """Return what denoises; batch: windows per call."""
    if isinstance(model, EngineModel):
        return model.denoiser
    step = compiled_step(model.unet, batch * model.config.num_frames) if runtime.compile else None
    return UNetDenoiser(model.unet, step)


def _networks(model: Model | EngineModel, device: torch.device, unet: Denoiser) -> Networks:
    """Return the networks with the higher precisions in which torch computes what is not finite."""
    engine = model.engine if isinstance(model, EngineModel) else "torch"

    def source(device: torch.device) -> Source:
        if model.source is None:
            raise ModelError(
                f"{engine} gave a result that is not finite, and there are no weights for torch to compute it again",
                file=model.config.name,
                fix="name the model that was exported, or export it as fp32",
            )
        return replace(model.source, device=device)

    def load_unet(dtype: torch.dtype, device: torch.device) -> Denoiser:
        return UNetDenoiser(source(device).unet(dtype))

    def load_vae(dtype: torch.dtype, device: torch.device) -> Any:
        return source(device).vae(dtype)

    def load_audio_encoder(dtype: torch.dtype, device: torch.device) -> AudioEncoder | EngineAudioEncoder:
        return source(device).audio_encoder(dtype)

    chosen, encoder = model.dtypes, model.audio_encoder
    return Networks(
        PrecisionFallback("U-Net", unet, chosen.unet, device, load_unet, engine),
        PrecisionFallback("VAE", model.vae, chosen.vae, device, load_vae, engine),
        PrecisionFallback("audio encoder", encoder, chosen.audio_encoder, device, load_audio_encoder, engine),
    )


def settings_used(components: Components, settings: SyncSettings, runtime: RuntimeSettings) -> dict[str, Any]:
    """Return the settings with every choice made: what a run really runs with."""
    model, config = components.model, components.model.config
    unet, vae, audio_encoder = _dtype_names(model)
    return {
        "model": config.name,
        **asdict(settings),
        **asdict(settings.sampling(config.num_inference_steps, config.guidance_scale)),
        "resolution": settings.resolution or config.resolution,
        "detect_every": settings.frames_per_detection(),
        "texture": settings.texture or config.texture,
        "match_color": settings.match_color or config.match_color,
        "device": str(components.device),
        "precision": unet,
        "vae_precision": vae,
        "audio_precision": audio_encoder,
        "quantize": model.quantized,
        "detector": components.detector.name,
        "threads": components.threads,
        "batch": components.batch,
        "engine": runtime.engine,
        "compile": runtime.compile,
        "vae": runtime.vae,
        "pruned_layers": len(model.left_out),
    }


def _log(components: Components) -> None:
    logger.info(
        "model %s on %s by %s: U-Net %s, VAE %s, audio encoder %s; detector %s, %d threads; %d windows per call",
        components.model.config.name,
        components.device,
        components.model.engine if isinstance(components.model, EngineModel) else "torch",
        *_dtype_names(components.model),
        components.detector.name,
        components.threads,
        components.batch,
    )


def _dtype_names(model: Model | EngineModel) -> list[str]:
    chosen = (model.dtypes.unet, model.dtypes.vae, model.dtypes.audio_encoder)
    return [str(dtype).removeprefix("torch.") for dtype in chosen]
