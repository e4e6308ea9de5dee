import numpy as np
import pytest
import torch
from sklearn.model_selection import KFold, ShuffleSplit

from neuralign.encoders.linear import refit
from neuralign.encoders.linear.delays import Delays
from neuralign.encoders.linear.design import SpectralDesign
from neuralign.encoders.linear.folds import fold_rows
from neuralign.encoders.linear.refit import Refitter, Way, cheapest, chosen_scores, fixed_scores
from neuralign.encoders.linear.responses import Responses
from neuralign.encoders.linear.ridge import RidgeCV

pytestmark = pytest.mark.filterwarnings("ignore:.*of the chosen alphas lie at an end of the grid")

HAT, PRODUCTS, BY_ROWS = Way(True, True), Way(False, False), Way(False, True)
MEMORY = 2**28


def simulate(n=60, p=8, v=5, seed=0, dtype=np.float64, offset=3.0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p)) + offset
    Y = X @ rng.standard_normal((p, v)) + 2 * rng.standard_normal((n, v)) - offset
    return X.astype(dtype), Y.astype(dtype)


def orders_of(n, n_orders=4, seed=1):
    rng = np.random.default_rng(seed)
    return np.stack([np.arange(n), *(rng.permutation(n) for _ in range(n_orders - 1))])


def reference(X, Y, folds, alpha, orders, score, fit_intercept=True, standardise=False):
    """Every fold refitted from a singular value decomposition, in float64, unit by unit."""
    X, Y = X.astype(np.float64), Y.astype(np.float64)
    scores = np.full((len(orders), len(folds), Y.shape[1]), np.nan)
    for i, order in enumerate(orders):
        for f, (train, test) in enumerate(folds):
            offset = X[train].mean(0) if fit_intercept else 0.0
            scale = X[train].std(0) if standardise else 1.0
            A, B = (X[train] - offset) / scale, (X[test] - offset) / scale
            left, s, axes = np.linalg.svd(A, full_matrices=False)
            left, s, axes = left[:, s > 1e-12 * s[0]], s[s > 1e-12 * s[0]], axes[s > 1e-12 * s[0]]
            for u in range(Y.shape[1]):
                y = Y[order, u]
                mean = y[train].mean() if fit_intercept else 0.0
                change = B @ axes.T @ (s / (s**2 + alpha[u]) * (left.T @ (y[train] - mean)))
                predicted, t = change + mean, y[test]
                if np.ptp(t) == 0 or (score == "r" and fit_intercept and np.ptp(y[train]) == 0):
                    continue
                scores[i, f, u] = (
                    np.corrcoef(change, t)[0, 1]
                    if score == "r"
                    else 1 - ((t - predicted) ** 2).sum() / ((t - t.mean()) ** 2).sum()
                )
    with np.errstate(invalid="ignore"):
        defined = ~np.isnan(scores)
        return np.where(defined.any(1), np.nansum(scores, 1) / np.maximum(defined.sum(1), 1), np.nan)


def gathered(pieces, n_orders, v):
    found, seen = np.full((n_orders, v), np.nan), np.zeros((n_orders, v), int)
    for piece in pieces:
        found[piece.orders, piece.units] = piece.scores
        seen[piece.orders, piece.units] += 1
    assert seen.max() == 1
    return found


def fixed(monkeypatch, way, design, Y, alpha, orders, score, memory=MEMORY):
    if way is not None:
        monkeypatch.setattr(refit, "cheapest", lambda *_: way)
    pieces = fixed_scores(design, Responses(Y), np.broadcast_to(alpha, Y.shape[1]), orders, score, memory)
    return gathered(pieces, len(orders), Y.shape[1])


