"""RDMs over time against one RDM per averaged window."""

import warnings

import numpy as np
import pandas as pd
import pytest

from neuralign.align.geometry import distances
from neuralign.align.noise import inverse_of_covariance, noise_covariance, repeat_residuals
from neuralign.align.rdm import rdm
from neuralign.align.time import rdm_over_time, time_windows
from neuralign.datasets.recording import Recording

TIMES = np.arange(-0.02, 0.08, 0.01)  # ten time points


def recording(n_stimuli=5, n_runs=3, seed=0, counts=False):
    """One subject with two regions, a presentation of every stimulus in every run, in random order."""
    rng = np.random.default_rng(seed)
    stimuli, runs = np.tile(np.arange(n_stimuli), n_runs), np.repeat(np.arange(n_runs), n_stimuli)
    signal = rng.normal(size=(n_stimuli, 7, len(TIMES)))
    X = signal[stimuli] + rng.normal(size=(len(stimuli), 7, len(TIMES)))
    if counts:
        X = rng.poisson(3, size=X.shape).astype(float)
    order = rng.permutation(len(stimuli))
    table = pd.DataFrame({"stimulus": [f"s{k}" for k in stimuli[order]], "run": runs[order]})
    return Recording(X[order], table, pd.DataFrame({"region": list("aaaabbb")}), times=TIMES)


def window_by_window(brain, method, table, **options):
    found = []
    for _, row in table.iterrows():
        part = brain.select(region=row["region"]).average_time(row["start"], row["stop"])
        found.append(rdm(part, method, **options).vectors[0])
    return np.stack(found)


@pytest.mark.parametrize("window", [0.0, 0.02, 0.03])
@pytest.mark.parametrize("method", ["sqeuclidean", "euclidean", "correlation", "cosine"])
def test_every_window_is_the_rdm_of_its_average(method, window):
    brain = recording()
    rdms = rdm_over_time(brain, method, window)
    per_region = {0.0: 10, 0.02: 5, 0.03: 3}[window]
    assert rdms.table["region"].tolist() == ["a"] * per_region + ["b"] * per_region
    assert rdms.table["n_units"].tolist() == [4] * per_region + [3] * per_region
    np.testing.assert_allclose(rdms.vectors, window_by_window(brain, method, rdms.table), rtol=1e-5, atol=1e-7)
    assert rdms.stimulus_ids == rdm(brain.average_time()).stimulus_ids and rdms.method == method


@pytest.mark.parametrize("folds", ["run", None])
@pytest.mark.parametrize("method", ["crossnobis", "poisson-cv", "poisson", "mahalanobis"])
def test_folds_and_noise_are_kept_at_every_time(method, folds):
    brain = recording(counts=method.startswith("poisson"))
    options = {}
    if method in ("crossnobis", "poisson-cv"):
        options["folds"] = folds
    if method in ("crossnobis", "mahalanobis"):
        options["noise"] = np.linspace(0.5, 2, 7)
    rdms = rdm_over_time(brain, method, 0.02, 0.01, **options)
    assert len(rdms) == 2 * 9
    for region, rows in rdms.table.groupby("region"):
        given = dict(options)
        if "noise" in given:
            given["noise"] = given["noise"][:4] if region == "a" else given["noise"][4:]
        wanted = window_by_window(brain, method, rows, **given)
        np.testing.assert_allclose(rdms.vectors[rows.index], wanted, rtol=1e-5, atol=1e-6)


def test_one_precision_for_all_windows():
    """The inverse of the mean of the covariances of the windows."""
    brain = recording()
    rdms = rdm_over_time(brain, "crossnobis", 0.02, noise="shrinkage-diagonal", folds="run")
    part = brain.select(region="b")
    covariance = 0
    for start, stop in rdms.table[["start", "stop"]].to_numpy()[:5]:
        residuals, dof = repeat_residuals(part.average_time(start, stop))
        covariance = covariance + noise_covariance(residuals, "shrinkage-diagonal", dof) / 5
    precision = inverse_of_covariance(covariance, "shrinkage-diagonal", 10)
    wanted = window_by_window(brain, "crossnobis", rdms.table[5:], noise=precision, folds="run")
    np.testing.assert_allclose(rdms.vectors[5:], wanted, rtol=1e-4)


def test_a_precision_of_one_region():
    part = recording().select(region="a")
    root = np.random.default_rng(0).normal(size=(4, 9))
    rdms = rdm_over_time(part, "crossnobis", noise=root @ root.T, folds="run")
    wanted = window_by_window(part, "crossnobis", rdms.table, noise=root @ root.T, folds="run")
    np.testing.assert_allclose(rdms.vectors, wanted, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="the recording has 2 sets of units"):
        rdm_over_time(recording(), "crossnobis", noise=root @ root.T)


