"""The database: connections, transactions, the clock that all machines share, migrations."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, func, make_url, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from lipstream.errors import SettingsError
from lipstream.serve.tables import locks

_BUSY_TIMEOUT_S = 30
_POOL: dict[str, Any] = {"pool_size": 5, "max_overflow": 60}  # more than a server has threads
_MIGRATION_LOCK = 0x6C6970  # of PostgreSQL's advisory locks: any number that nobody else takes
_FIX = "check the URL, as in sqlite:///jobs.sqlite or postgresql+psycopg://user@host/name"


class Database:
    """A database of jobs, for any number of threads. Raises SettingsError for a URL that cannot be used."""

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
            self.shown_url = parsed.render_as_string(hide_password=True)
            self.dialect = parsed.get_backend_name()
            is_sqlite = self.dialect == "sqlite"
            self._engine = _sqlite_engine(url) if is_sqlite else create_engine(url, pool_pre_ping=True, **_POOL)
        except ArgumentError as error:
            raise SettingsError("database: not an SQLAlchemy URL", setting="database", fix=_FIX) from error
        except (NoSuchModuleError, ImportError) as error:
            fix = "pip install 'lipstream[web-postgres]'" if "postgres" in url else _FIX
            raise SettingsError(f"database: its driver is missing ({error})", setting="database", fix=fix) from error

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a connection to read with."""
        with self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Yield a connection in a transaction, committed at the end unless an error is raised.

        On SQLite it holds the database's one write lock from its beginning.
        """
        with self._engine.connect() as connection:
            connection = connection.execution_options(writing=True)
            with connection.begin():
                yield connection

    def now_s(self, connection: Connection) -> float:
        """Return the time, s since 1970: PostgreSQL's own, since the clocks of several machines differ."""
        if self.dialect == "postgresql":
            return float(connection.scalar(select(func.extract("epoch", func.clock_timestamp()))) or 0)
        return time.time()

    def lock(self, connection: Connection, name: str) -> None:
        """Wait for a lock that is held until the end of the transaction; SQLite's is the transaction itself."""
        connection.execute(select(locks.c.name).where(locks.c.name == name).with_for_update())

    def migrate(self) -> None:
        """Bring the tables to this version's. Raises SettingsError where that is not possible."""
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        try:
            with self.writing() as connection:
                if self.dialect == "postgresql":
                    connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError as error:
            raise SettingsError(
                f"database: it was made by another version ({error})",
                file=self.shown_url,
                setting="database",
                fix="use the newest lipstream on all machines",
            ) from error
        except DBAPIError as error:
            reason = str(error.orig).strip().splitlines()[:1]
            raise SettingsError(
                f"database: it cannot be used ({' '.join(reason)})", file=self.shown_url, setting="database", fix=_FIX
            ) from error

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def _sqlite_engine(url: str) -> Engine:
    engine = create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_S}, **_POOL)

    @event.listens_for(engine, "connect")
    def _(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, not by sqlite3
        # Readers do not wait for the writer. What is committed is on the disk: an accepted job survives a power cut.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        is_writing = connection.get_execution_options().get("writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")

    return engine
