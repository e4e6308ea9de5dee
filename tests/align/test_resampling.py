import itertools

import numpy as np
import pytest
from scipy.spatial.distance import squareform
from scipy.stats import pearsonr, rankdata, spearmanr

from neuralign.align.compare import compare, similarities
from neuralign.align.inference import (
    bootstrap_comparison,
    bootstrap_similarities,
    percentile_interval,
    permutation_comparison,
    permutation_p,
    permutation_similarities,
)
from neuralign.align.inference.resampling import permutation_variance
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
@pytest.mark.parametrize("method", list(REFERENCE))
def test_bootstrap_equals_explicit_resampling(method, ties):
    x, y = vectors(2, 15, 0, ties), vectors(3, 15, 1, ties)
    found = bootstrap_similarities(x, y, method, 25, seed=7)
    np.testing.assert_allclose(found, explicit_samples(x, y, method, 25, 7), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(bootstrap_comparison(x, y, method, 25, seed=7), found.mean(2))


@pytest.mark.parametrize("method", list(REFERENCE))
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
@pytest.mark.parametrize("method", list(REFERENCE))
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


@pytest.mark.parametrize("method", ["pearson", "rho-a", "spearman", "pearson-whitened"])
@pytest.mark.parametrize("n_stimuli", [3, 4, 6])
def test_permutation_variance_is_that_of_all_orders(method, n_stimuli):
    """Also of three stimuli, of which no two pairs are without a stimulus in common."""
    x, y = vectors(2, n_stimuli, 0), vectors(3, n_stimuli, 1)
    of_mean, own = permutation_variance(x, y, method)
    first, second = np.triu_indices(n_stimuli, 1)
    matrices = np.array([squareform(one) for one in x])
    orders = (list(order) for order in itertools.permutations(range(n_stimuli)))
    every = np.array([similarities(matrices[:, order][:, :, order][:, first, second], y, method) for order in orders])
    mean = every.mean(2)
    np.testing.assert_allclose(of_mean, mean.var(0), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(own, (every - mean[:, :, None]).var(0).mean(1) / 2, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("method", "unknown"), [("tau-a", False), ("pearson", True)])
def test_permutation_variance_by_shuffles(method, unknown):
    """Where there is no closed form: that of the shuffles, as of others."""
    x, y = vectors(2, 10, 0), vectors(3, 10, 1)
    if unknown:
        y[1, 4] = np.nan
    of_mean, own = permutation_variance(x, y, method, seed=1)
    others = permutation_similarities(x, y, method, 4000, seed=2)
    mean = others.mean(2)
    np.testing.assert_allclose(of_mean, mean.var(0), rtol=0.3)  # of 200: a tenth, thrice
    np.testing.assert_allclose(own, (others - mean[:, :, None]).var(0).mean(1) / 2, rtol=0.3)
    assert np.isnan(permutation_variance(x, y[:1], method)[1]).all()
    x[1] = 1.0
    assert np.isnan(permutation_variance(x, y, method)[0]).tolist() == [False, True]
