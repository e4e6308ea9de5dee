"""Layers as bands of one encoder: a plain loop, the whole against align.score, and parts that add up."""

import warnings
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neuralign import align
from neuralign.align.bands import is_part, score_bands
from neuralign.align.score import COLUMNS
from neuralign.datasets import Recording
from neuralign.encoders import BandedRidgeCV, Features

N, V = 60, 5
IDS = tuple(f"s{i:02d}" for i in range(N))
LAYERS = ("early", "late")


class FixedBands(RegressorMixin, BaseEstimator):
    """Ridge at one penalty, which knows its spaces, and notes what it was given."""

    given: ClassVar[list] = []

    def __init__(self, alpha=3.0, spaces=None):
        self.alpha = alpha
        self.spaces = spaces

    def fit(self, X, Y, groups=None):
        FixedBands.given.append((X, groups))
        self.ridge_ = Ridge(alpha=self.alpha).fit(X, Y)
        self.mean_ = X.mean(0)
        return self

    def predict(self, X):
        return self.ridge_.predict(X)

    def predict_by_band(self, X):
        ends = np.cumsum(self.spaces)
        coef = self.ridge_.coef_.reshape(-1, X.shape[1])
        return np.stack(
            [(X - self.mean_)[:, e - s : e] @ coef[:, e - s : e].T for s, e in zip(self.spaces, ends, strict=True)]
        )


def made(seed=0, repeats=2):
    """Units 0 and 1 follow the early layer, 2 and 3 both and 4 none; layers on very different scales."""
    rng = np.random.default_rng(seed)
    early = 100 + 50 * rng.standard_normal((N, 4))
    late = 0.01 * rng.standard_normal((N, 12))
    z = (early - 100) / 50, late / 0.01
    signal = [z[0] @ rng.standard_normal(4) / 2 for _ in range(4)] + [np.zeros(N)]
    signal = np.stack(signal, axis=1)
    signal[:, 2:4] += z[1] @ rng.standard_normal((12, 2)) / 3.5
    signal /= np.maximum(signal.std(0), 1e-9)
    responses = np.concatenate([signal + 0.7 * rng.standard_normal((N, V)) for _ in range(repeats)])
    presentations = pd.DataFrame({"stimulus": IDS * repeats})
    units = pd.DataFrame({"region": ["A", "A", "B", "B", "B"]})
    features = Features("net", IDS, {"early": early.reshape(N, 2, 2), "late": late})
    return features, Recording(responses, presentations, units, name="made")


def slow_parts(by_band, y, offset, metric):
    """Product measure of one unit in one fold, from covariances; the bias of r2 by the bands' own variances."""
    total = by_band.sum(0)
    covariances = np.array([np.mean((p - p.mean()) * (y - y.mean())) for p in by_band])
    if metric == "r":
        return covariances / (total.std() * y.std())
    with_total = np.array([np.mean((p - p.mean()) * (total - total.mean())) for p in by_band])
    bias = total.mean() + offset - y.mean()
    own = np.array([p.var() for p in by_band])
    return (2 * covariances - with_total - bias**2 * own / own.sum()) / y.var()


