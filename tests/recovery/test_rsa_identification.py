r"""The layer that shares a region's computation is identified on `datasets.simulate`, and so is the region itself.

Layers are the pixels, the features behind V1 (Gabor energy) and V4 (texture), and the category attributes behind FFA
(faces) and PPA (houses), tools besides: six candidates. Share of the regions of ten simulated
subjects whose most similar layer is the right one (2 repeats, crossnobis, chance .17):

===================  =======  ========  =====  =====  ======  ===============  ================
scenes, voxels each  pearson  spearman  rho-a  tau-a  cosine  cosine-whitened  pearson-whitened
===================  =======  ========  =====  =====  ======  ===============  ================
80, 20               1.00     1.00      1.00   1.00   1.00    1.00             1.00
40, 4                .93      .88       .88    .88    .97     1.00             1.00
===================  =======  ========  =====  =====  ======  ===============  ================

By Pearson correlation of RGTMs with thresholds l (rows) and u, at 80, 20 and at 40, 4::

    l \ u  0.2   0.4   0.6   0.8   1.0      0.2   0.4   0.6   0.8   1.0
    0.0    0.98  0.98  0.98  1.00  1.00     0.75  0.88  0.92  0.90  0.88
    0.2          0.98  1.00  1.00  1.00           0.90  0.92  0.90  0.88
    0.4                1.00  1.00  1.00                 0.92  0.90  0.90
    0.6                      1.00  1.00                       0.88  0.88
    0.8                            0.98                             0.82

Over stimuli, one subject, FDR over the 15 pairs of layers: of the other layers .97 (80, 20) and .59 (40, 4) lie
significantly below the true one, none of 400 above it.

Region identified from the other seven of eight subjects of 4 voxels per region (60 scenes, chance .25), RGTM and RGDM::

    l \ u  0.2   0.4   0.6   0.8   1.0      0.2   0.4   0.6   0.8   1.0
    0.0    0.84  0.89  0.92  0.92  0.93     0.81  0.83  0.83  0.83  0.83
    0.2          0.91  0.92  0.91  0.91           0.24  0.24  0.24  0.24
    0.4                0.91  0.90  0.88                 0.25  0.25  0.25
    0.6                      0.84  0.81                       0.25  0.25
    0.8                            0.72                             0.25

Thresholds help little or cost: what lies between them is less than all ranks. Geodesics with l > 0 join all scenes at
distance 0.
"""

import warnings

import numpy as np
import pandas as pd
import pytest

from neuralign import datasets, encoders
from neuralign.align import compare, rdm
from neuralign.align.inference import compare_models
from neuralign.align.topology import identify, rgtm
from neuralign.datasets.rdms import RDMs
from neuralign.datasets.scenes import ATTRIBUTES

pytestmark = pytest.mark.calibration

MAKER = {"V1": "gabor", "V4": "texture", "FFA": "face", "PPA": "house"}
SEEDS = range(10)
GRID = [(low / 10, high / 10) for low in range(0, 10, 2) for high in range(low + 2, 11, 2)]
METHODS = ("pearson", "spearman", "rho-a", "tau-a", "cosine", "cosine-whitened", "pearson-whitened")


def layers(stimuli):
    """Squared distances in each candidate layer, one RDM per layer."""
    found = {}
    for model in ("pixels", "gabor", "texture"):
        features = encoders.extract(model, stimuli, reduce=8, seed=0, cache=False)
        found[model] = rdm(features, "sqeuclidean").reorder(stimuli.ids).vectors[0]
    for category in ("face", "house", "tool"):
        objects = stimuli.objects[stimuli.objects["category"] == category].set_index("stimulus")
        values = objects[list(ATTRIBUTES[category])].reindex(stimuli.ids).to_numpy()
        present = ~np.isnan(values).any(1)
        features = np.column_stack([0.5 * present, np.where(present[:, None], values - 0.5, 0)])
        found[category] = rdm(features, "sqeuclidean").vectors[0]
    return RDMs(np.array(list(found.values())), list(stimuli.ids), pd.DataFrame({"label": list(found)}))


@pytest.fixture(scope="module", params=[(80, 20), (40, 4)], ids=lambda size: f"{size[0]} scenes, {size[1]} voxels")
def experiments(request):
    """(layers, crossnobis RDMs of the regions) of ten simulated subjects, and the numbers of scenes and voxels."""
    n_stimuli, n_voxels = request.param
    found = []
    for seed in SEEDS:
        brain = datasets.simulate.visual_cortex(n_stimuli, 4 * n_voxels, 2, seed=seed)
        models = layers(brain.stimuli)
        found.append((models, rdm(brain, "crossnobis").reorder(models.stimulus_ids)))
    return found, request.param


