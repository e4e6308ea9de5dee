"""BandedRidgeCV against himalaya's two solvers of the same problem, at the same shares."""

import itertools
import warnings

import numpy as np
import pytest
from himalaya.kernel_ridge import solve_multiple_kernel_ridge_random_search
from himalaya.ridge import GroupRidgeCV
from himalaya.scoring import correlation_score, r2_score
from sklearn.model_selection import GroupKFold, KFold

from neuralign.encoders.linear.banded import BandedRidgeCV

ALPHAS = np.logspace(-2, 5, 15)
SCORES = {"r": correlation_score, "r2": r2_score}
# himalaya.ridge divides by the root of a share, which must not be zero there.
GAMMAS = np.random.default_rng(1).dirichlet(np.full(3, 0.5), 12)
SHAPES = {"n>p v>n": (60, (10, 6, 8), 150), "n<p v>n": (45, (40, 30, 50), 150), "n>p v<n": (120, (20, 10, 15), 30)}


def simulate(n, sizes, v, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    X = [rng.standard_normal((n, size)) * (1 + s) + 2 for s, size in enumerate(sizes)]
    strength = rng.dirichlet(np.full(len(sizes), 0.3), v).T ** 0.5
    signal = sum(
        F @ rng.standard_normal((F.shape[1], v)) / F.shape[1] ** 0.5 / (1 + s) * strength[s] for s, F in enumerate(X)
    )
    Y = signal + rng.standard_normal((n, v)) * np.linspace(0.3, 1.5, v) + 3
    return np.hstack(X).astype(dtype), Y.astype(dtype)


def fitted(X, Y, sizes, score, cv, **how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the end of the grid is of no interest here
        return BandedRidgeCV(sizes, ALPHAS, n_iter=GAMMAS, cv=cv, score=score, **how).fit(X, Y)


def assert_same(ours, deltas, cv_scores, tolerance):
    """Scores of every unit, and the same penalties for 99.9 % of them."""
    np.testing.assert_allclose(ours.cv_score_, cv_scores.max(0), atol=tolerance)
    same = np.isclose(-np.log(ours.band_alpha_), deltas, rtol=0, atol=1e-8).all(0)
    if tolerance > 1e-9:
        # Scores that float32 cannot tell apart are ties: here himalaya scores the two choices alike, too.
        number = np.abs(ours.gammas_[:, :, None] - ours.gamma_).sum(1).argmin(0)
        same |= cv_scores[number, np.arange(len(number))] >= cv_scores.max(0) - tolerance
    assert same.mean() >= 0.999
    assert len(np.unique(ours.gamma_[0])) > 5
    assert len(np.unique(ours.alpha_)) > 3


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_group_ridge(shape, intercept, score):
    n, sizes, v = shape
    X, Y = simulate(n, sizes, v)
    ours = fitted(X, Y, sizes, score, KFold(4), fit_intercept=intercept)
    theirs = GroupRidgeCV(
        groups=np.repeat(np.arange(3), sizes),
        fit_intercept=intercept,
        cv=KFold(4),
        solver_params={
            "n_iter": GAMMAS,
            "alphas": ALPHAS,
            "score_func": SCORES[score],
            "progress_bar": False,
            "warn": False,
        },
    ).fit(X, Y)
    assert_same(ours, theirs.deltas_, theirs.cv_scores_, 1e-9)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-9)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), atol=1e-8)
    if intercept:
        np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-8)


@pytest.mark.parametrize("per_unit", [True, False])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_multiple_kernel_ridge(shape, score, per_unit):
    n, sizes, v = shape
    X, Y = simulate(n, sizes, v)
    groups = np.random.default_rng(2).integers(0, 8, n)
    folds = list(GroupKFold(4).split(X, groups=groups))
    ours = fitted(X, Y, sizes, score, folds, per_unit=per_unit)
    edges = np.cumsum([0, *sizes])
    # Off zero by 2, the kernels of himalaya lose digits; its solver centres them, ours centres the features.
    centred = X - X.mean(0)
    Ks = np.stack([centred[:, i:j] @ centred[:, i:j].T for i, j in itertools.pairwise(edges)])
    deltas, dual, cv_scores, intercept = solve_multiple_kernel_ridge_random_search(
        Ks,
        Y,
        n_iter=GAMMAS,
        alphas=ALPHAS,
        score_func=SCORES[score],
        cv=folds,
        fit_intercept=True,
        return_weights="dual",
        local_alpha=per_unit,
        progress_bar=False,
    )
    if per_unit:
        assert_same(ours, deltas, cv_scores, 1e-9)
    else:
        best = cv_scores.mean(1).argmax()
        np.testing.assert_allclose(ours.cv_score_, cv_scores[best], atol=1e-9)
        np.testing.assert_allclose(-np.log(ours.band_alpha_), deltas, atol=1e-8)
    predicted = np.einsum("bu,bij,ju->iu", np.exp(deltas), Ks, dual) + intercept
    np.testing.assert_allclose(ours.predict(X), predicted, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_single_precision_chooses_what_himalaya_chooses_in_double(shape):
    """Scores within 2e-5: ties of 8e-6 among alphas, and again among shares."""
    n, sizes, v = shape
    X, Y = simulate(n, sizes, v, np.float32)
    ours = fitted(X, Y, sizes, "r2", KFold(4))
    theirs = GroupRidgeCV(
        groups=np.repeat(np.arange(3), sizes),
        fit_intercept=True,
        cv=KFold(4),
        solver_params={
            "n_iter": GAMMAS,
            "alphas": ALPHAS,
            "score_func": r2_score,
            "progress_bar": False,
            "warn": False,
        },
    ).fit(X.astype(np.float64), Y.astype(np.float64))
    assert_same(ours, theirs.deltas_, theirs.cv_scores_, 2e-5)
    assert ours.coef_.dtype == np.float32
    same = np.isclose(-np.log(ours.band_alpha_), theirs.deltas_, rtol=0, atol=1e-8).all(0)
    assert same.mean() > 0.9
    expected = theirs.predict(X.astype(np.float64))
    np.testing.assert_allclose(ours.predict(X)[:, same], expected[:, same], atol=1e-4)