@pytest.mark.parametrize(
    "encoder",
    [FixedBands(), BandedRidgeCV(score="r2", n_iter=6, alphas=np.logspace(-1, 3, 5))],
    ids=["fixed", "search"],
)
def test_values_equal_a_plain_loop(encoder):
    features, brain = made()
    table = score_bands(features, brain, encoder, cv=4, seed=7, bootstrap=0, permutations=0)
    assert list(table.columns) == COLUMNS and len(table) == 3 * 2 * 2
    mean = brain.average_repeats()
    Y = mean.read()
    rng = np.random.default_rng(7).spawn(4)[0]
    folds = [(rng.permutation(train), test) for train, test in mean.folds(4, seed=rng)]
    whole, parts = {m: np.zeros((4, V)) for m in ("r", "r2")}, {m: np.zeros((4, 2, V)) for m in ("r", "r2")}
    for k, (train, test) in enumerate(folds):
        sides = []
        for layer in LAYERS:
            X = features[layer].reshape(N, -1)
            scaler = StandardScaler().fit(X[train])
            sides.append(scaler.transform(X) / np.sqrt(X.shape[1] / 8))  # 8 features a layer on average
        X = np.hstack(sides)
        fitted = encoder.__class__(**encoder.get_params()).set_params(spaces=[4, 12]).fit(X[train], Y[train])
        by_band, predicted = fitted.predict_by_band(X[test]), fitted.predict(X[test])
        for v in range(V):
            offset = (predicted[:, v] - by_band[:, :, v].sum(0)).mean()
            whole["r"][k, v] = np.corrcoef(predicted[:, v], Y[test, v])[0, 1]
            whole["r2"][k, v] = r2_score(Y[test, v], predicted[:, v])
            for metric, found in parts.items():
                found[k, :, v] = slow_parts(by_band[:, :, v], Y[test, v], offset, metric)
    found = table.set_index(["layer", "region", "metric"])["score"]
    units = table.attrs["evidence"].units.set_index(["layer", "metric"])["score"]
    for metric in ("r", "r2"):
        for layer, values in zip(["all", *LAYERS], [whole[metric].mean(0), *parts[metric].mean(0)], strict=True):
            np.testing.assert_allclose(units[layer, metric], values, atol=2e-6)
            for region, members in (("A", slice(0, 2)), ("B", slice(2, 5))):
                assert found[layer, region, metric] == pytest.approx(values[members].mean(), abs=2e-6)


def test_parts_add_up_also_where_penalties_leave_next_to_nothing():
    features, brain = made()
    for alpha in (1.0, 1e9):
        table = score_bands(features, brain, FixedBands(alpha), bootstrap=0, permutations=0)
        units = table.attrs["evidence"].units
        keys = ["unit", "metric"]
        whole = units[units["layer"] == "all"].set_index(keys)["score"]
        parts = units[units["layer"] != "all"].groupby(keys, sort=False)["score"].sum()
        np.testing.assert_allclose(parts[whole.index], whole, atol=1e-8)
        assert list(is_part(table)) == list(table["layer"] != "all")
    assert (whole.xs("r", level="metric") == 0).sum() >= 3  # predictions vary by a billionth of the responses


def test_one_layer_is_align_score():
    features, brain = made()
    single = Features("late only", IDS, {"late": features["late"]})
    options = {"cv": 3, "bootstrap": 100, "permutations": 50, "seed": 2}
    whole, part = score_bands(single, brain, FixedBands(2.0), **options).pipe(lambda t: (t[~is_part(t)], t[is_part(t)]))
    expected = align.score(single, brain, make_pipeline(StandardScaler(), Ridge(alpha=2.0)), **options)
    numbers = ["score", "ceiling", "normalised", "ci_low", "ci_high", "p", "n_units", "n_stimuli"]
    keys = ["region", "metric"]
    whole, part, expected = (t.set_index(keys).sort_index() for t in (whole, part, expected))
    pd.testing.assert_frame_equal(whole[numbers], expected[numbers], atol=1e-5, check_dtype=False)
    np.testing.assert_allclose(part["score"], whole["score"], atol=1e-8)
    assert part[["ceiling", "normalised", "ci_low", "ci_high", "p"]].isna().all(axis=None)
    assert whole["formula"].str.contains("FixedBands").all() and (whole["seed"] == 2).all()
    assert not is_part(expected.reset_index()).any()


