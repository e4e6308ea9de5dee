"""Comparison of RDMs in bootstrap samples of stimuli, from multiplicities instead of resampled RDMs.

A sample of stimuli is a vector w of multiplicities. The pair (i, j) occurs ``w_i * w_j`` times in it, and pairs of a
stimulus with its own copy are left out, so every sum over the pairs of a sample is a sum over all pairs with these
weights. Equal to explicit resampling up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import ModuleType

import numpy as np
from scipy.stats import rankdata

from ...datasets.rdms import n_stimuli_of
from ..compare import complete_blocks
from ..compare import similarities as plain_similarities

WHITENED = ("cosine-whitened", "pearson-whitened")
PRODUCTS = ("cosine", "pearson", *WHITENED)  # a normalised inner product of dissimilarities
RANKS = ("rho-a", "spearman", "tau-a", "tau-b")  # in the order in which `loops` numbers them
CENTRED = ("pearson", "pearson-whitened")
_SAMPLES, _PAIRS = 256, 2**14  # weighted at a time: 32 MiB, however many stimuli
_SYSTEMS = 2**20  # entries of the systems of equations solved at a time


def resample_weights(n_items: int, n: int, seed: int | np.random.Generator | None) -> np.ndarray:
    """How often each of `n_items` occurs in each of `n` samples with replacement, int of shape (n, n_items)."""
    sampled = np.random.default_rng(seed).integers(n_items, size=(n, n_items))
    weights = np.zeros((n, n_items), np.int64)
    np.add.at(weights, (np.arange(n)[:, None], sampled), 1)
    return weights


def weighted_similarities(
    x: np.ndarray, y: np.ndarray, method: str, weights: np.ndarray, covariance: np.ndarray | None = None
) -> np.ndarray:
    """Similarity of every RDM of `x` with every RDM of `y` in every sample of stimuli.

    Parameters
    ----------
    x, y : float64 arrays of shape (rdm, pair)
        NaN where a pair is unknown: it is left out of the comparisons it would enter.
    method : str
        See `align.compare`.
    weights : int array of shape (sample, stimulus)
        Multiplicities. Zeros and ones select stimuli, and go with every method.
    covariance : array of shape (stimulus,) or (stimulus, stimulus), optional
        Of the patterns, for "cosine-whitened", "pearson-whitened" and "riemannian". The copies of a stimulus in a
        sample vary independently, as those of other stimuli do; hence a matrix, which says otherwise, goes with
        zeros and ones only.

    Returns
    -------
    ndarray of shape (sample, rdm of x, rdm of y)
        NaN where fewer than three pairs occur, or an RDM is constant over them (zero, for the cosines).

    Raises
    ------
    ValueError
        Weights that are no multiplicities of these stimuli; copies of stimuli for "bures" or "riemannian", or for a
        covariance matrix.

    Notes
    -----
    Cosine and Pearson's correlation are ratios of sums over pairs: one product of matrices for all samples. Whitened
    forms divide by V, the covariance of dissimilarity estimates (Diedrichsen et al. 2020, arXiv 2007.02789). With the
    weights w, N their sum, ``g_i = 2 + N - 2 w_i`` and ``s_i = sum_j w_j d_ij`` the inverse has the closed form::

        <d, e> = (sum_{i<j} w_i w_j d_ij e_ij - sum_i w_i s_i t_i / g_i
                  + sum_i (w_i s_i / g_i) * sum_i (w_i t_i / g_i) / (1 + sum_i w_i / g_i)) / 2

    with t the same of e: V is twice the identity plus a matrix of rank n. Ranks are averaged over ties and copies.
    """
    weights = check_weights(weights, x.shape[1])
    refuse_copies(method, weights, covariance)
    first, second = np.triu_indices(weights.shape[1], 1)
    samples = np.full((len(weights), len(x), len(y)), np.nan)
    if selects(method, weights, covariance):
        for k, w in enumerate(weights):
            stimuli, pairs = selected(w, first, second)
            if len(pairs) >= 3:
                part = None if covariance is None else within(covariance, stimuli)
                samples[k] = plain_similarities(x[:, pairs], y[:, pairs], method, part)
        return samples
    for rows, columns, both in complete_blocks(x, y):
        left, right = x[rows][:, both], y[columns][:, both]
        if method in PRODUCTS:
            block = _by_products(left, right, first[both], second[both], weights, method, covariance)
        else:
            block = _by_ranks(left, right, first[both], second[both], weights, method)
        samples[:, rows[:, None], columns] = block
    return samples


def refuse_copies(method: str, weights: np.ndarray, covariance: np.ndarray | None = None) -> None:
    """Raise ValueError for samples that hold copies of a stimulus where the comparison has no place for them."""
    mend = "resample subjects instead, over='subjects'."
    if weights.size == 0 or weights.max() < 2:
        return
    if method in ("bures", "riemannian"):
        raise ValueError(
            f"method={method!r} compares whole kernels, from which the pairs of a stimulus with its copy cannot be "
            f"left out, so stimuli cannot be resampled with replacement; {mend} Or take method='cosine-whitened'."
        )
    if covariance is not None and np.ndim(covariance) == 2:
        raise ValueError(
            "covariance is a matrix, which does not say how the copies of a stimulus in a bootstrap sample covary; "
            f"give the variances of the stimuli, shape (stimulus,), or {mend}"
        )


def selects(method: str, weights: np.ndarray, covariance: np.ndarray | None = None) -> bool:
    """Whether samples are sets of stimuli, to be compared as if the others were not there."""
    return method not in (*PRODUCTS, *RANKS) or (covariance is not None and np.ndim(covariance) == 2)


def selected(w: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the stimuli and of the pairs of a set of stimuli."""
    return np.flatnonzero(w), np.flatnonzero(w[first] * w[second])


