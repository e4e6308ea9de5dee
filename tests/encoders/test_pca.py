"""Principal components: the right ones, and of nothing but the stimuli that were named."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from neuralign.datasets import StimulusSet
from neuralign.encoders import ImageInputs, extract
from neuralign.encoders.features import pca
from neuralign.encoders.features.pca import PCA, FittedPCA, principal_components
from neuralign.encoders.features.reduce import Reduction, parse_reduction


def rows_of(n, width, seed=0):
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, min(n, width) + 1) ** -0.5
    return (
        rng.standard_normal((n, len(spectrum))) * spectrum @ rng.standard_normal((len(spectrum), width)) + 3
    ).astype(np.float32)


@pytest.mark.parametrize("n, width", [(40, 500), (500, 40), (50, 50), (30, 29)])
def test_components_are_those_of_the_singular_value_decomposition(n, width, monkeypatch):
    monkeypatch.setattr(pca, "_COLUMNS", 64)  # several pieces, the last one short
    monkeypatch.setattr(pca, "_ROWS", 64)
    rows = rows_of(n, width)
    mean, components, explained = principal_components(rows, 10)
    centred = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    values, right = np.linalg.svd(centred, full_matrices=False)[1:]
    np.testing.assert_allclose(mean, rows.mean(0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(np.abs((components @ right[:10].T).diagonal()), 1, atol=1e-6)
    np.testing.assert_allclose(components @ components.T, np.eye(10), atol=1e-6)
    assert (components[np.arange(10), np.abs(components).argmax(1)] > 0).all()
    assert explained == pytest.approx((values[:10] ** 2).sum() / (values**2).sum(), rel=1e-9)


@pytest.mark.parametrize("shape", [(60,), (5, 12), (12, 5, 6), (4, 3, 4, 5)])
def test_projection_of_every_kind_of_output(shape, monkeypatch):
    monkeypatch.setattr(pca, "_AT_ONCE", 500)
    output = torch.randn(30, *shape, generator=torch.Generator().manual_seed(0)) + 100
    rows = Reduction()(output).flatten(1)  # the order in which everything would be kept
    fitted = PCA(4, [f"s{i}" for i in range(20)]).fitted(Reduction()(output[:20]).numpy())
    centred = rows.double().numpy() - rows[:20].double().mean(0).numpy()
    right = np.linalg.svd(centred[:20], full_matrices=False)[2][:4]
    found = fitted(output)
    assert found.shape == (30, 4) and found.dtype == torch.float32
    assert fitted.row_shape(shape) == (4,)
    np.testing.assert_allclose(found.abs(), np.abs(centred @ right.T), atol=1e-4)
    np.testing.assert_allclose(fitted(output.half()), found, atol=1.0)  # halves near 100 are 1/16 apart
    with pytest.raises(ValueError, match=f"fitted on {rows.shape[1]} values of a stimulus; found 7"):
        fitted(torch.zeros(2, 7))


def test_a_large_mean_costs_no_digits():
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((50, 300)) + 1000).astype(np.float32)
    fitted = PCA(5, [str(i) for i in range(50)]).fitted(rows)
    exact = (rows.astype(np.float64) - fitted.basis[0]) @ fitted.basis[1:].astype(np.float64).T
    np.testing.assert_allclose(fitted(torch.from_numpy(rows)), exact, atol=1e-4)


def test_the_basis_alone_projects_and_survives_the_disk():
    rows = rows_of(20, 50)
    fitted = PCA(3, [str(i) for i in range(20)]).fitted(rows)
    again = pickle.loads(pickle.dumps(FittedPCA(fitted.basis)))
    assert torch.equal(again(torch.from_numpy(rows)), fitted(torch.from_numpy(rows)))
    assert fitted.info()["fit_rows"] == 20 and 0 < fitted.info()["explained"] < 1
    assert fitted != again and fitted == fitted and len({fitted, again}) == 2


def test_rows_by_id_and_by_mask():
    stimuli = StimulusSet.from_images(np.zeros((6, 4, 4, 3), np.uint8), ids=list("abcdef"))
    by_id, mask = PCA(2, ["e", "a", "c"]), PCA(2, np.array([True, False, True, False, True, False]))
    assert by_id.rows(stimuli).tolist() == mask.rows(stimuli).tolist() == [0, 2, 4]
    assert by_id.spec() == PCA(2, ["e", "a", "c"]).spec() and by_id.spec() != PCA(2, ["e", "a", "d"]).spec()
    assert by_id.spec() != PCA(1, ["e", "a", "c"]).spec() and by_id.spec()["kind"] == "pca"
    assert parse_reduction(by_id) is by_id
    with pytest.raises(ValueError, match="fit_on='z' is unknown"):
        PCA(2, ["a", "b", "z"]).rows(stimuli)
    with pytest.raises(ValueError, match="mask over 5 stimuli; there are 6"):
        PCA(2, np.ones(5, bool)).rows(stimuli)


def test_bad_requests():
    with pytest.raises(TypeError, match="fit_on"):
        PCA(3)
    with pytest.raises(ValueError, match="3 stimuli; 3 components need at least 4"):
        PCA(3, ["a", "b", "c"])
    with pytest.raises(ValueError, match="3 stimuli; 3 components need at least 4"):
        PCA(3, np.array([True, True, True, False]))
    with pytest.raises(ValueError, match="1 of them twice"):
        PCA(1, ["a", "b", "a"])
    with pytest.raises(ValueError, match="one id; expected a sequence"):
        PCA(1, "abc")
    with pytest.raises(ValueError, match="dtype int64; expected ids"):
        PCA(1, np.arange(5))
    with pytest.raises(ValueError, match="size=0"):
        PCA(0, ["a", "b"])
    with pytest.raises(ValueError, match="no components before it is fitted"):
        PCA(1, ["a", "b"])(torch.zeros(2, 3))


@pytest.mark.parametrize("width", [8, 200])
def test_too_few_directions_are_refused(width):
    rows = np.tile(rows_of(4, width), (5, 1))  # 20 rows that vary along 3 directions
    assert principal_components(rows, 3)[1].shape == (3, width)
    with pytest.raises(ValueError, match="k=4 components, but the 20 stimuli of fit_on vary along 3 directions"):
        principal_components(rows, 4)
    with pytest.raises(ValueError, match="vary along 0 directions"):
        principal_components(np.ones((20, width), np.float32), 1)


def test_what_is_too_long_to_decompose_is_refused(monkeypatch):
    monkeypatch.setattr(pca, "_LARGEST", 10)
    with pytest.raises(ValueError, match="one of them may be 10 at most"):
        principal_components(rows_of(11, 12), 2)
    assert principal_components(rows_of(11, 10), 2)[1].shape == (2, 10)


# ------------------------------------------------------------------------------------------- through extract


def images(seed=0, n=24):
    return np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), np.uint8)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(6 * 14 * 14, 30)).eval()


@pytest.mark.parametrize("stored", [False, True])
def test_extraction_projects_each_layer_on_components_of_the_named_stimuli(stored, tmp_path):
    stimuli = StimulusSet.from_images(images())
    train = list(stimuli.ids)[::2]
    given = {"preprocess": ImageInputs((16, 16)), "cache": tmp_path / "a" if stored else False, "batch_size": 5}
    found = extract(network(), stimuli, ["1", "3"], PCA(4, train), **given)
    whole = extract(network(), stimuli, ["1", "3"], **given)
    for layer in found:
        rows = whole[layer].reshape(24, -1).astype(np.float64)
        centred = rows - rows[::2].mean(0)
        right = np.linalg.svd(centred[::2], full_matrices=False)[2][:4]
        assert found[layer].shape == (24, 4)
        np.testing.assert_allclose(np.abs(found[layer]), np.abs(centred @ right.T), atol=1e-4)
        assert found.info[layer]["fit_rows"] == 12


def test_test_stimuli_do_not_move_components(tmp_path):
    pixels, train = images(), np.arange(24) < 12
    other = np.concatenate([pixels[:12], images(1, 12)])
    given = {"preprocess": ImageInputs((16, 16)), "batch_size": 6}
    first, second = (
        extract(network(), StimulusSet.from_images(p), "1", PCA(4, train), cache=tmp_path / name, **given)["1"]
        for name, p in {"a": pixels, "b": other}.items()
    )
    np.testing.assert_array_equal(first[:12], second[:12])
    assert np.abs(first[12:] - second[12:]).max() > 0.1
    moved = extract(network(), StimulusSet.from_images(pixels), "1", PCA(4, ~train), cache=tmp_path / "a", **given)["1"]
    assert np.abs(np.asarray(moved[:12]) - first[:12]).max() > 0.01
