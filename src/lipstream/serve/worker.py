"""A worker: takes jobs from the database, does them one after another, and gives them back when it stops."""

from __future__ import annotations

import contextlib
import logging
import secrets
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError

from lipstream.errors import Cancelled, LipstreamError
from lipstream.estimate import Estimate
from lipstream.results import Progress
from lipstream.serve.database import Database
from lipstream.serve.files import AUDIO, VIDEO, Files
from lipstream.serve.leases import Lease, Leases, WorkerRecord
from lipstream.serve.quantities import shown_bytes
from lipstream.serve.render import Renderer, Work
from lipstream.serve.settings import WorkSettings

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_REPORT_S = 5.0
_DATABASE_AWAY_S = 2.0


class Worker:
    """Does jobs in the thread that calls `run`, until `stop` is set."""

    def __init__(self, database: Database, files: Files, settings: WorkSettings, render: Renderer) -> None:
        self.id = secrets.token_hex(8)
        self.stop = threading.Event()
        self._leases, self._files, self._settings, self._render = Leases(database, settings), files, settings, render
        self._report_due_s = self._idle_since_s = 0.0
        self._reported_job: str | None = None

    def run(self) -> None:
        """Load the model, then do jobs. Raises ModelError where the model cannot be loaded."""
        self._render.load()
        self._idle_since_s = time.monotonic()
        try:
            while not self.stop.is_set():
                try:
                    self.report(None)
                    lease = self._leases.claim(self._render.models)
                    if lease is not None:
                        self._do(lease)
                        self._idle_since_s = time.monotonic()
                    else:
                        self._wait()
                except DBAPIError as error:
                    # Its server may be starting again. A job that was at work goes on when its lease has ended.
                    logger.warning("database: %s", type(error.orig).__name__)
                    self.stop.wait(_DATABASE_AWAY_S)
        finally:
            self._render.offload()
            with contextlib.suppress(DBAPIError):
                self._leases.leave(self.id)

    def _wait(self) -> None:
        if self._render.loaded is not None and time.monotonic() - self._idle_since_s > self._settings.idle_s:
            self._render.offload()
        self.stop.wait(_POLL_S)

    def _do(self, lease: Lease) -> None:
        """Do a job, and publish what became of it if its lease is still ours."""
        job = {"job": lease.job_id}
        logger.info("begun", extra={**job, "attempt": lease.attempt, "worker": self.id})
        with tempfile.TemporaryDirectory(prefix="lipstream-") as folder:
            keeper = _Keeper(self, self._leases, lease, self._settings, Path(folder))
            try:
                with keeper, self._files.local(lease.job_id, VIDEO, AUDIO) as (video, audio):
                    work = Work(lease.model, lease.settings, video, audio, Path(folder) / "result.mp4")
                    result = self._render(work, keeper.note, keeper.cancel)
                    if keeper.is_lost:
                        raise Cancelled("its lease is lost")
                    name = f"result-{lease.token}.mp4"
                    input_bytes = video.stat().st_size + audio.stat().st_size
                    result_bytes = self._files.put(lease.job_id, name, work.output)
                    is_published = self._leases.finish(lease, result, name, result_bytes, input_bytes)
                if not is_published:
                    self._files.delete(lease.job_id, name)
                logger.info("done" if is_published else "dropped", extra={**job, "frames": result.frames})
            except Cancelled:
                released = not keeper.is_lost and self._leases.release(lease)
                logger.info("given back" if released else "stopped", extra=job)
            except DBAPIError:
                raise
            except Exception as error:
                failed = _described(error, folder)
                self._leases.fail(lease, **failed)
                is_ours = isinstance(error, LipstreamError)
                about = {**job, "code": failed["code"], "reason": failed["message"]}
                logger.error("failed", extra=about, exc_info=None if is_ours else error)

    def report(self, job: str | None) -> None:
        """Note in the database what this worker does, if that is due."""
        now_s = time.monotonic()
        if now_s < self._report_due_s and job == self._reported_job:
            return
        self._report_due_s, self._reported_job = now_s + _REPORT_S, job
        render = self._render
        self._leases.report(
            WorkerRecord(self.id, render.models, render.device, render.memory_bytes(), render.loaded, job)
        )


class _Keeper(threading.Thread):
    """Renews a lease while a job is at work, stores its progress, and stops it: lost lease, limits, worker's end.

    A context manager. cancel: what the job watches. folder: where it writes.
    """

    def __init__(self, worker: Worker, leases: Leases, lease: Lease, settings: WorkSettings, folder: Path) -> None:
        super().__init__(name="lease", daemon=True)
        self.cancel, self.is_lost = threading.Event(), False
        self._worker, self._leases, self._lease = worker, leases, lease
        self._every_s = min(1.0, settings.lease_s / 3)
        self._settings, self._folder = settings, folder
        self._ended = threading.Event()
        self._estimate = Estimate()
        self._progress: Mapping[str, Any] | None = None

    def __enter__(self) -> _Keeper:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def note(self, progress: Progress) -> None:
        """Take a job's progress; stored with the next renewal."""
        now_s = time.monotonic()
        self._estimate.add(progress.frames, now_s)
        left_s, frames_per_s = self._estimate.left_s(progress.n_frames, now_s), self._estimate.frames_per_s
        self._progress = {
            "frames": progress.frames,
            "n_frames": progress.n_frames,
            "frames_per_s": None if frames_per_s is None else round(frames_per_s, 2),
            "left_s": None if left_s is None else round(left_s, 1),
            "stages": [{"name": one.name, "seconds": one.seconds, "frames": one.frames} for one in progress.stages],
        }

    def run(self) -> None:
        begun_s = renewed_s = time.monotonic()
        while not self._ended.wait(self._every_s):
            now_s = time.monotonic()
            try:
                self._worker.report(self._lease.job_id)
                if (broken := self._broken_limit(now_s - begun_s)) is not None:
                    self._leases.fail(self._lease, *broken)
                    self.is_lost = True
                elif self._leases.renew(self._lease, self._progress):
                    renewed_s = now_s
                else:
                    self.is_lost = True
            except DBAPIError as error:
                logger.warning("database: %s", type(error.orig).__name__, extra={"job": self._lease.job_id})
                self.is_lost = now_s - renewed_s > self._settings.lease_s
            if self.is_lost or self._worker.stop.is_set():
                self.cancel.set()
            if self.is_lost:
                return

    def _broken_limit(self, time_s: float) -> tuple[str, str, str] | None:
        """Return code, message and fix for a job that takes too long or writes too much."""
        most_s, most_bytes = self._settings.max_wall_s, self._settings.max_disk_bytes
        if time_s > most_s:
            return "wall_time", f"it took longer than {most_s:g} s", "send a shorter clip, or a faster preset"
        if sum(map(_n_bytes, self._folder.iterdir())) > most_bytes:
            return "disk_full", f"its result is larger than {shown_bytes(most_bytes)}", "ask for a higher crf"
        return None


def _n_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # it has just got another name
        return 0


def _described(error: Exception, folder: str) -> dict[str, Any]:
    """Return an error as a client may see it: without the paths of this machine."""
    if not isinstance(error, LipstreamError):
        return {"code": "internal", "message": f"internal error ({type(error).__name__})", "fix": None}
    noun = {VIDEO: "video: ", AUDIO: "recording: "}.get(Path(error.file or "").name, "")
    return {"code": error.code, "message": noun + error.message.replace(folder, ""), "fix": error.fix}
