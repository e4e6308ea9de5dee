"""Orders of rows for permutation tests that respect time and runs.

Samples of a time series resemble their neighbours. To shuffle them one by one destroys that, so that scores of
shuffled rows scatter less than those of another series with the same time course would, and a test rejects too often.
Blocks and circular shifts keep neighbours together. All functions return the same: an array (permutation, row) of
positions; ``array[order]`` puts into row i what was in row ``order[i]``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

Seed = int | np.random.Generator


def shuffles(n: int, groups: ArrayLike | None = None, n_permutations: int = 1000, seed: Seed = 0) -> np.ndarray:
    """Random orders of rows that are exchangeable, within groups.

    Parameters
    ----------
    n : int
        Number of rows.
    groups : array_like, shape (row,), optional
        Label of the group (run, session, category) that each row stays in; they may be in any order.
    n_permutations : int
    seed : int or numpy.random.Generator

    Returns
    -------
    ndarray of int, shape (n_permutations, n)
        Drawn with replacement from all orders, the given one among them.

    Raises
    ------
    ValueError
        Fewer orders than p of 1 / (n_permutations + 1) needs.
    """
    labels = _labels(n, groups, "groups")
    return _exchanged(np.arange(n), labels, n_permutations, seed, "rows within groups")


def block_shuffles(
    n: int,
    block: int,
    runs: ArrayLike | None = None,
    n_permutations: int = 1000,
    seed: Seed = 0,
    across_runs: bool = False,
) -> np.ndarray:
    """Random orders of blocks of consecutive samples.

    Parameters
    ----------
    n : int
        Number of samples.
    block : int
        Samples in a block. Much longer than the noise remembers: at each end of a block neighbours are torn apart,
        and short blocks make a test liberal (AR(1) noise of 0.8: at 5 %, blocks of 3 reject 11 %, of 40 5.5 %). The
        last block of a run may be shorter and is exchanged like the others; no sample is dropped.
    runs : array_like, shape (sample,), optional
        Label of the run of each sample; those of a run are neighbours. No block reaches over the end of a run.
    n_permutations : int
    seed : int or numpy.random.Generator
    across_runs : bool
        Let blocks leave their run: for runs that differ in nothing (mean and variance removed from each) and are too
        short to hold enough blocks.

    Returns
    -------
    ndarray of int, shape (n_permutations, n)
        Drawn with replacement from all orders of the blocks, the given one among them.

    Raises
    ------
    ValueError
        Runs whose samples are not neighbours, or fewer orders than p of 1 / (n_permutations + 1) needs.
    """
    if block < 1:
        raise ValueError(f"block={block}; expected the number of samples in a block, at least 1.")
    piece = np.zeros(n, int)
    n_pieces = 0
    labels = _labels(n, runs, "runs")
    for run in _stretches(labels):
        length = run.stop - run.start
        piece[run] = n_pieces + np.arange(length) // block
        n_pieces += -(-length // block)
    within = np.zeros(n, int) if across_runs else labels
    what = f"blocks of {block} samples" + (" across runs" if across_runs else " within runs")
    return _exchanged(piece, within, n_permutations, seed, what)


def circular_shifts(
    n: int, runs: ArrayLike | None = None, min_shift: int = 1, n_permutations: int = 1000, seed: Seed = 0
) -> np.ndarray:
    """Orders in which each run is shifted in time by an amount of its own, its end joined to its start.

    Parameters
    ----------
    n : int
        Number of samples.
    runs : array_like, shape (sample,), optional
        Label of the run of each sample; those of a run are neighbours.
    min_shift : int
        Samples by which a run is shifted at least, forwards or backwards: beyond the delays of a response, so that no
        shift leaves responses beside what evoked them. Keep it a small part of the run: near shifts score like the
        given order, and a null without many of them makes a test liberal (AR(1) noise of 0.8: at 5 %, 10 of 400
        samples reject 5.2 %, 20 of 100 11.2 %).
    n_permutations : int
    seed : int or numpy.random.Generator

    Returns
    -------
    ndarray of int, shape (n_permutations, n)
        Different from each other and from the given order. The shift of each run is uniform over those allowed.

    Raises
    ------
    ValueError
        Runs whose samples are not neighbours, a run too short to be shifted that far, or fewer different shifts than
        `n_permutations`: a single run of m samples has ``m - 2 * min_shift + 1``, several have the product of theirs.
    """
    if min_shift < 1:
        raise ValueError(f"min_shift={min_shift}; expected at least 1 sample, as a shift by 0 is the given order.")
    stretches = list(_stretches(_labels(n, runs, "runs")))
    lengths = [run.stop - run.start for run in stretches]
    choices = [length - 2 * min_shift + 1 for length in lengths]
    if min(choices) < 1:
        raise ValueError(
            f"runs holds a run of {min(lengths)} samples, too short to be shifted by min_shift={min_shift} in either "
            f"direction; expected at least {2 * min_shift} samples. Take a smaller min_shift, or leave the run out."
        )
    n_distinct = math.prod(choices)
    _check_enough(n_distinct, n_permutations, f"circular shifts of at least {min_shift} samples")
    rng = np.random.default_rng(seed)
    if n_distinct < 2**62:
        drawn = np.stack(np.unravel_index(rng.choice(n_distinct, n_permutations, replace=False), choices))
    else:  # so many that the same one is never drawn twice
        drawn = np.stack([rng.integers(one, size=n_permutations) for one in choices])
    orders = np.empty((n_permutations, n), int)
    for run, length, shift in zip(stretches, lengths, drawn + min_shift, strict=True):
        orders[:, run] = run.start + (np.arange(length) - shift[:, None]) % length
    return orders


def _labels(n: int, labels: ArrayLike | None, argument: str) -> np.ndarray:
    """The label of each row as a number, in the order of first appearance; one for all by default."""
    if n < 1:
        raise ValueError(f"n={n}; expected the number of rows, at least 1.")
    if labels is None:
        return np.zeros(n, int)
    given = np.asarray(labels)
    if given.shape != (n,):
        raise ValueError(f"{argument} has shape {given.shape}; expected one label for each of the {n} rows.")
    _, first, code = np.unique(given, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[code]


def _stretches(runs: np.ndarray) -> Iterator[slice]:
    """The rows of each run."""
    starts = np.flatnonzero(np.r_[True, runs[1:] != runs[:-1]])
    if len(starts) > runs.max() + 1:
        raise ValueError(
            f"runs changes {len(starts) - 1} times between {runs.max() + 1} runs; expected the samples of a run to be "
            "neighbours. Sort rows by run."
        )
    for start, stop in zip(starts, [*starts[1:], len(runs)], strict=True):
        yield slice(int(start), int(stop))


def _exchanged(piece: np.ndarray, group: np.ndarray, n_permutations: int, seed: Seed, what: str) -> np.ndarray:
    """Orders (permutation, row) in which pieces (row,) of consecutive rows change places within groups (row,)."""
    members = [np.flatnonzero(group == one) for one in range(group.max() + 1)]
    codes = [np.unique(piece[rows], return_inverse=True)[1] for rows in members]
    # 20! is more than anyone draws: the product is exact where it matters
    n_distinct = math.prod(math.factorial(min(int(code.max()) + 1, 20)) for code in codes)
    _check_enough(n_distinct - 1, n_permutations, f"orders of {what} besides the given one")
    rng = np.random.default_rng(seed)
    orders = np.empty((n_permutations, len(piece)), int)
    for rows, code in zip(members, codes, strict=True):
        place = rng.permuted(np.tile(np.arange(code.max() + 1), (n_permutations, 1)), axis=1)  # of every piece
        orders[:, rows] = rows[np.argsort(place[:, code], axis=1, kind="stable")]
    return orders


def _check_enough(n_distinct: int, n_permutations: int, what: str) -> None:
    if n_permutations < 1:
        raise ValueError(f"n_permutations={n_permutations}; expected at least 1.")
    if n_distinct < n_permutations:
        raise ValueError(
            f"n_permutations={n_permutations}: there are {n_distinct} {what}, so that p cannot be smaller than "
            f"1 / {n_distinct + 1}. Ask for {n_distinct} at most, or loosen the scheme."
        )
