"""Fixtures and settings shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker of pytest-xdist its share of the cores."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // config.workerinput["workercount"]))


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Return the folder of numbers recorded from the published code; LIPSTREAM_GOLDENS names another set."""
    return Path(os.environ.get("LIPSTREAM_GOLDENS") or Path(__file__).parent / "goldens")
