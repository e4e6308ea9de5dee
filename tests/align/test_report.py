"""The page of a report and the figures in it."""

import base64
import itertools
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from scipy.spatial import procrustes
from scipy.spatial.distance import pdist, squareform

from neuralign import align
from neuralign.align.report import figures, page, rdm_figures, rdm_sections
from neuralign.align.report.geometry import classical_mds, even_rows, evenly, onto, ranked
from neuralign.align.report.style import clip
from neuralign.align.report.summary import averaged, best_layers, headlines, percent, short
from neuralign.align.score import COLUMNS, Evidence, Score, tabulate
from neuralign.datasets.rdms import RDMs

REGIONS = ("V1", "V2", "V4", "IT")
MODELS = {
    "resnet20-cifar": ("layer1", "layer2", "layer3", "head"),
    "texture": ("moments", "statistics"),
    "dino-small": ("blocks.3", "blocks.8"),
    "pixels": ("pixels",),
    "untrained": ("random",),
}
LAYERS = [(model, layer) for model, layers in MODELS.items() for layer in layers]
DEMO_UNITS, DEMO_STIMULI = 1200, 60


def _mean_scores(rng):
    """(layer, region): every region peaks one layer later than the one before."""
    depth = {pair: (k + 1) / len(MODELS[pair[0]]) for pair in LAYERS for k in [MODELS[pair[0]].index(pair[1])]}
    peak = np.linspace(0.3, 0.95, len(REGIONS))
    table = np.array([[0.62 - 0.5 * (depth[pair] - at) ** 2 for at in peak] for pair in LAYERS])
    table -= 0.05 * np.array([list(MODELS).index(model) for model, _ in LAYERS])[:, None]
    return table + rng.normal(0, 0.015, table.shape)


def demo_scores(subjects=("m1",), dataset="demo-v4", seed=0):
    """Encoding scores as align.score gives them, with NaN cells and a region without a ceiling."""
    rng = np.random.default_rng(seed)
    scores, units = [], []
    region_of = rng.choice(REGIONS, DEMO_UNITS)
    for subject in subjects:
        mean = _mean_scores(rng)
        mean[6, 1] = np.nan
        ceilings = np.clip(rng.normal(0.74, 0.12, DEMO_UNITS), 0.1, 0.98)
        ceilings[region_of == "V2"] = np.nan
        for (model, layer), row in zip(LAYERS, mean, strict=True):
            per_unit = row[[REGIONS.index(name) for name in region_of]] * np.nan_to_num(ceilings, nan=0.7) / 0.74
            per_unit = per_unit + rng.normal(0, 0.07, DEMO_UNITS)
            frame = pd.DataFrame({"model": model, "layer": layer, "subject": subject, "region": region_of})
            frame["unit"] = [f"u{k}" for k in range(DEMO_UNITS)]
            units.append(frame.assign(metric="r", score=per_unit, ceiling=ceilings))
            for region, value in zip(REGIONS, row, strict=True):
                mine = region_of == region
                common = {"model": model, "layer": layer, "dataset": dataset, "subject": subject, "region": region}
                common |= {"n_units": int(mine.sum()), "n_stimuli": 600, "seed": seed}
                common |= {"formula": "encoding-1 RidgeCV cv=5 ceiling=split-half ci=stimuli p=stimuli"}
                limit = float(ceilings[mine].mean()) if region != "V2" else np.nan
                bounds = {"ci_low": value - 0.02, "ci_high": value + 0.022, "p": 0.001}
                scores.append(Score(metric="r", score=value, ceiling=limit, **bounds, **common))
                scores.append(Score(metric="r2", score=value**2, ceiling=limit**2, **common))
    provenance = {
        "made": "2026-11-21T12:00:00+00:00",
        "command": "neuralign score demo --seed 0",
        "versions": {"neuralign": "0.1.0", "torch": "2.6"},
        "options": {"seed": seed, "encoder": "RidgeCV()"},
    }
    return tabulate(scores, Evidence(units=pd.concat(units, ignore_index=True), provenance=provenance))


