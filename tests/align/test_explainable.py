"""Signal and noise against the published formulas, weighted covariances of numpy, and plain loops."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest

from neuralign import align
from neuralign.align import explainable
from neuralign.align.explainable import (
    cc_max,
    cc_norm,
    explainable_variance,
    inter_subject_ceiling,
    repeats_of,
    signal_power,
    signal_power_explained,
)
from neuralign.datasets import Recording, StimulusSet

NOISE = np.array([0.5, 1.0, 2.0, 4.0])


def complete(n_repeats=4, n_stimuli=60, seed=0):
    """Responses (repeat, stimulus, unit) with an offset and a slow change from repeat to repeat, and the signal."""
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((n_stimuli, len(NOISE)))
    responses = 3 + signal + NOISE * rng.standard_normal((n_repeats, *signal.shape))
    return responses + rng.standard_normal((n_repeats, 1, len(NOISE))), signal


def ragged(seed=1, n_repeats=5, n_stimuli=40):
    """Every unit lacks repeats of its own; some stimuli have one repeat or none."""
    responses, _ = complete(n_repeats, n_stimuli, seed)
    rng = np.random.default_rng([seed, 1])
    count = rng.integers(0, n_repeats + 1, size=responses.shape[1:])
    responses[np.arange(n_repeats)[:, None, None] >= count] = np.nan
    return rng.permuted(responses, axis=0)


def by_sahani_and_linden(y):
    """Signal and noise power as published, for one unit (repeat, time)."""
    n = len(y)
    signal = (n * np.var(y.mean(0), ddof=1) - np.var(y, axis=1, ddof=1).mean()) / (n - 1)
    return signal, np.var(y, axis=1, ddof=1).mean() - signal


def by_pairs(y):
    """Signal and noise power of one unit (repeat, stimulus) with missing repeats: numpy's weighted covariances."""
    count = np.isfinite(y).sum(0)
    covariance = difference = freedom = 0.0
    for first, second in itertools.combinations(y, 2):
        both = np.isfinite(first) & np.isfinite(second)
        if both.sum() < 2:
            continue
        w = 1 / (count * (count - 1))[both]
        share = w.sum() - (w**2).sum() / w.sum()
        covariance += share * np.cov(first[both], second[both], aweights=w)[0, 1]
        difference += share * np.cov((first - second)[both], aweights=w) / 2
        freedom += share
    return covariance / freedom, difference / freedom


# Powers


@pytest.mark.parametrize("n_repeats", [2, 3, 10])
def test_powers_are_those_of_sahani_and_linden(n_repeats):
    responses, _ = complete(n_repeats)
    expected = np.transpose([by_sahani_and_linden(responses[:, :, unit]) for unit in range(4)])
    np.testing.assert_allclose(signal_power(responses), expected, rtol=1e-10, atol=1e-12)


def test_ragged_repeats_are_weighted_covariances_of_pairs():
    responses = ragged()
    expected = np.transpose([by_pairs(responses[:, :, unit]) for unit in range(4)])
    np.testing.assert_allclose(signal_power(responses), expected, rtol=1e-10, atol=1e-12)


def test_two_stimuli_with_two_repeats_are_enough():
    responses = np.full((3, 5, 1), np.nan)
    responses[0, :, 0] = [4, 1, 3, 2, 8]
    responses[2, [1, 3], 0] = [2, 5]
    signal, noise = signal_power(responses)
    assert signal[0] == pytest.approx((1 - 2) * (2 - 5) / 2)  # covariance of (1, 2) and (2, 5)
    assert noise[0] == pytest.approx(1.0)  # half the variance of the differences 1 and 3