@pytest.mark.parametrize("score", ["r", "r2"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("n", "p", "way"),
    [
        (60, 8, HAT),
        (60, 8, PRODUCTS),
        (60, 8, BY_ROWS),
        (30, 70, HAT),
        (30, 70, BY_ROWS),
        (30, 1, PRODUCTS),
        (40, 32, HAT),
        (40, 32, PRODUCTS),
    ],
)
def test_equals_folds_refitted_one_by_one(monkeypatch, n, p, way, dtype, fit_intercept, score):
    X, Y = simulate(n, p, dtype=dtype, offset=1.0)
    alpha, orders = np.array([1.0, 30.0, 1.0, 1000.0, 5.0]), orders_of(n)
    design = RidgeCV(fit_intercept=fit_intercept).design(X)
    folds = fold_rows(5, X, Y, None)
    expected = reference(X, Y, folds, alpha, orders, score, fit_intercept)
    found = fixed(monkeypatch, way, design, Y, alpha, orders, score)
    np.testing.assert_allclose(found, expected, atol=1e-9 if dtype == np.float64 else 1e-5)


def interleaved(n):
    return np.random.default_rng(3).permutation(n) % 4


@pytest.mark.parametrize("way", [HAT, PRODUCTS, BY_ROWS])
@pytest.mark.parametrize("score", ["r", "r2"])
@pytest.mark.parametrize(
    "cv",
    [
        ShuffleSplit(3, test_size=0.3, random_state=0),  # folds that overlap, and rows that none of them tests
        ShuffleSplit(12, test_size=0.2, random_state=0),  # a layout for each fold
        KFold(6, shuffle=True, random_state=0),
        [(np.arange(30), np.arange(30, 60)), (np.arange(20), np.arange(20, 40)), (np.arange(20), np.arange(40, 60))],
    ],
    ids=["overlapping", "layouts", "shuffled", "one training set tested twice"],
)
def test_any_folds(monkeypatch, cv, score, way):
    X, Y = simulate()
    Y[:30] += 5  # means that differ between folds
    orders = orders_of(60)
    folds = fold_rows(cv, X, Y, None)
    found = fixed(monkeypatch, way, RidgeCV(cv=folds).design(X), Y, 10.0, orders, score)
    np.testing.assert_allclose(found, reference(X, Y, folds, np.full(5, 10.0), orders, score), atol=1e-9)


@pytest.mark.parametrize("way", [HAT, PRODUCTS, BY_ROWS])
def test_groups_and_standardised_features(monkeypatch, way):
    X, Y = simulate()
    X *= 10.0 ** np.arange(-4, 4)
    groups, orders = interleaved(60), orders_of(60)
    folds = fold_rows(4, X, Y, groups)
    design = RidgeCV(cv=4, standardise=True).design(X, groups)
    found = fixed(monkeypatch, way, design, Y, 10.0, orders, "r2")
    expected = reference(X, Y, folds, np.full(5, 10.0), orders, "r2", standardise=True)
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("score", ["r", "r2"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-9)])
@pytest.mark.parametrize(("n", "p"), [(120, 20), (60, 150), (400, 3)])
def test_equals_cv_scores_of_ridge(n, p, dtype, tolerance, score, nested):
    X, Y = simulate(n, p, 7, dtype=dtype)
    alphas = np.logspace(-2, 6, 9)
    encoder = RidgeCV(alphas, score=score, keep_scores=True, nested=nested)
    design = encoder.design(X)
    orders = orders_of(n, 2)
    for i, order in enumerate(orders):
        expected = encoder.fit(design, Y[order]).cv_scores_
        for one, alpha in zip(expected, alphas, strict=True):
            pieces = fixed_scores(design, Responses(Y), np.full(7, alpha), orders, score, MEMORY)
            np.testing.assert_allclose(gathered(pieces, 2, 7)[i], one, atol=tolerance)


@pytest.mark.parametrize("way", [HAT, PRODUCTS, BY_ROWS])
def test_equal_eigenvalues(monkeypatch, way):
    """One-hot features, whose axes the engine turns among themselves."""
    rng = np.random.default_rng(0)
    X, Y = np.eye(6)[np.arange(60) % 6], rng.standard_normal((60, 5))
    design, orders = RidgeCV().design(X), orders_of(60)
    assert any(test.quadratic.turns for train in design.trains(0, True) for test in train.tests)
    found = fixed(monkeypatch, way, design, Y, 3.0, orders, "r2")
    expected = reference(X, Y, fold_rows(5, X, Y, None), np.full(5, 3.0), orders, "r2")
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("way", [HAT, PRODUCTS, BY_ROWS])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_design_is_left_as_it_was(monkeypatch, dtype, way):
    X, Y = np.eye(10, dtype=dtype)[np.arange(200) % 10], np.random.default_rng(0).standard_normal((200, 6))
    encoder = RidgeCV([1.0, 10.0, 100.0], keep_scores=True)
    design, orders = encoder.design(X), orders_of(200)
    assert any(test.quadratic.turns for train in design.trains(0, True) for test in train.tests)
    surface = encoder.fit(design, Y).cv_scores_
    first, second = (fixed(monkeypatch, way, design, Y, 10.0, orders, "r2") for _ in range(2))
    np.testing.assert_array_equal(second, first)
    np.testing.assert_array_equal(encoder.fit(design, Y).cv_scores_, surface)


