"""Topological RSA finds the layer and the region that it should, is no better than RSA, and its inference holds.

Instances of one network of eight tanh layers, each seen through 60 random units with noise (standard deviation 0.5);
the layer of every RDM of one instance identified from the other eleven. Accuracy of RGTM by its thresholds (10
networks, 62 stimuli, correlation distance; chance 0.125, standard error of a cell about 0.01)::

    upper  0.2  0.4  0.6  0.8  1.0
    lower
    0.0   0.73 0.82 0.86 0.88 0.90
    0.2        0.81 0.86 0.87 0.89
    0.4             0.83 0.86 0.87
    0.6                  0.83 0.85
    0.8                       0.75

The untransformed RDM reaches 0.90; the narrower the band, the more is lost. The geodesic transform identifies 0.32 at
(0, 1): a geodesic rests on the few shortest steps, which the noise decides.

Regions of `datasets.simulate` (100 scenes, 80 voxels, 2 repeats, seeds 0 to 9): share of regions whose best model is
the one that shares their computation, by Pearson correlation of RGTMs; 1.00 for the untransformed RDMs::

    upper  0.2  0.4  0.6  0.8  1.0
    lower
    0.0   1.00 1.00 1.00 1.00 1.00
    0.2        1.00 1.00 1.00 1.00
    0.4             0.97 0.97 0.88
    0.6                  0.80 0.68
    0.8                       0.62

Misses are nearly all in FFA and PPA (0.3 each at (0.8, 1)), which answer to a face or a house alone: what they know
lies among their nearest pairs.

Calibration, 500 runs each: p of the permutation test is at most 0.05 in 4.2 % of null data. The 95 % interval over
subjects and stimuli, 8 instances, 4 layers and 30 stimuli, covers the expected accuracy in 98 to 99 % of data (too
wide) where all instances and stimuli are equally noisy, and in 96 % where the noise differs between them by factors of
2 to 3. Quantiles of the samples as they are would lie below the expected accuracy altogether in 8 to 42 %.
"""

import warnings

import numpy as np
import pandas as pd
import pytest

from neuralign import datasets, encoders
from neuralign.align.compare import compare
from neuralign.align.rdm import features_rdms, rdm, recording_rdms
from neuralign.align.topology import identify, rgtm, threshold_grid
from neuralign.datasets.rdms import RDMs

MAKER = {"V1": "gabor", "V4": "texture", "FFA": "annotations", "PPA": "annotations"}
NARROWER = [(0.0, 1.0), (0.1, 0.9), (0.2, 0.8), (0.3, 0.7), (0.4, 0.6), (0.5, 0.5)]


def layers(noise, seed, n_instances=12, n_layers=8, n_stimuli=62, network=None, unlike=False):
    """RDMs of all layers in all instances; `network` seeds the weights, `seed` all else.

    Where instances and stimuli are `unlike`, each has a factor of the noise.
    """
    rng = np.random.default_rng(seed)
    noise = np.full((n_instances, n_stimuli, 1), float(noise))
    if unlike:
        noise *= np.exp(0.7 * rng.normal(size=(n_instances, 1, 1)) + 1.0 * rng.normal(size=(n_stimuli, 1)))
    weights = rng if network is None else np.random.default_rng(network)
    h = rng.normal(size=(n_stimuli, 30))
    vectors, rows = [], []
    for layer in range(n_layers):
        h = np.tanh(1.5 * h @ weights.normal(size=(h.shape[1], 400)) / np.sqrt(h.shape[1]))
        for instance in range(n_instances):
            units = h[:, rng.choice(400, 60, replace=False)]
            vectors.append(rdm(units + noise[instance] * rng.normal(size=units.shape)).vectors[0])
            rows.append((f"instance {instance}", f"layer {layer}"))
    table = pd.DataFrame(rows, columns=["subject", "region"])
    return RDMs(np.array(vectors), [f"s{k}" for k in range(n_stimuli)], table)


def accuracies(noise, seeds, grid, **options):
    """Mean accuracy (cell,) over simulations, and of the untransformed RDMs."""
    found = [identify(layers(noise, seed), grid=grid, **options) for seed in seeds]
    untransformed = np.mean([one.by_type["accuracy"].iloc[0] for one in found])
    return np.mean([one.table["accuracy"] for one in found], axis=0), untransformed


def test_layers_are_identified():
    clean, _ = accuracies(0.0, range(2), NARROWER)
    assert (clean > 0.93).all()
    noisy, untransformed = accuracies(0.5, range(4), NARROWER)
    se = np.sqrt(0.25 / (4 * 96))
    assert (noisy > 0.7).all()
    assert abs(noisy[0] - untransformed) < 3 * se  # ranks lose nothing
    assert noisy[0] > noisy[-1] + 0.05  # a step loses something
    assert (np.diff(noisy) < 2 * se).all()  # and nothing is gained on the way
    drowned, _ = accuracies(20.0, range(4), NARROWER)
    assert (np.abs(drowned - 0.125) < 4 * np.sqrt(0.125 * 0.875 / (4 * 96))).all()


