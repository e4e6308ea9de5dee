"""From RDMs to pictures and maps: ranks, classical scaling and its alignment."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from ...datasets.rdms import RDMs


def even_rows(n: int, most: int) -> np.ndarray:
    """At most `most` of `n` rows, at even distances."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).round().astype(int)


def evenly(rdms: RDMs, most: int) -> RDMs:
    """The RDMs over at most `most` of their stimuli, taken at even distances."""
    return rdms.reorder([rdms.stimulus_ids[row] for row in even_rows(rdms.n_stimuli, most)])


def ranked(rdm: RDMs) -> np.ndarray:
    """Matrix of one RDM with its values as ranks from 0 to 1, ties at their mean; NaN stays NaN, the diagonal is 0."""
    vector = np.asarray(rdm.vectors[0], float)
    known = np.isfinite(vector)
    ranks = np.full(len(vector), np.nan)
    if known.any():
        ranks[known] = (rankdata(vector[known]) - 1) / max(known.sum() - 1, 1)
    return RDMs(ranks, rdm.stimulus_ids).matrices[0]


def classical_mds(rdm: RDMs) -> tuple[np.ndarray, float]:
    """Two dimensions whose distances come closest to those of one RDM, in Torgerson's sense.

    The eigenvectors of the doubly centred squared dissimilarities; signs are fixed, so that the same RDM gives the
    same map. Stimuli with unknown dissimilarities are NaN.

    Returns
    -------
    ndarray of shape (stimulus, 2), and float
        Places, and the share of the positive eigenvalues that the two dimensions hold.

    References
    ----------
    Torgerson (1952), Psychometrika 17:401-419.
    """
    distances = np.asarray(rdm.matrices[0], float)
    unknown = np.isnan(distances)
    while unknown.any():  # leave out the stimulus with the most gaps until there are none
        worst = unknown.sum(0).argmax()
        distances[worst], distances[:, worst] = 0, 0
        distances[worst, worst] = np.inf
        unknown = np.isnan(distances)
    kept = np.isfinite(np.diag(distances))
    squared = distances[np.ix_(kept, kept)] ** 2
    places = np.full((len(kept), 2), np.nan)
    if kept.sum() < 3:
        return places, float("nan")
    centred = squared - squared.mean(0) - squared.mean(1)[:, None] + squared.mean()
    values, vectors = np.linalg.eigh(-0.5 * centred)
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    first = vectors[:, :2] * np.sqrt(values[:2])
    places[kept] = first * np.sign(first[np.abs(first).argmax(0), [0, 1]] + 1e-300)
    return places, float(values[:2].sum() / values.sum()) if values.sum() > 0 else float("nan")


def onto(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """`points` rotated and mirrored to lie closest to `reference` (orthogonal Procrustes), centred and as wide."""
    points, reference = points - points.mean(0), reference - reference.mean(0)
    left, _, right = np.linalg.svd(points.T @ reference)
    width = np.linalg.norm(points)
    return points @ (left @ right) * (np.linalg.norm(reference) / width if width > 0 else 1.0)
