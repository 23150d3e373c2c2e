"""Join: the pieces of a run, copied one after the other into one file, with the speech beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lipstream.errors import OutputError
from lipstream.media.audio import read_planar
from lipstream.media.c2pa_manifest import Signing
from lipstream.media.joined import JoinedWriter
from lipstream.media.origin import Origin
from lipstream.pipeline.render import SegmentedRun


def join(
    run: SegmentedRun,
    output: str | Path,
    model: str,
    *,
    overwrite: bool,
    signing: Signing | None,
    check: Callable[[], None],
) -> None:
    """Write the output from its pieces; no picture is encoded again. model: its name, for the marks of origin.

    signing: see signing_for. check: called between the pieces; ends the work by raising. Raises OutputError.
    """
    source = None if run.settings.strip_metadata else run.video.path
    with JoinedWriter(
        output,
        run.piece(run.segments[0]),
        width=run.video.width,
        height=run.video.height,
        frame_rate=run.frame_rate,
        speech=run.speech,
        speech_samples=read_planar(run.speech),
        n_frames=run.n_frames,
        overwrite=overwrite,
        source=source,
        origin=Origin(model, source, signing),
    ) as writer:
        for segment in run.segments:
            check()
            piece = run.piece(segment)
            if writer.append(piece) != len(segment):
                raise OutputError("a piece is incomplete", file=piece, fix="delete it and run again")
