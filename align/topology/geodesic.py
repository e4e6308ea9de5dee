"""The geodesic transform: dissimilarities as lengths of paths over short steps."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import squareform

from ...datasets.errors import unknown
from ...datasets.rdms import n_stimuli_of
from ..compare import as_vectors
from .paths import percolates, shortest_paths
from .transforms import (
    THRESHOLDS,
    Placed,
    Stack,
    average_ranks,
    between,
    check_thresholds,
    like,
    place,
    unit_scaled,
    warn_constant,
)

VARIANTS = ("two-step", "p-shortest", "k-nearest")
ZERO_EDGES = ("keep", "drop")
UNREACHABLE = ("nan", "max")
# Ranks are evenly spaced, so many paths are equally long; they must tie whatever the order in which they were summed.
DECIMALS = 12
# How an RDM gets edges.
_MEND = {"two-step": "Raise upper", "p-shortest": "Raise p", "k-nearest": "Raise k"}


def rgdm(
    rdms: Stack,
    lower: float = 0.0,
    upper: float = 1.0,
    variant: str = "two-step",
    threshold: str = "rank-quantile",
    zero_edges: str = "keep",
    unreachable: str = "nan",
    *,
    p: float = 0.05,
    k: int | None = None,
    ranked: bool = False,
) -> Stack:
    """Representational geodesic-distance matrix: the shortest path over edges between similar stimuli.

    Parameters
    ----------
    rdms : RDMs, or array of shape (rdm, pair) or (pair,)
        Left as they are; each is transformed on its own. A pair that is NaN has no edge and stays NaN.
    lower, upper : float
        Thresholds of the two-step variant, as in `rgtm`.
    variant : str
        Which pairs are joined by an edge, and its length:

        ================  ===================================================================================
        ``"two-step"``    pairs that `rgtm` puts below 1, with its values as lengths; at (0, 1) all pairs but
                          the most dissimilar
        ``"p-shortest"``  pairs up to the quantile `p` of the dissimilarities
        ``"k-nearest"``   pairs of which one is among the `k` nearest stimuli of the other, whichever comes
                          first in the RDM; ties with the k-th nearest are all kept
        ================  ===================================================================================

        Lengths of the last two are ranks ("rank-quantile") or dissimilarities ("value-quantile"), scaled to [0, 1].
    threshold : str
        See `rgtm`; "absolute" only for "two-step".
    zero_edges : {"keep", "drop"}
        What a pair of length zero is: stimuli in one place, or not joined at all. "drop" is what networkx makes of
        a matrix, and with it the code of Lin & Kriegeskorte and rsatoolbox; with ``lower > 0`` it removes the most
        similar pairs from the graph, so it is another statistic.
    unreachable : {"nan", "max"}
        A pair that no path joins becomes NaN, and one warning tells their share; or it becomes the greatest distance
        within its RDM (with `ranked`: all of them share the last ranks, as in the authors' code). NaN pairs are left
        out of a comparison, which then rests on the well connected stimuli alone.
    p : float
        Between 0 and 1.
    k : int
        At least 1, and less than the number of stimuli.
    ranked : bool
        Return ranks of the geodesic distances, from 1, ties averaged.

    Returns
    -------
    RDMs or ndarray of float64, of the shape of `rdms`
        To twelve decimals, so that paths of one length tie.

    Warns
    -----
    UserWarning
        Once for each: RDMs whose zero edges join all stimuli, so that every distance is 0 (`lower` is too high for
        geodesics); unreachable pairs made NaN; constant RDMs made NaN; with
        unreachable="max", RDMs without any edge made NaN.

    Raises
    ------
    ValueError
        For unknown names, thresholds that cannot be (see `rgtm`), or thresholds for a variant without them.

    References
    ----------
    Lin & Kriegeskorte (2024), PNAS 121:e2317881121.
    """
    graph = Graph(lower, upper, variant, threshold, zero_edges, p, k)
    if unreachable not in UNREACHABLE:
        raise ValueError(unknown("unreachable", unreachable, UNREACHABLE))
    vectors = as_vectors(rdms, "rdms")
    graph.check_size(n_stimuli_of(vectors.shape[1]))
    lengths, collapsed = geodesics(place(vectors, threshold), graph)
    values = reached(lengths, unreachable, ranked)
    warn_constant(vectors, lengths)
    known = ~np.isnan(lengths)
    edgeless = known.any(1) & (np.isinf(lengths) == known).all(1)
    if edgeless.any() and unreachable == "max":
        values[edgeless] = np.nan  # ranked, all would tie
        warnings.warn(
            f"{edgeless.sum()} of {len(vectors)} RDMs are NaN: none of their pairs is an edge, so they have no "
            f"greatest distance. {_MEND[variant]}" + (", or take zero_edges='keep'." if zero_edges == "drop" else "."),
            stacklevel=2,
        )
    if collapsed.any():
        warnings.warn(
            f"all geodesic distances of {collapsed.sum()} of {len(vectors)} RDMs are 0: the pairs at length zero join "
            f"all stimuli. Lower the threshold (lower={lower:g}), or zero_edges='drop' leaves these pairs out.",
            stacklevel=2,
        )
    lost = np.isinf(lengths).sum()
    if lost and unreachable == "nan":
        warnings.warn(
            f"{lost / known.sum():.1%} of the pairs in {np.isinf(lengths).any(1).sum()} of {len(vectors)} RDMs are "
            "NaN: no path joins them. Join more pairs, or unreachable='max' puts them at the greatest distance.",
            stacklevel=2,
        )
    return like(rdms, values, graph.label + ("-ranked" if ranked else ""))


@dataclass(frozen=True)
class Graph:
    """Which pairs are edges, and how long; the arguments of `rgdm`, checked."""

    lower: float
    upper: float
    variant: str = "two-step"
    threshold: str = "rank-quantile"
    zero_edges: str = "keep"
    p: float = 0.05
    k: int | None = None

    def __post_init__(self) -> None:
        check_thresholds(self.lower, self.upper, self.threshold)
        for argument, value, known in (
            ("variant", self.variant, VARIANTS),
            ("zero_edges", self.zero_edges, ZERO_EDGES),
        ):
            if value not in known:
                raise ValueError(unknown(argument, value, known))
        if self.variant == "two-step":
            return
        if (self.lower, self.upper) != (0.0, 1.0):
            raise ValueError(
                f"lower={self.lower}, upper={self.upper} are thresholds of variant='two-step'; "
                f"variant={self.variant!r} has none."
            )
        if self.threshold == "absolute":
            raise ValueError(f"threshold='absolute' is for variant='two-step'; found variant={self.variant!r}.")
        if self.variant == "p-shortest" and not 0 < self.p < 1:
            raise ValueError(f"p={self.p}; expected a share of the pairs, between 0 and 1.")

    def check_size(self, n_stimuli: int) -> None:
        """Raise ValueError for a `k` that so many stimuli do not have."""
        if self.variant != "k-nearest":
            return
        if self.k is None:
            raise ValueError("k is missing; variant='k-nearest' needs the number of neighbours.")
        if not 1 <= self.k < n_stimuli:
            raise ValueError(f"k={self.k} neighbours with {n_stimuli} stimuli; expected 1 to {n_stimuli - 1}.")

    @property
    def label(self) -> str:
        """Short text for the method of the transformed RDMs."""
        details = {
            "two-step": f"{self.lower:g},{self.upper:g}",
            "p-shortest": f"{self.variant} {self.p:g}",
            "k-nearest": f"{self.variant} {self.k}",
        }
        label = f"rgdm({details[self.variant]})"
        if self.threshold != THRESHOLDS[0]:
            label += f"-{self.threshold}"
        return label + ("-drop" if self.zero_edges == "drop" else "")


def geodesics(placed: Placed, graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """Geodesic distances (rdm, pair), inf where there is no path and NaN where unknown, without any warning.

    Also which RDMs (rdm,) have collapsed to 0 because their edges of length zero join all stimuli.
    """
    n = n_stimuli_of(placed.values.shape[1])
    if graph.variant == "two-step":
        weights = between(placed.values, placed.cut(graph.lower), placed.cut(graph.upper))
        edges = weights < 1
    else:
        weights = unit_scaled(placed)
        # NaN compare as False, so an unknown pair is no edge.
        edges = (
            placed.values <= placed.cut(graph.p)
            if graph.variant == "p-shortest"
            else _nearest(weights, n, graph.k or 0)
        )
    if graph.zero_edges == "drop":
        edges = edges & (weights > 0)
    lengths = np.full(weights.shape, np.nan)
    collapsed = np.zeros(len(weights), bool)
    for k, (weight, edge) in enumerate(zip(weights, edges, strict=True)):
        known = ~np.isnan(weight)
        if not known.any():
            continue
        in_place = edge & (weight == 0)
        collapsed[k] = np.count_nonzero(in_place) >= n - 1 and percolates(squareform(in_place, checks=False))
        if collapsed[k]:
            lengths[k, known] = 0
        else:
            paths = shortest_paths(squareform(weight, checks=False), squareform(edge, checks=False))
            lengths[k, known] = np.round(squareform(paths, checks=False)[known], DECIMALS)
    return lengths, collapsed


def reached(lengths: np.ndarray, unreachable: str, ranked: bool, counts: np.ndarray | None = None) -> np.ndarray:
    """Geodesic distances, or their ranks, with the policy for pairs that no path joins."""
    endless = np.isinf(lengths)
    if ranked:
        values = average_ranks(lengths, counts)
    else:
        finite = np.where(np.isfinite(lengths), lengths, -np.inf).max(1, keepdims=True)
        values = np.where(endless, np.where(np.isfinite(finite), finite, np.nan), lengths)
    return np.where(endless, np.nan, values) if unreachable == "nan" else values


def _nearest(weights: np.ndarray, n: int, k: int) -> np.ndarray:
    """Pairs (rdm, pair) of which one is among the `k` nearest of the other."""
    edges = np.zeros(weights.shape, bool)
    for edge, weight in zip(edges, weights, strict=True):
        matrix = squareform(weight, checks=False)
        matrix[np.isnan(matrix)] = np.inf
        np.fill_diagonal(matrix, np.inf)
        farthest = np.partition(matrix, k - 1, axis=1)[:, k - 1 : k]
        near = (matrix <= farthest) & np.isfinite(matrix)
        edge[:] = squareform(near | near.T, checks=False)
    return edges
