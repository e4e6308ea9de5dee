"""Random projections: what they compute, and what they keep."""

import numpy as np
import pytest
import torch

from neuralign.encoders.features import sketch
from neuralign.encoders.features.reduce import Reduction, parse_reduction
from neuralign.encoders.features.sketch import count_sketch, project, shifts, signs, sparse_projection


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_sketch(rows, size, seed):
    """Value by value, as the docstring says."""
    rows = np.asarray(rows, np.float64)
    width = rows.shape[1]
    sign, shift = signs(width, seed), shifts(-(-width // size), size, seed)
    kept = np.zeros((len(rows), size))
    for value in range(width):
        block, i = divmod(value, size)
        kept[:, (i + shift[block]) % size] += sign[value] * rows[:, value]
    return kept


@pytest.mark.parametrize("width, size", [(96, 32), (100, 32), (33, 32), (64, 7), (50, 1), (65, 64)])
@pytest.mark.parametrize("engine", [sketch._by_blocks, sketch._by_gather])
def test_both_engines_are_the_formula(width, size, engine):
    rows = drawn(3, width).double()
    for seed in range(5):  # the last block is short, and is rolled past the end and not
        np.testing.assert_allclose(engine(rows, size, seed), slow_sketch(rows, size, seed), atol=1e-12)


def test_the_projection_is_a_matrix_with_one_entry_in_each_column():
    matrix = count_sketch(torch.eye(100, dtype=torch.float64), 32, seed=3).T  # (32, 100)
    assert ((matrix != 0).sum(0) == 1).all() and set(matrix.unique().tolist()) == {-1.0, 0.0, 1.0}
    for start in (0, 32, 64):
        assert ((matrix[:, start : start + 32] != 0).sum(1) == 1).all()  # values of one block never meet
    rows = drawn(4, 100).double()
    np.testing.assert_allclose(count_sketch(rows, 32, seed=3), rows @ matrix.T, atol=1e-12)


def test_random_bits_are_those_of_the_generator_and_of_no_library():
    assert signs(16, 0).tolist() == [-1, 1, 1, -1, -1, 1, -1, -1, -1, -1, 1, -1, -1, 1, 1, 1]
    assert shifts(4, 1000, 0).tolist() == [638, 101, 93, 64]
    assert abs(signs(100_000, 5).mean()) < 4 / 100_000**0.5
    counts = np.bincount(shifts(100_000, 10, 5), minlength=10)
    assert np.abs(counts - 10_000).max() < 4 * 10_000**0.5
    assert (signs(100, 1) != signs(100, 2)).any() and (shifts(100, 50, 1) != shifts(100, 50, 2)).any()


@pytest.mark.parametrize("method", [count_sketch, sparse_projection])
def test_inner_products_are_unbiased_and_vary_no_more_than_theory_says(method):
    rows = drawn(2, 400).double()
    rows[1] += 0.5 * rows[0]
    truth = float(rows[0] @ rows[1])
    found = np.array([float(y[0] @ y[1]) for y in (method(rows, 32, seed) for seed in range(600))])
    assert abs(found.mean() - truth) < 4 * found.std() / 600**0.5
    bound = float((rows[0] @ rows[0]) * (rows[1] @ rows[1]) + truth**2) / 32
    assert 0.7 * bound < found.var() < 1.2 * bound


@pytest.mark.parametrize("method", ["sketch", "sparse"])
def test_error_of_correlations_is_that_of_as_many_random_directions(method):
    size, noise, shared = 1024, drawn(40, 20_000), drawn(1, 20_000, seed=1)
    rows = torch.relu(noise + shared)  # correlated, of one sign, as activations are
    truth = np.corrcoef(rows.double())
    pairs = np.triu_indices(40, 1)
    kept = project(rows, size, seed=1, method=method)
    for similarity in (np.corrcoef(kept), cosines(kept)):
        error = (similarity - truth)[pairs]
        assert (error**2).mean() ** 0.5 < 1.1 * size**-0.5


def cosines(rows):
    rows = np.asarray(rows, np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def test_correlation_distances_survive_when_rows_are_centred_and_only_then():
    rows = torch.relu(drawn(30, 60_000) + 0.3 * drawn(1, 60_000, seed=1)) + 0.2
    truth = np.corrcoef(rows.double())
    pairs = np.triu_indices(30, 1)
    errors = {
        kind: np.abs(np.corrcoef(parse_reduction(f"{kind}:8192")(rows)) - truth)[pairs].mean()
        for kind in ("sketch", "sketch-raw", "sparse", "sparse-raw")
    }
    assert max(errors["sketch"], errors["sparse"]) < 0.02
    assert min(errors["sketch-raw"], errors["sparse-raw"]) > 0.1
    raw = cosines(parse_reduction("sketch-raw:8192")(rows))  # which is the cosine's estimate instead
    assert np.abs(raw - cosines(rows))[pairs].mean() < 0.02


def test_centring_is_the_projection_of_centred_rows():
    maps = drawn(3, 6, 5, 7).double() + 40
    rows = maps.permute(0, 2, 3, 1).flatten(1)
    for method, engine in (("sketch", count_sketch), ("sparse", sparse_projection)):
        truth = engine(rows - rows.mean(1, keepdim=True), 64, 2)
        np.testing.assert_allclose(project(maps, 64, 2, True, method), truth, atol=1e-10)
        np.testing.assert_allclose(project(maps, 64, 2, False, method), engine(rows, 64, 2), atol=1e-10)


@pytest.mark.parametrize("at_once", [1, 500, 2**21])
def test_values_have_one_order_in_every_layout_of_memory(at_once, monkeypatch):
    monkeypatch.setitem(sketch._AT_ONCE, "cpu", at_once)
    maps, clips = drawn(5, 6, 5, 7), drawn(5, 6, 3, 4, 4)
    for output, channels_last in ((maps, torch.channels_last), (clips, torch.channels_last_3d)):
        everything = Reduction()(output).flatten(1)
        truth = project(everything, 64)
        assert torch.equal(project(output.to(memory_format=channels_last), 64), project(output, 64))
        np.testing.assert_allclose(project(output, 64), truth, atol=1e-5)
        strided = torch.cat([output, output])[::2]
        np.testing.assert_allclose(project(strided[:2], 64), project(output[[0, 2]], 64), atol=1e-5)


def test_a_row_does_not_depend_on_its_batch():
    rows = drawn(9, 1000)
    whole = project(rows, 128)
    for i in range(9):
        np.testing.assert_allclose(project(rows[i : i + 1], 128)[0], whole[i], atol=1e-6)
    assert project(rows[:0], 128).shape == (0, 128)


def test_another_seed_is_another_projection_and_the_same_seed_the_same():
    rows = drawn(2, 5000)
    for kind in ("sketch", "sparse"):
        first, again, other = (Reduction(kind, size=256, seed=seed)(rows) for seed in (0, 0, 1))
        assert torch.equal(first, again) and not torch.isclose(first, other).any(0).all()
        assert Reduction(kind, size=256).spec() != Reduction(kind, size=256, seed=1).spec()


def test_no_more_values_than_asked_for_are_kept_as_they_are_but_for_the_mean():
    tokens = drawn(3, 4, 8) + 5
    rows = tokens.flatten(1)
    assert torch.equal(parse_reduction("sketch-raw:32")(tokens), rows)
    kept = parse_reduction("sketch:32")(tokens)
    np.testing.assert_allclose(kept, rows - rows.mean(1, keepdim=True), atol=1e-6)
    assert torch.equal(tokens.flatten(1), rows) and kept.data_ptr() != tokens.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("engine", [sketch._by_blocks, sketch._by_gather, sparse_projection])
def test_halves_are_added_in_float32(dtype, engine):
    rows = (drawn(3, 20_000) * 100).to(dtype)
    kept = engine(rows, 16, 0)
    assert kept.dtype == torch.float32
    np.testing.assert_allclose(kept, engine(rows.double(), 16, 0), rtol=1e-4, atol=0.2)
    np.testing.assert_allclose(
        project(rows, 16).double(), project(rows.double(), 16), rtol=1e-3, atol=0.5
    )  # 1,250 values of size 100 each


def test_directions_of_the_sparse_projection_read_one_value_of_each_stretch():
    columns, weights = sketch._directions(1000, 50, 0, torch.device("cpu"), torch.float64)
    assert columns.shape == weights.shape == (50, 32)  # sqrt(1000) is 31.6
    assert (columns.diff(dim=1) > 0).all() and columns.min() >= 0 and columns.max() < 1000
    np.testing.assert_allclose((weights**2).sum(1), 1000 / 50)  # a row of the matrix has the norm of sqrt(D / k)
    dense = torch.zeros(50, 1000, dtype=torch.float64).scatter_(1, columns, weights)
    rows = drawn(4, 1000).double()
    np.testing.assert_allclose(sparse_projection(rows, 50), rows @ dense.T, atol=1e-10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["sketch", "sketch-raw", "sparse"])
def test_gpu_equals_cpu(kind):
    maps = drawn(5, 64, 20, 20)
    reduction = Reduction(kind, size=1024)
    np.testing.assert_allclose(reduction(maps.cuda()).cpu(), reduction(maps), atol=1e-3)
    last = maps.cuda().to(memory_format=torch.channels_last)
    np.testing.assert_allclose(reduction(last).cpu(), reduction(maps), atol=1e-3)
