"""Routing maps in the report: alone, beside a table, in a file, and what the page says of them."""

import base64
import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from neuralign import align
from neuralign.align.report import routing_figures
from neuralign.align.report.routing_sections import routing_headlines, routing_lede
from neuralign.align.score import Evidence, Score, tabulate
from neuralign.encoders.routing.maps import RoutingMaps

CATEGORIES = ("face", "house", "tool")


def routed(n=48, grid=(6, 6), heads=2, queries=("V4", "FFA", "PPA"), pictures=True, seed=0):
    """FFA's maps are on the face and PPA's on the house of every stimulus; V4's are the same mask for all of them."""
    rng = np.random.default_rng(seed)
    ids = [f"scene-{k:02d}" for k in range(n)]
    places = np.array([rng.permutation(36)[:3] for _ in range(n)])
    y, x = np.divmod(places, 6)
    rows = [
        {"stimulus": ids[s], "category": name, "x": (x[s, c] + 0.5) / 6, "y": (y[s, c] + 0.5) / 6, "size": 1 / 12}
        for s in range(n)
        for c, name in enumerate(CATEGORIES)
        if rng.uniform() < 0.7
    ]
    logits = rng.normal(0, 0.3, (n, len(queries), heads, *grid))
    for k, query in enumerate(queries):
        if query in ("FFA", "PPA"):
            c = ("FFA", "PPA").index(query)
            logits[np.arange(n), k, :, y[:, c], x[:, c]] += 4
        else:
            logits[:, k, :, 2, 3] += 4
    weights = np.exp(logits)
    images = rng.integers(0, 255, (n, 24, 24, 3), dtype=np.uint8) if pictures else None
    maps = RoutingMaps(weights / weights.sum((3, 4), keepdims=True), queries, ids, grid, images=images)
    return dataclasses.replace(maps, objects=pd.DataFrame(rows))


