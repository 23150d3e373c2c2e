"""Loading: every tensor accounted for, nothing run from a file, weights and settings that belong together."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from lipstream.errors import ModelError
from lipstream.models.load import describe_models, load_model, read_config, verify_model
from lipstream.models.unet import UNet
from lipstream.models.unet_config import UNetConfig
from models_helpers import make_model_folder

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
    torch.save({"state_dict": _Bomb()}, folder / "latentsync_unet.pt")
    with pytest.raises(ModelError, match="not a readable checkpoint"):
        load(folder)
    (folder / "latentsync_unet.pt").write_bytes(pickle.dumps(_Bomb(), protocol=2))
    with pytest.raises(ModelError, match="not a readable checkpoint"):
        load(folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["latentsync_unet.pt", "whisper/tiny.pt", "vae/diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_broken_file_is_named(folder: Path, name: str, content: bytes | None) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-5000] if content is None else content)
    with pytest.raises(ModelError, match=path.name):
        load(folder)


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
        ({"mask": {"size": 256}}, "'polygon_xy' is missing"),
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
    with pytest.raises(ModelError, match="neither a folder nor one of the models tiny"):
        load(folder / "nowhere")
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
        assert len(unet.state_dict()) == 1246
        assert round(sum(p.numel() for p in unet.parameters()) / 1e6) == 1267


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

    edit_unet(folder, lambda tensors: tensors["conv_out.bias"].fill_(float("nan")))
    with pytest.raises(ModelError, match=r"conv_out\.bias holds values that are not numbers"):
        verify_model(folder)


def test_the_catalogue_is_described_without_a_network() -> None:
    assert [model.name for model in describe_models()] == ["tiny", "latentsync-1.5", "latentsync-1.6"]
