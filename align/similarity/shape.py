"""Distances between shapes: what is left between two clouds of patterns after the best rotation or permutation.

One stimulus is one point; X and Y are the same points in two spaces. All measures here are angles, cosines or
lengths in the space of centred clouds, after the alignment that brings the two as close as it can.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.base import BaseEstimator

from ...datasets.errors import unknown
from .cards import SimilarityCard, centred, measure, prepared, prepared_as_fitted

DISTANCES = (None, "angular", "euclidean", "squared")

# Directions with less than this share of the largest singular value are rounding, not data.
RANK = 1e-10


class Shape(BaseEstimator):
    """Shape metric of Williams et al. (2021): partial whitening, then the best rotation of one cloud onto the other.

    With Xc the centred X and eigenvalues lam, eigenvectors V of ``Xc' Xc``, X is first taken to ``Xc Z`` with
    ``Z = V (alpha + (1 - alpha) lam**-0.5) V'``, rescaled so that its total variance stays that of X. Between
    0 and 1, alpha weighs the two terms in the units of the data: there the result depends on their scale.

    Parameters
    ----------
    alpha : float between 0 and 1
        1: rotations only (Procrustes). 0: any invertible linear map; the cosine is then the mean canonical
        correlation (of ``sqrt(p q)`` terms where the dimensions p and q differ).
    distance : {"angular", "euclidean", "squared", None}
        With c the cosine ``<X Q, Y> / (|X| |Y|)`` after alignment:

        ===============  =================================================================================
        ``None``         c
        ``"angular"``    ``arccos c`` in radians
        ``"euclidean"``  ``|X Q - Y|``, Frobenius norm, in the units of the data
        ``"squared"``    ``2 - 2 c``: the square for clouds of norm 1 (Ding et al. 2021)
        ===============  =================================================================================

    Notes
    -----
    Fitted on some stimuli and scored on others, the rotation cannot profit from noise. The side with fewer
    dimensions counts as padded with zeros. Directions in which the stimuli of the fit do not vary are neither
    amplified nor aligned with anything. Small angles are taken from the residual, as arccos loses half of the
    digits near c = 1.

    References
    ----------
    Williams et al. (2021), NeurIPS 34:4738. Ding et al. (2021), NeurIPS 34:1556.
    """

    def __init__(self, alpha: float = 1.0, distance: str | None = "angular") -> None:
        self.alpha = alpha
        self.distance = distance

    def fit(self, X: np.ndarray, Y: np.ndarray) -> Shape:
        """Means, partial whitening and rotation from X (stimulus, p) and Y (stimulus, q)."""
        X, Y = prepared(X, Y, "shape")
        _check_distance(self.distance)
        self.x_ = _Whitening(X, self.alpha)
        self.y_ = _Whitening(Y, self.alpha)
        self.rotation_x_, self.rotation_y_ = _rotations(self.x_(X), self.y_(Y))
        return self

    def transform(self, X: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both sides in the shared space, each (stimulus, dimension)."""
        X, Y = prepared_as_fitted(X, Y, "shape", (len(self.x_.mean), len(self.y_.mean)))
        return self.x_(X) @ self.rotation_x_, self.y_(Y) @ self.rotation_y_

    def score(self, X: np.ndarray, Y: np.ndarray) -> float:
        """The distance (or cosine) of two sides of the same stimuli under the fitted maps."""
        X, Y = prepared_as_fitted(X, Y, "shape", (len(self.x_.mean), len(self.y_.mean)))
        A, B = self.x_(X), self.y_(Y)
        left, right = A @ self.rotation_x_, B @ self.rotation_y_
        return _compared(left, right, A - left @ self.rotation_x_.T, B - right @ self.rotation_y_.T, self.distance)


class Procrustes(Shape):
    """`Shape` with alpha = 1, whose score is the cosine unless a distance is asked for."""

    def __init__(self, distance: str | None = None) -> None:
        super().__init__(1.0, distance)


