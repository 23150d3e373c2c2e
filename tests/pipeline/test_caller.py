"""What the caller's thread does while a run works."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from lipstream.pipeline import caller
from lipstream.pipeline.clocks import Clocks
from lipstream.results import Progress


def test_progress_is_logged_every_thirty_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = [100.0]
    monkeypatch.setattr(caller, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    reported: list[Progress] = []
    clocks = Clocks.start()
    watch = caller.Watch(clocks, 70, reported.append, None)
    with caplog.at_level(logging.INFO, "lipstream"):
        for _ in range(70):
            clocks.write.count(1)
            watch.report()
            now_s[0] += 1.0
    assert len(reported) == 70
    assert [message.split(" (")[0] for message in caplog.messages] == ["31 of 70 frames", "61 of 70 frames"]
    assert "detect 0" in caplog.messages[0] and "write 31" in caplog.messages[0]
