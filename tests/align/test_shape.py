"""Shape metrics against their formulas line by line, closed forms and all permutations."""

import itertools

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes, sqrtm
from sklearn.base import clone

from neuralign.align.similarity import estimator, similarity
from neuralign.align.similarity.shape import Permutation, Procrustes, Shape, nuclear_norm


def sides(seed, n=40, p=6, q=6, noise=0.5):
    rng = np.random.default_rng(seed)
    code = rng.normal(size=(n, 4))
    return [code @ rng.normal(size=(4, w)) + noise * rng.normal(size=(n, w)) + rng.normal(size=w) for w in (p, q)]


def padded(X, Y):
    width = max(X.shape[1], Y.shape[1])
    return [np.pad(side, ((0, 0), (0, width - side.shape[1]))) for side in (X, Y)]


def published(train, test, alpha, form):
    """The metric of Williams et al. as their package computes it: p x p matrices, full rotation, arccos."""
    maps = []
    for X in train:
        mean = X.mean(0)
        lam, V = np.linalg.eigh((X - mean).T @ (X - mean))
        if alpha == 1:
            Z = np.eye(len(lam))
        else:
            d = alpha + (1 - alpha) * lam**-0.5
            Z = V @ np.diag(d * np.sqrt(lam.sum() / (d**2 * lam).sum())) @ V.T
        maps.append((mean, Z))
    (mx, Zx), (my, Zy) = maps
    U, _, Vt = np.linalg.svd(((train[0] - mx) @ Zx).T @ ((train[1] - my) @ Zy))
    A, B = (test[0] - mx) @ Zx @ U, (test[1] - my) @ Zy @ Vt.T
    if form == "euclidean":
        return np.linalg.norm(A - B)
    return np.arccos(np.clip((A * B).sum() / np.linalg.norm(A) / np.linalg.norm(B), -1, 1))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("form", ["angular", "euclidean"])
def test_shape_follows_the_published_formula_on_train_and_on_test(alpha, form):
    for seed in range(3):
        X, Y = sides(seed, n=60)
        train, test = (X[:40], Y[:40]), (X[40:], Y[40:])
        assert similarity("shape", *train, alpha=alpha, distance=form) == pytest.approx(
            published(train, train, alpha, form), abs=1e-9
        )
        fitted = Shape(alpha, form).fit(*train)
        assert fitted.score(*test) == pytest.approx(published(train, test, alpha, form), abs=1e-9)
        left, right = fitted.transform(*test)
        if form == "euclidean":
            assert np.linalg.norm(left - right) == pytest.approx(fitted.score(*test), abs=1e-9)


def test_fewer_dimensions_are_padded_with_zeros():
    X, Y = sides(0, p=3, q=7)
    assert similarity("shape", X, Y) == pytest.approx(published(padded(X, Y), padded(X, Y), 1.0, "angular"), abs=1e-9)
    train, test = (X[:25], Y[:25]), (X[25:], Y[25:])
    assert Shape().fit(*train).score(*test) == pytest.approx(
        published(padded(*train), padded(*test), 1.0, "angular"), abs=1e-9
    )
    assert Permutation("euclidean").fit(X, Y).score(X, Y) == pytest.approx(
        Permutation("euclidean").fit(*padded(X, Y)).score(*padded(X, Y)), abs=1e-9
    )


def test_procrustes_equals_scipy_and_the_squared_form_of_normalised_clouds():
    X, Y = sides(1)
    A, B = ((side - side.mean(0)) / np.linalg.norm(side - side.mean(0)) for side in (X, Y))
    Q, total = orthogonal_procrustes(A, B)
    assert similarity("procrustes", X, Y) == pytest.approx(total, abs=1e-12)
    assert similarity("procrustes", X, Y, distance="squared") == pytest.approx(
        np.linalg.norm(A @ Q - B) ** 2, abs=1e-12
    )
    assert similarity("procrustes", X, Y, distance="angular") == pytest.approx(np.arccos(total), abs=1e-12)


