"""Ranks of dissimilarities, many RDMs at once."""

from __future__ import annotations

import numpy as np

# Values ranked at a time: a block and its orders stay in the cache.
BLOCK = 1 << 16


def average_ranks(vectors: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties averaged, within every row.

    Parameters
    ----------
    vectors : array of shape (rdm, pair)
        Without NaN.

    Returns
    -------
    ndarray of shape (rdm, pair), float64
    """
    n, m = vectors.shape
    ranks = np.empty((n, m))
    step = max(1, BLOCK // max(m, 1))
    untied = np.arange(1.0, m + 1)
    for start in range(0, n, step):
        block = np.ascontiguousarray(vectors[start : start + step])
        flat = np.argsort(block, axis=1)
        flat += m * np.arange(len(block))[:, None]
        ascending = block.ravel()[flat]
        by_rank = np.tile(untied, (len(block), 1))
        for row in np.flatnonzero((ascending[:, 1:] == ascending[:, :-1]).any(1)):
            by_rank[row] = _midranks(ascending[row])
        ranks[start : start + step].ravel()[flat.ravel()] = by_rank.ravel()
    return ranks


def tie_starts(ascending: np.ndarray) -> np.ndarray:
    """Positions in a sorted vector at which a new value begins, and its length at the end."""
    changes = np.flatnonzero(ascending[1:] != ascending[:-1]) + 1
    return np.concatenate([[0], changes, [len(ascending)]])


def _midranks(ascending: np.ndarray) -> np.ndarray:
    starts = tie_starts(ascending)
    counts = np.diff(starts)
    return np.repeat(starts[:-1] + (counts + 1) / 2, counts)
