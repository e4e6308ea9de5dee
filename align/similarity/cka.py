"""Centred kernel alignment: linear, with Gaussian kernels, and without the bias of few stimuli or few units.

Every kernel below is centred over rows and columns (features less their means do that for a linear one). The
unbiased HSIC of such kernels is

    (<K, L> + tr K tr L / ((n - 1)(n - 2)) - n / (n - 2) sum_i K_ii L_ii) / (n (n - 3))

since the rows of K without its diagonal then sum to -K_ii; of linear kernels it needs no n x n matrix.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import squareform

from ...datasets.errors import unknown
from ..rdm import dissimilarities
from .cards import SimilarityCard, centred, measure, undefined

# An unbiased HSIC of a kernel with itself below this share of the biased one is rounding around zero.
LEAST_SHARE = 1e-12

BANDWIDTHS = ("median-all", "median-off-diagonal")

KORNBLITH = "Kornblith et al. (2019), ICML, arXiv 1905.00414"
SONG = "Song et al. (2012), JMLR 13:1393; Murphy, Zylberberg & Fyshe (2024), arXiv 2405.01012"


@measure(
    SimilarityCard(
        name="cka",
        title="Linear centred kernel alignment",
        formula="||Yc'Xc||_F^2 / (||Xc'Xc||_F ||Yc'Yc||_F)",
        citation=KORNBLITH,
        low=0.0,
        high=1.0,
        larger_is_more_similar=True,
        symmetric=True,
        metric=True,
        distance="arccos",
        biased=True,
        unbiased_form="cka-debiased",
        invariances=frozenset({"orthogonal", "isotropic-scaling", "translation"}),
    )
)
def cka(X: np.ndarray, Y: np.ndarray) -> float:
    """Linear CKA of X (stimulus, p) and Y (stimulus, q), in O(n p q) or O(n^2 (p + q)), whichever is less.

    Of independent Gaussians it is about sqrt(p q / ((p + n)(q + n))), not 0: with more features than stimuli
    near 1 whatever the two have in common. "cka-debiased" is around 0 there.
    """
    between, x, y = _alignments(_unit_norm(X), _unit_norm(Y))
    return between / np.sqrt(x * y)


@measure(
    SimilarityCard(
        name="cka-debiased",
        title="Linear CKA without the bias of few stimuli",
        formula="HSIC_u(K, L) / sqrt(HSIC_u(K, K) HSIC_u(L, L)), K = XX', L = YY', HSIC_u the U-statistic of HSIC",
        citation=SONG,
        low=-1.0,
        high=1.0,
        larger_is_more_similar=True,
        symmetric=True,
        metric=True,
        distance="arccos",
        biased=False,
        invariances=frozenset({"orthogonal", "isotropic-scaling", "translation"}),
        fewest_stimuli=4,
    )
)
def cka_debiased(X: np.ndarray, Y: np.ndarray) -> float:
    """CKA from unbiased HSIC: around 0 for independent representations, and negative as often as positive.

    It does not correct for few units: ten neurons of each of two populations with one code still look
    dissimilar ("cka-debiased-units"). NaN where one representation has no unbiased variance, as when all
    its stimuli are equally far from each other.
    """
    X, Y = _unit_norm(X), _unit_norm(Y)
    alignments = _alignments(X, Y)
    diagonals = (X * X).sum(1), (Y * Y).sum(1)
    return _ratio("cka-debiased", _unbiased(alignments, *diagonals), alignments[1:], len(X))


@measure(
    SimilarityCard(
        name="cka-debiased-units",
        title="Linear CKA without the bias of few stimuli and few units",
        formula="h(X, Y) / sqrt(h(X) h(Y)): h(X, Y) = HSIC_u(K, L) / (p q), "
        "h(X) = (HSIC_u(K, K) - sum_a HSIC_u(x_a x_a')) / (p (p - 1)), a the units",
        citation="The aim of Chun et al. (2025), arXiv 2502.15104: CKA of the populations that units were drawn from",
        low=-np.inf,
        high=np.inf,
        larger_is_more_similar=True,
        symmetric=True,
        metric=False,
        biased=False,
        invariances=frozenset({"permutation", "isotropic-scaling", "translation"}),
        fewest_stimuli=4,
    )
)
def cka_debiased_units(X: np.ndarray, Y: np.ndarray) -> float:
    """CKA of two populations of units, estimated from the units recorded.

    Denominators are means over pairs of different units, so that no unit is compared with itself. Unbiased
    numerator and denominators make a ratio that may pass 1 and that is NaN, with a warning, where a
    denominator is not positive: the units then share too little for the population to be known. A denominator
    that is barely positive gives values far from any truth: look at several draws of units before believing one.
    """
    X, Y = _unit_norm(X), _unit_norm(Y)
    p, q = X.shape[1], Y.shape[1]
    if min(p, q) < 2:
        return undefined("cka-debiased-units", f"{'X' if p < 2 else 'Y'} has a single unit, so no pair of units")
    alignments = _alignments(X, Y)
    between, x, y = _unbiased(alignments, (X * X).sum(1), (Y * Y).sum(1))
    pairs = p * (p - 1), q * (q - 1)
    unbiased = between / (p * q), (x - _units_hsic(X)) / pairs[0], (y - _units_hsic(Y)) / pairs[1]
    return _ratio("cka-debiased-units", unbiased, (alignments[1] / pairs[0], alignments[2] / pairs[1]), len(X))


@measure(
    SimilarityCard(
        name="cka-rbf",
        title="CKA of Gaussian kernels",
        formula="<HKH, HLH> / (||HKH||_F ||HLH||_F), K_ij = exp(-d_ij^2 / (2 t^2 median d^2))",
        citation=KORNBLITH,
        low=0.0,
        high=1.0,
        larger_is_more_similar=True,
        symmetric=True,
        metric=True,
        distance="arccos",
        biased=True,
        unbiased_form="cka-rbf-debiased",
        invariances=frozenset({"orthogonal", "isotropic-scaling", "translation"}),
    )
)
def cka_rbf(X: np.ndarray, Y: np.ndarray, *, threshold: float = 1.0, bandwidth: str = "median-all") -> float:
    """CKA of Gaussian kernels.

    Parameters
    ----------
    threshold : float
        The t of the formula: width of the kernel in units of the median distance. Towards infinity the value
        goes to that of "cka".
    bandwidth : str
        Of which squared distances the median is: "median-all" of all n^2, the zeros of the diagonal included,
        as Kornblith et al. have it; "median-off-diagonal" of pairs of different stimuli.
    """
    K, L = (_gaussian_kernel(side, threshold, bandwidth) for side in (X, Y))
    if K is None or L is None:
        return _no_width("cka-rbf", K is None)
    return float((K * L).sum() / np.sqrt((K * K).sum() * (L * L).sum()))


@measure(
    SimilarityCard(
        name="cka-rbf-debiased",
        title="CKA of Gaussian kernels without the bias of few stimuli",
        formula="HSIC_u(K, L) / sqrt(HSIC_u(K, K) HSIC_u(L, L)), K_ij = exp(-d_ij^2 / (2 t^2 median d^2))",
        citation=SONG,
        low=-1.0,
        high=1.0,
        larger_is_more_similar=True,
        symmetric=True,
        metric=True,
        distance="arccos",
        biased=False,
        invariances=frozenset({"orthogonal", "isotropic-scaling", "translation"}),
        fewest_stimuli=4,
    )
)
def cka_rbf_debiased(X: np.ndarray, Y: np.ndarray, *, threshold: float = 1.0, bandwidth: str = "median-all") -> float:
    """ "cka-rbf" from unbiased HSIC; the options are the same."""
    K, L = (_gaussian_kernel(side, threshold, bandwidth) for side in (X, Y))
    if K is None or L is None:
        return _no_width("cka-rbf-debiased", K is None)
    return unbiased_alignment("cka-rbf-debiased", K, L)


def double_centred(matrix: np.ndarray) -> np.ndarray:
    """H M H of a symmetric matrix (n, n), H = I - 11'/n."""
    means = matrix.mean(0)
    return matrix - means - means[:, None] + means.mean()


