"""Reading video and speech: which frames, which samples, and what happens to files that are not right."""

from __future__ import annotations

import itertools
import logging
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from helpers.media import (
    HEIGHT,
    WIDTH,
    n_open,
    number_of,
    numbered_image,
    set_display_matrix,
    smooth_image,
    wipe_pictures,
    write_float_wav,
    write_images,
    write_numbered,
    write_wav,
)
from lipstream.errors import InputError
from lipstream.media import loop
from lipstream.media.audio import SharedSpeech, n_output_frames, probe_speech, read_mono, read_planar
from lipstream.media.color import ColorTags
from lipstream.media.frame_rate import Timed, constant_rate
from lipstream.media.loop import read_looped
from lipstream.media.picture import FilmedPicture
from lipstream.media.reader import Decoded, probe, read_frames
from lipstream.settings import Loop

# The numbers that ffmpeg 9.0 shows of clips written by write_numbered:
#   ffmpeg -i CLIP.mp4 -r 25 -crf 10 -preset ultrafast -an OUT.mp4
FFMPEG_PICKS = {
    "25": [*range(20)],
    "30": [*range(12), *range(13, 18), *range(19, 24), *range(25, 30), *range(31, 36), 37, 38, 39],
    "30000/1001": [*range(12), *range(13, 18), *range(19, 24), *range(25, 30), *range(31, 36), 37, 38, 39],
    "24": [*range(12), *range(11, 36), *range(35, 40)],
    "24000/1001": [*range(12), *range(11, 36), *range(35, 40)],
    "60": [0, 1, 2, 4, 6, 9, 11, 14, 16, 18, 21, 23, 26, 28, 30, 33, 35, 38, 40, 42, 45, 47, 50, 52, 54, 57, 59],
    "50": [0, 1, 2, *range(3, 51, 2)],
    "25/2": [*np.repeat(range(14), 2), 14],
    "15": [*np.repeat(range(20), ([2, 1, 2] * 7)[:20])],
    "1": [0] * 25 + [1] * 25 + [2],
}
N_SOURCE = {"25": 20, "60": 60, "50": 50, "25/2": 15, "15": 20, "1": 3}
VARIABLE_MS = [0, 33, 66, 110, 150, 300, 310, 320, 330, 500, 540, 580, 700, 740, 780, 820, 1000]
VARIABLE_PICKS = [0, 1, 2, 3, 4, 4, 4, 4, 5, 6, 8, 8, 8, 9, 10, 11, 11, 11, 12, 13, 14, 15, 15, 15, 15, 16]
MS = Fraction(1, 1000)
FRAME_BYTES = WIDTH * HEIGHT * 3 // 2  # of a numbered picture; as decoded, its rows are padded


def numbers(path: Path) -> list[int]:
    return [number_of(frame.image) for frame in read_frames(path)]


