"""Pictures keep the samples that were decoded: parts become RGB as the whole does, only what changes is replaced."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from helpers.media import smooth_image
from lipstream.encoding_settings import EncodingSettings
from lipstream.media.color import ColorTags, YuvColor, converted
from lipstream.media.picture import FilmedPicture, FilmedView, Rectangle
from lipstream.media.pixel_format import Planes, frame_of, kept_layout, layout_of, planes_of
from lipstream.media.reader import VideoSource, probe
from lipstream.media.tone import codes_of, levels_of
from lipstream.media.writer import VideoWriter

FORMATS = ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le"]
HLG = ColorTags(1, 9, 9, 18)


def noise(name: str, width: int = 161, height: int = 119, color: ColorTags = ColorTags()) -> FilmedPicture:  # noqa: B008
    """A picture of random samples, of an odd size."""
    layout, random = layout_of(name), np.random.default_rng(0)
    assert layout is not None
    low, high, dtype = 16 << (layout.bits - 8), 235 << (layout.bits - 8), np.uint8 if layout.bits == 8 else np.uint16
    sizes = [(-(-height // down), -(-width // across)) for across, down in layout.steps()]
    planes = tuple(random.integers(low, high, size).astype(dtype) for size in sizes)
    return FilmedPicture(planes, layout, YuvColor.of(color, width, height))


@pytest.mark.parametrize("color", [ColorTags(), ColorTags(2, 9, 9, 1), HLG])
@pytest.mark.parametrize("name", FORMATS)
def test_a_part_is_converted_as_the_whole(name: str, color: ColorTags) -> None:
    picture, random = noise(name, color=color), np.random.default_rng(1)
    whole = picture.rgb(Rectangle(0, 0, 161, 119))
    for _ in range(20):
        left, top = random.integers(0, (160, 118)).tolist()
        width, height = random.integers(1, (162 - left, 120 - top)).tolist()
        part = picture.rgb(Rectangle(left, top, width, height))
        assert np.array_equal(part, whole[top : top + height, left : left + width])
    assert np.abs(picture.image() - np.asarray(whole, float)).mean() < (1 if color == HLG else 0.51)


@pytest.mark.parametrize("color", [ColorTags(), ColorTags(2, 9, 9, 1), HLG])
@pytest.mark.parametrize("name", [*FORMATS, "yuv420p12le"])
def test_what_is_looked_at_is_as_in_the_whole(name: str, color: ColorTags) -> None:
    picture = noise(name, color=color)
    view, image = FilmedView(picture), picture.image()
    assert view.shape == image.shape and np.array_equal(np.asarray(view), image)
    for key in (np.s_[::3], np.s_[1::2], np.s_[7::10, 3::8], np.s_[20:90, 31:99], np.s_[100:, :5], np.s_[5:5, 2:9]):
        assert np.array_equal(view[key], image[key])


@pytest.mark.parametrize("color", [ColorTags(), HLG])
@pytest.mark.parametrize("name", FORMATS)
def test_only_what_changed_is_replaced(name: str, color: ColorTags) -> None:
    picture = noise(name, color=color)
    before, part = [plane.copy() for plane in picture.planes], Rectangle(21, 31, 60, 50)
    rgb = picture.rgb(part).copy()
    picture.paste(part, rgb)
    assert all(np.array_equal(*pair) for pair in zip(before, picture.planes, strict=True))
    copied = picture.copy()
    rgb[10:30, 20:40] = 100
    picture.paste(part, rgb)
    for old, new, kept, (across, down) in zip(
        before, picture.planes, copied.planes, picture.layout.steps(), strict=True
    ):
        changed = np.argwhere(old != new)
        assert (changed >= (41 // down, 41 // across)).all() and (changed <= (60 // down, 60 // across)).all()
        assert len(changed) > 0.9 * 400 / (across * down)
        assert np.array_equal(old, kept)
    # A sample of 8 bits is as coarse as a level; tone mapping stretches some of them.
    tolerance = 0.7 if picture.layout.bits > 8 else 5
    assert np.abs(picture.rgb(part)[14:26, 24:36].astype(float) - 100).max() < tolerance


@pytest.mark.parametrize("transfer", [1, 16, 18])
def test_light_comes_back_from_tone_mapping(transfer: int) -> None:
    codes = np.arange(0, 65536, 64, np.uint16)  # of 10 bits
    levels = levels_of(codes, transfer)
    assert (np.diff(levels) > 0).all() and levels.min() >= 0 and levels.max() <= 255
    assert np.abs(codes_of(levels, transfer).astype(int) - codes).max() <= 32
    if transfer != 1:
        assert 100 < levels_of(np.array([0.38 * 65535], np.uint16), transfer)[0] < 190  # BT.2408's grey card


# --- through a file


def filmed(path: Path, name: str, color: ColorTags = ColorTags(), n: int = 3) -> Path:  # noqa: B008
    """A lossless clip in a pixel format."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, name
        context = stream.codec_context
        context.color_range, context.colorspace = color.range, color.space
        context.color_primaries, context.color_trc = color.primaries, color.transfer
        for index in range(n):
            frame = av.VideoFrame.from_ndarray(smooth_image(64, 96, index), format="rgb24").reformat(format=name)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decoded(path: Path) -> Iterator[Planes]:
    with VideoSource(path) as source:
        for timed in source.pictures():
            picture = source.picture(timed.item)
            assert isinstance(picture, FilmedPicture)
            yield tuple(plane.copy() for plane in picture.planes)


