"""Matchings of units against all permutations, linear programmes, transport on a line and optimality conditions."""

import itertools
import sys

import numpy as np
import pytest
from scipy.optimize import linprog

from neuralign.align.similarity import estimator, similarity
from neuralign.align.similarity.matching import (
    BipartiteMatching,
    SemiMatching,
    SoftMatching,
    SparsePrediction,
    transport,
)


def sides(seed, n=30, p=5, q=5, noise=1.0):
    rng = np.random.default_rng(seed)
    code = rng.normal(size=(n, 4))
    return [code @ rng.normal(size=(4, w)) + noise * rng.normal(size=(n, w)) + rng.normal(size=w) for w in (p, q)]


def correlations(X, Y):
    return np.corrcoef(X.T, Y.T)[: X.shape[1], X.shape[1] :]


def best_gain(gain):
    """The transport problem written out densely."""
    p, q = gain.shape
    rows = [np.outer(np.arange(p) == i, np.ones(q)).ravel() for i in range(p)]
    columns = [np.outer(np.ones(p), np.arange(q) == j).ravel() for j in range(q)]
    b = [1 / p] * p + [1 / q] * q
    return -linprog(-gain.ravel(), A_eq=np.array(rows + columns), b_eq=b).fun


@pytest.mark.parametrize(("p", "q"), [(5, 5), (4, 8), (6, 4), (7, 9), (1, 5)])
@pytest.mark.parametrize("repeated", [2000, 0])
def test_soft_matching_is_optimal_transport(p, q, repeated, monkeypatch):
    """By assignment of repeated units and by linear programme, with the marginals that define it."""
    monkeypatch.setattr(sys.modules["neuralign.align.similarity.matching"], "REPEATED", repeated)
    X, Y = sides(p, p=p, q=q)
    assert similarity("soft-matching", X, Y) == pytest.approx(best_gain(correlations(X, Y)), abs=1e-10)
    plan = SoftMatching().fit(X, Y).plan_.toarray()
    assert (plan >= 0).all()
    np.testing.assert_allclose(plan.sum(1), 1 / p, atol=1e-12)
    np.testing.assert_allclose(plan.sum(0), 1 / q, atol=1e-12)


def test_soft_matching_distance_on_a_line_is_matching_of_quantiles():
    """Tuning curves that are multiples of one curve: transport between two sets of numbers, sorted."""
    rng = np.random.default_rng(0)
    curve = rng.normal(size=20)
    curve -= curve.mean()
    a, b = rng.normal(size=6), rng.normal(size=4)
    known = np.mean((np.repeat(np.sort(a), 2) - np.repeat(np.sort(b), 3)) ** 2) * (curve @ curve)
    distance = similarity("soft-matching", np.outer(curve, a) + 3, np.outer(curve, b), by="distance")
    assert distance == pytest.approx(np.sqrt(known), rel=1e-10)


def test_soft_matching_of_equal_numbers_is_the_permutation_metric():
    X, Y = sides(1, p=8, q=8)
    assert np.sqrt(8) * similarity("soft-matching", X, Y, by="distance") == pytest.approx(
        similarity("permutation", X, Y, distance="euclidean"), rel=1e-10
    )


def test_matchings_of_units_are_what_they_say():
    X, Y = sides(2, p=5, q=6)
    c = correlations(X, Y)
    best = max(np.mean([c[i, j] for i, j in enumerate(order)]) for order in itertools.permutations(range(6), 5))
    assert similarity("bipartite-matching", X, Y) == pytest.approx(best, abs=1e-12)
    assert similarity("bipartite-matching", Y, X) == pytest.approx(best, abs=1e-12)
    assert similarity("semi-matching", X, Y) == pytest.approx(c.max(1).mean(), abs=1e-12)
    both_ways = (c.max(1).mean() + c.max(0).mean()) / 2
    assert similarity("semi-matching", X, Y, symmetric=True) == pytest.approx(both_ways, abs=1e-12)


