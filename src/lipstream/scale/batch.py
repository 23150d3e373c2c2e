"""Many jobs: done by whoever is free, each by itself, noted as they end, and reported."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lipstream.errors import OutputError
from lipstream.jobs import JobResult, SyncJob, run_job
from lipstream.media.atomic import write_whole
from lipstream.pipeline.caller import POLL_S, raise_if_cancelled
from lipstream.results import SyncResult
from lipstream.scale.storage import check_address, exists, fetched, is_address, sent
from lipstream.version import __version__

logger = logging.getLogger(__name__)

JOURNAL = "batch.jsonl"
REPORTS = ("report.json", "report.csv")

Work = Callable[[SyncJob], SyncResult]
"""Does one job."""

Execute = Callable[[Iterator[SyncJob]], Iterator[JobResult | None]]
"""Does jobs, taking one when there is somebody free for it: what became of each as it ends, None now and then."""


@dataclass(frozen=True)
class BatchProgress:
    """How far a batch has come: jobs done before (`--resume`), done, failed, of all. last: what became of the last."""

    n_jobs: int
    skipped: int
    done: int
    failed: int
    last: dict[str, Any] | None = None


class Journal:
    """What is known of the jobs of a batch: a line for each that was begun and each that ended, in a file.

    folder: for it and the reports. key: of everything beside the jobs that outputs depend on. resume: take what is
    noted there; without it the file is begun again with the first job. Raises OutputError.
    """

    def __init__(self, folder: Path, key: str, *, resume: bool) -> None:
        self._path, self._key, self._mode = folder / JOURNAL, key, "a" if resume else "w"
        self._rows: dict[str, dict[str, Any]] = {}
        self._begun: set[str] = set()
        with self._errors():
            folder.mkdir(parents=True, exist_ok=True)
            if resume and self._path.is_file():
                self._read(self._path.read_text("utf-8", errors="replace").splitlines())

    def _read(self, lines: Sequence[str]) -> None:
        for line in lines:
            try:
                entry = json.loads(line)
                if "row" in entry:
                    self._rows[entry["job"]] = entry["row"]
                else:
                    self._begun.add(entry["job"])
            except (ValueError, KeyError, TypeError):  # the last line of a process that was killed
                continue

    def finished(self, job: SyncJob) -> dict[str, Any] | None:
        """Return the row of a job that is done, with its output there, or None.

        An output is written whole, so one that is there of a job that was begun is done, whatever happened after.
        """
        digest = self._digest(job)
        row = self._rows.get(digest)
        if row is not None and row["state"] != "done":
            return None
        if (row is None and digest not in self._begun) or not exists(job.output):
            return None
        unknown = {"wall_s": None, "frames": None, "frames_with_face": None, "retries": 0}
        nothing_wrong = {"error": None, "error_code": None}
        there = {"name": job.name, "state": "done", "output": str(job.output), **unknown, **nothing_wrong}
        return there if row is None else {**row, "name": job.name}

    def begin(self, job: SyncJob) -> None:
        """Note that a job is begun."""
        self._write({"job": self._digest(job)})

    def end(self, result: JobResult) -> dict[str, Any]:
        """Note what became of a job, and return its row."""
        row = result.to_dict()
        self._write({"job": self._digest(result.job), "row": row})
        return row

    def _digest(self, job: SyncJob) -> str:
        files = [_identity(name) for name in (job.video, job.audio)]
        described = [self._key, __version__, files, str(job.output), job.settings.to_dict()]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:24]

    def _write(self, entry: dict[str, Any]) -> None:
        with self._errors(), self._path.open(self._mode, encoding="utf-8") as file:
            if self._mode == "a" and self._ends_in_a_line():
                file.write("\n")
            file.write(json.dumps(entry) + "\n")
        self._mode = "a"

    def _ends_in_a_line(self) -> bool:
        """Return whether the last line lacks its end, as a process that is killed leaves it."""
        with self._path.open("rb") as file:
            return bool(file.seek(0, os.SEEK_END)) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            fix = "free some space or choose another folder"
            raise OutputError(f"cannot be written ({error.strerror})", file=self._path, fix=fix) from error


def run_batch(
    jobs: Sequence[SyncJob],
    execute: Execute,
    journal: Journal,
    on_progress: Callable[[BatchProgress], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the row of each job's report as it ends: those that are done already first.

    on_progress: called when a job has ended, and now and then in between. Raises what `execute` does.
    """
    rows = [(job, journal.finished(job)) for job in jobs]
    done_before = [row for _, row in rows if row is not None]
    yield from done_before

    def begun() -> Iterator[SyncJob]:
        for job, row in rows:
            if row is None:
                journal.begin(job)
                yield job

    progress = BatchProgress(len(jobs), len(done_before), 0, 0)
    for result in execute(begun()):
        last = None
        if result is not None:
            last = journal.end(result)
            n_failed = progress.failed + (last["state"] == "failed")
            progress = replace(progress, done=progress.done + (last["state"] == "done"), failed=n_failed)
        if on_progress is not None:
            on_progress(replace(progress, last=last))
        if last is not None:
            yield last


