"""Kendall's tau and ranks of many RDMs, with and without numba."""

import sys

import numpy as np
import pytest
from scipy.stats import kendalltau, rankdata

from neuralign.align.geometry import inversions
from neuralign.align.geometry.inversions import presort, tau
from neuralign.align.geometry.ranks import BLOCK, average_ranks


@pytest.fixture(params=["numba", "scipy"])
def engine(request, monkeypatch):
    if request.param == "scipy":
        monkeypatch.setattr(inversions, "_counter", lambda: None)
    else:
        assert inversions._counter() is not None
    return request.param


def test_without_numba(monkeypatch):
    """Not installed: importing it raises, and public functions of scipy do the work."""
    vectors = np.random.default_rng(0).normal(size=(3, 45))
    expected = tau(vectors, vectors)
    monkeypatch.setitem(sys.modules, "numba", None)
    inversions._counter.cache_clear()
    try:
        assert inversions._counter() is None
        np.testing.assert_array_equal(tau(vectors, vectors), expected)
    finally:
        inversions._counter.cache_clear()


def balance(x, y):
    """Slow reference: concordant minus discordant pairs, a whole number."""
    return sum(int((np.sign(x[k] - x[:k]) * np.sign(y[k] - y[:k])).sum()) for k in range(len(x)))


def untied(x):
    counts = np.unique(x, return_counts=True)[1]
    return (len(x) * (len(x) - 1) - int((counts * (counts - 1)).sum())) // 2


# 64 places share a word and 4096 a count: lengths around both.
@pytest.mark.parametrize("m", [3, 63, 64, 65, 1000, 4096, 4097, 8300])
@pytest.mark.parametrize("decimals", [None, 0, 2])
def test_tau_counts_exactly(engine, m, decimals):
    """No ties, few distinct values on both sides, and both mixed."""
    rng = np.random.default_rng(m)
    a, b = rng.normal(size=(2, m)), rng.normal(size=(2, m))
    b[0] += a[0]
    if decimals is not None:
        a, b[1] = np.round(a, decimals), np.round(b[1], decimals)
        a[:, :2] = [[0, 1], [1, 0]]  # never constant
        b[1, :2] = 0, 1
    expected = np.array([[balance(x, y) for y in b] for x in a])
    total = m * (m - 1) / 2
    np.testing.assert_allclose(tau(a, b, "a"), expected / total, rtol=1e-14, atol=0)
    by_untied = np.sqrt(np.outer([float(untied(x)) for x in a], [float(untied(y)) for y in b]))
    np.testing.assert_allclose(tau(a, b, "b"), expected / by_untied, rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", ["a", "b"])
def test_every_arrangement_of_few_values(engine, kind):
    """All vectors of four values out of three, against all others: every pattern of ties there is."""
    vectors = np.stack(np.meshgrid(*[range(3)] * 4), axis=-1).reshape(-1, 4).astype(float)
    some = vectors[::7]
    expected = np.full((len(some), len(vectors)), np.nan)
    for i, x in enumerate(some):
        for j, y in enumerate(vectors):
            if ties := untied(x) * untied(y):
                expected[i, j] = balance(x, y) / (6 if kind == "a" else np.sqrt(ties))
    np.testing.assert_allclose(tau(some, vectors, kind), expected, rtol=1e-14)


@pytest.mark.parametrize("ties", [False, True])
def test_equals_scipy(ties):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 4186))
    y += x
    if ties:
        x, y = np.round(x, 1), np.round(y, 2)
    expected = [[kendalltau(one, other).statistic for other in y] for one in x]
    np.testing.assert_allclose(tau(x, y, "b"), expected, rtol=1e-13)


@pytest.mark.parametrize("m", [70_000, 200_000])
def test_more_pairs_of_pairs_than_32_bits_hold(m):
    up = np.arange(m, dtype=float)
    np.testing.assert_array_equal(tau(up[None], np.stack([up, -up])), [[1, -1]])
    halves = np.concatenate([up[m // 2 :], up[: m // 2]])
    expected = (m * (m - 1) // 2 - 2 * (m // 2) * (m - m // 2)) / (m * (m - 1) // 2)
    np.testing.assert_allclose(tau(up[None], halves[None]), expected, rtol=1e-14)


def test_constant_is_nan(engine):
    rng = np.random.default_rng(0)
    a = np.stack([rng.normal(size=10), np.full(10, 0.1)])
    assert np.isnan(tau(a, a)).tolist() == [[False, True], [True, True]]


def test_the_input_of_one_comparison_does_not_leak_into_the_next(engine):
    """The running counts are used again: the order of comparisons must not matter."""
    a = np.random.default_rng(0).normal(size=(4, 5000))
    found = tau(a, a)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(tau(a[::-1], a[::-1])[::-1, ::-1], found)


def test_presort():
    sorted_once = presort(np.array([2.0, 1.0, 2.0, 3.0, 1.0]))
    np.testing.assert_array_equal(sorted_once.starts, [0, 2, 4, 5])
    np.testing.assert_array_equal(sorted_once.low, [2, 0, 2, 4, 0])
    np.testing.assert_array_equal(sorted_once.high, [4, 2, 4, 5, 2])
    assert sorted(sorted_once.place[[1, 4]]) == [0, 1] and sorted(sorted_once.place[[0, 2]]) == [2, 3]
    assert sorted_once.untied == 8


@pytest.mark.parametrize("m", [1, 2, 45, 4186])
@pytest.mark.parametrize("decimals", [None, 0, 1])
def test_average_ranks(m, decimals):
    """Several blocks of rows, with the last one not full, and rows with and without ties in one block."""
    n = 3 * max(1, BLOCK // m) + 1 if m > 45 else 50
    vectors = np.random.default_rng(0).normal(size=(n, m))
    if decimals is not None:
        vectors[::2] = np.round(vectors[::2], decimals)
        vectors[:, : m // 3] *= -0.0  # zeros of both signs are equal
    before = vectors.copy()
    np.testing.assert_array_equal(average_ranks(vectors), rankdata(vectors, axis=1))
    np.testing.assert_array_equal(vectors, before)


def test_average_ranks_of_views_and_nothing():
    vectors = np.random.default_rng(0).normal(size=(20, 9)).T
    np.testing.assert_array_equal(average_ranks(vectors), rankdata(vectors, axis=1))
    assert average_ranks(np.empty((0, 6))).shape == (0, 6)
