"""Kendall's tau of many RDMs with many: every RDM is sorted once, every comparison counts inversions.

For a pair of RDMs x and y the pairs of stimuli are visited in the order of x. Those visited before with a smaller y
are concordant with the present one, those with a larger y discordant. How many there are is read off a set of bits,
one per place in the order of y, with running counts per 64 bits and per 4096 bits; a visit costs a few additions to
neighbouring numbers, which processors do many at a time. Pairs tied in x are looked up before any of them enters the
set, and pairs tied in y are looked up at both ends of their tie, so ties count as neither.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau

from .ranks import tie_starts

U = np.uint64


class Presorted(NamedTuple):
    """A dissimilarity vector, sorted once.

    Attributes
    ----------
    order : int array of shape (pair,)
        Positions in ascending order.
    starts : int array of shape (value + 1,)
        Where, in that order, each distinct value begins; the last is the number of pairs.
    place, low, high : int arrays of shape (pair,)
        Place of every pair in that order, and where its tie begins and ends.
    untied : int
        Number of pairs of pairs with different dissimilarities.
    """

    order: np.ndarray
    starts: np.ndarray
    place: np.ndarray
    low: np.ndarray
    high: np.ndarray
    untied: int


def presort(vector: np.ndarray) -> Presorted:
    """Sort a dissimilarity vector of shape (pair,) without NaN, for `tau`."""
    order = np.argsort(vector)
    starts = tie_starts(vector[order])
    sizes = np.diff(starts)
    place, low, high = (np.empty(len(vector), np.int32) for _ in range(3))
    place[order] = np.arange(len(vector))
    low[order], high[order] = np.repeat(starts[:-1], sizes), np.repeat(starts[1:], sizes)
    m = len(vector)
    untied = (m * (m - 1) - int((sizes * (sizes - 1)).sum())) // 2
    return Presorted(order.astype(np.int32), starts.astype(np.int32), place, low, high, untied)


def tau(a: np.ndarray, b: np.ndarray, kind: str = "a") -> np.ndarray:
    """Kendall's tau of every row of `a` with every row of `b`.

    Parameters
    ----------
    a, b : arrays of shape (rdm, pair)
        Without NaN.
    kind : {"a", "b"}
        Concordant minus discordant pairs of pairs, divided by all of them ("a"), or by the geometric mean of those
        untied in either RDM ("b").

    Returns
    -------
    ndarray of shape (rdm of a, rdm of b)
        NaN where an RDM is constant.
    """
    left = [presort(row) for row in a]
    right = left if b is a else [presort(row) for row in b]
    count = _counter()
    m = a.shape[1]
    total = m * (m - 1) // 2
    result = np.full((len(a), len(b)), np.nan)
    words, inner, outer = _scratch(m)
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            if not (x.untied and y.untied):
                continue
            if count is None:
                # scipy's tau divides by the untied pairs of pairs, of which there are whole numbers.
                balance = kendalltau(a[i], b[j], method="asymptotic").statistic * np.sqrt(float(x.untied) * y.untied)
                balance = np.rint(balance)
            else:
                balance = count(x.order, x.starts, y.place, y.low, y.high, y.untied < total, words, inner, outer)
            result[i, j] = balance / (total if kind == "a" else np.sqrt(float(x.untied) * float(y.untied)))
    return result


def _scratch(m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bit per place and one beyond, the counts of each 64 within their 4096, and of each 4096."""
    n_outer = m // 4096 + 1
    return np.zeros(64 * n_outer, np.uint64), np.zeros(64 * n_outer, np.int32), np.zeros(n_outer, np.int32)


@lru_cache
def _counter() -> Callable[..., int] | None:
    """The compiled `_balance`, or None where numba is not installed."""
    try:
        import numba
    except ImportError:
        return None
    return numba.njit(cache=True)(_balance)


def _balance(order, starts, place, low, high, tied, words, inner, outer):
    """Concordant minus discordant pairs of pairs.

    Positions are unsigned and loops of fixed length, so that the compiler makes them SIMD instructions.
    """

    def before(position):
        """How many places below `position` are in the set."""
        word = position >> U(6)
        bits = words[word] & ((U(1) << (position & U(63))) - U(1))
        bits = bits - ((bits >> U(1)) & U(0x5555555555555555))  # from here: the number of bits set
        bits = (bits & U(0x3333333333333333)) + ((bits >> U(2)) & U(0x3333333333333333))
        bits = (bits + (bits >> U(4))) & U(0x0F0F0F0F0F0F0F0F)
        within = (bits * U(0x0101010101010101)) >> U(56)
        return np.int64(within) + np.int64(inner[word]) + np.int64(outer[position >> U(12)])

    words[:] = 0
    inner[:] = 0
    outer[:] = 0
    balance = np.int64(0)
    for group in range(len(starts) - 1):
        visited = np.int64(starts[group])
        for k in range(starts[group], starts[group + 1]):
            pair = U(order[U(k)])
            smaller = before(U(low[pair]) if tied else U(place[pair]))
            larger = visited - (before(U(high[pair])) if tied else smaller)
            balance += smaller - larger
        for k in range(starts[group], starts[group + 1]):
            position = U(place[U(order[U(k)])])
            word, block = position >> U(6), position >> U(12)
            words[word] |= U(1) << (position & U(63))
            neighbours = inner[block << U(6) : (block + U(1)) << U(6)]
            own = np.int32(word & U(63))
            for later in range(64):
                neighbours[U(later)] += np.int32(later) > own
            own = np.int32(block)
            for later in range(len(outer)):
                outer[U(later)] += np.int32(later) > own
    return balance
