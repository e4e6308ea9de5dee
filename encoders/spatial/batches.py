"""Batches of standardised tokens, on the device that trains on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from .tokens import Tokens

RESIDENT = 0.4  # share of a GPU's free memory that tokens may take


def row_batches(order: np.ndarray, size: int, fixed: bool = False) -> list[np.ndarray]:
    """Rows batch by batch, ascending within each.

    A last batch of one or two rows, too few for a correlation, joins the one before it; with `fixed`, every batch has
    `size` rows, and what is left over is left out.

    Parameters
    ----------
    order : ndarray of int
    size : int
    fixed : bool

    Returns
    -------
    list of ndarray of int
    """
    size = min(size, len(order))
    stops = list(range(size, len(order) + 1, size))
    if not fixed and stops[-1] < len(order):
        stops[len(stops) - (len(order) - stops[-1] < 3) :] = [len(order)]
    starts = [0, *stops[:-1]]
    return [np.sort(order[start:stop]) for start, stop in zip(starts, stops, strict=True)]


def epoch_order(rows: np.ndarray, seed: int, epoch: int, fixed: int | None = None) -> np.ndarray:
    """Rows in the order of an epoch, which depends on nothing but the seed and the number of the epoch.

    Parameters
    ----------
    rows : ndarray of int
    seed, epoch : int
    fixed : int or None
        Size of batches that leave out what does not fill one; rows that an epoch left out come first in the next.

    Returns
    -------
    ndarray of int, shape of `rows`
    """
    if fixed is None:
        return rows[np.random.default_rng([seed, epoch]).permutation(len(rows))]
    left: np.ndarray = rows[:0]
    for one in range(1, epoch + 1):
        drawn = rows[np.random.default_rng([seed, one]).permutation(len(rows))]
        order = np.concatenate([left, drawn[~np.isin(drawn, left)]])
        left = order[len(order) - len(order) % min(fixed, len(order)) :]
    return order


class Feed:
    """Standardised tokens batch by batch.

    On a CPU rows are read into one buffer, so that a batch is gone when the next is asked for. On a GPU they stay
    there in the dtype they are kept in where they fit; else the next batch is read while the last one is worked on.

    Parameters
    ----------
    tokens : Tokens
    standard : (mean, std)
        Tensors, shape (feature,).
    device : torch.device
    dtype : torch.dtype
        Of the batches; tokens are standardised in float32 before they are cast.
    """

    def __init__(
        self,
        tokens: Tokens,
        standard: tuple[Tensor, Tensor],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ):
        self.tokens, self.device, self.dtype = tokens, device, dtype
        mean, std = (values.to(device, torch.float32) for values in standard)
        self._mean, self._inverse = mean, 1 / std
        self._kept: dict[tuple[str, int], Tensor] = {}
        self._resident = self._load() if device.type == "cuda" else None

    def __call__(self, rows: np.ndarray) -> Tensor:
        """Standardised tokens of some rows, shape (row, token, feature)."""
        if self._resident is not None:
            return self._standardised(self._resident[torch.from_numpy(rows).to(self.device)].float())
        if self.device.type == "cuda":
            return self._standardised(self._pinned(rows).to(self.device, non_blocking=True))
        x = self.tokens.batch(rows, out=self._buffer("read", len(rows), torch.float32))
        return self._standardised(x)

    def each(self, batches: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """Batches in turn."""
        if self.device.type != "cuda" or self._resident is not None or len(batches) < 2:
            yield from (self(rows) for rows in batches)
            return
        with ThreadPoolExecutor(1) as reader:
            coming: Future[Tensor] = reader.submit(self._pinned, batches[0])
            for i in range(len(batches)):
                ready = coming.result()
                if i + 1 < len(batches):
                    coming = reader.submit(self._pinned, batches[i + 1])
                yield self._standardised(ready.to(self.device, non_blocking=True))

    def _pinned(self, rows: np.ndarray) -> Tensor:
        return self.tokens.batch(rows).pin_memory()

    def _standardised(self, x: Tensor) -> Tensor:
        x = x.sub_(self._mean).mul_(self._inverse)
        if self.dtype == torch.float32:
            return x
        if self.device.type == "cpu":
            return self._buffer("cast", len(x), self.dtype).copy_(x)
        return x.to(self.dtype)

    def _buffer(self, name: str, n: int, dtype: torch.dtype) -> Tensor:
        """Memory that is used again: fresh pages of a batch cost more than to fill them."""
        found = self._kept.get((name, n))
        if found is None:
            shape = (n, self.tokens.n_tokens, self.tokens.n_features)
            found = self._kept[name, n] = torch.empty(shape, dtype=dtype)
        return found

    def _load(self) -> Tensor | None:
        """All tokens on the GPU in the dtype they are kept in, or None where they do not fit."""
        tokens = self.tokens
        dtype = torch.float16 if np.dtype(tokens.array.dtype) == np.float16 else torch.float32
        free, _ = torch.cuda.mem_get_info(self.device)
        shape = (tokens.n, tokens.n_tokens, tokens.n_features)
        if dtype.itemsize * int(np.prod(shape)) > RESIDENT * free:
            return None
        resident = torch.empty(shape, dtype=dtype, device=self.device)
        done = 0
        for rows in tokens.chunks(np.arange(tokens.n)):
            resident[done : done + len(rows)] = tokens.batch(rows, self.device, dtype)
            done += len(rows)
        return resident
