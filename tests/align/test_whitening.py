"""Whitening of RDMs against the covariance of their errors, written out pair by pair."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from neuralign.align.compare import compare
from neuralign.align.geometry import whitening
from neuralign.align.geometry.missing import known_stimuli, pairs_among
from neuralign.align.geometry.whitening import checked_covariance, whitened, whitened_root
from neuralign.datasets.rdms import pair_lookup


def errors_covariance(n, covariance):
    first, second = np.triu_indices(n, 1)
    contrasts = np.eye(n)[first] - np.eye(n)[second]
    S = np.eye(n) if covariance is None else np.diag(covariance) if covariance.ndim == 1 else covariance
    return (contrasts @ S @ contrasts.T) ** 2


def covariances(n):
    rng = np.random.default_rng(n)
    A = rng.normal(size=(n, 3 * n))
    return {"none": None, "variances": 0.2 + rng.random(n), "matrix": A @ A.T / (3 * n)}


@pytest.mark.parametrize("kind", ["none", "variances", "matrix"])
@pytest.mark.parametrize("n", [2, 3, 4, 11])
def test_is_the_inverse(n, kind):
    covariance = covariances(n)[kind]
    vectors = np.random.default_rng(0).normal(size=(4, n * (n - 1) // 2))
    expected = np.linalg.solve(errors_covariance(n, covariance), vectors.T).T
    np.testing.assert_allclose(whitened(vectors, covariance), expected, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["none", "variances", "matrix"])
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_is_the_inverse_for_the_known_pairs(kind, share):
    """Gaps that differ, gaps that two rows have in common, few and many, and stimuli without any known pair."""
    n, m = 11, 55
    covariance = covariances(n)[kind]
    V = errors_covariance(n, covariance)
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(5, m))
    vectors[:2, rng.random(m) < share] = np.nan
    vectors[2, rng.random(m) < share] = np.nan
    present = np.array([1, 2, 5, 6, 7, 9])
    absent = ~np.isin(np.arange(m), pairs_among(present, n))
    vectors[3, absent] = np.nan
    vectors[4, absent] = vectors[4, pairs_among(present, n)[:3]] = np.nan
    found = whitened(vectors, covariance)
    for row, solved in zip(vectors, found, strict=True):
        known = ~np.isnan(row)
        expected = np.linalg.solve(V[np.ix_(known, known)], row[known])
        np.testing.assert_array_equal(np.isnan(solved), ~known)
        np.testing.assert_allclose(solved[known], expected, atol=1e-12 * np.abs(expected).max())


def test_nothing_known():
    assert np.isnan(whitened(np.full((2, 6), np.nan))).all()


@pytest.mark.parametrize("n", [2, 3, 4, 11])
def test_root(n):
    vectors = np.random.default_rng(0).normal(size=(5, n * (n - 1) // 2))
    root = whitened_root(vectors)
    np.testing.assert_allclose(root @ root.T, vectors @ whitened(vectors).T, atol=1e-12)
    # Symmetric and applied twice it is the inverse.
    np.testing.assert_allclose(whitened_root(root), whitened(vectors), atol=1e-12)
    labels = np.random.default_rng(1).permutation(n)
    moved = pair_lookup(n)[np.ix_(labels, labels)][np.triu_indices(n, 1)]
    np.testing.assert_allclose(whitened_root(vectors[:, moved]), root[:, moved], atol=1e-12)


def test_many_rows_in_blocks(monkeypatch):
    covariance = covariances(6)["matrix"]
    vectors = np.random.default_rng(0).normal(size=(9, 15))
    expected = whitened(vectors, covariance)
    monkeypatch.setattr(whitening, "BLOCK", 4 * 36)
    np.testing.assert_array_equal(whitened(vectors, covariance), expected)


def test_input_is_left_alone():
    for covariance in covariances(6).values():
        vectors = np.random.default_rng(0).normal(size=(3, 15))
        vectors[0, 2] = np.nan
        before = vectors.copy()
        whitened(vectors, covariance)
        whitened_root(vectors[1:])
        np.testing.assert_array_equal(vectors, before)


@pytest.mark.parametrize("n_features", [3, 40])
def test_whitened_cosine_of_squared_distances_is_linear_cka(n_features):
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(20, n_features)), rng.normal(size=(20, 7))
    Y[:, :3] += X[:, :3]
    Xc, Yc = X - X.mean(0), Y - Y.mean(0)
    cka = np.sum((Xc.T @ Yc) ** 2) / (np.linalg.norm(Xc.T @ Xc) * np.linalg.norm(Yc.T @ Yc))
    found = compare(pdist(X, "sqeuclidean"), pdist(Y, "sqeuclidean"), "cosine-whitened")[0, 0]
    assert found == pytest.approx(cka, rel=1e-12)


def test_whitened_cosine_with_a_covariance_is_cka_of_whitened_patterns():
    """The kernel ``R' K R`` on contrasts between stimuli that the errors are independent in."""
    rng = np.random.default_rng(0)
    n = 9
    covariance = covariances(n)["matrix"]
    X, Y = rng.normal(size=(n, 20)), rng.normal(size=(n, 20))
    P = np.hstack([-np.ones((n - 1, 1)), np.eye(n - 1)])
    L = np.linalg.cholesky(P @ covariance @ P.T)
    K, M = (np.linalg.solve(L, P @ Z) @ np.linalg.solve(L, P @ Z).T for Z in (X, Y))
    expected = np.sum(K * M) / (np.linalg.norm(K) * np.linalg.norm(M))
    vectors = pdist(X, "sqeuclidean"), pdist(Y, "sqeuclidean")
    assert compare(*vectors, "cosine-whitened", covariance=covariance)[0, 0] == pytest.approx(expected, rel=1e-11)


