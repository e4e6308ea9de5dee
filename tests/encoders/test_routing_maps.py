"""Routing maps: names, figures of attention against loops and closed forms, boxes on cells, pictures."""

import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import entropy as scipy_entropy

from neuralign.datasets.stimuli import StimulusSet
from neuralign.encoders.routing.maps import RoutingMaps
from neuralign.encoders.routing.overlays import even
from neuralign.encoders.routing.places import corners, covered, hit_cells

QUERIES = ("V1", "FFA", "PPA")


def random_maps(n=5, queries=QUERIES, heads=3, grid=(4, 6), seed=0, **options):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, len(queries), heads, *grid))
    weights = np.exp(logits)
    weights /= weights.sum((3, 4), keepdims=True)
    return RoutingMaps(weights, queries, [f"s{k}" for k in range(n)], grid, **options)


def one_hot(cells, grid, queries=("q",)):
    """Maps (stimulus, query) that are all on one cell (y, x)."""
    weights = np.zeros((len(cells), len(queries), 1, *grid), np.float32)
    for s, q in itertools.product(range(len(cells)), range(len(queries))):
        weights[(s, q, 0, *cells[s][q])] = 1
    return RoutingMaps(weights, queries, [f"s{k}" for k in range(len(cells))], grid)


@pytest.fixture(scope="module")
def maps():
    return random_maps()


# ------------------------------------------------------------------------------------------------ names and shapes


def test_select_goes_by_name_and_keeps_what_belongs(maps):
    pictures = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    objects = pd.DataFrame({"stimulus": ["s0", "s3", "s3"], "category": list("abc"), "x": 0.5, "y": 0.5, "size": 0.1})
    full = dataclasses.replace(maps, images=pictures, objects=objects)
    some = full.select(["PPA", "V1"], ["s3", "s1"])
    assert some.queries == ("PPA", "V1") and some.stimulus_ids == ("s3", "s1")
    for (i, s), (j, q) in itertools.product(enumerate((3, 1)), enumerate((2, 0))):
        np.testing.assert_array_equal(some.weights[i, j], maps.weights[s, q])
    assert some.images[:, 0, 0, 0].tolist() == [3, 1] and some.objects["category"].tolist() == ["b", "c"]
    assert full.select("FFA").queries == ("FFA",) and len(full.select(stimulus_ids="s2")) == 1


def test_tables_are_indexed_by_name(maps):
    for table in (maps.entropy(), maps.mass(pd.DataFrame({"stimulus": ["s1"], "x": 0.5, "y": 0.5, "size": 0.2}))):
        assert table.index.tolist() == list(maps.stimulus_ids) and table.columns.tolist() == list(QUERIES)
    similarity = maps.similarity()
    assert similarity.index.tolist() == similarity.columns.tolist() == list(QUERIES)
    turned = maps.select(QUERIES[::-1])
    pd.testing.assert_frame_equal(turned.similarity().loc[list(QUERIES), list(QUERIES)], similarity, atol=1e-12)
    pd.testing.assert_series_equal(turned.variation()[list(QUERIES)], maps.variation())


