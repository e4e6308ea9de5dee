import sys
import warnings

import numpy as np
import pytest
from scipy.linalg import eigvalsh, sqrtm
from scipy.optimize import minimize
from scipy.spatial.distance import pdist, squareform
from scipy.stats import kendalltau, pearsonr, rankdata, spearmanr

from neuralign.align.compare import BY_PRODUCT, METHODS, compare, rsa_ceiling, similarities, standardised
from neuralign.datasets.rdms import RDMs, pair_lookup
from neuralign.encoders import products

AS_KERNELS = ("bures", "riemannian")  # of squared Euclidean distances
PER_PAIR = tuple(method for method in METHODS if method not in AS_KERNELS)
# The reference minimises two parameters by a simplex; its minimum is that much too large at most.
ABSOLUTE = {"riemannian": 1e-6}


def tau_a(x, y):
    """Slow reference: signs over all pairs of pairs."""
    first, second = np.triu_indices(len(x), 1)
    return float(np.mean(np.sign(x[first] - x[second]) * np.sign(y[first] - y[second])))


def rho_a(x, y):
    m = len(x)
    rx, ry = rankdata(x) - (m + 1) / 2, rankdata(y) - (m + 1) / 2
    return 12 * float(rx @ ry) / (m**3 - m)


def errors_covariance(n_stimuli, covariance=None):
    """V pair by pair, from its definition."""
    first, second = np.triu_indices(n_stimuli, 1)
    contrasts = np.eye(n_stimuli)[first] - np.eye(n_stimuli)[second]
    S = np.eye(n_stimuli) if covariance is None else np.diag(covariance) if covariance.ndim == 1 else covariance
    return (contrasts @ S @ contrasts.T) ** 2


def n_stimuli_of(x):
    return round((1 + np.sqrt(1 + 8 * len(x))) / 2)


def whitened_cosine(x, y, centred=False, covariance=None, known=None):
    """x and y may be part of a vector: that at the `known` of its pairs."""
    known = np.ones(len(x), bool) if known is None else known
    V = errors_covariance(n_stimuli_of(known), covariance)[known][:, known]
    if centred:
        x, y = x - x.mean(), y - y.mean()
    solved_x, solved_y = np.linalg.solve(V, x), np.linalg.solve(V, y)
    return float(x @ solved_y / np.sqrt((x @ solved_x) * (y @ solved_y)))


def bures_by_roots(x, y):
    """Matrix roots of the kernels on an orthonormal basis of the contrasts, where they are of full rank."""
    n = n_stimuli_of(x)
    basis = np.linalg.svd(np.eye(n) - 1 / n)[0][:, : n - 1]
    K, L = (-basis.T @ squareform(side) @ basis / 2 for side in (x, y))
    root = sqrtm(K).real
    return float(np.trace(sqrtm(root @ L @ root).real) / np.sqrt(np.trace(K) * np.trace(L)))


def riemannian_by_simplex(x, y):
    n = n_stimuli_of(x)
    P = np.hstack([-np.ones((n - 1, 1)), np.eye(n - 1)])
    G, H = (-P @ squareform(side) @ P.T / 2 for side in (x, y))

    def distance(theta):
        return np.sqrt((np.log(eigvalsh(np.exp(theta[0]) * G + np.exp(theta[1]) * P @ P.T, H)) ** 2).sum())

    options = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 2000}
    return -min(minimize(distance, start, method="Nelder-Mead", options=options).fun for start in ((0, 0), (0, -5)))


REFERENCE = {
    "cosine": lambda x, y: float(x @ y / np.sqrt((x @ x) * (y @ y))),
    "pearson": lambda x, y: pearsonr(x, y).statistic,
    "spearman": lambda x, y: spearmanr(x, y).statistic,
    "rho-a": rho_a,
    "tau-a": tau_a,
    "tau-b": lambda x, y: kendalltau(x, y).statistic,
    "cosine-whitened": whitened_cosine,
    "pearson-whitened": lambda x, y: whitened_cosine(x, y, centred=True),
    "bures": bures_by_roots,
    "riemannian": riemannian_by_simplex,
}


