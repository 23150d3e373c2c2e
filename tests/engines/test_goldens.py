"""The goldens' networks in each engine, beside the numbers recorded from the published implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor

from helpers.models import make_model_folder
from lipstream.audio_features.features import feature_rows
from lipstream.diffusion import conditioning
from lipstream.diffusion.sampling import sample
from lipstream.engines.export import export_graph, model_graphs
from lipstream.engines.graphs import (
    AUDIO_ENCODER,
    PREPARE,
    VAE_DECODER,
    VAE_ENCODER,
    deep_graph,
    head_graph,
    unet_graphs,
)
from lipstream.engines.model import make_engine
from lipstream.engines.networks import (
    EngineAudioEncoder,
    EngineAutoencoder,
    EngineDenoiser,
    Sessions,
    read_autoencoder_config,
)
from lipstream.engines.weights import SharedWeights
from lipstream.media.audio import read_mono
from lipstream.models.load import model_source, read_config
from lipstream.presets import Sampling
from lipstream.settings import RuntimeSettings

CPU = torch.device("cpu")
# Those of a guided clip: the export of the others takes another minute.
GRAPHS = (PREPARE, deep_graph(True), head_graph(True), VAE_ENCODER, VAE_DECODER, AUDIO_ENCODER)
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def model(goldens: Path, shared: Path) -> Path:
    """The goldens' networks as a model folder, and their graphs in its folder `onnx`."""
    folder = shared / "goldens-onnx"
    with FileLock(shared / "goldens-onnx.lock"):
        if not folder.exists():
            make_model_folder(goldens, folder)
            (folder / "onnx").mkdir()
            source = model_source(folder, CPU)
            with SharedWeights(folder / "onnx") as weights:
                for graph in model_graphs(source, "fp32", source.config.resolution, unet_graphs):
                    if graph.name in GRAPHS:
                        export_graph(graph, folder / "onnx" / f"{graph.name}.onnx", {}, weights)
    return folder


@pytest.fixture(params=["onnxruntime", "openvino"])
def sessions(request: pytest.FixtureRequest, model: Path) -> Sessions:
    runtime = RuntimeSettings(device="cpu", engine=request.param)
    engine = make_engine(runtime, CPU, torch.float32, 0, read_config(model)[0])
    return Sessions(lambda name: engine.open(model / "onnx" / f"{name}.onnx"))


def relative_error(found: Tensor, golden: Tensor) -> float:
    return float((found - golden).norm() / golden.norm())


@torch.inference_mode()
def test_a_clip_through_the_latent_core(goldens: Path, sessions: Sessions) -> None:
    io: dict[str, Any] = load_file(goldens / "clip_io.safetensors")
    config, _ = read_config("latentsync-1.5")
    vae = EngineAutoencoder(sessions, read_autoencoder_config(goldens / "vae" / "config.json"), CPU, torch.float32)
    denoiser, noise = EngineDenoiser(sessions), io["noise"][:, :, 0]
    sampling = Sampling(int(io["num_inference_steps"]), float(io["guidance_scale"]))
    latents, decoded, n = [], [], config.num_frames
    for faces, audio in zip(io["faces"].split(n), io["audio_chunks"].split(n), strict=True):
        pixels = conditioning.to_pixels(faces)
        seen = conditioning.condition(vae, pixels, io["mask"][:1], audio, len(faces))
        latents.append(sample(denoiser, config.scheduler, noise, seen, sampling))
        decoded.append(conditioning.keep_surroundings(conditioning.decode(vae, latents[-1]), pixels, io["mask"][:1]))
    golden = io["latents"].transpose(1, 2).flatten(0, 1)
    assert relative_error(torch.cat(latents), golden) <= 1.2e-4
    assert relative_error(torch.cat(decoded), io["decoded"]) <= 9e-5


@torch.inference_mode()
def test_audio_features(goldens: Path, model: Path, sessions: Sessions) -> None:
    io = load_file(goldens / "audio_io.safetensors")
    encoder = EngineAudioEncoder(sessions, read_config(model)[0].audio_encoder, CPU, torch.float32)
    features = torch.cat(list(feature_rows(lambda: read_mono(goldens / "audio.wav"), encoder)))
    assert len(features) == int(io["features_len"])
    assert relative_error(features[io["features_at"]], io["features"]) <= 1.2e-6
