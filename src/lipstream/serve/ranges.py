"""Parts of a file over HTTP: one range of bytes, as players and downloads that go on ask for it."""

from __future__ import annotations

import re

from lipstream.serve.refused import Refused

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


def asked_range(header: str | None, n_bytes: int) -> tuple[int, int] | None:
    """Return the first and the one after the last byte that a Range header asks for; None for the whole file.

    Several ranges, and what is not understood, are answered with the whole file, as RFC 9110 allows. Raises Refused
    (416) for a range that the file does not have.
    """
    match = _RANGE.fullmatch(header.replace(" ", "")) if header else None
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        begin, end = max(0, n_bytes - int(match[2])), n_bytes
    else:
        begin = int(match[1])
        if match[2] and int(match[2]) < begin:
            return None
        end = min(n_bytes, int(match[2]) + 1) if match[2] else n_bytes
    if begin >= end:
        raise Refused(f"the file has {n_bytes} bytes", status=416, code="range", fix="ask for a part that is there")
    return begin, end
