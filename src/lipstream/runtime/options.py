"""RuntimeSettings from keywords: typed for editors and type checkers, checked by name at run time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from lipstream.settings import DetectorName, EngineName, OnnxProvider, Precision, Quantize, RuntimeSettings, VaeName
from lipstream.settings_record import check_field_name


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
    engine: EngineName
    provider: OnnxProvider
    vae: VaeName
    triton_url: str | None
    frame_memory_mb: int
    c2pa_certificate: str | Path | None
    c2pa_key: str | Path | None
    no_c2pa: bool


def with_options(runtime: RuntimeSettings, options: dict[str, Any]) -> RuntimeSettings:
    """Return `runtime` with some fields replaced. Raises SettingsError for one that it does not have."""
    for name in options:
        check_field_name(RuntimeSettings, name)
    return replace(runtime, **options)