def accuracy(experiments, score):
    """Share of regions, over subjects, whose most similar layer is the one that made them."""
    hits = []
    for models, brain in experiments:
        names = models.table["label"].to_numpy()
        best = names[np.nanargmax(score(models, brain), axis=0)]
        hits += list(best == [MAKER[region] for region in brain.table["region"]])
    return float(np.mean(hits))


def test_the_true_layer_by_every_comparison(experiments):
    subjects, (n_stimuli, n_voxels) = experiments
    found = {m: accuracy(subjects, lambda models, brain, m=m: compare(models, brain, m)) for m in METHODS}
    print(f"\n{n_stimuli} scenes, {n_voxels} voxels: " + ", ".join(f"{m} {value:.2f}" for m, value in found.items()))
    assert min(found.values()) >= (0.95 if n_voxels == 20 else 0.5)  # by chance .17


def test_the_true_layer_by_topology(experiments):
    subjects, (n_stimuli, n_voxels) = experiments
    table = {}
    for cell in GRID:

        def score(models, brain, cell=cell):
            return compare(rgtm(models, *cell), rgtm(brain, *cell), "pearson")

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table[cell] = accuracy(subjects, score)
    print(f"\n{n_stimuli} scenes, {n_voxels} voxels:\n{pd.Series(table).unstack().round(2).to_string(na_rep='')}")
    assert table[0.0, 1.0] >= (0.95 if n_voxels == 20 else 0.5)
    # What two thresholds leave of the ranks cannot identify much better than all of them.
    assert max(table.values()) <= table[0.0, 1.0] + 0.1
    assert min(table.values()) > 1 / 6


def test_the_true_layer_stands_apart(experiments):
    """Over stimuli, every other layer tested against the true one, FDR of all pairs."""
    subjects, (n_stimuli, n_voxels) = experiments
    apart, wrong = [], 0
    for models, brain in subjects:
        for k, region in enumerate(brain.table["region"]):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # one subject: no ceiling; some resamples show no house
                found = compare_models(models, brain[k : k + 1], "rho-a", over="stimuli", bootstrap=100, seed=0)
            pairs = found.pairwise()
            true = MAKER[region]
            ours = pairs[(pairs["first"] == true) | (pairs["second"] == true)]
            ahead = np.where(ours["first"] == true, 1, -1) * ours["difference"].to_numpy()
            significant = ours["p_corrected"].to_numpy() <= 0.05
            apart.append(np.mean(significant & (ahead > 0)))
            wrong += int((significant & (ahead < 0)).sum())
    print(f"\n{n_stimuli} scenes, {n_voxels} voxels: below the true layer {np.mean(apart):.2f}, above it {wrong}")
    assert wrong <= 2  # of 200 tests
    assert np.mean(apart) >= (0.9 if n_voxels == 20 else 0.2)


@pytest.mark.parametrize("transform", ["rgtm", "rgdm"])
def test_the_region_across_subjects(transform):
    """Subjects are disjoint groups of 4 voxels per region: 8 subjects, 60 scenes, 5 simulations."""
    tables = []
    for seed in range(5):
        brain = datasets.simulate.visual_cortex(60, 128, 2, seed=seed).average_repeats()
        rng = np.random.default_rng(seed)
        vectors, rows = [], []
        for region in MAKER:
            voxels = rng.permutation(np.flatnonzero((brain.units["region"] == region).to_numpy()))
            for subject, group in enumerate(np.array_split(voxels, 8)):
                vectors.append(rdm(brain.responses[:, group], "correlation").vectors[0])
                rows.append((region, f"subject {subject + 1}"))
        stack = RDMs(np.array(vectors), [str(k) for k in range(60)], pd.DataFrame(rows, columns=["region", "subject"]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zero edges that join all scenes, from lower = .2 on
            tables.append(identify(stack, grid=GRID, transform=transform).to_frame().set_index(["lower", "upper"]))
    mean = sum(table["accuracy"] for table in tables) / len(tables)
    print(f"\n{transform}:\n{mean.unstack().round(2).to_string(na_rep='')}")
    assert (tables[0]["chance"] == 0.25).all()
    if transform == "rgtm":
        assert mean.loc[0.0, 1.0] >= 0.85
        assert mean.max() <= mean.loc[0.0, 1.0] + 0.05
        assert mean.min() > 0.5
    else:
        assert mean.loc[0.0, 1.0] >= 0.6
        # Pairs of distance 0 join all scenes, so all geodesics are 0 (but for one RDM at .2) and all regions alike.
        assert mean.loc[0.2:].to_numpy() == pytest.approx(0.25, abs=0.02)
