"""Bands, penalties and unique variance of a simulated subject come back.

Features of each space are Gaussian, weights too: a unit with signal variance s_b in space b of m_b features and noise
variance 1 has weights of variance ``t_b = s_b / m_b``, and the best penalty of the space is ``1 / t_b``, the ratio of
the variances of noise and weights. What each test measured stands in its docstring.
"""

import numpy as np
import pytest

from neuralign.encoders import BandedRidgeCV, RidgeCV, split_r2

# A fit to noise ends at the largest alpha, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:.*of the chosen alphas lie at an end of the grid")

SIZES = (20, 40, 60)
ALPHAS = np.logspace(-1, 5, 25)
# Signal variance of each space, beside noise of variance 1; 40 units of each kind.
KINDS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0], [0.2, 0, 0.8], [0.3, 0.3, 0.4], [0, 0, 0]])
PER_KIND = 40


def subject(n, n_test=2000, sizes=SIZES, seed=0):
    """Features, responses and the signal variance (band, unit); training rows first."""
    rng = np.random.default_rng(seed)
    variance = np.repeat(KINDS, PER_KIND, axis=0).T.astype(float)
    X = [rng.standard_normal((n + n_test, size)) for size in sizes]
    Y = rng.standard_normal((n + n_test, variance.shape[1]))
    for F, part in zip(X, variance, strict=True):
        Y += F @ (rng.standard_normal((F.shape[1], part.size)) * np.sqrt(part / F.shape[1]))
    return np.hstack(X).astype(np.float32), Y.astype(np.float32), variance


def by_kind(values):
    """Mean over the units of each kind."""
    return values.reshape(*values.shape[:-1], len(KINDS), PER_KIND).mean(-1)


def best_predictions(X, Y, variance, n, sizes):
    """What no linear model can beat on average: bands predicted at the true penalties, (band, test row, unit)."""
    weight_variance = variance / np.array(sizes)[:, None]
    edges, X = np.cumsum([0, *sizes]), X.astype(np.float64)
    mean = X[:n].mean(0)
    predicted = np.zeros((len(sizes), len(X) - n, Y.shape[1]))
    for kind in range(len(KINDS)):
        units = np.arange(kind * PER_KIND, (kind + 1) * PER_KIND)
        root = np.sqrt(np.repeat(weight_variance[:, units[0]], sizes))
        F, T = (X[:n] - mean) * root, (X[n:] - mean) * root
        y = Y[:n, units] - Y[:n, units].mean(0)
        W = np.linalg.solve(F.T @ F + np.eye(F.shape[1]), F.T @ y)
        for band, columns in enumerate(map(slice, edges[:-1], edges[1:])):
            predicted[band][:, units] = T[:, columns] @ W[columns]
    return predicted


def r2(predicted, Y):
    return 1 - ((Y - predicted) ** 2).sum(0) / ((Y - Y.mean(0)) ** 2).sum(0)


class Subject:
    def __init__(self, n, sizes, n_iter):
        self.sizes, X, Y, self.variance = sizes, *subject(n, sizes=sizes)
        self.encoder = BandedRidgeCV(sizes, ALPHAS, n_iter=n_iter, score="r2").fit(X[:n], Y[:n])
        self.X, self.Y, self.n = X, Y, n
        self.weight_variance = self.variance / np.array(sizes)[:, None]
        self.driven = self.variance.max(0) > 0
        self.pure = (self.variance > 0).sum(0) == 1


@pytest.fixture(scope="module", params=[(600, (20, 40, 60), 60), (300, (100, 200, 300), 60)], ids=["n>p", "n<p"])
def fitted(request):
    return Subject(*request.param)


def test_shares(fitted):
    """Every unit driven by one space gives it the largest share.

    Mean absolute error of a share, and mean share of a space without signal: 0.05 and 0.02 (600 stimuli, 120
    features), 0.08 and 0.05 (300 stimuli, 600 features).
    """
    gamma, weights, driven = fitted.encoder.gamma_, fitted.weight_variance, fitted.driven
    assert (gamma.argmax(0) == weights.argmax(0))[fitted.pure].all()
    truth = weights[:, driven] / weights[:, driven].sum(0)
    error = np.abs(gamma[:, driven] - truth)
    assert error.mean() < 0.1
    assert np.quantile(error, 0.9) < 0.25
    assert gamma[:, driven][truth == 0].mean() < 0.08


