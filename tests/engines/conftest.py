"""One export of a small model for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from filelock import FileLock

from helpers.models import make_small_model_folder
from lipstream.engines.cache import weights_sha256
from lipstream.engines.export import export_onnx
from lipstream.models.load import model_source
from lipstream.models.locate import read_config_values


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the workers of one run of pytest share."""
    return tmp_path_factory.getbasetemp().parent


@pytest.fixture(scope="session")
def model(goldens: Path, shared: Path) -> Path:
    folder = shared / "small-model"
    with FileLock(shared / "small-model.lock"):
        return folder if folder.exists() else make_small_model_folder(goldens, folder)


@pytest.fixture(scope="session")
def exported(model: Path, shared: Path) -> Path:
    folder = shared / "small-onnx"
    with FileLock(shared / "small-onnx.lock"):
        if not folder.exists():
            export(model, folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a cache of its own, which is not made yet."""
    folder = tmp_path_factory.mktemp("lipstream") / "cache"
    monkeypatch.setenv("LIPSTREAM_CACHE", str(folder))
    return folder


def export(model: Path, folder: Path) -> None:
    source = model_source(model, torch.device("cpu"))
    export_onnx(source, read_config_values(model)[0], folder, weights_sha256(source))
