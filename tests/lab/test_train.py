"""Training of U-Net, audio encoder and lip reader, and the loop that they share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.training import CPU, SMALL_UNET, loop_of, made_clip, made_latents, made_mask, made_vae
from lipstream.audio_features.features import feature_rows, frame_windows
from lipstream_lab.train import audio_encoder, augment, data, latents, lip_reader, unet
from lipstream_lab.train.loop import Run, load_average, read_log
from lipstream_lab.train.muon import Muon, orthogonal


def test_pair_learns_and_only_the_unet_after_the_encoder(tmp_path):
    clips = made_latents(tmp_path)
    torch.manual_seed(0)
    before = unet.ConditionedUNet(SMALL_UNET, 4).state_dict()
    settings = loop_of(12, learning_rate=3e-3, ema_decay=0.5)
    after = unet.train(clips, made_vae(), made_mask(), tmp_path / "run", SMALL_UNET, settings, CPU).state_dict()
    losses = [line["loss"] for line in read_log(tmp_path / "run")]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    for name in ("unet.conv_in.weight", "audio_encoder.conv1.weight"):
        assert not torch.equal(before[name], after[name])
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    again = unet.train(clips, made_vae(), made_mask(), tmp_path / "run", SMALL_UNET, loop_of(14), CPU).state_dict()
    features = {name for name in again if name.startswith("audio_encoder") and torch.equal(again[name], after[name])}
    assert features == {name for name in saved["module"] if name.startswith("audio_encoder")}
    assert torch.equal(before["audio_encoder.positional_embedding"], after["audio_encoder.positional_embedding"])


def test_training_begins_with_the_reference(tmp_path):
    clips = made_latents(tmp_path)
    settings = dataclasses.replace(unet.UNetSettings(), audio_encoder_steps=1)
    model = unet.train(clips, made_vae(), made_mask(), tmp_path / "run", settings, loop_of(0), CPU)
    sampler = unet.training_sampler(clips, made_mask(), SMALL_UNET)
    generator = torch.Generator().manual_seed(0)
    batch = sampler.draw(1, 3, generator, CPU)
    with torch.no_grad():
        predicted = model.predict(batch, unet.window_noise(batch, generator))
    for channel in range(4):
        pair = torch.stack((predicted[:, channel].flatten(), batch.reference[:, channel].flatten()))
        assert torch.corrcoef(pair)[0, 1] > 0.999


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_run_ends_with_the_same_weights(tmp_path, optimizer):
    """Killed after any step and resumed, the weights are those of an uninterrupted run, bit for bit."""
    clips = made_latents(tmp_path)

    def judge(mouths: torch.Tensor) -> torch.Tensor:
        return mouths.mean((1, 2, 3))

    small = dataclasses.replace(SMALL_UNET, judge_every=3, judged_batches=1)

    def train(folder: Path, report=None) -> dict[str, torch.Tensor]:
        settings = loop_of(6, save_every_s=0.0, optimizer=optimizer)
        unet.train(clips, made_vae(), made_mask(), folder, small, settings, CPU, report, judge=judge)
        return torch.load(folder / "checkpoint.pt", weights_only=True)

    def kill(step: int, *_) -> None:
        if step == 4:  # logged but not yet saved
            raise KeyboardInterrupt

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", kill)
    resumed = train(tmp_path / "killed")
    for part in ("module", "average", "auxiliary"):
        for name, value in whole[part].items():
            assert torch.equal(value, resumed[part][name]), name
    assert [line["step"] for line in read_log(tmp_path / "killed")] == [1, 2, 3, 4, 5, 6]


def test_muon_turns_without_stretching():
    """Singular values that differ a thousandfold come near one, their vectors stay."""
    torch.manual_seed(0)
    u, v = torch.linalg.qr(torch.randn(3, 8, 8))[0], torch.linalg.qr(torch.randn(3, 20, 8))[0]
    made = orthogonal(u @ torch.logspace(0, -3, 8).diag() @ v.mT)
    turned = u.mT @ made @ v
    values = turned.diagonal(dim1=1, dim2=2)
    assert torch.allclose(turned, values.diag_embed(), atol=1e-3)
    assert bool((values[:, :5] > 0.6).all())
    assert bool((values < 1.25).all())


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (6, 3, 2, 2), (30, 3, 2, 2)])
def test_muon_finds_a_matrix_of_any_shape(shape):
    torch.manual_seed(0)
    wanted = torch.randn(shape)
    found = torch.nn.Parameter(torch.zeros(shape))
    fixed = torch.nn.Parameter(torch.ones(shape))
    muon = Muon([{"params": [found, fixed]}], 0.05)
    for _ in range(200):
        muon.zero_grad()
        (found - wanted).square().sum().backward()
        muon.step()
    assert float((found.detach() - wanted).square().mean()) < 0.05
    assert bool((fixed == 1).all())


def test_checkpoint_is_whole_or_absent(tmp_path):
    run = Run(tmp_path, torch.nn.Linear(2, 2), loop_of(1), CPU)
    run.save()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert load_average(tmp_path, torch.nn.Linear(2, 2)) == 0


def test_features_with_a_shape_predict_that_shape():
    """Whatever the features; the channels that hold no shape stay, and in each group all move alike."""
    generator = torch.Generator().manual_seed(0)
    features, wanted = torch.randn(3, 10, 32, generator=generator), torch.randn(3, 2, generator=generator)
    corrected = audio_encoder.with_shape(features, wanted)
    torch.testing.assert_close(audio_encoder.predicted_shape(corrected), wanted)
    assert torch.equal(corrected[..., :8], features[..., :8])
    torch.testing.assert_close(audio_encoder.with_shape(corrected, wanted), corrected)


def test_true_shapes_are_scaled_to_the_predictions(tmp_path):
    """Scaled, true openings have the mean and the spread of the encoder's predictions for the same clips."""
    clips = made_latents(tmp_path)
    encoder = unet.ConditionedUNet(SMALL_UNET, 4).audio_encoder
    gain, offset = audio_encoder.prediction_scale(encoder, clips, seed=0)
    draws = [audio_encoder._draw(clips, 32, torch.Generator().manual_seed(i)) for i in range(40)]
    with torch.no_grad():
        windows = [audio_encoder.feature_windows(encoder.convolve(mel), 12) for mel, _ in draws]
        predicted = torch.cat([audio_encoder.predicted_shape(window) for window in windows])
    true = torch.cat([target for _, target in draws]) * gain + offset
    for moment in (torch.mean, torch.std):
        torch.testing.assert_close(moment(true[..., 0]), moment(predicted[..., 0]), rtol=0.1, atol=1e-3)


