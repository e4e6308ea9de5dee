"""Canonical correlations, their averages and their held-out form."""

import numpy as np
import pytest
from scipy.linalg import eigh
from sklearn.base import clone

from neuralign.align.similarity import estimator, similarity


def related(seed, n, p, q, noise=0.7):
    rng = np.random.default_rng(seed)
    code = rng.normal(size=(n, 3))
    return [code @ rng.normal(size=(3, w)) + noise * rng.normal(size=(n, w)) + 5 * rng.normal(size=w) for w in (p, q)]


def correlations_by_eigenvalues(X, Y):
    """Roots of the generalised eigenvalues of Sxy Syy^-1 Syx against Sxx: no factor of X or Y is taken."""
    X, Y = X - X.mean(0), Y - Y.mean(0)
    squared = eigh(X.T @ Y @ np.linalg.solve(Y.T @ Y, Y.T @ X), X.T @ X, eigvals_only=True)[::-1]
    return np.sqrt(np.clip(squared[: min(X.shape[1], Y.shape[1])], 0, 1))


def truncated(X, k):
    """Scores of the first k principal components."""
    X = X - X.mean(0)
    return X @ np.linalg.svd(X, full_matrices=False)[2][:k].T


def pwcca_by_definition(X, Y):
    """Weights by the features of X; canonical variates through inverse square roots of the covariances."""
    X, Y = X - X.mean(0), Y - Y.mean(0)
    roots = []
    for side in (X, Y):
        values, vectors = np.linalg.eigh(side.T @ side)
        roots.append(vectors / np.sqrt(values) @ vectors.T)
    U, rho, _ = np.linalg.svd(roots[0] @ X.T @ Y @ roots[1], full_matrices=False)
    H = X @ roots[0] @ U
    alpha = [sum(abs(H[:, i] @ X[:, j]) for j in range(X.shape[1])) for i in range(len(rho))]
    return float(np.dot(alpha, rho) / np.sum(alpha))


@pytest.mark.parametrize(("n", "p", "q"), [(40, 5, 8), (40, 8, 5), (30, 6, 6), (60, 1, 20)])
def test_cca_averages_every_canonical_correlation(n, p, q):
    X, Y = related(0, n, p, q)
    rho = correlations_by_eigenvalues(X, Y)
    assert similarity("cca", X, Y) == pytest.approx(rho.mean(), abs=1e-10)
    assert similarity("cca", X, Y, statistic="mean-square") == pytest.approx((rho**2).mean(), abs=1e-10)


def test_the_mean_square_is_the_share_of_a_projection():
    """R^2_CCA of Kornblith et al. (2019): ||Qy' Qx||_F^2 / p, p the smaller dimension."""
    X, Y = related(1, 50, 4, 9)
    Q = [np.linalg.qr(side - side.mean(0))[0] for side in (X, Y)]
    expected = np.linalg.norm(Q[1].T @ Q[0]) ** 2 / 4
    assert similarity("cca", X, Y, statistic="mean-square") == pytest.approx(expected, abs=1e-12)


def test_the_trailing_correlations_count():
    """Leaving out what follows once 98 % of their sum is reached makes a mean of leading ones, which is higher."""
    X, Y = related(2, 200, 12, 12, noise=0.4)
    rho = correlations_by_eigenvalues(X, Y)
    leading = rho[: np.argmax(np.cumsum(rho) >= 0.98 * rho.sum()) + 1]
    assert len(leading) < len(rho)
    assert leading.mean() > rho.mean() + 0.01
    assert similarity("cca", X, Y) == pytest.approx(rho.mean(), abs=1e-10)


def test_features_that_repeat_others_add_no_dimension():
    X, Y = related(3, 40, 5, 4)
    repeated = np.hstack([X, X[:, :2] - 3 * X[:, 2:4], np.ones((40, 1)), 1e-20 * X])
    assert similarity("cca", repeated, Y) == pytest.approx(similarity("cca", X, Y), abs=1e-10)


@pytest.mark.parametrize("name", ["cca", "svcca", "pwcca"])
@pytest.mark.parametrize(("p", "q", "side"), [(20, 3, "X"), (3, 20, "Y"), (40, 25, "X and Y each"), (19, 2, "X")])
def test_a_side_that_spans_all_stimuli_says_nothing_of_the_other(name, p, q, side):
    """Its correlations are 1 with anything; NaN and a reason, not a perfect score."""
    rng = np.random.default_rng(4)
    X, Y = rng.normal(size=(20, p)), rng.normal(size=(20, q))
    options = {"fraction": 1.0} if name == "svcca" else {}
    with pytest.warns(UserWarning, match=rf"'{name}' is NaN: {side} spans? all 20 stimuli") as caught:
        assert np.isnan(similarity(name, X, Y, **options))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert np.isfinite(similarity(name, X[:, :3], Y[:, :2]))


