"""Converters of penalties against the packages whose conventions they convert."""

import numpy as np
import pytest

from neuralign.encoders.linear.conventions import from_fraction, from_mtrf
from neuralign.encoders.linear.delays import Delays


def ridge(X, Y, alpha):
    """Weights and intercept by the normal equations."""
    mx, my = X.mean(0), Y.mean(0)
    F = X - mx
    coef = np.linalg.solve(F.T @ F + alpha * np.eye(F.shape[1]), F.T @ (Y - my))
    return coef, my - mx @ coef


@pytest.mark.parametrize("n_trials", [1, 5])
@pytest.mark.parametrize("regularization", [1e-3, 1.0, 50.0])
def test_mtrf(n_trials, regularization):
    mtrf = pytest.importorskip("mtrf")
    rng = np.random.default_rng(0)
    rate = 32
    stimulus = [rng.standard_normal((60 + 5 * q, 2)) + 1 for q in range(n_trials)]
    response = [rng.standard_normal((len(x), 4)) for x in stimulus]
    for x, y in zip(stimulus, response, strict=True):
        y[2:] += x[:-2] @ np.ones((2, 4))
    trf = mtrf.TRF()
    trf.train(list(stimulus), list(response), rate, -1 / rate, 4 / rate, regularization, verbose=False)
    delays = Delays.from_seconds(-1 / rate, 4 / rate, tr=1 / rate)
    np.testing.assert_allclose(np.asarray(trf.times) * rate, delays.samples)
    runs = np.repeat(range(n_trials), [len(x) for x in stimulus])
    X = delays.apply(np.concatenate(stimulus), runs, centre=False, device="cpu").dense()
    coef, intercept = ridge(X, np.concatenate(response), from_mtrf(regularization, rate, n_trials))
    theirs = np.moveaxis(np.asarray(trf.weights), 1, 0)  # (delay, feature, unit)
    np.testing.assert_allclose(rate * delays.by_delay(coef), theirs, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(rate * intercept, np.ravel(trf.bias), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("shape", [(60, 9), (25, 40)])
def test_fracridge(shape):
    fracridge = pytest.importorskip("fracridge").fracridge
    rng = np.random.default_rng(0)
    X = rng.standard_normal(shape) * np.exp(rng.standard_normal(shape[1]))
    Y = X @ rng.standard_normal((shape[1], 5)) + 3 * rng.standard_normal((shape[0], 5))
    fractions = np.array([0.05, 0.3, 0.6, 0.9])
    theirs, their_alphas = fracridge(X, Y, fractions, jit=False)  # (feature, fraction, unit), (fraction, unit)
    whole = np.linalg.norm(np.linalg.lstsq(X, Y, rcond=None)[0], axis=0)
    reached = np.linalg.norm(theirs, axis=0) / whole
    # They interpolate, so that their weights miss the fraction by a little; at the fraction they reach, alpha agrees.
    for u in range(5):
        ours = from_fraction(X, Y[:, u], reached[:, u], fit_intercept=False)
        np.testing.assert_allclose(ours, their_alphas[:, u], rtol=1e-7)
    ours = from_fraction(X, Y, fractions, fit_intercept=False)
    np.testing.assert_allclose(ours, their_alphas, rtol=0.05)
    for f in range(4):
        for u in range(5):
            coef = np.linalg.solve(X.T @ X + ours[f, u] * np.eye(shape[1]), X.T @ Y[:, u])
            assert abs(np.linalg.norm(coef) / whole[u] - fractions[f]) < 1e-10
    assert np.abs(reached - fractions[:, None]).max() > 1e-6
