"""Human IT and 92 object images (Kriegeskorte et al. 2008): against monkey IT, and against a small network.

Spearman of ResNet-20 layers with the average RDM of four subjects, trained (not trained): conv1 0.144 (0.043), layer1
0.184 (0.050), layer2 0.167 (0.079), layer3 0.270 (0.074), linear 0.333 (0.114). Averaged over single subjects, whose
RDMs are noisier: 0.098, 0.134, 0.122, 0.188 and 0.227, below a lower ceiling of 0.372.
"""

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from neuralign import align, datasets, encoders
from neuralign.align.rsa import model_comparison

TRAINED, UNTRAINED = "resnet20-cifar", "resnet20-cifar-untrained"


@pytest.fixture(scope="module")
def folders(real_data):
    return real_data("rsatoolbox_92"), real_data("weights_cifar_resnet")


@pytest.fixture(scope="module")
def human(folders):
    return datasets.load("kriegeskorte-92", root=folders[0])


@pytest.fixture(scope="module")
def features(folders, human):
    """Every place of every map, not pooled."""
    return [
        encoders.extract(TRAINED, human.stimuli, cache=False, weights=folders[1]),
        encoders.extract(UNTRAINED, human.stimuli, cache=False, seed=0),
    ]


def scored(features, human, **options):
    table = align.rsa(features, human, compare="spearman", **options)
    return table.set_index(["model", "layer"])


def test_human_and_monkey(folders, human):
    monkey = datasets.load("kriegeskorte-92", root=folders[0], source="monkey-it")
    assert align.compare(human.mean(), monkey, "pearson")[0, 0] == pytest.approx(0.4912097961460494, abs=1e-7)


def test_layers_against_the_average_subject(features, human):
    table = scored(features, human, subjects="average", bootstrap=0, permutations=0)
    score = table["score"]
    known = {"conv1": 0.144, "layer1": 0.184, "layer3": 0.270, "linear": 0.333}
    for layer, value in known.items():
        assert score[TRAINED, layer] == pytest.approx(value, abs=0.005)
        distances = pdist(features[0][layer].reshape(92, -1).astype(np.float64), "correlation")
        plain = spearmanr(distances, human.mean().vectors[0])[0]
        assert score[TRAINED, layer] == pytest.approx(plain, abs=1e-4)
    lower, upper = align.rsa_ceiling(human.mean(by="subject"), "spearman")
    assert lower == pytest.approx(0.372, abs=5e-4) and upper == pytest.approx(0.666, abs=5e-4)
    # The average is less noisy than a subject, so this asks for more than the lower ceiling's own comparison.
    assert (score < lower).all()
    for layer in ("layer3", "linear"):
        assert score[UNTRAINED, layer] < score[TRAINED, layer] - 0.1


def test_layers_against_each_subject(features, human):
    table = scored(features, human, bootstrap=200, permutations=0, seed=0)
    each, average = table["score"], scored(features, human, subjects="average", bootstrap=0, permutations=0)["score"]
    assert (table["subject"] == "group of 4").all()
    assert (each < table["ceiling_low"]).all() and np.allclose(table["ceiling_low"], 0.372, atol=5e-4)
    assert np.isfinite(table[["ci_low", "ci_high"]]).all(axis=None)
    assert ((table["ci_low"] < each) & (each < table["ci_high"])).all()
    assert (each < average).all()  # single subjects are noisier
    for layer in ("layer3", "linear"):
        assert table.loc[(UNTRAINED, layer), "ci_high"] < table.loc[(TRAINED, layer), "score"]


def test_late_layers_of_the_trained_network_are_told_apart_from_untrained_ones(features, human):
    """For these four subjects; over subjects too, three degrees of freedom tell nothing apart."""
    found = model_comparison(features, human, compare="spearman", over="stimuli", bootstrap=1000, seed=0)
    pairs = found.pairwise("fdr").set_index(["first", "second"])
    for layer in ("layer3", "linear"):
        pair = pairs.loc[(f"{TRAINED} {layer}", f"{UNTRAINED} {layer}")]
        assert pair["difference"] > 0.1 and pair["p_corrected"] < 0.05
    both = model_comparison(features, human, compare="spearman", over="both", bootstrap=1000, seed=0).pairwise("fdr")
    assert (both["p_corrected"] > 0.05).all()