def demo_rsa(n_stimuli=DEMO_STIMULI, subjects=2, thumbnails=True, seed=1):
    """RSA scores as align.rsa gives them; stimuli are blobs whose colour and size the regions represent."""
    rng = np.random.default_rng(seed)
    kinds = np.arange(n_stimuli) * 5 // n_stimuli
    latent = np.clip(rng.random((5, 2))[kinds] + rng.normal(0, 0.09, (n_stimuli, 2)), 0, 1)
    colour = np.stack([0.25 + 0.7 * latent[:, 0], np.full(n_stimuli, 0.55), 0.95 - 0.7 * latent[:, 0]], 1)
    ids = [f"s{k:03d}" for k in range(n_stimuli)]
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    inside = (x**2 + y**2)[None] < (0.15 + 0.8 * latent[:, 1])[:, None, None]
    images = np.where(inside[..., None], colour[:, None, None], 0.93)
    vectors, rows = [], []
    for k, (model, layer) in enumerate(LAYERS):
        vectors.append(pdist(latent * [1, 0.1 + 0.1 * k] + rng.normal(0, 0.06, latent.shape)))
        rows.append({"kind": "model", "model": model, "layer": layer, "label": f"{model} {layer}"})
    for k, region in enumerate(REGIONS):
        for subject in range(subjects):
            vectors.append(pdist(latent * [1, 0.1 + 0.3 * k] + rng.normal(0, 0.12, latent.shape)))
            one = f"s{subject + 1}"
            rows.append({"kind": "brain", "region": region, "subject": one, "label": f"{region} {one}"})
    rdms = RDMs(np.array(vectors), ids, pd.DataFrame(rows), "euclidean")
    mean = _mean_scores(rng) * 0.8
    scores = [
        Score(
            model=model,
            layer=layer,
            dataset="demo-v4",
            subject=f"group of {subjects}",
            region=region,
            metric="rho-a",
            score=value,
            ceiling=0.66,
            ceiling_low=0.58,
            ci_low=value - 0.04,
            ci_high=value + 0.04,
            p=0.002,
            n_units=300,
            n_stimuli=n_stimuli,
            formula="rsa-euclidean-rho-a-1: mean over subjects; ci: bootstrap over stimuli",
            seed=seed,
        )
        for region, column in zip(REGIONS, mean.T, strict=True)
        for (model, layer), value in zip(LAYERS, column, strict=True)
    ]
    pictures = (255 * images).astype(np.uint8) if thumbnails else None
    provenance = {"analysis": "rsa", "rdm": "euclidean", "bootstrap": 1000, "seed": seed}
    return tabulate(scores, Evidence(rdms=rdms, thumbnails=pictures, provenance=provenance))


@pytest.fixture(scope="module")
def tables():
    return [demo_scores(), demo_rsa()]


