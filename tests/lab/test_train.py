"""Training: made data only; the espeak-ng and mediapipe parts run where those are installed."""

from __future__ import annotations

import argparse
import ctypes.util
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lipstream.audio_features.features import feature_rows, frame_windows
from lipstream.cli.interrupts import Interrupts
from lipstream.diffusion.mask import face_mask
from lipstream.errors import InputError, SettingsError
from lipstream.models.load import load_model
from lipstream.models.names import NAMES
from lipstream_lab.train import (
    audio_encoder,
    augment,
    bundle,
    cli,
    critic,
    data,
    dataset,
    espeak,
    finish,
    interiors,
    latents,
    lip_reader,
    losses,
    offset,
    portraits,
    start,
    unet,
    vae,
)
from lipstream_lab.train.loop import LoopSettings, Run, load_average, read_log
from lipstream_lab.train.speech_samples import SpeechSample
from lipstream_lab.train.videos import Video, find_videos

CPU = torch.device("cpu")
POLYGON = [(8, 24), (8, 40), (32, 60), (56, 40), (56, 24)]
SMALL_VAE = vae.VaeSettings(resolution=64, latent_channels=4, block_out_channels=(8, 8, 8, 16), batch_size=2)
SMALL_UNET = unet.UNetSettings(
    block_out_channels=(32, 32),
    heads=2,
    audio_channels=32,
    audio_encoder_steps=20,
    windows=2,
    num_frames=3,
    long_num_frames=4,
    decoded_frames=2,
)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made_clip(name: str = "a", kind: str = "footage", n_frames: int = 14) -> data.Clip:
    generator = np.random.default_rng(len(name))
    return data.Clip(
        name=name,
        kind=kind,
        person=name,
        late_ms=0.0,
        crops=generator.integers(0, 255, (n_frames, 3, 64, 64), dtype=np.uint8),
        mel=generator.normal(size=(data.N_MELS, 4 * n_frames + data.MEL_BEFORE + data.MEL_AFTER)).astype(np.float32),
        opening=generator.random(n_frames).astype(np.float32),
        width=np.ones(n_frames, np.float32),
        extra=generator.integers(0, 255, (1, 3, 64, 64), dtype=np.uint8),
    )


def made_vae():
    torch.manual_seed(0)
    return vae.build(SMALL_VAE).eval()


def made_mask() -> torch.Tensor:
    return face_mask(POLYGON, 64, 64)


def made_latents(tmp_path: Path) -> list[latents.LatentClip]:
    folder = tmp_path / "clips"
    folder.mkdir(exist_ok=True)
    for name, kind in (("a", "footage"), ("bb", "still")):
        made_clip(name, kind).save(folder / f"{name}.npz")
    return latents.prepare(folder, tmp_path / "latents", made_vae(), made_mask(), CPU)


def loop_of(steps: int, **options) -> LoopSettings:
    return LoopSettings(steps=steps, warmup_steps=2, decay_steps=2, log_every=1, **options)


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
    loaded = made_vae()
    learned = vae.load(tmp_path, loaded)
    assert not torch.equal(learned.verdict.weight, critic.Critic().verdict.weight)
    assert all(torch.equal(after[name], tensor) for name, tensor in loaded.state_dict().items())


def test_crops_are_every_third_and_all_with_an_open_mouth(tmp_path):
    clip = dataclasses.replace(
        made_clip("a", "still"), opening=np.zeros(len(made_clip("a", "still").crops), np.float32)
    )
    clip.opening[4] = 1
    clip.save(tmp_path / "a.npz")
    expected = clip.crops[[i for i in range(len(clip.crops)) if i % 3 == 0 or i == 4]].transpose(0, 2, 3, 1)
    assert np.array_equal(np.stack(list(data.all_crops(tmp_path))), expected)


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


