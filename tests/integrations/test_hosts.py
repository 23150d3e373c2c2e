"""Containers and handlers: what they copy exists, the command line takes their options, hosts get their answers."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers.media import write_wav
from lipstream import LipSync, read_frames
from lipstream.bundled import sample
from lipstream.cli.main import full_parser

ROOT = Path(__file__).parents[2]
INTEGRATIONS = ROOT / "integrations"
DOCKERFILES = sorted(INTEGRATIONS.glob("*/Dockerfile*"))
DOCKERFILES = [path for path in DOCKERFILES if path.suffix != ".dockerignore"]
SPEECH_S = 0.4


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    return write_wav(tmp_path / "speech.wav", np.zeros(round(16000 * SPEECH_S), np.int16), 16000)


def load(path: Path, monkeypatch: pytest.MonkeyPatch, **modules: ModuleType) -> ModuleType:
    """Import a file beside stand-ins of its host's modules; its model is the bundled one."""
    monkeypatch.setenv("LIPSTREAM_MODEL", "tiny")
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name.replace("__", "."), module)
    spec = importlib.util.spec_from_file_location("under_test", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "under_test", module)
    spec.loader.exec_module(module)
    return module


def module(name: str, **content: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(content)
    return made


@pytest.mark.parametrize("path", [*INTEGRATIONS.glob("[!c]*/*.py"), *INTEGRATIONS.glob("cog/*.py")], ids=str)
def test_handlers_are_thin(path: Path) -> None:
    assert len(path.read_text().splitlines()) < (150 if path.name.startswith("lipstream_") else 60)
    assert "from lipstream." not in path.read_text()  # the public names are enough


def test_the_cog_runner(speech: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cog = module("cog", BaseRunner=object, Input=lambda default=None, **about: default, Path=Path)
    runner = load(INTEGRATIONS / "cog" / "run.py", monkeypatch, cog=cog).Runner()
    runner.setup()
    with runner.sync:
        made = runner.run(sample.VIDEO, speech, "exact", 0, 0.0, "largest", 1247)
        assert len([*read_frames(made)]) == round(25 * SPEECH_S)
    shutil.rmtree(made.parent)


def test_the_runpod_handler(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports, served = [], []
    addresses = {"v": str(sample.VIDEO), "s": str(speech), "none": None}
    utils = module(
        "runpod.serverless.utils",
        download_files_from_urls=lambda job, urls: [addresses[url] for url in urls],
        rp_upload=SimpleNamespace(upload_file_to_bucket=lambda name, path: f"bucket/{name}"),
    )
    serverless = SimpleNamespace(progress_update=lambda job, text: reports.append(text), start=served.append)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BUCKET_ENDPOINT_URL", raising=False)
    modules = {"runpod": module("runpod", serverless=serverless), "runpod__serverless__utils": utils}
    handler = load(INTEGRATIONS / "runpod" / "handler.py", monkeypatch, **modules)
    answer = handler.handler({"id": "one", "input": {"video": "v", "speech": "s"}})
    assert base64.b64decode(answer["video"])[4:8] == b"ftyp" and answer["frames"] == 10
    assert reports[-1] == "10 of 10 frames"
    for asked, message in (
        ({"video": "v"}, "the input has no speech"),
        ({"video": "v", "speech": "none"}, "cannot be downloaded"),
        ({"video": "v", "speech": "s", "settings": {"sed": 1}}, "did you mean seed"),
        ({"video": "s", "speech": "v"}, "video"),
    ):
        assert message in handler.handler({"id": "two", "input": asked})["error"]
    monkeypatch.setenv("BUCKET_ENDPOINT_URL", "https://bucket.example")
    assert handler.handler({"id": "three", "input": {"video": "v", "speech": "s"}})["video"] == "bucket/three.mp4"
    asked = json.loads((INTEGRATIONS / "runpod" / "test_input.json").read_text())["input"]
    assert set(asked) == {"video", "speech", "settings"}
    handler._model().close()


def test_the_space(speech: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Error(Exception):
        pass

    def widget(*args: Any, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(args=args)

    decorated = []

    def gpu(**options: Any) -> Any:
        return lambda function: decorated.append((function, options)) or function

    shown = []
    gradio = module("gradio", Error=Error, Progress=lambda: None)
    vars(gradio).update(dict.fromkeys(("Interface", "Video", "Audio", "Radio"), widget))
    app = load(INTEGRATIONS / "space" / "app.py", monkeypatch, gradio=gradio, spaces=module("spaces", GPU=gpu))
    assert decorated[0][0] is app.lip_sync and decorated[0][1]["duration"] <= 120
    made = app.lip_sync(str(sample.VIDEO), str(speech), "fast", lambda now, unit: shown.append(now))
    assert len([*read_frames(made)]) == 10 and shown[-1] == (10, 10)
    with pytest.raises(Error, match="are needed"):
        app.lip_sync(None, str(speech), "fast", None)
    with pytest.raises(Error, match="speech"):
        app.lip_sync(str(speech), str(speech), "fast", None)
    app.model().close()
    shutil.rmtree(Path(made).parent)


def test_a_space_loads_nothing_before_it_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    monkeypatch.setattr(LipSync, "load", lambda *args, **options: loaded.append(args))
    gradio = module("gradio", Error=Exception, Progress=lambda: None)
    vars(gradio).update(dict.fromkeys(("Interface", "Video", "Audio", "Radio"), lambda *args, **options: None))
    spaces = module("spaces", GPU=lambda **options: lambda function: function)
    load(INTEGRATIONS / "space" / "app.py", monkeypatch, gradio=gradio, spaces=spaces)
    assert not loaded


def lines_of(path: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile: their names, and the rest with continued lines put together."""
    text = path.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(INTEGRATIONS)))
def test_dockerfiles(path: Path) -> None:
    lines = lines_of(path)
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, rest in lines:
        if name == "COPY" and not rest.startswith("--from"):
            assert all((ROOT / source).exists() for source in rest.split()[:-1]), rest
        if name == "RUN" and '".[' in rest:
            assert set(rest.split('".[')[1].split("]")[0].split(",")) <= set(extras)
    assert [rest for name, rest in lines if name == "USER"][-1] == "1000"
    ignored = path.with_name(f"{path.name}.dockerignore").read_text().splitlines()
    copied = [source for name, rest in lines if name == "COPY" and "--from" not in rest for source in rest.split()[:-1]]
    assert ignored[0] == "*" and {f"!{source}" for source in copied} <= set(ignored)
    command = dict(lines)["CMD"]
    if command != "[]":
        check_command(json.loads(command))
    if (hadolint := shutil.which("hadolint")) is not None:
        subprocess.run([hadolint, "--ignore", "DL3013", path], check=True)  # versions are lipstream's to bound


def test_the_compose_file() -> None:
    yaml = pytest.importorskip("yaml")
    path = INTEGRATIONS / "docker" / "compose.yaml"
    compose = yaml.safe_load(path.read_text())
    services = compose["services"]
    assert services["worker"]["deploy"]["replicas"] == 2
    assert services["server"]["ports"] == ["127.0.0.1:7860:7860"]
    for service in (services["server"], services["worker"]):
        context = (path.parent / service["build"]["context"]).resolve()
        assert (context / service["build"]["dockerfile"]).is_file()
        assert {one.split(":")[0] for one in service["volumes"]} <= set(compose["volumes"])
        assert set(service["depends_on"]) <= set(services)
        check_command(service["command"])


def check_command(words: list[str]) -> None:
    """Check that the command line takes these words; it raises SettingsError for one that it does not know."""
    assert full_parser().parse_args(words)