def test_mean_heads_is_the_mean_and_happens_once(maps):
    mean = maps.mean_heads()
    np.testing.assert_allclose(mean.weights[:, :, 0], maps.weights.mean(2), rtol=1e-6)
    assert mean.reduced and mean.n_heads == 1 and mean.mean_heads() is mean
    assert "head" in maps.peak() and "head" not in mean.peak()
    assert repr(maps) == "<RoutingMaps of 4 x 6 cells: stimuli: 5, queries: 3, heads: 3>"
    assert repr(dataclasses.replace(mean, name="a")).startswith("<RoutingMaps 'a' of") and "mean over" in repr(mean)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": ("V1", "V1", "PPA")}, "queries holds 'V1' more than once"),
        ({"stimulus_ids": ("a", "b", "c", "d")}, "expected \\(4 stimuli, 3 queries"),
        ({"grid": (6, 4)}, r"maps of 4 x 6; grid is \(6, 4\)"),
        ({"grid": None}, r"maps of 4 x 6 without a grid; pass grid=\(height, width\)"),
        ({"reduced": True}, "have 3 heads; expected their mean"),
        ({"weights": np.full((5, 3, 3, 4, 6), 0.1)}, "45 of 45 maps .* the first adds up to 2.4"),
        ({"weights": np.full((5, 3, 24), 1 / 24)}, r"weights has shape \(5, 3, 24\)"),
        ({"images": np.zeros((5, 8, 8, 3))}, "dtype float64; expected uint8 of shape \\(5, height"),
        ({"images": np.zeros((4, 8, 8, 3), np.uint8)}, "a picture for each stimulus"),
    ],
)
def test_what_is_no_map_is_refused(maps, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(maps, **change)


def test_nan_and_negative_weights_are_refused(maps):
    for value in (np.nan, -0.5):
        weights = maps.weights.copy()
        weights[2, 1, 0, 0, 0] = value
        weights[2, 1, 0, 0, 1] += maps.weights[2, 1, 0, 0, 0] - value
        with pytest.raises(ValueError, match="1 of 45 maps are not weights"):
            dataclasses.replace(maps, weights=weights)


def test_unknown_names(maps):
    with pytest.raises(ValueError, match="query='FFa' is unknown; did you mean 'FFA'"):
        maps.select("FFa")
    with pytest.raises(ValueError, match="1 of 1 stimulus ids are not in the routing maps: 's9'"):
        maps.select(stimulus_ids="s9")


# -------------------------------------------------------------------------------------------------------- figures


def test_entropy_against_scipy_and_at_both_ends(maps):
    expected = [
        [np.mean([scipy_entropy(head.ravel(), base=2) for head in query]) for query in stimulus]
        for stimulus in maps.weights.astype(float)
    ]
    np.testing.assert_allclose(maps.entropy(), expected, rtol=1e-5)
    np.testing.assert_allclose(maps.entropy(base=np.e), np.array(expected) * np.log(2), rtol=1e-5)
    np.testing.assert_allclose(maps.entropy(normalised=True), np.array(expected) / np.log2(24), rtol=1e-5)
    assert (maps.mean_heads().entropy() >= maps.entropy() - 1e-9).all(axis=None)
    assert one_hot([[(1, 2)]], (4, 6)).entropy().iloc[0, 0] == 0
    flat = RoutingMaps(np.full((1, 1, 2, 4, 6), 1 / 24), ["q"], ["s"], (4, 6))
    assert flat.entropy(normalised=True).iloc[0, 0] == pytest.approx(1, abs=1e-6)
    single = RoutingMaps(np.ones((2, 1, 1, 1, 1)), ["q"], ["a", "b"], (1, 1))
    assert (single.entropy() == 0).all(axis=None) and single.entropy(normalised=True).isna().all(axis=None)
    with pytest.raises(ValueError, match=r"base=1: expected a number above 1"):
        maps.entropy(base=1)


def test_peaks_against_a_loop(maps):
    table = maps.peak().set_index(["stimulus", "query", "head"])
    assert len(table) == 5 * 3 * 3
    for (s, stimulus), (q, query), h in itertools.product(
        enumerate(maps.stimulus_ids), enumerate(maps.queries), range(3)
    ):
        found = table.loc[(stimulus, query, h)]
        one = maps.weights[s, q, h]
        y, x = next((y, x) for y in range(4) for x in range(6) if one[y, x] == one.max())
        assert (found["y"], found["x"]) == (y, x) and found["weight"] == one.max()
        assert found["centre_x"] == pytest.approx((x + 0.5) / 6) and found["centre_y"] == pytest.approx((y + 0.5) / 4)


def test_centre_of_mass_against_a_loop_and_of_one_cell(maps):
    table = maps.centre_of_mass().set_index(["stimulus", "query", "head"])
    one = maps.weights[2, 1, 2].astype(float)
    y, x = np.mgrid[:4, :6] + 0.5
    x, y = x / 6, y / 4
    at_x, at_y = (one * x).sum() / one.sum(), (one * y).sum() / one.sum()
    spread = np.sqrt((one * ((x - at_x) ** 2 + (y - at_y) ** 2)).sum() / one.sum())
    np.testing.assert_allclose(table.loc[("s2", "FFA", 2)], [at_x, at_y, spread], rtol=1e-6)
    alone = one_hot([[(3, 1)]], (4, 6)).centre_of_mass().iloc[0]
    assert (alone["x"], alone["y"]) == (pytest.approx(1.5 / 6), pytest.approx(3.5 / 4)) and alone["spread"] < 1e-7


def test_similarity_is_the_correlation_over_all_cells(maps):
    rows = maps.weights.astype(float).mean(2).transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(maps.similarity(), np.corrcoef(rows), atol=1e-6)


def test_figures_do_not_depend_on_how_many_stimuli_are_taken_at_a_time(maps, monkeypatch):
    whole = maps.similarity(), maps.variation()
    monkeypatch.setattr("neuralign.encoders.routing.maps.CHUNK", 8 * 3 * 24 * 2)  # two stimuli of five
    assert [len(part) for part in maps._deviations()] == [2, 2, 1]
    np.testing.assert_allclose(maps.similarity(), whole[0], atol=1e-12)
    np.testing.assert_allclose(maps.variation(), whole[1], atol=1e-12)


def test_even_maps_have_no_similarity_and_no_variation(maps):
    weights = maps.weights.copy()
    weights[:, 1] = 1 / 24
    flat = dataclasses.replace(maps, weights=weights)
    with pytest.warns(UserWarning, match="1 of 3 queries attend evenly") as caught:
        similarity = flat.similarity()
    assert len(caught) == 1
    assert similarity.isna().sum().sum() == 5 and similarity.loc["V1", "V1"] == pytest.approx(1)
    assert flat.variation().isna().tolist() == [False, True, False]


def test_variation_of_masks_and_of_moving_peaks():
    fixed = one_hot([[(1, 1)]] * 6, (4, 4))
    assert fixed.variation()["q"] == pytest.approx(0, abs=1e-9)
    everywhere = one_hot([[(y, x)] for y in range(4) for x in range(4)], (4, 4))
    assert everywhere.variation()["q"] == pytest.approx(1)
    # One map in half of the stimuli, another in the rest: distances from even attention as vectors.
    half = one_hot([[(0, 0)], [(0, 1)]] * 3, (4, 4))
    one, two = np.eye(16)[:2] - 1 / 16
    expected = 1 - np.square((one + two) / 2).sum() / np.square(one).sum()
    assert half.variation()["q"] == pytest.approx(expected)
    assert np.isnan(one_hot([[(0, 0)]], (4, 4)).variation()["q"])


# ---------------------------------------------------------------------------------------------------------- boxes


def brute_force_cover(table, grid, fine=400):
    """Share of the points of a fine raster in each cell that lie in some box."""
    y, x = (np.mgrid[:fine, :fine] + 0.5) / fine
    inside = np.zeros((fine, fine), bool)
    for _, box in table.iterrows():
        inside |= (box.left < x) & (x < box.right) & (box.top < y) & (y < box.bottom)
    return inside.reshape(grid[0], fine // grid[0], grid[1], fine // grid[1]).mean((1, 3))


def test_cover_counts_area_once_even_where_boxes_overlap_or_leave_the_image():
    rng = np.random.default_rng(3)
    for seed in range(4):
        edges = np.sort(rng.uniform(-0.2, 1.2, (4, 2, 2)), axis=2)
        boxes = pd.DataFrame(
            {"stimulus": "a", "left": edges[:, 0, 0], "right": edges[:, 0, 1]}
            | {"top": edges[:, 1, 0], "bottom": edges[:, 1, 1]}
        )
        found = covered(boxes, ["none", "a"], (5, 8))
        assert np.isnan(found[0]).all()
        np.testing.assert_allclose(found[1], brute_force_cover(boxes, (5, 8)), atol=0.02, err_msg=str(seed))
    # Exactly: the left half twice over is the left half.
    half = pd.DataFrame({"stimulus": ["a"] * 2, "left": 0.0, "top": 0.0, "right": 0.5, "bottom": [1.0, 0.6]})
    np.testing.assert_allclose(covered(half, ["a"], (3, 3))[0], np.tile([1, 0.5, 0], (3, 1)), atol=1e-12)


def test_squares_are_boxes():
    square = pd.DataFrame({"stimulus": ["a"], "x": [0.4], "y": [0.6], "size": [0.1], "category": "face"})
    np.testing.assert_allclose(
        corners(square)[["left", "top", "right", "bottom"]].to_numpy(float), [[0.3, 0.5, 0.5, 0.7]]
    )


def test_mass_is_attention_times_cover(maps):
    boxes = pd.DataFrame({"stimulus": ["s1", "s4", "s9"], "x": [0.3, 0.9, 0.5], "y": [0.3, 0.2, 0.5], "size": 0.2})
    found = maps.mass(boxes)
    assert found.isna().all(axis=1).tolist() == [True, False, True, True, False]
    cover = brute_force_cover(corners(boxes).iloc[:1], (4, 6), fine=480)
    np.testing.assert_allclose(found.loc["s1"], (maps.weights[1].mean(1) * cover).sum((1, 2)), atol=3e-3)
    whole = pd.DataFrame({"stimulus": maps.stimulus_ids, "x": 0.5, "y": 0.5, "size": 0.5})
    np.testing.assert_allclose(maps.mass(whole), 1, rtol=1e-6)


def test_a_peak_hits_a_box_that_holds_the_middle_of_its_cell_or_lies_in_it():
    boxes = pd.DataFrame({"stimulus": ["a", "b"], "x": [0.30, 0.5], "y": [0.30, 0.5], "size": [0.01, 0.26]})
    cells = hit_cells(boxes, ["a", "b", "c"], (4, 4))
    assert np.argwhere(cells[0]).tolist() == [[1, 1]]  # smaller than a cell, and off its middle
    assert np.argwhere(cells[1]).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert not cells[2].any()


def test_attention_on_objects_against_chance_by_shuffling():
    rng = np.random.default_rng(0)
    n, grid = 60, (5, 5)
    cells = rng.integers(0, 5, (n, 2))
    objects = pd.DataFrame({"stimulus": [f"s{k}" for k in range(n)], "category": np.where(np.arange(n) < 40, "a", "b")})
    objects = objects.assign(x=(cells[:, 1] + 0.5) / 5, y=(cells[:, 0] + 0.5) / 5, size=0.1)
    seen = [[tuple(cell), (2, 2)] for cell in cells]
    found = one_hot(seen, grid, ("follows", "fixed")).on_objects(objects).set_index(["query", "category"])
    assert found["n_stimuli"].tolist() == [40, 20, 40, 20]
    assert found.loc["follows", "hits"].tolist() == [1, 1]
    np.testing.assert_allclose(found.loc["follows", "mass"], 1, atol=1e-9)  # a box of one cell
    for category, rows in (("a", range(40)), ("b", range(40, 60))):
        # Chance, slowly: every map over every stimulus of the category.
        pairs = [tuple(cells[s]) == tuple(cells[other]) for s in rows for other in range(n)]
        assert found.loc[("follows", category), "hits_by_chance"] == pytest.approx(np.mean(pairs))
        assert found.loc[("follows", category), "mass_by_chance"] == pytest.approx(np.mean(pairs))
    for value in ("hits", "mass"):  # a mask that is the same for every stimulus has chance, exactly
        np.testing.assert_allclose(found.loc["fixed", value], found.loc["fixed", f"{value}_by_chance"], atol=1e-12)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ({"stimulus": ["a"], "x": 0.5}, "columns stimulus, x; expected stimulus with left, top, right, bottom, or"),
        ({"stimulus": ["a"], "x": 0.5, "y": 0.5, "size": 0.0}, "1 of 1 boxes have no area"),
        ({"stimulus": ["a", "b"], "x": [0.5, np.nan], "y": 0.5, "size": 0.1}, "1 of 2 boxes have no area"),
    ],
)
def test_bad_boxes(boxes, message):
    with pytest.raises(ValueError, match=message):
        corners(pd.DataFrame(boxes))


