"""Which rows train and which test, with every fold checked before it is used."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold, KFold

Rows = tuple[np.ndarray, np.ndarray]
FEWEST = {"r": 3, "r2": 2}  # test rows that a score needs: the correlation of two rows is 1 or -1, whatever they hold


def scored_folds(cv: Any, X: np.ndarray, Y: np.ndarray, groups: np.ndarray | None, score: str) -> list[Rows]:
    """Training and test rows of the folds that hold enough test rows for a score.

    Parameters
    ----------
    cv, X, Y, groups
        See `fold_rows`.
    score : {"r", "r2"}
        The correlation takes at least three test rows, R^2 two.

    Returns
    -------
    list of (train, test)
        Row numbers.

    Raises
    ------
    ValueError
        As `fold_rows`, or if every test fold has one row.

    Warns
    -----
    UserWarning
        Once, with the number of folds that are too short and left out; or where no fold has more than two rows, so that
        every correlation is 1 or -1.
    """
    folds = fold_rows(cv, X, Y, groups)
    fewest, sizes = FEWEST[score], [len(test) for _, test in folds]
    kept = [fold for fold, size in zip(folds, sizes, strict=True) if size >= fewest]
    if not kept and max(sizes) == 2:
        warnings.warn(
            f"cv={cv!r:.200} gives test folds of two rows at most, whose correlations are 1 or -1 whatever they hold; "
            "use fewer folds",
            UserWarning,
            stacklevel=4,
        )
        return [fold for fold, size in zip(folds, sizes, strict=True) if size == 2]
    if not kept:
        raise ValueError(
            f"cv={cv!r:.200} gives test folds of one row, where score={score!r} needs at least {fewest}; "
            "use fewer folds"
        )
    if len(kept) < len(folds):
        warnings.warn(
            f"{len(folds) - len(kept)} of {len(folds)} folds have fewer than {fewest} test rows, too few for "
            f"score={score!r}, and are left out",
            UserWarning,
            stacklevel=4,
        )
    return kept


def fold_rows(cv: Any, X: np.ndarray, Y: np.ndarray, groups: np.ndarray | None) -> list[Rows]:
    """Training and test rows of every fold.

    Parameters
    ----------
    cv : int, scikit-learn splitter, or iterable of (train, test)
        An int gives contiguous folds, or folds of whole groups where `groups` is given. Rows of an iterable
        are numbers or masks.
    X, Y : ndarray, shape (stimulus, ...)
        Handed on to the splitter.
    groups : ndarray, shape (stimulus,), or None
        Run, session or repeat of each row; a group is never split by an int or a group splitter.

    Returns
    -------
    list of (train, test)
        Row numbers.

    Raises
    ------
    ValueError
        If there are too few rows or groups, groups are missing, or a fold is empty, overlaps, holds a row twice or
        reaches outside X.
    """
    n = len(X)
    if isinstance(cv, (int, np.integer)) and not isinstance(cv, bool):
        what, available = ("rows", n) if groups is None else ("groups", len(np.unique(groups)))
        if not 2 <= cv <= available:
            raise ValueError(f"cv={cv}: the number of folds must lie between 2 and {available}, the number of {what}")
        cv = KFold(int(cv)) if groups is None else GroupKFold(int(cv))
    if isinstance(cv, str) or not (hasattr(cv, "split") or isinstance(cv, Iterable)):
        raise ValueError(f"cv={cv!r}: expected an int >= 2, a splitter or an iterable of (train, test) rows")
    pairs = _split(cv, X, Y, groups) if hasattr(cv, "split") else list(cv)
    if not pairs:
        found = "no fold, as a generator that is used up" if isinstance(cv, Iterator) else "no fold"
        raise ValueError(
            f"cv holds {found}; expected at least one pair of (train, test) rows, such as list(splitter.split(X))"
        )
    return [_checked_pair(pair, f"fold {i} of cv", n) for i, pair in enumerate(pairs)]


def _split(cv: Any, X: np.ndarray, Y: np.ndarray, groups: np.ndarray | None) -> list[Any]:
    try:
        return list(cv.split(X, Y, groups))
    except ValueError as error:
        if groups is None and "'groups' parameter" in str(error):
            raise ValueError(
                f"cv={cv!r} cuts folds of whole groups and there are none; pass groups=, one label for each row, to fit"
            ) from error
        raise


def _checked_pair(pair: Any, name: str, n: int) -> Rows:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(f"{name} is {pair!r:.60}; expected a pair of (train, test) rows")
    train, test = (
        _checked_rows(rows, f"{side} rows of {name}", n) for side, rows in zip(("training", "test"), pair, strict=True)
    )
    shared = np.intersect1d(train, test).size
    if shared:
        raise ValueError(f"{name} has {shared} rows in both training and test; keep the two apart")
    return train, test


def _checked_rows(given: Any, name: str, n: int) -> np.ndarray:
    rows = np.asarray(given)
    if rows.dtype == bool and rows.shape == (n,):
        rows = np.flatnonzero(rows)
    if rows.ndim != 1 or rows.size == 0 or rows.dtype.kind not in "iu":
        raise ValueError(
            f"{name} have shape {rows.shape} and dtype {rows.dtype}; "
            f"expected a non-empty vector of row numbers, or a mask of length {n} that is not empty"
        )
    if rows.min() < 0 or rows.max() >= n:
        raise ValueError(f"{name} reach from {rows.min()} to {rows.max()}; expected 0 to {n - 1}")
    rows = rows.astype(np.int64)
    times = np.bincount(rows)
    if times.max() > 1:
        raise ValueError(f"{name} hold row {times.argmax()} {times.max()} times; give each row once")
    return rows
