"""Shortest paths between all stimuli of a graph."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra, floyd_warshall

WIDTH = 32  # stimuli that paths are led through at a time; a multiple of 4
SPARSE = 0.05  # share of pairs with an edge below which scipy's Dijkstra beats its Floyd-Warshall


def shortest_paths(weights: np.ndarray, edges: np.ndarray, dtype: type | np.dtype | None = None) -> np.ndarray:
    """Length of the shortest path between every two stimuli.

    Parameters
    ----------
    weights : array of shape (..., stimulus, stimulus)
        Length of every edge, symmetric and not negative. An edge may have length zero.
    edges : array of bool, shape (..., stimulus, stimulus)
        Which pairs are joined by an edge, symmetric. What `weights` holds elsewhere does not matter.
    dtype : float32 or float64, optional
        In which the lengths are summed; float64 unless given.

    Returns
    -------
    ndarray of `dtype`, shape (..., stimulus, stimulus)
        inf between stimuli that no path joins, 0 on the diagonal.

    Raises
    ------
    ValueError
        For lengths that are negative or NaN, a graph that is not symmetric, or shapes that differ.

    Notes
    -----
    Floyd-Warshall in blocks of rows (Venkataraman et al. 2003). As the graph has no direction, one triangle is
    computed: each block closes its own diagonal, extends that to a panel of paths that end in the block, and relaxes
    the triangle by minima of sums of panel columns. One thread; with 1000 stimuli this is faster than Dijkstra from
    every stimulus for any graph dense enough to be connected. Without numba, scipy computes the same.

    References
    ----------
    Venkataraman, Sahni & Mukhopadhyaya (2003), ACM Journal of Experimental Algorithmics 8:2.2.
    """
    dtype = np.dtype(np.float64 if dtype is None else dtype)
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"dtype={dtype}; expected float32 or float64.")
    weights, edges = np.asarray(weights), np.asarray(edges, bool)
    n = weights.shape[-1] if weights.ndim else 0
    if weights.ndim < 2 or weights.shape[-2] != n or weights.shape != edges.shape:
        raise ValueError(
            f"weights has shape {weights.shape} and edges {edges.shape}; expected (..., stimulus, stimulus) of both."
        )
    if (edges != edges.swapaxes(-1, -2)).any():
        raise ValueError("edges is not symmetric; join it with its transpose, edges | edges.swapaxes(-1, -2).")
    lengths = np.ascontiguousarray(np.where(edges, weights, np.inf), dtype=dtype)
    if (lengths != lengths.swapaxes(-1, -2)).any():  # NaN differ from themselves
        raise ValueError("weights is not symmetric, or NaN, where there is an edge.")
    if (lengths < 0).any():
        raise ValueError(f"weights holds an edge of length {lengths.min():.3g}; lengths must not be negative.")
    lengths[..., np.arange(n), np.arange(n)] = 0
    close = _compiled()
    for one in lengths.reshape(-1, n, n):
        if close is not None:
            close(one, WIDTH)
        else:
            one[:] = _by_scipy(one)
    return lengths


def percolates(sub_threshold: np.ndarray) -> bool:
    """Whether the pairs below a threshold join all stimuli into one component.

    Parameters
    ----------
    sub_threshold : array of bool, shape (stimulus, stimulus)
        True for pairs below the threshold, in either triangle or both.
    """
    joined = np.asarray(sub_threshold, bool)
    joined = joined | joined.T
    reached = np.zeros(len(joined), bool)
    newest = reached.copy()
    newest[:1] = True
    while newest.any():
        reached |= newest
        newest = joined[newest].any(0) & ~reached
    return bool(reached.all())


def _by_scipy(lengths: np.ndarray) -> np.ndarray:
    first, second = np.nonzero(np.isfinite(lengths))
    # Built from coordinates: scipy drops the zeros of a dense matrix, and with them edges of length zero.
    graph = csr_array((lengths[first, second].astype(np.float64), (first, second)), shape=lengths.shape)
    paths = (dijkstra if len(first) < SPARSE * lengths.size else floyd_warshall)(graph)
    return np.minimum(paths, paths.T)  # the way there and the way back are summed in another order


@functools.cache
def _compiled() -> Callable[[np.ndarray, int], None] | None:
    try:
        import numba
    except ImportError:
        return None
    return numba.njit(cache=True)(_close)


def _close(D: np.ndarray, width: int) -> None:
    """Replace the upper triangle of D (n, n) by shortest paths, in place, and mirror it.

    Compiled by numba. Inner loops run along rows taken as views, because only then are they vectorised; a comparison
    instead of `min` becomes one instruction, and lets infinite lengths be infinite.
    """
    n = D.shape[0]
    # Paths that end in the present block: one row per stimulus of it, padded to a multiple of four by infinity.
    before = np.empty((width, n), D.dtype)
    panel = np.empty((width, n), D.dtype)
    for start in range(0, n, width):
        stop = min(n, start + width)
        size = stop - start
        for k in range(size):
            for j in range(start + k):
                before[k, j] = D[j, start + k]
            before[k, start + k :] = D[start + k, start + k :]
        for k in range(size):  # paths inside the block
            through = before[k, start:stop]
            for i in range(size):
                row = before[i, start:stop]
                leg = row[k]
                for j in range(size):
                    length = leg + through[j]
                    row[j] = length if length < row[j] else row[j]
        panel[:] = np.inf
        for i in range(size):
            row = panel[i]
            for k in range(size):
                leg = before[i, start + k]
                onward = before[k]
                for j in range(n):
                    length = leg + onward[j]
                    row[j] = length if length < row[j] else row[j]
        for i in range(n):  # paths through the block, four stimuli of it at a time
            row = D[i, i:]
            for k in range(0, size, 4):
                one, two, three, four = panel[k, i:], panel[k + 1, i:], panel[k + 2, i:], panel[k + 3, i:]
                a, b, c, d = one[0], two[0], three[0], four[0]
                for j in range(n - i):
                    p, q, r, s = a + one[j], b + two[j], c + three[j], d + four[j]
                    p = p if p < q else q
                    r = r if r < s else s
                    p = p if p < r else r
                    row[j] = p if p < row[j] else row[j]
    for i in range(n):
        for j in range(i):
            D[i, j] = D[j, i]
