import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import pdist

from neuralign.align.geometry import distances
from neuralign.align.geometry.crossvalidated import crossnobis, poisson, poisson_cv
from neuralign.align.geometry.distances import batched, pairwise_complete, placed, squared_distances
from neuralign.align.noise import noise_precision, repeat_residuals
from neuralign.align.rdm import METHODS, rdm
from neuralign.datasets.recording import Recording

PLAIN = ("sqeuclidean", "euclidean", "correlation", "cosine")


def expected(X, method):
    X = np.asarray(X, np.float64)
    if method == "sqeuclidean":
        return pdist(X, "sqeuclidean") / X.shape[1]
    if method == "euclidean":
        return pdist(X) / np.sqrt(X.shape[1])
    return pdist(X, method)


class Layers:
    model = "net"
    layers = ("conv", "tokens")
    stimulus_ids = ("a", "b", "c", "d")

    def __init__(self):
        rng = np.random.default_rng(1)
        self.arrays = {"conv": rng.normal(size=(4, 6)), "tokens": rng.normal(size=(4, 3, 5))}

    def __getitem__(self, layer):
        return self.arrays[layer]


def recording(responses, units, stimuli=None, **columns):
    """One presentation per row; every row a stimulus of its own unless `stimuli` says otherwise."""
    stimuli = [f"s{k}" for k in range(len(responses))] if stimuli is None else stimuli
    return Recording(responses, pd.DataFrame({"stimulus": stimuli, **columns}), units)


def two_subjects(n_units=9):
    return pd.DataFrame({"subject": list("111122222")[:n_units], "region": list("aabbaabbb")[:n_units]})


@pytest.mark.parametrize("method", PLAIN)
def test_equals_pdist(method):
    X = np.random.default_rng(0).normal(3, 1, size=(30, 17))
    np.testing.assert_allclose(rdm(X, method).vectors[0], expected(X, method), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("method", PLAIN)
def test_blocks_change_nothing(method, monkeypatch):
    X = np.random.default_rng(0).normal(size=(20, 50))
    X[3] = X[4]
    whole = rdm(X, method).vectors
    monkeypatch.setattr(distances, "BLOCK", 64)
    monkeypatch.setattr(distances, "CACHED", 16)
    np.testing.assert_allclose(rdm(X, method).vectors, whole, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("offset", [0, 10, 100])
@pytest.mark.parametrize("method", PLAIN)
def test_float32_under_offsets(method, offset):
    """Patterns at `offset` standard deviations from zero, two of them nearly alike, relative error < 1e-4.

    The oracle sees the same float32 numbers.
    """
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 400))
    X[1] = X[0] + 0.02 * rng.normal(size=400)
    X = (X + offset).astype(np.float32)
    found = rdm(X, method).vectors
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], expected(X, method), rtol=1e-4)


@pytest.mark.parametrize("method", PLAIN)
def test_centring_alone_keeps_the_digits(method, monkeypatch):
    """Patterns far from zero but not alike must not need the slow way."""
    monkeypatch.setattr(distances, "CLOSE", 0)
    X = (100 + np.random.default_rng(0).normal(size=(100, 400))).astype(np.float32)
    np.testing.assert_allclose(rdm(X, method).vectors[0], expected(X, method), rtol=1e-4)


@pytest.mark.parametrize("method", PLAIN)
def test_float32_features_with_their_own_means(method):
    """A common pattern a hundred times larger than the differences: all correlation distances are tiny."""
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(50, 300)) + 100 * rng.normal(size=300)).astype(np.float32)
    np.testing.assert_allclose(rdm(X, method).vectors[0], expected(X, method), rtol=1e-4)


@pytest.mark.parametrize("method", PLAIN)
def test_identical_patterns_are_at_zero(method):
    X = np.repeat(np.random.default_rng(0).normal(5, 1, size=(4, 30)), 3, axis=0).astype(np.float32)
    vector = rdm(X, method).vectors[0].astype(float)
    alike = expected(X, method) < 1e-9
    assert alike.sum() == 12
    assert (vector[alike] == 0).all() and (vector >= 0).all()


