"""What projections keep of a trained network (ResNet-20, CIFAR-10) that is shown 120 natural images.

Error of the correlations between images, 4,096 of 16,384 values kept (8,192 in layer2), and Spearman correlation of
the RDMs with the exact one:

==========  =====================  =====================  =====================
layer       sketch                 sketch-raw             sparse
==========  =====================  =====================  =====================
conv1       rms 0.007, rho 0.995   rms 0.138, rho 0.994   rms 0.007, rho 0.995
layer1      rms 0.014, rho 0.980   rms 0.398, rho 0.836   rms 0.014, rho 0.977
layer2      rms 0.008, rho 0.991   rms 0.241, rho 0.983   rms 0.012, rho 0.984
==========  =====================  =====================  =====================
"""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn import decomposition

from neuralign import datasets, encoders
from neuralign.encoders.features.extract import gram
from neuralign.encoders.features.pca import PCA

LAYERS = ["conv1", "layer1", "layer2"]


@pytest.fixture(scope="module")
def shown(real_data):
    stimuli = datasets.load("cowley-v4", root=real_data("cowley_v4"), session="210325").stimuli[:120]
    return stimuli, {"cache": False, "weights": real_data("weights_cifar_resnet")}


@pytest.fixture(scope="module")
def whole(shown):
    stimuli, given = shown
    features = encoders.extract("resnet20-cifar", stimuli, LAYERS, **given)
    return {layer: features[layer].reshape(len(stimuli), -1).astype(np.float64) for layer in LAYERS}


@pytest.mark.parametrize("kind", ["sketch", "sparse"])
def test_correlations_between_images(kind, shown, whole):
    stimuli, given = shown
    pairs = np.triu_indices(len(stimuli), 1)
    kept = encoders.extract("resnet20-cifar", stimuli, LAYERS, f"{kind}:4096", **given)
    raw = encoders.extract("resnet20-cifar", stimuli, LAYERS, f"{kind}-raw:4096", **given)
    for layer in LAYERS:
        truth = np.corrcoef(whole[layer])[pairs]
        found, off = (np.corrcoef(features[layer])[pairs] for features in (kept, raw))
        assert ((found - truth) ** 2).mean() ** 0.5 < 1.1 * 4096**-0.5
        assert spearmanr(found, truth)[0] > 0.97
        assert np.abs(off - truth).mean() > 0.1  # without centring, these are other numbers


@pytest.mark.parametrize("centre", [False, True])
def test_inner_products_are_exact(centre, shown, whole):
    stimuli, given = shown
    found = gram("resnet20-cifar", stimuli, LAYERS, centre=centre, **given)
    for layer in LAYERS:
        rows = whole[layer] - whole[layer].mean(0) if centre else whole[layer]
        truth = rows @ rows.T
        assert np.abs(found[layer] - truth).max() < 1e-6 * np.abs(truth).max()


def test_components_are_those_of_the_training_images(shown, whole):
    stimuli, given = shown
    found = encoders.extract("resnet20-cifar", stimuli, LAYERS, PCA(20, list(stimuli.ids)[:80]), **given)
    for layer in LAYERS:
        truth = decomposition.PCA(20, svd_solver="full").fit(whole[layer][:80]).transform(whole[layer])
        difference = np.abs(np.abs(found[layer]) - np.abs(truth))
        assert difference.max() < 1e-4 * np.abs(truth).max()
