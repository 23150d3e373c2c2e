"""Layers left out of the U-Net: the same numbers as layers that add nothing, without computing them; the search."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.unet import SMALL, Inputs, make_inputs, make_unet
from lipstream import LipSync, ModelError, OutputError, SettingsError, SyncSettings
from lipstream.bundled import sample
from lipstream.face.registry import make_detector
from lipstream.models.load import load_model
from lipstream.models.prune import Dropped, PruneList, drop, parts, read_list, without
from lipstream.models.unet import UNet
from lipstream.pipeline import line
from lipstream.profiling.clips import prepare
from lipstream.settings import RuntimeSettings
from lipstream_lab.bench import flops
from lipstream_lab.bench.cases import Parts, Setting, make_sampling
from lipstream_lab.cli import add_prune_arguments, run_prune
from lipstream_lab.prune.search import Pruned, PruneSettings, drop_greedily, search, table

TIMESTEP = torch.tensor(401)
CPU = torch.device("cpu")
MID_MOTION = replace(SMALL, motion_module_mid_block=True)
NO_ATTENTION = replace(SMALL, down_block_types=("DownBlock3D",) * 3, up_block_types=("UpBlock3D",) * 3)
FLOOR = 0.9995


@pytest.fixture(scope="module")
def unet() -> UNet:
    return make_unet(MID_MOTION)


def predicted(unet: UNet, inputs: Inputs, guided: bool) -> Tensor:
    with torch.inference_mode():
        prepared = unet.prepare(inputs.channels, inputs.audio, inputs.num_frames)
        return unet.step(inputs.latents, TIMESTEP, prepared, guided)[0]


def silenced(unet: UNet, name: str) -> UNet:
    """The U-Net with a part's last layer zero: it is computed and adds nothing."""
    whole = make_unet(unet.config)
    part: Any = whole.get_submodule(name)
    if "motion" in name:
        last = part.temporal_transformer.proj_out
    else:
        last = part.conv2 if "resnets" in name else part.proj_out
    last.weight.zero_()
    last.bias.zero_()
    return whole


def attentions(unet: UNet) -> list[str]:
    return [name for name in parts(unet) if ".attentions." in name]


def test_parts_have_the_checkpoints_names(unet: UNet) -> None:
    names = parts(unet)
    assert len(names) == len(set(names)) == (3 * 2 + 2 + 3 * 3) + (4 + 1 + 6) + (6 + 1 + 9)
    prefixes = {weight.rpartition(".")[0] for weight in unet.state_dict()}
    assert all(any(prefix.startswith(f"{name}.") for prefix in prefixes) for name in names)
    assert {"down_blocks.1.attentions.0", "up_blocks.2.motion_modules.1", "mid_block.resnets.1"} <= set(names)


@pytest.mark.parametrize("guided", [False, True])
def test_nothing_left_out_changes_nothing(unet: UNet, guided: bool) -> None:
    inputs = make_inputs(2, 4)
    assert torch.equal(predicted(without(unet, []), inputs, guided), predicted(unet, inputs, guided))


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "down_blocks.0.attentions.0",  # where the branches part
        "mid_block.attentions.0",
        "up_blocks.1.attentions.2",
        "down_blocks.0.motion_modules.1",
        "mid_block.motion_modules.0",
        "up_blocks.0.motion_modules.2",
        "down_blocks.0.resnets.1",  # no change of width: nothing is left
        "down_blocks.2.resnets.0",  # the 1x1 convolution is left
        "mid_block.resnets.0",
        "mid_block.resnets.1",
        "up_blocks.2.resnets.0",
    ],
)
def test_a_part_left_out_is_one_that_adds_nothing(unet: UNet, name: str, guided: bool) -> None:
    inputs = make_inputs(2, 4)
    ours = predicted(without(unet, [name]), inputs, guided)
    expected = predicted(silenced(unet, name), inputs, guided)
    assert ours.shape == expected.shape
    assert float((ours - expected).abs().max()) <= 1e-5
    assert float((ours - predicted(unet, inputs, guided)).abs().max()) > 1e-4


def test_the_branches_part_at_the_next_attention(unet: UNet) -> None:
    first, second = attentions(unet)[:2]
    lesser = without(unet, [first])
    seen: list[int] = []
    for name in ("down_blocks.0.resnets.1", f"{second}.proj_in", f"{second}.proj_out"):
        lesser.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    predicted(lesser, make_inputs(2, 4), True)
    assert seen == [8, 8, 16]


