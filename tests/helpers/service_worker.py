"""A worker without a model, as a process that can be killed.

python -m helpers.service_worker DATABASE DATA LEASE SECONDS
"""

from __future__ import annotations

import sys
import time

from helpers.service import FakeRender
from lipstream.serve.database import Database
from lipstream.serve.files import Files
from lipstream.serve.running import Running
from lipstream.serve.settings import WorkSettings


def main(database: str, data: str, lease: str, duration_s: str) -> None:
    """Do jobs until this process is killed; each takes `duration_s`."""
    settings = WorkSettings(database=database, data=data, lease=lease, max_attempts=100)
    running = Running(Database(database), Files(data), settings, [FakeRender(float(duration_s))])
    print("ready", flush=True)
    while running.is_working:
        time.sleep(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