@pytest.fixture(scope="module")
def long_gop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 frames at 25 fps, B-frames, one key frame only."""
    path = tmp_path_factory.mktemp("clips") / "long.mp4"
    return write_numbered(path, [*range(50)], Fraction(1, 25), preset="veryfast", g="250", bf="3")


# --- frame rate


@pytest.mark.parametrize("rate", FFMPEG_PICKS)
def test_shows_the_frames_that_ffmpeg_shows(rate: str, tmp_path: Path) -> None:
    step = 1 / Fraction(rate)
    pts = [i * step.numerator for i in range(N_SOURCE.get(rate, 40))]
    clip = write_numbered(tmp_path / "clip.mp4", pts, Fraction(1, step.denominator))
    assert numbers(clip) == FFMPEG_PICKS[rate]


def test_variable_frame_rate_as_ffmpeg(tmp_path: Path) -> None:
    assert numbers(write_numbered(tmp_path / "clip.mp4", VARIABLE_MS, MS)) == VARIABLE_PICKS


def test_a_late_start_is_filled_only_beside_sound(tmp_path: Path) -> None:
    pts = [500 + 40 * i for i in range(10)]
    alone = write_numbered(tmp_path / "alone.mp4", pts, MS)
    beside_sound = write_numbered(tmp_path / "beside.mp4", pts, MS, with_sound=True)
    assert numbers(alone) == [*range(10)]
    assert numbers(beside_sound) == [0] * 13 + [*range(10)]


def test_a_stream_without_times_goes_by_its_coded_rate(tmp_path: Path) -> None:
    assert numbers(write_numbered(tmp_path / "raw.h264", [*range(30)], Fraction(1, 25))) == [*range(30)]


def test_frames_are_numbered_and_their_images_are_private(tmp_path: Path) -> None:
    clip = write_numbered(tmp_path / "clip.mp4", [0, 2, 4], Fraction(1, 25))
    frames = list(read_frames(clip))
    assert [(f.index, f.source_index, f.is_repeat) for f in frames] == [(i, i, False) for i in range(5)]
    assert frames[0].image.flags.c_contiguous and frames[0].image.dtype == np.uint8
    frames[0].image[:] = 0
    assert number_of(frames[1].image) == 0 and frames[1].image.any()


def test_durations_are_rounded_in_single_precision_as_ffmpeg_does() -> None:
    # 2.50000001 frames: 2.5 as a C float, which is rounded to even.
    frame = Timed("frame", 0, 250_000_001, Fraction(1, 25 * 10**8))
    assert len(list(constant_rate([frame], Fraction(25), keep_initial_gap=False))) == 2


# --- geometry and pixel formats


@pytest.mark.parametrize(
    ("matrix", "rotation_deg", "mirrored", "upright"),
    [
        ((1, 0, 0, 1), 0, False, lambda image: image),
        ((0, 1, -1, 0), 90, False, lambda image: np.rot90(image, -1)),
        ((-1, 0, 0, -1), 180, False, lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), 270, False, lambda image: np.rot90(image, 1)),
        ((-1, 0, 0, 1), 0, True, lambda image: image[:, ::-1]),
        ((0, 1, 1, 0), 270, True, lambda image: image.transpose(1, 0, 2)),
    ],
)
def test_pictures_are_turned_upright(
    matrix: tuple[int, int, int, int],
    rotation_deg: int,
    mirrored: bool,
    upright: Callable[[np.ndarray], np.ndarray],
    tmp_path: Path,
) -> None:
    image = smooth_image(48, 80)
    clip = write_images(tmp_path / "clip.mp4", [image] * 2, "libx264", "yuv444p", crf="1")
    set_display_matrix(clip, matrix)
    info, frame = probe(clip), next(read_frames(clip))
    expected = upright(image)
    assert (info.rotation_deg, info.mirrored) == (rotation_deg, mirrored)
    assert frame.image.shape == expected.shape == (info.height, info.width, 3)
    assert np.abs(frame.image.astype(int) - expected).mean() < 3


def test_odd_sizes_are_kept(tmp_path: Path) -> None:
    image = smooth_image(77, 101)
    clip = write_images(tmp_path / "odd.mkv", [image])
    assert (probe(clip).width, probe(clip).height) == (101, 77)
    assert np.array_equal(next(read_frames(clip)).image, image)


@pytest.mark.parametrize(
    ("pix_fmt", "tolerance"), [("gray", 0), ("bgra", 0), ("yuv444p10le", 1), ("yuva420p", 3), ("yuvj420p", 3)]
)
def test_any_pixel_format_becomes_rgb(pix_fmt: str, tolerance: float, tmp_path: Path) -> None:
    image = smooth_image(48, 64)
    if pix_fmt == "gray":
        image[:] = image[..., :1]
    codec = "mjpeg" if pix_fmt == "yuvj420p" else "ffv1"
    clip = write_images(tmp_path / "clip.mkv", [image], codec, pix_fmt)
    assert np.abs(next(read_frames(clip)).image.astype(int) - image).mean() <= tolerance


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"), [("still.png", "png", "rgb24"), ("still.jpg", "mjpeg", "yuvj420p")]
)
def test_a_still_image_is_a_video_of_one_frame(name: str, codec: str, pix_fmt: str, tmp_path: Path) -> None:
    image = smooth_image(50, 70)
    with av.open(str(tmp_path / name), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 50, 70, pix_fmt
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    frames = list(read_frames(tmp_path / name))
    assert len(frames) == 1 and np.abs(frames[0].image.astype(int) - image).mean() < 4
    looped = list(read_looped(tmp_path / name, 5, "pingpong"))
    assert [f.source_index for f in looped] == [0] * 5 and looped[4].is_repeat


def test_probe_reports_the_stream_s_own_colour(tmp_path: Path) -> None:
    image = smooth_image(48, 64)
    assert probe(write_images(tmp_path / "a.mp4", [image], "libx264", "yuv420p")).color == ColorTags()
    rgb = probe(write_images(tmp_path / "b.mkv", [image])).color
    assert (rgb.range, rgb.space) == (1, 6)  # what a small YUV file made of it has to say


# --- looping


def test_pingpong_shows_both_ends_twice_and_the_very_same_pictures(long_gop: Path) -> None:
    first_pass = [frame.image for frame in read_frames(long_gop)]
    frames = list(read_looped(long_gop, 130, "pingpong", max_held_bytes=7 * FRAME_BYTES))
    order = [*range(50), *reversed(range(50)), *range(30)]
    assert [f.index for f in frames] == [*range(130)]
    assert [f.source_index for f in frames] == order
    assert [f.is_repeat for f in frames] == [False] * 50 + [True] * 80
    assert all(np.array_equal(f.image, first_pass[f.source_index]) for f in frames)


@pytest.mark.parametrize("name", ["clip.ts", "clip.mkv", "raw.h264", "clip.avi"])
def test_pingpong_in_containers_that_seek_badly(name: str, tmp_path: Path) -> None:
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    options = {"bf": "2", "g": "12"} | ({"x264-params": "open-gop=1"} if codec == "libx264" else {})
    clip = write_numbered(tmp_path / name, [*range(40)], Fraction(1, 25), codec=codec, **options)
    first_pass = [frame.image for frame in read_frames(clip)]
    frames = list(read_looped(clip, 80, "pingpong", max_held_bytes=6 * FRAME_BYTES))
    assert [f.source_index for f in frames] == [*range(40), *reversed(range(40))]
    assert all(np.array_equal(f.image, first_pass[f.source_index]) for f in frames)


def test_backwards_no_more_is_held_than_allowed(long_gop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    load = loop.Stretches.load

    def watched(self: loop.Stretches, start: int, stop: int) -> dict[int, Decoded]:
        pictures = load(self, start, stop)
        held.append(len(pictures))
        n_bytes = sum(plane.buffer_size for picture in pictures.values() for plane in picture.frame.planes)
        assert n_bytes <= 9 * FRAME_BYTES
        return pictures

    monkeypatch.setattr(loop.Stretches, "load", watched)
    list(read_looped(long_gop, 100, "pingpong", max_held_bytes=9 * FRAME_BYTES))
    assert sum(held) == 50 and max(held) > 4
    held.clear()
    list(read_looped(long_gop, 100, "pingpong", max_held_bytes=1))
    assert held == [1] * 50


def test_a_seek_that_brings_wrong_pictures_is_noticed(long_gop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: loop.Stretches, wanted: dict[int, int], lead_s: int) -> dict[int, Decoded]:
        frame = av.VideoFrame.from_ndarray(numbered_image(999), format="rgb24").reformat(format="yuv420p")
        return {ordinal: Decoded(ordinal, pts, frame) for pts, ordinal in wanted.items()}

    monkeypatch.setattr(loop.Stretches, "_decode_by_time", wrong)
    frames = list(read_looped(long_gop, 100, "pingpong", max_held_bytes=20 * FRAME_BYTES))
    assert [number_of(f.image) for f in frames] == [*range(50), *reversed(range(50))]


def test_a_seek_that_failed_once_is_not_tried_again(long_gop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leads_s: list[int] = []
    decode = loop.Stretches._decode_by_time

    def watched(self: loop.Stretches, wanted: dict[int, int], lead_s: int) -> dict[int, Decoded]:
        leads_s.append(lead_s)
        return {} if lead_s == 0 else decode(self, wanted, lead_s)

    monkeypatch.setattr(loop.Stretches, "_decode_by_time", watched)
    frames = list(read_looped(long_gop, 100, "pingpong", max_held_bytes=10 * FRAME_BYTES))
    assert [number_of(f.image) for f in frames] == [*range(50), *reversed(range(50))]
    assert len(leads_s) > 5 and leads_s == [0] + [1] * (len(leads_s) - 1)


def test_checksums_are_computed_only_for_videos_that_are_read_twice(
    long_gop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []
    checksum = FilmedPicture.checksum

    def watched(picture: FilmedPicture) -> int:
        checked.append(number_of(picture.image()))
        return checksum(picture)

    monkeypatch.setattr(FilmedPicture, "checksum", watched)
    assert len(list(read_looped(long_gop, 20, "pingpong"))) == 20
    assert not checked
    assert len(list(read_looped(long_gop, 60, "pingpong"))) == 60
    assert sorted(checked) == sorted([*range(50)] * 2)


def test_a_video_shorter_than_its_header_says_is_looped_all_the_same(tmp_path: Path) -> None:
    clip = write_numbered(tmp_path / "clip.mkv", [*range(100)], Fraction(1, 25), g="10")
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) * 6 // 10])
    n = len(numbers(clip))
    assert n < 70  # and 4 s are stated, more than the 75 frames wanted
    frames = list(read_looped(clip, 74, "pingpong", max_held_bytes=8 * FRAME_BYTES))
    assert [number_of(f.image) for f in frames] == [*range(n), *reversed(range(n))][:74]


@pytest.mark.parametrize("n", [1, 2])
def test_pingpong_of_a_tiny_clip(n: int, tmp_path: Path) -> None:
    clip = write_numbered(tmp_path / "tiny.mp4", [*range(n)], Fraction(1, 25))
    frames = list(read_looped(clip, 9, "pingpong"))
    assert [f.source_index for f in frames] == ([0] * 9 if n == 1 else [0, 1, 1, 0, 0, 1, 1, 0, 0])
    frames[2].image[:] = 0
    assert frames[5].image.any()


def test_hold_trim_and_stopping_early(long_gop: Path) -> None:
    held = list(read_looped(long_gop, 53, "hold"))
    assert [f.source_index for f in held[48:]] == [48, 49, 49, 49, 49]
    assert [f.is_repeat for f in held[48:]] == [False, False, True, True, True]
    assert np.array_equal(held[52].image, held[49].image)
    assert len(list(read_looped(long_gop, 53, "trim"))) == 50
    for mode in ("pingpong", "hold", "trim"):
        assert [f.index for f in read_looped(long_gop, 10, mode)] == [*range(10)]


@pytest.mark.parametrize("loop", ["pingpong", "hold"])
@pytest.mark.parametrize(("codec", "pix_fmt"), [("libx264", "yuv420p"), ("qtrle", "rgb24")])
@pytest.mark.parametrize("frame_rate", [25, 50])  # at 50 every picture is shown twice
def test_frames_may_be_changed_by_the_receiver(
    tmp_path: Path, loop: Loop, codec: str, pix_fmt: str, frame_rate: int
) -> None:
    clip = write_images(tmp_path / "clip.mov", [numbered_image(number) for number in (3, 3, 5, 5)], codec, pix_fmt)
    kept = [frame.image for frame in list(read_looped(clip, 12, loop, frame_rate))]
    copies = []
    for frame in read_looped(clip, 12, loop, frame_rate):
        copies.append(frame.image.copy())
        frame.image[:] = 77
    np.testing.assert_array_equal(copies, kept)


def test_a_video_that_shrinks_between_the_passes_is_an_error(tmp_path: Path) -> None:
    clip = write_numbered(tmp_path / "clip.mp4", [*range(20)], Fraction(1, 25))
    frames = read_looped(clip, 60, "pingpong", max_held_bytes=5 * FRAME_BYTES)
    for _ in range(20):
        next(frames)
    write_numbered(clip, [*range(10)], Fraction(1, 25))
    with pytest.raises(InputError, match="second time"):
        list(frames)


@pytest.mark.parametrize("n_taken", [1, 60])
def test_an_abandoned_reader_closes_its_files(n_taken: int, long_gop: Path) -> None:
    frames = read_looped(long_gop, 100, "pingpong", max_held_bytes=5 * FRAME_BYTES)
    for _ in range(n_taken):
        next(frames)
    assert n_open(long_gop) > 0
    frames.close()
    assert n_open(long_gop) == 0


# --- files that are not right


def test_a_truncated_video_is_read_as_far_as_it_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = write_numbered(tmp_path / "clip.mkv", [*range(100)], Fraction(1, 25), g="10")
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) * 6 // 10])
    with caplog.at_level(logging.WARNING, "lipstream"):
        shown = numbers(clip)
    assert 40 < len(shown) < 70 and shown == [*range(len(shown))]
    assert "ends at" in caplog.text and str(clip) in caplog.text


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.mov"])
def test_sound_longer_than_the_picture_is_no_truncation(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = write_numbered(tmp_path / name, [*range(50)], Fraction(1, 25), with_sound=True, sound_s=5.0)
    with caplog.at_level(logging.WARNING, "lipstream"):
        assert numbers(clip) == [*range(50)]
    assert not caplog.records
    assert probe(clip).duration_s == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("kept", [0.6, 0.8])
def test_a_truncated_picture_beside_sound_is_reported(
    kept: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = write_numbered(tmp_path / "clip.mkv", [*range(100)], Fraction(1, 25), with_sound=True, sound_s=6.0)
    content = clip.read_bytes()
    clip.write_bytes(content[: int(len(content) * kept)])
    with caplog.at_level(logging.WARNING, "lipstream"):
        assert len(numbers(clip)) < 90
    assert "the file says 4.00 s" in caplog.text


def test_a_damaged_tail_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = write_numbered(tmp_path / "clip.mp4", [*range(50)], Fraction(1, 25), g="5")
    wipe_pictures(clip, Fraction(2, 3))
    with caplog.at_level(logging.WARNING, "lipstream"):
        shown = numbers(clip)
    assert len(shown) > 25 and shown[:25] == [*range(25)]
    assert "damaged" in caplog.text


UNUSABLE = {
    "missing.mp4": (None, "no such file"),
    "empty.mp4": (b"", "empty"),
    "text.mp4": (b"not a video\n" * 99, "not a readable video"),
    "notes.txt": (b"some text\n" * 99, "is text"),
    "noise.mp4": (np.random.default_rng(0).bytes(9999), "not a readable video"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_videos_are_refused_by_name(name: str, tmp_path: Path) -> None:
    content, reason = UNUSABLE[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        probe(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match=reason):
        next(read_frames(tmp_path / name))


def test_folders_and_files_without_the_wanted_stream_are_refused(tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "sound.wav", np.ones(100, np.int16), 16000)
    silent = write_numbered(tmp_path / "silent.mp4", [0, 1], Fraction(1, 25))
    with pytest.raises(InputError, match="folder"):
        probe(tmp_path)
    with pytest.raises(InputError, match="no video stream"):
        probe(sound)
    with pytest.raises(InputError, match="no audio stream"):
        probe_speech(silent)
    with pytest.raises(InputError, match="folder"):
        probe_speech(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        next(read_mono(tmp_path / "missing.wav"))


def test_a_video_without_one_good_frame_is_refused(tmp_path: Path) -> None:
    clip = write_numbered(tmp_path / "clip.mp4", [0, 1, 2], Fraction(1, 25))
    wipe_pictures(clip, Fraction(0))
    with pytest.raises(InputError, match="no frame"):
        probe(clip)


@pytest.mark.parametrize("name", ["a: colon.mp4", "50%d.mp4", "[x] ünï.mp4", "-dash.mp4"])
def test_awkward_names(name: str, tmp_path: Path) -> None:
    clip = write_numbered(tmp_path / "plain.mp4", [0, 1], Fraction(1, 25)).rename(tmp_path / name)
    assert numbers(clip) == [0, 1]


# --- speech


def test_16_khz_mono_is_handed_through_exactly(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-32768, 32768, 40_001).astype(np.int16)
    path = write_wav(tmp_path / "speech.wav", samples, 16000)
    read = np.concatenate(list(read_mono(path)))
    assert read.dtype == np.float32 and np.array_equal(read, samples / np.float32(32768))
    assert probe_speech(path).duration_s == Fraction(40_001, 16000)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate_hz", [8000, 22050, 44100, 48000])
def test_speech_at_any_rate_becomes_16_khz_mono(rate_hz: int, channels: int, tmp_path: Path) -> None:
    n = rate_hz * 6 // 5 + 7
    tone = np.sin(np.arange(n) / rate_hz * 2 * np.pi * 440) * 9000
    # The second channel is silent: the mean halves the tone.
    samples = np.stack([tone, 0 * tone], 1)[:, :channels].astype(np.int16)
    path = write_wav(tmp_path / "speech.wav", samples, rate_hz)
    info = probe_speech(path)
    assert (info.sample_rate_hz, info.channels, info.n_samples) == (rate_hz, channels, n)
    mono = np.concatenate(list(read_mono(path)))
    assert len(mono) == round(Fraction(n * 16000, rate_hz))
    expected = np.sin(np.arange(len(mono)) / 16000 * 2 * np.pi * 440) * 9000 / 32768 / channels
    assert np.abs(mono - expected)[200:-200].max() < 0.002
    planar = np.concatenate(list(read_planar(info)), 1)
    assert np.array_equal(planar, samples.T / np.float32(32768))


def test_n_output_frames_rounds_exactly(tmp_path: Path) -> None:
    def frames(n_samples: int, rate_hz: int) -> int:
        path = write_wav(tmp_path / "speech.wav", np.zeros(n_samples, np.int16), rate_hz)
        return n_output_frames(probe_speech(path))

    assert frames(16000, 16000) == 25
    assert frames(16000 + 319, 16000) == 25
    assert frames(16000 + 321, 16000) == 26
    assert frames(44100 * 2 + 883, 44100) == 51
    assert frames(1, 48000) == 1


@pytest.mark.parametrize("rate_hz", [16000, 44100])
def test_mono_is_clipped_to_full_scale(rate_hz: int, tmp_path: Path) -> None:
    samples = 3 * np.sin(np.arange(rate_hz) / 40).astype(np.float32)
    path = write_float_wav(tmp_path / "loud.wav", samples, rate_hz)
    mono = np.concatenate(list(read_mono(path)))
    assert mono.max() == 1 and mono.min() == -1
    info = probe_speech(path)
    assert info.peak == np.abs(samples).max()
    assert np.array_equal(np.concatenate(list(read_planar(info)), 1)[0], samples)


INVALID = [np.nan, np.inf, -np.inf, 3e38, -2e6]


@pytest.mark.parametrize(("rate_hz", "dtype"), [(16000, np.float32), (44100, np.float32), (16000, np.float64)])
def test_invalid_samples_are_silence_with_one_warning(
    rate_hz: int, dtype: type[np.floating], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clean = (0.3 * np.sin(np.arange(2 * rate_hz) / 40)).astype(dtype)
    places = np.arange(1000, 1000 + 500 * len(INVALID), 500)
    damaged = clean.copy()
    damaged[places] = INVALID if dtype == np.float32 else [*INVALID[:3], 1e300, INVALID[4]]
    clean[places] = 0
    clean_path = write_float_wav(tmp_path / "clean.wav", clean, rate_hz)
    damaged_path = write_float_wav(tmp_path / "damaged.wav", damaged, rate_hz)
    with caplog.at_level(logging.WARNING, "lipstream"):
        info = probe_speech(damaged_path)
        mono = np.concatenate(list(read_mono(damaged_path)))
        planar = np.concatenate(list(read_planar(info)), 1)
    assert [record.message for record in caplog.records] == [
        f"{damaged_path}: 5 samples are not finite numbers or far too loud; they are replaced by silence"
    ]
    assert np.array_equal(mono, np.concatenate(list(read_mono(clean_path))))
    assert np.array_equal(planar[0], clean.astype(np.float32))


def test_a_silent_recording_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    faint = write_wav(tmp_path / "faint.wav", np.array([0, 2, -3] * 9999, np.int16), 16000)
    quiet = write_wav(tmp_path / "quiet.wav", np.array([0, 0, -40] * 9999, np.int16), 16000)
    with caplog.at_level(logging.WARNING, "lipstream"):
        assert probe_speech(quiet).peak == 40 / 32768
        assert not caplog.records
        assert len(list(read_mono(faint))) > 0 and probe_speech(faint).peak == 3 / 32768
    assert len(caplog.records) == 1 and "silent" in caplog.text and str(faint) in caplog.text


@pytest.mark.parametrize(("rate_hz", "channels"), [(16000, 1), (44100, 2)])
def test_shared_speech_gives_both_readers_what_each_would_read_alone(
    rate_hz: int, channels: int, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(-9999, 9999, (3 * rate_hz, channels)).astype(np.int16)
    info = probe_speech(write_wav(tmp_path / "speech.wav", noise, rate_hz))
    mono, planar = np.concatenate(list(read_mono(info.path))), np.concatenate(list(read_planar(info)), 1)
    with SharedSpeech(info) as shared:
        assert np.array_equal(np.concatenate(list(shared.mono())), mono)
        assert np.array_equal(np.concatenate(list(shared.planar()), 1), planar)
    with SharedSpeech(info) as shared, ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(lambda blocks: list(blocks), blocks) for blocks in (shared.mono(), shared.planar())]
        assert np.array_equal(np.concatenate(readers[0].result(10)), mono)
        assert np.array_equal(np.concatenate(readers[1].result(10), 1), planar)


def test_shared_speech_holds_the_distance_between_its_readers(tmp_path: Path) -> None:
    info = probe_speech(write_wav(tmp_path / "speech.wav", np.ones(60 * 48000, np.int16), 48000))

    def peak_bytes(distance: int) -> int:
        with SharedSpeech(info) as shared:
            model, output = shared.mono(), shared.planar()
            for _ in itertools.islice(model, distance):
                pass
            tracemalloc.start()
            for _ in zip(model, output, strict=False):
                pass
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return peak

    all_bytes = 4 * info.n_samples
    assert peak_bytes(3) < all_bytes / 20
    with SharedSpeech(info) as shared:
        output = shared.planar()
        next(output)
        output.close()
        tracemalloc.start()
        assert sum(len(block) for block in shared.mono()) == 60 * 16000
        assert tracemalloc.get_traced_memory()[1] < all_bytes / 20  # nothing is kept for a reader that has closed
        tracemalloc.stop()


def test_closing_shared_speech_ends_its_readers_and_closes_the_file(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "speech.wav", np.ones(10 * 48000, np.int16), 48000)
    with SharedSpeech(probe_speech(path)) as shared:
        model, output = shared.mono(), shared.planar()
        next(model)
        next(output)
        assert n_open(path) == 1
    assert n_open(path) == 0
    assert len(list(output)) == 0
    assert sum(len(block) for block in model) < 16000


def test_a_recording_without_samples_is_refused(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "speech.wav", np.zeros(0, np.int16), 16000)
    with pytest.raises(InputError, match="zero samples"):
        probe_speech(path)
    with pytest.raises(InputError, match="zero samples"):
        next(read_mono(path))


def test_the_sound_track_of_a_video_is_speech(tmp_path: Path) -> None:
    clip = write_numbered(tmp_path / "clip.mp4", [*range(25)], Fraction(1, 25), with_sound=True)
    info = probe_speech(clip)
    assert (info.sample_rate_hz, info.channels, info.layout) == (16000, 1, "mono")
    assert n_output_frames(info) in (25, 26, 27)  # AAC comes in whole blocks
