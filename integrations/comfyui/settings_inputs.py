"""The inputs of the settings node, one for each field of lipstream's SyncSettings, and the way back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import Field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from comfy_api.v0_0_2 import io

from lipstream import SyncSettings

UNSET = "default"
"""The choice that leaves a field to the model or the preset; in number fields it is the one below the lowest."""

_NOT_HERE = {"audio_track"}  # AUDIO has one track
_HIGHEST = 0x7FFFFFFFFFFFFFFF


def settings_inputs() -> list[Any]:
    """Return a widget for each field, with its default, its range, and its help as the tooltip."""
    return [_widget(f, hint, values) for f, hint, values in _fields()]


def settings_from(chosen: Mapping[str, Any]) -> SyncSettings:
    """Return the settings that the widgets' values mean; a widget may be missing. Raises SettingsError."""
    given = [(f, hint, values) for f, hint, values in _fields() if f.name in chosen]
    return SyncSettings(**{f.name: _value(f, hint, values, chosen[f.name]) for f, hint, values in given})


def _fields() -> Iterator[tuple[Field[Any], type, tuple[str, ...]]]:
    """Yield each field with its type, None left out, and the values where it has a list of them."""
    hints = get_type_hints(SyncSettings)
    for f in fields(SyncSettings):
        hint = hints[f.name]
        kinds = [one for one in get_args(hint) if one is not type(None)] if get_origin(hint) is not Literal else [hint]
        kind = kinds[0] if kinds and get_origin(hint) is not tuple else hint
        if f.name not in _NOT_HERE:
            yield f, kind, get_args(kind) if get_origin(kind) is Literal else ()


def _widget(f: Field[Any], kind: type, values: tuple[str, ...]) -> Any:
    meta, is_open = f.metadata, f.default is None
    tooltip = f"{meta['help']} [{meta['unset'] if is_open else f.default}]"
    common = {"optional": True, "tooltip": tooltip}
    if values:
        options = [UNSET, *values] if is_open else list(values)
        return io.Combo.Input(f.name, options=options, default=UNSET if is_open else f.default, **common)
    if kind is bool:
        return io.Boolean.Input(f.name, default=f.default, **common)
    if kind in (int, float):
        unset = _unset_number(f)
        number = io.Int if kind is int else io.Float
        default = unset if is_open else f.default
        high = _HIGHEST if meta["high"] is None else min(meta["high"], _HIGHEST)
        low = unset if is_open else meta["low"]
        step = (meta["multiple_of"] or 1) if kind is int else 0.1
        if kind is int:
            common["control_after_generate"] = False  # ComfyUI would change a number called seed after every run
        return number.Input(f.name, default=default, min=low, max=high, step=step, **common)
    return io.String.Input(f.name, default="", placeholder=meta["metavar"], **common)


def _unset_number(f: Field[Any]) -> Any:
    """Return what stands for None: 0 where that is no value of the field, else one less than its lowest."""
    return 0 if f.metadata["low"] > 0 else f.metadata["low"] - 1


def _value(f: Field[Any], kind: type, values: tuple[str, ...], chosen: Any) -> Any:
    if f.default is not None:
        return chosen
    if values:
        return None if chosen == UNSET else chosen
    if kind in (int, float):
        return None if chosen <= _unset_number(f) else chosen
    text = chosen.strip()
    if get_origin(kind) is tuple and text:
        return tuple(float(part) for part in text.split(","))
    return text or None
