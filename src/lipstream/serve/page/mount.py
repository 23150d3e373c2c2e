"""Put the page together: Gradio's form at /, our script, style and answers about jobs under /page."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import gradio as gr
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lipstream.bundled import sample
from lipstream.serve.page.form import build_form
from lipstream.serve.page.look import theme
from lipstream.serve.page.routes import ASSETS, page_router
from lipstream.serve.quantities import shown_bytes
from lipstream.serve.service import Service

_UPLOADS_VARIABLE = "GRADIO_TEMP_DIR"
_FORGET_S = 3600
_UPLOADS_AT_ONCE = 4
"""Uploads of the greatest size that lie beside one another before they are jobs or are forgotten."""

_HEAD = '<script type="module" src="page/page.js"></script><meta name="color-scheme" content="light dark">'


def mount(app: FastAPI, service: Service) -> FastAPI:
    """Mount the page at / of an application. What visitors upload is in a folder that ends with the process."""
    most_bytes = service.settings.max_upload_bytes
    app.include_router(page_router(service))
    app.add_middleware(_Bounded, folder=_uploads(), most_bytes=_UPLOADS_AT_ONCE * most_bytes)
    with gr.Blocks(title="lipstream", analytics_enabled=False, delete_cache=(_FORGET_S // 6, _FORGET_S)) as form:
        build_form(service)
    form.queue(max_size=service.settings.max_queue, default_concurrency_limit=4)
    gr.mount_gradio_app(
        app,
        form,
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[str(sample.VIDEO.parent)],
        max_file_size=most_bytes,
        show_error=True,
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=theme(),
        css_paths=[ASSETS / "page.css"],
        head=_HEAD,
    )
    return app


def _uploads() -> Path:
    """Return the folder for what visitors upload, which ends with the process; the environment names it to Gradio."""
    if _UPLOADS_VARIABLE not in os.environ:
        folder = tempfile.mkdtemp(prefix="lipstream-page-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ[_UPLOADS_VARIABLE] = folder
    return Path(os.environ[_UPLOADS_VARIABLE])


class _Bounded:
    """ASGI middleware: takes no more of the page's uploads while their folder is full."""

    def __init__(self, app: ASGIApp, folder: Path, most_bytes: int) -> None:
        self._app, self._folder, self._most_bytes = app, folder, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].rstrip("/").endswith("/gradio_api/upload"):
            used_bytes = await run_in_threadpool(_size_of, self._folder)
            if used_bytes > self._most_bytes:
                detail = f"visitors' files take more than {shown_bytes(self._most_bytes)}; try again in an hour"
                await JSONResponse({"detail": detail}, 507)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _size_of(folder: Path) -> int:
    sizes = 0
    for path in folder.rglob("*"):
        try:
            sizes += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # forgotten meanwhile
            continue
    return sizes
