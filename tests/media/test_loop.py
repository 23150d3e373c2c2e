"""Reading a video beyond its end: back and forth, or its last frame held, and what is held in memory meanwhile."""

from __future__ import annotations

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
    write_images,
    write_numbered,
)
from lipstream.errors import InputError
from lipstream.media import loop
from lipstream.media.loop import read_looped
from lipstream.media.picture import FilmedPicture
from lipstream.media.reader import Decoded, read_frames
from lipstream.settings import Loop

FRAME_BYTES = WIDTH * HEIGHT * 3 // 2  # of a numbered picture; as decoded, its rows are padded


@pytest.fixture(scope="module")
def long_gop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 frames at 25 fps, B-frames, one key frame only."""
    path = tmp_path_factory.mktemp("clips") / "long.mp4"
    return write_numbered(path, [*range(50)], Fraction(1, 25), preset="veryfast", g="250", bf="3")


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
    n = sum(1 for _ in read_frames(clip))
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