def test_input_is_not_written_to():
    X = np.random.default_rng(0).normal(size=(6, 5))
    X[2, 1] = np.nan
    before = X.copy()
    for method in PLAIN:
        with pytest.warns(UserWarning):
            rdm(X, method)
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize("missing", ["pairwise", "nan"])
@pytest.mark.parametrize("method", PLAIN)
def test_patterns_that_cannot_be_scored(method, missing):
    X = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    X[1] = 0.1
    X[2] = 0
    X[3] = np.nan
    X[4, 0] = np.inf
    X[6, 1] = np.nan
    bad = {"correlation": [1, 2, 3, 4], "cosine": [2, 3, 4]}.get(method, [3, 4]) + ([6] if missing == "nan" else [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        matrix = rdm(X, method, missing=missing).matrices[0]
    [message] = [str(one.message) for one in caught]
    assert message.startswith(f"{len(bad)} of 8 patterns are")
    assert ("1 of 8 patterns miss some features" in message) == (missing == "pairwise")
    good = np.setdiff1d(np.arange(8), bad)
    unknown = np.isnan(matrix)
    assert unknown[bad][:, good].all() and not unknown[np.ix_(good, good)].any()
    for i, j in itertools.combinations(good, 2):
        shared = np.isfinite(X[i]) & np.isfinite(X[j])
        np.testing.assert_allclose(matrix[i, j], expected(X[[i, j]][:, shared], method)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", range(3, 20))
def test_the_rounding_of_a_mean_is_no_variation(width):
    X = np.random.default_rng(0).normal(size=(6, width))
    X[1], X[4] = 0.1, -1e6 / 3
    for given in (X, X.astype(np.float32)):
        with pytest.warns(UserWarning, match="^2 of 6 patterns are constant"):
            matrix = rdm(given).matrices[0]
        assert np.isnan(matrix).sum() == 2 * (5 + 4)


def test_features_that_are_nan_throughout_are_left_out():
    X = np.random.default_rng(0).normal(size=(6, 5))
    with_dead = np.insert(X, 2, np.nan, axis=1)
    for method in PLAIN:
        np.testing.assert_allclose(rdm(with_dead, method).vectors, rdm(X, method).vectors)


def test_all_nan():
    with pytest.warns(UserWarning, match="4 of 4 patterns"):
        assert np.isnan(rdm(np.full((4, 3), np.nan)).vectors).all()


def test_integers():
    X = np.random.default_rng(0).integers(0, 255, size=(5, 9), dtype=np.uint8)
    np.testing.assert_allclose(rdm(X, "sqeuclidean").vectors[0], expected(X, "sqeuclidean"))


def test_layers_of_features():
    features = Layers()
    rdms = rdm(features)
    assert rdms.table.to_dict("list") == {"model": ["net", "net"], "layer": ["conv", "tokens"]}
    assert rdms.stimulus_ids == ["a", "b", "c", "d"] and rdms.method == "correlation"
    np.testing.assert_allclose(rdms.vectors[1], pdist(features["tokens"].reshape(4, 15), "correlation"))


def test_recording_gives_one_rdm_per_subject_and_region():
    X = np.random.default_rng(0).normal(size=(7, 9))
    units = pd.DataFrame({"subject": [1, 1, 1, 1, 2, 2, 2, 2, 2], "region": list("aabbaabbb")})
    rdms = rdm(recording(X, units), "euclidean")
    assert rdms.table["subject"].tolist() == ["1", "1", "2", "2"]
    assert rdms.table["region"].tolist() == ["a", "b", "a", "b"]
    assert rdms.table["n_units"].tolist() == [2, 2, 2, 3]
    np.testing.assert_allclose(rdms.vectors[3], expected(X[:, 6:], "euclidean"))
    assert rdms.stimulus_ids[0] == "s0"


def test_recording_over_time_is_refused():
    presentations, units = pd.DataFrame({"stimulus": list("abcde")}), pd.DataFrame({"region": ["a"] * 4})
    timed = Recording(np.zeros((5, 4, 3)), presentations, units, times=[0, 0.1, 0.2])
    with pytest.raises(ValueError, match=r"\(5, 4, 3\).*rdm_over_time.*average_time"):
        rdm(timed)


@pytest.mark.parametrize(
    "X, method, message",
    [
        (np.ones(5), "correlation", r"shape \(5,\); expected \(stimulus, feature\)"),
        (np.ones((2, 5)), "euclidean", "2 stimuli; .* at least 3"),
        (np.ones((4, 1)), "correlation", "1 features; 'correlation' needs at least 2"),
        (np.ones((4, 0)), "cosine", "0 features"),
        (np.full((4, 2), "x"), "cosine", "expected real numbers"),
        (np.ones((4, 5)), "corelation", "did you mean 'correlation'"),
        (np.ones((4, 5)), "manhattan", "Known: 'sqeuclidean', 'euclidean', .*'poisson-cv'"),
        (np.ones((4, 5)), "crossnobis", "'crossnobis' needs repeats; give labels"),
        (np.ones((4, 5)), "mahalanobis", "'mahalanobis' needs noise; without it, it is 'sqeuclidean'"),
        (-np.ones((4, 5)), "poisson", "20 negative values"),
        (np.ones((1, 4, 5)), "crossnobis", "1 fold; cross-validation needs at least 2"),
        (np.ones((2, 4, 5)), "correlation", r"shape \(2, 4, 5\); expected \(stimulus, feature\)"),
    ],
)
def test_bad_input(X, method, message):
    with pytest.raises(ValueError, match=message):
        rdm(X, method)


@pytest.mark.parametrize("argument", ["noise", "folds"])
def test_noise_and_folds_are_not_taken(argument):
    with pytest.raises(ValueError, match=f"method='cosine' takes no {argument}"):
        rdm(np.ones((4, 5)), "cosine", **{argument: np.ones(4)})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"missing": "drop"}, "missing='drop' is unknown.*'pairwise', 'nan'"),
        ({"method": "crossnobis", "labels": list("abcab")}, r"labels has shape \(5,\); expected .* 6 rows"),
        ({"method": "crossnobis", "labels": list("abcabc"), "folds": [1, 2]}, r"folds has shape \(2,\)"),
        ({"method": "crossnobis", "labels": list("abcabc"), "folds": [1] * 6}, "1 fold; .* Give folds"),
        ({"method": "crossnobis", "noise": "ledoit"}, "noise='ledoit' is unknown"),
        ({"method": "mahalanobis", "noise": "diagonal"}, "needs repeats to estimate the noise from; give labels"),
        ({"method": "mahalanobis", "noise": np.eye(3)}, r"noise has shape \(3, 3\); expected the precision of 5"),
        ({"method": "mahalanobis", "noise": -np.eye(5)}, "not positive definite .smallest eigenvalue -1"),
        ({"method": "mahalanobis", "noise": [np.eye(5)] * 2}, "one per fold is for 'crossnobis'"),
        ({"method": "poisson", "prior": (-1, 0.1)}, "prior=.*neither below zero"),
        ({"device": "cuda:99"}, "device='cuda:99'"),
    ],
)
def test_bad_options(options, message):
    X = np.random.default_rng(0).uniform(size=(6, 5))
    with pytest.raises(ValueError, match=message):
        rdm(X, **options)


