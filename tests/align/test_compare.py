import warnings

import numpy as np
import pytest
from scipy.spatial.distance import squareform
from scipy.stats import kendalltau, pearsonr, rankdata, spearmanr

from neuralign.align.compare import METHODS, compare, rsa_ceiling
from neuralign.align.inference import (
    bootstrap_comparison,
    bootstrap_similarities,
    percentile_interval,
    permutation_comparison,
    permutation_p,
    permutation_similarities,
)
from neuralign.datasets.rdms import RDMs


def tau_a(x, y):
    """Slow reference: signs over all pairs of pairs."""
    first, second = np.triu_indices(len(x), 1)
    return float(np.mean(np.sign(x[first] - x[second]) * np.sign(y[first] - y[second])))


def rho_a(x, y):
    m = len(x)
    rx, ry = rankdata(x) - (m + 1) / 2, rankdata(y) - (m + 1) / 2
    return 12 * float(rx @ ry) / (m**3 - m)


REFERENCE = {
    "pearson": lambda x, y: pearsonr(x, y).statistic,
    "spearman": lambda x, y: spearmanr(x, y).statistic,
    "rho-a": rho_a,
    "tau-a": tau_a,
    "cosine": lambda x, y: float(x @ y / np.sqrt((x @ x) * (y @ y))),
}


