"""Resampling of stimuli: how sure a comparison of representational geometries is.

The bootstrap never builds resampled RDMs. A sample of stimuli is a vector w of multiplicities; the pair
(i, j) then occurs w_i * w_j times, and pairs of a stimulus with itself are left out. All moments of a sample
are sums with these weights, equal to those of explicit resampling up to rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

import numpy as np

from ..datasets.rdms import RDMs, n_stimuli_of, pair_lookup
from .compare import check_method, complete_blocks, joined_vectors, similarities, standardised

Seed = int | np.random.Generator | None


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
    95 % with 80.
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


def percentile_interval(samples: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Central interval that holds `level` of the samples, per column.

    Parameters
    ----------
    samples : array of shape (n, column)
        NaN samples are left out, with one warning that counts them; a column of NaN alone stays NaN.
    level : float between 0 and 1

    Returns
    -------
    low, high : ndarray of shape (column,)
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level!r}; expected a share between 0 and 1, e.g. 0.95.")
    samples = np.asarray(samples, np.float64)
    missing = np.isnan(samples)
    scored = ~missing.all(0)
    left_out = int(missing[:, scored].sum())
    if left_out:
        warnings.warn(
            f"{left_out} of {missing[:, scored].size} resamples have no value; the interval leaves them out.",
            stacklevel=2,
        )
    bounds = np.full((2, samples.shape[1]), np.nan)
    if len(samples) and scored.any():
        bounds[:, scored] = np.nanquantile(samples[:, scored], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return bounds[0], bounds[1]


# Scales on which a score has no bound to run into: Fisher's z, and the logarithm of the unexplained share.
SCALES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "r": (lambda r: np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)), np.tanh),
    "r2": (lambda r2: -np.log1p(-np.minimum(r2, 1 - 1e-12)), lambda z: -np.expm1(-z)),
}


def basic_interval(observed: float, samples: np.ndarray, metric: str, level: float = 0.95) -> tuple[float, float]:
    """Basic bootstrap interval: the percentile interval mirrored at the observed value, on the scale of the metric.

    A resample repeats stimuli, which lowers a score that is centred within its sample; mirrored, that bias is taken
    out twice, once for the resampling and once for the sample itself (Davison & Hinkley 1997, section 5.2).

    Parameters
    ----------
    observed : float
    samples : array of shape (n,)
        NaN samples are left out.
    metric : {"r", "r2"}
        Its scale is Fisher's z, or the logarithm of the unexplained share: no bound lies above 1.
    level : float between 0 and 1

    Returns
    -------
    low, high : float
    """
    forth, back = SCALES[metric]
    low, high = percentile_interval(forth(np.asarray(samples, np.float64))[:, None], level)
    centre = forth(np.asarray(observed, np.float64))
    return float(back(2 * centre - high[0])), float(back(2 * centre - low[0]))


def bootstrap_similarities(
    model: RDMs | np.ndarray, brain: RDMs | np.ndarray, method: str, n: int, seed: Seed = 0
) -> np.ndarray:
    """As `bootstrap_comparison`, before the average over replicates: shape (n, n_model, n_brain)."""
    check_method(method)
    x, y = joined_vectors(model, brain, ("model", "brain"))
    n_stimuli = n_stimuli_of(x.shape[1])
    sampled = np.random.default_rng(seed).integers(n_stimuli, size=(n, n_stimuli))
    weights = np.zeros((n, n_stimuli))
    np.add.at(weights, (np.arange(n)[:, None], sampled), 1)
    moments, ranks = dict.fromkeys(("pearson", "cosine"), _by_moments), dict.fromkeys(("spearman", "rho-a"), _by_ranks)
    resample = (moments | ranks).get(method, _by_repetition)
    first, second = np.triu_indices(n_stimuli, 1)
    samples = np.full((n, len(x), len(y)), np.nan)
    for rows, columns, both in complete_blocks(x, y):
        block = resample(x[rows][:, both], y[columns][:, both], first[both], second[both], weights, method)
        samples[:, rows[:, None], columns] = block
    return samples


def permutation_similarities(
    model: RDMs | np.ndarray, brain: RDMs | np.ndarray, method: str, n: int, seed: Seed = 0
) -> np.ndarray:
    """As `permutation_comparison`, before the average over replicates: shape (n, n_model, n_brain)."""
    check_method(method)
    x, y = joined_vectors(model, brain, ("model", "brain"))
    n_stimuli = n_stimuli_of(x.shape[1])
    rng = np.random.default_rng(seed)
    lookup = pair_lookup(n_stimuli).ravel()
    first, second = np.triu_indices(n_stimuli, 1)
    # A shuffle moves dissimilarities about and leaves their ranks and norms alone: standardise once.
    once = method != "tau-a" and not np.isnan(x).any() and not np.isnan(y).any() and x.shape[1] >= 3
    if once:
        x, y = standardised(x, method), standardised(y, method)
    by_pair = np.ascontiguousarray(x.T)
    samples = np.empty((n, len(x), len(y)))
    for k in _progress(n, "label permutations"):
        labels = rng.permutation(n_stimuli)
        shuffled = by_pair.take(lookup.take(labels.take(first) * n_stimuli + labels.take(second)), axis=0).T
        samples[k] = shuffled @ y.T if once else similarities(shuffled, y, method)
    return samples


def _progress(n: int, title: str) -> Iterable[int]:
    """``range(n)`` with a bar on a terminal, for work that takes more than two seconds."""
    from tqdm import tqdm

    return tqdm(range(n), desc=title, disable=None, leave=False, delay=2)


def _by_moments(
    x: np.ndarray, y: np.ndarray, first: np.ndarray, second: np.ndarray, weights: np.ndarray, method: str
) -> np.ndarray:
    """Pearson's correlation or cosine in every bootstrap sample, shape (n, row of x, row of y).

    A sum over pairs with weights ``w_i * w_j`` is the quadratic form ``w' A w / 2``, so one product of
    matrices serves all samples.
    """
    n_stimuli = weights.shape[1]
    centred = method == "pearson"
    x, y = (_rescaled(side, centred) for side in (x, y))

    def total(values: np.ndarray) -> np.ndarray:
        matrix = np.zeros((n_stimuli, n_stimuli))
        matrix[first, second] = values
        return np.einsum("bi,bi->b", weights @ matrix, weights)

    def totals(side: np.ndarray) -> np.ndarray:
        return np.stack([total(row) for row in side], axis=1)

    cross = np.stack([totals(row * y) for row in x], axis=1)
    square_x, square_y = totals(x**2), totals(y**2)
    count = total(np.ones(x.shape[1]))[:, None]
    if centred:
        sum_x, sum_y = totals(x), totals(y)
        with np.errstate(invalid="ignore", divide="ignore"):
            cross -= sum_x[:, :, None] * sum_y[:, None, :] / count[:, :, None]
            square_x -= sum_x**2 / count
            square_y -= sum_y**2 / count
    # Values have unit variance over all pairs, so a sample this narrow is constant but for rounding.
    for square in (square_x, square_y):
        square[~(square > 1e-12 * count) | (count < 3)] = np.nan
    return cross / np.sqrt(square_x[:, :, None] * square_y[:, None, :])


def _rescaled(vectors: np.ndarray, centred: bool) -> np.ndarray:
    if centred:
        vectors = vectors - vectors.mean(1, keepdims=True)
    rms = np.sqrt((vectors**2).mean(1, keepdims=True))
    return vectors / np.where(rms > 0, rms, 1)


def _by_ranks(
    x: np.ndarray, y: np.ndarray, first: np.ndarray, second: np.ndarray, weights: np.ndarray, method: str
) -> np.ndarray:
    """Spearman's correlation or rho-a in every bootstrap sample, shape (n, row of x, row of y).

    Every RDM is sorted once into groups of equal dissimilarity; a sample only changes how often each group
    occurs, and the mid-ranks of all groups follow from one cumulative sum.
    """
    groups, n_groups = [], []
    for row in (*x, *y):
        values, group = np.unique(row, return_inverse=True)
        groups.append(group)
        n_groups.append(len(values))
    samples = np.full((len(weights), len(x), len(y)), np.nan)
    for k in _progress(len(weights), "stimulus bootstrap"):
        w = weights[k]
        times = w.take(first) * w.take(second)
        present = np.flatnonzero(times)
        times = times.take(present)
        count = times.sum()
        if count < 3:
            continue
        ranks = np.empty((len(groups), len(present)))
        for row, (group, size) in enumerate(zip(groups, n_groups, strict=True)):
            member = group.take(present)
            occurs = np.bincount(member, times, minlength=size)
            # The last rank of a group, back by half of its ties, relative to the mean rank.
            midrank = np.cumsum(occurs) - (occurs - 1) / 2 - (count + 1) / 2
            midrank.take(member, out=ranks[row], mode="clip")
        weighted = ranks * times
        cross = weighted[: len(x)] @ ranks[len(x) :].T
        square = np.einsum("rp,rp->r", weighted, ranks)
        square[square == 0] = np.nan  # ranks are whole or half numbers: a constant sample gives exactly 0
        norm = np.sqrt(np.outer(square[: len(x)], square[len(x) :]))
        if method == "rho-a":
            norm[~np.isnan(norm)] = (count**3 - count) / 12
        samples[k] = cross / norm
    return samples


def _by_repetition(
    x: np.ndarray, y: np.ndarray, first: np.ndarray, second: np.ndarray, weights: np.ndarray, method: str
) -> np.ndarray:
    """Any comparison in every bootstrap sample, with every pair repeated as often as it occurs."""
    samples = np.full((len(weights), len(x), len(y)), np.nan)
    for k in _progress(len(weights), "stimulus bootstrap"):
        w = weights[k]
        pairs = np.repeat(np.arange(len(first)), (w[first] * w[second]).astype(np.intp))
        samples[k] = similarities(x[:, pairs], y[:, pairs], method)
    return samples