@pytest.mark.parametrize("score", ["r", "r2"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-5), (np.float64, 1e-9)])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize(
    ("n", "p", "way"), [(60, 8, HAT), (60, 8, PRODUCTS), (60, 8, BY_ROWS), (30, 70, HAT), (30, 70, BY_ROWS)]
)
def test_predictions_of_any_size(monkeypatch, n, p, way, scale, dtype, tolerance, fit_intercept, score):
    """A large penalty, or features in tesla, make predictions whose squares float32 cannot hold."""
    X, Y = simulate(n, p, 3, offset=1.0)
    X, Y = (scale * X).astype(dtype), Y.astype(dtype)
    alphas, orders, folds = np.logspace(-2, 30, 9), orders_of(n, 2), fold_rows(5, X, Y, None)
    encoder = RidgeCV(alphas, score=score, keep_scores=True, fit_intercept=fit_intercept)
    design = encoder.design(X)
    of_ridge = encoder.fit(design, Y).cv_scores_
    for alpha, one in zip(alphas, of_ridge, strict=True):
        found = fixed(monkeypatch, way, design, Y, alpha, orders, score)
        expected = reference(X, Y, folds, np.full(3, alpha), orders, score, fit_intercept)
        np.testing.assert_allclose(found, expected, atol=tolerance)
        np.testing.assert_allclose(found[0], one, atol=tolerance)


@pytest.mark.parametrize("column", [3, 1205])
def test_infinity_is_reported_where_it_is(column):
    X, _ = simulate(31, 4)
    Y = np.random.default_rng(0).standard_normal((31, 1240))
    Y[7, column] = np.inf
    design, alphas, orders = RidgeCV().design(X), np.array([1.0, 10.0]), orders_of(31)
    with pytest.raises(ValueError, match=f"infinity in unit {column};"):
        list(chosen_scores(design, Responses(Y), alphas, orders, "r", 2**20))
    with pytest.raises(ValueError, match=f"infinity in unit {column};"):
        list(fixed_scores(design, Responses(Y), np.ones(1240), orders, "r", 2**20))


@pytest.mark.parametrize("way", [HAT, PRODUCTS])
@pytest.mark.parametrize("score", ["r", "r2"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-5), (np.float64, 1e-9)])
def test_undefined_folds_are_left_out(monkeypatch, dtype, tolerance, score, way):
    X, _ = simulate(dtype=dtype)
    Y = np.full((60, 4), 0.1, dtype)  # a number without an exact form
    Y[3, 0] = 2.0  # varies in one fold only, where nothing was learnt of it
    Y[[3, 17, 40], 1] = [1.0, 2.0, 3.0]
    Y[:, 2] = np.random.default_rng(0).standard_normal(60)
    orders = orders_of(60, 8)
    found = fixed(monkeypatch, way, RidgeCV().design(X), Y, 10.0, orders, score)
    expected = reference(X, Y, fold_rows(5, X, Y, None), np.full(4, 10.0), orders, score)
    assert np.isnan(expected[:, 3]).all() and np.isnan(expected[:, 0]).all() == (score == "r")
    np.testing.assert_allclose(found, expected, atol=tolerance)


def test_large_offsets_of_runs_keep_their_digits(monkeypatch):
    X, Y = simulate(400, 10, offset=0.0)
    runs = np.repeat(np.arange(5), 80)
    Y += 1000 * runs[:, None]
    orders = np.concatenate(
        [80 * r + np.random.default_rng(r).permuted([np.arange(80)] * 3, axis=1) for r in range(5)], 1
    )
    expected = reference(X, Y, fold_rows(5, X, Y, runs), np.full(5, 10.0), orders, "r")
    for way in (HAT, PRODUCTS):
        design = RidgeCV().design(X.astype(np.float32), runs)
        np.testing.assert_allclose(fixed(monkeypatch, way, design, Y, 10.0, orders, "r"), expected, atol=1e-3)


