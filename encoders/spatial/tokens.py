"""Spatial tokens of stimuli, wherever they are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..products import product
from .store import TokenStore

Grid = tuple[int, int]
CHUNK = 2**25  # bytes of tokens in float32 that are read at a time


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens (stimulus, token, feature) of an array, a memory map, a dataset of h5py or a store; nothing is copied.

    Attributes
    ----------
    array : array-like, shape (stimulus, token, feature) or (stimulus, token * feature)
        float16, float32 or float64; tokens row by row of the grid.
    n, n_tokens, n_features : int
    grid : (height, width) or None
    """

    array: Any
    n: int
    n_tokens: int
    n_features: int
    grid: Grid | None

    @property
    def dtype(self) -> np.dtype:
        """float64 for tokens in float64, else float32: what moments and pooled tokens are given in."""
        return np.dtype(np.float64 if np.dtype(self.array.dtype) == np.float64 else np.float32)

    def read(self, rows: Any) -> np.ndarray:
        """Rows as an array (row, token, feature) of their own, in the dtype they are kept in, unchecked.

        Parameters
        ----------
        rows : array of int, shape (row,)
            In any order; what is on disk is read in ascending order.
        """
        rows = np.asarray(rows)
        if isinstance(self.array, np.ndarray) and not isinstance(self.array, np.memmap):
            found = self.array[rows]
        else:
            ascending, back = np.unique(rows, return_inverse=True)
            if ascending[-1] - ascending[0] == len(ascending) - 1:  # neighbours are read at one go
                found = np.array(self.array[int(ascending[0]) : int(ascending[-1]) + 1])
            else:
                found = np.asarray(self.array[ascending])
            if not np.array_equal(ascending, rows):
                found = found[back]
        return found.reshape(len(rows), self.n_tokens, self.n_features)

    def batch(
        self,
        rows: Any,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        out: Tensor | None = None,
    ) -> Tensor:
        """Rows as a tensor (row, token, feature) of their own; cast on the device.

        Parameters
        ----------
        rows : array of int, shape (row,)
        device, dtype
            Of the tensor.
        out : Tensor or None
            What is filled and given back, in place of `device` and `dtype`.

        Raises
        ------
        ValueError
            If they hold NaN or infinite values, also such as are beyond the range of `dtype`.
        """
        raw = torch.from_numpy(self.read(rows))
        x = raw.to(device).to(dtype) if out is None else out.copy_(raw)
        if not bool(x.sum(dtype=torch.promote_types(x.dtype, torch.float32)).isfinite()):
            wrong = ~x.isfinite().flatten(1).all(1)
            if bool(wrong.any()):
                raise ValueError(
                    f"X contains NaN or infinity: {int(wrong.sum())} of the {len(x)} stimuli read hold some, "
                    f"stimulus {np.asarray(rows)[int(wrong.int().argmax())]} the first; leave them out"
                )
        return x

    def chunks(self, rows: Any, size: int = CHUNK) -> Iterator[np.ndarray]:
        """Row numbers, as many at a time as fill `size` bytes in float32."""
        rows = np.asarray(rows)
        step = max(size // (4 * self.n_tokens * self.n_features), 1)
        for start in range(0, len(rows), step):
            yield rows[start : start + step]

    def moments(self, rows: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each feature over rows and tokens.

        Parameters
        ----------
        rows : array of int, or None for all

        Returns
        -------
        mean, std : ndarray of float64, shape (feature,)
            Computed in float64 in one pass; the standard deviation of a constant feature is given as 1.
        """
        rows = np.arange(self.n) if rows is None else np.asarray(rows)
        pivot = self.batch(rows[:1], dtype=torch.float64)[0, 0]
        total, squares = torch.zeros_like(pivot), torch.zeros_like(pivot)
        for chunk in self.chunks(rows, CHUNK // 4):
            x = self.batch(chunk, dtype=torch.float64).sub_(pivot).flatten(0, 1)
            total += x.sum(0)
            squares += x.square_().sum(0)
        count = len(rows) * self.n_tokens
        shift = total / count
        variance = squares / count - shift**2
        std = torch.where(variance > 1e-13 * squares / count, variance.clamp(min=0).sqrt(), 1.0)
        return (pivot + shift).numpy(), std.numpy()

    def mean_tokens(self, weights: np.ndarray, rows: Any = None) -> np.ndarray:
        """Weighted sums of tokens, ``weights @ tokens``: pooled features where weights sum to one.

        Parameters
        ----------
        weights : ndarray, shape (field, token)
        rows : array of int, or None for all

        Returns
        -------
        ndarray, shape (row, field, feature)
            In `dtype`.
        """
        rows = np.arange(self.n) if rows is None else np.asarray(rows)
        dtype = torch.float64 if self.dtype == np.float64 else torch.float32
        W = torch.from_numpy(np.ascontiguousarray(weights)).to(dtype)
        pooled = np.empty((len(rows), len(W), self.n_features), self.dtype)
        done = 0
        for chunk in self.chunks(rows):
            x = self.batch(chunk, dtype=dtype)
            side_by_side = x.transpose(0, 1).reshape(self.n_tokens, -1)  # one product for all rows
            out = product(W, side_by_side).view(len(W), len(chunk), self.n_features)
            pooled[done : done + len(chunk)] = out.transpose(0, 1).numpy()
            done += len(chunk)
        return pooled


def checked_grid(grid: Any) -> Grid | None:
    """Height and width of a grid of tokens, or None.

    Raises
    ------
    ValueError
        If it is neither None nor a pair of whole numbers above zero.
    """
    if grid is None:
        return None
    try:
        pair = tuple(int(side) for side in grid)
        whole = all(side == given for side, given in zip(pair, grid, strict=True))
    except (TypeError, ValueError) as error:
        raise ValueError(f"grid={grid!r}: expected a pair (height, width) of whole numbers, or None") from error
    if len(pair) != 2 or min(pair) < 1 or not whole:
        raise ValueError(f"grid={grid!r}: expected a pair (height, width) of whole numbers above zero, or None")
    return pair[0], pair[1]


def checked_tokens(
    X: Any, grid: Any = None, *, needs_grid: str | None = None, fitted: tuple[int, int] | None = None
) -> Tokens:
    """Tokens of stimuli, checked but for their values, which are checked as they are read.

    Parameters
    ----------
    X : array, memory map, h5py.Dataset or TokenStore
        Shape (stimulus, token, feature); or (stimulus, token * feature), which is cut into tokens by `grid` or
        `fitted`, and is one token without them.
    grid : (height, width) or None
        Places of the tokens, row by row from the top left. A store brings its own.
    needs_grid : str or None
        What needs places, as the message says it: "a Gaussian field", "position='sincos'".
    fitted : (token, feature) or None
        What a fit was made with, which X has to agree with.

    Returns
    -------
    Tokens

    Raises
    ------
    ValueError
        If dimensions, dtype or grid do not fit together.
    """
    grid = checked_grid(grid)
    if isinstance(X, TokenStore):
        if grid is not None and X.grid is not None and grid != X.grid:
            raise ValueError(f"grid={grid}, and the store of tokens holds a grid of {X.grid}; leave grid out")
        X, grid = X.array, grid or X.grid
    if not (hasattr(X, "shape") and hasattr(X, "dtype")):
        X = np.asarray(X)
    shape = tuple(X.shape)
    if len(shape) not in (2, 3):
        raise ValueError(
            f"X has {len(shape)} dimensions (shape {shape}); expected (stimulus, token, feature), "
            "or (stimulus, token * feature)"
        )
    if np.dtype(X.dtype) not in (np.float16, np.float32, np.float64):
        raise ValueError(f"X holds {X.dtype}; expected float16, float32 or float64: cast it with X.astype('float32')")
    if 0 in shape:
        raise ValueError(f"X has shape {shape}, which holds nothing; expected at least one stimulus, token and feature")
    if len(shape) == 3:
        n, n_tokens, n_features = shape
        if grid is not None and grid[0] * grid[1] != n_tokens:
            raise ValueError(
                f"X has {n_tokens} tokens (shape {shape}), and grid={grid} has {grid[0] * grid[1]} places; "
                "pass grid=(height, width) with height*width the number of tokens"
            )
    else:
        n, columns = shape
        if grid is not None:
            n_tokens = grid[0] * grid[1]
        elif fitted is not None and columns == fitted[0] * fitted[1]:
            n_tokens = fitted[0]
        else:
            n_tokens, grid = 1, (1, 1)
        if columns % n_tokens:
            raise ValueError(
                f"X has {columns} columns (shape {shape}), which are no whole number of features at each of the "
                f"{n_tokens} places of grid={grid}; pass the grid that the tokens were flattened from"
            )
        n_features = columns // n_tokens
    if fitted is not None and (n_tokens, n_features) != tuple(fitted):
        raise ValueError(
            f"X has {n_tokens} tokens of {n_features} features (shape {shape}); the fit had {fitted[0]} tokens of "
            f"{fitted[1]} features"
        )
    if needs_grid is not None and grid is None:
        raise ValueError(
            f"tokens of shape {shape} come without a grid: {needs_grid} needs places; pass grid=(height, width) with "
            f"height*width = {n_tokens}, or take what reads no places, such as position='none'"
        )
    return Tokens(X, n, n_tokens, n_features, grid)
