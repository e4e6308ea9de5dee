"""The RDM most like all replicates, and most like all of them but one: where noise ceilings come from."""

from __future__ import annotations

import numpy as np

from .missing import same_pattern
from .ranks import average_ranks
from .whitening import whitened


def pool(vectors: np.ndarray, method: str, covariance: np.ndarray | None = None, kind: str = "best") -> np.ndarray:
    """One RDM for all replicates.

    Parameters
    ----------
    vectors : array of shape (rdm, pair)
        The replicates. A pair is pooled over those that know it.
    method : str
        The comparison, see `neuralign.align.compare.compare`.
    covariance : array of shape (stimulus,) or (stimulus, stimulus), optional
        As in `compare`.
    kind : {"best", "mean"}
        "mean": the mean RDM. "best": the RDM with the greatest mean similarity to the replicates, which is the mean of
        RDMs of unit norm: as they are ("cosine"), centred ("pearson") or whitened; of ranks ("spearman", "rho-a"). For
        the others it is close to the greatest: the mean of ranks ("tau-a", "tau-b"), of RDMs with kernels of equal
        trace ("bures"), and of RDMs as they are ("riemannian", where a model with less noise may surpass it).

    Returns
    -------
    ndarray of shape (pair,)
        NaN where no replicate knows the pair.
    """
    terms, known = _terms(vectors, method, covariance, kind)
    return _ratio(terms.sum(0), known.sum(0))


def pools_without_each(
    vectors: np.ndarray, method: str, covariance: np.ndarray | None = None, kind: str = "best"
) -> np.ndarray:
    """For every replicate, the pool of the others: shape (rdm, pair). See `pool`."""
    terms, known = _terms(vectors, method, covariance, kind)
    return _ratio(terms.sum(0) - terms, known.sum(0) - known)


def _terms(vectors: np.ndarray, method: str, covariance: np.ndarray | None, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """What the mean over replicates is taken of, 0 where unknown, and what is known."""
    terms = vectors if kind == "mean" or method == "riemannian" else _normalised(vectors, method, covariance)
    known = ~np.isnan(terms)
    return np.where(known, terms, 0.0), known


def _normalised(vectors: np.ndarray, method: str, covariance: np.ndarray | None) -> np.ndarray:
    if method in ("spearman", "rho-a", "tau-a", "tau-b"):
        ranks = np.full(vectors.shape, np.nan)
        for rows, known in same_pattern(vectors):
            ranks[np.ix_(rows, known)] = average_ranks(vectors[np.ix_(rows, known)])
        return ranks
    if method.startswith("pearson"):
        vectors = vectors - _mean(vectors)
    if method == "bures":
        size = _mean(vectors)  # the trace of the kernel, up to a factor
    elif method.endswith("whitened"):
        size = np.sqrt(_mean(vectors * whitened(vectors, covariance)))
    else:
        size = np.sqrt(_mean(vectors**2))
    return vectors / np.where(size > 0, size, np.nan)


def _mean(vectors: np.ndarray) -> np.ndarray:
    """Mean over the known pairs of every row, as a column."""
    known = ~np.isnan(vectors)
    return _ratio(np.where(known, vectors, 0.0).sum(1, keepdims=True), known.sum(1, keepdims=True))


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