def test_resumed_run_ends_with_the_same_weights(tmp_path):
    """Killed after any step and resumed, the weights are those of an uninterrupted run, bit for bit."""
    clips = made_latents(tmp_path)

    def judge(mouths: torch.Tensor) -> torch.Tensor:
        return mouths.mean((1, 2, 3))

    small = dataclasses.replace(SMALL_UNET, judge_every=3, judged_batches=1)

    def train(folder: Path, report=None) -> dict[str, torch.Tensor]:
        settings = loop_of(6, save_every_s=0.0)
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


def test_checkpoint_is_whole_or_absent(tmp_path):
    run = Run(tmp_path, torch.nn.Linear(2, 2), loop_of(1), CPU)
    run.save()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert load_average(tmp_path, torch.nn.Linear(2, 2)) == 0


def test_bundle_loads_with_the_products_loader_and_computes_the_same(tmp_path):
    autoencoder = made_vae()
    autoencoder.register_to_config(scaling_factor=0.5)
    torch.manual_seed(1)
    model = unet.ConditionedUNet(SMALL_UNET, 4).eval()
    description = bundle.BundleSettings("made", 64, 64, POLYGON, num_frames=4)
    for _ in range(2):  # the second replaces the first
        bundle.write(tmp_path / "model", model, autoencoder, SMALL_UNET, description)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    model = load_model(tmp_path / "model", CPU, torch.float32)
    assert model.vae.config.scaling_factor == 0.5
    sample, audio = torch.randn(3, 13, 8, 8), torch.randn(3, 10, SMALL_UNET.audio_channels)
    with torch.inference_mode():
        expected = model.unet(sample, torch.tensor(999), audio, 3)
        got = model.unet(sample, torch.tensor(999), audio, 3)
    assert torch.allclose(expected, got, atol=2e-2)
    mel = torch.randn(1, data.N_MELS, 3000)
    with torch.inference_mode():
        assert torch.allclose(model.audio_encoder(mel), model.audio_encoder(mel), atol=2e-2)


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


def test_held_out_frames_are_never_in_a_clip(tmp_path, monkeypatch):
    """The last fifth of a video is neither detected, cropped nor stored."""
    seen: list[int] = []

    class Frame:
        def __init__(self, index: int) -> None:
            self.index = self.source_index = index
            self.image = np.full((8, 8, 3), index, np.uint8)

    class Detector:
        def detect(self, image):
            seen.append(int(image[0, 0, 0]))
            return argparse.Namespace(landmarks=np.array([[2.0, 2.0], [6.0, 2.0], [4.0, 5.0]]))

    class Mesh:
        def points(self, crop):
            return None

    monkeypatch.setattr(dataset, "read_frames", lambda path: (Frame(i) for i in range(50)))
    video = Video(Path("x.mp4"), "x", "x", 0.2)
    clip = dataset.footage_clip(video, 64, Detector(), Mesh(), np.ones(32000, np.float32), lambda mel, opening: 0.0)
    assert seen == list(range(40))
    assert len(clip.crops) == 40
    assert clip.mel.shape[1] == 4 * 40 + data.MEL_BEFORE + data.MEL_AFTER


def test_reference_is_never_a_frame_of_the_window(tmp_path):
    clip = made_latents(tmp_path)[0]
    generator = torch.Generator().manual_seed(0)
    drawn = {latents._reference(clip, slice(2, 6), generator) for _ in range(200)}
    assert drawn == {0, 1, *range(6, 15)}


def test_made_clip_survives_saving(tmp_path):
    clip = made_clip()
    clip.save(tmp_path / "a.npz")
    loaded = data.Clip.load(tmp_path / "a.npz")
    assert loaded.kind == "footage"
    assert np.array_equal(loaded.crops, clip.crops)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_variation_is_the_same_for_all_frames():
    clip = made_clip()
    same = dataclasses.replace(clip, kind="still", crops=np.repeat(clip.crops[:1], 3, 0), extra=clip.crops[:1])
    varied = dataset.varied(same, "v", torch.Generator().manual_seed(3))
    assert not np.array_equal(varied.crops[0], same.crops[0])
    for frame in (*varied.crops, *varied.extra):
        assert np.array_equal(frame, varied.crops[0])


