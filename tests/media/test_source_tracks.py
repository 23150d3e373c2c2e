"""What a result keeps of the video beside the picture, and that the same frames are the same bytes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from helpers.media import clicks, numbered_image, write_wav
from lipstream.media.audio import probe_speech
from lipstream.media.writer import VideoWriter

NOTE = {"comment": "Made with AI: by a test"}
TAGS = {
    "title": "Holiday",
    "artist": "Me",
    "creation_time": "2023-05-06T07:08:09.000000Z",
    "location": "+48.1000+011.5000/",
    "comment": "my own note",
}


def write_source(path: Path, n_frames: int = 50) -> Path:
    """A clip with tags, chapters, a sound track of its own, another one in French, and subtitles in Matroska."""
    subtitles = path.with_suffix(".srt")
    subtitles.write_text("1\n00:00:00,500 --> 00:00:01,000\nhello\n\n2\n00:00:01,500 --> 00:00:01,800\nthere\n")
    with av.open(str(path), "w") as container, av.open(str(subtitles)) as texts:
        container.metadata.update(TAGS)
        container.set_chapters(
            [
                {"id": 0, "start": 0, "end": 1000, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}},
                {"id": 1, "start": 1000, "end": 2000, "time_base": Fraction(1, 1000), "metadata": {"title": "two"}},
            ]
        )
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 192, 32, "yuv420p"
        stream.metadata["language"] = "deu"
        sounds = [container.add_stream("aac", rate=16000, layout="mono") for _ in range(2)]
        sounds[1].metadata["language"] = "fra"
        sounds[1].disposition = av.stream.Disposition(0)
        text = container.add_stream_from_template(texts.streams.subtitles[0]) if path.suffix == ".mkv" else None
        for number in range(n_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_image(number), format="rgb24")))
        container.mux(stream.encode(None))
        for sound in sounds:
            frame = av.AudioFrame.from_ndarray(clicks(2, 16000)[None].astype(np.float32) / 32768, "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
            container.mux([*sound.encode(frame), *sound.encode(None)])
        for packet in texts.demux() if text else ():
            if packet.dts is not None:
                packet.stream = text
                container.mux(packet)
    return path


def write_result(path: Path, tmp_path: Path, source: Path | None, n_frames: int = 40) -> Path:
    speech = probe_speech(write_wav(tmp_path / "speech.wav", clicks(1.6, 22050), 22050))
    with VideoWriter(
        path,
        width=192,
        height=32,
        color=None,
        speech=speech,
        n_frames=n_frames,
        metadata=NOTE,
        source=source,
        overwrite=True,
    ) as writer:
        for number in range(n_frames):
            writer.write(numbered_image(number))
    return path


@pytest.mark.parametrize(("source", "output"), [("in.mp4", "out.mp4"), ("in.mkv", "out.mkv"), ("in.mp4", "out.mkv")])
def test_tags_chapters_and_other_tracks_are_copied(source: str, output: str, tmp_path: Path) -> None:
    with av.open(str(write_result(tmp_path / output, tmp_path, write_source(tmp_path / source)))) as result:
        tags = {name.lower(): value for name, value in result.metadata.items()}
        assert {**tags, **TAGS, "comment": tags["comment"]} == tags
        assert tags["comment"].splitlines() == ["my own note", "Made with AI: by a test"]
        assert result.streams.video[0].metadata["language"] == "deu"
        assert [chapter["metadata"]["title"] for chapter in result.chapters()] == ["one", "two"]
        assert float(result.chapters()[1]["end"] * result.chapters()[1]["time_base"]) == pytest.approx(1.6)
        speech, other = result.streams.audio
        assert speech.rate == 22050 and other.rate == 16000 and other.metadata["language"] == "fra"
        assert len(result.streams.subtitles) == (1 if source == "in.mkv" else 0)
        times = [float(packet.pts * packet.time_base) for packet in result.demux(other) if packet.pts is not None]
        assert len(times) > 15 and max(times) < 1.6


def test_nothing_is_copied_where_it_is_not_wanted(tmp_path: Path) -> None:
    with av.open(str(write_result(tmp_path / "out.mp4", tmp_path, None))) as result:
        assert result.metadata["comment"] == NOTE["comment"] and "title" not in result.metadata
        assert len(result.streams) == 2


def test_a_result_of_a_result_says_once_what_it_is(tmp_path: Path) -> None:
    first = write_result(tmp_path / "first.mp4", tmp_path, None)
    with av.open(str(write_result(tmp_path / "second.mp4", tmp_path, first))) as result:
        assert result.metadata["comment"] == NOTE["comment"]


def test_tracks_that_the_container_does_not_take_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_source(tmp_path / "in.mkv")
    with caplog.at_level(logging.WARNING, "lipstream"):
        write_result(tmp_path / "out.mp4", tmp_path, source)
    assert [record.message for record in caplog.records] == [f"{source}: subtitle track 3 (srt) is not copied"]


ENCODE = """
import sys
import numpy as np
from helpers.media import smooth_image
from lipstream.media.writer import VideoWriter
with VideoWriter(sys.argv[1], width=176, height=144, color=None, speech=None, n_frames=30) as writer:
    for i in range(30):
        writer.write(np.roll(smooth_image(144, 176, 3), 3 * i, axis=1))
"""


def test_the_same_frames_are_the_same_bytes(tmp_path: Path) -> None:
    files = set()
    for byte in ("0", "85", "170"):  # what memory holds before it is written, with glibc
        path = tmp_path / f"{byte}.mp4"
        environment = {**os.environ, "MALLOC_PERTURB_": byte, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", ENCODE, str(path)], env=environment, check=True, timeout=120)
        files.add(path.read_bytes())
    assert len(files) == 1
