"""Similarity measures against rsatoolbox and scikit-learn, and against the formulas of packages not installed here.

The formulas follow what netrep, the code of Kornblith et al. (2019) and that of Szekely & Rizzo compute, one line
per step, on fixed matrices.
"""

import warnings

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import pdist, squareform
from sklearn.cross_decomposition import CCA
from sklearn.metrics.pairwise import rbf_kernel

from neuralign.align.similarity import similarity


def fixed(n, p, q):
    """Two matrices without a random number: sines of incommensurate steps, not centred, with a common part."""
    i, j, k = np.arange(n)[:, None], np.arange(1, p + 1), np.arange(1, q + 1)
    X = np.sin(1.7 * i * j + j) + 0.5 * np.cos(i * np.sqrt(j)) + 0.3 * j
    Y = np.cos(2.3 * i * k**0.7) + 0.8 * np.cos(i * np.sqrt(k)) - 0.2 * k
    return X, Y


SHAPES = [(20, 6, 9), (20, 9, 6), (12, 30, 25), (15, 7, 40), (25, 5, 5)]
shapes = pytest.mark.parametrize("shape", SHAPES)


def angular(A, B):
    return np.arccos(np.clip((A * B).sum() / np.sqrt((A * A).sum() * (B * B).sum()), -1, 1))


@shapes
def test_linear_cka_of_netrep(shape):
    """An angle there: arccos of ours."""
    X, Y = fixed(*shape)
    A, B = X - X.mean(0), Y - Y.mean(0)
    assert np.arccos(similarity("cka", X, Y)) == pytest.approx(angular(A @ A.T, B @ B.T), abs=1e-9)


@shapes
@pytest.mark.parametrize("debiased", [False, True])
def test_cka_from_features_as_kornblith_has_it(shape, debiased):
    """Norms of X'Y, corrected by squared row norms where debiased."""
    X, Y = (side - side.mean(0) for side in fixed(*shape))
    n = len(X)

    def product(A, B):
        value = np.linalg.norm(A.T @ B) ** 2
        if debiased:
            a, b = (A**2).sum(1), (B**2).sum(1)
            value += -n / (n - 2) * (a @ b) + a.sum() * b.sum() / ((n - 1) * (n - 2))
        return value

    expected = product(X, Y) / np.sqrt(product(X, X) * product(Y, Y))
    found = similarity("cka-debiased" if debiased else "cka", *fixed(*shape))
    assert found == pytest.approx(expected, abs=1e-9)


@shapes
def test_gaussian_cka_with_the_kernel_of_scikit_learn(shape):
    X, Y = fixed(*shape)
    H = np.eye(len(X)) - 1 / len(X)
    K, L = (H @ rbf_kernel(side, gamma=1 / (2 * np.median(squareform(pdist(side)) ** 2))) @ H for side in (X, Y))
    assert similarity("cka-rbf", X, Y) == pytest.approx(np.cos(angular(K, L)), abs=1e-9)


@shapes
def test_rsatoolbox_calls_linear_cka_the_whitened_cosine(shape):
    """cosine_cov of squared Euclidean RDMs."""
    rsatoolbox = pytest.importorskip("rsatoolbox")
    X, Y = fixed(*shape)
    rdms = [rsatoolbox.rdm.calc_rdm(rsatoolbox.data.Dataset(side), method="euclidean") for side in (X, Y)]
    theirs = rsatoolbox.rdm.compare(*rdms, method="cosine_cov")[0, 0]
    assert similarity("cka", X, Y) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize(("n", "p", "q"), [(40, 4, 6), (60, 6, 3)])
def test_canonical_correlations_of_scikit_learn(n, p, q):
    X, Y = fixed(n, p, q)
    k = min(p, q)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x, y = CCA(n_components=k, tol=1e-14, max_iter=20000).fit_transform(X, Y)
    rho = np.array([np.corrcoef(x[:, i], y[:, i])[0, 1] for i in range(k)])
    assert similarity("cca", X, Y) == pytest.approx(rho.mean(), abs=1e-6)  # theirs is iterative
    assert similarity("cca", X, Y, statistic="mean-square") == pytest.approx((rho**2).mean(), abs=1e-6)