def test_chance_of_cca_grows_with_the_features():
    rng = np.random.default_rng(5)
    values = [similarity("cca", rng.normal(size=(200, 50)), rng.normal(size=(200, 50))) for _ in range(5)]
    assert np.mean(values) == pytest.approx(0.430, abs=0.01)
    values = [similarity("cca", rng.normal(size=(1000, 100)), rng.normal(size=(1000, 100))) for _ in range(3)]
    assert np.mean(values) == pytest.approx(0.270, abs=0.01)


@pytest.mark.parametrize("of", ["singular-values", "variance"])
@pytest.mark.parametrize("fraction", [0.5, 0.9, 0.99])
def test_svcca_is_cca_of_the_components_that_make_up_the_share(of, fraction):
    X, Y = related(6, 60, 12, 9, noise=0.02)
    kept = []
    for side in (X, Y):
        values = np.linalg.svd(side - side.mean(0), compute_uv=False) ** (1 if of == "singular-values" else 2)
        kept.append(next(k for k in range(1, len(values) + 1) if values[:k].sum() >= fraction * values.sum()))
    expected = similarity("cca", truncated(X, kept[0]), truncated(Y, kept[1]))
    assert similarity("svcca", X, Y, fraction=fraction, of=of) == pytest.approx(expected, abs=1e-10)
    assert kept[0] < 12


def test_a_share_of_singular_values_keeps_more_than_one_of_variance():
    X, Y = related(7, 80, 20, 20, noise=0.3)
    widths = [estimator("svcca", of=of).fit(X, Y).x_weights_.shape[1] for of in ("singular-values", "variance")]
    assert widths[0] > widths[1]
    assert similarity("svcca", X, Y) == similarity("svcca", X, Y, of="singular-values", fraction=0.99)


def test_a_share_reached_exactly_keeps_no_further_component():
    """Ten components of equal size: five of them are half."""
    noise = np.random.default_rng(8).normal(size=(40, 10))
    basis = np.linalg.qr(np.hstack([np.ones((40, 1)), noise]))[0][:, 1:]
    for fraction, kept in [(0.1, 1), (0.3, 3), (0.5, 5), (0.51, 6), (0.7, 7), (1.0, 10)]:
        assert estimator("svcca", fraction=fraction).fit(basis, basis).x_weights_.shape[1] == kept


def test_the_share_and_the_tolerance_of_the_rank_are_two_things():
    """A share of .98 does not become a threshold that every weak direction falls under."""
    rng = np.random.default_rng(9)
    X = rng.normal(size=(100, 6)) * 10.0 ** -np.arange(6)
    Y = rng.normal(size=(100, 4))
    assert len(estimator("cca").fit(X, Y).x_weights_) == 6
    rho = correlations_by_eigenvalues(X, Y)
    assert similarity("cca", X, Y) == pytest.approx(rho.mean(), abs=1e-8)
    assert estimator("svcca", fraction=0.98).fit(X, Y).x_weights_.shape[1] == 2


@pytest.mark.parametrize(("p", "q"), [(4, 9), (9, 4), (5, 5)])
def test_pwcca_weighs_by_the_side_of_smaller_rank(p, q):
    """Also where that is Y, which makes a public version stop with an IndexError."""
    X, Y = related(10, 60, p, q)
    smaller_first = (X, Y) if p <= q else (Y, X)
    assert similarity("pwcca", X, Y) == pytest.approx(pwcca_by_definition(*smaller_first), abs=1e-10)
    if p != q:
        assert similarity("pwcca", X, Y) == pytest.approx(similarity("pwcca", Y, X), abs=1e-12)
    else:
        assert abs(similarity("pwcca", X, Y) - similarity("pwcca", Y, X)) > 1e-3


def test_pwcca_does_not_depend_on_the_means():
    """Variates with their means added back, on features not centred, as in public code, weigh by the offset."""
    X, Y = related(11, 60, 5, 8)
    assert similarity("pwcca", X + 1000, Y) == pytest.approx(similarity("pwcca", X, Y), abs=1e-9)
    model = estimator("pwcca").fit(X, Y)
    with_means = np.linalg.qr(model.transform(X, Y)[0] + X.mean(0))[0]
    weights = np.abs(with_means.T @ X).sum(1)
    assert abs(weights @ model.correlations_ / weights.sum() - similarity("pwcca", X, Y)) > 0.02


