"""Random projections that keep inner products: a count-sketch in runs of memory, and a sparse random matrix."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Values of which copies are made at a time: on a CPU few, so that the same memory serves again.
_AT_ONCE = {"cpu": 2**21, "cuda": 2**25}


def in_order(output: Tensor) -> Tensor:
    """A layer's output with its channels last: (stimulus, place or token, feature), or (stimulus, feature).

    Parameters
    ----------
    output : Tensor
        (stimulus, feature), (stimulus, token, feature), (stimulus, channel, height, width) or
        (stimulus, channel, time, height, width), whose places come in the order time, height, width.

    Returns
    -------
    Tensor
        A view wherever the layout in memory allows one.
    """
    if output.ndim in (4, 5):
        return output.flatten(2).transpose(1, 2)
    return output if output.ndim == 3 else output.flatten(1)


def project(output: Tensor, size: int, seed: int = 0, centre: bool = True, method: str = "sketch") -> Tensor:
    """Rows of a layer's output projected to `size` random directions, of which inner products are unbiased.

    Parameters
    ----------
    output : Tensor, shape (stimulus, ...)
        As `in_order` reads it; all that belongs to one stimulus is one row of D values.
    size : int
        Values k that are kept of a row. A row of no more than k values is kept as it is, but for its mean.
    seed : int
        The projection is a function of D, k and the seed alone: not of the device, the batch or the library.
    centre : bool
        Subtract the mean of each row first. The projection of a row does not keep its mean, so that without this
        Pearson's correlation of two projected rows estimates the cosine of the rows, not their correlation; with it
        both cosine and correlation of projected rows estimate the correlation of the rows.
    method : {"sketch", "sparse"}
        `count_sketch` or `sparse_projection`.

    Returns
    -------
    Tensor, shape (stimulus, min(D, k))
        In float32, or float64 if the output is. An inner product of two rows a and b errs by about |a| |b| / sqrt(k).
    """
    output = output if output.is_floating_point() else output.float()
    project_rows = {"sketch": count_sketch, "sparse": sparse_projection}[method]
    n, width = len(output), output.shape[1:].numel()
    at_once = n * width if _stays(output) else _AT_ONCE.get(output.device.type, 2**25)
    step = max(1, at_once // max(1, width))
    pieces = []
    for start in range(0, max(1, n), step):
        rows = in_order(output[start : start + step]).flatten(1)
        mean = rows.mean(1, keepdim=True, dtype=_sums(rows)) if centre else None
        if width <= size:
            kept = rows.to(_sums(rows), copy=True)
            pieces.append(kept if mean is None else kept.sub_(mean))
            continue
        kept = project_rows(rows, size, seed)
        # The projection is linear, so that the mean is taken off afterwards, without another pass over the rows.
        pieces.append(kept if mean is None else kept.addmm_(mean, _of_ones(width, size, seed, method, kept), alpha=-1))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def count_sketch(rows: Tensor, size: int, seed: int = 0) -> Tensor:
    """Balanced count-sketch: y[(i + t_j) mod k] is the sum over j of s[j k + i] x[j k + i].

    A row is cut into blocks of k values; each value gets a random sign s, each block is rolled by a random shift t,
    and the blocks are added. Two values of one block never meet, two of different blocks do with probability 1 / k,
    so that inner products are unbiased with a variance of at most that of a count-sketch with free hashes (Charikar
    et al. 2002; Weinberger et al. 2009), at the rate of reading memory in order and without a matrix.

    Parameters
    ----------
    rows : Tensor, shape (stimulus, D)
    size : int
        k; at most D.
    seed : int

    Returns
    -------
    Tensor, shape (stimulus, k)
    """
    return (_by_blocks if rows.device.type == "cpu" else _by_gather)(rows, size, seed)


def _by_blocks(rows: Tensor, size: int, seed: int) -> Tensor:
    """Block after block, each read once in the order of memory and added in two pieces."""
    width = rows.shape[1]
    kept = rows.new_zeros(len(rows), size, dtype=_sums(rows))
    sign = _signs(width, seed, rows.device, kept.dtype)
    for start, shift in zip(range(0, width, size), shifts(-(-width // size), size, seed).tolist(), strict=True):
        stop = min(start + size, width)
        turn = min(start + size - shift, stop)  # from here on the block goes on at the start of the sketch
        for first, last, at in ((start, turn, shift), (turn, stop, 0)):
            if first < last:
                values = rows[:, first:last].to(kept.dtype)
                kept[:, at : at + last - first].addcmul_(values, sign[first:last])
    return kept


def _by_gather(rows: Tensor, size: int, seed: int) -> Tensor:
    """All blocks at once, for devices on which many small steps cost more than a copy."""
    source, sign = _gather(rows.shape[1], size, seed, rows.device, rows.dtype)
    return rows.index_select(1, source).mul_(sign).view(len(rows), -1, size).sum(1, dtype=_sums(rows))


def sparse_projection(rows: Tensor, size: int, seed: int = 0) -> Tensor:
    """Very sparse random projection (Li, Hastie & Church 2006): each direction reads about sqrt(D) values.

    A direction reads one value, at a random place and with a random sign, of each of sqrt(D) equal stretches of the
    row. It is as exact as `count_sketch` and slower; it is here because other packages project this way.

    Parameters
    ----------
    rows : Tensor, shape (stimulus, D)
    size : int
        Number of directions.
    seed : int

    Returns
    -------
    Tensor, shape (stimulus, size)
    """
    columns, values = _directions(rows.shape[1], size, seed, rows.device, _sums(rows))
    return F.embedding_bag(columns, rows.to(values.dtype).T, per_sample_weights=values, mode="sum").T.contiguous()


def signs(width: int, seed: int = 0) -> np.ndarray:
    """Random signs, int8 of shape (width,): bits of a Philox generator, which no library may change."""
    words = np.random.Philox(key=[seed, 0]).random_raw(-(-width // 64))
    bits = np.unpackbits(np.asarray(words).astype("<u8").view(np.uint8), count=width)
    return 1 - 2 * bits.astype(np.int8)


def shifts(blocks: int, size: int, seed: int = 0) -> np.ndarray:
    """How far each block of a count-sketch is rolled: int64 of shape (blocks,), from 0 to size - 1."""
    return (np.asarray(np.random.Philox(key=[seed, 1]).random_raw(blocks)) % np.uint64(size)).astype(np.int64)


def _channels_lie_last(output: Tensor) -> bool:
    return output.movedim(1, -1).is_contiguous()


def _stays(output: Tensor) -> bool:
    """Whether rows are read where they lie: on a CPU, unless their channels come before their places in memory."""
    return output.device.type == "cpu" and (output.ndim not in (4, 5) or _channels_lie_last(output))


def _sums(rows: Tensor) -> torch.dtype:
    """What sums are kept in."""
    return torch.float64 if rows.dtype == torch.float64 else torch.float32


@lru_cache(maxsize=32)
def _signs(width: int, seed: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(signs(width, seed)).to(device, dtype)


@lru_cache(maxsize=32)
def _gather(width: int, size: int, seed: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """For each block and each place of the sketch: which value of the row comes there, and with which sign."""
    blocks = -(-width // size)
    within = (np.arange(size) - shifts(blocks, size, seed)[:, None]) % size
    source = (np.arange(blocks)[:, None] * size + within).ravel()
    there = source < width  # the last block may be short
    sign = np.where(there, signs(width, seed)[np.where(there, source, 0)], 0)
    index = torch.from_numpy(np.where(there, source, 0))
    return index.to(device), torch.from_numpy(sign).to(device, dtype)


@lru_cache(maxsize=8)
def _directions(width: int, size: int, seed: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """For each direction: the values of a row that it reads, and their weights; both of shape (size, sqrt(D))."""
    edges = np.linspace(0, width, round(width**0.5) + 1).astype(np.int64)
    lengths = np.diff(edges)
    drawn = np.asarray(np.random.Philox(key=[seed, 2]).random_raw(size * len(lengths))).reshape(size, -1)
    columns = edges[:-1] + (drawn % lengths.astype(np.uint64)).astype(np.int64)
    weights = np.sqrt(lengths / size) * signs(columns.size, seed).reshape(columns.shape)
    return torch.from_numpy(columns).to(device), torch.from_numpy(weights).to(device, dtype)


@lru_cache(maxsize=32)
def _ones(width: int, size: int, seed: int, method: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    rows = torch.ones(1, width, dtype=torch.float64)
    kept = count_sketch(rows, size, seed) if method == "sketch" else sparse_projection(rows, size, seed)
    return kept.to(device, dtype)


def _of_ones(width: int, size: int, seed: int, method: str, like: Tensor) -> Tensor:
    """The projection of a row of ones, shape (1, size)."""
    return _ones(width, size, seed, method, like.device, like.dtype)
