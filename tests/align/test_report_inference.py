"""Figures and sections about models against each other, thresholds, time, and maps from layer to layer."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from scipy.spatial.distance import pdist

from neuralign import align
from neuralign.align.compare import METHODS
from neuralign.align.inference import compare_models
from neuralign.align.report import inference_figures, rdm_figures, summary
from neuralign.align.report.geometry import classical_mds, onto
from neuralign.align.report.inference_sections import comparison_section
from neuralign.align.report.rdm_sections import layer_section
from neuralign.align.report.summary import headlines
from neuralign.align.rsa import rsa
from neuralign.align.score import Evidence, Score, tabulate
from neuralign.align.topology import identify
from neuralign.datasets.rdms import RDMs

from .test_report import _Outline, demo_rsa

IDS = [f"s{k:02d}" for k in range(15)]


@pytest.fixture(scope="module")
def latent():
    return np.random.default_rng(0).normal(size=(len(IDS), 5))


@pytest.fixture(scope="module")
def models(latent):
    """From all of the truth to none of it."""
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(6, *latent.shape))
    vectors = [pdist(latent * (1 - k / 5) + noise[k] * k / 5) for k in range(6)]
    table = pd.DataFrame({"model": ["net"] * 4 + ["other", "third"], "layer": ["a", "b", "c", "d", "", ""]})
    return RDMs(np.stack(vectors), IDS, table, "euclidean")


@pytest.fixture(scope="module")
def brain(latent):
    rng = np.random.default_rng(2)
    vectors = [pdist(latent + 0.7 * rng.normal(size=latent.shape)) for _ in range(8)]
    table = pd.DataFrame({"region": "IT", "subject": [str(k) for k in range(8)]})
    return RDMs(np.stack(vectors), IDS, table, "euclidean")


@pytest.fixture(scope="module")
def comparison(models, brain):
    return compare_models(models, brain, over="both", bootstrap=200, seed=0)


@pytest.fixture(scope="module")
def identification(latent):
    rng = np.random.default_rng(3)
    bases = rng.normal(size=(3, *latent.shape))
    vectors = [pdist(base + 0.8 * rng.normal(size=base.shape)) for _ in range(4) for base in bases]
    table = pd.DataFrame({"region": list("abc") * 4, "subject": np.repeat(list("wxyz"), 3)})
    grid = [(0.0, 1.0), (0.0, 0.5), (0.2, 0.8), (0.5, 1.0), (0.4, 0.6)]
    return identify(RDMs(np.stack(vectors), IDS, table), grid=grid, bootstrap=10)


# -------------------------------------------------------------------------------------------------------- figures


def test_bars_intervals_and_ceiling_are_those_of_the_comparison(comparison):
    fig = inference_figures.model_bars(comparison)
    ax = fig.axes[0]
    bars, intervals = ax.containers[0], ax.containers[1]
    np.testing.assert_allclose([bar.get_width() for bar in bars], comparison.scores)
    segments = np.array([segment[:, 0] for segment in intervals[2][0].get_segments()])
    np.testing.assert_allclose(segments, comparison.interval())
    [band] = [patch for patch in ax.patches if patch not in list(bars)]
    np.testing.assert_allclose([band.get_x(), band.get_x() + band.get_width()], comparison.ceiling)
    dots = np.sort(next(line for line in ax.lines if line.get_marker() == "o").get_xdata())
    np.testing.assert_allclose(dots, np.sort(comparison.per_subject.ravel()))
    colours = ["#1f6391" if p <= 0.05 else inference_figures.PALE for p in comparison.p_zero]
    assert [to_hex(bar.get_facecolor()) for bar in bars] == colours and len(set(colours)) == 2


@pytest.mark.parametrize("correction", ["fdr", "bonferroni", "none"])
def test_every_pair_is_a_square_or_two_dots(comparison, correction):
    grid = inference_figures.model_bars(comparison, correction).axes[1]
    squares = next(line for line in grid.lines if line.get_marker() == "s").get_xydata()
    dots = next(line for line in grid.lines if line.get_marker() == "o").get_xydata()
    pairs = comparison.pairwise(correction)
    place = {name: k for k, name in enumerate(comparison.names)}
    expected = set()
    for pair in pairs[pairs["p_corrected"] <= 0.05].itertuples():
        winner, loser = (pair.first, pair.second) if pair.difference > 0 else (pair.second, pair.first)
        expected.add((place[loser], place[winner]))  # column, row
    assert {(int(x), int(y)) for x, y in squares} == expected
    assert 0 < len(squares) < 15 and len(dots) == 2 * (15 - len(squares))
    if correction == "fdr":
        assert all(comparison.scores[int(y)] > comparison.scores[int(x)] for x, y in squares)


@pytest.mark.parametrize("n", [1, 2, 20, 40])
def test_any_number_of_models_fits_the_page(n, brain, recwarn):
    rng = np.random.default_rng(0)
    names = [f"a network with a rather long name and layer {k}" for k in range(n)]
    stack = RDMs(rng.random((n, brain.vectors.shape[1])), IDS, pd.DataFrame({"label": names}))
    for over in ("stimuli", "none"):
        found = compare_models(stack, brain, over=over, bootstrap=10)
        fig = inference_figures.model_bars(found)
        fig.canvas.draw()
        assert fig.get_figwidth() <= inference_figures.WIDTH + 1e-9
        assert len(fig.axes) == (2 if n > 1 and over == "stimuli" else 1)
    assert not [one for one in recwarn if "layout" in str(one.message)]


def test_one_rdm_has_no_ceiling(models, brain):
    with pytest.warns(UserWarning, match="ceiling"):
        found = compare_models(models, brain[0], over="stimuli", bootstrap=10)
    ax = inference_figures.model_bars(found).axes[0]
    assert "ceiling unknown" in [text.get_text() for text in ax.texts]


def test_a_model_without_a_score_is_named_as_such(models, brain):
    vectors = models.vectors.copy()
    vectors[2] = np.nan
    with pytest.warns(UserWarning):
        found = compare_models(RDMs(vectors, IDS, models.table), brain, over="subjects", bootstrap=10)
    fig = inference_figures.model_bars(found)
    fig.canvas.draw()
    assert " not scored" in [text.get_text() for text in fig.axes[0].texts]


@pytest.mark.parametrize(("method", "permutations"), [("cosine", 0), ("cosine", 20), ("rho-a", 0)])
def test_bars_that_are_not_tested_are_neutral(models, brain, method, permutations):
    over = "subjects" if method == "cosine" else "none"
    found = compare_models(models, brain, method, over=over, bootstrap=10, permutations=permutations)
    fig = inference_figures.model_bars(found)
    colours = {to_hex(bar.get_facecolor()) for bar in fig.axes[0].containers[0]}
    words = [text.get_text() for text in fig.legends[0].get_texts()]
    [shown] = comparison_section([(pd.DataFrame(), Evidence(comparison={"IT": found}))]).pictures
    if permutations:
        assert inference_figures.UNTESTED not in colours
        assert words[:2] == ["above chance", "not above chance"] and "not tested against 0" not in words
        assert "Pale: not above chance" in shown.caption and "tested against zero" not in shown.caption
    else:
        assert colours == {inference_figures.UNTESTED}
        assert "not tested against 0" in words and not any("above 0" in word for word in words)
        assert "No bar is tested against zero" in shown.caption and "Pale" not in shown.caption
        assert ("which is not what unrelated RDMs score" in shown.caption) == (method == "cosine")


def test_one_model_without_a_score_or_ceiling_needs_no_legend(models, brain):
    vectors = np.full_like(models.vectors[:1], np.nan)
    with pytest.warns(UserWarning):
        found = compare_models(RDMs(vectors, IDS), brain[0], over="none")
    assert not inference_figures.model_bars(found).legends


def test_heat_map_and_means_by_type(identification):
    fig = inference_figures.threshold_heatmap(identification)
    fig.canvas.draw()
    bars = fig.axes[1].containers[0]
    np.testing.assert_allclose([bar.get_width() for bar in bars], identification.by_type["accuracy"].fillna(0))
    assert fig.axes[0].get_xlabel().startswith("lower threshold")


def courses(n_layers=3, n_subjects=1):
    rows = []
    for subject in range(n_subjects):
        for region, peak in (("V1", 0.1), ("IT", 0.2)):
            for k in range(n_layers):
                for time in np.arange(0, 0.3, 0.02):
                    score = (0.5 - 0.05 * k) * np.exp(-(((time - peak) / 0.05) ** 2)) + 0.01 * subject
                    made = {"dataset": "d", "subject": str(subject), "region": region, "metric": "rho-a"}
                    numbers = {"ci_low": score - 0.1, "ci_high": score + 0.1, "ceiling": 0.6, "ceiling_low": 0.5}
                    made |= numbers | {"p": 0.001 if score > 0.2 else 0.5, "formula": "rsa-x"}
                    rows.append((Score("net", f"l{k}", score=score, **made), time))
    table = tabulate([score for score, _ in rows])
    return table.assign(time=[time for _, time in rows])


def test_courses_are_drawn_as_they_are_with_the_best_in_colour():
    table = courses(n_layers=7)
    fig = inference_figures.time_courses(table)
    fig.canvas.draw()
    for ax, region in zip(fig.axes, ("V1", "IT"), strict=False):
        assert ax.get_title(loc="left") == region
        coloured = [line for line in ax.lines if line.get_color() in inference_figures.LINES and line.get_lw() == 1.6]
        assert len(coloured) == 5
        rows = table[(table["region"] == region) & (table["layer"] == "l0")]
        best = next(line for line in coloured if line.get_color() == inference_figures.LINES[0])
        np.testing.assert_allclose(best.get_xydata(), rows[["time", "score"]])
        assert len(ax.collections) == 2  # the ceiling, and the interval of the best
        marks = next(line for line in ax.lines if line.get_marker() == "s" and line.get_color() == best.get_color())
        np.testing.assert_allclose(marks.get_xdata(), rows["time"][rows["p"] < 0.05])
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert labels == [*(f"net · l{k}" for k in range(5)), "other layers", "noise ceiling", "p < .05 at this time"]


def test_courses_of_subjects_are_averaged():
    table = courses(n_subjects=3)
    ax = inference_figures.time_courses(table).axes[0]
    line = next(line for line in ax.lines if line.get_color() == inference_figures.LINES[0])
    rows = table[(table["region"] == "V1") & (table["layer"] == "l0")]
    np.testing.assert_allclose(line.get_ydata(), rows.groupby("time")["score"].mean())
    assert len(ax.collections) == 1  # no interval of a mean


def test_courses_without_p_or_ceiling_have_room():
    """An empty line outside the axes once took all of the page."""
    table = courses().assign(p=np.nan, ceiling=np.nan, ceiling_low=np.nan)
    fig = inference_figures.time_courses(table)
    fig.canvas.draw()
    assert fig.axes[0].get_position().width > 0.35


# ----------------------------------------------------------------------------------------------------------- maps


def test_every_map_is_turned_onto_the_one_before():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(12, 2)) * [3, 1]
    steps, turned = [], points
    for k in range(4):
        angle = 1.3 * k
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turned = (points + 0.05 * k * rng.normal(size=points.shape)) @ turn * (k + 1)
        steps.append((f"layer {k}", RDMs(pdist(turned), [str(i) for i in range(12)])))
    fig = rdm_figures.layer_maps(steps, brain=["layer 3"])
    maps = [np.asarray(ax.collections[0].get_offsets()) for ax in fig.axes]
    np.testing.assert_allclose(maps[0], classical_mds(steps[0][1])[0])
    for k in range(1, 4):
        np.testing.assert_allclose(maps[k], onto(classical_mds(steps[k][1])[0], maps[k - 1]))
        assert np.linalg.norm(maps[k] - maps[k - 1]) < 0.2 * np.linalg.norm(maps[k])  # only what moved moves
    colours = [ax.title.get_color() if ax.title.get_text() else ax._left_title.get_color() for ax in fig.axes]
    assert colours == ["#1c2329"] * 3 + ["#1f6391"]


def test_maps_leave_out_stimuli_that_any_layer_lacks():
    points = np.random.default_rng(0).normal(size=(8, 2))
    whole, gaps = pdist(points), pdist(points)
    gaps[:7] = np.nan  # all pairs of the first stimulus
    ids = [str(k) for k in range(8)]
    thumbnails = np.zeros((8, 4, 4, 3), np.uint8)
    fig = rdm_figures.layer_maps([("a", RDMs(whole, ids)), ("b", RDMs(gaps, ids))], thumbnails)
    assert [len(ax.artists) for ax in fig.axes] == [7, 7]


# ----------------------------------------------------------------------------------------------------------- page


def test_page_shows_the_comparison_of_models(tmp_path, models, brain):
    table = rsa(models, brain, over="both", bootstrap=50, permutations=20)
    align.save_results(table, tmp_path / "t.h5")
    pages = []
    for given in (table, align.load_results(tmp_path / "t.h5")):
        text = align.report(given, tmp_path / "r.html").read_text()
        outline = _Outline(text)
        titles = [title for tag, title in outline.headings if tag == "h2"]
        assert titles == ["RDM gallery", "RSA scores", "Models compared", "Maps of the stimuli", *titles[4:]]
        assert titles[4:] == ["From layer to layer", "Table", "How it was made"]
        bars = next(image for image in outline.images if image["alt"].startswith("Bars of Spearman rho-a per model"))
        pages.append((bars["alt"], bars["src"]))
        assert "mean over 8 subjects (dots: each)" in text and "another draw of both stimuli and subjects" in text
        assert "Two models that are not told apart are not\nshown to be equal" in text
    assert pages[0] == pages[1]


def test_page_takes_comparisons_and_identifications_beside_tables(tmp_path, comparison, identification):
    table = demo_rsa(subjects=1, thumbnails=False)
    text = align.report([table, comparison, identification], tmp_path / "r.html").read_text()
    assert ">Models compared</h2>" in text and ">Identification by thresholds</h2>" in text
    with pytest.raises(ValueError, match="results holds no table"):
        align.report([comparison], tmp_path / "r.html")
    with pytest.raises(ValueError, match=r"results\[1\] is a dict"):
        align.report([comparison, {}], tmp_path / "r.html")


def test_headlines_say_what_was_done_and_where_the_best_is_told_from_none(models, brain):
    table = rsa(models[4:], brain, over="both", topology=(0.2, 0.7), compare="pearson", bootstrap=50, permutations=0)
    [made] = table.attrs["evidence"].comparison.values()
    said = "The geometry of IT (RDMs through RGTM from 0.2 to 0.7) is best matched by "
    apart = replace(made, difference_variance=made.difference_variance * 1e-9)
    level = replace(made, difference_variance=made.difference_variance * 1e9)
    [bare], [without], [told] = (headlines(table, given) for given in (None, {"IT": apart}, {"IT": level}))
    assert bare == without and bare.startswith(said) and "] over stimuli and subjects, ceiling" in bare
    assert "cannot be told" not in bare
    words = ", which cannot be told from the other model (over stimuli and subjects; FDR\u00a05\u00a0%): pearson"
    assert words in told
    # Of another comparison or of other models it says nothing.
    for other in (replace(level, method="cosine"), replace(level, names=["a", "b"]), replace(level, over="none")):
        assert headlines(table, {"IT": other}) == [bare]
    stimuli = rsa(models[4:], brain, compare="pearson", bootstrap=50, permutations=0)
    assert "] over stimuli, ceiling" in headlines(stimuli)[0] and "RDMs through" not in headlines(stimuli)[0]


@pytest.mark.parametrize("beside", [False, True])
def test_page_hands_comparisons_to_its_headlines(tmp_path, models, brain, beside):
    table = rsa(models, brain, over="both", bootstrap=50, permutations=0)
    [made] = table.attrs["evidence"].comparison.values()
    level = replace(made, difference_variance=made.difference_variance * 1e9)
    table.attrs["evidence"] = replace(table.attrs["evidence"], comparison={} if beside else {"IT": level})
    text = align.report([table, level] if beside else table, tmp_path / "r.html").read_text()
    assert "which cannot be told from any of the other 5 models" in text
    twice = pd.concat([table.assign(region="IT"), table.assign(region="V1")])
    twice.attrs["evidence"] = table.attrs["evidence"]
    text = align.report([twice, level] if beside else twice, tmp_path / "r.html").read_text()
    assert text.count("which cannot be told from") == (0 if beside else 1)


def test_several_regions_are_parts_of_one_section(comparison):
    evidence = [(pd.DataFrame(), Evidence(comparison={"V1": comparison, "IT": comparison}))]
    section = comparison_section(evidence)
    assert [part.title for part in section.parts] == ["V1", "IT"] and not section.pictures
    assert comparison_section([(pd.DataFrame(), Evidence())]) is None


def test_the_best_model_is_followed_through_its_layers(models, brain):
    table = rsa(models, brain, bootstrap=0, permutations=0)
    [found] = layer_section([(table, table.attrs["evidence"])]).pictures
    assert found.alt == "Maps of the stimuli through net: a, b, c, d, IT."
    few = rsa(models[4:], brain, bootstrap=0, permutations=0)
    assert layer_section([(few, few.attrs["evidence"])]) is None


def test_every_comparison_of_rdms_has_a_name():
    assert all(summary.metric_name(method) != method for method in METHODS)