def test_the_unet_gets_the_true_opening(tmp_path):
    """The same sound with another opening is another picture, except where the sound is kept from it."""
    sampler = latents.Sampler(made_latents(tmp_path), made_mask(), footage_share=0.5, unconditional_share=0.5)
    batch = sampler.draw(6, 3, torch.Generator().manual_seed(0), CPU)
    torch.manual_seed(0)
    model, noise = unet.ConditionedUNet(SMALL_UNET, 4).eval(), torch.randn(batch.latents.shape)
    with torch.inference_mode():
        change = model.predict(batch, noise) - model.predict(
            dataclasses.replace(batch, opening=1 - batch.opening), noise
        )
    changed = change.unflatten(0, (6, 3)).abs().amax((1, 2, 3, 4)) > 0
    assert torch.equal(changed, batch.has_audio[:, 0, 0] > 0)


def test_other_voices_are_near_the_true_one():
    """Every clip of a batch gets its own voice; the loud part of a tone stays within a few bands of where it was."""
    mel = torch.zeros(4, data.N_MELS, 20)
    mel[:, 40] = 2
    made = augment.vary_voices(mel, torch.Generator().manual_seed(0))
    assert made.shape == mel.shape
    assert not torch.equal(made[0], made[1])
    loudest = made.mean(-1).argmax(1)
    assert int((loudest - 40).abs().max()) <= 7
    assert torch.equal(made, augment.vary_voices(mel, torch.Generator().manual_seed(0)))


@torch.inference_mode()
def test_training_and_inference_have_the_same_audio_features(tmp_path):
    """Features of a window in training equal the product's rows for the same frames, positions and all."""
    model = unet.ConditionedUNet(SMALL_UNET, 4)
    samples = (0.1 * np.random.default_rng(0).standard_normal(16000 * 3)).astype(np.float32)
    whole = list(frame_windows(feature_rows(lambda: [samples], model.audio_encoder), 75))
    first, n_frames = 20, 5
    mel = data.mel_of_frames(data.normalised_mel(samples), first, n_frames)[None]
    features = model.encode_audio(mel, torch.tensor([first]), n_frames)
    assert torch.allclose(features, torch.stack(whole[first : first + n_frames]), atol=1e-5)


def test_reference_is_never_a_frame_of_the_window(tmp_path):
    clip = made_latents(tmp_path)[0]
    generator = torch.Generator().manual_seed(0)
    drawn = {latents._reference(clip, slice(2, 6), generator) for _ in range(200)}
    assert drawn == {0, 1, *range(6, 15)}


