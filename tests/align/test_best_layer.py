"""Best layers: chosen without the rows that score them, whatever the encoder."""

import warnings
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold

from neuralign import align
from neuralign.align.best_layer import best_layer
from neuralign.datasets import Recording
from neuralign.encoders import Features, RidgeCV

N, V = 60, 6
LAYERS = ("early", "middle", "late")
IDS = tuple(f"s{i:02d}" for i in range(N))


def made(noise=0.4, seed=0):
    """Units 0 and 1 follow the early layer, 2 and 3 the middle, 4 the late one and 5 none."""
    rng = np.random.default_rng(seed)
    arrays = {layer: rng.standard_normal((N, 5 + i)).astype(np.float32) for i, layer in enumerate(LAYERS)}
    made_of = ["early", "early", "middle", "middle", "late"]
    signal = [arrays[layer] @ rng.standard_normal(arrays[layer].shape[1]) / 2 for layer in made_of]
    Y = np.stack([*signal, np.zeros(N)], axis=1) + noise * rng.standard_normal((N, V))
    units = pd.DataFrame({"region": ["A", "A", "A", "B", "B", "B"]})
    return Features("net", IDS, arrays), Recording(Y.astype(np.float32), pd.DataFrame({"stimulus": IDS}), units)


def plain_loop(features, brain, encoder, folds, criterion):
    """Layer (fold, unit) with the best criterion in the training rows, and its R2 on the others."""
    Y = brain.read()
    layers, scores = np.empty((2, len(folds), V), dtype=object)
    for k, (train, test) in enumerate(folds):
        for v in range(V):
            tried = {}
            for layer in features.layers:
                X = features[layer]
                fit = clone(encoder).fit(X[train], Y[train][:, [v]])
                tried[layer] = criterion(fit, X[train], Y[train][:, v]), fit.predict(X[test]).ravel()
            layers[k, v] = max(tried, key=lambda layer: tried[layer][0])
            scores[k, v] = r2_score(Y[test, v], tried[layers[k, v]][1])
    return layers, scores.astype(float)


def inner_r2(fit, X, y):
    scores = []
    for train, test in KFold(5).split(X):
        scores.append(r2_score(y[test], clone(fit).fit(X[train], y[train]).predict(X[test])))
    return np.mean(scores)


@pytest.mark.parametrize(
    "encoder, criterion",
    [(Ridge(alpha=2.0), inner_r2), (RidgeCV(score="r2", standardise=True), lambda fit, X, y: fit.cv_score_[0])],
    ids=["inner folds", "cv_score_"],
)
@pytest.mark.filterwarnings("ignore")
def test_choice_and_score_equal_a_plain_loop(encoder, criterion):
    features, brain = made(noise=2.0)  # noisy enough that folds disagree
    rng = np.random.default_rng(3)
    folds = [(rng.permutation(train), test) for train, test in KFold(4, shuffle=True, random_state=0).split(IDS)]
    # The training rows come shuffled by `seed`: the loop takes them in the order that a fit was given.
    seen = []

    class Watch(type(encoder)):
        def fit(self, X, Y, **more):
            seen.append(X)
            return super().fit(X, Y, **more)

    watch = Watch(**encoder.get_params())
    table = best_layer(features, brain, watch, cv=folds, seed=5)
    first = {row.tobytes(): i for i, row in enumerate(features["early"])}
    shuffled = []
    for train, test in folds:
        order = next(
            rows
            for X in seen
            if X.shape[1] == features["early"].shape[1]
            and len(rows := [first[row.tobytes()] for row in X]) == len(train)
            and set(rows) == set(train)
        )
        shuffled.append((np.array(order), test))
    layers, scores = plain_loop(features, brain, encoder, shuffled, criterion)
    by_fold = table.attrs["evidence"].units
    got = by_fold.pivot(index="fold", columns="unit", values="layer").to_numpy()
    assert (got == layers).all() and len(np.unique(got)) == 3
    np.testing.assert_allclose(by_fold.pivot(index="fold", columns="unit", values="score"), scores, atol=2e-5)
    np.testing.assert_allclose(table["score"], scores.mean(0), atol=2e-5)
    for v in range(V):
        counts = [(layers[:, v] == layer).sum() for layer in LAYERS]
        assert table.loc[v, "layer"] == LAYERS[int(np.argmax(counts))]
        assert table.loc[v, "agreement"] == max(counts) / 4
    assert (table["agreement"] < 1).any()


def test_each_unit_finds_its_layer():
    features, brain = made()
    table = best_layer(features, brain)
    assert list(table["layer"][:5]) == ["early", "early", "middle", "middle", "late"]
    assert (table["agreement"][:5] == 1).all() and (table["score"][:5] > 0.3).all() and table["score"][5] < 0.1
    assert list(table["region"]) == ["A", "A", "A", "B", "B", "B"] and (table["n_folds"] == 5).all()
    # Where all folds agree, the score is that of the layer in align.score, on the same folds.
    units = align.score(features, brain, bootstrap=0, permutations=0).attrs["evidence"].units
    units = units[units["metric"] == "r2"].set_index(["layer", "unit"])["score"]
    for v in range(5):
        assert table.loc[v, "score"] == pytest.approx(units[table.loc[v, "layer"], v], abs=1e-5)