def test_missing_repeats_and_blocks_of_units_change_nothing(monkeypatch):
    responses, _ = complete(3)
    expected = signal_power(responses)
    np.testing.assert_allclose(
        signal_power(np.concatenate([responses, np.full((2, *responses.shape[1:]), np.nan)])), expected, rtol=1e-12
    )
    singles = np.full((3, 7, 4), np.nan)
    singles[0] = 100  # stimuli seen once tell nothing
    np.testing.assert_allclose(signal_power(np.concatenate([responses, singles], 1)), expected, rtol=1e-9)
    np.testing.assert_allclose(signal_power(responses[::-1]), expected, rtol=1e-12)
    whole = signal_power(ragged()), cc_norm(np.ones((40, 4)) * np.arange(40)[:, None], ragged())
    monkeypatch.setattr(explainable, "_BLOCK", 1)
    parts = signal_power(ragged()), cc_norm(np.ones((40, 4)) * np.arange(40)[:, None], ragged())
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-12)
    np.testing.assert_allclose(whole[1], parts[1], rtol=1e-12)


def test_offsets_cost_no_digits():
    for responses in (complete()[0], ragged()):
        expected = signal_power(responses)
        np.testing.assert_allclose(signal_power(responses + 1e6), expected, rtol=1e-7)
        np.testing.assert_allclose(signal_power(100 * responses), 1e4 * np.asarray(expected), rtol=1e-9)


# Explainable variance and its relatives


@pytest.mark.parametrize("corrected", [True, False])
def test_explainable_variance_of_z_scored_runs(corrected):
    responses, _ = complete(5)
    z = (responses - responses.mean(1, keepdims=True)) / responses.std(1, keepdims=True)
    left = np.var(z - z.mean(0), axis=1).mean(0)  # variance over time of what is not common to the runs
    expected = 1 - left * (5 / 4 if corrected else 1)
    np.testing.assert_allclose(explainable_variance(z, corrected), expected, rtol=1e-10)


def test_explainable_variance_is_the_ceiling_of_one_presentation():
    for responses in (complete(3)[0], ragged()):
        signal, noise = signal_power(responses)
        ncsnr = np.sqrt(np.maximum(signal, 0) / noise)
        np.testing.assert_allclose(np.maximum(explainable_variance(responses), 0), align.ncsnr_ceiling(ncsnr, 1))
        for unit in range(4):
            count = np.isfinite(responses[:, :, unit]).sum(0)
            expected = align.ncsnr_ceiling(ncsnr[unit], count[count > 0], metric="r")
            np.testing.assert_allclose(cc_max(responses)[unit], expected)


def test_cc_norm_and_spe_as_published():
    responses, signal = complete(6, 200)
    predicted = 0.3 * signal + np.random.default_rng(3).standard_normal(signal.shape) * 0.2 + 5
    mean = responses.mean(0)
    power = np.array([by_sahani_and_linden(responses[:, :, unit])[0] for unit in range(4)])
    covariance = ((mean - mean.mean(0)) * (predicted - predicted.mean(0))).sum(0) / 199
    expected = covariance / np.sqrt(np.var(predicted, axis=0, ddof=1) * power)  # Schoppe et al., equation 5
    np.testing.assert_allclose(cc_norm(predicted, responses), expected, rtol=1e-10)
    np.testing.assert_allclose(cc_max(responses), np.sqrt(power / np.var(mean, axis=0, ddof=1)), rtol=1e-10)
    expected = (np.var(mean, axis=0, ddof=1) - np.var(mean - predicted, axis=0, ddof=1)) / power
    np.testing.assert_allclose(signal_power_explained(predicted, responses), expected, rtol=1e-10)


def test_stimuli_without_responses_need_no_prediction():
    responses, signal = complete()
    padded = np.concatenate([responses, np.full((4, 3, 4), np.nan)], 1)
    predictions = np.concatenate([signal, np.full((3, 4), np.nan)])
    for score in (cc_norm, signal_power_explained):
        np.testing.assert_allclose(score(predictions, padded), score(signal, responses), rtol=1e-12)


def test_no_ratio_over_a_ceiling_of_zero():
    responses, signal = complete()
    nothing = responses.copy()
    nothing[:, :, 1] *= np.array([1, -1, 1, -1])[:, None]  # repeats that contradict each other
    assert signal_power(nothing).signal[1] < 0
    assert cc_max(nothing)[1] == 0
    assert explainable_variance(nothing)[1] < 0
    for score in (cc_norm, signal_power_explained):
        with pytest.warns(UserWarning, match="1 of 4 units are NaN.*not above zero") as caught:
            values = score(signal, nothing)
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert np.isnan(values[1]) and np.isfinite(values[[0, 2, 3]]).all()


