"""Comparisons of RDMs as kernels: Bures similarity and Riemannian distance.

Squared Euclidean distances D determine the centred kernel ``K = -HDH/2`` of the patterns, H the centring, and the
kernel decides whether D can be squared distances at all: it has no negative eigenvalue.
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy.linalg import cholesky, eigh, solve_triangular
from scipy.optimize import minimize_scalar

from ...datasets.rdms import n_stimuli_of

# Sum of the negative eigenvalues, as a share of all, that is more than the rounding of float32 dissimilarities, whose
# share is up to 4e-7 for 1000 stimuli.
NEGATIVE = 1e-5


def centred_kernel(vectors: np.ndarray) -> np.ndarray:
    """``-HDH/2`` of every row.

    Parameters
    ----------
    vectors : array of shape (rdm, pair)
        Squared distances, without NaN.

    Returns
    -------
    ndarray of shape (rdm, stimulus, stimulus)
    """
    D = _matrices(vectors)
    D -= D.mean(1, keepdims=True)
    D -= D.mean(2, keepdims=True)
    return D / -2


def bures(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Normalised Bures similarity of the centred kernels, ``tr((K^1/2 L K^1/2)^1/2) / sqrt(tr K tr L)``.

    With ``K = UU'`` and ``L = WW'`` the numerator is the sum of the singular values of ``U'W``; no square root is
    taken of a rounded eigenvalue, which would cost half of the digits where patterns have fewer dimensions than there
    are stimuli. It is the cosine of the Procrustes angle between the patterns.

    Parameters
    ----------
    a, b : arrays of shape (rdm, pair)
        Squared distances, without NaN. Negative eigenvalues of their kernels are left out, of the traces too.

    Returns
    -------
    ndarray of shape (rdm of a, rdm of b), from 0 to 1
        NaN where a kernel has no positive eigenvalue.
    """
    left = [_factor(kernel) for kernel in centred_kernel(a)]
    right = left if b is a else [_factor(kernel) for kernel in centred_kernel(b)]
    result = np.full((len(left), len(right)), np.nan)
    for i, U in enumerate(left):
        for j, W in enumerate(right):
            if U.size and W.size:
                result[i, j] = np.linalg.svd(U.T @ W, compute_uv=False).sum()
    return np.minimum(result, 1.0)


def warn_indefinite(vectors: np.ndarray, name: str) -> None:
    """One warning that counts the RDMs that are not squared Euclidean distances, so that `bures` leaves parts out."""
    complete = vectors[~np.isnan(vectors).any(1)]
    shares = []
    for kernel in centred_kernel(complete):
        values = np.linalg.eigvalsh(kernel)
        total = np.abs(values).sum()
        shares.append(-values[values < 0].sum() / total if total > 0 else 0.0)
    indefinite = [share for share in shares if share > NEGATIVE]
    if indefinite:
        warnings.warn(
            f"{len(indefinite)} of {len(vectors)} RDMs in {name} are not squared Euclidean distances; Bures similarity "
            f"leaves out the negative eigenvalues of their kernels, up to {max(indefinite):.2g} of the sum of all.",
            stacklevel=3,
        )


def riemannian(a: np.ndarray, b: np.ndarray, covariance: np.ndarray | None = None) -> np.ndarray:
    """Negative Riemannian distance from every model, with noise fitted to it, to every RDM of data.

    With G the second moments of the contrasts of all stimuli to the first, and S those of the noise, it is

        -min over t0, t1 of || log eig(exp(t0) G_a + exp(t1) S, G_b) ||

    As t0 only shifts the logarithms, the best one makes their mean 0: what is left is a search over t1 - t0, whose
    both ends, the model without noise and noise alone, are looked at too.

    Parameters
    ----------
    a, b : arrays of shape (rdm, pair)
        Squared distances, without NaN: of models and of data. Noise is added to the models, so the two sides are not
        alike.
    covariance : array of shape (stimulus,) or (stimulus, stimulus), optional
        Of the noise over stimuli; the identity by default.

    Returns
    -------
    ndarray of shape (rdm of a, rdm of b), at most 0
        NaN where an RDM of `b` is not of full rank: its patterns span fewer dimensions than stimuli less one, or it
        is no squared Euclidean distance. The distance is then infinite.
    """
    n = n_stimuli_of(a.shape[1])
    S = np.eye(n) if covariance is None else np.diag(covariance) if covariance.ndim == 1 else covariance
    noise = S[1:, 1:] - S[1:, :1] - S[:1, 1:] + S[0, 0]
    models, data = _moments(a), _moments(b)
    result = np.full((len(models), len(data)), np.nan)
    for j, G in enumerate(data):
        values = np.linalg.eigvalsh(G)
        if not values[0] > n * np.finfo(np.float64).eps * values[-1]:
            continue
        L = cholesky(G, lower=True)
        B = _relative(noise, L)
        for i, M in enumerate(models):
            if M.any():
                result[i, j] = -_fitted_distance(_relative(M, L), B)
    return result


def _fitted_distance(A: np.ndarray, B: np.ndarray) -> float:
    """Least spread of the log eigenvalues of ``A + exp(t) B`` over t; B is positive definite."""

    def spread(M: np.ndarray) -> float:
        # The distance of a singular matrix is infinite; here it is so large that no other loses to it.
        logarithms = np.log(np.maximum(np.linalg.eigvalsh(M), np.finfo(np.float64).tiny))
        return float(np.var(logarithms) * len(logarithms))

    relative = eigh(A, B, eigvals_only=True)
    least = max(-relative[0], 0.0)  # the noise from which on the sum has no negative eigenvalue

    def at(s: float) -> float:
        return spread(A + (least + np.exp(s)) * B)

    # Noise far below the smallest or above the largest eigenvalue changes nothing.
    top = np.log(np.abs(relative).max())
    bottom = np.log(max(relative[0], np.exp(top - 30)))
    grid = np.arange(bottom - 6, top + 7, 1.0)
    found = [at(s) for s in grid]
    centre = grid[np.argmin(found)]
    best = minimize_scalar(at, bounds=(centre - 1, centre + 1), method="bounded", options={"xatol": 1e-7})
    return float(np.sqrt(min(best.fun, *found, spread(A), spread(B))))


def _relative(M: np.ndarray, L: np.ndarray) -> np.ndarray:
    """``L**-1 M L'**-1``, whose eigenvalues are those of M relative to ``LL'``."""
    half = solve_triangular(L, M, lower=True)
    whole = solve_triangular(L, half.T, lower=True)
    return (whole + whole.T) / 2


def _factor(kernel: np.ndarray) -> np.ndarray:
    """U with ``UU'`` the positive part of the kernel, divided by its trace."""
    values, vectors = np.linalg.eigh(kernel)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0)
    values = values[kept]
    return vectors[:, kept] * np.sqrt(values / values.sum())


def _moments(vectors: np.ndarray) -> np.ndarray:
    """Second moments of the contrasts of all stimuli to the first, shape (rdm, stimulus - 1, stimulus - 1)."""
    D = _matrices(vectors)
    return (D[:, 1:, :1] + D[:, :1, 1:] - D[:, 1:, 1:]) / 2


def _matrices(vectors: np.ndarray) -> np.ndarray:
    n = n_stimuli_of(vectors.shape[1])
    first, second = np.triu_indices(n, 1)
    D = np.zeros((len(vectors), n, n))
    D[:, first, second] = D[:, second, first] = vectors
    return D