def vectors(n, n_stimuli, seed, ties=False, method="rho-a"):
    """Negative dissimilarities and, with `ties`, few distinct values; squared distances for methods on kernels."""
    rng = np.random.default_rng(seed)
    if method in AS_KERNELS:
        common = np.random.default_rng(1000).normal(size=(n_stimuli, 2 * n_stimuli))
        found = [pdist(common + rng.normal(size=common.shape), "sqeuclidean") for _ in range(n)]
        return np.round(found) if ties else np.array(found)
    common = rng.normal(size=n_stimuli * (n_stimuli - 1) // 2)
    found = common + rng.normal(size=(n, len(common)))
    return np.round(found) if ties else found


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_equals_reference(method, ties):
    a, b = vectors(3, 12, 0, ties, method), vectors(2, 12, 1, ties, method)
    found = compare(a, b, method)
    expected = [[REFERENCE[method](x, y) for y in b] for x in a]
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=ABSOLUTE.get(method, 1e-13))


@pytest.mark.parametrize("method", METHODS)
def test_a_stack_with_itself(method):
    """Computed with half of the work: every row is standardised or sorted once."""
    a = vectors(4, 9, 0, method=method)
    found = compare(a, a, method)
    np.testing.assert_allclose(found, compare(a, a.copy(), method), rtol=1e-12, atol=1e-13)
    if method != "riemannian":  # the noise is on one side there
        np.testing.assert_allclose(found, found.T, rtol=1e-12)
    np.testing.assert_allclose(np.diagonal(found), 0 if method == "riemannian" else 1, atol=1e-7)


def test_tau_a_is_kendall_without_ties():
    a, b = vectors(1, 20, 0), vectors(1, 20, 1)
    np.testing.assert_allclose(compare(a, b, "tau-a"), [[kendalltau(a[0], b[0]).statistic]], rtol=1e-12)


def test_rho_a_is_spearman_averaged_over_broken_ties():
    """The property the coefficient is chosen for (Schuett et al. 2023)."""
    rng = np.random.default_rng(0)
    x, y = np.round(vectors(2, 6, 3))
    broken = [spearmanr(x + 1e-6 * rng.random(len(x)), y + 1e-6 * rng.random(len(y))).statistic for _ in range(4000)]
    assert len(np.unique(x)) < 10
    standard_error = np.std(broken) / np.sqrt(len(broken))
    assert abs(np.mean(broken) - compare(x, y, "rho-a")[0, 0]) < 4 * standard_error


@pytest.mark.parametrize("method", METHODS)
def test_stimuli_are_joined_by_id(method):
    ids = list("abcdef")
    a, b = RDMs(vectors(2, 6, 0, method=method), ids), RDMs(vectors(3, 6, 1, method=method), ids)
    expected = compare(a.vectors, b.vectors, method)
    found = compare(a, b.reorder(ids[::-1]), method)
    np.testing.assert_allclose(found, expected, rtol=1e-9 if method == "riemannian" else 1e-12)
    with pytest.raises(ValueError, match=r"b is over other stimuli: 1 ids are missing \(first \['f'\]\)"):
        compare(a, RDMs(b.vectors, list("abcdex")), method)


@pytest.mark.parametrize("method", METHODS)
def test_input_is_left_alone(method):
    a, b = (RDMs(vectors(2, 6, seed, method=method), list("abcdef")) for seed in (0, 1))
    before = a.vectors.copy(), b.vectors.copy()
    compare(a, b, method)
    rsa_ceiling(a, method)
    np.testing.assert_array_equal(a.vectors, before[0])
    np.testing.assert_array_equal(b.vectors, before[1])


@pytest.mark.parametrize("method", METHODS)
def test_float32_and_integers(method):
    a, b = (vectors(2, 6, seed, ties=True, method=method) for seed in (0, 1))
    expected = compare(a, b, method)
    np.testing.assert_array_equal(compare(a.astype(np.float32), b.astype(np.int64), method), expected)


