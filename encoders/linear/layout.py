"""Rows cut into atoms, and what is trained and tested on which of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .folds import Rows as FoldRows

Atoms = tuple[int, ...]


@dataclass(frozen=True)
class Trial:
    """One test of one training set: what is held out, and of which fold.

    Attributes
    ----------
    atoms : tuple of int
        The test rows.
    fold : int
        The outer fold that the score counts for.
    inner : bool
        Whether the score chooses a penalty for the fold, from rows that the fold trains on.
    """

    atoms: Atoms
    fold: int
    inner: bool


@dataclass(frozen=True)
class Layout:
    """Rows cut into atoms, the largest parts that every fold takes whole or not at all."""

    atoms: tuple[np.ndarray, ...]  # row numbers, of each atom
    trains: tuple[tuple[Atoms, tuple[Trial, ...]], ...]  # training sets, and what is tested on each


def layouts(folds: Sequence[FoldRows], n: int, nested: bool) -> list[Layout]:
    """One layout for all folds where they share atoms, as k-fold schemes do, else one for each fold."""
    if not folds:
        return [Layout((np.arange(n),), ())]
    whole = _layout(folds, range(len(folds)), n, nested)
    if len(whole.atoms) <= 2 * len(folds) + 2 or nested:
        return [whole]
    return [_layout(folds, [f], n, False) for f in range(len(folds))]


def _layout(folds: Sequence[FoldRows], chosen: Iterable[int], n: int, nested: bool) -> Layout:
    chosen = list(chosen)
    membership = np.zeros((n, 2 * len(chosen)), dtype=bool)
    for column, f in enumerate(chosen):
        train, test = folds[f]
        membership[train, 2 * column] = True
        membership[test, 2 * column + 1] = True
    first, atom = np.unique(membership, axis=0, return_index=True, return_inverse=True)[1:]
    rank = np.argsort(np.argsort(first))  # atoms in the order of their first rows
    atom = rank[np.ravel(atom)]
    signature = membership[np.sort(first)]
    by_train: dict[Atoms, list[Trial]] = {}
    sides = [
        (set(np.flatnonzero(signature[:, 2 * c])), set(np.flatnonzero(signature[:, 2 * c + 1])))
        for c in range(len(chosen))
    ]
    for f, (trained, tested) in zip(chosen, sides, strict=True):
        by_train.setdefault(_sorted(trained), []).append(Trial(_sorted(tested), f, inner=False))
    if nested:
        for f, (trained, tested) in zip(chosen, sides, strict=True):
            for g, (other_trained, other_tested) in zip(chosen, sides, strict=True):
                both, held_out = trained & other_trained, (other_tested - tested) & trained
                if f != g and both and held_out:
                    by_train.setdefault(_sorted(both), []).append(Trial(_sorted(held_out), f, inner=True))
    order = np.argsort(atom, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(atom))[:-1])
    return Layout(tuple(rows), tuple((train, tuple(trials)) for train, trials in by_train.items()))


def _sorted(atoms: set) -> Atoms:
    return tuple(sorted(int(a) for a in atoms))


def renumbered(layout: Layout) -> Layout:
    """The same atoms when rows are sorted by atom."""
    stops = np.cumsum([len(rows) for rows in layout.atoms])
    atoms = tuple(np.arange(stop - len(rows), stop) for stop, rows in zip(stops, layout.atoms, strict=True))
    return Layout(atoms, layout.trains)
