"""The server's application: the interface, health and metrics, its workers and upkeep, and the page if it is there."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from anyio import CapacityLimiter
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic.json_schema import models_json_schema
from sqlalchemy.exc import DBAPIError

from lipstream.serve.access import Access
from lipstream.serve.answers import add_errors
from lipstream.serve.api import router
from lipstream.serve.metrics import exposition
from lipstream.serve.render import Renderer
from lipstream.serve.running import Running
from lipstream.serve.schema import AddressesModel, JobModel
from lipstream.serve.service import Service
from lipstream.serve.settings import ServiceSettings
from lipstream.version import __version__

_SUBMITTING_THREADS = 8


def create_app(
    settings: ServiceSettings,
    renderers: Sequence[Renderer] = (),
    *,
    service: Service | None = None,
) -> FastAPI:
    """Return the application: the interface under /api/v1, and the page at / where Gradio is installed.

    renderers: what each worker of this process does its jobs with; none: workers are elsewhere. service: one that is
    open already, which stays the caller's. Raises SettingsError, OutputError.
    """
    opened = service or Service.open(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = Running(opened.database, opened.files, settings, renderers, opened.is_allowed)
        try:
            yield
        finally:
            app.state.stopping.set()
            await asyncio.to_thread(running.stop)
            if service is None:
                opened.close()

    app = FastAPI(
        title="lipstream",
        version=__version__,
        summary="Change a video so that its mouth says a recording.",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service, app.state.stopping = opened, threading.Event()
    app.state.submitting = CapacityLimiter(_SUBMITTING_THREADS)
    app.add_middleware(Access, database=opened.database, settings=settings)
    app.include_router(router)
    _add_health(app, opened)
    add_errors(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    if importlib.util.find_spec("gradio") is not None:
        from lipstream.serve.page import mount_page

        mount_page(app, opened)
    return app


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", include_in_schema=False)
    def readyz() -> Response:
        """Answer 200 once a worker, here or elsewhere, has loaded its model and the database answers."""
        try:
            workers = service.workers()
        except DBAPIError:
            return JSONResponse({"status": "the database does not answer"}, 503)
        described = [{"device": one.device, "models": one.models, "loaded": one.loaded} for one in workers]
        status = "ready" if workers else "no worker has loaded its model yet"
        return JSONResponse({"status": status, "workers": described}, 200 if workers else 503)

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        return PlainTextResponse(exposition(service), media_type="text/plain; version=0.0.4; charset=utf-8")


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the description of the interface, with the records that POST /jobs reads by itself."""
    if app.openapi_schema is None:
        described = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        _, schemas = models_json_schema(
            [(AddressesModel, "validation"), (JobModel, "validation")], ref_template="#/components/schemas/{model}"
        )
        described["components"]["schemas"] |= schemas["$defs"]
        described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{}, {"token": []}]
        app.openapi_schema = described
    return app.openapi_schema
