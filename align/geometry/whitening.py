"""Whitened RDMs: the errors of dissimilarities that share a stimulus go together, and comparisons can allow for it.

Let S be the covariance of the errors of the patterns over stimuli. The errors of the squared distances d of all pairs
then have, up to a factor, the covariance V with

    V[p, q] = (c_p' S c_q)**2,        c_p = e_i - e_j the contrast of pair p = (i, j)

(Diedrichsen et al. 2020). V is pair by pair and never formed. As d_p = c_p' K c_p for a centred kernel K, it is
inverted in the space of stimuli: with D the matrix of dissimilarities,

    V**-1 d = offdiagonal(Q D Q) / 2,        Q = inv(S) - inv(S) 1 1' inv(S) / (1' inv(S) 1)

For independent stimuli of equal reliability, Q centres, and <d, V**-1 e> is the inner product of the centred kernels
-HDH/2: the whitened cosine of squared distances is linear CKA.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve

from ...datasets.rdms import n_stimuli_of
from .missing import known_stimuli, pairs_among, same_pattern

# Values whitened at a time by matrix products.
BLOCK = 1 << 22
# Unknown (or known) pairs that a dense solve takes: 512 MB.
LARGEST = 8000


def whitened(vectors: np.ndarray, covariance: np.ndarray | None = None) -> np.ndarray:
    """``V**-1 d`` of every row d, so that ``(whitened(a) * b).sum()`` is the whitened inner product.

    Parameters
    ----------
    vectors : array of shape (rdm, pair)
        NaN where a pair is unknown: V is then that of the known pairs.
    covariance : array of shape (stimulus,) or (stimulus, stimulus), optional
        S: variances, or covariances, of the errors of the patterns. The identity by default.

    Returns
    -------
    ndarray of shape (rdm, pair)
        NaN where `vectors` is.

    Raises
    ------
    ValueError
        For pairs unknown in no order, beyond `LARGEST`, together with a matrix of covariances.

    References
    ----------
    Diedrichsen, Berlot, Mur, Schuett, Shahbazi & Kriegeskorte (2020), arXiv:2007.02789.
    """
    n = n_stimuli_of(vectors.shape[1])
    result = np.full(vectors.shape, np.nan)
    for rows, known in same_pattern(vectors):
        stimuli = known_stimuli(known, n)
        if not len(stimuli):
            continue
        # What is known of absent stimuli is nothing: V is that of the others.
        pairs = pairs_among(stimuli, n) if len(stimuli) < n else np.arange(vectors.shape[1])
        among = known[pairs]
        values, errors = vectors[np.ix_(rows, pairs[among])], _of_stimuli(covariance, stimuli, n)
        if among.all():
            values = _complete(values, errors)
        elif errors.ndim == 1:
            values = _without_some(values, among, errors)
        else:
            values = _without_some_dense(values, among, errors)
        result[np.ix_(rows, pairs[among])] = values
    return result


def whitened_root(vectors: np.ndarray) -> np.ndarray:
    """``V**(-1/2) d`` of complete rows, for independent stimuli: vectors whose inner products are whitened ones.

    It has the shape of `vectors` and moves with the pairs when stimuli are relabelled.
    """
    n = n_stimuli_of(vectors.shape[1])
    # V is n on what is a sum over the two stimuli of a pair, 2n on constants, 2 on the rest.
    sums = _row_sums(vectors, np.ones(n))
    mean = sums.sum(1, keepdims=True) / (n * (n - 1))
    of_stimulus = (sums - (n - 1) * mean) / max(n - 2, 1) * (np.sqrt(1 / n) - np.sqrt(1 / 2))
    result = vectors * np.sqrt(1 / 2) + mean * (np.sqrt(1 / (2 * n)) - np.sqrt(1 / 2))
    for i, pairs in _blocks(n):
        result[:, pairs] += of_stimulus[:, i, None] + of_stimulus[:, i + 1 :]
    return result


def checked_covariance(covariance: np.ndarray, n_stimuli: int) -> np.ndarray:
    """Covariance over stimuli in float64.

    Raises
    ------
    ValueError
        For another shape than (stimulus,) or (stimulus, stimulus), or one that no errors can have.
    """
    covariance = np.asarray(covariance, np.float64)
    if covariance.shape not in ((n_stimuli,), (n_stimuli, n_stimuli)):
        raise ValueError(
            f"covariance has shape {covariance.shape}; expected ({n_stimuli},) or ({n_stimuli}, {n_stimuli}), the "
            "variances or covariances of the errors of the patterns over the stimuli."
        )
    if not np.isfinite(covariance).all():
        raise ValueError(f"covariance holds {(~np.isfinite(covariance)).sum()} values that are NaN or infinite.")
    if covariance.ndim == 1:
        smallest, largest = covariance.min(), covariance.max()
    else:
        if not np.allclose(covariance, covariance.T, rtol=0, atol=1e-8 * np.abs(covariance).max()):
            raise ValueError("covariance is not symmetric; average it with its transpose if both halves are estimates.")
        covariance = (covariance + covariance.T) / 2
        smallest, largest = np.linalg.eigvalsh(covariance)[[0, -1]]
    if smallest <= n_stimuli * np.finfo(np.float64).eps * largest or largest <= 0:
        raise ValueError(
            f"covariance is not positive definite: its smallest eigenvalue is {smallest:.3g}, its largest "
            f"{largest:.3g}. Shrink it towards its diagonal, or pass the variances alone."
        )
    return covariance


def _of_stimuli(covariance: np.ndarray | None, stimuli: np.ndarray, n: int) -> np.ndarray:
    if covariance is None:
        return np.ones(len(stimuli))
    if len(stimuli) == n:
        return covariance
    return covariance[stimuli] if covariance.ndim == 1 else covariance[np.ix_(stimuli, stimuli)]


def _complete(vectors: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """``offdiagonal(Q D Q) / 2``; with variances alone Q is a weighted centring, so sums over rows of D suffice."""
    n = len(covariance)
    if covariance.ndim == 2:
        first, second = np.triu_indices(n, 1)
        Q = _centred_inverse(covariance)
        result = np.empty(vectors.shape)
        step = max(1, BLOCK // n**2)
        for start in range(0, len(vectors), step):
            D = np.zeros((len(vectors[start : start + step]), n, n))
            D[:, first, second] = D[:, second, first] = vectors[start : start + step]
            result[start : start + step] = (Q @ D @ Q)[:, first, second] / 2
        return result
    weights = 1 / covariance
    sums = _row_sums(vectors, weights) / weights.sum()
    sums -= (sums @ weights / weights.sum() / 2)[:, None]
    result = np.empty(vectors.shape)
    for i, pairs in _blocks(n):
        centred = vectors[:, pairs] - (sums[:, i, None] + sums[:, i + 1 :])
        result[:, pairs] = centred * (weights[i] * weights[i + 1 :] / 2)
    return result


def _centred_inverse(covariance: np.ndarray) -> np.ndarray:
    """Q: the inverse on contrasts between stimuli."""
    inverse = cho_solve(cho_factor(covariance), np.eye(len(covariance)))
    total = inverse.sum(0)
    Q = inverse - np.outer(total, total) / total.sum()
    return (Q + Q.T) / 2


def _without_some(values: np.ndarray, known: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """V is ``A S**2 A' + 2 diag(s_i s_j)``, A the pairs by stimuli: a solve of the size of the stimuli."""
    n = len(variances)
    first, second = (side[known] for side in np.triu_indices(n, 1))
    private = 1 / (2 * variances[first] * variances[second])
    middle = np.zeros((n, n))
    middle[first, second] = middle[second, first] = private
    middle[np.diag_indices(n)] = middle.sum(1) + variances**-2
    scaled = values * private
    sums = np.stack([np.bincount(first, row, n) + np.bincount(second, row, n) for row in scaled])
    shared = solve(middle, sums.T, assume_a="pos").T
    return scaled - private * (shared[:, first] + shared[:, second])


