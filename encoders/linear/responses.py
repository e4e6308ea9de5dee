"""Responses read block by block, wherever they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .matrix import parts


class Responses:
    """Responses (stimulus, unit) in memory, in a memory map, in an HDF5 dataset or in a Recording.

    Parameters
    ----------
    Y : ndarray, memory map, h5py.Dataset or Recording
        Anything with a shape that gives columns by ``Y[:, start:stop]``, or units by ``Y.read(units=...)``.
    """

    def __init__(self, Y: Any):
        self._recording = Y if hasattr(Y, "presentations") else None
        self._source = Y.responses if self._recording is not None else Y
        shape = tuple(self._source.shape)
        if len(shape) != 2:
            what = "one unit is Y[:][:, None]" if len(shape) == 1 else "average over time first"
            raise ValueError(f"Y has shape {shape}; expected (stimulus, unit): {what}")
        if shape[1] == 0:
            raise ValueError(f"Y has shape {shape}, which is no unit at all; expected at least one")
        self.n, self.v = int(shape[0]), int(shape[1])

    def read(self, part: slice) -> np.ndarray:
        """Some columns in memory."""
        if self._recording is not None:
            return np.asarray(self._recording.read(units=part))
        # A copy of a memory map is what reads it; a view would leave that to whoever looks first.
        return np.array(self._source[:, part]) if self.on_disk else self._source[:, part]

    @property
    def on_disk(self) -> bool:
        """Whether reading takes time of its own."""
        return (
            self._recording is not None
            or not isinstance(self._source, np.ndarray)
            or isinstance(self._source, np.memmap)
        )

    @property
    def stride(self) -> int:
        """Columns that are stored together, so that half of them would be read twice."""
        chunks = getattr(self._source, "chunks", None)
        return int(chunks[1]) if chunks else 1

    def slices(self, width: int) -> list[slice]:
        """Blocks of columns, of whole chunks where they are wide enough."""
        stride = self.stride
        return list(parts(self.v, max(width // stride, 1) * stride if width >= stride else width))

    def blocks(self, width: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Columns and what they hold, the next ones read while the last are worked on where they are on disk."""
        if not self.on_disk:
            for part in self.slices(width):
                yield part, self.read(part)
            return
        reads = self.slices(max(width, self.stride))  # whole chunks, which are taken apart in memory
        with ThreadPoolExecutor(1) as reader:
            coming: Future[np.ndarray] = reader.submit(self.read, reads[0])
            for i, whole in enumerate(reads):
                values = coming.result()
                if i + 1 < len(reads):
                    coming = reader.submit(self.read, reads[i + 1])
                for part in parts(values.shape[1], width):
                    yield slice(whole.start + part.start, whole.start + part.stop), values[:, part]


@dataclass(frozen=True)
class Units:
    """The units of a block that can be fitted.

    Attributes
    ----------
    columns : ndarray of int
        Of Y.
    Y : Tensor of float64, shape (row, unit)
        Less the mean over all rows, with an intercept, and divided by `size`. Predictions are linear in the
        responses, so that what is taken out before a fold is known to no fold; it keeps responses in volt or tesla
        inside the range of float32.
    mean, size : Tensor of float64, shape (unit,)
    """

    columns: np.ndarray
    Y: Tensor
    mean: Tensor
    size: Tensor

    def only(self, chosen: np.ndarray, columns: np.ndarray) -> Units:
        """Some of the units, under other numbers."""
        return Units(columns, self.Y[:, chosen], self.mean[chosen], self.size[chosen])

    @staticmethod
    def joined(some: Sequence[Units]) -> Units:
        """Units side by side."""
        columns = np.concatenate([one.columns for one in some])
        Y, mean, size = (torch.cat([getattr(one, name) for one in some], -1) for name in ("Y", "mean", "size"))
        return Units(columns, Y, mean, size)


def make_units(values: np.ndarray, start: int, order: np.ndarray, centre: bool, device: torch.device) -> Units:
    """The columns of `values` (row, unit) without NaN, rows in `order`; `start` is the number of the first.

    Raises
    ------
    ValueError
        If a column holds infinite values.
    """
    chosen, columns = values, np.arange(values.shape[1])
    ordered = values[order]
    if ordered.dtype != np.float32:  # which converts faster on the device; others may be no kind that it knows
        ordered = ordered.astype(np.float64, copy=False)
    Y = torch.from_numpy(ordered).to(device).double()
    mean = Y.mean(0)
    suspect = torch.nonzero(~torch.isfinite(mean))[:, 0].tolist()  # as a mean is where any of its values is not finite
    if suspect:
        for column in suspect:
            if np.isinf(values[:, column]).any():
                raise ValueError(
                    f"Y contains infinity in unit {start + column}; leave the unit out, or mark by NaN what is missing"
                )
        missing = [column for column in suspect if np.isnan(values[:, column]).any()]
        columns = np.setdiff1d(columns, missing)
        chosen, Y, mean = values[:, columns], Y[:, columns], mean[columns]
    if centre:
        Y -= mean
    else:
        mean = torch.zeros_like(mean)
    size = torch.linalg.vector_norm(Y, dim=0) / len(Y) ** 0.5
    for column in torch.nonzero(size <= 1e-9 * mean.abs())[:, 0].tolist():
        if (chosen[:, column] == chosen[0, column]).all():  # constant: centred, it is zero without rounding
            mean[column], size[column], Y[:, column] = float(chosen[0, column]), 0.0, 0.0
    size = torch.where(size > 0, size, 1.0)
    Y /= size
    return Units(start + columns, Y, mean, size)
