"""Preset files: settings that `lipstream tune` found for a model, as TOML that `sync --preset` takes. Imports no torch.

```
format = 1
model = "tiny"

[sync]                # fields of SyncSettings
detect_every = 25

[runtime]             # fields of RuntimeSettings
precision = "bf16"

[measured]            # on the clip and the machine that it was made on; not read
```
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from lipstream.errors import InputError, SettingsError
from lipstream.settings import RuntimeSettings, SyncSettings, check_field_name

FORMAT = 1

_RECORDS = {"sync": SyncSettings, "runtime": RuntimeSettings}


@dataclass(frozen=True)
class PresetFile:
    """A preset for one model. sync, runtime: the fields that it decides, by name. measured: what it was measured at."""

    model: str
    sync: Mapping[str, Any]
    runtime: Mapping[str, Any]
    measured: Mapping[str, Any] = field(default_factory=dict)

    def to_toml(self) -> bytes:
        """Return the file's content."""
        lines = ["# Settings for one model, found by `lipstream tune`; `lipstream sync --preset` takes this file."]
        lines += [f"format = {FORMAT}", f"model = {_value(self.model)}"]
        for name in ("sync", "runtime", "measured"):
            lines += ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in getattr(self, name).items())]
        return ("\n".join(lines) + "\n").encode()


def read_preset(path: Path) -> PresetFile:
    """Read a preset file. Raises InputError where it is not readable, SettingsError where it is no preset."""
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", file=path, fix="give the path of a preset file") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"not valid TOML: {error}", file=path, fix="correct the syntax") from error
    if content.get("format") != FORMAT:
        raise SettingsError(
            f"format {content.get('format')!r} is not known; this lipstream reads {FORMAT}",
            file=path,
            fix="give a file that `lipstream tune` wrote",
        )
    for name in content:
        if name not in ("format", "model", "sync", "runtime", "measured"):
            raise SettingsError(f"unknown key {name!r}", file=path, fix="use model, sync and runtime")
    model, tables = content.get("model"), [content.get(name, {}) for name in ("sync", "runtime", "measured")]
    if not isinstance(model, str) or not all(isinstance(table, dict) for table in tables):
        raise SettingsError("model must be a text, and sync and runtime tables", file=path)
    preset = PresetFile(model, *tables)
    try:
        for name, record in _RECORDS.items():
            for key in getattr(preset, name):
                check_field_name(record, key)
            record(**getattr(preset, name))
    except SettingsError as error:
        raise SettingsError(error.message, file=path, fix=error.fix) from error
    return preset


def _value(value: Any) -> str:
    """Return a value as TOML: text, numbers, truth and lists are written as in JSON."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)
