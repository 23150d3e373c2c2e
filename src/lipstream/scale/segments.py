"""A clip in segments: analysed and planned once, rendered by any number of LipSync, joined into one file."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from lipstream.errors import SettingsError
from lipstream.lipsync import LipSync
from lipstream.media.audio import SpeechInfo
from lipstream.media.conversation import Conversation
from lipstream.media.origin import signing_for
from lipstream.media.reader import VideoInfo
from lipstream.pipeline.analyse import FaceTable, checked_table
from lipstream.pipeline.caller import POLL_S, Watch, stage_times
from lipstream.pipeline.clocks import Clocks
from lipstream.pipeline.file_job import Inputs, probe_inputs
from lipstream.pipeline.join import join
from lipstream.pipeline.known import check_loop
from lipstream.pipeline.plan import Segment
from lipstream.pipeline.render import SegmentedRun
from lipstream.pipeline.work import FACES, WorkFolder, missing
from lipstream.results import Progress, SyncResult
from lipstream.settings import RuntimeSettings, SyncSettings

logger = logging.getLogger(__name__)


class Renderers(Protocol):
    """Who renders segments: LipSync of this process, or actors of a cluster. All have the same settings."""

    @property
    def runtime(self) -> RuntimeSettings:
        """What they run on."""

    def settings_used(self, settings: SyncSettings) -> dict[str, Any]:
        """See LipSync.settings_used."""

    def n_frames(self, inputs: Inputs, settings: SyncSettings) -> int:
        """See LipSync.n_frames."""

    def run_key(self, inputs: Inputs, settings: SyncSettings, faces_sha256: str | None) -> str:
        """See LipSync.run_key."""

    def prepare(
        self, inputs: Inputs, settings: SyncSettings, folder: Path, segment_s: float | None, watch: Watch
    ) -> SegmentedRun:
        """See LipSync.prepare."""

    def render(self, run: SegmentedRun, parts: list[list[Segment]], watch: Watch) -> int:
        """Render what is missing: lists of segments that follow one another. Return how often one was begun again."""


def sync_in_segments(
    syncs: Sequence[LipSync],
    video: str | Path | VideoInfo,
    audio: str | Path | SpeechInfo,
    output: str | Path,
    settings: SyncSettings | None = None,
    *,
    work: str | Path | None = None,
    keep_work: bool = False,
    segment_s: float | None = None,
    faces: FaceTable | str | Path | None = None,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
) -> SyncResult:
    """Lip-sync a clip as `LipSync` does, with all of `syncs` at work on its segments; the frames are the same.

    syncs: of one model and the same settings, on devices of one kind. work: folder for what is done; the same call goes
    on where one that was stopped or killed ended. It is removed when the output is there, unless keep_work. segment_s:
    about how long a segment is, s; None for 10, or less for many `syncs`. The other arguments and what is raised: as
    of `LipSync.__call__`.
    """
    settings = settings or SyncSettings()
    inputs = probe_inputs(video, audio, output, overwrite=overwrite, audio_track=settings.audio_track)
    with work_folder(work) as place:
        return run_in_segments(
            OfThisProcess(syncs),
            inputs,
            output,
            settings,
            place,
            keep_work=keep_work,
            segment_s=segment_s,
            faces=faces,
            overwrite=overwrite,
            on_progress=on_progress,
            cancel=cancel,
        )


def run_in_segments(
    renderers: Renderers,
    inputs: Inputs,
    output: str | Path,
    settings: SyncSettings,
    work: Path,
    *,
    keep_work: bool,
    segment_s: float | None,
    faces: FaceTable | str | Path | None,
    overwrite: bool,
    on_progress: Callable[[Progress], None] | None,
    cancel: threading.Event | None,
) -> SyncResult:
    """Analyse, plan, render and join, in this order. The arguments are those of `sync_in_segments`."""
    begun_s = time.perf_counter()
    check_loop(settings.loop)
    signing = signing_for(renderers.runtime, output)
    if isinstance(inputs.speech, Conversation):
        raise SettingsError(
            "several recordings: they do not go with segments", fix="leave out --work, --ray and further devices"
        )
    table = None if faces is None else checked_table(faces, inputs.video.path, settings, renderers.runtime)
    folder = WorkFolder(work, renderers.run_key(inputs, settings, None if table is None else table.sha256))
    try:
        if table is not None:
            table.save(folder.path / FACES, overwrite=True)
        searching = Watch(Clocks.start(), renderers.n_frames(inputs, settings), on_progress, cancel)
        run = renderers.prepare(inputs, settings, folder.path, segment_s, searching)
        parts = missing(run)
        n_done = run.n_frames - sum(len(segment) for part in parts for segment in part)
        logger.info("%s: %d segments, %d of %d frames are done", output, len(run.segments), n_done, run.n_frames)
        clocks = replace(Clocks.start(), read=searching.clocks.read, detect=searching.clocks.detect)
        clocks.write.count(n_done)
        watch = Watch(clocks, run.n_frames, on_progress, cancel)
        watch.report()
        retries = renderers.render(run, parts, watch)
        used = renderers.settings_used(settings) | {"frame_rate": float(run.frame_rate)}
        join(run, output, used["model"], overwrite=overwrite, signing=signing, check=watch.tick)
        watch.report()
        if not keep_work:
            folder.remove()
    finally:
        folder.close()
    wall_s = time.perf_counter() - begun_s
    return SyncResult(
        output=Path(output),
        frames=run.n_frames,
        duration_s=float(run.n_frames / run.frame_rate),
        wall_s=wall_s,
        real_time_factor=float(wall_s * run.frame_rate / run.n_frames),
        stages=stage_times(clocks),
        frames_with_face=run.faces,
        frames_without=run.n_frames - run.faces,
        spans_without=run.spans_without,
        settings=used if table is None else used | {"detector": table.detector},
        retries=retries,
    )


@contextmanager
def work_folder(work: str | Path | None) -> Iterator[Path]:
    """Yield a folder for the work of a run: the one that is named, or a temporary one."""
    if work is not None:
        yield Path(work)
        return
    with tempfile.TemporaryDirectory(prefix="lipstream-") as folder:
        yield Path(folder)


class OfThisProcess:
    """Renderers: LipSync, each of which renders in a thread of its own."""

    def __init__(self, syncs: Sequence[LipSync]) -> None:
        self._syncs = syncs

    @property
    def runtime(self) -> RuntimeSettings:
        return self._syncs[0].runtime

    def settings_used(self, settings: SyncSettings) -> dict[str, Any]:
        return self._syncs[0].settings_used(settings)

    def n_frames(self, inputs: Inputs, settings: SyncSettings) -> int:
        return self._syncs[0].n_frames(inputs, settings)

    def run_key(self, inputs: Inputs, settings: SyncSettings, faces_sha256: str | None) -> str:
        return self._syncs[0].run_key(inputs, settings, faces_sha256)

    def prepare(
        self, inputs: Inputs, settings: SyncSettings, folder: Path, segment_s: float | None, watch: Watch
    ) -> SegmentedRun:
        return self._syncs[0].prepare(
            inputs, settings, folder, segment_s=segment_s, workers=len(self._syncs), watch=watch
        )

    def render(self, run: SegmentedRun, parts: list[list[Segment]], watch: Watch) -> int:
        """Render: whoever is free takes segments that follow one another, many at first and one at a time at the end.

        Those are rendered in one go, so that a device waits for its first frames a few times only.
        """
        to_do, stop, lock = deque(parts), threading.Event(), threading.Lock()

        def next_part() -> list[Segment]:
            with lock:
                if stop.is_set() or not to_do:
                    return []
                part = to_do.popleft()
                left = len(part) + sum(len(other) for other in to_do)
                size = max(1, left // (2 * len(self._syncs))) if len(self._syncs) > 1 else len(part)
                if part[size:]:
                    to_do.appendleft(part[size:])
                return part[:size]

        def work(sync: LipSync) -> None:
            while part := next_part():
                sync.render(run, part, clocks=watch.clocks, cancel=stop)

        with ThreadPoolExecutor(len(self._syncs), "render") as pool:
            pending = {pool.submit(work, sync) for sync in self._syncs}
            try:
                while pending:
                    done, pending = wait(pending, POLL_S, FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    watch.tick()
            finally:
                stop.set()
        return 0
