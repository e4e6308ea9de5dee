"""Converters of penalties: plain ridge at our alpha gives the weights that each convention gives with its own."""

import warnings

import numpy as np
import pytest

from neuralign.encoders.linear.conventions import from_fraction, from_huth, from_mtrf
from neuralign.encoders.linear.delays import Delays


def ridge(X, Y, alpha):
    """Weights by the normal equations, for one alpha of all units."""
    return np.linalg.solve(X.T @ X + alpha * np.eye(X.shape[1]), X.T @ Y)


def simulate(n=50, p=7, v=6, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p)) * np.exp(rng.standard_normal(p)) + 1.0
    return X, X @ rng.standard_normal((p, v)) + rng.standard_normal((n, v)) * np.linspace(0.1, 9, v)


# The Huth laboratory's


def huth_weights(X, Y, alphas, normalised):
    """A filter S / (S^2 + a^2) on singular values, one unit at a time."""
    U, S, Vt = np.linalg.svd(X, full_matrices=False)
    columns = []
    for u, alpha in enumerate(alphas):
        a = alpha * S[0] if normalised else alpha
        columns.append(Vt.T @ np.diag(S / (S**2 + a**2)) @ U.T @ Y[:, u])
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("shape", [(50, 7), (20, 45)])
def test_huth_weights(shape, normalised):
    X, Y = simulate(*shape)
    theirs = np.logspace(-1, 1.5, 6)
    alphas = from_huth(theirs, X, normalised=True) if normalised else from_huth(theirs)
    ours = np.stack([ridge(X, Y[:, u], alpha) for u, alpha in enumerate(alphas)], axis=1)
    np.testing.assert_allclose(ours, huth_weights(X, Y, theirs, normalised), rtol=1e-8, atol=1e-11)


def test_huth_shapes():
    assert from_huth(3) == 9.0
    assert isinstance(from_huth(3), float)
    np.testing.assert_array_equal(from_huth([[0.0, 2.0]]), [[0.0, 4.0]])
    assert from_huth(2.0, 3 * np.eye(4), normalised=True) == pytest.approx(36.0)


# mTRFpy's


def lagged_by_loop(x, lags):
    """A column of ones, then x at each lag with zeros before the start of the trial."""
    table = np.zeros((len(x), 1 + len(lags) * x.shape[1]))
    for t in range(len(x)):
        table[t, 0] = 1.0
        for k, lag in enumerate(lags):
            if 0 <= t - lag < len(x):
                table[t, 1 + k * x.shape[1] : 1 + (k + 1) * x.shape[1]] = x[t - lag]
    return table


def mtrf_weights(trials, lags, regularization, rate, over_trials):
    """(C + regularization / delta M) w = c / delta; C and c are means or sums over trials, and M spares the bias."""
    tables = [(lagged_by_loop(x, lags), y) for x, y in trials]
    count = len(trials) if over_trials == "mean" else 1
    C = sum(F.T @ F for F, _ in tables) / count
    c = sum(F.T @ y for F, y in tables) / count
    M = np.eye(len(C))
    M[0, 0] = 0
    w = np.linalg.solve(C + regularization * rate * M, c) * rate
    return w[0], w[1:]


@pytest.mark.parametrize(("over_trials", "n_trials"), [("mean", 4), ("sum", 1)])
def test_mtrf_weights(over_trials, n_trials):
    rng = np.random.default_rng(1)
    rate, lags = 64, [-1, 0, 1, 2, 3]
    trials = [(rng.standard_normal((n, 2)) + 1, rng.standard_normal((n, 3)) + 2) for n in (30, 41, 25, 30)]
    bias, theirs = mtrf_weights(trials, lags, 0.2, rate, over_trials)
    X, Y = (np.concatenate(parts) for parts in zip(*trials, strict=True))
    runs = np.repeat(range(4), [len(x) for x, _ in trials])
    delayed = Delays(lags).apply(X, runs, centre=False, device="cpu").dense()
    mean = delayed.mean(0)
    ours = ridge(delayed - mean, Y - Y.mean(0), from_mtrf(0.2, rate, n_trials))
    np.testing.assert_allclose(rate * ours, theirs, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(rate * (Y.mean(0) - mean @ ours), bias, rtol=1e-9, atol=1e-12)
    # Forgetting the trials, or the rate, is another model.
    other = ridge(delayed - mean, Y - Y.mean(0), 0.2)
    assert np.abs(rate * other / theirs - 1).max() > 0.05


def test_mtrf_shapes():
    assert from_mtrf(2, sampling_rate=10) == 20.0
    np.testing.assert_allclose(from_mtrf([0.0, 1.0], 10, 3), [0.0, 30.0])


# Fractions


FRACTIONS = [1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999]


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("shape", [(50, 7), (20, 45), (30, 1)])
def test_weights_have_the_fraction_of_their_length(shape, fit_intercept):
    X, Y = simulate(*shape)
    alphas = from_fraction(X, Y, FRACTIONS, fit_intercept)
    assert alphas.shape == (len(FRACTIONS), Y.shape[1])
    if fit_intercept:
        X, Y = X - X.mean(0), Y - Y.mean(0)
    whole = np.linalg.norm(np.linalg.lstsq(X, Y, rcond=None)[0], axis=0)
    for fraction, row in zip(FRACTIONS, alphas, strict=True):
        for u, alpha in enumerate(row):
            length = np.linalg.norm(ridge(X, Y[:, u], alpha))
            assert length / whole[u] == pytest.approx(fraction, rel=1e-10)


def test_fraction_finds_the_alpha_that_made_it():
    X, Y = simulate()
    X, Y = X - X.mean(0), Y - Y.mean(0)
    whole = np.linalg.norm(np.linalg.lstsq(X, Y, rcond=None)[0], axis=0)
    for alpha in (1e-2, 1.0, 300.0, 1e6):
        fraction = np.linalg.norm(ridge(X, Y, alpha), axis=0) / whole
        found = [from_fraction(X, Y[:, u], fraction[u]) for u in range(Y.shape[1])]
        np.testing.assert_allclose(found, alpha, rtol=1e-8)


def test_one_axis_has_a_closed_form():
    """With orthonormal columns b shrinks by 1 + alpha on every axis."""
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((30, 5)))[0]
    Y = np.random.default_rng(1).standard_normal((30, 4))
    found = from_fraction(Q, Y, [0.01, 0.2, 1.0], fit_intercept=False)
    np.testing.assert_allclose(found, np.tile([[99.0], [4.0], [0.0]], 4), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("exponent", [-3, -6])
def test_steep_spectra_and_their_scale(exponent):
    """Many decades of eigenvalues, at scales where squares would leave the range of float64."""
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.standard_normal((n, 40)))[0] for n in (60, 40))
    S = np.arange(1.0, 41) ** exponent
    X, Y = U * S @ V.T, rng.standard_normal((60, 3))
    z = S[:, None] * (U.T @ Y)
    for scale in (1.0, 1e-90, 1e90):
        alphas = from_fraction(scale * X, Y, [1e-4, 0.3], fit_intercept=False) / scale**2
        for fraction, row in zip([1e-4, 0.3], alphas, strict=True):
            length = np.linalg.norm(z / (S[:, None] ** 2 + row), axis=0)
            np.testing.assert_allclose(length, fraction * np.linalg.norm(z / S[:, None] ** 2, axis=0), rtol=1e-6)


