"""How alike two representational geometries are, and how alike they could be given the noise."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
from scipy.stats import kendalltau, rankdata

from ..datasets.errors import unknown
from ..datasets.rdms import RDMs, n_stimuli_of, on_stimuli

METHODS = ("pearson", "spearman", "rho-a", "tau-a", "cosine")
RANKED = ("spearman", "rho-a", "tau-a")


def compare(a: RDMs | np.ndarray, b: RDMs | np.ndarray, method: str = "rho-a") -> np.ndarray:
    """Similarity of every RDM of `a` with every RDM of `b`.

    Parameters
    ----------
    a, b : RDMs, or arrays of shape (rdm, pair) or (pair,)
        RDMs are joined by stimulus id: the same ids, in any order. Arrays must be in the same order.
    method : str
        Over the m pairs of stimuli, with ranks averaged over ties:

        ==============  ====================================================================================
        ``"pearson"``   Pearson's correlation
        ``"spearman"``  Spearman's correlation
        ``"rho-a"``     ``12 * sum(r_a * r_b) / (m**3 - m)``, r the centred ranks: the mean of Spearman's
                        correlation over random breaks of the ties (Schuett et al. 2023)
        ``"tau-a"``     Kendall's tau a: concordant minus discordant over all pairs of pairs, ties included
                        (Nili et al. 2014); one sort per comparison, so slower than the others
        ``"cosine"``    ``sum(a * b) / sqrt(sum(a**2) * sum(b**2))``
        ==============  ====================================================================================

    Returns
    -------
    ndarray of shape (rdm of a, rdm of b)
        A pair of stimuli that is NaN in either RDM is left out of that comparison, before ranking. A
        comparison with fewer than three pairs, or with an RDM that is constant there (zero, for "cosine"),
        is NaN; one warning counts these.

    Raises
    ------
    ValueError
        For an unknown method, other stimuli on the two sides, or a wrong shape.

    References
    ----------
    Nili et al. (2014), PLoS Computational Biology 10:e1003553. Schuett et al. (2023), eLife 12:e82566.
    """
    check_method(method)
    similarity = similarities(*joined_vectors(a, b), method)
    warn_undefined(similarity, method)
    return similarity


def rsa_ceiling(rdms: RDMs | np.ndarray, method: str = "rho-a") -> tuple[float, float]:
    """Bounds on the similarity that the true model would reach, from the spread over replicates.

    The upper bound compares every replicate with the pool of all replicates, itself included; the lower
    bound with the pool of the others. Pools: mean of RDMs divided by their root mean square ("cosine"), of
    z-scored RDMs ("pearson"), of ranks (the others; for "tau-a" the pool is not exactly the maximum).

    Parameters
    ----------
    rdms : RDMs, or array of shape (rdm, pair)
        The replicates, e.g. one RDM per subject.
    method : str
        See `compare`.

    Returns
    -------
    lower, upper : float
        NaN, with a warning, for a single replicate or when a replicate is constant.

    References
    ----------
    Nili et al. (2014), PLoS Computational Biology 10:e1003553.
    """
    check_method(method)
    vectors = as_vectors(rdms, "rdms")
    if len(vectors) < 2:
        warnings.warn("the ceiling needs at least two RDMs, found one; it is NaN.", stacklevel=2)
        return float("nan"), float("nan")
    terms = _pool_terms(vectors, method)
    known = ~np.isnan(terms)
    terms = np.where(known, terms, 0.0)
    total, count = terms.sum(0), known.sum(0)
    upper = similarities(_ratio(total, count)[None], vectors, method)[0]
    lower = np.array(
        [
            similarities(_ratio(total - terms[k], count - known[k])[None], vectors[k : k + 1], method)[0, 0]
            for k in range(len(vectors))
        ]
    )
    warn_undefined(np.stack([lower, upper]), method)
    return float(lower.mean()), float(upper.mean())


def check_method(method: str, argument: str = "method") -> None:
    """Raise ValueError for a comparison that is not known."""
    if method not in METHODS:
        raise ValueError(unknown(argument, method, METHODS))


def as_vectors(rdms: RDMs | np.ndarray, name: str) -> np.ndarray:
    """Dissimilarity vectors in float64, shape (rdm, pair)."""
    if isinstance(rdms, RDMs):
        return rdms.vectors.astype(np.float64)
    vectors = np.asarray(rdms, dtype=np.float64)
    if vectors.ndim == 1:
        vectors = vectors[None]
    if vectors.ndim != 2 or not n_stimuli_of(vectors.shape[1]):
        raise ValueError(
            f"{name} has shape {np.shape(rdms)}; expected RDMs or an array (rdm, pair) with n * (n - 1) / 2 "
            "pairs. Square matrices go through RDMs.from_matrices."
        )
    if vectors.shape[0] == vectors.shape[1] > 3 and np.array_equal(vectors, vectors.T, equal_nan=True):
        raise ValueError(f"{name} is a symmetric matrix of shape {vectors.shape}; pass RDMs.from_matrices of it.")
    if np.isinf(vectors).any():
        raise ValueError(f"{name} holds infinite dissimilarities; write NaN for pairs that are unknown.")
    return vectors


def joined_vectors(
    a: RDMs | np.ndarray, b: RDMs | np.ndarray, names: tuple[str, str] = ("a", "b")
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of both sides over the same pairs in the same order."""
    if isinstance(a, RDMs) and isinstance(b, RDMs):
        b = on_stimuli(b, a.stimulus_ids, names[1])
    left, right = as_vectors(a, names[0]), as_vectors(b, names[1])
    if left.shape[1] != right.shape[1]:
        raise ValueError(
            f"{names[0]} has {left.shape[1]} pairs ({n_stimuli_of(left.shape[1])} stimuli) and {names[1]} "
            f"{right.shape[1]} ({n_stimuli_of(right.shape[1])} stimuli); both must be over the same stimuli."
        )
    return left, right


