"""Noise ceilings in bootstrap samples of stimuli and subjects."""

from __future__ import annotations

import numpy as np

from ...datasets.rdms import n_stimuli_of
from ..compare import similarities as plain_similarities
from ..geometry.pooling import pool
from .weighted import (
    CENTRED,
    PRODUCTS,
    RANKS,
    check_weights,
    compiled,
    group_ranks,
    inner_products,
    norms,
    progress,
    refuse_copies,
    rescaled,
    sample_batches,
    selected,
    selects,
    sorted_groups,
    weighted_similarities,
    within,
)


def weighted_ceilings(
    y: np.ndarray,
    method: str,
    weights: np.ndarray,
    subject_weights: np.ndarray | None = None,
    covariance: np.ndarray | None = None,
) -> np.ndarray:
    """Lower and upper bound of the noise ceiling in every sample of stimuli and subjects.

    Parameters
    ----------
    y : float64 array of shape (rdm, pair)
        One RDM per subject; NaN where a pair is unknown.
    method : str
        See `align.compare`.
    weights : int array of shape (sample, stimulus)
        Multiplicities of the stimuli.
    subject_weights : int array of shape (sample, rdm), optional
        Multiplicities of the subjects; every subject once by default.
    covariance : array of shape (stimulus,) or (stimulus, stimulus), optional
        See `weighted_similarities`.

    Returns
    -------
    ndarray of shape (sample, 2)
        The mean similarity of a subject with the pool of the other subjects, and with the pool of all. The copies of
        a subject are never among the others. The lower bound is NaN where a sample holds one subject only.

    Notes
    -----
    The pool is the mean of the RDMs after division by their norm ("cosine"), after z-scoring ("pearson"), after
    division by their whitened norm (whitened forms): then no RDM reaches a higher mean similarity than the pool of
    all, and both bounds follow from the inner products of the subjects, ``C``, with weights v, ``r = C v`` and
    ``T = v'C v``: upper_i is ``r_i / sqrt(T)``, lower_i is
    ``(r_i - v_i C_ii) / sqrt(T - 2 v_i r_i + v_i^2 C_ii)``. Rank correlations pool ranks, which is the best pool for
    Spearman's correlation and rho-a among those of ranks, and near to it for Kendall's tau.
    """
    bounds = subject_ceilings(y, method, weights, subject_weights, covariance)
    v = np.ones(bounds.shape[:2]) if subject_weights is None else np.asarray(subject_weights, np.float64)
    return mean_of_subjects(bounds, v[..., None])


