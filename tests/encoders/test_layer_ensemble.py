import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuralign.encoders.linear.pls import PLSRegression
from neuralign.encoders.linear.ridge import RidgeCV
from neuralign.encoders.routing.ensemble import LayerEnsemble, softmax_weights
from neuralign.encoders.spatial.pooling_grid import PoolingGridReadout
from neuralign.encoders.spatial.ridge import RidgeReadout

ALPHAS = np.logspace(-1, 5, 7)
RIDGE = ("ridge", RidgeCV(ALPHAS))

# Grids are kept short here; the engine has tests of this warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*of the chosen alphas lie at an end of the grid")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings(
    "ignore:.* folds have fewer than 3 test rows",
    "ignore:.*test folds of two rows at most",
    "ignore:.*have no validation score in any member",
    "ignore:.*have no cross-validated score",
)
@parametrize_with_checks([LayerEnsemble([RIDGE, ("wide", RidgeCV(10.0 * ALPHAS, cv=3))])])
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


class Seeded(RegressorMixin, BaseEstimator):
    """Predicts what its seed and the mean of its features say; reads tokens, units and groups."""

    reads_tokens = True

    def __init__(self, seed=0, grid=None, r=(0.5, 0.5), seen=None):
        self.seed = seed
        self.grid = grid
        self.r = r
        self.seen = seen

    def fit(self, X, Y, groups=None, units=None):
        self.shape_, self.groups_, self.units_ = X.shape, groups, units
        self.validation_r_ = np.asarray(self.r, float) + 0.01 * self.seed
        return self

    def predict(self, X):
        assert X.shape[1:] == self.shape_[1:]
        return np.where(np.isnan(self.validation_r_), np.nan, 1.0 + self.seed) * np.ones((len(X), 1))


def simulate(n=120, v=5, seed=0):
    """Three layers, and units that follow the first, the last, or both."""
    rng = np.random.default_rng(seed)
    layers = {name: rng.standard_normal((n, p)) for name, p in (("early", 6), ("middle", 4), ("late", 8))}
    signals = [layers["early"] @ rng.standard_normal(6), layers["late"] @ rng.standard_normal(8)]
    Y = np.stack([signals[0], signals[1], signals[0] + signals[1], signals[0], signals[1]][:v], 1)
    return layers, 3 * (Y + 0.5 * rng.standard_normal(Y.shape)) + 10


# Weights


def test_weights_are_a_softmax_over_all_fits():
    layers, Y = simulate()
    encoder = LayerEnsemble([RIDGE, ("pls", PLSRegression(n_components=[1, 2]))], temperature=7.0).fit(layers, Y)
    r = np.stack([one.fit(X, Y).cv_score_ for X in layers.values() for one in (RidgeCV(ALPHAS), PLSRegression([1, 2]))])
    np.testing.assert_allclose(encoder.scores_, r, rtol=1e-12)
    np.testing.assert_allclose(encoder.weights_, np.exp(7 * r) / np.exp(7 * r).sum(0), rtol=1e-10)
    np.testing.assert_allclose(encoder.weights_.sum(0), 1, rtol=1e-14)
    assert encoder.members_["layer"].tolist() == ["early", "early", "middle", "middle", "late", "late"]
    assert encoder.members_["member"].tolist() == ["ridge", "pls"] * 3
    assert encoder.members_["seed"].isna().all()
    np.testing.assert_allclose(encoder.members_["score"], r.mean(1))


def test_units_take_the_layer_that_predicts_them_and_better_than_any():
    layers, Y = simulate(400)
    train, test = slice(0, 300), slice(300, 400)
    halves = [{name: X[rows] for name, X in layers.items()} for rows in (train, test)]
    encoder = LayerEnsemble([RIDGE]).fit(halves[0], Y[train])
    np.testing.assert_array_equal(encoder.weights_[:, [0, 1, 3, 4]].argmax(0), [0, 2, 0, 2])
    assert encoder.weights_[:, [0, 1, 3, 4]].max(0).min() > 0.99
    scores = encoder.unit_scores(halves[1], Y[test])
    for name in layers:
        single = RidgeCV(ALPHAS).fit(halves[0][name], Y[train]).predict(halves[1][name])
        r = [np.corrcoef(single[:, v], Y[test, v])[0, 1] for v in range(5)]
        assert (scores > np.array(r) - 0.02).all()
    assert scores[2] > 0.5  # both layers, each of which explains a half


