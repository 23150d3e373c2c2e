"""Durations and sizes as options take them: 24h, 90s, 20GB."""

from __future__ import annotations

import re

from lipstream.errors import SettingsError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_QUANTITY = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s?([A-Za-z]+)", re.ASCII)


def seconds(name: str, text: str) -> float:
    """Return a duration in seconds. name: of the setting. Raises SettingsError."""
    return _amount(name, text, _SECONDS, "24h")


def n_bytes(name: str, text: str) -> int:
    """Return a size in bytes. name: of the setting. Raises SettingsError."""
    return round(_amount(name, text, _BYTES, "20GB"))


def shown_bytes(number: int) -> str:
    """Return a size for a person to read."""
    for unit, one in reversed(_BYTES.items()):
        if number >= one:
            return f"{number / one:.4g} {unit}"
    return f"{number} bytes"


def _amount(name: str, text: str, units: dict[str, int], example: str) -> float:
    match = _QUANTITY.fullmatch(text.strip())
    factor = {unit.lower(): one for unit, one in units.items()}.get(match[2].lower()) if match else None
    if match is None or factor is None or float(match[1]) == 0:
        raise SettingsError(
            f"{name} = {text!r}: must be a number above 0 and one of {', '.join(units)}, such as {example}",
            setting=name,
        )
    return float(match[1]) * factor