def test_soft_matching_is_not_the_mean_of_two_best_partners():
    """Some packages call that mean soft matching; one unit that resembles all others shows the difference."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(40, 1)) + 0.1 * rng.normal(size=(40, 6))
    Y = np.hstack([X[:, :1], rng.normal(size=(40, 5))])
    assert similarity("semi-matching", X, Y) > 0.95
    assert similarity("soft-matching", X, Y) < 0.5
    assert similarity("soft-matching", X, Y) == pytest.approx(best_gain(correlations(X, Y)), abs=1e-10)


@pytest.mark.parametrize("name", ["soft-matching", "bipartite-matching", "semi-matching"])
def test_held_out_stimuli_score_the_matching_that_was_fitted(name):
    X, Y = sides(4, n=60, p=6, q=4)
    fitted = estimator(name).fit(X[:30], Y[:30])
    plan = fitted.plan_.toarray()
    assert plan.sum() == pytest.approx(1)
    assert fitted.score(X[30:], Y[30:]) == pytest.approx((plan * correlations(X[30:], Y[30:])).sum(), abs=1e-12)
    assert fitted.score(X[:30], Y[:30]) == pytest.approx(similarity(name, X[:30], Y[:30]), abs=1e-12)


def test_units_that_do_not_vary_are_counted_and_left_out():
    X, Y = sides(5, p=5, q=4)
    with_constants = np.hstack([X[:, :2], np.full((30, 2), 0.1), X[:, 2:]])
    for name in ("soft-matching", "bipartite-matching", "semi-matching"):
        with pytest.warns(UserWarning, match="2 of 7 units of X do not vary and are left out"):
            value = similarity(name, with_constants, Y)
        assert value == pytest.approx(similarity(name, X, Y), abs=1e-12)
    # By distance a silent unit is a tuning curve like any other: it lies at zero.
    silent = np.hstack([X, np.zeros((30, 1))])
    kept = similarity("soft-matching", silent, Y, by="distance")
    gain = -(((silent - silent.mean(0))[:, :, None] - (Y - Y.mean(0))[:, None]) ** 2)
    assert kept == pytest.approx(np.sqrt(-best_gain(gain.sum(0))), rel=1e-9)


def test_matched_units_that_fall_silent_later():
    X, Y = sides(6, p=4, q=4)
    fitted = BipartiteMatching().fit(X, Y)
    quiet = X.copy()
    quiet[:, 1] = 3.0
    with pytest.warns(UserWarning, match="1 of 4 matched pairs do not vary and are left out"):
        value = fitted.score(quiet, Y)
    c = correlations(X, Y)
    pairs = [(i, j) for i, j in zip(fitted.plan_.row, fitted.plan_.col, strict=True) if i != 1]
    assert value == pytest.approx(np.mean([c[pair] for pair in pairs]), abs=1e-12)
    with pytest.warns(UserWarning, match="'bipartite-matching' is NaN: no matched pair"):
        assert np.isnan(fitted.score(np.ones_like(X), Y))


def test_noise_is_matched_in_sample_and_not_on_held_out_stimuli():
    inside, outside = [], []
    for k in range(20):
        X, Y = np.random.default_rng(k).normal(size=(2, 60, 30))
        fitted = SemiMatching().fit(X[:30], Y[:30])
        inside.append(fitted.score(X[:30], Y[:30]))
        outside.append(fitted.score(X[30:], Y[30:]))
    assert np.mean(inside) > 0.3
    assert abs(np.mean(outside)) < 4 * np.std(outside, ddof=1) / np.sqrt(20)


def test_sparse_weights_meet_the_conditions_of_the_optimum():
    """Every predictor in use correlates with the residual by the penalty exactly; no other by more."""
    X, Y = sides(7, n=50, p=12, q=5)
    fitted = SparsePrediction(0.2).fit(X, Y)
    x, y = ((side - side.mean(0)) / side.std(0) for side in (X, Y))
    weights = fitted.weights_ * X.std(0)[:, None] / Y.std(0)
    slope = x.T @ (y - x @ weights) / 50
    used = weights != 0
    np.testing.assert_allclose(slope[used], 0.2 * np.sign(weights[used]), atol=1e-8)
    assert (np.abs(slope) <= 0.2 + 1e-8).all()
    assert 0 < used.sum() < used.size
    np.testing.assert_array_equal(fitted.n_predictors_, used.sum(0))


def test_sparse_prediction_finds_the_units_that_predict():
    rng = np.random.default_rng(8)
    X = rng.normal(size=(200, 40))
    Y = np.stack([X[:, 3] - X[:, 17], 2 * X[:, 5]], axis=1) + 0.3 * rng.normal(size=(200, 2))
    fitted = SparsePrediction(0.2).fit(X[:100], 10 * Y[:100] + 5)
    assert [set(np.flatnonzero(column)) for column in fitted.weights_.T] == [{3, 17}, {5}]
    assert fitted.score(X[100:], Y[100:]) > 0.95
    assert similarity("sparse-prediction", X, Y, penalty=0.2) > 0.95
    # Where no predictor enters, nothing was learnt: 0, not NaN.
    assert similarity("sparse-prediction", X, Y, penalty=2.0) == 0
    assert SparsePrediction(2.0).fit(X, Y).n_predictors_.sum() == 0


def test_sparse_prediction_is_over_held_out_folds():
    X, Y = sides(9, n=23, p=6, q=3)
    order = np.random.default_rng(0).permutation(23)
    predicted = np.empty_like(Y)
    for test in np.array_split(order, 5):
        train = np.delete(np.arange(23), test)
        predicted[test] = SparsePrediction(0.1).fit(X[train], Y[train]).predict(X[test])
    known = np.mean([np.corrcoef(predicted[:, j], Y[:, j])[0, 1] for j in range(3)])
    assert similarity("sparse-prediction", X, Y) == pytest.approx(known, abs=1e-10)
    assert similarity("sparse-prediction", X, Y, seed=1) != pytest.approx(known, abs=1e-10)


def test_options_are_checked():
    X, Y = sides(0, p=7, q=9)
    with pytest.raises(ValueError, match="by='distances' is unknown; did you mean 'distance'"):
        similarity("soft-matching", X, Y, by="distances")
    with pytest.raises(ValueError, match="penalty=0; expected a positive number"):
        similarity("sparse-prediction", X, Y, penalty=0)
    with pytest.raises(ValueError, match="folds=31; expected 2 to 30 for 30 stimuli"):
        similarity("sparse-prediction", X, Y, folds=31)
    with pytest.raises(ValueError, match="Y has 8 features; fit saw 9"):
        SoftMatching().fit(X, Y).score(X, Y[:, :8])


def test_a_plan_that_would_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(sys.modules["neuralign.align.similarity.matching"], "REPEATED", 0)
    monkeypatch.setattr(sys.modules["neuralign.align.similarity.matching"], "LARGEST_PLAN", 60)
    gain = np.random.default_rng(0).normal(size=(7, 9))
    with pytest.raises(ValueError, match="X has 7 and Y 9 units: a plan of 63 pairs is beyond 60"):
        transport(gain)
    assert transport(gain[:3]).sum() == pytest.approx(1)
