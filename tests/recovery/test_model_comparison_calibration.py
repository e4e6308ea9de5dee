r"""Tests of `compare_models` reject and its intervals cover as often as they say, over 500 simulated experiments each.

Two models that are equally near to the brain, Pearson correlation, 100 bootstrap samples: rejections at 5 % of the t
test between them; coverage of 95 and 68 % intervals of the scores, and of the 95 % interval of the distance of a score
from the lower bound of the ceiling (c.). Stimuli by subjects:

=========  ======  =====  =====  =====  =====  =====
resampled          20x5   20x20  40x5   40x20  80x20
=========  ======  =====  =====  =====  =====  =====
stimuli    t       .042   .062   .046   .054   .072
\          95 %    .951   .941   .944   .947   .938
\          68 %    .699   .712   .686   .697   .650
\          c.      .955   .939   .944   .943   .934
subjects   t       .044   .060   .056   .048   .044
both       t       .024   .066   .038   .056   .064
\          95 %    .978   .947   .976   .952   .951
\          68 %    .752   .711   .719   .720   .684
\          c.      1.00   .958   1.00   .971   .973
=========  ======  =====  =====  =====  =====  =====

Degrees of freedom over both are those of Satterthwaite; with those of the smaller sample, t rejected .002 to .009 with
5 subjects and intervals covered .99. With 20 to 80 stimuli and 5 to 20 subjects t rejects .050 to .080 where most of
the variance is over subjects, .030 to .060 where most is over stimuli. Its far tail is less sure: with 3 or 4 subjects
.02 at 1 %. The distance from the ceiling is careful with 5 subjects: samples of few different subjects have lower
ceilings.

Other comparisons (rho-a, tau-a, whitened) reject .050 to .062 at 20 stimuli. Of 40 stimuli and 20 subjects, bootstrap
samples reject .030 (stimuli), .050 (subjects) and .016 (both); signed ranks .042 over subjects. (With 5 subjects
bootstrap samples rejected .148, and where stimuli were new signed ranks .34 to .46: both are refused.)

One-sided against zero, 20 and 40 stimuli, 5 and 20 subjects: over subjects .034 to .048, over stimuli .040 to .050,
over both .030 to .050 (by the variance of the score .010 to .022: it is half too large at zero, and largest above).
The hypothesis is no relation, as with shuffled labels, which reject .032 to .038: a model that is related to subjects
up and down is found in .036, an uncorrelated one that says how much the brain varies in .168. Any of six pairs of four
equal models: .038 by FDR, .032 by Bonferroni, .142 uncorrected.

Two equal fitted models, cross-validated: see `test_two_equal_fitted_models`.
"""

from functools import partial

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import binom, kstest
from scipy.stats import t as student

from neuralign.align.inference import compare_models
from neuralign.align.inference.tests import bootstrap_p, signed_rank_p
from neuralign.align.rdm_models import WeightedRDM

RUNS = 500
# A fair test at 5 % leaves this range of rejections about once in 1,000 times; likewise for coverages.
LOW, HIGH = (int(binom.ppf(share, RUNS, 0.05)) for share in (0.0005, 0.9995))
COVERED = {level: binom.ppf([0.0005, 0.9995], RUNS, level) / RUNS for level in (0.95, 0.68)}

pytestmark = pytest.mark.calibration

DIMENSIONS, CHANNELS = 4, 20
READOUT, COMMON = np.random.default_rng(1).normal(size=(2, DIMENSIONS, CHANNELS))


def rdms(patterns):
    return np.array([pdist(one, "sqeuclidean") for one in patterns])


def two_models(rng, n_stimuli, n_subjects, over, own=0.7, gain=0.0):
    """Two models that are equally near to the brain, by symmetry.

    `own` is the size of what is a subject's own in its readouts, `gain` the spread over subjects of the logarithm of
    how strongly each reads a code.

    A stimulus has two latent codes; each model reads one of them in the same way, and a subject reads both alike in
    distribution. Where stimuli stay, every stimulus is there with its codes in either order; where subjects stay,
    each reads both codes in exactly the same way.
    """
    latent, brain = two_codes(rng, n_stimuli, n_subjects, over, own, gain)
    return rdms(np.tanh(latent[:, k] @ READOUT) for k in range(2)), brain


def two_fitted_models(rng, n_stimuli, n_subjects, over):
    """As `two_models`, each with a weight for every dimension of its code."""
    latent, brain = two_codes(rng, n_stimuli, n_subjects, over)
    return [WeightedRDM(rdms(code.T[:, :, None]), name=str(k)) for k, code in enumerate(latent.swapaxes(0, 1))], brain


