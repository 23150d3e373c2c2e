"""int8 weights: how near they stay, what they save, and that a saved model is the one quantised while loading."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from helpers.cli import error_line, run
from helpers.models import make_model_folder
from helpers.pipeline import FAST, KnownFace, psnr_db, read_images, write_clip, write_speech
from helpers.unet import make_inputs, make_unet
from lipstream import LipSync, ModelError, OutputError, RuntimeSettings
from lipstream.models.load import Model, load_model, verify_model
from lipstream.models.quantize import write_quantized
from lipstream.models.quantized_layers import (
    Int8Conv,
    dequantize_weight,
    hold_int8,
    int8_tensors,
    quantize_weight,
)
from lipstream.runtime.device import dtypes

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        yield


@pytest.fixture
def folder(goldens: Path, tmp_path: Path) -> Path:
    return make_model_folder(goldens, tmp_path / "model")


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def snr_db(exact: Tensor, near: Tensor) -> float:
    return float(10 * torch.log10(exact.square().sum() / (near - exact).square().sum()))


def in_int8(layer: nn.Module, *, dynamic: bool = False) -> Any:
    """The layer with int8 weights, as a loaded network holds it."""
    held = nn.ModuleDict({"layer": layer})
    tensors = int8_tensors(held, held.state_dict())
    hold_int8(held, dynamic=dynamic)
    held.load_state_dict(tensors, assign=True)
    return held["layer"]


def held_bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


@pytest.mark.parametrize("shape", [(24, 40), (24, 40, 3), (24, 40, 3, 3)])
def test_a_weight_comes_back_within_half_a_step(shape: tuple[int, ...]) -> None:
    weight = random(*shape) * torch.logspace(-6, 3, 24).view(-1, *[1] * (len(shape) - 1))
    held, scale = quantize_weight(weight)
    assert (held.dtype, held.shape, scale.dtype) == (torch.int8, weight.shape, torch.float32)
    back = dequantize_weight(held, scale, torch.float32)
    assert bool(((back - weight).abs() <= scale * 0.5001).all())
    assert min(snr_db(one, other) for one, other in zip(weight, back, strict=True)) > 38


def test_channels_of_zeros_stay_zero_and_what_is_no_number_shows() -> None:
    weight = random(3, 8)
    weight[0], weight[1, 2], weight[2, 3] = 0, torch.nan, torch.inf
    back = dequantize_weight(*quantize_weight(weight), torch.float32)
    assert bool((back[0] == 0).all())
    assert not torch.isfinite(back[1]).any()
    assert not torch.isfinite(back[2]).all()


@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_layer_is_the_layer_with_its_weights_rounded(bias: bool) -> None:
    x = random(2, 8, 10, 10)
    conv = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=bias)
    held = in_int8(conv)
    assert isinstance(held, Int8Conv)
    expected = F.conv2d(x, dequantize_weight(held.weight, held.weight_scale, x.dtype), conv.bias, stride=2, padding=1)
    assert torch.equal(held(x), expected)
    assert snr_db(conv(x), expected) > 38

    linear = nn.Linear(10, 24, bias=bias)
    held = in_int8(linear)
    expected = F.linear(x, dequantize_weight(held.weight, held.weight_scale, x.dtype), linear.bias)
    assert torch.equal(held(x), expected)
    assert snr_db(linear(x), expected) > 38

    conv1d = nn.Conv1d(8, 16, 3, padding=1, bias=bias)
    assert snr_db(conv1d(x[:, :, 0]), in_int8(conv1d)(x[:, :, 0])) > 38


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_inputs_come_near_and_take_rows_enough(dtype: torch.dtype) -> None:
    linear, x = nn.Linear(64, 32), random(4, 16, 64)
    held = in_int8(linear, dynamic=True)
    assert held.bias is not None
    held.bias.data = held.bias.data.to(dtype)
    found = held(x.to(dtype))
    assert (found.dtype, found.shape) == (dtype, (4, 16, 32))
    assert snr_db(linear(x), found.float()) > 32
    weights_only = in_int8(linear)
    assert not torch.equal(found.float(), weights_only(x))
    assert torch.equal(in_int8(linear, dynamic=True)(x[:1]), weights_only(x[:1])), "16 rows are too few"
    x[0, 0, 0] = torch.inf
    assert not torch.isfinite(in_int8(linear, dynamic=True)(x)[0, 0]).all()


def test_a_unet_of_int8_weights_predicts_nearly_the_same_in_less_memory() -> None:
    exact, inputs = make_unet(), make_inputs(1, 4)
    tensors = int8_tensors(exact, exact.state_dict())
    fused, apart = make_unet(), make_unet()
    for unet in (fused, apart):
        hold_int8(unet, dynamic=False)
        unet.load_state_dict(tensors, assign=True)
    fused.fuse_projections()
    with torch.inference_mode():
        steps = [
            unet.step(inputs.latents, torch.tensor(500), unet.prepare(inputs.channels, inputs.audio, 4))[0]
            for unet in (exact, fused, apart)
        ]
    assert snr_db(steps[0], steps[1]) > 25
    assert torch.allclose(steps[1], steps[2], atol=1e-5)
    assert held_bytes(fused) < 0.35 * held_bytes(exact)
    assert not any(type(layer) is nn.Linear for layer in fused.modules())
    assert [name for name, layer in fused.named_modules() if type(layer) is nn.Conv2d] == ["conv_in", "conv_out"]


def networks(model: Model) -> tuple[nn.Module, ...]:
    return model.unet, model.vae, model.audio_encoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_is_the_one_quantised_while_loading(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    files = write_quantized(folder, tmp_path / "small")
    assert [str(file.path.relative_to(tmp_path / "small")) for file in files] == [
        "unet.safetensors",
        "audio_encoder.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert {path.suffix for path in (tmp_path / "small").rglob("*") if path.is_file()} == {".safetensors", ".json"}
    words = json.loads((tmp_path / "small" / "lipstream.json").read_text())
    assert (words["name"], words["quantized"]) == ("small-int8", "int8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "small"]

    on_the_fly, saved = load_model(folder, CPU, dtype, quantize="int8"), load_model(tmp_path / "small", CPU, dtype)
    assert saved.source.quantize == on_the_fly.source.quantize == "int8"
    for one, other in zip(networks(on_the_fly), networks(saved), strict=True):
        assert one.state_dict().keys() == other.state_dict().keys()
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
        assert {p.dtype for p in one.parameters()} == {p.dtype for p in other.parameters()} == {dtype}
    exact = load_model(folder, CPU, dtype)
    assert sum(map(held_bytes, networks(saved))) < 0.75 * sum(map(held_bytes, networks(exact)))
    before = sum(file.size_bytes for file in verify_model(folder))
    assert sum(file.size_bytes for file in files) < 0.55 * before


def test_a_saved_model_syncs_like_the_one_it_was_made_from(goldens: Path, folder: Path, tmp_path: Path) -> None:
    with np.load(goldens / "align_io.npz") as arrays:
        frames, landmarks = arrays["frames"], arrays["landmarks"][0]
    clip = write_clip(tmp_path / "clip.mp4", [frames[i % len(frames)] for i in range(8)])
    speech = write_speech(tmp_path / "speech.wav", 0.32)
    small = write_quantized(folder, tmp_path / "small")[0].path.parent
    used = {}
    for name, model, quantize in (
        ("exact", folder, "none"),
        ("fly", folder, "int8"),
        ("saved", small, "none"),
        ("dynamic", small, "int8-dynamic"),
    ):
        settings = RuntimeSettings(device="cpu", threads=1, quantize=quantize)
        loaded = load_model(model, CPU, dtypes(settings, CPU), quantize=settings.quantize)
        result = LipSync(loaded, KnownFace(landmarks), settings)(clip, speech, tmp_path / f"{name}.mp4", FAST)
        used[name] = result.settings["quantize"]
    assert used == {"exact": "none", "fly": "int8", "saved": "int8", "dynamic": "int8-dynamic"}
    exact, fly, saved, dynamic = (read_images(tmp_path / f"{name}.mp4") for name in used)
    np.testing.assert_array_equal(fly, saved)
    assert 30 < min(psnr_db(a, b) for a, b in zip(exact, saved, strict=True)) < 80
    assert min(psnr_db(a, b) for a, b in zip(exact, dynamic, strict=True)) > 28


def change(folder: Path, edit: Any) -> None:
    path = folder / "unet.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def test_a_broken_int8_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    name = "mid_block.resnets.0.conv1.weight"
    write_quantized(folder, small := tmp_path / "small")
    change(small, lambda tensors: tensors.update({name: tensors[name].float()}))
    with pytest.raises(ModelError, match=rf"unet.safetensors: tensor {name} is float32, the model needs int8"):
        load_model(small, CPU, torch.float32)
    change(small, lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    change(small, lambda tensors: tensors.pop(f"{name}_scale"))
    with pytest.raises(ModelError, match=rf"1 missing tensors: {name}_scale"):
        verify_model(small)
    words = json.loads((small / "lipstream.json").read_text())
    (small / "lipstream.json").write_text(json.dumps({**words, "quantized": "int3"}))
    with pytest.raises(ModelError, match="quantized 'int3' is not known"):
        load_model(small, CPU, torch.float32)


def test_what_cannot_be_quantised_is_refused(folder: Path, tmp_path: Path) -> None:
    write_quantized(folder, tmp_path / "small")
    with pytest.raises(ModelError, match="int8 already"):
        write_quantized(tmp_path / "small", tmp_path / "smaller")
    with pytest.raises(OutputError, match="already exists"):
        write_quantized(folder, tmp_path / "small")
    (folder / "latentsync_unet.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match="not a checkpoint of torch"):
        write_quantized(folder, tmp_path / "other")
    with pytest.raises(OutputError, match="cannot be written"):
        write_quantized("tiny", folder / "lipstream.json" / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "small"]


def test_the_bundled_model_becomes_a_folder_of_int8_weights(tmp_path: Path) -> None:
    done = run("models", "quantize", "tiny", "-o", tmp_path / "tiny-int8")
    assert done.returncode == 0, done.stderr
    verified = run("models", "verify", tmp_path / "tiny-int8")
    assert verified.stdout == done.stdout
    assert [line.split()[0] for line in verified.stdout.splitlines()] == ["ok"] * 3
    assert "already exists" in error_line(run("models", "quantize", "tiny", "-o", tmp_path / "tiny-int8"), 6)
