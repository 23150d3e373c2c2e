"""The connections that are open, and how many there may be."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from functools import partial

from lipstream.errors import LipstreamError
from lipstream.live.frames import LiveSession
from lipstream.serve.live.connection import Connection
from lipstream.serve.live.settings import LivePageSettings
from lipstream.serve.refused import Refused

_RETRY_S = 10


class Connections:
    """Opens and finds visitors' connections; a visitor sees no other's. new_session: called in a thread."""

    def __init__(self, settings: LivePageSettings, new_session: Callable[[], LiveSession]) -> None:
        self._settings, self._new_session = settings, new_session
        self._open: dict[str, Connection] = {}
        self._n_taken = 0  # with those that are being opened, and those that are being closed

    @property
    def n_open(self) -> int:
        """How many sessions there are."""
        return self._n_taken

    async def open(self, client_id: str, offer: str, replaces: str | None) -> tuple[str, str]:
        """Return the id of a new connection, and the answer to the browser's offer.

        replaces: one that the visitor has lost, which makes room. Raises Refused: 503 where all places are taken, or
        no session can be made.
        """
        if replaces is not None and replaces in self._open:
            await self.get(replaces, client_id).close()
        if self._n_taken >= self._settings.max_sessions:
            message = "somebody else is talking with it" if self._n_taken == 1 else "all places are taken"
            raise Refused(message, status=503, code="busy", fix="try again later", retry_after_s=_RETRY_S)
        self._n_taken += 1
        connection_id = secrets.token_urlsafe(16)
        try:
            session = await asyncio.to_thread(self._new_session)
        except BaseException as error:
            self._n_taken -= 1
            if isinstance(error, LipstreamError):
                raise Refused(error.message, status=503, code=error.code, fix=error.fix) from error
            raise
        connection = Connection(client_id, session, partial(self._forget, connection_id))
        self._open[connection_id] = connection
        try:
            return connection_id, await connection.answer(offer, self._settings.max_time_s)
        except BaseException:
            await connection.close()
            raise

    def get(self, connection_id: str, client_id: str) -> Connection:
        """Return a visitor's connection. Raises Refused (404)."""
        connection = self._open.get(connection_id)
        if connection is None or connection.client_id != client_id:
            raise Refused("there is no such session", status=404, code="not_found", fix="start again")
        return connection

    async def close_all(self) -> None:
        """End all connections, and wait for that."""
        await asyncio.gather(*(connection.close() for connection in [*self._open.values()]), return_exceptions=True)

    def _forget(self, connection_id: str) -> None:
        del self._open[connection_id]
        self._n_taken -= 1
