"""Services on SQLite and on PostgreSQL: every test that asks for `service` or `make_service` runs on both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_PACKAGES = ("fastapi", "sqlalchemy", "alembic", "uvicorn", "prometheus_client", "python_multipart")
for _package in _PACKAGES:
    pytest.importorskip(_package, reason="the extra web is not installed")

from helpers.service import POSTGRES, postgres, write_inputs  # noqa: E402
from lipstream.serve.database import Database  # noqa: E402
from lipstream.serve.service import Service  # noqa: E402
from lipstream.serve.settings import ServiceSettings  # noqa: E402

_n_databases = 0


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    if not (POSTGRES / "initdb").exists():
        pytest.skip("PostgreSQL 15 is not installed")
    pytest.importorskip("psycopg", reason="the extra web-postgres is not installed")
    with postgres() as url:
        yield url


@pytest.fixture
def postgres_database(postgres_url: str) -> str:
    """Return the URL of an empty database on PostgreSQL."""
    from sqlalchemy import create_engine, text

    global _n_databases
    _n_databases += 1
    engine = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE test_{_n_databases}"))
    engine.dispose()
    return postgres_url.rpartition("/")[0] + f"/test_{_n_databases}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    return str(request.getfixturevalue("postgres_database"))


@pytest.fixture
def make_service(database_url: str, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Return what opens a service on the test's database with the given settings."""
    opened: list[Service] = []

    def make(is_allowed: Any = None, **settings: Any) -> Service:
        given = {"database": database_url, "data": str(tmp_path / "files"), **settings}
        service = Service.open(ServiceSettings(**given))
        if is_allowed is not None:
            service.is_allowed = is_allowed
        opened.append(service)
        return service

    yield make
    for service in opened:
        service.close()


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    return make_service()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Path, Path]:
    return write_inputs(tmp_path)
