"""The U-Net's exact savings: the same numbers as when all is computed at every step, for both branches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.unet import SMALL, Inputs, make_inputs, make_unet
from lipstream.models.group_norm import PooledGroupNorm, replace_group_norms
from lipstream.models.load import load_model
from lipstream.models.unet import UNet
from lipstream.models.unet_config import UNetConfig
from lipstream.models.unet_layers import KeysValues, attend

TIMESTEP = torch.tensor(401)
ATTENTION_LATER = replace(SMALL, down_block_types=("DownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"))
ATTENTION_IN_THE_MIDDLE = replace(
    SMALL, down_block_types=("DownBlock3D",) * 3, up_block_types=("UpBlock3D",) * 3, motion_module_mid_block=True
)


@pytest.fixture(scope="module")
def unet() -> UNet:
    return make_unet()


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def both_branches_in_full(unet: UNet, inputs: Inputs) -> Tensor:
    """Guidance as published: zero audio and audio as one batch of twice the windows."""
    sample = torch.cat((inputs.latents, inputs.channels), 1)
    audio = torch.cat((torch.zeros_like(inputs.audio), inputs.audio))
    return unet(torch.cat((sample, sample)), TIMESTEP, audio, inputs.num_frames)


def assert_same(ours: Tensor, expected: Tensor) -> None:
    assert ours.shape == expected.shape
    assert float((ours - expected).abs().max()) <= 1e-4


@contextmanager
def recorded_frames(module: torch.nn.Module, counts: list[int]) -> Iterator[None]:
    """Record how many frames a module is called with."""

    def note(_: Any, args: tuple[Tensor, ...]) -> None:
        counts.append(len(args[0]))

    handle = module.register_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("config", [SMALL, ATTENTION_LATER, ATTENTION_IN_THE_MIDDLE])
@pytest.mark.parametrize(("windows", "num_frames"), [(1, 16), (3, 5), (2, 1)])
def test_two_branches_from_one_call(config: UNetConfig, windows: int, num_frames: int) -> None:
    unet, inputs = make_unet(config), make_inputs(windows, num_frames, config)
    prepared = unet.prepare(inputs.channels, inputs.audio, num_frames)
    predicted = unet.step(inputs.latents, TIMESTEP, prepared, True)[0]
    assert_same(predicted, both_branches_in_full(unet, inputs))
    unconditional, conditional = predicted.chunk(2)
    assert float((unconditional - conditional).abs().max()) > 1e-3
    assert_same(unet.step(inputs.latents, TIMESTEP, prepared)[0], conditional)


def test_branches_given_apart_stay_apart(unet: UNet) -> None:
    inputs = make_inputs(2, 4)
    prepared = unet.prepare(inputs.channels, inputs.audio, 4)
    apart = replace(prepared, conv_in_features=torch.cat((prepared.conv_in_features,) * 2))
    latents = torch.cat((inputs.latents, inputs.latents))
    assert_same(unet.step(latents, TIMESTEP, apart, True)[0], both_branches_in_full(unet, inputs))


def test_what_is_prepared_serves_every_step(unet: UNet) -> None:
    inputs = make_inputs(1, 4)
    prepared = unet.prepare(inputs.channels, inputs.audio, 4)
    for index, timestep in enumerate((torch.tensor(801), torch.tensor(401), torch.tensor(1))):
        latents = make_inputs(1, 4, seed=10 + index).latents
        expected = unet(torch.cat((latents, inputs.channels), 1), timestep, inputs.audio, 4)
        assert_same(unet.step(latents, timestep, prepared)[0], expected)


def test_the_first_convolution_in_two_parts(unet: UNet) -> None:
    inputs = make_inputs(1, 3)
    whole = unet.conv_in(torch.cat((inputs.latents, inputs.channels), 1))
    noisy = torch.nn.functional.conv2d(inputs.latents, unet.conv_in.weight[:, :4], padding=1)
    assert_same(unet.conv_in_features(inputs.channels) + noisy, whole)


def test_a_step_skips_what_is_shared_or_prepared(unet: UNet) -> None:
    inputs = make_inputs(2, 4)
    prepared = unet.prepare(inputs.channels, inputs.audio, 4)
    block = unet.down_blocks[0]
    first: Any = block.attentions["0"].transformer_blocks[0]
    second: Any = block.attentions["1"].transformer_blocks[0]
    keys: list[int] = []
    shared: list[int] = []
    split: list[int] = []
    attended: list[int] = []
    with (
        recorded_frames(first.attn2.to_k, keys),
        recorded_frames(block.resnets[0], shared),
        recorded_frames(first.attn1, shared),
        recorded_frames(first.ff, split),
        recorded_frames(second.attn1, split),
        recorded_frames(first.attn2, attended),
        recorded_frames(second.attn2, attended),
    ):
        unet.step(inputs.latents, TIMESTEP, prepared, True)
    assert keys == []
    assert shared == [8, 8]
    assert split == [16, 16]
    assert attended == [8, 8]


def test_windows_of_a_batch_do_not_touch_one_another(unet: UNet) -> None:
    inputs = make_inputs(3, 4)
    prepared = unet.prepare(inputs.channels, inputs.audio, 4)
    unconditional, conditional = unet.step(inputs.latents, TIMESTEP, prepared, True)[0].chunk(2)
    for i in range(3):
        one = slice(4 * i, 4 * i + 4)
        alone = unet.prepare(inputs.channels[one], inputs.audio[one], 4)
        expected = unet.step(inputs.latents[one], TIMESTEP, alone, True)[0]
        assert_same(torch.cat((unconditional[one], conditional[one])), expected)


def test_a_timestep_per_window(unet: UNet) -> None:
    inputs = make_inputs(2, 4)
    prepared = unet.prepare(inputs.channels, inputs.audio, 4)
    both = unet.step(inputs.latents, torch.tensor([801, 1]), prepared)[0]
    for i, timestep in enumerate((801, 1)):
        alone = unet.step(inputs.latents, torch.tensor(timestep), prepared)[0]
        assert_same(both[4 * i : 4 * i + 4], alone[4 * i : 4 * i + 4])


@pytest.mark.parametrize("config", [SMALL, ATTENTION_LATER, ATTENTION_IN_THE_MIDDLE])
@pytest.mark.parametrize("guided", [False, True])
def test_deep_features_given_back_give_the_same_step(config: UNetConfig, guided: bool) -> None:
    unet, inputs = make_unet(config), make_inputs(2, 4, config)
    prepared = unet.prepare(inputs.channels, inputs.audio, 4)
    predicted, deep = unet.step(inputs.latents, TIMESTEP, prepared, guided)
    again, same = unet.step(inputs.latents, TIMESTEP, prepared, guided, deep)
    assert torch.equal(again, predicted)
    assert same is deep
    later, _ = unet.step(make_inputs(2, 4, config, seed=5).latents, torch.tensor(351), prepared, guided, deep)
    assert float((later - predicted).abs().max()) > 1e-3, "the result depends on the noise of this step"


def test_a_step_with_deep_features_computes_the_last_layer_only(unet: UNet) -> None:
    inputs = make_inputs(1, 4)
    prepared = unet.prepare(inputs.channels, inputs.audio, 4)
    deep = unet.step(inputs.latents, TIMESTEP, prepared, True)[1]
    called: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: called.append(name))
        for name, module in unet.named_modules()
        if (name.count(".") == 3 and not name.startswith("mid_block")) or name == "mid_block"
    ]
    unet.step(inputs.latents, TIMESTEP, prepared, True, deep)
    for handle in handles:
        handle.remove()
    assert called == [f"up_blocks.2.{part}.2" for part in ("resnets", "attentions", "motion_modules")]


def test_fused_projections(unet: UNet) -> None:
    fused = copy.deepcopy(unet)
    fused.fuse_projections()
    fused.fuse_projections()
    names = set(fused.state_dict())
    assert not any(name.endswith(("attn1.to_q.weight", "attention_blocks.0.to_v.weight")) for name in names)
    assert sum(t.numel() for t in fused.state_dict().values()) == sum(t.numel() for t in unet.state_dict().values())
    inputs = make_inputs(2, 4)
    for guided in (False, True):
        outputs = [
            net.step(inputs.latents, TIMESTEP, net.prepare(inputs.channels, inputs.audio, 4), guided)[0]
            for net in (unet, fused)
        ]
        assert_same(outputs[1], outputs[0])


def test_the_memory_format_is_the_weights_own(unet: UNet) -> None:
    formats: list[bool] = []

    def note(_: Any, args: tuple[Tensor, ...]) -> None:
        formats.append(args[0].is_contiguous(memory_format=torch.channels_last))

    inputs = make_inputs(2, 4)
    rows_first: UNet = copy.deepcopy(unet)
    reformat: Callable[..., Any] = rows_first.to
    reformat(memory_format=torch.contiguous_format)
    outputs = []
    for net in (unet, rows_first):
        handles = [m.register_forward_pre_hook(note) for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
        prepared = net.prepare(inputs.channels, inputs.audio, 4)
        outputs.append(net.step(inputs.latents, TIMESTEP, prepared, True)[0])
        for handle in handles:
            handle.remove()
    half = len(formats) // 2
    assert all(formats[:half])
    assert sum(formats[half:]) < half / 2
    assert_same(outputs[1], outputs[0])


def test_more_sequences_than_cuda_takes_are_split(unet: UNet, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(2, 3)
    given = (inputs.latents, TIMESTEP, unet.prepare(inputs.channels, inputs.audio, 3), True)
    expected, _ = unet.step(*given)
    monkeypatch.setattr("lipstream.models.unet_layers._MAX_SEQUENCES", 5)
    assert_same(unet.step(*given)[0], expected)


@pytest.mark.parametrize(
    ("max_scores", "calls"),
    [(6 * 2 * 9 * 7, 1), (6 * 2 * 9 * 7 - 1, 2), (2 * 2 * 9 * 7, 3), (2 * 9 * 7 - 1, 12), (2 * 4 * 7, 18), (1, 54)],
)
def test_attention_is_split_by_the_number_of_scores(
    max_scores: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(6, 2, tokens, 8, generator=generator) for tokens in (9, 7, 7))
    expected = attend(query, KeysValues(keys, values))
    scores: list[int] = []

    def counted(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        scores.append(query.shape[0] * query.shape[1] * query.shape[2] * keys.shape[2])
        return sdpa(query, keys, values)

    sdpa = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    split = attend(query, KeysValues(keys, values), max_scores)
    torch.testing.assert_close(split, expected, rtol=0, atol=1e-6)
    assert sum(scores) == 6 * 2 * 9 * 7
    assert len(scores) == calls
    assert max_scores < 2 * 7 or max(scores) <= max_scores


def reference_group_norm(norm: PooledGroupNorm, x: Tensor, num_frames: int) -> Tensor:
    """In float64, of contiguous windows (windows, channels, frames, h, w)."""
    windows = x.double().unflatten(0, (-1, num_frames)).transpose(1, 2).contiguous()
    exact = torch.nn.functional.group_norm(windows, norm.num_groups, norm.weight.double(), norm.bias.double(), norm.eps)
    return exact.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("num_frames", [1, 4])
@pytest.mark.parametrize("mean", [0.0, 30.0, 1000.0])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 3e-4), (torch.bfloat16, 2.5e-3)]
)
def test_group_norm_is_accurate_and_keeps_the_memory_format(
    num_frames: int, mean: float, dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = PooledGroupNorm(8, 32)
    norm.weight.normal_(generator=generator)
    norm.bias.normal_(generator=generator)
    norm.to(dtype)
    x = (torch.randn(8, 32, 16, 16, generator=generator) + mean).to(dtype)
    exact = reference_group_norm(norm, x, num_frames)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        result = norm(x.contiguous(memory_format=memory_format), num_frames)
        assert result.dtype == dtype
        assert result.is_contiguous(memory_format=memory_format)
        assert float((result - exact).square().mean().sqrt() / exact.square().mean().sqrt()) < tolerance


def test_group_norms_of_a_vae_are_replaced() -> None:
    plain = load_model("tiny", torch.device("cpu"), torch.float32).vae
    replaced = copy.deepcopy(plain)
    replace_group_norms(replaced)
    assert not any(type(module) is torch.nn.GroupNorm for module in replaced.modules())
    assert replaced.state_dict().keys() == plain.state_dict().keys()
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = [vae.encode(pixels).latent_dist.mode() for vae in (plain, replaced)]
    torch.testing.assert_close(latents[1], latents[0], rtol=0, atol=1e-4)
    decoded = [vae.decode(latents[0]).sample for vae in (plain, replaced)]
    torch.testing.assert_close(decoded[1], decoded[0], rtol=0, atol=1e-4)
