"""Enlarging and convolving at once: the same numbers, in every place that enlarges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.unet import make_inputs, make_unet
from lipstream.diffusion import conditioning
from lipstream.models.load import load_model
from lipstream.models.upsample_conv import EnlargingConv, merge_enlargements

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(2, 5, 6, 4), (1, 5, 1, 1), (1, 5, 1, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_convolution_of_the_enlarged_image(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(5, 3, 3, padding=1, bias=bias), torch.randn(shape)
    with torch.inference_mode():
        expected = conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        torch.testing.assert_close(EnlargingConv(conv)(x), expected, rtol=0, atol=1e-5)


def test_other_sizes_than_twice_are_enlarged_to_first() -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(4, 4, 3, padding=1), torch.randn(1, 4, 3, 3)
    with torch.inference_mode():
        ours = EnlargingConv(conv)(x, size=(5, 6))
        assert torch.equal(ours, conv(F.interpolate(x, size=(5, 6))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lower_precision_keeps_its_dtype(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(8, 8, 3, padding=1), torch.randn(1, 8, 4, 4)
    with torch.inference_mode():
        expected = conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        ours = EnlargingConv(conv.to(dtype))(x.to(dtype))
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.float(), expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("size", [8, 6])  # of 6, three levels have 6, 3 and 2 pixels
def test_a_unet_predicts_the_same(size: int) -> None:
    plain, merged, inputs = make_unet(), make_unet(), make_inputs(1, 3, size=size)
    merge_enlargements(merged)
    assert sum(isinstance(module, EnlargingConv) for module in merged.modules()) == 2
    given = (torch.cat((inputs.latents, inputs.channels), 1), torch.tensor(7), inputs.audio, inputs.num_frames)
    with torch.inference_mode():
        torch.testing.assert_close(merged(*given), plain(*given), rtol=0, atol=1e-5)


def test_the_bundled_model_decodes_the_same_and_8_bit_layers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    merged = load_model("tiny", CPU, torch.float32)
    monkeypatch.setattr("lipstream.models.load.merge_enlargements", lambda network: None)
    plain = load_model("tiny", CPU, torch.float32)
    latents = torch.randn(1, plain.config.unet.out_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        pictures = [conditioning.decode(model.vae, latents) for model in (plain, merged)]
    torch.testing.assert_close(pictures[1], pictures[0], rtol=0, atol=1e-4)
    assert [_enlarging(model.vae) for model in (plain, merged)] == [0, 3]
    monkeypatch.undo()
    assert _enlarging(load_model("tiny", CPU, torch.float32, quantize="int8").vae) == 0


def _enlarging(vae: Any) -> int:
    return sum(isinstance(module, EnlargingConv) for module in vae.modules())
