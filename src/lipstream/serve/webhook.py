"""Report a job's end to the address that its client named, signed as the Standard Webhooks specification says.

Headers webhook-id, webhook-timestamp and webhook-signature: "v1," and the base64 of HMAC-SHA256 over
"id.timestamp.body" with the client's own secret, which is "whsec_" and the base64 of a key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import select, update

from lipstream.serve.addresses import IsAllowed, is_public, post
from lipstream.serve.database import Database
from lipstream.serve.refused import Refused
from lipstream.serve.tables import jobs

logger = logging.getLogger(__name__)

RETRY_AFTER_S = (10.0, 60.0, 300.0, 1800.0, 7200.0)
"""How long after each failed report the next one follows; then it is given up."""

_PREFIX = "whsec_"
_LEAST_BYTES, _MOST_BYTES = 16, 64


def key_of(secret: str) -> bytes:
    """Return the key that a secret holds. Raises Refused."""
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(_PREFIX) or not _LEAST_BYTES <= len(key) <= _MOST_BYTES:
        raise Refused(
            "the webhook's secret cannot be used",
            status=422,
            code="webhook",
            fix=f"give {_PREFIX} and the base64 of {_LEAST_BYTES} to {_MOST_BYTES} random bytes",
        )
    return key


def signed(secret: str, message_id: str, time_s: int, body: bytes) -> dict[str, str]:
    """Return the headers of a report."""
    content = f"{message_id}.{time_s}.".encode() + body
    signature = base64.b64encode(hmac.digest(key_of(secret), content, hashlib.sha256)).decode()
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(time_s),
        "webhook-signature": f"v1,{signature}",
    }


def deliver_due(database: Database, is_allowed: IsAllowed = is_public) -> int:
    """Send the reports that are due; return how many arrived. Several processes may do this at once.

    A report is claimed by putting its next time off before it is sent, so a process that dies only delays it.
    """
    n_delivered = 0
    while (row := _claim(database)) is not None:
        if _deliver(row, is_allowed):
            n_delivered += 1
            with database.writing() as connection:
                connection.execute(update(jobs).where(jobs.c.id == row["id"]).values(webhook_due_s=None))
    return n_delivered


def _claim(database: Database) -> Mapping[str, Any] | None:
    due = select(jobs).where(jobs.c.webhook_url.is_not(None), jobs.c.webhook_due_s.is_not(None)).limit(1)
    with database.reading() as connection:
        due = due.where(jobs.c.webhook_due_s <= database.now_s(connection))
        if connection.execute(due).first() is None:
            return None
    with database.writing() as connection:
        row = connection.execute(due.with_for_update(skip_locked=True)).mappings().first()
        if row is None:
            return None
        tries, now_s = row["webhook_tries"], database.now_s(connection)
        next_s = now_s + RETRY_AFTER_S[tries] if tries < len(RETRY_AFTER_S) else None
        claimed = {"webhook_due_s": next_s, "webhook_tries": tries + 1}
        connection.execute(update(jobs).where(jobs.c.id == row["id"]).values(claimed))
        return {**row, "now_s": now_s}


def _deliver(row: Mapping[str, Any], is_allowed: IsAllowed) -> bool:
    time = datetime.fromtimestamp(row["now_s"], timezone.utc).isoformat()
    data = {name: row[name] for name in ("id", "state", "error")}
    body = json.dumps({"type": f"job.{row['state']}", "timestamp": time, "data": data}).encode()
    headers = signed(row["webhook_secret"], row["id"], round(row["now_s"]), body)
    try:
        status = post(row["webhook_url"], body, headers, is_allowed)
    except Refused as error:
        logger.warning("webhook not delivered", extra={"job": row["id"], "reason": error.message})
        return False
    if not 200 <= status < 300:
        logger.warning("webhook not delivered", extra={"job": row["id"], "reason": f"it answered {status}"})
        return False
    logger.info("webhook delivered", extra={"job": row["id"]})
    return True