def made_speech(n_frames: int = 40) -> SpeechSample:
    samples = np.random.default_rng(1).normal(0, 0.1, n_frames * 640).astype(np.float32)
    opening = (np.arange(n_frames) / n_frames).astype(np.float32)
    return SpeechSample(samples, opening, np.ones(n_frames, np.float32))


def test_dubbed_face_says_the_other_speech():
    """Openings and sound are those of the speech, the references the frames as they were, the mouth a new one."""
    footage = made_clip(n_frames=20)
    points = np.zeros((478, 2))
    points[list(portraits.UPPER_INNER)] = points[list(portraits.LOWER_INNER)] = [(x, 160) for x in range(88, 176, 8)]
    points[[portraits.NOSE_BASE, 0, 17, portraits.CHIN, portraits.FOREHEAD]] = [
        (128, y) for y in (120, 150, 170, 220, 20)
    ]
    found = [points] * 19 + [None]
    speech = made_speech()
    clip = dataset.dubbed_clip("d", footage, found, speech, 20, [], torch.Generator().manual_seed(0))
    first = int(np.flatnonzero(speech.opening == clip.opening[0])[0])
    assert np.array_equal(clip.opening, speech.opening[first : first + 20])
    assert np.array_equal(clip.mel, speech.mel_window(first, 20).numpy())
    assert np.array_equal(clip.extra, footage.crops)
    assert np.array_equal(clip.crops[19], footage.crops[19])
    assert not np.array_equal(clip.crops[10, :, 35:50], footage.crops[10, :, 35:50])
    assert np.array_equal(clip.crops[10, :, :25], footage.crops[10, :, :25])


def test_masked_latents_of_a_dubbed_face_are_the_filmed_ones():
    """The jaw of a dubbed face must not reveal the speech."""
    clip = dataclasses.replace(made_clip(kind="dubbed"), extra=made_clip("other").crops)
    as_filmed = dataclasses.replace(clip, kind="footage", crops=clip.extra, extra=clip.crops)
    mask = made_mask()
    dubbed, filmed = (latents.encode_clip(c, made_vae(), mask, CPU)["masked"] for c in (clip, as_filmed))
    assert torch.equal(dubbed, filmed)


def test_faster_speech_is_shorter_and_opens_as_far():
    speech = made_speech()
    faster = speech.faster(1.25)
    assert len(faster.samples) == pytest.approx(len(speech.samples) / 1.25, abs=2)
    assert len(faster.opening) == 32
    assert faster.opening[8] == pytest.approx(speech.opening[10])


@pytest.mark.parametrize("shift_ms", [-60.0, 0.0, 40.0])
def test_real_speech_is_at_the_frames_that_say_it(shift_ms):
    """Cut out of its video, the sound lies at the same frames as in the clip, however late it is in the file."""
    samples = np.random.default_rng(1).normal(0, 0.1, 16000 * 2).astype(np.float32)
    footage = dataclasses.replace(made_clip(n_frames=30), late_ms=shift_ms)
    speech = SpeechSample.real(samples, footage)
    assert len(speech.samples) == 30 * 640
    start = 10 * 640 + round(shift_ms * 16)
    assert np.array_equal(speech.samples[10 * 640 : 11 * 640], samples[start : start + 640])


def test_every_clip_draws_for_itself():
    """Names that end alike do not get the same speech and colours."""
    names = [f"{number:04d}-s0" for number in range(50)]
    drawn = {float(torch.rand((), generator=data.seeded(0, name))) for name in names}
    assert len(drawn) == len(names)


def made_mouth(size: int = 64) -> portraits.Mouth:
    line = torch.full((size,), 40.0)
    return portraits.Mouth(line, line, 20.0, 44.0, 30.0, 37.0, 43.0, 54.0, 60.0)


