import numpy as np
import pytest
from scipy.io import savemat
from scipy.spatial.distance import pdist, squareform

from neuralign import datasets

N = 7
RNG = np.random.default_rng(0)
BRAIN = np.stack([squareform(pdist(RNG.normal(size=(N, 5)))) for _ in range(8)]).astype(np.float32)
IMAGES = RNG.integers(0, 256, (N, 6, 6, 3), dtype=np.uint8)
MONKEY = pdist(RNG.normal(size=(N, 5)), "correlation")


def struct(fields, shape):
    array = np.empty(shape, dtype=[(name, object) for name in fields])
    for name, values in fields.items():
        flat = np.empty(len(values), dtype=object)
        flat[:] = values
        array[name] = flat.reshape(shape)
    return array


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "demos" / "92imageData"
    folder.mkdir(parents=True)
    flags = {flag: [np.uint8(i % 2) for i in range(N)] for flag in ("human", "face", "animal", "natural")}
    images = {"category": ["human bodypart"] * 3 + ["tool"] * 4, **flags, "image": list(IMAGES)}
    figure = {"name": ["mIT_674neurons", "hITvisStim_316vx"], "RDM": [MONKEY[None], BRAIN.mean(0)[None]]}
    savemat(
        folder / "Kriegeskorte_Neuron2008_supplementalData.mat",
        {"stimuli_92objs": struct(images, (1, N)), "RDMs_mIT_hIT_fig1": struct(figure, (1, 2))},
    )
    names = [f"hIT | {subject} | Session: {session}" for subject in ("BE", "KO", "SN", "TI") for session in (1, 2)]
    savemat(folder / "92_brainRDMs.mat", {"RDMs": struct({"RDM": list(BRAIN), "name": names}, (1, 4, 2))})
    names = [f"simJudge | subject{i}" for i in (1, 2, 3)]
    behaviour = {"RDM": list(BRAIN[:3].astype(float)), "name": names}
    savemat(folder / "92_behavRDMs.mat", {"rdms_behav_92": struct(behaviour, (1, 3))})
    binary = 1 - np.eye(N, dtype=np.uint8)
    models = {"RDM": [binary, BRAIN[0].astype(float)], "name": ["animacy", "HMAX"]}
    savemat(folder / "92_modelRDMs.mat", {"Models": struct(models, (1, 2))})
    return tmp_path


def test_human_it_keeps_subjects_and_sessions(root):
    rdms = datasets.load("kriegeskorte-92", root=root)
    np.testing.assert_array_equal(rdms.matrices, BRAIN)
    assert rdms.method == "correlation"
    assert list(rdms.table["subject"]) == ["BE", "BE", "KO", "KO", "SN", "SN", "TI", "TI"]
    assert list(rdms.table["session"]) == ["1", "2"] * 4
    assert set(rdms.table["region"]) == {"human IT"} and set(rdms.table["kind"]) == {"brain"}
    assert rdms.stimulus_ids[0] == "stimulus-01"


def test_stimuli_are_the_annotated_images(root):
    stimuli = datasets.load("kriegeskorte-92", root=root).stimuli
    np.testing.assert_array_equal(stimuli.images(), IMAGES)
    assert list(stimuli.table.columns) == ["category", "human", "face", "animal", "natural"]
    assert stimuli.table["category"].iloc[-1] == "tool"
    assert stimuli.table["face"].dtype == bool and list(stimuli.table["face"]) == [bool(i % 2) for i in range(N)]


def test_other_sources(root):
    monkey = datasets.load("kriegeskorte-92", root=root, source="monkey-it")
    np.testing.assert_array_equal(monkey.vectors[0], MONKEY)
    assert list(monkey.table["region"]) == ["monkey IT"]
    behaviour = datasets.load("kriegeskorte-92", root=root, source="behaviour")
    assert list(behaviour.table["subject"]) == ["subject1", "subject2", "subject3"]
    models = datasets.load("kriegeskorte-92", root=root, source="models")
    assert list(models.table["label"]) == ["animacy", "HMAX"] and (models.vectors[0] == 1).all()
    everything = datasets.load("kriegeskorte-92", root=root, source="all")
    assert everything.table["kind"].value_counts().to_dict() == {"brain": 9, "behaviour": 3, "model": 2}
    assert everything.stimuli is not None
    with pytest.raises(ValueError, match="source='human' is unknown; did you mean 'human-it'"):
        datasets.load("kriegeskorte-92", root=root, source="human")


def test_absent_and_damaged_files(root):
    path = root / "demos/92imageData/92_brainRDMs.mat"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"92_brainRDMs\.mat .* cut off or damaged"):
        datasets.load("kriegeskorte-92", root=root)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"92_brainRDMs\.mat .* cut off or damaged"):
        datasets.load("kriegeskorte-92", root=root)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no 92_brainRDMs\.mat below"):
        datasets.load("kriegeskorte-92", root=root)
