"""A few seconds of what benchmarks/service_load.py does for minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "service_load.py"


def test_many_clients_lose_no_job_and_get_none_twice(database_url: str) -> None:
    options = ["--clients", "10", "--duration", "3", "--workers", "2", "--database", database_url]
    done = subprocess.run(
        [sys.executable, SCRIPT, *options], capture_output=True, encoding="utf-8", timeout=240, check=False
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    found = json.loads(done.stdout)
    assert found["jobs"] >= 10 and found["requests_repeated"] >= 10
