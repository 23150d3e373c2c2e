"""Downloading a model from a stand-in hub on this machine: pinned, resumed, cached, and clear about refusals."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipstream.models.locate import CONFIGS

NAME = "latentsync-1.6"
REPO, VAE_REPO = "ByteDance/LatentSync-1.6", "stabilityai/sd-vae-ft-mse"
REVISION, VAE_REVISION = "a" * 40, "b" * 40
UNET = f"/{REPO}/resolve/{REVISION}/latentsync_unet.pt"
MIB = 2**20


def content(n_bytes: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(n_bytes)


FILES = {
    "unet": ("latentsync_unet.pt", content(24 * MIB, 1)),
    "audio_encoder": ("whisper/tiny.pt", content(20_000, 2)),
    "vae_config": ("config.json", content(400, 3)),
    "vae_weights": ("diffusion_pytorch_model.safetensors", content(30_000, 4)),
}


@dataclass
class StandIn:
    """A model hub: what it serves, what it refuses, and what it was asked for."""

    endpoint: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    refusals: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    breaks_off_after: int | None = None
    gets: list[tuple[str, str | None]] = field(default_factory=list)
    sent_bytes: int = 0

    def serve(self, repo: str, revision: str, roles: tuple[str, ...]) -> None:
        for filename, data in (FILES[role] for role in roles):
            self.files[f"/{repo}/resolve/{revision}/{filename}"] = data


def handler(hub: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._head()

        def do_GET(self) -> None:
            hub.gets.append((self.path, self.headers.get("Range")))
            data = self._head()
            if hub.breaks_off_after is not None and len(data) > hub.breaks_off_after:
                data = data[: hub.breaks_off_after]
                hub.refusals[self.path] = (500, {})  # for the rest of this call
            hub.sent_bytes += len(data)
            self.wfile.write(data)

        def _head(self) -> bytes:
            refusal = hub.refusals.get(self.path)
            if refusal is not None or self.path not in hub.files:
                status, headers = refusal or (404, {})
                self.send_response(status)
                for name, value in {"Content-Length": "0", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                return b""
            data = hub.files[self.path]
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", "c" * 40)
            self.end_headers()
            return data[start:]

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def hub() -> Iterator[StandIn]:
    stand_in = StandIn()
    stand_in.serve(REPO, REVISION, ("unet", "audio_encoder"))
    stand_in.serve(VAE_REPO, VAE_REVISION, ("vae_config", "vae_weights"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(stand_in))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stand_in.endpoint = f"http://127.0.0.1:{server.server_port}"
    yield stand_in
    server.shutdown()
    server.server_close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """lipstream's data with 1.6 pinned to FILES."""
    folder = tmp_path / "data"
    shutil.copytree(CONFIGS, folder / "configs")
    path = folder / "configs" / f"{NAME}.json"
    values = json.loads(path.read_text())
    pinned = {
        role: {"size_bytes": len(file), "sha256": hashlib.sha256(file).hexdigest()} for role, (_, file) in FILES.items()
    }
    values["hub"] |= {"revision": REVISION, "vae_revision": VAE_REVISION, "pinned": pinned}
    path.write_text(json.dumps(values))
    return folder


SCRIPT = """
import json, sys
from pathlib import Path
from lipstream.errors import ModelError
from lipstream.models import locate
locate.CONFIGS = Path(sys.argv[1]) / "configs"
try:
    folder = locate.download_model(sys.argv[2], **json.loads(sys.argv[3]), announce=print)
except ModelError as error:
    sys.exit(f"{error.exit_code}|{error}")
print(folder)
"""


def download(
    data: Path, endpoint: str, model: str | Path = NAME, offline: bool = False, **options: str
) -> subprocess.CompletedProcess[str]:
    environment: dict[str, Any] = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(data.parent / "hf")}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1" if offline else "0"}
    command = [sys.executable, "-c", SCRIPT, str(data), str(model), json.dumps(options)]
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=120, check=False)


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, (done.stdout, done.stderr)
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("5|"), done.stderr
    return line


