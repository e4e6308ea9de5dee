"""The geo-topological transform: dissimilarities between a lower and an upper threshold."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.special import expit

from ...datasets.errors import unknown
from ...datasets.rdms import RDMs
from ..compare import as_vectors

THRESHOLDS = ("rank-quantile", "value-quantile", "absolute")
SHAPES = ("linear", "sigmoid")
Stack = TypeVar("Stack", RDMs, np.ndarray)


def rgtm(
    rdms: Stack,
    lower: float = 0.0,
    upper: float = 1.0,
    threshold: str = "rank-quantile",
    *,
    shape: str = "linear",
    slope: float = 10.0,
    centre: float = 0.5,
) -> Stack:
    """Representational geo-topological matrix: what is near becomes 0, what is far becomes 1.

    With thresholds t_l and t_u, found for each RDM on its own, a dissimilarity r becomes::

        0                         r <  t_l
        (r - t_l) / (t_u - t_l)   t_l <= r <= t_u
        1                         r >  t_u

    Where the two thresholds meet it is a step, the adjacency of a graph: 0 for ``r <= t``, 1 above.

    Parameters
    ----------
    rdms : RDMs, or array of shape (rdm, pair) or (pair,)
        Left as they are. A pair that is NaN stays NaN and takes no part in ranks and quantiles.
    lower, upper : float
        Quantiles of the pairs in [0, 1], or dissimilarities for ``threshold="absolute"``; ``lower <= upper``.
    threshold : str
        On which axis r lies, and what `lower` and `upper` mean there:

        ====================  ===============================================================================
        ``"rank-quantile"``   r is the rank of the dissimilarity (ties averaged) scaled to [0, 1]; thresholds
                              are quantiles of r, interpolated (Lin & Kriegeskorte 2024, their code)
        ``"value-quantile"``  r is the dissimilarity; thresholds are its quantiles
        ``"absolute"``        r is the dissimilarity; thresholds are dissimilarities
        ====================  ===============================================================================
    shape : {"linear", "sigmoid"}
        "sigmoid" is ``1 / (1 + exp(-slope * (r - centre)))``, with r scaled to [0, 1] unless "absolute"; it has
        no thresholds.
    slope, centre : float
        Of the sigmoid.

    Returns
    -------
    RDMs or ndarray of float64, of the shape of `rdms`
        Values in [0, 1]. With quantiles (0, 1) of ranks it is the rank-transformed RDM. An RDM that is constant
        has no order: it becomes NaN (unless "absolute"), and one warning counts these.

    Raises
    ------
    ValueError
        For unknown names, ``lower > upper``, quantiles outside [0, 1], or thresholds beside a sigmoid.

    Notes
    -----
    Quantiles are taken per RDM, so a stack is transformed as its members are alone.

    References
    ----------
    Lin & Kriegeskorte (2024), PNAS 121:e2317881121.
    """
    if shape not in SHAPES:
        raise ValueError(unknown("shape", shape, SHAPES))
    check_thresholds(lower, upper, threshold)
    if shape == "sigmoid" and (lower, upper) != (0.0, 1.0):
        raise ValueError(
            f"lower={lower}, upper={upper} have no meaning for shape='sigmoid'; leave them out, set slope and centre."
        )
    vectors = as_vectors(rdms, "rdms")
    placed = place(vectors, threshold)
    if shape == "sigmoid":
        values = expit(slope * (unit_scaled(placed) - centre))
        label = f"rgtm(sigmoid,{slope:g},{centre:g})"
    else:
        values = between(placed.values, placed.cut(lower), placed.cut(upper))
        label = f"rgtm({lower:g},{upper:g})"
    warn_constant(vectors, values)
    return like(rdms, values, label if threshold == THRESHOLDS[0] else f"{label}-{threshold}")


def check_thresholds(lower: float, upper: float, threshold: str) -> None:
    """Raise ValueError for thresholds that cannot be."""
    if threshold not in THRESHOLDS:
        raise ValueError(unknown("threshold", threshold, THRESHOLDS))
    for name, value in (("lower", lower), ("upper", upper)):
        if not np.isfinite(value):
            raise ValueError(f"{name}={value}; expected a finite number.")
    if lower > upper:
        raise ValueError(f"lower={lower} is above upper={upper}; swap them.")
    if threshold != "absolute" and not 0 <= lower <= upper <= 1:
        raise ValueError(
            f"lower={lower}, upper={upper} with threshold={threshold!r} are quantiles of the pairs and lie in [0, 1]; "
            "thresholds in the unit of the dissimilarities need threshold='absolute'."
        )


@dataclass(frozen=True)
class Placed:
    """A stack of RDMs on the axis that thresholds cut.

    Attributes
    ----------
    values : ndarray of shape (rdm, pair)
        NaN where a pair is unknown, and throughout an RDM without an order.
    ascending : list of ndarray
        Known values of every RDM in ascending order.
    upto : list of ndarray of int
        How many pairs, counted with their multiplicities, lie up to and with each of these.
    threshold : str
    """

    values: np.ndarray
    ascending: list[np.ndarray]
    upto: list[np.ndarray]
    threshold: str

    def cut(self, at: float | np.ndarray) -> np.ndarray:
        """Thresholds of every RDM, shape (rdm, threshold): the quantiles `at`, or `at` itself for "absolute"."""
        at = np.atleast_1d(np.asarray(at, np.float64))
        if self.threshold == "absolute":
            return np.tile(at, (len(self.values), 1))
        return np.stack([_quantiles(*one, at) for one in zip(self.ascending, self.upto, strict=True)])


def place(vectors: np.ndarray, threshold: str, counts: np.ndarray | None = None) -> Placed:
    """Vectors (rdm, pair) on the axis of `threshold`, each RDM on its own.

    `counts` (pair,) are multiplicities of the pairs in a resample of the stimuli, at least 1: ranks and quantiles are
    those of the RDM with every pair repeated that often.
    """
    counts = np.ones(vectors.shape[1], np.intp) if counts is None else counts
    values = np.full(vectors.shape, np.nan)
    ascending, upto = [], []
    for vector, value in zip(vectors, values, strict=True):
        known = np.flatnonzero(~np.isnan(vector))
        ordered = vector[known]
        order = np.argsort(ordered)
        ordered, pairs = ordered[order], known[order]
        cumulative = np.cumsum(counts[pairs])
        if threshold == "absolute":
            value[:] = vector
        elif len(ordered) and ordered[0] < ordered[-1]:
            if threshold == "rank-quantile":
                ordered = _middle_ranks(ordered, cumulative)
                ordered = (ordered - ordered[0]) / (ordered[-1] - ordered[0])
            value[pairs] = ordered
        else:
            ordered = ordered[:0]
        ascending.append(ordered)
        upto.append(cumulative)
    return Placed(values, ascending, upto, threshold)


def average_ranks(vectors: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """Ranks from 1 within each row, ties averaged and infinities last; NaN stay NaN.

    With `counts` (column,), ranks among the values repeated that often.
    """
    counts = np.ones(vectors.shape[1], np.intp) if counts is None else counts
    ranks = np.full(vectors.shape, np.nan)
    for vector, rank in zip(vectors, ranks, strict=True):
        known = np.flatnonzero(~np.isnan(vector))
        pairs = known[np.argsort(vector[known])]
        rank[pairs] = _middle_ranks(vector[pairs], np.cumsum(counts[pairs]))
    return ranks


def _middle_ranks(ordered: np.ndarray, cumulative: np.ndarray) -> np.ndarray:
    """Average rank of every one of these ascending values, of which `cumulative` lie up to and with each."""
    if not len(ordered):
        return np.empty(0)
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    upto = cumulative[last]
    before = np.concatenate([[0], upto[:-1]])
    return np.repeat((before + upto + 1) / 2, np.diff(last, prepend=-1))


def _quantiles(ascending: np.ndarray, upto: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Quantiles with linear interpolation of ascending values with multiplicities; NaN of none."""
    if not len(ascending):
        return np.full(len(at), np.nan)
    last = int(upto[-1]) - 1
    position = last * at
    # 0.7 * 90 falls short of 63: a quantile that is a pair must be that pair, or a step would lose it.
    nearest = np.round(position)
    position = np.where(np.abs(position - nearest) < 1e-9 * np.maximum(1, position), nearest, position)
    below = np.floor(position)
    low, high = ascending[np.searchsorted(upto, [below, np.minimum(below + 1, last)], side="right")]
    return low + (high - low) * (position - below)


