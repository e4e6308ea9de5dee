"""Features as the ridge engine reads them: sums and products over the rows that it names, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..products import product

Rows = slice | Tensor  # row numbers; a slice where they follow each other, because it copies nothing

_CELLS = 2**21  # values held in float64 at once: 16 MiB, which the next ones find warm


class FeatureMatrix(Protocol):
    """What the engine asks of features, so that delays need no delayed copy.

    Columns have had `offset` taken from them, which is any number near their values: the engine centres on the
    rows of each training set by itself, and only needs large offsets to be gone before products in float32.
    """

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def offset(self) -> Tensor: ...
    def gram(self, rows: Rows, mean: Tensor | None = None) -> Tensor: ...
    def kernel(self) -> Tensor: ...
    def sums(self, rows: Rows) -> Tensor: ...
    def squares(self, rows: Rows, mean: Tensor) -> Tensor: ...
    def varying(self, rows: Rows) -> Tensor: ...
    def cross(self, rows: Rows, Y: Tensor) -> Tensor: ...
    def project(self, rows: Rows, V: Tensor) -> Tensor: ...
    def combine(self, W: Tensor) -> Tensor: ...


def parts(n: int, width: int) -> Iterator[slice]:
    """Slices of at most `width` that cover ``range(n)``."""
    width = max(1, width)
    for start in range(0, n, width):
        yield slice(start, min(start + width, n))


def as_rows(numbers: np.ndarray, device: torch.device) -> Rows:
    """Row numbers as a slice where they follow each other."""
    if len(numbers) and np.array_equal(numbers, np.arange(numbers[0], numbers[0] + len(numbers))):
        return slice(int(numbers[0]), int(numbers[0]) + len(numbers))
    return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.int64)).to(device)


def add_outer(A: Tensor, total: Tensor) -> None:
    """Add A' A to the upper triangle of `total`, in blocks."""
    for part in parts(A.shape[1], 512):
        total[part, part.start :].addmm_(A[:, part].T, A[:, part.start :])


def mirrored(total: Tensor) -> Tensor:
    """`total`, its upper triangle written into its lower."""
    for part in parts(len(total), 512):
        corner = total[part, part].triu()
        total[part, part] = corner + corner.triu(1).T
        total[part.stop :, part] = total[part, part.stop :].T
    return total


class DenseFeatures:
    """Features in memory, (row, column), rows in the order that the folds like best.

    Parameters
    ----------
    X : ndarray of float32 or float64, shape (row, column)
    centre : bool
        Take an offset from each column, the median of some rows: near the data, whatever a few rows hold.
    device : torch.device
    order : ndarray of int, optional
        Rows of X in the order in which they are kept.
    """

    def __init__(self, X: np.ndarray, centre: bool, device: torch.device, order: np.ndarray | None = None):
        n, p = X.shape
        dtype = torch.float32 if X.dtype == np.float32 else torch.float64
        offset = torch.zeros(p, dtype=dtype, device=device)
        if centre:
            some = np.linspace(0, n - 1, min(n, 101)).astype(int)
            offset = torch.from_numpy(np.median(X[some], axis=0).astype(X.dtype)).to(device)
        self.offset = offset.double()
        self.X = torch.empty(n, p, dtype=dtype, device=device)
        for part in parts(n, _CELLS // max(p, 1)):
            given = np.array(X[part]) if order is None else X[order[part]]
            # The offset is a number of their own dtype, so that a difference is rounded once.
            torch.sub(torch.from_numpy(given).to(device), offset, out=self.X[part])

    @property
    def shape(self) -> tuple[int, int]:
        return self.X.shape[0], self.X.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.X.dtype

    @property
    def device(self) -> torch.device:
        return self.X.device

    def _double(self, rows: Rows) -> Iterator[Tensor]:
        """Some rows in float64, as many at a time as memory likes."""
        chosen = self.X[rows]
        for part in parts(len(chosen), _CELLS // max(self.shape[1], 1)):
            yield chosen[part].double()

    def gram(self, rows: Rows, mean: Tensor | None = None) -> Tensor:
        """Sum over rows of x x', or of (x - mean) (x - mean)', float64, shape (column, column)."""
        p = self.shape[1]
        total = torch.zeros(p, p, dtype=torch.float64, device=self.device)
        for F in self._double(rows):
            add_outer(F if mean is None else F - mean, total)
        return mirrored(total)

    def kernel(self, scale: Tensor | None = None) -> Tensor:
        """Inner products of all rows, float64, shape (row, row); columns divided by `scale` first."""
        n, p = self.shape
        total = torch.zeros(n, n, dtype=torch.float64, device=self.device)
        for part in parts(p, max(512, _CELLS // max(n, 1))):
            F = self.X[:, part].double()
            if scale is not None:
                F = F / scale[part]
            add_outer(F.T, total)
        return mirrored(total)

    def sums(self, rows: Rows) -> Tensor:
        """Sum of rows, float64, shape (column,)."""
        return self.X[rows].sum(0, dtype=torch.float64)

    def squares(self, rows: Rows, mean: Tensor) -> Tensor:
        """Sum over rows of squared distances from `mean`, float64, shape (column,)."""
        return torch.stack([(F - mean).square().sum(0) for F in self._double(rows)]).sum(0)

    def varying(self, rows: Rows) -> Tensor:
        """Which columns are not constant over these rows."""
        chosen = self.X[rows]
        return chosen.amin(0) != chosen.amax(0)

    def cross(self, rows: Rows, Y: Tensor) -> Tensor:
        """X' Y over some rows, in the dtype of X, shape (column, unit)."""
        return product(self.X[rows].T, Y)

    def project(self, rows: Rows, V: Tensor) -> Tensor:
        """X V for some rows, float64, shape (row, axis)."""
        return torch.cat([F @ V for F in self._double(rows)])

    def combine(self, W: Tensor) -> Tensor:
        """X' W over all rows, in the precision of W unless that would take over 512 MiB, shape (column, axis)."""
        dtype = W.dtype if self.shape[1] * W.shape[1] <= 2**26 else self.dtype
        result = torch.empty(self.shape[1], W.shape[1], dtype=dtype, device=self.device)
        for part in parts(self.shape[1], max(512, _CELLS // max(self.shape[0], 1))):
            result[part] = self.X[:, part].to(W.dtype).T @ W
        return result
