import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import Ridge
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuralign.encoders.routing import few_rows, weight_prior
from neuralign.encoders.routing.learning_curve import learning_curve
from neuralign.encoders.routing.population import PopulationPriorRidge


@parametrize_with_checks(
    [
        PopulationPriorRidge(iterations=5),
        PopulationPriorRidge(components=2, noise="shared", standardise=False, iterations=5, max_dimension=6),
    ]
)
@pytest.mark.filterwarnings("ignore:components=2 for 1 units")
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def drawn(v, f=6, n=120, noise=1.0, seed=0, mean=None, covariance=None):
    """Units whose weights come from one Gaussian."""
    rng = np.random.default_rng(seed)
    mean = np.linspace(-1, 1, f) if mean is None else mean
    covariance = np.diag(np.linspace(0.05, 1.5, f)) if covariance is None else covariance
    X = rng.standard_normal((n, f)) @ np.diag(np.linspace(0.5, 1.5, f)) + 2.0
    W = rng.multivariate_normal(mean, covariance, v).T
    return X, X @ W + noise * rng.standard_normal((n, v)) + 3.0, W


def centring(n):
    """Rows that span what is left of n numbers without their mean."""
    return linalg.null_space(np.ones((1, n))).T


def slow_evidence(x, y, mean, covariance, noise):
    """Log density of the responses of a unit without their mean."""
    Q = centring(len(y))
    cov = Q @ (x @ covariance @ x.T + noise * np.eye(len(y))) @ Q.T
    return stats.multivariate_normal(Q @ x @ mean, cov).logpdf(Q @ y)


def slow_weights(x, y, mean, covariance, noise):
    """The formula of the docstring, with the offsets taken out of both sides."""
    x, y = x - x.mean(0), y - y.mean()
    K = x @ covariance @ x.T + noise * np.eye(len(y))
    return mean + covariance @ x.T @ np.linalg.solve(K, y - x @ mean)


def with_prior(encoder, mean, covariance, share=None, f=6):
    """An encoder whose prior is known, in place of a learned one."""
    X, Y, _ = drawn(12, f)
    encoder.set_params(standardise=False).fit(X, Y)
    encoder.prior_mean_, encoder.prior_covariance_ = np.array(mean), np.array(covariance)
    encoder.prior_weight_ = np.ones(1) if share is None else np.array(share)
    return encoder


@pytest.mark.parametrize("n", [3, 6, 40])
def test_weights_of_a_new_unit_are_the_posterior_mean(n):
    X, Y, _ = drawn(3, n=n, seed=1)
    rng = np.random.default_rng(2)
    root = rng.standard_normal((6, 6))
    mean, covariance = rng.standard_normal(6), root @ root.T + 0.1 * np.eye(6)
    encoder = with_prior(PopulationPriorRidge(), mean[None], covariance[None])
    noise = np.array([0.5, 2.0, 7.0])
    found = encoder.condition(X, Y, noise=noise)
    for i in range(3):
        expected = slow_weights(X - encoder.feature_mean_, Y[:, i], mean, covariance, noise[i])
        np.testing.assert_allclose(found.coef_[:, i], expected, rtol=1e-8, atol=1e-9)
        # An unpenalised intercept: residuals of the rows have no mean.
        assert abs((Y[:, i] - found.predict(X)[:, i]).mean()) < 1e-9
    np.testing.assert_allclose(found.noise_, noise)


def test_an_isotropic_prior_without_mean_is_ridge_regression():
    X, Y, _ = drawn(4, n=9, seed=3)
    encoder = with_prior(PopulationPriorRidge(), np.zeros((1, 6)), 0.3 * np.eye(6)[None])
    found = encoder.condition(X, Y, noise=2.4)
    ridge = Ridge(alpha=8.0).fit(X, Y)
    np.testing.assert_allclose(found.coef_, ridge.coef_.T, atol=1e-8)
    np.testing.assert_allclose(found.intercept_, ridge.intercept_, atol=1e-8)


