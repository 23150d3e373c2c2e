"""Put together what a run is made of: networks with their fallbacks, detector, streams, batch and threads."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from typing import Any

import torch

from lipstream.diffusion.batching import calls_side_by_side, windows_a_call
from lipstream.diffusion.sampling import Denoiser, UNetDenoiser
from lipstream.face.registry import Detector
from lipstream.models.load import Model
from lipstream.models.whisper import AudioEncoder
from lipstream.pipeline.records import Components, DeviceStreams, Networks
from lipstream.runtime.compile import compiled_step
from lipstream.runtime.device import face_geometry, face_threads, torch_device
from lipstream.runtime.precision import PrecisionFallback
from lipstream.settings import RuntimeSettings, SyncSettings

logger = logging.getLogger(__name__)

_MB = 1_000_000


def build_components(
    model: Model, detector: Detector, runtime: RuntimeSettings, denoiser: Denoiser | None = None
) -> Components:
    """Return the components of a run; "auto" of the batch is decided here, by measuring a window on CUDA.

    denoiser: in place of the model's U-Net.
    """
    device, geometry = torch_device(runtime), face_geometry(runtime)
    batch, source = windows_a_call(runtime.batch, model, device), model.source
    step = compiled_step(model.unet, batch * model.config.num_frames) if runtime.compile else None

    def load_unet(dtype: torch.dtype, device: torch.device) -> Denoiser:
        return UNetDenoiser(replace(source, device=device).unet(dtype))

    def load_vae(dtype: torch.dtype, device: torch.device) -> Any:
        return replace(source, device=device).vae(dtype)

    def load_audio_encoder(dtype: torch.dtype, device: torch.device) -> AudioEncoder:
        return replace(source, device=device).audio_encoder(dtype)

    unet: Denoiser = denoiser or UNetDenoiser(model.unet, step)
    components = Components(
        model=model,
        networks=Networks(
            PrecisionFallback("U-Net", unet, model.dtypes.unet, device, load_unet),
            PrecisionFallback("VAE", model.vae, model.dtypes.vae, device, load_vae),
            PrecisionFallback(
                "audio encoder", model.audio_encoder, model.dtypes.audio_encoder, device, load_audio_encoder
            ),
        ),
        detector=detector,
        device=device,
        threads=face_threads(runtime),
        geometry=geometry,
        streams=DeviceStreams.to(device, geometry),
        batch=batch,
        side_by_side=calls_side_by_side(model.unet, runtime),
        frame_memory_bytes=runtime.frame_memory_mb * _MB,
    )
    _log(components)
    return components


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
        "quantize": model.source.quantize,
        "detector": components.detector.name,
        "threads": components.threads,
        "batch": components.batch,
        "compile": runtime.compile,
        "pruned_layers": len(model.source.left_out),
    }


def _log(components: Components) -> None:
    logger.info(
        "model %s on %s: U-Net %s, VAE %s, audio encoder %s; detector %s, %d threads; %d windows per call",
        components.model.config.name,
        components.device,
        *_dtype_names(components.model),
        components.detector.name,
        components.threads,
        components.batch,
    )


def _dtype_names(model: Model) -> list[str]:
    chosen = (model.dtypes.unet, model.dtypes.vae, model.dtypes.audio_encoder)
    return [str(dtype).removeprefix("torch.") for dtype in chosen]
