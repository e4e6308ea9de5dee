import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import pdist

from neuralign.align.rdm import METHODS, rdm


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


class Averaged:
    """Stand-in for a Recording with one presentation per stimulus."""

    stimuli = None

    def __init__(self, responses, units):
        self.responses = responses
        self.presentations = pd.DataFrame({"stimulus": [f"s{k}" for k in range(len(responses))]})
        self.units = units

    def average_repeats(self):
        return self


@pytest.mark.parametrize("method", METHODS)
def test_equals_pdist(method):
    X = np.random.default_rng(0).normal(3, 1, size=(30, 17))
    np.testing.assert_allclose(rdm(X, method).vectors[0], expected(X, method), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_blocks_change_nothing(method, monkeypatch):
    X = np.random.default_rng(0).normal(size=(20, 50))
    X[3] = X[4]
    whole = rdm(X, method).vectors
    monkeypatch.setattr(sys.modules["neuralign.align.rdm"], "BLOCK", 64)
    np.testing.assert_allclose(rdm(X, method).vectors, whole, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("offset", [0, 10, 100])
@pytest.mark.parametrize("method", METHODS)
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


@pytest.mark.parametrize("method", METHODS)
def test_centring_alone_keeps_the_digits(method, monkeypatch):
    """Patterns far from zero but not alike must not need the slow way."""
    monkeypatch.setattr(sys.modules["neuralign.align.rdm"], "CLOSE", 0)
    X = (100 + np.random.default_rng(0).normal(size=(100, 400))).astype(np.float32)
    np.testing.assert_allclose(rdm(X, method).vectors[0], expected(X, method), rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_float32_features_with_their_own_means(method):
    """A common pattern a hundred times larger than the differences: all correlation distances are tiny."""
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(50, 300)) + 100 * rng.normal(size=300)).astype(np.float32)
    np.testing.assert_allclose(rdm(X, method).vectors[0], expected(X, method), rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
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
    for method in METHODS:
        with pytest.warns(UserWarning):
            rdm(X, method)
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize("method", METHODS)
def test_patterns_that_cannot_be_scored(method):
    X = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    X[1] = 0.1
    X[2] = 0
    X[3, 0] = np.nan
    X[4, 0] = np.inf
    bad = {"correlation": [1, 2, 3, 4], "cosine": [2, 3, 4]}.get(method, [3, 4])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        matrix = rdm(X, method).matrices[0]
    assert [str(one.message).startswith(f"{len(bad)} of 8 patterns") for one in caught] == [True]
    good = np.setdiff1d(np.arange(8), bad)
    unknown = np.isnan(matrix)
    assert unknown[bad][:, good].all() and not unknown[np.ix_(good, good)].any()
    pairs = np.triu_indices(len(good), 1)
    np.testing.assert_allclose(matrix[np.ix_(good, good)][pairs], expected(X[good], method), rtol=1e-5, atol=1e-6)


def test_features_that_are_nan_throughout_are_left_out():
    X = np.random.default_rng(0).normal(size=(6, 5))
    with_dead = np.insert(X, 2, np.nan, axis=1)
    for method in METHODS:
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
    rdms = rdm(Averaged(X, units), "euclidean")
    assert rdms.table["subject"].tolist() == ["1", "1", "2", "2"]
    assert rdms.table["region"].tolist() == ["a", "b", "a", "b"]
    assert rdms.table["n_units"].tolist() == [2, 2, 2, 3]
    np.testing.assert_allclose(rdms.vectors[3], expected(X[:, 6:], "euclidean"))
    assert rdms.stimulus_ids[0] == "s0"


def test_recording_over_time_is_refused():
    units = pd.DataFrame({"subject": ["1"] * 4, "region": ["a"] * 4})
    with pytest.raises(ValueError, match=r"\(5, 4, 3\).*Average time first"):
        rdm(Averaged(np.zeros((5, 4, 3)), units))


@pytest.mark.parametrize(
    "X, method, message",
    [
        (np.ones(5), "correlation", r"shape \(5,\); expected \(stimulus, feature\)"),
        (np.ones((2, 5)), "euclidean", "2 stimuli; .* at least 3"),
        (np.ones((4, 1)), "correlation", "1 features; 'correlation' needs at least 2"),
        (np.ones((4, 0)), "cosine", "0 features"),
        (np.full((4, 2), "x"), "cosine", "expected real numbers"),
        (np.ones((4, 5)), "corelation", "did you mean 'correlation'"),
        (np.ones((4, 5)), "crossnobis", "'sqeuclidean', 'euclidean', 'correlation', 'cosine'"),
    ],
)
def test_bad_input(X, method, message):
    with pytest.raises(ValueError, match=message):
        rdm(X, method)


@pytest.mark.parametrize("argument", ["noise", "folds"])
def test_noise_and_folds_are_not_taken(argument):
    with pytest.raises(ValueError, match=f"method='cosine' takes no {argument}"):
        rdm(np.ones((4, 5)), "cosine", **{argument: np.ones(4)})