def _without_some_dense(values: np.ndarray, known: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The unknown pairs take the values at which they have no weight, or V of the known pairs is solved."""
    unknown = ~known
    if min(known.sum(), unknown.sum()) > LARGEST:
        raise ValueError(
            f"covariance is a matrix and {unknown.sum()} of {len(known)} pairs are unknown; beyond {LARGEST} give the "
            "variances alone, or leave stimuli out until the other pairs are known."
        )
    first, second = np.triu_indices(len(covariance), 1)
    if known.sum() < unknown.sum():
        i, j = first[known], second[known]
        S = covariance
        V = (S[np.ix_(i, i)] - S[np.ix_(i, j)] - S[np.ix_(j, i)] + S[np.ix_(j, j)]) ** 2
        return solve(V, values.T, assume_a="pos").T
    i, j = first[unknown], second[unknown]
    Q = _centred_inverse(covariance)
    W = (Q[np.ix_(i, i)] * Q[np.ix_(j, j)] + Q[np.ix_(i, j)] * Q[np.ix_(j, i)]) / 2  # V**-1 at the unknown pairs
    filled = np.zeros((len(values), len(known)))
    filled[:, known] = values
    filled[:, unknown] = -solve(W, _complete(filled, covariance)[:, unknown].T, assume_a="pos").T
    return _complete(filled, covariance)[:, known]


def _blocks(n: int) -> list[tuple[int, slice]]:
    """(stimulus i, pairs of i with the stimuli after it)."""
    ends = np.cumsum(np.arange(n - 1, 0, -1))
    return [(i, slice(int(end) - (n - 1 - i), int(end))) for i, end in enumerate(ends)]


def _row_sums(vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``sum_j w_j d_ij`` of complete rows, shape (rdm, stimulus)."""
    n = len(weights)
    sums = np.zeros((len(vectors), n))
    for i, pairs in _blocks(n):
        sums[:, i] += vectors[:, pairs] @ weights[i + 1 :]
        sums[:, i + 1 :] += weights[i] * vectors[:, pairs]
    return sums
