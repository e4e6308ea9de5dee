"""Centred kernel alignment and distance correlation, against their definitions written out."""

import itertools
import warnings

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform

from neuralign.align.similarity import similarity


def hsic_over_tuples(K, L):
    """The U-statistic of HSIC as a mean over all ordered sets of four different stimuli."""
    terms = [
        K[i, j] * L[i, j] + K[i, j] * L[q, r] - 2 * K[i, j] * L[i, q]
        for i, j, q, r in itertools.permutations(range(len(K)), 4)
    ]
    return float(np.mean(terms))


def hsic_by_sums(K, L):
    """The same through matrices without their diagonals (Song et al. 2012), in float64 products of n x n."""
    n, one = len(K), np.ones(len(K))
    K, L = (M - np.diag(np.diag(M)) for M in (K, L))
    total = np.trace(K @ L) + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ K @ L @ one
    return float(total / (n * (n - 3)))


def cka_by_kernels(K, L):
    n = len(K)
    H = np.eye(n) - 1 / n
    K, L = H @ K @ H, H @ L @ H
    return np.trace(K @ L) / np.sqrt(np.trace(K @ K) * np.trace(L @ L))


def debiased_by(hsic, K, L):
    return hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))


def units_by_pairs(X, Y):
    """CKA from HSIC between single units, over pairs of different units within each side."""
    between = np.mean([hsic_by_sums(np.outer(a, a), np.outer(b, b)) for a in X.T for b in Y.T])
    within = [
        np.mean([hsic_by_sums(np.outer(a, a), np.outer(b, b)) for a, b in itertools.permutations(side.T, 2)])
        for side in (X, Y)
    ]
    return between / np.sqrt(within[0] * within[1])


def related(seed, n, p, q, noise=0.7):
    rng = np.random.default_rng(seed)
    code = rng.normal(size=(n, 3))
    return [code @ rng.normal(size=(3, w)) + noise * rng.normal(size=(n, w)) + 5 * rng.normal(size=w) for w in (p, q)]


