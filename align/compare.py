"""How alike two representational geometries are, and how alike they could be given the noise."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator

import numpy as np

from ..datasets.errors import unknown
from ..datasets.rdms import RDMs, n_stimuli_of, on_stimuli
from .geometry.inversions import tau
from .geometry.kernels import bures, riemannian, warn_indefinite
from .geometry.missing import is_complete, known_stimuli, pairs_among, same_pattern
from .geometry.pooling import pool as pooled
from .geometry.pooling import pools_without_each
from .geometry.ranks import BLOCK, average_ranks
from .geometry.whitening import checked_covariance, whitened, whitened_root

METHODS = (
    "cosine",
    "pearson",
    "spearman",
    "rho-a",
    "tau-a",
    "tau-b",
    "cosine-whitened",
    "pearson-whitened",
    "bures",
    "riemannian",
)
RANKED = ("spearman", "rho-a", "tau-a", "tau-b")
# Inner products of `standardised` vectors.
BY_PRODUCT = ("cosine", "pearson", "spearman", "rho-a", "cosine-whitened", "pearson-whitened")
WITH_COVARIANCE = ("cosine-whitened", "pearson-whitened", "riemannian")
POOLS = ("best", "mean")
# Multiplications from which `compare` does them in float32, and how many pairs it sums in float32 at a time.
LARGE = 1 << 30
PAIRS = 1 << 13


def compare(
    a: RDMs | np.ndarray, b: RDMs | np.ndarray, method: str = "rho-a", *, covariance: np.ndarray | None = None
) -> np.ndarray:
    """Similarity of every RDM of `a` with every RDM of `b`.

    Parameters
    ----------
    a, b : RDMs, or arrays of shape (rdm, pair) or (pair,)
        RDMs are joined by stimulus id: the same ids, in any order. Arrays must be in the same order.
    method : str
        Over the m pairs of stimuli, with ranks averaged over ties:

        ======================  ============================================================================
        ``"cosine"``            ``sum(a * b) / sqrt(sum(a**2) * sum(b**2))``
        ``"pearson"``           Pearson's correlation
        ``"spearman"``          Spearman's correlation
        ``"rho-a"``             ``12 * sum(r_a * r_b) / (m**3 - m)``, r the centred ranks: the mean of
                                Spearman's correlation over random breaks of the ties (Schuett et al. 2023)
        ``"tau-a"``             Kendall's tau a: concordant minus discordant over all pairs of pairs, ties
                                included (Nili et al. 2014); a count per comparison, so slower
        ``"tau-b"``             Kendall's tau b: over the pairs of pairs that are not tied; as slow
        ``"cosine-whitened"``   ``<a, b> / sqrt(<a, a> * <b, b>)`` with ``<a, b> = a' inv(V) b``, V the
                                covariance of the errors of squared distances (Diedrichsen et al. 2020).
                                Of squared Euclidean distances it is linear CKA
        ``"pearson-whitened"``  the same of a and b less their means over pairs
        ``"bures"``             normalised Bures similarity of the centred kernels, 0 to 1: the cosine of
                                the Procrustes angle between the patterns. For squared distances
        ``"riemannian"``        minus the Riemannian distance from a with noise added, in the amount that
                                fits best, to b: a are models and b data, the order matters. For squared
                                distances; b of full rank
        ======================  ============================================================================
    covariance : array of shape (stimulus,) or (stimulus, stimulus), optional
        Variances or covariances, up to a factor, of the errors of the patterns over the stimuli, in the order of
        `a`. For "cosine-whitened", "pearson-whitened" and "riemannian"; equal and independent by default.

    Returns
    -------
    ndarray of shape (rdm of a, rdm of b)
        A pair of stimuli that is NaN in either RDM is left out of that comparison, before ranking; for "bures" and
        "riemannian" the stimuli without known pairs are left out, and all other pairs must be known. A comparison
        with fewer than three pairs, with an RDM that is constant there (zero, for "cosine", "cosine-whitened" and
        "bures"), or for "riemannian" with data not of full rank, is NaN; one warning counts these.

    Raises
    ------
    ValueError
        For an unknown method, other stimuli on the two sides, a wrong shape, or a covariance that the method does not
        take or that is not positive definite.

    Notes
    -----
    From 2**30 multiplications (about 500 x 500 RDMs of 92 stimuli) those methods that are one product of matrices
    multiply in float32: similarities are then exact to 1e-6. `similarities` and all inference stay in float64.

    References
    ----------
    Nili et al. (2014), PLoS Computational Biology 10:e1003553. Schuett et al. (2023), eLife 12:e82566. Diedrichsen
    et al. (2020), arXiv:2007.02789. Shahbazi et al. (2021), NeuroImage 239:118271 (Riemannian distance). Harvey et
    al. (2024), arXiv:2311.11436 (Bures and Procrustes).
    """
    check_method(method)
    covariance = _covariance(covariance, method, a)
    same = a is b
    x, y = joined_vectors(a, b)
    if same:
        y = x
    similarity = None
    if method in BY_PRODUCT and covariance is None and len(x) * y.size >= LARGE:
        left = standardised(x, method, np.float32)
        right = left if y is x else standardised(y, method, np.float32)
        similarity = _products_in_float32(left, right)
        if np.isnan(similarity).any() and not (is_complete(x) and is_complete(y)):
            similarity = None
    if similarity is None:
        similarity = similarities(x, y, method, covariance)
    if method == "bures":
        for name, side in (("a", x), ("b", y))[: 1 if y is x else 2]:
            warn_indefinite(side, name)
    warn_undefined(similarity, method)
    return similarity


def rsa_ceiling(
    rdms: RDMs | np.ndarray,
    method: str = "rho-a",
    *,
    covariance: np.ndarray | None = None,
    pool: str = "best",
    squared: bool = False,
) -> tuple[float, float]:
    """Bounds on the similarity that the true model would reach, from the spread over replicates.

    The upper bound compares every replicate with the pool of all replicates, itself included; the lower
    bound with the pool of the others.

    Parameters
    ----------
    rdms : RDMs, or array of shape (rdm, pair)
        The replicates, e.g. one RDM per subject.
    method, covariance
        See `compare`.
    pool : {"best", "mean"}
        "best": the RDM that no model surpasses in mean similarity, the mean of RDMs divided by their root mean square
        ("cosine"), of z-scored RDMs ("pearson"), of RDMs of unit whitened norm (the two whitened) or of ranks
        ("spearman", "rho-a"). For "tau-a" and "tau-b" the mean of ranks, for "bures" the mean of RDMs with kernels of
        equal trace are near it, so the upper bound is approximate. For "riemannian" it is the mean RDM; a model that
        is less noisy may surpass it.
        "mean": the mean RDM, whatever the method.
    squared : bool
        Average squared similarities over replicates, as some published ceilings do.

    Returns
    -------
    lower, upper : float
        NaN, with a warning, for a single replicate or when a replicate is constant.

    References
    ----------
    Nili et al. (2014), PLoS Computational Biology 10:e1003553.
    """
    check_method(method)
    if pool not in POOLS:
        raise ValueError(unknown("pool", pool, POOLS))
    covariance = _covariance(covariance, method, rdms, "rdms")
    vectors = as_vectors(rdms, "rdms")
    if len(vectors) < 2:
        warnings.warn("the ceiling needs at least two RDMs, found one; it is NaN.", stacklevel=2)
        return float("nan"), float("nan")
    best = pooled(vectors, method, covariance, pool)
    others = pools_without_each(vectors, method, covariance, pool)
    upper = similarities(best[None], vectors, method, covariance)[0]
    lower = np.array(
        [
            similarities(other[None], row[None], method, covariance)[0, 0]
            for other, row in zip(others, vectors, strict=True)
        ]
    )
    if method == "bures":
        warn_indefinite(vectors, "rdms")
    warn_undefined(np.stack([lower, upper]), method)
    if squared:
        lower, upper = lower**2, upper**2
    return float(lower.mean()), float(upper.mean())


def check_method(method: str, argument: str = "method") -> None:
    """Raise ValueError for a comparison that is not known."""
    if method not in METHODS:
        raise ValueError(unknown(argument, method, METHODS))


def as_vectors(rdms: RDMs | np.ndarray, name: str) -> np.ndarray:
    """Dissimilarity vectors in float64, shape (rdm, pair); those of the caller, not a copy, where they are that."""
    if isinstance(rdms, RDMs):
        return rdms.vectors.astype(np.float64, copy=False)
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
    with np.errstate(all="ignore"):
        suspicious = not np.isfinite(vectors.sum())  # one pass where all is well
    if suspicious and np.isinf(vectors).any():
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


def similarities(a: np.ndarray, b: np.ndarray, method: str, covariance: np.ndarray | None = None) -> np.ndarray:
    """`compare` of float64 vectors, without checks, without warnings and in float64 throughout."""
    if is_complete(a) and is_complete(b) and a.shape[1] >= 3:
        return _complete_similarities(a, b, method, covariance)
    similarity = np.full((len(a), len(b)), np.nan)
    for rows, columns, both in complete_blocks(a, b):
        x, y = a[rows], b[columns]
        if method in ("bures", "riemannian"):
            block = _of_known_stimuli(x, y, both, method, covariance)
        elif method in WITH_COVARIANCE:
            block = _whitened_similarities(_only(x, both), _only(y, both), method, covariance)
        else:
            block = _complete_similarities(x[:, both], y[:, both], method, None)
        similarity[np.ix_(rows, columns)] = block
    return similarity


def complete_blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(rows of a, rows of b, positions of pairs known in all of them), together covering all comparisons.

    Without NaN this is one block, so the work is shared; blocks with fewer than three pairs are left out.
    """
    for rows, known_a in same_pattern(a):
        for columns, known_b in same_pattern(b):
            both = np.flatnonzero(known_a & known_b)
            if len(both) >= 3:
                yield rows, columns, both