@pytest.mark.parametrize(("n", "p", "q"), [(40, 4, 6), (60, 6, 3), (25, 5, 5)])
def test_canonical_correlations_by_whitening(n, p, q):
    """The nuclear norm of the product of both sides after ZCA."""
    X, Y = fixed(n, p, q)
    whitened = []
    for side in (X, Y):
        U, _, Vt = np.linalg.svd(side - side.mean(0), full_matrices=False)
        whitened.append(U @ Vt)
    rho = np.linalg.svd(whitened[0].T @ whitened[1], compute_uv=False)
    assert similarity("cca", X, Y) == pytest.approx(rho.sum() / min(p, q), abs=1e-9)


@shapes
def test_bias_corrected_distance_correlation(shape):
    """Szekely & Rizzo (2013) with modified distance matrices: n - 1 and n - 2 on and off the diagonal."""
    X, Y = fixed(*shape)
    n = len(X)
    modified = []
    for side in (X, Y):
        D = squareform(pdist(side))
        A = D - D.mean(0) - D.mean(1)[:, None] + D.mean() - D / n
        np.fill_diagonal(A, D.mean(0) - D.mean())
        modified.append(A * n / (n - 1))

    def product(A, B):
        off = A * B
        diagonal = np.trace(off)
        return off.sum() - diagonal - 2 / (n - 2) * diagonal

    expected = product(*modified) / np.sqrt(product(modified[0], modified[0]) * product(modified[1], modified[1]))
    assert similarity("distance-correlation-debiased", X, Y) == pytest.approx(expected, abs=1e-9)


def padded(X, Y):
    """Zeros for the features that the smaller side lacks."""
    width = max(X.shape[1], Y.shape[1])
    return [np.pad(side, ((0, 0), (0, width - side.shape[1]))) for side in (X, Y)]


def partly_whitened(X, alpha):
    """Eigenvectors scaled by alpha + (1 - alpha) / sqrt(eigenvalue), then back to the variance of X."""
    values, vectors = np.linalg.eigh(X.T @ X)
    Z = vectors * (alpha + (1 - alpha) / np.sqrt(values)) @ vectors.T
    return X @ Z * np.sqrt(np.trace(X.T @ X) / np.trace(Z.T @ X.T @ X @ Z))


@shapes
def test_shape_metric_with_rotations(shape):
    X, Y = fixed(*shape)
    A, B = padded(X - X.mean(0), Y - Y.mean(0))
    U, _, Vt = np.linalg.svd(A.T @ B)
    assert similarity("shape", X, Y) == pytest.approx(angular(A @ U, B @ Vt.T), abs=1e-9)
    assert similarity("procrustes", X, Y) == pytest.approx(np.cos(angular(A @ U, B @ Vt.T)), abs=1e-9)
    assert similarity("shape", X, Y, distance="euclidean") == pytest.approx(np.linalg.norm(A @ U - B @ Vt.T), rel=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8])
def test_shape_metric_with_partial_whitening(alpha):
    X, Y = fixed(40, 6, 6)
    A, B = (partly_whitened(side - side.mean(0), alpha) for side in (X, Y))
    U, _, Vt = np.linalg.svd(A.T @ B)
    assert similarity("shape", X, Y, alpha=alpha) == pytest.approx(angular(A @ U, B @ Vt.T), abs=1e-9)
    if alpha == 0:
        assert np.cos(similarity("shape", X, Y, alpha=0.0)) == pytest.approx(similarity("cca", X, Y), abs=1e-9)


@shapes
def test_permutation_metric(shape):
    X, Y = fixed(*shape)
    A, B = padded(X - X.mean(0), Y - Y.mean(0))
    rows, columns = linear_sum_assignment(A.T @ B, maximize=True)
    assert similarity("permutation", X, Y) == pytest.approx(angular(A[:, rows], B[:, columns]), abs=1e-9)


@shapes
def test_bures_similarity_from_roots_of_kernels(shape):
    X, Y = fixed(*shape)
    K, L = ((side - side.mean(0)) @ (side - side.mean(0)).T for side in (X, Y))
    values, vectors = np.linalg.eigh(K)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    fidelity = np.trace(np.real(sqrtm(root @ L @ root + 1e-18 * np.trace(L) * np.eye(len(K)))))
    assert similarity("bures", X, Y) == pytest.approx(fidelity / np.sqrt(np.trace(K) * np.trace(L)), abs=1e-6)
    assert similarity("bures", X, Y) == pytest.approx(similarity("procrustes", X, Y), abs=1e-12)
