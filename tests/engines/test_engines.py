"""The networks in ONNX Runtime and OpenVINO beside torch's, call by call and through the whole product."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from helpers.pipeline import FAST, KnownFace, psnr_db, read_images, write_clip, write_speech
from lipstream import LipSync, ModelError, RuntimeSettings, SettingsError
from lipstream.diffusion import conditioning
from lipstream.diffusion.conditioning import Conditioning
from lipstream.diffusion.sampling import UNetDenoiser, sample
from lipstream.engines.graphs import GRAPHS
from lipstream.engines.model import EngineModel, open_model
from lipstream.engines.onnx_runtime import OnnxRuntime
from lipstream.models.exported import GRAPH_VERSION
from lipstream.models.load import Model, load_model, verify_model
from lipstream.presets import Sampling
from lipstream.runtime.device import Dtypes

CPU = torch.device("cpu")
FP32 = Dtypes(torch.float32, torch.float32, torch.float32)
ENGINES = ("onnxruntime", "openvino")
# The first test of a worker waits for the export, which takes a minute on two idle cores.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def by_torch(model: Path) -> Model:
    return load_model(model, CPU, torch.float32)


@pytest.fixture(params=ENGINES)
def by_engine(request: pytest.FixtureRequest, exported: Path) -> EngineModel:
    return opened(exported, request.param)


def opened(folder: Path, engine: str, calls: int = 0, **runtime: Any) -> EngineModel:
    return open_model(folder, RuntimeSettings(device="cpu", engine=engine, **runtime), CPU, FP32, calls)  # type: ignore[arg-type]


def distance(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).norm() / other.norm())


def conditions(model: Model, windows: int, frames: int) -> Conditioning:
    generator, config = torch.Generator().manual_seed(3), model.config
    n, size = windows * frames, model.latent_size(config.resolution)
    tokens = config.audio_encoder.tokens_per_frame
    return Conditioning(
        channels=torch.randn(n, config.unet.in_channels - config.unet.out_channels, size, size, generator=generator),
        audio=torch.randn(n, tokens, config.unet.cross_attention_dim, generator=generator),
        num_frames=frames,
    )


@pytest.mark.parametrize(("windows", "frames"), [(1, 16), (1, 1), (3, 5)])
@pytest.mark.parametrize("guided", [False, True])
@torch.inference_mode()
def test_a_step_is_torchs(by_torch: Model, by_engine: EngineModel, windows: int, frames: int, guided: bool) -> None:
    seen = conditions(by_torch, windows, frames)
    latents, timestep = torch.randn(windows * frames, 4, 8, 8), torch.tensor(501)
    expected, _ = (network := UNetDenoiser(by_torch.unet))(latents, timestep, network.prepare(seen), guided)
    prepared = by_engine.denoiser.prepare(seen)
    predicted, deep = by_engine.denoiser(latents, timestep, prepared, guided)
    assert distance(predicted, expected) < 1e-5
    again, _ = by_engine.denoiser(latents, timestep, prepared, guided, deep)
    assert torch.equal(again, predicted)


@torch.inference_mode()
def test_the_sampling_loop_with_a_step_cache_and_guidance_in_an_interval(
    by_torch: Model, by_engine: EngineModel
) -> None:
    seen, noise = conditions(by_torch, 1, 4), torch.randn(1, 4, 8, 8)
    sampling = Sampling(6, 1.5, step_cache=2, guidance_interval=(0.0, 0.5))
    networks: list[Any] = [UNetDenoiser(by_torch.unet), by_engine.denoiser]
    expected, found = (sample(one, by_torch.config.scheduler, noise, seen, sampling) for one in networks)
    assert distance(found, expected) < 1e-4


@torch.inference_mode()
def test_the_autoencoder_and_the_audio_encoder_are_torchs(by_torch: Model, by_engine: EngineModel) -> None:
    pixels = torch.rand(5, 3, 64, 64) * 2 - 1
    latents = conditioning.encode(by_torch.vae, pixels)
    assert distance(conditioning.encode(by_engine.vae, pixels), latents) < 1e-5
    for n in (5, 2):  # fewer than before are filled up
        expected = conditioning.decode(by_torch.vae, latents[:n])
        assert distance(conditioning.decode(by_engine.vae, latents[:n]), expected) < 1e-5
    sizes = by_torch.config.audio_encoder
    mel = torch.randn(1, sizes.n_mels, 2 * sizes.n_audio_ctx)
    assert distance(by_engine.audio_encoder(mel), by_torch.audio_encoder(mel)) < 1e-5


@torch.inference_mode()
def test_openvino_computes_each_network_in_its_own_precision(by_torch: Model, exported: Path) -> None:
    mixed = open_model(
        exported, RuntimeSettings(device="cpu", engine="openvino"), CPU, replace(FP32, vae=torch.bfloat16), 0
    )
    seen, latents = conditions(by_torch, 1, 4), torch.randn(4, 4, 8, 8)
    network, timestep = UNetDenoiser(by_torch.unet), torch.tensor(501)
    expected, _ = network(latents, timestep, network.prepare(seen), False)
    assert distance(mixed.denoiser(latents, timestep, mixed.denoiser.prepare(seen), False)[0], expected) < 1e-5
    found, exact = conditioning.decode(mixed.vae, latents), conditioning.decode(by_torch.vae, latents)
    # bfloat16 has 8 bits; a CPU without such instructions computes in float32.
    assert distance(found, exact) < 0.05


def test_the_providers_of_onnx_runtime(
    exported: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opens, cuda = list[tuple[str, Any]](), torch.device("cuda:1")

    def session(path: str, options: Any, providers: Any) -> Any:
        opens.append((path, providers))
        return SimpleNamespace(get_inputs=list, get_outputs=list)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(SettingsError, match="does not run on cpu"):
        OnnxRuntime(CPU, 1, "tensorrt")
    with pytest.raises(SettingsError, match="no TensorrtExecutionProvider") as error:
        OnnxRuntime(cuda, 1, "tensorrt")
    assert error.value.fix is not None and "onnxruntime-gpu" in error.value.fix
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    graph = exported / "onnx" / "vae_encoder.onnx"
    OnnxRuntime(cuda, 1).open(graph, cache)
    OnnxRuntime(cuda, 1, "tensorrt").open(graph, cache)
    (_, by_cuda), (_, by_tensorrt) = opens
    assert by_cuda == [("CUDAExecutionProvider", {"device_id": 1})]
    assert [name for name, _ in by_tensorrt] == names[:2]
    options = by_tensorrt[0][1]
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(cache) and cache.is_dir()
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ModelError, match="cannot be written"):
        OnnxRuntime(cuda, 1, "tensorrt").open(graph, tmp_path / "file" / "cache")


Sync = Callable[..., Any]


@pytest.fixture
def sync(goldens: Path, tmp_path: Path) -> Sync:
    """A run of 19 frames, so two windows."""
    with np.load(goldens / "align_io.npz") as arrays:
        frames, landmarks = arrays["frames"], arrays["landmarks"][0]
    clip = write_clip(tmp_path / "clip.mp4", [frames[i % len(frames)] for i in range(20)])
    speech = write_speech(tmp_path / "speech.wav", 0.77)

    def run(model: Path, name: str, **options: Any) -> list[Any]:
        runtime = RuntimeSettings(device="cpu", threads=2, **options)
        if runtime.engine == "torch":
            loaded: Any = load_model(model, CPU, torch.float32)
        else:
            loaded = open_model(model, runtime, CPU, FP32, calls=2)
        settings = replace(FAST, num_inference_steps=3, guidance_scale=1.5)
        with LipSync(loaded, KnownFace(landmarks), runtime) as lipsync:
            result = lipsync(clip, speech, tmp_path / name, settings)
        assert result.settings["engine"] == runtime.engine
        return read_images(tmp_path / name)

    return run


@pytest.mark.parametrize("batch", [1, 2])
def test_a_whole_run_is_torchs(sync: Sync, model: Path, exported: Path, batch: int) -> None:
    expected = sync(model, "torch.mp4")
    for engine in ENGINES:
        found = sync(exported, f"{engine}.mp4", engine=engine, batch=batch)
        assert len(found) == len(expected) == 19
        assert min(map(psnr_db, found, expected)) > 60


def test_every_graph_says_where_it_comes_from(exported: Path) -> None:
    config = json.loads((exported / "lipstream.json").read_text())["exported"]
    for name in GRAPHS:
        graph = onnx.load(exported / "onnx" / f"{name}.onnx", load_external_data=False)
        about = {entry.key: entry.value for entry in graph.metadata_props}
        assert about["source_sha256"] == config["source_sha256"]
        assert (about["precision"], about["resolution"], about["graph_version"]) == ("fp32", "64", str(GRAPH_VERSION))
        onnx.checker.check_model(graph)


def test_an_exported_folder_verifies_and_needs_nothing_of_torch(exported: Path) -> None:
    assert len(verify_model(exported)) == len(GRAPHS)
    assert sorted(path.name for path in exported.iterdir()) == ["lipstream.json", "onnx", "vae"]
    with pytest.raises(ModelError, match="--engine"):
        LipSync.load(exported, device="cpu", detector="mediapipe")


def changed(exported: Path, folder: Path, change: Callable[[Path], Any]) -> Path:
    shutil.copytree(exported, folder)
    change(folder)
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def corrupt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "lipstream.json"
    values = json.loads(path.read_text())
    values["exported"] |= changes
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda folder: cut(folder / "onnx" / "unet_prepare.onnx"), "damaged or replaced"),
        (lambda folder: (folder / "onnx" / "vae_encoder.onnx").unlink(), "missing"),
        (lambda folder: rewrite(folder, graph_version=99), "version 99"),
        (lambda folder: rewrite(folder, precision="fp7"), "exported"),
    ],
)
def test_a_folder_that_is_not_as_it_was_exported_is_refused(
    exported: Path, tmp_path: Path, engine: str, change: Callable[[Path], Any], what: str
) -> None:
    folder = changed(exported, tmp_path / "changed", change)
    with pytest.raises(ModelError, match=what) as error:
        opened(folder, engine)
    assert error.value.fix is not None
    with pytest.raises(ModelError):
        verify_model(folder)


@pytest.mark.parametrize("engine", ENGINES)
def test_damage_of_the_right_size_is_found_on_opening_or_by_verify(
    exported: Path, tmp_path: Path, engine: str, by_torch: Model
) -> None:
    folder = changed(exported, tmp_path / "changed", lambda one: corrupt(one / "onnx" / "unet_prepare.onnx"))
    with pytest.raises(ModelError, match="SHA-256"):
        verify_model(folder)
    with pytest.raises(ModelError, match="cannot load it"):
        opened(folder, engine).denoiser.prepare(conditions(by_torch, 1, 2))


def test_settings_that_an_engine_cannot_follow_are_refused(exported: Path, model: Path) -> None:
    for words in ({"compile": True}, {"quantize": "int8"}):
        with pytest.raises(SettingsError, match="--engine openvino"):
            RuntimeSettings(engine="openvino", **words)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="--triton-url"):
        RuntimeSettings(engine="triton")
    with pytest.raises(SettingsError, match="one precision"):
        mixed = replace(FP32, vae=torch.bfloat16)
        open_model(exported, RuntimeSettings(device="cpu", engine="onnxruntime"), CPU, mixed, 0)
    with pytest.raises(SettingsError, match="is for --engine onnxruntime"):
        RuntimeSettings(engine="openvino", provider="tensorrt")
    with pytest.raises(SettingsError, match="exported for 64"):
        opened(exported, "onnxruntime").latent_size(128)


def test_an_engine_that_is_not_installed_names_the_extra(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(SettingsError, match="openvino") as error:
        opened(exported, "openvino")
    assert error.value.fix == "pip install 'lipstream[openvino]'"


def test_a_result_that_is_not_finite_is_computed_by_torch(
    sync: Sync, model: Path, exported: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = sync(model, "torch.mp4")
    config = json.loads((exported / "lipstream.json").read_text())

    from lipstream.engines import networks

    decode = networks.EngineAutoencoder.decode

    def overflowing(self: Any, latents: Tensor) -> Any:
        decoded = decode(self, latents)
        decoded.sample[0, 0, 40, 32] = float("inf")
        return decoded

    monkeypatch.setattr(networks.EngineAutoencoder, "decode", overflowing)
    with pytest.raises(ModelError, match="not finite"):  # an exported folder has nothing that torch could compute
        sync(exported, "lone.mp4", engine="onnxruntime")
    monkeypatch.setattr("lipstream.engines.model._cached", lambda *_: exported)
    found = sync(model, "engine.mp4", engine="onnxruntime")
    assert min(map(psnr_db, found, expected)) > 60
    assert "float32 by onnxruntime is not finite" in caplog.text
    assert config["exported"]["precision"] == "fp32"
