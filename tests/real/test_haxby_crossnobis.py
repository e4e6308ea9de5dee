"""Eight categories in one slice of the brain, twelve runs (Haxby et al. 2001): distances cross-validated over runs.

All 28 crossnobis distances are above zero, and that of faces and houses is the largest; plain squared distances of the
mean patterns, with the bias of noise, are larger for every pair. RDMs of two halves of six runs correlate by 0.67, mean
of ten halvings, and by 0.73 where every voxel is divided by its noise.

The noise of all 530 voxels together cannot be had from the repeats of 96 blocks: a shrunken covariance of these
residuals whitens the very noise that the distances are made of, and with categories shuffled within runs they come out
at 0.13 instead of 0. Variances alone, "diagonal", add no such bias.
"""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.signal import detrend

from neuralign import align
from neuralign.align.rdm import rdm
from neuralign.datasets.rdms import RDMs
from neuralign.datasets.recording import Recording

DELAY = 2  # volumes of 2.5 s between a block and its response


@pytest.fixture(scope="module")
def brain(real_data):
    """Mean response of every block, in standard deviations of its run from rest: 96 blocks of 530 voxels."""
    import nibabel

    folder = real_data("haxby_pymvpa")
    bold = np.asarray(nibabel.load(folder / "bold.nii.gz").dataobj, float).reshape(-1, 1452).T
    bold = bold[:, bold.std(0) > 0]
    volumes = pd.read_csv(folder / "attributes_literal.txt", sep=r"\s+", header=None, names=["category", "run"])
    patterns, blocks = [], []
    for run, rows in volumes.groupby("run").indices.items():
        signal = detrend(bold[rows], axis=0)
        category = volumes["category"].to_numpy()[rows]
        signal = (signal - signal[category == "rest"].mean(0)) / signal.std(0)
        for name in sorted(set(category) - {"rest"}):
            shown = np.flatnonzero(category == name) + DELAY
            patterns.append(signal[shown[shown < len(rows)]].mean(0))
            blocks.append({"stimulus": name, "run": f"run {run + 1}"})
    units = pd.DataFrame({"region": "slice", "subject": "1"}, index=range(bold.shape[1]))
    return Recording(np.array(patterns), pd.DataFrame(blocks), units, name="haxby")


def pairs(rdms):
    names = itertools.combinations(rdms.stimulus_ids, 2)
    return dict(zip(map(frozenset, names), rdms.vectors[0], strict=True))


def test_distances_are_those_of_a_loop_over_pairs_of_runs(brain):
    found = pairs(rdm(brain, "crossnobis", folds="run"))
    runs = brain.presentations["run"].unique()
    by_run = {
        (run, name): brain.responses[k] for k, (name, run) in enumerate(brain.presentations[["stimulus", "run"]].values)
    }
    for pair, value in found.items():
        a, b = pair
        differences = [by_run[run, a] - by_run[run, b] for run in runs]
        products = [x @ y for x, y in itertools.permutations(differences, 2)]
        assert value == pytest.approx(np.mean(products) / len(differences[0]), rel=1e-9)


def test_faces_and_houses_are_farthest_apart_and_noise_adds_nothing(brain):
    crossed, plain = pairs(rdm(brain, "crossnobis", folds="run")), pairs(rdm(brain, "sqeuclidean"))
    assert len(crossed) == 28 and min(crossed.values()) > 0
    assert max(crossed, key=crossed.get) == {"face", "house"}
    assert crossed[frozenset(("face", "house"))] == pytest.approx(0.170, abs=5e-4)
    assert all(plain[pair] > crossed[pair] for pair in crossed)


def test_categories_shuffled_within_runs_have_no_distance(brain):
    """The mean over shuffles is zero within four standard errors, that of plain distances is far from it."""
    rng = np.random.default_rng(0)
    crossed, plain = [], []
    for _ in range(100):
        table = brain.presentations.copy()
        table["stimulus"] = table.groupby("run")["stimulus"].transform(rng.permutation)
        shuffled = Recording(brain.responses, table, brain.units)
        crossed.append(rdm(shuffled, "crossnobis", folds="run").vectors.mean())
        plain.append(rdm(shuffled, "sqeuclidean").vectors.mean())
    standard_error = np.std(crossed) / np.sqrt(len(crossed))
    # Without replacement within a run, the categories of one run tell nothing about those of another.
    assert abs(np.mean(crossed)) < 4 * standard_error < 0.1 * np.mean(plain)


@pytest.mark.parametrize(("noise", "expected"), [(None, 0.67), ("diagonal", 0.73)])
def test_halves_of_runs_agree(brain, noise, expected):
    whole = pairs(rdm(brain, "crossnobis", noise=noise, folds="run"))
    assert max(whole, key=whole.get) == {"face", "house"} and min(whole.values()) > 0
    runs = brain.presentations["run"].unique()
    agreement = []
    for seed in range(10):
        parts = np.array_split(np.random.default_rng(seed).permutation(runs), 2)
        halves = [rdm(brain.select(run=list(part)), "crossnobis", noise=noise, folds="run") for part in parts]
        agreement.append(align.compare(*halves, "pearson")[0, 0])
    print(f"\nnoise {noise}: halves of six runs correlate by {np.mean(agreement):.2f}")
    assert np.mean(agreement) == pytest.approx(expected, abs=0.02)


def test_the_pipeline_scores_a_hypothesis_with_a_ceiling_from_runs(brain):
    """Faces, houses and all else as three clusters; permutations of eight labels."""
    ids = rdm(brain, "crossnobis", folds="run").stimulus_ids
    kind = [name if name in ("face", "house") else "other" for name in ids]
    clusters = [float(a != b) for a, b in itertools.combinations(kind, 2)]
    model = RDMs(clusters, ids, pd.DataFrame({"label": ["clusters"]}))
    table = align.rsa(model, brain, rdm="crossnobis", compare="pearson", folds="run", noise="diagonal")
    row = table.iloc[0]
    assert row["score"] > 0.7 and row["p"] < 0.05
    assert row["score"] < row["ceiling"] <= 1
    assert row["formula"].startswith("rsa-crossnobis-pearson-1: ")