def test_penalties_of_bands(fitted):
    """Near the ratio of the variances of noise and weights, where there are weights.

    Decades between the two, median and middle 80 %: 0.06, -0.2 to 0.3 (n > p) and 0.02, -0.3 to 0.4 (n < p); the
    grid has steps of a quarter decade, over six decades.
    """
    true = fitted.variance > 0
    decades = np.log10(fitted.encoder.band_alpha_[true] * fitted.weight_variance[true])
    assert abs(np.median(decades)) < 0.15
    assert np.quantile(np.abs(decades), 0.8) < 0.5


def test_unique_variance(fitted):
    """The spaces are independent, so that what each adds is its part of R2 in a split by product measure.

    Largest error of a mean over 40 units against the split of the best possible predictions: 0.005 (n > p) and 0.016
    (n < p), where the parts themselves reach 0.47.
    """
    X, Y, n = fitted.X, fitted.Y, fitted.n
    parts = split_r2(fitted.encoder.predict_by_band(X[n:]), Y[n:], fitted.encoder.response_mean_)
    best = best_predictions(X, Y, fitted.variance, n, fitted.sizes)
    possible = split_r2(best, Y[n:], Y[:n].mean(0))
    np.testing.assert_allclose(by_kind(parts), by_kind(possible), atol=0.035)
    assert by_kind(parts)[KINDS.T == 0].max() < 0.01
    true = by_kind(fitted.variance) / (1 + by_kind(fitted.variance).sum(0))
    assert (by_kind(parts) < true + 0.02).all()  # shrinkage and noise take away, nothing adds


def test_predictions_are_nearly_as_good_as_can_be(fitted):
    """R2 below that of the true penalties by at most 0.008 (n > p) and 0.024 (n < p), above one penalty for all."""
    X, Y, n = fitted.X, fitted.Y, fitted.n
    banded = by_kind(r2(fitted.encoder.predict(X[n:]), Y[n:]))
    best = best_predictions(X, Y, fitted.variance, n, fitted.sizes).sum(0) + Y[:n].mean(0)
    ridge = by_kind(r2(RidgeCV(ALPHAS, score="r2").fit(X[:n], Y[:n]).predict(X[n:]), Y[n:]))
    short = by_kind(r2(best, Y[n:])) - banded
    assert (short > -0.005).all()
    assert short.max() < 0.04
    one_space = (KINDS > 0).sum(1) == 1
    assert (banded - ridge)[one_space].min() > 0.03


def test_more_stimuli_bring_the_true_parts():
    """With 2000 stimuli and 120 features each part is within 0.02 of the variance of its space."""
    found = Subject(2000, SIZES, 30)
    parts = split_r2(found.encoder.predict_by_band(found.X[2000:]), found.Y[2000:], found.encoder.response_mean_)
    true = by_kind(found.variance) / (1 + by_kind(found.variance).sum(0))
    np.testing.assert_allclose(by_kind(parts), true, atol=0.04)


@pytest.mark.parametrize("p", [60, 400])
def test_penalties_of_one_space(p):
    """RidgeCV: from the ratio of variances, the median alpha is 0.02 decades away, 80 % of units at most 0.27."""
    rng = np.random.default_rng(1)
    n, v = 300, 200
    X = rng.standard_normal((n, p))
    for ratio in (30.0, 300.0):
        Y = X @ rng.standard_normal((p, v)) + np.sqrt(ratio) * rng.standard_normal((n, v))
        alpha = RidgeCV(ALPHAS, score="r2").fit(X, Y).alpha_
        decades = np.log10(alpha / ratio)
        assert abs(np.median(decades)) < 0.15
        assert np.quantile(np.abs(decades), 0.8) < 0.5
