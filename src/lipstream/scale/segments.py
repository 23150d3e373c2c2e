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
from pathlib import Path

from lipstream.lipsync import LipSync
from lipstream.media.audio import SpeechInfo
from lipstream.media.reader import VideoInfo
from lipstream.pipeline.analyse import FaceTable
from lipstream.pipeline.caller import POLL_S, Watch, raise_if_cancelled, stage_times
from lipstream.pipeline.clocks import Clocks
from lipstream.pipeline.file_job import probe_inputs
from lipstream.pipeline.join import join
from lipstream.pipeline.plan import SEGMENT_S, Segment
from lipstream.pipeline.render import SegmentedRun
from lipstream.pipeline.work import WorkFolder, missing
from lipstream.results import Progress, SyncResult
from lipstream.settings import FRAME_RATE_HZ, SyncSettings

logger = logging.getLogger(__name__)


def sync_in_segments(
    syncs: Sequence[LipSync],
    video: str | Path | VideoInfo,
    audio: str | Path | SpeechInfo,
    output: str | Path,
    settings: SyncSettings | None = None,
    *,
    work: str | Path | None = None,
    keep_work: bool = False,
    segment_s: float = SEGMENT_S,
    faces: FaceTable | str | Path | None = None,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
) -> SyncResult:
    """Lip-sync a clip as `LipSync` does, with all of `syncs` at work on its segments; the frames are the same.

    syncs: of one model and the same settings, on devices of one kind. work: folder for what is done; the same call goes
    on where one that was stopped or killed ended. It is removed when the output is there, unless keep_work. segment_s:
    about how long a segment is, s. The other arguments and what is raised: as of `LipSync.__call__`.
    """
    settings, clocks = settings or SyncSettings(), Clocks.start()
    begun_s = time.perf_counter()
    inputs = probe_inputs(video, audio, output, overwrite=overwrite)
    table = None if faces is None else syncs[0].table(faces, inputs.video, settings)
    with _work_folder(work) as place:
        folder = WorkFolder(place, syncs[0].run_key(inputs, settings, table))
        try:
            run = syncs[0].prepare(
                inputs,
                settings,
                folder.path,
                faces=table,
                segment_s=segment_s,
                on_progress=on_progress,
                cancel=cancel,
                clocks=clocks,
            )
            clocks = Clocks(**{**vars(Clocks.start()), "read": clocks.read, "detect": clocks.detect})
            watch = Watch(clocks, run.n_frames, on_progress, cancel)
            parts = missing(run)
            n_done = run.n_frames - sum(len(segment) for part in parts for segment in part)
            clocks.write.count(n_done)
            logger.info("%s: %d segments, %d of %d frames are done", output, len(run.segments), n_done, run.n_frames)
            watch.report()
            _render_all(run, syncs, parts, clocks, watch)
            join(run, output, syncs[0].model.config.name, overwrite=overwrite, check=lambda: raise_if_cancelled(cancel))
            watch.report()
            if not keep_work:
                folder.remove()
        finally:
            folder.close()
    wall_s = time.perf_counter() - begun_s
    return SyncResult(
        output=Path(output),
        frames=run.n_frames,
        duration_s=run.n_frames / FRAME_RATE_HZ,
        wall_s=wall_s,
        real_time_factor=wall_s * FRAME_RATE_HZ / run.n_frames,
        stages=stage_times(clocks),
        frames_with_face=run.faces,
        frames_without=run.n_frames - run.faces,
        settings=syncs[0].settings_used(settings),
    )


@contextmanager
def _work_folder(work: str | Path | None) -> Iterator[Path]:
    if work is not None:
        yield Path(work)
        return
    with tempfile.TemporaryDirectory(prefix="lipstream-") as folder:
        yield Path(folder)


def _render_all(
    run: SegmentedRun, syncs: Sequence[LipSync], parts: list[list[Segment]], clocks: Clocks, watch: Watch
) -> None:
    """Render what is missing: alone, segments that follow one another in one go; with others, whoever is free one."""
    if len(syncs) > 1:
        parts = [[segment] for part in parts for segment in part]
    to_do, stop = deque(parts), threading.Event()

    def work(sync: LipSync) -> None:
        while not stop.is_set():
            try:
                part = to_do.popleft()
            except IndexError:
                return
            sync.render(run, part, clocks=clocks, cancel=stop)

    with ThreadPoolExecutor(len(syncs), "render") as pool:
        pending = {pool.submit(work, sync) for sync in syncs}
        try:
            while pending:
                done, pending = wait(pending, POLL_S, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                watch.tick()
        finally:
            stop.set()
