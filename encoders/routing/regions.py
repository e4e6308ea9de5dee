"""Which regions a unit belongs to, and units grouped by the regions they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...datasets.errors import unknown

UNLABELLED = "none"
OVERLAPS = ("mean", "sum", "first")


@dataclass(frozen=True, eq=False)
class Patterns:
    """Units that belong to the same regions, side by side.

    Attributes
    ----------
    combine : ndarray of float32, shape (pattern, region), or None
        The token of a pattern is ``combine @ tokens`` of the regions; None where each has a region of its own.
    counts : ndarray of float32, shape (pattern,)
        How often the bias of a unit counts.
    order : ndarray of int, shape (unit,)
        Units pattern by pattern.
    sizes : list of int, length pattern
        Number of units of each pattern.
    """

    combine: np.ndarray | None
    counts: np.ndarray
    order: np.ndarray
    sizes: list[int]

    def rows(self, first: int, last: int) -> np.ndarray:
        """Rows of `combine`, shape (last - first, region)."""
        if self.combine is not None:
            return self.combine[first:last]
        return (np.arange(first, last)[:, None] == np.arange(len(self.sizes))).astype(np.float32)

    def mixing(self) -> Tensor | None:
        """`combine` as a tensor."""
        return None if self.combine is None else torch.from_numpy(self.combine)

    @property
    def members(self) -> list[np.ndarray]:
        """Units of each pattern."""
        return np.split(self.order, np.cumsum(self.sizes)[:-1])


def region_mask(regions: Any, units: pd.DataFrame | None, n_units: int) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the regions and which units lie in them.

    Parameters
    ----------
    regions : str, array of labels, or array or DataFrame of bool
        A column of `units`; the label of each unit; or whether each unit (column) lies in each region (row), which a
        DataFrame names by its index.
    units : DataFrame or None
        A row for each unit. Without it, a column's name makes all units one region, "all".
    n_units : int

    Returns
    -------
    names : tuple of str, length region
        In the order in which they appear; units without a region (NaN, None, "") share a last one, "none".
    mask : ndarray of bool, shape (region, unit)

    Raises
    ------
    ValueError
        If there is no such column, lengths do not match, a named region holds no unit, or names are not unique.
    """
    if isinstance(regions, str):
        if units is None:
            return ("all",), np.ones((1, n_units), bool)
        if regions not in units:
            raise ValueError(
                f"{unknown('column of the units', regions, map(str, units.columns))}; or pass regions as one label "
                "for each unit"
            )
        regions = units[regions]
    if isinstance(regions, pd.DataFrame):
        return _from_mask(regions.to_numpy(), [str(name) for name in regions.index], n_units)
    values = np.asarray(regions)
    if values.ndim == 2:
        return _from_mask(values, [str(i) for i in range(len(values))], n_units)
    if values.shape != (n_units,):
        raise ValueError(
            f"regions has shape {values.shape}; expected ({n_units},), a label for each unit of Y, or "
            f"(region, {n_units}) of bool, or the name of a column of the units"
        )
    missing = pd.isna(pd.Series(values, dtype=object)).to_numpy()
    labels = np.array([UNLABELLED if gone else str(label) for label, gone in zip(values, missing, strict=True)])
    labels[labels == ""] = UNLABELLED
    names = [name for name in pd.unique(labels) if name != UNLABELLED]
    if UNLABELLED in labels:
        names.append(UNLABELLED)
    return tuple(map(str, names)), labels[None] == np.array(names)[:, None]


def _from_mask(mask: np.ndarray, names: list[str], n_units: int) -> tuple[tuple[str, ...], np.ndarray]:
    if mask.shape[1] != n_units or not np.isin(mask, (0, 1)).all():
        raise ValueError(
            f"regions has shape {mask.shape} and dtype {mask.dtype}; expected bool of shape (region, {n_units}), a "
            "column for each unit of Y"
        )
    mask = mask.astype(bool)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"region {twice!r} stands in regions more than once; merge its rows")
    empty = [name for name, row in zip(names, mask, strict=True) if not row.any()]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(names)} regions have no units: {', '.join(empty[:5])}; leave their rows out"
        )
    if not mask.any(0).all():
        return (*names, UNLABELLED), np.vstack([mask, ~mask.any(0)])
    return tuple(names), mask


def patterns(mask: np.ndarray, overlap: str) -> Patterns:
    """Units grouped by their regions, under a rule for those that lie in several.

    Parameters
    ----------
    mask : ndarray of bool, shape (region, unit)
        Every unit lies in at least one.
    overlap : {"mean", "sum", "first"}
        The token of a unit is the mean of the tokens of its regions; their sum, and its bias counts as often (the
        published rule); or the token of the first of them in the order of the regions.

    Raises
    ------
    ValueError
        If the rule is unknown.
    """
    if overlap not in OVERLAPS:
        raise ValueError(unknown("overlap", overlap, OVERLAPS))
    if overlap == "first":
        mask = np.arange(len(mask))[:, None] == mask.argmax(0)
    rows, pattern = np.unique(mask.T[:, ::-1], axis=0, return_inverse=True)
    rows, pattern = rows[:, ::-1], pattern.reshape(-1)  # in the order of the regions where each unit has one
    n_regions = rows.sum(1)
    combine = np.ascontiguousarray(rows / n_regions[:, None] if overlap == "mean" else rows, np.float32)
    counts = n_regions if overlap == "sum" else np.ones(len(rows))
    return Patterns(
        None if np.array_equal(combine, np.eye(len(mask))) else combine,
        counts.astype(np.float32),
        np.argsort(pattern, kind="stable"),
        np.bincount(pattern, minlength=len(rows)).tolist(),
    )


def own_patterns(n_units: int) -> Patterns:
    """Every unit by itself."""
    return Patterns(None, np.ones(n_units, np.float32), np.arange(n_units), [1] * n_units)


def canonical_order(mask: np.ndarray) -> np.ndarray:
    """Regions ordered by their members alone, so that names and their order draw no other initial weights."""
    return np.lexsort(~mask[:, ::-1].T)