@pytest.mark.parametrize("method", PER_PAIR)
def test_unknown_pairs_are_left_out_of_their_comparisons(method):
    a, b = vectors(3, 10, 0, ties=True), vectors(3, 10, 1)
    a[0, [1, 5]] = np.nan
    b[1, [5, 7, 9]] = np.nan
    b[2] = np.nan
    with pytest.warns(UserWarning, match="3 of 9 comparisons are NaN"):
        found = compare(a, b, method)
    for i in range(3):
        for j in range(2):
            known = ~np.isnan(a[i]) & ~np.isnan(b[j])
            if method.endswith("whitened"):
                expected = whitened_cosine(a[i, known], b[j, known], method == "pearson-whitened", known=known)
            else:
                expected = REFERENCE[method](a[i, known], b[j, known])
            assert found[i, j] == pytest.approx(expected, rel=1e-11)
    assert np.isnan(found[:, 2]).all()


@pytest.mark.parametrize("method", METHODS)
def test_absent_stimuli_are_left_out(method):
    """Two stimuli that a replicate has not seen: the comparison is over the others, for every method."""
    a, b = vectors(2, 9, 0, method=method), vectors(2, 9, 1, method=method)
    seen = np.array([0, 1, 3, 4, 6, 7, 8])
    among = pair_lookup(9)[np.ix_(seen, seen)][np.triu_indices(len(seen), 1)]
    expected = compare(a, b, method)
    expected[:, 1] = compare(a[:, among], b[1:, among], method)[:, 0]
    b[1, ~np.isin(np.arange(36), among)] = np.nan
    np.testing.assert_allclose(compare(a, b, method), expected, rtol=1e-9)


@pytest.mark.parametrize("method", AS_KERNELS)
def test_kernels_need_all_pairs_of_a_stimulus(method):
    a, b = vectors(2, 8, 0, method=method), vectors(2, 8, 1, method=method)
    b[1, 3] = np.nan
    with pytest.warns(UserWarning, match="2 of 4 comparisons are NaN: .* a pair is unknown of stimuli"):
        found = compare(a, b, method)
    assert np.isnan(found[:, 1]).all() and not np.isnan(found[:, 0]).any()


@pytest.mark.parametrize("method", METHODS)
def test_constant_rdm_is_nan(method):
    a = vectors(2, 8, 0, method=method)
    a[1] = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = compare(a, a, method)
    assert len(caught) == 1 and "3 of 4 comparisons are NaN" in str(caught[0].message)
    own = 0 if method == "riemannian" else 1
    np.testing.assert_allclose(found, [[own, np.nan], [np.nan, np.nan]], atol=1e-7)


@pytest.mark.parametrize("method", ["pearson", "spearman", "tau-b", "pearson-whitened"])
def test_constant_up_to_representation(method):
    """0.1 cannot be represented and its mean rounds: the RDM is constant nevertheless."""
    with pytest.warns(UserWarning, match="1 of 1"):
        assert np.isnan(compare(np.full(45, 0.1), vectors(1, 10, 0), method)).all()
    gap = vectors(1, 10, 0)
    gap[0, 4] = np.nan
    with pytest.warns(UserWarning, match="1 of 1"):
        assert np.isnan(compare(np.full(45, 0.1), gap, method)).all()


@pytest.mark.parametrize("method", METHODS)
def test_two_stimuli_are_not_enough(method):
    with pytest.warns(UserWarning, match="2 of 2 comparisons are NaN"):
        assert np.isnan(compare(np.ones((1, 1)), np.ones((2, 1)), method)).all()


@pytest.mark.parametrize("method", METHODS)
def test_three_stimuli(method):
    """The least that can be compared; the closed forms of whitening have n - 2 in a denominator."""
    a, b = vectors(2, 3, 0, method=method), vectors(2, 3, 1, method=method)
    expected = [[REFERENCE[method](x, y) for y in b] for x in a]
    np.testing.assert_allclose(compare(a, b, method), expected, rtol=1e-10, atol=ABSOLUTE.get(method, 1e-13))


