"""Many tests at once: false discoveries, family-wise error, and clusters of neighbouring units."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import coo_array, csr_array, issparse
from scipy.stats import t as student

from ..datasets.errors import unknown

FDR_METHODS = ("bh", "by")
ALTERNATIVES = ("greater", "less", "two-sided")
_BLOCK = 2**22  # values of a null held in float64 at a time
_TFCE_STEP = 0.2  # in units of t


def fdr(p: ArrayLike, method: str = "bh") -> np.ndarray:
    """P values adjusted for the false discovery rate (q values).

    Units with ``q <= 0.05`` hold 5 % false discoveries at most, in expectation.

    Parameters
    ----------
    p : array_like, any shape
        All of it is one family. NaN marks units that were not tested: they do not count.
    method : {"bh", "by"}
        Benjamini & Hochberg (1995), J R Stat Soc B 57:289, for p values that are independent or depend on each other
        positively, as those of neighbouring voxels do; or Benjamini & Yekutieli (2001), Ann Stat 29:1165, for any
        dependence, which costs a factor of about the logarithm of the number of tests.

    Returns
    -------
    ndarray of float64, of the shape of `p`
        NaN where `p` is NaN.

    Raises
    ------
    ValueError
        An unknown method, or values that are no probabilities.

    Examples
    --------
    >>> fdr([0.01, 0.04, 0.03, float("nan")]).tolist()
    [0.03, 0.04, 0.04, nan]
    """
    if method not in FDR_METHODS:
        raise ValueError(unknown("method", method, FDR_METHODS))
    p = np.asarray(p, np.float64)
    outside = int(((p < 0) | (p > 1)).sum())
    if outside:
        raise ValueError(f"p holds {outside} values outside 0 to 1; expected p values, with NaN where there is none.")
    tested = ~np.isnan(p)
    values = p[tested]
    order = np.argsort(values)
    rank = np.arange(1, len(values) + 1)
    inflation = np.sum(1 / rank) if method == "by" else 1.0
    adjusted = values[order] * len(values) / rank * inflation
    adjusted = np.minimum(np.minimum.accumulate(adjusted[::-1])[::-1], 1)
    found = np.empty_like(values)
    found[order] = adjusted
    q = np.full(p.shape, np.nan)
    q[tested] = found
    return q


def max_statistic_p(observed: ArrayLike, null: ArrayLike, studentise: bool = False) -> np.ndarray:
    """Family-wise p values: how often the largest of all units' null scores reaches a unit's score.

    One-sided, as `permutation_p`: one plus the number of draws whose maximum is at least the score, over one plus
    their number (Westfall & Young 1993; Nichols & Holmes 2002, Hum Brain Mapp 15:1).

    Parameters
    ----------
    observed : array_like, shape (unit,)
        Scores. NaN marks units that could not be scored: they belong to no family.
    null : array_like, shape (draw, unit)
        Scores under the null; all units of a draw come from the same shuffle, so that what they share stays shared.
        A NaN of a unit that was scored counts as larger than every score, which can only make p larger; one warning
        counts such draws.
    studentise : bool
        Measure scores of each unit in standard deviations of its null. Without it, the units with the widest null set
        the threshold of all: voxels with slow noise, or with few responses. The mean and standard deviation are those
        of the draws and the score together, which keeps the test exact. Not for a null of a few dozen draws.

    Returns
    -------
    ndarray of float64, shape (unit,)
        NaN where `observed` is NaN.

    Raises
    ------
    ValueError
        Shapes that do not fit together.
    """
    observed, null = np.asarray(observed, np.float64), np.asarray(null)
    if observed.ndim != 1 or null.ndim != 2 or null.shape[1:] != observed.shape or not len(null):
        raise ValueError(
            f"observed has shape {observed.shape} and null {null.shape}; expected (unit,) and (draw, unit) with the "
            "same units."
        )
    units = np.flatnonzero(~np.isnan(observed))
    score = observed.copy()
    largest = np.full(len(null), -np.inf)
    undefined = np.zeros(len(null), bool)
    size = max(1, _BLOCK // len(null))
    for start in range(0, len(units), size):
        block = units[start : start + size]
        draws = null[:, block].astype(np.float64)
        missing = np.isnan(draws)
        undefined |= missing.any(1)
        if studentise:
            n = 1 + (~missing).sum(0)
            mean = (np.nansum(draws, 0) + observed[block]) / n
            squares = np.nansum((draws - mean) ** 2, 0) + (observed[block] - mean) ** 2
            spread = np.sqrt(squares / n)
            spread = np.where(spread > 1e-12 * (1 + np.abs(mean)), spread, np.inf)  # all the same: no evidence
            score[block] = (observed[block] - mean) / spread
            draws = (draws - mean) / spread
        largest = np.maximum(largest, np.where(missing, np.inf, draws).max(1))
    if undefined.any():
        warnings.warn(
            f"{int(undefined.sum())} of {len(null)} draws hold NaN for units that were scored; they count as larger "
            "than every score.",
            stacklevel=2,
        )
    rounding = 1e-12 * (1 + np.abs(score))  # a shuffle that changes nothing must count as equal
    reached = len(null) - np.searchsorted(np.sort(largest), score - rounding, side="left")
    return np.where(np.isnan(observed), np.nan, (1 + reached) / (1 + len(null)))


def cluster_p(
    maps: ArrayLike,
    adjacency: Any = None,
    threshold: float | str = 0.001,
    alternative: str = "greater",
    n_permutations: int = 1000,
    seed: int | np.random.Generator = 0,
) -> np.ndarray:
    """Family-wise p values over subjects of clusters of neighbouring units, or of threshold-free clusters.

    A t statistic over subjects per point; points beyond a threshold that are neighbours form a cluster, whose mass is
    the sum of its t; the signs of whole subjects are flipped, and masses are compared with the largest of each flip
    (Nichols & Holmes 2002; Maris & Oostenveld 2007, J Neurosci Methods 164:177). Computed by `mne.stats`.

    Parameters
    ----------
    maps : array_like, shape (subject, unit) or (subject, unit, time) or (subject, ...)
        What is symmetric around zero under the null: scores minus chance, or differences between two models. NaN,
        e.g. outside a brain, and points that are the same in all subjects are left out: they have no p and connect
        nothing.
    adjacency : sparse or dense array, shape (unit, unit), optional
        Not zero where two units are neighbours: of sensors from `mne.channels.find_ch_adjacency`, of a surface from
        `mne.spatial_tris_adjacency` or `mne.spatial_src_adjacency`, of voxels from `grid_adjacency`. Along further
        axes (time, frequency), successive points of one unit are neighbours. By default, all axes after the first are
        regular grids: right for (subject, time) and (subject, x, y, z), not for an axis of units in any order.
    threshold : float or "tfce"
        Uncorrected p beyond which points form clusters, or threshold-free cluster enhancement (Smith & Nichols 2009,
        NeuroImage 44:83), which needs none and tells points apart, but takes some ten to fifty times as long.
    alternative : {"greater", "less", "two-sided"}
        Scores are usually asked whether they are above zero.
    n_permutations : int
        Random sign flips, or all of them where there are no more than these. With n subjects there are 2**n, and no p
        is below 2 / 2**n: fewer than six subjects cannot reach 0.05.
    seed : int or numpy.random.Generator

    Returns
    -------
    ndarray of float64, of the shape of one subject's map
        Every point of a cluster has the p of the cluster (of TFCE: its own), points outside of clusters have 1. A
        small p says that there is something in the cluster, not at each of its points. NaN, with one warning that
        counts them, for points left out.

    Raises
    ------
    ValueError
        Shapes that do not fit together, an unknown alternative, or a threshold that is no p value.
    """
    from mne.stats import combine_adjacency, permutation_cluster_1samp_test

    maps = np.asarray(maps, np.float64)
    if maps.ndim < 2 or len(maps) < 2:
        raise ValueError(f"maps has shape {maps.shape}; expected (subject, unit, ...) with at least two subjects.")
    if alternative not in ALTERNATIVES:
        raise ValueError(unknown("alternative", alternative, ALTERNATIVES))
    if alternative == "less":
        maps = -maps
    tail = 0 if alternative == "two-sided" else 1
    shape = maps.shape[1:]
    graph = combine_adjacency(*shape) if adjacency is None else combine_adjacency(_links(adjacency, shape), *shape[1:])
    points = maps.reshape(len(maps), -1)
    p = np.full(points.shape[1], np.nan)
    kept = np.flatnonzero(np.isfinite(points).all(0) & (np.ptp(np.nan_to_num(points), axis=0) > 0))
    left_out = len(p) - len(kept)
    if left_out:
        warnings.warn(
            f"{left_out} of {len(p)} points of maps are left out: NaN in some or the same in all subjects.",
            stacklevel=2,
        )
    if len(kept):
        p[kept] = 1.0
        # MNE counts the unflipped maps among the permutations, and one-sided tests of all flips count them twice (and
        # leave out the flip of everybody). The two copies differ by rounding, so that p is counted here.
        seeded = "rng" if "rng" in inspect.signature(permutation_cluster_1samp_test).parameters else "seed"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No clusters found")
            statistic, clusters, _, null = permutation_cluster_1samp_test(
                points[:, kept],
                threshold=_forming(threshold, tail, len(maps)),
                n_permutations=n_permutations + 1,
                tail=tail,
                adjacency=coo_array(csr_array(graph)[kept][:, kept]),
                out_type="indices",
                verbose="ERROR",
                **{seeded: int(np.random.default_rng(seed).integers(2**31))},
            )
        masses = np.array([statistic[members].sum() for (members,) in clusters])
        for (members,), value in zip(clusters, _reached(masses, null, tail), strict=True):
            p[kept[members]] = value
    return p.reshape(shape)


def grid_adjacency(mask: Any) -> coo_array:
    """Which voxels of a mask share a face, for `cluster_p`.

    Parameters
    ----------
    mask : array of bool (or of 0 and 1) with one axis per direction, or mask image (NIfTI image or path)
        E.g. ``masker.mask_img_``. Voxels that are not zero are the units, in the order of ``array[mask]``, that of
        nilearn's maskers.

    Returns
    -------
    scipy.sparse.coo_array, shape (unit, unit)

    Raises
    ------
    ValueError
        An empty mask.
    """
    from mne.stats import combine_adjacency

    if isinstance(mask, str | Path) or hasattr(mask, "get_fdata"):
        from nilearn.image import get_data

        mask = get_data(mask)
    inside = np.asarray(mask) != 0
    if not inside.any():
        raise ValueError(f"mask of shape {inside.shape} is empty; expected the voxels that are units to be not zero.")
    voxels = np.flatnonzero(inside)
    return coo_array(csr_array(combine_adjacency(*inside.shape))[voxels][:, voxels])


def _reached(masses: np.ndarray, null: np.ndarray, tail: int) -> np.ndarray:
    """Share of the null's largest masses, the observed one among them, that are at least each mass."""
    if tail == 0:
        masses, null = np.abs(masses), np.abs(null)
    rounding = 1e-9 * (1 + masses)
    return (len(null) - np.searchsorted(np.sort(null), masses - rounding, side="left")) / max(len(null), 1)


def _links(adjacency: Any, shape: tuple[int, ...]) -> coo_array:
    """A symmetric 0/1 matrix of the neighbours given."""
    given = coo_array(adjacency if issparse(adjacency) else np.asarray(adjacency))
    if given.shape != (shape[0], shape[0]):
        raise ValueError(
            f"adjacency has shape {given.shape}; expected (unit, unit) {(shape[0], shape[0])} for maps of {shape[0]} "
            "units. For a volume, see grid_adjacency."
        )
    links = csr_array((given + given.T) != 0)
    return coo_array(links.astype(np.float64))


def _forming(threshold: float | str, tail: int, n_subjects: int) -> float | dict[str, float]:
    """The threshold as MNE takes it: a t value, or the steps of TFCE."""
    if threshold == "tfce":
        return {"start": 0.0, "step": _TFCE_STEP}
    if isinstance(threshold, str) or not 0 < threshold < 1:
        raise ValueError(f'threshold={threshold!r}; expected a p value between 0 and 1, e.g. 0.001, or "tfce".')
    return float(student.isf(threshold / (1 if tail else 2), n_subjects - 1))