def test_a_mixture_over_levels_of_noise_is_averaged_by_its_evidence():
    X, Y, _ = drawn(5, n=8, seed=4)
    means, share = np.array([np.ones(6), -np.ones(6)]), [0.3, 0.7]
    covariances = np.array([0.2 * np.eye(6), np.diag(np.linspace(0.1, 2, 6))])
    encoder = with_prior(PopulationPriorRidge(), means, covariances, share)
    encoder._support = np.array([0.3, 1.0, 4.0])
    found = encoder.condition(X, Y)
    x = X - encoder.feature_mean_
    for i in range(5):
        log_p = np.array(
            [
                [np.log(share[k]) + slow_evidence(x, Y[:, i], means[k], covariances[k], s) for s in encoder._support]
                for k in range(2)
            ]
        )
        p = np.exp(log_p - log_p.max())
        p /= p.sum()
        weights = sum(
            p[k, g] * slow_weights(x, Y[:, i], means[k], covariances[k], s)
            for k in range(2)
            for g, s in enumerate(encoder._support)
        )
        np.testing.assert_allclose(found.coef_[:, i], weights, atol=1e-8)
        np.testing.assert_allclose(found.responsibility_[:, i], p.sum(1), atol=1e-9)
        np.testing.assert_allclose(found.noise_[i], p.sum(0) @ encoder._support, atol=1e-8)


@pytest.mark.parametrize(
    ("components", "noise", "missing"), [(1, "unit", False), (2, "unit", True), (3, "shared", False)]
)
def test_what_is_maximised_is_the_evidence_and_never_falls(components, noise, missing):
    X, Y, _ = drawn(30, n=40, seed=5)
    Y[:, 15:] += 3 * X[:, :1]
    if missing:
        Y[:20, :4] = np.nan
    encoder = PopulationPriorRidge(components, iterations=30, tol=-1.0, noise=noise, standardise=False).fit(X, Y)
    assert (np.diff(encoder.log_likelihood_) > -1e-8 * np.abs(encoder.log_likelihood_[0])).all()
    assert encoder.log_likelihood_[-1] > encoder.log_likelihood_[0] + 10

    # The value of the last step, by densities of all units one by one, is that of a fit one step shorter.
    shorter = clone(encoder).set_params(iterations=29).fit(X, Y)
    x, total = X - encoder.feature_mean_, 0.0
    for i in range(30):
        rows = ~np.isnan(Y[:, i])
        terms = [
            np.log(shorter.prior_weight_[k])
            + slow_evidence(
                x[rows], Y[rows, i], shorter.prior_mean_[k], shorter.prior_covariance_[k], shorter.noise_[i]
            )
            for k in range(components)
        ]
        total += np.logaddexp.reduce(terms)
    # The terms that hold the prior: one unit for each of six axes, and one for the mean.
    precisions = np.linalg.inv(shorter.prior_covariance_)
    size = 6 * components / sum(map(np.trace, precisions))
    start = np.concatenate([weight_prior.isotropic(c)[0] for c in _contexts(x, Y)]).mean()
    for mu, S, P in zip(shorter.prior_mean_, shorter.prior_covariance_, precisions, strict=True):
        total -= 0.5 * (6 * (np.linalg.slogdet(S)[1] + size * np.trace(P) - 6 * np.log(size)) + mu @ mu / start)
    np.testing.assert_allclose(encoder.log_likelihood_[-1], total, rtol=1e-8)


def _contexts(x, Y):
    return weight_prior.gather(torch.from_numpy(x), Y, np.arange(Y.shape[1]), scale=False)


def test_a_planted_population_is_recovered():
    f, v = 6, 3000
    root = np.random.default_rng(6).standard_normal((f, 2))
    covariance = root @ root.T + 0.02 * np.eye(f)
    X, Y, _ = drawn(v, f, n=60, noise=1.5, seed=6, covariance=covariance)
    encoder = PopulationPriorRidge(standardise=False, iterations=200, tol=1e-9).fit(X, Y)
    np.testing.assert_allclose(encoder.prior_mean_[0], np.linspace(-1, 1, f), atol=0.1)
    np.testing.assert_allclose(encoder.prior_covariance_[0], covariance, atol=0.12 * np.abs(covariance).max())
    assert abs(np.mean(encoder.noise_) / 1.5**2 - 1) < 0.02


