"""What every server and worker does now and then: lapsed leases, expired files, reports to clients."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sqlalchemy import delete, select, update
from sqlalchemy.exc import DBAPIError

from lipstream.errors import LipstreamError
from lipstream.serve.addresses import IsAllowed
from lipstream.serve.database import Database
from lipstream.serve.files import Files
from lipstream.serve.jobs import made_s
from lipstream.serve.leases import Leases
from lipstream.serve.settings import WorkSettings
from lipstream.serve.states import ENDED, State, move
from lipstream.serve.tables import jobs, workers
from lipstream.serve.webhook import deliver_due

logger = logging.getLogger(__name__)

_UNKNOWN_FILES_S = 3600.0
"""Files of no job are deleted when they are so old: those of an upload whose server was killed."""
_UNKNOWN_EVERY_S = 600.0
_SILENT_WORKER_S = 600.0


class Repeated(threading.Thread):
    """Does something every few seconds until it is stopped, whatever becomes of the database in the meantime."""

    def __init__(self, name: str, task: Callable[[], object], every_s: float) -> None:
        super().__init__(name=name, daemon=True)
        self._task, self._every_s = task, every_s
        self._stop_asked = threading.Event()

    def stop(self) -> None:
        """End the thread."""
        self._stop_asked.set()
        self.join()

    def run(self) -> None:
        while not self._stop_asked.wait(self._every_s):
            try:
                self._task()
            except DBAPIError as error:
                logger.warning("database: %s", type(error.orig).__name__)
            except (LipstreamError, OSError) as error:
                logger.warning("%s: %s", self.name, error)


def keepers(database: Database, files: Files, settings: WorkSettings, is_allowed: IsAllowed) -> list[Repeated]:
    """Return the threads that do the upkeep, not started yet. is_allowed: the machines that reports may be sent to.

    Reports have one of their own: a client's slow machine delays nothing else.
    """
    every_s = min(5.0, settings.keep_s / 2, settings.lease_s / 2)
    return [
        Repeated("upkeep", lambda: once(database, files, settings), every_s),
        Repeated("webhooks", lambda: deliver_due(database, is_allowed), every_s),
        Repeated("unknown files", lambda: delete_unknown(database, files), _UNKNOWN_EVERY_S),
    ]


def once(database: Database, files: Files, settings: WorkSettings) -> None:
    """Release lapsed leases, expire jobs and delete what is left of expired ones."""
    Leases(database, settings).release_lapsed()
    _expire(database, settings)
    _delete_files(database, files)
    _forget(database, settings)


def _expire(database: Database, settings: WorkSettings) -> None:
    """Expire jobs whose time is over, and those that no worker has taken for so long."""
    with database.reading() as connection:
        now_s = database.now_s(connection)
        is_over = jobs.c.state.in_([state.value for state in ENDED]) & (jobs.c.expires_s < now_s)
        waits_long = (jobs.c.state == State.QUEUED.value) & (jobs.c.created_s < now_s - settings.keep_s)
        ids = connection.scalars(select(jobs.c.id).where(is_over | waits_long)).all()
    for job_id in ids:
        with database.writing() as connection:
            move(connection, job_id, State.EXPIRED, database.now_s(connection), settings.keep_s)
        logger.info("expired", extra={"job": job_id})


def _delete_files(database: Database, files: Files) -> None:
    """Delete the files of expired jobs, and then count them no more."""
    wanted = select(jobs.c.id).where(jobs.c.state == State.EXPIRED.value, jobs.c.file_bytes > 0)
    with database.reading() as connection:
        ids = connection.scalars(wanted).all()
    for job_id in ids:
        files.delete(job_id)
        with database.writing() as connection:
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(file_bytes=0))


def _forget(database: Database, settings: WorkSettings) -> None:
    """Remove the records of jobs that expired long ago, and of workers that are gone."""
    with database.reading() as connection:
        now_s = database.now_s(connection)
        forgotten = (jobs.c.state == State.EXPIRED.value) & (jobs.c.expires_s < now_s) & (jobs.c.file_bytes == 0)
        gone = workers.c.seen_s < now_s - _SILENT_WORKER_S
        if not connection.scalars(select(jobs.c.id).where(forgotten)).first() and not (
            connection.scalars(select(workers.c.id).where(gone)).first()
        ):
            return
    with database.writing() as connection:
        connection.execute(delete(jobs).where(forgotten))
        connection.execute(delete(workers).where(gone))


def delete_unknown(database: Database, files: Files) -> None:
    """Delete files of jobs that are not in the database, once they are old: an id says when it was made."""
    with database.reading() as connection:
        now_s = database.now_s(connection)
        old = [one for one in files.job_ids() if (made_s(one) or now_s) < now_s - _UNKNOWN_FILES_S]
        known = set(connection.scalars(select(jobs.c.id).where(jobs.c.id.in_(old)))) if old else set()
    for job_id in set(old) - known:
        files.delete(job_id)
        logger.info("files of no job deleted", extra={"job": job_id})
