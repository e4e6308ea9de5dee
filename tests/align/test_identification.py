"""Identification against scikit-learn and explicit resampling, with ties, gaps and every error."""

import warnings
from collections import Counter

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import pdist, squareform
from sklearn.neighbors import NearestCentroid

from neuralign.align.topology import descriptor_type, identify, rgdm, rgtm, threshold_grid
from neuralign.datasets.rdms import RDMs

CELLS = [(0.0, 1.0), (0.2, 0.8), (0.4, 0.6), (0.5, 0.5)]


def regions(n_subjects=5, n_regions=3, n_stimuli=14, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n_regions, n_stimuli, 8))
    rows, vectors = [], []
    for subject in range(n_subjects):
        for region in range(n_regions):
            vectors.append(pdist(shared[region] + noise * rng.normal(size=(n_stimuli, 8))))
            rows.append((f"S{subject}", f"R{region}"))
    table = pd.DataFrame(rows, columns=["subject", "region"])
    return RDMs(np.array(vectors), [f"s{k}" for k in range(n_stimuli)], table)


def transformed(vectors, transform, lower, upper):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rgtm(vectors, lower, upper) if transform == "rgtm" else rgdm(vectors, lower, upper, **AUTHORS)


AUTHORS = {"zero_edges": "keep", "unreachable": "max", "ranked": True}


def assigned(values, labels, subjects, rule):
    """(held-out row, assigned label) by fitting on the other subjects, one subject at a time."""
    for subject in np.unique(subjects):
        rest, own = subjects != subject, np.flatnonzero(subjects == subject)
        if rule == "centroid":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about standard deviations, which it does not use here
                predicted = NearestCentroid().fit(values[rest], labels[rest]).predict(values[own])
        else:
            names = np.unique(labels[rest])
            means = [values[rest & (labels == name)].mean(0) for name in names]
            predicted = [names[np.argmax([np.corrcoef(values[row], mean)[0, 1] for mean in means])] for row in own]
        yield from zip(own, predicted, strict=True)


