"""78 images, early visual and inferior temporal cortex, 15 subjects: a ceiling too low to tell networks apart.

The published noise ceilings, squared Spearman correlations with the mean RDM, come out to the last digit: 0.0640 (EVC)
and 0.0647 (IT) with the subject itself in the mean, 0.0068 and 0.0028 without. ResNet-20 trained on CIFAR-10 and an
untrained copy score 0.001 to 0.006 in the same unit.

The verdict: trained and untrained cannot be told apart here. Of the 45 pairs of their ten layers none differs in EVC or
in IT, over stimuli and subjects at a false discovery rate of 5 %; nor does any layer of one from any of the other for
these subjects alone. Layer 3 of the trained network is above zero in IT after correction for ten layers, so there is a
little to be found. It is a verdict on these data: on the 92 images of `test_human_it_rsa.py`, where subjects agree, the
late layers of the same two networks do differ, for its four subjects.
"""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from neuralign import align, encoders
from neuralign.align.compare import rsa_ceiling
from neuralign.align.rsa import model_comparison
from neuralign.datasets.fmri.algonauts2019_78 import REGIONS, load_algonauts2019_78

PUBLISHED = {"EVC": 0.0640, "IT": 0.0647}
TRAINED, UNTRAINED = "resnet20-cifar", "resnet20-cifar-untrained"


@pytest.fixture(scope="module")
def folders(real_data):
    return real_data("algonauts2019_78"), real_data("weights_cifar_resnet")


@pytest.fixture(scope="module")
def brain(folders):
    return load_algonauts2019_78(folders[0])


@pytest.fixture(scope="module")
def compared(folders, brain):
    """Ten layers with each region, by region and what was drawn anew."""
    features = [
        encoders.extract(TRAINED, brain.stimuli, cache=False, weights=folders[1]),
        encoders.extract(UNTRAINED, brain.stimuli, cache=False, seed=0),
    ]
    found = {}
    for region in REGIONS:
        part = brain.select(region=region)
        for over in ("both", "stimuli"):
            found[region, over] = model_comparison(features, part, compare="spearman", over=over, bootstrap=1000)
            print(f"\n\n{region}: {found[region, over].summary()}")
    return found


def test_the_loader_finds_every_file_and_image(brain):
    assert (len(brain), brain.n_stimuli) == (30, 78)
    assert brain.stimulus_ids[-1] == brain.stimuli.ids[-1] == "image_78"
    assert brain.stimuli.images(["image_01"])[0].shape == (400, 400, 3)


@pytest.mark.parametrize("region", REGIONS)
def test_published_ceilings(folders, brain, region):
    log = json.loads((folders[0] / "brain_data" / "noise_ceiling_log.json").read_text())
    published = log[f"fmri_{region}_RDMs.npz"]["spearman"]
    stack = brain.select(region=region)
    lower, upper = rsa_ceiling(stack, "spearman", pool="mean", squared=True)
    assert (lower, upper) == pytest.approx((published["lnc"], published["unc"]), rel=1e-10)
    assert round(upper, 4) == PUBLISHED[region]
    by_hand = np.mean([spearmanr(one, stack.vectors.mean(0))[0] ** 2 for one in stack.vectors])
    assert upper == pytest.approx(by_hand, rel=1e-10)


@pytest.mark.parametrize("region", REGIONS)
def test_trained_and_untrained_cannot_be_told_apart(compared, region):
    comparison = compared[region, "both"]
    assert len(comparison.names) == 10 and comparison.n_subjects == 15
    squared = (comparison.per_subject**2).mean(1)
    assert (squared > 0.001).all() and (squared < 0.0065).all()
    assert (comparison.scores < 0.25 * comparison.ceiling[1]).all()
    pairs = comparison.pairwise("fdr")
    across = pairs["first"].str.startswith(f"{TRAINED} ") & pairs["second"].str.startswith(UNTRAINED)
    assert (len(pairs), across.sum()) == (45, 25)
    assert (pairs["p_corrected"] > 0.05).all()
    narrow = compared[region, "stimuli"].pairwise("fdr")
    assert (narrow["p_corrected"][across] > 0.05).all()
    assert (comparison.p_ceiling > 0.05).all()  # nor is any of them below the lower bound of the ceiling


def test_one_layer_is_above_zero_in_it(compared):
    """So the test is not blind: p of the trained layer 3 survives correction for ten layers; no untrained one does."""
    p = dict(zip(compared["IT", "both"].names, align.fdr(compared["IT", "both"].p_zero), strict=True))
    assert p[f"{TRAINED} layer3"] < 0.05
    assert all(value > 0.05 for name, value in p.items() if name.startswith(UNTRAINED))
