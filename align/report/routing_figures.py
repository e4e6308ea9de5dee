"""Figures of routing maps: attention over stimuli and on their objects, and how the queries differ."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...encoders.routing.maps import RoutingMaps
from .style import ACCENT, BAND, FAINT, INK, MUTED, SCORES, WIDTH, clip, ink_on, styled
from .summary import percent, short

# Both ends of a correlation, and nothing in the middle.
BOTH = LinearSegmentedColormap.from_list("both", ["#a8552b", "#e3b99f", "#f7f7f7", "#a3c6dd", "#195480"])


@styled
def routing_overlays(maps: RoutingMaps, queries: list[str], stimuli: list[str]) -> Figure:
    """Attention over the stimuli, as `RoutingMaps.plot` draws it, in the style of the page."""
    return maps.plot(stimuli=stimuli, queries=queries)


@styled
def mean_maps(maps: RoutingMaps, queries: list[str]) -> Figure:
    """The mean map of every query over all stimuli: what attention owes to the place alone."""
    mean = maps.mean_heads().select(queries).weights[:, :, 0].mean(0) * maps.n_cells
    columns = min(len(queries), 6)
    lines = -(-len(queries) // columns)
    side = 1.5
    fig = Figure(figsize=(max(3.6, side * columns + 1.0), lines * (side + 0.3)), layout="constrained")
    axes = fig.subplots(lines, columns, squeeze=False).ravel()
    norm = Normalize(0, max(float(mean.max()), 2.0))
    for k, ax in enumerate(axes):
        if k >= len(queries):
            ax.set_visible(False)
            continue
        mesh = ax.imshow(mean[k], cmap=SCORES, norm=norm, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(visible=True, color=FAINT)
        ax.set_title(clip(queries[k], 22), fontsize=8, pad=3)
    bar = fig.colorbar(mesh, ax=axes, fraction=0.03, pad=0.02, aspect=20)
    bar.set_label("multiples of even")
    bar.outline.set_visible(False)
    return fig


@styled
def object_grids(found: pd.DataFrame) -> Figure:
    """Queries by categories: how often the peak is on the object, and how much of the attention.

    Parameters
    ----------
    found : pandas.DataFrame
        Of `RoutingMaps.on_objects`. In small type what the same maps have over stimuli at random; framed: twice that.
    """
    queries, categories = list(found["query"].unique()), list(found["category"].unique())
    height = 0.44 if len(queries) <= 16 else 0.24
    width = min(0.95, 3.6 / len(categories))
    margin = 0.075 * min(24, max(map(len, queries))) + 0.3
    size = (min(WIDTH, 2 * width * len(categories) + margin + 0.9), height * max(len(queries), 2) + 0.85)
    fig = Figure(figsize=size, layout="constrained")
    panels = (("hits", "peak on the object"), ("mass", "attention on the object"))
    for ax, (value, title) in zip(fig.subplots(1, 2), panels, strict=True):
        wide = found.pivot(index="query", columns="category", values=[value, f"{value}_by_chance"]).reindex(queries)
        cells, chance = (wide[name][categories].to_numpy(float) for name in (value, f"{value}_by_chance"))
        _cells(ax, cells, chance, small=height > 0.3)
        ax.set_xticks(np.arange(len(categories)) + 0.5, [clip(name, int(width * 15)) for name in categories])
        ax.xaxis.tick_top()
        ax.set_yticks(np.arange(len(queries)) + 0.5, [clip(name, 24) for name in queries] if value == "hits" else [])
        ax.tick_params(length=0, labelleft=value == "hits")
        ax.set_title(title, pad=20)
    return fig


def _cells(ax: Axes, cells: np.ndarray, chance: np.ndarray, small: bool) -> None:
    """Percentages on colour from 0 to 100, chance below them; framed where above twice chance."""
    norm = Normalize(0, 1)
    ax.pcolormesh(np.ma.masked_invalid(cells), cmap=SCORES, norm=norm, edgecolors="white", linewidth=1)
    for (row, column), value in np.ndenumerate(cells):
        if not np.isfinite(value):
            continue
        colour = ink_on(SCORES(norm(value)))
        ax.text(column + 0.5, row + (0.36 if small else 0.5), percent(value), ha="center", va="center", color=colour)
        if small:
            said = f"chance {percent(float(chance[row, column]))}"
            ax.text(column + 0.5, row + 0.75, said, ha="center", va="center", color=colour, fontsize=6.5)
        if value > 2 * chance[row, column]:
            ax.add_patch(Rectangle((column + 0.02, row + 0.02), 0.96, 0.96, fill=False, ec=INK, lw=1.6))
    ax.set(xlim=(0, cells.shape[1]), ylim=(len(cells), 0))
    ax.spines[:].set_visible(False)


@styled
def query_panels(maps: RoutingMaps, queries: list[str]) -> Figure:
    """Similarity of the queries' maps, their entropy, and how much of them changes from stimulus to stimulus."""
    shown = maps.select(queries)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # even maps are hatched, and the caption says so
        similarity = shown.similarity().to_numpy()
    entropy = shown.entropy(normalised=True).to_numpy()
    variation = shown.variation().to_numpy()
    n = len(queries)
    row = 0.36 if n <= 12 else 0.22 if n <= 25 else 0.15
    margin = 0.075 * min(24, max(map(len, queries))) + 0.3
    square = min(4.2, max(1.7, row * n))
    fig = Figure(figsize=(min(WIDTH, margin + square + 5.6), square + 1.1), layout="constrained")
    left, middle, right = fig.subplots(1, 3, width_ratios=[square, 2.4, 2.0])
    size = 8.5 if row > 0.3 else 7 if row > 0.2 else 5
    _similarity(left, similarity, numbered=row > 0.3, fontsize=size)
    left.set_yticks(np.arange(n), [clip(name, 24) for name in queries], fontsize=size)
    left.set_title("similarity of maps")
    y = np.arange(n)
    low, centre, high = np.quantile(entropy, [0.25, 0.5, 0.75], axis=0)
    middle.barh(y, high - low, left=low, height=0.5, color=BAND)
    middle.plot(centre, y, "o", color=ACCENT, ms=4.5)
    middle.set(xlim=(min(0.0, low.min()), 1.02), xlabel="entropy, 1 is even")
    middle.set_title("spread of attention")
    right.barh(y, np.nan_to_num(variation), height=0.5, color=ACCENT)
    for k in np.flatnonzero(np.isnan(variation)):
        right.text(0.02, k, "–", va="center", color=MUTED)
    right.set(xlim=(0, 1.02), xlabel="share of the maps")
    right.set_title("changes with the stimulus")
    for ax in (middle, right):
        ax.set(ylim=(n - 0.5, -0.5), yticks=[])
        ax.spines["left"].set_visible(False)
        ax.grid(axis="x", color=FAINT, lw=0.6)
    return fig


def _similarity(ax: Axes, similarity: np.ndarray, numbered: bool, fontsize: float) -> None:
    norm = Normalize(-1, 1)
    ax.imshow(np.ma.masked_invalid(similarity), cmap=BOTH, norm=norm, interpolation="nearest", aspect="auto")
    for (row, column), value in np.ndenumerate(similarity):
        if not np.isfinite(value):
            ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fc="white", ec=BAND, hatch="////", lw=0))
        elif numbered:
            colour = ink_on(BOTH(norm(value)))
            ax.text(column, row, short(value), ha="center", va="center", fontsize=fontsize - 1, color=colour)
    ax.set(xticks=[])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