def unbiased_alignment(name: str, K: np.ndarray, L: np.ndarray) -> float:
    """HSIC_u(K, L) / sqrt(HSIC_u(K, K) HSIC_u(L, L)) of double-centred kernels (n, n); NaN with a warning."""
    alignments = float(np.vdot(K, L)), float(np.vdot(K, K)), float(np.vdot(L, L))
    return _ratio(name, _unbiased(alignments, np.diag(K), np.diag(L)), alignments[1:], len(K))


def _unit_norm(X: np.ndarray) -> np.ndarray:
    """Centred, of norm 1: CKA is the same at every scale, and products of tiny or huge values stay in range."""
    X = centred(X)
    X = X / np.abs(X).max()
    return X / np.linalg.norm(X)


def _alignments(X: np.ndarray, Y: np.ndarray) -> tuple[float, float, float]:
    """<K, L>, <K, K> and <L, L> of K = XX' and L = YY'; a kernel is formed only of a side wider than it is long."""
    K, L = (side @ side.T if side.shape[1] > len(side) else None for side in (X, Y))
    x, y = X.T @ X if K is None else K, Y.T @ Y if L is None else L
    if K is not None:
        between = np.vdot(K, L) if L is not None else np.vdot(Y, K @ Y)
    elif L is not None:
        between = np.vdot(X, L @ X)
    else:
        product = X.T @ Y
        between = np.vdot(product, product)
    return float(between), float(np.vdot(x, x)), float(np.vdot(y, y))


