"""Variance over new stimuli and new subjects: formulas by enumeration, and figures whose variance is known."""

import itertools

import numpy as np
import pytest

from neuralign.align.inference import dual_variance, resample_weights
from neuralign.align.inference.dual import (
    corrected_variance,
    jackknife_of,
    satterthwaite,
    stimulus_variance,
    variance_of_differences,
)


def test_variance_of_differences():
    samples = np.random.default_rng(0).normal(size=(50, 4)) + 1e4
    found = variance_of_differences(samples)
    expected = (samples[:, :, None] - samples[:, None]).var(0, ddof=1)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    samples[:10, 1], samples[5:, 3] = np.nan, np.nan
    found = variance_of_differences(samples)
    difference = (samples[:, 0] - samples[:, 1])[10:]
    assert found[0, 1] == pytest.approx(difference.var(ddof=1))
    assert np.isnan(found[1, 3]) and found[0, 3] == pytest.approx((samples[:5, 0] - samples[:5, 3]).var(ddof=1))
    assert (np.diag(found) == 0).all()


def test_jackknife_and_its_interaction_by_enumeration():
    """The interaction is what all samples of three subjects add to the jackknife variance on average."""
    values = np.random.default_rng(0).normal(size=(6, 2, 3))
    variance, interaction = jackknife_of(values)

    def of(columns):
        return 5 / 6 * ((columns - columns.mean(0)) ** 2).sum(0)

    difference = values[:, 0] - values[:, 1]
    assert variance[0, 1] == pytest.approx(of(difference.mean(1)))
    drawn = [of(difference[:, list(sample)].mean(1)) for sample in itertools.product(range(3), repeat=3)]
    assert interaction[0, 1] == pytest.approx(np.mean(drawn) - variance[0, 1])
    values[2, 0, 1] = np.nan
    assert np.isnan(jackknife_of(values)[0][0, 1]) and jackknife_of(values)[0][1, 1] == 0


N_STIMULI, N_SUBJECTS = 40, 6
FIRST, SECOND = np.triu_indices(N_STIMULI, 1)
N_PAIRS = len(FIRST)
TRUE = {
    "subject": 1 / N_SUBJECTS,
    "stimulus": 4 / N_STIMULI,
    "pair": 1 / N_PAIRS,
    "subject and stimulus": 4 / N_STIMULI / N_SUBJECTS,
    "subject and pair": 1 / N_PAIRS / N_SUBJECTS,
}


def effect(kind, rng):
    """A value per subject and pair, of which the mean over both has a known variance."""
    if kind == "subject":
        return np.repeat(rng.normal(size=(N_SUBJECTS, 1)), N_PAIRS, axis=1)
    if kind.endswith("stimulus"):
        own = rng.normal(size=(N_SUBJECTS if kind.startswith("subject") else 1, N_STIMULI))
        return np.broadcast_to(own[:, FIRST] + own[:, SECOND], (N_SUBJECTS, N_PAIRS))
    return np.broadcast_to(
        rng.normal(size=(N_SUBJECTS if kind.startswith("subject") else 1, N_PAIRS)), (N_SUBJECTS, N_PAIRS)
    )


def estimates(values, rng, n=500):
    """The dual bootstrap and the corrected variance of the mean over subjects and pairs."""

    def means(w):
        times = w[:, FIRST] * w[:, SECOND]
        return times @ values.T / times.sum(1, keepdims=True)

    w, v = resample_weights(N_STIMULI, n, rng), resample_weights(N_SUBJECTS, n, rng) / N_SUBJECTS
    once = np.ones((1, N_STIMULI))
    by_subject = means(w)
    three = [(v * by_subject).sum(1), (v * means(once)).sum(1), by_subject.mean(1)]
    both, subjects, stimuli = (one.var(ddof=1) for one in three)
    left_out = means(once - np.eye(N_STIMULI))[:, None]
    jackknife, interaction = jackknife_of(np.concatenate([left_out, np.zeros_like(left_out)], axis=1))
    sizes = N_SUBJECTS, N_STIMULI
    return (
        dual_variance(both, subjects, stimuli, *sizes),
        corrected_variance(both, subjects, stimuli, jackknife[0, 1], interaction[0, 1], *sizes),
        stimulus_variance(stimuli, jackknife[0, 1], N_STIMULI),
    )


