"""A real tritonserver on loopback: the binary in the wheel nvidia-pytriton, which has the Python backend alone."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lipstream import ModelError
from lipstream.engines.triton_client import TritonServer

_START_S = 240


def server_folder() -> Path | None:
    """Return the folder of the binary and its backends, None where a server cannot be started here."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None or importlib.util.find_spec("tritonclient") is None:
        return None
    folder = Path(spec.origin).parent / "tritonserver"
    return folder if (folder / "python_backend_stubs" / _version()).is_dir() else None


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def free_url() -> str:
    """Return an address on loopback at which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def serving(repository: Path, folder: Path) -> Iterator[Running]:
    """Run a server of `repository` until the block ends. folder: for its backend and its log."""
    files = server_folder()
    assert files is not None
    backend = shutil.copytree(files / "backends" / "python", folder / "backends" / "python", dirs_exist_ok=True)
    stub = shutil.copy(files / "python_backend_stubs" / _version() / "triton_python_backend_stub", backend)
    Path(stub).chmod(0o755)
    url, name = free_url(), f"lipstream-test-{uuid.uuid4().hex[:16]}"
    words = [
        str(files / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={folder / 'backends'}",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={url.rpartition(':')[2]}",
        "--allow-http=false",
        "--allow-metrics=false",
        f"--backend-config=python,shm-region-prefix-name={name}",
    ]
    # The stub is an interpreter that takes the environment whose python is first in the path.
    libraries = [str(files.parent.parent / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
    }
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            _wait(url, process, folder / "server.log")
            yield Running(url, process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the stubs too, which may outlive a server that was killed
            process.wait()
            for left in Path("/dev/shm").glob(f"{name}*"):
                left.unlink()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end_s = time.monotonic() + _START_S
    while time.monotonic() < end_s:
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        try:
            TritonServer(url)
        except ModelError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(log.read_text(errors="replace")[-3000:])
