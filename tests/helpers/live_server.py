"""The live page's server in a thread, with sessions that need no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from helpers.live import SIDE, DrawnSession
from helpers.service import serving_app
from lipstream.live.frames import LiveSession
from lipstream.serve.database import Database
from lipstream.serve.live.app import create_live_app
from lipstream.serve.live.settings import LivePageSettings


@contextmanager
def serving_live(
    folder: Path, new_session: Callable[[], LiveSession] = DrawnSession, *, side: int = SIDE, **settings: object
) -> Iterator[httpx.Client]:
    """Yield a client of the live page's server, until the block ends."""
    given = LivePageSettings(data=str(folder / "data"), **settings)
    database = Database(given.database_url)
    database.migrate()
    app = create_live_app(given, database, new_session, side, side)
    try:
        with serving_app(app) as client:
            yield client
    finally:
        database.close()