def test_a_planted_mixture_is_recovered():
    rng = np.random.default_rng(7)
    X, centres = rng.standard_normal((80, 8)), 2 * rng.standard_normal((3, 8))
    label = rng.integers(0, 3, 300)
    Y = X @ (centres[label] + 0.2 * rng.standard_normal((300, 8))).T + 2 * rng.standard_normal((80, 300))
    encoder = PopulationPriorRidge(3, standardise=False).fit(X, Y)
    found = encoder.responsibility_.argmax(0)
    table = np.array([[np.sum((found == a) & (label == b)) for b in range(3)] for a in range(3)])
    assert table.max(1).sum() >= 297
    for a, b in enumerate(table.argmax(1)):
        np.testing.assert_allclose(encoder.prior_mean_[a], centres[b], atol=0.25)
    # Tight clusters stay tight: covariances are not held to the spread of all units.
    spread = np.mean([np.trace(S) / 8 for S in encoder.prior_covariance_])
    assert 0.02 < spread < 0.06, spread  # 0.04 was planted


def test_new_units_of_a_population_need_fewer_stimuli_than_ridge():
    f, v = 16, 400
    root = np.random.default_rng(8).standard_normal((f, 3))
    covariance = root @ root.T / f + 0.002 * np.eye(f)
    X, Y, W = drawn(v + 60, f, n=400, noise=0.7, seed=8, mean=np.zeros(f), covariance=covariance)
    prior = PopulationPriorRidge().fit(X[:200], Y[:200, :v])
    new = slice(v, None)
    # What is best possible: the true prior, and the noise known.
    truth = with_prior(PopulationPriorRidge(), np.zeros((1, f)), covariance[None], f=f)
    for n in (6, 12, 24):
        rows = slice(200, 200 + n)

        def r(encoder):
            predicted, signal = encoder.predict(X[300:]), X[300:] @ W[:, new]
            return np.mean([np.corrcoef(predicted[:, i], signal[:, i])[0, 1] for i in range(60)])

        mine, best = r(prior.condition(X[rows], Y[rows, new])), r(truth.condition(X[rows], Y[rows, new], noise=0.49))
        ridge = max(r(Ridge(alpha).fit(X[rows], Y[rows, new])) for alpha in np.logspace(-2, 3, 11))  # told the best
        assert mine > ridge + 0.04, (n, mine, ridge)
        assert best - 0.03 < mine < best + 0.01, (n, mine, best)


@pytest.mark.parametrize("v", [1, 5, 50])
def test_a_population_without_structure_costs_little(v):
    """Where weights are isotropic there is nothing to learn: ridge regression of the best penalty is Bayes-optimal."""
    found, best = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        X = rng.standard_normal((220, 40))
        signal = X @ rng.standard_normal((40, v)) / 6
        Y = signal + rng.standard_normal((220, v))
        for encoder, into in ((PopulationPriorRidge(), found), (Ridge(36), best)):
            predicted = encoder.fit(X[:60], Y[:60]).predict(X[60:]).reshape(160, -1)
            into.extend(np.corrcoef(predicted[:, i], signal[60:, i])[0, 1] for i in range(v))
    assert np.mean(found) > np.mean(best) - 0.05, (np.mean(found), np.mean(best))


def test_scale_and_offset_of_units_and_features_do_not_matter():
    X, Y, _ = drawn(20, n=50, seed=10)
    a = PopulationPriorRidge().fit(X, Y)
    size, shift = np.logspace(-3, 3, 20), np.linspace(-50, 50, 20)
    b = PopulationPriorRidge().fit(X * np.logspace(-2, 2, 6) + 9.0, Y * size + shift)
    new = drawn(1, n=7, seed=11)[0]
    moved = new * np.logspace(-2, 2, 6) + 9.0
    np.testing.assert_allclose(b.predict(moved), a.predict(new) * size + shift, rtol=1e-7, atol=1e-7)