class Permutation(BaseEstimator):
    """Best one-to-one matching of units, by their covariance over stimuli (Williams et al. 2021).

    Parameters
    ----------
    distance : {"angular", "euclidean", "squared", None}
        As in `Shape`, with a permutation in place of the rotation. Units left over are matched with zeros.

    Notes
    -----
    A metric among representations with as many units. Across numbers of units it is not: units that would rather
    meet zeros find some only when the other side has units to spare.
    """

    def __init__(self, distance: str | None = "angular") -> None:
        self.distance = distance

    def fit(self, X: np.ndarray, Y: np.ndarray) -> Permutation:
        """Means and matching from X (stimulus, p) and Y (stimulus, q)."""
        X, Y = prepared(X, Y, "permutation")
        _check_distance(self.distance)
        self.mean_x_, self.mean_y_ = np.mean(X, axis=0), np.mean(Y, axis=0)
        self.units_x_, self.units_y_ = linear_sum_assignment(centred(X).T @ centred(Y), maximize=True)
        return self

    def score(self, X: np.ndarray, Y: np.ndarray) -> float:
        """The distance (or cosine) of two sides of the same stimuli under the fitted matching."""
        X, Y = prepared_as_fitted(X, Y, "permutation", (len(self.mean_x_), len(self.mean_y_)))
        A, B = X - self.mean_x_, Y - self.mean_y_
        return _compared(
            A[:, self.units_x_],
            B[:, self.units_y_],
            np.delete(A, self.units_x_, axis=1),
            np.delete(B, self.units_y_, axis=1),
            self.distance,
        )


class _Whitening:
    """``x -> (x - mean) Z`` of `Shape`, held as its p x rank factors: Z itself would be p x p."""

    def __init__(self, X: np.ndarray, alpha: float) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha!r}; expected a number from 0 (linear maps) to 1 (rotations).")
        self.mean = np.mean(X, axis=0)
        self.alpha, self.scale = alpha, 1.0
        if alpha < 1:
            _, length, Vt = np.linalg.svd(centred(X), full_matrices=False)
            kept = length > RANK * length[0]
            self.axes, length = Vt[kept].T, length[kept]
            self.gains = (1 - alpha) / length
            self.scale = float(np.linalg.norm(length) / np.linalg.norm(alpha * length + (1 - alpha)))

    def __call__(self, X: np.ndarray) -> np.ndarray:
        X = X - self.mean
        if self.alpha == 1:
            return X
        return self.scale * (self.alpha * X + (X @ self.axes * self.gains) @ self.axes.T)


