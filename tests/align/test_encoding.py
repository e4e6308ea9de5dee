"""Encoding scores: leak-free, joined by stimulus, honest about what cannot be scored."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.preprocessing import StandardScaler

from neuralign import align
from neuralign.datasets import Recording
from neuralign.encoders import Features, RidgeCV

N, P, V = 60, 8, 5
IDS = tuple(f"s{i:02d}" for i in range(N))
QUICK = {"bootstrap": 0, "permutations": 0}


def make(n_repeats=2, noise=0.5, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, P)).astype(np.float32)
    signal = X @ rng.standard_normal((P, V))
    responses = np.concatenate([signal + noise * rng.standard_normal((N, V)) for _ in range(n_repeats)])
    presentations = pd.DataFrame({"stimulus": list(IDS) * n_repeats})
    units = pd.DataFrame({"region": ["A", "A", "A", "B", "B"]})
    return X, Recording(responses, presentations, units, name="made")


def feats(X, ids=IDS, **layers):
    return Features("mine", tuple(ids), {"layer": X, **layers})


def test_score_equals_a_plain_loop():
    X, brain = make()
    table = align.score(feats(X), brain, Ridge(alpha=3.0), cv=4, seed=7, **QUICK)
    mean = brain.average_repeats()
    Y = mean.read()
    r = []
    for_folds, for_ceiling, *_ = np.random.default_rng(7).spawn(4)
    for train, test in mean.folds(4, seed=for_folds):
        P_ = Ridge(alpha=3.0).fit(X[train], Y[train]).predict(X[test])
        r.append([pearsonr(P_[:, v], Y[test][:, v])[0] for v in range(V)])
    r = np.mean(r, 0)
    rows = table[table.metric == "r"].set_index("region")
    assert rows.loc["A", "score"] == pytest.approx(r[:3].mean(), abs=1e-5)
    assert rows.loc["B", "score"] == pytest.approx(r[3:].mean(), abs=1e-5)
    assert rows.loc["A", "n_units"] == 3 and rows.loc["A", "n_stimuli"] == N
    units = table.attrs["evidence"].units
    np.testing.assert_allclose(units[units.metric == "r"]["score"], r, atol=1e-5)
    ceiling = align.split_half_ceiling(brain, seed=for_ceiling, metric="r")
    assert rows.loc["B", "ceiling"] == pytest.approx(ceiling[3:].mean())
    assert rows.loc["B", "normalised"] == pytest.approx(r[3:].mean() / ceiling[3:].mean(), abs=1e-5)


def test_rows_are_joined_by_id_and_not_by_place():
    X, brain = make()
    order = np.random.default_rng(1).permutation(N)
    shuffled = feats(
        np.concatenate([X[order], np.zeros((3, P), np.float32)]), [IDS[i] for i in order] + ["x", "y", "z"]
    )
    a = align.score(feats(X), brain, **QUICK)
    b = align.score(shuffled, brain, **QUICK)
    pd.testing.assert_frame_equal(a, b)
    with pytest.raises(ValueError, match="1 of 60 stimulus ids are not in the features of mine: 's00'"):
        align.score(feats(X[1:], IDS[1:]), brain, **QUICK)


class Spy(LinearRegression):
    """Remembers what it was fitted on, and refuses to be asked about it."""

    def fit(self, X, y):
        self.seen_ = {row.tobytes() for row in X}
        return super().fit(X, y)

    def predict(self, X):
        assert not any(row.tobytes() in self.seen_ for row in X)
        return super().predict(X)


def test_no_row_is_predicted_by_a_fit_that_saw_it():
    X, brain = make()
    align.score(feats(X), brain, Spy(), **QUICK)
    with pytest.raises(AssertionError):  # the spy can fail
        Spy().fit(X, X).predict(X)
    with pytest.raises(ValueError, match="overlap|both"):
        align.score(feats(X), brain, Spy(), cv=[(np.arange(N), np.arange(5, N))], **QUICK)


def test_noise_scores_nothing_though_there_are_more_features_than_stimuli():
    rng = np.random.default_rng(3)
    X = rng.standard_normal((N, 300)).astype(np.float32)
    wide = Recording(rng.standard_normal((N, 200)), pd.DataFrame({"stimulus": IDS}), pd.DataFrame(index=range(200)))
    table = align.score(feats(X), wide, permutations=200, bootstrap=0)
    row = table[table.metric == "r"].iloc[0]
    assert abs(row.score) < 0.06 and row.p > 0.01 and np.isnan(row.normalised)


def test_groups_stay_together():
    X, brain = make(1)
    presentations = brain.presentations.assign(scene=np.arange(N) // 6)
    grouped = Recording(brain.responses, presentations, brain.units)
    seen = []

    class Watch(Spy):
        def fit(self, X, y):
            seen.append({row.tobytes() for row in X})
            return super().fit(X, y)

    align.score(feats(X), grouped, Watch(), groups="scene", **QUICK)
    for rows in seen:
        inside = np.array([row.tobytes() in rows for row in X])
        assert all(len(set(inside[presentations.scene == g])) == 1 for g in range(10))


def test_own_split():
    X, brain = make(1)
    split = np.where(np.arange(N) < 40, "train", "test")
    brain = Recording(brain.responses, brain.presentations.assign(split=split), brain.units)
    table = align.score(feats(X), brain, Ridge(), cv="split", **QUICK)
    Y = brain.read()
    predicted = Ridge().fit(X[:40], Y[:40]).predict(X[40:])
    truth = np.mean([pearsonr(predicted[:, v], Y[40:, v])[0] for v in range(3)])
    assert table[table.metric == "r"].set_index("region").loc["A", "score"] == pytest.approx(truth, abs=1e-5)
    with pytest.raises(ValueError, match="no column split"):
        align.score(feats(X), make()[1], cv="split", **QUICK)


def test_units_that_cannot_be_scored_are_nan_with_one_warning():
    X, brain = make(1)
    responses = np.asarray(brain.responses).copy()
    responses[:, 0] = 4
    responses[:, 3] = np.nan
    broken = Recording(responses, brain.presentations, brain.units)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = align.score(feats(X), broken, Ridge(), **QUICK)
    assert [str(w.message) for w in caught] == ["2 of 5 units are constant or lack responses; their scores are NaN"]
    units = table.attrs["evidence"].units
    assert np.isnan(units[units.metric == "r"]["score"].to_numpy()[[0, 3]]).all()
    rows = table[table.metric == "r"].set_index("region")
    assert rows["n_units"].to_dict() == {"A": 2, "B": 1} and rows["score"].notna().all()
    clean = align.score(feats(X), make(1)[1], Ridge(), **QUICK)
    whole = clean.attrs["evidence"].units
    good = [1, 2, 4]
    np.testing.assert_allclose(
        units[units.metric == "r"]["score"].to_numpy()[good], whole[whole.metric == "r"]["score"].to_numpy()[good]
    )
    with pytest.raises(ValueError, match="none of 5 units can be scored"):
        align.score(feats(X), Recording(np.ones((N, V)), brain.presentations, brain.units), **QUICK)


def test_subjects_who_saw_different_stimuli_are_scored_on_their_own():
    X, brain = make(1)
    responses = np.asarray(brain.responses).copy()
    responses[:20, :3] = np.nan
    responses[40:, 3:] = np.nan
    units = pd.DataFrame({"region": "V1", "subject": ["a"] * 3 + ["b"] * 2})
    both = Recording(responses, brain.presentations, units)
    table = align.score(feats(X), both, Ridge(), bootstrap=50, permutations=50)
    rows = table[table.metric == "r"].set_index("subject")
    assert rows["n_stimuli"].to_dict() == {"a": 40, "b": 40}
    assert rows["score"].gt(0.5).all() and rows[["ci_low", "ci_high", "p"]].notna().all(axis=None)


def test_interval_and_p():
    X, brain = make(noise=3.0)
    table = align.score(feats(X), brain, bootstrap=300, permutations=300)
    assert (table.ci_low < table.score).all() and (table.score < table.ci_high).all()
    assert (table[table.metric == "r"].p < 0.05).all()
    again = align.score(feats(X), brain, bootstrap=300, permutations=300)
    pd.testing.assert_frame_equal(table, again)
    other = align.score(feats(X), brain, bootstrap=300, permutations=300, seed=1)
    assert not np.allclose(table.score, other.score)


def test_ceiling_sources():
    X, brain = make(1)
    assert np.isnan(align.score(feats(X), brain, Ridge(), **QUICK).ceiling).all()
    units = brain.units.assign(ncsnr=1.0)
    known = Recording(brain.responses, brain.presentations, units)
    rows = align.score(feats(X), known, Ridge(), **QUICK)
    assert rows[rows.metric == "r2"].ceiling.to_numpy() == pytest.approx(0.5)
    assert rows[rows.metric == "r"].ceiling.to_numpy() == pytest.approx(np.sqrt(0.5))
    with pytest.raises(ValueError, match="ncsnr"):
        align.score(feats(X), brain, ceiling="ncsnr", **QUICK)
    with pytest.raises(ValueError, match="ceiling='splithalf' is unknown; did you mean 'split-half'"):
        align.score(feats(X), brain, ceiling="splithalf", **QUICK)


def test_a_perfect_encoder_reaches_the_ceiling_of_ragged_repeats():
    """Most stimuli once, some twelve times, as in the field's large sets."""
    rng = np.random.default_rng(5)
    ids = [f"s{i}" for i in range(600)]
    signal = rng.standard_normal((600, 40))
    rows = np.concatenate([np.arange(600), np.tile(np.arange(100), 11)])
    responses = signal[rows] + 2 * rng.standard_normal((len(rows), 40))
    brain = Recording(responses, pd.DataFrame({"stimulus": [ids[i] for i in rows]}), pd.DataFrame(index=range(40)))

    class Oracle(LinearRegression):
        def predict(self, X):
            return X

    table = align.score(feats(signal, ids), brain, Oracle(), **QUICK)
    assert table.loc[table.metric == "r", "normalised"].item() == pytest.approx(1, abs=0.04)
    assert table.loc[table.metric == "r2", "ceiling"].item() < 0.3


