"""Which region or layer an RDM belongs to, judged by the RDMs of the other subjects, over a grid of thresholds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ...datasets.errors import unknown
from ...datasets.rdms import RDMs
from ..inference import Seed, permutation_p
from .geodesic import UNREACHABLE, ZERO_EDGES, Graph, geodesics, reached
from .nearest import accuracy_of, assigned, inner_products, shuffled_within
from .transforms import between, check_thresholds, place

TYPES = ("local", "global", "geometry-sensitive", "topology-sensitive", "intermediate")
UNTRANSFORMED = "untransformed"
TRANSFORMS = ("rgtm", "rgdm")
RULES = ("centroid", "correlation")
TOLERANCE = 1e-3  # of a threshold, in sorting cells into types, as in the authors' code


def threshold_grid(step: float = 0.05) -> np.ndarray:
    """Cells (lower, upper) with ``0 <= lower < upper <= 1``, both multiples of `step`.

    Returns
    -------
    ndarray of shape (cell, 2)
        210 cells at the default step, the grid of Lin & Kriegeskorte (2024).
    """
    n = round(1 / step) if step > 0 else 0
    if n < 1 or abs(n * step - 1) > 1e-9:
        raise ValueError(f"step={step}; expected a fraction of 1 such as 0.05 or 0.1.")
    return np.array([(low / n, high / n) for low in range(n) for high in range(low + 1, n + 1)])


def descriptor_type(lower: float, upper: float) -> str:
    """Type of a descriptor by what its thresholds, as quantiles, leave between them.

    Tested in this order, with a tolerance of 0.001: "local" has a mean threshold of at most 0.2, "global" of at least
    0.8; "geometry-sensitive" spans at least 0.8; "topology-sensitive" lies within 0.4 to 0.6; the rest is
    "intermediate".

    References
    ----------
    Lin & Kriegeskorte (2024), PNAS 121:e2317881121.
    """
    middle, width = (lower + upper) / 2, upper - lower
    if middle <= 0.2 + TOLERANCE:
        return "local"
    if middle >= 0.8 - TOLERANCE:
        return "global"
    if width >= 0.8 - TOLERANCE:
        return "geometry-sensitive"
    if lower >= 0.4 - TOLERANCE and upper <= 0.6 + TOLERANCE:
        return "topology-sensitive"
    return "intermediate"


@dataclass(frozen=True, eq=False, repr=False)
class Identification:
    """How often RDMs are assigned to their own region or layer, per cell of a grid of thresholds.

    Attributes
    ----------
    table : pandas.DataFrame
        One row per cell: lower, upper, type, accuracy, ci_low, ci_high, chance, p. The p of a cell is not corrected for
        the number of cells.
    by_type : pandas.DataFrame
        One row for the untransformed RDMs and one per type of descriptor: type, n_cells, accuracy (mean over the
        cells), ci_low, ci_high, and difference (to the untransformed RDMs) with difference_low and difference_high.
    samples : ndarray of shape (n, cell)
        Accuracy in every bootstrap sample.
    confusion : ndarray of shape (cell, class, class)
        How many RDMs of a class (row) were assigned to a class (column); shared out where several were equally near.
    classes : list of str
    settings : dict
        transform, rule, threshold, over, by and further options; numbers of subjects, stimuli and resamples; seed.
    """

    table: pd.DataFrame
    by_type: pd.DataFrame
    samples: np.ndarray
    confusion: np.ndarray
    classes: list[str]
    settings: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """`table`, as a copy."""
        return self.table.copy()

    def summary(self) -> str:
        """What was identified how well, in words and one table."""
        s = self.settings
        best, n_best = best_cell(self.table)
        where = f"({best['lower']:g}, {best['upper']:g})"
        if n_best > 1:
            where = f"{n_best} of them, the first {where}"
        nearest = "Euclidean distance to the mean" if s["rule"] == "centroid" else "correlation with the mean"
        lines = [
            f"Identification of {len(self.classes)} values of {s['by']!r} across {s['n_subjects']} of {s['over']!r}, "
            f"leaving one out ({s['n_stimuli']} stimuli, {s['transform']}, {nearest} of the others)",
            "",
            _aligned(self.by_type),
            "",
            f"chance {self.table['chance'].iloc[0]:.3f}; best of {len(self.table)} cells: {best['accuracy']:.3f} at "
            f"{where}, picked on these data and so optimistic.",
        ]
        if s["bootstrap"]:
            lines.append(f"Intervals: 95 % over {s['over']}s and stimuli, {s['bootstrap']} bootstrap samples.")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.summary()

    def plot(self, ax: Any = None) -> Any:
        """Heat map of the accuracy over lower and upper thresholds, types of descriptors outlined.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure unless given.

        Returns
        -------
        matplotlib Figure
        """
        from .heat_map import heat_map

        return heat_map(self, ax)


def best_cell(table: pd.DataFrame) -> tuple[pd.Series, int]:
    """The first cell with the highest accuracy, and how many have it."""
    accuracy = table["accuracy"].fillna(-1).to_numpy(float)
    # Shares of as many RDMs are equal, whatever the order they were summed in.
    best = np.flatnonzero(accuracy >= accuracy.max() - 1e-9)
    return table.iloc[int(best[0])], len(best)


def identify(
    rdms: RDMs,
    by: str = "region",
    over: str = "subject",
    grid: np.ndarray | Sequence[tuple[float, float]] | None = None,
    transform: str = "rgtm",
    rule: str = "centroid",
    threshold: str = "rank-quantile",
    bootstrap: int = 0,
    permutations: int = 0,
    seed: Seed = 0,
    **transform_options: Any,
) -> Identification:
    """Identify the region (or layer) of every RDM of one subject from the RDMs of the others.

    Each subject (or instance of a network) is left out in turn. An RDM of it is assigned to the region whose mean over
    the other subjects is nearest, after the transform, with each pair of thresholds. The accuracy is over all RDMs.

    Parameters
    ----------
    rdms : RDMs
        With columns `by` and `over` in their table. RDMs of one subject and region (sessions) are averaged first. A
        subject may lack regions.
    by, over : str
        Column to be identified, at least two values, each in at least two subjects; and column left out.
    grid : array of shape (cell, 2), optional
        Thresholds (lower, upper), ``lower <= upper``; `threshold_grid` unless given.
    transform : {"rgtm", "rgdm"}
        The latter in its two-step variant.
    rule : {"centroid", "correlation"}
        Nearest by Euclidean distance to the mean RDM, or by correlation with it.
    threshold : str
        See `rgtm`.
    bootstrap : int
        Samples of subjects and stimuli, with replacement. Pairs of two copies of a stimulus are left out, every RDM is
        transformed anew, and all copies of a subject are left out together.
    permutations : int
        Shuffles of `by` within each subject, for a one-sided p.
    seed : int or numpy Generator
        Everything random comes from it.
    **transform_options
        zero_edges, unreachable and ranked of `rgdm`. Here the default is the authors': unreachable="max", ranked=True.

    Returns
    -------
    Identification
        With `.to_frame()`, `.summary()` and `.plot()`.

    Raises
    ------
    ValueError
        For unknown names, thresholds that cannot be, one region, one subject, a region in one subject only, constant
        RDMs, or fewer than three pairs known in all RDMs.

    Notes
    -----
    An RDM as near to several means counts as assigned to each of them in equal shares. Distances are over the pairs
    known in all RDMs. A resample leaves subjects out of the means and stimuli out of the RDMs, which costs accuracy
    that the data themselves do not lack: quantiles of the samples lie too low. Intervals are therefore the quantiles of
    their deviations from their median, added to the accuracy and cut at 0 and 1.

    References
    ----------
    Lin & Kriegeskorte (2024), PNAS 121:e2317881121.
    """
    if not isinstance(rdms, RDMs):
        raise ValueError(
            f"rdms is a {type(rdms).__name__}; expected RDMs with columns {by!r} and {over!r} in their table."
        )
    for argument, value, known in (("transform", transform, TRANSFORMS), ("rule", rule, RULES)):
        if value not in known:
            raise ValueError(unknown(argument, value, known))
    for argument, count in (("bootstrap", bootstrap), ("permutations", permutations)):
        if count < 0:
            raise ValueError(f"{argument}={count}; expected a number of resamples, or 0 for none.")
    cells = _checked_grid(grid, threshold)
    options = _checked_options(transform, transform_options)
    for_bootstrap, for_permutation = np.random.default_rng(seed).spawn(2)

    vectors, items, classes = _items(rdms, by, over)
    n_subjects, n = items.shape[0], rdms.n_stimuli
    everyone = np.ones(n_subjects, int)
    grams, collapsed = _grams(vectors, np.ones(vectors.shape[1], int), cells, transform, threshold, rule, options)
    if np.isnan(grams[-1]).any():
        raise ValueError(
            "fewer than three pairs of stimuli are known in all RDMs; .reorder(ids) to stimuli that all have."
        )
    credit = np.stack([assigned(gram, items, everyone, rule) for gram in grams])
    accuracy = accuracy_of(credit, everyone)

    samples = np.full((bootstrap, len(grams)), np.nan)
    for sample in samples:
        chosen = np.bincount(for_bootstrap.integers(n_subjects, size=n_subjects), minlength=n_subjects)
        copies = np.bincount(for_bootstrap.integers(n, size=n), minlength=n)
        first, second = np.triu_indices(n, 1)
        counts = copies[first] * copies[second]
        drawn = counts > 0
        resampled, _ = _grams(vectors[:, drawn], counts[drawn], cells, transform, threshold, rule, options)
        sample[:] = [accuracy_of(assigned(gram, items, chosen, rule), chosen) for gram in resampled]
    shuffled = np.full((permutations, len(grams)), np.nan)
    for null in shuffled:
        relabelled = shuffled_within(items, for_permutation)
        null[:] = [accuracy_of(assigned(gram, relabelled, everyone, rule), everyone) for gram in grams]

    p = permutation_p(accuracy, shuffled) if permutations else np.full(len(accuracy), np.nan)
    low, high = _interval(accuracy, samples)
    table = pd.DataFrame(
        {
            "lower": cells[:, 0],
            "upper": cells[:, 1],
            "type": [descriptor_type(*cell) if threshold != "absolute" else "" for cell in cells],
            "accuracy": accuracy[:-1],
            "ci_low": low[:-1],
            "ci_high": high[:-1],
            "chance": 1 / len(classes),
            "p": p[:-1],
        }
    )
    _warn(grams, collapsed, samples)
    return Identification(
        table=table,
        by_type=_by_type(table, accuracy, samples),
        samples=samples[:, :-1],
        confusion=np.nan_to_num(credit[:-1]).sum(1),
        classes=classes,
        settings={
            "transform": transform,
            "rule": rule,
            "threshold": threshold,
            "by": by,
            "over": over,
            **options,
            "n_subjects": n_subjects,
            "n_stimuli": n,
            "bootstrap": bootstrap,
            "permutations": permutations,
            "seed": int(seed) if isinstance(seed, (int, np.integer)) else None,
        },
    )


def _checked_grid(grid: Any, threshold: str) -> np.ndarray:
    cells = threshold_grid() if grid is None else np.asarray(grid, np.float64)
    if cells.ndim != 2 or cells.shape[1] != 2 or not len(cells):
        raise ValueError(
            f"grid has shape {cells.shape}; expected (cell, 2), the lower and upper threshold of each cell."
        )
    for lower, upper in cells:
        check_thresholds(lower, upper, threshold)
    return cells


def _checked_options(transform: str, options: dict[str, Any]) -> dict[str, Any]:
    known: dict[str, Any] = {"zero_edges": "keep", "unreachable": "max", "ranked": True} if transform == "rgdm" else {}
    for name in options:
        if name not in known:
            raise ValueError(unknown("transform_options", name, known, f"These are the options of {transform!r} here."))
    chosen = known | options
    for name, values in (("zero_edges", ZERO_EDGES), ("unreachable", UNREACHABLE)):
        if name in chosen and chosen[name] not in values:
            raise ValueError(unknown(name, chosen[name], values))
    return chosen


def _items(rdms: RDMs, by: str, over: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Vectors, the row of every subject and class (subject, class) or -1, and the names of the classes."""
    for argument, column in (("by", by), ("over", over)):
        if column not in rdms.table:
            raise ValueError(unknown(argument, column, rdms.table.columns))
        if rdms.table[column].isna().any():
            raise ValueError(
                f"{rdms.table[column].isna().sum()} RDMs have no value in column {column!r}; leave them out."
            )
    averaged = rdms.mean(by=[by, over])
    vectors = averaged.vectors.astype(np.float64)
    constant = np.array([len(np.unique(vector[~np.isnan(vector)])) < 2 for vector in vectors])
    if constant.any():
        row = averaged.table.iloc[int(np.flatnonzero(constant)[0])]
        raise ValueError(
            f"{constant.sum()} RDMs are constant or NaN throughout, the first of {by}={row[by]!r}, "
            f"{over}={row[over]!r}; leave them out."
        )
    labels, classes = pd.factorize(averaged.table[by])
    subjects, names = pd.factorize(averaged.table[over])
    if len(classes) < 2 or len(names) < 2:
        few = by if len(classes) < 2 else over
        raise ValueError(
            f"the table has {min(len(classes), len(names))} value in column {few!r}; identification needs at least two "
            f"values of {by!r} to tell apart and two of {over!r} to leave one out."
        )
    items = np.full((len(names), len(classes)), -1)
    items[subjects, labels] = np.arange(len(vectors))
    lonely = (items >= 0).sum(0) < 2
    if lonely.any():
        raise ValueError(
            f"{by}={classes[lonely][0]!r} is in one {over} only, so it cannot be identified from the others; "
            f"leave it out ({lonely.sum()} such values)."
        )
    return vectors, items, [str(name) for name in classes]