@pytest.mark.parametrize("memory", [1, 20_000, 200_000])
def test_result_does_not_depend_on_memory(memory):
    X, Y = simulate(v=40)
    design, orders = RidgeCV().design(X), orders_of(60, 7)
    alpha = np.tile([1.0, 10.0], 20)
    whole, small = (
        gathered(fixed_scores(design, Responses(Y), alpha, orders, "r", m), 7, 40) for m in (MEMORY, memory)
    )
    np.testing.assert_allclose(small, whole, atol=1e-12)
    grid = np.array([1.0, 10.0])
    whole, small = (
        gathered(chosen_scores(design, Responses(Y), grid, orders, "r", m), 7, 40) for m in (MEMORY, memory)
    )
    np.testing.assert_allclose(small, whole, atol=1e-12)


@pytest.mark.parametrize("score", ["r", "r2"])
@pytest.mark.parametrize(("n", "p"), [(60, 8), (30, 70)])
def test_chosen_equals_ridge_fitted_to_each_order(n, p, score):
    X, Y = simulate(n, p)
    Y[3, 2] = np.nan
    alphas, orders = np.logspace(-1, 4, 8), orders_of(n)
    encoder = RidgeCV(alphas, score=score)
    found = gathered(chosen_scores(encoder.design(X), Responses(Y), alphas, orders, score, MEMORY), 4, 5)
    for order, scores in zip(orders, found, strict=True):
        with pytest.warns(UserWarning, match="1 of 5 units hold NaN"):
            np.testing.assert_allclose(scores, encoder.fit(X, Y[order]).cv_score_, atol=1e-12)


def test_units_with_nan_or_without_alpha_are_left_out():
    X, Y = simulate()
    Y[3, 2] = np.nan
    alpha = np.array([1.0, np.nan, 1.0, 2.0, 3.0])
    pieces = fixed_scores(RidgeCV().design(X), Responses(Y), alpha, orders_of(60), "r", MEMORY)
    found = gathered(pieces, 4, 5)
    np.testing.assert_array_equal(np.isnan(found).all(0), [False, True, True, False, False])
    assert not np.isnan(found[:, [0, 3, 4]]).any()


def test_features_that_are_no_array(monkeypatch):
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((80, 3)), rng.standard_normal((80, 4))
    runs = np.repeat(np.arange(4), 20)
    delayed = Delays([0, 1, 2]).apply(X, runs, centre=False)
    plain = np.concatenate(
        [np.concatenate([np.vstack([np.zeros((d, 3)), X[runs == r][: 20 - d]]) for r in range(4)]) for d in range(3)], 1
    )
    folds, orders = fold_rows(4, X, Y, runs), orders_of(80)
    expected = reference(plain, Y, folds, np.full(4, 5.0), orders, "r2")
    for way in (HAT, PRODUCTS):
        found = fixed(monkeypatch, way, RidgeCV(cv=folds).design(delayed), Y, 5.0, orders, "r2")
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_kernel():
    X, Y = simulate(40, 6, offset=0.0)
    folds, orders = fold_rows(4, X, Y, None), orders_of(40)
    design = SpectralDesign(None, folds, kernel=torch.from_numpy(X @ X.T))
    found = gathered(fixed_scores(design, Responses(Y), np.full(5, 5.0), orders, "r2", MEMORY), 4, 5)
    np.testing.assert_allclose(found, reference(X, Y, folds, np.full(5, 5.0), orders, "r2"), atol=1e-9)


def test_nothing_of_the_stimuli_is_computed_for_an_order(monkeypatch):
    X, Y = simulate()
    design = RidgeCV().design(X)
    refitter = Refitter(design, "r", HAT)
    refitter.at(1.0)
    for name in ("eigh", "svd", "solve", "cholesky"):
        monkeypatch.delattr(torch.linalg, name)
    monkeypatch.setattr(design, "matrix", None)
    refitter.scores(torch.from_numpy(Y), torch.from_numpy(orders_of(60)))


def test_way_follows_flops_digits_and_memory():
    alphas = np.array([1.0])
    rng = np.random.default_rng(0)
    wide, tall = (RidgeCV().design(rng.standard_normal(shape)) for shape in [(100, 90), (2000, 5)])
    assert cheapest(wide, 1000, alphas, 1000, 2**30) == HAT
    assert cheapest(tall, 1000, alphas, 1000, 2**30) == PRODUCTS
    assert not cheapest(wide, 1000, alphas, 1000, 1000).hat
    turn = np.linalg.qr(rng.standard_normal((5, 5)))[0]  # large and small axes in every feature
    rough = RidgeCV().design((rng.standard_normal((2000, 5)) * np.logspace(0, -7, 5) @ turn).astype(np.float32))
    assert cheapest(rough, 1000, np.array([1e-9]), 1000, 2**30) == BY_ROWS