def test_pwcca_prefers_what_the_features_are_made_of():
    """One loud direction in common and four quiet ones not: nearly 1 weighted, far from it in the plain mean."""
    rng = np.random.default_rng(12)
    shared = rng.normal(size=(300, 1))
    X = np.hstack([100 * shared, rng.normal(size=(300, 4))]) @ np.linalg.qr(rng.normal(size=(5, 5)))[0]
    Y = np.hstack([shared, rng.normal(size=(300, 6))])
    assert similarity("pwcca", X, Y) > 0.9
    assert similarity("cca", X, Y) < 0.4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cca", {}), ("cca", {"statistic": "mean-square"}), ("pwcca", {}),
        ("svcca", {"fraction": 0.9}), ("svcca", {"statistic": "mean-square", "of": "variance"}),
    ],
)  # fmt: skip
def test_the_score_on_the_stimuli_of_the_fit_is_the_measure(name, options):
    X, Y = related(13, 50, 7, 6)
    model = estimator(name, **options).fit(X, Y)
    assert model.score(X, Y) == pytest.approx(similarity(name, X, Y, **options), abs=1e-10)
    variates = model.transform(X, Y)
    np.testing.assert_allclose(variates[0].T @ variates[0], np.eye(variates[0].shape[1]), atol=1e-10)
    np.testing.assert_allclose(np.diag(variates[0].T @ variates[1]), model.correlations_, atol=1e-10)
    assert clone(model).get_params() == model.get_params()


def test_variates_of_held_out_stimuli_are_centred_on_the_means_of_the_fit():
    X, Y = related(14, 60, 4, 4)
    model = estimator("cca").fit(X[:40], Y[:40])
    alone = model.transform(X[40:43], Y[40:43])[0]
    np.testing.assert_allclose(alone, model.transform(X[40:], Y[40:])[0][:3], atol=1e-12)
    np.testing.assert_allclose(alone, (X[40:43] - X[:40].mean(0)) @ model.x_weights_, atol=1e-12)


@pytest.mark.parametrize("statistic", ["mean", "mean-square"])
def test_held_out_correlations_of_noise_average_to_0_and_those_of_a_common_code_do_not(statistic):
    rng = np.random.default_rng(15)
    model = estimator("cca", statistic=statistic)
    noise = []
    for _ in range(30):
        X, Y = rng.normal(size=(80, 15)), rng.normal(size=(80, 15))
        noise.append(model.fit(X[:40], Y[:40]).score(X[40:], Y[40:]))
    assert abs(np.mean(noise)) < 4 * np.std(noise, ddof=1) / np.sqrt(30)
    assert similarity("cca", X, Y) > 0.3
    wide = rng.normal(size=(80, 100)), rng.normal(size=(80, 90))
    assert abs(model.fit(wide[0][:40], wide[1][:40]).score(wide[0][40:], wide[1][40:])) < 0.2
    assert model.score(wide[0][:40], wide[1][:40]) == pytest.approx(1)  # what the measure is NaN for
    X, Y = related(16, 400, 6, 6, noise=0.1)
    assert model.fit(X[:200], Y[:200]).score(X[200:], Y[200:]) > 0.4


def test_bad_options_and_degenerate_stimuli():
    X, Y = related(17, 30, 5, 4)
    with pytest.raises(ValueError, match="statistic='means' is unknown; did you mean 'mean'"):
        similarity("cca", X, Y, statistic="means")
    with pytest.raises(ValueError, match="of='singular-value' is unknown; did you mean 'singular-values'"):
        similarity("svcca", X, Y, of="singular-value")
    with pytest.raises(ValueError, match="fraction=99 must be above 0 and at most 1"):
        similarity("svcca", X, Y, fraction=99)
    with pytest.raises(ValueError, match="Y does not vary over the 30 stimuli of fit"):
        estimator("pwcca").fit(X, np.ones_like(Y))
    model = estimator("cca").fit(X, Y)
    with pytest.raises(ValueError, match="Y has 3 features; fit saw 4"):
        model.score(X, Y[:, :3])
    with pytest.warns(UserWarning, match="'cca' is NaN: 4 canonical variates do not vary"):
        assert np.isnan(model.score(X[:5], np.repeat(Y[:1], 5, axis=0)))
