import numpy as np
import pytest
from scipy.io import loadmat

from neuralign import datasets


@pytest.fixture(scope="module")
def root(real_data):
    return real_data("rsatoolbox_92")


def published(root):
    figure = loadmat(root / "Kriegeskorte_Neuron2008_supplementalData.mat", simplify_cells=True)["RDMs_mIT_hIT_fig1"]
    return {entry["name"]: entry["RDM"] for entry in figure}


def test_monkey_and_human_it_correlate_as_published(root):
    monkey = datasets.load("kriegeskorte-92", root=root, source="monkey-it").vectors[0]
    human = published(root)["hITvisStim_316vx"]
    assert np.corrcoef(monkey, human)[0, 1] == pytest.approx(0.4912097961460494, abs=1e-12)


def test_mean_of_subjects_and_sessions_is_the_published_average(root):
    human = datasets.load("kriegeskorte-92", root=root)
    assert len(human) == 8
    np.testing.assert_allclose(human.mean().vectors[0], published(root)["hITvisStim_316vx"], atol=1e-6)
    assert list(human.mean(by="subject").table["subject"]) == ["BE", "KO", "SN", "TI"]


def test_all_sources(root):
    everything = datasets.load("kriegeskorte-92", root=root, source="all")
    assert everything.vectors.shape == (33, 4186)
    assert everything.table["kind"].value_counts().to_dict() == {"behaviour": 16, "brain": 9, "model": 8}
    assert np.isfinite(everything.vectors).all()


def test_images_and_annotations(root):
    stimuli = datasets.load("kriegeskorte-92", root=root).stimuli
    assert stimuli.images().shape == (92, 175, 175, 3)
    assert int(stimuli.table["animal"].sum()) == 48  # 24 humans and 24 other animals
    # Animate stimuli evoke patterns unlike those of inanimate ones: the main effect of the paper.
    human = datasets.load("kriegeskorte-92", root=root).mean().matrices[0]
    animal = stimuli.table["animal"].to_numpy()
    within = human[np.ix_(animal, animal)][np.triu_indices(48, 1)].mean()
    assert within < human[np.ix_(animal, ~animal)].mean()


def test_files_are_as_the_card_says(root):
    assert set(datasets.check("kriegeskorte-92", root)["status"]) == {"as expected"}
