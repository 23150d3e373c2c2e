"""Reading video and speech: which frames, which samples, and what happens to files that are not right."""

from __future__ import annotations

import logging
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from helpers.media import (
    number_of,
    set_display_matrix,
    smooth_image,
    wipe_pictures,
    write_images,
    write_numbered,
    write_wav,
)
from lipstream.errors import InputError
from lipstream.media.audio import probe_speech, read_mono
from lipstream.media.color import ColorTags
from lipstream.media.frame_rate import Timed, constant_rate
from lipstream.media.loop import read_looped
from lipstream.media.reader import probe, read_frames

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
