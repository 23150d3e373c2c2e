"""The live page's server in a thread, with sessions that need no model."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn

from helpers.live import SIDE, DrawnSession
from helpers.service import until
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
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        database.close()
        assert not thread.is_alive()