def table():
    rows = [Score("net", f"l{k}", "set", "1", "V4", "r", 0.3 + k / 10, ceiling=0.8, n_stimuli=48) for k in range(3)]
    return tabulate([dataclasses.replace(row, formula="encoding-1 RidgeCV", n_units=9) for row in rows])


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.images, self.links, self.ids = [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"][1:]] if attrs.get("href", "").startswith("#") else []
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")
        elif tag == "img":
            self.images.append(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] += data


@pytest.fixture(scope="module")
def maps():
    return routed()


@pytest.fixture(scope="module")
def few(maps):
    """Of few stimuli, which are drawn faster."""
    return maps.select(stimulus_ids=maps.stimulus_ids[:3])


@pytest.fixture(scope="module")
def alone(maps, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert align.report(maps, path) == path
    return path.read_text()


def test_maps_alone_make_a_page_without_scores(alone):
    page = Page(alone)
    assert page.headings == ["neuralign report", "Routing maps", "How it was made"]
    assert set(page.links) <= set(page.ids) and len(set(page.ids)) == len(page.ids)
    assert "<table" not in alone and "<script" not in alone and "Interval and p" not in alone
    assert "Attention of 3 queries (V4, FFA, PPA) over the 6 x 6 places of 48 stimuli." in alone
    assert "http" not in re.sub(r"data:[^\"]*", "", alone)
    assert len(page.images) == 4 and alone.count("<figcaption>") == 4
    for image in page.images:
        assert len(image["alt"]) > 20 and 200 < int(image["width"]) <= 1040
        assert len(base64.b64decode(image["src"].split(",", 1)[1])) > 2000
    assert "nan" not in re.sub(r"data:[^\"]*", "", alone).lower().split()


def test_the_page_says_where_attention_peaks_and_where_it_is_no_more_than_a_mask(alone, maps):
    found = maps.on_objects().set_index(["query", "category"])
    for query, category in (("FFA", "face"), ("PPA", "house")):
        row = found.loc[(query, category)]
        share, chance = (f"{round(100 * row[name])}\u00a0%" for name in ("hits", "hits_by_chance"))
        assert row["hits"] > 0.95 > 0.2 > row["hits_by_chance"]
        held = f"in {share} of the {row['n_stimuli']:.0f} stimuli that hold one, by chance in {chance}."
        assert f"{query}: attention peaks on the {category} {held}" in alone
    assert "V4: attention peaks on no category beyond chance" in alone


def test_beside_a_table_the_maps_stand_after_the_scores(maps, tmp_path):
    text = align.report([table(), maps], tmp_path / "r.html").read_text()
    page = Page(text)
    headings = ["neuralign report", "Encoding scores", "Routing maps", "Table", "How it was made"]
    assert page.headings == headings and "Interval and p" in text
    assert "1 model (net) with 3 layers in all" in text and "Attention of 3 queries" in text
    assert '<p class="what">Routing</p>' in text and text.index("is best predicted") < text.index("attention peaks")
    without = align.report(table(), tmp_path / "w.html").read_text()
    assert "outing" not in without and "attention" not in without


def test_several_maps_have_headings_of_their_own(few, tmp_path):
    named = dataclasses.replace(few, name="layer3")
    text = align.report([named, few], tmp_path / "r.html").read_text()
    assert Page(text).headings == ["neuralign report", "Routing maps", "layer3", "maps 2", "How it was made"]
    assert "Routing: layer3" in text and "Routing: maps 2" in text


def test_maps_travel_in_evidence_through_a_file(few, tmp_path):
    whole = dataclasses.replace(few, name="layer3")
    scores = table()
    scores.attrs["evidence"] = Evidence(routing=whole)
    align.save_results(scores, tmp_path / "t.h5")
    back = align.load_results(tmp_path / "t.h5")
    found = back.attrs["evidence"].routing
    np.testing.assert_array_equal(found.weights, whole.weights)
    np.testing.assert_array_equal(found.images, whole.images)
    pd.testing.assert_frame_equal(found.objects, whole.objects.reset_index(drop=True), check_dtype=False)
    for name in ("queries", "stimulus_ids", "grid", "reduced", "name"):
        assert getattr(found, name) == getattr(whole, name)
    one, two = (align.report(given, tmp_path / "r.html").read_text() for given in (scores, back))
    assert [image["src"] for image in Page(one).images] == [image["src"] for image in Page(two).images]
    bare = table()
    bare.attrs["evidence"] = Evidence(routing=dataclasses.replace(few, images=None).mean_heads())
    align.save_results(bare, tmp_path / "b.h5")
    assert align.load_results(tmp_path / "b.h5").attrs["evidence"].routing.images is None
    align.save_results(table(), tmp_path / "n.h5")
    assert align.load_results(tmp_path / "n.h5").attrs.get("evidence") is None


def test_maps_without_objects_pictures_or_places(tmp_path):
    bare = dataclasses.replace(routed(8, pictures=False), objects=None)
    text = align.report(bare, tmp_path / "r.html").read_text()
    assert len(Page(text).images) == 3 and "Frames" not in text and "peaks" not in text
    weights = bare.weights.reshape(8, 3, 2, 1, 36)
    flat = dataclasses.replace(bare, weights=weights, grid=None)
    text = align.report(flat, tmp_path / "f.html").read_text()
    assert len(Page(text).images) == 1 and "over the 36 tokens of 8 stimuli" in text
    one = bare.select("FFA", "scene-03")
    text = align.report(one, tmp_path / "o.html").read_text()
    assert "Attention of 1 query (FFA) over the 6 x 6 places of one stimulus." in text


def test_of_many_queries_some_are_drawn_and_the_page_says_so(tmp_path):
    many = routed(2, queries=tuple(f"u{k}" for k in range(60)))
    text = align.report(many, tmp_path / "r.html").read_text()
    assert text.count("8 of 60 queries, at even distances.") == 2
    assert text.count("40 of 60 queries, at even distances.") == 2
    assert len(text) < 6e6 and "beyond chance for 0 of 60 queries." in text


def test_of_many_queries_a_sentence_counts_those_that_find_objects():
    names = [f"{region} {k}" for k in range(7) for region in ("FFA", "PPA")]
    weights = routed().weights[:, [1, 2] * 7]
    many = dataclasses.replace(routed(pictures=False), weights=weights, queries=(*names[:13], "V4"))
    said = "Attention peaks on objects of a category beyond chance for 14 of 14 queries: face 7, house 7."
    assert routing_headlines(many) == [said]
    assert len(routing_headlines(many.select(names[:12]))) == 12


def test_queries_that_attend_evenly_are_hatched_without_a_warning(maps, recwarn):
    weights = maps.weights.copy()
    weights[:, 0] = 1 / 36
    even = dataclasses.replace(maps, weights=weights)
    axes = routing_figures.query_panels(even, list(even.queries)).axes
    assert not [one for one in recwarn if issubclass(one.category, UserWarning)]
    assert len([patch for patch in axes[0].patches if patch.get_hatch()]) == 5
    assert [text.get_text() for text in axes[2].texts] == ["–"]
    assert np.isnan(axes[0].images[0].get_array().filled(np.nan)).sum() == 5


def test_figures_show_the_numbers_of_the_maps(maps):
    found = maps.on_objects()
    axes = routing_figures.object_grids(found).axes[:2]
    for ax, value in zip(axes, ("hits", "mass"), strict=True):
        wide = found.pivot(index="query", columns="category", values=value).loc[list(maps.queries)]
        names = [tick.get_text() for tick in ax.get_xticklabels()]
        np.testing.assert_allclose(ax.collections[0].get_array(), wide[names])
        chance = found.pivot(index="query", columns="category", values=f"{value}_by_chance").loc[list(maps.queries)]
        assert len(ax.patches) == int((wide > 2 * chance).sum().sum())
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == list(maps.queries)
    panels = routing_figures.query_panels(maps, list(maps.queries)).axes
    np.testing.assert_allclose(panels[0].images[0].get_array(), maps.similarity())
    median = maps.entropy(normalised=True).median()
    np.testing.assert_allclose(panels[1].lines[0].get_xdata(), median)
    np.testing.assert_allclose([bar.get_width() for bar in panels[2].patches], maps.variation())
    means = routing_figures.mean_maps(maps, ["PPA", "V4"]).axes
    assert [ax.get_title(loc="left") for ax in means[:2]] == ["PPA", "V4"]
    np.testing.assert_allclose(means[1].images[0].get_array(), maps.weights[:, 0].mean((0, 1)) * 36, rtol=1e-5)


def test_a_sentence_claims_no_more_than_chance_allows():
    """Maps of no relation to the objects: in at most 5 % of 25 sets may some query be said to peak on something."""
    claims = total = 0
    for seed in range(25):
        maps = routed(30, seed=seed, pictures=False)
        shuffled = maps.weights[np.random.default_rng(seed).permutation(30)]
        for sentence in routing_headlines(dataclasses.replace(maps, weights=shuffled)):
            total += 1
            claims += "beyond chance" not in sentence
    assert total == 75 and claims <= 4


def test_bad_input(maps, tmp_path):
    cell = RoutingMaps(np.ones((2, 1, 1, 1, 1)), ["V1"], ["a", "b"], (1, 1))
    with pytest.raises(ValueError, match="routing maps of one cell"):
        align.report([table(), cell], tmp_path / "r.html")
    with pytest.raises(ValueError, match=r"results\[0\] is a RoutingMap|results\[0\] is a list"):
        align.report([[maps]], tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def test_names_are_escaped(tmp_path):
    evil = routed(3, queries=('<b>"V4"</b>', "$x_1$ & co"), pictures=False)
    text = align.report(dataclasses.replace(evil, name="<i>"), tmp_path / "r.html").read_text()
    assert "<b>" not in text and "<i>" not in text and "&lt;b&gt;" in text
    assert "&lt;b&gt;" in routing_lede(evil).replace("<", "&lt;").replace(">", "&gt;")
