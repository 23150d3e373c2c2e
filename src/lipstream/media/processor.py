"""What the processor can do, as far as an encoder needs it."""

from __future__ import annotations

import functools
import importlib


@functools.cache
def has_avx512() -> bool:
    """Return whether numpy finds AVX-512 here."""
    for name in ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath"):  # numpy 2, numpy 1
        try:
            features = importlib.import_module(name).__cpu_features__
        except (ImportError, AttributeError):
            continue
        return any(has for feature, has in features.items() if feature.startswith("AVX512") or feature == "X86_V4")
    return False
