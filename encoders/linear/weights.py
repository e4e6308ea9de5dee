"""Where weights are kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.storage import atomic
from .assemble import Store


@contextmanager
def weight_store(where: Any) -> Iterator[Store | None]:
    """What makes the array of weights: None for "memory" and "none", else a ``.npy`` file, in place once it is whole.

    Raises
    ------
    ValueError
        If `where` is neither of the two names nor a path that ends in .npy.
    """
    if where in ("memory", "none"):
        yield None
        return
    if not isinstance(where, str | Path) or Path(where).suffix != ".npy":
        raise ValueError(f"weights={where!r}: expected 'memory', 'none' or a path that ends in .npy")
    with atomic(Path(where)) as path:
        # The weights of a unit lie side by side, as blocks of units bring them.
        yield lambda shape, dtype: np.lib.format.open_memmap(path, "w+", dtype, shape, fortran_order=True)


def kept_weights(where: Any, weights: np.ndarray | None) -> np.ndarray | None:
    """Weights as they are kept: those in a file opened again where it is now, and read only."""
    if weights is None or where in ("memory", "none"):
        return weights
    return np.load(where, mmap_mode="r")
