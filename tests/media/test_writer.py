"""Writing the result: whole or not at all, the right colours, and the speech exactly beside the picture."""

from __future__ import annotations

import logging
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from helpers.media import clicks, lag, n_open, number_of, numbered_image, smooth_image, write_float_wav, write_wav
from lipstream.encoding_settings import EncodingSettings
from lipstream.errors import OutputError
from lipstream.media.atomic import write_whole
from lipstream.media.audio import SpeechInfo, probe_speech, read_planar
from lipstream.media.color import ColorTags
from lipstream.media.output_file import check_output, same_file
from lipstream.media.pixel_format import YUV420P, Layout
from lipstream.media.reader import probe, read_frames
from lipstream.media.tone import is_hdr
from lipstream.media.writer import VideoWriter

YUV420P10 = Layout("yuv420p10le", 10, 2, 2)


def write(
    path: Path,
    images: list[np.ndarray],
    *,
    color: ColorTags | None = None,
    speech: SpeechInfo | None = None,
    crf: int = 18,
    **options: object,
) -> Path:
    height, width = images[0].shape[:2]
    options = {"encoding": EncodingSettings(x264_preset="ultrafast", crf=crf), **options}
    with VideoWriter(
        path, width=width, height=height, color=color, speech=speech, n_frames=len(images), **options
    ) as writer:
        for image in images:
            writer.write(image)
    return path


def writer_of(path: Path, n_frames: int, **options: object) -> VideoWriter:
    """A writer of numbered images."""
    options = {"speech": None, "encoding": EncodingSettings(x264_preset="ultrafast"), **options}
    return VideoWriter(path, width=192, height=32, color=None, n_frames=n_frames, **options)


def numbered(n: int) -> list[np.ndarray]:
    return [numbered_image(i) for i in range(n)]


# --- picture


@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "out.mkv", "OUT.MP4"])
def test_frames_come_back_one_for_one(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, numbered(30), metadata={"comment": "made by a machine, ünï"})
    assert [number_of(frame.image) for frame in read_frames(path)] == [*range(30)]
    assert probe(path).frame_rate == 25
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].pix_fmt == "yuv420p"
        tags = {key.lower(): value for key, value in container.metadata.items()}
        assert tags["comment"] == "made by a machine, ünï"
    assert [child.name for child in tmp_path.iterdir()] == [name]


def test_metadata_that_is_not_utf8_does_not_keep_a_file_from_being_read(tmp_path: Path) -> None:
    path = write(tmp_path / "out.mp4", numbered(3), metadata={"comment": "by QQQQ"})
    content = path.read_bytes()
    assert content.count(b"QQQQ") == 1
    path.write_bytes(content.replace(b"QQQQ", b"\xff\xfe\xe4\xf6"))
    assert [number_of(frame.image) for frame in read_frames(path)] == [0, 1, 2]


def test_the_index_is_in_front(tmp_path: Path) -> None:
    content = write(tmp_path / "out.mp4", numbered(3)).read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize(
    "color",
    [
        ColorTags(1, 1, 1, 1),
        ColorTags(2, 1, 1, 1),
        ColorTags(1, 6, 6, 6),
        ColorTags(2, 5, 5, 6),
        ColorTags(1, 9, 9, 16),
        ColorTags(),
        None,
    ],
)
def test_colours_and_their_tags_survive(color: ColorTags | None, tmp_path: Path) -> None:
    images = [smooth_image(96, 128, seed) for seed in range(3)]
    layout = YUV420P10 if color is not None and is_hdr(color.transfer) else YUV420P
    path = write(tmp_path / "out.mp4", images, color=color, crf=0, layout=layout)
    assert probe(path).color == (color or ColorTags())
    difference = np.stack([f.image for f in read_frames(path)]).astype(int) - np.stack(images)
    assert np.abs(difference).mean() < 1.0
    assert np.abs(difference.mean((0, 1, 2))).max() < 1.0


def test_high_definition_without_tags_is_taken_as_bt709(tmp_path: Path) -> None:
    image = np.full((64, 1280, 3), (200, 40, 40), np.uint8)
    untagged = write(tmp_path / "a.mp4", [image], crf=0)
    tagged = write(tmp_path / "b.mp4", [image], crf=0, color=ColorTags(1, 1, 1, 1))
    yuv = []
    for path in (untagged, tagged):
        with av.open(str(path)) as container:
            yuv.append(next(container.decode(video=0)).to_ndarray())
    assert np.array_equal(*yuv)


