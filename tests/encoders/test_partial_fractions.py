"""The power of predictions by partial fractions against predictions themselves, and where float32 is enough for it."""

import numpy as np
import pytest
import torch

from neuralign.encoders.linear import sweep
from neuralign.encoders.linear.design import SpectralDesign
from neuralign.encoders.linear.spectrum import Penalties, fractions, quadratic
from neuralign.encoders.linear.stream import BlockFitter, Plan, Task


def power_by_fractions(eigenvalues, test, b, relative, dtype):
    form = quadratic(eigenvalues, test, dtype)
    known = Penalties(eigenvalues, relative, form)
    b = form.turned(b)
    partial = fractions(eigenvalues, test)
    power = 2 * known.differences @ ((partial @ b) * b) + (known.shrunk.square() * form.diagonal) @ b.square()
    return power * known.sizes.square()


@pytest.mark.parametrize("relative", [1e-9, 1e-4, 1.0, 1e3, 1e8, 1e15])
def test_power_is_that_of_predictions_at_every_penalty(relative):
    rng = np.random.default_rng(0)
    eigenvalues = torch.from_numpy(np.sort(np.r_[rng.random(30) ** 3, 0.5, 0.5, 1.0]))
    test = torch.from_numpy(rng.standard_normal((12, 33))) * eigenvalues.sqrt()
    b = torch.from_numpy(rng.standard_normal((33, 5))) * eigenvalues.sqrt()[:, None]
    plain = (test @ (b / (eigenvalues[:, None] + relative))).square().sum(0)
    found = power_by_fractions(
        eigenvalues, test.clone(), b, torch.tensor([relative], dtype=torch.float64), torch.float64
    )
    np.testing.assert_allclose(found[0], plain, rtol=1e-10)


def test_rounding_is_foretold():
    """The error of float32 stays below a few times what is foretold of white responses, and is not far below."""
    rng = np.random.default_rng(1)
    eigenvalues = torch.from_numpy(np.arange(1, 301) ** -1.0).flip(0)
    test = torch.from_numpy(rng.standard_normal((60, 300))) * eigenvalues.sqrt()
    b = (torch.from_numpy(rng.standard_normal((300, 400))) * eigenvalues.sqrt()[:, None]).float()
    form = quadratic(eigenvalues, test, torch.float32)
    for relative in (1e-5, 1e-2, 1.0, 1e4):
        known = Penalties(eigenvalues, torch.tensor([relative], dtype=torch.float64), form)
        plain = (test @ (b.double() * known.shrunk[0][:, None])).square().sum(0)
        each = (known.shrunk.square() * form.diagonal) @ b.double().square()
        # All that is not the product in float32 stays in float64.
        power = 2 * known.differences @ ((form.partial @ b).double() * b.double()) + each
        error = ((power[0] - plain).square().mean() / plain.square().mean()).sqrt() / torch.finfo(torch.float32).eps
        assert 0.01 * known.rounding < float(error) < 3 * known.rounding


def scored(X, Y, alphas, folds, score="r2"):
    """Scores (alpha, unit), and the dtypes in which folds are scored to begin with."""
    design = SpectralDesign(X, folds)
    fitter = BlockFitter(design, Task(alphas, score, Plan("fractions", True), surface=True, weights=False))
    scores = fitter._scores(fitter.prepare(Y, slice(0, Y.shape[1])), "fractions")
    return scores.table, {one.dtype for sets in fitter._scorers("fractions") for _, some in sets for one in some}


def careless(monkeypatch, *args, **options):
    """As `scored`, all in float32."""
    monkeypatch.setattr(sweep, "_SMOOTH", np.inf)
    monkeypatch.setattr(sweep, "_ROUGH", np.inf)
    monkeypatch.setattr(sweep, "_DRIFT", np.inf)
    return scored(*args, **options)[0]


def loop(X, Y, alphas, folds):
    """Mean R2 of held-out rows at every penalty, in float64."""
    X, Y = X.astype(float), Y.astype(float)
    table = []
    for train, test in folds:
        mean, y_mean = X[train].mean(0), Y[train].mean(0)
        U, s, V = np.linalg.svd(X[train] - mean, full_matrices=False)
        rows = []
        for alpha in alphas:
            predicted = (X[test] - mean) @ V.T @ (s[:, None] / (s[:, None] ** 2 + alpha) * (U.T @ (Y[train] - y_mean)))
            residual = ((Y[test] - y_mean - predicted) ** 2).sum(0)
            rows.append(1 - residual / ((Y[test] - Y[test].mean(0)) ** 2).sum(0))
        table.append(rows)
    return np.mean(table, axis=0)


def folds_of(n, k):
    rows = np.arange(n)
    return [(np.setdiff1d(rows, part), part) for part in np.array_split(rows, k)]


