"""A service for tests: small files, a renderer without a model, a server in a thread, a PostgreSQL of one's own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn

from helpers.pipeline import write_clip, write_speech
from lipstream.errors import Cancelled, LipstreamError
from lipstream.results import Progress, StageTime, SyncResult
from lipstream.serve.app import create_app
from lipstream.serve.render import Work
from lipstream.serve.service import Service

POSTGRES = Path("/usr/lib/postgresql/15/bin")


class FakeRender:
    """Writes what it was given to do as text, after `duration_s`; no model. runs: the works that it began."""

    models: tuple[str, ...] = ("tiny",)
    device = "none"

    def __init__(self, duration_s: float = 0.0, error: Exception | None = None, result: bytes | None = None) -> None:
        self.duration_s, self.error, self.result = duration_s, error, result
        self.runs: list[Work] = []
        self.begun = threading.Event()
        self.obeys = True
        self.loaded: str | None = None
        self.offloads = 0

    def __call__(self, work: Work, on_progress: Callable[[Progress], None], cancel: threading.Event) -> SyncResult:
        self.runs.append(work)
        self.begun.set()
        self.loaded = work.model
        end_s = time.monotonic() + self.duration_s
        while (now_s := time.monotonic()) < end_s:
            done = round(10 * (1 - (end_s - now_s) / self.duration_s))
            on_progress(Progress(done, 10, (StageTime("read", 0.1, done), StageTime("write", 0.1, done))))
            if self.obeys and cancel.wait(0.02):
                raise Cancelled("stopped")
        if self.error is not None:
            raise self.error
        if self.result is None:
            work.output.write_bytes(f"{work.model} {work.settings.seed} {work.video.stat().st_size}".encode() * 10)
        else:
            work.output.write_bytes(self.result)
        stages = (StageTime("read", 0.5, 10), StageTime("write", 0.25, 10))
        return SyncResult(work.output, 10, 0.4, 0.1, 0.25, stages, 10, 0, {"seed": work.settings.seed})

    def load(self) -> None:
        self.loaded = self.models[0]

    def offload(self) -> None:
        self.offloads += self.loaded is not None
        self.loaded = None

    def memory_bytes(self) -> int:
        return 12345


def broken(message: str = "no face", **about: Any) -> LipstreamError:
    return LipstreamError(message, **about)


def write_inputs(folder: Path, speech_s: float = 0.2, side: int = 64) -> tuple[Path, Path]:
    """Write a small video and a recording, and return their paths."""
    image = np.full((side, side, 3), 90, np.uint8)
    return write_clip(folder / "in.mp4", [image] * 3), write_speech(folder / "in.wav", speech_s, 16000)


def until(condition: Callable[[], Any], within_s: float = 60.0) -> Any:
    """Return what `condition` returns once that is true. Fails after a time."""
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {within_s} s")


@contextmanager
def serving(service: Service, *renderers: Any) -> Iterator[httpx.Client]:
    """Yield a client of the interface of a server that runs in a thread until the block ends."""
    app = create_app(service.settings, renderers, service=service)
    with serving_app(app, "/api/v1", timeout_s=180) as client:
        yield client


@contextmanager
def serving_app(app: Any, path: str = "", *, timeout_s: float = 60) -> Iterator[httpx.Client]:
    """Yield a client of an application that a thread serves until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}{path}", timeout=timeout_s) as client:
            yield client
    finally:
        app.state.stopping.set()
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the URL of a PostgreSQL server's database, started for the block, by another user than root."""
    # Not below pytest's folders, which are closed to other users.
    with tempfile.TemporaryDirectory(prefix="lipstream-postgres-") as folder:
        as_user: list[str] = []
        if os.getuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
            as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        with _postgres(Path(folder), as_user) as url:
            yield url


@contextmanager
def _postgres(folder: Path, as_user: list[str]) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def command(program: str, *words: object) -> list[str]:
        return [*as_user, str(POSTGRES / program), *map(str, words)]

    def is_ready() -> bool:
        asked = command("pg_isready", "-h", "127.0.0.1", "-p", port)
        return subprocess.run(asked, cwd="/", capture_output=True, check=False).returncode == 0

    data = folder / "data"
    made = command("initdb", "-D", data, "-A", "trust", "-U", "lipstream", "--no-sync", "-E", "UTF8", "--locale=C")
    subprocess.run(made, check=True, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, timeout=240)
    options = ("-h", "127.0.0.1", "-p", port, "-k", folder, "-F")
    started = command("postgres", "-D", data, *options)
    server = subprocess.Popen(started, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(is_ready, within_s=120)
        yield f"postgresql+psycopg://lipstream@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
        server.wait(60)