@pytest.fixture(scope="module")
def html(tables, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert align.report(tables, path) == path
    return path.read_text()


class _Outline(HTMLParser):
    """Headings, pictures, table cells, and the tags that are open."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.images, self.rows, self.ids, self.links = [], [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs[name] for name in ("href", "src") if name in attrs]
        if tag in ("h1", "h2", "h3"):
            self.headings.append([tag, ""])
        elif tag == "img":
            self.images.append(attrs)
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1][1] += data
        elif {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.strip()


def _decoded(uri):
    return base64.b64decode(uri.split(",", 1)[1])


# --------------------------------------------------------------------------------------------------------- page


def test_sections_stand_in_order_and_html_is_well_formed(html):
    outline = _Outline(html)
    assert not outline.open
    assert [text for tag, text in outline.headings if tag != "h3"] == [
        "neuralign report",
        "Encoding scores",
        "Unit scores against their ceilings",
        "RDM gallery",
        "RSA scores",
        "Maps of the stimuli",
        "From layer to layer",
        "Table",
        "How it was made",
    ]
    levels = [int(tag[1]) for tag, _ in outline.headings]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert len(set(outline.ids)) == len(outline.ids)
    assert {link[1:] for link in outline.links if link.startswith("#")} <= set(outline.ids)
    assert '<html lang="en">' in html and "<title>neuralign report</title>" in html and 'name="viewport"' in html


def test_nothing_is_fetched_from_outside(html):
    outline = _Outline(html)
    assert all(link.startswith(("data:", "#")) for link in outline.links)
    assert "http" not in re.sub(r"data:[^\"]*", "", html)
    assert "@import" not in html and "url(" not in html
    for image in outline.images:
        if "svg" in image["src"][:20]:
            drawn = _decoded(image["src"]).decode()
            references = re.findall(r'(?:xlink:)?href="([^"]*)"|url\(([^)]*)\)', drawn)
            assert all((a or b).startswith(("#", "data:")) for a, b in references)


def test_every_picture_has_words_and_a_size(html):
    images = _Outline(html).images
    assert len(images) == 8
    assert html.count("<figcaption>") == len(images)
    for image in images:
        assert len(image["alt"]) > 30
        assert 200 < int(image["width"]) <= 1040
    maps = images[-1]["src"]
    assert maps.startswith("data:image/png")  # thumbnails


def test_table_holds_every_row_with_three_decimals(html, tables):
    rows = _Outline(html).rows
    both = pd.concat(tables, ignore_index=True)
    assert len(rows) == 1 + len(both)
    header, cells = rows[0], rows[1:]
    assert header == [column for column in COLUMNS if column != "dataset"]  # the same everywhere, said above
    assert "dataset <code>demo-v4</code>" in html
    shown = [row[header.index("score")] for row in cells]
    assert shown == ["–" if np.isnan(v) else f"{v:.3f}".replace("-", "−") for v in both["score"]]
    assert {row[header.index("n_units")] for row in cells} == {str(n) for n in both["n_units"].unique()}
    assert "nan" not in re.sub(r"data:[^\"]*", "", html).lower().split()


def test_csv_that_is_downloaded_loads_again(html, tables, tmp_path):
    uri = next(link for link in _Outline(html).links if link.startswith("data:text/csv"))
    (tmp_path / "t.csv").write_bytes(_decoded(uri))
    back = align.load_results(tmp_path / "t.csv")
    expected = pd.concat(tables, ignore_index=True)
    pd.testing.assert_frame_equal(back, expected, check_dtype=False, check_exact=True)


def test_the_method_names_versions_options_and_formulas(html):
    for text in (
        "neuralign 0.1.0, torch 2.6",
        "neuralign score demo --seed 0",
        "encoder = RidgeCV()",
        "bootstrap</dt>",
    ):
        assert text in html
    for table in (demo_scores(), demo_rsa()):
        assert table["formula"][0] in html


def test_names_are_escaped(tmp_path):
    evil = '<script>alert("x")</script> & $x_1$'
    score = Score(evil, "l", evil, "s", evil, "r", 0.4, formula="<i>")
    text = align.report(tabulate([score]), tmp_path / "r.html").read_text()
    assert text.count("<script>") == 1 and "<i>" not in text
    assert "&lt;script&gt;" in text


def test_the_same_results_give_the_same_bytes(tables, tmp_path):
    some = tables[1][tables[1]["region"] == "V4"]
    one, two = (align.report(some, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert one == two


def test_a_table_alone_gives_scores_and_table(tmp_path, tables):
    align.save_results(tables[0], tmp_path / "t.csv")
    text = align.report(align.load_results(tmp_path / "t.csv"), tmp_path / "r.html").read_text()
    titles = [title for _, title in _Outline(text).headings]
    assert titles == ["neuralign report", "Encoding scores", "Table", "How it was made"]


def test_parts_of_a_score_are_listed_and_not_ranked(tmp_path):
    """Layers as bands: all of them have the score, each has a part of it, and a part may look like the best layer."""
    rows = [Score("net", layer, "set", "1", "V4", "r", score) for layer, score in (("all", 0.4), ("one", 0.5))]
    whole = tabulate([replace(row, formula="bands-1 BandedRidgeCV cv=5", n_units=3, n_stimuli=9) for row in rows])
    page = align.report(whole, tmp_path / "page.html").read_text()
    said, table = page.split("<table", 1)
    assert "net · all" in said and "net · one" not in said
    assert re.search(r">\s*one\s*<", table)


def test_evidence_from_a_file_gives_the_same_figures(tmp_path, tables, html):
    for k, table in enumerate(tables):
        align.save_results(table, tmp_path / f"{k}.h5")
    text = align.report([align.load_results(tmp_path / f"{k}.h5") for k in range(2)], tmp_path / "r.html").read_text()
    first, second = _Outline(html).images, _Outline(text).images
    assert [image["alt"] for image in first] == [image["alt"] for image in second]
    assert first[2]["src"] == second[2]["src"]  # units


def test_two_computations_and_two_datasets_are_kept_apart(tmp_path):
    ridge = demo_scores().query("region == 'V4'")
    ridge.attrs = {}
    pls = ridge.assign(formula="encoding-1 PLSRegression", score=ridge["score"] - 0.1)
    text = align.report([ridge, pls], tmp_path / "r.html").read_text()
    titles = [title for tag, title in _Outline(text).headings if tag == "h3"]
    assert titles == [ridge["formula"].iloc[0], "encoding-1 PLSRegression"]
    text = align.report([ridge, ridge.assign(dataset="second")], tmp_path / "r.html").read_text()
    assert "demo-v4 · V4 is best" in text and "second · V4 is best" in text


@pytest.mark.parametrize("rows", [slice(0, 1), slice(0, 0)])
def test_small_and_unscored_tables(tmp_path, rows):
    table = demo_scores()
    table.attrs = {}
    unscored = table.assign(score=np.nan, normalised=np.nan, ci_low=np.nan, ci_high=np.nan)
    text = align.report([unscored.iloc[:8], table.iloc[rows]], tmp_path / "r.html").read_text()
    assert "could not be scored" in text


def test_bad_input(tmp_path, tables):
    path = tmp_path / "r.html"
    with pytest.raises(ValueError, match="empty list"):
        align.report([], path)
    with pytest.raises(ValueError, match="no rows"):
        align.report([tabulate([])], path)
    with pytest.raises(ValueError, match=r"results\[1\] lacks the columns region, formula"):
        align.report([tables[0], tables[0].drop(columns=["region", "formula"])], path)
    with pytest.raises(ValueError, match="results is a dict"):
        align.report({}, path)
    with pytest.raises(ValueError, match="is a folder"):
        align.report(tables, tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        align.report(tables, tmp_path / "nowhere" / "r.html")
    assert not list(tmp_path.iterdir())


def test_a_failed_report_leaves_the_old_one(tmp_path, tables, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("old")
    monkeypatch.setattr(page, "render", lambda *tables: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        align.report(tables, path)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_a_report_needs_no_pyplot_and_changes_no_settings(tmp_path):
    code = f"""
import sys
import neuralign.align as align
assert not {{"matplotlib", "jinja2"}} & set(sys.modules)
import matplotlib
before = {{name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != 'backend'}}
align.report(align.score_table, {str(tmp_path / "r.html")!r})
assert all(matplotlib.rcParams[name] == value for name, value in before.items())
assert "matplotlib.pyplot" not in sys.modules
"""
    made = "from neuralign.align.score import Score, tabulate\n"
    made += "align.score_table = tabulate([Score('m', 'l', 'd', 's', 'V1', 'r', 0.5)])\n"
    code = code.replace("import matplotlib\n", made + "import matplotlib\n", 1)
    subprocess.run([sys.executable, "-c", code], check=True)


# -------------------------------------------------------------------------------------------------------- words


def test_headline_of_one_region():
    common = {"dataset": "d", "subject": "s", "region": "V4", "metric": "r"}
    best = Score("texture", "statistics", score=0.62, ceiling=0.78, ci_low=0.6, ci_high=0.64, **common)
    worse = Score("pixels", "pixels", score=-0.03, ceiling=0.78, **common)
    assert headlines(tabulate([worse, best])) == [
        "V4 is best predicted by texture / statistics: r = .62 [.60, .64], ceiling .78, 79\u00a0% of it."
    ]
    alone = replace(worse, ceiling=np.nan, p=0.7)
    assert headlines(tabulate([alone])) == [
        "V4 is best predicted by pixels: r = −.03, ceiling unknown; not above chance (p\u00a0=\u00a0.70)."
    ]


def test_headline_over_subjects_averages_and_gives_the_range():
    rows = [
        Score("m", "a", "d", subject, "V4", "rho-a", score, ceiling=0.8, ci_low=0.1, ci_high=0.9, formula="rsa-x")
        for subject, score in (("s1", 0.2), ("s2", 0.4), ("s3", 0.9))
    ]
    rows.append(Score("m", "b", "d", "s1", "V4", "rho-a", 0.49, ceiling=0.8, formula="rsa-x"))
    assert headlines(tabulate(rows)) == [
        "The geometry of V4 is best matched by m / a: mean rho-a = .50 over 3 subjects (.20 to .90), ceiling .80, "
        "62\u00a0% of it."
    ]
    mean = averaged(tabulate(rows))
    assert mean["n_rows"].tolist() == [3, 1]
    assert np.isnan(mean["ci_low"]).tolist() == [True, True]


def test_r_goes_before_other_metrics_and_models_stay_together():
    names = [("a", "1"), ("b", "1"), ("a", "2")]
    rows = [Score(*name, "d", "s", "V1", metric, 0.5) for name in names for metric in ("r2", "r")]
    mean = averaged(tabulate(rows))
    assert mean[["model", "layer"]].to_numpy().tolist() == [["a", "1"], ["a", "2"], ["b", "1"]]
    assert best_layers(mean) == {"V1": ("a", "1")}


@pytest.mark.parametrize(
    ("value", "text"), [(0.624, ".62"), (-0.05, "−.05"), (1.2, "1.20"), (-0.001, ".00"), (np.nan, "–"), (1.0, "1.00")]
)
def test_numbers_in_sentences(value, text):
    assert short(value) == text


def test_shares_and_clipped_names():
    assert [percent(v) for v in (0.8, -0.042, -0.001, np.nan)] == ["80\u00a0%", "−4\u00a0%", "0\u00a0%", ""]
    assert clip("blocks.11.mlp.fc2", 40) == "blocks.11.mlp.fc2"
    for most in (7, 8, 16):
        short_name = clip("torchvision/resnet50.layer4.2.relu", most)
        assert len(short_name) == most and short_name.endswith("elu") and short_name.startswith("tor")


# ------------------------------------------------------------------------------------------------------ figures


def _texts(fig):
    return [text.get_text() for ax in fig.axes for text in ax.texts if text.get_text()]


def test_heatmap_prints_scores_shares_and_marks_the_best(tables):
    fig = figures.score_heatmap(tables[0])
    ax = fig.axes[0]
    r = tables[0][tables[0]["metric"] == "r"]
    printed = _texts(fig)
    for value, share in zip(r["score"], r["normalised"], strict=True):
        assert short(value) in printed
        assert percent(share) in ["", *printed]
    assert [t.get_text() for t in ax.get_xticklabels()] == list(REGIONS)
    assert [t.get_text() for t in ax.get_yticklabels()][-2:] == ["pixels", "untrained · random"]
    stars = [line for line in ax.lines if line.get_marker() == "*"]
    best = best_layers(averaged(tables[0]))
    marked = {(int(line.get_ydata()[0]), int(line.get_xdata()[0])) for line in stars}
    assert marked == {(LAYERS.index(best[region]), REGIONS.index(region)) for region in REGIONS}


@pytest.mark.parametrize(("n_layers", "n_regions"), [(1, 1), (45, 3), (150, 12)])
def test_heatmap_and_profile_of_any_size_fit_the_page(n_layers, n_regions, recwarn):
    rng = np.random.default_rng(0)
    rows = [
        Score(f"model {k % 3}", f"layer with a rather long name {k}", "d", "s", f"region {j}", "r", rng.normal())
        for k in range(n_layers)
        for j in range(n_regions)
    ]
    for draw in (figures.score_heatmap, figures.layer_profile):
        fig = draw(tabulate(rows))
        fig.canvas.draw()
        assert fig.get_figwidth() <= figures.WIDTH + 1e-9
    assert not recwarn.list


def test_profile_draws_scores_intervals_and_ceiling(tables):
    fig = figures.layer_profile(tables[0])
    ax = fig.axes[REGIONS.index("V4")]
    assert ax.get_title(loc="left") == "V4"
    r = tables[0].query("metric == 'r' and region == 'V4'")
    drawn = np.concatenate([line.get_ydata() for line in ax.lines if line.get_marker() in ("o", "D")])
    assert set(np.round(r["score"], 9)) <= set(np.round(drawn.astype(float), 9))
    bars = np.concatenate([segment for bar in ax.containers for segment in bar[2][0].get_segments()])
    np.testing.assert_allclose(np.sort(bars[:, 1]), np.sort(r[["ci_low", "ci_high"]].to_numpy().ravel()))
    dashed = [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--"]
    assert dashed == [r["ceiling"].median()]
    assert "ceiling unknown" in [t.get_text() for t in fig.axes[REGIONS.index("V2")].texts]
    low, high = ax.get_ylim()
    assert low == 0 and high < 0.9


def test_profile_of_subjects_shows_each_of_them():
    table = demo_scores(subjects=("s1", "s2", "s3"))
    ax = figures.layer_profile(table).axes[0]
    thin = [line for line in ax.lines if line.get_alpha() == 0.4]
    assert len(thin) == 3 * len(MODELS)
    one = table.query("metric == 'r' and region == 'V1' and subject == 's2' and model == 'texture'")["score"]
    assert any(len(line.get_ydata()) == 2 and np.allclose(line.get_ydata(), one) for line in thin)


def test_subject_heatmaps_share_one_scale():
    table = demo_scores(subjects=("s1", "s2", "s3", "s4", "s5"))
    fig = figures.subject_heatmaps(table)
    shown = [ax for ax in fig.axes if ax.get_visible() and ax.get_title(loc="left")]
    assert [ax.get_title(loc="left") for ax in shown] == ["s1", "s2", "s3", "s4", "s5"]
    meshes = [ax.collections[0] for ax in shown]
    assert len({(mesh.norm.vmin, mesh.norm.vmax) for mesh in meshes}) == 1
    own = table.query("metric == 'r' and subject == 's4'").pivot(
        index=["model", "layer"], columns="region", values="score"
    )
    np.testing.assert_allclose(
        np.ma.filled(meshes[3].get_array(), np.nan).ravel(), own.loc[LAYERS, list(REGIONS)].to_numpy().ravel()
    )


def test_unit_histograms_count_every_unit(tables):
    units = tables[0].attrs["evidence"].units.query("model == 'pixels'").assign(target=lambda t: t["region"])
    fig = figures.unit_histograms(units)
    for ax in fig.axes:
        if ax.get_title(loc="left"):
            n = (units["region"] == ax.get_title(loc="left")).sum()
            bars = [c for c in ax.containers if len(c) == 30 and sum(b.get_height() for b in c) == n]
            assert bars, ax.get_title(loc="left")
    scatters = [ax for ax in fig.axes if ax.collections]
    assert len(scatters) == 3  # V2 has no ceiling
    many = pd.concat([units.assign(unit=units["unit"] + str(k)) for k in range(11)])
    assert not any(ax.collections for ax in figures.unit_histograms(many).axes)


def test_gallery_draws_at_most_twelve_with_the_best_and_says_so(html, tables):
    evidence = tables[1].attrs["evidence"]
    brain, model = rdm_sections.brain_rdms(evidence.rdms), rdm_sections.model_rdms(evidence.rdms)
    assert brain.table["label"].tolist() == list(REGIONS)
    one = evidence.rdms.select(kind="brain", region="V4").vectors.mean(0)
    np.testing.assert_allclose(brain.select(region="V4").vectors[0], one)
    best = best_layers(averaged(tables[1]))
    shown = rdm_sections.chosen_rdms(brain, model, best)
    assert len(shown) == 12 and len(brain) + len(model) == 14
    assert {page.layer_name(*layer) for layer in best.values()} <= set(shown.table["label"])
    assert "12 of 14 RDMs are shown" in html
    fig = rdm_figures.rdm_gallery(shown)
    pictures = [ax.images[0] for ax in fig.axes if ax.images]
    assert len(pictures) == 12
    np.testing.assert_array_equal(pictures[2].get_array(), ranked(shown[2]))


def test_large_rdms_are_thinned_and_the_caption_says_so(tmp_path):
    table = demo_rsa(n_stimuli=310, subjects=1, thumbnails=False)
    text = align.report(table, tmp_path / "r.html").read_text()
    assert "Drawn from 300 of 310 stimuli" in text
    assert "100 of 310 stimuli" in text
    assert len(text) < 3e6


def test_maps_show_thumbnails_or_dots(tables):
    evidence = tables[1].attrs["evidence"]
    brain, model = evidence.rdms[len(LAYERS)], evidence.rdms[0]
    pairs = [("V1", brain, "layer", model)]
    with_pictures = rdm_figures.stimulus_maps(pairs, evidence.thumbnails)
    assert [len(ax.artists) for ax in with_pictures.axes] == [DEMO_STIMULI] * 2
    dots = rdm_figures.stimulus_maps(pairs, None, most_stimuli=20)
    places = dots.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(places, classical_mds(evenly(brain, 20))[0])


# ----------------------------------------------------------------------------------------------------- geometry


def _plane(n=15, seed=0):
    points = np.random.default_rng(seed).normal(size=(n, 2)) * [3, 1]
    return points - points.mean(0), RDMs(pdist(points), list(map(str, range(n))))


def test_classical_mds_recovers_points_of_a_plane():
    points, rdm = _plane()
    found, share = classical_mds(rdm)
    np.testing.assert_allclose(pdist(found), pdist(points), rtol=1e-6)
    assert share == pytest.approx(1)
    _, again, disparity = procrustes(points, found)
    assert disparity < 1e-12 and again.shape == points.shape


def test_classical_mds_equals_principal_components():
    points = np.random.default_rng(1).normal(size=(20, 6)) * [5, 3, 1, 1, 0.5, 0.5]
    found, share = classical_mds(RDMs(pdist(points), list(map(str, range(20)))))
    centred = points - points.mean(0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :2] * singular[:2]
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-5, atol=1e-6)
    assert share == pytest.approx((singular[:2] ** 2).sum() / (singular**2).sum())
    assert (found[np.abs(found).argmax(0), [0, 1]] > 0).all()  # signs are fixed


def test_classical_mds_leaves_out_stimuli_with_unknown_pairs():
    points, rdm = _plane()
    matrix = squareform(rdm.vectors[0].copy())
    matrix[4, 5:] = matrix[5:, 4] = np.nan
    found, _ = classical_mds(RDMs(squareform(matrix, checks=False), rdm.stimulus_ids))
    kept = np.arange(len(points)) != 4
    assert np.isnan(found[4]).all()
    np.testing.assert_allclose(pdist(found[kept]), pdist(points[kept]), rtol=1e-6)
    nothing, share = classical_mds(RDMs(np.full((1, 105), np.nan), rdm.stimulus_ids))
    assert np.isnan(nothing).all() and np.isnan(share)


def test_maps_are_turned_onto_each_other():
    points, _ = _plane()
    angle = 1.1
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([1, -1])
    np.testing.assert_allclose(onto(points @ turn * 7 + 3, points), points, atol=1e-9)
    other = points + np.random.default_rng(2).normal(size=points.shape)
    # SciPy scales both to unit length and the second by the agreement too; the direction is the same.
    _, theirs, _ = procrustes(points, other)
    mine = onto(other, points)
    np.testing.assert_allclose(mine / np.linalg.norm(mine), theirs / np.linalg.norm(theirs), atol=1e-9)
    assert np.linalg.norm(mine) == pytest.approx(np.linalg.norm(points))


def test_ranks_of_an_rdm():
    matrix = ranked(RDMs(np.array([10.0, np.nan, 5.0, 5.0, 100.0, 7.0]), list("abcd")))
    expected = squareform(np.array([3.0, np.nan, 0.5, 0.5, 4.0, 2.0]) / 4, checks=False)
    np.testing.assert_allclose(matrix, expected)


@pytest.mark.parametrize(("n", "most"), [(5, 10), (300, 300), (301, 300), (1000, 100)])
def test_stimuli_are_taken_at_even_distances(n, most):
    rows = even_rows(n, most)
    assert len(rows) == len(set(rows)) == min(n, most)
    assert rows[0] == 0 and rows[-1] == n - 1
    assert np.ptp(np.diff(rows)) <= 1


def test_figures_leave_settings_alone(tables):
    before = dict(mpl.rcParams)
    figures.layer_profile(tables[1])
    rdm_figures.rdm_gallery(tables[1].attrs["evidence"].rdms[:3])
    assert dict(mpl.rcParams) == before
