"""Eight model RDMs against human IT, four subjects (Kriegeskorte et al. 2008): which can be told apart, and over what.

Spearman, mean over subjects, with 95 % intervals over stimuli (for these subjects) and over stimuli and subjects; the
noise ceiling is 0.372 to 0.666 (`pytest -s` prints the table and all pairs):

    model                  score   over stimuli      over both
    animacy                0.386   0.310 to 0.463    0.129 to 0.644
    monkeyIT               0.296   0.220 to 0.373    0.104 to 0.489
    FaceBodyManmadeNatobj  0.277   0.202 to 0.351    0.089 to 0.464
    EVA                    0.245   0.192 to 0.299    0.044 to 0.447
    HMAX                   0.160   0.078 to 0.242   -0.024 to 0.343
    Silhouette             0.097   0.014 to 0.179   -0.096 to 0.289
    RADON                  0.038  -0.018 to 0.094   -0.108 to 0.184
    V1                     0.027  -0.041 to 0.094   -0.168 to 0.221

For these four subjects, 19 of the 28 pairs of models differ at a false discovery rate of 5 %, animacy from each of the
others. For other subjects too, none does: four subjects leave three degrees of freedom, and animacy against V1, the
largest difference, has p = 0.006 before correction. More subjects, not more stimuli, would settle it.
"""

import numpy as np
import pytest
from scipy.stats import spearmanr

from neuralign import align, datasets
from neuralign.align.rsa import model_comparison

ANIMACY, V1 = "animacy", "V1"


@pytest.fixture(scope="module")
def folder(real_data):
    return real_data("rsatoolbox_92")


@pytest.fixture(scope="module")
def human(folder):
    return datasets.load("kriegeskorte-92", root=folder)


@pytest.fixture(scope="module")
def models(folder):
    return datasets.load("kriegeskorte-92", root=folder, source="models")


@pytest.fixture(scope="module")
def compared(human, models):
    """By what was drawn anew."""
    found = {
        over: model_comparison(models, human, compare="spearman", over=over, bootstrap=1000, seed=0)
        for over in ("stimuli", "both")
    }
    for comparison in found.values():
        print(f"\n\n{comparison.summary()}\n{comparison.pairwise().round(4).to_string(index=False)}")
    return found


def test_scores_and_ceilings_are_those_of_scipy(human, models, compared):
    subjects = human.mean(by="subject")
    each = [[spearmanr(model, subject)[0] for subject in subjects.vectors] for model in models.vectors]
    for comparison in compared.values():
        assert comparison.names == models.table["label"].tolist()
        np.testing.assert_allclose(comparison.per_subject, each, atol=1e-6)
        np.testing.assert_allclose(comparison.scores, np.mean(each, axis=1), atol=1e-6)
        assert comparison.ceiling == pytest.approx([0.372, 0.666], abs=5e-4)
        assert (comparison.n_subjects, comparison.n_stimuli) == (4, 92)
    assert (compared["stimuli"].dof, compared["both"].dof) == (91, 3)


def test_ceilings_are_those_of_ranks_averaged_over_subjects(human):
    subjects = human.mean(by="subject").vectors
    ranks = np.argsort(np.argsort(subjects, axis=1), axis=1).astype(float)
    upper = np.mean([spearmanr(one, ranks.mean(0))[0] for one in subjects])
    lower = np.mean([spearmanr(subjects[k], np.delete(ranks, k, 0).mean(0))[0] for k in range(4)])
    assert align.rsa_ceiling(subjects, "spearman") == pytest.approx((lower, upper), abs=2e-3)  # a few ties


def test_intervals_over_both_are_wider(compared):
    widths = {over: np.ptp(comparison.interval(), axis=1) for over, comparison in compared.items()}
    assert (widths["both"] > 1.5 * widths["stimuli"]).all()
    frame = compared["both"].to_frame().set_index("model")
    assert frame.loc[ANIMACY, "ci_low"] > 0 > frame.loc["HMAX", "ci_low"]
    assert frame.loc[ANIMACY, "score"] > frame.loc[ANIMACY, "ceiling_low"]  # as good as the other subjects are


def test_for_these_subjects_most_models_differ_and_for_others_none(compared):
    pairs = compared["stimuli"].pairwise("fdr")
    assert len(pairs) == 28
    assert 17 <= (pairs["p_corrected"] <= 0.05).sum() <= 21
    animacy = pairs[pairs["first"] == ANIMACY]
    assert len(animacy) == 7 and (animacy["p_corrected"] <= 0.05).all() and (animacy["difference"] > 0).all()
    wider = compared["both"].pairwise("fdr")
    assert (wider["p_corrected"] > 0.05).all()
    [best] = wider["p"][(wider["first"] == ANIMACY) & (wider["second"] == V1)]
    assert best < 0.02 and (compared["both"].pairwise("bonferroni")["p_corrected"] >= wider["p_corrected"]).all()


def test_rsa_gives_the_same_scores_and_keeps_the_comparison(human, models, compared):
    table = align.rsa(models, human, compare="spearman", over="both", bootstrap=500, permutations=0)
    np.testing.assert_allclose(table["score"], compared["both"].scores, atol=1e-12)
    kept = table.attrs["evidence"].comparison["human IT"]
    np.testing.assert_array_equal(table[["ci_low", "ci_high"]], kept.interval())
    assert kept.over == "both" and len(kept.samples) == 500
    assert "ci: dual bootstrap over stimuli and subjects, t" in table["formula"][0]
