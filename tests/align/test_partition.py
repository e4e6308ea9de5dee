"""Variance partitioning: inclusion and exclusion against Venn's regions, fits and intervals against plain loops."""

import warnings
from itertools import combinations
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score

from neuralign import align
from neuralign.align.partition import COLUMNS, exclusive_parts, variance_partition
from neuralign.datasets import Recording
from neuralign.encoders import Features

N, V = 72, 5
IDS = tuple(f"s{i:02d}" for i in range(N))


def made(seed=0, names=("a", "b", "c")):
    """Spaces with one column in common, and units that follow some of them."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((N, 1))
    spaces = {name: np.hstack([common, rng.standard_normal((N, 2 + i))]) for i, name in enumerate(names)}
    Y = sum(X @ rng.standard_normal((X.shape[1], V)) * rng.uniform(0, 1, V) for X in spaces.values())
    Y = Y + rng.standard_normal((N, V))
    units = pd.DataFrame({"region": ["A", "A", "A", "B", "B"]})
    return spaces, Recording(Y, pd.DataFrame({"stimulus": IDS}), units, name="made")


def by_kind(table):
    return table.set_index(["kind", "component", "region"])


@pytest.mark.parametrize("m", [2, 3, 4])
def test_parts_are_the_regions_of_venns_diagram(m):
    """Regions of any size are found again from the sizes of the unions, by a linear system over membership."""
    names = "abcd"[:m]
    subsets = [subset for size in range(1, m + 1) for subset in combinations(names, size)]
    union_of = np.array([[bool(set(part) & set(subset)) for part in subsets] for subset in subsets], float)
    np.testing.assert_allclose(exclusive_parts(subsets), np.linalg.inv(union_of), atol=1e-12)


def test_formulas_of_two_and_three_spaces():
    two = [("a",), ("b",), ("a", "b")]
    a, b, ab = 0.3, 0.4, 0.5
    np.testing.assert_allclose(exclusive_parts(two) @ [a, b, ab], [ab - b, ab - a, a + b - ab], atol=1e-12)
    three = [("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]
    # Written out, as in de Heer et al. 2017.
    a, b, c, ab, ac, bc, abc = r2 = [0.3, 0.25, 0.1, 0.4, 0.35, 0.3, 0.45]
    expected = [abc - bc, abc - ac, abc - ab, ac + bc - c - abc, ab + bc - b - abc, ab + ac - a - abc]
    expected.append(abc + a + b + c - ab - ac - bc)
    np.testing.assert_allclose(exclusive_parts(three) @ r2, expected, atol=1e-12)


@pytest.mark.parametrize("names", ["ab", "abcd"])
def test_values_equal_a_plain_loop(names):
    spaces, brain = made(names=names)
    table = variance_partition(spaces, brain, Ridge(alpha=3.0), cv=4, seed=7, bootstrap=0)
    assert list(table.columns) == COLUMNS and len(table) == 2 * 2 * (2 ** len(names) - 1)
    Y = brain.read()
    r2 = {(): np.zeros(V)}
    folds = brain.folds(4, seed=np.random.default_rng(7).spawn(4)[0])
    for size in range(1, len(names) + 1):
        for subset in combinations(names, size):
            X = np.hstack([spaces[name] for name in subset])
            scores = [
                r2_score(Y[test], Ridge(alpha=3.0).fit(X[train], Y[train]).predict(X[test]), multioutput="raw_values")
                for train, test in folds
            ]
            r2[subset] = np.mean(scores, 0)
    everything = tuple(names)
    rows, regions = by_kind(table), {"A": slice(0, 3), "B": slice(3, 5)}
    units = table.attrs["evidence"].units
    for region, members in regions.items():
        for subset, values in r2.items():
            if subset:
                kind = "total" if subset == everything else "subset"
                found = rows.loc[kind, " + ".join(subset), region]
                assert found["value"] == pytest.approx(values[members].mean(), abs=1e-5)
                assert found["n_units"] == members.stop - members.start and found["n_stimuli"] == N
        for name in names:
            others = tuple(one for one in names if one != name)
            unique = r2[everything] - r2[others]
            assert rows.loc["unique", name, region]["value"] == pytest.approx(unique[members].mean(), abs=1e-5)
            per_unit = units[(units["kind"] == "unique") & (units["component"] == name)]["value"]
            np.testing.assert_allclose(per_unit, unique, atol=1e-5)
        if names == "ab":
            shared = r2["a",] + r2["b",] - r2["a", "b"]
            assert rows.loc["shared", "a & b", region]["value"] == pytest.approx(shared[members].mean(), abs=1e-5)
        exclusive = table[table["kind"].isin(["unique", "shared"]) & (table["region"] == region)]
        assert exclusive["value"].sum() == pytest.approx(r2[everything][members].mean(), abs=1e-5)
        touching = exclusive[exclusive["component"].str.contains("b")]["value"].sum()
        assert touching == pytest.approx(r2["b",][members].mean(), abs=1e-5)
    assert (table["value"] < 0).any() or names == "ab"  # below zero and kept


def test_total_is_the_score_of_the_same_spaces():
    spaces, brain = made()
    table = variance_partition(spaces, brain, seed=3, bootstrap=200)
    joined = Features("joined", IDS, {"all": np.hstack(list(spaces.values()))})
    score = align.score(joined, brain, seed=3, bootstrap=0, permutations=0, metrics="r2")
    total = table[table["kind"] == "total"]
    np.testing.assert_allclose(total["value"], score["score"], atol=1e-6)
    assert list(total["component"]) == ["a + b + c"] * 2
    assert (table["ci_low"] <= table["value"] + 0.1).all() and (table["ci_low"] < table["ci_high"]).all()


def test_intervals_equal_explicit_resampling():
    spaces, brain = made(names="ab")
    table = by_kind(variance_partition(spaces, brain, Ridge(alpha=3.0), cv=3, seed=2, bootstrap=60))
    Y = brain.read()
    for_folds, _, for_draws, _ = np.random.default_rng(2).spawn(4)
    folds = brain.folds(3, seed=for_folds)
    draws = for_draws.multinomial(N, np.full(N, 1 / N), size=60)

    def region_r2(subset, counts):
        X = np.hstack([spaces[name] for name in subset])
        scores = []
        for train, test in folds:
            predicted = Ridge(alpha=3.0).fit(X[train], Y[train]).predict(X[test])
            rows = np.repeat(np.arange(len(test)), counts[test])
            scores.append(r2_score(Y[test][rows, :3], predicted[rows, :3], multioutput="raw_values"))
        return np.mean(scores)

    once = np.ones(N, int)
    resampled = np.array([[region_r2(subset, counts) for subset in ("a", "b", "ab")] for counts in draws])
    a, b, ab = (region_r2(subset, once) for subset in ("a", "b", "ab"))
    parts = {
        ("unique", "a"): (ab - b, resampled[:, 2] - resampled[:, 1]),
        ("shared", "a & b"): (a + b - ab, resampled @ [1, 1, -1]),
    }
    for (kind, component), (value, samples) in parts.items():
        low, high = np.quantile(samples, [0.025, 0.975])
        row = table.loc[kind, component, "A"]
        assert [row["ci_low"], row["ci_high"]] == pytest.approx([2 * value - high, 2 * value - low], abs=2e-5)
    low, high = np.quantile(np.log(1 - resampled[:, 2]), [0.025, 0.975])
    row = table.loc["total", "a + b", "A"]
    bounds = [1 - (1 - ab) ** 2 / np.exp(low), 1 - (1 - ab) ** 2 / np.exp(high)]  # mirrored as logarithms of 1 - R2
    assert [row["ci_low"], row["ci_high"]] == pytest.approx(bounds, abs=2e-5)


def test_arrays_features_layers_and_an_array_of_responses_give_the_same():
    spaces, brain = made()
    quick = {"encoder": Ridge(), "bootstrap": 20, "seed": 1}
    arrays = variance_partition(spaces, brain, **quick)
    order = np.random.default_rng(0).permutation(N)
    ids = tuple(IDS[i] for i in order)
    given = {
        "a": Features("one", ids, {"only": spaces["a"][order]}),
        "b": (Features("other", ids, {"x": spaces["a"][order], "y": spaces["b"][order]}), "y"),
        "c": spaces["c"].reshape(N, 1, -1),
    }
    pd.testing.assert_frame_equal(variance_partition(given, brain, **quick), arrays)
    plain = variance_partition(spaces, brain.read(), **quick)
    assert set(plain["region"]) == {"all"} and set(plain["subject"]) == {"1"}
    pooled = variance_partition(spaces, brain, by=None, **quick)
    np.testing.assert_allclose(plain["value"], pooled["value"], atol=1e-6)
    np.testing.assert_allclose(plain["ci_low"], pooled["ci_low"], atol=1e-5)


class Banded(RegressorMixin, BaseEstimator):
    """Ridge with a penalty of its own for each space, as many as it is told."""

    def __init__(self, spaces=None):
        self.spaces = spaces

    def fit(self, X, Y):
        assert sum(self.spaces) == X.shape[1]
        self.scale_ = np.concatenate([np.full(size, 1 / (1 + size)) for size in self.spaces])
        self.ridge_ = Ridge().fit(X * self.scale_, Y)
        return self

    def predict(self, X):
        return self.ridge_.predict(X * self.scale_)


def test_banded_encoders_learn_which_columns_are_which():
    spaces, brain = made()
    quick = {"bootstrap": 0, "seed": 1}
    encoder = Banded(spaces=[99])
    told = variance_partition(spaces, brain, encoder, **quick)
    assert encoder.spaces == [99]
    seen = []

    def build(sizes):
        seen.append(sizes)
        return Banded(sizes)

    pd.testing.assert_frame_equal(variance_partition(spaces, brain, build, **quick), told)
    assert seen == [[3], [4], [5], [3, 4], [3, 5], [4, 5], [3, 4, 5]]
    by_hand = {name: X / (1 + X.shape[1]) for name, X in spaces.items()}
    expected = variance_partition(by_hand, brain, Ridge(), **quick)
    np.testing.assert_allclose(told["value"], expected["value"], atol=1e-5)


class Spy(LinearRegression):
    """Refuses to predict rows that it saw, by their first columns, and keeps all it saw."""

    fits: ClassVar[list] = []

    def fit(self, X, y):
        self.seen_ = {row[:3].tobytes() for row in X}
        Spy.fits.append(self.seen_)
        return super().fit(X, y)

    def predict(self, X):
        assert not any(row[:3].tobytes() in self.seen_ for row in X)
        return super().predict(X)


def test_no_row_is_predicted_by_a_fit_that_saw_it_and_groups_stay_together():
    spaces, brain = made()
    scene = np.arange(N) // 6
    grouped = Recording(brain.responses, brain.presentations.assign(scene=scene), brain.units)
    Spy.fits.clear()
    table = variance_partition(spaces, grouped, Spy(), groups="scene", bootstrap=0)
    assert len(Spy.fits) == 5 * 7
    for seen in Spy.fits:
        X = next(X for X in spaces.values() if any(row[:3].tobytes() in seen for row in X))
        inside = np.array([row[:3].tobytes() in seen for row in X])
        assert 0 < inside.sum() < N and all(len(set(inside[scene == one])) == 1 for one in range(12))
    arrays = variance_partition(spaces, brain.read(), Spy(), groups=scene, bootstrap=0)
    units = [table.attrs["evidence"].units["value"] for table in (table, arrays)]
    np.testing.assert_allclose(units[0], units[1], atol=1e-6)


def test_repeats_are_averaged_and_units_that_cannot_be_scored_are_nan_with_one_warning():
    spaces, brain = made()
    responses = np.concatenate([brain.responses + 0.5, brain.responses - 0.5])
    responses[:, 0] = 4
    responses[:, 3] = np.nan
    responses[:10, 4] = responses[N : N + 10, 4] = np.nan  # another subject's stimuli
    broken = Recording(responses, pd.DataFrame({"stimulus": IDS * 2}), brain.units)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = variance_partition(spaces, broken, Ridge(), bootstrap=50)
    assert [str(w.message) for w in caught] == ["2 of 5 units are constant or lack responses; their scores are NaN"]
    whole = variance_partition(spaces, brain, Ridge(), bootstrap=50)
    units, before = (
        one.attrs["evidence"].units.pivot_table(
            index=["kind", "component"], columns="unit", values="value", dropna=False
        )
        for one in (table, whole)
    )
    assert units[0].isna().all() and units[3].isna().all()
    np.testing.assert_allclose(units[[1, 2]], before[[1, 2]], atol=1e-5)
    rows = by_kind(table)
    assert rows.loc["unique", "a", "A"]["n_units"] == 2 and rows.loc["unique", "a", "B"]["n_units"] == 1
    assert rows.loc["unique", "a", "B"]["n_stimuli"] == N - 10
    assert rows.loc["unique", "a", "B"]["value"] == pytest.approx(units.loc[("unique", "a"), 4])
    assert table[["value", "ci_low", "ci_high"]].notna().all(axis=None)


def test_a_region_without_scores_is_nan():
    spaces, brain = made()
    responses = brain.responses.copy()
    responses[:, 3:] = np.nan
    broken = Recording(responses, brain.presentations, brain.units)
    with pytest.warns(UserWarning, match="2 of 5 units"):
        table = variance_partition(spaces, broken, Ridge(), bootstrap=20)
    rows = table[table["region"] == "B"]
    assert rows[["value", "ci_low", "ci_high"]].isna().all(axis=None) and (rows["n_units"] == 0).all()
    assert table.loc[table["region"] == "A", "ci_low"].notna().all()


def test_what_is_refused():
    spaces, brain = made()
    refused = {
        "expected two to four": {"a": spaces["a"]},
        "holds 5 feature spaces": dict.fromkeys("abcde", spaces["a"]),
        "spaces is list": list(spaces.values()),
        "spaces is Features; expected a dict": Features("m", IDS, spaces),
        "'b'. has shape .71, 4.; expected .stimulus, feature. with 72 rows": {"a": spaces["a"], "b": spaces["b"][1:]},
        "'b'. has 2 layers .x, y.; expected one: give .features, 'y'.": {
            "a": spaces["a"],
            "b": Features("m", IDS, {"x": spaces["a"], "y": spaces["b"]}),
        },
        "'b'. is NaN or infinite for 2 of 72": {
            "a": spaces["a"],
            "b": np.where(np.arange(N)[:, None] < 2, np.nan, spaces["b"]),
        },
    }
    for message, wrong in refused.items():
        with pytest.raises(ValueError, match=message):
            variance_partition(wrong, brain)
    with pytest.raises(ValueError, match="groups='run' is unknown"):
        variance_partition(spaces, brain, groups="run")
    with pytest.raises(ValueError, match="groups is ndarray; with a Recording it names a column"):
        variance_partition(spaces, brain, groups=np.arange(N))
    with pytest.raises(ValueError, match="3 labels; with an array of responses it needs one label for each of 72"):
        variance_partition(spaces, brain.read(), groups=[1, 2, 3])
    with pytest.raises(ValueError, match="brain has shape .72,."):
        variance_partition(spaces, brain.read()[:, 0])
    with pytest.raises(ValueError, match="brain is dict; expected a Recording"):
        variance_partition(spaces, {})
    with pytest.raises(ValueError, match="expected a regressor"):
        variance_partition(spaces, brain, encoder=Ridge)
    with pytest.raises(ValueError, match="bootstrap=-1"):
        variance_partition(spaces, brain, bootstrap=-1)