@pytest.mark.parametrize("rule", ["centroid", "correlation"])
@pytest.mark.parametrize("transform", ["rgtm", "rgdm"])
def test_equals_leaving_one_subject_out_by_hand(transform, rule):
    rdms = regions(noise=1.5 if transform == "rgtm" else 1.2)
    rows = np.random.default_rng(0).permutation(15)[:-1]  # any order, and one region of one subject is missing
    rdms = rdms[rows]
    grid = CELLS if transform == "rgtm" else [(0.0, 1.0), (0.0, 0.3), (0.03, 0.6)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = identify(rdms, grid=grid, transform=transform, rule=rule)
    labels, subjects = rdms.table["region"].to_numpy(), rdms.table["subject"].to_numpy()
    accuracies = []
    for k, cell in enumerate(grid):
        values = transformed(rdms.vectors, transform, *cell)
        pairs = [(labels[row], name) for row, name in assigned(values, labels, subjects, rule)]
        accuracies.append(np.mean([a == b for a, b in pairs]))
        confusion = [[Counter(pairs)[a, b] for b in found.classes] for a in found.classes]
        np.testing.assert_allclose(found.confusion[k], confusion)
    np.testing.assert_allclose(found.table["accuracy"], accuracies)
    assert min(accuracies) > 0.3 and max(accuracies) < 1
    plain = np.mean([labels[row] == name for row, name in assigned(rdms.vectors, labels, subjects, rule)])
    assert found.by_type.set_index("type").loc["untransformed", "accuracy"] == pytest.approx(plain)
    assert (found.table["chance"] == 1 / 3).all()


@pytest.mark.parametrize("rule", ["centroid", "correlation"])
@pytest.mark.parametrize("transform", ["rgtm", "rgdm"])
def test_bootstrap_equals_explicit_resampling(transform, rule):
    """RDMs of repeated stimuli, pairs of copies unknown; subjects repeated; all copies of a subject left out."""
    rdms = regions(noise=1.5)
    grid = [(0.0, 1.0), (0.1, 0.7), (0.5, 0.5)] if transform == "rgtm" else [(0.0, 1.0), (0.03, 0.6)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = identify(rdms, grid=grid, transform=transform, rule=rule, bootstrap=12, seed=3)
    draw = np.random.default_rng(3).spawn(2)[0]
    for sample in found.samples:
        subjects, stimuli = draw.integers(5, size=5), draw.integers(14, size=14)
        rows = np.concatenate([3 * s + np.arange(3) for s in subjects])
        repeated = []
        for vector in rdms.vectors[rows]:
            square = squareform(vector)[np.ix_(stimuli, stimuli)]
            square[stimuli[:, None] == stimuli] = np.nan
            repeated.append(square[np.triu_indices(14, 1)])
        labels, names = rdms.table["region"].to_numpy()[rows], rdms.table["subject"].to_numpy()[rows]
        for accuracy, cell in zip(sample, grid, strict=True):
            values = transformed(np.array(repeated), transform, *cell)
            values = values[:, ~np.isnan(values).any(0)]
            right = [labels[row] == name for row, name in assigned(values, labels, names, rule)]
            assert accuracy == pytest.approx(np.mean(right))


def test_perfect_and_shuffled():
    rdms = regions(noise=0.05)
    found = identify(rdms, grid=CELLS, bootstrap=50, permutations=99)
    assert (found.table["accuracy"] == 1).all() and (found.table["p"] == 0.01).all()
    np.testing.assert_array_equal(found.confusion, 5 * np.broadcast_to(np.eye(3), (4, 3, 3)))
    assert (found.table["ci_low"] <= 1).all()
    null = regions(noise=50, n_subjects=8, seed=1)
    assert identify(null, grid=CELLS, permutations=99).table["p"].min() > 0.01


def test_permutation_is_within_subjects():
    # Two subjects, two regions: labels agree after shuffling or are exchanged, each with probability 1/2.
    found = identify(regions(2, 2, noise=0.05), grid=[(0.0, 1.0)], permutations=1999)
    assert found.table["accuracy"][0] == 1 and 0.46 < found.table["p"][0] < 0.54


def test_equally_near_regions_share():
    rdms = regions()
    same = RDMs(np.tile(rdms.vectors[0], (15, 1)), rdms.stimulus_ids, rdms.table)
    found = identify(same, grid=CELLS)
    np.testing.assert_allclose(found.table["accuracy"], 1 / 3)
    np.testing.assert_allclose(found.confusion, 5 / 3)
    np.testing.assert_allclose(identify(same, grid=CELLS, rule="correlation").table["accuracy"], 1 / 3)
    flat = identify(rdms, grid=[(20, 30), (1, 5)], rule="correlation", threshold="absolute")  # all pairs are near
    assert flat.table["accuracy"][0] == pytest.approx(1 / 3) and flat.table["accuracy"][1] > 0.5


def test_a_collapsed_transform_is_at_chance_and_told():
    rdms = regions(n_stimuli=40)
    with pytest.warns(UserWarning, match="in 1 of 2 cells all geodesic distances of an RDM are 0") as caught:
        found = identify(rdms, grid=[(0.0, 0.5), (0.6, 0.9)], transform="rgdm")
    assert len(caught) == 1
    assert found.table["accuracy"][1] == pytest.approx(1 / 3) and found.table["accuracy"][0] > 0.5


def test_sessions_are_averaged():
    rdms = regions()
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.normal(size=rdms.vectors.shape)
    sessions = RDMs(
        np.concatenate([rdms.vectors + noise, rdms.vectors - noise]),
        rdms.stimulus_ids,
        pd.concat([rdms.table.assign(session=1), rdms.table.assign(session=2)]),
    )
    pd.testing.assert_frame_equal(identify(sessions, grid=CELLS).table, identify(rdms, grid=CELLS).table)
    assert identify(sessions, grid=CELLS).settings["n_subjects"] == 5


def test_columns_by_other_names():
    rdms = regions()
    renamed = RDMs(rdms.vectors, rdms.stimulus_ids, rdms.table.rename(columns={"subject": "net", "region": "layer"}))
    found = identify(renamed, "layer", "net", CELLS)
    pd.testing.assert_frame_equal(found.table, identify(rdms, grid=CELLS).table)
    assert "values of 'layer' across 5 of 'net'" in found.summary()


def test_unknown_pairs_are_left_out_for_all():
    rdms = regions()
    holes = rdms.vectors.copy()
    holes[3, 10] = holes[7, 50] = np.nan
    found = identify(RDMs(holes, rdms.stimulus_ids, rdms.table), grid=[(0.0, 2.0)], threshold="absolute")
    rest = np.delete(rdms.vectors, [10, 50], axis=1) / 2
    labels, subjects = rdms.table["region"].to_numpy(), rdms.table["subject"].to_numpy()
    expected = np.mean([labels[k] == name for k, name in assigned(np.clip(rest, 0, 1), labels, subjects, "centroid")])
    assert found.table["accuracy"][0] == pytest.approx(expected) and found.table["type"][0] == ""
    everywhere = np.where(np.arange(91) < 89, np.nan, rdms.vectors)
    with pytest.raises(ValueError, match="fewer than three pairs"):
        identify(RDMs(everywhere, rdms.stimulus_ids, rdms.table), grid=CELLS)


def test_unreachable_pairs_may_leave_nothing():
    with pytest.warns(UserWarning, match="accuracy of 1 of 1 cells is NaN") as caught:
        found = identify(regions(), grid=[(0.0, 0.02)], transform="rgdm", unreachable="nan", permutations=5)
    assert len(caught) == 1 and np.isnan(found.table["accuracy"][0]) and np.isnan(found.table["p"][0])


def test_seeds():
    rdms = regions(noise=1.5)
    one = identify(rdms, grid=CELLS, bootstrap=20, permutations=20, seed=1)
    pd.testing.assert_frame_equal(one.table, identify(rdms, grid=CELLS, bootstrap=20, permutations=20, seed=1).table)
    assert (one.samples != identify(rdms, grid=CELLS, bootstrap=20, seed=2).samples).any()
    np.testing.assert_array_equal(one.samples, identify(rdms, grid=CELLS, bootstrap=20, permutations=3, seed=1).samples)


def test_few_subjects_lose_samples_and_say_so():
    with pytest.warns(UserWarning, match=r"of 40 bootstrap samples have no accuracy.*all their subjects are one"):
        found = identify(regions(2), grid=CELLS, bootstrap=40)
    lost = np.isnan(found.samples[:, 0])
    assert 5 < lost.sum() < 35 and np.isfinite(found.table[["ci_low", "ci_high"]].to_numpy()).all()


def test_five_stimuli():
    found = identify(regions(n_stimuli=5), bootstrap=5, permutations=5, seed=1)
    assert len(found.table) == 210 and found.table["accuracy"].between(0, 1).all()


def test_grid_and_types():
    grid = threshold_grid()
    assert grid.shape == (210, 2) and len(set(map(tuple, grid))) == 210
    assert (grid[:, 0] < grid[:, 1]).all() and grid.min() == 0 and grid.max() == 1
    np.testing.assert_allclose(grid * 20, np.round(grid * 20), atol=1e-12)
    kinds = Counter(descriptor_type(*cell) for cell in grid)
    assert kinds == {
        "local": 20, "global": 20, "geometry-sensitive": 15, "topology-sensitive": 10, "intermediate": 145
    }  # fmt: skip
    for cell, kind in {
        (0, 1): "geometry-sensitive",
        (0, 0.4): "local",
        (0.2, 0.2): "local",
        (0.6, 1): "global",
        (0.1, 0.9): "geometry-sensitive",
        (0.11, 0.9): "intermediate",
        (0.4, 0.6): "topology-sensitive",
        (0.5, 0.5): "topology-sensitive",
        (0.3996, 0.6004): "topology-sensitive",  # within the tolerance
        (0.39, 0.6): "intermediate",
    }.items():
        assert descriptor_type(*cell) == kind
    assert len(threshold_grid(0.2)) == 15
    for step in (0, -0.1, 0.3, 2):
        with pytest.raises(ValueError, match="step"):
            threshold_grid(step)


def test_means_by_type():
    found = identify(regions(noise=1.5), grid=threshold_grid(0.1), bootstrap=30)
    rows = found.by_type.set_index("type")
    for kind, cells in found.table.groupby("type"):
        assert rows.loc[kind, "n_cells"] == len(cells)
        assert rows.loc[kind, "accuracy"] == pytest.approx(cells["accuracy"].mean())
        assert rows.loc[kind, "difference"] == pytest.approx(
            cells["accuracy"].mean() - rows.loc["untransformed", "accuracy"]
        )
        samples = found.samples[:, cells.index].mean(1)
        low, middle, high = np.quantile(samples, [0.025, 0.5, 0.975])
        assert rows.loc[kind, "ci_low"] == pytest.approx(max(0, rows.loc[kind, "accuracy"] + low - middle))
        assert rows.loc[kind, "ci_high"] == pytest.approx(min(1, rows.loc[kind, "accuracy"] + high - middle))
        assert -1 <= rows.loc[kind, "difference_low"] <= rows.loc[kind, "difference_high"] <= 1


def test_frame_and_summary():
    found = identify(regions(noise=1.5), grid=threshold_grid(0.1), bootstrap=10)
    frame = found.to_frame()
    assert list(frame) == ["lower", "upper", "type", "accuracy", "ci_low", "ci_high", "chance", "p"]
    frame["accuracy"] = 0
    assert found.table["accuracy"].max() > 0
    text = found.summary()
    best = found.table["accuracy"].max()
    for part in ("3 values of 'region' across 5 of 'subject'", "topology-sensitive", f"{best:.3f} at", "chance 0.333",
                 "10 bootstrap samples", "optimistic"):  # fmt: skip
        assert part in text
    assert "bootstrap" not in identify(regions(), grid=CELLS).summary()


def test_cells_that_tie_for_best_are_counted():
    found = identify(regions(noise=0.1), grid=CELLS)
    assert (found.table["accuracy"] == 1).all()
    assert repr(found) == found.summary()
    assert "best of 4 cells: 1.000 at 4 of them, the first (0, 1), picked" in repr(found)
    words = [text.get_text() for text in found.plot().axes[0].texts]
    assert any("best 1.000 at 4 cells, the first circled; untransformed" in word for word in words)
    alone = identify(regions(noise=0.1), grid=CELLS[1:2])
    assert "1.000 at (0.2, 0.8), picked" in alone.summary()


@pytest.mark.parametrize("grid", [None, CELLS, [(0.0, 1.0)]])
def test_heat_map(grid):
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = identify(regions(noise=1.5), grid=grid)
    before = dict(mpl.rcParams)
    figure = found.plot()
    assert dict(mpl.rcParams) == before
    ax = figure.axes[0]
    np.testing.assert_allclose(ax.collections[0].get_array(), found.table["accuracy"])
    assert "lower" in ax.get_xlabel() and "upper" in ax.get_ylabel() and "region" in ax.get_title(loc="left")
    words = [text.get_text() for text in ax.texts]
    best = found.table["accuracy"].argmax()
    circle = next(line for line in ax.lines if line.get_marker() == "o")
    assert circle.get_xydata()[0].tolist() == found.table[["lower", "upper"]].iloc[best].tolist()
    assert any(f"{found.table['accuracy'].max():.3f} at" in word for word in words)
    assert ("topology-sensitive" in words) == (grid is None)
    own, mine = plt.subplots()
    assert found.plot(ax=mine) is own and mine.collections
    plt.close("all")


def bad(**changes):
    return {"rdms": regions(), "grid": CELLS} | changes


def table_of(**columns):
    rdms = regions()
    return RDMs(rdms.vectors, rdms.stimulus_ids, rdms.table.assign(**columns))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"by": "area"}, "by='area' is unknown"),
        ({"over": "subjects"}, "did you mean 'subject'"),
        ({"transform": "rgmt"}, "did you mean 'rgtm'"),
        ({"rule": "nearest"}, "rule='nearest' is unknown"),
        ({"threshold": "rank"}, "threshold='rank'"),
        ({"grid": [(0.8, 0.2)]}, "above upper"),
        ({"grid": [(0.0, 1.5)]}, "quantiles"),
        ({"grid": [0.2, 0.8]}, r"grid has shape \(2,\)"),
        ({"grid": []}, "grid has shape"),
        ({"bootstrap": -1}, "bootstrap=-1"),
        ({"permutations": -1}, "permutations=-1"),
        ({"variant": "k-nearest"}, "transform_options='variant' is unknown"),
        ({"transform": "rgdm", "zero_edges": "kept"}, "did you mean 'keep'"),
        ({"rdms": np.zeros((4, 6))}, "rdms is a ndarray"),
        ({"rdms": table_of(region="R0")}, "1 value in column 'region'"),
        ({"rdms": table_of(subject="S0")}, "1 value in column 'subject'"),
        ({"rdms": regions()[[0, 1, 2, 3, 4, 6, 7]]}, "region='R2' is in one subject only"),
        ({"rdms": table_of(region=["R0", None, "R2"] * 5)}, "5 RDMs have no value in column 'region'"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        identify(**bad(**options))


def test_constant_rdms_are_named():
    vectors = regions().vectors.copy()
    vectors[4] = 1.0
    vectors[5] = np.nan
    with pytest.raises(ValueError, match="2 RDMs are constant.*region='R1', subject='S1'"):
        identify(RDMs(vectors, regions().stimulus_ids, regions().table), grid=CELLS)
