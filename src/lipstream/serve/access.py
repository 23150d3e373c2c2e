"""Who may come in: tokens, names that the server is reached by, requests that another page's script sends."""

from __future__ import annotations

import html
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from lipstream.serve.database import Database
from lipstream.serve.settings import ListenSettings
from lipstream.serve.tokens import are_required, client_of

COOKIE = "lipstream_token"
LOGIN = "/login"
_OPEN = ("/healthz", "/readyz", LOGIN)
_SAFE = ("GET", "HEAD", "OPTIONS")
_MOST_FORM_BYTES = 4096


class Access:
    """ASGI middleware: lets a request through with its client's id in `scope["client_id"]`, or answers it.

    With tokens in the database every request needs a valid one, as a bearer token or, for a browser, in the cookie that
    the login page sets. Without, the client is its address. A server for this machine alone answers to its own names
    only, so that no page elsewhere reaches it under a name of its own; scripts of other pages can change nothing.
    """

    def __init__(self, app: ASGIApp, database: Database, settings: ListenSettings) -> None:
        self._app, self._database = app, database
        others = tuple(one.strip().lower() for one in (settings.public_host or "").split(",") if one.strip())
        self._hosts = ("localhost", "127.0.0.1", "::1", settings.host.lower(), *others)
        self._checks_host = settings.is_local or bool(others)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = await self._answer(scope, receive)
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response | None:
        """Return what to answer in the app's place, or None after the client has been found."""
        headers, path = Headers(scope=scope), scope["path"]
        host = headers.get("host", "")
        if self._checks_host and _name(host) not in self._hosts:
            return _refusal(421, "host", "this server is not reached by that name", "start it with --public-host NAME")
        origin = headers.get("origin")
        is_foreign = origin is not None and urlsplit(origin).netloc != host
        if is_foreign and (scope["type"] == "websocket" or scope["method"] not in _SAFE):
            return _refusal(403, "origin", "another page's script may not do that", None)
        if path == LOGIN:
            return await self._login(Request(scope, receive))
        if path in _OPEN:
            return None
        if not await run_in_threadpool(are_required, self._database):
            scope["client_id"] = (scope.get("client") or ("local",))[0][:64]
            return None
        token = _token(headers)
        client = None if token is None else await run_in_threadpool(client_of, self._database, token)
        if client is not None:
            scope["client_id"] = client
            return None
        if path.startswith("/api/") or path == "/metrics" or "text/html" not in headers.get("accept", ""):
            return _unauthorized()
        return RedirectResponse(LOGIN, status_code=303)

    async def _login(self, request: Request) -> Response:
        """Show the login page, or set the cookie for a token that is valid."""
        if request.method == "GET":
            return HTMLResponse(_page(""))
        if request.method != "POST":
            return Response(status_code=405, headers={"allow": "GET, POST"})
        body = b""
        async for block in request.stream():
            body += block
            if len(body) > _MOST_FORM_BYTES:
                return _refusal(413, "too_large", "the form is too large", None)
        token = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()
        if await run_in_threadpool(client_of, self._database, token) is None:
            return HTMLResponse(_page("This token is not valid."), status_code=401)
        answer = RedirectResponse("/", status_code=303)
        is_https = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
        answer.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=is_https, max_age=30 * 86400)
        return answer


def _name(host: str) -> str:
    """Return the name in a Host header, without the port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _token(headers: Headers) -> str | None:
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return None if morsel is None else morsel.value


def _unauthorized() -> Response:
    answer = _refusal(401, "token", "this needs a valid token", "send Authorization: Bearer TOKEN")
    answer.headers["www-authenticate"] = "Bearer"
    return answer


def _refusal(status: int, code: str, message: str, fix: str | None) -> Response:
    error: dict[str, Any] = {"code": code, "message": message, "fix": fix}
    return JSONResponse({"error": error}, status_code=status)


def _page(message: str) -> str:
    said = f'<p role="alert">{html.escape(message)}</p>' if message else ""
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>lipstream</title>
<meta name="viewport" content="width=device-width"><style>:root{{color-scheme:light dark}}
body{{font:1rem system-ui;max-width:22rem;margin:15vh auto;padding:0 1rem}}
input,button{{font:inherit;width:100%;padding:.6rem;margin:.4rem 0;box-sizing:border-box}}</style>
<h1>lipstream</h1>{said}<form method="post" action="{LOGIN}"><label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Sign in</button></form></html>"""
