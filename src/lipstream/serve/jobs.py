"""The jobs in the database, as those see them who send them: add, look up, list, cancel, remove."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, func, insert, select
from sqlalchemy.exc import IntegrityError

from lipstream.serve.database import Database
from lipstream.serve.quantities import shown_bytes
from lipstream.serve.refused import Refused, not_found
from lipstream.serve.settings import ServiceSettings
from lipstream.serve.states import ACTIVE, State, move
from lipstream.serve.tables import jobs
from lipstream.settings import SyncSettings

_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Webhook:
    """Where to report a job's end, and the key to sign the report with (see webhook.py)."""

    url: str
    secret: str


@dataclass(frozen=True)
class NewJob:
    """A job to add. input: what was understood of its files. file_bytes: theirs, with room for the result."""

    id: str
    client: str
    model: str
    settings: SyncSettings
    input: Mapping[str, Any]
    file_bytes: int
    fingerprint: str
    idempotency_key: str | None = None
    webhook: Webhook | None = None


@dataclass(frozen=True)
class Job:
    """A job as it is at a moment. Times are s since 1970.

    position: in the queue, from 1; None once it does not wait any more. progress: `frames`, `n_frames`, `frames_per_s`,
    `left_s` and `stages` (name, seconds, frames), once it runs. result: SyncResult.to_dict() without the path, once it
    is done. error: `code`, `message` and `fix`, once it has failed.
    """

    id: str
    client: str
    state: State
    model: str
    settings: Mapping[str, Any]
    input: Mapping[str, Any]
    created_s: float
    started_s: float | None
    ended_s: float | None
    expires_s: float | None
    attempts: int
    position: int | None
    progress: Mapping[str, Any] | None
    result: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    result_name: str | None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen to it but that it expires."""
        return self.state not in ACTIVE


def new_id(now_s: float) -> str:
    """Return an id that nobody can guess: 48 bits of time, for order, and 80 random ones, in hexadecimal."""
    return f"{round(now_s * 1000):012x}{secrets.token_hex(10)}"


def made_s(job_id: str) -> float | None:
    """Return when an id was made, s since 1970; None for what is not an id."""
    return int(job_id[:12], 16) / 1000 if _ID.fullmatch(job_id) else None


class JobStore:
    """The jobs of all clients. client: who sends a job and alone sees it; a text of up to 64 characters."""

    def __init__(self, database: Database, settings: ServiceSettings) -> None:
        self._database, self._settings = database, settings

    def check_room(self, client: str, more_bytes: int) -> None:
        """Raise Refused where the queue, the client's jobs or the disk leave no room for one more job."""
        with self._database.reading() as connection:
            self._check_room(connection, client, more_bytes)

    def add(self, new: NewJob) -> Job:
        """Add a job at the end of the queue.

        Returns the job that has the idempotency key already, if there is one of the same request. Raises Refused: for
        another request with that key, or where there is no room.
        """
        try:
            with self._database.writing() as connection:
                self._database.lock(connection, "disk")
                before = self._with_key(connection, new)
                if before is not None:
                    return before
                self._check_room(connection, new.client, new.file_bytes)
                now_s = self._database.now_s(connection)
                connection.execute(insert(jobs).values(_row(new, now_s)))
        except IntegrityError:  # the same key came in the same moment, on a database without our lock
            with self._database.reading() as connection:
                before = self._with_key(connection, new)
            if before is None:
                raise
            return before
        return self.get(new.id, new.client)

    def get(self, job_id: str, client: str | None) -> Job:
        """Return a job. client: whose it must be; None: anybody's. Raises Refused."""
        with self._database.reading() as connection:
            return self._get(connection, job_id, client)

    def newest(self, client: str, limit: int, before: str | None = None) -> list[Job]:
        """Return a client's jobs, the newest first. before: the id of the last one of the page before."""
        rows = select(jobs).where(jobs.c.client == client).order_by(jobs.c.number.desc()).limit(limit)
        with self._database.reading() as connection:
            if before is not None:
                last = connection.scalar(select(jobs.c.number).where(jobs.c.id == before, jobs.c.client == client))
                if last is None:
                    raise not_found()
                rows = rows.where(jobs.c.number < last)
            return [self._job(connection, row) for row in connection.execute(rows).mappings()]

    def cancel(self, job_id: str, client: str | None) -> Job:
        """Cancel a job that waits or runs; its worker notices within seconds. Others stay as they are."""
        with self._database.writing() as connection:
            self._get(connection, job_id, client)
            now_s = self._database.now_s(connection)
            move(connection, job_id, State.CANCELLED, now_s, self._settings.keep_s)
            return self._get(connection, job_id, client)

    def expire(self, job_id: str, client: str | None) -> None:
        """Take a job that does not run to its last state, so that its files can be deleted. Raises Refused."""
        with self._database.writing() as connection:
            self._get(connection, job_id, client)
            move(connection, job_id, State.EXPIRED, self._database.now_s(connection), self._settings.keep_s)

    def remove(self, job_id: str) -> None:
        """Remove the record of an expired job."""
        with self._database.writing() as connection:
            connection.execute(delete(jobs).where(jobs.c.id == job_id, jobs.c.state == State.EXPIRED.value))

    def _get(self, connection: Connection, job_id: str, client: str | None) -> Job:
        wanted = select(jobs).where(jobs.c.id == job_id)
        if client is not None:
            wanted = wanted.where(jobs.c.client == client)
        row = connection.execute(wanted).mappings().first()
        if row is None:
            raise not_found()
        return self._job(connection, row)

    def _with_key(self, connection: Connection, new: NewJob) -> Job | None:
        if new.idempotency_key is None:
            return None
        wanted = select(jobs).where(jobs.c.client == new.client, jobs.c.idempotency_key == new.idempotency_key)
        row = connection.execute(wanted).mappings().first()
        if row is None:
            return None
        if row["fingerprint"] != new.fingerprint:
            raise Refused(
                "this idempotency key belongs to another request",
                status=422,
                code="idempotency_key",
                fix="make a new key for each job",
            )
        return self._job(connection, row)

    def _check_room(self, connection: Connection, client: str, more_bytes: int) -> None:
        queued = jobs.c.state == State.QUEUED.value
        if (connection.scalar(select(func.count()).where(queued)) or 0) >= self._settings.max_queue:
            raise Refused(
                f"the queue is full ({self._settings.max_queue} jobs)",
                status=429,
                code="queue_full",
                fix="try again later",
                retry_after_s=30,
            )
        of_client = (jobs.c.client == client) & jobs.c.state.in_([state.value for state in ACTIVE])
        if (connection.scalar(select(func.count()).where(of_client)) or 0) >= self._settings.max_client_jobs:
            raise Refused(
                f"{self._settings.max_client_jobs} of your jobs wait or run, which is as many as are allowed",
                status=429,
                code="too_many_jobs",
                fix="wait until one has ended, or cancel one",
                retry_after_s=10,
            )
        used_bytes = connection.scalar(select(func.coalesce(func.sum(jobs.c.file_bytes), 0))) or 0
        if used_bytes + more_bytes > self._settings.max_disk_bytes:
            raise Refused(
                f"the service's files would take more than {shown_bytes(self._settings.max_disk_bytes)}",
                status=507,
                code="disk_full",
                fix="delete jobs that are no longer needed, or try again later",
                retry_after_s=600,
            )

    def _job(self, connection: Connection, row: RowMapping) -> Job:
        position = None
        if row["state"] == State.QUEUED.value:
            ahead = (jobs.c.state == State.QUEUED.value) & (jobs.c.number < row["number"])
            position = 1 + (connection.scalar(select(func.count()).where(ahead)) or 0)
        names = set(Job.__dataclass_fields__) - {"state", "position"}
        return Job(**{name: row[name] for name in names}, state=State(row["state"]), position=position)


def _row(new: NewJob, now_s: float) -> dict[str, Any]:
    return {
        "id": new.id,
        "client": new.client,
        "idempotency_key": new.idempotency_key,
        "fingerprint": new.fingerprint,
        "state": State.QUEUED.value,
        "model": new.model,
        "settings": new.settings.to_dict(),
        "input": dict(new.input),
        "file_bytes": new.file_bytes,
        "created_s": now_s,
        "attempts": 0,
        "webhook_url": None if new.webhook is None else new.webhook.url,
        "webhook_secret": None if new.webhook is None else new.webhook.secret,
        "webhook_tries": 0,
    }
