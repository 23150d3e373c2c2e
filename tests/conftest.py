"""What several tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of numbers recorded from the published code; LIPSTREAM_GOLDENS names another set."""
    return Path(os.environ.get("LIPSTREAM_GOLDENS") or Path(__file__).parent / "goldens")
