"""Check the fields of a settings record, and bring each to the type that it is declared with."""

from __future__ import annotations

import math
import types
import typing
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from lipstream.errors import SettingsError


def coerced(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass instance in their declared types.

    A whole float stands for an int, an int for a float, a list for a tuple, a str for a Path; nothing else is
    converted. Raises SettingsError that names the field: for another type, a value that is not one of its choices, or
    a number that its metadata (`low`, `high`, `multiple_of`) does not allow.
    """
    hints = type_hints(type(record))
    return {f.name: _checked(f, getattr(record, f.name), hints[f.name]) for f in fields(record)}


def type_hints(record: type) -> dict[str, Any]:
    """Return the declared type of each field."""
    return typing.get_type_hints(record)


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, without None; of another type, itself."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(one for one in get_args(hint) if one is not types.NoneType)
    return (hint,)


def choices(hint: Any) -> tuple[Any, ...]:
    """Return the values of all the literals in a type."""
    return tuple(value for one in alternatives(hint) if get_origin(one) is Literal for value in get_args(one))


def _checked(f: Field[Any], value: Any, hint: Any) -> Any:
    if value is None and types.NoneType in get_args(hint):
        return None
    for kind in sorted(alternatives(hint), key=_precedence):
        found = _as(kind, value)
        if found is not None:
            _check_number(f, found)
            return found
    raise SettingsError(f"{f.name} = {value!r}: must be {_described(hint)}", setting=f.name)


def _precedence(kind: Any) -> int:
    """Order the types of a union: a literal before the type it is of, a path before text."""
    return 0 if get_origin(kind) is Literal else 1 if kind is Path else 2


def _as(kind: Any, value: Any) -> Any:
    """Return the value as one type, or None where it is not of it."""
    if get_origin(kind) is Literal:
        return value if isinstance(value, str) and value in get_args(kind) else None
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(get_args(kind)):
            return None
        parts = [_as(one, part) for one, part in zip(get_args(kind), value, strict=True)]
        return None if None in parts else tuple(parts)
    if kind is Path:
        return Path(value) if isinstance(value, str | Path) else None
    if kind is str:
        return value if isinstance(value, str) else None
    if kind is bool or isinstance(value, bool):
        return value if kind is bool and isinstance(value, bool) else None
    if kind is int:
        return _whole(value)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _whole(value: Any) -> int | None:
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None


def _check_number(f: Field[Any], value: Any) -> None:
    low, high, multiple_of = (f.metadata.get(name) for name in ("low", "high", "multiple_of"))
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    outside = (low is not None and value < low) or (high is not None and value > high)
    if outside or (multiple_of is not None and value % multiple_of):
        raise SettingsError(f"{f.name} = {value!r}: must be {_range(low, high, multiple_of)}", setting=f.name)


def _range(low: float | None, high: float | None, multiple_of: int | None) -> str:
    bounds = f"from {low}" + (" up" if high is None else f" to {high}")
    return bounds if multiple_of is None else f"a multiple of {multiple_of}, {bounds}"


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}


def _described(hint: Any) -> str:
    values = choices(hint)
    kinds = [one for one in alternatives(hint) if get_origin(one) is not Literal]
    parts = [f"one of {', '.join(values)}" if len(values) > 1 else str(values[0])] if values else []
    parts += [
        "two numbers" if get_origin(one) is tuple else _NAMES[one]
        for one in kinds
        if one is not Path or str not in kinds
    ]
    return " or ".join(parts)