def test_an_ensemble_of_one_is_its_member():
    layers, Y = simulate()
    for temperature in (0.0, 40.0, 1e5):
        encoder = LayerEnsemble([RIDGE], temperature=temperature).fit(layers["early"], Y)
        expected = RidgeCV(ALPHAS).fit(layers["early"], Y)
        np.testing.assert_array_equal(encoder.weights_, np.ones((1, 5)))
        np.testing.assert_array_equal(encoder.predict(layers["early"]), expected.predict(layers["early"]))


@pytest.mark.parametrize("n_seeds", [1, 3, 10])
def test_runs_do_not_inflate_the_scale(n_seeds):
    X, Y = np.zeros((20, 3)), np.zeros((20, 2))
    encoder = LayerEnsemble([("seeded", Seeded())], seeds=range(n_seeds), temperature=0.0).fit(X, Y)
    np.testing.assert_allclose(encoder.predict(X), 1 + np.arange(n_seeds).mean())
    assert encoder.members_["seed"].tolist() == list(range(n_seeds))
    assert len({id(one) for one in encoder.estimators_}) == n_seeds
    again = LayerEnsemble([("seeded", Seeded()), RIDGE], seeds=range(n_seeds))
    layers, Y = simulate(v=2)
    assert again.fit(layers["late"], Y).members_["member"].tolist() == ["seeded"] * n_seeds + ["ridge"]


def test_members_without_a_score_weigh_nothing_and_their_nan_does_not_spread():
    X, Y = np.zeros((20, 3)), np.zeros((20, 3))
    members = [
        ("a", Seeded(r=(0.5, np.nan, np.nan))),
        ("b", Seeded(r=(np.nan, 0.2, np.nan))),
        ("c", Seeded(r=3 * [0.3])),
    ]
    members[2][1].r = (0.3, np.nan, np.nan)
    encoder = LayerEnsemble(members, temperature=2.0)
    with pytest.warns(UserWarning, match="1 of 3 units have no validation score in any member") as caught:
        encoder.fit(X, Y)
    assert len(caught) == 1
    a, c = np.exp(1.0), np.exp(0.6)
    np.testing.assert_allclose(encoder.weights_[:, 0], [a / (a + c), 0, c / (a + c)])
    np.testing.assert_array_equal(encoder.weights_[:, 1:], [[0, 1 / 3], [1, 1 / 3], [0, 1 / 3]])
    predicted = encoder.predict(X)
    np.testing.assert_allclose(predicted[:, :2], 1.0)
    assert np.isnan(predicted[:, 2]).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0, 40.0, 1e6])