@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize("method", BY_PRODUCT)
def test_large_jobs_are_multiplied_in_float32(method, loaded, monkeypatch):
    """Off by less than 1e-6, and never beyond 1; only where nothing is missing and no covariance is given.

    By torch where it is loaded.
    """
    monkeypatch.setattr(products, "_LARGE", 1)
    if not loaded:
        monkeypatch.delitem(sys.modules, "torch")
    a, b = vectors(40, 30, 0), vectors(30, 30, 1)
    b[0] = 3 * a[0]
    b[1] = 0.1
    if method.startswith("cosine"):
        b[1] = 0
    with pytest.warns(UserWarning, match="40 of 1200"):
        exact = compare(a, b, method)
    module = sys.modules["neuralign.align.compare"]
    monkeypatch.setattr(module, "LARGE", a.size * len(b))
    monkeypatch.setattr(module, "PAIRS", 200)  # of 435
    with pytest.warns(UserWarning, match="40 of 1200"):
        found = compare(a, b, method)
    assert found.dtype == np.float64 and np.nanmax(np.abs(found)) <= 1
    assert 0 < np.nanmax(np.abs(found - exact)) < 1e-6
    np.testing.assert_allclose(compare(a, a, method), similarities(a, a, method), atol=1e-6)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(exact))
    b[2, 3] = np.nan
    with pytest.warns(UserWarning, match="40 of 1200"):
        np.testing.assert_allclose(np.delete(compare(a, b, method), 2, 1), np.delete(exact, 2, 1), atol=1e-13)


@pytest.mark.parametrize("method", BY_PRODUCT)
def test_relabelling_after_standardising(method):
    """What label permutations rely on."""
    x = vectors(3, 7, 0)
    labels = np.random.default_rng(1).permutation(7)
    moved = pair_lookup(7)[np.ix_(labels, labels)][np.triu_indices(7, 1)]
    np.testing.assert_allclose(standardised(x[:, moved], method), standardised(x, method)[:, moved], atol=1e-14)


def test_no_inner_product():
    with pytest.raises(ValueError, match=r"method='tau-b' is unknown.*no inner products"):
        standardised(vectors(2, 7, 0), "tau-b")


@pytest.mark.parametrize("shape", [(6,), (6, 6)])
@pytest.mark.parametrize("method", ["cosine-whitened", "pearson-whitened"])
def test_covariance_of_patterns(method, shape):
    rng = np.random.default_rng(3)
    covariance = 0.2 + rng.random(6)
    if len(shape) == 2:
        covariance = np.cov(rng.normal(size=(6, 20)))
    a, b = vectors(2, 6, 0), vectors(3, 6, 1)
    b[2, [0, 8]] = np.nan
    known = ~np.isnan(b)
    expected = [
        [
            whitened_cosine(x[here], y[here], method == "pearson-whitened", covariance, here)
            for y, here in zip(b, known, strict=True)
        ]
        for x in a
    ]
    np.testing.assert_allclose(compare(a, b, method, covariance=covariance), expected, rtol=1e-10)
    # A factor of the covariance is no matter, and equal variances are none.
    np.testing.assert_allclose(compare(a, b, method, covariance=7 * covariance), expected, rtol=1e-10)
    np.testing.assert_allclose(compare(a, b, method, covariance=np.full(6, 3.0)), compare(a, b, method), rtol=1e-10)