def similarities(a: np.ndarray, b: np.ndarray, method: str) -> np.ndarray:
    """`compare` of float64 vectors, without checks and without warnings."""
    similarity = np.full((len(a), len(b)), np.nan)
    for rows, columns, both in complete_blocks(a, b):
        block = _complete_similarities(a[rows][:, both], b[columns][:, both], method)
        similarity[np.ix_(rows, columns)] = block
    return similarity


def _complete_similarities(a: np.ndarray, b: np.ndarray, method: str) -> np.ndarray:
    if method == "tau-a":
        return _tau_a(a, b)
    return standardised(a, method) @ standardised(b, method).T


def complete_blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(rows of a, rows of b, positions of pairs known in all of them), together covering all comparisons.

    Without NaN this is one block, so the work is shared; blocks with fewer than three pairs are left out.
    """
    for rows, known_a in _same_pattern(a):
        for columns, known_b in _same_pattern(b):
            both = np.flatnonzero(known_a & known_b)
            if len(both) >= 3:
                yield rows, columns, both


def standardised(vectors: np.ndarray, method: str) -> np.ndarray:
    """Complete vectors transformed so that their inner products are the similarity; constant ones NaN.

    For all methods but "tau-a".
    """
    constant = np.ptp(vectors, axis=1) == 0
    if method in RANKED:
        vectors = rankdata(vectors, axis=1)
    if method == "cosine":
        constant = ~vectors.any(axis=1)
    else:
        vectors = vectors - vectors.mean(1, keepdims=True)
    if method == "rho-a":
        m = vectors.shape[1]
        vectors = vectors * np.sqrt(12 / (float(m) ** 3 - m))
    else:
        norm = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.where(constant[:, None], np.nan, norm)
    return np.where(constant[:, None], np.nan, vectors)


def warn_undefined(similarity: np.ndarray, method: str) -> None:
    """One warning that counts the comparisons without a value."""
    undefined = int(np.isnan(similarity).sum())
    if undefined:
        reason = "zero" if method == "cosine" else "constant"
        warnings.warn(
            f"{undefined} of {similarity.size} comparisons are NaN: an RDM is {reason}, or fewer than three "
            "pairs of stimuli are known in both.",
            stacklevel=3,
        )


def _same_pattern(vectors: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows, known pairs) for every set of rows that miss the same pairs."""
    known = ~np.isnan(vectors)
    rows: dict[bytes, list[int]] = {}
    for k, mask in enumerate(known):
        rows.setdefault(np.packbits(mask).tobytes(), []).append(k)
    return [(np.array(members), known[members[0]]) for members in rows.values()]


def _tau_a(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Kendall's tau a of complete vectors, from tau b and the ties: tau b divides by untied pairs only."""
    untied = [[_untied_share(vector) for vector in side] for side in (a, b)]
    return np.array(
        [
            [
                kendalltau(x, y, method="asymptotic").statistic * np.sqrt(u * v) if u > 0 and v > 0 else np.nan
                for y, v in zip(b, untied[1], strict=True)
            ]
            for x, u in zip(a, untied[0], strict=True)
        ]
    )


def _untied_share(vector: np.ndarray) -> float:
    counts = np.unique(vector, return_counts=True)[1].astype(np.float64)
    m = len(vector)
    return 1 - float((counts * (counts - 1)).sum()) / (m * (m - 1))


def _pool_terms(vectors: np.ndarray, method: str) -> np.ndarray:
    """What the mean over replicates is taken of, so that the mean is the best model of them all."""
    if method in RANKED:
        return rankdata(vectors, axis=1, nan_policy="omit")
    known = ~np.isnan(vectors)
    count = known.sum(1, keepdims=True)
    if method == "pearson":
        vectors = vectors - _ratio(np.where(known, vectors, 0).sum(1, keepdims=True), count)
    rms = np.sqrt(_ratio((np.where(known, vectors, 0) ** 2).sum(1, keepdims=True), count))
    return vectors / np.where(rms > 0, rms, np.nan)


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
