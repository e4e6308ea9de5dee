"""Tests reject, intervals cover and ceilings bound as often as they say, on simulations with a known truth."""

import numpy as np
import pandas as pd
import pytest

from neuralign.align.compare import compare, rsa_ceiling
from neuralign.align.inference import (
    bootstrap_comparison,
    percentile_interval,
    permutation_comparison,
    permutation_p,
)
from neuralign.align.rdm import rdm
from neuralign.align.rsa import rsa
from neuralign.datasets.rdms import RDMs
from neuralign.datasets.recording import Recording


def p_value(rng, method, signal):
    """A model and three subjects with a common geometry; `signal` says how much of it the model knows."""
    common = rng.normal(size=(12, 8))
    model = rdm(signal * common + rng.normal(size=(12, 8)))
    brain = np.concatenate([rdm(common + rng.normal(size=(12, 8))).vectors for _ in range(3)])
    observed = compare(model, brain, method).mean(1)
    return permutation_p(observed, permutation_comparison(model, brain, method, 99, seed=rng))[0]


@pytest.mark.parametrize("method", ["rho-a", "pearson", "cosine"])
def test_permutation_test_rejects_five_percent_of_nulls(method):
    p = np.array([p_value(np.random.default_rng([5, k]), method, signal=0) for k in range(500)])
    # 25 expected; a fair test leaves [11, 42] about once in 1,000 times.
    assert 11 <= (p <= 0.05).sum() <= 42
    assert abs(p.mean() - 0.5) < 0.05


def test_permutation_test_finds_a_signal():
    p = np.array([p_value(np.random.default_rng([6, k]), "rho-a", signal=2) for k in range(40)])
    assert (p <= 0.05).mean() > 0.9


def population(n_stimuli, rng, readouts):
    """Stimuli drawn from one population, seen by a model and by three fixed subjects."""
    latent = rng.normal(size=(n_stimuli, 6))
    model, *subjects = (rdm(np.tanh(latent @ readout)).vectors for readout in readouts)
    return model, np.concatenate(subjects)


@pytest.mark.parametrize("n_stimuli, widest", [(40, 0.88), (80, 0.80)])
def test_interval_covers_the_population_value(n_stimuli, widest):
    """Percentile intervals over 500 experiments; with few stimuli they are too wide, not too narrow.

    The intervals of `compare_models` take out what makes them so: see test_model_comparison_calibration.
    """
    rng = np.random.default_rng(99)
    model = rng.normal(size=(6, 30)) * np.repeat([0.3, 1.0], 3)[:, None]
    common = rng.normal(size=(6, 30)) * np.repeat([1.0, 0.3], 3)[:, None]
    readouts = [model, *(common + 0.5 * rng.normal(size=(6, 30)) for _ in range(3))]
    truth = np.mean([compare(*population(1000, rng, readouts), "pearson").mean() for _ in range(8)])
    covered = np.zeros(2)
    for k in range(500):
        rng = np.random.default_rng(k)
        samples = bootstrap_comparison(*population(n_stimuli, rng, readouts), "pearson", 200, seed=rng)
        for level, share in enumerate((0.95, 0.68)):
            low, high = percentile_interval(samples, share)
            covered[level] += low[0] <= truth <= high[0]
    covered /= 500
    print(f"{n_stimuli} stimuli, truth {truth:.3f}: 95 % covers {covered[0]:.3f}, 68 % covers {covered[1]:.3f}")
    assert 0.91 <= covered[0] <= 0.995
    assert 0.58 <= covered[1] <= widest


def test_true_geometry_lies_between_the_ceilings_of_a_group():
    """Averaged over 20 experiments; the bounds are half the gap to a perfect score apart or less."""
    lower, true, upper = [], [], []
    for k in range(20):
        rng = np.random.default_rng(k)
        signal = rng.normal(size=(30, 20))
        subjects = np.concatenate([rdm(signal + rng.normal(size=(30, 20))).vectors for _ in range(6)])
        low, high = rsa_ceiling(subjects, "pearson")
        lower.append(low)
        upper.append(high)
        true.append(compare(rdm(signal).vectors, subjects, "pearson").mean())
    assert np.mean(lower) < np.mean(true) < np.mean(upper)
    assert np.mean(upper) - np.mean(lower) < (1 - np.mean(lower)) / 2


@pytest.mark.parametrize("noise, below, above", [(0.5, 0.01, 0.01), (1, 0.01, 0.01), (2, 0.03, 0.01), (4, 0.08, 0.0)])
def test_split_half_ceiling_of_one_subject(noise, below, above):
    """Against the similarity of noiseless and measured RDM, three repeats: good for clean data, low for noisy."""
    ceilings, truths = [], []
    ids = [f"s{k}" for k in range(100)]
    for k in range(8):
        rng = np.random.default_rng(k)
        signal = rng.normal(size=(100, 6)) @ rng.normal(size=(6, 100)) / np.sqrt(6)
        responses = np.repeat(signal, 3, axis=0) + noise * rng.normal(size=(300, 100))
        presentations = pd.DataFrame({"stimulus": np.repeat(ids, 3)})
        brain = Recording(responses, presentations, pd.DataFrame({"unit": range(100)}))
        truth = RDMs(rdm(signal).vectors, ids, pd.DataFrame({"label": ["truth"]}))
        row = rsa(truth, brain, compare="pearson", bootstrap=0, permutations=0).iloc[0]
        ceilings.append(row["ceiling"])
        truths.append(row["score"])
    error = np.mean(ceilings) - np.mean(truths)
    print(f"noise {noise} sd: true {np.mean(truths):.3f}, split-half ceiling {np.mean(ceilings):.3f}")
    assert -below <= error <= above
