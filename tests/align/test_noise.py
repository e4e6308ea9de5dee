"""Noise covariances against loops over samples, scikit-learn, and simulated truth."""

import numpy as np
import pandas as pd
import pytest
from sklearn.covariance import ledoit_wolf

from neuralign.align.noise import METHODS, noise_covariance, noise_precision, repeat_precision, repeat_residuals
from neuralign.datasets.recording import Recording


def samples(n=30, p=12, seed=0):
    rng = np.random.default_rng(seed)
    return 5 + rng.normal(size=(n, p)) @ rng.normal(size=(p, p))


def identity_by_loop(X, dof):
    """Ledoit & Wolf (2004), sums over samples of outer products written out."""
    X = X - X.mean(0)
    n, p = X.shape
    outer = [np.outer(x, x) for x in X]
    sample = sum(outer) / n
    mean_variance = np.trace(sample) / p
    spread = ((sample - mean_variance * np.eye(p)) ** 2).sum() / p
    error = min(spread, sum(((one - sample) ** 2).sum() / p for one in outer) / n**2)
    shrunk = error / spread * mean_variance * np.eye(p) + (1 - error / spread) * sample
    return shrunk * n / dof


def diagonal_by_loop(X, dof):
    """Schaefer & Strimmer (2005): weight from the variance of every correlation over samples."""
    X = X - X.mean(0)
    n, p = X.shape
    covariance = X.T @ X / dof
    Z = X / np.sqrt(np.diag(covariance))
    numerator = denominator = 0.0
    for a in range(p):
        for b in range(p):
            if a != b:
                products = Z[:, a] * Z[:, b]
                mean = products.sum() / (n - 1)
                numerator += n / dof**2 * ((products**2).sum() / (n - 1) - mean**2)
                denominator += mean**2
    weight = min(max(numerator / denominator, 0), 1)
    return covariance * (weight * np.eye(p) + (1 - weight))


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (5, 3), (200, 4)])
@pytest.mark.parametrize("dof", [None, 10])
def test_shrinkage_equals_the_loop_over_samples(shape, dof):
    X = samples(*shape)
    used = shape[0] - 1 if dof is None else dof
    for method, slow in (("shrinkage-identity", identity_by_loop), ("shrinkage-diagonal", diagonal_by_loop)):
        np.testing.assert_allclose(noise_covariance(X, method, dof), slow(X, used), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_shrinkage_to_the_identity_equals_scikit_learn(shape):
    """Which divides by the number of samples instead of the degrees of freedom."""
    X = samples(*shape)
    wanted, _ = ledoit_wolf(X)
    np.testing.assert_allclose(noise_covariance(X, "shrinkage-identity", dof=len(X)), wanted, rtol=1e-10, atol=1e-12)


def test_full_and_diagonal():
    X = samples()
    np.testing.assert_allclose(noise_covariance(X, "full"), np.cov(X.T), rtol=1e-11)
    np.testing.assert_allclose(noise_covariance(X, "full", 20), np.cov(X.T) * 29 / 20, rtol=1e-11)
    np.testing.assert_allclose(noise_covariance(X, "diagonal"), np.diag(X.var(0, ddof=1)), rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_precision_is_the_inverse(method):
    X = samples(60, 12)
    precision = noise_precision(X, method)
    if method == "diagonal":
        assert precision.shape == (12,)
        precision = np.diag(precision)
    np.testing.assert_allclose(precision @ noise_covariance(X, method), np.eye(12), atol=1e-9)
    np.testing.assert_allclose(precision, precision.T, rtol=1e-12)


def test_scale_of_the_responses_does_not_matter():
    """Shrinkage to the diagonal commutes with the unit of every channel."""
    X, units = samples(), np.logspace(-6, 6, 12)
    for method in ("full", "diagonal", "shrinkage-diagonal"):
        np.testing.assert_allclose(
            noise_covariance(X * units, method), noise_covariance(X, method) * np.outer(units, units), rtol=1e-9
        )


def test_shrinkage_is_nearer_to_the_truth():
    """With fewer samples than units, in the mean over simulations; and vanishes with many samples."""
    rng = np.random.default_rng(0)
    root = np.eye(40) + 0.1 * rng.normal(size=(40, 40))
    true = root @ root.T
    distance = dict.fromkeys(METHODS, 0.0)
    for _ in range(20):
        X = rng.normal(size=(25, 40)) @ root.T
        for method in METHODS:
            distance[method] += ((noise_covariance(X, method) - true) ** 2).sum()
    assert distance["shrinkage-diagonal"] < 0.5 * distance["full"]
    assert distance["shrinkage-identity"] < 0.5 * distance["full"]
    many = rng.normal(size=(50000, 40)) @ root.T
    for method in ("shrinkage-diagonal", "shrinkage-identity"):
        np.testing.assert_allclose(noise_covariance(many, method), true, atol=0.06)


def test_more_units_than_samples_have_a_precision():
    """Where the sample covariance has none."""
    X = samples(20, 50)
    for method in ("shrinkage-identity", "shrinkage-diagonal"):
        assert np.linalg.eigvalsh(noise_precision(X, method))[0] > 0
    with pytest.raises(ValueError, match="50 units from 19 degrees of freedom has no inverse"):
        noise_precision(X, "full")


def test_many_units_take_little_memory():
    """No array over pairs of units and samples: beside the result, a few copies of it and of the residuals."""
    import tracemalloc

    X = np.random.default_rng(0).normal(size=(100, 700))
    result = 8 * 700**2
    tracemalloc.start()
    noise_covariance(X, "shrinkage-diagonal")
    noise_covariance(X, "shrinkage-identity")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * result + 4 * X.nbytes


# ------------------------------------------------------------------------------------------------ repeats


def repeated(n_stimuli=50, n_repeats=4, n_units=6, seed=0):
    """Balanced repeats: (presentation, unit) and the stimulus of every presentation."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(n_stimuli), n_repeats)
    X = 10 * rng.normal(size=(n_stimuli, n_units))[labels] + rng.normal(size=(len(labels), n_units))
    order = rng.permutation(len(labels))
    return X[order], labels[order]


def test_degrees_of_freedom_of_repeats():
    """Presentations minus stimuli, 150 at 50 x 4, and so an unbiased variance; the input stays as it is."""
    X, labels = repeated()
    before = X.copy()
    residuals, dof = repeat_residuals(X, labels)
    np.testing.assert_array_equal(X, before)
    assert dof == 50 * 3 and residuals.shape == (200, 6)
    for label in range(50):
        rows = labels == label
        np.testing.assert_allclose(residuals[rows], X[rows] - X[rows].mean(0), atol=1e-12)
    within = np.mean([X[labels == k].var(0, ddof=1) for k in range(50)], axis=0)
    np.testing.assert_allclose(np.diag(noise_covariance(residuals, "diagonal", dof)), within, rtol=1e-10)


def test_variance_from_repeats_is_unbiased():
    found = []
    for seed in range(60):
        X, labels = repeated(10, 3, 6, seed)
        residuals, dof = repeat_residuals(X, labels)
        found.append(np.diag(noise_covariance(residuals, "diagonal", dof)).mean())
    assert abs(np.mean(found) - 1) < 4 * np.std(found) / np.sqrt(60)


def test_ragged_repeats():
    rng = np.random.default_rng(0)
    labels = np.array(list("aaabbbbbcddd"))  # c is shown once and says nothing of the noise
    X = rng.normal(size=(12, 3))
    residuals, dof = repeat_residuals(X, labels)
    assert residuals.shape == (11, 3) and dof == 11 - 3
    np.testing.assert_allclose(residuals[:3], X[:3] - X[:3].mean(0), atol=1e-14)
    np.testing.assert_allclose(residuals[8:], X[9:] - X[9:].mean(0), atol=1e-14)


def test_recording():
    X, labels = repeated(6, 3, 4)
    labels = [f"s{k}" for k in labels]
    recording = Recording(X, pd.DataFrame({"stimulus": labels}), pd.DataFrame({"region": ["V1"] * 4}))
    residuals, dof = repeat_residuals(recording)
    wanted, wanted_dof = repeat_residuals(X, labels)
    np.testing.assert_allclose(residuals, wanted, rtol=1e-12)
    assert dof == wanted_dof
    np.testing.assert_allclose(repeat_precision(recording), noise_precision(wanted, dof=dof), rtol=1e-12)


def test_each_subject_has_degrees_of_freedom_of_its_own():
    """Two subjects with other numbers of repeats, in one recording: one at a time."""
    X1, labels1 = repeated(6, 3, 4, 1)
    X2, labels2 = repeated(6, 5, 4, 2)
    X = np.full((48, 8), np.nan)
    X[:18, :4], X[18:, 4:] = X1, X2
    both = Recording(
        X,
        pd.DataFrame({"stimulus": np.concatenate([labels1, labels2]).astype(str), "subject": ["1"] * 18 + ["2"] * 30}),
        pd.DataFrame({"subject": ["1"] * 4 + ["2"] * 4}),
    )
    with pytest.raises(ValueError, match=r"Recording of 2 subjects.*select\(subject='1'\)"):
        repeat_residuals(both)
    for subject, labels, part in (("1", labels1, X1), ("2", labels2, X2)):
        residuals, dof = repeat_residuals(both.select(subject=subject))
        assert dof == len(part) - 6
        np.testing.assert_allclose(residuals, repeat_residuals(part, labels)[0], rtol=1e-12)


# ------------------------------------------------------------------------------------------------ gaps


def test_samples_with_gaps_are_left_out_and_counted():
    X = samples()
    gaps = X.copy()
    gaps[3, 2] = gaps[7, 5] = gaps[8, 5] = np.nan
    left = np.delete(X, [3, 7, 8], axis=0)
    with pytest.warns(UserWarning, match=r"^3 of 30 samples are not finite in some of the 12 units \(2 units"):
        found = noise_covariance(gaps, dof=25)
    np.testing.assert_allclose(found, noise_covariance(left, dof=22), rtol=1e-12)
    with pytest.warns(UserWarning, match="3 of 30"):
        np.testing.assert_allclose(noise_precision(gaps), noise_precision(left), rtol=1e-12)


def test_presentations_with_gaps_are_left_out_before_the_means():
    X, labels = repeated(6, 4, 3)
    gaps = X.copy()
    gaps[2, 1] = np.nan
    gaps[9] = np.nan  # of another subject, say: nothing was recorded
    with pytest.warns(UserWarning, match="^1 of 24 presentations"):
        residuals, dof = repeat_residuals(gaps, labels)
    keep = np.setdiff1d(np.arange(24), [2, 9])
    np.testing.assert_allclose(residuals, repeat_residuals(X[keep], labels[keep])[0], rtol=1e-12)
    assert dof == 22 - 6


def test_units_without_variance():
    X = samples()
    X[:, 4] = 3.25
    covariance = noise_covariance(X)
    assert (covariance[4] == 0).all() and np.isfinite(covariance).all()
    others = np.delete(np.arange(12), 4)
    np.testing.assert_allclose(covariance[np.ix_(others, others)], noise_covariance(X[:, others]), rtol=1e-10)
    for method in METHODS[1::2]:
        with pytest.raises(ValueError, match="1 of 12 units have residuals without variance"):
            noise_precision(X, method)


def test_rounding_is_no_variance():
    """A third is no sum of powers of two: its mean is off by a bit, which is not the noise of a unit."""
    X, labels = repeated(6, 3, 4)
    X[:, 1] = 1 / 3
    X[:, 2] = labels / 3 + 1e5
    residuals, dof = repeat_residuals(X, labels)
    assert (residuals[:, 1:3] == 0).all() and (residuals[:, [0, 3]] != 0).any(0).all()
    for given in (residuals, X[:, [1, 0]]):
        with pytest.raises(ValueError, match="units have residuals without variance"):
            noise_precision(given, dof=dof)


def test_constant_samples():
    """Nothing varies at all, or nothing covaries."""
    for method in METHODS:
        assert (noise_covariance(np.full((5, 3), 0.5), method) == 0).all()
    assert noise_covariance(np.array([[1.0], [2.0], [4.0]])).shape == (1, 1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((samples(), "shrink"), "method='shrink' is unknown; did you mean 'shrinkage-"),
        ((np.ones(4),), r"residuals has shape \(4,\)"),
        ((np.full((4, 2), "x"),), "expected real numbers"),
        ((np.ones((1, 3)),), "1 samples that are finite in all 3 units, of 1; expected 2"),
        ((samples(), "full", 0), "dof=0 leaves 0 for 30 samples"),
        (([samples(), samples(seed=1)],), r"shape \(2, 30, 12\)"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        noise_covariance(*arguments)


def test_copies_of_units_have_no_full_precision():
    X = samples(60, 5)
    with pytest.raises(ValueError, match="full covariance of 6 units has no inverse; units may be copies"):
        noise_precision(np.column_stack([X, X[:, 0]]), "full")


@pytest.mark.parametrize(
    "X, labels, message",
    [
        (np.ones((4, 2)), None, "labels is None; give the stimulus of every presentation"),
        (np.ones((4, 2)), [1, 2], r"labels has shape \(2,\); expected one for each of the 4 presentations"),
        (np.ones((4, 2)), [1, 2, 3, 4], "no stimulus has two presentations .4 presentations of 4 stimuli"),
        (np.ones((2, 4, 2)), [1, 2], r"X has shape \(2, 4, 2\)"),
    ],
)
def test_bad_repeats(X, labels, message):
    with pytest.raises(ValueError, match=message):
        repeat_residuals(X, labels)


def test_recording_over_time_is_refused():
    timed = Recording(np.ones((4, 2, 3)), pd.DataFrame({"stimulus": list("abab")}), times=[0, 0.1, 0.2])
    with pytest.raises(ValueError, match="average a window first"):
        repeat_residuals(timed)
