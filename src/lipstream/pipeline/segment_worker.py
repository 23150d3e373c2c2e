"""What LipSync does of a run in segments; who puts the parts together is in scale/."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from lipstream.media.audio import n_output_frames
from lipstream.media.loop import FrameIndex
from lipstream.media.reader import VideoInfo
from lipstream.pipeline.analyse import index_frames, rate_of, search
from lipstream.pipeline.build import settings_used
from lipstream.pipeline.caller import Watch
from lipstream.pipeline.clocks import Clocks
from lipstream.pipeline.file_job import Inputs
from lipstream.pipeline.people_table import Found
from lipstream.pipeline.plan import Segment
from lipstream.pipeline.records import Components
from lipstream.pipeline.render import SegmentedRun, render
from lipstream.pipeline.threads import ThreadGroup
from lipstream.pipeline.turns import Turns
from lipstream.pipeline.work import key_of, prepare
from lipstream.results import Progress
from lipstream.runtime.memory import memory_errors
from lipstream.settings import RuntimeSettings, SyncSettings

T = TypeVar("T")


class SegmentWorker(Turns):
    """Analyses, plans and renders for others, a call at a time."""

    def __init__(self, components: Components, runtime: RuntimeSettings) -> None:
        super().__init__(components)
        self._runtime = runtime

    def settings_used(self, settings: SyncSettings) -> dict[str, Any]:
        """Return the settings of a run with every choice made, as its result has them."""
        return settings_used(self._open(), settings, self._runtime)

    def n_frames(self, inputs: Inputs, settings: SyncSettings) -> int:
        """Return how many frames a run asks for, fewer of which may come out with loop="trim"."""
        return n_output_frames(inputs.speech, self.frame_rate(inputs.video, settings))

    def frame_rate(self, video: VideoInfo, settings: SyncSettings) -> Fraction:
        """Return the frames a second of a run."""
        return rate_of(self._open(), video, settings)

    def run_key(self, inputs: Inputs, settings: SyncSettings, faces_sha256: str | None = None) -> str:
        """Return a digest of everything that the frames of a run depend on: inputs, settings, model, precision.

        faces_sha256: of the table of faces, where one is given.
        """
        return key_of(self._open(), inputs, settings, self._runtime, faces_sha256)

    def prepare(
        self,
        inputs: Inputs,
        settings: SyncSettings,
        folder: Path,
        *,
        segment_s: float | None = None,
        workers: int = 1,
        watch: Watch | None = None,
    ) -> SegmentedRun:
        """Find the faces of a run and cut it into segments for `render`, here or elsewhere.

        folder: of this run alone, see `run_key`; what is there already is taken, a table of faces (FACES) too.
        segment_s: about the length of one, s; None for 10, or less where there are many `workers`. watch: reports, and
        says when to stop. Raises as `__call__` does.
        """
        watch = watch or Watch(Clocks.start(), self.n_frames(inputs, settings), None, None)
        return self._part(
            watch,
            lambda components, clocks, threads: prepare(
                components, inputs, settings, folder, clocks, threads, workers, segment_s
            ),
        )

    def index_frames(
        self, video: VideoInfo, n_frames: int, settings: SyncSettings, watch: Watch | None = None
    ) -> tuple[FrameIndex, int]:
        """Read up to `n_frames` frames of a video; return which picture each shows, and the first one with a face.

        Raises NoFaceError, InputError.
        """
        return self._part(
            watch or Watch(Clocks.start(), n_frames, None, None),
            lambda components, clocks, threads: index_frames(components, video, n_frames, settings, clocks, threads),
        )

    def search(
        self,
        video: VideoInfo,
        frames: FrameIndex,
        part: Segment,
        settings: SyncSettings,
        first_face: int,
        watch: Watch | None = None,
    ) -> Found:
        """Return what is found in a part of a video.

        The part begins at a multiple of the frames from one whole search to the next. frames, first_face: what
        `index_frames` returned.
        """
        return self._part(
            watch or Watch(Clocks.start(), len(part), None, None),
            lambda components, clocks, threads: search(
                components, video, frames, part, settings, first_face, clocks, threads
            ),
        )

    def render(
        self,
        segmented: SegmentedRun,
        segments: Sequence[Segment],
        *,
        clocks: Clocks | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> None:
        """Render segments of a run that `prepare` returned, which follow one another, to their pieces."""
        with self._turn(cancel, None) as components, memory_errors(components.device):
            clocks = clocks or Clocks.start()
            watch = Watch(clocks, segmented.n_frames, on_progress, cancel)
            self._in_threads(
                components, watch, lambda threads: render(components, segmented, segments, clocks, threads)
            )

    def _part(self, watch: Watch, work: Callable[[Components, Clocks, ThreadGroup], T]) -> T:
        with self._turn(None, None) as components, memory_errors(components.device):
            return self._in_threads(components, watch, lambda threads: work(components, watch.clocks, threads))
