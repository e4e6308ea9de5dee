import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from neuralign import datasets

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def write_images(path, prefix=""):
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for i in reversed(range(6)):
            buffer = io.BytesIO()
            Image.fromarray(PIXELS[i]).save(buffer, format="PNG")
            archive.writestr(f"{prefix}image{i + 1:04d}.png", buffer.getvalue())
            archive.writestr(f"__MACOSX/{prefix}._image{i + 1:04d}.png", b"junk")


def write(path, array):
    path.parent.mkdir(exist_ok=True)
    np.save(path, array)


@pytest.fixture
def raw():
    """Spike counts (unit, image, repeat), 2 to 4 valid repeats."""
    counts = np.random.default_rng(1).poisson(3, (5, 6, 4)).astype(float)
    for image in range(6):
        counts[:, image, 2 + image % 3 :] = np.nan
    return counts


@pytest.fixture
def root(tmp_path, raw):
    write_images(tmp_path / "images/images_210325.zip")
    write_images(tmp_path / "images/images_201025.zip", "images_201025/")
    write(tmp_path / "responses_raw/responses_210325.npy", raw)
    write(tmp_path / "responses_repeat_averaged/responses_210325.npy", np.nanmean(raw, 2))
    write(tmp_path / "responses_repeat_averaged/responses_201025.npy", raw[:3, :, 0])
    write(tmp_path / "responses_raw/responses_201016.npy", raw)
    return tmp_path


def test_padding_is_left_out_and_repeats_stay_apart(root, raw):
    brain = datasets.load("cowley-v4", root=root)
    assert brain.responses.dtype == np.float32
    assert brain.n_presentations == np.isfinite(raw[0]).sum() == 18
    for stimulus, repeat, row in zip(
        brain.presentations["stimulus"], brain.presentations["repeat"], brain.read(), strict=True
    ):
        np.testing.assert_array_equal(row, raw[:, int(stimulus[-4:]) - 1, repeat])
    np.testing.assert_allclose(brain.average_repeats().read(), np.nanmean(raw, 2).T, rtol=1e-6)
    assert brain.average_repeats().stimuli.ids[0] == "image0001"
    np.testing.assert_array_equal(brain.stimuli.images(), PIXELS)
    assert set(brain.units["region"]) == {"V4"} and set(brain.units["subject"]) == {"session-210325"}


def test_averaged_responses_and_a_zip_with_a_folder(root, raw):
    brain = datasets.load("cowley-v4", root=root, session=201025)
    np.testing.assert_array_equal(brain.read(), raw[:3, :, 0].T)
    assert list(brain.presentations["stimulus"]) == list(brain.stimuli.ids)
    np.testing.assert_array_equal(brain.stimuli.images(), PIXELS)


def test_files_may_lie_flat(tmp_path, raw):
    write_images(tmp_path / "images_190923.zip")
    write(tmp_path / "responses_190923.npy", raw)
    assert datasets.load("cowley-v4", root=tmp_path, session="190923").n_presentations == 18


def test_incomplete_sessions_name_the_complete_ones(root):
    with pytest.raises(FileNotFoundError, match=r"'201016' has no images .* both: 201025, 210325\."):
        datasets.load("cowley-v4", root=root, session="201016")
    with pytest.raises(FileNotFoundError, match="no images and responses"):
        datasets.load("cowley-v4", root=root, session="123456")


def test_damaged_and_mismatched_responses(root, raw):
    path = root / "responses_raw/responses_210325.npy"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"responses_210325\.npy is not a whole"):
        datasets.load("cowley-v4", root=root)
    write(path, raw.transpose(1, 0, 2))
    with pytest.raises(ValueError, match=r"\(6, 5, 4\); expected \(unit, image\[, repeat\]\) with the 6 images"):
        datasets.load("cowley-v4", root=root)
