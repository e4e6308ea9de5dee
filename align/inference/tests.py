"""Tests of models against each other, against zero and against the ceiling."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student
from scipy.stats import wilcoxon

from ...datasets.errors import unknown
from ..multiple import fdr

TESTS = ("t", "bootstrap", "signed-rank")
CORRECTIONS = ("fdr", "bonferroni", "none")
# Comparisons in which unrelated RDMs do not score zero, so that a t test against zero is no test.
NULL_ELSEWHERE = ("cosine", "cosine-whitened", "bures", "riemannian")
_ROUNDING = 1e-12  # differences of similarities that are zero but for rounding


def bonferroni(p: ArrayLike) -> np.ndarray:
    """P values times the number of tests, at most 1: the chance of any false positive in the family.

    Parameters
    ----------
    p : array_like, any shape
        All of it is one family. NaN marks what was not tested: it does not count.

    Returns
    -------
    ndarray of float64, of the shape of `p`
        NaN where `p` is NaN.

    Raises
    ------
    ValueError
        Values that are no probabilities.

    Examples
    --------
    >>> bonferroni([0.01, 0.04, float("nan")]).tolist()
    [0.02, 0.08, nan]
    """
    p = np.asarray(p, np.float64)
    outside = int(((p < 0) | (p > 1)).sum())
    if outside:
        raise ValueError(f"p holds {outside} values outside 0 to 1; expected p values, with NaN where there is none.")
    return np.minimum(p * (~np.isnan(p)).sum(), 1)


def adjusted(p: np.ndarray, correction: str) -> np.ndarray:
    """P values corrected for their number by "fdr" (Benjamini & Hochberg), "bonferroni" or "none"."""
    if correction not in CORRECTIONS:
        raise ValueError(unknown("correction", correction, CORRECTIONS))
    if correction == "none":
        return p.copy()
    return fdr(p) if correction == "fdr" else bonferroni(p)


def t_p(difference: np.ndarray, variance: np.ndarray, dof: int | np.ndarray, two_sided: bool = True) -> np.ndarray:
    """P values of differences over their standard errors, by Student's t with `dof` degrees of freedom.

    Two-sided, or one-sided for a difference above zero. Where the difference is zero but for rounding, p is 1 (or 0.5
    one-sided) whatever its variance; any other difference without variance is NaN.
    """
    difference, variance = np.asarray(difference, np.float64), np.asarray(variance, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = np.where(variance > 0, difference / np.sqrt(variance), np.nan)
    t = np.where(np.abs(difference) <= _ROUNDING, 0.0, t)
    # The survival function keeps its digits where one minus the distribution function is zero.
    return 2 * student.sf(np.abs(t), dof) if two_sided else student.sf(t, dof)


def bootstrap_p(differences: np.ndarray) -> np.ndarray:
    """Two-sided p values of the columns: ``2 (1 + the fewer of samples at or below, at or above zero) / (1 + n)``.

    Parameters
    ----------
    differences : array of shape (n, column)
        NaN samples are left out; a column of NaN alone is NaN.
    """
    known = (~np.isnan(differences)).sum(0)
    fewer = np.minimum((differences <= _ROUNDING).sum(0), (differences >= -_ROUNDING).sum(0))
    return np.where(known > 0, np.minimum(2 * (1 + fewer) / (1 + known), 1), np.nan)


def signed_rank_p(differences: np.ndarray) -> np.ndarray:
    """Two-sided p values of Wilcoxon's signed-rank test over subjects, of the columns of (subject, column).

    NaN for a column that holds NaN, and for one subject, whose rank says nothing.
    """
    found = np.full(differences.shape[1], np.nan)
    if len(differences) < 2:
        return found
    differences = np.where(np.abs(differences) <= _ROUNDING, 0.0, differences)
    for k, column in enumerate(differences.T):
        if not np.isnan(column).any():
            found[k] = wilcoxon(column).pvalue if column.any() else 1.0
    return found