def test_whitening_makes_estimates_of_the_errors_independent():
    """The reason for it: the covariance of simulated crossvalidated distances of pure noise is V."""
    rng = np.random.default_rng(0)
    n, n_units, n_runs = 5, 4, 20_000
    variances = np.array([0.5, 1, 1, 1.5, 2])
    one, other = (rng.normal(size=(n_runs, n, n_units)) * np.sqrt(variances)[:, None] for _ in range(2))
    first, second = np.triu_indices(n, 1)
    distances = ((one[:, first] - one[:, second]) * (other[:, first] - other[:, second])).sum(2)
    V = n_units * errors_covariance(n, variances)
    found = np.cov(distances.T)
    # Standard error of a covariance of heavy-tailed products, about 3 times that of normal ones.
    assert np.abs(found - V).max() < 5 * 3 * V.max() / np.sqrt(n_runs)
    np.testing.assert_allclose(whitened(V, variances), n_units * np.eye(10), atol=1e-10)


def test_dense_solves_have_a_limit(monkeypatch):
    monkeypatch.setattr(whitening, "LARGEST", 4)
    vectors = np.random.default_rng(0).normal(size=(1, 15))
    vectors[0, [0, 5, 7, 9, 12]] = np.nan
    with pytest.raises(ValueError, match=r"5 of 15 pairs are unknown; beyond 4 give the variances"):
        whitened(vectors, covariances(6)["matrix"])
    assert not np.isnan(whitened(vectors, covariances(6)["variances"])[0, 1])


def test_checked_covariance():
    covariance = covariances(6)["matrix"]
    np.testing.assert_array_equal(checked_covariance(covariance.tolist(), 6), covariance)
    with pytest.raises(ValueError, match=r"smallest eigenvalue is -1, its largest 3\. Shrink it towards its diagonal"):
        checked_covariance(np.array([[1.0, 2], [2, 1]]), 2)
    with pytest.raises(ValueError, match="smallest eigenvalue is 0, its largest 0"):
        checked_covariance(np.zeros(3), 3)


def test_missing_pairs_and_stimuli():
    known = np.zeros(10, bool)
    known[[1, 4, 6]] = True  # (0, 2), (1, 2), (1, 4) of five stimuli
    np.testing.assert_array_equal(known_stimuli(known, 5), [0, 1, 2, 4])
    np.testing.assert_array_equal(pairs_among(np.array([0, 2, 4]), 5), [1, 3, 8])
