"""Accuracy of identification over lower and upper thresholds, drawn in the style of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..report.style import INK, MUTED, SCORES, ink_on, styled
from .identification import UNTRANSFORMED, best_cell

if TYPE_CHECKING:
    from .identification import Identification

# Where the names of the types stand: beside their cells, off the triangle.
NAMES = {
    "local": (0.24, 0.13, "left"),
    "topology-sensitive": (0.6, 0.48, "left"),
    "geometry-sensitive": (-0.02, 1.05, "left"),
    "global": (0.98, 1.05, "right"),
}


@styled
def heat_map(identification: Identification, ax: Any = None) -> Any:
    """`Identification.plot`."""
    table, settings = identification.table, identification.settings
    if ax is None:
        ax = Figure(figsize=(6.4, 5), layout="constrained").subplots()
    figure = ax.figure
    lower, upper, accuracy = (table[column].to_numpy(float) for column in ("lower", "upper", "accuracy"))
    size = _spacing(lower, upper)
    chance = float(table["chance"].iloc[0])
    baseline = float(identification.by_type.set_index("type")["accuracy"][UNTRANSFORMED])
    if np.isnan(accuracy).all():
        raise ValueError("the accuracy of every cell is NaN; there is nothing to draw.")
    low, high = min(chance, np.nanmin(accuracy)), max(baseline, np.nanmax(accuracy))
    squares = [Rectangle((x - size / 2, y - size / 2), size, size) for x, y in zip(lower, upper, strict=True)]
    cells = PatchCollection(squares, cmap=SCORES, edgecolor="white", linewidth=0.5)
    cells.set_array(np.ma.masked_invalid(accuracy))
    cells.set_clim(low, high if high > low else low + 1e-3)
    ax.add_collection(cells)
    _outline_types(ax, table, lower, upper, size)
    best, n_best = best_cell(table)
    ring = ink_on(SCORES(cells.norm(best["accuracy"])))
    ax.plot(
        best["lower"],
        best["upper"],
        "o",
        markersize=7,
        markerfacecolor="none",
        markeredgecolor=ring,
        markeredgewidth=1.2,
    )
    ax.set_xlim(lower.min() - size, lower.max() + 2 * size)
    ax.set_ylim(upper.min() - size, upper.max() + 2 * size)
    unit = "" if settings.get("threshold") == "absolute" else " (quantile)"
    ax.set_xlabel(f"lower threshold{unit}")
    ax.set_ylabel(f"upper threshold{unit}")
    name = settings.get("transform", "")
    ax.set_title(f"{settings.get('by', 'region')} identified" + (f" ({name})" if name else ""), pad=20)
    place = f"{n_best} cells, the first" if n_best > 1 else f"({best['lower']:g}, {best['upper']:g}),"
    ax.annotate(
        f"best {best['accuracy']:.3f} at {place} circled; untransformed RDMs {baseline:.3f}; chance {chance:.3f}",
        (0, 1),
        (0, 6),
        xycoords="axes fraction",
        textcoords="offset points",
        color=MUTED,
        fontsize=8,
    )
    bar = figure.colorbar(cells, ax=ax, shrink=0.8, pad=0.1)
    bar.set_label("accuracy")
    bar.outline.set_visible(False)
    below, above = ("chance", "RDM") if baseline >= chance else ("RDM", "chance")
    for value, name, side in ((min(chance, baseline), below, "top"), (max(chance, baseline), above, "bottom")):
        bar.ax.axhline(value, color=INK, linewidth=1)
        text = bar.ax.annotate(
            name,
            (0, value),
            (-3, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va=side,
        )
        text.set_in_layout(False)
    return figure


def _spacing(lower: np.ndarray, upper: np.ndarray) -> float:
    """Side of the square of a cell: the smallest step between thresholds of either axis, but a tenth of the range."""
    steps = [np.diff(np.unique(np.round(axis, 9))) for axis in (lower, upper)]
    whole = float(max(lower.max(), upper.max()) - min(lower.min(), upper.min())) or 1.0
    return float(min([step.min() for step in steps if len(step)] + [0.1 * whole]))


def _outline_types(ax: Any, table: Any, lower: np.ndarray, upper: np.ndarray, size: float) -> None:
    """Lines between cells of different types, and their names, where the grid is regular."""
    columns, rows = (np.rint(axis / size).astype(int) for axis in (lower, upper))
    if not (np.allclose(columns * size, lower) and np.allclose(rows * size, upper)):
        return
    kinds = dict(zip(zip(columns, rows, strict=True), table["type"], strict=True))
    lines = []
    for (column, row), kind in kinds.items():
        x, y = column * size, row * size
        if kinds.get((column + 1, row), kind) != kind:
            lines.append([(x + size / 2, y - size / 2), (x + size / 2, y + size / 2)])
        if kinds.get((column, row + 1), kind) != kind:
            lines.append([(x - size / 2, y + size / 2), (x + size / 2, y + size / 2)])
    if not lines:
        return
    ax.add_collection(LineCollection(lines, colors=INK, linewidths=1))
    for kind, (x, y, side) in NAMES.items():
        if kind in kinds.values():
            ax.text(x, y, kind, ha=side, va="center", color=INK, fontsize=8)
