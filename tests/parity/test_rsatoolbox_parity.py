"""RDMs, comparisons and ceilings against rsatoolbox; its "euclidean" is our "sqeuclidean"."""

import warnings

import numpy as np
import pytest

from neuralign.align.compare import compare, rsa_ceiling
from neuralign.align.rdm import rdm

rsatoolbox = pytest.importorskip("rsatoolbox")

THEIRS = {"pearson": "corr", "spearman": "spearman", "rho-a": "rho-a", "tau-a": "tau-a", "cosine": "cosine"}


def responses(n_subjects=5, n_stimuli=16, n_units=40):
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(n_stimuli, n_units))
    return [2 + shared + rng.normal(size=(n_stimuli, n_units)) for _ in range(n_subjects)]


def their_rdms(vectors):
    return rsatoolbox.rdm.RDMs(np.array(vectors))


@pytest.mark.parametrize("ours, theirs", [("sqeuclidean", "euclidean"), ("correlation", "correlation")])
def test_dissimilarities(ours, theirs):
    for X in responses(2):
        expected = rsatoolbox.rdm.calc_rdm(rsatoolbox.data.Dataset(X), method=theirs).get_vectors()
        np.testing.assert_allclose(rdm(X, ours).vectors, expected, rtol=1e-9)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("method", THEIRS)
def test_comparisons(method, ties):
    vectors = np.concatenate([rdm(X).vectors for X in responses()])
    if ties:
        vectors = np.round(vectors, 1)
    a, b = vectors[:3], vectors[2:]
    expected = rsatoolbox.rdm.compare(their_rdms(a), their_rdms(b), method=THEIRS[method])
    np.testing.assert_allclose(compare(a, b, method), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", THEIRS)
def test_comparisons_without_some_pairs(method):
    vectors = np.concatenate([rdm(X).vectors for X in responses()])
    vectors[:, [3, 50]] = np.nan  # rsatoolbox wants the same pairs to be unknown everywhere
    expected = rsatoolbox.rdm.compare(their_rdms(vectors[:2]), their_rdms(vectors[2:]), method=THEIRS[method])
    np.testing.assert_allclose(compare(vectors[:2], vectors[2:], method), expected, rtol=1e-9)


@pytest.mark.parametrize("method", THEIRS)
def test_ceilings(method):
    vectors = np.concatenate([rdm(X).vectors for X in responses()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the ceiling of tau is approximate
        expected = rsatoolbox.inference.boot_noise_ceiling(their_rdms(vectors), method=THEIRS[method])
    np.testing.assert_allclose(rsa_ceiling(vectors, method), expected, rtol=1e-9)
