"""What the commands that serve have in common: a socket, who may come in, an end in order."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lipstream.cli.console import write_result
from lipstream.errors import SettingsError
from lipstream.serve.settings import ListenSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from lipstream.serve.database import Database

_GRACE_S = 10


def check_packages(what: str, extra: str, packages: Sequence[str]) -> None:
    """Raise SettingsError, naming the extra, where a package is not installed that `what` needs."""
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise SettingsError(f"{what} needs the package {name}", fix=f"pip install 'lipstream[{extra}]'")


def listening(settings: ListenSettings) -> socket.socket:
    """Return a socket that listens where the settings say. Raises SettingsError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {settings.host}, port {settings.port} ({error.strerror})",
            fix="choose another --port or --host",
        ) from error


def run_server(app: FastAPI, listener: socket.socket, *, access_log: bool) -> None:
    """Print the address and serve until SIGINT or SIGTERM, then let requests end. Sets `app.state.stopping` first."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            app.state.stopping.set()  # ends the streams of events, which would last
            super().handle_exit(sig, frame)

    host, port = listener.getsockname()[:2]
    write_result(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    config = uvicorn.Config(
        app, log_config=None, access_log=access_log, server_header=False, timeout_graceful_shutdown=_GRACE_S
    )
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises its signal again when all has ended
        Server(config).run(sockets=[listener])


def check_is_guarded(settings: ListenSettings, database: Database) -> None:
    """Refuse to listen beyond this machine where everybody would come in. Raises SettingsError."""
    from lipstream.serve.tokens import list_tokens

    if settings.is_local or settings.insecure or any(one.revoked_s is None for one in list_tokens(database)):
        return
    raise SettingsError(
        f"--host {settings.host} is beyond this machine, and there is no token",
        fix="make one with `lipstream serve token add NAME`, or let everybody in with --insecure",
    )
