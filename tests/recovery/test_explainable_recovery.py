"""Simulated signal and noise come back.

Measured by these tests, for signal-to-noise ratios of 0, 0.1, 0.5, 1 and 4 (variances) in 400 simulated units each,
300 stimuli, with 5 repeats each or with 1 to 8: the mean of every estimate lies within four standard errors of the
truth where it is unbiased; explainable variance, a ratio, is within 0.002 beside that. CCnorm of a prediction that
correlates at 0.8 with the signal is within 0.005 of it, but 0.01 (5 repeats) and 0.06 (1 to 8) too high at a ratio of
0.1, where CCmax is the root of a small and noisy estimate.
"""

import numpy as np
import pytest

from neuralign.align.explainable import (
    cc_max,
    cc_norm,
    explainable_variance,
    inter_subject_ceiling,
    signal_power,
    signal_power_explained,
)

SNR = np.array([0.0, 0.1, 0.5, 1.0, 4.0])
UNITS, STIMULI = 400, 300


def simulate(complete, seed=0):
    """Responses (repeat, stimulus, unit), the signal, and repeats per stimulus; noise has variance 2."""
    rng = np.random.default_rng(seed)
    snr = np.repeat(SNR, UNITS)
    signal = np.sqrt(2 * snr) * rng.standard_normal((STIMULI, len(snr)))
    n_repeats = 5 if complete else 8
    noise = np.sqrt(2) * rng.standard_normal((n_repeats, *signal.shape))
    responses = signal + noise + rng.standard_normal((n_repeats, 1, len(snr)))
    count = np.full(STIMULI, 5) if complete else rng.integers(1, 9, size=STIMULI)
    responses[np.arange(n_repeats)[:, None] >= count] = np.nan
    return responses, signal, count


def close(estimates, truth, bias=0.0):
    """The mean over units of each signal-to-noise ratio is the truth."""
    groups = np.reshape(estimates, (len(SNR), UNITS))
    error = np.abs(groups.mean(1) - truth)
    allowed = 4 * groups.std(1, ddof=1) / np.sqrt(UNITS) + bias
    assert (error <= allowed).all(), (error, allowed)


@pytest.mark.parametrize("complete", [True, False])
def test_powers_and_ceilings_come_back(complete):
    responses, _, count = simulate(complete)
    if not complete:
        responses -= np.nanmean(responses, 1, keepdims=True)  # else offsets would be in the mean over repeats
    signal, noise = signal_power(responses)
    close(signal, 2 * SNR)
    close(noise, 2)
    close(explainable_variance(responses), SNR / (SNR + 1), 0.002)
    left = np.mean(1 / count)
    close(explainable_variance(responses, corrected=False), (SNR + left) / (SNR + 1), 0.002)
    with_signal = np.repeat(SNR, UNITS) >= 0.5  # a root of small estimates is biased
    truth = np.repeat(np.sqrt(SNR / (SNR + left)), UNITS)
    assert np.abs(cc_max(responses) - truth)[with_signal].max() < 0.15
    error = (cc_max(responses) - truth)[with_signal].reshape(-1, UNITS).mean(1)
    assert np.abs(error).max() < 0.005


@pytest.mark.parametrize("complete", [True, False])
def test_prediction_is_scored_as_if_there_were_no_noise(complete):
    responses, signal, _ = simulate(complete, 1)
    responses = responses[:, :, UNITS:]
    signal = signal[:, UNITS:]
    if not complete:
        responses -= np.nanmean(responses, 1, keepdims=True)
    rng = np.random.default_rng(2)
    predicted = signal + 0.75 * signal.std(0) * rng.standard_normal(signal.shape)  # r is 0.8
    truth = [np.corrcoef(one, other)[0, 1] for one, other in zip(predicted.T, signal.T, strict=True)]
    assert np.mean(truth) == pytest.approx(0.8, abs=0.01)
    difference = (cc_norm(predicted, responses) - truth).reshape(len(SNR) - 1, UNITS)
    np.testing.assert_allclose(difference.mean(1)[1:], 0, atol=0.005)
    assert 0 < difference.mean(1)[0] < 0.08  # over the root of a small and noisy estimate
    for scale, truth in ((1.0, 1.0), (0.5, 0.75)):  # 2 scale - scale ** 2
        spe = signal_power_explained(scale * signal, responses).reshape(len(SNR) - 1, UNITS)
        np.testing.assert_allclose(np.median(spe, 1), truth, atol=0.06)
        np.testing.assert_allclose(spe.mean(1)[1:], truth, atol=0.02)


def test_inter_subject_bounds_hold_the_true_model():
    """Each subject is the shared signal and as much of its own: bounds from the variances, and r of the signal."""
    rng = np.random.default_rng(3)
    n_subjects, own = 8, 1.5
    signal = rng.standard_normal((STIMULI, UNITS))
    subjects = signal + np.sqrt(own) * rng.standard_normal((n_subjects, *signal.shape))
    lower, upper = inter_subject_ceiling(subjects)
    total = 1 + own
    assert lower.mean() == pytest.approx(1 / np.sqrt(total * (1 + own / (n_subjects - 1))), abs=0.005)
    assert upper.mean() == pytest.approx((1 + own / n_subjects) / np.sqrt(total * (1 + own / n_subjects)), abs=0.005)
    z = (subjects - subjects.mean(1, keepdims=True)) / subjects.std(1, keepdims=True)
    r = (z * (signal - signal.mean(0)) / signal.std(0)).mean((0, 1))
    assert lower.mean() < r.mean() < upper.mean()
    assert (r <= upper).all()