def in_threads(workers: Sequence[Work], cancel: threading.Event | None = None) -> Execute:
    """Return what does jobs in threads, one for each worker. Raises Cancelled, once `cancel` has stopped them too."""

    def execute(jobs: Iterator[SyncJob]) -> Iterator[JobResult | None]:
        idle, at_work = list(workers), dict[Future[JobResult], Work]()
        with ThreadPoolExecutor(len(workers), "job") as pool:
            while True:
                raise_if_cancelled(cancel)
                while idle and (job := next(jobs, None)) is not None:
                    worker = idle.pop()
                    at_work[pool.submit(run_job, job, worker)] = worker
                if not at_work:
                    return
                for future in wait(at_work, POLL_S, FIRST_COMPLETED).done:
                    idle.append(at_work.pop(future))
                    yield future.result()
                yield None

    return execute


def file_work(work: Work) -> Work:
    """Return work on files that lie anywhere, made of work on local ones."""

    def done(job: SyncJob) -> SyncResult:
        with fetched(job.video, job.audio) as (video, audio), sent(job.output, overwrite=job.overwrite) as output:
            output.parent.mkdir(parents=True, exist_ok=True)
            result = work(replace(job, video=video, audio=audio, output=output))
        return replace(result, output=job.output if is_address(job.output) else Path(job.output))

    return done


def refuse_existing(jobs: Sequence[SyncJob], journal: Journal) -> None:
    """Refuse outputs that are there, unless a job may overwrite them or has made them itself. Raises OutputError."""
    for job in jobs:
        if job.overwrite or journal.finished(job) is not None:
            continue
        if is_address(job.output):
            check_address(job.output, overwrite=False)
        elif os.path.lexists(job.output):
            fix = "choose another folder, go on with --resume, or allow overwriting (--overwrite)"
            raise OutputError(f"{job.name}: its output already exists", file=job.output, fix=fix)


def write_report(folder: Path, rows: Sequence[dict[str, Any]], begun_s: float) -> list[Path]:
    """Write what became of the jobs as JSON and CSV; return the files. begun_s: on time.perf_counter."""
    states = [row["state"] for row in rows]
    report = {
        "version": __version__,
        "wall_s": round(time.perf_counter() - begun_s, 3),
        "done": states.count("done"),
        "failed": states.count("failed"),
        "jobs": rows,
    }
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]) if rows else ["name"])
    table.writeheader()
    table.writerows(rows)
    files = [folder / name for name in REPORTS]
    write_whole(files[0], (json.dumps(report, indent=1) + "\n").encode())
    write_whole(files[1], text.getvalue().encode())
    return files


def _identity(name: str | Path) -> list[Any]:
    """Return what tells a file from another one under its name, as far as that costs nothing."""
    if is_address(name):
        return [str(name)]
    try:
        stat = Path(name).stat()
    except OSError:
        return [str(name)]
    return [str(name), stat.st_size, stat.st_mtime_ns]