@pytest.mark.parametrize("kind", TRUE)
def test_every_source_of_variance_is_counted_once(kind):
    """Ratio of the mean estimate to the truth over 60 data sets.

    What is private to a pair is thrice in the dual bootstrap. So is what is private to a subject and a pair, because
    the formula is cut at the bootstrap over stimuli; the corrected variance is cut too, at the greater of two estimates
    of the same size, and so comes out above the truth there.
    """
    ratio = []
    for k in range(60):
        rng = np.random.default_rng([7, k])
        ratio.append(np.array(estimates(effect(kind, rng), rng)) / TRUE[kind])
    dual, corrected, of_stimuli = np.mean(ratio, axis=0)
    print(f"{kind}: dual bootstrap {dual:.2f}, corrected {corrected:.2f}, stimuli alone {of_stimuli:.2f}")
    assert 0.8 < corrected < (1.6 if kind.startswith("subject and") else 1.3)
    if kind.endswith("pair"):
        assert 2.5 < dual < 3.5
    else:
        assert 0.8 < dual < 1.6
    if kind == "subject":
        assert of_stimuli < 1e-12
    else:
        assert 0.8 < of_stimuli < 1.3


def test_bounds_of_the_corrected_variance():
    """Not below the variance over subjects or stimuli alone, not above that of resampling both."""
    rng = np.random.default_rng(0)
    both, subjects, stimuli, jackknife, interaction = rng.uniform(0.1, 1, (5, 300))
    found = corrected_variance(both, subjects, stimuli, jackknife, interaction, 5, 20)
    alone = np.maximum(1.25 * subjects, stimulus_variance(stimuli, jackknife, 20))
    assert (found >= alone - 1e-15).all() and (found <= np.maximum(both, alone) + 1e-15).all()
    lost = corrected_variance(both, subjects, stimuli, np.nan * jackknife, interaction, 5, 20)
    np.testing.assert_allclose(lost, dual_variance(both, subjects, stimuli, 5, 20))
    np.testing.assert_allclose(stimulus_variance(stimuli, np.nan * jackknife, 20), stimuli * 20 / 19)


def test_a_single_subject_or_stimulus_has_no_variance():
    with pytest.raises(ValueError, match="n_subjects=1; a variance over them needs at least two"):
        dual_variance(1.0, 1.0, 1.0, 1, 20)
    with pytest.raises(ValueError, match="n_stimuli=1"):
        dual_variance(1.0, 1.0, 1.0, 5, 1)


@pytest.mark.parametrize("spread", [(1.0, 0.2, 0.5), (0.1, 1.0, 0.5), (0.5, 0.5, 1.0)])
def test_degrees_of_freedom_are_those_of_the_variance(spread):
    """Twice the squared mean over the variance, of mean squares of 4,000 tables of subjects by stimuli."""
    n, m = 8, 25
    rng = np.random.default_rng(3)
    scale = np.sqrt(spread)
    table = scale[0] * rng.normal(size=(4000, n, 1)) + scale[1] * rng.normal(size=(4000, 1, m))
    table = table + scale[2] * rng.normal(size=(4000, n, m))
    subjects, stimuli = table.mean(2).var(1, ddof=1) / n, table.mean(1).var(1, ddof=1) / m
    own = table - table.mean(2, keepdims=True) - table.mean(1, keepdims=True) + table.mean((1, 2), keepdims=True)
    total = subjects + stimuli - (own**2).sum((1, 2)) / ((n - 1) * (m - 1)) / (n * m)
    found = satterthwaite(total.mean(), subjects.mean(), stimuli.mean(), n, m)
    assert found == pytest.approx(2 * total.mean() ** 2 / total.var(), rel=0.1)


def test_bounds_of_the_degrees_of_freedom():
    assert satterthwaite(1.0, 1.0, 0.0, 5, 20) == 4  # subjects alone
    assert satterthwaite(1.0, 0.0, 1.0, 5, 20) == 19
    assert satterthwaite(4.0 + 19.0, 4.0, 19.0, 5, 20) == pytest.approx(23)  # the most two independent parts have
    assert satterthwaite(1.0, 1.0, 1.0, 5, 20) == 4  # an interaction alone: no less than either
    assert satterthwaite(9.0, 1.0, 1.0, 5, 20) == 23
    assert satterthwaite(0.0, 0.0, 0.0, 5, 20) == 4
    assert satterthwaite(1.0, 0.0, 1.0, 4, 20) == 3  # too few subjects to estimate from
    assert satterthwaite([1.0, 2.0], [0.0, 1.0], [1.0, 1.0], 20, 3).tolist() == [2, 2]