def test_reading_and_writing_again_changes_nothing_visible(tmp_path: Path) -> None:
    first = write(tmp_path / "a.mp4", [smooth_image(96, 128)] * 3, color=ColorTags(1, 1, 1, 1), crf=0)
    images = [frame.image for frame in read_frames(first)]
    second = write(tmp_path / "b.mp4", images, color=probe(first).color, crf=0)
    again = [frame.image for frame in read_frames(second)]
    assert np.abs(np.stack(again).astype(int) - np.stack(images)).mean() < 0.5


def test_odd_sizes_are_padded_with_their_last_column_and_row(tmp_path: Path) -> None:
    image = smooth_image(47, 63)
    frame = next(read_frames(write(tmp_path / "out.mp4", [image], crf=0)))
    assert frame.image.shape == (48, 64, 3)
    assert np.abs(frame.image[:47, :63].astype(int) - image).mean() < 1.5
    assert np.abs(frame.image[47, :63].astype(int) - image[46]).mean() < 3
    assert np.abs(frame.image[:47, 63].astype(int) - image[:, 62]).mean() < 3


def test_pixel_shape_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "out.mp4", numbered(2), sample_aspect_ratio=Fraction(16, 15))
    assert probe(path).sample_aspect_ratio == Fraction(16, 15)


# --- speech


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize(
    ("rate_hz", "channels"), [(8000, 1), (16000, 1), (22050, 2), (44100, 1), (48000, 2), (48000, 6)]
)
def test_speech_keeps_its_rate_and_channels_and_place(rate_hz: int, channels: int, suffix: str, tmp_path: Path) -> None:
    samples = np.repeat(clicks(1.2, rate_hz)[:, None], channels, 1)
    speech = probe_speech(write_wav(tmp_path / "speech.wav", samples, rate_hz))
    path = write(tmp_path / f"out{suffix}", numbered(30), speech=speech)
    info = probe_speech(path)
    assert (info.sample_rate_hz, info.channels) == (rate_hz, channels)
    decoded = np.concatenate(list(read_planar(info)), 1)
    for i in range(channels):
        if channels < 6 or i != 3:  # the fourth of six is for bass only, and AAC treats it so
            assert abs(lag(decoded[i], samples[:, i] / np.float32(32768))) <= rate_hz * 0.002
    assert 0 <= info.n_samples - round(Fraction(30 * rate_hz, 25)) <= 1024  # AAC comes in blocks of 1024
    if suffix != ".mkv":
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            assert stream.duration * stream.time_base == pytest.approx(30 / 25, abs=2e-4)


@pytest.mark.parametrize(("n_frames", "sounding_s"), [(20, 0.8), (60, 1.5)])
def test_speech_is_cut_or_filled_up_to_the_end_of_the_video(n_frames: int, sounding_s: float, tmp_path: Path) -> None:
    tone = np.round(np.sin(np.arange(24000) / 16000 * 2 * np.pi * 300) * 9000).astype(np.int16)
    speech = probe_speech(write_wav(tmp_path / "speech.wav", tone, 16000))
    path = write(tmp_path / "out.mp4", numbered(n_frames), speech=speech)
    with av.open(str(path)) as container:
        for stream in (container.streams.video[0], container.streams.audio[0]):
            assert stream.duration * stream.time_base == pytest.approx(n_frames / 25, abs=1e-4)
    decoded = np.concatenate(list(read_planar(probe_speech(path))), 1)[0]
    loud = np.flatnonzero(np.abs(decoded) > 0.1)
    assert loud[0] < 100 and abs(loud[-1] / 16000 - sounding_s) < 0.01


def test_rates_and_channels_that_aac_lacks_are_replaced_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = np.repeat(clicks(0.4, 192000)[:, None], 10, 1)
    speech = probe_speech(write_wav(tmp_path / "speech.wav", samples, 192000))
    with caplog.at_level(logging.WARNING, "lipstream"):
        info = probe_speech(write(tmp_path / "out.mp4", numbered(10), speech=speech))
    assert (info.sample_rate_hz, info.channels) == (96000, 1)
    assert "96000 Hz" in caplog.text and "10 channels" in caplog.text


