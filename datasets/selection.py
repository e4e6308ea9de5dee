"""Which rows are meant: by label, by fold, by held-out group. Shared by recordings, time series and RDMs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .errors import unknown


def as_list(value: object) -> list:
    """A value or a collection of values as a list; a string is one value."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return [value]
    return list(value)


def select_rows(criteria: Mapping[str, object], tables: Mapping[str, pd.DataFrame]) -> dict[str, np.ndarray]:
    """Rows of each table that meet all criteria, in table order.

    Parameters
    ----------
    criteria : mapping from column name to a value or a list of values
        A column that stands in several tables applies to each of them. Values are compared as they are, and
        where that finds nothing as text, so that ``session=1`` finds ``"1"``.
    tables : mapping from axis name to DataFrame

    Returns
    -------
    dict from axis name to ndarray of int
        Row positions that are left.

    Raises
    ------
    ValueError
        An unknown column or value (with the nearest known ones), or no row left.
    """
    keep = {axis: np.ones(len(table), dtype=bool) for axis, table in tables.items()}
    for key, value in criteria.items():
        holders = [axis for axis, table in tables.items() if key in table.columns]
        if not holders:
            columns = dict.fromkeys(str(column) for table in tables.values() for column in table.columns)
            raise ValueError(unknown("selection", key, columns, "Select by one of the columns."))
        wanted = as_list(value)
        missing = set(range(len(wanted)))
        for axis in holders:
            column = tables[axis][key]
            present = set(column.unique())
            text = column.astype(str)
            as_text = set(text.unique())
            exact = [position for position, one in enumerate(wanted) if one in present]
            loose = [p for p, one in enumerate(wanted) if one not in present and str(one) in as_text]
            missing -= {*exact, *loose}
            hit = column.isin([wanted[p] for p in exact]) | text.isin([str(wanted[p]) for p in loose])
            keep[axis] &= hit.to_numpy(dtype=bool)
        if missing:
            known = pd.unique(pd.concat([tables[axis][key] for axis in holders], ignore_index=True))
            raise ValueError(unknown(key, wanted[min(missing)], known))
    for axis, mask in keep.items():
        if len(mask) and not mask.any():
            raise ValueError(f"none of the {axis} meets {dict(criteria)!r} at once; loosen one of the criteria.")
    return {axis: np.flatnonzero(mask) for axis, mask in keep.items()}


def positions(index: object, length: int, argument: str) -> np.ndarray:
    """Turn a slice, mask, index or index array into non-negative row positions.

    Raises
    ------
    ValueError
        A mask of the wrong length, or a position outside ``[-length, length)``.
    """
    if index is None:
        return np.arange(length)
    if isinstance(index, slice):
        return np.arange(length)[index]
    array = np.atleast_1d(np.asarray(index))
    if array.size == 0:
        return np.zeros(0, dtype=np.intp)
    if array.dtype == bool:
        if array.shape != (length,):
            raise ValueError(f"{argument}: a mask of {array.size} values cannot index {length} rows.")
        return np.flatnonzero(array)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        found = f"{array.dtype} {array.shape}"
        raise ValueError(f"{argument} must be a slice, mask or 1-D integer array; found {found}.")
    outside = (array < -length) | (array >= length)
    if outside.any():
        raise ValueError(f"{argument}: position {array[outside][0]} is outside the {length} rows.")
    return np.where(array < 0, array + length, array).astype(np.intp)


def linked_groups(*labels: object) -> np.ndarray:
    """Smallest groups of rows such that rows which share any label share the group.

    Parameters
    ----------
    *labels : array-like of shape (row,)
        For instance the stimulus and the scene category of every presentation.

    Returns
    -------
    ndarray of int, shape (row,)
        Group of each row, numbered by first appearance.
    """
    codes = [pd.factorize(np.asarray(label), use_na_sentinel=False)[0] for label in labels]
    if len(codes) == 1:
        return codes[0]
    rows = np.arange(len(codes[0]))
    offset, columns = 0, []
    for code in codes:
        columns.append(code + len(rows) + offset)
        offset += int(code.max(initial=-1)) + 1
    size = len(rows) + offset
    head, tail = np.tile(rows, len(codes)), np.concatenate(columns)
    graph = coo_array((np.ones(head.size, dtype=bool), (head, tail)), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    return pd.factorize(component[: len(rows)])[0]


def group_folds(
    groups: np.ndarray, n: int, seed: int | np.random.Generator, what: str = "stimuli"
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Shuffled folds that keep groups whole and are as equal in rows as that allows.

    Groups are shuffled and then dealt, largest first, to the fold with the fewest rows.

    Returns
    -------
    list of (train, test)
        Ascending row positions.
    """
    sizes = np.bincount(groups)
    if not isinstance(n, int | np.integer) or n < 2 or n > len(sizes):
        raise ValueError(f"n={n!r} folds of {len(sizes)} {what} are impossible; give a number from 2 to that.")
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold_of = np.empty(len(sizes), dtype=np.intp)
    filled = np.zeros(n, dtype=np.int64)
    for group in order:
        fold_of[group] = filled.argmin()
        filled[fold_of[group]] += sizes[group]
    fold = fold_of[groups]
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(n)]


def holdout(groups: np.ndarray, test: float, seed: int | np.random.Generator) -> np.ndarray:
    """Mask of the rows held out: shuffled whole groups, as near to the fraction `test` as they allow."""
    if not 0 < test < 1:
        raise ValueError(f"test={test!r} must be a fraction between 0 and 1, for instance 0.2.")
    sizes = np.bincount(groups)
    if len(sizes) < 2:
        raise ValueError("train and test need two stimuli (or groups) that can be kept apart; found one.")
    order = np.random.default_rng(seed).permutation(len(sizes))
    filled = np.cumsum(sizes[order])[:-1]
    count = 1 + int(np.abs(filled - test * sizes.sum()).argmin())
    held = np.zeros(len(sizes), dtype=bool)
    held[order[:count]] = True
    return held[groups]