def test_units_known_in_other_rows_are_as_if_these_rows_were_all():
    X, Y, _ = drawn(6, n=40, seed=12)
    prior = PopulationPriorRidge().fit(X, Y)
    holed = Y.copy()
    holed[25:, :2], holed[:10, 2:3] = np.nan, np.nan
    found = prior.condition(X, holed)
    np.testing.assert_allclose(found.coef_[:, :2], prior.condition(X[:25], Y[:25, :2]).coef_, atol=1e-10)
    np.testing.assert_allclose(found.coef_[:, 2:3], prior.condition(X[10:], Y[10:, 2:3]).coef_, atol=1e-10)
    np.testing.assert_allclose(found.coef_[:, 3:], prior.condition(X, Y[:, 3:]).coef_, atol=1e-10)


def test_units_that_cannot_be_fitted_are_counted_once_and_change_nothing():
    X, Y, _ = drawn(6, n=40, seed=13)
    Y[:, 1], Y[2:, 3] = 5.0, np.nan
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = PopulationPriorRidge().fit(X, Y)
    told = [str(w.message) for w in caught]
    assert len(told) == 2
    assert "1 of 6 units have fewer than 3 responses" in told[0]
    assert "1 of 6 units are constant" in told[1]
    predicted = found.predict(X)
    assert np.isnan(predicted[:, 3]).all()
    np.testing.assert_array_equal(predicted[:, 1], 5.0)
    others = [0, 2, 4, 5]
    np.testing.assert_allclose(predicted[:, others], PopulationPriorRidge().fit(X, Y[:, others]).predict(X), rtol=1e-12)


@pytest.mark.filterwarnings("ignore:2 of 2 units are constant")
def test_constant_units_alone_are_predicted():
    X = drawn(1)[0]
    found = PopulationPriorRidge().fit(X, np.column_stack([np.ones(len(X)), np.full(len(X), 2.0)]))
    np.testing.assert_array_equal(found.predict(X[:2]), [[1, 2], [1, 2]])


def test_more_features_than_axes():
    rng = np.random.default_rng(14)
    basis = rng.standard_normal((5, 60))
    latent = rng.standard_normal((90, 5))
    X = latent @ basis
    Y = latent @ rng.standard_normal((5, 12)) + 0.5 * rng.standard_normal((90, 12))
    few = PopulationPriorRidge(max_dimension=5, standardise=False).fit(X[:40], Y[:40])
    assert few.axes_.shape == (60, 5)
    assert few.prior_covariance_.shape == (1, 5, 5)
    np.testing.assert_allclose(few.axes_.T @ few.axes_, np.eye(5), atol=1e-9)
    assert few.score(X[40:], Y[40:]) > 0.85
    # Five axes hold all of X: those of more rows than features span the same.
    tall = few_rows.leading_axes(np.vstack([X[:40] - X[:40].mean(0)] * 2), 5)
    np.testing.assert_allclose(tall @ tall.T, few.axes_ @ few.axes_.T, atol=1e-8)


