"""Inner products of all pairs of stimuli, exact."""

import numpy as np
import pytest
from torch import nn

from neuralign.datasets import StimulusSet
from neuralign.encoders import ImageInputs, extract
from neuralign.encoders.features import grams
from neuralign.encoders.features.extract import gram
from neuralign.encoders.features.grams import gram_matrix, scratch


@pytest.mark.parametrize("tile, columns, values", [(1024, 512, 2**24), (16, 512, 2**24), (7, 100, 50 * 300)])
@pytest.mark.parametrize("centre", [False, True])
def test_equals_float64(tile, columns, values, centre, monkeypatch):
    monkeypatch.setattr(grams, "_TILE", tile)  # several tiles and pieces, the last ones short
    monkeypatch.setattr(grams, "_COLUMNS", columns)
    monkeypatch.setattr(grams, "_VALUES", values)
    rng = np.random.default_rng(0)
    features = np.maximum(rng.standard_normal((50, 30, 40)), 0).astype(np.float32)
    rows = features.reshape(50, -1).astype(np.float64)
    rows = rows - rows.mean(0) if centre else rows
    truth = rows @ rows.T
    found = gram_matrix(features, centre)
    assert found.shape == (50, 50) and found.dtype == np.float32
    np.testing.assert_array_equal(found, found.T)
    assert np.abs(found - truth).max() < 1e-6 * np.abs(truth).max()


def test_long_sums_keep_their_digits():
    rng = np.random.default_rng(0)
    features = rng.random((20, 300_000), np.float32)  # of one sign: each product is near 75,000
    truth = features.astype(np.float64) @ features.astype(np.float64).T
    np.testing.assert_allclose(gram_matrix(features), truth, rtol=1e-6)


def test_a_large_mean_costs_no_digits():
    rng = np.random.default_rng(0)
    features = (rng.standard_normal((40, 5000)) + 1000).astype(np.float32)
    rows = features.astype(np.float64)
    rows -= rows.mean(0)
    truth = rows @ rows.T
    assert np.abs(gram_matrix(features, centre=True) - truth).max() < 1e-6 * truth.max()
    naive = gram_matrix(features).astype(np.float64)  # centred on both sides afterwards
    naive = naive - naive.mean(0) - naive.mean(1)[:, None] + naive.mean()
    assert np.abs(naive - truth).max() > 1e-3 * truth.max()


def test_halves_on_disk(tmp_path):
    rng = np.random.default_rng(0)
    features = (rng.standard_normal((30, 2000)) * 200).astype(np.float16)
    np.save(tmp_path / "features.npy", features)
    rows = features.astype(np.float64)
    on_disk = np.load(tmp_path / "features.npy", mmap_mode="r")
    for centre in (False, True):
        centred = rows - rows.mean(0) if centre else rows
        truth = centred @ centred.T
        assert np.abs(gram_matrix(on_disk, centre) - truth).max() < 1e-6 * truth.max()


def test_nothing_to_multiply_is_refused():
    for shape in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match="at least one stimulus and one feature"):
            gram_matrix(np.empty(shape, np.float32))


def test_scratch_is_gone_afterwards_whatever_happens(tmp_path):
    root = tmp_path / "not" / "there"
    with scratch(root) as folder:
        (folder / "features").mkdir()
        (folder / "features" / "data").write_bytes(b"1")
        assert folder.parent == root and folder.name.startswith(grams.SCRATCH)
    with pytest.raises(KeyboardInterrupt), scratch(root) as folder:
        (folder / "data").write_bytes(b"1")
        raise KeyboardInterrupt
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("centre", [False, True])
def test_grams_of_a_model_are_those_of_its_features(centre, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), np.uint8)
    stimuli, given = StimulusSet.from_images(pixels), {"preprocess": ImageInputs((16, 16)), "cache": tmp_path}
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 14 * 14, 30)).eval()
    features = extract(module, stimuli, ["1", "3"], **given)
    before = {path.name for path in tmp_path.iterdir()}
    found = gram(module, stimuli, ["1", "3"], centre=centre, **given)
    for layer in ("1", "3"):
        rows = features[layer].reshape(11, -1).astype(np.float64)
        rows = rows - rows.mean(0) if centre else rows
        truth = rows @ rows.T
        assert np.abs(found[layer] - truth).max() < 1e-6 * np.abs(truth).max()
        np.testing.assert_array_equal(found[layer], gram(module, stimuli, layer, centre=centre, **given)[layer])
    assert {path.name for path in tmp_path.iterdir()} == before  # nothing of the scratch folder is left
