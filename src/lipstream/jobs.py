"""Jobs: what `LipSync.map` and `lipstream batch` take, and what they give back. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lipstream.errors import Cancelled, LipstreamError
from lipstream.results import SyncResult
from lipstream.settings import SyncSettings


@dataclass(frozen=True)
class SyncJob:
    """One clip to lip-sync: files, and settings of its own. name: what reports and errors call it."""

    video: str | Path
    audio: str | Path
    output: str | Path
    settings: SyncSettings = field(default_factory=SyncSettings)
    overwrite: bool = False
    name: str = ""


@dataclass(frozen=True)
class JobResult:
    """What became of a job: its result, or the error that ended it."""

    job: SyncJob
    result: SyncResult | None
    error: LipstreamError | None
    wall_s: float

    @property
    def state(self) -> Literal["done", "failed"]:
        """Whether the output is there."""
        return "failed" if self.result is None else "done"

    def to_dict(self) -> dict[str, Any]:
        """Return the row of a report."""
        result, error = self.result, self.error
        return {
            "name": self.job.name,
            "state": self.state,
            "output": str(self.job.output),
            "wall_s": round(self.wall_s, 3),
            "frames": None if result is None else result.frames,
            "frames_with_face": None if result is None else result.frames_with_face,
            "retries": 0 if result is None else result.retries,
            "error": None if error is None else str(error),
            "error_code": None if error is None else error.code,
        }


class JobError(LipstreamError):
    """Raised in a job by something that was not foreseen; the other jobs go on."""

    code = "internal"


def run_job(job: SyncJob, work: Callable[[SyncJob], SyncResult]) -> JobResult:
    """Return what became of a job that `work` does. Raises Cancelled."""
    begun_s = time.perf_counter()
    try:
        return JobResult(job, work(job), None, time.perf_counter() - begun_s)
    except Cancelled:
        raise
    except LipstreamError as error:
        return JobResult(job, None, error, time.perf_counter() - begun_s)
    except Exception as fault:  # noqa: BLE001  (one job of thousands must not end the others)
        internal = JobError(f"internal error ({type(fault).__name__}: {fault})", file=job.name or None)
        return JobResult(job, None, internal, time.perf_counter() - begun_s)