def region_hits(seeds, grid):
    """Whether the best model of a region is its maker: frame (seed and region, cell), last the untransformed RDMs."""
    rows = []
    for seed in seeds:
        brain = datasets.simulate.visual_cortex(100, 80, n_repeats=2, seed=seed).average_repeats()
        features = [encoders.extract(model, brain.stimuli, reduce=8, seed=0, cache=False)
                    for model in ("pixels", "gabor", "texture", "annotations")]  # fmt: skip
        regions = recording_rdms(brain, "correlation")
        models = RDMs.concatenate([features_rdms(one, "correlation", regions.stimulus_ids) for one in features])
        pairs = [(rgtm(models, *cell), rgtm(regions, *cell)) for cell in grid] + [(models, regions)]
        similarity = np.stack([compare(*pair, "pearson") for pair in pairs])  # (cell, model, region)
        for k, region in enumerate(regions.table["region"]):
            best = models.table["model"].to_numpy()[similarity[:, :, k].argmax(1)]
            rows.append((seed, region, *(best == MAKER[region])))
    return pd.DataFrame(rows).set_index([0, 1])


def test_regions_are_recognised():
    hits = region_hits(range(2), [(0, 1), (0.2, 0.8), (0, 0.2)])
    assert hits.to_numpy().all()


def triangle(grid, values):
    table = pd.Series(values, pd.MultiIndex.from_tuples(map(tuple, grid), names=["lower", "upper"])).unstack()
    return table.to_string(float_format=lambda value: f"{value:.2f}", na_rep="")


@pytest.mark.calibration
def test_accuracy_over_thresholds():
    grid = threshold_grid(0.2)
    found, untransformed = accuracies(0.5, range(10), grid)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that high lower thresholds collapse
        geodesic, _ = accuracies(0.5, range(10), [(0.0, 1.0)], transform="rgdm")
    print("\n" + triangle(grid, found), f"\nuntransformed {untransformed:.3f}; geodesic {geodesic[0]:.3f}")
    cells = dict(zip(map(tuple, np.round(grid, 1)), found, strict=True))
    assert cells[0.0, 1.0] == pytest.approx(untransformed, abs=0.03)
    assert cells[0.0, 1.0] > cells[0.2, 0.8] > cells[0.4, 0.6] > 0.5
    assert found.max() < untransformed + 0.03  # nothing is better than RSA
    assert 0.2 < geodesic[0] < cells[0.0, 1.0] - 0.2


@pytest.mark.calibration
def test_regions_over_thresholds():
    grid = threshold_grid(0.2)
    hits = region_hits(range(10), grid)
    share = hits.mean().to_numpy()
    print("\n" + triangle(grid, share[:-1]), f"\nuntransformed {share[-1]:.2f}")
    print(hits.groupby(level=1).mean().T.set_axis([*map(str, np.round(grid, 1)), "untransformed"]).to_string())
    assert share[-1] == 1
    cells = dict(zip(map(tuple, np.round(grid, 1)), share[:-1], strict=True))
    assert min(share for (lower, _), share in cells.items() if lower <= 0.2) == 1
    assert cells[0.8, 1.0] < 0.8


@pytest.mark.calibration
def test_permutation_test_rejects_five_percent():
    n = 500
    rejected = 0
    for seed in range(n):
        rng = np.random.default_rng(seed)
        stack = layers(0.3, seed, n_instances=6, n_layers=4, n_stimuli=12)
        # Regions that are all alike: the labels of each subject mean nothing.
        order = np.concatenate([rng.permutation(np.flatnonzero(stack.table["subject"] == s))
                                for s in stack.table["subject"].unique()])  # fmt: skip
        table = stack.table.sort_values("subject", kind="stable")
        mixed = RDMs(stack.vectors[order], stack.stimulus_ids, table)
        rejected += identify(mixed, grid=[(0.2, 0.8)], permutations=99, seed=seed).table["p"][0] <= 0.05
    print(f"\nrejected {rejected / n:.3f}")
    assert rejected / n < 0.05 + 3 * np.sqrt(0.05 * 0.95 / n)
    assert rejected / n > 0.01  # accuracies of 24 RDMs tie often, which makes the test strict


@pytest.mark.calibration
@pytest.mark.parametrize("unlike", [False, True])
def test_intervals_cover(unlike):
    """With the layers given, over new instances and new stimuli."""
    n, grid = 500, [(0.0, 1.0), (0.4, 0.6)]
    found = [
        identify(layers(0.5, seed, 8, 4, 30, network=0, unlike=unlike), grid=grid, bootstrap=60, seed=seed)
        for seed in range(n)
    ]
    accuracy, low, high = (np.array([one.table[name] for one in found]) for name in ("accuracy", "ci_low", "ci_high"))
    true = accuracy.mean(0)
    covered = ((low <= true) & (true <= high)).mean(0)
    samples = np.stack([one.samples for one in found])
    below = (np.nanquantile(samples, 0.975, axis=1) < true).mean(0)
    spread = np.nanstd(samples, axis=1).mean(0)
    print(f"\ntrue {true.round(3)}, covered {covered}, width {(high - low).mean(0).round(3)}")
    print(f"sd {accuracy.std(0).round(3)}, of samples {spread.round(3)}; quantiles below in {below}")
    assert (covered > 0.95 - 3 * np.sqrt(0.95 * 0.05 / n)).all()
    if unlike:
        assert (covered < 0.995).all()