def mean_of_subjects(values: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Mean over axis 1 with weights v; subjects of weight 0 take no part, and any other NaN makes the mean NaN."""
    v = np.broadcast_to(v, values.shape)
    total = np.where(v > 0, values * v, 0).sum(1)
    return total / v.sum(1)


def subject_ceilings(
    y: np.ndarray,
    method: str,
    weights: np.ndarray,
    subject_weights: np.ndarray | None = None,
    covariance: np.ndarray | None = None,
) -> np.ndarray:
    """As `weighted_ceilings`, before the mean over subjects: shape (sample, rdm, 2), NaN for absent subjects."""
    weights = check_weights(weights, y.shape[1])
    if subject_weights is None:
        subject_weights = np.ones((len(weights), len(y)), np.int64)
    v = np.asarray(subject_weights)
    if v.shape != (len(weights), len(y)):
        raise ValueError(f"subject_weights has shape {v.shape}; expected {(len(weights), len(y))}, (sample, rdm).")
    v = v.astype(np.int64)
    refuse_copies(method, weights, covariance)
    known = ~np.isnan(y)
    if selects(method, weights, covariance):
        return _by_selection(y, method, weights, v, covariance)
    if (known != known[0]).any():
        return _by_pools(y, method, weights, v, covariance)
    pairs = np.flatnonzero(known[0])
    first, second = (ends[pairs] for ends in np.triu_indices(weights.shape[1], 1))
    if len(pairs) < 3:
        return np.full((*v.shape, 2), np.nan)
    if method in PRODUCTS:
        return _by_gram(y[:, pairs], method, first, second, weights, v, covariance)
    loops = compiled()
    if loops is None:
        return _by_pools(y, method, weights, v, covariance)
    order, group = sorted_groups(y[:, pairs])
    samples = np.empty((*v.shape, 2))
    for batch in sample_batches(len(weights), "bootstrap of the ceiling"):
        samples[batch] = loops.ceilings(order, group, first, second, weights[batch], v[batch], RANKS.index(method))
    return samples


def _by_gram(
    y: np.ndarray,
    method: str,
    first: np.ndarray,
    second: np.ndarray,
    weights: np.ndarray,
    v: np.ndarray,
    covariance: np.ndarray | None,
) -> np.ndarray:
    n = len(y)
    left, right = np.triu_indices(n)
    same = (weights == weights[0]).all()  # one set of products serves samples of subjects alone
    z, _ = rescaled(y, method in CENTRED)
    products, count = inner_products(
        z, left, right, first, second, weights[:1] if same else weights, method, covariance
    )
    gram = np.empty((len(products), n, n))
    gram[:, left, right] = gram[:, right, left] = products
    norm = np.sqrt(norms(np.einsum("bii->bi", gram), count))
    gram /= norm[:, :, None] * norm[:, None, :]
    if same:
        gram = np.broadcast_to(gram, (len(weights), n, n))
    return bounds_from_gram(gram, v.astype(np.float64))


def bounds_from_gram(gram: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Similarity with the pool of the others and of all, from the similarities of all subjects.

    Parameters
    ----------
    gram : array of shape (sample, rdm, rdm)
        Ones on the diagonal.
    v : array of shape (sample, rdm)

    Returns
    -------
    ndarray of shape (sample, rdm, 2)
    """
    r = np.where(v[:, None, :] > 0, gram * v[:, None, :], 0).sum(2)
    total = np.where(v > 0, v * r, 0).sum(1, keepdims=True)
    others = total - 2 * v * r + v**2
    n_others = v.sum(1, keepdims=True) - v
    with np.errstate(invalid="ignore", divide="ignore"):
        lower = (r - v) / np.sqrt(np.where((others > 1e-12 * n_others**2) & (n_others > 0), others, np.nan))
        upper = r / np.sqrt(np.where(total > 1e-12 * v.sum(1, keepdims=True) ** 2, total, np.nan))
    bounds = np.stack([lower, upper], axis=2)
    bounds[v == 0] = np.nan
    return bounds


def _by_pools(
    y: np.ndarray, method: str, weights: np.ndarray, v: np.ndarray, covariance: np.ndarray | None
) -> np.ndarray:
    """Pools one by one, over the subjects that know a pair: where they miss different pairs, and without numba."""
    first, second = np.triu_indices(weights.shape[1], 1)
    samples = np.full((*v.shape, 2), np.nan)
    terms, last = np.empty_like(y), None
    for k in progress(len(weights), "bootstrap of the ceiling"):
        w = weights[k : k + 1]
        if last is None or (w != last).any():
            times = w[0][first] * w[0][second]
            terms, last = np.stack([_pool_term(row, times, method, w, covariance) for row in y]), w
        known = ~np.isnan(terms)
        filled = np.where(known, terms, 0.0)
        total, count = v[k] @ filled, v[k] @ known
        present = np.flatnonzero(v[k])
        pool = _ratio(total, count)[None]
        samples[k, present, 1] = weighted_similarities(pool, y[present], method, w, covariance)[0, 0]
        for i in present:
            pool = _ratio(total - v[k, i] * filled[i], count - v[k, i] * known[i])[None]
            samples[k, i, 0] = weighted_similarities(pool, y[i : i + 1], method, w, covariance)[0, 0, 0]
    return samples


def _pool_term(
    row: np.ndarray, times: np.ndarray, method: str, w: np.ndarray, covariance: np.ndarray | None
) -> np.ndarray:
    """What the pool is the mean of, for one RDM in one sample; NaN where a pair is unknown or does not occur."""
    term = np.full(len(row), np.nan)
    pairs = np.flatnonzero((times > 0) & ~np.isnan(row))
    values, times = row[pairs], times[pairs]
    if len(pairs) == 0:
        return term
    if method in RANKS:
        term[pairs] = group_ranks(np.unique(values, return_inverse=True)[1], times) + (times.sum() + 1) / 2
        return term
    if method in CENTRED:
        values = values - np.average(values, weights=times)
    first, second = (ends[pairs] for ends in np.triu_indices(n_stimuli_of(len(row)), 1))
    whole = np.array([0])
    square, count = inner_products(values[None], whole, whole, first, second, w, method, covariance)
    norm = np.sqrt(square[0, 0] / count[0]) if square[0, 0] > 0 else np.nan
    term[pairs] = values / norm
    return term


def _by_selection(
    y: np.ndarray, method: str, weights: np.ndarray, v: np.ndarray, covariance: np.ndarray | None
) -> np.ndarray:
    """Pools of the comparisons that have no form with weights, over sets of stimuli."""
    first, second = np.triu_indices(weights.shape[1], 1)
    samples = np.full((*v.shape, 2), np.nan)
    for k in progress(len(weights), "bootstrap of the ceiling"):
        stimuli, pairs = selected(weights[k], first, second)
        part = None if covariance is None else within(covariance, stimuli)
        vectors = y[:, pairs]
        present = np.flatnonzero(v[k])
        if len(pairs) < 3:
            continue
        whole = pool(vectors[np.repeat(present, v[k][present])], method, part)[None]
        samples[k, present, 1] = plain_similarities(whole, vectors[present], method, part)[0]
        for i in present:
            others = np.repeat(present[present != i], v[k][present[present != i]])
            if len(others):
                rest = pool(vectors[others], method, part)[None]
                samples[k, i, 0] = plain_similarities(rest, vectors[i : i + 1], method, part)[0, 0]
    return samples


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