def test_conditioning_leaves_the_fit_as_it_is():
    X, Y, _ = drawn(6, n=40, seed=15)
    prior = PopulationPriorRidge().fit(X, Y)
    before = pickle.dumps(prior)
    prior.condition(X[:4].astype(np.float32), Y[:4, 0])
    assert pickle.dumps(prior) == before
    vector = prior.condition(X[:4], Y[:4, 0])
    assert vector.predict(X).shape == (40,)
    np.testing.assert_allclose(vector.coef_, prior.condition(X[:4], Y[:4, :1]).coef_[:, 0])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"noise": "units"}, "noise='units' is unknown; did you mean 'unit'"),
        ({"components": 0}, "components=0: expected an int of at least 1"),
        ({"shrinkage": 0.0}, "shrinkage=0.0: expected a number above zero"),
        ({"max_dimension": 1.5}, "max_dimension=1.5: expected an int"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    X, Y, _ = drawn(3)
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        PopulationPriorRidge(**parameters).fit(X, Y)


def test_bad_input():
    X, Y, _ = drawn(3)
    with pytest.raises(ValueError, match="flatten the tokens first"):
        PopulationPriorRidge().fit(np.zeros((4, 2, 2)), Y[:4])
    with pytest.raises(ValueError, match="X has 5 rows and Y has 4"):
        PopulationPriorRidge().fit(X[:5], Y[:4])
    with pytest.raises(ValueError, match="no unit of Y .* has 3 responses that are not NaN"):
        PopulationPriorRidge().fit(X, np.full_like(Y, np.nan))
    prior = PopulationPriorRidge().fit(X, Y)
    with pytest.raises(ValueError, match=r"noise has shape \(2,\); expected one number, or shape \(3,\)"):
        prior.condition(X, Y, noise=[1.0, 2.0])
    with pytest.raises(ValueError, match="noise holds values that are not finite or not above zero"):
        prior.condition(X, Y, noise=0.0)
    with pytest.raises(ValueError, match="features"):
        prior.condition(X[:, :3], Y)


# The learning curve


class Told(BaseEstimator):
    """An encoder that counts what it is given."""

    def __init__(self):
        self.seen = []

    def condition(self, X, Y):
        self.seen.append(X[:, 0])
        self.mean = Y.mean(0)
        return self

    def predict(self, X):
        return np.column_stack([X[:, 0], -2 * X[:, 0], np.full(len(X), 1.0)])

    def fit(self, X, Y):
        raise AssertionError("it learned from a population before")

    def __sklearn_is_fitted__(self):
        return True


def test_a_learning_curve_is_scored_on_rows_that_no_context_holds():
    rng = np.random.default_rng(16)
    X = np.arange(50.0)[:, None]
    Y = np.column_stack([X[:, 0] + rng.standard_normal(50), X[:, 0], rng.standard_normal(50)])
    told = Told()
    with pytest.warns(UserWarning, match="1 of 3 sizes are more than the 40 rows"):
        table = learning_curve({"told": told, "ridge": Ridge()}, X, Y, sizes=(5, 20, 1000), repeats=3)
    assert list(table.columns) == ["encoder", "n", "repeat", "r", "explained"]
    assert len(table) == 2 * 2 * 3
    assert [len(seen) for seen in told.seen] == [5, 20] * 3
    for i in range(3):
        small, large = told.seen[2 * i], told.seen[2 * i + 1]
        np.testing.assert_array_equal(small, large[:5])  # contexts grow
    # By hand: r of the units that have one, and of all units the share of variance.
    own = table[table["encoder"] == "told"]
    test = np.array(table.attrs["test_rows"][0])
    assert not np.isin(test, told.seen[1]).any()
    x, y = X[test, 0], Y[test]
    predictions = [x, -2 * x, np.ones(10)]
    r = [np.corrcoef(p, y[:, i])[0, 1] for i, p in enumerate(predictions[:2])]
    explained = [1 - np.var(y[:, i] - p) / np.var(y[:, i]) for i, p in enumerate(predictions)]
    np.testing.assert_allclose(own["r"].iloc[0], np.mean(r))
    np.testing.assert_allclose(own["explained"].iloc[0], np.mean(explained))
    again = learning_curve({"ridge": Ridge()}, X, Y, sizes=(5, 20), repeats=3)
    np.testing.assert_array_equal(again["r"], table[table["encoder"] == "ridge"]["r"])


def test_bad_learning_curves():
    X, Y, _ = drawn(3, n=20)
    with pytest.raises(ValueError, match="sizes=.50, 60. are all more than the 16 rows"):
        learning_curve({"ridge": Ridge()}, X, Y, sizes=(50, 60))
    with pytest.raises(ValueError, match="encoders is empty"):
        learning_curve({}, X, Y)
    with pytest.raises(ValueError, match=r"test=1.5: expected a share between 0 and 1"):
        learning_curve({"ridge": Ridge()}, X, Y, test=1.5)
    with pytest.raises(ValueError, match="X has 20 rows and Y has 19"):
        learning_curve({"ridge": Ridge()}, X, Y[:19])