def test_objects_must_be_known(maps):
    with pytest.raises(ValueError, match="none are known; pass a table of boxes"):
        maps.on_objects()
    with pytest.raises(ValueError, match="expected category among them"):
        maps.on_objects(pd.DataFrame({"stimulus": ["s0"], "x": 0.5, "y": 0.5, "size": 0.1}))


# ------------------------------------------------------------------------------------------ tokens without places


def test_tokens_without_a_grid_have_figures_but_no_places():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(7), (3, 2, 2))[..., None, :]
    maps = RoutingMaps(weights, ("a", "b"), ("x", "y", "z"))
    assert maps.n_cells == 7 and "7 tokens" in repr(maps)
    peak = maps.peak()
    assert (peak["x"] == weights.reshape(12, 7).argmax(1)).all() and peak["centre_x"].isna().all()
    assert maps.similarity().shape == (2, 2) and maps.entropy().shape == (3, 2)
    boxes = pd.DataFrame({"stimulus": ["x"], "x": 0.5, "y": 0.5, "size": 0.1, "category": "c"})
    for ask in (maps.centre_of_mass, maps.plot, lambda: maps.mass(boxes), lambda: maps.on_objects(boxes)):
        with pytest.raises(ValueError, match="7 tokens without a grid"):
            ask()