def nearly_equal_eigenvalues(rng, n, p):
    """Eigenvalues of the later half of the rows come in pairs that differ by a few parts in ten million."""
    X = rng.standard_normal((n, p))
    rows = np.arange(n // 2, n)
    centred = X[rows] - X[rows].mean(0)
    U, _, V = np.linalg.svd(centred, full_matrices=False)
    X[rows] = U * np.repeat(np.arange(1, p // 2 + 1), 2) * (1 + 2e-7 * (np.arange(p) % 2)) @ V
    return X.astype(np.float32)


def test_nearly_equal_eigenvalues_are_met_in_float64(monkeypatch):
    rng = np.random.default_rng(2)
    X = nearly_equal_eigenvalues(rng, 120, 20)
    Y = (X @ rng.standard_normal((20, 30)) + rng.standard_normal((120, 30))).astype(np.float32)
    alphas, folds = np.logspace(-2, 4, 7), [(np.arange(60, 120), np.arange(60))]
    expected = loop(X, Y, alphas, folds)
    found, dtypes = scored(X, Y, alphas, folds)
    assert dtypes == {torch.float64}
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(careless(monkeypatch, X, Y, alphas, folds) - expected).max() > 1e-4


def test_common_spectra_are_met_in_float32():
    rng = np.random.default_rng(3)
    for X in (rng.standard_normal((200, 80)), rng.standard_normal((200, 80)) / np.arange(1, 81) ** 0.7):
        X = X.astype(np.float32)
        Y = (X @ rng.standard_normal((80, 30)) + 3 * rng.standard_normal((200, 30))).astype(np.float32)
        alphas, folds = np.logspace(-2, 8, 11), folds_of(200, 4)
        found, dtypes = scored(X, Y, alphas, folds)
        assert dtypes == {torch.float32}
        np.testing.assert_allclose(found, loop(X, Y, alphas, folds), atol=2e-6)


def test_a_unit_along_two_neighbouring_axes(monkeypatch):
    """What such a unit holds, the rounding foretold of responses without structure dilutes by all other axes."""
    rng = np.random.default_rng(5)
    X = rng.standard_normal((400, 300)).astype(np.float32)
    folds = [(np.arange(200), np.arange(200, 400))]
    centred = X[:200].astype(float) - X[:200].mean(0, dtype=float)
    _, s, V = np.linalg.svd(centred, full_matrices=False)
    closest = np.argmin(-np.diff(s[:150] ** 2) / s[:149] ** 2)
    Y = np.repeat((X @ (V[closest] + V[closest + 1]))[:, None], 40, axis=1)
    Y += 1e-3 * rng.standard_normal(Y.shape)
    alphas = np.logspace(0, 5, 11)
    expected = loop(X, Y.astype(np.float32), alphas, folds)
    error = np.abs(scored(X, Y.astype(np.float32), alphas, folds)[0] - expected)
    assert (error <= 1e-5 * np.maximum(1, np.abs(expected))).all()
    rough = np.abs(careless(monkeypatch, X, Y.astype(np.float32), alphas, folds) - expected)
    assert (rough > 1e-5 * np.maximum(1, np.abs(expected))).any()


@pytest.mark.parametrize("score", ["r", "r2"])
def test_slow_features_and_ordinary_units(score):
    rng = np.random.default_rng(6)
    X = np.cumsum(rng.standard_normal((600, 300)), 0)
    X = (X / X.std(0)).astype(np.float32)
    Y = (X @ rng.standard_normal((300, 200)) / 17 + rng.standard_normal((600, 200))).astype(np.float32)
    alphas, folds = np.logspace(-2, 8, 11), folds_of(600, 5)
    found, _ = scored(X, Y, alphas, folds, score)
    expected, _ = scored(X.astype(float), Y.astype(float), alphas, folds, score)
    assert (np.abs(found - expected) <= 1e-5 * np.maximum(1, np.abs(expected))).all()


def test_test_rows_far_out_along_an_axis_that_a_unit_ignores():
    rng = np.random.default_rng(7)
    X = rng.standard_normal((300, 40)).astype(np.float32)
    _, _, V = np.linalg.svd(X[:200] - X[:200].mean(0), full_matrices=False)
    X[200:] += 1e3 * rng.standard_normal((100, 1)).astype(np.float32) * V[20].astype(np.float32)
    Y = (X @ (V[0] + V[1])[:, None] + 0.1 * rng.standard_normal((300, 8))).astype(np.float32)
    alphas, folds = np.logspace(-1, 4, 6), [(np.arange(200), np.arange(200, 300))]
    found, _ = scored(X, Y, alphas, folds, "r")
    expected, _ = scored(X.astype(float), Y.astype(float), alphas, folds, "r")
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("drift", [100, 1000, 10000])
def test_runs_that_drift_in_features_and_responses(drift, monkeypatch):
    """Responses of a run lie far from those of others, along features that do: what is within runs must not blur."""
    rng = np.random.default_rng(8)
    X, Y = rng.standard_normal((200, 40)), rng.standard_normal((200, 30))
    run = np.repeat(rng.standard_normal(4), 50)
    X += drift * np.outer(run, rng.standard_normal(40))
    Y += drift * np.outer(run, rng.standard_normal(30))
    X, Y = X.astype(np.float32), Y.astype(np.float32)
    alphas, folds = np.logspace(-1, 5, 7), folds_of(200, 4)
    found, _ = scored(X, Y, alphas, folds)
    expected, _ = scored(X.astype(float), Y.astype(float), alphas, folds)
    # Responses are float32 themselves: one rounding of theirs is drift * 6e-8 of what lies within a run.
    bound = 1e-5 + 3e-7 * drift
    assert (np.abs(found - expected) <= bound * np.maximum(1, np.abs(expected))).all()


def test_narrow_predictions_are_scored_in_float64(monkeypatch):
    """Test rows that hardly differ: large terms cancel in the power of their predictions."""
    rng = np.random.default_rng(4)
    X = rng.standard_normal((80, 30)).astype(np.float32)
    X[78:] = X[78] + 1e-5 * rng.standard_normal((2, 30))  # two rows, nearly the same
    Y = rng.standard_normal((80, 400)).astype(np.float32)
    alphas, folds = np.array([1.0, 10.0]), [(np.arange(78), np.arange(78, 80))]
    r, _ = scored(X, Y, alphas, folds, "r")
    np.testing.assert_allclose(np.abs(r), 1, atol=2e-5)  # as between any two points
    r = careless(monkeypatch, X, Y, alphas, folds, "r")
    assert not (np.abs(np.abs(r) - 1) < 1e-4).all()
