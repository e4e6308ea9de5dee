"""Trained networks of images: the CIFAR-10 ResNets, against a forward pass written from their checkpoints alone.

On 200 photographs that macaques were shown, which are no CIFAR images, two of the four networks name the same class for
0.50 to 0.57 of the photographs; without training for 0.04 on average (`pytest -s` prints all pairs).
"""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from neuralign import datasets
from neuralign.encoders import extract, load_model

DEPTHS = (20, 32, 44, 56)
STAGES = ("layer1", "layer2", "layer3")


@pytest.fixture(scope="module")
def weights(real_data):
    return real_data("weights_cifar_resnet")


@pytest.fixture(scope="module")
def stimuli(real_data):
    brain = datasets.load("cowley-v4", root=real_data("cowley_v4"), session="210325")
    return brain.stimuli[:200]


def computed(state, x):
    """Rectified stem, stages and classes of a network, from the names and numbers in its checkpoint."""
    state = {name.removeprefix("module."): tensor.double() for name, tensor in state.items()}

    def normed(x, name):
        mean, var = state[name + ".running_mean"], state[name + ".running_var"]
        scale = state[name + ".weight"] / (var + 1e-5).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + state[name + ".bias"][:, None, None]

    x = normed(F.conv2d(x, state["conv1.weight"], padding=1), "bn1").clamp_min(0)
    found = {"conv1": x}
    for stage in STAGES:
        for block in itertools.count():
            name = f"{stage}.{block}"
            if f"{name}.conv1.weight" not in state:
                break
            first = state[f"{name}.conv1.weight"]
            stride = 2 if block == 0 and stage != "layer1" else 1
            y = normed(F.conv2d(x, first, stride=stride, padding=1), f"{name}.bn1").clamp_min(0)
            y = normed(F.conv2d(y, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            more = y.shape[1] - x.shape[1]
            silent = torch.zeros(len(y), more // 2, *y.shape[2:], dtype=y.dtype)
            x = (y + torch.cat([silent, x[:, :, ::stride, ::stride], silent], 1)).clamp_min(0)
        found[stage] = x
    found["linear"] = x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]
    return found


@pytest.mark.parametrize("depth", DEPTHS)
def test_features_equal_the_network_of_the_checkpoint(weights, stimuli, depth):
    few = stimuli[:10]
    features = extract(f"resnet{depth}-cifar", few, weights=weights, cache=False, batch_size=4)
    read = load_model(f"resnet{depth}-cifar", weights).inputs
    x = torch.stack([read.read(few.image(i)) for i in range(10)]).double()
    [path] = weights.glob(f"resnet{depth}-*.th")
    truth = computed(torch.load(path, map_location="cpu", weights_only=True)["state_dict"], x)
    assert features.layers == ["conv1", *STAGES, "linear"]
    for layer in features:
        expected = truth[layer].flatten(2).transpose(1, 2) if truth[layer].ndim == 4 else truth[layer]
        np.testing.assert_allclose(features[layer], expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_trained_networks_agree_on_what_they_see(weights, stimuli):
    def agreement(suffix, **options):
        named = [
            extract(f"resnet{depth}-cifar{suffix}", stimuli, "linear", cache=False, **options)["linear"].argmax(1)
            for depth in DEPTHS
        ]
        return [float((a == b).mean()) for a, b in itertools.combinations(named, 2)]

    trained, untrained = agreement("", weights=weights), agreement("-untrained")
    print(f"trained {trained}\nuntrained {untrained}")
    assert min(trained) > 0.45
    assert np.mean(untrained) < 0.2


def test_one_weight_of_the_checkpoint_is_another_key(weights, stimuli, tmp_path):
    [path] = weights.glob("resnet20-*.th")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)

    def key():
        torch.save(checkpoint, tmp_path / "resnet20-mine.th")
        found = extract("resnet20-cifar", stimuli[:2], "layer1", weights=tmp_path, cache=tmp_path / "store")
        return found.keys_["layer1"]

    before = key()
    assert key() == before
    checkpoint["state_dict"]["module.layer3.2.conv2.weight"].view(-1)[17] += 1e-4
    assert key() != before
