"""`lipstream live`."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from lipstream.cli import options
from lipstream.cli.interrupts import Interrupts
from lipstream.cli.listening import check_is_guarded, check_packages, listening, run_server
from lipstream.live.frames import LiveSession
from lipstream.serve.live.settings import LivePageSettings
from lipstream.settings import RuntimeSettings

_PACKAGES = ("aiortc", "alembic", "fastapi", "sqlalchemy", "uvicorn")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lipstream live`."""
    parser.add_argument("avatar", type=Path, metavar="AVATAR", help="what `lipstream prepare` wrote")
    groups = {
        title: parser.add_argument_group(title) for title in ("service", "limits", "speed", "hardware", "messages")
    }
    options.add_fields(groups, LivePageSettings)
    marks = [f for f in fields(RuntimeSettings) if "c2pa" in f.name]  # of files, which are not written here
    options.add_fields(groups, RuntimeSettings, [f.name for f in fields(RuntimeSettings) if f not in marks])
    parser.set_defaults(**{f.name: f.default for f in marks})


def run(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """Serve the live page until a signal comes."""
    settings = options.settings_from(LivePageSettings, args)
    check_packages("the live page", "live", _PACKAGES)
    from lipstream.lipsync import LipSync
    from lipstream.live.avatar import Avatar
    from lipstream.runtime.device import quick_precision
    from lipstream.serve.database import Database
    from lipstream.serve.live.app import create_live_app
    from lipstream.serve.logs import log_as_json

    runtime = quick_precision(options.settings_from(RuntimeSettings, args))
    avatar = Avatar.open(args.avatar)
    database = Database(settings.database_url)
    database.migrate()
    try:
        check_is_guarded(settings, database)
        with listening(settings) as listener, LipSync.load(avatar.model, runtime) as sync:

            def new_session() -> LiveSession:
                return LipSync(sync.model, sync.detector, sync.runtime).live(avatar)  # one each: they would take turns

            app = create_live_app(settings, database, new_session, avatar.width, avatar.height)
            log_as_json()
            run_server(app, listener, access_log=args.verbose)
    finally:
        database.close()
    return 0
