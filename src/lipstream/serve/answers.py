"""How a server answers errors: every one in one form, {"error": {"code", "message", "fix"}}."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from lipstream.errors import LipstreamError
from lipstream.serve.refused import Refused

logger = logging.getLogger(__name__)


def add_errors(app: FastAPI) -> None:
    """Answer every error of an application in that form."""

    @app.exception_handler(Refused)
    async def _(request: Request, error: Refused) -> Response:
        headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
        if error.status == 413:
            headers["connection"] = "close"  # or else the rest would be read, and thrown away
        return _answer(error.status, error.kind, error.message, error.fix, headers)

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _answer(422, "request", f"{'.'.join(map(str, first['loc']))}: {first['msg']}", None)

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> Response:
        return _answer(error.status_code, "http", error.detail, None, error.headers)

    @app.exception_handler(LipstreamError)
    async def _(request: Request, error: LipstreamError) -> Response:
        logger.error("%s", error)
        return _answer(500, error.code, "the service cannot store or read its files", "tell the service's owner")

    @app.exception_handler(DBAPIError)
    async def _(request: Request, error: DBAPIError) -> Response:
        logger.error("database: %s", type(error.orig).__name__)
        return _answer(503, "database", "the database does not answer", "try again", {"retry-after": "5"})

    @app.exception_handler(ClientDisconnect)
    async def _(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # which nobody reads


def _answer(status: int, code: str, message: str, fix: str | None, headers: Any = None) -> Response:
    return JSONResponse({"error": {"code": code, "message": message, "fix": fix}}, status, headers)