# More stimuli than features, fewer, and one side of each: the three ways the products are taken.
SHAPES = [(30, 5, 7), (12, 40, 33), (15, 4, 60), (15, 60, 4), (10, 10, 10)]


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_cka_is_the_alignment_of_centred_kernels(shape):
    X, Y = related(0, *shape)
    assert similarity("cka", X, Y) == pytest.approx(cka_by_kernels(X @ X.T, Y @ Y.T), abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_debiased_cka_is_the_ratio_of_unbiased_sums(shape):
    X, Y = related(1, *shape)
    expected = debiased_by(hsic_by_sums, X @ X.T, Y @ Y.T)
    assert similarity("cka-debiased", X, Y) == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize(("n", "p", "q"), [(7, 3, 2), (8, 9, 4), (4, 3, 3), (5, 6, 7)])
def test_debiased_cka_is_the_u_statistic_over_sets_of_four(n, p, q):
    X, Y = related(2, n, p, q)
    expected = debiased_by(hsic_over_tuples, X @ X.T, Y @ Y.T)
    assert similarity("cka-debiased", X, Y) == pytest.approx(expected, abs=1e-11)
    assert debiased_by(hsic_by_sums, X @ X.T, Y @ Y.T) == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize(("n", "p", "q"), [(9, 4, 3), (12, 20, 15)])
def test_units_are_compared_in_pairs_of_different_ones(n, p, q):
    X, Y = related(3, n, p, q, noise=0.2)
    assert similarity("cka-debiased-units", X, Y) == pytest.approx(units_by_pairs(X, Y), rel=1e-10)


@pytest.mark.parametrize("name", ["cka", "cka-debiased", "cka-debiased-units", "cka-rbf"])
@pytest.mark.parametrize("scale", [1e-120, 1e-3, 1e120])
def test_no_constant_in_the_denominator_takes_over_at_a_small_scale(name, scale):
    X, Y = related(4, 20, 6, 5, noise=0.2)
    assert similarity(name, scale * X, scale * Y) == pytest.approx(similarity(name, X, Y), rel=1e-9)
    # What adding 1e-6 to the denominator, as one public version does, would give for features around 1e-3.
    A, B = (1e-3 * (side - side.mean(0)) for side in (X, Y))
    spoilt = np.linalg.norm(B.T @ A) ** 2 / (np.linalg.norm(A.T @ A) * np.linalg.norm(B.T @ B) + 1e-6)
    assert spoilt < 0.1 < similarity("cka", X, Y)


def test_an_offset_of_a_million_leaves_ten_digits():
    X, Y = related(5, 25, 6, 8)
    for name in ("cka", "cka-debiased", "cka-rbf", "distance-correlation"):
        assert similarity(name, X + 1e6, Y) == pytest.approx(similarity(name, X, Y), abs=1e-8)


@pytest.mark.parametrize(
    ("n", "p", "q", "expected"),
    [(50, 50, 50, 0.500), (50, 500, 500, 0.909), (200, 50, 50, 0.200), (200, 500, 500, 0.714), (100, 1000, 30, 0.458)],
)
def test_chance_of_cka_grows_with_features_and_that_of_the_debiased_form_stays_0(n, p, q, expected):
    assert np.sqrt(p * q / ((p + n) * (q + n))) == pytest.approx(expected, abs=6e-4)
    rng = np.random.default_rng(0)
    draws = [(rng.normal(size=(n, p)), rng.normal(size=(n, q))) for _ in range(8)]
    assert np.mean([similarity("cka", *draw) for draw in draws]) == pytest.approx(expected, abs=0.02)
    assert abs(np.mean([similarity("cka-debiased", *draw) for draw in draws])) < 0.015


def test_few_units_of_one_code_agree_only_once_pairs_of_units_are_corrected_for():
    """Twenty times ten noisy units of either of two populations with a common code of 20 dimensions: truth is 1."""
    rng = np.random.default_rng(0)
    corrected, debiased = [], []
    for _ in range(20):
        code = rng.normal(size=(300, 20))
        X, Y = (
            np.tanh(code @ rng.normal(size=(20, 10)) / np.sqrt(20)) + 0.3 * rng.normal(size=(300, 10)) for _ in range(2)
        )
        corrected.append(similarity("cka-debiased-units", X, Y))
        debiased.append(similarity("cka-debiased", X, Y))
    assert np.mean(corrected) == pytest.approx(1, abs=0.1)
    assert np.mean(debiased) < 0.5
    assert np.max(corrected) > 1  # an unbiased ratio is not held below its truth


def test_units_that_share_nothing_have_no_value():
    rng = np.random.default_rng(1)
    values, n_warned = [], 0
    for _ in range(20):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            values.append(similarity("cka-debiased-units", rng.normal(size=(40, 6)), rng.normal(size=(40, 6))))
        assert len(caught) == np.isnan(values[-1])
        n_warned += len(caught)
    assert n_warned > 5
    X, Y = related(6, 20, 4, 4)
    with pytest.warns(UserWarning, match="Y has a single unit, so no pair of units"):
        assert np.isnan(similarity("cka-debiased-units", X, Y[:, :1]))


@pytest.mark.parametrize("name", ["cka-debiased", "cka-rbf-debiased", "distance-correlation-debiased"])
def test_stimuli_all_equally_far_apart_have_no_unbiased_variance(name):
    """Neither the 0 nor the infinity of a division by what rounding leaves, but NaN and a reason."""
    Y = related(7, 12, 5, 5)[1]
    with pytest.warns(UserWarning, match=f"'{name}' is NaN: the unbiased variance of X is not positive") as caught:
        assert np.isnan(similarity(name, 3.3 * np.eye(12), Y))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="of X and Y is not positive"):
        assert np.isnan(similarity(name, np.eye(12), np.eye(12)[::-1]))
    assert np.isfinite(similarity("cka", np.eye(12), Y))


@pytest.mark.parametrize("bandwidth", ["median-all", "median-off-diagonal"])
@pytest.mark.parametrize("threshold", [0.4, 1.0])
def test_gaussian_kernels_are_as_wide_as_the_median_asked_for(bandwidth, threshold):
    X, Y = related(8, 14, 6, 9)
    kernels = []
    for side in (X, Y):
        squared = squareform(pdist(side, "sqeuclidean"))
        median = np.median(squared if bandwidth == "median-all" else pdist(side, "sqeuclidean"))
        kernels.append(np.exp(-squared / (2 * threshold**2 * median)))
    options = {"bandwidth": bandwidth, "threshold": threshold}
    assert similarity("cka-rbf", X, Y, **options) == pytest.approx(cka_by_kernels(*kernels), abs=1e-12)
    expected = debiased_by(hsic_by_sums, *kernels)
    assert similarity("cka-rbf-debiased", X, Y, **options) == pytest.approx(expected, abs=1e-11)


