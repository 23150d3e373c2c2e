"""The states of a job, and the one place where they change."""

from __future__ import annotations

from enum import Enum
from typing import Any

from sqlalchemy import Connection, update

from lipstream.serve.tables import jobs


class State(str, Enum):
    """Where a job is: it waits, a worker has it, it has ended in one of three ways, or its files are gone."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


MOVES = {
    State.QUEUED: {State.RUNNING, State.CANCELLED, State.EXPIRED},
    # Back to the queue: its worker stopped, or fell silent.
    State.RUNNING: {State.QUEUED, State.DONE, State.FAILED, State.CANCELLED},
    State.DONE: {State.EXPIRED},
    State.FAILED: {State.EXPIRED},
    State.CANCELLED: {State.EXPIRED},
    State.EXPIRED: set[State](),
}
"""Which states may follow each."""

ACTIVE = (State.QUEUED, State.RUNNING)
ENDED = (State.DONE, State.FAILED, State.CANCELLED)


def move(
    connection: Connection,
    job_id: str,
    to: State,
    now_s: float,
    keep_s: float,
    *,
    held_by: str | None = None,
    **also: Any,
) -> bool:
    """Take a job to another state if that may follow its present one; return whether it did.

    keep_s: how long its files, and then what is left of its record, are kept. held_by: the lease that it must have.
    also: other columns to set. The webhook of a job that has ended becomes due.
    """
    sources = [state.value for state, targets in MOVES.items() if to in targets]
    rows = update(jobs).where(jobs.c.id == job_id, jobs.c.state.in_(sources))
    if held_by is not None:
        rows = rows.where(jobs.c.lease == held_by)
    values: dict[str, Any] = {"state": to.value, "lease": None, "lease_until_s": None}
    if to in ENDED:
        values |= {"ended_s": now_s, "webhook_due_s": now_s}
    if to in ENDED or to is State.EXPIRED:
        values["expires_s"] = now_s + keep_s
    return connection.execute(rows.values(values | also)).rowcount == 1
