"""Import what an engine needs, or say which extra brings it."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from lipstream.errors import SettingsError


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