def test_softmax_at_all_temperatures(temperature):
    scores = np.array([[-0.9, 0.2, np.nan], [0.9, 0.2, np.nan], [np.nan, 0.1, np.nan]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights = softmax_weights(scores, temperature)
    np.testing.assert_allclose(weights.sum(0), 1)
    np.testing.assert_allclose(weights[:, 2], 1 / 3)
    assert weights[2, 0] == 0
    assert weights[0, 1] == weights[1, 1] >= weights[2, 1]
    np.testing.assert_allclose(weights[:2, 0], [0.5, 0.5] if temperature == 0 else [weights[0, 0], 1 - weights[0, 0]])
    assert weights[0, 0] == pytest.approx(1 / (1 + np.exp(min(1.8 * temperature, 700))))


def test_nan_units_and_constants_of_real_members():
    layers, Y = simulate()
    whole = LayerEnsemble([RIDGE]).fit(layers, Y)
    Y[0, 1], Y[:, 3] = np.nan, 4.0
    with pytest.warns(UserWarning) as caught:
        encoder = LayerEnsemble([RIDGE]).fit(layers, Y)
    messages = sorted(str(w.message) for w in caught)
    assert len(messages) == 3  # one of each kind, whatever the number of members
    assert messages[0].startswith("2 of 5 units have no validation score in any member")
    assert messages[1].startswith("3 of 3 fits of members: 1 of 5 units ")
    predicted = encoder.predict(layers)
    assert np.isnan(predicted[:, 1]).all()
    np.testing.assert_allclose(predicted[:, 3], 4.0)
    np.testing.assert_allclose(predicted[:, [0, 2, 4]], whole.predict(layers)[:, [0, 2, 4]], rtol=1e-10)
    assert np.isfinite(encoder.score(layers, Y))


# Layers, spaces and tokens


def test_one_matrix_of_all_layers():
    layers, Y = simulate()
    X = np.hstack(list(layers.values()))
    by_name = LayerEnsemble([RIDGE]).fit(layers, Y)
    shuffled = np.random.default_rng(3).permutation(18)
    back = np.argsort(shuffled)
    for spaces, matrix in (
        ([6, 4, 8], X),
        ({"early": 6, "middle": 4, "late": 8}, X),
        ([slice(0, 6), np.arange(6, 10), slice(10, 18)], X),
        ([back[:6], back[6:10], back[10:]], X[:, shuffled]),
    ):
        encoder = LayerEnsemble([RIDGE], spaces=spaces).fit(matrix, Y)
        np.testing.assert_allclose(encoder.weights_, by_name.weights_, rtol=1e-9)
        np.testing.assert_allclose(encoder.predict(matrix), by_name.predict(layers), rtol=1e-9)
        assert encoder.layers_ == (("early", "middle", "late") if isinstance(spaces, dict) else ("0", "1", "2"))
    reordered = {name: layers[name] for name in ("late", "early", "middle")}
    np.testing.assert_array_equal(by_name.predict(reordered), by_name.predict(layers))


@pytest.mark.parametrize("flat", [False, True])
def test_tokens_with_a_grid_for_each_layer(flat):
    rng = np.random.default_rng(0)
    tokens = {"low": rng.standard_normal((100, 16, 3)), "high": rng.standard_normal((100, 4, 5))}
    grids = {"low": (4, 4), "high": (2, 2)}
    Y = np.stack([tokens["low"][:, 5] @ rng.standard_normal(3), tokens["high"].mean(1) @ rng.standard_normal(5)], 1)
    Y += 0.2 * rng.standard_normal(Y.shape)
    grid_readout = PoolingGridReadout(sizes=(0.1, 0.4), alphas=ALPHAS)
    members = [("fields", grid_readout), ("pooled", RidgeReadout("pooled", alphas=ALPHAS)), RIDGE]
    if flat:
        X = np.hstack([one.reshape(100, -1) for one in tokens.values()])
        encoder = LayerEnsemble(members, spaces={"low": 48, "high": 20}, grids=grids).fit(X, Y)
    else:
        X = tokens
        encoder = LayerEnsemble(members, grids=list(grids.values())).fit(X, Y)
    singles = [
        clone(one).set_params(**({"grid": grids[layer]} if name != "ridge" else {})).fit(features, Y)
        for layer, features in tokens.items()
        for name, one in members
        for features in ([features.reshape(100, -1)] if name == "ridge" else [features])
    ]
    r = np.stack([one.cv_score_ for one in singles])
    np.testing.assert_allclose(encoder.scores_, r, atol=1e-9)
    predictions = [
        one.predict(
            tokens["low" if k < 3 else "high"].reshape(100, -1) if k % 3 == 2 else tokens["low" if k < 3 else "high"]
        )
        for k, one in enumerate(singles)
    ]
    weights = np.exp(40 * (r - r.max(0)))
    weights /= weights.sum(0)
    np.testing.assert_allclose(encoder.predict(X), np.einsum("mv,mnv->nv", weights, predictions), rtol=1e-7, atol=1e-7)
    assert [one.get_params().get("grid") for one in encoder.estimators_[:2]] == [(4, 4), (4, 4)]
    assert grid_readout.grid is None  # the caller's own are not touched


def test_groups_and_units_reach_members_that_take_them():
    layers, Y = simulate(v=2)
    groups, units = np.repeat(np.arange(10), 12), pd.DataFrame({"region": ["a", "b"]})
    encoder = LayerEnsemble([("seeded", Seeded()), RIDGE]).fit(layers["early"], Y, groups=groups, units=units)
    assert encoder.estimators_[0].units_ is units
    np.testing.assert_array_equal(encoder.estimators_[0].groups_, groups)
    expected = RidgeCV(ALPHAS).fit(layers["early"], Y, groups=groups)
    np.testing.assert_array_equal(encoder.estimators_[1].cv_score_, expected.cv_score_)


def test_pipelines_and_the_other_criterion():
    layers, Y = simulate()
    piped = make_pipeline(StandardScaler(), RidgeCV(ALPHAS, score="r2"))
    encoder = LayerEnsemble([("piped", piped)], criterion="r2").fit(layers, Y)
    r2 = np.stack([clone(piped).fit(X, Y)[-1].cv_score_ for X in layers.values()])
    np.testing.assert_allclose(encoder.scores_, r2)


def test_clone_pickle_and_vector():
    layers, Y = simulate()
    encoder = LayerEnsemble([RIDGE], seeds=(1, 2)).fit(layers, Y)
    again = clone(encoder).fit(layers, Y)
    np.testing.assert_array_equal(again.predict(layers), encoder.predict(layers))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(encoder)).predict(layers), encoder.predict(layers))
    one = {name: X[:1] for name, X in layers.items()}
    np.testing.assert_allclose(encoder.predict(one), encoder.predict(layers)[:1], rtol=1e-12)
    single = LayerEnsemble([RIDGE]).fit(layers, Y[:, 0])
    assert single.predict(layers).shape == (120,)
    assert single.weights_.shape == (3,)
    np.testing.assert_allclose(single.predict(layers), encoder.predict(layers)[:, 0], rtol=1e-10)
    single32 = LayerEnsemble([RIDGE]).fit({k: X.astype(np.float32) for k, X in layers.items()}, Y)
    assert single32.predict({k: X.astype(np.float32) for k, X in layers.items()}).dtype == np.float32


