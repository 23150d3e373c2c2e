"""`lipstream serve` and `lipstream worker`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from lipstream.cli import options
from lipstream.cli.console import write_json, write_result
from lipstream.cli.interrupts import Interrupts
from lipstream.cli.listening import check_is_guarded, check_packages, listening, run_server
from lipstream.errors import SettingsError
from lipstream.serve.settings import ServiceSettings, WorkSettings
from lipstream.settings import RuntimeSettings

if TYPE_CHECKING:
    from lipstream.serve.database import Database
    from lipstream.serve.render import Renderer

_PACKAGES = ("alembic", "fastapi", "httpcore", "prometheus_client", "python_multipart", "sqlalchemy", "uvicorn")
_DATABASE = next(f for f in fields(WorkSettings) if f.name == "database")
_DATA = next(f for f in fields(WorkSettings) if f.name == "data")


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream serve`; `token` is an action of its own."""
    _add_settings(parser, ServiceSettings)
    parser.set_defaults(action=_serve)
    token = parser.add_subparsers(metavar="token").add_parser("token", help="add, list and revoke bearer tokens")
    actions = token.add_subparsers(metavar="add|list|revoke", required=True)
    _add_action(actions, "add", _add_token, "make a token, and show it this once").add_argument("name", metavar="NAME")
    _add_action(actions, "list", _list_tokens, "the tokens, without what is secret")
    _add_action(actions, "revoke", _revoke_token, "make a token worthless").add_argument("name", metavar="NAME|ID")


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream worker`."""
    _add_settings(parser, WorkSettings)


def run_serve(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """Serve the page and the interface until a signal comes, or carry out an action on tokens."""
    action: Callable[[argparse.Namespace], None] = args.action
    check_packages("the service", "web", _PACKAGES)
    action(args)
    return 0


def run_worker(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """Take jobs from a database until a signal comes."""
    settings = options.settings_from(WorkSettings, args)
    if args.database is None:
        raise SettingsError("--database is missing", fix="name the one that `lipstream serve` uses")
    renderers = _renderers(args, settings)
    check_packages("the service", "web", _PACKAGES)
    from lipstream.serve.database import Database
    from lipstream.serve.files import Files
    from lipstream.serve.logs import log_as_json
    from lipstream.serve.running import Running

    database = Database(settings.database_url)
    database.migrate()
    files = Files(settings.data_place)
    log_as_json()
    running = Running(database, files, settings, renderers)
    try:
        while running.is_working:
            time.sleep(0.2)
    except KeyboardInterrupt:
        return 0
    finally:
        running.stop()
        database.close()
    raise running.errors[0] if running.errors else RuntimeError("a worker has ended, see its log")


def _serve(args: argparse.Namespace) -> None:
    settings = options.settings_from(ServiceSettings, args)
    settings.check_models()
    renderers = [] if settings.no_worker else _renderers(args, settings)
    from lipstream.serve.app import create_app
    from lipstream.serve.logs import log_as_json
    from lipstream.serve.service import Service

    service = Service.open(settings)
    try:
        check_is_guarded(settings, service.database)
        with listening(settings) as listener:
            app = create_app(settings, renderers, service=service)
            log_as_json()
            run_server(app, listener, access_log=args.verbose)
    finally:
        service.close()


def _renderers(args: argparse.Namespace, settings: WorkSettings) -> Sequence[Renderer]:
    """Return what does the jobs: one for each device that --device names."""
    settings.check_models()
    devices = options.devices_from(args)
    runtime = options.settings_from(RuntimeSettings, args)
    from lipstream.scale.devices import each_device
    from lipstream.serve.render import ModelRenderer

    return [ModelRenderer(settings.models, one) for one in each_device(devices, runtime)]


def _add_settings(parser: argparse.ArgumentParser, record: type[WorkSettings]) -> None:
    titles = ("service", "limits", "input and output", "speed", "hardware", "messages")
    groups = {title: parser.add_argument_group(title) for title in titles}
    options.add_fields(groups, record)
    options.add_runtime_options(groups)


def _add_action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    action: Callable[[argparse.Namespace], None],
    help: str,
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=help, description=help)
    parser.set_defaults(action=action)
    for f in (_DATABASE, _DATA):
        text = f"{f.metadata['help']} [{f.metadata['unset']}]"
        # Without a default of its own: what stands before `token` counts too.
        parser.add_argument(f"--{f.name}", metavar=f.metadata["metavar"], help=text, default=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print the result, or the error, as one JSON object")
    return parser


def _database(args: argparse.Namespace) -> Database:
    from lipstream.serve.database import Database

    database = Database(WorkSettings(database=args.database, data=args.data).database_url)
    database.migrate()
    return database


def _add_token(args: argparse.Namespace) -> None:
    from lipstream.serve.tokens import add_token

    token = add_token(_database(args), args.name)
    if args.json:
        write_json({"name": args.name, "token": token})
    else:
        write_result(token)


def _list_tokens(args: argparse.Namespace) -> None:
    from lipstream.serve.tokens import list_tokens

    tokens = list_tokens(_database(args))
    if args.json:
        write_json({"tokens": [vars(token) for token in tokens]})
        return
    for token in tokens:
        state = "valid" if token.revoked_s is None else "revoked"
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(token.created_s))
        write_result(f"{token.id}  {state:7}  {made}  {token.name}")


def _revoke_token(args: argparse.Namespace) -> None:
    from lipstream.serve.tokens import revoke_token

    revoke_token(_database(args), args.name)
    if args.json:
        write_json({"revoked": args.name})
