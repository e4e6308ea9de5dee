"""Which rows train and which test, with every fold checked before it is used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold, KFold

Rows = tuple[np.ndarray, np.ndarray]


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
        If there are too few rows or groups, or if a fold is empty, overlaps or reaches outside X.
    """
    n = len(X)
    if isinstance(cv, (int, np.integer)) and not isinstance(cv, bool):
        what, available = ("rows", n) if groups is None else ("groups", len(np.unique(groups)))
        if not 2 <= cv <= available:
            raise ValueError(f"cv={cv}: the number of folds must lie between 2 and {available}, the number of {what}")
        cv = KFold(int(cv)) if groups is None else GroupKFold(int(cv))
    if isinstance(cv, str) or not (hasattr(cv, "split") or isinstance(cv, Iterable)):
        raise ValueError(f"cv={cv!r}: expected an int >= 2, a splitter or an iterable of (train, test) rows")
    pairs = list(cv.split(X, Y, groups)) if hasattr(cv, "split") else list(cv)
    if not pairs:
        raise ValueError("cv holds no fold; expected at least one pair of (train, test) rows")
    return [_checked_pair(pair, f"fold {i} of cv", n) for i, pair in enumerate(pairs)]


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
    return rows.astype(np.int64)
