"""PLSRegression against scikit-learn's NIPALS, at every number of components."""

import numpy as np
import pytest
from sklearn.cross_decomposition import PLSRegression as SklearnPLSRegression
from sklearn.model_selection import GridSearchCV, KFold

from neuralign.encoders.linear.pls import PLSRegression

# Rows n, features p, units v.
SHAPES = {
    "n>p v<p": (60, 8, 5),
    "n>p v>p": (60, 8, 20),
    "n>p v>n": (40, 8, 90),
    "n<p v<n": (25, 60, 5),
    "n<p v>n": (25, 60, 40),
    "n<p v>p": (25, 60, 90),
    "v=1 n>p": (60, 8, 1),
    "v=1 n<p": (25, 60, 1),
    "p=1": (40, 1, 4),
}


def simulate(n, p, v):
    rng = np.random.default_rng(n + p + v)
    X = rng.standard_normal((n, p)) * np.logspace(0, -0.5, p) + 1.0
    Y = X @ rng.standard_normal((p, v)) * np.logspace(0, 1, v) + rng.standard_normal((n, v)) - 2.0
    return X, Y


def peer(count, scale):
    # The tolerance bounds the square of a change of the weights: 1e-24 leaves about 1e-11 of them.
    return SklearnPLSRegression(count, scale=scale, tol=1e-24, max_iter=100_000)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_scikit_learn_at_every_number_of_components(shape, scale):
    X, Y = simulate(*shape)
    most = min(shape[0] - 1, shape[1])
    ours = PLSRegression(most, scale=scale).fit(X, Y)
    fresh = np.random.default_rng(0).standard_normal((10, shape[1]))
    for count in range(1, most + 1):
        theirs = peer(count, scale).fit(X, Y)
        for table in (X, fresh):
            expected = theirs.predict(table).reshape(len(table), -1)
            np.testing.assert_allclose(ours.predict(table, count), expected, atol=1e-8 * np.abs(expected).max())
        np.testing.assert_allclose(ours.weights(count), theirs.coef_.T, atol=1e-8 * np.abs(theirs.coef_).max())


@pytest.mark.parametrize("shape", [(60, 8, 5), (25, 60, 40)])
def test_scikit_learn_default_tolerance_is_what_differs(shape):
    X, Y = simulate(*shape)
    ours, loose = PLSRegression(5).fit(X, Y).coef_, SklearnPLSRegression(5, scale=False).fit(X, Y).coef_.T
    exact = peer(5, False).fit(X, Y).coef_.T
    assert np.abs(ours - exact).max() < 1e-3 * np.abs(loose - exact).max()


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("shape", [(60, 8, 1), (25, 60, 1), (60, 8, 5), (25, 60, 40)])
def test_scikit_learn_grid_search(shape, scale):
    X, Y = simulate(*shape)
    counts = [1, 2, 4, 6]
    ours = PLSRegression(counts, scale=scale, cv=KFold(4), score="r2").fit(X, Y)
    theirs = GridSearchCV(peer(2, scale), {"n_components": counts}, cv=KFold(4), scoring="r2").fit(X, Y)
    np.testing.assert_allclose(ours.cv_scores_.mean(1), theirs.cv_results_["mean_test_score"], atol=1e-8)
    assert ours.n_components_ == theirs.best_params_["n_components"]
