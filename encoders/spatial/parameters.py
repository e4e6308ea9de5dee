"""Parameters of encoders: checked, and described for a checkpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .checkpoint import fingerprint


def require_whole(name: str, value: Any, least: int) -> None:
    """Refuse a parameter that is no whole number, or below the least."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(f"{name}={value!r}: expected a whole number, {least} or more")


def require_number(name: str, value: Any, zero: bool) -> None:
    """Refuse a parameter that is no finite number above zero, or of zero or more."""
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not number or not np.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name}={value!r}: expected a number {'of zero or more' if zero else 'above zero, or None'}")


def described(value: Any) -> str:
    """A parameter in a word that is the same for the same content."""
    if isinstance(value, pd.DataFrame | pd.Series):
        return hashlib.sha256(value.to_csv().encode()).hexdigest()[:16]
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return fingerprint([value])
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return str(value) if isinstance(value, Path) else repr(value)
