"""RidgeCV against a slow reference, himalaya and scikit-learn, over the regimes of shape."""

import warnings

import numpy as np
import pytest
from himalaya.ridge import RidgeCV as HimalayaRidgeCV
from himalaya.scoring import correlation_score, r2_score
from sklearn.linear_model import Ridge
from sklearn.linear_model import RidgeCV as SklearnRidgeCV
from sklearn.model_selection import GroupKFold, KFold

from neuralign.encoders.linear.ridge import RidgeCV

ALPHAS = np.logspace(-2, 5, 8)
# Rows n, features p, units v: p < n and p > n, v < n and v > n, one feature, one unit, p between n_train and n.
SHAPES = {
    "n>p v<n": (60, 10, 7),
    "n>p v>n": (60, 10, 90),
    "n<p v<n": (40, 100, 7),
    "n<p v>n": (40, 100, 90),
    "train<p<n": (40, 36, 9),
    "p=1": (50, 1, 6),
    "v=1": (50, 12, 1),
    "p=v=1": (50, 1, 1),
}
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-9}


def simulate(n, p, v, dtype, seed=0):
    """Correlated features off zero, and units from no signal to little noise."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p)) @ (np.eye(p) + 0.5 * rng.standard_normal((p, p)) / np.sqrt(p)) + 2.0
    X *= np.exp(rng.standard_normal(p))
    Y = X @ rng.standard_normal((p, v)) / np.sqrt(p) * np.linspace(0, 1, v + 1)[1:]
    Y += rng.standard_normal((n, v)) * Y.std() + 5.0
    return X.astype(dtype), Y.astype(dtype)


def reference_weights(X, Y, alpha, intercept=True, standardise=False):
    """Weights and intercept for one alpha by solving the normal equations."""
    X, Y = X.astype(np.float64), Y.astype(np.float64)
    mx, my = (X.mean(0), Y.mean(0)) if intercept else (np.zeros(X.shape[1]), np.zeros(Y.shape[1]))
    scale = X.std(0) if standardise else np.ones(X.shape[1])
    F = (X - mx) / scale
    b = np.linalg.solve(F.T @ F + alpha * np.eye(F.shape[1]), F.T @ (Y - my)) / scale[:, None]
    return b, my - mx @ b


def reference_scores(X, Y, folds, score, **how):
    """Mean over folds of the score, (alpha, unit), one alpha, fold and unit at a time."""
    table = np.zeros((len(ALPHAS), len(folds), Y.shape[1]))
    for f, (train, test) in enumerate(folds):
        for a, alpha in enumerate(ALPHAS):
            b, b0 = reference_weights(X[train], Y[train], alpha, **how)
            predicted = X[test].astype(np.float64) @ b + b0
            for u in range(Y.shape[1]):
                y, q = Y[test, u].astype(np.float64), predicted[:, u]
                r2 = 1 - ((y - q) ** 2).sum() / ((y - y.mean()) ** 2).sum()
                table[a, f, u] = np.corrcoef(y, q)[0, 1] if score == "r" else r2
    return table.mean(axis=1)


def assert_parity(encoder, X, Y, folds, **how):
    dtype = X.dtype.type
    tolerance = TOLERANCE[dtype]
    scores = reference_scores(X, Y, folds, encoder.get_params()["score"], **how)
    np.testing.assert_allclose(encoder.cv_scores_, scores, atol=tolerance, rtol=tolerance)
    chosen = np.searchsorted(ALPHAS, encoder.alpha_)
    np.testing.assert_array_equal(ALPHAS[chosen], encoder.alpha_)
    # A different alpha only where the reference cannot tell the two apart.
    assert (scores[chosen, np.arange(Y.shape[1])] >= scores.max(axis=0) - 2 * tolerance).all()
    np.testing.assert_array_equal(encoder.cv_score_, encoder.cv_scores_[chosen, np.arange(Y.shape[1])])
    predicted = encoder.predict(X)
    for u in range(Y.shape[1]):
        b, b0 = reference_weights(X, Y[:, [u]], encoder.alpha_[u], **how)
        np.testing.assert_allclose(encoder.coef_[:, u], b[:, 0], atol=20 * tolerance * np.abs(b).max())
        expected = X.astype(np.float64) @ b[:, 0] + b0[0]
        np.testing.assert_allclose(predicted[:, u], expected, atol=10 * tolerance * Y[:, u].std())
        np.testing.assert_allclose(encoder.intercept_[u], b0[0], atol=50 * tolerance * max(1, np.abs(Y[:, u]).max()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("score", ["r", "r2"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_slow_reference(shape, score, intercept, dtype):
    X, Y = simulate(*shape, dtype)
    encoder = RidgeCV(ALPHAS, cv=4, score=score, fit_intercept=intercept, keep_scores=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the grid is short on purpose
        encoder.fit(X, Y)
    assert_parity(encoder, X, Y, list(KFold(4).split(X)), intercept=intercept)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("shape", [(60, 10, 20), (40, 100, 20)])
def test_slow_reference_with_groups_and_scaling(shape, intercept, dtype):
    X, Y = simulate(*shape, dtype)
    groups = np.random.default_rng(3).integers(0, 9, len(X))
    encoder = RidgeCV(ALPHAS, cv=3, fit_intercept=intercept, standardise=True, keep_scores=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder.fit(X, Y, groups=groups)
    folds = list(GroupKFold(3).split(X, groups=groups))
    assert_parity(encoder, X, Y, folds, intercept=intercept, standardise=True)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("score, function", [("r", correlation_score), ("r2", r2_score)])
@pytest.mark.parametrize("shape", [(120, 20, 30), (60, 100, 80)])
def test_himalaya(shape, score, function, intercept):
    X, Y = simulate(*shape, np.float64)
    ours = RidgeCV(ALPHAS, cv=KFold(4), score=score, fit_intercept=intercept)
    theirs = HimalayaRidgeCV(
        ALPHAS, fit_intercept=intercept, cv=KFold(4), solver_params={"score_func": function, "warn": False}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours.fit(X, Y)
        theirs.fit(X, Y)
    np.testing.assert_allclose(ours.alpha_, theirs.best_alphas_, rtol=1e-9)
    np.testing.assert_allclose(ours.cv_score_, theirs.cv_scores_, atol=1e-8)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-7)
    if intercept:
        np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=1e-7)
    assert len(np.unique(ours.alpha_)) > 1


@pytest.mark.parametrize("score, function", [("r", correlation_score), ("r2", r2_score)])
def test_himalaya_with_one_alpha_for_all(score, function):
    X, Y = simulate(60, 100, 40, np.float64)
    ours = RidgeCV(ALPHAS, cv=KFold(4), score=score, per_unit=False)
    theirs = HimalayaRidgeCV(
        ALPHAS,
        fit_intercept=True,
        cv=KFold(4),
        solver_params={"score_func": function, "warn": False, "local_alpha": False},
    )
    np.testing.assert_allclose(ours.fit(X, Y).alpha_, theirs.fit(X, Y).best_alphas_, rtol=1e-9)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("shape", [(120, 20, 15), (60, 100, 15)])
def test_scikit_learn_at_the_chosen_alpha(shape, intercept):
    X, Y = simulate(*shape, np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = RidgeCV(ALPHAS, fit_intercept=intercept).fit(X, Y)
    theirs = Ridge(ours.alpha_, fit_intercept=intercept).fit(X, Y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_.T, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-8)


def test_scikit_learn_choice_for_a_vector():
    X, Y = simulate(80, 30, 1, np.float64)
    ours = RidgeCV(ALPHAS, cv=KFold(4), score="r2").fit(X, Y[:, 0])
    theirs = SklearnRidgeCV(ALPHAS, cv=KFold(4), scoring="r2").fit(X, Y[:, 0])
    assert ours.alpha_ == theirs.alpha_
    assert ours.cv_score_ == pytest.approx(theirs.best_score_, abs=1e-9)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_hot_and_duplicated_features(dtype):
    """Exactly degenerate spectra."""
    rng = np.random.default_rng(0)
    categories = rng.permutation(np.repeat(np.arange(12), 6))
    X = np.eye(12)[categories]
    X = np.hstack([X, X[:, :4], np.ones((72, 1)), X[:, :3] * (1 + 1e-6)]).astype(dtype)
    Y = (rng.standard_normal((12, 10))[categories] + rng.standard_normal((72, 10))).astype(dtype)
    encoder = RidgeCV(ALPHAS, cv=4, score="r2", keep_scores=True).fit(X, Y)
    assert_parity(encoder, X, Y, list(KFold(4).split(X)))
