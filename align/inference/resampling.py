"""Resampling of stimuli, and shuffles of their labels: how sure a comparison of representational geometries is."""

from __future__ import annotations

import numpy as np

from ...datasets.rdms import RDMs, n_stimuli_of, pair_lookup
from ..compare import BY_PRODUCT, check_method, joined_vectors, similarities, standardised
from .intervals import Seed
from .weighted import progress, resample_weights, weighted_similarities

# Random orders behind a variance under the null that has no closed form: known to a tenth.
SHUFFLES = 200


def bootstrap_comparison(
    model: RDMs | np.ndarray, brain: RDMs | np.ndarray, method: str, n: int = 1000, seed: Seed = 0
) -> np.ndarray:
    """Similarity of every model to the brain, averaged over replicates, for `n` resamples of the stimuli.

    Parameters
    ----------
    model, brain : RDMs, or arrays of shape (rdm, pair)
        As in `compare`; the RDMs of `brain` are replicates, e.g. subjects.
    method : str
        See `compare`.
    n : int
        Number of bootstrap samples.
    seed : int or numpy Generator

    Returns
    -------
    ndarray of shape (n, n_model)
        NaN for a sample in which an RDM is constant. Columns of one row are paired: all models see the same
        stimuli.

    Notes
    -----
    The weights of pairs that share a stimulus vary together, as they should; what is private to a pair is
    weighted by ``w_i * w_j`` too, whose variance is about 3 where 1 would be right. With few stimuli this makes
    intervals wider than needed: in simulations 95 % intervals covered 98 to 99 % with 40 stimuli or fewer, and
    95 % with 80. `compare_models` takes the excess out of its variance.
    """
    return bootstrap_similarities(model, brain, method, n, seed).mean(2)


def permutation_comparison(
    model: RDMs | np.ndarray, brain: RDMs | np.ndarray, method: str, n: int = 1000, seed: Seed = 0
) -> np.ndarray:
    """Similarity of every model to the brain, averaged over replicates, for `n` shuffles of stimulus labels.

    Parameters and shape of the result as in `bootstrap_comparison`. All models share a shuffle, and so do all
    replicates: under the null the model's stimulus labels are exchangeable, whatever the replicates have in
    common.
    """
    return permutation_similarities(model, brain, method, n, seed).mean(2)