def test_batches_change_nothing(monkeypatch):
    brain = recording()
    whole = rdm_over_time(brain).vectors
    monkeypatch.setattr("neuralign.align.time.BLOCK", 1)
    np.testing.assert_array_equal(rdm_over_time(brain).vectors, whole)
    assert distances.BLOCK > 1


def test_gaps():
    """A silent unit, a unit that misses a stimulus at one time, and a constant pattern."""
    brain = recording()
    X = brain.read().copy()
    X[:, 6] = np.nan
    X[np.flatnonzero(brain.presentations["stimulus"] == "s2"), 1, 4] = np.nan
    X[np.flatnonzero(brain.presentations["stimulus"] == "s3"), :4, 7] = 0.5
    gaps = Recording(X, brain.presentations[["stimulus", "run"]], brain.units, times=TIMES)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rdms = rdm_over_time(gaps, "correlation")
    messages = sorted(str(one.message) for one in caught)
    assert [message[:30] for message in messages] == [
        "1 of 100 patterns are constant",
        "1 of 7 units lack responses; t",
    ]
    assert "1 of 100 patterns miss some features" in messages[0]
    assert rdms.table["n_units"].tolist() == [4] * 10 + [2] * 10
    assert np.isnan(rdms.vectors[7]).sum() == 4 and np.isnan(rdms.vectors).sum() == 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = window_by_window(gaps, "correlation", rdms.table)
        np.testing.assert_allclose(rdms.vectors, wanted, rtol=1e-5, atol=1e-6)
        diagonal = rdm_over_time(gaps, "mahalanobis", noise=np.arange(1.0, 8))
        wanted = window_by_window(gaps.select(region="b"), "mahalanobis", diagonal.table[10:], noise=np.arange(5.0, 8))
    np.testing.assert_allclose(diagonal.vectors[10:], wanted, rtol=1e-5)


def test_presentations_with_gaps_do_not_enter_the_noise():
    brain = recording()
    X = brain.read().copy()
    X[3, 2, 5] = np.nan
    gaps = Recording(X, brain.presentations[["stimulus", "run"]], brain.units, times=TIMES)
    with pytest.warns(UserWarning, match="^1 of 15 presentations are not finite in some units or at some times"):
        rdms = rdm_over_time(gaps, "mahalanobis", noise="diagonal")
    assert np.isfinite(rdms.vectors).all()


def test_windows():
    times = np.arange(0, 1, 0.1)
    assert time_windows(times) == [(k, k) for k in range(10)]
    assert time_windows(times, 0.0, 0.3) == [(0, 0), (3, 3), (6, 6), (9, 9)]
    assert time_windows(times, 0.3) == [(0, 2), (3, 5), (6, 8)]
    assert time_windows(times, 0.5) == [(0, 4), (5, 9)]
    assert time_windows(times, 0.3, 0.1) == [(k, k + 2) for k in range(8)]
    assert time_windows(times, 1.0) == [(0, 9)]
    assert time_windows(np.array([0.5])) == [(0, 0)]
    assert time_windows(np.arange(0.0, 0.5, 0.001), 0.02)[0] == (0, 19)


def test_table_of_windows():
    table = rdm_over_time(recording(), window=0.03).table
    np.testing.assert_allclose(table["start"][:3], [-0.02, 0.01, 0.04], atol=1e-9)
    np.testing.assert_allclose(table["stop"][:3], [0.0, 0.03, 0.06], atol=1e-9)
    np.testing.assert_allclose(table["time"][:3], [-0.01, 0.02, 0.05], atol=1e-9)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"window": 0.2}, r"window=0.2 s does not fit; times run from -0.02 to 0.07 s"),
        ({"window": -1}, "window=-1; expected seconds"),
        ({"window": float("nan")}, "window=nan; expected seconds"),
        ({"step": 0}, "step=0; expected seconds above zero"),
        ({"method": "pearson"}, "method='pearson' is unknown"),
        ({"method": "correlation", "folds": "run"}, "takes no folds"),
        ({"method": "crossnobis", "folds": "ran"}, "did you mean 'run'"),
        ({"method": "mahalanobis"}, "needs noise"),
        ({"by": "area"}, "by='area' is unknown"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        rdm_over_time(recording(), **options)


def test_a_recording_without_time_is_refused():
    with pytest.raises(ValueError, match="no time axis; align.rdm gives"):
        rdm_over_time(recording().average_time())