def test_scales_come_from_training_rows_alone():
    features, brain = made()
    FixedBands.given.clear()
    labels = [f"run {i // 10}" for i in range(N)] * 2
    grouped = Recording(brain.read(), brain.presentations.assign(run=labels), brain.units)
    score_bands(features, grouped, FixedBands(), groups="run", bootstrap=0, permutations=0)
    assert len(FixedBands.given) == 5
    for X, groups in FixedBands.given:
        np.testing.assert_allclose(X.mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(X.var(0), np.repeat([2.0, 2 / 3], [4, 12]))  # 8 in all, in each layer
        assert len(groups) == len(X) and len(set(groups)) in (4, 5)


def test_wild_test_rows_change_no_fit():
    """Rows of the second half are only ever tested: whatever they hold, the fit is the same."""
    features, brain = made(repeats=1)
    wild = {
        layer: np.where(np.arange(N).reshape(-1, *[1] * (features[layer].ndim - 1)) < 40, features[layer], 1e3)
        for layer in LAYERS
    }
    fold = [(np.arange(40), np.arange(40, N))]
    fits = []
    for given in (features, Features("net", IDS, wild)):
        FixedBands.given.clear()
        score_bands(given, brain, FixedBands(), cv=fold, bootstrap=0, permutations=0)
        fits.append(FixedBands.given[0][0])
    np.testing.assert_array_equal(*fits)


def test_parts_find_the_layer_that_units_follow():
    features, brain = made()
    table = score_bands([features], brain, BandedRidgeCV(score="r2", n_iter=8), cv=3, bootstrap=50, permutations=50)
    units = table.attrs["evidence"].units
    r2 = units[units["metric"] == "r2"].pivot_table("score", "layer", "unit", sort=False)
    only_early, both, none = r2.columns[:2], r2.columns[2:4], r2.columns[4]
    assert (r2.loc["early", only_early] > 0.5).all() and (r2.loc["late", only_early].abs() < 0.1).all()
    assert (r2.loc[["early", "late"], both] > 0.1).all(axis=None)
    assert r2.loc["all", none] < 0.1
    whole = table[(table["layer"] == "all") & (table["metric"] == "r")].iloc[0]
    assert whole["ci_low"] < whole["score"] < whole["ceiling"] and whole["p"] < 0.05


def test_default_encoder_and_several_models():
    features, brain = made()
    few = brain.select(stimulus=list(IDS[:20]), unit=brain.units["unit"].iloc[:2].tolist())
    other = Features("other", IDS, {"late": features["late"]})
    quick = {"cv": 2, "bootstrap": 0, "permutations": 0, "metrics": "r2", "by": None}
    table = score_bands([features, other], few, **quick)
    names = ["net all", "net early", "net late", "other all", "other late"]
    assert table[["model", "layer"]].agg(" ".join, axis=1).tolist() == names
    assert table["score"].notna().all() and table["ceiling"].isna().tolist() == [False, True, True, False, True]
    assert table.attrs["evidence"].provenance["options"]["encoder"] == repr(BandedRidgeCV(score="r2"))


def test_results_travel_through_files(tmp_path):
    features, brain = made()
    table = score_bands(features, brain, FixedBands(), bootstrap=10, permutations=10)
    align.save_results(table, tmp_path / "bands.h5")
    pd.testing.assert_frame_equal(align.load_results(tmp_path / "bands.h5"), table)


def test_units_that_cannot_be_scored_are_counted_once():
    features, brain = made(repeats=1)
    responses = brain.read().copy()
    responses[:, 0], responses[:7, 3] = 1.0, np.nan
    responses[:, 4] = np.arange(N) == 11  # varies in one test fold at most, and is constant in its training rows
    holes = Recording(responses, brain.presentations, brain.units)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = score_bands(features, holes, FixedBands(), bootstrap=5, permutations=5)
    assert [str(one.message) for one in caught] == ["1 of 5 units are constant or lack responses; their scores are NaN"]
    units = table.attrs["evidence"].units.pivot_table("score", ["metric", "layer"], "unit", sort=False, dropna=False)
    assert units.iloc[:, 0].isna().all() and units.iloc[:, 1:].notna().all(axis=None)
    np.testing.assert_allclose(
        units.loc[("r2", "all")], units.drop("all", level=1).loc["r2"].sum(min_count=1), atol=1e-6
    )
    assert (units.loc["r"].iloc[:, 4] == 0).all()
    assert table[(table["region"] == "A") & (table["layer"] == "all")]["n_units"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": Ridge()}, "encoder is Ridge(); expected a regressor with a parameter spaces and a method"),
        ({"encoder": BandedRidgeCV}, "expected a regressor with a parameter spaces"),
        ({"metrics": "rho"}, "metrics='rho' is unknown"),
        ({"by": "area"}, "by='area' is unknown"),
        ({"bootstrap": -1}, "bootstrap=-1"),
        ({"ceiling": "split"}, "ceiling='split' is unknown"),
    ],
)
def test_what_cannot_be_done_is_refused(options, message):
    features, brain = made()
    with pytest.raises(ValueError) as error:
        score_bands(features, brain, **options)
    assert message in str(error.value)


def test_a_layer_cannot_be_called_all():
    features, brain = made()
    with pytest.raises(ValueError, match="net has a layer called 'all'"):
        score_bands(Features("net", IDS, {"all": features["late"]}), brain)