# --------------------------------------------------------------------------------------- accuracy of near pairs


def test_nearly_identical_patterns_far_from_zero():
    """A millionth apart at ten thousand: 1e-12 and not zero, and nothing below zero."""
    X = 1e4 + np.random.default_rng(0).normal(size=(20, 100))
    X[1] = X[0] + 1e-6 * np.random.default_rng(1).normal(size=100)
    true = ((X[0] - X[1]) ** 2).mean()
    vector = rdm(X, "sqeuclidean").vectors[0]
    assert 0.5e-12 < true < 2e-12
    assert vector[0] == pytest.approx(true, rel=1e-12)
    assert (vector >= 0).all()


# ------------------------------------------------------------------------------------------------ patterns with gaps


def exact(a, b, method):
    """One dissimilarity in long double, from differences."""
    a, b = a.astype(np.longdouble), b.astype(np.longdouble)
    if method in ("correlation", "cosine"):
        if method == "correlation":
            a, b = a - a.mean(), b - b.mean()
        return float(((a / np.sqrt((a**2).sum()) - b / np.sqrt((b**2).sum())) ** 2).sum() / 2)
    mean_square = ((a - b) ** 2).mean()
    return float(np.sqrt(mean_square) if method == "euclidean" else mean_square)


@pytest.mark.parametrize("offset", [0, 1000])
@pytest.mark.parametrize("method", PLAIN)
def test_every_pair_uses_the_features_that_both_have(method, offset):
    rng = np.random.default_rng(0)
    X = offset + rng.normal(size=(15, 40))
    X[4] = X[3] + 1e-5 * rng.normal(size=40)
    X[rng.random(X.shape) < 0.3] = np.nan
    X[:, 7] = np.nan
    matrix, n_shared = pairwise_complete(X, method)
    np.testing.assert_array_equal(matrix, matrix.T)
    for i, j in itertools.combinations(range(15), 2):
        shared = np.isfinite(X[i]) & np.isfinite(X[j])
        assert n_shared[i, j] == shared.sum()
        true = exact(X[i, shared], X[j, shared], method)
        np.testing.assert_allclose(matrix[i, j], true, rtol=1e-8)
    with pytest.warns(UserWarning, match="^15 of 15 patterns miss some features"):
        np.testing.assert_allclose(rdm(X, method).matrices[0], matrix, rtol=1e-8)


