"""Import of libraries that take long, where they are used and by one thread at a time."""

from __future__ import annotations

import threading
from typing import Any

_IMPORTING = threading.Lock()


def import_diffusers() -> Any:
    """Return the library diffusers, whose import takes seconds.

    While it is imported it puts another module in its place; threads that wait for the import get the empty one.
    """
    with _IMPORTING:
        import diffusers
    return diffusers