def striped_mouth() -> tuple[torch.Tensor, portraits.Mouth]:
    """Skin with an open mouth 24 px wide and 10 px high, white above and black below."""
    crop = torch.full((3, 64, 64), 0.6)
    inside = (torch.arange(64) >= 20) & (torch.arange(64) < 44)
    upper, lower = torch.full((64,), 40.0), 40.0 + 10 * inside
    crop[:, 40:45, 20:44], crop[:, 45:50, 20:44] = 1.0, 0.0
    return crop, dataclasses.replace(made_mouth(), upper=upper, lower=lower, face_height=10 / portraits.FULL_GAP)


def test_filmed_inside_fills_another_mouth():
    """White above and black below, as where it was filmed; less open, of the lower part less is seen."""
    filmed = portraits.cut_interior(*striped_mouth())
    assert filmed is not None
    assert filmed.gap_share == pytest.approx(1.0)
    shut, skin = dataclasses.replace(made_mouth(), face_height=10 / portraits.FULL_GAP), torch.full((3, 64, 64), 0.6)
    wide = portraits.render(skin, shut, filmed, 1.0, 1.0)[:, :, 32].mean(0)
    half = portraits.render(skin, shut, filmed, 0.5, 1.0)[:, :, 32].mean(0)
    assert 3 <= int((wide > 0.95).sum()) <= 6
    assert 3 <= int((wide < 0.05).sum()) <= 6
    assert int((half < 0.05).sum()) <= 1
    assert int((half > 0.95).sum()) >= 3


def test_filmed_inside_takes_the_light_of_the_face():
    filmed = portraits.cut_interior(*striped_mouth())
    assert filmed is not None
    darker = filmed.on(filmed.skin * torch.tensor([0.5, 0.6, 0.7]))
    assert torch.allclose(darker.picture[:, 2, 20], torch.tensor([0.5, 0.6, 0.7]), atol=0.02)


def test_shut_mouth_has_no_inside_to_cut():
    assert portraits.cut_interior(torch.zeros(3, 64, 64), made_mouth()) is None


def test_still_opens_in_the_middle_and_nowhere_else():
    crop = torch.full((3, 64, 64), 0.6)
    interior = interiors.Drawn(torch.zeros(3), torch.zeros(3), torch.zeros(3), 0.1)
    shut = portraits.render(crop, made_mouth(), interior, 0.0, 1.0)
    half = portraits.render(crop, made_mouth(), interior, 0.5, 1.0)
    wide = portraits.render(crop, made_mouth(), interior, 1.0, 1.0)
    assert torch.allclose(shut, crop, atol=1e-4)

    def dark(picture: torch.Tensor) -> int:
        return int((picture.mean(0) < 0.3).sum())

    assert 0 < dark(half) < dark(wide)
    assert torch.allclose(wide[:, :25], crop[:, :25], atol=1e-4)
    assert torch.allclose(wide[..., :15], crop[..., :15], atol=1e-4)


def test_mouth_follows_phonemes_and_loudness():
    n = 16000
    samples = (0.3 * np.sin(np.arange(n) * 0.2)).astype(np.float32)
    phonemes = tuple(espeak.Phoneme(name, t) for name, t in (("m", 0.0), ("a:", 0.3), ("m", 0.6), ("_:", 0.8)))
    opening, _ = espeak.mouth_curves(espeak.Speech(samples, 16000, phonemes), 25)
    assert opening[10:14].min() > 0.8
    assert opening[[2, 3, 17, 24]].max() < 0.05
    quiet, _ = espeak.mouth_curves(espeak.Speech(samples * np.linspace(0, 1, n, dtype=np.float32), 16000, phonemes), 25)
    assert quiet[10] < opening[10]
    assert espeak.shape_of("u:")[1] < 1 < espeak.shape_of("i:")[1]


@pytest.mark.skipif(ctypes.util.find_library("espeak-ng") is None, reason="needs espeak-ng")
def test_espeak_reports_its_phonemes():
    speech = espeak.Speaker().say("mama", "en-us")
    names = [phoneme.name for phoneme in speech.phonemes]
    assert names.count("m") == 2
    assert len(speech.samples) > 0.2 * speech.sample_rate_hz
    with pytest.raises(SettingsError, match="no voice"):
        espeak.Speaker().say("mama", "no such voice")


