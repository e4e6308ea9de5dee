"""Maps of attention drawn over images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from .places import corners

if TYPE_CHECKING:
    from .maps import RoutingMaps

MOST_QUERIES = 12
SIDE = 1.45  # inches of a picture
HEAT = LinearSegmentedColormap.from_list("attention", ["#3b0f59", "#b5264f", "#f98b24", "#fcf3a1"])


def even(n: int, most: int) -> np.ndarray:
    """At most so many of n positions, at even distances."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def draw(
    maps: RoutingMaps,
    stimuli: int | Sequence[str],
    queries: Sequence[str] | None,
    boxes: pd.DataFrame | None,
) -> Figure:
    """Stimuli (columns) and the attention of every query on them (rows), in multiples of even attention."""
    if isinstance(stimuli, int | np.integer):
        if stimuli < 1:
            raise ValueError(f"stimuli={stimuli}: expected at least 1, or the ids of stimuli")
        stimuli = [maps.stimulus_ids[row] for row in even(len(maps), int(stimuli))]
    if queries is None:
        queries = [maps.queries[k] for k in even(len(maps.queries), MOST_QUERIES)]
    shown = maps.mean_heads().select(queries, stimuli)
    boxes = shown.objects if boxes is None else boxes
    outlined = None if boxes is None else corners(boxes)
    categories = None if boxes is None or "category" not in boxes else boxes["category"].astype(str).to_numpy()
    lift = shown.weights[:, :, 0] * shown.n_cells
    norm = Normalize(1, max(float(np.quantile(lift.max((2, 3)), 0.9)), 1.5))
    pictured = shown.images is not None
    n_rows, n_columns = len(shown.queries) + pictured, len(shown)
    tight = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    fig = Figure(figsize=(SIDE * n_columns + 1.6, SIDE * n_rows + 0.35), layout=tight)
    axes = fig.subplots(n_rows, n_columns, squeeze=False)
    for column, name in enumerate(shown.stimulus_ids):
        rows = None if outlined is None else outlined.index[outlined["stimulus"] == name]
        for row, ax in enumerate(axes[:, column]):
            query = row - pictured
            picture = shown.images[column] if shown.images is not None else None
            _frame(ax)
            if query < 0:
                ax.imshow(picture, extent=(0, 1, 1, 0), interpolation="antialiased")
            else:
                _attention(ax, picture, lift[column, query], norm)
            if outlined is not None and rows is not None:
                named = categories if query < 0 else None
                _outline(ax, outlined.loc[rows], None if named is None else named[rows])
            if column == 0:
                label = "stimulus" if query < 0 else _short(shown.queries[query], 22)
                ax.set_ylabel(label, rotation=0, ha="right", va="center", labelpad=6, color="black")
            if row == 0:
                ax.set_title(_short(name, 18), fontsize=7.5, fontweight="normal", loc="center", pad=3)
    bar = fig.colorbar(
        ScalarMappable(norm, HEAT), ax=axes, fraction=0.02, pad=0.01, aspect=45, extend="max", extendfrac=0.02
    )
    bar.set_label("attention, in multiples of even attention")
    bar.outline.set_visible(False)
    return fig


def _frame(ax: Axes) -> None:
    ax.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_visible(False)


def _attention(ax: Axes, picture: np.ndarray | None, lift: np.ndarray, norm: Normalize) -> None:
    """A map over the picture in grey; what gets no more than even attention shows no colour."""
    share = np.clip(norm(lift), 0, 1)
    colours = HEAT(share)
    if picture is not None:
        grey = picture @ np.array([0.299, 0.587, 0.114])
        ax.imshow(grey, cmap="gray", vmin=0, vmax=330, extent=(0, 1, 1, 0), interpolation="antialiased")
        colours[..., 3] = 0.8 * np.sqrt(share)
    ax.imshow(colours, extent=(0, 1, 1, 0), interpolation="nearest")
    y, x = np.unravel_index(int(lift.argmax()), lift.shape)
    height, width = lift.shape
    place = ((x + 0.5) / width, (y + 0.5) / height)
    ax.plot(*place, "+", color="black", mew=2.6, ms=7.5)  # a rim, so that it shows on pale cells
    ax.plot(*place, "+", color="white", mew=1.3, ms=6)


def _outline(ax: Axes, boxes: pd.DataFrame, categories: np.ndarray | None) -> None:
    for k, (left, top, right, bottom) in enumerate(boxes[["left", "top", "right", "bottom"]].to_numpy()):
        ax.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec="white", lw=0.8, alpha=0.9))
        if categories is not None:
            label: dict[str, Any] = {"color": "white", "fontsize": 6, "va": "top", "ha": "left", "clip_on": True}
            label["bbox"] = {"boxstyle": "square,pad=0.15", "fc": "black", "alpha": 0.55, "lw": 0}
            ax.text(max(left, 0.01) + 0.01, max(top, 0.01) + 0.015, categories[k], **label)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
