"""The jobs in the database, as workers see them: take one, keep it, end it. Who has lost a lease changes nothing."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from lipstream.results import SyncResult
from lipstream.serve.database import Database
from lipstream.serve.quantities import shown_bytes
from lipstream.serve.settings import WorkSettings
from lipstream.serve.states import State, move
from lipstream.serve.tables import jobs, totals, workers
from lipstream.settings import SyncSettings


@dataclass(frozen=True)
class Lease:
    """A job that a worker has taken. token: of this attempt alone."""

    job_id: str
    token: str
    model: str
    settings: SyncSettings
    attempt: int


@dataclass(frozen=True)
class WorkerRecord:
    """What a worker says about itself. loaded: the model in memory. memory_bytes: see Renderer.memory_bytes."""

    id: str
    models: tuple[str, ...]
    device: str
    memory_bytes: int
    loaded: str | None
    job: str | None


class Leases:
    """The workers' side of the database. A lease ends `settings.lease_s` after it was last renewed."""

    def __init__(self, database: Database, settings: WorkSettings) -> None:
        self._database, self._settings = database, settings

    def claim(self, models: Sequence[str]) -> Lease | None:
        """Take the first job in the queue that is for one of these models; None where there is none."""
        self.release_lapsed()
        first = (
            select(jobs)
            .where(jobs.c.state == State.QUEUED.value, jobs.c.model.in_(models))
            .order_by(jobs.c.number)
            .limit(1)
        )
        with self._database.reading() as connection:  # an idle worker takes no lock
            if connection.execute(first).first() is None:
                return None
        with self._database.writing() as connection:
            row = connection.execute(first.with_for_update(skip_locked=True)).mappings().first()
            if row is None:
                return None
            now_s, token = self._database.now_s(connection), secrets.token_hex(16)
            held: dict[str, Any] = {"lease": token, "lease_until_s": now_s + self._settings.lease_s}
            attempt = row["attempts"] + 1
            held |= {"started_s": now_s, "attempts": attempt, "progress": None}
            move(connection, row["id"], State.RUNNING, now_s, self._settings.keep_s, **held)
            settings = SyncSettings.from_dict(row["settings"])
            return Lease(row["id"], token, row["model"], settings, attempt)

    def renew(self, lease: Lease, progress: Mapping[str, Any] | None) -> bool:
        """Make a lease last longer and note how far the job is; return False where it is lost."""
        with self._database.writing() as connection:
            values: dict[str, Any] = {"lease_until_s": self._database.now_s(connection) + self._settings.lease_s}
            if progress is not None:
                values["progress"] = dict(progress)
            held = (jobs.c.id == lease.job_id) & (jobs.c.lease == lease.token)
            return connection.execute(update(jobs).where(held).values(values)).rowcount == 1

    def finish(self, lease: Lease, result: SyncResult, result_name: str, result_bytes: int, input_bytes: int) -> bool:
        """Publish a result whose file is stored; return False where the lease is lost, or the disk too full for it."""
        described = {name: value for name, value in result.to_dict().items() if name != "output"}
        with self._database.writing() as connection:
            self._database.lock(connection, "disk")
            others = select(func.coalesce(func.sum(jobs.c.file_bytes), 0)).where(jobs.c.id != lease.job_id)
            needed_bytes = input_bytes + result_bytes
            if (connection.scalar(others) or 0) + needed_bytes > self._settings.max_disk_bytes:
                most = shown_bytes(self._settings.max_disk_bytes)
                error = {"code": "disk_full", "message": f"the service's files would take more than {most}"}
                self._fail(connection, lease, {**error, "fix": "delete jobs that are no longer needed"})
                return False
            published = self._move(
                connection,
                lease,
                State.DONE,
                result=described,
                result_name=result_name,
                file_bytes=needed_bytes,
                error=None,
            )
            if published:
                self._count(connection, State.DONE, result)
            return published

    def fail(self, lease: Lease, code: str, message: str, fix: str | None) -> bool:
        """End a job with an error; return False where the lease is lost."""
        with self._database.writing() as connection:
            return self._fail(connection, lease, {"code": code, "message": message, "fix": fix})

    def release(self, lease: Lease) -> bool:
        """Put a job back to its place in the queue, since its worker stops; this attempt does not count."""
        with self._database.writing() as connection:
            return self._move(connection, lease, State.QUEUED, attempts=lease.attempt - 1, progress=None)

    def release_lapsed(self) -> None:
        """Put jobs back to the queue whose workers are silent; those that lost too many workers have failed."""
        lapsed = select(jobs).where(jobs.c.state == State.RUNNING.value)
        with self._database.reading() as connection:
            lapsed = lapsed.where(jobs.c.lease_until_s < self._database.now_s(connection))
            if connection.execute(lapsed).first() is None:
                return
        with self._database.writing() as connection:
            for row in connection.execute(lapsed.with_for_update(skip_locked=True)).mappings().all():
                lease = Lease(row["id"], row["lease"], row["model"], SyncSettings(), row["attempts"])
                if row["attempts"] < self._settings.max_attempts:
                    self._move(connection, lease, State.QUEUED, progress=None)
                    _add(connection, {("leases_lapsed", ""): 1})
                    continue
                message = f"{row['attempts']} workers in turn ended while they worked on it"
                self._fail(connection, lease, {"code": "workers_lost", "message": message, "fix": "try another file"})

    def report(self, worker: WorkerRecord) -> None:
        """Note what a worker is doing."""
        values = {name: getattr(worker, name) for name in WorkerRecord.__dataclass_fields__}
        with self._database.writing() as connection:
            values |= {"models": list(worker.models), "seen_s": self._database.now_s(connection)}
            if connection.execute(update(workers).where(workers.c.id == worker.id).values(values)).rowcount == 0:
                connection.execute(insert(workers).values(values))

    def leave(self, worker_id: str) -> None:
        """Remove the record of a worker that stops."""
        with self._database.writing() as connection:
            connection.execute(delete(workers).where(workers.c.id == worker_id))

    def _fail(self, connection: Connection, lease: Lease, error: dict[str, Any]) -> bool:
        failed = self._move(connection, lease, State.FAILED, error=error)
        if failed:
            self._count(connection, State.FAILED, None)
            _add(connection, {("errors", error["code"]): 1})
        return failed

    def _move(self, connection: Connection, lease: Lease, to: State, **also: Any) -> bool:
        now_s = self._database.now_s(connection)
        return move(connection, lease.job_id, to, now_s, self._settings.keep_s, held_by=lease.token, **also)

    def _count(self, connection: Connection, state: State, result: SyncResult | None) -> None:
        sums = {("jobs_ended", state.value): 1.0}
        if result is not None:
            sums |= {("stage_seconds", stage.name): stage.seconds for stage in result.stages}
            sums |= {("frames", ""): result.frames, ("wall_seconds", ""): result.wall_s}
        _add(connection, sums)


def _add(connection: Connection, sums: Mapping[tuple[str, str], float]) -> None:
    """Add to the totals, in an order that no two transactions wait for each other in."""
    for name, label in sorted(sums):
        row, value = (totals.c.name == name) & (totals.c.label == label), sums[name, label]
        more = update(totals).where(row).values(value=totals.c.value + value)
        if connection.execute(more).rowcount == 0:
            try:
                with connection.begin_nested():
                    connection.execute(insert(totals).values(name=name, label=label, value=value))
            except IntegrityError:  # somebody else made it in the meantime
                connection.execute(more)


def live_workers(connection: Connection, now_s: float, silent_s: float) -> Iterable[WorkerRecord]:
    """Return the workers that have been seen within the last `silent_s` seconds."""
    rows = connection.execute(select(workers).where(workers.c.seen_s >= now_s - silent_s)).mappings()
    names = [name for name in WorkerRecord.__dataclass_fields__ if name != "models"]
    return [WorkerRecord(**{name: row[name] for name in names}, models=tuple(row["models"])) for row in rows]
