"""The networks in a real Triton server on loopback, and the errors of a server that is away, wrong or killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import Tensor

from helpers.cli import error_line, run
from helpers.pipeline import FAST, KnownFace, psnr_db, read_images, write_clip, write_speech
from helpers.triton import Running, free_url, server_folder, serving
from lipstream import LipSync, ModelError, RuntimeSettings, SettingsError
from lipstream.diffusion.conditioning import Conditioning
from lipstream.diffusion.sampling import UNetDenoiser
from lipstream.engines import triton_client, triton_model
from lipstream.engines.cache import weights_sha256
from lipstream.engines.model import EngineModel, open_model
from lipstream.engines.triton_client import TritonServer
from lipstream.engines.triton_repository import ServedTensor, config_text, export_triton
from lipstream.models.load import Model, load_model, model_source
from lipstream.runtime.device import Dtypes

CPU = torch.device("cpu")
FP32 = Dtypes(torch.float32, torch.float32, torch.float32)
SETTINGS = replace(FAST, num_inference_steps=3, guidance_scale=1.5)

with_server = pytest.mark.skipif(server_folder() is None, reason="no tritonserver: nvidia-pytriton, tritonclient[grpc]")


@pytest.fixture(scope="session")
def repository(model: Path, shared: Path) -> Path:
    folder = shared / "small-triton"
    with FileLock(shared / "small-triton.lock"):
        if not folder.exists():
            source = model_source(model, CPU)
            export_triton(source, folder, weights_sha256(source), backend="python", max_batch=2)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(repository, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def by_torch(model: Path) -> Model:
    return load_model(model, CPU, torch.float32)


def opened(model: Path, url: str, **runtime: Any) -> EngineModel:
    return open_model(model, settings(url, **runtime), CPU, FP32, 2)


def settings(url: str, **runtime: Any) -> RuntimeSettings:
    return RuntimeSettings(device="cpu", engine="triton", triton_url=url, threads=2, **runtime)


def distance(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).norm() / other.norm())


def conditions(windows: int, frames: int) -> Conditioning:
    generator, n = torch.Generator().manual_seed(3), windows * frames
    channels = torch.randn(n, 9, 8, 8, generator=generator)
    return Conditioning(channels, torch.randn(n, 30, 48, generator=generator), frames)


@with_server
@torch.inference_mode()
@pytest.mark.parametrize("is_shared", [True, False])
def test_each_network_is_torchs(
    model: Path, by_torch: Model, server: Running, is_shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_shared:
        monkeypatch.setattr(triton_client, "_LOOPBACK", ())
    served = opened(model, server.url)
    for windows, frames in ((1, 16), (3, 5), (1, 16)):  # three are more than the server takes at once
        seen, timestep = conditions(windows, frames), torch.tensor(501)
        latents = torch.randn(windows * frames, 4, 8, 8)
        for guided in (False, True):
            network = UNetDenoiser(by_torch.unet)
            expected, _ = network(latents, timestep, network.prepare(seen), guided)
            predicted, _ = served.denoiser(latents, timestep, served.denoiser.prepare(seen), guided)
            assert distance(predicted, expected) < 1e-5
    pixels = torch.rand(5, 3, 64, 64) * 2 - 1
    encoded = by_torch.vae.encode(pixels).latent_dist.mode()
    assert distance(served.vae.encode(pixels).latent_dist.mode(), encoded) < 1e-5
    assert distance(served.vae.decode(encoded).sample, by_torch.vae.decode(encoded).sample) < 1e-5
    mel = torch.randn(1, 80, 3000)
    assert distance(served.audio_encoder(mel), by_torch.audio_encoder(mel)) < 1e-5
    regions = shared_regions(server.url)
    assert bool(regions) == is_shared
    del served
    assert not shared_regions(server.url)


def shared_regions(url: str) -> list[str]:
    """Names of the memory that callers share with the server."""
    import tritonclient.grpc

    client = tritonclient.grpc.InferenceServerClient(url)
    return list(client.get_system_shared_memory_status().regions)


Sync = Callable[..., list[Any]]


@pytest.fixture
def sync(goldens: Path, tmp_path: Path) -> Sync:
    """A run of 19 frames, so two windows."""
    with np.load(goldens / "align_io.npz") as arrays:
        frames, landmarks = arrays["frames"], arrays["landmarks"][0]
    clip = write_clip(tmp_path / "clip.mp4", [frames[i % len(frames)] for i in range(20)])
    speech = write_speech(tmp_path / "speech.wav", 0.77)

    def run_sync(loaded: Model | EngineModel, runtime: RuntimeSettings, name: str, **options: Any) -> list[Any]:
        out = tmp_path / "out" / name
        out.parent.mkdir(exist_ok=True)
        with LipSync(loaded, KnownFace(landmarks), runtime) as lipsync:
            lipsync(clip, speech, out, options.pop("settings", SETTINGS), **options)
        return read_images(out)

    return run_sync


@with_server
def test_one_run_and_then_four_at_once_are_torchs(sync: Sync, model: Path, by_torch: Model, server: Running) -> None:
    expected = sync(by_torch, RuntimeSettings(device="cpu", threads=2), "torch.mp4")

    def served(name: str) -> list[Any]:
        return sync(opened(model, server.url), settings(server.url), name)

    found = [served("one.mp4")]
    with ThreadPoolExecutor(4) as pool:
        found += pool.map(served, [f"{i}.mp4" for i in range(4)])
    for images in found:
        assert len(images) == len(expected) == 19
        assert min(map(psnr_db, images, expected)) > 60


@with_server
def test_a_model_that_is_not_the_servers_is_refused(model: Path, server: Running, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    weights = torch.load(other / "latentsync_unet.pt", weights_only=True)
    weights["state_dict"]["conv_in.bias"] += 1
    torch.save(weights, other / "latentsync_unet.pt")
    with pytest.raises(ModelError, match="other weights") as error:
        opened(other, server.url)
    assert error.value.fix is not None and "lipstream export triton" in error.value.fix
    words = json.loads((other / "lipstream.json").read_text())
    (other / "lipstream.json").write_text(json.dumps({**words, "name": "another"}))
    with pytest.raises(ModelError, match="no model 'another-unet'"):
        opened(other, server.url)


@with_server
def test_without_the_weights_the_server_is_believed(model: Path, server: Running, tmp_path: Path) -> None:
    (tmp_path / "thin").mkdir()
    shutil.copy(model / "lipstream.json", tmp_path / "thin")
    assert opened(tmp_path / "thin", server.url).source is None
    assert opened(model, server.url).source is not None


@with_server
def test_another_version_is_refused(model: Path, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    version = triton_model.GRAPH_VERSION
    monkeypatch.setattr(triton_model, "GRAPH_VERSION", version + 1)
    found = rf"in version {version}, written by lipstream .*; this one asks for {version + 1}"
    with pytest.raises(ModelError, match=found):
        opened(model, server.url)


@with_server
def test_what_a_server_does_not_do_is_refused(sync: Sync, model: Path, server: Running) -> None:
    served = opened(model, server.url)
    with pytest.raises(SettingsError, match="step_cache = 2"):
        sync(served, settings(server.url), "cached.mp4", settings=replace(SETTINGS, step_cache=2))
    with pytest.raises(SettingsError, match=r"computes in \(fp32\)"):
        opened(model, server.url, precision="bf16")
    with pytest.raises(ModelError, match="failed in the server"):
        served.audio_encoder(torch.zeros(1, 7, 3000))


@with_server
def test_a_server_that_dies_in_the_middle_leaves_no_file(
    sync: Sync, model: Path, repository: Path, tmp_path: Path
) -> None:
    with serving(repository, tmp_path) as running:
        served = opened(model, running.url)
        step = served.denoiser

        def dying(*given: Any) -> Any:
            running.process.kill()
            return step(*given)

        class Dying:
            prepare = staticmethod(step.prepare)
            __call__ = staticmethod(dying)

        with pytest.raises(ModelError, match="does not answer") as error:
            sync(replace(served, denoiser=Dying()), settings(running.url), "cut.mp4")
    assert error.value.file == running.url
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(server_folder() is None, reason="no tritonclient")
def test_a_server_that_is_away_is_one_line(model: Path, tmp_path: Path) -> None:
    clip, out = write_clip(tmp_path / "clip.mp4", [np.zeros((64, 64, 3), np.uint8)] * 2), tmp_path / "out.mp4"
    speech, url = write_speech(tmp_path / "speech.wav", 0.1), free_url()
    done = run("sync", clip, speech, "-o", out, "--model", model, "--engine", "triton", "--triton-url", url)
    line = error_line(done, 5)
    assert url in line and "does not answer" in line and "Fix: start tritonserver" in line
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


@pytest.mark.parametrize("url", ["localhost", "http://localhost:8001", "localhost:grpc", ":8001"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="HOST:PORT"):
        TritonServer(url)


def test_the_missing_client_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tritonclient.grpc", None)
    with pytest.raises(SettingsError, match="tritonclient") as error:
        TritonServer("localhost:8001")
    assert error.value.fix == "pip install 'lipstream[triton]'"


def test_the_configuration_of_a_graph() -> None:
    inputs = [
        ServedTensor("latents", "FP16", ("windows", "frames", 4, 8, 8)),
        ServedTensor("t", "FP32", ("windows", 1)),
    ]
    outputs = [ServedTensor("predicted", "FP16", ("windows", 2, "frames", 4, 8, 8))]
    text = config_text("m-unet", "onnxruntime", inputs, outputs, {"windows": 6, "frames": 16}, {"vae": '{"a": 1}'})
    for line in (
        'name: "m-unet"',
        'backend: "onnxruntime"',
        "max_batch_size: 6",
        'input { name: "latents" data_type: TYPE_FP16 dims: [ -1, 4, 8, 8 ] }',
        'input { name: "t" data_type: TYPE_FP32 dims: [ 1 ] }',
        'output { name: "predicted" data_type: TYPE_FP16 dims: [ 2, -1, 4, 8, 8 ] }',
        "dynamic_batching { }",
        '  inputs { key: "latents" value { data_type: TYPE_FP16 dims: [ 16, 4, 8, 8 ] zero_data: true } }',
        'parameters { key: "vae" value { string_value: "{\\"a\\": 1}" } }',
    ):
        assert line in text.splitlines()
    fixed = config_text("m-audio", "onnxruntime", [ServedTensor("mel", "FP32", (1, 80, 30))], outputs, {}, {})
    assert "max_batch_size: 0" in fixed and "dynamic_batching" not in fixed
    assert 'input { name: "mel" data_type: TYPE_FP32 dims: [ 1, 80, 30 ] }' in fixed