def test_masked_latents_of_a_dubbed_face_are_the_filmed_ones():
    """The jaw of a dubbed face must not reveal the speech."""
    clip = dataclasses.replace(made_clip(kind="dubbed"), extra=made_clip("other").crops)
    as_filmed = dataclasses.replace(clip, kind="footage", crops=clip.extra, extra=clip.crops)
    mask = made_mask()
    dubbed, filmed = (latents.encode_clip(c, made_vae(), mask, CPU)["masked"] for c in (clip, as_filmed))
    assert torch.equal(dubbed, filmed)


def test_lip_reader_reads_what_it_was_taught(tmp_path):
    """Brighter latents stand for a mouth further open; the reader estimates it for frames and their mixtures."""
    clips = made_latents(tmp_path)
    for clip in clips:
        clip.latents[: clip.n_frames] = clip.opening[:, None, None, None].half()
    reader = lip_reader.train_reader(clips, seed=0, steps=150)
    low, high = reader(torch.full((2, 4, 8, 8), 0.2)), reader(torch.full((2, 4, 8, 8), 0.8))
    assert float((high - low).min()) > 0.3
    assert not any(p.requires_grad for p in reader.parameters())


def test_lip_reader_is_taught_what_fooled_it(tmp_path):
    """Latents that it took for an open mouth and a judge calls shut are read as shut after the lesson."""
    clips = made_latents(tmp_path)
    for clip in clips:
        clip.latents[: clip.n_frames] = clip.opening[:, None, None, None].half()
    reader = lip_reader.train_reader(clips, seed=0, steps=150)
    grey = torch.full((24, 4, 8, 8), 0.9)
    grey[:, 0] = -0.9
    openings = torch.zeros(24)
    openings[:4] = float("nan")
    before = float(reader(grey).mean())
    with torch.autocast("cpu", torch.bfloat16):  # as a training step asks for it
        taught = lip_reader.update_reader(reader, grey, openings, clips, seed=1)
    assert abs(float(taught(grey).mean())) < min(0.15, abs(before))
    high, low = taught(torch.full((1, 4, 8, 8), 0.8)), taught(torch.full((1, 4, 8, 8), 0.2))
    assert float(high - low) > 0.3
    assert not any(p.requires_grad for p in taught.parameters())


def test_windows_without_sound_have_no_audio(tmp_path):
    clips = made_latents(tmp_path)
    sampler = latents.Sampler(clips, made_mask(), footage_share=0.5, unconditional_share=0.5)
    batch = sampler.draw(12, 3, torch.Generator().manual_seed(0), CPU)
    assert 0 < float(batch.has_audio.sum()) < 12
    torch.manual_seed(0)
    model = unet.ConditionedUNet(SMALL_UNET, 4).eval()
    other = dataclasses.replace(batch, mel=batch.mel + 1)
    with torch.inference_mode():
        noise = torch.randn(batch.latents.shape)
        change = (
            (model.predict(batch, noise) - model.predict(other, noise)).unflatten(0, (12, 3)).abs().amax((1, 2, 3, 4))
        )
    assert torch.equal(change > 0, batch.has_audio[:, 0, 0] > 0)


def test_redrawn_reference_is_of_the_same_frame(tmp_path):
    """Of footage whose every frame was redrawn, half of the windows refer to the frames' own redrawn ones."""
    clip = dataclasses.replace(made_latents(tmp_path)[0], latents=torch.zeros(28, 4, 8, 8))
    drawn = [latents._references(clip, slice(3, 6), torch.Generator().manual_seed(i)) for i in range(40)]
    assert [17, 18, 19] in drawn
    assert all(refs == [17, 18, 19] or not {3, 4, 5} & set(refs) for refs in drawn)


def test_many_steps_begin_anywhere(tmp_path):
    """A window that begins close to the picture shows it to the U-Net, one that begins at pure noise does not."""
    times = unet._timesteps(400, 0.7, torch.Generator().manual_seed(0))
    assert 0.2 < float((times == unet.FIRST_TIMESTEP).float().mean()) < 0.4
    assert int(times.min()) < 50
    sampler = latents.Sampler(made_latents(tmp_path), made_mask(), footage_share=0.5)
    batch = sampler.draw(1, 3, torch.Generator().manual_seed(0), CPU)
    other = dataclasses.replace(batch, latents=batch.latents + 1)
    torch.manual_seed(0)
    model, noise = unet.ConditionedUNet(SMALL_UNET, 4).eval(), torch.randn(batch.latents.shape)
    with torch.inference_mode():
        for timestep, seen in ((10, True), (unet.FIRST_TIMESTEP, False)):
            times = torch.tensor([timestep])
            assert torch.equal(model.predict(batch, noise, times), model.predict(other, noise, times)) != seen
        torch.testing.assert_close(model.predict(batch, noise, times), model.predict(batch, noise), atol=1e-4, rtol=0)
