"""Jobs in the database: their states, the queue, leases, and who may publish a result."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from helpers.service import FakeRender, broken, until, write_inputs
from lipstream import SettingsError
from lipstream.results import SyncResult
from lipstream.serve.database import Database
from lipstream.serve.leases import Leases
from lipstream.serve.refused import Refused
from lipstream.serve.service import JobRequest, Service
from lipstream.serve.settings import ServiceSettings
from lipstream.serve.states import MOVES, State, move
from lipstream.serve.tables import metadata
from lipstream.serve.worker import Worker
from lipstream.settings import SyncSettings

Inputs = tuple[Path, Path]
MakeService = Callable[..., Service]
RESULT = SyncResult(Path("out.mp4"), 10, 0.4, 0.1, 0.25, (), 10, 0, {})


def submitted(service: Service, inputs: Inputs, seed: int = 1, client: str = "me", key: str | None = None) -> str:
    return service.submit(JobRequest(settings=SyncSettings(seed=seed), idempotency_key=key), *inputs, client).id


def working(service: Service, render: Any) -> tuple[Worker, threading.Thread]:
    worker = Worker(service.database, service.files, service.settings, render)
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    return worker, thread


def stopped(worker: Worker, thread: threading.Thread) -> None:
    worker.stop.set()
    thread.join(20)
    assert not thread.is_alive()


def test_migrations_make_the_tables_that_the_code_uses(database: Database) -> None:
    database.migrate()  # a second time changes nothing
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        unique = inspect(connection).get_unique_constraints("jobs")
        assert {tuple(one["column_names"]) for one in unique} >= {("id",), ("client", "idempotency_key")}


def test_servers_that_start_together_migrate_once(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Database.migrate, databases))
    for one in databases:
        one.close()


@pytest.mark.parametrize("url", ["nothing", "sqlite:////no/such/folder/jobs.sqlite", "nosuch://x/y"])
def test_a_database_that_cannot_be_used_is_named(url: str) -> None:
    with pytest.raises(SettingsError, match="database: ") as error:
        Database(url).migrate()
    assert error.value.fix


def test_a_database_of_a_newer_version_is_refused(database: Database) -> None:
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SettingsError, match="another version"):
        database.migrate()


@pytest.mark.parametrize(("start", "to"), list(itertools.product(State, State)))
def test_only_the_listed_moves_happen(tmp_path: Path, start: State, to: State) -> None:
    database = Database(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    database.migrate()
    with database.writing() as connection:
        connection.exec_driver_sql(
            "INSERT INTO jobs (id, client, fingerprint, state, model, settings, input, file_bytes, created_s, attempts,"
            f" webhook_tries) VALUES ('a', 'me', '', '{start.value}', 'tiny', '{{}}', '{{}}', 0, 0, 0, 0)"
        )
        assert move(connection, "a", to, now_s=5.0, keep_s=1.0) is (to in MOVES[start])
        state = connection.exec_driver_sql("SELECT state FROM jobs").scalar()
    assert state == (to if to in MOVES[start] else start).value
    database.close()


def test_jobs_are_taken_in_order_and_know_their_position(service: Service, inputs: Inputs) -> None:
    ids = [submitted(service, inputs, seed) for seed in range(3)]
    assert [service.job(one).position for one in ids] == [1, 2, 3]
    leases = Leases(service.database, service.settings)
    first = leases.claim(["tiny"])
    assert first is not None and first.job_id == ids[0] and first.settings.seed == 0
    assert [service.job(one).position for one in ids] == [None, 1, 2]
    assert service.job(ids[0]).state is State.RUNNING
    assert leases.claim(["another"]) is None
    assert leases.release(first)
    assert [service.job(one).position for one in ids] == [1, 2, 3]  # back to its place, not to the end
    assert service.job(ids[0]).attempts == 0


def test_no_job_is_taken_twice(service: Service, inputs: Inputs) -> None:
    ids = {submitted(service, inputs, seed) for seed in range(10)}

    def claim_all(_: int) -> list[str]:
        leases, mine = Leases(service.database, service.settings), []
        while (lease := leases.claim(["tiny"])) is not None:
            mine.append(lease.job_id)
        return mine

    with ThreadPoolExecutor(4) as pool:
        taken = list(itertools.chain.from_iterable(pool.map(claim_all, range(4))))
    assert len(taken) == 10 and set(taken) == ids


def test_who_lost_the_lease_publishes_nothing(make_service: MakeService, inputs: Inputs) -> None:
    service = make_service(lease="0.2s")
    job_id = submitted(service, inputs)
    leases = Leases(service.database, service.settings)
    silent = leases.claim(["tiny"])
    assert silent is not None
    later = until(lambda: leases.claim(["tiny"]))  # once the lease has ended
    assert later.job_id == job_id and later.attempt == 2
    assert not leases.renew(silent, {"frames": 1})
    assert not leases.finish(silent, RESULT, "result-a.mp4", 1, 1)
    assert not leases.fail(silent, "internal", "too late", None)
    assert not leases.release(silent)
    assert service.job(job_id).state is State.RUNNING and service.job(job_id).progress is None
    assert leases.finish(later, RESULT, "result-b.mp4", 1, 1)
    assert (service.job(job_id).state, service.job(job_id).result_name) == (State.DONE, "result-b.mp4")


def test_a_job_that_ends_its_workers_has_failed_in_the_end(make_service: MakeService, inputs: Inputs) -> None:
    service = make_service(lease="0.1s", max_attempts=2)
    job_id = submitted(service, inputs)
    leases = Leases(service.database, service.settings)
    for attempt in (1, 2):
        assert until(lambda: leases.claim(["tiny"])).attempt == attempt
    until(lambda: leases.claim(["tiny"]) is None and service.job(job_id).state is State.FAILED)
    error = service.job(job_id).error
    assert error is not None and error["code"] == "workers_lost" and "2 workers" in error["message"]


def test_a_worker_does_jobs_and_a_long_one_keeps_its_lease(make_service: MakeService, inputs: Inputs) -> None:
    service = make_service(lease="0.4s")
    render = FakeRender(duration_s=1.5)
    worker, other = working(service, render), working(service, FakeRender())
    try:
        until(lambda: len(service.workers()) == 2)
        stopped(*other)
        job_id = submitted(service, inputs, seed=7)
        until(lambda: (service.job(job_id).progress or {}).get("frames"))
        found = service.job(job_id).progress
        assert (
            found is not None and found["n_frames"] == 10 and [s["name"] for s in found["stages"]] == ["read", "write"]
        )
        done = until(lambda: (job := service.job(job_id)).state is State.DONE and job)
        assert done.attempts == 1 and done.result["frames"] == 10 and "output" not in done.result
        with service.local_files(job_id) as (video, result):
            assert video.read_bytes() == inputs[0].read_bytes()
            assert result is not None and result.read_bytes().startswith(b"tiny 7 ")
    finally:
        stopped(*worker)
    assert service.workers() == [] and render.offloads == 1


def test_a_hung_worker_that_lost_its_lease_leaves_no_file(make_service: MakeService, inputs: Inputs) -> None:
    service = make_service()
    render = FakeRender(duration_s=1.5)
    render.obeys = False  # does not look at `cancel`
    worker = working(service, render)
    job_id = submitted(service, inputs)
    until(lambda: service.job(job_id).state is State.RUNNING)
    assert service.cancel(job_id).state is State.CANCELLED
    until(lambda: service.newest("me")[0].state is State.CANCELLED and render.begun.is_set())
    stopped(*worker)
    assert service.job(job_id).state is State.CANCELLED
    assert sorted(path.name for path in Path(str(service.settings.data), job_id).iterdir()) == ["audio", "video"]


def test_a_running_job_is_cancelled_within_seconds(service: Service, inputs: Inputs) -> None:
    render = FakeRender(duration_s=60)
    worker = working(service, render)
    job_id = submitted(service, inputs)
    assert render.begun.wait(20)
    service.cancel(job_id)
    after = submitted(service, inputs, seed=2)
    until(lambda: len(render.runs) == 2, within_s=5)
    assert service.job(job_id).state is State.CANCELLED
    service.cancel(after)
    stopped(*worker)


def test_a_worker_that_stops_gives_its_job_back(service: Service, inputs: Inputs) -> None:
    render = FakeRender(duration_s=60)
    worker = working(service, render)
    job_id = submitted(service, inputs)
    assert render.begun.wait(20)
    stopped(*worker)
    job = service.job(job_id)
    assert (job.state, job.attempts, job.position) == (State.QUEUED, 0, 1)
    worker = working(service, FakeRender())
    until(lambda: service.job(job_id).state is State.DONE)
    stopped(*worker)


def test_a_job_has_a_wall_time(make_service: MakeService, inputs: Inputs) -> None:
    service = make_service(max_wall="0.3s", lease="0.3s")
    worker = working(service, FakeRender(duration_s=60))
    job_id = submitted(service, inputs)
    job = until(lambda: (job := service.job(job_id)).state is State.FAILED and job)
    stopped(*worker)
    assert job.error["code"] == "wall_time" and job.attempts == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (broken("no usable face", file="/secret/video", fix="use another"), "error", "video: no usable face"),
        (RuntimeError("/secret/path"), "internal", "internal error (RuntimeError)"),
    ],
)
def test_an_error_is_kept_without_this_machines_paths(
    service: Service, inputs: Inputs, error: Exception, code: str, message: str
) -> None:
    worker = working(service, FakeRender(error=error))
    job_id = submitted(service, inputs)
    job = until(lambda: (job := service.job(job_id)).state is State.FAILED and job)
    stopped(*worker)
    assert (job.error["code"], job.error["message"]) == (code, message)
    with pytest.raises(Refused) as refused:
        service.result(job_id)
    assert refused.value.status == 409


def test_an_idle_model_is_freed_and_loaded_again(make_service: MakeService, inputs: Inputs) -> None:
    service = make_service(idle="0.2s")
    render = FakeRender()
    worker = working(service, render)
    until(lambda: render.offloads == 1)
    job_id = submitted(service, inputs)
    until(lambda: service.job(job_id).state is State.DONE)
    until(lambda: render.offloads == 2)
    stopped(*worker)


def test_an_idempotency_key_gives_the_same_job(service: Service, inputs: Inputs) -> None:
    first = submitted(service, inputs, key="k")
    assert submitted(service, inputs, key="k") == first
    assert submitted(service, inputs, client="another", key="k") != first
    with pytest.raises(Refused, match="another request") as refused:
        submitted(service, inputs, seed=2, key="k")
    assert refused.value.status == 422
    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(lambda _: submitted(service, inputs, key="at once"), range(4)))
    assert len(ids) == 1
    folders = {path.name for path in Path(str(service.settings.data)).iterdir() if path.is_dir()}
    assert folders == {job.id for job in [*service.newest("me"), *service.newest("another")]}  # no copy is left over


def test_a_database_that_drops_its_connections_loses_nothing(postgres_database: str, tmp_path: Path) -> None:
    """As when PostgreSQL starts again: the worker goes on, and so does its job."""
    service = Service.open(ServiceSettings(database=postgres_database, data=str(tmp_path / "files"), lease="5s"))
    render = FakeRender(duration_s=3)
    worker = working(service, render)
    job_id = submitted(service, write_inputs(tmp_path))
    assert render.begun.wait(60)
    other = Database(postgres_database)
    for _ in range(3):
        with other.reading() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        time.sleep(0.5)
    until(lambda: service.job(job_id).state is State.DONE)
    stopped(*worker)
    assert len(render.runs) == service.job(job_id).attempts == 1
    other.close()
    service.close()