def between(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """0 below `low`, 1 above `high` and linear between; a step where the two (rdm, 1) are equal. NaN stay NaN."""
    width = high - low
    step = ~(width > 0)[:, 0]
    ramp = values - low
    ramp /= np.where(width > 0, width, 1.0)
    np.clip(ramp, 0.0, 1.0, out=ramp)
    ramp[step] = np.where(np.isnan(values[step]), np.nan, values[step] > high[step])
    return ramp


def unit_scaled(placed: Placed) -> np.ndarray:
    """Values scaled to [0, 1] per RDM; as they are for "absolute"."""
    if placed.threshold == "absolute":
        return placed.values
    low, high = placed.cut(0.0), placed.cut(1.0)
    return (placed.values - low) / (high - low)


def warn_constant(vectors: np.ndarray, values: np.ndarray) -> None:
    """One warning that counts the RDMs that were lost for being constant."""
    lost = int((np.isnan(values).all(1) & ~np.isnan(vectors).all(1)).sum())
    if lost:
        warnings.warn(
            f"{lost} of {len(values)} RDMs are NaN: all their dissimilarities are equal, so they have no order.",
            stacklevel=3,
        )


def like(rdms: Stack, vectors: np.ndarray, label: str) -> Stack:
    """`vectors` as what came in; the method of RDMs gains `label`."""
    if isinstance(rdms, RDMs):
        method = "-".join(filter(None, (rdms.method, label)))
        return RDMs(vectors, rdms.stimulus_ids, rdms.table, method, rdms.stimuli)
    return vectors[0] if np.ndim(rdms) == 1 else vectors