# What is refused


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"members": []}, "members=.*at least one"),
        ({"members": [RidgeCV()]}, "expected pairs"),
        ({"members": [RIDGE, RIDGE]}, "expected a different one for each"),
        ({"seeds": ()}, "seeds=.*at least one"),
        ({"seeds": (1, 1)}, "seeds=.*each once"),
        ({"seeds": 3}, "seeds=3"),
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": np.inf}, "temperature=inf"),
        ({"criterion": "mse"}, "criterion.*'mse'"),
        ({"spaces": [6, 4, 8]}, "X is a dict of layers, and spaces were given"),
        ({"grids": [(2, 3)]}, "grids holds 1 entries for 3 layers"),
        ({"grids": {"laet": (2, 3)}}, "layer of grids.*'laet'.*late"),
        ({"criterion": "r2"}, "member 'ridge' .RidgeCV. has no validation score 'r2'"),
        ({"members": [("plain", LinearRegression())]}, "member 'plain' .LinearRegression. has no validation score 'r'"),
        (
            {"members": [("fields", PoolingGridReadout())], "grids": {"late": (3, 3)}},
            "member 'fields' on layer 'late': X has 8 columns",
        ),
    ],
)
def test_parameters_that_do_not_fit(parameters, message):
    layers, Y = simulate()
    with pytest.raises(ValueError, match=message):
        LayerEnsemble(**{"members": [RIDGE]} | parameters).fit(layers, Y)


def test_layers_that_do_not_fit():
    layers, Y = simulate()
    with pytest.raises(ValueError, match="different numbers of stimuli"):
        LayerEnsemble([RIDGE]).fit(layers | {"late": layers["late"][:50]}, Y)
    with pytest.raises(ValueError, match="X holds the layers .*expected at least one"):
        LayerEnsemble([RIDGE]).fit({}, Y)
    X = np.hstack(list(layers.values()))
    with pytest.raises(ValueError, match="spaces cover 10 of the 18 columns"):
        LayerEnsemble([RIDGE], spaces=[6, 4]).fit(X, Y)
    by_name = LayerEnsemble([RIDGE]).fit(layers, Y)
    with pytest.raises(ValueError, match="expected .'late'. too"):
        by_name.predict({name: layers[name] for name in ("early", "middle")})
    with pytest.raises(ValueError, match="the fit had the layers .'early', 'middle', 'late'."):
        by_name.predict(X)
    with pytest.raises(ValueError, match="X holds layers; the fit had a matrix of 18 columns"):
        LayerEnsemble([RIDGE], spaces=[6, 4, 8]).fit(X, Y).predict(layers)
    again = LayerEnsemble([RIDGE], spaces=[6, 4, 8]).fit(X, Y).set_params(spaces=None).fit(layers, Y)
    np.testing.assert_array_equal(again.predict(layers), by_name.predict(layers))
    assert not hasattr(again, "n_features_in_")
