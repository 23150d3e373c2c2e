"""The process that computes: one that was forked from it cannot, since threads do not survive a fork."""

from __future__ import annotations

import os

from lipstream.errors import SettingsError

_computes_in: int | None = None


def check_process() -> None:
    """Refuse to compute in a child of a process that has loaded a model before it forked.

    torch's and LiteRT's pools of threads are gone there: their first call would wait for ever. Raises SettingsError.
    """
    global _computes_in
    if _computes_in is None:
        _computes_in = os.getpid()
    elif _computes_in != os.getpid():
        raise SettingsError(
            "this process was forked from one that had loaded a model already",
            fix="load the model after the fork (Celery: worker_process_init; gunicorn: post_fork, without --preload),"
            " or start processes with the method spawn",
        )
