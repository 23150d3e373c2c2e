"""Training data: clips, dubs, stills, delays; the espeak-ng part runs where that is installed."""

from __future__ import annotations

import argparse
import ctypes.util
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.training import CPU, made_clip, made_mask, made_vae
from lipstream.errors import InputError, SettingsError
from lipstream_lab.train import data, dataset, espeak, interiors, latents, offset, portraits
from lipstream_lab.train.speech_samples import SpeechSample
from lipstream_lab.train.videos import Video, find_videos


def test_crops_are_every_third_and_all_with_an_open_mouth(tmp_path):
    clip = dataclasses.replace(
        made_clip("a", "still"), opening=np.zeros(len(made_clip("a", "still").crops), np.float32)
    )
    clip.opening[4] = 1
    clip.save(tmp_path / "a.npz")
    expected = clip.crops[[i for i in range(len(clip.crops)) if i % 3 == 0 or i == 4]].transpose(0, 2, 3, 1)
    assert np.array_equal(np.stack(list(data.all_crops(tmp_path))), expected)


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


def test_filmed_inside_takes_the_light_of_the_face_and_half_its_darkness():
    filmed = portraits.cut_interior(*striped_mouth())
    assert filmed is not None
    darker = filmed.on(filmed.skin * torch.tensor([0.5, 0.6, 0.7]))
    assert torch.allclose(darker.picture[:, 2, 20], torch.tensor([0.5, 0.6, 0.7]) / 0.6**0.5, atol=0.02)


def test_teeth_filmed_in_orange_light_are_lent_as_cream():
    orange = torch.tensor([0.95, 0.8, 0.15])[:, None, None].expand(3, 24, 48)
    red, green, blue = interiors.Filmed(orange, 1.0, torch.tensor([0.86, 0.52, 0.22])).in_white_light().picture[:, 0, 0]
    assert red > green > blue > 0.75 * red


def test_there_is_no_second_row_of_teeth_below_a_portraits_own():
    filmed = interiors.Filmed(torch.ones(3, 24, 48), 1.0, torch.full((3,), 0.6))
    mouth = interiors.Opened(*(torch.ones(4, 4) for _ in range(4)), middle_gap=8.0, full_gap=8.0)
    assert filmed.colours(mouth, has_own_teeth=False).min() == 1
    assert filmed.colours(mouth, has_own_teeth=True).max() < 0.3 * 0.6


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


def test_shifts_are_read(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"a": -60}))
    assert data.read_shifts(tmp_path / "s.json") == {"a": -60.0}


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


def test_dark_stills_among_light_ones_are_drawn_more_often(tmp_path):
    for n in range(17):
        clip = dataclasses.replace(made_clip(f"still{n}"), kind="still", person=f"{n}")
        dataclasses.replace(clip, crops=np.full_like(clip.crops, 40 if n == 0 else 200)).save(tmp_path / f"{n}.npz")
    clips = latents.prepare(tmp_path, tmp_path / "latents", made_vae(), made_mask(), CPU)
    sampler, generator = latents.Sampler(clips, made_mask(), footage_share=0.0), torch.Generator().manual_seed(0)
    dark = [float(sampler.draw(1, 2, generator, CPU).crops.mean()) < 0 for _ in range(300)]
    assert 0.15 < sum(dark) / len(dark) < 0.25  # a fifth: the square roots of 1 and 16


def test_clips_of_another_version_are_refused(tmp_path):
    clip = made_clip()
    np.savez(tmp_path / "a.npz", kind=np.array("footage"), crops=clip.crops, mel=clip.mel)
    with pytest.raises(InputError, match="another version"):
        data.Clip.load(tmp_path / "a.npz")