def test_redundant_features_have_the_shortest_weights():
    X, Y = simulate()
    twice = np.column_stack([X, X])  # least squares halves its weights: the same as X times sqrt(2)
    np.testing.assert_allclose(from_fraction(twice, Y, 0.4), from_fraction(np.sqrt(2) * X, Y, 0.4), rtol=1e-9)


def test_offsets_cost_no_digits():
    X, Y = simulate()
    np.testing.assert_allclose(from_fraction(X, Y + 1e9, 0.4), from_fraction(X, (Y + 1e9) - 1e9, 0.4), rtol=1e-11)


def test_alphas_fall_as_the_fraction_grows_and_do_not_depend_on_blocks(monkeypatch):
    X, Y = simulate(v=23)
    alphas = from_fraction(X, Y, FRACTIONS)
    assert (np.diff(alphas, axis=0) < 0).all()
    monkeypatch.setattr("neuralign.encoders.linear.conventions._CELLS", 1)
    np.testing.assert_allclose(from_fraction(X, Y, FRACTIONS), alphas, rtol=1e-9)


def test_shapes_of_fractions_and_units():
    X, Y = simulate()
    assert from_fraction(X, Y, 0.5).shape == (6,)
    assert from_fraction(X, Y[:, 0], [0.2, 0.5]).shape == (2,)
    assert isinstance(from_fraction(X, Y[:, 0], 0.5), float)
    assert from_fraction(X, Y[:, 0], 0.5) == pytest.approx(from_fraction(X, Y, 0.5)[0], rel=1e-9)


def test_units_without_weights_are_nan_with_one_warning():
    X, Y = simulate()
    expected = from_fraction(X, Y, 0.5)
    Y[3, 1] = np.nan
    Y[:, 4] = 0.1
    with pytest.warns(UserWarning, match="2 of 6 units have no alpha") as caught:
        alphas = from_fraction(X, Y, 0.5)
    assert len(caught) == 1
    assert np.isnan(alphas).tolist() == [False, True, False, False, True, False]
    np.testing.assert_allclose(alphas[[0, 2, 3, 5]], expected[[0, 2, 3, 5]], rtol=1e-9)
    with pytest.warns(UserWarning, match="6 of 6 units"):
        assert np.isnan(from_fraction(np.ones_like(X), Y, [0.1, 0.5])).all()
    with warnings.catch_warnings():  # without intercept a constant has weights
        warnings.simplefilter("error")
        assert np.isfinite(from_fraction(X, Y[:, 4], 0.5, fit_intercept=False))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda X, Y: from_huth(-1.0), "alpha=-1.0: expected finite numbers of zero or above"),
        (lambda X, Y: from_huth("much"), "alpha='much': expected finite numbers"),
        (lambda X, Y: from_huth([]), "alpha=\\[\\]"),
        (lambda X, Y: from_huth(1.0, X), "normalised=False and X is given"),
        (lambda X, Y: from_huth(1.0, normalised=True), "normalised=True and X is missing"),
        (lambda X, Y: from_huth(1.0, X * np.nan, normalised=True), "X contains NaN"),
        (lambda X, Y: from_mtrf(-1.0, 64), "regularization=-1.0"),
        (lambda X, Y: from_mtrf(1.0, 0), "sampling_rate=0: expected finite numbers above zero"),
        (lambda X, Y: from_mtrf(1.0, 64, 0), "n_trials=0"),
        (lambda X, Y: from_fraction(X, Y, 0.0), "fraction=0.0: expected finite numbers above zero"),
        (lambda X, Y: from_fraction(X, Y, [0.5, 1.1]), "above 0 and up to 1"),
        (lambda X, Y: from_fraction(X, Y[:-1], 0.5), "X has 50 rows and Y has shape \\(49, 6\\)"),
        (lambda X, Y: from_fraction(X * np.nan, Y, 0.5), "X contains NaN"),
        (lambda X, Y: from_fraction(X, np.full_like(Y, np.inf), 0.5), "infinity"),
    ],
)
def test_numbers_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*simulate())