def test_alpha_zero_is_the_mean_canonical_correlation():
    for p, q in ((5, 5), (3, 7)):
        X, Y = sides(2, p=p, q=q)
        bases = [np.linalg.qr(side - side.mean(0))[0] for side in (X, Y)]
        rho = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
        assert similarity("shape", X, Y, alpha=0.0, distance=None) == pytest.approx(
            rho.sum() / np.sqrt(p * q), abs=1e-10
        )


def test_bures_of_kernels_is_procrustes_of_features():
    X, Y = sides(3, n=12, p=20, q=15)
    K, L = ((side - side.mean(0)) @ (side - side.mean(0)).T for side in (X, Y))
    root = sqrtm(K + 1e-12 * np.eye(12))
    overlap = np.trace(sqrtm(root @ L @ root)).real
    assert similarity("bures", X, Y) == pytest.approx(overlap / np.sqrt(np.trace(K) * np.trace(L)), abs=1e-5)
    assert similarity("bures", X, Y, distance="euclidean") == pytest.approx(
        np.sqrt(np.trace(K) + np.trace(L) - 2 * overlap), rel=1e-4
    )
    assert similarity("bures", X, Y) == similarity("procrustes", X, Y)


def test_kernels_of_low_rank_keep_their_digits():
    """Roots of the eigenvalues of a 30 x 30 kernel of rank 3 are right to 1e-8 only; the truth here is exactly 1."""
    rng = np.random.default_rng(4)
    X = rng.normal(size=(30, 3))
    Y = 2.5 * X @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    A, B = X - X.mean(0), Y - Y.mean(0)
    values, vectors = np.linalg.eigh(A @ A.T)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    by_roots = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ B @ B.T @ root), 0)).sum()
    by_roots /= np.linalg.norm(A) * np.linalg.norm(B)
    assert abs(by_roots - 1) > 1e-10
    assert abs(nuclear_norm(A, B) / (np.linalg.norm(A) * np.linalg.norm(B)) - 1) < 1e-14


def test_small_angles_keep_their_digits():
    """Y is X and a little of what X does not span, so the best rotation is none and the angle is known."""
    rng = np.random.default_rng(5)
    n, p = 50, 4
    basis = np.linalg.qr(np.hstack([np.ones((n, 1)), rng.normal(size=(n, 2 * p))]))[0][:, 1:]
    X, Z = basis[:, :p] * [4, 3, 2, 1], basis[:, p:] * [1, 2, 3, 4]
    for step in (1e-3, 1e-7, 1e-11):
        angle = similarity("shape", X, X + step * Z)
        assert angle == pytest.approx(np.arctan(step), rel=1e-3)
        assert similarity("procrustes", X, X + step * Z, distance="euclidean") == pytest.approx(
            step * np.linalg.norm(Z), rel=1e-3
        )
    assert np.arccos(similarity("procrustes", X, X + 1e-11 * Z)) != pytest.approx(1e-11, rel=0.5)


def test_more_features_than_stimuli_give_what_all_of_them_give():
    X, Y = sides(6, n=15, p=80, q=50)
    A, B = X - X.mean(0), Y - Y.mean(0)
    direct = np.linalg.svd(A.T @ B, compute_uv=False).sum()
    assert nuclear_norm(A, B) == pytest.approx(direct, rel=1e-12)
    assert np.cos(similarity("shape", X, Y)) == pytest.approx(direct / np.linalg.norm(A) / np.linalg.norm(B), abs=1e-12)
    fitted = Shape(0.5).fit(X, Y)
    assert fitted.rotation_x_.shape == (80, 14)
    assert fitted.score(X, Y) == pytest.approx(similarity("shape", X, Y, alpha=0.5), abs=1e-12)


