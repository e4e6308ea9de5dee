import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import pdist, squareform

from neuralign.datasets import registry
from neuralign.datasets.fmri.algonauts2019_78 import CARD, load_algonauts2019_78

N, SUBJECTS = 7, 3
RNG = np.random.default_rng(0)
STACKS = {
    region: np.stack([squareform(pdist(RNG.normal(size=(N, 5)), "correlation")) for _ in range(SUBJECTS)])
    for region in ("EVC", "IT")
}
COLOURS = RNG.integers(0, 256, (N, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    """The files as the repository lays them out."""
    brain, images = tmp_path / "brain_data", tmp_path / "stimuli_data"
    brain.mkdir()
    images.mkdir()
    for region, stack in STACKS.items():
        np.savez(brain / f"fmri_{region}_RDMs.npz", stack)
    for k, colour in enumerate(COLOURS):
        Image.fromarray(np.full((8, 8, 3), colour, np.uint8)).save(images / f"image_{k + 1:02d}.jpg", quality=95)
    return tmp_path


def test_every_subject_and_region(root):
    rdms = load_algonauts2019_78(root)
    np.testing.assert_array_equal(rdms.matrices, np.concatenate([STACKS["EVC"], STACKS["IT"]]))
    assert rdms.method == "correlation" and rdms.name == "algonauts2019-78"
    assert rdms.table.columns.tolist() == ["kind", "region", "subject", "label"]
    assert rdms.table["region"].tolist() == ["EVC"] * SUBJECTS + ["IT"] * SUBJECTS
    assert rdms.table["subject"].tolist() == ["01", "02", "03"] * 2
    assert set(rdms.table["kind"]) == {"brain"} and rdms.table["label"].iloc[-1] == "IT 03"


def test_images_are_in_the_order_of_the_rdms(root):
    rdms = load_algonauts2019_78(root)
    assert rdms.stimulus_ids == list(rdms.stimuli.ids) == [f"image_{k:02d}" for k in range(1, N + 1)]
    shown = np.stack(rdms.stimuli.images()).astype(int)
    assert np.abs(shown - COLOURS[:, None, None]).max() < 12  # but for JPEG


def test_selection(root):
    one = load_algonauts2019_78(root, region="IT", subject="02")
    np.testing.assert_array_equal(one.matrices[0], STACKS["IT"][1])
    both = load_algonauts2019_78(root, region=["IT", "EVC"], subject=["01", "03"])
    assert both.table["label"].tolist() == ["IT 01", "IT 03", "EVC 01", "EVC 03"]
    (root / "brain_data/fmri_EVC_RDMs.npz").unlink()
    assert len(load_algonauts2019_78(root, region="IT")) == SUBJECTS
    with pytest.raises(ValueError, match="region='ITC' is unknown; did you mean 'IT'"):
        load_algonauts2019_78(root, region="ITC")
    with pytest.raises(ValueError, match="subject='16' is unknown"):
        load_algonauts2019_78(root, region="IT", subject="16")


def test_without_images_there_are_rdms(root):
    for path in (root / "stimuli_data").iterdir():
        path.unlink()
    rdms = load_algonauts2019_78(root)
    assert rdms.stimuli is None and rdms.stimulus_ids[-1] == f"image_{N:02d}"


def test_missing_images_are_an_error(root):
    (root / "stimuli_data/image_04.jpg").unlink()
    with pytest.raises(ValueError, match="holds 6 images and the RDMs are over 7"):
        load_algonauts2019_78(root)


def test_absent_and_damaged_files(root):
    path = root / "brain_data/fmri_IT_RDMs.npz"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no archive"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"fmri_IT_RDMs\.npz is not a whole file of RDMs"):
            load_algonauts2019_78(root)
    np.savez(path, other=STACKS["IT"])
    with pytest.raises(ValueError, match="is not a whole file of RDMs"):
        load_algonauts2019_78(root)
    np.savez(path, STACKS["IT"][0])
    with pytest.raises(ValueError, match=r"has shape \(7, 7\); expected \(subject, stimulus, stimulus\)"):
        load_algonauts2019_78(root)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no fmri_IT_RDMs\.npz below"):
        load_algonauts2019_78(root)


def test_the_loader_is_registered_under_its_card():
    assert registry._REGISTERED["algonauts2019-78"] == (CARD, load_algonauts2019_78)
    assert set(CARD.selection) == {"region", "subject"}