def test_the_two_medians_differ_and_the_published_one_counts_the_diagonal():
    X, Y = related(8, 14, 6, 9)
    every, others = (similarity("cka-rbf", X, Y, bandwidth=one) for one in ("median-all", "median-off-diagonal"))
    assert abs(every - others) > 1e-4
    assert similarity("cka-rbf", X, Y) == every


def test_wide_gaussian_kernels_are_linear():
    X, Y = related(9, 20, 6, 9)
    far = [abs(similarity("cka-rbf", X, Y, threshold=t) - similarity("cka", X, Y)) for t in (0.5, 10.0, 100.0)]
    assert far[0] > 1e-2
    assert far[1] < far[0] / 20
    assert far[2] < 1e-4


def test_bad_options_of_gaussian_kernels():
    X, Y = related(9, 20, 6, 9)
    with pytest.raises(ValueError, match="bandwidth='median' is unknown; did you mean 'median-all'"):
        similarity("cka-rbf", X, Y, bandwidth="median")
    with pytest.raises(ValueError, match="threshold=0 must be positive"):
        similarity("cka-rbf", X, Y, threshold=0)
    X[:15] = X[0]
    with pytest.warns(UserWarning, match="median distance in X is 0, so the kernel has no width"):
        assert np.isnan(similarity("cka-rbf", X, Y))
    with pytest.warns(UserWarning, match="median distance in Y is 0"):
        assert np.isnan(similarity("cka-rbf-debiased", Y, X))


def distance_correlations_by_loops(X, Y):
    """Biased and bias-corrected, with every centring written as a sum."""
    n = len(X)
    centred, u_centred = [], []
    for side in (X, Y):
        D = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in side] for a in side])
        A, U = np.zeros((n, n)), np.zeros((n, n))
        for i, j in itertools.product(range(n), repeat=2):
            rows, columns = sum(D[i, k] for k in range(n)), sum(D[k, j] for k in range(n))
            A[i, j] = D[i, j] - rows / n - columns / n + D.sum() / n**2
            if i != j:
                U[i, j] = D[i, j] - (rows + columns) / (n - 2) + D.sum() / ((n - 1) * (n - 2))
        centred.append(A)
        u_centred.append(U)
    cosines = [(a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()) for a, b in (centred, u_centred)]
    return np.sqrt(cosines[0]), cosines[1]


@pytest.mark.parametrize(("n", "p", "q"), [(4, 1, 1), (9, 3, 2), (15, 30, 4)])
def test_distance_correlation_is_its_definition(n, p, q):
    X, Y = related(10, n, p, q)
    biased, corrected = distance_correlations_by_loops(X, Y)
    assert similarity("distance-correlation", X, Y) == pytest.approx(biased, abs=1e-12)
    assert similarity("distance-correlation-debiased", X, Y) == pytest.approx(corrected, abs=1e-12)


def test_distance_correlation_sees_what_no_linear_measure_does():
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)[:, None]
    X, Y = np.cos(angle), np.cos(2 * angle)
    assert similarity("cka", X, Y) < 1e-20
    assert similarity("distance-correlation", X, Y) > 0.4
    assert similarity("distance-correlation-debiased", X, Y) > 0.15


def test_close_stimuli_keep_their_distance_at_a_large_offset():
    """Distances of 1e-5 between pairs, 1e3 away from zero: a difference of squares would lose them."""
    rng = np.random.default_rng(11)
    X = np.repeat(rng.normal(size=(6, 4)), 2, axis=0) + 1e-5 * rng.normal(size=(12, 4)) + 1e3
    Y = rng.normal(size=(12, 3))
    assert similarity("distance-correlation", X, Y) == pytest.approx(distance_correlations_by_loops(X, Y)[0], abs=1e-10)
