"""Scores of predictions and their resampling, against loops that copy what is drawn."""

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import r2_score

from neuralign.align.prediction import bootstrap_means, induced, permutation_means, shuffles, unit_scores, widened

N, V = 40, 6


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    observed = rng.standard_normal((N, V)) + 100  # an offset must not cost digits
    predicted = 0.6 * observed + rng.standard_normal((N, V)) + 40
    folds = np.array_split(rng.permutation(N), 4)
    return predicted.astype(np.float32), observed.astype(np.float32), folds


def slow(metric, p, y):
    if np.ptp(y) == 0:
        return np.nan
    if metric == "r" and np.ptp(p) == 0:
        return 0.0
    return pearsonr(p, y)[0] if metric == "r" else r2_score(y, p)


@pytest.mark.parametrize("metric", ["r", "r2"])
def test_unit_scores(data, metric):
    predicted, observed, folds = data
    truth = [np.mean([slow(metric, predicted[f, v], observed[f, v]) for f in folds]) for v in range(V)]
    np.testing.assert_allclose(unit_scores(predicted, observed, folds, metric), truth, rtol=1e-5)


@pytest.mark.parametrize("metric", ["r", "r2"])
def test_bootstrap_equals_explicit_resampling(data, metric):
    predicted, observed, folds = data
    rng = np.random.default_rng(1)
    counts = rng.multinomial(N, np.full(N, 1 / N), size=20)
    found = bootstrap_means(predicted, observed, folds, metric, counts)
    for draw, value in zip(counts, found, strict=True):
        per_fold = []
        for fold in folds:
            rows = np.repeat(fold, draw[fold])
            per_fold.append([slow(metric, predicted[rows, v], observed[rows, v]) for v in range(V)])
        assert value == pytest.approx(np.nanmean(np.nanmean(per_fold, 0)), rel=1e-4)


@pytest.mark.parametrize("metric", ["r", "r2"])
def test_permutations_equal_explicit_shuffles(data, metric):
    predicted, observed, folds = data
    predicted = predicted.copy()
    predicted[folds[1], 2] = 7  # a unit with a constant prediction in one fold
    orders = [shuffles(len(fold), 5, np.random.default_rng(k)) for k, fold in enumerate(folds)]
    assert all((np.sort(order, 1) == np.arange(len(fold))).all() for order, fold in zip(orders, folds, strict=True))
    found = permutation_means(predicted, observed, folds, metric, orders)
    for i in range(5):
        per_fold = [
            [slow(metric, predicted[fold[order[i]], v], observed[fold, v]) for v in range(V)]
            for fold, order in zip(folds, orders, strict=True)
        ]
        assert found[i] == pytest.approx(np.nanmean(np.nanmean(per_fold, 0)), abs=1e-5)


def test_constant_unit_is_nan_and_does_not_spread(data):
    predicted, observed, folds = data
    observed = observed.copy()
    observed[:, 1] = 3
    scores = unit_scores(predicted, observed, folds, "r")
    assert np.isnan(scores[1]) and np.isfinite(np.delete(scores, 1)).all()
    with pytest.raises(ValueError, match="metric='rr' is unknown; did you mean 'r'"):
        unit_scores(predicted, observed, folds, "rr")


def test_orders_induced_on_a_subset_are_shuffles_that_follow_the_whole():
    kept = np.array([0, 2, 3, 6])
    orders = shuffles(7, 200, np.random.default_rng(0))
    found = induced(orders, kept)
    assert (np.sort(found, 1) == np.arange(4)).all()
    for order, small in zip(orders, found, strict=True):
        for place, start in enumerate(kept):
            reached = order[start]
            while reached not in kept:
                reached = order[reached]
            assert kept[small[place]] == reached
    np.testing.assert_array_equal(induced(orders, np.arange(7)), orders)


def test_null_is_widened_around_its_mean_where_folds_train_on_each_other():
    null = np.array([0.0, 1.0, 5.0])
    np.testing.assert_array_equal(widened(null, 1), null)
    np.testing.assert_allclose(widened(null, 5), 2 + np.sqrt(2) * np.array([-2, -1, 3]))