def within(covariance: np.ndarray, stimuli: np.ndarray) -> np.ndarray:
    """The covariance of some of the stimuli."""
    covariance = np.asarray(covariance, np.float64)
    return covariance[stimuli] if covariance.ndim == 1 else covariance[np.ix_(stimuli, stimuli)]


def progress(n: int, title: str) -> Iterable[int]:
    """``range(n)`` with a bar on a terminal, for work that takes more than two seconds."""
    from tqdm import tqdm

    return tqdm(range(n), desc=title, disable=None, leave=False, delay=2)


def compiled() -> ModuleType | None:
    """The module of compiled loops, or None without numba."""
    try:
        from . import loops
    except ImportError:
        return None
    return loops


def rescaled(vectors: np.ndarray, centred: bool) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of unit mean square, so that sums over samples keep their digits, and their units; zero stays zero."""
    if centred:
        vectors = vectors - vectors.mean(1, keepdims=True)
    unit = np.sqrt(np.einsum("rp,rp->r", vectors, vectors) / vectors.shape[1])
    unit[unit == 0] = 1
    return vectors / unit[:, None], unit


def gram(
    z: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    w: np.ndarray,
    method: str,
    covariance: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """All `inner_products` of the rows of z in one sample, shape (rdm, rdm), and the number of its pairs."""
    times = (w[first] * w[second]).astype(np.float64)
    count = float(times.sum())
    if method in CENTRED and count:
        z = z - (z @ times / count)[:, None]
    link = 1.0 if covariance is None else _links(covariance)[first, second]
    found = (z * (times * link)) @ z.T
    if method not in WHITENED:
        return found, count
    left, right = (side.ravel() for side in np.indices(found.shape))
    plain, w = found.reshape(1, -1), w[None].astype(np.float64)
    return _whitened(plain, z, left, right, first, second, w, covariance).reshape(found.shape), count


def inner_products(
    z: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    weights: np.ndarray,
    method: str,
    covariance: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Inner products of the rows ``z[left]`` and ``z[right]`` in every sample, and the number of its pairs.

    Parameters
    ----------
    z : array of shape (rdm, pair)
        Complete; best `rescaled`.
    left, right : int arrays of shape (product,)
    first, second : int arrays of shape (pair,)
        The stimuli of each pair; pairs that are not listed are unknown.
    weights : array of shape (sample, stimulus)
    method : {"cosine", "pearson", "cosine-whitened", "pearson-whitened"}

    Returns
    -------
    products : ndarray of shape (sample, product)
    count : ndarray of shape (sample,)
    """
    whitened, centred = method in WHITENED, method in CENTRED
    n_rows, n_products = len(z), len(left)
    if centred and whitened:  # products with the constant RDM, by which the mean is taken out
        z = np.concatenate([z, np.ones((1, z.shape[1]))])
        every = np.arange(n_rows)
        left = np.concatenate([left, every, [n_rows]])
        right = np.concatenate([right, np.full(n_rows + 1, n_rows)])
    link = None if covariance is None else _links(covariance)[first, second]
    found = np.empty((len(weights), n_products))
    counts = np.empty(len(weights))
    for start in range(0, len(weights), _SAMPLES):
        block = slice(start, start + _SAMPLES)
        w = np.ascontiguousarray(weights[block].T, dtype=np.float64)
        moments = np.zeros(1)
        for pair in range(0, len(first), _PAIRS):
            part = slice(pair, pair + _PAIRS)
            times = w[first[part]]
            times *= w[second[part]]
            of_part = None if link is None else link[part]
            moments = moments + _moments(z[:, part], left, right, n_rows if centred else 0, of_part, times)
        products, count = moments[:, : len(left)], moments[:, -1]
        if whitened:
            products = _whitened(products, z, left, right, first, second, w.T, covariance)
        if centred:
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = moments[:, len(left) : -1] / count[:, None]
            a, b = mean[:, left[:n_products]], mean[:, right[:n_products]]
            if whitened:
                with_one, ones = products[:, n_products:-1], products[:, -1:]
                shared = a * with_one[:, right[:n_products]] + b * with_one[:, left[:n_products]] - a * b * ones
            else:
                shared = a * b * count[:, None]
            products = products[:, :n_products] - shared
        found[block] = products
        counts[block] = count
    return found, counts


