"""A small model of the published layout, and a clip whose landmarks are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from helpers.models import make_model_folder
from helpers.pipeline import FAST, KnownFace, write_clip
from lipstream import LipSync, RuntimeSettings, SyncSettings
from lipstream.models.load import Model, load_model


@pytest.fixture(scope="module")
def model(goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = make_model_folder(goldens, tmp_path_factory.mktemp("models") / "small")
    return load_model(folder, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def recorded(goldens: Path) -> dict[str, NDArray[Any]]:
    with np.load(goldens / "align_io.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def sync(model: Model, recorded: dict[str, NDArray[Any]]) -> Callable[..., Any]:
    def run(
        *files: Path,
        settings: SyncSettings = FAST,
        threads: int = 2,
        batch: int = 1,
        frame_memory_mb: int = 512,
        **more: Any,
    ) -> Any:
        detector = KnownFace(recorded["landmarks"][0])
        runtime = RuntimeSettings(device="cpu", threads=threads, batch=batch, frame_memory_mb=frame_memory_mb)
        line = LipSync(model, detector, runtime)
        return line(*files, settings, **more)

    return run


@pytest.fixture
def clip(recorded: dict[str, NDArray[Any]], tmp_path: Path) -> Path:
    frames = recorded["frames"]
    return write_clip(tmp_path / "clip.mp4", [frames[i % len(frames)] for i in range(20)])
