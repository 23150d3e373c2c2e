"""Run the part of the suite that depends on other packages in fresh environments.

`newest-3.N`: the newest of everything on each Python that is found; `lowest-3.N`: the lowest versions that
pyproject.toml allows, on the lowest Python found. lipstream is installed as its wheel, without extras, as a user
installs it. torch is its CPU build where that can be reached; else it is the index's default build, which on Linux
brings 2 to 3 GB of CUDA libraries. uv keeps them in its cache, and the environments share the files.

The environment variable TORCH says which torch the newest environments take, as arguments of an installation:
`torch==2.13.0`, or `torch --index-url URL`.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "tests/cli/test_cli.py",
    "tests/models/test_hub.py",
    "tests/models/test_load.py",
    "tests/media/test_reader.py",
    "tests/media/test_writer.py",
    "tests/face/test_mediapipe.py",
    "tests/diffusion/test_scheduler.py",
    "tests/audio_features/test_features.py",
)
"""What touches PyAV, numpy, torch, diffusers, huggingface_hub and LiteRT: media, loading, a whole sync."""
TEST_TOOLS = ("pytest", "pytest-timeout", "pytest-xdist")
MINOR_VERSIONS = range(10, 20)


@dataclass(frozen=True)
class Environment:
    """A Python (its minor version and executable) and which versions go on it, "newest" or "lowest"."""

    versions: str
    minor: int
    python: Path

    @property
    def name(self) -> str:
        return f"{self.versions}-3.{self.minor}"


@dataclass(frozen=True)
class Outcome:
    """How an environment's run ended, and the seconds it took."""

    name: str
    result: str
    install_s: float
    test_s: float


def find_pythons() -> dict[int, Path]:
    """Return the executable of each CPython 3.10 and later on PATH or in pyenv, by minor version."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = {}
    for minor in MINOR_VERSIONS:
        name = f"python3.{minor}"
        on_path = shutil.which(name)
        candidates = [Path(on_path)] if on_path else []
        candidates += sorted(pyenv.glob(f"3.{minor}.*/bin/{name}"), reverse=True)
        for python in candidates:
            # A pyenv shim is on PATH even where the version behind it is not active: only running it tells.
            probe = subprocess.run([python, "-c", "import venv"], capture_output=True, check=False)
            if probe.returncode == 0:
                found[minor] = python
                break
    return found


def environments(pythons: dict[int, Path]) -> list[Environment]:
    """List every environment of the matrix: the lowest versions on the lowest Python, then the newest on each."""
    lowest = min(pythons)
    return [
        Environment("lowest", lowest, pythons[lowest]),
        *(Environment("newest", minor, python) for minor, python in pythons.items()),
    ]


def uv_command(folder: Path) -> Path:
    """Return uv's executable: the one on PATH, else one installed into an environment in `folder`."""
    on_path = shutil.which("uv")
    if on_path:
        return Path(on_path)
    home = folder / "uv"
    uv = home / "bin" / "uv"
    if not uv.exists():
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run([home / "bin" / "python", "-m", "pip", "install", "--quiet", "uv"], check=True)
    return uv


def install(environment: Environment, uv: Path, home: Path) -> None:
    """Create the environment in `home` and install torch, lipstream and pytest. Raises CalledProcessError."""
    variables = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "VIRTUAL_ENV": str(home)}
    # uv does not read pip's settings: wheels that pip is given on disk are worth having here too.
    variables.setdefault("UV_FIND_LINKS", os.environ.get("PIP_FIND_LINKS", ""))

    def run(*arguments: str | Path, check: bool = True) -> bool:
        return subprocess.run([uv, *arguments], env=variables, cwd=ROOT, check=check).returncode == 0

    run("venv", "--quiet", "--clear", "--python", environment.python, home)
    lowest = environment.versions == "lowest"
    pip_install = ["pip", "install", "--quiet", *(["--resolution", "lowest-direct"] if lowest else [])]
    torch = shlex.split(os.environ.get("TORCH", ""))
    # torch first and alone: what is chosen here, the next call keeps.
    if torch and not lowest:
        run(*pip_install, *torch)
    elif not run(*pip_install, "--torch-backend", "cpu", torch_requirement(), check=False):
        print("torch's CPU build cannot be reached; taking the default build", flush=True)
        run(*pip_install, torch_requirement())
    run(*pip_install, ".")
    run("pip", "install", "--quiet", *TEST_TOOLS)
    run("pip", "check", "--quiet")


def torch_requirement() -> str:
    """Return what pyproject.toml asks of torch."""
    match = re.search(r'"(torch\b[^"]*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if match is None:
        raise SystemExit("pyproject.toml names no torch")
    return match[1]


def run_tests(home: Path, workers: int) -> int:
    """Run the tests with the environment's Python and return pytest's exit status."""
    parallel = ["-n", str(workers)] if workers > 1 else []
    return subprocess.run(
        [home / "bin" / "python", "-m", "pytest", "-p", "no:cacheprovider", *parallel, *TESTS], cwd=ROOT, check=False
    ).returncode


def check(environment: Environment, uv: Path, folder: Path, workers: int) -> Outcome:
    """Install and test one environment and remove it again."""
    home = folder / environment.name
    start = time.monotonic()
    print(f"{environment.name}: installing (the first time torch takes a while)", flush=True)
    try:
        install(environment, uv, home)
        installed = time.monotonic()
        show = [uv, "pip", "list", "--quiet", "--format", "freeze", "--python", home]
        print(subprocess.run(show, capture_output=True, text=True, check=True).stdout.replace("\n", " "), flush=True)
        status = run_tests(home, workers)
    except subprocess.CalledProcessError:
        return Outcome(environment.name, "could not be installed", time.monotonic() - start, 0.0)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    result = "passed" if status == 0 else f"failed (pytest exit {status})"
    return Outcome(environment.name, result, installed - start, time.monotonic() - installed)


def main() -> int:
    """Run the environments that are named, or all; print a table; return 1 unless every one passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="environments to run, such as lowest-3.10 newest-3.12")
    parser.add_argument("--ends", action="store_true", help="run the first environment and the last")
    parser.add_argument("--list", action="store_true", help="list the environments and stop")
    parser.add_argument("--folder", type=Path, default=ROOT / ".matrix", help="where they are made (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="test processes side by side (%(default)s)")
    options = parser.parse_args()
    pythons = find_pythons()
    if not pythons:
        parser.error("no Python 3.10 or later found on PATH or in pyenv")
    known = {environment.name: environment for environment in environments(pythons)}
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"no such environment: {' '.join(unknown)}; there are {' '.join(known)}")
    if options.list:
        print("\n".join(known))
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    uv = uv_command(options.folder)
    names = options.names or list(known)
    chosen = [known[name] for name in ([names[0], names[-1]] if options.ends else names)]
    outcomes = [check(environment, uv, options.folder, options.workers) for environment in chosen]
    for outcome in outcomes:
        print(f"{outcome.name:12}  install {outcome.install_s:4.0f} s  tests {outcome.test_s:4.0f} s  {outcome.result}")
    return int(any(outcome.result != "passed" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
