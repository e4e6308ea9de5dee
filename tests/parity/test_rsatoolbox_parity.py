"""RDMs, comparisons and ceilings against rsatoolbox, and what it gets wrong.

Its "euclidean" is our "sqeuclidean", its "cosine_cov" and "corr_cov" are our "cosine-whitened" and "pearson-whitened",
its "neg_riem_dist" is our "riemannian".
"""

import warnings

import numpy as np
import pytest
import scipy.sparse.linalg

from neuralign.align.compare import compare, rsa_ceiling
from neuralign.align.rdm import rdm
from neuralign.datasets.rdms import RDMs

rsatoolbox = pytest.importorskip("rsatoolbox")

RANKS_AND_MOMENTS = {
    "cosine": "cosine",
    "pearson": "corr",
    "spearman": "spearman",
    "rho-a": "rho-a",
    "tau-a": "tau-a",
    "tau-b": "tau-b",
}
WHITENED = {"cosine-whitened": "cosine_cov", "pearson-whitened": "corr_cov"}
THEIRS = RANKS_AND_MOMENTS | WHITENED | {"bures": "bures", "riemannian": "neg_riem_dist"}
# They take roots of rounded eigenvalues, and search by a simplex that stops at 1e-4.
ABSOLUTE = {"bures": 1e-7, "riemannian": 1e-6}


def responses(n_subjects=5, n_stimuli=16, n_units=40):
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(n_stimuli, n_units))
    return [2 + shared + rng.normal(size=(n_stimuli, n_units)) for _ in range(n_subjects)]


def replicates():
    return np.concatenate([rdm(X, "sqeuclidean").vectors for X in responses()]).astype(np.float64)


def their_rdms(vectors):
    return rsatoolbox.rdm.RDMs(np.array(vectors))


def theirs(a, b, method, **options):
    return rsatoolbox.rdm.compare(their_rdms(a), their_rdms(b), method=THEIRS[method], **options)


def covariance_of_errors(n_stimuli, sigma_k):
    """Their V, solved to the last digit where they stop after a relative error of 1e-5."""
    return rsatoolbox.util.matrix.get_v(n_stimuli, None if sigma_k is None else sigma_k).toarray()


def whitened_cosines(a, b, V):
    inner = a @ np.linalg.solve(V, b.T)
    norms = [np.sqrt(np.einsum("ij,ji->i", side, np.linalg.solve(V, side.T))) for side in (a, b)]
    return inner / np.outer(*norms)


@pytest.mark.parametrize("ours, theirs", [("sqeuclidean", "euclidean"), ("correlation", "correlation")])
def test_dissimilarities(ours, theirs):
    for X in responses(2):
        expected = rsatoolbox.rdm.calc_rdm(rsatoolbox.data.Dataset(X), method=theirs).get_vectors()
        np.testing.assert_allclose(rdm(X, ours).vectors, expected, rtol=1e-9)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("method", THEIRS)
def test_comparisons(method, ties):
    vectors = replicates()
    if ties:
        vectors = np.round(vectors, 1)
    a, b = vectors[:3], vectors[2:]
    expected = theirs(a, b, method)
    np.testing.assert_allclose(compare(a, b, method), expected, rtol=1e-9, atol=ABSOLUTE.get(method, 1e-12))


def test_of_their_two_roads_to_bures_ours_agrees_with_the_exact_one():
    """Fault 18: the road that `compare` takes has half of the digits; with three units for sixteen stimuli."""
    X = [3 * x[:, :3] for x in responses()]
    vectors = np.concatenate([rdm(x, "sqeuclidean").vectors for x in X]).astype(np.float64)
    patterns = [x - x.mean(0) for x in X]
    exact = [
        [np.linalg.svd(x.T @ y, compute_uv=False).sum() / np.linalg.norm(x) / np.linalg.norm(y) for y in patterns]
        for x in patterns
    ]
    found = compare(vectors, vectors, "bures")
    np.testing.assert_allclose(found, exact, rtol=1e-12)
    theirs_off = np.abs(theirs(vectors, vectors, "bures") - exact).max()
    assert 1e-10 < theirs_off < 1e-6


def test_their_simplex_never_finds_a_smaller_distance():
    vectors = replicates()
    found, expected = compare(vectors[:2], vectors[2:], "riemannian"), theirs(vectors[:2], vectors[2:], "riemannian")
    assert (found >= expected - 1e-12).all() and found.max() < 0


@pytest.mark.parametrize("method", RANKS_AND_MOMENTS | WHITENED)
def test_comparisons_without_some_pairs(method):
    vectors = replicates()
    vectors[:, [3, 50]] = np.nan  # rsatoolbox wants the same pairs to be unknown everywhere
    expected = theirs(vectors[:2], vectors[2:], method)
    np.testing.assert_allclose(compare(vectors[:2], vectors[2:], method), expected, rtol=1e-9)