def _moments(
    z: np.ndarray, left: np.ndarray, right: np.ndarray, n_means: int, link: np.ndarray | None, times: np.ndarray
) -> np.ndarray:
    """Weighted sums of products, of the first `n_means` rows, and of ones, shape (sample, sum)."""
    terms = np.empty((len(left) + n_means + 1, z.shape[1]))
    np.multiply(z[left], z[right], out=terms[: len(left)])
    if link is not None:
        terms[: len(left)] *= link
    terms[len(left) : -1] = z[:n_means]
    terms[-1] = 1
    return (terms @ times).T


def _links(covariance: np.ndarray) -> np.ndarray:
    """``1 / (2 s_i s_j)`` for every pair of stimuli, s their variances."""
    variances = np.asarray(covariance, np.float64)
    return 1 / (2 * np.outer(variances, variances))


def _whitened(
    plain: np.ndarray,
    z: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    w: np.ndarray,
    covariance: np.ndarray | None,
) -> np.ndarray:
    """Inner products with the inverse of V in between, from those without, shape (sample, product)."""
    n_stimuli = w.shape[1]
    matrices = np.zeros((len(z), n_stimuli, n_stimuli))
    matrices[:, first, second] = z
    known = np.zeros((n_stimuli, n_stimuli))
    known[first, second] = 1
    known += known.T
    total = w.sum(1, keepdims=True)
    g = 2 + total - 2 * w
    if covariance is None and len(first) == n_stimuli * (n_stimuli - 1) // 2:
        closed = (g != 0).all(1)
    else:
        closed = np.zeros(len(w), bool)
    found = np.empty_like(plain)
    if closed.any():
        sums = _row_sums(matrices, w[closed])
        share = w[closed] / g[closed]
        weighted = sums * share[:, None]
        totals = weighted.sum(2)
        both = (weighted @ sums.transpose(0, 2, 1))[:, left, right]
        rest = totals[:, left] * totals[:, right] / (1 + share.sum(1, keepdims=True))
        found[closed] = (plain[closed] - both + rest) / 2
    if not closed.all():
        variances = np.ones(n_stimuli) if covariance is None else np.asarray(covariance, np.float64)
        link = known * _links(variances)
        size = max(1, _SYSTEMS // n_stimuli**2)
        others = np.flatnonzero(~closed)
        for start in range(0, len(others), size):
            rows = others[start : start + size]
            sums = _row_sums(matrices * link, w[rows])
            system = link * w[rows, None, :]
            diagonal = np.arange(n_stimuli)
            system[:, diagonal, diagonal] = 1 / variances**2 + w[rows] @ link
            solved = np.linalg.solve(system, sums.transpose(0, 2, 1))
            both = ((sums * w[rows, None]) @ solved)[:, left, right]
            found[rows] = (plain[rows] if covariance is not None else plain[rows] / 2) - both
    return found


def _row_sums(upper: np.ndarray, w: np.ndarray) -> np.ndarray:
    """``sum_j w_j d_ij`` of matrices given by their upper triangles, shape (sample, rdm, stimulus)."""
    matrices = upper + upper.transpose(0, 2, 1)
    sums = w @ matrices.reshape(-1, w.shape[1]).T
    return sums.reshape(len(w), len(matrices), -1)


def _by_products(
    x: np.ndarray,
    y: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    weights: np.ndarray,
    method: str,
    covariance: np.ndarray | None,
) -> np.ndarray:
    z, _ = rescaled(np.concatenate([x, y]), method in CENTRED)
    m, s = len(x), len(y)
    if len(weights) == 1:
        found, n_pairs = gram(z, first, second, weights[0], method, covariance)
        square = norms(np.diag(found)[None], np.array([n_pairs]))[0]
        return (found[:m, m:] / np.sqrt(np.outer(square[:m], square[m:])))[None]
    i, j = np.divmod(np.arange(m * s), s)
    every = np.arange(m + s)
    left, right = np.concatenate([i, every]), np.concatenate([m + j, every])
    products, count = inner_products(z, left, right, first, second, weights, method, covariance)
    square = norms(products[:, m * s :], count)
    norm = np.sqrt(square[:, :m, None] * square[:, None, m:])
    return products[:, : m * s].reshape(-1, m, s) / norm


def norms(square: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Squared norms of `rescaled` RDMs, NaN where a sample is constant but for rounding, or too small."""
    count = count[:, None]
    return np.where((square > 1e-12 * count) & (count >= 3), square, np.nan)


def sorted_groups(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs by rising dissimilarity, and the number of the group of ties at each place, both (rdm, pair)."""
    order = np.argsort(vectors, axis=1).astype(np.int32)
    values = np.take_along_axis(vectors, order, axis=1)
    group = np.zeros(order.shape, np.int32)
    np.cumsum(values[:, 1:] != values[:, :-1], axis=1, out=group[:, 1:])
    return order, group


def sample_batches(n: int, title: str, size: int = 25) -> Iterator[slice]:
    """Slices of `n` samples for the compiled loops, which report no progress of their own."""
    for k in progress(-(-n // size), title):
        yield slice(k * size, min(n, (k + 1) * size))


def _by_ranks(
    x: np.ndarray, y: np.ndarray, first: np.ndarray, second: np.ndarray, weights: np.ndarray, method: str
) -> np.ndarray:
    loops = compiled()
    samples = np.full((len(weights), len(x), len(y)), np.nan)
    if loops is None:
        one = _by_repetition if method.startswith("tau") else _by_rank_of_group
        return one(x, y, first, second, weights, method)
    order, group = sorted_groups(np.concatenate([x, y]))
    counts = np.ascontiguousarray(weights, dtype=np.int64)
    for batch in sample_batches(len(weights), "stimulus bootstrap"):
        samples[batch] = loops.similarities(order, group, len(x), first, second, counts[batch], RANKS.index(method))
    return samples


def _by_rank_of_group(
    x: np.ndarray, y: np.ndarray, first: np.ndarray, second: np.ndarray, weights: np.ndarray, method: str
) -> np.ndarray:
    """Spearman's correlation or rho-a without numba: mid-ranks of the groups of ties from one cumulative sum."""
    samples = np.full((len(weights), len(x), len(y)), np.nan)
    groups = rankdata(np.concatenate([x, y]), method="dense", axis=1).astype(np.intp) - 1
    for k in progress(len(weights), "stimulus bootstrap"):
        times = weights[k].take(first) * weights[k].take(second)
        present = np.flatnonzero(times)
        times = times.take(present)
        count = float(times.sum())
        if count < 3:
            continue
        ranks = np.stack([group_ranks(group.take(present), times) for group in groups])
        weighted = ranks * times
        cross = weighted[: len(x)] @ ranks[len(x) :].T
        square = np.einsum("rp,rp->r", weighted, ranks)
        square[square == 0] = np.nan  # ranks are whole or half numbers: a constant sample gives exactly 0
        norm = np.sqrt(np.outer(square[: len(x)], square[len(x) :]))
        if method == "rho-a":
            norm[~np.isnan(norm)] = (count**3 - count) / 12
        samples[k] = cross / norm
    return samples


def group_ranks(member: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Centred mid-ranks of values that occur `times` and are given by the rank of their group of ties."""
    occurs = np.bincount(member, times)
    # The last rank of a group, back by half of its ties, relative to the mean rank.
    return (np.cumsum(occurs) - (occurs - 1) / 2 - (times.sum() + 1) / 2).take(member)


def _by_repetition(
    x: np.ndarray, y: np.ndarray, first: np.ndarray, second: np.ndarray, weights: np.ndarray, method: str
) -> np.ndarray:
    """Kendall's tau without numba: every pair repeated as often as it occurs."""
    samples = np.full((len(weights), len(x), len(y)), np.nan)
    for k in progress(len(weights), "stimulus bootstrap"):
        pairs = np.repeat(np.arange(len(first)), weights[k][first] * weights[k][second])
        samples[k] = plain_similarities(x[:, pairs], y[:, pairs], method)
    return samples


def check_weights(weights: np.ndarray, n_pairs: int, name: str = "weights") -> np.ndarray:
    """Multiplicities of stimuli as int64, or a ValueError that says what is wrong with them."""
    weights = np.asarray(weights)
    n_stimuli = n_stimuli_of(n_pairs)
    if weights.ndim != 2 or weights.shape[1] != n_stimuli:
        raise ValueError(f"{name} has shape {weights.shape}; expected (sample, {n_stimuli}), one column per stimulus.")
    counts = weights.astype(np.int64)
    if (counts != weights).any() or (counts < 0).any():
        raise ValueError(f"{name} must hold multiplicities, whole numbers from 0; see resample_weights.")
    return counts
