"""Import what an engine needs, or say which extra brings it."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

from lipstream.errors import SettingsError

_DISTRIBUTIONS = {
    "torch": ("torch",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "triton": ("tritonclient",),
}
_EXTRAS = {"onnxruntime": "onnx"}


def installed_engines() -> dict[str, str]:
    """Return the version of each engine's library, or how to install it."""
    return {name: _version(names, name) for name, names in _DISTRIBUTIONS.items()}


def _version(distributions: tuple[str, ...], engine: str) -> str:
    for name in distributions:
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"not installed: pip install 'lipstream[{_EXTRAS.get(engine, engine)}]'"


def needs(module: str, extra: str, purpose: str) -> Any:
    """Import `module`. Raises SettingsError that names the extra, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SettingsError(
            f"{purpose} needs {module}, which cannot be imported ({_first_line(error)})",
            fix=f"pip install 'lipstream[{extra}]'",
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