def test_a_download_is_announced_verified_and_needs_no_network_again(hub: StandIn, data: Path) -> None:
    done = download(data, hub.endpoint)
    assert done.returncode == 0, done.stderr
    announced, place = done.stdout.splitlines()
    assert announced == f"{NAME}: 4 files, 0.0 GB to fetch from {REPO} and {VAE_REPO}"
    stored = {path.name: path.read_bytes() for path in data.parent.rglob("snapshots/**/*") if path.is_file()}
    assert stored == {Path(name).name: file for name, file in FILES.values()}
    assert Path(place).name == REVISION
    assert not list(data.parent.rglob("*.incomplete"))
    assert download(data, "http://127.0.0.1:9").stdout.splitlines() == [place]


def test_a_second_call_goes_on_where_the_first_broke_off(hub: StandIn, data: Path) -> None:
    hub.breaks_off_after = 12 * MIB
    assert f"`lipstream models download {NAME}` again" in error_of(download(data, hub.endpoint))
    hub.breaks_off_after, hub.gets = None, []
    hub.refusals.clear()
    before = hub.sent_bytes
    done = download(data, hub.endpoint)
    assert done.returncode == 0, done.stderr
    # The library writes in chunks of 10 MiB: what it had written before the break is not asked for again.
    assert (UNET, f"bytes={10 * MIB}-") in hub.gets
    assert (UNET, None) not in hub.gets
    assert hub.sent_bytes - before < 15 * MIB
    assert Path(done.stdout.splitlines()[-1], "latentsync_unet.pt").read_bytes() == FILES["unet"][1]


@pytest.mark.parametrize("length", [len(FILES["unet"][1]), 1000])
def test_other_bytes_than_the_published_are_refused(hub: StandIn, data: Path, length: int) -> None:
    hub.files[UNET] = content(length, 9)
    line = error_of(download(data, hub.endpoint))
    assert f"{REPO}/latentsync_unet.pt: not the published file" in line
    assert "--from REPO" in line
    assert not list(data.parent.rglob("snapshots/**/latentsync_unet.pt"))
    assert not list(data.parent.rglob("*.incomplete"))


def test_a_mirror_is_trusted_by_hash_and_stored_as_the_model(hub: StandIn, data: Path) -> None:
    hub.files = {path: file for path, file in hub.files.items() if VAE_REPO in path}
    hub.serve("someone/mirror", "main", ("unet", "audio_encoder"))
    done = download(data, hub.endpoint, repo="someone/mirror")
    assert done.returncode == 0, done.stderr
    assert "someone/mirror" in done.stdout.splitlines()[0]
    assert REVISION in done.stdout.splitlines()[-1]
    hub.files["/someone/other/resolve/main/latentsync_unet.pt"] = content(len(FILES["unet"][1]), 9)
    shutil.rmtree(data.parent / "hf")
    assert "not the published file" in error_of(download(data, hub.endpoint, repo="someone/other"))


def test_another_revision_is_not_checked_and_says_so(hub: StandIn, data: Path) -> None:
    for name in ("latentsync_unet.pt", "whisper/tiny.pt"):
        hub.files[f"/{REPO}/resolve/next/{name}"] = content(5000, 5)
    done = download(data, hub.endpoint, revision="next")
    assert done.returncode == 0, done.stderr
    assert "SHA-256 are not checked" in done.stdout
    snapshot = Path(done.stdout.splitlines()[-1])
    assert f"--model {snapshot}" in done.stdout
    assert json.loads((snapshot / "lipstream.json").read_text()) == {"base": NAME}
    assert (snapshot / "whisper" / "tiny.pt").read_bytes() == content(5000, 5)