@pytest.mark.parametrize("method", PLAIN)
def test_patterns_without_gaps_do_not_change_with_the_gaps_of_others(method):
    X = np.random.default_rng(0).normal(size=(10, 30))
    gaps = X.copy()
    gaps[3, :4] = np.nan
    whole = np.setdiff1d(np.arange(10), [3])
    with pytest.warns(UserWarning, match="1 of 10"):
        matrix = rdm(gaps, method).matrices[0]
    pairs = np.ix_(whole, whole)
    np.testing.assert_allclose(matrix[pairs], rdm(X, method).matrices[0][pairs], rtol=1e-9)


def test_pairs_without_enough_in_common_are_unknown():
    X = np.random.default_rng(0).normal(size=(5, 6))
    X[0, :3] = np.nan
    X[1, 3:] = np.nan
    X[2, 1:] = np.nan  # shares one feature with 1, none with 0
    X[3, :3] = 2.5  # constant on what it shares with 1
    for method, unknown in (("sqeuclidean", {(0, 1), (0, 2)}), ("correlation", {(0, 1), (1, 3)})):
        with pytest.warns(UserWarning):
            matrix = rdm(X, method).matrices[0]
        if method == "correlation":
            assert np.isnan(matrix[2, [0, 1, 3, 4]]).all()
            matrix = np.delete(np.delete(matrix, 2, 0), 2, 1)
            matrix[0, 0] = 0
            unknown = {(0, 1), (1, 2)}
        assert {tuple(pair) for pair in np.argwhere(np.isnan(np.triu(matrix)))} == unknown