def _grams(
    vectors: np.ndarray,
    counts: np.ndarray,
    cells: np.ndarray,
    transform: str,
    threshold: str,
    rule: str,
    options: dict[str, Any],
) -> tuple[list[np.ndarray], int]:
    """Inner products of the RDMs (rdm, rdm) after the transform of every cell, and last without one.

    Also in how many cells the geodesic distances of an RDM collapsed to 0.
    """
    placed = place(vectors, threshold, counts)
    levels, column = np.unique(cells, return_inverse=True)
    cuts = placed.cut(levels)
    grams, n_collapsed = [], 0
    for (lower, upper), (low, high) in zip(cells, column.reshape(cells.shape), strict=True):
        if transform == "rgtm":
            values = between(placed.values, cuts[:, [low]], cuts[:, [high]])
        else:
            lengths, collapsed = geodesics(placed, Graph(lower, upper, "two-step", threshold, options["zero_edges"]))
            values = reached(lengths, options["unreachable"], options["ranked"], counts)
            n_collapsed += bool(collapsed.any())
        grams.append(inner_products(values, counts, rule))
    return [*grams, inner_products(vectors, counts, rule)], n_collapsed


def _interval(
    observed: np.ndarray, samples: np.ndarray, least: float = 0.0, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of the deviations of the samples from their median, around what was observed; see `identify`.

    Cut at `least` and 1.
    """
    low, high = np.full((2, *observed.shape), np.nan)
    known = ~np.isnan(samples).all(0) if len(samples) else np.zeros(len(observed), bool)
    if known.any():
        tails = np.nanquantile(samples[:, known], [(1 - level) / 2, 0.5, (1 + level) / 2], axis=0)
        low[known] = np.maximum(observed[known] + tails[0] - tails[1], least)
        high[known] = np.minimum(observed[known] + tails[2] - tails[1], 1)
    return low, high


def _by_type(table: pd.DataFrame, accuracy: np.ndarray, samples: np.ndarray) -> pd.DataFrame:
    rows = []
    groups = [(UNTRANSFORMED, np.array([len(accuracy) - 1]))]
    groups += [(name, np.flatnonzero(table["type"] == name)) for name in TYPES]
    for name, cells in groups:
        if not len(cells):
            continue
        mean = accuracy[cells].mean(keepdims=True)
        means = samples[:, cells].mean(1, keepdims=True)
        difference, differences = mean - accuracy[-1], means - samples[:, [-1]]
        (low,), (high,) = _interval(mean, means)
        (below,), (above,) = _interval(difference, differences, -1.0)
        rows.append((name, len(cells), mean[0], low, high, difference[0], below, above))
    columns = ["type", "n_cells", "accuracy", "ci_low", "ci_high", "difference", "difference_low", "difference_high"]
    return pd.DataFrame(rows, columns=columns)


def _warn(grams: list[np.ndarray], collapsed: int, samples: np.ndarray) -> None:
    if collapsed:
        warnings.warn(
            f"in {collapsed} of {len(grams) - 1} cells all geodesic distances of an RDM are 0: the pairs below the "
            "lower threshold join all stimuli.",
            stacklevel=3,
        )
    unknown_cells = sum(bool(np.isnan(gram).any()) for gram in grams)
    if unknown_cells:
        warnings.warn(
            f"the accuracy of {unknown_cells} of {len(grams) - 1} cells is NaN: fewer than three pairs of stimuli are "
            "joined by a path in all RDMs; unreachable='max' keeps them.",
            stacklevel=3,
        )
    lost = int(np.isnan(samples[:, -1]).sum()) if len(samples) else 0
    if lost:
        warnings.warn(
            f"{lost} of {len(samples)} bootstrap samples have no accuracy and are left out: all their subjects are "
            "one, or they hold fewer than three pairs of stimuli.",
            stacklevel=3,
        )


def _aligned(frame: pd.DataFrame) -> str:
    shown = frame.dropna(axis=1, how="all")
    return shown.to_string(index=False, float_format=lambda value: f"{value:.3f}")
