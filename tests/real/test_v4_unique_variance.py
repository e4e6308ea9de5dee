"""What ResNet-20 explains in macaque V4 beyond pixels and Gabor energy (Cowley et al. 2023), by variance partitioning.

Unique R2 of each layer over both, mean over neurons, five outer folds:

=======  ===============  ===============
layer    session 210325   session 201025
=======  ===============  ===============
conv1    0.005            0.017
layer1   0.018            0.039
layer2   0.054            0.086
layer3   0.020            0.037
linear   0.005            0.007
=======  ===============  ===============
"""

import pytest

from neuralign import align, datasets, encoders

UNIQUE = {
    "210325": {"conv1": 0.005, "layer1": 0.018, "layer2": 0.054, "layer3": 0.020, "linear": 0.005},
    "201025": {"conv1": 0.017, "layer1": 0.039, "layer2": 0.086, "layer3": 0.037, "linear": 0.007},
}


def partitions(real_data, session, layers):
    root, weights = real_data("cowley_v4"), real_data("weights_cifar_resnet")
    brain = datasets.load("cowley-v4", root=root, session=session)
    low = {
        "pixels": encoders.extract("pixels", brain.stimuli, reduce=6, cache=False),
        "gabor": (encoders.extract("gabor", brain.stimuli, cache=False), "energy"),
    }
    network = encoders.extract("resnet20-cifar", brain.stimuli, layers, reduce=6, cache=False, weights=weights)
    for layer in layers:
        table = align.variance_partition({**low, layer: (network, layer)}, brain, bootstrap=200)
        yield layer, table[table["kind"] == "unique"].set_index("component")


def test_second_stage_explains_what_pixels_and_gabors_do_not(real_data):
    (_, table), *_ = partitions(real_data, "210325", ["layer2"])
    assert table["value"]["layer2"] == pytest.approx(UNIQUE["210325"]["layer2"], abs=0.01)
    assert table["ci_low"]["layer2"] > 0.03
    assert table["value"]["layer2"] > 5 * abs(table["value"][["pixels", "gabor"]]).max()


@pytest.mark.slow
@pytest.mark.parametrize("session", UNIQUE)
def test_every_layer(session, real_data):
    unique = {layer: table["value"][layer] for layer, table in partitions(real_data, session, list(UNIQUE[session]))}
    print(session, {layer: round(float(value), 3) for layer, value in unique.items()})
    assert unique == pytest.approx(UNIQUE[session], abs=0.01)
    assert max(unique, key=unique.get) == "layer2"
