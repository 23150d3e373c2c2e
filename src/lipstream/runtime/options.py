"""RuntimeSettings from keywords: typed for editors and type checkers, checked by name at run time."""

from __future__ import annotations

import difflib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from lipstream.errors import SettingsError
from lipstream.settings import DetectorName, Precision, Quantize, RuntimeSettings


class RuntimeFields(TypedDict, total=False):
    """The fields of RuntimeSettings, as keywords of `LipSync.load`."""

    device: str
    precision: Precision
    vae_precision: Precision | None
    audio_precision: Precision | None
    quantize: Quantize
    detector: DetectorName
    threads: int | None
    batch: int | Literal["auto"]
    compile: bool
    pruned: str | Path | None
    frame_memory_mb: int


def with_options(runtime: RuntimeSettings, options: dict[str, Any]) -> RuntimeSettings:
    """Return `runtime` with some fields replaced. Raises SettingsError for one that it does not have."""
    known = [field.name for field in fields(RuntimeSettings)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known)
            fix = f"did you mean {' or '.join(near)}" if near else f"use one of {', '.join(known)}"
            raise SettingsError(f"{name!r} is not a field of RuntimeSettings", fix=fix)
    return replace(runtime, **options)
