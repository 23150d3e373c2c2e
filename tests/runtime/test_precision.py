"""Each network in its own precision, and what happens where a result is not finite."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.models import make_model_folder
from helpers.pipeline import FAST, KnownFace, psnr_db, read_images, write_clip, write_speech
from helpers.unet import make_inputs, make_unet
from lipstream import LipSync, ModelError, RuntimeSettings, SettingsError
from lipstream.models.load import load_model
from lipstream.models.quantized_layers import Float8Linear, hold_float8
from lipstream.runtime.cudnn import tuned_convolutions
from lipstream.runtime.device import Dtypes, dtypes, quick_precision
from lipstream.runtime.precision import PrecisionFallback

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# A convolution before a group norm in each network: a million times its weights is beyond fp16's range, and the norm
# takes it out again.
UNET = "down_blocks.0.resnets.0.conv1"
VAE_ENCODER, VAE_DECODER = "encoder.mid_block.resnets.0.conv1", "decoder.mid_block.resnets.0.conv1"
TOO_MUCH = 1e6

Sync = Callable[..., Any]


@pytest.fixture
def folder(goldens: Path, tmp_path: Path) -> Path:
    return make_model_folder(goldens, tmp_path / "model")


@pytest.fixture
def sync(goldens: Path, folder: Path, tmp_path: Path) -> Sync:
    """A run of 19 frames, so two windows, with the model in `folder`."""
    with np.load(goldens / "align_io.npz") as arrays:
        frames, landmarks = arrays["frames"], arrays["landmarks"][0]
    clip = write_clip(tmp_path / "clip.mp4", [frames[i % len(frames)] for i in range(20)])
    speech = write_speech(tmp_path / "speech.wav", 0.77)

    def run(name: str, **runtime: Any) -> Any:
        settings = RuntimeSettings(device="cpu", threads=2, **runtime)
        model = load_model(folder, CPU, dtypes(settings, CPU), quantize=settings.quantize)
        return LipSync(model, KnownFace(landmarks), settings)(clip, speech, tmp_path / name, FAST)

    return run


def change_unet(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "latentsync_unet.pt"
    content = torch.load(path, weights_only=True)
    change(content["state_dict"])
    torch.save(content, path)


def change_vae(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def change_audio_encoder(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "whisper" / "tiny.pt"
    content = torch.load(path, weights_only=True)
    change(content["model_state_dict"])
    torch.save(content, path)


def overflowing(*layers: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for layer in layers:
            tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"].float() * TOO_MUCH

    return change


def overflowing_between(tensors: dict[str, torch.Tensor]) -> None:
    """The audio encoder has no group norm: what the first convolution has too much of, the second takes out."""
    tensors["encoder.conv1.weight"] = tensors["encoder.conv1.weight"].float() * TOO_MUCH
    tensors["encoder.conv2.weight"] = tensors["encoder.conv2.weight"].float() / TOO_MUCH


def test_auto_is_the_published_half_precision_on_cuda_and_exact_elsewhere() -> None:
    assert dtypes(RuntimeSettings(), CUDA) == Dtypes(torch.float16, torch.float16, torch.float16)
    assert dtypes(RuntimeSettings(), CPU) == Dtypes(torch.float32, torch.float32, torch.float32)


def test_each_network_has_a_precision_of_its_own() -> None:
    mixed = RuntimeSettings(precision="bf16", vae_precision="fp32")
    assert dtypes(mixed, CPU) == Dtypes(torch.bfloat16, torch.float32, torch.bfloat16)
    decided = RuntimeSettings(precision="fp32", vae_precision="auto", audio_precision="bf16")
    assert dtypes(decided, CUDA) == Dtypes(torch.float32, torch.float16, torch.bfloat16)


def test_fp8_is_refused_where_it_does_not_run_or_pay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"cpu does not multiply float8.*use fp16 or bf16"):
        dtypes(RuntimeSettings(precision="fp8"), CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    with pytest.raises(SettingsError, match=r"slower than fp16 unless it is compiled\. Fix: add --compile"):
        dtypes(RuntimeSettings(precision="fp8"), CUDA)
    assert dtypes(RuntimeSettings(precision="fp8", compile=True), CUDA).unet == torch.float8_e4m3fn
    with pytest.raises(SettingsError, match="vae_precision = 'fp8'"):
        RuntimeSettings(vae_precision="fp8")
    with pytest.raises(SettingsError, match="use one"):
        load_model(folder, CPU, Dtypes(torch.float8_e4m3fn, torch.float16, torch.float16), quantize="int8")


def test_convolutions_are_tuned_while_runs_last_and_on_cuda_alone() -> None:
    cudnn = torch.backends.cudnn
    before = (cudnn.benchmark, cudnn.allow_tf32)
    with tuned_convolutions(CPU):
        assert (cudnn.benchmark, cudnn.allow_tf32) == before
    first, second = tuned_convolutions(CUDA), tuned_convolutions(CUDA)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert (cudnn.benchmark, cudnn.allow_tf32) == (True, False)
    second.__exit__(None, None, None)
    assert (cudnn.benchmark, cudnn.allow_tf32) == before


def test_fp8_layers_come_near_the_layers_they_stand_for() -> None:
    unet, inputs = make_unet(), make_inputs(1, 4)
    words = inputs.channels.bfloat16(), inputs.audio.bfloat16(), 4
    with torch.inference_mode():
        expected = unet.step(inputs.latents, torch.tensor(500), unet.prepare(inputs.channels, inputs.audio, 4))[0]
        fast = make_unet().to(torch.bfloat16)
        hold_float8(fast)
        assert sum(isinstance(layer, Float8Linear) for layer in fast.modules()) > 50
        found = fast.step(inputs.latents.bfloat16(), torch.tensor(500), fast.prepare(*words))[0]
    assert float((found.float() - expected).pow(2).mean().sqrt() / expected.std()) < 0.1


def test_an_fp8_layer_takes_zeros() -> None:
    linear = torch.nn.Linear(32, 16).to(torch.bfloat16)
    torch.nn.init.zeros_(linear.weight)  # a motion module's last layer starts so
    holder = torch.nn.Sequential(linear)
    hold_float8(holder)
    with torch.inference_mode():
        for rows in (torch.zeros(4, 32, dtype=torch.bfloat16), torch.ones(4, 32, dtype=torch.bfloat16)):
            torch.testing.assert_close(holder(rows), linear.bias.expand(4, -1))


def test_bf16_on_a_processor_without_it_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for has_bf16, settings in product((True, False), (RuntimeSettings(), RuntimeSettings(vae_precision="bf16"))):
        monkeypatch.setattr("lipstream.runtime.device.computes_bf16", lambda device, has=has_bf16: has)
        caplog.clear()
        dtypes(settings, CPU)
        assert ("bf16" in caplog.text) == (settings.vae_precision == "bf16" and not has_bf16)


def test_live_speech_takes_bf16_where_the_processor_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_bf16 in (True, False):
        monkeypatch.setattr("lipstream.runtime.device.computes_bf16", lambda device, has=has_bf16: has)
        assert quick_precision(RuntimeSettings(device="cpu")).precision == ("bf16" if has_bf16 else "auto")
        for chosen in (RuntimeSettings(device="cpu", precision="fp32"), RuntimeSettings(engine="onnxruntime")):
            assert quick_precision(chosen) == chosen


def test_networks_in_different_precisions_run_together(sync: Sync, tmp_path: Path) -> None:
    exact = sync("exact.mp4")
    used = sync("mixed.mp4", precision="bf16", vae_precision="fp32", audio_precision="bf16").settings
    assert [used[name] for name in ("precision", "vae_precision", "audio_precision")] == [
        "bfloat16",
        "float32",
        "bfloat16",
    ]
    assert exact.settings["precision"] == exact.settings["vae_precision"] == "float32"
    one, other = read_images(tmp_path / "exact.mp4"), read_images(tmp_path / "mixed.mp4")
    assert 30 < min(psnr_db(a, b) for a, b in zip(one, other, strict=True)) < 80


@pytest.mark.parametrize(
    ("network", "change", "windows"),
    [
        ("U-Net", lambda folder: change_unet(folder, overflowing(UNET)), 2),
        ("VAE", lambda folder: change_vae(folder, overflowing(VAE_ENCODER)), 2),
        ("VAE", lambda folder: change_vae(folder, overflowing(VAE_DECODER)), 2),
        ("audio encoder", lambda folder: change_audio_encoder(folder, overflowing_between), 1),
    ],
)
def test_what_overflows_is_computed_again_in_full_precision(
    sync: Sync,
    folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    network: str,
    change: Callable[[Path], None],
    windows: int,
) -> None:
    change(folder)
    sync("exact.mp4", precision="fp32")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        sync("half.mp4", precision="fp16")
    said = [record.getMessage() for record in caplog.records if network in record.getMessage()]
    ends = ["computed again in float32", "it stays from here on in float32"]
    assert len(said) == windows  # windows are computed at the same time, so either may be the first
    for message, end in zip(said, ends, strict=False):
        assert f"the {network}'s result in float16 is not finite; {end}" in message
    one, other = read_images(tmp_path / "exact.mp4"), read_images(tmp_path / "half.mp4")
    assert len(one) == len(other) == 19
    assert min(psnr_db(a, b) for a, b in zip(one, other, strict=True)) > 40


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_no_number_in_full_precision_is_an_error(
    sync: Sync, folder: Path, tmp_path: Path, precision: str
) -> None:
    change_unet(folder, lambda tensors: tensors["conv_out.bias"].fill_(float("nan")))
    with pytest.raises(ModelError, match=r"frames 0 to 15: the U-Net's result is not finite in float32 either"):
        sync("out.mp4", precision=precision)
    assert not (tmp_path / "out.mp4").exists()


def fallback(loaded: list[tuple[torch.dtype, str]], device: torch.device = CPU) -> PrecisionFallback[str]:
    def load(dtype: torch.dtype, device: torch.device) -> str:
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        loaded.append((dtype, device.type))
        return f"{dtype} on {device}"

    return PrecisionFallback("U-Net", "first", torch.float8_e4m3fn, device, load)


def test_higher_precision_is_loaded_on_first_need_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    loaded: list[tuple[torch.dtype, str]] = []
    unet = fallback(loaded)
    attempts = unet.attempts(0, 15)
    assert next(attempts) == "first"
    assert not loaded
    assert [next(attempts), next(attempts)] == ["torch.float16 on cpu", "torch.float32 on cpu"]
    assert loaded == [(torch.float16, "cpu"), (torch.float32, "cpu")]
    with pytest.raises(ModelError, match="frames 0 to 15: the U-Net's result is not finite in float32 either"):
        next(attempts)
    again = unet.attempts(16, 31)
    assert [next(again), next(again)] == ["first", "torch.float16 on cpu"]
    assert len(loaded) == 2
    # Twice in float8: from here on the network stays in float16, without another warning.
    assert "frames 16 to 31: the U-Net's result in float8_e4m3fn is not finite; it stays" in caplog.messages[-1]
    caplog.clear()
    assert next(unet.attempts(32, 47)) == "torch.float16 on cpu"
    assert not caplog.records


def test_higher_precision_that_does_not_fit_on_the_device_runs_on_the_cpu(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lipstream.runtime.precision.free_caches", lambda device: None)
    loaded: list[tuple[torch.dtype, str]] = []
    attempts = fallback(loaded, CUDA).attempts(0, 15)
    assert [next(attempts), next(attempts)] == ["first", "torch.float16 on cpu"]
    assert "cuda: no memory left for the U-Net in float16; it runs on the CPU" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.gpu
def test_fp8_on_the_gpu_comes_near_half_precision(folder: Path) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no float8 on this device")
    chosen = dtypes(RuntimeSettings(precision="fp8", compile=True), CUDA)
    assert chosen == Dtypes(torch.float8_e4m3fn, torch.float16, torch.float16)
    exact, fast = load_model(folder, CUDA, torch.float16).unet, load_model(folder, CUDA, chosen).unet
    assert any(isinstance(layer, Float8Linear) for layer in fast.modules())
    inputs = make_inputs(1, 4, exact.config)
    given = inputs.channels.cuda().half(), inputs.audio.cuda().half(), 4
    with torch.inference_mode():
        steps = [u.step(inputs.latents.cuda().half(), torch.tensor(500), u.prepare(*given))[0] for u in (exact, fast)]
    assert float((steps[1] - steps[0]).float().pow(2).mean().sqrt() / steps[0].float().std()) < 0.1
