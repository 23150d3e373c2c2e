"""The tables of the database; `migrations/` makes them. Times are seconds since 1970, sizes are bytes."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

jobs = Table(
    "jobs",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False),
    Column("client", String(64), nullable=False),
    Column("idempotency_key", String(200)),
    Column("fingerprint", String(64), nullable=False),  # of the request, to compare where a key is used again
    Column("state", String(16), nullable=False),
    Column("model", String(200), nullable=False),
    Column("settings", JSON, nullable=False),  # SyncSettings.to_dict
    Column("input", JSON, nullable=False),  # what was understood of the files
    Column("file_bytes", BigInteger, nullable=False),  # its files, with room for the result while there is none
    Column("created_s", Double, nullable=False),
    Column("started_s", Double),
    Column("ended_s", Double),
    Column("expires_s", Double),
    Column("attempts", Integer, nullable=False),
    Column("lease", String(32)),  # of the worker that has it, a new one for each attempt
    Column("lease_until_s", Double),
    Column("progress", JSON(none_as_null=True)),
    Column("result", JSON(none_as_null=True)),
    Column("result_name", String(80)),
    Column("error", JSON(none_as_null=True)),
    Column("webhook_url", Text),
    Column("webhook_secret", String(200)),
    Column("webhook_due_s", Double),
    Column("webhook_tries", Integer, nullable=False),
    UniqueConstraint("id"),
    UniqueConstraint("client", "idempotency_key"),
    Index(None, "state", "number"),
    Index(None, "client", "number"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_s", Double, nullable=False),
    Column("revoked_s", Double),
    UniqueConstraint("sha256"),
)

workers = Table(
    "workers",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("models", JSON, nullable=False),
    Column("device", String(100), nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),  # on its device, or of the process on a CPU
    Column("loaded", String(200)),  # the model in memory
    Column("job", String(32)),
    Column("seen_s", Double, nullable=False),
)

totals = Table(
    "totals",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("label", String(80), primary_key=True),
    Column("value", Double, nullable=False),
)
"""Sums since the database was made, for metrics: they outlive the jobs' rows and every process."""

locks = Table("locks", metadata, Column("name", String(20), primary_key=True))
"""A row to lock for what must look at several jobs before it adds one."""
