"""Tokens of stimuli: what is accepted, what is read, what is computed of them."""

import h5py
import numpy as np
import pytest
import torch

from neuralign.encoders.spatial.store import TokenStore
from neuralign.encoders.spatial.tokens import checked_tokens


@pytest.fixture
def values():
    return np.random.default_rng(0).standard_normal((12, 6, 5)).astype(np.float32)


def kept_as(kind, values, folder):
    """The same tokens, kept in one of the ways that are accepted."""
    if kind == "array":
        return values
    if kind == "memmap":
        np.save(folder / "x.npy", values)
        return np.load(folder / "x.npy", mmap_mode="r")
    if kind == "h5py":
        file = h5py.File(folder / "x.h5", "w")
        return file.create_dataset("x", data=values, chunks=(5, 2, 5))
    return TokenStore.build(folder / "store", [values], len(values), (2, 3), dtype=str(values.dtype))


@pytest.mark.parametrize("kind", ["array", "memmap", "h5py", "store"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("rows", [[7, 1, 1, 11], [3, 4, 5], [5, 4, 3], [9]])
def test_rows_are_read_in_the_order_asked_for(kind, dtype, rows, values, tmp_path):
    values = values.astype(dtype)
    tokens = checked_tokens(kept_as(kind, values, tmp_path), (2, 3))
    found = tokens.batch(rows)
    assert (tokens.n, tokens.n_tokens, tokens.n_features, tokens.grid) == (12, 6, 5, (2, 3))
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), values[rows].astype(np.float32))


@pytest.mark.parametrize("kind", ["array", "memmap", "h5py", "store"])
def test_a_batch_is_a_copy(kind, values, tmp_path):
    before = values.copy()
    source = kept_as(kind, values, tmp_path)
    checked_tokens(source, (2, 3)).batch([2, 3, 4]).zero_()
    assert np.array_equal(values, before)
    assert np.array_equal(np.asarray(source), before)


def test_flattened_tokens_are_cut_row_by_row(values):
    flat = values.reshape(12, 30)
    assert np.array_equal(checked_tokens(flat, (2, 3)).batch([4]).numpy(), values[[4]])
    assert np.array_equal(checked_tokens(flat, None, fitted=(6, 5)).batch([4]).numpy(), values[[4]])
    one = checked_tokens(flat)
    assert (one.n_tokens, one.n_features, one.grid) == (1, 30, (1, 1))


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_are_those_over_rows_and_tokens(offset, values, monkeypatch):
    monkeypatch.setattr("neuralign.encoders.spatial.tokens.CHUNK", 1000)  # several chunks
    values = values.astype(np.float64) + offset
    values[..., 2] = 3.25  # constant
    rows = np.array([1, 8, 3, 5, 6])
    mean, std = checked_tokens(values).moments(rows)
    flat = values[rows].reshape(-1, 5)
    spread = flat.std(0)
    np.testing.assert_allclose(mean, flat.mean(0), rtol=1e-13)
    np.testing.assert_allclose(std, np.where(np.arange(5) == 2, 1.0, spread), rtol=1e-9)


@pytest.mark.parametrize("dtype, precision", [(np.float16, 1e-6), (np.float32, 1e-6), (np.float64, 1e-13)])
def test_pooled_tokens_are_the_weighted_sum(dtype, precision, values, monkeypatch):
    monkeypatch.setattr("neuralign.encoders.spatial.tokens.CHUNK", 600)
    values = values.astype(dtype)
    fields = np.random.default_rng(1).random((4, 6))
    rows = np.array([10, 0, 3])
    pooled = checked_tokens(values).mean_tokens(fields, rows)
    expected = np.stack([[sum(f[t] * values[i, t].astype(float) for t in range(6)) for f in fields] for i in rows])
    assert pooled.dtype == (np.float64 if dtype == np.float64 else np.float32)
    np.testing.assert_allclose(pooled, expected, atol=precision * 10)


def test_nan_is_found_as_it_is_read_and_counted(values):
    values[3, 2, 1], values[7, 0, 0] = np.nan, np.inf
    tokens = checked_tokens(values)
    tokens.batch([0, 1, 2])
    with pytest.raises(ValueError, match=r"2 of the 4 stimuli read hold some, stimulus 7 the first"):
        tokens.batch([0, 7, 1, 3])
    with pytest.raises(ValueError, match="NaN or infinity"):
        tokens.moments()


def test_large_finite_values_are_no_fault():
    values = np.full((2, 3, 4), 3e38, np.float32)  # whose sum is infinite
    assert checked_tokens(values).batch([0, 1]).isfinite().all()


@pytest.mark.parametrize(
    "X, grid, needs, fitted, message",
    [
        (
            np.ones((4, 6, 5)),
            None,
            "a Gaussian field",
            None,
            r"tokens of shape \(4, 6, 5\) come without a grid: a Gauss",
        ),
        (np.ones((4, 6, 5)), (2, 2), None, None, r"X has 6 tokens .* grid=\(2, 2\) has 4 places"),
        (np.ones((4, 7)), (2, 2), None, None, r"X has 7 columns .* no whole number of features"),
        (np.ones((4, 6, 5)), (6,), None, None, r"grid=\(6,\): expected a pair"),
        (np.ones((4, 6, 5)), (2.5, 2), None, None, "whole numbers"),
        (np.ones((4, 6, 5)), "2x3", None, None, "grid='2x3': expected a pair"),
        (np.ones((4, 6, 5)), 6, None, None, "grid=6: expected a pair"),
        (np.ones((4, 6, 5)), (-2, -3), None, None, "above zero"),
        (np.ones((0, 6, 5)), (2, 3), None, None, r"shape \(0, 6, 5\), which holds nothing"),
        (np.ones((4, 6, 5, 2)), None, None, None, "4 dimensions"),
        (np.ones(4), None, None, None, "1 dimensions"),
        (np.ones((4, 6, 5), int), None, None, None, "X holds int64; expected float16"),
        (np.ones((4, 6, 5)), None, None, (6, 4), r"6 tokens of 5 features .* the fit had 6 tokens of 4 features"),
        (np.ones((4, 29)), None, None, (6, 5), r"1 tokens of 29 features .* the fit had 6 tokens of 5 features"),
    ],
)
def test_what_does_not_fit_is_refused(X, grid, needs, fitted, message):
    with pytest.raises(ValueError, match=message):
        checked_tokens(X, grid, needs_grid=needs, fitted=fitted)


def test_a_store_brings_its_grid(values, tmp_path):
    store = kept_as("store", values, tmp_path)
    assert checked_tokens(store, None, needs_grid="a Gaussian field").grid == (2, 3)
    with pytest.raises(ValueError, match=r"grid=\(3, 2\), and the store of tokens holds a grid of \(2, 3\)"):
        checked_tokens(store, (3, 2))