class Spy(LinearRegression):
    """Refuses to predict rows that it saw, and keeps all it saw."""

    fits: ClassVar[list] = []

    def fit(self, X, y):
        self.seen_ = {row.tobytes() for row in X}
        Spy.fits.append(self.seen_)
        return super().fit(X, y)

    def predict(self, X):
        assert not any(row.tobytes() in self.seen_ for row in X)
        return super().predict(X)


def test_the_choice_does_not_see_the_rows_that_score_it():
    features, brain = made(noise=2.0)
    test, train = np.arange(15), np.arange(15, N)
    Spy.fits.clear()
    before = best_layer(features, brain, Spy(), cv=[(train, test)])
    held_out = {features[layer][i].tobytes() for layer in LAYERS for i in test}
    assert len(Spy.fits) == 3 * (1 + 5) and not any(seen & held_out for seen in Spy.fits)
    changed = np.array(brain.responses)
    changed[test] = np.random.default_rng(0).standard_normal((15, V))
    after = best_layer(features, Recording(changed, brain.presentations, brain.units), Spy(), cv=[(train, test)])
    assert list(after["layer"]) == list(before["layer"])
    assert (after["score"] != before["score"]).all()


def test_groups_stay_together_outside_and_inside():
    features, brain = made()
    presentations = brain.presentations.assign(scene=np.arange(N) // 6)
    grouped = Recording(brain.responses, presentations, brain.units)
    Spy.fits.clear()
    best_layer(features, grouped, Spy(), groups="scene", cv=3)
    assert len(Spy.fits) == 3 * 3 * (1 + 5)
    for seen in Spy.fits:
        layer = next(layer for layer in LAYERS if any(row.tobytes() in seen for row in features[layer]))
        inside = np.array([row.tobytes() in seen for row in features[layer]])
        assert all(len(set(inside[presentations["scene"] == scene])) == 1 for scene in range(10))


def test_models_and_rows_are_kept_apart():
    features, brain = made()
    order = np.random.default_rng(1).permutation(N)
    shuffled = Features("again", tuple(IDS[i] for i in order), {k: features[k][order] for k in LAYERS})
    table = best_layer([features, shuffled], brain, Ridge(alpha=2.0))
    one, other = (table[table["model"] == name].reset_index(drop=True) for name in ("net", "again"))
    pd.testing.assert_frame_equal(one.drop(columns="model"), other.drop(columns="model"))
    again = best_layer(features, brain, Ridge(alpha=2.0))
    pd.testing.assert_frame_equal(one, again, check_like=True)
    assert best_layer(features, brain, Ridge(alpha=2.0), metric="r")["score"][0] > one["score"][0]


def test_units_without_a_choice():
    features, brain = made()
    responses = np.array(brain.responses)
    responses[:, 0] = 3
    responses[:20, 1] = np.nan  # another subject's stimuli
    responses[:, 2] = 1
    responses[np.arange(3), 2] = [2, 3, 4]  # constant on the training rows of the fold that tests these
    broken = Recording(responses, brain.presentations, brain.units)
    folds = [(np.setdiff1d(np.arange(N), np.arange(k, k + 15)), np.arange(k, k + 15)) for k in (0, 15, 30, 45)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = best_layer(features, broken, Ridge(alpha=2.0), cv=folds)
    assert [str(w.message) for w in caught] == ["1 of 6 units are constant or lack responses; their scores are NaN"]
    assert pd.isna(table.loc[0, "layer"]) and np.isnan(table.loc[0, ["agreement", "score"]].astype(float)).all()
    assert table.loc[1, "layer"] == "early" and table.loc[1, "n_folds"] == 3
    by_fold = table.attrs["evidence"].units.set_index(["unit", "fold"])
    assert pd.isna(by_fold.loc[(2, 0), "layer"])
    spread = responses[:15, 2] - responses[:15, 2].mean()
    assert by_fold.loc[(2, 0), "score"] == pytest.approx(1 - ((responses[:15, 2] - 1) ** 2).sum() / (spread**2).sum())
    assert table.loc[2, "n_folds"] == 1 and table.loc[2, "agreement"] == 0  # no other fold has anything to score


def test_what_is_refused():
    features, brain = made()
    with pytest.raises(ValueError, match="net has 1 layer; expected two or more"):
        best_layer(Features("net", IDS, {"early": features["early"]}), brain)
    with pytest.raises(ValueError, match="expected Features"):
        best_layer({"early": features["early"]}, brain)
    with pytest.raises(ValueError, match="metrics='mse' is unknown"):
        best_layer(features, brain, metric="mse")
    holed = {**features.arrays, "middle": np.where(np.arange(N)[:, None] == 3, np.nan, features["middle"])}
    with pytest.raises(ValueError, match="layer 'middle' of net is NaN or infinite for 1 of 60"):
        best_layer(Features("net", IDS, holed), brain)