def test_mahalanobis_leaves_out_features_with_gaps():
    """And uses the precision of the features that are left, which is not a part of that of all."""
    rng = np.random.default_rng(0)
    X, residuals = rng.normal(size=(8, 6)), rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6))
    covariance = residuals.T @ residuals / 50
    gaps = X.copy()
    gaps[2, 4] = np.nan
    left = [0, 1, 2, 3, 5]
    wanted = pdist(X[:, left], "mahalanobis", VI=np.linalg.inv(covariance[np.ix_(left, left)])) ** 2 / 5
    with pytest.warns(UserWarning, match="^1 features that some patterns miss are left out"):
        found = rdm(gaps, "mahalanobis", np.linalg.inv(covariance)).vectors[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    with pytest.warns(UserWarning, match="1 of 8 patterns are NaN"):
        assert np.isnan(rdm(gaps, "mahalanobis", np.linalg.inv(covariance), missing="nan").matrices[0][2]).sum() == 7


def test_poisson_with_gaps():
    counts = np.random.default_rng(0).poisson(3, size=(6, 9)).astype(float)
    counts[1, 2] = np.nan
    with pytest.warns(UserWarning, match="1 of 6 patterns miss some features"):
        np.testing.assert_array_equal(rdm(counts, "poisson").vectors[0], poisson(counts))
    with pytest.warns(UserWarning, match="1 of 6 patterns are NaN"):
        vector = rdm(counts, "poisson", missing="nan").vectors[0]
    np.testing.assert_allclose(vector[~np.isnan(vector)], poisson(np.delete(counts, 1, axis=0)))


# --------------------------------------------------------------------------------- whitened and cross-validated


def presentations(n_stimuli=6, n_repeats=4, n_units=8, seed=0):
    """Presentations in random order with correlated noise, the stimulus and the run of each."""
    rng = np.random.default_rng(seed)
    labels, runs = np.tile([f"s{k}" for k in range(n_stimuli)], n_repeats), np.repeat(range(n_repeats), n_stimuli)
    signal = rng.normal(size=(n_stimuli, n_units))
    X = np.tile(signal, (n_repeats, 1)) + rng.normal(size=(len(labels), n_units)) @ rng.normal(size=(n_units, n_units))
    order = rng.permutation(len(labels))
    return X[order], labels[order], runs[order]


@pytest.mark.parametrize("diagonal", [False, True])
def test_mahalanobis_equals_pdist(diagonal):
    rng = np.random.default_rng(0)
    X, root = rng.normal(size=(12, 9)), rng.normal(size=(9, 30))
    precision = root @ root.T
    given = np.diag(precision) if diagonal else precision
    wanted = pdist(X, "mahalanobis", VI=np.diag(given) if diagonal else given) ** 2 / 9
    np.testing.assert_allclose(rdm(X, "mahalanobis", given).vectors[0], wanted, rtol=1e-11)
    single = rdm((X + 100).astype(np.float32), "mahalanobis", given).vectors
    assert single.dtype == np.float32
    np.testing.assert_allclose(single[0], wanted, rtol=1e-3)


def test_labels_average_presentations():
    X, labels, _ = presentations()
    names = list(dict.fromkeys(labels))
    means = np.stack([X[labels == name].mean(0) for name in names])
    rdms = rdm(X, "correlation", labels=labels)
    assert rdms.stimulus_ids == names
    np.testing.assert_allclose(rdms.vectors, rdm(means, "correlation").vectors, rtol=1e-12)


def test_crossnobis_of_presentations():
    X, labels, runs = presentations()
    names = list(dict.fromkeys(labels))
    folds = np.stack([[X[(labels == name) & (runs == run)].mean(0) for name in names] for run in range(4)])
    precision = noise_precision(*repeat_residuals(X, labels)[:1], dof=18)
    for noise in (None, precision, [precision * k for k in (1, 2, 3, 4)]):
        if isinstance(noise, list):  # folds are in the order of appearance
            noise = [noise[run] for run in dict.fromkeys(runs)]
            stacked = folds[list(dict.fromkeys(runs))]
        else:
            stacked = folds
        found = rdm(X, "crossnobis", noise, runs, labels=labels)
        np.testing.assert_allclose(found.vectors[0], crossnobis(stacked, noise), rtol=1e-9)
        assert found.stimulus_ids == names and found.method == "crossnobis"
    estimated = rdm(X, "crossnobis", "shrinkage-diagonal", runs, labels=labels)
    np.testing.assert_allclose(estimated.vectors[0], crossnobis(folds, precision), rtol=1e-9)
    stack = rdm(folds, "crossnobis", "shrinkage-diagonal", labels=names)
    np.testing.assert_allclose(stack.vectors[0], crossnobis(folds, precision), rtol=1e-9)


def test_without_folds_repeats_are_folds():
    X, labels, _ = presentations()
    counted = pd.Series(labels).groupby(labels).cumcount().to_numpy()
    first = rdm(X, "crossnobis", labels=labels)
    np.testing.assert_array_equal(first.vectors, rdm(X, "crossnobis", folds=counted, labels=labels).vectors)


def test_ragged_repeats():
    X, labels, runs = presentations()
    keep = np.ones(len(X), bool)
    keep[[2, 5, 11]] = False
    names = list(dict.fromkeys(labels[keep]))
    folds = np.full((4, 6, 8), np.nan)
    for row in np.flatnonzero(keep):
        folds[runs[row], names.index(labels[row])] = X[row]
    found = rdm(X[keep], "crossnobis", folds=runs[keep], labels=labels[keep])
    np.testing.assert_allclose(found.vectors[0], crossnobis(folds), rtol=1e-9, atol=1e-12)


def test_poisson_of_presentations():
    rng = np.random.default_rng(0)
    counts, labels = rng.poisson(4, size=(18, 7)), np.tile(list("abcdef"), 3)
    folds = counts.reshape(3, 6, 7)
    np.testing.assert_allclose(rdm(counts, "poisson", labels=labels).vectors[0], poisson(folds.mean(0)), rtol=1e-12)
    np.testing.assert_allclose(rdm(counts, "poisson-cv", labels=labels).vectors[0], poisson_cv(folds), rtol=1e-12)
    prior = (2.0, 0.5)
    assert not np.allclose(rdm(folds, "poisson-cv", prior=prior).vectors[0], poisson_cv(folds))
    np.testing.assert_allclose(rdm(folds, "poisson-cv", prior=prior).vectors[0], poisson_cv(folds, prior), rtol=1e-12)


def test_gaps_in_folds_leave_features_out():
    X, labels, runs = presentations()
    gaps = np.insert(X, 3, np.nan, axis=1)
    gaps[4, 5] = np.nan
    with pytest.warns(UserWarning, match="^1 features that some patterns miss are left out"):
        found = rdm(gaps, "crossnobis", folds=runs, labels=labels).vectors
    np.testing.assert_allclose(found, rdm(np.delete(X, 4, axis=1), "crossnobis", folds=runs, labels=labels).vectors)
    with pytest.warns(UserWarning, match="are left out"):
        found = rdm(gaps, "crossnobis", np.ones(9), runs, labels=labels).vectors
    np.testing.assert_allclose(found, rdm(np.delete(X, 4, axis=1), "crossnobis", folds=runs, labels=labels).vectors)


def test_stimuli_in_too_few_folds_are_counted():
    X, labels, runs = presentations()
    keep = (labels != "s2") | (runs == 1)
    with pytest.warns(UserWarning, match="^1 of 6 patterns are NaN or infinite, or in too few folds"):
        matrix = rdm(X[keep], "crossnobis", folds=runs[keep], labels=labels[keep]).matrices[0]
    assert np.isnan(matrix).sum() == 10


def test_features_have_no_folds():
    with pytest.raises(ValueError, match="'crossnobis' needs folds, .* without them is 'mahalanobis'"):
        rdm(Layers(), "crossnobis")
    with pytest.raises(ValueError, match="noise='diagonal' needs repeats, which features do not have"):
        rdm(Layers(), "mahalanobis", "diagonal")


def test_precision_per_layer():
    features = Layers()
    noise = {"conv": np.arange(1.0, 7), "tokens": np.arange(1.0, 16)}
    rdms = rdm(features, "mahalanobis", noise)
    for k, layer in enumerate(features.layers):
        X = features[layer].reshape(4, -1)
        np.testing.assert_allclose(rdms.vectors[k], rdm(X, "mahalanobis", noise[layer]).vectors[0])


# ------------------------------------------------------------------------------------------------ recordings


def two_subject_recording():
    """Two subjects with presentations, runs and noise of their own, in one recording."""
    X1, labels1, runs1 = presentations(n_units=4, seed=1)
    X2, labels2, runs2 = presentations(n_units=5, seed=2)
    X = np.full((48, 9), np.nan)
    X[:24, :4], X[24:, 4:] = X1, X2
    stimuli, runs = np.concatenate([labels1, labels2]), np.concatenate([runs1, runs2])
    whole = recording(X, two_subjects(), stimuli, run=runs, subject=np.repeat(["1", "2"], 24))
    return whole, {"1": (X1, labels1, runs1), "2": (X2, labels2, runs2)}


@pytest.mark.parametrize("noise", [None, "shrinkage-diagonal", "diagonal"])
@pytest.mark.parametrize("folds", ["run", None])
def test_crossnobis_of_a_recording(noise, folds):
    """Every subject and region by itself: its folds, its noise, its degrees of freedom."""
    whole, parts = two_subject_recording()
    rdms = rdm(whole, "crossnobis", noise, folds)
    assert rdms.table["n_units"].tolist() == [2, 2, 2, 3]
    columns = {("1", "a"): [0, 1], ("1", "b"): [2, 3], ("2", "a"): [0, 1], ("2", "b"): [2, 3, 4]}
    for k, row in rdms.table.iterrows():
        X, labels, runs = parts[row["subject"]]
        part = X[:, columns[row["subject"], row["region"]]]
        wanted = rdm(part, "crossnobis", noise, runs if folds else None, labels=labels).reorder(rdms.stimulus_ids)
        np.testing.assert_allclose(rdms.vectors[k], wanted.vectors[0], rtol=1e-6, atol=1e-9)


def test_mahalanobis_of_a_recording():
    whole, parts = two_subject_recording()
    rdms = rdm(whole, "mahalanobis", "shrinkage-diagonal")
    X, labels, _ = parts["2"]
    part = X[:, 2:]
    residuals, dof = repeat_residuals(part, labels)
    assert dof == 24 - 6
    means = np.stack([part[labels == name].mean(0) for name in rdms.stimulus_ids])
    wanted = pdist(means, "mahalanobis", VI=noise_precision(residuals, dof=dof)) ** 2 / 3
    np.testing.assert_allclose(rdms.vectors[3], wanted, rtol=1e-6)


def test_precisions_of_a_recording():
    whole, _ = two_subject_recording()
    diagonal = np.arange(1.0, 10)
    each = rdm(whole, "mahalanobis", diagonal)
    alone = rdm(whole.select(subject="2", region="b"), "mahalanobis", np.diag(diagonal[6:]))
    np.testing.assert_allclose(each[3:].vectors, alone.reorder(each.stimulus_ids).vectors, rtol=1e-6)
    with pytest.raises(ValueError, match="recording has 4 sets of units .* give a method"):
        rdm(whole, "crossnobis", np.eye(9))
    with pytest.raises(ValueError, match="folds='ran' is unknown; did you mean 'run'"):
        rdm(whole, "crossnobis", folds="ran")
    with pytest.raises(ValueError, match="folds has shape"):
        rdm(whole, "crossnobis", folds=np.ones(3))
    with pytest.raises(ValueError, match="labels is for arrays"):
        rdm(whole, labels=np.ones(48))


def test_units_without_responses_do_not_spoil_the_noise():
    whole, _ = two_subject_recording()
    X = whole.read().copy()
    X[:, 5] = np.nan
    with pytest.warns(UserWarning, match="^1 of 9 units lack responses"):
        rdms = rdm(recording(X, two_subjects(), whole.presentations["stimulus"].to_numpy(),
                             run=whole.presentations["run"]), "crossnobis", "shrinkage-diagonal", "run")  # fmt: skip
    assert rdms.table["n_units"].tolist() == [2, 2, 1, 3] and np.isfinite(rdms.vectors).all()


def test_stimuli_that_a_subject_did_not_see_are_unknown():
    whole, _ = two_subject_recording()
    kept = ~((whole.presentations["subject"] == "2") & (whole.presentations["stimulus"] == "s3")).to_numpy()
    part = recording(
        whole.read()[kept],
        two_subjects(),
        whole.presentations["stimulus"].to_numpy()[kept],
        run=whole.presentations["run"].to_numpy()[kept],
    )
    with pytest.warns(UserWarning, match="^2 of 24 patterns are NaN"):
        rdms = rdm(part, "crossnobis", folds="run")
    place = rdms.stimulus_ids.index("s3")
    assert np.isfinite(rdms[:2].vectors).all() and np.isnan(rdms[2].matrices[0, place]).sum() == 5
    assert np.isnan(rdms[2:].vectors).sum() == 10


# ------------------------------------------------------------------------------------------------ tensors


@pytest.mark.parametrize("method", PLAIN)
def test_tensors(method):
    """Through the front door, and by the engine of tensors, which a GPU runs."""
    torch = pytest.importorskip("torch")
    X = np.random.default_rng(0).normal(5, 1, size=(20, 31))
    X[4] = X[3]
    wanted = rdm(X, method).vectors
    np.testing.assert_allclose(rdm(torch.tensor(X, requires_grad=True), method).vectors, wanted, rtol=1e-12)
    half = torch.tensor(X).to(torch.bfloat16)
    np.testing.assert_allclose(rdm(half, method).vectors, rdm(half.float().numpy(), method).vectors, rtol=1e-6)
    np.testing.assert_allclose(rdm(torch.tensor(X), method, device="cpu").vectors, wanted, rtol=1e-12)


@pytest.mark.parametrize("dtype, rtol", [("float64", 1e-12), ("float32", 1e-4)])
def test_engine_of_tensors(dtype, rtol, monkeypatch):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    X = 100 + rng.normal(size=(30, 50))
    X[1] = X[0]
    X[2] = X[3] + 0.01 * rng.normal(size=50)
    X = torch.tensor(X, dtype=getattr(torch, dtype))
    monkeypatch.setattr(distances, "BLOCK", 256)
    shift, scale = distances.row_shift_and_norm(X, centre=True)
    wanted = distances.row_shift_and_norm(X.numpy(), centre=True)
    np.testing.assert_allclose(shift, wanted[0])
    np.testing.assert_allclose(scale, wanted[1], rtol=1e-6)
    before = X.clone()
    found = squared_distances(X, shift, scale) / 2
    assert found[0, 1] == 0 and torch.equal(X, before)
    np.testing.assert_allclose(found[np.triu_indices(30, 1)], expected(X.numpy(), "correlation"), rtol=rtol, atol=1e-15)
    np.testing.assert_allclose(squared_distances(X), squared_distances(X.numpy()), rtol=rtol)


def test_tensors_with_gaps_and_folds():
    torch = pytest.importorskip("torch")
    X, labels, runs = presentations()
    for options in (
        {"method": "crossnobis", "noise": "shrinkage-diagonal", "folds": runs},
        {"method": "mahalanobis", "noise": "diagonal"},
        {"method": "correlation"},
    ):
        wanted = rdm(X, labels=labels, **options).vectors
        np.testing.assert_allclose(rdm(torch.tensor(X), labels=labels, **options).vectors, wanted, rtol=1e-9)
    X[2, 3] = np.nan
    for method in PLAIN:
        with pytest.warns(UserWarning, match="1 of 24"):
            np.testing.assert_allclose(rdm(torch.tensor(X), method).vectors, rdm(X, method).vectors, rtol=1e-12)


def test_small_work_stays_on_the_host(monkeypatch):
    """And large work asks for a GPU, which there may not be."""
    X = np.ones((10, 5))
    monkeypatch.setattr(distances, "WORTH_MOVING", 1e6)
    monkeypatch.setattr(distances, "WORTH_IMPORTING", 1e6)
    assert placed(X, "auto", 1e5) is X
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert placed(X, "auto", 1e7) is X
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: asked.append(1) or False)
    placed(X, "auto", 1e7)
    assert asked == [1]


