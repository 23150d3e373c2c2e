"""Load the service: many clients with small jobs. None may be lost, none done twice, and memory has to stay flat.

python benchmarks/service_load.py                            50 clients for two minutes, jobs that only copy their video
python benchmarks/service_load.py --render tiny              the bundled model on four frames of the sample
python benchmarks/service_load.py --database postgresql+psycopg://lipstream@127.0.0.1/load

Starts a server as a process of its own, whose memory is sampled from its metrics. Prints one JSON object; exits with 1
where a condition is broken.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from lipstream.bundled import sample
from lipstream.media.reader import read_frames
from lipstream.media.writer import VideoWriter
from lipstream.results import Progress, StageTime, SyncResult
from lipstream.serve.app import create_app
from lipstream.serve.render import Work
from lipstream.serve.settings import ServiceSettings

_SAMPLE_EVERY_S = 0.5
_TOLERATED_GROWTH = 0.05
_TOLERATED_GROWTH_BYTES = 20e6


class Copy:
    """A renderer that copies the video, 20 ms long, and appends the seed."""

    models: tuple[str, ...] = ("tiny",)
    device = "none"
    loaded: str | None = "tiny"

    def __call__(self, work: Work, on_progress: Callable[[Progress], None], cancel: threading.Event) -> SyncResult:
        on_progress(Progress(0, 4, (StageTime("write", 0.0, 0),)))
        cancel.wait(0.02)
        shutil.copyfile(work.video, work.output)
        with work.output.open("ab") as file:
            file.write(str(work.settings.seed).encode())
        return SyncResult(work.output, 4, 0.16, 0.02, 0.1, (StageTime("write", 0.02, 4),), 4, 0, {})

    def load(self) -> None:
        """Nothing is to be loaded."""

    def offload(self) -> None:
        """Nothing is to be freed."""

    def memory_bytes(self) -> int:
        """Return 0: there is no device."""
        return 0


@dataclass
class Seen:
    """What the clients saw. ids: of the jobs that were accepted. wrong: what must not be, in words."""

    ids: list[str] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    again: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def serve_copies(data: str, database: str, workers: int) -> None:
    """Run a server whose workers only copy, until it is killed; print its address."""
    import uvicorn

    settings = ServiceSettings(database=database, data=data, max_client_jobs=10_000, max_queue=10_000)
    app = create_app(settings, [Copy() for _ in range(workers)])
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_config=None)).run(sockets=[listener])


def server_command(options: argparse.Namespace, data: str) -> list[str]:
    """Return what starts the server: `lipstream serve` for a model."""
    place = ["--database", options.database]
    if options.render == "copy":
        return [sys.executable, __file__, *place, "--workers", str(options.workers), "--serve-copies", data]
    limits = ["--max-client-jobs", "10000", "--max-queue", "10000"]
    command = [sys.executable, "-m", "lipstream", "serve", *place, "--data", data, "--port", "0", *limits]
    return [*command, "--model", options.render, "--device", "cpu", "--detector", "mediapipe"]


def one_client(number: int, url: str, files: dict[str, bytes], end_s: float, seen: Seen, render: str) -> None:
    """Send jobs, follow each to its end, fetch its result and delete every other one, until the time is over."""
    with httpx.Client(base_url=f"{url}/api/v1", timeout=60) as client:
        for turn in itertools.count():
            if time.monotonic() > end_s:
                return
            seed, begun_s = number * 100_000 + turn, time.monotonic()
            job = {"settings": {"seed": seed}}
            headers = {"Idempotency-Key": str(seed)}
            sent = client.post("/jobs", files=files, data={"job": json.dumps(job)}, headers=headers)
            if turn % 5 == 0:  # as after a connection that broke: the same job, not another one
                again = client.post("/jobs", files=files, data={"job": json.dumps(job)}, headers=headers)
                with seen.lock:
                    seen.again += 1
                    if again.json().get("id") != sent.json().get("id"):
                        seen.wrong.append(f"a repeated request gave {again.text}")
            if sent.status_code != 202:
                with seen.lock:
                    seen.wrong.append(f"not accepted: {sent.status_code} {sent.text}")
                return
            job_id = sent.json()["id"]
            with seen.lock:
                seen.ids.append(job_id)
            ended = _followed(client, job_id)
            result = client.get(f"/jobs/{job_id}/result")
            is_right = result.status_code == 200 and len(result.content) > 500
            if render == "copy":
                is_right = is_right and result.content == files["video"] + str(seed).encode()
            with seen.lock:
                seen.times_s.append(time.monotonic() - begun_s)
                if ended["state"] != "done" or ended["attempts"] != 1 or not is_right:
                    seen.wrong.append(f"{job_id}: {ended['state']}, attempts {ended['attempts']}, {result.status_code}")
            if turn % 2:
                client.delete(f"/jobs/{job_id}")


def _followed(client: httpx.Client, job_id: str) -> dict[str, Any]:
    with client.stream("GET", f"/jobs/{job_id}/events") as events:
        last = [line for line in events.iter_lines() if line.startswith("data: ")][-1]
    found: dict[str, Any] = json.loads(last.removeprefix("data: "))
    return found


def metrics(url: str) -> dict[str, float]:
    """Return the server's metrics by name and labels."""
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def load(url: str, options: argparse.Namespace, files: dict[str, bytes]) -> dict[str, Any]:
    """Load a server, and return what was seen."""
    seen, memory_bytes, over = Seen(), [], threading.Event()

    def watch() -> None:
        while not over.wait(_SAMPLE_EVERY_S):
            memory_bytes.append(metrics(url)["lipstream_process_bytes"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    end_s = time.monotonic() + options.duration
    with ThreadPoolExecutor(options.clients) as pool:
        arguments = (url, files, end_s, seen, options.render)
        for client in [pool.submit(one_client, number, *arguments) for number in range(options.clients)]:
            client.result()
    over.set()
    watcher.join()
    last = metrics(url)
    done = round(last.get('lipstream_jobs_ended_total{state="done"}', 0))
    if len(set(seen.ids)) != len(seen.ids) or done != len(seen.ids):
        seen.wrong.append(f"{len(seen.ids)} jobs accepted, {done} done")
    quarter = max(1, len(memory_bytes) // 4)
    early, late = (
        statistics.median(part) for part in (memory_bytes[quarter : 2 * quarter] or [0], memory_bytes[-quarter:] or [0])
    )
    if late - early > max(_TOLERATED_GROWTH * early, _TOLERATED_GROWTH_BYTES):
        seen.wrong.append(f"memory grew from {early / 1e6:.0f} to {late / 1e6:.0f} MB")
    times_s = sorted(seen.times_s) or [0.0]
    return {
        "clients": options.clients,
        "duration_s": options.duration,
        "render": options.render,
        "database": options.database.partition(":")[0],
        "jobs": len(seen.ids),
        "requests_repeated": seen.again,
        "median_s": round(times_s[len(times_s) // 2], 3),
        "slowest_s": round(times_s[-1], 3),
        "memory_mb": [round(one / 1e6) for one in memory_bytes[:: max(1, len(memory_bytes) // 12)]],
        "wrong": seen.wrong[:20],
    }


def small_inputs(folder: Path) -> dict[str, bytes]:
    """Return the first four frames of the sample as a video, and 0.16 s from the middle of its speech."""
    images = [frame.image for frame in itertools.islice(read_frames(sample.VIDEO), 4)]
    height, width = images[0].shape[:2]
    with VideoWriter(folder / "v.mp4", width=width, height=height, color=None, speech=None, n_frames=4) as writer:
        for image in images:
            writer.write(image)
    with wave.open(str(sample.SPEECH)) as speech, wave.open(str(folder / "a.wav"), "wb") as part:
        part.setparams(speech.getparams())
        speech.setpos(speech.getnframes() // 2)
        part.writeframes(speech.readframes(speech.getframerate() * 16 // 100))
    return {"video": (folder / "v.mp4").read_bytes(), "audio": (folder / "a.wav").read_bytes()}


def main() -> int:
    """Start a server, load it, print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--duration", type=float, default=120.0, metavar="S")
    parser.add_argument("--render", choices=["copy", "tiny"], default="copy")
    parser.add_argument("--workers", type=int, default=1, help="that copy; a model has one")
    parser.add_argument("--database", help="an empty database [SQLite in a temporary folder]")
    parser.add_argument("--serve-copies", metavar="DATA", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_copies:
        serve_copies(options.serve_copies, options.database, options.workers)
        return 0
    with tempfile.TemporaryDirectory(prefix="lipstream-load-") as folder:
        options.database = options.database or f"sqlite:///{folder}/jobs.sqlite"
        files = small_inputs(Path(folder))
        command = server_command(options, f"{folder}/files")
        with (Path(folder) / "log").open("w") as log:
            server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert server.stdout is not None
        try:
            url = server.stdout.readline().strip()
            while httpx.get(f"{url}/readyz", timeout=60).status_code != 200:
                time.sleep(0.2)
            found = load(url, options, files)
        finally:
            server.terminate()
            server.wait(60)
            server.stdout.close()
        if found["wrong"]:
            found["log"] = (Path(folder) / "log").read_text()[-2000:]
    print(json.dumps(found))
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