# ------------------------------------------------------------------------------------------- xarray and pictures


def test_to_xarray_names_every_axis(maps):
    pytest.importorskip("xarray")
    array = maps.to_xarray()
    assert array.dims == ("stimulus", "query", "head", "y", "x")
    np.testing.assert_array_equal(array.sel(stimulus="s3", query="PPA", head=1), maps.weights[3, 2, 1])
    reduced = dataclasses.replace(maps.mean_heads(), name="layer3").to_xarray()
    assert reduced.dims == ("stimulus", "query", "y", "x") and reduced.attrs == {"name": "layer3"}
    np.testing.assert_array_equal(reduced.sel(stimulus="s0", query="V1"), maps.mean_heads().weights[0, 0, 0])


def scene_set(n=5, size=12):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 255, (n, size, size, 3), dtype=np.uint8)
    objects = pd.DataFrame({"stimulus": ["s4", "s0"], "category": ["face", "house"], "x": 0.5, "y": 0.4, "size": 0.2})
    return StimulusSet.from_images(images, ids=[f"s{k}" for k in range(n)], objects=objects), images


def test_stimuli_are_found_by_id_in_whatever_order(maps):
    stimuli, images = scene_set()
    back = maps.select(stimulus_ids=["s4", "s2"]).with_stimuli(stimuli, size=12)
    np.testing.assert_array_equal(back.images, images[[4, 2]])
    assert back.objects["category"].tolist() == ["face"]
    with pytest.raises(ValueError, match="stimulus='s9' is unknown"):
        dataclasses.replace(maps, stimulus_ids=("s0", "s1", "s2", "s3", "s9")).with_stimuli(stimuli)


