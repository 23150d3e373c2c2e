"""The page: a form over the service, what was understood of its files, the job and its result. Extra `web`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

    from lipstream.serve.service import Service


def mount_page(app: FastAPI, service: Service) -> FastAPI:
    """Mount the page at / of an application, after all that is there already, and return it."""
    from lipstream.serve.page.mount import mount

    return mount(app, service)
