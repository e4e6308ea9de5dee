"""Resampling of stimuli, and shuffles of their labels: how sure a comparison of representational geometries is."""

from __future__ import annotations

import numpy as np

from ...datasets.rdms import RDMs, n_stimuli_of, pair_lookup
from ..compare import BY_PRODUCT, check_method, joined_vectors, similarities, standardised
from .intervals import Seed
from .weighted import progress, resample_weights, weighted_similarities


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