def test_ceilings_are_each_subjects_own():
    rng = np.random.default_rng(6)
    signal = rng.standard_normal((N, 40))
    both = np.full((6 * N, 80), np.nan)
    both[: 3 * N, :40] = np.tile(signal, (3, 1)) + 1.5 * rng.standard_normal((3 * N, 40))
    both[3 * N :, 40:] = np.tile(signal, (3, 1)) + 1.5 * rng.standard_normal((3 * N, 40))
    presentations = pd.DataFrame({"stimulus": list(IDS) * 6, "subject": np.repeat(["a", "b"], 3 * N)})
    brain = Recording(both, presentations, pd.DataFrame({"subject": np.repeat(["a", "b"], 40)}))
    truth = align.ncsnr_ceiling(1 / 1.5, 3)
    ceiling = align.split_half_ceiling(brain, n_splits=20)
    assert [ceiling[:40].mean(), ceiling[40:].mean()] == pytest.approx([truth, truth], abs=0.05)


def test_units_without_a_ceiling_are_left_out_of_the_ratio_alone():
    X, brain = make(1, noise=0.1)
    units = brain.units.assign(ncsnr=[1.0, np.nan, np.nan, 1.0, 1.0])
    table = align.score(feats(X), Recording(brain.responses, brain.presentations, units), **QUICK)
    row = table[(table.metric == "r2") & (table.region == "A")].iloc[0]
    scores = table.attrs["evidence"].units.query("metric == 'r2'")["score"].to_numpy()
    assert row.score == pytest.approx(scores[:3].mean()) and row.n_units == 3
    assert row.ceiling == pytest.approx(0.5) and row.normalised == pytest.approx(scores[0] / 0.5)