def vectors(n, n_stimuli, seed, ties=False):
    """Negative dissimilarities and, with `ties`, few distinct values."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=n_stimuli * (n_stimuli - 1) // 2)
    found = common + rng.normal(size=(n, len(common)))
    return np.round(found) if ties else found


def explicit_samples(x, y, method, n, seed):
    """Slow reference: resampled matrices, pairs of a stimulus with itself dropped."""
    n_stimuli = len(squareform(x[0]))
    samples = np.empty((n, len(x), len(y)))
    for k, sampled in enumerate(np.random.default_rng(seed).integers(n_stimuli, size=(n, n_stimuli))):
        first, second = np.triu_indices(n_stimuli, 1)
        apart = sampled[first] != sampled[second]
        for i, one in enumerate(x):
            for j, other in enumerate(y):
                pairs = [squareform(side)[sampled][:, sampled][first, second][apart] for side in (one, other)]
                known = ~np.isnan(pairs[0]) & ~np.isnan(pairs[1])
                samples[k, i, j] = REFERENCE[method](pairs[0][known], pairs[1][known])
    return samples


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_equals_reference(method, ties):
    a, b = vectors(3, 12, 0, ties), vectors(2, 12, 1, ties)
    found = compare(a, b, method)
    expected = [[REFERENCE[method](x, y) for y in b] for x in a]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


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
    a, b = RDMs(vectors(2, 6, 0), ids), RDMs(vectors(3, 6, 1), ids)
    expected = compare(a.vectors, b.vectors, method)
    np.testing.assert_allclose(compare(a, b.reorder(ids[::-1]), method), expected, rtol=1e-12)
    with pytest.raises(ValueError, match=r"b is over other stimuli: 1 ids are missing \(first \['f'\]\)"):
        compare(a, RDMs(b.vectors, list("abcdex")), method)


@pytest.mark.parametrize("method", METHODS)
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
            assert found[i, j] == pytest.approx(REFERENCE[method](a[i, known], b[j, known]), rel=1e-12)
    assert np.isnan(found[:, 2]).all()


@pytest.mark.parametrize("method", METHODS)
def test_constant_rdm_is_nan(method):
    a = vectors(2, 8, 0)
    a[1] = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = compare(a, a, method)
    assert len(caught) == 1 and "3 of 4 comparisons are NaN" in str(caught[0].message)
    np.testing.assert_allclose(found, [[1, np.nan], [np.nan, np.nan]])


def test_constant_up_to_representation():
    """0.1 cannot be represented and its mean rounds: the RDM is constant nevertheless."""
    with pytest.warns(UserWarning, match="1 of 1"):
        assert np.isnan(compare(np.full(45, 0.1), vectors(1, 10, 0), "pearson")).all()


def test_two_stimuli_are_not_enough():
    with pytest.warns(UserWarning, match="fewer than three pairs"):
        assert np.isnan(compare(np.ones((1, 1)), np.ones((2, 1)))).all()


@pytest.mark.parametrize(
    "a, b, message",
    [
        (np.ones((1, 10)), np.ones((1, 6)), r"10 pairs \(5 stimuli\) and b 6 \(4 stimuli\)"),
        (np.ones((1, 9)), np.ones((1, 9)), r"a has shape \(1, 9\)"),
        (np.ones((2, 5, 5)), np.ones((1, 10)), "from_matrices"),
        (np.eye(66), np.ones((1, 66)), r"symmetric matrix of shape \(66, 66\)"),
        (np.full((1, 10), np.inf), np.ones((1, 10)), "infinite"),
    ],
)
def test_bad_input(a, b, message):
    with pytest.raises(ValueError, match=message):
        compare(a, b)


def test_unknown_method():
    with pytest.raises(ValueError, match="method='rho_a' is unknown; did you mean 'rho-a'"):
        compare(np.ones(10), np.ones(10), "rho_a")
    with pytest.raises(ValueError, match="'tau-c'"):
        rsa_ceiling(vectors(3, 5, 0), "tau-c")


@pytest.mark.parametrize("method", METHODS)
def test_no_model_passes_the_upper_ceiling(method):
    """The pool is the best model there is (for tau-a only nearly so); the lower bound is below it."""
    replicates = vectors(4, 8, 0)
    lower, upper = rsa_ceiling(replicates, method)
    candidates = np.concatenate([vectors(200, 8, 0), replicates])
    best = compare(candidates, replicates, method).mean(1).max()
    assert lower < upper and best <= upper + (0.01 if method == "tau-a" else 1e-12)


def test_ceiling_does_not_depend_on_scale_or_order():
    replicates = vectors(4, 8, 0)
    for method in METHODS:
        np.testing.assert_allclose(
            rsa_ceiling(replicates[::-1] * [[1], [2], [30], [0.1]], method), rsa_ceiling(replicates, method)
        )


@pytest.mark.parametrize("method", METHODS)
def test_ceiling_with_unknown_pairs(method):
    """Every pair is pooled over the replicates that know it."""
    replicates = vectors(4, 8, 0)
    replicates[0, :6] = replicates[2, 4:9] = np.nan
    terms = []
    for row in replicates:
        known = ~np.isnan(row)
        term = np.full(len(row), np.nan)
        if method in ("pearson", "cosine"):
            term[known] = row[known] - (row[known].mean() if method == "pearson" else 0)
            term /= np.sqrt(np.nanmean(term**2))
        else:
            term[known] = rankdata(row[known])
        terms.append(term)
    others = [np.nanmean([*terms[:k], *terms[k + 1 :]], axis=0) for k in range(4)]
    lower = np.mean([compare(other, row, method) for other, row in zip(others, replicates, strict=True)])
    upper = np.mean(compare(np.nanmean(terms, axis=0), replicates, method))
    assert rsa_ceiling(replicates, method) == pytest.approx((lower, upper), rel=1e-10)


def test_ceiling_of_one_rdm():
    with pytest.warns(UserWarning, match="at least two RDMs"):
        assert np.isnan(rsa_ceiling(vectors(1, 8, 0))).all()


@pytest.mark.parametrize("method", METHODS)
def test_ceiling_with_a_constant_replicate(method):
    replicates = vectors(3, 8, 0)
    replicates[0] = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert np.isnan(rsa_ceiling(replicates, method)).all()
    assert len(caught) == 1


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_bootstrap_equals_explicit_resampling(method, ties):
    x, y = vectors(2, 15, 0, ties), vectors(3, 15, 1, ties)
    found = bootstrap_similarities(x, y, method, 25, seed=7)
    np.testing.assert_allclose(found, explicit_samples(x, y, method, 25, 7), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(bootstrap_comparison(x, y, method, 25, seed=7), found.mean(2))


@pytest.mark.parametrize("method", METHODS)
def test_bootstrap_equals_explicit_resampling_with_unknown_pairs(method):
    x, y = vectors(2, 15, 0, ties=True), vectors(2, 15, 1)
    x[1, [0, 8, 30]] = np.nan
    y[0, [8, 50]] = np.nan
    found = bootstrap_similarities(x, y, method, 10, seed=7)
    np.testing.assert_allclose(found, explicit_samples(x, y, method, 10, 7), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["pearson", "rho-a", "spearman", "tau-a"])
def test_bootstrap_of_a_category_model_can_miss_a_category(method):
    """With five stimuli some samples hold one category only: NaN there, and only there."""
    model = squareform((np.arange(5) < 2)[:, None] != (np.arange(5) < 2)).astype(float)
    samples = bootstrap_comparison(model, vectors(1, 5, 0), method, 400, seed=0)[:, 0]
    counts = np.random.default_rng(0).integers(5, size=(400, 5))
    constant = []
    for sampled in counts:
        pairs = squareform(model)[sampled][:, sampled][np.triu_indices(5, 1)]
        apart = sampled[np.triu_indices(5, 1)[0]] != sampled[np.triu_indices(5, 1)[1]]
        other = squareform(vectors(1, 5, 0)[0])[sampled][:, sampled][np.triu_indices(5, 1)][apart]
        constant.append(apart.sum() < 3 or np.ptp(pairs[apart]) == 0 or np.ptp(other) == 0)
    assert 20 < sum(constant) < 200
    np.testing.assert_array_equal(np.isnan(samples), constant)
    with pytest.warns(UserWarning, match=f"{sum(constant)} of 400 resamples"):
        low, high = percentile_interval(samples[:, None])
    assert low[0] < high[0]


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_permutation_equals_explicit_shuffling(method, unknown):
    x, y = vectors(2, 8, 0, ties=True), vectors(3, 8, 1)
    if unknown:
        y[1, [3, 4]] = np.nan
    found = permutation_similarities(x, y, method, 20, seed=5)
    rng = np.random.default_rng(5)
    first, second = np.triu_indices(8, 1)
    for sample in found:
        labels = rng.permutation(8)
        shuffled = np.stack([squareform(row)[labels][:, labels][first, second] for row in x])
        np.testing.assert_allclose(sample, compare(shuffled, y, method), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(permutation_comparison(x, y, method, 20, seed=5), found.mean(2))


def test_resampling_joins_by_id_and_follows_the_seed():
    ids = list("abcdefgh")
    x, y = RDMs(vectors(2, 8, 0), ids), RDMs(vectors(2, 8, 1), ids)
    for resample in (bootstrap_comparison, permutation_comparison):
        samples = resample(x, y.reorder(ids[::-1]), "rho-a", 30, seed=3)
        assert samples.shape == (30, 2)
        np.testing.assert_allclose(samples, resample(x, y, "rho-a", 30, seed=np.random.default_rng(3)))
        assert not np.allclose(samples, resample(x, y, "rho-a", 30, seed=4))


def test_permutation_p_counts():
    null = np.array([[0.1, 0.1, 0.1], [0.2, 0.2, 0.2], [0.3, 0.3, np.nan]])
    np.testing.assert_allclose(permutation_p([0.25, 0.3 + 1e-15, 0.25], null), [2 / 4, 2 / 4, 2 / 4])
    np.testing.assert_allclose(permutation_p([9.0, np.nan, -9.0], null), [1 / 4, np.nan, 1.0])


def test_percentile_interval():
    samples = np.stack([np.linspace(0, 1, 1001), np.full(1001, np.nan)], axis=1)
    low, high = percentile_interval(samples)
    np.testing.assert_allclose([low[0], high[0]], [0.025, 0.975])
    assert np.isnan([low[1], high[1]]).all()
    np.testing.assert_allclose(np.ravel(percentile_interval(samples[:, :1], 0.5)), [0.25, 0.75])
    with pytest.raises(ValueError, match="level=95"):
        percentile_interval(samples, 95)
