"""Every simulated region is recognised by the model that shares its computation, and by no other.

Measured with seed 0 (Pearson r over its split-half ceiling):

=================  =====  =====  =====  =====
600 x 1200         V1     V4     FFA    PPA
=================  =====  =====  =====  =====
pixels             0.355  0.201  0.218  0.048
gabor              0.958  0.456  0.302  0.206
texture            0.631  0.944  0.477  0.341
annotations        0.393  0.172  0.989  0.986
untrained, best    0.679  0.272  0.249  0.169
=================  =====  =====  =====  =====

RSA (rho-a, not normalised, 200 scenes x 80 voxels): V1 0.312, V4 0.328, FFA 0.058 and PPA 0.078 by their own models;
the best of the others 0.118, 0.115, 0.026 and 0.023. The right model won in each of the seeds 0 to 9.
"""

import numpy as np
import pytest

from neuralign import align, datasets, encoders

MODELS = ("pixels", "gabor", "texture", "annotations", "resnet20-cifar-untrained")
MAKER = {"V1": "gabor", "V4": "texture", "FFA": "annotations", "PPA": "annotations"}


def extracted(brain):
    return [encoders.extract(model, brain.stimuli, reduce=8, seed=0, cache=False) for model in MODELS]


@pytest.fixture(scope="module")
def small():
    brain = datasets.simulate.visual_cortex(200, 80, seed=0)
    return brain, extracted(brain)


def by_region(table, value, metric):
    """Best layer of each model (model, region)."""
    rows = table[table["metric"] == metric]
    assert np.isfinite(rows[value]).all() and set(rows["region"]) == set(MAKER) and set(rows["model"]) == set(MODELS)
    return rows.groupby(["model", "region"])[value].max().unstack()


@pytest.mark.parametrize("metric", ["r", "r2"])
def test_encoding_finds_the_maker(small, metric):
    brain, features = small
    table = align.score(features, brain, metrics=[metric], bootstrap=0, permutations=0)
    scores = by_region(table, "score", metric)
    for region, maker in MAKER.items():
        others = scores[region].drop(maker)
        assert scores.loc[maker, region] > others.max() + 0.2, region


def test_rsa_finds_the_maker(small):
    brain, features = small
    table = align.rsa(features, brain, bootstrap=0, permutations=0)
    scores = by_region(table, "score", "rho-a")
    for region, maker in MAKER.items():
        assert scores.loc[maker, region] > scores[region].drop(maker).max() + 0.02, region
    ceiling = table.groupby("region")["ceiling"].first()
    assert (scores.max() < ceiling[scores.columns]).all()


@pytest.mark.slow
def test_demonstration_setting():
    brain = datasets.simulate.visual_cortex(seed=0)
    assert brain.average_repeats().responses.shape == (600, 1200)
    table = align.score(extracted(brain), brain, metrics=["r"], bootstrap=0, permutations=0)
    print(table.pivot_table("normalised", ["model", "layer"], "region", sort=False).round(3).to_string())
    normalised = by_region(table, "normalised", "r")
    true = align.ncsnr_ceiling(brain.truth["ncsnr"], 3, metric="r")
    ceiling = table.groupby("region")["ceiling"].first()
    for region, maker in MAKER.items():
        assert normalised[region].idxmax() == maker
        assert 0.9 <= normalised.loc[maker, region] <= 1.05
        assert normalised[region].drop(maker).max() < 0.75
        voxels = (brain.units["region"] == region).to_numpy()
        assert ceiling[region] == pytest.approx(true[voxels].mean(), abs=0.02)
    assert (table["n_units"] == 300).all() and (table["n_stimuli"] == 600).all()
