"""TensorRT: what is round the library, with a stand-in that records its calls; the library itself on a GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
import torch

from helpers.tensorrt import stand_in
from lipstream import ModelError, RuntimeSettings, SettingsError
from lipstream.engines.cache import entries
from lipstream.engines.graphs import GRAPHS, greatest_lengths
from lipstream.engines.model import open_model
from lipstream.engines.tensorrt_runtime import TensorRt, build_plan
from lipstream.models.load import load_model
from lipstream.runtime.device import Dtypes

CUDA = torch.device("cuda")
LENGTHS = {"windows": 2, "frames": 16, "images": 4}


class OnCpu(TensorRt):
    """Runs sessions where there is no CUDA, with the stand-in."""

    def __init__(self, lengths: dict[str, int]) -> None:
        super().__init__(CUDA, lengths)

    def open(self, path: Path, cache: Path | None = None) -> Any:
        session: Any = super().open(path, cache)
        session._device = torch.device("cpu")
        return session


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return stand_in(monkeypatch)


def made(library: SimpleNamespace, kind: str) -> list[Any]:
    return [call[1] for call in library.calls if call[0] == kind]


def graph(exported: Path, name: str) -> Path:
    return exported / "onnx" / f"{name}.onnx"


def test_a_plan_is_strongly_typed_exact_and_for_the_lengths_in_use(exported: Path, library: SimpleNamespace) -> None:
    build_plan(graph(exported, "unet_head_guided"), LENGTHS, CUDA)
    assert made(library, "create_network") == [1 << 1]
    assert made(library, "clear_flag") == ["TF32"]
    (shapes,) = made(library, "profile")
    assert shapes["latents"] == ((1, 1, 4, 8, 8), (2, 16, 4, 8, 8), (2, 16, 4, 8, 8))
    assert shapes["timestep"] == ((1,), (2,), (2,))
    assert shapes["deep"] == ((2, 1, 32, 8, 8), (4, 16, 32, 8, 8), (4, 16, 32, 8, 8))


def test_every_graph_has_a_profile_for_each_of_its_inputs(exported: Path, library: SimpleNamespace) -> None:
    for name in GRAPHS:
        build_plan(graph(exported, name), greatest_lengths(16, 64, 1), CUDA)
        inputs = onnxruntime.InferenceSession(graph(exported, name)).get_inputs()
        assert set(made(library, "profile")[-1]) == {one.name for one in inputs}


def test_plans_and_timings_are_kept_by_version_device_and_lengths(
    exported: Path, library: SimpleNamespace, cache: Path
) -> None:
    for _ in range(2):
        OnCpu(LENGTHS).open(graph(exported, "vae_encoder"), cache / "small-tensorrt")
    assert made(library, "build") == ["vae_encoder"]
    OnCpu({**LENGTHS, "images": 8}).open(graph(exported, "vae_encoder"), cache / "small-tensorrt")
    assert made(library, "timing_cache") == [b"", b"t"]
    (entry,) = entries()
    assert entry.name == "small-tensorrt-11.4.0_NVIDIA_Stand_in_9000"
    names = sorted(path.name for path in entry.path.iterdir())
    assert names == [
        "timings.cache",
        "vae_encoder-frames16-images4-windows2.plan",
        "vae_encoder-frames16-images8-windows2.plan",
    ]


@torch.inference_mode()
def test_a_session_gives_torchs_memory_shapes_and_stream(exported: Path, library: SimpleNamespace) -> None:
    session = OnCpu(LENGTHS).open(graph(exported, "vae_encoder"))
    assert session.inputs == {"pixels"}
    pixels = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    found = session({"pixels": pixels, "not_an_input": pixels})["latents"]
    (expected,) = onnxruntime.InferenceSession(graph(exported, "vae_encoder")).run(
        None, {"pixels": pixels.float().numpy()}
    )
    assert torch.equal(found, torch.from_numpy(expected))
    assert library.calls[-3:] == [("wait",), ("execute", 77, {"pixels": (3, 3, 64, 64)}), ("record",)]


def test_what_tensorrt_refuses_is_one_error(
    exported: Path, library: SimpleNamespace, tmp_path: Path, cache: Path
) -> None:
    session = OnCpu(LENGTHS).open(graph(exported, "vae_encoder"))
    (tmp_path / "foreign.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match="TensorRT cannot load it"):
        build_plan(tmp_path / "foreign.onnx", LENGTHS, CUDA)
    library.refuses = True
    with pytest.raises(ModelError, match="no implementation found"):
        build_plan(graph(exported, "vae_encoder"), LENGTHS, CUDA)
    with pytest.raises(ModelError, match="does not take pixels of shape"):
        session({"pixels": torch.zeros(9, 3, 64, 64)})


def test_a_damaged_plan_and_a_cache_that_is_a_file_are_named(
    exported: Path, library: SimpleNamespace, cache: Path
) -> None:
    engine = OnCpu(LENGTHS)
    engine.open(graph(exported, "vae_encoder"), cache / "small-tensorrt")
    for plan in cache.rglob("*.plan"):
        plan.write_bytes(b"damaged")
    with pytest.raises(ModelError, match="cannot load the plan") as error:
        engine.open(graph(exported, "vae_encoder"), cache / "small-tensorrt")
    assert error.value.fix is not None and "lipstream engines clear" in error.value.fix
    (cache / "full").write_text("not a folder")
    with pytest.raises(ModelError, match="cannot be written") as error:
        OnCpu(LENGTHS).open(graph(exported, "vae_encoder"), cache / "full" / "small-tensorrt")
    assert error.value.fix is not None and "LIPSTREAM_CACHE" in error.value.fix
    assert not list(cache.rglob("*.part"))


def test_without_a_gpu_or_the_library_it_is_refused(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes, runtime = Dtypes(*3 * (torch.float32,)), RuntimeSettings(device="cpu", engine="tensorrt")
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(SettingsError, match="tensorrt") as error:
        open_model(exported, runtime, torch.device("cpu"), dtypes, 0)
    assert error.value.fix == "pip install 'lipstream[tensorrt]'"
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", SimpleNamespace(__version__="11.4.0"))
    with pytest.raises(SettingsError, match="needs an NVIDIA GPU"):
        open_model(exported, runtime, torch.device("cpu"), dtypes, 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="needs an NVIDIA GPU"):
        open_model(exported, runtime, CUDA, dtypes, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.inference_mode()
def test_each_network_on_a_gpu_is_torchs(model: Path, exported: Path) -> None:
    pytest.importorskip("tensorrt")
    dtypes = Dtypes(*3 * (torch.float32,))
    built = open_model(exported, RuntimeSettings(device="cuda", engine="tensorrt", batch=2), CUDA, dtypes, 0)
    by_torch = load_model(model, CUDA, torch.float32)
    pixels = torch.rand(4, 3, 64, 64, device=CUDA) * 2 - 1
    latents = by_torch.vae.encode(pixels).latent_dist.mode()
    mel = torch.randn(1, 80, 3000, device=CUDA)
    for found, expected in (
        (built.vae.encode(pixels).latent_dist.mode(), latents),
        (built.vae.decode(latents).sample, by_torch.vae.decode(latents).sample),
        (built.audio_encoder(mel), by_torch.audio_encoder(mel)),
    ):
        assert (found - expected).norm() / expected.norm() < 1e-3
