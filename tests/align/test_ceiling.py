"""Ceilings against planted truth and closed forms."""

import numpy as np
import pandas as pd
import pytest

from neuralign import align
from neuralign.align.ceiling import full_reliability
from neuralign.datasets import Recording


def recording(n_stimuli=400, n_repeats=4, ncsnr=(0.5, 1.0, 2.0), seed=0):
    rng = np.random.default_rng(seed)
    ncsnr = np.asarray(ncsnr)
    signal = rng.standard_normal((n_stimuli, len(ncsnr)))
    signal = (signal - signal.mean(0)) / signal.std(0)
    noise = rng.standard_normal((n_repeats, *signal.shape)) / ncsnr
    presentations = pd.DataFrame({"stimulus": np.tile([f"s{i}" for i in range(n_stimuli)], n_repeats)})
    brain = Recording((5 + 3 * (signal + noise)).reshape(-1, len(ncsnr)), presentations, pd.DataFrame(index=range(3)))
    return brain, signal


def test_split_half_finds_the_correlation_with_the_true_signal():
    ncsnr = np.array([0.5, 1.0, 2.0])
    brain, signal = recording(4000)
    truth = align.ncsnr_ceiling(ncsnr, 4)
    np.testing.assert_allclose(truth, ncsnr**2 / (ncsnr**2 + 0.25))
    np.testing.assert_allclose(align.split_half_ceiling(brain), truth, atol=0.02)
    mean = brain.average_repeats().read()
    best = [np.corrcoef(signal[:, v], mean[:, v])[0, 1] for v in range(3)]
    np.testing.assert_allclose(align.split_half_ceiling(brain, metric="r"), best, atol=0.02)


def test_odd_repeats_are_corrected_for_all_of_them():
    ncsnr = np.array([0.5, 1.0, 2.0])
    brain, _ = recording(20_000, 3)
    np.testing.assert_allclose(align.split_half_ceiling(brain, n_splits=3), align.ncsnr_ceiling(ncsnr, 3), atol=0.015)


def test_ncsnr_from_repeats():
    brain, _ = recording(4000)
    np.testing.assert_allclose(align.estimate_ncsnr(brain), [0.5, 1, 2], rtol=0.05)


def test_mixed_repeats_average_one_over_n():
    # A = 2 images seen once, B = 1 twice, C = 1 three times: (A/1 + B/2 + C/3) / 4
    expected = 1 / (1 + (2 + 1 / 2 + 1 / 3) / 4)
    assert align.ncsnr_ceiling(1.0, [1, 1, 2, 3]) == pytest.approx(expected)


def test_reliability_of_all_repeats():
    r = np.array([0.05, 0.3, 0.9, 1.0])
    np.testing.assert_allclose(full_reliability(r, 0.5, 0.5, 0.25), 2 * r / (1 + r))  # Spearman and Brown
    x = 0.7  # noise over signal: one and two repeats of three
    apart = 1 / np.sqrt((1 + x) * (1 + x / 2))
    assert full_reliability(apart, 1, 0.5, 1 / 3) == pytest.approx(1 / (1 + x / 3))
    np.testing.assert_array_equal(full_reliability([0, -0.4, np.nan], 1, 1, 0.5), [0, 0, np.nan])


def test_constant_unit_has_no_ceiling():
    brain, _ = recording(50)
    responses = np.asarray(brain.responses).copy()
    responses[:, 1] = 2
    flat = Recording(responses, brain.presentations, brain.units)
    ceiling = align.split_half_ceiling(flat)
    assert np.isnan(ceiling[1]) and np.isfinite(ceiling[[0, 2]]).all()
    assert np.isnan(align.estimate_ncsnr(flat)[1])


def test_bad_input():
    brain, _ = recording(20, 1)
    with pytest.raises(ValueError, match="two"):
        align.split_half_ceiling(brain)
    with pytest.raises(ValueError, match="no stimulus with two repeats"):
        align.estimate_ncsnr(brain)
    with pytest.raises(ValueError, match="metric='rho' is unknown"):
        align.ncsnr_ceiling(1, 3, metric="rho")
    for n in (0, [], [1, 0]):
        with pytest.raises(ValueError, match="numbers above zero"):
            align.ncsnr_ceiling(1, n)
