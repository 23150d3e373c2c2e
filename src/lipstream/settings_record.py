"""What settings records are made of: fields that carry their option, range and help, checked when one is made."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from lipstream.errors import SettingsError
from lipstream.validation import coerced

S = TypeVar("S", bound="Settings")


def setting(
    default: Any,
    help: str,
    *,
    group: str,
    flag: str | None = None,
    metavar: str | None = None,
    low: float | None = None,
    high: float | None = None,
    multiple_of: int | None = None,
    unset: str | None = None,
) -> Any:
    """Describe a field of a settings record.

    help: one sentence, for the command line. group: the heading it stands under there. flag: its option, where that is
    not the field's name. low, high, multiple_of: what a number must keep to. unset: what None means.
    """
    metadata = {"help": help, "group": group, "flag": flag, "metavar": metavar, "unset": unset}
    return field(default=default, metadata=metadata | {"low": low, "high": high, "multiple_of": multiple_of})


def flag(f: Field[Any]) -> str:
    """Return the option of a field."""
    return f.metadata["flag"] or f"--{f.name.replace('_', '-')}"


@dataclass(frozen=True)
class Settings:
    """Base of the settings records: every field is checked and brought to its declared type. Hashable."""

    def __post_init__(self) -> None:
        for name, value in coerced(self).items():
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that JSON can hold."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: _plain(value) for name, value in values.items()}

    @classmethod
    def from_dict(cls: type[S], values: Mapping[str, Any]) -> S:
        """Make a record from what `to_dict` gave. Raises SettingsError for an unknown name or a value out of range."""
        for name in values:
            check_field_name(cls, name)
        return cls(**values)


def check_field_name(record: type[Settings], name: str) -> None:
    """Raise SettingsError, with the nearest names as the fix, where `name` is not a field of `record`."""
    known = [f.name for f in fields(record)]
    if name in known:
        return
    near = difflib.get_close_matches(name, known)
    fix = f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(known)}"
    raise SettingsError(f"{name!r} is not a field of {record.__name__}", fix=fix)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
