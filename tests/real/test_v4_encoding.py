"""Encoding of macaque V4 (Cowley et al. 2023) by the layers of a small network, nested cross-validation throughout.

Mean Pearson r over neurons, 5 outer folds, features on 6 x 6 grids:

============  ===============  ================
layer         session 210325   session 201025
============  ===============  ================
pixels        0.266            0.259
              trained (not)    trained (not)
conv1         0.340 (0.363)    0.361 (0.344)
layer1        0.479 (0.358)    0.483 (0.341)
layer2        0.538 (0.355)    0.550 (0.349)
layer3        0.458 (0.345)    0.447 (0.341)
============  ===============  ================
"""

import numpy as np
import pytest

from neuralign import align, datasets, encoders

STAGES = ["conv1", "layer1", "layer2", "layer3"]
TRAINED, UNTRAINED = "resnet20-cifar", "resnet20-cifar-untrained"


@pytest.fixture(scope="module")
def folders(real_data):
    return real_data("cowley_v4"), real_data("weights_cifar_resnet")


def scored(folders, session):
    root, weights = folders
    brain = datasets.load("cowley-v4", root=root, session=session)
    features = [
        encoders.extract("pixels", brain.stimuli, reduce=6, cache=False),
        encoders.extract(UNTRAINED, brain.stimuli, STAGES, reduce=6, seed=0, cache=False),
        encoders.extract(TRAINED, brain.stimuli, STAGES, reduce=6, cache=False, weights=weights),
    ]
    table = align.score(features, brain, metrics=["r"], bootstrap=0, permutations=0)
    assert (table["region"] == "V4").all() and len(table) == 9
    print(table[["model", "layer", "score", "ceiling"]].to_string())
    return table.set_index(["model", "layer"])


def check_order(score):
    """Pixels below every stage without training, those below the trained stages past the first, layer2 on top."""
    untrained, trained = score[UNTRAINED], score[TRAINED]
    assert score["pixels", "pixels"] < untrained.min()
    assert untrained.max() < trained[["layer1", "layer2", "layer3"]].min()
    assert score.idxmax() == (TRAINED, "layer2")
    assert trained["layer2"] > score.drop((TRAINED, "layer2")).max() + 0.04


def test_session_with_repeats(folders):
    table = scored(folders, "210325")
    score = table["score"]
    assert score["pixels", "pixels"] == pytest.approx(0.27, abs=0.02)
    for layer, known in zip(STAGES, (0.33, 0.48, 0.54, 0.46), strict=True):
        assert score[TRAINED, layer] == pytest.approx(known, abs=0.02)
    assert score[UNTRAINED].between(0.34 - 0.02, 0.38 + 0.02).all()
    check_order(score)
    assert np.allclose(table["ceiling"], 0.860, atol=0.01)
    assert (table["normalised"] < 1).all() and np.allclose(table["normalised"], score / table["ceiling"])
    assert (table["n_units"] == 50).all() and (table["n_stimuli"] == 640).all()


@pytest.mark.slow
def test_session_of_means(folders):
    table = scored(folders, "201025")
    check_order(table["score"])
    assert table["ceiling"].isna().all() and table["normalised"].isna().all()
    assert (table["n_units"] == 89).all() and (table["n_stimuli"] == 1200).all()
