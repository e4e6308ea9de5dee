"""92 object images in human and monkey inferior temporal cortex (Kriegeskorte et al. 2008)."""

import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat

from neuralign.align.compare import compare, rsa_ceiling
from neuralign.align.rsa import rsa
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


def test_human_and_monkey(folder, human):
    supplement = loadmat(folder / "Kriegeskorte_Neuron2008_supplementalData.mat", simplify_cells=True)
    monkey, average = (RDMs(one["RDM"], IDS) for one in supplement["RDMs_mIT_hIT_fig1"])
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
