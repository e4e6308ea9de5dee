"""Scores of units, averaged over regions, as rows of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .crossval import finite_mean, members_of
from .score import Score, normalise

# Interval and p value (low, high, p) of the mean over some units, given which.
Sureness = Callable[[np.ndarray], tuple[float, float, float]]


def region_scores(
    mean: Any,
    observed: np.ndarray,
    per_unit: np.ndarray,
    limit: np.ndarray,
    scored: np.ndarray,
    by: str | None,
    sureness: Sureness,
    **row: Any,
) -> Iterator[Score]:
    """One row for each region of each subject.

    Parameters
    ----------
    mean : Recording
        One presentation per stimulus.
    observed : ndarray, shape (stimulus, unit)
        Its responses.
    per_unit, limit : ndarray, shape (unit,)
        Scores, and their ceilings on the same scale; NaN where there is none.
    scored : ndarray of bool, shape (unit,)
        The units that count.
    by : str or None
        Column of units that names their region.
    sureness : callable
    **row
        All else that a `Score` holds.
    """
    for (subject, region), members in members_of(mean.units, by):
        counted = members & scored
        limited = counted & np.isfinite(limit)
        low, high, p = sureness(counted)
        ceiling = finite_mean(limit[limited])
        yield Score(
            subject=subject,
            region=region,
            score=finite_mean(per_unit[counted]),
            ceiling=ceiling,
            normalised=normalise(finite_mean(per_unit[limited]), ceiling),
            ci_low=low,
            ci_high=high,
            p=p,
            n_units=int(counted.sum()),
            n_stimuli=int(np.isfinite(observed[:, members]).any(1).sum()),
            **row,
        )