def test_stages_in_the_wrong_order_name_the_fix(tmp_path):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    with pytest.raises(SettingsError, match="lipstream train data"):
        cli.run(parser.parse_args(["unet", str(tmp_path)]), Interrupts())
    (tmp_path / "clips").mkdir()
    made_clip().save(tmp_path / "clips" / "a.npz")
    with pytest.raises(SettingsError, match="lipstream train vae"):
        cli.run(parser.parse_args(["bundle", str(tmp_path), str(tmp_path / "out")]), Interrupts())


def test_shifts_are_read(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"a": -60}))
    assert data.read_shifts(tmp_path / "s.json") == {"a": -60.0}


def test_bundled_model_is_named():
    assert "tiny" in NAMES


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
    finishing = critic.Finishing(unet.ConditionedUNet(SMALL_UNET, 4), made_vae())
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


@pytest.mark.parametrize("late_ms", [-120, 0, 60])
def test_delay_of_the_sound_is_found(late_ms):
    """A tone that swells with the mouth, moved in the file, is found at the frame that opens it."""
    generator = np.random.default_rng(2)
    opening = np.convolve(generator.random(100), np.ones(4) / 4, "same").astype(np.float32)
    times_s = np.arange(16000 * 4) / 16000
    level = np.interp(times_s - late_ms / 1000, np.arange(100) / 25 + 0.02, opening)
    mel = data.normalised_mel((level**2 * np.sin(2 * np.pi * 440 * times_s)).astype(np.float32))

    def loudness(window, n_frames):
        columns = window[:, data.MEL_BEFORE : data.MEL_BEFORE + data.MEL_PER_FRAME * n_frames]
        return columns.amax(0).view(n_frames, -1).mean(1, keepdim=True).numpy()

    found = offset.find_offset(mel, opening, loudness)
    assert abs(found.late_ms - late_ms) <= 20
    assert found.r > 0.9
    assert found.r >= found.r_unmoved


def test_a_mouth_that_does_not_move_leaves_the_sound_where_it_is():
    mel = data.normalised_mel(np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32))
    found = offset.find_offset(mel, np.zeros(40, np.float32), offset.predictor("tiny"))
    assert (found.late_ms, found.r) == (0, 0.0)


def test_people_are_subfolders_and_whole_sentences_are_held_out(tmp_path):
    for name in ("alone.mp4", *(f"anna/{number}.mpg" for number in range(10)), "bert/0.mp4", "bert/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = {video.name: video for video in find_videos(tmp_path, 0.2, left_out=["bert"])}
    assert found["alone"].held_out == 0.2
    assert found["alone"].person == "alone"
    assert [name for name, video in found.items() if video.held_out == 1] == ["anna-4", "anna-9", "bert-0"]
    assert found["anna-3"].held_out == 0
    with pytest.raises(InputError, match=r"shows no carl.*alone, anna, bert"):
        find_videos(tmp_path, 0.2, left_out=["carl"])


def test_a_person_with_many_clips_does_not_crowd_out_the_others(tmp_path):
    many = [dataclasses.replace(made_clip(f"many{n}"), person="many") for n in range(16)]
    for clip in (*many, made_clip("few")):
        clip.save(tmp_path / f"{clip.name}.npz")
    clips = latents.prepare(tmp_path, tmp_path / "latents", made_vae(), made_mask(), CPU)
    group, generator = latents.by_kind(clips)["footage"], torch.Generator().manual_seed(0)
    drawn = [group.draw(generator).person for _ in range(1000)]
    assert 0.15 < drawn.count("few") / len(drawn) < 0.25  # a fifth: the square roots of 1 and 16


def test_clips_of_another_version_are_refused(tmp_path):
    clip = made_clip()
    np.savez(tmp_path / "a.npz", kind=np.array("footage"), crops=clip.crops, mel=clip.mel)
    with pytest.raises(InputError, match="another version"):
        data.Clip.load(tmp_path / "a.npz")


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