def permutation_p(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """One-sided p value per column: ``(1 + number of null >= observed) / (1 + n)``.

    Parameters
    ----------
    observed : array of shape (column,) or (row, column)
    null : array of shape (n, *observed.shape)
        A NaN in it counts as an exceedance, which can only make p larger.

    Returns
    -------
    ndarray of the shape of `observed`
        NaN where `observed` is NaN.
    """
    observed, null = np.asarray(observed, np.float64), np.asarray(null, np.float64)
    rounding = 1e-12 * (1 + np.abs(observed))  # a shuffle that changes nothing must count as equal
    p = (1 + (~(null < observed - rounding)).sum(0)) / (1 + len(null))
    return np.where(np.isnan(observed), np.nan, p)


def bootstrap_similarities(
    model: RDMs | np.ndarray, brain: RDMs | np.ndarray, method: str, n: int, seed: Seed = 0
) -> np.ndarray:
    """As `bootstrap_comparison`, before the average over replicates: shape (n, n_model, n_brain)."""
    check_method(method)
    x, y = joined_vectors(model, brain, ("model", "brain"))
    weights = resample_weights(n_stimuli_of(x.shape[1]), n, seed)
    return weighted_similarities(x, y, method, weights)


def permutation_variance(
    x: np.ndarray, y: np.ndarray, method: str, covariance: np.ndarray | None = None, seed: Seed = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Variance of the similarity over all orders of the stimuli of x: what it is where x and y are unrelated.

    Parameters
    ----------
    x, y : float64 arrays of shape (rdm, pair)
    method : str
        See `compare`.
    covariance : array, optional
        See `permutation_similarities`.
    seed : int or numpy Generator
        Of the shuffles, where there is no closed form.

    Returns
    -------
    of_mean, own : ndarray of shape (rdm of x,)
        Variance of the mean over the RDMs of y, and of what the mean owes to their differences: the mean square of the
        similarity with one of them less that with all, over their number less one; NaN for one RDM.

    Notes
    -----
    For a similarity that is an inner product of complete RDMs, in closed form (Mantel 1967, Cancer Research
    27:209-220). With A the matrix of an RDM, zero on the diagonal, ``S = sum_ij A_ij``, ``Q = sum_ij A_ij^2`` and
    ``R = sum_i (sum_j A_ij)^2``, the second moment of ``sum_ij A_ij B_ij`` is ``2 Q Q' / n(2) + 4 (R - Q) (R' - Q') /
    n(3) + (S^2 + 2 Q - 4 R) (S'^2 + 2 Q' - 4 R') / n(4)``, with ``n(k) = n (n - 1) ... (n - k + 1)``: pairs of pairs
    share two stimuli, one or none. For Kendall's tau and for gaps, of `SHUFFLES` random orders.
    """
    n, n_rdms = n_stimuli_of(x.shape[1]), len(y)
    if method in BY_PRODUCT and covariance is None and not np.isnan(x).any() and not np.isnan(y).any() and n >= 3:
        x, y = standardised(x, method), standardised(y, method)
        mean = y.mean(0, keepdims=True)
        of_model = _sums(x, n)
        of_mean = _mantel(of_model, _sums(mean, n), n)[:, 0]
        own = _mantel(of_model, _sums(y - mean, n), n).sum(1)
    else:
        samples = permutation_similarities(x, y, method, SHUFFLES, seed, covariance)
        mean = samples.mean(2)
        of_mean = mean.var(0, ddof=1)
        own = (samples - mean[:, :, None]).var(0, ddof=1).sum(1)
    return of_mean, own / (n_rdms * (n_rdms - 1)) if n_rdms > 1 else np.full(len(x), np.nan)


def _sums(vectors: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The square of the sum, the sum of squares and that of squared sums of rows, of matrices with a diagonal of 0."""
    first, second = np.triu_indices(n, 1)
    rows = np.zeros((n, len(vectors)))
    np.add.at(rows, first, vectors.T)
    np.add.at(rows, second, vectors.T)
    return rows.sum(0) ** 2, 2 * np.einsum("rp,rp->r", vectors, vectors), (rows**2).sum(0)


def _mantel(
    a: tuple[np.ndarray, np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray, np.ndarray], n: int
) -> np.ndarray:
    """Variance over all orders of the inner product of upper triangles, from `_sums`: (rdm of a, rdm of b)."""
    (square, squares, rows), (square_b, squares_b, rows_b) = a, b
    two, three, four = n * (n - 1), n * (n - 1) * (n - 2), n * (n - 1) * (n - 2) * (n - 3)
    moment = 2 * np.outer(squares, squares_b) / two + 4 * np.outer(rows - squares, rows_b - squares_b) / three
    if four:  # three stimuli have no two pairs that share none
        apart = np.outer(square + 2 * squares - 4 * rows, square_b + 2 * squares_b - 4 * rows_b)
        moment += apart / four
    return np.maximum(moment - np.outer(square, square_b) / two**2, 0) / 4


def permutation_similarities(
    model: RDMs | np.ndarray,
    brain: RDMs | np.ndarray,
    method: str,
    n: int,
    seed: Seed = 0,
    covariance: np.ndarray | None = None,
) -> np.ndarray:
    """As `permutation_comparison`, before the average over replicates: shape (n, n_model, n_brain).

    `covariance` is that of the brain's patterns, see `compare`: the labels of the model are shuffled, not those of it.
    """
    check_method(method)
    x, y = joined_vectors(model, brain, ("model", "brain"))
    n_stimuli = n_stimuli_of(x.shape[1])
    rng = np.random.default_rng(seed)
    lookup = pair_lookup(n_stimuli).ravel()
    first, second = np.triu_indices(n_stimuli, 1)
    # A shuffle moves dissimilarities about and leaves their ranks and norms alone: standardise once.
    once = (
        method in BY_PRODUCT
        and covariance is None
        and not np.isnan(x).any()
        and not np.isnan(y).any()
        and x.shape[1] >= 3
    )
    if once:
        x, y = standardised(x, method), standardised(y, method)
    by_pair = np.ascontiguousarray(x.T)
    samples = np.empty((n, len(x), len(y)))
    for k in progress(n, "label permutations"):
        labels = rng.permutation(n_stimuli)
        shuffled = by_pair.take(lookup.take(labels.take(first) * n_stimuli + labels.take(second)), axis=0).T
        samples[k] = shuffled @ y.T if once else similarities(shuffled, y, method, covariance)
    return samples
