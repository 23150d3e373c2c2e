"""Put together what a run is made of: networks with their fallbacks, detector, streams, batch and threads."""

from __future__ import annotations

from dataclasses import replace
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
from lipstream.settings import RuntimeSettings

_MB = 1_000_000


def build_components(model: Model, detector: Detector, runtime: RuntimeSettings) -> Components:
    """Return the components of a run; "auto" of the batch is decided here, by measuring a window on CUDA."""
    device, geometry = torch_device(runtime), face_geometry(runtime)
    batch, source = windows_a_call(runtime.batch, model, device), model.source
    step = compiled_step(model.unet, batch * model.config.num_frames) if runtime.compile else None

    def load_unet(dtype: torch.dtype, device: torch.device) -> Denoiser:
        return UNetDenoiser(replace(source, device=device).unet(dtype))

    def load_vae(dtype: torch.dtype, device: torch.device) -> Any:
        return replace(source, device=device).vae(dtype)

    def load_audio_encoder(dtype: torch.dtype, device: torch.device) -> AudioEncoder:
        return replace(source, device=device).audio_encoder(dtype)

    unet: Denoiser = UNetDenoiser(model.unet, step)
    return Components(
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