def rewritten(source: Path, path: Path, part: Rectangle | None = None, **settings: object) -> Path:
    """The clip read and written, with something pasted into a part of each picture."""
    info = probe(source)
    encoding = EncodingSettings.from_dict({"x264_preset": "ultrafast", **settings})
    size = {"width": info.width, "height": info.height, "n_frames": 3}
    with (
        VideoSource(source) as video,
        VideoWriter(path, **size, color=info.color, speech=None, layout=info.layout, encoding=encoding) as writer,
    ):
        for timed in video.pictures():
            picture = video.picture(timed.item)
            if part is not None:
                picture.paste(part, 255 - picture.rgb(part))
            writer.write(picture)
    return path


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("name", FORMATS)
def test_samples_away_from_the_face_are_the_decoders_own(name: str, codec: str, tmp_path: Path) -> None:
    color = HLG if "10" in name else ColorTags(1, 1, 1, 1)
    source, part = filmed(tmp_path / "in.mkv", name, color), Rectangle(33, 17, 30, 20)
    written = rewritten(source, tmp_path / "out.mp4", part, codec=codec, crf=0)
    info = probe(written)
    assert (info.layout.name, info.color) == (name, color)
    assert len(list(decoded(written))) == 3
    for before, after in zip(decoded(source), decoded(written), strict=True):
        for old, new, (across, down) in zip(before, after, info.layout.steps(), strict=True):
            rows = slice(part.top // down, -(-(part.top + part.height) // down))
            columns = slice(part.left // across, -(-(part.left + part.width) // across))
            assert (old[rows, columns] != new[rows, columns]).mean() > 0.5
            new[rows, columns] = old[rows, columns]
            assert np.array_equal(old, new)


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        ("yuv411p", "yuv420p"),
        ("yuv410p", "yuv420p"),
        ("yuva420p", "yuv420p"),
        ("yuv420p9le", "yuv420p10le"),
        ("yuv422p12le", "yuv422p10le"),
        ("gbrp10le", "yuv420p10le"),
        ("bgra", "yuv420p"),
        ("gray", "yuv420p"),
    ],
)
def test_what_cannot_be_encoded_becomes_the_nearest(stored: str, kept: str, tmp_path: Path) -> None:
    source = filmed(tmp_path / "in.mkv", stored)
    assert probe(rewritten(source, tmp_path / "out.mp4")).layout.name == kept


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_codecs(codec: str, suffix: str, tmp_path: Path) -> None:
    if (codec, suffix) == ("av1", ".mov"):
        pytest.skip("QuickTime files hold no AV1")
    source = filmed(tmp_path / "in.mkv", "yuv420p10le", HLG)
    paths = [rewritten(source, tmp_path / f"{i}{suffix}", codec=codec, crf=10) for i in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with av.open(str(paths[0])) as container:
        context = container.streams.video[0].codec_context
        assert (context.codec.canonical_name, context.pix_fmt) == (codec, "yuv420p10le")
        if codec == "hevc" and suffix != ".mkv":
            assert context.codec_tag == "hvc1"
    assert probe(paths[0]).color == HLG
    for before, after in zip(decoded(source), decoded(paths[0]), strict=True):
        assert np.abs(before[0].astype(int) - after[0]).mean() < 4


@pytest.mark.parametrize(("stored", "kept"), [("nv12", "yuv420p"), ("p010le", "yuv420p10le"), ("yuyv422", "yuv422p")])
def test_the_same_samples_in_another_order_are_kept_bit_for_bit(stored: str, kept: str) -> None:
    picture = noise(kept, 160, 120)
    frame = frame_of(picture.planes, picture.layout)
    layout = kept_layout(frame.reformat(format=stored).format, is_turned=False)
    assert layout == picture.layout
    again = converted(converted(frame, stored, picture.color), kept, picture.color)
    assert all(np.array_equal(*pair) for pair in zip(picture.planes, planes_of(again, layout), strict=True))
