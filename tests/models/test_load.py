"""Loading: every tensor accounted for, nothing run from a file, weights and settings that belong together."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.models import make_model_folder
from lipstream.errors import ModelError
from lipstream.models.checkpoint import check_archive
from lipstream.models.load import load_model, verify_model
from lipstream.models.locate import describe_models, read_config
from lipstream.models.unet import UNet
from lipstream.models.unet_config import UNetConfig

CPU = torch.device("cpu")


@pytest.fixture
def folder(goldens: Path, tmp_path: Path) -> Path:
    return make_model_folder(goldens, tmp_path / "model")


def edit_unet(folder: Path, change: Any) -> None:
    path = folder / "latentsync_unet.pt"
    content = torch.load(path, weights_only=True)
    change(content["state_dict"])
    torch.save(content, path)


def load(folder: Path) -> Any:
    return load_model(folder, CPU, torch.float32)


def test_published_folder_loads_in_evaluation_mode_and_the_asked_dtype(folder: Path) -> None:
    model = load_model(folder, CPU, torch.bfloat16)
    for module in (model.unet, model.vae, model.audio_encoder):
        assert not module.training
        assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
        assert not any(p.requires_grad for p in module.parameters())
        assert not any(p.is_meta for p in module.parameters())
    assert model.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    edit_unet(folder, lambda tensors: tensors.pop("mid_block.resnets.1.conv2.bias"))
    with pytest.raises(ModelError, match=r"latentsync_unet\.pt.*mid_block\.resnets\.1\.conv2\.bias"):
        load(folder)


def test_a_tensor_of_the_wrong_shape_is_named(folder: Path) -> None:
    edit_unet(folder, lambda tensors: tensors.update({"conv_out.bias": torch.zeros(9)}))
    with pytest.raises(ModelError, match=r"conv_out\.bias is 9, the model's configuration needs 4"):
        load(folder)


def test_absent_positions_are_computed(folder: Path, goldens: Path, tmp_path: Path) -> None:
    whole = load(folder)
    edit_unet(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.endswith(".pe")])
    computed = load(folder)
    for name, tensor in whole.unet.state_dict().items():
        assert torch.allclose(tensor, computed.unet.state_dict()[name], atol=1e-3), name


def test_an_absent_motion_module_is_left_out_and_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    prefix = "up_blocks.1.motion_modules.2."

    def remove(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if n.startswith(prefix)]:
            del tensors[name]

    full = load(folder)
    zero = full.unet.up_blocks[1].motion_modules["2"].temporal_transformer.proj_out
    zero.weight.zero_()
    zero.bias.zero_()
    edit_unet(folder, remove)
    with caplog.at_level(logging.WARNING):
        pruned = load(folder)
    assert prefix[:-1] in caplog.text
    assert "2" not in pruned.unet.up_blocks[1].motion_modules
    config = full.unet.config
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(4, config.in_channels, 8, 8, generator=generator)
    audio = torch.randn(4, 6, config.cross_attention_dim, generator=generator)
    with torch.inference_mode():
        expected = full.unet(sample, torch.tensor(500), audio, 4)
        assert torch.allclose(pruned.unet(sample, torch.tensor(500), audio, 4), expected, atol=1e-5)


def test_half_a_motion_module_is_an_error(folder: Path) -> None:
    name = "down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight"
    edit_unet(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(ModelError, match="motion_modules"):
        load(folder)


def test_unexpected_tensors_are_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_unet(folder, lambda tensors: tensors.update(extra=torch.zeros(1)))
    with caplog.at_level(logging.WARNING):
        load(folder)
    assert "1 unexpected tensors, not used: extra" in caplog.text


class _Bomb:
    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.touch, (Path("exploded"),))


def test_code_in_a_checkpoint_is_never_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for write in (
        lambda path: torch.save({"state_dict": _Bomb()}, path),
        lambda path: path.write_bytes(pickle.dumps(_Bomb(), protocol=2)),
    ):
        write(folder / "latentsync_unet.pt")
        with pytest.raises(ModelError, match="holds code, or objects other than tensors") as caught:
            load(folder)
        assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["latentsync_unet.pt", "whisper/tiny.pt", "vae/diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize(
    ("content", "message", "fix"),
    [
        (b"", "empty", "download it again"),
        (b"not a checkpoint", "not a checkpoint|safetensors", "download it again"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "a web page", "the file's own address"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a git-lfs pointer", "git lfs pull"),
        (None, "truncated", "download it again"),
    ],
)
def test_a_broken_file_says_what_it_is(folder: Path, name: str, content: bytes | None, message: str, fix: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-5000] if content is None else content)
    with pytest.raises(ModelError, match=message) as caught:
        load(folder)
    assert caught.value.file == str(path)
    assert fix in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"vae/config\.json: missing"):
        load(folder)


def test_old_autoencoder_names_load(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    # Cloned: older safetensors maps the file, which is written over below.
    expected = {name: tensor.clone() for name, tensor in load(folder).vae.state_dict().items()}
    new_to_old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = load_file(path)
    for new, old in new_to_old.items():
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    assert any("proj_attn" in name for name in tensors)
    save_file(tensors, path)
    found = load(folder).vae.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 60}, "not a multiple of 8"),
        ({"num_frames": 25}, "num_frames"),
        ({"format": 2}, "format 2 is not known"),
        ({"mask": {"size": 256}}, r"lipstream\.json: mask\.polygon_xy is missing"),
        ({"resolutoin": 3}, r"lipstream\.json: unknown key 'resolutoin'. Fix: did you mean 'resolution'"),
        ({"num_inference_steps": "twenty"}, "num_inference_steps: 'twenty' is not a whole number"),
        ({"resolution": 64.5}, "resolution: 64.5 is not a whole number"),
        ({"files": {"unet": "x"}}, "files: .* is not an object of unet, audio_encoder and vae"),
        ({"base": "latentsync-9"}, "base 'latentsync-9'"),
        ({"audio_encoder": {"n_mels": 80}}, "n_audio_ctx"),
        ({"unet": {"in_channels": 12}}, "12 U-Net input channels do not belong"),
        ({"unet": {"act_fn": "gelu"}}, "act_fn = 'gelu'"),
        ({"unet": {"depth": 3}}, "unknown options: depth"),
    ],
)
def test_words_that_do_not_belong_together_are_refused(
    goldens: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load(make_model_folder(goldens, tmp_path / "model", **changes))


def test_a_folder_without_configuration_says_what_to_write(folder: Path) -> None:
    (folder / "lipstream.json").unlink()
    with pytest.raises(ModelError, match=r'"base": "latentsync-1\.6"'):
        load(folder)
    (folder / "lipstream.json").write_text("{}")
    with pytest.raises(ModelError, match=r'neither base nor format.*"base": "latentsync-1\.6"'):
        load(folder)
    with pytest.raises(ModelError, match="neither a folder nor one of the models tiny"):
        load(folder / "nowhere")
    with pytest.raises(ModelError, match=r"did you mean latentsync-1\.[56]"):
        load_model("latentsync-2", CPU, torch.float32)
    (folder / "lipstream.json").write_text("{")
    with pytest.raises(ModelError, match="not readable as JSON"):
        load(folder)


def test_published_models_are_the_published_sizes() -> None:
    for name, resolution in (("latentsync-1.5", 256), ("latentsync-1.6", 512)):
        config, folder = read_config(name)
        assert (config.resolution, folder, config.num_inference_steps, config.guidance_scale) == (
            resolution,
            None,
            20,
            1.5,
        )
        with torch.device("meta"):
            unet = UNet(config.unet)
        shapes = {tensor_name: tuple(tensor.shape) for tensor_name, tensor in unet.state_dict().items()}
        assert len(shapes) == 1246
        assert round(sum(p.numel() for p in unet.parameters()) / 1e6) == 1267
        # The names and shapes that were compared with an inventory of the published 1.6 file (docs/limits.md).
        listing = "\n".join(sorted(f"{tensor_name} {shape}" for tensor_name, shape in shapes.items()))
        digest = "678ed6634677e3daeabd06e3ed84c0b58e3d3f6966e4d6a12c0ab1ac0b4131ca"
        assert hashlib.sha256(listing.encode()).hexdigest() == digest


def test_unet_config_reads_the_published_words(goldens: Path) -> None:
    words = json.loads((goldens / "unet_config.json").read_text())
    config = UNetConfig.from_dict(words)
    assert config.block_out_channels == tuple(words["block_out_channels"])
    assert config.motion_module_kwargs.num_attention_heads == words["motion_module_kwargs"]["num_attention_heads"]


def test_verify_counts_tensors_and_finds_what_is_not_a_number(folder: Path) -> None:
    files = verify_model(folder)
    assert [file.path.name for file in files] == [
        "latentsync_unet.pt",
        "tiny.pt",
        "diffusion_pytorch_model.safetensors",
    ]
    assert all(file.tensors > 10 and file.size_bytes > 10_000 for file in files)

    assert not any(file.is_published for file in files)

    edit_unet(folder, lambda tensors: tensors["conv_out.bias"].fill_(float("nan")))
    with pytest.raises(ModelError, match=r"conv_out\.bias holds values that are not numbers"):
        verify_model(folder)


def test_the_catalogue_is_described_without_a_network() -> None:
    assert [model.name for model in describe_models()] == ["tiny", "latentsync-1.5", "latentsync-1.6"]


def test_verify_finds_damage_that_loads(folder: Path) -> None:
    path = folder / "latentsync_unet.pt"
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1000] = bytes(byte ^ 1 for byte in data[middle : middle + 1000])
    path.write_bytes(data)
    load(folder)
    with pytest.raises(ModelError, match=r"latentsync_unet\.pt: damaged: .* does not match its checksum"):
        verify_model(folder)


def test_an_ordered_dict_with_metadata_and_no_step_loads(folder: Path) -> None:
    expected = load(folder).unet.state_dict()
    path = folder / "latentsync_unet.pt"
    tensors: Any = OrderedDict(torch.load(path, weights_only=True)["state_dict"])
    tensors._metadata = OrderedDict({"": {"version": 1}, "conv_in": {"version": 1}})  # as Module.state_dict gives it
    torch.save({"state_dict": tensors}, path)
    found = load(folder).unet.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


SIZES = {"latentsync-1.5": 5_072_348_184, "latentsync-1.6": 5_072_222_488}


@pytest.mark.parametrize(("says", "is_"), [("latentsync-1.5", "latentsync-1.6"), ("latentsync-1.6", "latentsync-1.5")])
def test_the_other_published_model_is_refused(folder: Path, says: str, is_: str) -> None:
    (folder / "lipstream.json").write_text(json.dumps({"base": says}))
    os.truncate(folder / "latentsync_unet.pt", SIZES[is_])  # sparse
    with pytest.raises(ModelError, match=rf"is the U-Net of {is_} by its size .* says {says}") as caught:
        load(folder)
    assert f'{{"base": "{is_}"}}' in str(caught.value)


@pytest.mark.parametrize("words", [None, "{}"])
@pytest.mark.parametrize("name", SIZES)
def test_a_folder_names_itself_by_the_size_of_its_unet(folder: Path, name: str, words: str | None) -> None:
    (folder / "lipstream.json").unlink()
    if words is not None:
        (folder / "lipstream.json").write_text(words)
    os.truncate(folder / "latentsync_unet.pt", SIZES[name])
    assert read_config(folder)[0].name == name


def test_a_size_that_is_not_published_is_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = json.loads((folder / "lipstream.json").read_text())
    (folder / "lipstream.json").write_text(json.dumps({**values, "name": "latentsync-1.5"}))
    with caplog.at_level(logging.WARNING):
        load(folder)
    (record,) = caplog.records
    assert "not a published file's size (5072348184); loaded as latentsync-1.5" in record.getMessage()


def test_a_folder_without_its_autoencoder_says_where_it_comes_from(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = folder / "vae"
    place = tmp_path / "hub" / "models--stabilityai--sd-vae-ft-mse" / "snapshots" / "abc"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    vae.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="published as stabilityai/sd-vae-ft-mse") as caught:
        load(folder)
    assert f"lipstream models download {folder}" in str(caught.value)

    place.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").rename(place)
    (place.parents[1] / "refs").mkdir()
    (place.parents[1] / "refs" / "main").write_text("abc")
    values = json.loads((folder / "lipstream.json").read_text())
    hub = {"repo": "a/b", "vae_repo": "stabilityai/sd-vae-ft-mse"}
    (folder / "lipstream.json").write_text(json.dumps({**values, "hub": hub}))
    load(folder)


def test_an_archive_with_names_that_are_none_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("é/data", b"x")
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    with pytest.raises(ModelError, match="damaged"):
        check_archive(path)