def test_groups_reach_an_encoder_that_takes_them():
    X, brain = make(1)
    presentations = brain.presentations.assign(scene=np.arange(N) // 6)
    grouped = Recording(brain.responses, presentations, brain.units)
    handed = []

    class Takes(Spy):
        def fit(self, X, y, groups=None):
            handed.append(groups)
            return super().fit(X, y)

    align.score(feats(X), grouped, Takes(), groups="scene", **QUICK)
    assert all(len(set(groups)) == 8 and len(groups) == 48 for groups in handed)


def test_scattered_gaps_leave_the_p_value_alone():
    """Units that share noise are shuffled together even where each lacks another stimulus."""
    rejected = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        responses = rng.standard_normal((N, 20)) + 2 * rng.standard_normal((N, 1))
        responses[rng.integers(0, N, 20), np.arange(20)] = np.nan
        brain = Recording(responses, pd.DataFrame({"stimulus": IDS}), pd.DataFrame(index=range(20)))
        X = rng.standard_normal((N, 3))
        table = align.score(feats(X), brain, Ridge(10.0), metrics="r", permutations=99, bootstrap=0)
        rejected += table.p.item() <= 0.05
    assert rejected <= 6  # 18 of 40 when every unit has shuffles of its own


def test_tokens_are_flattened_and_any_regressor_plugs_in():
    X, brain = make()
    flat = align.score(feats(X), brain, **QUICK)
    tokens = align.score(feats(X.reshape(N, 2, 4)), brain, **QUICK)
    np.testing.assert_allclose(flat.score, tokens.score)
    from sklearn.pipeline import make_pipeline

    piped = align.score(feats(X), brain, make_pipeline(StandardScaler(), RidgeCV()), **QUICK)
    np.testing.assert_allclose(piped[piped.metric == "r"].score, flat[flat.metric == "r"].score, atol=0.01)


def test_bad_input():
    X, brain = make()
    with pytest.raises(ValueError, match="2 models called 'mine'"):
        align.score([feats(X), feats(X)], brain)
    with pytest.raises(ValueError, match="features is an empty list"):
        align.score([], brain)
    with pytest.raises(ValueError, match="metrics is empty"):
        align.score(feats(X), brain, metrics=[])
    with pytest.raises(ValueError, match="bootstrap=-1"):
        align.score(feats(X), brain, bootstrap=-1)
    with pytest.raises(ValueError, match="brain is ndarray; expected a Recording"):
        align.score(feats(X), np.zeros((N, V)))
    with pytest.raises(ValueError, match="NaN or infinite for 1 of 60 stimuli"):
        align.score(feats(np.where(np.arange(N)[:, None] == 4, np.nan, X)), brain)
    with pytest.raises(ValueError, match="metrics='rho' is unknown"):
        align.score(feats(X), brain, metrics=["rho"])
    with pytest.raises(ValueError, match="by='area' is unknown"):
        align.score(feats(X), brain, by="area")
    with pytest.raises(ValueError, match="features holds ndarray; expected Features"):
        align.score(X, brain)
    with pytest.raises(ValueError, match="cv='holdout' is unknown"):
        align.score(feats(X), brain, cv="holdout")
    timed = Recording(np.zeros((N, V, 3)), pd.DataFrame({"stimulus": IDS}), brain.units, times=[0, 1, 2])
    with pytest.raises(ValueError, match="average_time"):
        align.score(feats(X), timed)
    one_unit = Recording(np.asarray(brain.responses)[:, :1], brain.presentations, brain.units[:1])
    assert align.score(feats(X), one_unit, **QUICK).n_units.tolist() == [1, 1]