@pytest.mark.parametrize(
    ("status", "headers", "wanted"),
    [
        (401, {}, ("(401)", "hf auth login", "HF_TOKEN")),
        (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Ask the authors"}, ("licence", "Ask the authors")),
        (404, {"X-Error-Code": "EntryNotFound"}, ("moved", "--from REPO")),
        (429, {"Retry-After": "17"}, ("too many requests", "wait 17 s")),
        (503, {}, ("503", "wait and run `lipstream models download")),
    ],
)
def test_each_refusal_has_its_own_reason_and_fix(
    hub: StandIn, data: Path, status: int, headers: dict[str, str], wanted: tuple[str, ...]
) -> None:
    hub.refusals[UNET] = (status, headers)
    line = error_of(download(data, hub.endpoint))
    assert f"{REPO}/latentsync_unet.pt" in line
    for words in wanted:
        assert words in line
    assert "once online" not in line


def test_offline_mode_is_named(hub: StandIn, data: Path) -> None:
    assert "unset HF_HUB_OFFLINE" in error_of(download(data, hub.endpoint, offline=True))


def test_a_folder_fetches_only_the_autoencoder(hub: StandIn, data: Path) -> None:
    folder = data.parent / "checkpoints"
    (folder / "whisper").mkdir(parents=True)
    for role in ("unet", "audio_encoder"):
        (folder / FILES[role][0]).write_bytes(FILES[role][1])
    done = download(data, hub.endpoint, folder)
    assert done.returncode == 0, done.stderr
    assert {path for path, _ in hub.gets if "/resolve/" in path} == {path for path in hub.files if VAE_REPO in path}
    assert done.stdout.splitlines()[-1] == str(folder), "1.6 by the size of its U-Net"


def lipstream(*arguments: str, endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    command = [sys.executable, "-m", "lipstream.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=120, check=False)


def test_a_hub_out_of_reach_is_exit_5_within_seconds(tmp_path: Path) -> None:
    begun_s = time.monotonic()
    done = lipstream("models", "download", NAME, endpoint="http://127.0.0.1:9", home=tmp_path)
    assert time.monotonic() - begun_s < 30
    assert done.returncode == 5
    announced, line = (done.stdout + done.stderr).strip().splitlines()
    assert f"{NAME}: 4 files, 5.5 GB to fetch" in announced
    assert f"{REPO}/latentsync_unet.pt" in line
    assert f"lipstream models download {NAME}" in line


def test_the_published_files_are_pinned() -> None:
    from lipstream.models.locate import read_config

    for name in ("latentsync-1.5", NAME):
        config, _ = read_config(name)
        assert config.hub is not None
        assert set(config.hub.pinned) == set(FILES)
        assert all(len(pin.sha256) == 64 and int(pin.sha256, 16) for pin in config.hub.pinned.values())
        assert len(config.hub.revision) == len(config.hub.vae_revision) == 40


def test_a_single_network_is_fetched_by_its_hash(hub: StandIn, data: Path) -> None:
    path, file = data / "configs" / "networks.json", content(20_000, 5)
    values = json.loads(path.read_text())
    values["syncnet"] |= {"revision": REVISION, "size_bytes": len(file), "sha256": hashlib.sha256(file).hexdigest()}
    path.write_text(json.dumps(values))
    address = f"/{REPO}/resolve/{REVISION}/auxiliary/syncnet_v2.model"
    hub.files[address] = file[:-1] + b"x"
    assert "SHA-256" in error_of(fetch_syncnet(data, hub.endpoint))
    hub.files[address] = file
    done = fetch_syncnet(data, hub.endpoint)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]).read_bytes() == file
    assert fetch_syncnet(data, "http://127.0.0.1:9").returncode == 0


NETWORK_SCRIPT = """
import sys
from pathlib import Path
from lipstream.errors import ModelError
from lipstream.models import network_files
network_files.CONFIGS = Path(sys.argv[1]) / "configs"
try:
    print(network_files.download_network_file("syncnet", print))
    assert network_files.verify_network_file("syncnet") == network_files.locate_network_file("syncnet")
except ModelError as error:
    sys.exit(f"{error.exit_code}|{error}")
"""


def fetch_syncnet(data: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    environment: dict[str, Any] = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(data.parent / "hf")}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", NETWORK_SCRIPT, str(data)]
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=120, check=False)
