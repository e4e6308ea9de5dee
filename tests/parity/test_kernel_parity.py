"""KernelRidgeCV against a slow reference, himalaya, scikit-learn and RidgeCV, over the regimes of shape."""

import warnings

import numpy as np
import pytest
from himalaya.kernel_ridge import KernelRidgeCV as HimalayaKernelRidgeCV
from himalaya.scoring import correlation_score, r2_score
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GroupKFold, KFold

from neuralign.encoders.linear.kernel import KernelRidgeCV
from neuralign.encoders.linear.ridge import RidgeCV

pytestmark = pytest.mark.filterwarnings("ignore:.*of the chosen alphas lie at an end of the grid")

ALPHAS = np.logspace(-2, 3, 6)
# Rows n, features p, units v.
SHAPES = {
    "n>p v<n": (60, 10, 7),
    "n>p v>n": (60, 10, 70),
    "n<p v<n": (40, 100, 7),
    "n<p v>n": (40, 100, 70),
    "p=1": (50, 1, 6),
    "v=1": (50, 12, 1),
}
# Kernels with parameters that are not the defaults.
KERNELS = {
    "linear": {"kernel": "linear"},
    "poly": {"kernel": "poly", "gamma": 0.05, "degree": 2, "coef0": 0.7},
    "rbf": {"kernel": "rbf", "gamma": 0.03},
}
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-9}


