"""The live page's application: the page, and what it asks for under /api/live."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, TypeVar

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, ValidationError

from lipstream.live.frames import LiveSession
from lipstream.serve.access import Access
from lipstream.serve.answers import add_errors
from lipstream.serve.database import Database
from lipstream.serve.live.connection import Connection
from lipstream.serve.live.connections import Connections
from lipstream.serve.live.settings import LivePageSettings
from lipstream.serve.live.speech import can_read_text, from_recording, from_text
from lipstream.serve.quantities import shown_bytes
from lipstream.serve.refused import Refused
from lipstream.version import __version__

_ASSETS = Path(__file__).parent / "assets"
_FILES = {"/": "live.html", "/live.js": "live.js", "/live.css": "live.css", "/icon.svg": "icon.svg"}
_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_JSON_BYTES = 100_000
_FORGOTTEN = 10  # times what is allowed

ConnectionId = Annotated[str, InPath(pattern="^[0-9A-Za-z_-]{22}$")]


class Offer(BaseModel):
    """A browser's offer (SDP). replaces: the id of a session that the same visitor has lost."""

    model_config = ConfigDict(extra="forbid")
    sdp: str
    replaces: str | None = None


class Text(BaseModel):
    """What the face is to say."""

    model_config = ConfigDict(extra="forbid")
    text: str


class Microphone(BaseModel):
    """Whether the face is to say what comes from the microphone."""

    model_config = ConfigDict(extra="forbid")
    is_on: bool


Record = TypeVar("Record", bound=BaseModel)


def create_live_app(
    settings: LivePageSettings, database: Database, new_session: Callable[[], LiveSession], width: int, height: int
) -> FastAPI:
    """Return the application. new_session: returns a session for each visitor, which the application closes.

    database: of the tokens; it stays the caller's. width, height: of the avatar, in px.
    """
    connections = Connections(settings, new_session)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await connections.close_all()

    app = FastAPI(
        title="lipstream live", version=__version__, openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.state.stopping = threading.Event()
    app.add_middleware(Access, database=database, settings=settings)
    add_errors(app)
    for path, name in _FILES.items():
        app.add_route(path, _file(name))
    app.include_router(_router(connections, settings, (width, height)))

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    return app


def _file(name: str) -> Callable[[Request], Response]:
    """Return what answers with one of the page's files."""
    return lambda request: FileResponse(_ASSETS / name, headers=_HEADERS)


def _router(connections: Connections, settings: LivePageSettings, size: tuple[int, int]) -> APIRouter:
    """Return what the page asks for."""
    router = APIRouter(prefix="/api/live")

    def own(request: Request, connection_id: str) -> Connection:
        return connections.get(connection_id, str(request.scope["client_id"]))

    @router.get("")
    async def about() -> dict[str, object]:
        return {
            "width": size[0],
            "height": size[1],
            "reads_text": can_read_text(),
            "sessions": connections.n_open,
            "max_sessions": settings.max_sessions,
        }

    @router.post("", status_code=201)
    async def connect(request: Request) -> dict[str, str]:
        offer = await _record(request, Offer)
        made, answer = await connections.open(str(request.scope["client_id"]), offer.sdp, offer.replaces)
        return {"id": made, "sdp": answer}

    @router.post("/{connection_id}/text", status_code=202)
    async def text(request: Request, connection_id: ConnectionId) -> dict[str, float]:
        connection = own(request, connection_id)
        speech = await from_text((await _record(request, Text)).text, settings.voice)
        connection.say(speech)
        return {"duration_s": speech.duration_s}

    @router.post("/{connection_id}/recording", status_code=202)
    async def recording(request: Request, connection_id: ConnectionId) -> dict[str, float]:
        connection = own(request, connection_id)
        with tempfile.TemporaryDirectory(prefix="lipstream-live-") as folder:
            path = Path(folder) / "recording"
            with path.open("wb") as file:
                async for block in _body(request, settings.max_upload_bytes):
                    file.write(block)
            speech = await asyncio.to_thread(from_recording, path, settings.max_duration_s)
        connection.say(speech)
        return {"duration_s": speech.duration_s}

    @router.post("/{connection_id}/microphone", status_code=204)
    async def microphone(request: Request, connection_id: ConnectionId) -> None:
        own(request, connection_id).set_microphone((await _record(request, Microphone)).is_on)

    @router.post("/{connection_id}/interrupt", status_code=204)
    async def interrupt(request: Request, connection_id: ConnectionId) -> None:
        own(request, connection_id).interrupt()

    @router.delete("/{connection_id}", status_code=204)
    async def end(request: Request, connection_id: ConnectionId) -> Response:
        await own(request, connection_id).close()
        return Response(status_code=204)

    return router


async def _body(request: Request, most_bytes: int) -> AsyncIterator[bytes]:
    """Yield a request's body as it comes. Raises Refused (413) when it is too large.

    What is too much is read and forgotten, up to a point: a browser shows no answer that comes before it has sent all.
    """
    n_bytes = 0
    async for block in request.stream():
        n_bytes += len(block)
        if n_bytes <= most_bytes:
            yield block
        elif n_bytes > _FORGOTTEN * most_bytes:
            break
    if n_bytes > most_bytes:
        message = f"the body is larger than {shown_bytes(most_bytes)}"
        raise Refused(message, status=413, code="too_large", fix="send less")


async def _record(request: Request, record: type[Record]) -> Record:
    """Return the record that a request's body holds as JSON. Raises Refused (413, 422)."""
    try:
        return record.model_validate_json(b"".join([block async for block in _body(request, _JSON_BYTES)]))
    except ValidationError as error:
        first = error.errors()[0]
        message = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise Refused(message, status=422, code="request") from error
