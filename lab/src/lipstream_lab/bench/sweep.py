"""Sweeps: a small TOML file that lists settings, or spans grids of them, in sync's words (see docs/measuring.md)."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from lipstream.errors import InputError, SettingsError

_TABLES = ("baseline", "grid", "setting")


def read_sweep(path: Path) -> list[tuple[str, list[str]]]:
    """The settings of a sweep, the baseline first, then grids, then single ones: a name and options, such as steps=4.

    Raises InputError for a file that cannot be read, SettingsError for one that says what no sweep says.
    """
    try:
        words = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); name a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: is no TOML: {error}") from error
    for name in words:
        if name not in _TABLES:
            raise SettingsError(f"{path}: {name!r} is none of {', '.join(_TABLES)}")
    baseline = words.get("baseline", "")
    if not isinstance(baseline, str):
        raise SettingsError(f'{path}: baseline = {baseline!r}: must be options in quotes, such as "steps=20"')
    try:
        grids = [setting for table in _tables(words, "grid") for setting in _spanned(table)]
        return [("baseline", baseline.split()), *grids, *(_single(table) for table in _tables(words, "setting"))]
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error


def _tables(words: dict[str, Any], name: str) -> list[dict[str, Any]]:
    tables = words.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise SettingsError(f"{name}: begin each with [[{name}]]")
    return tables


def _spanned(table: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Every combination of a grid's values, the last one changing fastest; a value that is no list holds for all."""
    axes = {
        option: value if isinstance(value, list) else [value] for option, value in table.items() if option != "name"
    }
    if not axes:
        raise SettingsError("grid: has no option; give at least one, such as steps = [4, 6]")
    template = _name(table, " ".join(f"{option} {{{option}}}" for option in axes))
    for values in itertools.product(*axes.values()):
        cell = dict(zip(axes, values, strict=True))
        try:
            name = template.format_map({option: str(value) for option, value in cell.items()})
        except (LookupError, ValueError, AttributeError) as error:
            raise SettingsError(f"grid: name = {template!r}: {error}; use its options, such as {{steps}}") from error
        yield name, _options(name, cell)


def _single(table: dict[str, Any]) -> tuple[str, list[str]]:
    name = _name(table, "")
    return name, _options(name, {option: value for option, value in table.items() if option != "name"})


def _name(table: dict[str, Any], otherwise: str) -> str:
    name = table.get("name", otherwise)
    if not isinstance(name, str) or not name.strip():
        raise SettingsError(f"name = {name!r}: give each setting a name in quotes")
    return name


def _options(name: str, values: dict[str, Any]) -> list[str]:
    """Values as sync's options: true is an option without a value."""
    options = []
    for option, value in values.items():
        if value is True:
            options.append(option)
        elif isinstance(value, (str, int, float)) and value is not False:
            options.append(f"{option}={value}")
        else:
            fix = "leave it out" if value is False else "must be text, a number or true"
            raise SettingsError(f"setting {name!r}: {option} = {value!r}: {fix}")
    return options