def simulate(n, p, v, dtype, seed=0):
    """Features off zero, and units from no signal to little noise, part of it not linear."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p)) * np.exp(rng.standard_normal(p) / 2) + 0.5
    Y = np.tanh(X @ rng.standard_normal((p, v)) / np.sqrt(p)) + X @ rng.standard_normal((p, v)) / np.sqrt(p)
    Y *= np.linspace(0, 1, v + 1)[1:]
    Y += rng.standard_normal((n, v)) * Y.std() + 5.0
    return X.astype(dtype), Y.astype(dtype)


def reference_kernel(A, B, kernel, gamma=None, degree=None, coef0=None):
    """One pair of rows at a time, in float64."""
    A, B = A.astype(np.float64), B.astype(np.float64)
    K = np.empty((len(A), len(B)))
    for i, a in enumerate(A):
        for j, b in enumerate(B):
            if kernel == "rbf":
                K[i, j] = np.exp(-gamma * ((a - b) ** 2).sum())
            else:
                K[i, j] = a @ b if kernel == "linear" else (gamma * (a @ b) + coef0) ** degree
    return K


def reference_predictions(K, train, test, Y, alpha, intercept):
    """Weights of the training rows by solving (K + alpha) w = y, K centred with the training rows; and the intercept.

    The two are kept apart, as at large alphas the sum would lose the digits of the first.
    """
    inner, across, Y = K[np.ix_(train, train)], K[np.ix_(test, train)], Y.astype(np.float64)
    shift = 0.0
    if intercept:
        shift = Y[train].mean(0)
        centre = np.eye(len(train)) - 1 / len(train)
        across = (across - inner.mean(0)) @ centre
        inner = centre @ inner @ centre
    return across @ np.linalg.solve(inner + alpha * np.eye(len(train)), Y[train] - shift), shift


def reference_scores(K, Y, folds, score, intercept):
    """Mean over folds of the score, (alpha, unit), one alpha, fold and unit at a time."""
    table = np.zeros((len(ALPHAS), len(folds), Y.shape[1]))
    for f, (train, test) in enumerate(folds):
        for a, alpha in enumerate(ALPHAS):
            predicted, shift = reference_predictions(K, train, test, Y, alpha, intercept)
            for u in range(Y.shape[1]):
                y, q = (Y[test].astype(np.float64) - shift)[:, u], predicted[:, u]
                r2 = 1 - ((y - q) ** 2).sum() / ((y - y.mean()) ** 2).sum()
                table[a, f, u] = np.corrcoef(y, q)[0, 1] if score == "r" else r2
    return table.mean(axis=1)


def assert_parity(encoder, K, Y, folds, tolerance, predicted):
    intercept = encoder.fit_intercept
    scores = reference_scores(K, Y, folds, encoder.get_params()["score"], intercept)
    np.testing.assert_allclose(encoder.cv_scores_, scores, atol=tolerance, rtol=tolerance)
    chosen = np.searchsorted(ALPHAS, encoder.alpha_)
    np.testing.assert_array_equal(ALPHAS[chosen], encoder.alpha_)
    # A different alpha only where the reference cannot tell the two apart.
    assert (scores[chosen, np.arange(Y.shape[1])] >= scores.max(axis=0) - 2 * tolerance).all()
    np.testing.assert_array_equal(encoder.cv_score_, encoder.cv_scores_[chosen, np.arange(Y.shape[1])])
    every = np.arange(len(K))
    for u in range(Y.shape[1]):
        expected = sum(reference_predictions(K, every, every, Y[:, [u]], encoder.alpha_[u], intercept))[:, 0]
        np.testing.assert_allclose(predicted[:, u], expected, atol=10 * tolerance * Y[:, u].std())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("score", ["r", "r2"])
@pytest.mark.parametrize("how", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_slow_reference(shape, how, score, intercept, dtype):
    X, Y = simulate(*shape, dtype)
    encoder = KernelRidgeCV(ALPHAS, cv=4, score=score, fit_intercept=intercept, keep_scores=True, **how).fit(X, Y)
    K = reference_kernel(X, X, **how)
    assert_parity(encoder, K, Y, list(KFold(4).split(X)), TOLERANCE[dtype], encoder.predict(X))


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("shape", [(60, 10, 20), (40, 100, 20)])
def test_slow_reference_with_groups_and_a_given_kernel(shape, intercept):
    X, Y = simulate(*shape, np.float64)
    groups = np.random.default_rng(3).integers(0, 9, len(X))
    K = reference_kernel(X, X, **KERNELS["rbf"])
    encoder = KernelRidgeCV(ALPHAS, "precomputed", cv=3, fit_intercept=intercept, keep_scores=True)
    encoder.fit(K, Y, groups=groups)
    assert_parity(encoder, K, Y, list(GroupKFold(3).split(X, groups=groups)), 1e-9, encoder.predict(K))


def test_slow_reference_with_many_folds_and_few_units():
    """All folds from one decomposition."""
    X, Y = simulate(60, 100, 2, np.float64)
    encoder = KernelRidgeCV(ALPHAS, cv=15, score="r2", keep_scores=True, **KERNELS["rbf"]).fit(X, Y)
    K = reference_kernel(X, X, **KERNELS["rbf"])
    assert_parity(encoder, K, Y, list(KFold(15).split(X)), 1e-9, encoder.predict(X))


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("score, function", [("r", correlation_score), ("r2", r2_score)])
@pytest.mark.parametrize("how", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("shape", [(120, 20, 30), (60, 100, 80), (50, 12, 1)])
def test_himalaya(shape, how, score, function, intercept):
    X, Y = simulate(*shape, np.float64)
    X -= X.mean(0)  # where theirs loses no digits
    parameters = {name: value for name, value in how.items() if name != "kernel"}
    ours = KernelRidgeCV(ALPHAS, cv=KFold(4), score=score, fit_intercept=intercept, **how).fit(X, Y)
    theirs = HimalayaKernelRidgeCV(
        ALPHAS,
        kernel=how["kernel"],
        kernel_params=parameters,
        fit_intercept=intercept,
        cv=KFold(4),
        warn=False,
        solver_params={"score_func": function},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.fit(X, Y)
    np.testing.assert_allclose(ours.alpha_, theirs.best_alphas_, rtol=1e-9)
    np.testing.assert_allclose(ours.cv_score_, theirs.cv_scores_, atol=1e-8)
    new = np.random.default_rng(1).standard_normal((20, shape[1]))
    np.testing.assert_allclose(ours.predict(new), theirs.predict(new), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("how", KERNELS.values(), ids=KERNELS)
def test_scikit_learn_at_the_chosen_alpha(how, shape):
    X, Y = simulate(*shape, np.float64)
    ours = KernelRidgeCV(ALPHAS, fit_intercept=False, **how).fit(X, Y)
    theirs = KernelRidge(ours.alpha_, **how).fit(X, Y)
    new = np.random.default_rng(1).standard_normal((20, shape[1]))
    np.testing.assert_allclose(ours.predict(new), theirs.predict(new), rtol=1e-8, atol=1e-9)
    if how["kernel"] == "rbf" and shape[1] > 1:  # of full rank
        np.testing.assert_allclose(ours.dual_coef_, theirs.dual_coef_, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_linear_kernel_is_ridge_regression(shape, nested, intercept):
    X, Y = simulate(*shape, np.float64)
    how = {"fit_intercept": intercept, "nested": nested, "keep_scores": True, "score": "r2"}
    kernel, ridge = (Encoder(ALPHAS, **how).fit(X, Y) for Encoder in (KernelRidgeCV, RidgeCV))
    np.testing.assert_array_equal(kernel.alpha_, ridge.alpha_)
    np.testing.assert_allclose(kernel.cv_scores_, ridge.cv_scores_, atol=1e-9)
    if nested:
        np.testing.assert_allclose(kernel.nested_score_, ridge.nested_score_, atol=1e-9)
    new = np.random.default_rng(1).standard_normal((20, shape[1]))
    np.testing.assert_allclose(kernel.predict(new), ridge.predict(new), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(X.T @ kernel.dual_coef_, ridge.coef_, atol=1e-9 * np.abs(ridge.coef_).max())