# ------------------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("method", PLAIN)
def test_batches_equal_one_by_one(method, tensor):
    X = np.random.default_rng(0).normal(3, 1, size=(5, 9, 7)).astype(np.float32)
    X[1, 2] = np.nan
    X[2, 3] = 0
    X[3, 4] = X[3, 5]
    given = pytest.importorskip("torch").tensor(X) if tensor else X
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = np.stack([rdm(one, method).vectors[0] for one in X])
    before = X.copy()
    found = batched(given, method)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(X, before)
    np.testing.assert_allclose(batched(X[:1].astype(float), method), wanted[:1], rtol=1e-5)


# ------------------------------------------------------------------------------------------------ memory


def test_memory_is_flat_over_a_thousand_calls():
    """Below 5 MB of growth over a thousand calls of every route."""
    psutil = pytest.importorskip("psutil")
    rng = np.random.default_rng(0)
    X, folds = rng.normal(size=(12, 10)), rng.normal(size=(3, 6, 10))
    gaps, ragged = X.copy(), folds.copy()
    gaps[3, 2] = ragged[0, 4] = np.nan

    def calls():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for method in PLAIN:
                rdm(X, method)
            rdm(gaps)
            rdm(folds, "crossnobis", np.eye(10))
            rdm(ragged, "crossnobis")
            rdm(np.abs(folds), "poisson-cv")
            noise_precision(X)

    for _ in range(50):  # allocators and lazy imports settle
        calls()
    process = psutil.Process()
    before = process.memory_info().rss
    for _ in range(1000):
        calls()
    assert process.memory_info().rss - before < 5e6


def test_methods_are_all_tested():
    assert {*PLAIN, "mahalanobis", "crossnobis", "poisson", "poisson-cv"} == set(METHODS)


def test_rdms_are_no_patterns():
    made = rdm(np.random.default_rng(0).normal(size=(5, 4)))
    with pytest.raises(ValueError, match="X holds 1 RDMs that are made already; .*align.compare"):
        rdm(made)
