"""92 object images in human and monkey inferior temporal cortex (Kriegeskorte et al. 2008)."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat

from neuralign.align.compare import compare, rsa_ceiling
from neuralign.align.rsa import rsa
from neuralign.align.topology import rgdm, rgtm
from neuralign.datasets.rdms import RDMs

IDS = [f"object-{k + 1:02d}" for k in range(92)]


@pytest.fixture(scope="module")
def folder(real_data):
    return real_data("rsatoolbox_92")


@pytest.fixture(scope="module")
def human(folder):
    """Four subjects in two sessions."""
    cells = loadmat(folder / "92_brainRDMs.mat")["RDMs"][0]
    matrices = np.stack([cells[subject, session]["RDM"] for subject in range(4) for session in range(2)])
    table = pd.DataFrame(
        {
            "subject": np.repeat(["BE", "KO", "SN", "TI"], 2),
            "session": np.tile([1, 2], 4),
            "region": "human IT",
        }
    )
    return RDMs.from_matrices(matrices, IDS, table, method="correlation")


@pytest.fixture(scope="module")
def models(folder):
    cells = loadmat(folder / "92_modelRDMs.mat", simplify_cells=True)["Models"]
    matrices = np.stack([cell["RDM"] for cell in cells]).astype(float)
    return RDMs.from_matrices(matrices, IDS, pd.DataFrame({"label": [cell["name"] for cell in cells]}))


@pytest.fixture(scope="module")
def published(folder):
    """Monkey IT, and human IT averaged over subjects and sessions."""
    supplement = loadmat(folder / "Kriegeskorte_Neuron2008_supplementalData.mat", simplify_cells=True)
    return [RDMs(one["RDM"], IDS) for one in supplement["RDMs_mIT_hIT_fig1"]]


def test_human_and_monkey(published, human):
    monkey, average = published
    assert compare(monkey, average, "pearson")[0, 0] == pytest.approx(0.4912097961460494, abs=1e-12)
    np.testing.assert_allclose(human.mean().vectors, average.vectors, atol=1e-6)


def test_ceiling_over_subjects(human):
    lower, upper = rsa_ceiling(human.mean(by="subject"), "spearman")
    assert (round(lower, 3), round(upper, 3)) == (0.372, 0.666)


def test_models(human, models):
    table = rsa(models, human, compare="spearman", bootstrap=200, permutations=200).set_index("model")
    assert (table["subject"] == "group of 4").all() and (table["region"] == "human IT").all()
    np.testing.assert_allclose(table["ceiling"], 0.666, atol=5e-4)
    best, worst = table["score"].idxmax(), table["score"].idxmin()
    assert table.loc[best, "p"] == pytest.approx(1 / 201)
    assert ((table["ci_low"] < table["score"]) & (table["score"] < table["ci_high"])).all()
    assert table.loc[best, "ci_low"] > table.loc[worst, "ci_high"]


def test_models_against_the_average(human, models):
    found = dict(zip(models.table["label"], compare(models, human.mean(), "spearman")[:, 0], strict=True))
    expected = {"animacy": 0.588, "monkeyIT": 0.439, "EVA": 0.354, "HMAX": 0.222, "V1": 0.039}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=5e-4)


def transformed(published, function, *thresholds, **options):
    return [function(one, *thresholds, **options) for one in published]


@pytest.mark.parametrize(("zero_edges", "expected"), [("keep", 0.1498), ("drop", 0.2176)])
def test_geodesics_with_and_without_the_edges_of_no_length(published, zero_edges, expected):
    """Graph libraries drop edges of no length, which every pair below the lower threshold is."""
    found = transformed(published, rgdm, 0.05, 0.3, threshold="value-quantile", zero_edges=zero_edges)
    assert compare(*found, "pearson")[0, 0] == pytest.approx(expected, abs=5e-5)


def test_a_lower_threshold_at_which_all_stimuli_are_joined_leaves_no_geodesics(published):
    with pytest.warns(UserWarning, match="join all stimuli"):
        found = rgdm(published[1], 0.25, 0.75)
    assert (found.vectors == 0).all()


def test_thresholds_keep_most_of_what_man_and_monkey_share(published):
    """Ranks alone, then bands: what is lost between thresholds is lost of the correlation of 0.49."""
    whole = compare(*transformed(published, rgtm, 0.0, 1.0), "pearson")[0, 0]
    assert whole == pytest.approx(compare(*published, "spearman")[0, 0], abs=1e-12)
    bands = [compare(*transformed(published, rgtm, low, 1 - low), "pearson")[0, 0] for low in (0.1, 0.2, 0.3, 0.4, 0.5)]
    assert all(whole > 0.8 * band > 0.2 for band in bands) and bands[-1] < whole


@pytest.mark.parametrize("topology", [(0.2, 0.8), {"lower": 0.0, "upper": 0.3, "transform": "rgdm"}])
def test_topology_in_the_pipeline_is_the_transform_of_both_sides(human, models, topology):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = rsa(models, human, compare="pearson", topology=topology, bootstrap=0, permutations=0)
        function, lower, upper = (rgtm, 0.2, 0.8) if isinstance(topology, tuple) else (rgdm, 0.0, 0.3)
        by_hand = compare(
            function(models, lower, upper), function(human.mean(by="subject"), lower, upper), "pearson"
        ).mean(1)
    np.testing.assert_allclose(table["score"], by_hand, atol=1e-9)
    assert f"{'RGTM from 0.2 to 0.8' if function is rgtm else 'RGDM from 0 to 0.3'}, mean over" in table["formula"][0]