def standardised(vectors: np.ndarray, method: str, dtype: type = np.float64) -> np.ndarray:
    """Complete vectors transformed so that their inner products are the similarity.

    Those that are constant (zero, for cosines), or hold a NaN, become NaN. For the methods of `BY_PRODUCT`. Stimuli
    can be relabelled after it: the result moves with the pairs.
    """
    if method not in BY_PRODUCT:
        raise ValueError(unknown("method", method, BY_PRODUCT, "The others are no inner products; use similarities."))
    result: np.ndarray = np.empty(vectors.shape, dtype)
    step = max(1, BLOCK // max(vectors.shape[1], 1))  # rows at a time, so that the passes over them stay in the cache
    for start in range(0, len(vectors), step):
        rows = vectors[start : start + step]
        undefined = ~rows.any(axis=1) if method.startswith("cosine") else ~(rows.min(axis=1) < rows.max(axis=1))
        if method in RANKED:
            rows = average_ranks(rows)
        if not method.startswith("cosine"):
            rows = rows - rows.mean(1, keepdims=True)
        if method.endswith("whitened"):
            rows = whitened_root(rows)
        if method == "rho-a":
            m = vectors.shape[1]
            scale = np.full(len(rows), np.sqrt(12 / (float(m) ** 3 - m)))
        else:
            norm = np.sqrt(np.einsum("ij,ij->i", rows, rows))
            scale = 1 / np.where(undefined, np.nan, norm)
        scale[undefined] = np.nan
        result[start : start + step] = rows * scale[:, None]
    return result


def warn_undefined(similarity: np.ndarray, method: str) -> None:
    """One warning that counts the comparisons without a value."""
    undefined = int(np.isnan(similarity).sum())
    if undefined:
        reason = "an RDM is zero" if method in ("cosine", "cosine-whitened", "bures") else "an RDM is constant"
        pairs = "fewer than three pairs of stimuli are known in both"
        if method == "riemannian":
            reason = "an RDM of a is zero, or one of b does not stem from patterns of full rank (as many dimensions as "
            reason += "stimuli less one), so that the distance to it is infinite"
        if method in ("bures", "riemannian"):
            pairs = "a pair is unknown of stimuli that have known ones"
        warnings.warn(f"{undefined} of {similarity.size} comparisons are NaN: {reason}, or {pairs}.", stacklevel=3)


def _covariance(
    covariance: np.ndarray | None, method: str, rdms: RDMs | np.ndarray, name: str = "a"
) -> np.ndarray | None:
    if covariance is None:
        return None
    if method not in WITH_COVARIANCE:
        raise ValueError(
            f"covariance is given, but method={method!r} takes none; leave it out, or take "
            f"{', '.join(map(repr, WITH_COVARIANCE))}."
        )
    return checked_covariance(covariance, n_stimuli_of(as_vectors(rdms, name).shape[1]))


def _complete_similarities(a: np.ndarray, b: np.ndarray, method: str, covariance: np.ndarray | None) -> np.ndarray:
    if method in ("tau-a", "tau-b"):
        return tau(a, b, method[-1])
    if method == "bures":
        return bures(a, b)
    if method == "riemannian":
        return riemannian(a, b, covariance)
    if covariance is not None:
        return _whitened_similarities(a, b, method, covariance)
    left = standardised(a, method)
    right = left if b is a else standardised(b, method)
    return left @ right.T


def _products_in_float32(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Inner products of float32 rows of norm 1, in float64: sums over many pairs would lose digits in float32."""
    total = np.zeros((len(left), len(right)))
    for start in range(0, left.shape[1], PAIRS):
        x = left[:, start : start + PAIRS]
        total += _transposed_product(x, x if right is left else right[:, start : start + PAIRS])
    return np.clip(total, -1.0, 1.0, out=total)


def _transposed_product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``x @ y.T``, by torch where it is loaded: to load it takes longer than it spares."""
    if x is y or "torch" not in sys.modules:
        return x @ y.T
    import torch

    from ..encoders.products import product

    return product(torch.from_numpy(x), torch.from_numpy(y).T).numpy()


def _whitened_similarities(a: np.ndarray, b: np.ndarray, method: str, covariance: np.ndarray | None) -> np.ndarray:
    """Whitened comparisons of rows that all miss the same pairs."""
    known = ~np.isnan(a[0])
    products, sides = [], []
    for side in (a, b):
        if method == "pearson-whitened":
            constant = np.ptp(side[:, known], axis=1) == 0
            side = side - side[:, known].mean(1, keepdims=True)
        else:
            constant = ~side[:, known].any(axis=1)
        white, side = whitened(side, covariance)[:, known], side[:, known]
        squared = np.where(constant, np.nan, np.einsum("ij,ij->i", white, side))
        products.append(white / np.sqrt(squared)[:, None])
        sides.append(side / np.sqrt(squared)[:, None])
    return products[0] @ sides[1].T


def _of_known_stimuli(
    a: np.ndarray, b: np.ndarray, both: np.ndarray, method: str, covariance: np.ndarray | None
) -> np.ndarray | float:
    """Comparisons as kernels over the stimuli that have known pairs, NaN if some of their pairs are unknown."""
    n = n_stimuli_of(a.shape[1])
    known = np.zeros(a.shape[1], bool)
    known[both] = True
    stimuli = known_stimuli(known, n)
    pairs = pairs_among(stimuli, n)
    if not known[pairs].all():
        return np.nan
    if covariance is not None:
        covariance = covariance[stimuli] if covariance.ndim == 1 else covariance[np.ix_(stimuli, stimuli)]
    return _complete_similarities(a[:, pairs], b[:, pairs], method, covariance)


def _only(vectors: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    result = np.full(vectors.shape, np.nan)
    result[:, pairs] = vectors[:, pairs]
    return result