@pytest.mark.parametrize("shape", [(16,), (16, 16)])
@pytest.mark.parametrize("method", WHITENED)
def test_covariance_of_patterns(method, shape):
    """Against their V. Their solver stops early, and with variances their short cut is not V at all: it centres all
    stimuli alike and divides afterwards."""
    rng = np.random.default_rng(1)
    covariance = 0.2 + rng.random(16) if len(shape) == 1 else np.cov(rng.normal(size=(16, 60)))
    vectors = replicates()
    a, b = vectors[:2], vectors[2:]
    V = covariance_of_errors(16, np.diag(covariance) if len(shape) == 1 else covariance)
    centred = [side - (side.mean(1, keepdims=True) if method == "pearson-whitened" else 0) for side in (a, b)]
    expected = whitened_cosines(*centred, V)
    found = compare(a, b, method, covariance=covariance)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    off = np.abs(theirs(a, b, method, sigma_k=covariance) - expected).max()
    if len(shape) == 1:
        assert off > 1e-3
        dense = theirs(a, b, method, sigma_k=np.diag(covariance))  # the same covariance, the other road
        np.testing.assert_allclose(found, dense, atol=1e-4)
    else:
        assert off < 1e-4


def test_covariance_in_the_riemannian_distance():
    covariance = np.cov(np.random.default_rng(1).normal(size=(16, 60)))
    vectors = replicates()
    expected = theirs(vectors[:1], vectors[1:], "riemannian", sigma_k=covariance)
    found = compare(vectors[:1], vectors[1:], "riemannian", covariance=covariance)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("method", [*RANKS_AND_MOMENTS, "riemannian"])
def test_ceilings(method):
    vectors = replicates()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the ceiling of tau is approximate
        expected = rsatoolbox.inference.boot_noise_ceiling(their_rdms(vectors), method=THEIRS[method])
    np.testing.assert_allclose(rsa_ceiling(vectors, method), expected, rtol=1e-9, atol=ABSOLUTE.get(method, 0))


@pytest.mark.parametrize("method", WHITENED)
def test_ceilings_of_whitened_comparisons(method, monkeypatch):
    """Their ceiling pools RDMs that are not whitened, so that their upper bound can be passed. For fitting they have
    another pool; with that one the bounds are ours."""
    vectors = replicates()
    vectors[0] *= np.linspace(0.3, 3, vectors.shape[1])  # a replicate unlike the others
    lower, upper = rsa_ceiling(vectors, method)
    passed = rsatoolbox.inference.boot_noise_ceiling(their_rdms(vectors), method=THEIRS[method])
    pool_rdm = rsatoolbox.util.pooling.pool_rdm
    solver = scipy.sparse.linalg.cg
    monkeypatch.setattr(scipy.sparse.linalg, "cg", lambda *args, atol: solver(*args, atol=0, rtol=1e-13))

    def mean_with(pool, rows):
        return np.mean(theirs(pool.get_vectors(), rows, method))

    whole = mean_with(pool_rdm(their_rdms(vectors), THEIRS[method]), vectors)
    others = [
        mean_with(pool_rdm(their_rdms(np.delete(vectors, k, 0)), THEIRS[method]), vectors[k : k + 1])
        for k in range(len(vectors))
    ]
    assert passed[1] < upper - 1e-6
    np.testing.assert_allclose((lower, upper), (np.mean(others), whole), rtol=1e-9)


def test_fault_7_ceilings_of_bures():
    """Their pool does not know it, so no evaluation can use it; "bures_metric" is a squared distance, we have none."""
    vectors = replicates()
    with pytest.raises(ValueError, match="Unknown RDM comparison"):
        rsatoolbox.inference.boot_noise_ceiling(their_rdms(vectors), method="bures")
    lower, upper = rsa_ceiling(vectors, "bures")
    assert 0.5 < lower < upper < 1
    assert rsatoolbox.rdm.compare(their_rdms(vectors[:1]), their_rdms(vectors[1:2]), method="bures_metric") > 1
    with pytest.raises(ValueError, match="'bures_metric' is unknown; did you mean 'bures'"):
        compare(vectors, vectors, "bures_metric")


def test_fault_11_riemannian_distance_of_what_is_no_squared_distance():
    vectors = replicates()
    vectors[1, 0] *= 50
    with pytest.raises(np.linalg.LinAlgError):
        theirs(vectors[:1], vectors[1:2], "riemannian")
    with pytest.warns(UserWarning, match="1 of 2 comparisons are NaN: an RDM of a is zero, or one of b does not stem"):
        found = compare(vectors[:1], vectors[1:3], "riemannian")
    assert np.isnan(found).tolist() == [[True, False]]


def test_fault_12_slices():
    vectors = replicates()
    with pytest.raises(IndexError):
        their_rdms(vectors)[:1]
    ours = RDMs(vectors, [f"s{k}" for k in range(16)])
    np.testing.assert_array_equal(compare(ours[:1], ours[1:]), compare(vectors[:1], vectors[1:]))


def test_zero_and_constant_rdms_are_not_similar_by_zero():
    """Theirs answers 0 where a correlation is not defined."""
    vectors = np.round(replicates(), 1)
    vectors[1] = 0.5
    for method in ("rho-a", "tau-a", "pearson", "pearson-whitened"):
        if method != "pearson-whitened":
            assert theirs(vectors[:1], vectors[1:2], method) == 0
        with pytest.warns(UserWarning, match="1 of 1 comparisons are NaN: an RDM is constant"):
            assert np.isnan(compare(vectors[:1], vectors[1:2], method))
