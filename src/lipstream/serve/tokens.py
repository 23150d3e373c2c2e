"""Bearer tokens: made by the server's owner, kept as digests, revoked by name or id."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from sqlalchemy import func, insert, or_, select, update

from lipstream.errors import SettingsError
from lipstream.serve.database import Database
from lipstream.serve.tables import tokens

_PREFIX = "lipstream_"
_MOST_NAME = 100


@dataclass(frozen=True)
class Token:
    """A token without its secret. Times are s since 1970."""

    id: str
    name: str
    created_s: float
    revoked_s: float | None


def add_token(database: Database, name: str) -> str:
    """Make a token and return it: it is not shown again, since only its digest is kept. Raises SettingsError.

    A plain SHA-256 does, since the token is 256 random bits, which nobody can try out.
    """
    if not name.strip() or len(name) > _MOST_NAME:
        raise SettingsError(f"a token needs a name of 1 to {_MOST_NAME} characters", fix="say who it is for")
    token = _PREFIX + secrets.token_urlsafe(32)
    with database.writing() as connection:
        taken = select(tokens.c.id).where(tokens.c.name == name, tokens.c.revoked_s.is_(None))
        if connection.execute(taken).first() is not None:
            raise SettingsError(f"there is a token {name!r} already", fix="revoke it, or choose another name")
        row = {"id": secrets.token_hex(8), "name": name, "sha256": _digest(token)}
        connection.execute(insert(tokens).values(row | {"created_s": database.now_s(connection)}))
    return token


def list_tokens(database: Database) -> list[Token]:
    """Return all tokens, the oldest first."""
    with database.reading() as connection:
        rows = connection.execute(select(tokens).order_by(tokens.c.created_s)).mappings()
        return [Token(row["id"], row["name"], row["created_s"], row["revoked_s"]) for row in rows]


def revoke_token(database: Database, name_or_id: str) -> None:
    """Make a token worthless, from the next request on. Raises SettingsError where there is none of that name or id."""
    with database.writing() as connection:
        wanted = or_(tokens.c.name == name_or_id, tokens.c.id == name_or_id) & tokens.c.revoked_s.is_(None)
        now_s = database.now_s(connection)
        if connection.execute(update(tokens).where(wanted).values(revoked_s=now_s)).rowcount == 0:
            raise SettingsError(f"there is no valid token {name_or_id!r}", fix="see lipstream serve token list")


def are_required(database: Database) -> bool:
    """Return whether requests need a token: since the first was made, also after the last was revoked."""
    with database.reading() as connection:
        return bool(connection.scalar(select(func.count()).select_from(tokens)))


def client_of(database: Database, token: str) -> str | None:
    """Return the id of a valid token, or None."""
    wanted = select(tokens.c.id).where(tokens.c.sha256 == _digest(token), tokens.c.revoked_s.is_(None))
    with database.reading() as connection:
        return connection.scalar(wanted)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
