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
    unset = f" (empty: {meta['unset']})" if f.default is None else ""
    about: dict[str, Any] = {"label": label[0].upper() + label[1:], "info": meta["help"] + unset, "elem_id": f.name}
    literals = choices(hint)
    if literals:
        values: list[Any] = [(one, one) for one in literals]
        if f.default is None:
            values.insert(0, (f"{meta['unset']}", _UNSET))
            about["info"] = meta["help"]
        return gr.Dropdown(values, value=default or _UNSET, filterable=False, **about)
    if hint is bool:
        return gr.Checkbox(default, **about)
    kind = alternatives(hint)[0]
    if kind in (int, float):
        bounds = {"minimum": meta["low"], "maximum": meta["high"], "step": meta["multiple_of"] or None}
        given = {name: bound for name, bound in bounds.items() if bound is not None}
        return gr.Number(default, precision=0 if kind is int else None, **given, **about)
    return gr.Textbox("", placeholder=meta["metavar"], **about)


def settings_from(given: Iterable[tuple[Field[Any], Any]], **more: Any) -> SyncSettings:
    """Return the settings that the components' values mean, with `more` fields. Raises SettingsError."""
    return SyncSettings(**{f.name: _value(f, value) for f, value in given}, **more)


def _value(f: Field[Any], value: Any) -> Any:
    if value is None or value == _UNSET:
        return f.default
    if get_origin(alternatives(_HINTS[f.name])[0]) is tuple:
        parts = str(value).split(",")
        return tuple(float(part) if part.strip().replace(".", "", 1).isdigit() else part for part in parts)
    return value.strip() if isinstance(value, str) else value