def _rotations(A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal columns U (p, rank) and V (q, rank) for which ``<A U, B V>`` is the nuclear norm of ``A' B``."""
    short_a, basis_a = _reduced(A)
    short_b, basis_b = _reduced(B)
    U, size, Vt = np.linalg.svd(short_a.T @ short_b, full_matrices=False)
    # Only what both sides span is aligned; a smaller value pairs directions at random.
    kept = size > RANK * size[0]
    U, V = U[:, kept], Vt[kept].T
    return (U if basis_a is None else basis_a @ U), (V if basis_b is None else basis_b @ V)


def _reduced(A: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """A (n, p) with p > n as ``short @ basis.T`` in n dimensions; None for a basis that is not needed."""
    if A.shape[1] <= A.shape[0]:
        return A, None
    basis, short = np.linalg.qr(A.T)
    return short.T, basis


def nuclear_norm(A: np.ndarray, B: np.ndarray) -> float:
    """Sum of the singular values of ``A' B`` for A (n, p) and B (n, q), from its smallest equal in size.

    Singular values, not roots of eigenvalues: of a kernel of low rank those keep only half of the digits.
    """
    return float(np.linalg.svd(_reduced(A)[0].T @ _reduced(B)[0], compute_uv=False).sum())


def _compared(
    left: np.ndarray, right: np.ndarray, left_over: np.ndarray, right_over: np.ndarray, distance: str | None
) -> float:
    """Cosine or distance of two aligned clouds and of what each has beyond them, which meets zeros."""
    norms = [float(np.hypot(np.linalg.norm(a), np.linalg.norm(b))) for a, b in ((left, left_over), (right, right_over))]
    if min(norms) == 0:
        return float("nan")
    if distance is None:
        return float(np.vdot(left, right)) / (norms[0] * norms[1])
    if distance == "euclidean":
        return float(np.sqrt(sum(np.linalg.norm(part) ** 2 for part in (left - right, left_over, right_over))))
    parts = (left / norms[0] - right / norms[1], left_over / norms[0], right_over / norms[1])
    square = float(sum(np.linalg.norm(part) ** 2 for part in parts))
    if distance == "squared":
        return square
    return float(2 * np.arcsin(min(np.sqrt(square) / 2, 1.0)))


def _check_distance(distance: str | None) -> None:
    if distance not in DISTANCES:
        raise ValueError(unknown("distance", distance, DISTANCES, "None gives the cosine."))


@measure(
    SimilarityCard(
        name="procrustes",
        title="Procrustes similarity",
        formula="|Yc'Xc|_* / (|Xc| |Yc|): cosine of the angle that the best rotation leaves",
        citation="Williams et al. (2021), NeurIPS 34:4738; Ding et al. (2021), NeurIPS 34:1556",
        low=0.0,
        high=1.0,
        larger_is_more_similar=True,
        symmetric=True,
        metric=True,
        distance="arccos",
        biased=True,
        unbiased_form="cross-validate",
        invariances=frozenset({"orthogonal", "isotropic-scaling", "translation"}),
        fits=True,
    ),
    Procrustes,
)
def procrustes(X: np.ndarray, Y: np.ndarray, distance: str | None = None) -> float:
    """Cosine of the Procrustes angle, or one of the distances of `Shape`."""
    return _in_sample(X, Y, distance)


@measure(
    SimilarityCard(
        name="shape",
        title="Shape metric of the alpha family",
        formula="arccos <X Zx Q, Y Zy>/(|X Zx||Y Zy|), Z = V (alpha + (1-alpha) lam^-1/2) V' of Xc'Xc, rotation Q; "
        "alpha = 1 by default (Procrustes angle), alpha = 0: arccos of the mean canonical correlation",
        citation="Williams et al. (2021), NeurIPS 34:4738",
        low=0.0,
        high=float(np.pi / 2),
        larger_is_more_similar=False,
        symmetric=True,
        metric=True,
        distance="value",
        biased=True,
        unbiased_form="cross-validate",
        invariances=frozenset({"orthogonal", "isotropic-scaling", "translation"}),
        fits=True,
        chance=lambda n_stimuli: float(np.pi / 2),
    ),
    Shape,
)
def shape(X: np.ndarray, Y: np.ndarray, alpha: float = 1.0, distance: str | None = "angular") -> float:
    """Distance of `Shape`, fitted and scored on the same stimuli."""
    return Shape(alpha, distance).fit(X, Y).score(X, Y)


@measure(
    SimilarityCard(
        name="bures",
        title="Normalised Bures similarity (NBS)",
        formula="tr sqrt(K^.5 L K^.5) / sqrt(tr K tr L) of the centred kernels K = XcXc', L = YcYc', "
        "= |Yc'Xc|_* / (|Xc| |Yc|); equals procrustes",
        citation="Tang et al. (2020), arXiv 2003.11370; Harvey et al. (2024), ICLR Re-Align",
        low=0.0,
        high=1.0,
        larger_is_more_similar=True,
        symmetric=True,
        metric=True,
        distance="arccos",
        biased=True,
        unbiased_form="cross-validate",
        invariances=frozenset({"orthogonal", "isotropic-scaling", "translation"}),
        fits=True,
    ),
    Procrustes,
)
def bures(X: np.ndarray, Y: np.ndarray, distance: str | None = None) -> float:
    """Normalised Bures similarity; with ``distance="euclidean"`` the Bures distance of the two kernels."""
    return _in_sample(X, Y, distance)


@measure(
    SimilarityCard(
        name="permutation",
        title="Permutation distance: one unit of X to one unit of Y",
        formula="arccos max_P <Xc P, Yc> / (|Xc| |Yc|) over permutations P, the smaller side padded with zeros; "
        "a metric among representations with as many units",
        citation="Williams et al. (2021), NeurIPS 34:4738",
        low=0.0,
        high=float(np.pi),
        larger_is_more_similar=False,
        symmetric=True,
        metric=False,
        biased=True,
        unbiased_form="cross-validate",
        invariances=frozenset({"permutation", "isotropic-scaling", "translation"}),
        fits=True,
        chance=lambda n_stimuli: float(np.pi / 2),
    ),
    Permutation,
)
def permutation(X: np.ndarray, Y: np.ndarray, distance: str | None = "angular") -> float:
    """Distance of `Permutation`, fitted and scored on the same stimuli."""
    return Permutation(distance).fit(X, Y).score(X, Y)


def _in_sample(X: np.ndarray, Y: np.ndarray, distance: str | None) -> float:
    if distance is not None:
        return Procrustes(distance).fit(X, Y).score(X, Y)
    X, Y = centred(X), centred(Y)
    return nuclear_norm(X, Y) / float(np.linalg.norm(X) * np.linalg.norm(Y))