def two_codes(rng, n_stimuli, n_subjects, over, own=0.7, gain=0.0):
    """The codes, of shape (stimulus, 2, dimension), and the RDMs of subjects."""
    latent = rng.normal(size=(n_stimuli, 2, DIMENSIONS))
    if over == "subjects":
        latent = np.concatenate([latent[: n_stimuli // 2], latent[: n_stimuli // 2, ::-1]])
    of_subjects = np.random.default_rng(2) if over == "stimuli" else rng
    brain = []
    for _ in range(n_subjects):
        readouts = COMMON + own * of_subjects.normal(size=(2, DIMENSIONS, CHANNELS))
        if over == "stimuli":
            readouts[1] = readouts[0]
        if gain:
            readouts *= 0.5 * np.exp(gain * of_subjects.normal(size=(2, 1, 1)))
        responses = np.tanh(np.einsum("scd,cdk->sk", latent, readouts))
        brain.append(responses + rng.normal(size=responses.shape))
    return latent, rdms(brain)


def no_model(rng, n_stimuli, n_subjects, over):
    """A model whose stimuli have nothing to do with those of the brain: its expected score is 0."""
    model = np.tanh(rng.normal(size=(n_stimuli, DIMENSIONS)) @ READOUT)
    latent = rng.normal(size=(n_stimuli, DIMENSIONS))
    of_subjects = np.random.default_rng(2) if over == "stimuli" else rng
    brain = []
    for _ in range(n_subjects):
        readout = COMMON + 0.7 * of_subjects.normal(size=COMMON.shape)
        # For these very stimuli the score is 0 on average only if subjects have no geometry in common.
        own = rng.normal(size=latent.shape) if over == "subjects" else latent
        brain.append(np.tanh(own @ readout) + rng.normal(size=(n_stimuli, CHANNELS)))
    return rdms([model]), rdms(brain)


def experiments(make, over, n_stimuli, n_subjects, method="pearson", **options):
    for k in range(RUNS):
        rng = np.random.default_rng([n_stimuli, n_subjects, k])
        models, brain = make(rng, n_stimuli, n_subjects, over)
        yield compare_models(models, brain, method, over=over, **{"bootstrap": 100, "seed": rng} | options)


def opposed(rng, n_stimuli, n_subjects, over):
    """A model to which every subject is related, some positively and some negatively, alike in distribution."""
    model, other = rdms(np.tanh(rng.normal(size=(n_stimuli, DIMENSIONS)) @ READOUT) for _ in range(2))
    model, other = ((one - one.mean()) / one.std() for one in (model, other))
    brain = [0.6 * rng.normal() * model + other + rng.normal(size=len(other)) for _ in range(n_subjects)]
    return model[None] - model.min(), np.array(brain) - np.min(brain)


def uncorrelated(rng, n_stimuli, n_subjects, over):
    """A score of zero of a model that says where the brain varies: most where its dissimilarities are extreme."""
    model = rdms([np.tanh(rng.normal(size=(n_stimuli, DIMENSIONS)) @ READOUT)])
    spread = np.abs(model[0] - model.mean())
    common = (spread / spread.mean()) ** 1.5 * rng.normal(size=len(spread))
    brain = common + rng.normal(size=(n_subjects, len(spread)))
    return model, brain - brain.min()


SIZES = [(20, 5), (20, 20), (40, 5), (40, 20), (80, 5), (80, 20)]
WITH_TEN = [(20, 10), (40, 10), (80, 10)]


def of_two_models(name, over, n_stimuli, n_subjects, make=two_models):
    """Rejections of the t test between them, and coverages of intervals of scores and of distances from the ceiling."""
    rejected, scores, variances, dof, below, of_below, dof_of_below = 0, [], [], [], [], [], []
    for found in experiments(make, over, n_stimuli, n_subjects):
        rejected += found.pairwise("none")["p"].item() <= 0.05
        scores.append(found.scores)
        variances.append(found.variance)
        dof.append(found.variance_dof)
        below.append(found.scores - found.ceiling[0])
        of_below.append(found.ceiling_variance[:, 0])
        dof_of_below.append(found.ceiling_dof[:, 0])

    def coverage(values, variances, dof, level):
        values, reach = np.array(values), student.ppf((1 + level) / 2, dof) * np.sqrt(variances)
        return (np.abs(values - values.mean(0)) <= reach).mean()

    covered = {level: coverage(scores, variances, dof, level) for level in COVERED}
    at_ceiling = coverage(below, of_below, dof_of_below, 0.95)
    print(
        f"\n{name:9} {n_stimuli:3} {n_subjects:3}   t {rejected / RUNS:.3f}   "
        + (f"95 % {covered[0.95]:.3f}   68 % {covered[0.68]:.3f}   ceiling {at_ceiling:.3f}" * (over != "subjects"))
    )
    return rejected, covered, at_ceiling


@pytest.mark.parametrize(
    ("over", "n_stimuli", "n_subjects"),
    [(over, *size) for over in ("stimuli", "subjects", "both") for size in SIZES]
    + [("both", *size) for size in WITH_TEN],
)
def test_two_equal_models(over, n_stimuli, n_subjects):
    """The t test between them, the intervals of their scores, and those of their distance from the ceiling."""
    rejected, covered, at_ceiling = of_two_models(over, over, n_stimuli, n_subjects)
    assert LOW <= rejected <= HIGH
    if over == "subjects":  # the score of these stimuli differs from run to run, so there is one truth per run
        return
    assert min(covered[0.95], at_ceiling) >= COVERED[0.95][0] - 0.01
    assert covered[0.68] >= COVERED[0.68][0]
    assert covered[0.95] <= COVERED[0.95][1]
    assert covered[0.68] <= COVERED[0.68][1] + 0.02


@pytest.mark.parametrize(("n_stimuli", "n_subjects"), [*SIZES, *WITH_TEN])
@pytest.mark.parametrize(("source", "options"), [("subjects", {"gain": 0.7}), ("stimuli", {"own": 0.1})])
def test_where_most_of_the_variance_has_one_source(source, options, n_stimuli, n_subjects):
    """Both resampled; the degrees of freedom follow the source."""
    rejected, covered, _ = of_two_models(source, "both", n_stimuli, n_subjects, partial(two_models, **options))
    assert LOW <= rejected <= HIGH
    assert COVERED[0.95][0] - 0.01 <= covered[0.95] <= COVERED[0.95][1]


@pytest.mark.parametrize("over", ["stimuli", "subjects", "both"])
def test_two_equal_fitted_models(over):
    """Cross-validated, 24 stimuli and 6 subjects in 3 and 2 folds: by the jackknife, which needs few bootstrap samples.

    Over stimuli it counts twice what is private to a pair, so that tests are careful. The correction of Efron & Stein
    (1981), by what leaving out two stimuli adds to leaving out each, has the right mean (0.9 to 1.2 of the truth, 30
    stimuli) but is so unsure that intervals cover .90 to .94 and tests reject .07.
    """
    rejected, scores, variances, dof = 0, [], [], []
    for found in experiments(two_fitted_models, over, 24, 6, bootstrap=2, crossvalidate=(3, 2)):
        rejected += found.pairwise("none")["p"].item() <= 0.05
        scores.append(found.scores)
        variances.append(found.variance)
        dof.append(found.variance_dof)
    scores = np.array(scores)
    reach = student.ppf(0.975, dof) * np.sqrt(variances)
    covered = (np.abs(scores - scores.mean(0)) <= reach).mean()
    ratio = np.mean(variances) / scores.var(0, ddof=1).mean()
    print(f"\nfitted, {over}: t {rejected / RUNS:.3f}   95 % {covered:.3f}, variance {ratio:.2f} of the truth")
    assert rejected <= HIGH
    if over == "subjects":  # where nothing is private to a pair
        assert rejected >= LOW
    else:
        assert covered >= COVERED[0.95][0] - 0.01


@pytest.mark.parametrize(
    ("method", "over", "n_stimuli", "n_subjects"),
    [
        ("rho-a", "both", 20, 20),
        ("rho-a", "stimuli", 20, 5),
        ("pearson-whitened", "both", 20, 20),
        ("tau-a", "stimuli", 20, 5),
    ],
)
def test_two_equal_models_by_other_comparisons(method, over, n_stimuli, n_subjects):
    rejected = sum(
        found.pairwise("none")["p"].item() <= 0.05
        for found in experiments(two_models, over, n_stimuli, n_subjects, method)
    )
    print(f"\n{method} {over} {n_stimuli} {n_subjects}: t {rejected / RUNS:.3f}")
    assert LOW <= rejected <= HIGH


@pytest.mark.parametrize("over", ["stimuli", "subjects", "both"])
def test_other_tests_between_two_equal_models(over):
    """By bootstrap samples, and over subjects by signed ranks; 40 stimuli, 20 subjects."""
    p = {"bootstrap": []} | ({"signed-rank": []} if over == "subjects" else {})
    for found in experiments(two_models, over, 40, 20):
        for test, values in p.items():
            values.append(found.pairwise("none", test)["p"].item())
    rates = {test: float(np.mean(np.array(values) <= 0.05)) for test, values in p.items()}
    print(f"\n{over}: " + ", ".join(f"{test} {rate:.3f}" for test, rate in rates.items()))
    assert rates["bootstrap"] * RUNS <= HIGH
    if over == "subjects":
        assert LOW <= rates["signed-rank"] * RUNS <= HIGH


def test_why_two_tests_are_refused():
    """Shares of bootstrap samples of five subjects, and signed ranks of subjects where stimuli are new."""
    few = [
        bootstrap_p(one.samples[:, :1] - one.samples[:, 1:2])[0] for one in experiments(two_models, "subjects", 40, 5)
    ]
    new = [
        signed_rank_p((one.per_subject[:1] - one.per_subject[1:2]).T)[0]
        for one in experiments(two_models, "stimuli", 40, 20)
    ]
    rates = [float(np.mean(np.array(p) <= 0.05)) for p in (few, new)]
    print(f"\nrefused: bootstrap of 5 subjects {rates[0]:.3f}, signed ranks for new stimuli {rates[1]:.3f}")
    assert rates[0] > 0.1 and rates[1] > 0.2


@pytest.mark.parametrize("over", ["stimuli", "subjects", "both"])
@pytest.mark.parametrize(("n_stimuli", "n_subjects"), [(20, 5), (20, 20), (40, 5), (40, 20)])
def test_a_score_of_zero(over, n_stimuli, n_subjects):
    """One-sided t. A score above zero by chance has a large variance too: hence the variance of unrelated models."""
    p, wald = [], []
    for found in experiments(no_model, over, n_stimuli, n_subjects):
        p.append(found.p_zero[0])
        wald.append(student.sf(found.scores[0] / np.sqrt(found.variance[0]), found.variance_dof[0]))
    above, below, plain = np.mean(np.array(p) <= 0.05), np.mean(np.array(p) >= 0.95), np.mean(np.array(wald) <= 0.05)
    print(f"\n{over} {n_stimuli} {n_subjects}: above zero {above:.3f}, below {below:.3f}, by its variance {plain:.3f}")
    assert LOW <= above * RUNS <= HIGH


@pytest.mark.parametrize("method", ["rho-a", "pearson-whitened", "tau-a"])
def test_a_score_of_zero_by_other_comparisons(method):
    p = np.array([found.p_zero[0] for found in experiments(no_model, "both", 20, 10, method)])
    print(f"\n{method}: above zero {(p <= 0.05).mean():.3f}")
    assert LOW <= (p <= 0.05).sum() <= HIGH


def test_what_a_score_of_zero_means():
    """Also where subjects are related to the model, up or down; but not where a model only says how much they vary."""
    rates = {}
    for make in (opposed, uncorrelated):
        rates[make] = np.mean([found.p_zero[0] <= 0.05 for found in experiments(make, "both", 20, 20)])
    print(f"\nrelated up or down {rates[opposed]:.3f}, uncorrelated but related {rates[uncorrelated]:.3f}")
    assert LOW <= rates[opposed] * RUNS <= HIGH
    assert rates[uncorrelated] > 0.1


@pytest.mark.parametrize("method", ["pearson", "rho-a", "cosine"])
def test_shuffled_labels(method):
    """Also of a comparison that is far from zero for unrelated RDMs, where they are the only test there is."""
    p = np.array(
        [found.p_zero[0] for found in experiments(no_model, "stimuli", 20, 5, method, bootstrap=2, permutations=99)]
    )
    print(f"\npermutation, {method}: {(p <= 0.05).mean():.3f}")
    assert LOW <= (p <= 0.05).sum() <= HIGH
    # Values are multiples of 1 / 100; spread over their steps they are uniform.
    assert kstest(p - np.random.default_rng(0).uniform(size=RUNS) / 100, "uniform").pvalue > 0.001


def test_families_of_pairs():
    """Four equal models, six pairs: any false positive in 5 % of experiments or fewer, by either correction."""
    any_false = dict.fromkeys(("fdr", "bonferroni", "none"), 0)
    for k in range(RUNS):
        rng = np.random.default_rng([4, k])
        latent = rng.normal(size=(24, 4, DIMENSIONS))
        models = rdms(np.tanh(latent[:, j] @ READOUT) for j in range(4))
        brain = []
        for _ in range(12):
            readouts = COMMON + 0.7 * rng.normal(size=(4, DIMENSIONS, CHANNELS))
            responses = np.tanh(np.einsum("scd,cdk->sk", latent, readouts))
            brain.append(responses + rng.normal(size=responses.shape))
        found = compare_models(models, rdms(brain), "pearson", bootstrap=100, seed=rng)
        for correction in any_false:
            any_false[correction] += (found.pairwise(correction)["p_corrected"] <= 0.05).any()
    print("\nany of six pairs: " + ", ".join(f"{name} {count / RUNS:.3f}" for name, count in any_false.items()))
    assert any_false["fdr"] <= HIGH
    assert any_false["bonferroni"] <= HIGH
    assert any_false["none"] > HIGH
