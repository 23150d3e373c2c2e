"""Training of what draws pictures: the autoencoder, finishing, and their critic."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from helpers.training import CPU, SMALL_UNET, SMALL_VAE, loop_of, made_latents, made_mask, made_vae
from lipstream_lab.train import critic, finish, losses, unet, vae
from lipstream_lab.train.loop import read_log


def test_autoencoder_learns_made_crops(tmp_path):
    """Twenty steps lower the loss on two plain pictures."""
    pictures = np.zeros((2, 64, 64, 3), np.uint8)
    pictures[1, :, 32:] = 200
    vae.train(pictures, tmp_path, SMALL_VAE, loop_of(20, learning_rate=3e-3), CPU)
    pixels = [line["pixels"] for line in read_log(tmp_path)]
    assert np.mean(pixels[-5:]) < 0.8 * np.mean(pixels[:5])


def test_the_autoencoders_critic_is_asked_when_it_has_learned_something(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    settings = dataclasses.replace(SMALL_VAE, critic_steps=2)
    after = vae.train(pictures, tmp_path, settings, loop_of(3), CPU).state_dict()
    assert ["verdict" in line for line in read_log(tmp_path)] == [False, False, True]
    loaded, learned = vae.load(tmp_path)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["average"]
    assert all(torch.equal(kept[f"critic.{name}"], tensor) for name, tensor in learned.state_dict().items())
    assert all(torch.equal(after[name], tensor) for name, tensor in loaded.state_dict().items())


def test_decoder_only_leaves_the_encoder_alone(tmp_path):
    pictures = np.zeros((2, 64, 64, 3), np.uint8)
    torch.manual_seed(0)
    before = vae.build(SMALL_VAE).state_dict()
    after = vae.train(pictures, tmp_path, SMALL_VAE, loop_of(2), CPU, decoder_only=True).state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}


def test_an_autoencoder_is_begun_from_another(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    torch.manual_seed(7)
    other = vae.build(SMALL_VAE).state_dict()
    after = vae.train(pictures, tmp_path, SMALL_VAE, loop_of(1, learning_rate=1e-6), CPU, begin=other).state_dict()
    assert all(torch.allclose(after[name], tensor, atol=1e-5) for name, tensor in other.items())


def test_a_narrower_autoencoder_learns_the_latents_of_another(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    torch.manual_seed(7)
    teacher = vae.build(SMALL_VAE).eval().requires_grad_(False)
    narrow = dataclasses.replace(SMALL_VAE, block_out_channels=(8, 8, 8, 8))
    vae.train(pictures, tmp_path, narrow, loop_of(30, learning_rate=3e-3), CPU, teacher=teacher)
    off = [line["latents"] for line in read_log(tmp_path)]
    assert np.mean(off[-5:]) < 0.7 * np.mean(off[:5])
    loaded, _ = vae.load(tmp_path)
    assert tuple(loaded.config.block_out_channels) == (8, 8, 8, 8)
    assert loaded.config.latent_channels == SMALL_VAE.latent_channels


def test_finishing_changes_the_decoder_and_the_unet_alone(tmp_path):
    """With a judge, which is asked once, at the first step."""
    clips, autoencoder = made_latents(tmp_path), made_vae()
    before = {name: tensor.clone() for name, tensor in autoencoder.state_dict().items()}
    torch.manual_seed(0)
    model = unet.ConditionedUNet(SMALL_UNET, 4)
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = finish.FinishSettings(windows=2, num_frames=3, decoded_frames=4, critic_steps=1)
    judged = []

    def make_judge(vae):
        assert vae is autoencoder
        return lambda mouths: judged.append(len(mouths)) or torch.rand(len(mouths))

    folder, learned = tmp_path / "finish", critic.Critic()
    after = finish.train(
        clips,
        model,
        autoencoder,
        made_mask(),
        folder,
        SMALL_UNET,
        settings,
        loop_of(3),
        CPU,
        make_judge=make_judge,
        critic=learned,
    )
    assert any(tensor.grad is not None for tensor in learned.parameters())
    vae_after, model_after = after.vae.state_dict(), after.model.state_dict()
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], vae_after[name])} == {"decoder"}
    changed = {name.split(".")[0] for name in trained if not torch.equal(trained[name], model_after[name])}
    assert changed == {"unet", "shape_scale"}
    assert len(judged) == 1
    loaded, decoder = unet.ConditionedUNet(SMALL_UNET, 4), made_vae()
    assert finish.load(folder, loaded, decoder) == 3
    assert all(torch.equal(model_after[name], tensor) for name, tensor in loaded.state_dict().items())
    assert all(torch.equal(vae_after[name], tensor) for name, tensor in decoder.state_dict().items())


def test_the_critic_and_the_picture_learn_from_their_own_losses_alone():
    torch.manual_seed(0)
    finishing = finish.Finishing(unet.ConditionedUNet(SMALL_UNET, 4), made_vae())
    smooth = torch.zeros(8, 3, 32, 32, requires_grad=True)
    grain = torch.randn(8, 3, 32, 32)
    sum(finishing.picture_losses(smooth, grain)).backward()
    assert smooth.grad is not None and smooth.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in finishing.critic.parameters())
    smooth.grad = None
    optimizer = torch.optim.Adam(finishing.critic.parameters(), 1e-3)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = finishing.critic_loss(smooth, grain)
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert smooth.grad is None
    assert values[0] == pytest.approx(2, abs=0.3)
    assert values[-1] < 0.5 * values[0]
    worse, _ = finishing.picture_losses(smooth, grain)
    better, _ = finishing.picture_losses(grain, grain)
    assert better < worse


def test_texture_minds_strength_not_place():
    generator = torch.Generator().manual_seed(0)
    grain = torch.randn(1, 3, 64, 64, generator=generator)
    smooth = torch.zeros_like(grain)
    everywhere = torch.ones(1, 1, 64, 64)
    moved = losses.texture_loss(grain.roll(3, -1), grain, everywhere)
    assert moved < 0.2 * losses.texture_loss(smooth, grain, everywhere)


def test_a_tint_is_a_loss_of_chroma_and_a_shadow_is_not():
    generator = torch.Generator().manual_seed(0)
    face, everywhere = torch.rand((2, 3, 16, 16), generator=generator), torch.ones(1, 1, 16, 16)
    assert losses.chroma_loss(face - 0.3, face, everywhere) < 1e-6
    greenish = face + torch.tensor([0.0, 0.3, 0.0])[None, :, None, None]
    assert losses.chroma_loss(greenish, face, everywhere) == pytest.approx(0.4 / 3, abs=1e-4)