@pytest.mark.parametrize("config", [SMALL, NO_ATTENTION])
def test_two_branches_without_cross_attention(config: Any) -> None:
    whole, inputs = make_unet(config), make_inputs(2, 4, config)
    without_audio = without(whole, attentions(whole))
    drop(whole, attentions(whole), "test")
    assert not any(without_audio.audio_keys_values(inputs.audio))
    assert not without_audio.uses_audio
    unconditional, conditional = predicted(without_audio, inputs, True).chunk(2)
    assert torch.equal(unconditional, conditional)
    assert torch.equal(unconditional, predicted(without_audio, inputs, False))
    assert torch.equal(unconditional, predicted(whole, inputs, False))


def test_everything_left_out_still_runs(unet: UNet) -> None:
    inputs = make_inputs(2, 4)
    lesser = without(unet, parts(unet))
    assert parts(lesser) == []
    assert predicted(lesser, inputs, True).shape == (16, *inputs.latents.shape[1:])


def test_weights_are_shared_and_those_left_out_are_gone(unet: UNet) -> None:
    names = ["down_blocks.2.resnets.0", "up_blocks.1.attentions.2", "up_blocks.2.motion_modules.1"]
    before = {name: tensor.data_ptr() for name, tensor in unet.state_dict().items()}
    lesser = without(unet, [*names, names[0]])
    after = {name: tensor.data_ptr() for name, tensor in lesser.state_dict().items()}
    gone = {name for name in before if any(name.startswith(f"{part}.") for part in names)}
    gone = {name for name in gone if "conv_shortcut" not in name}
    assert after == {name: place for name, place in before.items() if name not in gone}
    assert {name: tensor.data_ptr() for name, tensor in unet.state_dict().items()} == before
    assert not set(names) & set(parts(lesser))


@pytest.mark.parametrize("name", ["up_blocks.2.motion_modules.1", "down_blocks.1.attentions.0", "mid_block.resnets.1"])
def test_what_is_left_out_is_not_computed(unet: UNet, name: str) -> None:
    inputs = make_inputs(1, 4)
    whole = flops.counted(lambda: predicted(unet, inputs, True))
    part = unet.get_submodule(name)
    lesser = flops.counted(lambda: predicted(without(unet, [name]), inputs, True))
    multiplied = sum(t.numel() for t in part.parameters() if t.ndim > 1)
    assert whole - lesser > multiplied


@pytest.mark.parametrize("name", ["down_blocks.7.resnets.0", "mid_block", "down_blocks.0.resnets.0.conv1", ""])
def test_an_unknown_layer(unet: UNet, name: str) -> None:
    with pytest.raises(ModelError, match=rf"list\.json: the U-Net has no layer {name}. Fix: .*down_blocks\.0"):
        drop(unet, ["mid_block.resnets.0", name], "list.json")
    assert "mid_block.resnets.0" in parts(unet)


def make_list(**changes: Any) -> PruneList:
    found = PruneList(
        model="tiny",
        dropped=(Dropped("up_blocks.2.motion_modules.1", 0.99), Dropped("mid_block.resnets.1", 0.98)),
        floor=0.97,
        calibration="clip.mp4 64x64, 5 frames",
        num_inference_steps=1,
        guidance_scale=1.5,
        seed=3,
        version="0",
    )
    return replace(found, **changes)


