"""The stages of `lipstream train`, and the folder that they end in."""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.training import CPU, POLYGON, SMALL_UNET, made_clip, made_vae
from lipstream.cli.interrupts import Interrupts
from lipstream.errors import SettingsError
from lipstream.models.load import load_model
from lipstream.models.names import NAMES
from lipstream_lab.train import audio_encoder, bundle, cli, data, start, unet
from lipstream_lab.train.loop import read_log


def test_bundle_loads_with_the_products_loader_and_computes_the_same(tmp_path):
    autoencoder = made_vae()
    autoencoder.register_to_config(scaling_factor=0.5)
    torch.manual_seed(1)
    model = unet.ConditionedUNet(SMALL_UNET, 4).eval()
    description = bundle.BundleSettings("made", 64, 64, POLYGON, num_frames=4)
    for _ in range(2):  # the second replaces the first
        bundle.write(tmp_path / "model", model, autoencoder, SMALL_UNET, description)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    loaded = load_model(tmp_path / "model", CPU, torch.float32)
    assert loaded.vae.config.scaling_factor == 0.5
    sample, audio = torch.randn(3, 13, 8, 8), torch.randn(3, 10, SMALL_UNET.audio_channels)
    mel, pixels = torch.randn(1, data.N_MELS, 3000), torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected, got = (m.unet(sample, torch.tensor(999), audio, 3) for m in (model, loaded))
        assert torch.allclose(expected, got, atol=2e-2)
        expected, got = (m.audio_encoder.convolve(mel) for m in (model, loaded))
        assert torch.allclose(expected, got, atol=2e-2)
        expected, got = (v.encode(pixels).latent_dist.mode() for v in (autoencoder, loaded.vae))
        assert torch.allclose(expected, got, atol=2e-2)


def test_stages_in_the_wrong_order_name_the_fix(tmp_path):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    with pytest.raises(SettingsError, match="lipstream train data"):
        cli.run(parser.parse_args(["unet", str(tmp_path)]), Interrupts())
    (tmp_path / "clips").mkdir()
    made_clip().save(tmp_path / "clips" / "a.npz")
    with pytest.raises(SettingsError, match="lipstream train vae"):
        cli.run(parser.parse_args(["bundle", str(tmp_path), str(tmp_path / "out")]), Interrupts())


def test_the_mean_of_two_models_lies_between_them():
    one, other = (unet.ConditionedUNet(SMALL_UNET, 4) for _ in range(2))
    expected = (one.unet.conv_in.weight + other.unet.conv_in.weight).detach() / 2
    bundle.take_mean(one, other)
    torch.testing.assert_close(one.unet.conv_in.weight.detach(), expected)
    with pytest.raises(SettingsError, match="other sizes"):
        bundle.take_mean(one, unet.ConditionedUNet(SMALL_UNET, 8))


def test_a_bundle_is_the_mean_with_a_named_model(tmp_path):
    """Half of the bundled model's weights where training began with zeros."""
    (tmp_path / "clips").mkdir()
    made_clip().save(tmp_path / "clips" / "a.npz")
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    cli.run(parser.parse_args(["start", str(tmp_path), "tiny"]), Interrupts())
    own = tmp_path / start.FOLDER
    for name in ("unet.safetensors", "vae/diffusion_pytorch_model.safetensors"):
        save_file({key: torch.zeros_like(tensor) for key, tensor in load_file(own / name).items()}, own / name)
    cli.run(parser.parse_args(["bundle", str(tmp_path), str(tmp_path / "mean"), "--mean-with", "tiny"]), Interrupts())
    for name in ("unet.safetensors", "vae/diffusion_pytorch_model.safetensors", "audio_encoder.safetensors"):
        tiny, mean = (load_file(folder / name) for folder in (start.folder_of("tiny"), tmp_path / "mean"))
        share = 1.0 if name.startswith("audio") else 0.5
        for key, tensor in tiny.items():
            torch.testing.assert_close(mean[key].float(), share * tensor.float(), atol=1e-6, rtol=2e-3)


def test_bundled_model_is_named():
    assert "tiny" in NAMES


def test_training_begins_from_a_model_that_runs(tmp_path):
    """`train start` in place of `train vae`: the bundled model's weights, its scaling factor, and its own encoder."""
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    cli.run(parser.parse_args(["start", str(tmp_path), "tiny"]), Interrupts())
    begun = unet.ConditionedUNet(unet.UNetSettings(), 8)
    start.fill(begun, tmp_path / start.FOLDER)
    model = load_model("tiny", CPU, torch.float32)
    mel = torch.randn(1, data.N_MELS, 80)
    with torch.no_grad():
        torch.testing.assert_close(begun.audio_encoder.convolve(mel), model.audio_encoder.convolve(mel))
    torch.testing.assert_close(begun.unet.conv_in.weight, model.unet.conv_in.weight)
    begun_vae = start.autoencoder(tmp_path / start.FOLDER)
    assert begun_vae.config.scaling_factor == model.vae.config.scaling_factor
    encoded = torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(
            begun_vae.decode(encoded).sample, model.vae.decode(encoded).sample, atol=1e-3, rtol=1e-3
        )
    small = unet.ConditionedUNet(SMALL_UNET, 8)
    with pytest.raises(SettingsError, match="other sizes"):
        start.fill(small, tmp_path / start.FOLDER)
    with pytest.raises(SettingsError, match="is not a folder"):
        start.copy_model("latentsync-1.6", tmp_path / "other")


def test_audio_stage_learns_alone_and_the_unet_takes_its_encoder(tmp_path):
    """Trained in a run of its own, on clips whose opening is their loudness; resumed; found by the later stages."""
    folder = tmp_path / "clips"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        clip = made_clip(name, n_frames=40)
        opening = np.convolve(generator.random(40), np.ones(3) / 3, "same").astype(np.float32)
        times = np.arange(clip.mel.shape[1]) / data.MEL_PER_FRAME - data.MEL_BEFORE / data.MEL_PER_FRAME
        mel = clip.mel * 0.05 + np.interp(times, np.arange(40) + 0.5, opening).astype(np.float32)
        dataclasses.replace(clip, mel=mel, opening=opening).save(folder / f"{name}.npz")
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    for steps in ("10", "60"):
        cli.run(parser.parse_args(["audio", str(tmp_path), "--steps", steps]), Interrupts())
    log = read_log(tmp_path / "audio")
    assert [line["step"] for line in log] == [10, 20, 30, 40, 50, 60]
    assert log[-1]["r_opening"] > 0.5
    assert log[-1]["loss"] < log[0]["loss"] / 2
    sounds = audio_encoder.load_sounds(folder)
    assert [(sound.person, sound.n_frames) for sound in sounds] == [("a", 40), ("b", 40)]
