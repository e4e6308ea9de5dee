"""RSA with transforms, other things drawn, whitened dissimilarities; and models against each other."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from neuralign.align.compare import METHODS, compare, rsa_ceiling
from neuralign.align.inference import ModelComparison, compare_models
from neuralign.align.multiple import fdr
from neuralign.align.rdm import rdm
from neuralign.align.rdm_models import FixedRDM, InterpolatedRDM, SelectedRDM, WeightedRDM
from neuralign.align.rsa import model_comparison, rsa
from neuralign.align.rsa_sides import Topology
from neuralign.align.topology import rgdm, rgtm
from neuralign.datasets.rdms import RDMs
from neuralign.datasets.recording import Recording

IDS = [f"s{k:02d}" for k in range(16)]
QUICK = {"bootstrap": 20, "permutations": 20}
NONE = {"bootstrap": 0, "permutations": 0}


class Layers:
    """Stand-in for Features."""

    def __init__(self, model, **layers):
        self.model, self.layers, self.stimulus_ids = model, list(layers), IDS
        self.arrays = layers

    def __getitem__(self, layer):
        return self.arrays[layer]


@pytest.fixture
def latent():
    return np.random.default_rng(5).normal(size=(len(IDS), 4))


@pytest.fixture
def features(latent):
    rng = np.random.default_rng(0)
    return Layers("net", early=rng.normal(size=(len(IDS), 12)), late=latent @ rng.normal(size=(4, 30)))


def recording(latent, subjects=("A", "B", "C"), n_runs=4, noise=1.0, seed=1, regions=("V1", "IT")):
    """Every stimulus once a run; counts where noise is None."""
    rng = np.random.default_rng(seed)
    presentations = pd.DataFrame({"stimulus": IDS * n_runs, "run": np.repeat(np.arange(n_runs), len(IDS))})
    blocks, units = [], []
    for subject in subjects:
        for region in regions:
            basis = latent if region == "IT" else rng.normal(size=latent.shape)
            signal = np.tile(basis @ rng.normal(size=(4, 20)), (n_runs, 1))
            if noise is None:
                blocks.append(rng.poisson(np.exp(0.5 * signal + 1)).astype(float))
            else:
                blocks.append(signal + noise * rng.normal(size=signal.shape))
            units += [{"subject": subject, "region": region}] * 20
    return Recording(np.concatenate(blocks, axis=1), presentations, pd.DataFrame(units), name="toy")


# ----------------------------------------------------------------------------------------------------- topology


@pytest.mark.parametrize(
    ("topology", "function", "thresholds", "options", "named"),
    [
        ((0.2, 0.8), rgtm, (0.2, 0.8), {}, "RGTM from 0.2 to 0.8"),
        ([0.5, 0.5], rgtm, (0.5, 0.5), {}, "RGTM from 0.5 to 0.5"),
        (
            {"lower": 0.1, "upper": 0.6, "threshold": "value-quantile"},
            rgtm,
            (0.1, 0.6),
            {"threshold": "value-quantile"},
            "RGTM from 0.1 to 0.6, threshold value-quantile",
        ),
        ({"lower": 0, "upper": 0.5, "transform": "rgdm"}, rgdm, (0.0, 0.5), {}, "RGDM from 0 to 0.5"),
    ],
)
def test_topology_transforms_both_sides_each_rdm_on_its_own(
    latent, features, topology, function, thresholds, options, named
):
    brain = recording(latent)
    table = rsa(features, brain, compare="pearson", topology=topology, **NONE)
    model = function(rdm(features), *thresholds, **options)
    for region in ("V1", "IT"):
        replicates = function(rdm(brain).select(region=region), *thresholds, **options)
        rows = table[table["region"] == region]
        np.testing.assert_allclose(rows["score"], compare(model, replicates, "pearson").mean(1), atol=1e-12)
        assert (rows["ceiling_low"].iloc[0], rows["ceiling"].iloc[0]) == pytest.approx(
            rsa_ceiling(replicates, "pearson")
        )
    assert table["formula"][0] == f"rsa-correlation-pearson-1: {named}, mean over subjects"
    np.testing.assert_allclose(table.attrs["evidence"].rdms.vectors[:2], model.vectors)
    assert table.attrs["evidence"].provenance["options"]["topology"] == named


def test_topology_comes_after_the_average_over_subjects_and_its_ceiling_is_of_transformed_halves(latent, features):
    brain = recording(latent)
    table = rsa(features, brain, compare="pearson", topology=(0.2, 0.8), subjects="average", **NONE)
    average = rgtm(rdm(brain).select(region="IT").mean(), 0.2, 0.8)
    late = table.query("region == 'IT' and layer == 'late'").iloc[0]
    expected = compare(rgtm(rdm(features), 0.2, 0.8), average, "pearson")[1, 0]
    assert late["score"] == pytest.approx(expected, abs=1e-12)
    plain = rsa(features, brain, compare="pearson", subjects="average", **NONE)
    assert late["ceiling"] > late["score"] and late["ceiling"] != plain["ceiling"].iloc[-1]
    alone = rsa(features, recording(latent, subjects=["A"]), compare="pearson", topology=(0.2, 0.8), **NONE)
    assert alone["ceiling"].between(0.3, 1).all()


def test_full_range_of_ranks_changes_no_rank_comparison(latent, features):
    brain = recording(latent)
    plain = rsa(features, brain, compare="spearman", **QUICK)
    ranked = rsa(features, brain, compare="spearman", topology=(0, 1), **QUICK)
    for column in ("score", "ceiling", "ceiling_low", "ci_low", "ci_high", "p"):
        np.testing.assert_allclose(ranked[column], plain[column], atol=1e-9)


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ((0.8, 0.2), r"topology=\(0.8, 0.2\): the lower threshold must not be above the upper"),
        ((0.2,), r"topology=\(0.2,\); expected two thresholds"),
        ("0.2,0.8", "expected two thresholds"),
        (0.5, "expected two thresholds"),
        ({"lower": 0.2}, "topology lacks upper"),
        ({"lower": 0.2, "upper": 0.8, "transform": "rgmt"}, "did you mean 'rgtm'"),
        ((0.2, 1.8), "upper=1.8"),
        (("a", "b"), "expected two thresholds"),
        ({"lower": 0.2, "upper": 0.8, "shpe": "linear"}, "option of topology='shpe' is unknown; did you mean 'shape'"),
    ],
)
def test_thresholds_that_are_none(latent, features, topology, message):
    with pytest.raises(ValueError, match=message):
        rsa(features, recording(latent), topology=topology, **NONE)


def test_topology_is_read_once():
    given = Topology.of((0, 1))
    assert Topology.of(given) is given and Topology.of(None) is None


# -------------------------------------------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("over", ["subjects", "both"])
def test_intervals_over_subjects_are_those_of_the_comparison_of_models(latent, features, over):
    brain = recording(latent, subjects="ABCDE")
    table = rsa(features, brain, over=over, bootstrap=200, permutations=20, seed=4)
    evidence = table.attrs["evidence"]
    assert list(evidence.comparison) == ["V1", "IT"]
    for region, comparison in evidence.comparison.items():
        rows = table[table["region"] == region]
        assert isinstance(comparison, ModelComparison) and comparison.over == over and comparison.n_subjects == 5
        np.testing.assert_allclose(rows["score"], comparison.scores, atol=1e-9)
        np.testing.assert_array_equal(rows[["ci_low", "ci_high"]], comparison.interval())
        np.testing.assert_allclose(rows[["ceiling_low", "ceiling"]].iloc[0], comparison.ceiling, atol=1e-9)
        again = compare_models(
            rdm(features), rdm(brain).select(region=region), "rho-a", over=over, bootstrap=200, seed=comparison.seed
        )
        np.testing.assert_allclose(comparison.samples, again.samples, atol=1e-12)
    drawn = {"subjects": "bootstrap over subjects, t", "both": "dual bootstrap over stimuli and subjects, t"}[over]
    assert f"; ci: {drawn}; p:" in table["formula"][0]
    pd.testing.assert_frame_equal(table, rsa(features, brain, over=over, bootstrap=200, permutations=20, seed=4))


def test_bootstrap_over_subjects_is_a_t_interval_of_their_scores(latent, features):
    """Its variance is that of the mean over subjects, so with many draws the interval is the textbook one."""
    brain = recording(latent, subjects="ABCDEF", noise=3.0)
    table = rsa(features, brain, over="subjects", bootstrap=20_000, permutations=0)
    each = compare(rdm(features), rdm(brain).select(region="IT"))[1]
    late = table.query("region == 'IT' and layer == 'late'").iloc[0]
    low, high = student.interval(0.95, 5, each.mean(), each.std(ddof=1) / np.sqrt(6))
    assert late["ci_low"] == pytest.approx(low, abs=0.03 * (high - low))
    assert late["ci_high"] == pytest.approx(high, abs=0.03 * (high - low))


def test_rdms_that_nothing_names_are_replicates_and_numbered_models(latent):
    rng = np.random.default_rng(0)
    brain = RDMs(rng.random((4, 120)), IDS)
    models = [RDMs(rng.random((2, 120)), IDS), RDMs(rng.random((1, 120)), IDS)]
    table = rsa(models, brain, over="both", bootstrap=20, permutations=0)
    assert table["model"].tolist() == ["model 1", "model 2", "model 3"]
    [found] = table.attrs["evidence"].comparison.values()
    assert found.n_subjects == 4 and found.names == table["model"].tolist()
    assert model_comparison(models, brain, over="subjects", bootstrap=20).n_subjects == 4


def test_over_stimuli_is_the_default_and_compares_no_models(latent, features):
    brain = recording(latent)
    pd.testing.assert_frame_equal(rsa(features, brain, **QUICK), rsa(features, brain, over="stimuli", **QUICK))
    assert not rsa(features, brain, **QUICK).attrs["evidence"].comparison
    assert not rsa(features, brain, over="both", **NONE).attrs["evidence"].comparison


def test_subjects_cannot_be_drawn_from_one(latent, features):
    with pytest.raises(ValueError, match="over='both' draws subjects, but region 'V1' has one RDM; use over='stimuli'"):
        rsa(features, recording(latent, subjects=["A"]), over="both", **QUICK)
    with pytest.raises(ValueError, match="subjects='average' leaves one RDM per region"):
        rsa(features, recording(latent), over="subjects", subjects="average", **QUICK)
    with pytest.raises(ValueError, match="over='stimulus' is unknown; did you mean 'stimuli'"):
        rsa(features, recording(latent), over="stimulus")


def test_average_of_several_subjects_of_a_recording(latent, features):
    brain = recording(latent, regions=("IT",))
    table = rsa(features, brain, subjects="average", **QUICK)
    assert (table["subject"] == "average of 3").all() and table["ceiling"].between(0.3, 1).all()
    expected = compare(rdm(features), rdm(brain).select(region="IT").mean())[1, 0]
    assert table["score"].iloc[-1] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_every_comparison_runs_through_the_pipeline(latent, features, method):
    """Scores are those of `compare`; the right layer is found."""
    brain = recording(latent)
    bootstrap = 0 if method in ("bures", "riemannian") else 20  # a kernel with a stimulus twice has no inverse
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # correlation distances are not all Euclidean
        table = rsa(features, brain, rdm="sqeuclidean", compare=method, bootstrap=bootstrap, permutations=20)
        expected = compare(rdm(features, "sqeuclidean"), rdm(brain, "sqeuclidean").select(region="IT"), method)
    rows = table[table["region"] == "IT"]
    np.testing.assert_allclose(rows["score"], expected.mean(1), atol=1e-9)
    if np.isfinite(expected).all():
        assert rows["score"].iloc[1] > rows["score"].iloc[0]
        assert rows["p"].iloc[1] < 0.1 and (rows["ceiling"] >= rows["ceiling_low"]).all()


# ------------------------------------------------------------------------------------- whitened and cross-validated


@pytest.mark.parametrize(
    ("method", "options", "noise"),
    [
        ("mahalanobis", {"noise": "shrinkage-diagonal"}, 1.0),
        ("crossnobis", {"folds": "run"}, 1.0),
        ("crossnobis", {"folds": "run", "noise": "diagonal"}, 1.0),
        ("poisson", {}, None),
        ("poisson-cv", {"folds": "run"}, None),
    ],
)
def test_brain_by_its_own_dissimilarity_and_models_by_squared_distances(latent, features, method, options, noise):
    brain = recording(latent, noise=noise)
    table = rsa(features, brain, rdm=method, compare="pearson", **options, **NONE)
    expected = compare(rdm(features, "sqeuclidean"), rdm(brain, method, **options).select(region="IT"), "pearson")
    rows = table[table["region"] == "IT"]
    np.testing.assert_allclose(rows["score"], expected.mean(1), atol=1e-9)
    assert rows["score"].iloc[1] > 0.5 > rows["score"].iloc[0]
    assert table["formula"][0] == f"rsa-{method}-pearson-1: models sqeuclidean, mean over subjects"
    stated = table.attrs["evidence"].provenance["options"]
    assert {name: stated.get(name) for name in options} == options


def test_ceiling_of_one_subject_from_halves_of_the_folds(latent, features):
    alone, noisy = (recording(latent, subjects=["A"], n_runs=6, noise=noise) for noise in (0.5, 4.0))
    arguments = {"rdm": "crossnobis", "compare": "pearson", "folds": "run", **NONE}
    table = rsa(features, alone, **arguments)
    assert table["ceiling"].between(0.8, 1).all()
    assert (rsa(features, noisy, **arguments)["ceiling"].fillna(0) < table["ceiling"] - 0.05).all()
    few = recording(latent, subjects=["A"], n_runs=3)
    assert rsa(features, few, **arguments)["ceiling"].isna().all()  # no two folds in each half
    assert rsa(features, alone, **(arguments | {"folds": None}))["ceiling"].isna().all()  # folds without a name


@pytest.mark.parametrize("noise", ["diagonal", "vector", "shrinkage-diagonal"])
def test_ceiling_of_one_subject_with_whitened_halves(latent, features, noise):
    brain = recording(latent, subjects=["A", "B"])
    brain = Recording(brain.responses[:, :60], brain.presentations, brain.units[:60])  # V1 twice, IT of A alone
    given = np.linspace(0.5, 2, 60) if noise == "vector" else noise
    table = rsa(features, brain, rdm="mahalanobis", compare="pearson", noise=given, **NONE)
    assert table["subject"].tolist() == ["group of 2"] * 2 + ["A"] * 2
    assert table["ceiling"].between(0.2, 1).all() and table["ceiling_low"].isna().tolist() == [False] * 2 + [True] * 2


def test_given_rdms_take_no_noise_folds_or_window(latent, features):
    brain = rdm(recording(latent)).select(region="IT")
    for name, value in (("noise", "diagonal"), ("folds", "run"), ("window", 0.1)):
        with pytest.raises(ValueError, match=f"so {name} has no use"):
            rsa(features, brain, **{name: value}, **NONE)
    with pytest.raises(ValueError, match="method='correlation' takes no noise"):
        rsa(features, recording(latent), noise="diagonal", **NONE)
    with pytest.raises(ValueError, match="folds='runs' is unknown; did you mean 'run'"):
        rsa(features, recording(latent), rdm="crossnobis", folds="runs", **NONE)


# --------------------------------------------------------------------------------------- models against each other


def test_models_are_compared_on_one_region(latent, features):
    brain = recording(latent)
    found = model_comparison(features, brain.select(region="IT"), compare="pearson", over="both", bootstrap=50, seed=2)
    assert found.names == ["net early", "net late"]
    expected = compare_models(
        rdm(features), rdm(brain).select(region="IT"), "pearson", over="both", bootstrap=50, seed=2
    )
    np.testing.assert_allclose(found.samples, expected.samples, atol=1e-12)
    pairs = found.pairwise("fdr")
    np.testing.assert_allclose(pairs["p_corrected"], fdr(pairs["p"].to_numpy()))
    with pytest.raises(ValueError, match=r"brain has 2 regions \('V1', 'IT'\); compare models on one"):
        model_comparison(features, brain)


def test_fitted_models_stand_beside_features(latent, features):
    brain = recording(latent).select(region="IT")
    parts = rdm(features)
    ordered = RDMs(parts.vectors, parts.stimulus_ids, parts.table, parts.method)
    found = model_comparison([features, WeightedRDM(ordered)], brain, compare="pearson", bootstrap=20, seed=0)
    assert len(found.names) == 3 and found.names[:2] == ["net early", "net late"]
    assert found.folds is not None and found.scores[2] > found.scores[0]


def test_topology_and_whitening_reach_the_comparison(latent, features):
    brain = recording(latent, n_runs=4).select(region="IT")
    found = model_comparison(
        features, brain, rdm="crossnobis", compare="pearson", topology=(0.1, 0.9), folds="run", over="none"
    )
    model = rgtm(rdm(features, "sqeuclidean"), 0.1, 0.9)
    replicates = rgtm(rdm(brain, "crossnobis", folds="run"), 0.1, 0.9)
    np.testing.assert_allclose(found.scores, compare(model, replicates, "pearson").mean(1), atol=1e-9)


def test_topology_transforms_every_rdm_of_a_model_before_the_fit(latent, features):
    """Models over more stimuli than the brain, in another order, among features and in the order given."""
    brain = recording(latent).select(region="IT", stimulus=IDS[:14])
    parts = rdm(features).reorder(IDS[::-1])
    given = [WeightedRDM(parts, name="sum"), features, FixedRDM(parts[1], "late"), SelectedRDM(parts, "best"),
             InterpolatedRDM(parts, "path")]  # fmt: skip
    options = {"compare": "pearson", "over": "subjects", "bootstrap": 20, "seed": 0}
    found = model_comparison(given, brain, topology=(0.2, 0.7), **options)
    assert found.names == ["sum", "net early", "net late", "late", "best", "path"]
    ready = rgtm(parts.reorder(IDS[:14]), 0.2, 0.7)
    expected = compare_models(
        [WeightedRDM(ready), ready, FixedRDM(ready[1], "one"), SelectedRDM(ready), InterpolatedRDM(ready)],
        rgtm(rdm(brain), 0.2, 0.7),
        "pearson",
        over="subjects",
        bootstrap=20,
        seed=0,
    )
    np.testing.assert_allclose(found.per_subject, expected.per_subject, atol=1e-9)
    assert found.scores[2] == pytest.approx(found.scores[3], abs=1e-12)
    plain = model_comparison([given[2], features], brain, **options)
    assert plain.names == ["late", "net early", "net late"] and abs(plain.scores[0] - found.scores[3]) > 1e-3
    assert given[0].weights is None and given[2].vectors.shape == (1, 120)  # left as they are


def test_constant_rdms_of_models_are_counted_once(latent, features):
    flat = RDMs(np.ones((1, 120)), IDS)
    with pytest.warns(UserWarning) as caught:
        model_comparison(
            [FixedRDM(flat, "flat"), flat, features],
            recording(latent).select(region="IT"),
            topology=(0.2, 0.8),
            over="none",
        )
    assert sum("2 of 4 RDMs are NaN: all their" in str(one.message) for one in caught) == 1


def test_one_model_and_one_rdm(latent, features):
    brain = rdm(recording(latent, subjects=["A"])).select(region="IT")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model_comparison(rdm(features)[1], brain, over="stimuli", bootstrap=20)
    assert len(found.pairwise()) == 0 and np.isfinite(found.scores).all() and np.isnan(found.ceiling).all()
