"""What a Recording and a TimeSeries share: an array with units along its second axis, in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from . import storage
from .selection import positions


class Responses:
    """Base of the two kinds of recordings; reads rows and units, and pickles an array on disk by its path."""

    responses: Any
    units: pd.DataFrame

    @property
    def n_units(self) -> int:
        return int(self.responses.shape[1])

    @property
    def _dtype(self) -> type:
        return np.float64 if self.responses.dtype == np.float64 else np.float32

    def _read(self, units: Any, rows: Any, name: str) -> np.ndarray:
        taken = positions(rows, int(self.responses.shape[0]), name)
        columns = positions(units, self.n_units, "units")
        return storage.read_block(self.responses, taken, columns).astype(self._dtype, copy=False)

    def unit_blocks(self, size: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Pass through the units in blocks of at most `size`: (slice of units, responses)."""
        if size < 1:
            raise ValueError(f"size={size!r} units per block; expected at least 1.")
        for start in range(0, self.n_units, size):
            block = slice(start, min(start + size, self.n_units))
            yield block, self._read(block, None, "rows")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"responses": storage.portable(self.responses)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.responses, storage.OnDisk):
            self.responses = self.responses.open()
