"""The advanced settings: a component for each field of SyncSettings, with the sentence that --help has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import Field, fields
from typing import Any, get_origin

import gradio as gr

from lipstream.settings import SyncSettings
from lipstream.settings_record import flag
from lipstream.validation import alternatives, choices, type_hints

_ELSEWHERE = ("preset", "face")
"""Fields that have a place of their own on the page."""

_UNSET = ""
_HINTS = type_hints(SyncSettings)


def advanced_fields() -> dict[str, list[Field[Any]]]:
    """Return the fields in the fold, by the heading that they have in --help."""
    found: dict[str, list[Field[Any]]] = {}
    for f in fields(SyncSettings):
        if f.name not in _ELSEWHERE:
            found.setdefault(f.metadata["group"], []).append(f)
    return found


def component(f: Field[Any]) -> Any:
    """Return the component of a field, at its default; empty means that the model or the preset decides."""
    hint, meta = _HINTS[f.name], f.metadata
    default: Any = f.default
    label = flag(f).removeprefix("--").replace("-", " ")
    about: dict[str, Any] = {"label": label[0].upper() + label[1:], "info": meta["help"], "elem_id": f.name}
    literals = choices(hint)
    if literals:
        values: list[Any] = [(one, one) for one in literals]
        if f.default is None:
            values.insert(0, (meta["unset"], _UNSET))
        return gr.Dropdown(values, value=default or _UNSET, filterable=False, **about)
    if hint is bool:
        return gr.Checkbox(default, **about)
    kind = alternatives(hint)[0]
    if default is not None and kind in (int, float):
        bounds = {"minimum": meta["low"], "maximum": meta["high"], "step": meta["multiple_of"] or None}
        given = {name: bound for name, bound in bounds.items() if bound is not None}
        return gr.Number(default, precision=0 if kind is int else None, **given, **about)
    return gr.Textbox("", placeholder=meta["unset"], **about)  # an empty number would be shown as 0


def settings_from(given: Iterable[tuple[Field[Any], Any]], **more: Any) -> SyncSettings:
    """Return the settings that the components' values mean, with `more` fields. Raises SettingsError."""
    return SyncSettings(**{f.name: _value(f, value) for f, value in given}, **more)


def _value(f: Field[Any], value: Any) -> Any:
    if isinstance(value, str):
        value = value.strip()
    if value is None or value == _UNSET:
        return f.default
    kind = alternatives(_HINTS[f.name])[0]
    if get_origin(kind) is tuple:
        return tuple(_number(part) for part in str(value).split(","))
    return _number(value) if kind in (int, float) else value


def _number(value: Any) -> Any:
    """Return the number that a text is; another text as it is, for the settings to refuse."""
    try:
        return float(value)
    except ValueError:
        return value
