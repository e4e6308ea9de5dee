"""Models compared with brains: the numbers of the parts, the tests, and what happens at the edges."""

import warnings
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy.spatial.distance import pdist
from scipy.stats import t as student
from scipy.stats import wilcoxon

from neuralign.align.compare import METHODS, compare, rsa_ceiling
from neuralign.align.inference import (
    ModelComparison,
    bonferroni,
    compare_models,
    dual_variance,
    permutation_comparison,
    permutation_p,
    resample_weights,
    weighted_ceilings,
    weighted_similarities,
)
from neuralign.align.inference.crossvalidation import assign, check_folds, crossvalidated
from neuralign.align.inference.dual import satterthwaite, variance_of_differences
from neuralign.align.inference.resampling import permutation_variance
from neuralign.align.multiple import fdr
from neuralign.align.rdm_models import FixedRDM, InterpolatedRDM, SelectedRDM, WeightedRDM
from neuralign.datasets.rdms import RDMs
from neuralign.tables import pairs as pairs_in_words

N = 16
IDS = [f"s{k:02d}" for k in range(N)]


def patterns(n_subjects=6, n_stimuli=N, noise=1.0, seed=0):
    """RDMs of a good, a fair and an unrelated model, and of subjects."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n_stimuli, 30))
    spoilt = [0.3, 1.0, 30.0]
    models = [pdist(common + much * rng.normal(size=common.shape), "sqeuclidean") for much in spoilt]
    brains = [pdist(common + noise * rng.normal(size=common.shape), "sqeuclidean") for _ in range(n_subjects)]
    return np.stack(models), np.stack(brains)


@pytest.fixture
def models():
    return RDMs(patterns()[0], IDS, pd.DataFrame({"label": ["good", "fair", "unrelated"]}))


@pytest.fixture
def brain():
    return RDMs(patterns()[1], IDS, pd.DataFrame({"subject": list("abcdef")}))


@pytest.mark.parametrize("method", METHODS)
def test_scores_and_ceilings_are_those_of_the_plain_comparison(method, models, brain):
    found = compare_models(models, brain, method, over="none")
    similarity = compare(models, brain, method)
    np.testing.assert_allclose(found.per_subject, similarity, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.scores, similarity.mean(1), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.ceiling, rsa_ceiling(brain, method), rtol=1e-9)
    assert found.names == ["good", "fair", "unrelated"]
    assert found.samples.shape == (0, 3) and np.isnan(found.variance).all() and np.isnan(found.p_zero).all()


@pytest.mark.parametrize("over", ["stimuli", "subjects", "both"])
def test_samples_and_variances(over, models, brain):
    """Of weights drawn from the first two children of the seed."""
    x, y = models.vectors, brain.vectors
    found = compare_models(models, brain, "pearson", over=over, bootstrap=60, seed=3, variance="bootstrap")
    stimulus_rng, subject_rng = np.random.default_rng(3).spawn(4)[:2]
    w, v = resample_weights(N, 60, stimulus_rng), resample_weights(6, 60, subject_rng)
    w = np.ones_like(w) if over == "subjects" else w
    v = np.ones_like(v) if over == "stimuli" else v
    samples = (weighted_similarities(x, y, "pearson", w) * v[:, None]).sum(2) / 6
    np.testing.assert_allclose(found.samples, samples, rtol=1e-10)
    np.testing.assert_allclose(found.ceiling_samples, weighted_ceilings(y, "pearson", w, v), rtol=1e-10)
    if over == "both":
        return
    n = N if over == "stimuli" else 6
    assert found.dof == n - 1
    np.testing.assert_allclose(found.variance, n / (n - 1) * samples.var(0, ddof=1))
    difference = samples[:, 0] - samples[:, 2]
    assert found.difference_variance[0, 2] == pytest.approx(n / (n - 1) * difference.var(ddof=1))
    gap = samples[:, 1] - found.ceiling_samples[:, 0]
    assert found.ceiling_variance[1, 0] == pytest.approx(n / (n - 1) * gap.var(ddof=1))
    reach = student.ppf(0.975, n - 1) * np.sqrt(found.variance)
    np.testing.assert_allclose(found.interval(), np.stack([found.scores - reach, found.scores + reach], 1))
    np.testing.assert_allclose(found.p_zero, student.sf(found.scores / np.sqrt(found.variance), n - 1))


def test_both_uses_one_set_of_draws_in_three_bootstraps(models, brain):
    each = {
        over: compare_models(models, brain, "rho-a", over=over, bootstrap=80, seed=5, variance="bootstrap")
        for over in ("both", "subjects", "stimuli")
    }
    with_zero = [np.concatenate([one.samples, np.zeros((80, 1))], axis=1) for one in each.values()]
    expected = dual_variance(*(variance_of_differences(one) for one in with_zero), 6, N)
    np.testing.assert_allclose(each["both"].variance, expected[:3, 3])
    np.testing.assert_allclose(each["both"].difference_variance, expected[:3, :3])
    assert each["both"].dof == 5


def test_variance_over_subjects_is_that_of_their_mean(models, brain):
    found = compare_models(models, brain, "pearson", over="subjects", bootstrap=20000)
    np.testing.assert_allclose(found.variance, found.per_subject.var(1, ddof=1) / 6, rtol=0.05)


def test_corrected_variance_is_smaller_and_has_its_bounds(models, brain):
    for over in ("stimuli", "both"):
        corrected, plain = (
            compare_models(models, brain, "pearson", over=over, bootstrap=400, variance=variance)
            for variance in ("corrected", "bootstrap")
        )
        np.testing.assert_array_equal(corrected.samples, plain.samples)
        assert over == "both" or (corrected.variance <= plain.variance * (1 + 1e-12)).all()
        assert corrected.variance[2] < 0.8 * plain.variance[2]  # the unrelated model: noise of pairs
        alone = compare_models(models, brain, "pearson", over="subjects", bootstrap=400).variance
        assert over == "stimuli" or (corrected.variance >= alone * (1 - 1e-12)).all()


def test_seed_and_order_of_stimuli(models, brain):
    found = compare_models(models, brain, bootstrap=50, seed=1)
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - the global generator must not be drawn from
    again = compare_models(models.reorder(IDS[::-1]), brain, bootstrap=50, seed=np.random.default_rng(1))
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    np.testing.assert_allclose(again.samples, found.samples, rtol=1e-12)
    assert found.seed == 1 and again.seed is None
    assert not np.allclose(compare_models(models, brain, bootstrap=50, seed=2).samples, found.samples)


def test_sessions_of_a_subject_are_averaged_and_regions_refused(models, brain):
    table = pd.DataFrame({"subject": list("aabbcc"), "session": [1, 2] * 3, "region": "IT"})
    sessions = RDMs(brain.vectors, IDS, table)
    found = compare_models(models, sessions, over="none")
    assert found.n_subjects == 3
    np.testing.assert_allclose(found.per_subject, compare(models, sessions.mean("subject"), "rho-a"), rtol=1e-12)
    regions = RDMs(brain.vectors, IDS, pd.DataFrame({"region": ["V1", "V1", "IT", "IT", "IT", "IT"]}))
    with pytest.raises(ValueError, match=r"brain holds several regions: 'V1', 'IT'; take one with brain.select"):
        compare_models(models, regions)


def test_pairwise_tests(models, brain):
    found = compare_models(models, brain, "pearson", bootstrap=99)
    frame = found.pairwise("none")
    assert list(frame) == ["first", "second", "difference", "se", "t", "p", "p_corrected"]
    assert frame[["first", "second"]].to_numpy().tolist() == [
        ["good", "fair"],
        ["good", "unrelated"],
        ["fair", "unrelated"],
    ]
    np.testing.assert_allclose(frame["difference"], found.scores[[0, 0, 1]] - found.scores[[1, 2, 2]])
    dof = found.difference_dof[[0, 0, 1], [1, 2, 2]]
    assert (dof >= 5).all() and (dof <= 5 + N - 1).all() and (dof > 5).any()
    np.testing.assert_allclose(frame["p"], 2 * student.sf(np.abs(frame["difference"] / frame["se"]), dof), rtol=1e-12)
    plain = compare_models(models, brain, "pearson", bootstrap=99, variance="bootstrap").pairwise("none")
    np.testing.assert_allclose(plain["p"], 2 * student.sf(np.abs(plain["t"]), 5), rtol=1e-12)
    np.testing.assert_array_equal(frame["p_corrected"], frame["p"])
    np.testing.assert_allclose(found.pairwise()["p_corrected"], fdr(frame["p"]))
    np.testing.assert_allclose(found.pairwise("bonferroni")["p_corrected"], np.minimum(3 * frame["p"], 1))
    these = compare_models(models, brain, "pearson", over="none")
    signed = these.pairwise("none", "signed-rank")["p"]
    assert signed[1] == wilcoxon(found.per_subject[0] - found.per_subject[2]).pvalue
    differences = found.samples[:, 1] - found.samples[:, 0]
    count = min((differences <= 0).sum(), (differences >= 0).sum())
    assert found.pairwise("none", "bootstrap")["p"][0] == pytest.approx(2 * (1 + count) / 100)


@pytest.mark.parametrize("crossvalidate", [None, (2, 2)])
def test_degrees_of_freedom_over_both(models, brain, crossvalidate):
    """Of Satterthwaite, between those of subjects and those of stimuli; of files without them, the fewest."""
    found, over_stimuli, over_subjects = (
        compare_models(models, brain, "pearson", over=over, bootstrap=30, seed=2, crossvalidate=crossvalidate)
        for over in ("both", "stimuli", "subjects")
    )
    np.testing.assert_array_equal(over_stimuli.variance_dof, N - 1)
    np.testing.assert_array_equal(over_subjects.difference_dof, 5)
    if crossvalidate is None:
        expected = satterthwaite(found.variance, over_subjects.variance, over_stimuli.variance, 6, N)
        np.testing.assert_allclose(found.variance_dof, expected)
    reach = student.ppf(0.975, found.variance_dof) * np.sqrt(found.variance)
    np.testing.assert_allclose(np.ptp(found.interval(), axis=1), 2 * reach)
    words = f"t with {int(found.variance_dof.min())} to {int(found.variance_dof.max())} degrees of freedom"
    assert words in found.summary() and "t with 15 degrees of freedom" in over_stimuli.summary()
    t = (found.scores - found.ceiling[0]) / np.sqrt(found.ceiling_variance[:, 0])
    np.testing.assert_allclose(found.p_ceiling, 2 * student.sf(np.abs(t), found.ceiling_dof[:, 0]))
    earlier = replace(found, variance_dof=None, difference_dof=None, ceiling_dof=None)
    np.testing.assert_allclose(np.ptp(earlier.interval(), axis=1), 2 * student.ppf(0.975, 5) * np.sqrt(found.variance))
    assert (earlier.pairwise()["p"] >= found.pairwise()["p"]).all() and "t with 5 degrees" in earlier.summary()


def test_p_zero_has_the_variance_of_unrelated_models(models, brain):
    x, y = models.vectors, brain.vectors
    stimuli, own = permutation_variance(x, y, "pearson")
    found = compare_models(models, brain, "pearson", over="stimuli", bootstrap=20)
    np.testing.assert_allclose(found.p_zero, student.sf(found.scores / np.sqrt(stimuli), N - 1))
    found = compare_models(models, brain, "pearson", over="both", bootstrap=20)
    subjects = found.per_subject.var(1, ddof=1) / 6
    total = np.maximum(subjects + stimuli - own, np.maximum(subjects, stimuli))
    dof = satterthwaite(total, subjects, stimuli, 6, N)
    np.testing.assert_allclose(found.p_zero, student.sf(found.scores / np.sqrt(total), dof))
    for options in ({"variance": "bootstrap"}, {"crossvalidate": (2, 1)}):  # as published; no shuffles of fits
        found = compare_models(models, brain, "pearson", over="stimuli", bootstrap=20, **options)
        np.testing.assert_allclose(found.p_zero, student.sf(found.scores / np.sqrt(found.variance), N - 1))


def test_bonferroni():
    np.testing.assert_allclose(bonferroni([[0.01, 0.4], [np.nan, 0.02]]), [[0.03, 1], [np.nan, 0.06]])
    with pytest.raises(ValueError, match="p holds 1 values outside 0 to 1"):
        bonferroni([0.5, 1.5])


def test_equal_models_do_not_differ(models, brain):
    """The same predictions, and the same up to scale: a difference of zero is not a small p value."""
    twins = [models[[0]], models[[0]], FixedRDM(RDMs(3 * models.vectors[:1], IDS), "good")]
    found = compare_models(twins, brain, "pearson", bootstrap=50)
    assert found.names == ["good", "good (2)", "good (3)"]
    for test in ("t", "bootstrap"):
        np.testing.assert_array_equal(found.pairwise(test=test)["p"], 1)
    these = compare_models(twins, brain, "pearson", over="none")
    np.testing.assert_array_equal(these.pairwise(test="signed-rank")["p"], 1)


@pytest.mark.parametrize(
    ("over", "test", "message"),
    [
        ("stimuli", "signed-rank", "test='signed-rank' is for the stimuli at hand.*over='stimuli'"),
        ("both", "signed-rank", "test='signed-rank' is for the stimuli at hand.*over='both'"),
        ("subjects", "bootstrap", "test='bootstrap' over 6 subjects rejects too often; it needs 20"),
    ],
)
def test_tests_that_reject_too_often_are_refused(models, brain, over, test, message):
    found = compare_models(models, brain, "pearson", over=over, bootstrap=20)
    with pytest.raises(ValueError, match=message):
        found.pairwise("none", test)


def test_p_values_by_permutation(models, brain):
    found = compare_models(models, brain, "pearson", over="none", permutations=99, seed=4)
    null = permutation_comparison(models, brain, "pearson", 99, np.random.default_rng(4).spawn(4)[2])
    np.testing.assert_allclose(found.p_zero, permutation_p(found.scores, null))
    assert found.p_zero[0] == 0.01 and found.p_zero[2] > 0.05


@pytest.mark.parametrize("method", METHODS)
def test_no_t_test_against_zero_where_unrelated_rdms_do_not_score_zero(method):
    """Cosines of unrelated dissimilarities are far above 0: t rejects whatever the model. Shuffles know their null."""
    rng = np.random.default_rng(0)
    models = rng.uniform(1, 2, size=(2, 66))
    brain = np.stack([pdist(rng.normal(size=(12, 30)), "sqeuclidean") for _ in range(6)])
    found = compare_models(models, brain, method, over="subjects", bootstrap=20)
    without = method in ("cosine", "cosine-whitened", "bures", "riemannian")
    assert np.isnan(found.p_zero).all() if without else np.isfinite(found.p_zero).all()
    assert (f"p is NaN: by {method} unrelated RDMs do not score 0" in found.summary()) == without
    np.testing.assert_array_equal(found.to_frame()["p"], found.p_zero)
    if without:
        assert np.isfinite(found.pairwise()["p"]).all() and np.isfinite(found.p_ceiling).all()
        shuffled = compare_models(
            np.concatenate([models, brain.mean(0)[None]]), brain, method, over="none", permutations=99
        )
        assert (shuffled.p_zero[:2] > 0.05).all() and shuffled.p_zero[2] == 0.01
        assert "p is NaN" not in shuffled.summary()


def test_a_signed_rank_of_one_subject_is_nan(models, brain):
    with pytest.warns(UserWarning, match="the ceiling needs at least two subjects"):
        found = compare_models([models, models[[0]]], brain[:1], "pearson", over="none")
    assert np.isnan(found.pairwise(test="signed-rank")["p"]).all()


def test_a_layer_of_the_name_of_its_model_is_named_once(models, brain):
    table = pd.DataFrame({"model": ["pixels", "net", "gist"], "layer": ["pixels", "conv1", ""]})
    stack = RDMs(models.vectors, IDS, table)
    assert compare_models(stack, brain, over="none").names == ["pixels", "net conv1", "gist"]


def test_number_of_pairs_in_words(models, brain):
    far = compare_models(models[[0, 2]], brain, "pearson", over="subjects", bootstrap=50)
    assert far.summary().endswith("The two models differ (p <= .05).")
    assert "the two models are told apart (over subjects; FDR 5 %)" in pairs_in_words(far, "V1")
    twins = compare_models([models[[0]], models[[0]]], brain, "pearson", over="subjects", bootstrap=50)
    assert twins.summary().endswith("The two models are not told apart (p <= .05).")
    assert "the two models are not told apart (over subjects; FDR 5 %)" in pairs_in_words(twins, "V1")
    one = [True, False, False]
    fixed = pd.DataFrame(
        {"first": "a", "second": "b", "difference": 0.1, "se": 0.1, "p": 0.01, "p_corrected": 0.01}, index=range(3)
    ).assign(p_corrected=np.where(one, 0.01, 0.5))
    three = compare_models(models, brain, "pearson", over="subjects", bootstrap=50)
    object.__setattr__(three, "pairwise", lambda *_: fixed)
    assert "1 of 3 pairs of models differs (p <= .05, correction: fdr)" in three.summary()
    assert "1 of 3 pairs of models is told apart" in pairs_in_words(three, "V1")


def test_a_p_of_the_ceiling_says_on_which_side_models_lie(models, brain):
    """A model of the truth beats the mean of the other subjects, and its small p is no shortfall."""
    found = compare_models(models, brain, over="subjects", bootstrap=50)
    above = (found.scores > found.ceiling[0]).sum()
    low = f"{found.ceiling[0]:.3f}"
    assert f"p_ceiling: two-sided, against the lower bound {low}; {above} of 3 models lie" in found.summary()
    beyond = replace(found, ceiling=found.ceiling - 2)
    assert "3 of 3 models lie above it." in beyond.summary()
    assert "p_ceiling:" not in compare_models(models, brain, over="none").summary()


def test_frame_and_summary(models, brain):
    found = compare_models(models, brain, "rho-a", bootstrap=50)
    frame = found.to_frame()
    columns = ["model", "score", "se", "ci_low", "ci_high", "ceiling_low", "ceiling", "p", "p_ceiling"]
    assert list(frame) == columns
    np.testing.assert_allclose(frame["se"] ** 2, found.variance)
    assert (frame["ci_low"] < frame["score"]).all() and (frame["ceiling_low"] == found.ceiling[0]).all()
    text = found.summary()
    for part in ("rho-a of 3 models with 6 subjects on 16 stimuli", "subjects and stimuli, 50 times", "unrelated"):
        assert part in text
    apart = int((found.pairwise()["p_corrected"] <= 0.05).sum())
    assert f"{apart} of 3 pairs of models differ" in text and apart > 0
    assert repr(found) == text and isinstance(found, ModelComparison)
    alone = compare_models(models[:1], brain, over="none").summary()
    assert "rho-a of 1 model with" in alone and "Resampled: nothing." in alone and "differ" not in alone


def test_plot(models, brain):
    found = compare_models(models, brain, "pearson", bootstrap=200)
    before = dict(mpl.rcParams)
    figure = found.plot()
    assert isinstance(figure, Figure) and dict(mpl.rcParams) == before
    (ax,) = figure.axes
    heights = [patch.get_height() for patch in ax.patches[1:]]
    np.testing.assert_allclose(heights, found.scores)
    band = ax.patches[0]
    assert [band.get_y(), band.get_y() + band.get_height()] == pytest.approx(list(found.ceiling))
    for correction in ("fdr", "none"):
        drawn = [line for line in found.plot(correction=correction).axes[0].lines if line.get_gid() == "pair"]
        pairs = found.pairwise(correction)
        expected = pairs.index[pairs["p_corrected"] <= 0.05]
        places = [(0, 1), (0, 2), (1, 2)]
        assert sorted(tuple(line.get_xdata()) for line in drawn) == sorted(places[k] for k in expected)
        assert len(expected)
    axes = Figure().subplots()
    assert found.plot(axes) is axes.figure and axes.patches
    assert compare_models(models, brain, over="none").plot().axes[0].patches


def test_one_model_and_one_subject(models, brain):
    with pytest.warns(UserWarning, match="the ceiling needs at least two subjects, found one"):
        found = compare_models(models[:1], brain[:1], "pearson", over="stimuli", bootstrap=50)
    assert np.isnan(found.ceiling).all() and np.isnan(found.p_ceiling).all()
    assert np.isfinite([found.scores, found.variance, found.p_zero]).all()
    assert len(found.pairwise()) == 0 and found.plot() is not None
    assert "with 1 subject on" in found.summary()
    for over in ("both", "subjects"):
        with pytest.raises(ValueError, match=f"over='{over}' resamples subjects, but brain holds 1 with values"):
            compare_models(models, brain[:1], over=over)


@pytest.mark.parametrize("method", ["pearson", "rho-a", "tau-b", "pearson-whitened"])
def test_five_stimuli_and_a_category_model(method):
    """Samples that miss a category have no value for that model; the others keep theirs."""
    x, y = patterns(n_stimuli=5)
    animate = np.arange(5) < 2
    category = pdist(animate[:, None].astype(float))
    with pytest.warns(UserWarning, match=r"of 300 resamples have no value for some model") as caught:
        found = compare_models(np.stack([x[0], category]), y, method, bootstrap=300)
    assert len(caught) == 1
    assert np.isnan(found.samples[:, 1]).sum() > np.isnan(found.samples[:, 0]).sum()
    assert np.isfinite(found.to_frame().drop(columns="model")).all(axis=None)
    assert np.isfinite(found.pairwise()["p"]).all()


def test_constant_subjects_and_models_stand_aside(models, brain):
    spoilt = brain.vectors.copy()
    spoilt[2], spoilt[4] = 1.0, np.nan
    with pytest.warns(UserWarning, match="2 of 6 subjects have an RDM without a value even with itself"):
        found = compare_models(models, RDMs(spoilt, IDS), "pearson", bootstrap=50)
    expected = compare_models(models, brain[[0, 1, 3, 5]], "pearson", bootstrap=50)
    np.testing.assert_allclose(found.variance, expected.variance)
    flat = RDMs(np.stack([models.vectors[0], np.ones(len(models.vectors[0]))]), IDS)
    with pytest.warns(UserWarning) as caught:
        found = compare_models(flat, brain, "pearson", bootstrap=50)
    assert "6 of 12 comparisons are NaN" in str(caught[0].message)
    plain = compare_models(models[:1], brain, "pearson", bootstrap=50)
    np.testing.assert_allclose(found.to_frame().iloc[0, 1:].astype(float), plain.to_frame().iloc[0, 1:].astype(float))
    assert np.isnan(found.to_frame().loc[1, ["score", "se", "p", "p_ceiling"]].astype(float)).all()
    assert np.isnan(found.pairwise()["p_corrected"]).all() and found.plot() is not None
    with pytest.raises(ValueError, match="no RDM that 'rho-a' can compare"), pytest.warns(UserWarning):
        compare_models(models, RDMs(np.ones((2, len(spoilt[0]))), IDS))


def test_unknown_pairs_and_stimuli(models, brain):
    """A stimulus that no subject saw is not resampled; other gaps are left out of each comparison."""
    unseen = brain.matrices.copy()
    unseen[:, 3, :] = unseen[:, :, 3] = np.nan
    kept = [name for name in IDS if name != IDS[3]]
    found = compare_models(models, RDMs.from_matrices(unseen, IDS), "pearson", bootstrap=40)
    expected = compare_models(models.reorder(kept), brain.reorder(kept), "pearson", bootstrap=40)
    assert found.n_stimuli == N - 1
    np.testing.assert_allclose(found.samples, expected.samples, rtol=1e-12)
    gaps = brain.vectors.copy()
    gaps[1, 5] = gaps[4, 30] = np.nan
    found = compare_models(models, RDMs(gaps, IDS), "rho-a", bootstrap=30)
    np.testing.assert_allclose(found.ceiling, rsa_ceiling(gaps, "rho-a"), rtol=1e-12)
    assert np.isfinite(found.to_frame().drop(columns="model")).all(axis=None)


@pytest.mark.parametrize("method", ["bures", "riemannian"])
def test_comparisons_of_kernels_go_over_subjects(method, models, brain):
    few = IDS[:8]
    found = compare_models(models.reorder(few), brain.reorder(few), method, over="subjects", bootstrap=10)
    assert np.isfinite(found.to_frame().drop(columns=["model", "p"])).all(axis=None)
    for over in ("stimuli", "both"):
        with pytest.raises(ValueError, match=f"method='{method}'.*over='subjects'"):
            compare_models(models, brain, method, over=over)


def test_covariance(models, brain):
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(N, N))
    matrix, variances = mixed @ mixed.T + N * np.eye(N), rng.uniform(0.5, 2, N)
    for covariance in (matrix, variances):
        found = compare_models(models, brain, "cosine-whitened", over="subjects", bootstrap=20, covariance=covariance)
        expected = compare(models, brain, "cosine-whitened", covariance=covariance)
        np.testing.assert_allclose(found.per_subject, expected, rtol=1e-9)
        expected = rsa_ceiling(brain, "cosine-whitened", covariance=covariance)
        np.testing.assert_allclose(found.ceiling, expected, rtol=1e-9)
    compare_models(models, brain, "cosine-whitened", over="both", bootstrap=20, covariance=variances)
    with pytest.raises(ValueError, match="covariance is a matrix"):
        compare_models(models, brain, "cosine-whitened", covariance=matrix)
    with pytest.raises(ValueError, match="covariance is for method='cosine-whitened'"):
        compare_models(models, brain, "pearson", covariance=variances)


def test_fitted_models_are_crossvalidated():
    """Weights of 40 components of noise: near perfect on the pairs they were fitted to, nothing on new stimuli."""
    rng = np.random.default_rng(0)
    noise = rng.uniform(0, 1, (40, N * (N - 1) // 2))
    y = rng.uniform(0, 1, (4, noise.shape[1]))
    mix = WeightedRDM(noise, non_negative=False)
    inside = compare(mix.fit(y, method="pearson").predict(), y, "pearson").mean()
    found = compare_models([mix], y, "pearson", over="stimuli", bootstrap=20)
    assert inside > 0.25 and found.folds == (2, 2)
    assert abs(found.scores[0]) < 0.12 and found.scores[0] < inside - 0.2


@pytest.mark.parametrize("method", ["pearson", "rho-a", "cosine-whitened", "bures"])
def test_crossvalidation_by_hand(method, models, brain):
    """One sample: fit without the test stimuli and subjects, score with them; ceilings on the test stimuli."""
    x, y = models.vectors, brain.vectors
    mix = WeightedRDM(x, name="mix")
    kernel = method == "bures"
    w = np.ones((1, N), int) if kernel else resample_weights(N, 1, 8)
    v = resample_weights(6, 1, 2)
    scores, ceilings = crossvalidated(
        [FixedRDM(x[:1]), mix], y, method, w, v, assign(w, v, (2, 2), np.random.default_rng(6))
    )
    rng = np.random.default_rng(6)

    def assignment(items, k):
        items = rng.permutation(np.flatnonzero(items))
        return {item: place % k for place, item in enumerate(items)}

    stimulus_fold, subject_fold = assignment(w[0], 2), assignment(v[0], 2)
    expected, bounds = np.zeros((2, 6)), np.zeros((6, 2))
    for part in range(2):
        test_w = np.array([w[0, k] * (stimulus_fold.get(k) == part) for k in range(N)])
        bounds += _ceilings(y, v[0], test_w, method) / 2
        for fold in range(2):
            train = [s for s, count in enumerate(v[0]) for _ in range(count) if subject_fold[s] != fold]
            fitted = mix.fit(y[train], w[0] - test_w, method).predict()
            for s in range(6):
                if subject_fold.get(s) == fold:
                    pair = np.stack([x[0], fitted])
                    expected[:, s] += weighted_similarities(pair, y[[s]], method, test_w[None])[0, :, 0] / 2
    absent = v[0] == 0
    expected[:, absent] = bounds[absent] = np.nan
    assert absent.any()
    np.testing.assert_allclose(scores[0], expected, rtol=1e-9)
    np.testing.assert_allclose(ceilings[0], bounds, rtol=1e-9)


def _ceilings(y, v, w, method):
    from neuralign.align.inference.ceilings import subject_ceilings

    return subject_ceilings(y, method, w[None], v[None])[0]


@pytest.mark.parametrize("over", ["both", "stimuli", "subjects", "none"])
def test_models_with_parameters(over, models, brain):
    kinds = [models[:2], WeightedRDM(models, name="sum"), SelectedRDM(models, name="one"), InterpolatedRDM(models)]
    found = compare_models(kinds, brain, "pearson", over=over, bootstrap=12)
    assert found.names == ["good", "fair", "sum", "one", "InterpolatedRDM"] and found.folds == (2, 2)
    assert np.isfinite(found.scores).all() and np.isfinite(found.ceiling).all()
    assert over == "none" or (np.isfinite(found.variance).all() and np.isfinite(found.difference_variance).all())
    assert "Cross-validated: 2 stimulus folds, 2 subject folds." in found.summary()
    again = compare_models(kinds, brain, "pearson", over=over, bootstrap=12)
    np.testing.assert_array_equal(found.samples, again.samples)


def test_variance_of_crossvalidated_scores_by_hand(models, brain):
    """Each stimulus left out of its fold, for four assignments, extrapolated to infinitely many; and of subjects."""
    options = {"bootstrap": 5, "crossvalidate": (2, 1), "seed": 9}
    found = compare_models(models, brain, "pearson", over="stimuli", **options)
    rng, w, v = np.random.default_rng(9).spawn(4)[3], np.ones((1, N), int), np.ones((1, 6), int)
    every = np.ones((10, N), int), np.ones((10, 6), int)
    folds = assign(*every, (2, 1), rng)[0]
    scores = [_on_folds(models.vectors, brain.vectors, w[0], fold) for fold in folds]
    np.testing.assert_allclose(found.per_subject, np.mean(scores, axis=0), rtol=1e-12)
    drawn = resample_weights(N, 5, np.random.default_rng(9).spawn(4)[0])
    for _ in range(2):
        assign(drawn, np.ones((5, 6), int), (2, 1), rng)
    left_out = []
    for _ in range(4):
        fold = assign(w, v, (2, 1), rng)[0][0]
        weights = w[0] - np.eye(N, dtype=int)
        left_out.append([_on_folds(models.vectors, brain.vectors, one, fold).mean(1) for one in weights])
    left_out = np.array(left_out)  # assignment, stimulus, model

    def jackknife(values):
        return (N - 1) / N * ((values - values.mean(0)) ** 2).sum(0)

    def beyond(values):
        one = np.mean([jackknife(each) for each in values], axis=0)
        return np.maximum((4 * jackknife(values.mean(0)) - one) / 3, jackknife(values.mean(0)) / 2)

    # What the ten assignments of the score leave unsure is added to what stimuli leave.
    each = np.mean(scores, axis=2)
    np.testing.assert_allclose(found.variance, beyond(left_out) + each.var(0, ddof=1) / 10, rtol=1e-9)
    difference, of_each = left_out[:, :, 0] - left_out[:, :, 2], each[:, 0] - each[:, 2]
    expected = beyond(difference) + of_each.var(ddof=1) / 10
    np.testing.assert_allclose(found.difference_variance[0, 2], expected, rtol=1e-9)
    over_subjects = compare_models(models, brain, "pearson", over="subjects", **options)
    rng = np.random.default_rng(9).spawn(4)[3]
    folds = assign(*every, (2, 1), rng)[0]
    drawn = resample_weights(6, 5, np.random.default_rng(9).spawn(4)[1])
    for _ in range(2):
        assign(np.ones((5, N), int), drawn, (2, 1), rng)
    per_subject = np.array(
        [_on_folds(models.vectors, brain.vectors, w[0], assign(w, v, (2, 1), rng)[0][0]) for _ in range(4)]
    )  # assignment, model, subject

    def between(values):
        return values.var(-1, ddof=1) / 6  # which is the jackknife of a mean

    jackknifed = (4 * between(per_subject.mean(0)) - between(per_subject).mean(0)) / 3
    expected = np.maximum(np.maximum(jackknifed, between(per_subject.mean(0)) / 2), between(over_subjects.per_subject))
    np.testing.assert_allclose(over_subjects.variance, expected + each.var(0, ddof=1) / 10, rtol=1e-9)
    both = compare_models(models, brain, "pearson", over="both", **options)
    assert (both.variance > np.maximum(found.variance, over_subjects.variance) * 0.8).all()


@pytest.mark.slow
@pytest.mark.parametrize("variance, low, high", [("corrected", 0.8, 1.4), ("bootstrap", 0.4, 0.9)])
def test_variance_of_crossvalidated_scores_over_experiments(variance, low, high):
    """Of new stimuli, with six fixed subjects, for a fixed and a weighted model: ratio to the truth, and coverage."""
    rng = np.random.default_rng(1)
    common = rng.normal(size=(6, 30))
    readouts = [common + 0.7 * rng.normal(size=common.shape) for _ in range(6)]
    scores, variances, intervals, differences = [], [], [], []
    for k in range(150):
        rng = np.random.default_rng(k)
        latent = rng.normal(size=(30, 6))
        parts = np.stack([pdist(latent[:, [i]], "sqeuclidean") for i in range(6)])
        y = np.stack([pdist(latent @ one + 4 * rng.normal(size=(30, 30)), "sqeuclidean") for one in readouts])
        found = compare_models(
            [parts.sum(0)[None], WeightedRDM(parts)],
            y,
            "pearson",
            over="stimuli",
            bootstrap=20 if variance == "corrected" else 60,
            seed=k,
            variance=variance,
        )
        scores.append(found.scores)
        variances.append(found.variance)
        intervals.append(found.interval())
        differences.append(found.difference_variance[0, 1])
    scores, intervals = np.array(scores), np.array(intervals)
    ratio = np.mean(variances, axis=0) / scores.var(0, ddof=1)
    mean = scores.mean(0)
    covered = ((intervals[:, :, 0] <= mean) & (mean <= intervals[:, :, 1])).mean(0)
    of_difference = np.mean(differences) / (scores[:, 0] - scores[:, 1]).var(ddof=1)
    print(f"{variance}: variance {ratio} of the truth, 95 % covers {covered}, difference {of_difference:.2f}")
    assert ((low < ratio) & (ratio < high)).all() and 1 < of_difference < 5
    assert variance == "bootstrap" or (covered > 0.88).all()


def _on_folds(x, y, w, fold):
    return np.mean([weighted_similarities(x, y, "pearson", (w * (fold == k))[None])[0] for k in range(2)], axis=0)


def test_fixed_models_on_folds(models, brain):
    """Asked for, folds are used for fixed models too, whose mean over folds of all stimuli is near their score."""
    found = compare_models(models, brain, "pearson", over="none", crossvalidate=(2, 1))
    plain = compare_models(models, brain, "pearson", over="none")
    assert found.folds == (2, 1) and found.n_subjects == 6
    np.testing.assert_allclose(found.scores, plain.scores, atol=0.08)


def test_bad_input(models, brain):
    with pytest.raises(ValueError, match="over='subject' is unknown; did you mean 'subjects'"):
        compare_models(models, brain, over="subject")
    with pytest.raises(ValueError, match="variance='dual' is unknown"):
        compare_models(models, brain, variance="dual")
    with pytest.raises(ValueError, match="method='pearsn' is unknown; did you mean 'pearson'"):
        compare_models(models, brain, "pearsn")
    with pytest.raises(ValueError, match="bootstrap=1; a variance needs at least two resamples"):
        compare_models(models, brain, bootstrap=1)
    with pytest.raises(ValueError, match="permutations=-1"):
        compare_models(models, brain, permutations=-1)
    with pytest.raises(ValueError, match="stimulus ids are not in"):
        compare_models(RDMs(models.vectors, [f"t{k}" for k in range(N)]), brain)
    with pytest.raises(ValueError, match="over 16 stimuli, the brain over 8; make it of RDMs"):
        compare_models(models.vectors, brain.reorder(IDS[:8]))
    with pytest.raises(ValueError, match="models holds a str; expected RDMs"):
        compare_models(["V1"], brain)
    with pytest.raises(ValueError, match="models is empty"):
        compare_models([], brain)
    with pytest.raises(ValueError, match="permutations are for fixed models"):
        compare_models([WeightedRDM(models)], brain, permutations=10)
    found = compare_models(models, brain, over="none")
    with pytest.raises(ValueError, match="test='t' needs resamples.*over='none'"):
        found.pairwise()
    with pytest.raises(ValueError, match="correction='fdrr' is unknown; did you mean 'fdr'"):
        found.pairwise("fdrr", "signed-rank")
    with pytest.raises(ValueError, match="test='wilcoxon' is unknown"):
        found.pairwise(test="wilcoxon")
    with pytest.raises(ValueError, match="level=95"):
        found.interval(95)


def test_bad_folds(models, brain):
    for folds in ("five", 3, (2, 2, 2), ("a", "b")):
        with pytest.raises(ValueError, match="expected 'auto' or"):
            compare_models(models, brain, crossvalidate=folds)
    with pytest.raises(ValueError, match="expected numbers of folds"):
        check_folds((0, 2), 20, 5)
    with pytest.raises(ValueError, match=r"6 folds of 16 stimuli.*at least 18 stimuli.*crossvalidate=\(5, 2\)"):
        compare_models(models, brain, crossvalidate=(6, 2))
    with pytest.raises(ValueError, match="7 folds of 6 subjects"):
        compare_models(models, brain, crossvalidate=(2, 7))
    with pytest.raises(ValueError, match="2 folds of 5 stimuli"):
        compare_models([WeightedRDM(patterns(n_stimuli=5)[0])], patterns(n_stimuli=5)[1])


def test_samples_too_small_to_split_are_left_out():
    x, y = patterns(n_stimuli=7)
    with pytest.warns(UserWarning, match=r"of 40 resamples have no value"):
        found = compare_models([SelectedRDM(x)], y, "pearson", over="stimuli", bootstrap=40, crossvalidate=(2, 2))
    lost = np.isnan(found.samples[:, 0])
    counts = resample_weights(7, 40, np.random.default_rng(0).spawn(4)[0])
    np.testing.assert_array_equal(lost, (counts > 0).sum(1) < 6)
    assert np.isfinite(found.variance).all()


def test_no_warning_without_cause(models, brain):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in METHODS:
            over = "subjects" if method in ("bures", "riemannian") else "both"
            compare_models(models, brain, method, over=over, bootstrap=5)