def pixels(figure):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def test_the_plot_shows_each_map_under_its_name_and_its_picture(maps):
    stimuli, _ = scene_set()
    figure = maps.plot(stimuli, stimuli=["s4", "s1"], queries=["PPA", "V1"])
    axes = np.array(figure.axes[:6]).reshape(3, 2)
    assert [ax.get_title(loc="center") for ax in axes[0]] == ["s4", "s1"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["stimulus", "PPA", "V1"]
    np.testing.assert_array_equal(axes[0, 1].images[0].get_array(), stimuli.images(["s1"], 96)[0])
    # Opacity grows with attention, and what is not above even attention has none.
    mean = maps.weights.mean(2)
    for row, query in ((1, 2), (2, 0)):
        for column, s in ((0, 4), (1, 1)):
            overlay = np.asarray(axes[row, column].images[1].get_array())[..., 3]
            lift = mean[s, query] * 24
            assert (overlay[lift <= 1] == 0).all() and (overlay[lift > 1.001] > 0).all()
            order = np.argsort(lift.ravel())
            assert (np.diff(overlay.ravel()[order]) >= -1e-7).all()
            cross = axes[row, column].lines[-1].get_xydata()[0]
            y, x = np.unravel_index(lift.argmax(), lift.shape)
            np.testing.assert_allclose(cross, [(x + 0.5) / 6, (y + 0.5) / 4])
    assert [text.get_text() for text in axes[0, 0].texts] == ["face"] and not axes[0, 1].texts
    assert len(axes[1, 0].patches) == 1 and not axes[1, 1].patches
    assert len(np.unique(pixels(figure).reshape(-1, 4), axis=0)) > 100


def test_plots_without_pictures_with_arrays_and_of_many_queries(maps):
    figure = maps.plot(stimuli=3)
    assert [ax.get_title(loc="center") for ax in figure.axes[:3]] == ["s0", "s2", "s4"]
    assert len(figure.axes) == 3 * 3 + 1
    given = maps.plot(np.full((5, 6, 6, 3), 7, np.uint8), stimuli=1)
    assert len(given.axes) == 4 + 1
    many = random_maps(2, [f"u{k}" for k in range(50)], 1, (3, 3))
    assert len(many.plot(stimuli=1).axes) == 12 + 1
    with pytest.raises(ValueError, match="stimuli=0"):
        maps.plot(stimuli=0)
    with pytest.raises(ValueError, match="images has shape"):
        maps.plot(np.zeros((3, 6, 6, 3), np.uint8))
    assert even(5, 3).tolist() == [0, 2, 4] and even(2, 6).tolist() == [0, 1]


def test_maps_bring_neither_torch_nor_matplotlib():
    code = "import neuralign.encoders.routing.maps, sys; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