def test_constant_prediction_explains_nothing():
    responses, signal = complete()
    predicted = signal.copy()
    predicted[:, 0] = 0.1
    assert cc_norm(predicted, responses)[0] == 0
    assert signal_power_explained(predicted, responses)[0] == 0
    predicted[3, 2] = np.nan
    with pytest.warns(UserWarning, match="1 of 4 units are NaN.*predictions are missing"):
        assert np.isnan(cc_norm(predicted, responses)[2])


@pytest.mark.parametrize("call", [signal_power, explainable_variance, cc_max])
def test_units_that_cannot_be_scored(call):
    responses, _ = complete()
    responses[:, :, 0] = 0.1
    responses[1:, :, 1] = np.nan
    responses[:, 1:, 2] = np.nan  # one stimulus
    with pytest.warns(UserWarning, match="3 of 4 units are NaN") as caught:
        values = np.atleast_2d(call(responses))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(np.isnan(values), np.tile([True, True, True, False], (len(values), 1)))


def test_bad_input():
    responses, signal = complete()
    with pytest.raises(ValueError, match=r"responses has shape \(60, 4\); expected \(repeat, stimulus, unit\)"):
        signal_power(responses[0])
    with pytest.raises(ValueError, match="two stimuli of two repeats"):
        cc_max(responses[:1])
    with pytest.raises(ValueError, match=r"predicted has shape \(59, 4\); expected .*\(60, 4\)"):
        cc_norm(signal[1:], responses)
    with pytest.raises(ValueError, match="at least two subjects"):
        inter_subject_ceiling(responses[:1])


# Recordings


def test_repeats_of_a_recording_follow_its_average():
    values = ragged().astype(np.float32)
    values[:, 5] = np.nan
    values[:, 7] = np.nan  # never recorded: left out
    rng = np.random.default_rng(2)
    shown = [(repeat, stimulus) for repeat in range(5) for stimulus in range(40) if stimulus != 5]
    rng.shuffle(shown)
    rows = np.array([values[repeat, stimulus] for repeat, stimulus in shown])
    table = pd.DataFrame({"stimulus": [f"s{stimulus:02d}" for _, stimulus in shown]})
    stimuli = StimulusSet.from_sentences([f"text {i}" for i in range(40)], ids=[f"s{i:02d}" for i in range(40)])
    for given in (None, stimuli):
        brain = Recording(rows, table, stimuli=given)
        found = repeats_of(brain)
        average = brain.average_repeats()
        order = [int(one[1:]) for one in average.presentations["stimulus"]]
        assert found.shape == (5, 38, 4)
        assert found.dtype == np.float32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of means of nothing
            np.testing.assert_allclose(np.nanmean(found, 0), average.read(), rtol=1e-5)
        np.testing.assert_array_equal(np.sort(found, 0), np.sort(values[:, order], 0))
        np.testing.assert_array_equal(signal_power(brain), signal_power(found))
        predicted = rng.standard_normal((38, 4))
        np.testing.assert_array_equal(cc_norm(predicted, brain), cc_norm(predicted, found))


def test_subjects_of_a_recording_keep_their_repeats():
    values, _ = complete(4, 20)
    rows, stimulus, subject = [], [], []
    for repeat, one in itertools.product(range(4), range(20)):
        for name, units in (("a", slice(0, 2)), ("b", slice(2, 4))):
            if name == "b" and repeat == 3:
                continue
            row = np.full(4, np.nan)
            row[units] = values[repeat, one, units]
            rows.append(row)
            stimulus.append(f"s{one}")
            subject.append(name)
    table = pd.DataFrame({"stimulus": stimulus, "subject": subject})
    brain = Recording(np.array(rows), table, pd.DataFrame({"subject": list("aabb")}))
    expected = values.copy()
    expected[3, :, 2:] = np.nan
    np.testing.assert_array_equal(repeats_of(brain), expected)