def test_whitening_does_not_depend_on_the_unit_of_measurement():
    """An eigenvalue floor in absolute terms would take responses in microvolts for rounding."""
    X, Y = sides(7)
    plain = similarity("shape", X, Y, alpha=0.0)
    assert similarity("shape", 1e-6 * X, Y, alpha=0.0) == pytest.approx(plain, abs=1e-9)
    doubled = np.hstack([X, X[:, :2]])  # rank 6 in 8 dimensions
    lam = np.linalg.svd(doubled - doubled.mean(0), compute_uv=False)
    fitted = Shape(0.0).fit(doubled, Y)
    whitened = fitted.x_(doubled)
    assert np.linalg.norm(whitened) == pytest.approx(np.linalg.norm(lam), rel=1e-12)
    np.testing.assert_allclose(np.linalg.svd(whitened, compute_uv=False)[6:], 0, atol=1e-10)


def test_permutation_is_the_best_of_all():
    for seed, q in ((8, 5), (9, 6)):
        X, Y = sides(seed, n=20, p=5, q=q)
        A, B = X - X.mean(0), Y - Y.mean(0)
        best = max((A * B[:, list(order)]).sum() for order in itertools.permutations(range(q), 5))
        cosine = best / np.linalg.norm(A) / np.linalg.norm(B)
        assert similarity("permutation", X, Y, distance=None) == pytest.approx(cosine, abs=1e-12)
        assert similarity("permutation", X, Y) == pytest.approx(np.arccos(cosine), abs=1e-10)
    held = Permutation().fit(X[:10], Y[:10])
    A, B = X[10:] - X[:10].mean(0), Y[10:] - Y[:10].mean(0)
    inner = (A[:, held.units_x_] * B[:, held.units_y_]).sum()
    assert held.score(X[10:], Y[10:]) == pytest.approx(
        np.arccos(inner / np.linalg.norm(A) / np.linalg.norm(B)), abs=1e-12
    )
    assert similarity("permutation", X, X[:, ::-1]) == pytest.approx(0, abs=1e-7)


def test_permutation_is_a_metric_only_for_equal_numbers_of_units():
    """One unit, the same and another, the other: with units to spare the two ends meet zeros instead."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(24, 1))
    last = -first + 0.1 * rng.normal(size=(24, 1))
    both = np.hstack([first, last])
    direct = similarity("permutation", first, last)
    assert direct > similarity("permutation", first, both) + similarity("permutation", both, last) + 0.5


@pytest.mark.parametrize("name", ["procrustes", "shape", "bures", "permutation"])
def test_noise_aligns_on_the_stimuli_of_the_fit_only(name):
    inside, outside = [], []
    for k in range(20):
        rng = np.random.default_rng(k)
        X, Y = rng.normal(size=(2, 60, 25))
        fitted = estimator(name, distance=None).fit(X[:30], Y[:30])
        inside.append(fitted.score(X[:30], Y[:30]))
        outside.append(fitted.score(X[30:], Y[30:]))
    assert np.mean(inside) > 0.25
    assert abs(np.mean(outside)) < 4 * np.std(outside, ddof=1) / np.sqrt(20)


def test_options_are_checked_and_estimators_can_be_cloned():
    X, Y = sides(0)
    with pytest.raises(ValueError, match="distance='angle' is unknown; did you mean 'angular'"):
        similarity("procrustes", X, Y, distance="angle")
    with pytest.raises(ValueError, match=r"alpha=2; expected a number from 0 \(linear maps\) to 1 \(rotations\)"):
        similarity("shape", X, Y, alpha=2)
    with pytest.raises(ValueError, match="Y has 5 features; fit saw 6"):
        Procrustes().fit(X, Y).score(X, Y[:, :5])
    assert clone(Shape(0.5, None)).get_params() == {"alpha": 0.5, "distance": None}
    assert clone(Procrustes("squared")).get_params() == {"distance": "squared"}
