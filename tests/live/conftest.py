"""The bundled model, once a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lipstream import LipSync, RuntimeSettings


@pytest.fixture(scope="module")
def sync() -> Iterator[LipSync]:
    with LipSync.load("tiny", RuntimeSettings(detector="mediapipe", threads=1)) as loaded:
        yield loaded
