"""Read sweeps: TOML files that list settings or grids of them as options of sync (see docs/measuring.md)."""

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
    """Return the settings of a sweep as (name, options such as "steps=4"): baseline, grids, then single settings.

    Raises InputError if the file cannot be read, SettingsError if its content is not a sweep.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", file=path, fix="give the path of a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"not valid TOML: {error}", file=path, fix="correct the syntax") from error
    for name in content:
        if name not in _TABLES:
            raise SettingsError(f"unknown key {name!r}", file=path, fix=f"use {', '.join(_TABLES)}")
    baseline = content.get("baseline", "")
    if not isinstance(baseline, str):
        raise SettingsError(
            f"baseline = {baseline!r}: not a string", file=path, fix='give options in quotes, such as "steps=20"'
        )
    try:
        grids = [setting for table in _tables(content, "grid") for setting in _expand_grid(table)]
        return [("baseline", baseline.split()), *grids, *(_single(table) for table in _tables(content, "setting"))]
    except SettingsError as error:
        raise SettingsError(error.message, file=path, fix=error.fix) from error


def _tables(content: dict[str, Any], name: str) -> list[dict[str, Any]]:
    tables = content.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise SettingsError(f"{name}: not an array of tables", fix=f"begin each with [[{name}]]")
    return tables


def _expand_grid(table: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield every combination of a grid's values, the last changing fastest; a scalar applies to all of them."""
    axes = {
        option: value if isinstance(value, list) else [value] for option, value in table.items() if option != "name"
    }
    if not axes:
        raise SettingsError("grid: has no options", fix="give at least one, such as steps = [4, 6]")
    template = _name(table, " ".join(f"{option} {{{option}}}" for option in axes))
    for values in itertools.product(*axes.values()):
        cell = dict(zip(axes, values, strict=True))
        try:
            name = template.format_map({option: str(value) for option, value in cell.items()})
        except (LookupError, ValueError, AttributeError) as error:
            raise SettingsError(
                f"grid: name = {template!r}: {error}", fix="use the grid's options in braces, such as {steps}"
            ) from error
        yield name, _options(name, cell)


def _single(table: dict[str, Any]) -> tuple[str, list[str]]:
    name = _name(table, "")
    return name, _options(name, {option: value for option, value in table.items() if option != "name"})


def _name(table: dict[str, Any], default: str) -> str:
    name = table.get("name", default)
    if not isinstance(name, str) or not name.strip():
        raise SettingsError(f"name = {name!r}: not a name", fix="give each setting a name in quotes")
    return name


def _options(name: str, values: dict[str, Any]) -> list[str]:
    """Convert values to options of sync; true means an option without a value."""
    options = []
    for option, value in values.items():
        if value is True:
            options.append(option)
        elif isinstance(value, (str, int, float)) and value is not False:
            options.append(f"{option}={value}")
        else:
            fix = f"remove {option}" if value is False else "use a string, a number or true"
            raise SettingsError(f"setting {name!r}: {option} = {value!r}: not a value of an option", fix=fix)
    return options
