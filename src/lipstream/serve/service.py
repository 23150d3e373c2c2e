"""What can be done with jobs, for the HTTP interface and the page alike: submit, look up, list, cancel, delete, result.

Plain functions that block while they read files or ask the database; any number of threads may call them.

    service = Service.open(ServiceSettings())
    job = service.submit(JobRequest(settings=SyncSettings()), video, audio, client="a visitor")
    service.job(job.id).position, service.job(job.id).progress
    service.cancel(job.id)
    with service.result(job.id) as path: ...
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lipstream.models.digest import sha256
from lipstream.serve.addresses import IsAllowed, check_address, fetch, is_public
from lipstream.serve.database import Database
from lipstream.serve.files import AUDIO, VIDEO, Files
from lipstream.serve.inspect import inspect
from lipstream.serve.jobs import Job, JobStore, NewJob, Webhook, new_id
from lipstream.serve.leases import WorkerRecord, live_workers
from lipstream.serve.quantities import shown_bytes
from lipstream.serve.refused import Refused
from lipstream.serve.settings import ServiceSettings
from lipstream.serve.states import State
from lipstream.settings import SyncSettings

logger = logging.getLogger(__name__)

WORKER_SILENT_S = 30.0
"""A worker that has not been seen for so long is not counted any more; they report more often."""

_RESULT_ALLOWANCE = 1  # times the video's bytes, until the result is there


@dataclass(frozen=True)
class JobRequest:
    """What is asked for besides the files. model: None for the service's first. idempotency_key: see JobStore.add."""

    model: str | None = None
    settings: SyncSettings = field(default_factory=SyncSettings)
    idempotency_key: str | None = None
    webhook: Webhook | None = None


@dataclass(frozen=True)
class Result:
    """The file of a job that is done. read: yields its bytes from one position up to another."""

    job: Job
    n_bytes: int
    read: Callable[[int, int], Iterator[bytes]]


