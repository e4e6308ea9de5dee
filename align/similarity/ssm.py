"""Similarity of similarity matrices: RSA as the mouse literature computes it."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from ...datasets.errors import unknown
from .cards import SimilarityCard, measure, undefined

DIAGONALS = ("out", "in")


@measure(
    SimilarityCard(
        name="ssm",
        title="Similarity of similarity matrices (SSM)",
        formula="Spearman correlation of the matrices of Pearson correlations between the patterns of all pairs of "
        "stimuli, diagonal left out",
        citation="Shi, Shea-Brown & Buice (2019), NeurIPS 32:5764",
        low=-1.0,
        high=1.0,
        larger_is_more_similar=True,
        symmetric=True,
        metric=True,
        distance="arccos",
        biased=False,
        invariances=frozenset({"permutation", "pattern-scaling", "shift-all"}),
    )
)
def ssm(X: np.ndarray, Y: np.ndarray, diagonal: str = "out") -> float:
    """Spearman correlation of two similarity matrices of the same stimuli.

    Parameters
    ----------
    X, Y : arrays of shape (stimulus, feature), two features or more
    diagonal : {"out", "in"}
        ``"in"`` ranks the full matrices: every pair twice, and the ones on the diagonals, which agree whatever the
        data. A script of the paper's group does so. It lifts the value of unlike representations.
    """
    if diagonal not in DIAGONALS:
        raise ValueError(unknown("diagonal", diagonal, DIAGONALS))
    rows = []
    for name, side in (("X", X), ("Y", Y)):
        constant = int((np.ptp(side, axis=1) == 0).sum())
        if constant:
            return undefined("ssm", f"{constant} patterns of {name} are constant over features and have no correlation")
        patterns = side - side.mean(1, keepdims=True)
        patterns /= np.linalg.norm(patterns, axis=1, keepdims=True)
        matrix = patterns @ patterns.T
        np.fill_diagonal(matrix, 1.0)
        rows.append(matrix[np.triu_indices(len(matrix), 1)] if diagonal == "out" else matrix.ravel())
    ranks = [rankdata(row) for row in rows]
    first, second = (row - row.mean() for row in ranks)
    norm = np.linalg.norm(first) * np.linalg.norm(second)
    if norm == 0:
        return undefined("ssm", "all pairs of stimuli are equally similar")
    return float(first @ second / norm)
