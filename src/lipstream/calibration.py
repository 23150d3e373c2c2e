"""Export a model with int8 layers: what its networks are called with on a clip decides the ranges of the integers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lipstream.diffusion.batching import calls_side_by_side
from lipstream.engines.export import OnGraph, export_onnx
from lipstream.engines.model import open_model
from lipstream.engines.quantize import Recorder, quantize_folder
from lipstream.face.registry import make_detector
from lipstream.lipsync import LipSync
from lipstream.models.load import Source
from lipstream.models.locate import read_config, read_config_values
from lipstream.runtime.device import dtypes
from lipstream.settings import RuntimeSettings, SyncSettings

# Guidance has graphs of its own, which a model that is not guided by itself does not call.
_GUIDANCE_SCALES = (1.0, 1.5)


def export_int8(
    source: Source,
    values: Mapping[str, Any],
    folder: Path,
    source_sha256: str,
    clip: tuple[str, str],
    *,
    resolution: int | None,
    on_graph: OnGraph,
) -> None:
    """Export a model into `folder` with the convolutions and linear layers of U-Net and VAE in int8.

    clip: a video and a recording, which are lip-synced twice with the float32 graphs. The others: see export_onnx.
    Raises what LipSync raises for the clip, and what export_onnx raises.
    """
    with tempfile.TemporaryDirectory(prefix="lipstream-") as temporary:
        exact = Path(temporary) / "fp32"
        export_onnx(source, values, exact, source_sha256, resolution=resolution, on_graph=on_graph)
        recorder = _recorded(exact, clip, Path(temporary) / "calibration.mp4")
        exported = read_config(exact)[0].exported
        assert exported is not None
        quantize_folder(exact, read_config_values(exact)[0], exported, folder, recorder, on_graph)


def _recorded(folder: Path, clip: tuple[str, str], output: Path) -> Recorder:
    """Lip-sync the clip with the graphs in `folder`, and return what they were called with."""
    runtime, recorder, device = RuntimeSettings(device="cpu", engine="onnxruntime"), Recorder(), torch.device("cpu")
    calls = calls_side_by_side(read_config(folder)[0].unet, runtime) or 0
    model = open_model(folder, runtime, device, dtypes(runtime, device), calls, wrap=recorder.wrap)
    settings = SyncSettings(x264_preset="ultrafast")
    detector = make_detector(runtime.detector, device)
    with LipSync(model, detector, runtime) as sync:
        for scale in _GUIDANCE_SCALES:
            sync(*clip, output, replace(settings, guidance_scale=scale), overwrite=True)
    detector.close()
    return recorder
