"""Which layer an RDM belongs to, told by networks of other depth; and which region, told by other subjects.

Four ResNets (20, 32, 44 and 56 layers, trained on CIFAR-10) and five stages each, on 92 images: the stage of a network
is found from the three others for 18 of 20 RDMs as they are, and for all 20 once they are ranks, between whichever
thresholds. So thresholds lose nothing there, and have nothing to add to ranks. Geodesics find all 20 with a lower
threshold of 0; above it, pairs of length zero join ever more stimuli: 17 of 20 at 0.2, 9 at 0.4, chance at 0.8.

Of EVC and IT of 15 subjects (`test_algonauts.py`), RDMs as they are say nothing (16 of 30, chance 15). Transformed ones
come to about two in three, but the 95 % interval over subjects and stimuli of every type of descriptor holds chance.
"""

import numpy as np
import pytest

from neuralign import datasets, encoders
from neuralign.align.rdm import rdm
from neuralign.align.topology import identify, threshold_grid
from neuralign.datasets.fmri.algonauts2019_78 import load_algonauts2019_78
from neuralign.datasets.rdms import RDMs

DEPTHS = (20, 32, 44, 56)
GRID = threshold_grid(0.2)


@pytest.fixture(scope="module")
def networks(real_data):
    """Five stages of four networks."""
    stimuli = datasets.load("kriegeskorte-92", root=real_data("rsatoolbox_92")).stimuli
    weights = real_data("weights_cifar_resnet")
    stacks = []
    for depth in DEPTHS:
        features = encoders.extract(f"resnet{depth}-cifar", stimuli, cache=False, weights=weights)
        stack = rdm(features)
        table = stack.table.assign(network=f"resnet{depth}")
        stacks.append(RDMs(stack.vectors, stack.stimulus_ids, table, stack.method))
    return RDMs.concatenate(stacks)


def by_nearest_centroid(rdms, network, layer):
    """Number of RDMs that lie nearest to the mean of their layer over the other networks."""
    right = 0
    for name in network.unique():
        others = (network != name).to_numpy()
        centroids = {one: rdms[others & (layer == one).to_numpy()].mean(0) for one in layer.unique()}
        for k in np.flatnonzero(~others):
            distances = {one: np.linalg.norm(rdms[k] - centroid) for one, centroid in centroids.items()}
            right += min(distances, key=distances.get) == layer.iloc[k]
    return right


def test_stages_are_found_across_depths(networks):
    found = identify(networks, by="layer", over="network", grid=GRID)
    raw = found.by_type.set_index("type")["accuracy"]["untransformed"]
    assert raw == by_nearest_centroid(networks.vectors, networks.table["network"], networks.table["layer"]) / 20 == 0.9
    assert (found.table["accuracy"] == 1).all() and (found.table["chance"] == 0.2).all()


def test_geodesics_find_stages_as_long_as_no_pairs_are_joined_for_nothing(networks):
    with pytest.warns(UserWarning, match="pairs below the lower threshold join all stimuli"):
        found = identify(networks, by="layer", over="network", grid=GRID, transform="rgdm")
    by_lower = found.table.groupby("lower")["accuracy"].agg(["min", "max"])
    assert by_lower["max"].is_monotonic_decreasing and (by_lower.loc[0.0] == 1).all()
    assert by_lower.loc[0.4, "max"] < 0.5 and by_lower.loc[0.8, "max"] == pytest.approx(0.2)


def test_regions_are_hardly_found_across_subjects(real_data):
    brain = load_algonauts2019_78(real_data("algonauts2019_78"))
    found = identify(brain, by="region", over="subject", grid=GRID, bootstrap=100, seed=0)
    print(f"\n{found.summary()}")
    kinds = found.by_type.set_index("type")
    assert kinds.loc["untransformed", "accuracy"] == pytest.approx(16 / 30)
    assert (kinds["accuracy"].drop("untransformed") > 0.55).all()
    assert (kinds["ci_low"] < 0.5).all()