def test_speech_is_muxed_beside_the_picture(tmp_path: Path) -> None:
    speech = probe_speech(write_wav(tmp_path / "speech.wav", clicks(6, 16000), 16000))
    path = write(tmp_path / "out.mkv", [smooth_image(64, 64, i % 5) for i in range(150)], speech=speech)
    with av.open(str(path)) as container:
        times = [(p.stream.type, float(p.dts * p.time_base)) for p in container.demux() if p.dts is not None]
    latest = {"video": 0.0, "audio": 0.0}
    for kind, time_s in times:
        latest[kind] = time_s
        assert abs(latest["video"] - latest["audio"]) < 1.0


def test_invalid_samples_are_silence_in_the_sound_track(tmp_path: Path) -> None:
    samples = (0.3 * np.sin(np.arange(16000) / 40)).astype(np.float32)
    samples[5000:5400] = np.nan
    samples[9000:9400] = np.inf
    speech = probe_speech(write_float_wav(tmp_path / "speech.wav", samples, 16000))
    path = write(tmp_path / "out.mp4", numbered(25), speech=speech)
    decoded = np.concatenate(list(read_planar(probe_speech(path))), 1)[0]
    assert np.isfinite(decoded).all() and np.abs(decoded).max() > 0.2
    assert np.abs(decoded[5100:5300]).max() < 0.05 and np.abs(decoded[9100:9300]).max() < 0.05


# --- whole or nothing


class Interrupted(BaseException):
    """As KeyboardInterrupt and GeneratorExit: not an Exception."""


@pytest.mark.parametrize("error", [RuntimeError, Interrupted])
@pytest.mark.parametrize("n_written", [0, 1, 12])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_leaves_nothing_behind(
    error: type[BaseException], n_written: int, existing: bool, tmp_path: Path
) -> None:
    path = tmp_path / "out.mp4"
    if existing:
        path.write_text("precious")
    with pytest.raises(error), writer_of(path, 12, overwrite=True) as writer:
        for image in numbered(12)[:n_written]:
            writer.write(image)
        raise error
    assert [child.name for child in tmp_path.iterdir()] == (["out.mp4"] if existing else [])
    if existing:
        assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_a_failure_closes_every_file(name: str, tmp_path: Path) -> None:
    speech = probe_speech(write_wav(tmp_path / "speech.wav", clicks(9, 16000), 16000))
    writer = writer_of(tmp_path / name, 60, speech=speech)
    with pytest.raises(Interrupted), writer:
        for image in numbered(60):
            writer.write(image)
        assert n_open(tmp_path) == 2
        raise Interrupted
    assert n_open(tmp_path) == 0  # though the writer is still there


def test_a_failure_does_not_write_the_file_once_more(tmp_path: Path) -> None:
    if not Path("/proc/self/io").exists():
        pytest.skip("needs /proc")

    def n_written() -> int:
        return int(Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])

    noise = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3)).astype(np.uint8)
    with (
        pytest.raises(Interrupted),
        VideoWriter(
            tmp_path / "out.mp4",
            width=256,
            height=256,
            color=None,
            speech=None,
            n_frames=60,
            encoding=EncodingSettings(crf=1, x264_preset="ultrafast"),
        ) as writer,
    ):
        for i in range(60):
            writer.write(noise[i % 2])
        (hidden,) = tmp_path.iterdir()
        n_bytes, before = hidden.stat().st_size, n_written()
        raise Interrupted
    assert n_bytes > 2_000_000
    assert n_written() - before < n_bytes / 4
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_visible_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with writer_of(path, 1) as writer:
        writer.write(numbered_image(1))
        hidden = list(tmp_path.iterdir())
        assert not path.exists() and len(hidden) == 1 and hidden[0].name.startswith(".out.")
    assert path.exists() and not hidden[0].exists()