@pytest.mark.parametrize(
    "method, covariance, message",
    [
        ("pearson", np.ones(5), r"method='pearson' takes none; .* 'cosine-whitened', 'pearson-whitened', 'riemannian'"),
        ("cosine-whitened", np.ones(4), r"shape \(4,\); expected \(5,\) or \(5, 5\)"),
        ("cosine-whitened", np.eye(5)[None], r"shape \(1, 5, 5\)"),
        ("pearson-whitened", np.array([1, 1, 0, 1, 1]), "not positive definite: its smallest eigenvalue is 0, its"),
        ("riemannian", np.ones((5, 5)), "not positive definite"),
        ("riemannian", np.triu(np.ones((5, 5))), "not symmetric"),
        ("cosine-whitened", np.array([1, 1, np.nan, 1, 1]), "1 values that are NaN or infinite"),
    ],
)
def test_bad_covariance(method, covariance, message):
    a = vectors(2, 5, 0, method=method)
    with pytest.raises(ValueError, match=message):
        compare(a, a, method, covariance=covariance)
    with pytest.raises(ValueError, match=message):
        rsa_ceiling(a, method, covariance=covariance)


@pytest.mark.parametrize(
    "a, b, message",
    [
        (np.ones((1, 10)), np.ones((1, 6)), r"10 pairs \(5 stimuli\) and b 6 \(4 stimuli\)"),
        (np.ones((1, 9)), np.ones((1, 9)), r"a has shape \(1, 9\)"),
        (np.ones((2, 5, 5)), np.ones((1, 10)), "from_matrices"),
        (np.eye(66), np.ones((1, 66)), r"symmetric matrix of shape \(66, 66\)"),
        (np.full((1, 10), np.inf), np.ones((1, 10)), "infinite"),
        (np.ones((1, 10)), np.array([[np.inf, -np.inf, np.nan, *range(7)]]), "b holds infinite"),
    ],
)
def test_bad_input(a, b, message):
    with pytest.raises(ValueError, match=message):
        compare(a, b)


def test_huge_values_are_not_taken_for_infinite():
    """Their sum overflows, which must not be mistaken for a value that is missing or infinite."""
    a = vectors(2, 6, 0)
    np.testing.assert_allclose(compare(1e307 * (a + 9), a, "spearman"), compare(a, a, "spearman"), rtol=1e-12)


def test_unknown_method():
    with pytest.raises(ValueError, match="method='rho_a' is unknown; did you mean 'rho-a'"):
        compare(np.ones(10), np.ones(10), "rho_a")
    with pytest.raises(ValueError, match="'tau-c'"):
        rsa_ceiling(vectors(3, 5, 0), "tau-c")


def approximate(method):
    """By how much some RDM may surpass the pool, where that is not the best."""
    return {"tau-a": 0.01, "tau-b": 0.01, "bures": 1e-3}.get(method, 1e-12)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "riemannian"])
def test_no_model_passes_the_upper_ceiling(method):
    """The pool is the best model there is (for some methods only nearly so); the lower bound is below it."""
    replicates = vectors(4, 8, 0, method=method)
    lower, upper = rsa_ceiling(replicates, method)
    candidates = np.concatenate([vectors(200, 8, 0, method=method), replicates])
    best = compare(candidates, replicates, method).mean(1).max()
    assert lower < upper and best <= upper + approximate(method)


@pytest.mark.parametrize("n_stimuli", [8, 20])
def test_the_truth_lies_between_the_riemannian_ceilings(n_stimuli):
    """Models less noisy than the replicates may surpass the mean RDM there, as noise is fitted to them."""
    truth = pdist(np.random.default_rng(1000).normal(size=(n_stimuli, 2 * n_stimuli)), "sqeuclidean")
    replicates = vectors(6, n_stimuli, 0, method="riemannian")
    lower, upper = rsa_ceiling(replicates, "riemannian")
    assert lower < compare(truth, replicates, "riemannian").mean() < upper