def test_recording_agrees_with_the_other_ceilings():
    values, _ = complete(4, 3000)
    values -= values.mean(1, keepdims=True)  # offsets of repeats are noise to the other two
    table = pd.DataFrame({"stimulus": np.tile([f"s{i}" for i in range(3000)], 4)})
    brain = Recording(values.reshape(-1, 4), table)
    signal, noise = signal_power(brain)
    np.testing.assert_allclose(np.sqrt(signal / noise), align.estimate_ncsnr(brain), rtol=2e-3)
    np.testing.assert_allclose(cc_max(brain), align.split_half_ceiling(brain, metric="r", n_splits=30), rtol=0.02)


def test_time_axis_is_refused():
    brain = Recording(np.zeros((4, 2, 3)), {"stimulus": list("aabb")}, times=[0, 1, 2])
    with pytest.raises(ValueError, match="average_time"):
        repeats_of(brain)


# Subjects


def test_inter_subject_ceiling_in_plain_loops():
    subjects, _ = complete(6, 50)
    subjects *= np.arange(1, 7)[:, None, None]  # the scale of a subject does not matter
    lower, upper = inter_subject_ceiling(subjects)
    for unit in range(4):
        z = np.array([(y - y.mean()) / y.std() for y in subjects[:, :, unit]])
        low = [np.corrcoef(z[k], np.delete(z, k, 0).mean(0))[0, 1] for k in range(6)]
        high = [np.corrcoef(z[k], z.mean(0))[0, 1] for k in range(6)]
        np.testing.assert_allclose([lower[unit], upper[unit]], [np.mean(low), np.mean(high)], rtol=1e-10)
    assert (lower < upper).all()


def test_no_prediction_beats_the_upper_bound():
    subjects, _ = complete(5, 30)
    upper = inter_subject_ceiling(subjects).upper
    rng = np.random.default_rng(4)
    best = subjects.mean(0)
    for _ in range(200):
        predicted = best + 0.1 * rng.standard_normal(best.shape)
        r = [[np.corrcoef(y[:, unit], predicted[:, unit])[0, 1] for unit in range(4)] for y in subjects]
        assert (np.mean(r, 0) <= upper).all()


def test_inter_subject_ceiling_with_missing_responses():
    subjects, _ = complete(5, 40)
    expected = inter_subject_ceiling(subjects[1:])
    gone = subjects.copy()
    gone[0] = np.nan  # a subject that is not there
    np.testing.assert_allclose(inter_subject_ceiling(gone), expected, rtol=1e-12)
    gone[0] = 0.1  # or one that does not respond
    np.testing.assert_allclose(inter_subject_ceiling(gone), expected, rtol=1e-10)
    holes = subjects[:, :, :1].copy()
    holes[0, :10] = holes[1, 5:20] = holes[2:, 0] = np.nan
    lower, upper = np.zeros((2, 5))
    z = (holes - np.nanmean(holes, 1, keepdims=True)) / np.nanstd(holes, 1, keepdims=True)
    for k in range(5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of means of nothing
            others, everyone = np.nanmean(np.delete(z, k, 0), 0)[:, 0], np.nanmean(z, 0)[:, 0]
        both = np.isfinite(z[k, :, 0]) & np.isfinite(others)
        lower[k], upper[k] = (np.corrcoef(z[k, both, 0], x[both])[0, 1] for x in (others, everyone))
    np.testing.assert_allclose(np.ravel(inter_subject_ceiling(holes)), [lower.mean(), upper.mean()], rtol=1e-10)


def test_units_of_one_subject_have_no_ceiling():
    subjects, _ = complete(3)
    subjects[1:, :, 0] = np.nan
    subjects[1:, :, 2] = 7
    with pytest.warns(UserWarning, match="2 of 4 units are NaN"):
        lower, upper = inter_subject_ceiling(subjects)
    np.testing.assert_array_equal(np.isnan(lower), [True, False, True, False])
    np.testing.assert_array_equal(np.isnan(upper), [True, False, True, False])