def _unbiased(alignments: tuple[float, float, float], k: np.ndarray, m: np.ndarray) -> tuple[float, float, float]:
    """Unbiased HSIC between K and L and of each with itself, from <K, L>, <K, K>, <L, L> and both diagonals (n,)."""
    n = len(k)
    diagonals = ((k, m), (k, k), (m, m))
    totals = [
        alignment + a.sum() * b.sum() / ((n - 1) * (n - 2)) - n / (n - 2) * (a @ b)
        for alignment, (a, b) in zip(alignments, diagonals, strict=True)
    ]
    between, x, y = (float(total / (n * (n - 3))) for total in totals)
    return between, x, y


def _units_hsic(X: np.ndarray) -> float:
    """Sum over units a of the unbiased HSIC of x_a x_a' with itself, in O(n p)."""
    n = len(X)
    squares = X * X
    total = (squares.sum(0) ** 2).sum() * (1 + 1 / ((n - 1) * (n - 2))) - n / (n - 2) * (squares * squares).sum()
    return float(total / (n * (n - 3)))


def _ratio(name: str, unbiased: tuple[float, float, float], biased: tuple[float, float], n: int) -> float:
    """Unbiased HSIC between both sides over the root of their own; `biased` holds <K, K> and <L, L>, their scale."""
    between, x, y = unbiased
    low = [side for side, own, scale in zip("XY", (x, y), biased, strict=True) if own <= LEAST_SHARE * scale / (n * n)]
    if low:
        return undefined(name, f"the unbiased variance of {' and '.join(low)} is not positive")
    return between / float(np.sqrt(x) * np.sqrt(y))


def _gaussian_kernel(X: np.ndarray, threshold: float, bandwidth: str) -> np.ndarray | None:
    """Double-centred Gaussian kernel (n, n); None where the median distance is 0."""
    if bandwidth not in BANDWIDTHS:
        raise ValueError(unknown("bandwidth", bandwidth, BANDWIDTHS))
    if not threshold > 0:
        raise ValueError(f"threshold={threshold!r} must be positive: it is a width in units of the median distance.")
    squared = squareform(dissimilarities(X, "sqeuclidean").vector)
    pairs = squared if bandwidth == "median-all" else squareform(squared, checks=False)
    width = float(np.median(pairs))
    if width == 0:
        return None
    return double_centred(np.exp(-squared / (2 * threshold**2 * width)))


def _no_width(name: str, first: bool) -> float:
    return undefined(name, f"the median distance in {'X' if first else 'Y'} is 0, so the kernel has no width")
