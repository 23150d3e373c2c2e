"""Downloading a model from a stand-in hub on this machine: resume, cache, and quick failure."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

FILES = {
    "/ByteDance/LatentSync-1.5/resolve/main/latentsync_unet.pt": 24_000_000,
    "/ByteDance/LatentSync-1.5/resolve/main/whisper/tiny.pt": 20_000,
    "/stabilityai/sd-vae-ft-mse/resolve/main/config.json": 400,
    "/stabilityai/sd-vae-ft-mse/resolve/main/diffusion_pytorch_model.safetensors": 30_000,
}


def content(path: str) -> bytes:
    seed = int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "little")
    return np.random.default_rng(seed).bytes(FILES[path])


class StandInHub(BaseHTTPRequestHandler):
    """Serves FILES as a model hub does, and breaks the first transfer of the largest file in the middle."""

    ranges: list[str]
    broken: bool

    def do_HEAD(self) -> None:
        self._head()

    def do_GET(self) -> None:
        data = self._head()
        if len(data) > 2_000_000 and not type(self).broken:
            type(self).broken = True
            data = data[: len(data) // 2]
        self.wfile.write(data)

    def _head(self) -> bytes:
        if self.path not in FILES:
            self.send_error(404)
            return b""
        data = content(self.path)
        etag = hashlib.sha256(data).hexdigest()
        start = 0
        if wanted := self.headers.get("Range"):
            type(self).ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        return data[start:]

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    StandInHub.ranges, StandInHub.broken = [], False
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandInHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def lipstream(*words: str, endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "lipstream.cli", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_broken_download_goes_on_and_the_cache_needs_no_network(hub: str, tmp_path: Path) -> None:
    words = ("models", "download", "latentsync-1.5")
    done = lipstream(*words, endpoint=hub, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert StandInHub.broken
    # The library writes in chunks of 10 MiB: what it had written before the break is not asked for again.
    assert "bytes=10485760-" in StandInHub.ranges
    stored = {path.name: path.read_bytes() for path in tmp_path.rglob("snapshots/**/*") if path.is_file()}
    assert stored == {Path(path).name: content(path) for path in FILES}

    offline = lipstream(*words, endpoint="http://127.0.0.1:9", home=tmp_path)
    assert offline.returncode == 0, offline.stderr
    assert offline.stdout == done.stdout


def test_a_hub_out_of_reach_is_exit_5_within_seconds(tmp_path: Path) -> None:
    begun_s = time.monotonic()
    done = lipstream("models", "download", "latentsync-1.6", endpoint="http://127.0.0.1:9", home=tmp_path)
    assert time.monotonic() - begun_s < 30
    assert done.returncode == 5
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert "ByteDance/LatentSync-1.6/latentsync_unet.pt" in line
    assert "lipstream models download latentsync-1.6" in line


def test_a_file_the_hub_does_not_have_is_exit_5(hub: str, tmp_path: Path) -> None:
    done = lipstream("models", "download", "latentsync-1.6", endpoint=hub, home=tmp_path)
    assert done.returncode == 5
    assert "404" in done.stderr
