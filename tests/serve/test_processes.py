"""Processes that are killed at any moment: no job is lost, none is done twice, everything goes on after a restart."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import httpx
import pytest

from helpers.cli import command
from helpers.pipeline import write_clip, write_speech
from helpers.service import until
from lipstream.bundled import sample
from lipstream.media.reader import read_frames
from lipstream.serve.service import JobRequest, Service
from lipstream.serve.states import State
from lipstream.settings import SyncSettings

Inputs = tuple[Path, Path]
Process = subprocess.Popen[str]


@contextmanager
def started(words: list[str], folder: Path) -> Iterator[tuple[Process, str]]:
    """Yield a process and the first line that it printed; it is killed at the end."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_ENDPOINT": "http://127.0.0.1:9"}
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, encoding="utf-8", env=environment)
    assert process.stdout is not None
    try:
        line = process.stdout.readline().strip()
        assert line, (folder / "log").read_text()
        yield process, line
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()


def test_a_killed_workers_jobs_go_on_elsewhere(
    make_service: Callable[..., Service], inputs: Inputs, tmp_path: Path
) -> None:
    service = make_service(lease="1s", max_attempts=100)
    database, data = str(service.settings.database), str(service.settings.data)
    program = [sys.executable, "-m", "helpers.service_worker", database, data, "1s", "0.3"]
    ids = [service.submit(JobRequest(settings=SyncSettings(seed=n)), *inputs, f"client {n % 3}").id for n in range(14)]
    dice = random.Random(20)
    killed_at_work = 0

    def has_ended() -> bool:
        return all(service.job(one).has_ended for one in ids)

    with started(program, tmp_path):
        for _ in range(3):
            with started(program, tmp_path) as (process, _):
                until(lambda: any(service.job(one).state is State.RUNNING for one in ids) or has_ended())
                time.sleep(dice.uniform(0.05, 0.6))
                process.send_signal(signal.SIGKILL)
                process.wait(30)
                killed_at_work += sum(service.job(one).state is State.RUNNING for one in ids) == 2
        until(has_ended, within_s=60)
    jobs = [service.job(one) for one in ids]
    assert [job.state for job in jobs] == [State.DONE] * 14
    assert sum(job.attempts - 1 for job in jobs) <= 3
    assert any(job.attempts > 1 for job in jobs) or not killed_at_work
    for job in jobs:
        with service.local_files(job.id) as (_, result):
            assert result is not None and result.read_text().startswith(f"tiny {job.settings['seed']} ")
        files = Counter(path.name.partition("-")[0] for path in Path(data, job.id).iterdir())
        assert files["result"] <= job.attempts  # one that was killed before it published may have left its file


def test_a_job_that_kills_its_workers_ends(
    make_service: Callable[..., Service], inputs: Inputs, tmp_path: Path
) -> None:
    service = make_service(lease="0.5s", max_attempts=2)
    program = [
        sys.executable,
        "-m",
        "helpers.service_worker",
        str(service.settings.database),
        str(service.settings.data),
    ]
    job_id = service.submit(JobRequest(), *inputs, "me").id
    for _ in range(2):
        with started([*program, "0.5s", "60"], tmp_path):
            until(lambda: service.job(job_id).state is State.RUNNING)
    from lipstream.serve.leases import Leases

    leases = Leases(service.database, service.settings)
    until(lambda: leases.claim(["tiny"]) is None and service.job(job_id).state is State.FAILED)
    error = service.job(job_id).error
    assert error is not None and error["code"] == "workers_lost"


def test_a_killed_server_loses_no_job(tmp_path: Path) -> None:
    """The real command line with the bundled model: killed while a job is at work, started again, done."""
    images = [frame.image for frame in itertools.islice(read_frames(sample.VIDEO), 10)]
    video, audio = write_clip(tmp_path / "in.mp4", images), write_speech(tmp_path / "in.wav", 3.0, 16000)
    words = command("serve", "--data", tmp_path / "data", "--port", "0", "--lease", "2s", "--detector", "mediapipe")
    files = {"video": video.read_bytes(), "audio": audio.read_bytes()}
    with started(words, tmp_path) as (process, url):
        sent = httpx.post(f"{url}/api/v1/jobs", files=files, timeout=60)
        assert sent.status_code == 202
        path = f"/api/v1/jobs/{sent.json()['id']}"
        until(lambda: httpx.get(url + path, timeout=60).json()["state"] == "running", within_s=120)
        process.send_signal(signal.SIGKILL)
    with started(words, tmp_path) as (process, url):
        job = until(
            lambda: (job := httpx.get(url + path, timeout=60).json())["state"] not in ("queued", "running") and job,
            within_s=200,
        )
        assert job["state"] == "done" and job["attempts"] == 2
        assert job["result"]["frames"] == 75 and job["result"]["faces"]["frames_with_face"] == 75
        assert str(tmp_path) not in json.dumps(job)
        (tmp_path / "out.mp4").write_bytes(httpx.get(f"{url}{path}/result", timeout=60).content)
        with av.open(str(tmp_path / "out.mp4")) as container:
            assert sum(1 for _ in container.decode(video=0)) == 75
        with httpx.stream("GET", f"{url}{path}/events", timeout=60) as followed:  # somebody does, while it stops
            assert followed.status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    log = (tmp_path / "log").read_text().splitlines()
    assert all(json.loads(line)["level"] in ("info", "warning") for line in log), log


def test_a_worker_on_another_machine(make_service: Callable[..., Service], inputs: Inputs, tmp_path: Path) -> None:
    """`lipstream worker` with the bundled model takes jobs from the database, and stops in order."""
    service = make_service()
    place = ("--database", service.settings.database, "--data", service.settings.data)
    job_id = service.submit(JobRequest(), *inputs, "me").id
    process = subprocess.Popen(
        command("worker", *place, "--detector", "mediapipe"), stderr=subprocess.PIPE, encoding="utf-8", env=os.environ
    )
    try:
        until(lambda: service.job(job_id).has_ended, within_s=120)
        error = service.job(job_id).error
        assert error is not None and error["code"] == "no_face"  # a grey picture
        assert [worker.loaded for worker in service.workers()] == ["tiny"]
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0 and service.workers() == []
    assert "failed" in [json.loads(line)["message"] for line in log.splitlines()]


def test_a_worker_whose_model_is_broken_says_so(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    done = subprocess.run(
        command("worker", "--database", f"sqlite:///{tmp_path / 'jobs.sqlite'}", "--model", tmp_path / "model"),
        capture_output=True, encoding="utf-8", timeout=120, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 5 and done.stderr.splitlines()[-1].startswith("lipstream: error: ")


@pytest.mark.parametrize(
    "name", ["lipstream.cli.serve", "lipstream.cli.live", "lipstream.cli.main", "lipstream.serve.live.settings"]
)
def test_nothing_of_the_extra_is_imported_without_need(name: str) -> None:
    code = f"import sys, {name}; print(*{{one.partition('.')[0] for one in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert not {
        "fastapi",
        "starlette",
        "sqlalchemy",
        "alembic",
        "uvicorn",
        "gradio",
        "httpcore",
        "pydantic",
        "aiortc",
    } & set(done.stdout.split())
