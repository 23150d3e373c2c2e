"""Requests that the service does not accept. Imports nothing of the extra `web`."""

from __future__ import annotations

from lipstream.errors import LipstreamError


class Refused(LipstreamError):
    """Raised for a request that breaks a limit or cannot be carried out.

    status: its HTTP status. code: the word in the answer's JSON, kept as `kind`. retry_after_s: when to try again, if
    that is known.
    """

    exit_code = 2

    def __init__(
        self, message: str, *, status: int, code: str, fix: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message, fix=fix)
        self.status, self.kind, self.retry_after_s = status, code, retry_after_s


def not_found() -> Refused:
    """Return the refusal for a job that does not exist, or is another client's."""
    return Refused("there is no such job", status=404, code="not_found", fix="check the id")
