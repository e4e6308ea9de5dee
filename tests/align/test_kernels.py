"""Bures similarity and Riemannian distance of RDMs."""

import warnings

import numpy as np
import pytest
from scipy.linalg import eigvalsh, orthogonal_procrustes
from scipy.optimize import minimize
from scipy.spatial.distance import pdist, squareform

from neuralign.align.compare import compare, rsa_ceiling
from neuralign.align.geometry.kernels import bures, centred_kernel, riemannian


def patterns(n, n_stimuli, n_units, seed=0):
    return np.random.default_rng(seed).normal(size=(n, n_stimuli, n_units))


def squared_distances(X):
    return np.stack([pdist(x, "sqeuclidean") for x in X])


def from_kernels(K):
    diagonal = np.diagonal(K, axis1=-2, axis2=-1)
    D = diagonal[..., :, None] + diagonal[..., None, :] - 2 * K
    first, second = np.triu_indices(K.shape[-1], 1)
    return D[..., first, second]


def test_centred_kernel_is_that_of_the_patterns():
    X = patterns(3, 7, 4)
    centred = X - X.mean(1, keepdims=True)
    np.testing.assert_allclose(centred_kernel(squared_distances(X)), centred @ centred.transpose(0, 2, 1), atol=1e-12)


@pytest.mark.parametrize("n_units", [1, 3, 30])
def test_bures_is_the_cosine_of_the_procrustes_angle(n_units):
    """From the patterns, with fewer and with more dimensions than stimuli: no digit is lost."""
    X, Y = patterns(1, 12, n_units)[0], patterns(1, 12, 5, seed=1)[0]
    X, Y = X - X.mean(0), Y - Y.mean(0)
    expected = np.linalg.svd(X.T @ Y, compute_uv=False).sum() / (np.linalg.norm(X) * np.linalg.norm(Y))
    found = bures(squared_distances(X[None]), squared_distances(Y[None]))[0, 0]
    assert found == pytest.approx(expected, rel=1e-12)
    wide = np.zeros((12, 30))
    wide[:, :n_units], narrow = X, np.pad(Y, ((0, 0), (0, 25)))
    assert orthogonal_procrustes(wide, narrow)[1] / (np.linalg.norm(X) * np.linalg.norm(Y)) == pytest.approx(found)


def test_bures_of_the_same_geometry():
    """Rotated, scaled, shifted: 1, and never more than that; a stack with itself needs each factor once."""
    X = patterns(4, 10, 6)
    rotation = np.linalg.qr(patterns(1, 6, 6, seed=1)[0])[0]
    found = bures(squared_distances(X), squared_distances(3 * X @ rotation + 5))
    np.testing.assert_allclose(np.diagonal(found), 1, rtol=1e-12)
    assert found.max() <= 1
    d = squared_distances(X)
    np.testing.assert_allclose(bures(d, d), found, rtol=1e-12)


def test_orthogonal_geometries_have_no_bures_similarity():
    """Two stimuli apart in one, two others apart in the other."""
    X, Y = np.zeros((2, 1, 4, 1))
    X[0, :2, 0], Y[0, 2:, 0] = [1, -1], [1, -1]
    assert bures(squared_distances(X), squared_distances(Y))[0, 0] == 0


def test_what_is_no_squared_distance_is_said_once():
    d = squared_distances(patterns(3, 8, 20))
    d[1, 0] *= 30  # no triangle
    share = np.linalg.eigvalsh(centred_kernel(d)[1])
    share = -share[share < 0].sum() / np.abs(share).sum()
    assert share > 0.1
    message = rf"1 of 3 RDMs in a are not squared Euclidean distances; .* up to {share:.2g} of the sum of all"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = compare(d, d[:1], "bures")
    assert len(caught) == 1 and caught[0].filename == __file__
    with pytest.warns(UserWarning, match=message):
        compare(d, d[:1], "bures")
    # The positive part alone counts, in the trace too: similarity stays within 0 and 1.
    values, vectors = np.linalg.eigh(centred_kernel(d)[1])
    positive = from_kernels((vectors * np.maximum(values, 0)) @ vectors.T)
    assert found[1, 0] == pytest.approx(bures(positive[None], d[:1])[0, 0], rel=1e-10)
    with pytest.warns(UserWarning, match="1 of 3 RDMs in rdms"):
        rsa_ceiling(d, "bures")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_is_not_reported(dtype):
    """Few dimensions, so that most eigenvalues are 0 but for rounding; gaps are none of it either."""
    d = squared_distances(patterns(3, 92, 2)).astype(dtype)
    d[0, np.triu_indices(92, 1)[0] == 0] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare(d, d, "bures")
    np.testing.assert_allclose(np.diagonal(found), 1, atol=1e-5)


def by_simplex(x, y, covariance):
    """As the published code searches, from several starts."""
    n = len(covariance)
    P = np.hstack([-np.ones((n - 1, 1)), np.eye(n - 1)])
    G, H, S = -P @ squareform(x) @ P.T / 2, -P @ squareform(y) @ P.T / 2, P @ covariance @ P.T

    def distance(theta):
        values = eigvalsh(np.exp(theta[0]) * G + np.exp(theta[1]) * S, H)
        return np.sqrt((np.log(values) ** 2).sum()) if values[0] > 0 else 1e6

    options = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000}
    return -min(minimize(distance, start, method="Nelder-Mead", options=options).fun for start in ((0, 0), (0, 7)))