def test_a_list_comes_back_as_it_was_written(tmp_path: Path) -> None:
    make_list().write(tmp_path / "list.json")
    assert read_list(tmp_path / "list.json", "tiny") == make_list()
    with pytest.raises(OutputError, match="cannot be written"):
        make_list().write(tmp_path / "absent" / "list.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"list\.json: not readable"),
        ("[]", "format 1"),
        ('{"format": 2}', "format 1"),
        ('{"format": 1, "model": "tiny"}', "'dropped'"),
        ('{"format": 1, "dropped": [{"name": "mid_block.resnets.1"}]}', "'ssim'"),
        ('{"format": 1, "dropped": [], "model": "tiny", "extra": 1}', "extra"),
    ],
)
def test_a_broken_list(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(ModelError, match=message):
        load_model("tiny", CPU, torch.float32, pruned=path)


def test_a_list_for_another_model_or_of_unknown_layers(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    with pytest.raises(ModelError, match=r"list\.json: not readable"):
        LipSync.load("tiny", device="cpu", detector="mediapipe", pruned=path)
    make_list(model="latentsync-1.5").write(path)
    with pytest.raises(ModelError, match=r"list\.json: was made for the model latentsync-1\.5, not for tiny"):
        load_model("tiny", CPU, torch.float32, pruned=path)
    make_list(dropped=(Dropped("mid_block.resnets.9", 0.99),)).write(path)
    with pytest.raises(ModelError, match=r"list\.json: the U-Net has no layer mid_block\.resnets\.9"):
        load_model("tiny", CPU, torch.float32, pruned=path)


def test_the_count_of_a_run_follows_the_list(tmp_path: Path) -> None:
    make_list().write(tmp_path / "list.json")
    whole = flops.count("tiny", SyncSettings(), 5)
    lesser = flops.count("tiny", SyncSettings(), 5, tmp_path / "list.json")
    assert lesser.unet < whole.unet
    assert (lesser.vae, lesser.features) == (whole.vae, whole.features)


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting("whole", "", "tiny", SyncSettings(), RuntimeSettings(device="cpu", detector="mediapipe", threads=1))


@pytest.fixture(scope="module")
def pruned(setting: Setting) -> Pruned:
    return search(PruneSettings(setting, floor=FLOOR, duration_s=0.12, repeats=2), lambda line: None)


class Indifferent:
    """Takes every U-Net for as good as the whole one."""

    def __init__(self, unet: UNet) -> None:
        self.unet = unet

    def of(self, lesser: UNet) -> float:
        return 1.0

    def without(self, names: list[str]) -> float:
        return 1.0 - len(names) / 100


def test_the_last_cross_attention_is_kept(unet: UNet) -> None:
    indifferent: Any = Indifferent(unet)
    tried = drop_greedily([(name, 1.0) for name in parts(unet)], indifferent, indifferent, 0.97, lambda line: None)
    kept = [one.name for one in tried if not one.is_dropped]
    assert kept == attentions(unet)[-1:]


def test_the_search_drops_in_order_and_stays_above_the_floor(pruned: Pruned) -> None:
    alone = [one.ssim_alone for one in pruned.candidates]
    assert alone == sorted(alone, reverse=True)
    assert len(pruned.candidates) == 30
    assert 1 < len(pruned.prune_list.dropped) < 30
    assert pruned.prune_list.names == tuple(one.name for one in pruned.candidates if one.is_dropped)
    share = 1.0
    for one in pruned.candidates:
        assert one.is_dropped == (one.ssim is not None and one.ssim >= FLOOR)
        assert (one.ssim is None) == (one.ssim_alone < FLOOR)  # and not yet the last attention
        assert one.flop_share < share if one.is_dropped else one.flop_share == share
        share = one.flop_share
    assert 0 < share < 1
    assert len(pruned.before_s) == len(pruned.after_s) == 2
    text = table(pruned)
    assert f"{len(pruned.prune_list.dropped)} of 30 layers dropped" in text
    assert all(one.name in text for one in pruned.candidates)


@pytest.fixture
def pasted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """The generated crops of a run."""
    crops: list[Tensor] = []
    resize = line.resize_face

    def note(faces: Tensor) -> Any:
        crops.extend(faces)
        return resize(faces)

    monkeypatch.setattr(line, "resize_face", note)
    yield crops


def test_a_run_with_the_list_generates_what_the_search_saw(
    pruned: Pruned, setting: Setting, pasted: list[Tensor], tmp_path: Path
) -> None:
    pruned.prune_list.write(tmp_path / "list.json")
    inputs = prepare(tmp_path, None, None, duration_s=0.12, synthetic=None)
    runtime = replace(setting.runtime, pruned=tmp_path / "list.json")
    whole, detector = load_model("tiny", CPU, torch.float32), make_detector("mediapipe", CPU)
    lesser = load_model("tiny", CPU, torch.float32, pruned=tmp_path / "list.json")
    seen = make_sampling(setting, Parts(whole, detector), inputs).pictures(without(whole.unet, pruned.prune_list.names))
    settings = SyncSettings(texture="generated", match_color="off")
    result = LipSync(lesser, detector, runtime)(sample.VIDEO, inputs.speech, tmp_path / "out.mp4", settings)
    detector.close()
    assert result.settings["pruned_layers"] == len(pruned.prune_list.dropped)
    generated = [((face + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy() for face in pasted]
    assert len(generated) == 3
    for ours, expected in zip(generated, seen, strict=True):
        assert np.array_equal(ours, expected)


def given(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_prune_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--floor", "1.1"), "floor = 1.1"),
        (("--repeats", "0"), "at least 1"),
        (("--seconds", "0"), r"at least 0\.04"),
        (("--loop", "trim"), "pingpong or hold"),
        (("--pruned", "list.json"), "leave --pruned out"),
    ],
)
def test_a_search_that_makes_no_sense(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        run_prune(given(*words), lambda line: None)


def test_a_list_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"mine": 1}))
    with pytest.raises(OutputError, match="already exists"):
        run_prune(given("-o", str(path)), lambda line: None)
    with pytest.raises(OutputError, match="folder does not exist"):
        run_prune(given("-o", str(tmp_path / "absent" / "list.json")), lambda line: None)
    assert json.loads(path.read_text()) == {"mine": 1}
