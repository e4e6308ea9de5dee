"""Shared nearest neighbours."""

from __future__ import annotations

import numpy as np

from ...datasets.errors import unknown
from .cards import SimilarityCard, centred, measure

NEIGHBOURS = ("cosine", "euclidean")

# Rows of the n x n table of closeness that are in memory at once.
ROWS = 1024


@measure(
    SimilarityCard(
        name="mutual-knn",
        title="Mutual k nearest neighbours",
        formula="mean over stimuli of |N_X(i) and N_Y(i)| / k, N(i) the k stimuli with the largest inner product with "
        "i after every pattern is scaled to length 1, i itself left out; k = 10; chance is k / (n - 1)",
        citation="Huh et al. (2024), ICML, arXiv 2405.07987",
        low=0.0,
        high=1.0,
        larger_is_more_similar=True,
        symmetric=True,
        metric=True,
        distance="one-minus",
        biased=False,
        invariances=frozenset({"orthogonal", "pattern-scaling"}),
        fewest_stimuli=12,
        chance=lambda n_stimuli: 10 / (n_stimuli - 1),
    )
)
def mutual_knn(X: np.ndarray, Y: np.ndarray, k: int = 10, neighbours: str = "cosine") -> float:
    """Share of the k nearest neighbours that a stimulus has in both representations, averaged over stimuli.

    Parameters
    ----------
    X, Y : arrays of shape (stimulus, feature)
    k : int
        Neighbours, fewer than the other stimuli.
    neighbours : {"cosine", "euclidean"}
        Nearest by inner product of patterns scaled to length 1 (patterns of zeros are equally near to all), or
        by Euclidean distance. Inner products of patterns as they are would favour the longest ones.

    Notes
    -----
    Where stimuli tie for the last places, each counts with its chance of being drawn, on both sides on their own:
    the order of the stimuli does not matter, and ties alone give chance. Only without ties is a representation at
    1 with itself.
    """
    if neighbours not in NEIGHBOURS:
        raise ValueError(unknown("neighbours", neighbours, NEIGHBOURS))
    n = len(X)
    if not 1 <= k < n - 1:
        raise ValueError(f"k={k!r}; expected at least 1 and fewer than the {n - 1} other stimuli.")
    sides = [_positions(side, neighbours) for side in (X, Y)]
    shared = 0.0
    for start in range(0, n, ROWS):
        rows = np.arange(start, min(start + ROWS, n))
        first, second = (_membership(*side, rows, k) for side in sides)
        shared += float(np.vdot(first, second))
    return shared / (n * k)


def _positions(X: np.ndarray, neighbours: str) -> tuple[np.ndarray, np.ndarray]:
    """Points and offsets such that ``points @ points.T - offsets`` ranks the neighbours of every row."""
    if neighbours == "euclidean":
        X = centred(X)
        return X, np.einsum("ij,ij->i", X, X) / 2
    length = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(length > 0, length, 1.0), np.zeros(len(X))


def _membership(points: np.ndarray, offsets: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    """Weight of every stimulus among the k nearest of `rows`: 1 inside, a share of the last places for ties."""
    close = points[rows] @ points.T - offsets
    close[np.arange(len(rows)), rows] = -np.inf
    last = np.partition(close, -k, axis=1)[:, -k, None]
    inside, tied = close > last, close == last
    places = k - inside.sum(1, keepdims=True)
    return inside + tied * (places / tied.sum(1, keepdims=True))