def test_an_existing_file_is_refused_unless_overwriting(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_text("precious")
    with pytest.raises(OutputError, match="already exists"):
        write(path, numbered(1))
    assert path.read_text() == "precious" and len(list(tmp_path.iterdir())) == 1
    write(path, numbered(2), overwrite=True)
    assert len(list(read_frames(path))) == 2


@pytest.mark.parametrize("exists", [True, False])
def test_the_file_behind_a_link_is_written(exists: bool, tmp_path: Path) -> None:
    folder, link, other = tmp_path / "folder", tmp_path / "out.mp4", tmp_path / "other.mp4"
    folder.mkdir()
    if exists:
        (folder / "target.mp4").write_text("old")
    other.symlink_to(folder / "target.mp4")
    link.symlink_to(other)
    with pytest.raises(OutputError, match="already exists"):
        write(link, numbered(1))
    with writer_of(link, 2, overwrite=True) as writer:
        writer.write(numbered_image(1))
        assert len(list(folder.iterdir())) == 1 + exists  # the hidden file is beside the target, not the link
    assert link.readlink() == other and other.readlink() == folder / "target.mp4"
    assert [number_of(frame.image) for frame in read_frames(folder / "target.mp4")] == [1]
    assert len(list(folder.iterdir())) == 1


def test_small_files_too_are_written_through_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    link.symlink_to(target)
    write_whole(link, b"{}")
    assert link.is_symlink() and target.read_bytes() == b"{}"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with pytest.raises(OutputError, match="appeared"), writer_of(path, 1) as writer:
        writer.write(numbered_image(1))
        path.write_text("precious")
    assert path.read_text() == "precious" and len(list(tmp_path.iterdir())) == 1


def test_the_result_has_the_rights_of_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    path = write(tmp_path / "out.mp4", numbered(1))
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    noise = np.random.default_rng(0).integers(0, 256, (40, 128, 128, 3)).astype(np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # stands in for a full disk: writing fails half way
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            write(tmp_path / "out.mp4", list(noise), crf=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("out.avi", ".mp4, .mov or .mkv"),
        ("out", ".mp4, .mov or .mkv"),
        ("missing/out.mp4", "folder does not exist"),
        ("folder.mp4", "is a folder"),
        ("pipe.mp4", "not a regular file"),
        ("input.mp4", "also an input"),
        ("hard.mp4", "also an input"),
        ("soft.mp4", "also an input"),
        ("dangling.mp4", "already exists"),
        ("nowhere.mp4", "folder does not exist"),
    ],
)
def test_outputs_that_must_not_be_written_are_refused_first(name: str, reason: str, tmp_path: Path) -> None:
    source = tmp_path / "input.mp4"
    source.write_text("precious")
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    os.link(source, tmp_path / "hard.mp4")
    (tmp_path / "soft.mp4").symlink_to(source)
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    (tmp_path / "nowhere.mp4").symlink_to(tmp_path / "missing" / "nowhere.mp4")
    may_overwrite = name != "dangling.mp4"
    with pytest.raises(OutputError, match=reason) as caught:
        check_output(tmp_path / name, inputs=[source], overwrite=may_overwrite)
    assert caught.value.file == str(tmp_path / name) and caught.value.fix
    assert source.read_text() == "precious"


def test_the_speech_is_never_overwritten(tmp_path: Path) -> None:
    first = write(
        tmp_path / "talk.mp4",
        numbered(2),
        speech=probe_speech(write_wav(tmp_path / "speech.wav", clicks(0.1, 16000), 16000)),
    )
    with pytest.raises(OutputError, match="also an input"):
        write(first, numbered(2), speech=probe_speech(first), overwrite=True)
    assert len(list(read_frames(first))) == 2


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_an_output_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="permission"):
            write(tmp_path / "out.mp4", numbered(1))
    finally:
        tmp_path.chmod(0o700)


def test_a_run_without_frames_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no frame"), writer_of(tmp_path / "out.mp4", 5):
        pass
    assert list(tmp_path.iterdir()) == []


def test_frames_of_another_shape_or_number_are_refused(tmp_path: Path) -> None:
    for wrong in (np.zeros((32, 191, 3), np.uint8), np.zeros((32, 192, 3), np.float32)):
        with pytest.raises(ValueError, match="frame 0"), writer_of(tmp_path / "out.mp4", 5) as writer:
            writer.write(wrong)
    with pytest.raises(ValueError, match="n_frames is 1"), writer_of(tmp_path / "out.mp4", 1) as writer:
        writer.write(numbered_image(0))
        writer.write(numbered_image(1))
    assert list(tmp_path.iterdir()) == []


def test_same_file_follows_links(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.touch()
    other.touch()
    (tmp_path / "link").symlink_to(one)
    assert same_file(one, tmp_path / "link") and same_file(one, str(one))
    assert not same_file(one, other) and not same_file(one, tmp_path / "missing")
