"""Interlaced video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from lipstream.media.loop import read_looped
from lipstream.media.reader import read_frames
from lipstream.settings import Deinterlace


def bar_at(x: int) -> NDArray[np.uint8]:
    image = np.full((96, 160, 3), 40, np.uint8)
    image[:, x : x + 24] = 200
    return image


def write_interlaced(path: Path, n_frames: int = 10) -> Path:
    """A bar that moves by 8 px from field to field."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25, options={"flags": "+ildct+ilme", "q": "2", "g": "5"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 160, 96, "yuv420p", 8_000_000
        for i in range(n_frames):
            woven = bar_at(4 + 12 * i)
            woven[1::2] = bar_at(4 + 12 * i + 6)[1::2]
            frame = av.VideoFrame.from_ndarray(woven, format="rgb24")
            graph = av.filter.Graph()
            source = graph.add_buffer(width=160, height=96, format=frame.format, time_base=Fraction(1, 25))
            chain = [source, graph.add("setfield", "tff"), graph.add("format", "yuv420p"), graph.add("buffersink")]
            graph.link_nodes(*chain).configure()
            graph.vpush(frame)
            marked = graph.vpull()
            marked.pts, marked.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(marked))
        container.mux(stream.encode(None))
    return path


def combing(image: NDArray[np.uint8]) -> float:
    """How much neighbouring rows differ beside every second row."""
    rows = image.mean(2)
    return float(np.abs(rows[1:-1] - (rows[:-2] + rows[2:]) / 2).mean())


@pytest.mark.parametrize(("how", "is_whole"), [("auto", True), ("always", True), ("never", False)])
def test_fields_become_whole_pictures(how: Deinterlace, is_whole: bool, tmp_path: Path) -> None:
    frames = list(read_frames(write_interlaced(tmp_path / "interlaced.mpg"), deinterlace=how))
    assert len(frames) == 10
    combed = [combing(frame.image) for frame in frames[1:-1]]
    assert max(combed) < 3 if is_whole else min(combed) > 8
    lefts = [int(np.argmax(frame.image[48].mean(1) > 120)) for frame in frames]
    assert all(abs(left - (4 + 12 * i)) <= 8 for i, left in enumerate(lefts)), lefts


def test_interlaced_video_plays_back_and_forth(tmp_path: Path) -> None:
    clip = write_interlaced(tmp_path / "interlaced.mpg")
    frames = list(read_looped(clip, 25, max_held_bytes=50_000))
    assert [frame.source_index for frame in frames] == [*range(10), *reversed(range(10)), *range(5)]
    for frame in frames[10:]:
        assert np.array_equal(frame.image, frames[frame.source_index].image)