@pytest.mark.parametrize("method", ["cosine", "pearson", "cosine-whitened", "pearson-whitened"])
def test_the_pool_is_a_maximum(method):
    """Any step away from it lowers the mean similarity: with a covariance of the patterns too."""
    replicates = vectors(4, 8, 0)
    covariance = np.cov(np.random.default_rng(2).normal(size=(8, 30))) if method.endswith("whitened") else None
    upper = rsa_ceiling(replicates, method, covariance=covariance)[1]
    rng = np.random.default_rng(1)
    candidates = np.concatenate([replicates.mean(0) + rng.normal(size=(100, 28)) * scale for scale in (0.01, 0.1, 1)])
    found = compare(candidates, replicates, method, covariance=covariance).mean(1)
    assert found.max() < upper
    near = minimize(
        lambda x: -similarities(x[None], replicates, method, covariance).mean(),
        candidates[np.argmax(found)],
        options={"gtol": 1e-9},
    )
    assert -near.fun == pytest.approx(upper, abs=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_ceiling_does_not_depend_on_scale_or_order(method):
    if method == "riemannian":
        pytest.skip("its pool is the mean RDM")
    replicates = vectors(4, 8, 0, method=method)
    scaled = replicates[::-1] * [[1], [2], [30], [0.1]]
    np.testing.assert_allclose(rsa_ceiling(scaled, method), rsa_ceiling(replicates, method))


def one_by_one(replicates, method, terms, covariance=None):
    """Ceiling by its definition: pools of means, one comparison at a time."""
    n = len(replicates)
    others = [np.nanmean([*terms[:k], *terms[k + 1 :]], axis=0) for k in range(n)]
    rows = [np.nanmean(terms, axis=0), *others]
    upper = [compare(rows[0], row, method, covariance=covariance)[0, 0] for row in replicates]
    lower = [compare(rows[1 + k], replicates[k], method, covariance=covariance)[0, 0] for k in range(n)]
    return np.mean(lower), np.mean(upper), np.mean(np.square(lower)), np.mean(np.square(upper))


@pytest.mark.parametrize("method", PER_PAIR)
def test_ceiling_with_unknown_pairs(method):
    """Every pair is pooled over the replicates that know it."""
    replicates = vectors(4, 8, 0)
    replicates[0, :6] = replicates[2, 4:9] = np.nan
    terms = []
    for row in replicates:
        known = ~np.isnan(row)
        term = np.full(len(row), np.nan)
        if method.startswith(("pearson", "cosine")):
            term[known] = row[known] - (row[known].mean() if method.startswith("pearson") else 0)
            V = errors_covariance(8)[known][:, known] if method.endswith("whitened") else np.eye(known.sum())
            term /= np.sqrt(term[known] @ np.linalg.solve(V, term[known]) / known.sum())
        else:
            term[known] = rankdata(row[known])
        terms.append(term)
    lower, upper, *_ = one_by_one(replicates, method, terms)
    assert rsa_ceiling(replicates, method) == pytest.approx((lower, upper), rel=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_ceiling_from_the_mean_rdm(method):
    """As the Algonauts project 2019 computes it: the mean of squared correlations with the plain mean RDM."""
    replicates = vectors(4, 8, 0, method=method) * np.array([[1], [2], [3], [1]])
    lower, upper, lower_squared, upper_squared = one_by_one(replicates, method, replicates)
    assert rsa_ceiling(replicates, method, pool="mean") == pytest.approx((lower, upper), rel=1e-10)
    found = rsa_ceiling(replicates, method, pool="mean", squared=True)
    assert found == pytest.approx((lower_squared, upper_squared), rel=1e-10)
    if method not in ("riemannian", "cosine"):  # there the plain mean is the pool, or nearly
        assert rsa_ceiling(replicates, method)[1] != pytest.approx(upper, rel=1e-6)


def test_unknown_pool():
    with pytest.raises(ValueError, match="pool='average' is unknown. Known: 'best', 'mean'"):
        rsa_ceiling(vectors(3, 5, 0), pool="average")


def test_ceiling_of_one_rdm():
    with pytest.warns(UserWarning, match="at least two RDMs"):
        assert np.isnan(rsa_ceiling(vectors(1, 8, 0))).all()


@pytest.mark.parametrize("method", METHODS)
def test_ceiling_with_a_constant_replicate(method):
    replicates = vectors(3, 8, 0, method=method)
    replicates[0] = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert np.isnan(rsa_ceiling(replicates, method)).all()
    assert len(caught) == 1
