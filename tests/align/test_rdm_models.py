import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar, nnls
from scipy.spatial.distance import squareform
from sklearn.linear_model import Ridge

from neuralign.align.compare import compare
from neuralign.align.rdm_models import FixedRDM, InterpolatedRDM, SelectedRDM, WeightedRDM
from neuralign.datasets.rdms import RDMs

N = 12
PAIRS = N * (N - 1) // 2
PRODUCTS = ["cosine", "pearson", "cosine-whitened", "pearson-whitened"]


@pytest.fixture
def data():
    """Four components and three brains made of the first two."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 2, (4, PAIRS))
    return x, x[0] + 0.5 * x[1] + 0.5 * rng.uniform(0, 1, (3, PAIRS))


def root(method, n=N):
    """Square: inner products after it are those of the comparison."""
    first, second = np.triu_indices(n, 1)
    contrasts = np.zeros((len(first), n))
    contrasts[np.arange(len(first)), first], contrasts[np.arange(len(first)), second] = 1, -1
    whole = np.eye(len(first))
    centre = whole - 1 / len(first) if method.startswith("pearson") else whole
    inverse = np.linalg.inv((contrasts @ contrasts.T) ** 2) if method.endswith("whitened") else whole
    return np.linalg.cholesky(inverse).T @ centre


def unit(rows, method):
    rows = rows @ root(method).T
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("method", PRODUCTS)
def test_non_negative_least_squares(data, method):
    x, y = data
    x = np.concatenate([x, -x[:1]])
    found = WeightedRDM(x).fit(y, method=method)
    target = unit(y, method).sum(0)
    expected = nnls(unit(x, method).T, target / np.linalg.norm(target))[0]
    scale = np.linalg.norm(x @ root(method).T, axis=1)
    np.testing.assert_allclose(found.weights, expected / scale, rtol=1e-8, atol=1e-12)
    assert found.weights[-1] == 0
    np.testing.assert_allclose(found.predict(), found.weights @ x)
    # No other non-negative sum is more similar on average.
    tried = np.random.default_rng(1).exponential(size=(300, 5)) * (found.weights + 0.02)
    assert compare(tried @ x, y, method).mean(1).max() <= compare(found.predict(), y, method).mean() + 1e-12


@pytest.mark.parametrize("penalty", [0.0, 0.3, 10.0])
@pytest.mark.parametrize("method", PRODUCTS)
def test_ridge(data, method, penalty):
    x, y = data
    found = WeightedRDM(x, penalty, non_negative=False).fit(y, method=method)
    target = unit(y, method).sum(0)
    target /= np.linalg.norm(target)
    expected = Ridge(penalty, fit_intercept=False, solver="svd").fit(unit(x, method).T, target).coef_
    np.testing.assert_allclose(found.weights * np.linalg.norm(x @ root(method).T, axis=1), expected, rtol=1e-8)


@pytest.mark.parametrize("method", ["rho-a", "spearman", "tau-a", "tau-b", "bures"])
def test_other_comparisons_are_fitted_by_pearson(data, method):
    x, y = data
    for model in (WeightedRDM(x), InterpolatedRDM(x)):
        np.testing.assert_array_equal(model.fit(y, method=method).weights, model.fit(y, method="pearson").weights)


@pytest.mark.parametrize("method", PRODUCTS)
def test_weights_are_repetitions(data, method):
    """A fit to resampled stimuli, against the same RDMs written out with the pairs of copies unknown."""
    x, y = data
    sampled = np.random.default_rng(3).integers(N, size=N)
    first, second = np.triu_indices(N, 1)
    apart = sampled[first] != sampled[second]

    def written(rows):
        out = np.stack([squareform(row)[sampled][:, sampled][first, second] for row in rows])
        out[:, ~apart] = np.nan
        return out

    w = np.bincount(sampled, minlength=N)
    for model in (WeightedRDM, InterpolatedRDM, SelectedRDM):
        found = model(x).fit(y, w, method).weights
        np.testing.assert_allclose(found, model(written(x)).fit(written(y), None, method).weights, rtol=1e-9)


def test_a_covariance_of_the_patterns(data):
    """A matrix, against variances alone where it is diagonal, and against no other sum being better."""
    x, y = data
    rng = np.random.default_rng(0)
    variances = rng.uniform(0.5, 2, N)
    mixed = rng.normal(size=(N, N))
    for method in ("cosine-whitened", "pearson-whitened"):
        for model in (WeightedRDM(x), InterpolatedRDM(x)):
            expected = model.fit(y, None, method, variances).weights
            np.testing.assert_allclose(model.fit(y, None, method, np.diag(variances)).weights, expected, rtol=1e-8)
        covariance = mixed @ mixed.T + N * np.eye(N)
        found = WeightedRDM(x).fit(y, None, method, covariance)
        tried = rng.exponential(size=(300, 4)) * (found.weights + 0.02)
        best = compare(found.predict(), y, method, covariance=covariance).mean()
        assert compare(tried @ x, y, method, covariance=covariance).mean(1).max() <= best + 1e-12


@pytest.mark.parametrize("method", PRODUCTS)
def test_interpolation_is_the_best_of_a_dense_search(data, method):
    x, y = data
    found = InterpolatedRDM(x).fit(y, method=method)
    assert (found.weights >= 0).all() and found.weights.sum() == pytest.approx(1)
    places = np.flatnonzero(found.weights)
    assert len(places) == 1 or np.diff(places).item() == 1

    def score(share, k):
        return compare((1 - share) * x[k] + share * x[k + 1], y, method).mean()

    best = max(
        -minimize_scalar(lambda a, k=k: -score(a, k), bounds=(0, 1), method="bounded", options={"xatol": 1e-9}).fun
        for k in range(3)
    )
    assert compare(found.predict(), y, method).mean() == pytest.approx(best, abs=1e-9)
    ends = InterpolatedRDM(x[[2, 0]]).fit(x[:1], method=method)
    np.testing.assert_array_equal(ends.weights, [0, 1])


def test_selection(data):
    x, y = data
    for method in ("pearson", "rho-a", "tau-a", "bures"):
        found = SelectedRDM(x).fit(y, method=method)
        assert found.weights.argmax() == np.nanargmax(compare(x, y, method).mean(1)) and found.weights.sum() == 1


def test_unknown_pairs_and_constant_components(data):
    """They take no part: pairs unknown anywhere, and components that do not vary."""
    x, y = data
    flat = np.concatenate([x, np.ones((1, PAIRS))])
    for model in (WeightedRDM, InterpolatedRDM, SelectedRDM):
        expected = model(x).fit(y, method="pearson").weights
        np.testing.assert_allclose(model(flat).fit(y, method="pearson").weights, [*expected, 0], rtol=1e-9)
    gaps, kept = y.copy(), np.setdiff1d(np.arange(PAIRS), [3, 40])
    gaps[0, 3] = gaps[2, 40] = np.nan
    found = WeightedRDM(x).fit(gaps, method="pearson").weights
    target = sum((row - row.mean()) / np.linalg.norm(row - row.mean()) for row in y[:, kept])
    centred = x[:, kept] - x[:, kept].mean(1, keepdims=True)
    np.testing.assert_allclose(found / found.sum(), _direction(centred, target), rtol=1e-8)
    unknown = x.copy()
    unknown[3, 5] = np.nan  # a component without weight may miss a pair that the prediction has
    selected = SelectedRDM(unknown).fit(x[:1], method="pearson")
    assert selected.weights[0] == 1 and np.isfinite(selected.predict()).all()
    assert np.isnan(WeightedRDM(np.ones((2, PAIRS))).fit(y, method="pearson").weights).all()


def _direction(x, target):
    found = nnls(x.T, target)[0]
    return found / found.sum()


def test_where_nothing_correlates_positively_the_best_component_stands_alone(data):
    x, _ = data
    found = WeightedRDM(-x[:2]).fit(x[:1] + 2 * x[1:2], method="pearson")
    assert found.weights[0] > 0 and found.weights[1] == 0


def test_fit_is_pure_and_predicts_by_id(data):
    x, y = data
    ids = [f"s{k}" for k in range(N)]
    model, brain = WeightedRDM(RDMs(x, ids), name="mix"), RDMs(y, ids)
    before = x.copy()
    fitted = model.fit(brain.reorder(ids[::-1]), method="pearson")
    np.testing.assert_array_equal(x, before)
    assert model.weights is None and fitted.name == "mix" and "not fitted" in repr(model)
    np.testing.assert_allclose(fitted.weights, WeightedRDM(x).fit(y, method="pearson").weights, rtol=1e-9)
    np.testing.assert_allclose(
        fitted.predict(ids[::-1]), RDMs(fitted.predict(), ids).reorder(ids[::-1]).vectors[0], rtol=1e-12
    )
    np.testing.assert_allclose(FixedRDM(RDMs(x[:1], ids)).predict(ids[:5]), RDMs(x, ids).reorder(ids[:5]).vectors[0])


def test_a_fixed_model_goes_by_the_table_of_its_rdm(data):
    x, _ = data
    ids = [f"s{k}" for k in range(N)]
    layers = pd.DataFrame({"model": ["pixels", "net", "", ""], "layer": ["pixels", "conv1", "", ""]})
    rdms = RDMs(x, ids, layers)
    assert [FixedRDM(rdms[k]).name for k in range(3)] == ["pixels", "net conv1", "FixedRDM"]
    assert FixedRDM(RDMs(x[:1], ids, pd.DataFrame({"label": ["mine"]}))).name == "mine"
    assert FixedRDM(rdms[0], "given").name == "given"
    assert FixedRDM(RDMs(x[:1], ids)).name == FixedRDM(x[:1]).name == "FixedRDM"
    assert WeightedRDM(rdms).name == "WeightedRDM"


def test_bad_input(data):
    x, y = data
    with pytest.raises(ValueError, match="model 'WeightedRDM' is not fitted"):
        WeightedRDM(x).predict()
    with pytest.raises(ValueError, match="rdm holds 4 RDMs; a fixed model is one"):
        FixedRDM(x)
    with pytest.raises(ValueError, match="rdms holds 1 RDMs; InterpolatedRDM needs at least 2"):
        InterpolatedRDM(x[:1])
    with pytest.raises(ValueError, match="penalty=-1"):
        WeightedRDM(x, penalty=-1)
    with pytest.raises(ValueError, match="brain has 10 pairs and model 'WeightedRDM' 66"):
        WeightedRDM(x).fit(y[:, :10])
    with pytest.raises(ValueError, match=r"stimulus_weights has shape \(3,\); expected \(12,\)"):
        WeightedRDM(x).fit(y, np.ones(3))
    with pytest.raises(ValueError, match="method='pearsn' is unknown; did you mean 'pearson'"):
        WeightedRDM(x).fit(y, method="pearsn")
    with pytest.raises(ValueError, match="over 12 stimuli, the brain over 3; make it of RDMs"):
        WeightedRDM(x).on(["a", "b", "c"])
    with pytest.raises(ValueError, match="1 of 2 stimulus ids are not in"):
        FixedRDM(RDMs(x[:1], [f"s{k}" for k in range(N)])).on(["s1", "t1"])
