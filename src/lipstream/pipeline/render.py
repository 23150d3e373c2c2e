"""Render: segments of a run, from the video, the table of faces and the speech, to encoded pieces.

A piece depends on nothing but its `SegmentedRun`, so it may be rendered anywhere, in any order, twice if need be. It
appears whole or not at all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipstream.errors import InputError
from lipstream.media.audio import SpeechInfo
from lipstream.media.joined import n_packets
from lipstream.media.reader import VideoInfo
from lipstream.media.segment import read_segment
from lipstream.media.writer import VideoWriter
from lipstream.pipeline.analyse import FaceTable
from lipstream.pipeline.clocks import Clocks, arriving, timed
from lipstream.pipeline.known import load_known
from lipstream.pipeline.line import pictures
from lipstream.pipeline.plan import Segment
from lipstream.pipeline.records import Clip, Components, KnownFaces
from lipstream.pipeline.threads import ThreadGroup
from lipstream.settings import SyncSettings

_BLOCK_SAMPLES = 16000


@dataclass(frozen=True)
class SegmentedRun:
    """A run as segments: all that rendering one of them needs. Plain values and paths, to be sent to any process.

    samples: file of the speech as the model takes it, float32, mono, 16 kHz. log_mel_max: of all of it. table: file of
    the faces. known: file of what is made of them for each frame of the output. pieces: folder for them. faces: how
    many frames of the output have a face. spans_without: first and last frame of each part without one.
    """

    video: VideoInfo
    speech: SpeechInfo
    samples: Path
    log_mel_max: float
    table: Path
    known: Path
    pieces: Path
    n_frames: int
    faces: int
    settings: SyncSettings
    segments: tuple[Segment, ...]
    frame_rate: Fraction
    spans_without: tuple[tuple[int, int], ...]

    def piece(self, segment: Segment) -> Path:
        """Return the file of a segment."""
        return self.pieces / segment.name

    def is_rendered(self, segment: Segment) -> bool:
        """Return whether a segment's piece is there, with all of its frames."""
        return self.piece(segment).is_file() and n_packets(self.piece(segment)) == len(segment)


def render(
    components: Components, run: SegmentedRun, segments: Sequence[Segment], clocks: Clocks, threads: ThreadGroup
) -> None:
    """Render segments that follow one another, each to its piece, replacing those that are there.

    The threads belong to the caller.
    """
    clip = _clip(components, run, segments[0].start, segments[-1].stop, clocks)
    written = arriving(pictures(components, clip, clocks, threads), clocks.write)
    for segment in segments:
        with _open_piece(run, segment) as writer:
            threads.if_unfinished(writer.discard)
            for frame, _ in itertools.islice(written, len(segment)):
                with clocks.write.running():
                    writer.write(frame.picture)
                del frame
            if writer.n_written != len(segment):
                raise InputError("it has changed since the run began", file=run.video.path, fix="begin again")
            threads.check()


def _open_piece(run: SegmentedRun, segment: Segment) -> VideoWriter:
    return VideoWriter(
        run.piece(segment),
        width=run.video.width,
        height=run.video.height,
        frame_rate=run.frame_rate,
        color=run.video.color,
        speech=None,
        n_frames=len(segment),
        # All pieces are to fit together, wherever they are rendered.
        encoding=replace(run.settings, encoder="software") if run.settings.encoder == "auto" else run.settings,
        layout=run.video.layout,
        sample_aspect_ratio=run.video.sample_aspect_ratio,
        overwrite=True,
    )


def _clip(components: Components, run: SegmentedRun, start: int, stop: int, clocks: Clocks) -> Clip:
    table = _table(run.table)
    frames = read_segment(
        run.video.path, table.frames, start, stop, run.settings.loop, deinterlace=run.settings.deinterlace
    )
    return Clip(
        name=run.video.path,
        picture_bytes=run.video.picture_bytes,
        frames=timed(frames, clocks.read),
        samples=_samples(run.samples),
        log_mel_max=run.log_mel_max,
        n_frames=stop - start,
        settings=run.settings,
        pixel_aspect=run.video.pixel_aspect,
        model_departs=components.model.config.departs,
        frame_rate=run.frame_rate,
        known=_known(run.known),
        first_frame=start,
    )


def _samples(path: Path) -> Iterator[NDArray[np.float32]]:
    """Yield the samples in blocks, of which those that nobody looks at are not read."""
    samples = np.memmap(path, np.float32, "c")  # torch takes no array that is read-only
    return (samples[begin : begin + _BLOCK_SAMPLES] for begin in range(0, len(samples), _BLOCK_SAMPLES))


# One run at a time is rendered by a process, segment after segment: its table is read once.
@lru_cache(maxsize=2)
def _table(path: Path) -> FaceTable:
    return FaceTable.load(path)


@lru_cache(maxsize=2)
def _known(path: Path) -> KnownFaces:
    return load_known(path)