class Service:
    """The jobs, their files and their limits. client: whose job it must be, None for anybody's.

    All raise Refused, and OutputError where files cannot be stored.
    """

    def __init__(
        self, settings: ServiceSettings, database: Database, files: Files, is_allowed: IsAllowed = is_public
    ) -> None:
        """Take what is open. is_allowed: the machines that clients' addresses may be of."""
        self.settings, self.database, self.files, self.is_allowed = settings, database, files, is_allowed
        self.jobs = JobStore(database, settings)
        self._lock = threading.Lock()
        self._incoming_bytes = 0

    @classmethod
    def open(cls, settings: ServiceSettings) -> Service:
        """Open the database, making or migrating its tables, and the folder of files. Raises SettingsError."""
        database = Database(settings.database_url)
        database.migrate()
        return cls(settings, database, Files(settings.data_place))

    def close(self) -> None:
        """Close the database's connections."""
        self.database.close()

    @contextmanager
    def room_for(self, client: str, n_bytes: int) -> Iterator[None]:
        """Hold room on the disk for files that are about to come, so that many at once cannot fill it."""
        if n_bytes > self.settings.max_upload_bytes:
            raise self.too_large()
        with self._lock:
            self._incoming_bytes += n_bytes
        try:
            self.jobs.check_room(client, self._incoming_bytes)
            yield
        finally:
            with self._lock:
                self._incoming_bytes -= n_bytes

    def too_large(self) -> Refused:
        """Return the refusal for files that are too large."""
        most = shown_bytes(self.settings.max_upload_bytes)
        return Refused(f"the files are larger than {most}", status=413, code="too_large", fix="send smaller files")

    def submit(self, request: JobRequest, video: Path, audio: Path, client: str) -> Job:
        """Check two local files and queue a job with copies of them. client: who it belongs to."""
        model = self._model(request.model)
        if (request.settings.resolution or 0) > self.settings.max_resolution:
            message = f"settings.resolution is more than {self.settings.max_resolution}"
            raise Refused(message, status=422, code="settings", fix="ask for less")
        if request.webhook is not None:
            self._check_urls_allowed()
            check_address(request.webhook.url)
        sizes = video.stat().st_size, audio.stat().st_size
        if sum(sizes) > self.settings.max_upload_bytes:
            raise self.too_large()
        allowed_bytes = sum(sizes) + _RESULT_ALLOWANCE * sizes[0]
        self.jobs.check_room(client, allowed_bytes)
        understood = inspect(video, audio, request.settings.audio_track, self.settings)
        with self.database.reading() as connection:
            job_id = new_id(self.database.now_s(connection))
        new = NewJob(
            id=job_id,
            client=client,
            model=model,
            settings=request.settings,
            input=understood.to_dict(),
            file_bytes=allowed_bytes,
            fingerprint=_fingerprint(model, request, video, audio),
            idempotency_key=request.idempotency_key,
            webhook=request.webhook,
        )
        try:
            self.files.put(job_id, VIDEO, video)
            self.files.put(job_id, AUDIO, audio)
            job = self.jobs.add(new)
        except BaseException:
            self.files.delete(job_id)
            raise
        if job.id != job_id:  # it was there already
            self.files.delete(job_id)
        else:
            logger.info("queued", extra={"job": job_id, "model": model, **understood.to_dict()})
        return job

    def submit_addresses(self, request: JobRequest, video_url: str, audio_url: str, client: str) -> Job:
        """Fetch two public http(s) addresses and queue a job with what they hold."""
        self._check_urls_allowed()
        most_bytes = self.settings.max_upload_bytes
        with self.room_for(client, most_bytes), tempfile.TemporaryDirectory(prefix="lipstream-") as folder:
            video, audio = Path(folder) / VIDEO, Path(folder) / AUDIO
            fetched_bytes = fetch(video_url, video, most_bytes, self.is_allowed)
            fetch(audio_url, audio, most_bytes - fetched_bytes, self.is_allowed)
            return self.submit(request, video, audio, client)

    def job(self, job_id: str, client: str | None = None) -> Job:
        """Return a job as it is now."""
        return self.jobs.get(job_id, client)

    def newest(self, client: str, limit: int = 20, before: str | None = None) -> list[Job]:
        """Return a client's jobs, the newest first; see JobStore.newest."""
        return self.jobs.newest(client, limit, before)

    def cancel(self, job_id: str, client: str | None = None) -> Job:
        """Cancel a job that waits or runs; one that has ended stays as it is."""
        job = self.jobs.cancel(job_id, client)
        logger.info("%s after a wish to cancel", job.state.value, extra={"job": job_id})
        return job

    def delete(self, job_id: str, client: str | None = None) -> None:
        """Delete a job that has ended, with its files."""
        self.jobs.expire(job_id, client)
        self.files.delete(job_id)
        self.jobs.remove(job_id)
        logger.info("deleted", extra={"job": job_id})

    def result(self, job_id: str, client: str | None = None) -> Result:
        """Return the result of a job that is done."""
        job = self.job(job_id, client)
        if job.state is State.EXPIRED:
            raise _gone()
        if job.state is not State.DONE or job.result_name is None:
            fix = "wait until its state is done" if not job.has_ended else "see its error"
            raise Refused(f"the job is {job.state.value}: it has no result", status=409, code="no_result", fix=fix)
        name = job.result_name
        try:
            n_bytes = self.files.n_bytes(job_id, name)
        except FileNotFoundError as error:
            raise _gone() from error
        return Result(job, n_bytes, lambda begin, end: self.files.read(job_id, name, begin, end))

    @contextmanager
    def local_files(self, job_id: str, client: str | None = None) -> Iterator[tuple[Path, Path | None]]:
        """Yield local paths of a job's video and, once it is done, its result.

        They last as long as the block, and longer only where the service's files are in a local folder.
        """
        job = self.job(job_id, client)
        if job.state is State.EXPIRED:
            raise _gone()
        names = (VIDEO,) if job.result_name is None else (VIDEO, job.result_name)
        with self.files.local(job_id, *names) as paths:
            yield paths[0], paths[1] if len(paths) > 1 else None

    def workers(self) -> list[WorkerRecord]:
        """Return the workers that have been seen lately, on all machines."""
        with self.database.reading() as connection:
            return list(live_workers(connection, self.database.now_s(connection), WORKER_SILENT_S))

    def _model(self, name: str | None) -> str:
        names = self.settings.model_names
        if name is not None and name not in names:
            fix = f"use one of {', '.join(names)}"
            raise Refused(f"there is no model {name!r} here", status=422, code="model", fix=fix)
        return name or names[0]

    def _check_urls_allowed(self) -> None:
        if not self.settings.allow_urls:
            fix = "upload the files; the server's owner can start it with --allow-urls"
            raise Refused("addresses are not fetched here", status=422, code="urls_not_allowed", fix=fix)


def _gone() -> Refused:
    return Refused("the job's files are deleted", status=410, code="expired", fix="send it again")


def _fingerprint(model: str, request: JobRequest, video: Path, audio: Path) -> str:
    """Return a digest of all that a job's result depends on."""
    url = None if request.webhook is None else request.webhook.url
    described = [model, request.settings.to_dict(), url, sha256(video), sha256(audio)]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