@pytest.mark.parametrize("kind", ["none", "variances", "matrix"])
@pytest.mark.parametrize("n_units", [3, 20])
def test_riemannian_is_the_minimum(n_units, kind):
    """Models of full rank and not; the simplex never finds less."""
    n = 8
    A = patterns(1, n, 3 * n, seed=9)[0]
    covariance = {"none": None, "variances": 0.2 + np.arange(n), "matrix": A @ A.T}[kind]
    dense = np.eye(n) if covariance is None else np.diag(covariance) if covariance.ndim == 1 else covariance
    models, data = squared_distances(patterns(2, n, n_units)), squared_distances(patterns(2, n, 20, seed=1))
    found = riemannian(models, data, covariance)
    expected = np.array([[by_simplex(x, y, dense) for y in data] for x in models])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (found >= expected - 1e-9).all()


@pytest.mark.parametrize(
    "signal, noise, n_units",
    [(3, 0.7, 20), (1, 0, 20), (1e-3, 1, 20), (0, 2, 20), (1e3, 1e-4, 20), (3, 0.7, 4), (1, 1e-6, 4)],
)
def test_riemannian_finds_the_noise(signal, noise, n_units):
    """Data that are the model, scaled, with noise of any amount, none, little, much, nothing else; models of full rank
    and not."""
    X = patterns(1, 9, n_units)
    kernel = signal * X @ X.transpose(0, 2, 1) + noise * np.eye(9)
    found = riemannian(squared_distances(X), from_kernels(kernel))[0, 0]
    assert found == pytest.approx(0, abs=1e-6)


def test_riemannian_does_not_depend_on_scale_or_the_first_stimulus():
    a, b = (RDM[None] for RDM in squared_distances(patterns(2, 7, 15)))
    expected = riemannian(a, b)
    np.testing.assert_allclose(riemannian(5 * a, 0.01 * b), expected, rtol=1e-8)
    order = np.array([4, 2, 6, 0, 1, 5, 3])
    moved = [squareform(squareform(side[0])[np.ix_(order, order)])[None] for side in (a, b)]
    np.testing.assert_allclose(riemannian(*moved), expected, rtol=1e-8)
    assert riemannian(b, a)[0, 0] != pytest.approx(expected[0, 0], rel=1e-3)  # noise is fitted to the model alone


def test_riemannian_model_that_is_no_squared_distance():
    """Noise is added until there is a distance; only the data must be of full rank."""
    d = squared_distances(patterns(2, 8, 20))
    model = d[:1].copy()
    model[0, 0] *= 30
    assert np.linalg.eigvalsh(centred_kernel(model)[0])[0] < -1
    assert riemannian(model, d[1:])[0, 0] == pytest.approx(by_simplex(model[0], d[1], np.eye(8)), abs=1e-6)


@pytest.mark.parametrize("above", [1e-2, 1e-6])
def test_riemannian_noise_just_above_the_least_there_must_be(above):
    """The data are an indefinite model with little more noise than makes it a distance: a narrow valley by an abyss."""
    model = squared_distances(patterns(1, 8, 20))
    model[0, 0] *= 30
    kernel = centred_kernel(model)[0]
    least = -np.linalg.eigvalsh(kernel)[0]
    data = from_kernels(kernel + (1 + above) * least * np.eye(8))
    assert riemannian(model, data[None])[0, 0] == pytest.approx(0, abs=1e-5)


def test_riemannian_without_a_stimulus_of_the_covariance():
    """A stimulus unknown on one side takes its row of the covariance with it."""
    X = patterns(2, 8, 20)
    covariance = np.cov(patterns(1, 8, 40, seed=3)[0])
    a, b = (d[None] for d in squared_distances(X))
    seen = np.delete(np.arange(8), 2)
    expected = riemannian(*(d[None] for d in squared_distances(X[:, seen])), covariance[np.ix_(seen, seen)])
    first, second = np.triu_indices(8, 1)
    b[0, (first == 2) | (second == 2)] = np.nan
    np.testing.assert_allclose(compare(a, b, "riemannian", covariance=covariance), expected, rtol=1e-10)
    expected = riemannian(*(d[None] for d in squared_distances(X[:, seen])), np.diag(covariance)[seen])
    np.testing.assert_allclose(compare(a, b, "riemannian", covariance=np.diag(covariance)), expected, rtol=1e-10)


def test_riemannian_data_not_of_full_rank_is_nan():
    """Infinitely far from every model: counted, not raised and not some number from rounding."""
    d = squared_distances(patterns(3, 8, 20))
    flat = squared_distances(patterns(1, 8, 6, seed=1))  # seven contrasts in six dimensions
    indefinite = d[:1].copy()
    indefinite[0, 0] *= 30
    with pytest.warns(UserWarning, match="6 of 9 comparisons are NaN: .* one of b .* of full rank"):
        found = compare(d, np.concatenate([flat, indefinite, d[:1]]), "riemannian")
    assert np.isnan(found[:, :2]).all() and not np.isnan(found[:, 2]).any()
