"""Models against each other, thresholds of a topological transform, and scores over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..inference.tests import NULL_ELSEWHERE
from .style import ACCENT, BAND, FAINT, INK, MUTED, WIDTH, clip, styled
from .summary import layer_name, main_metric, metric_name, targets

if TYPE_CHECKING:
    from ..inference import ModelComparison
    from ..topology import Identification

PALE = "#a9c7dc"
UNTESTED = "#9aa4ad"  # darker than the band of the ceiling, which bars stand before
# Told apart in print and by those who do not see red or green (Okabe & Ito), the first the accent of the page.
LINES = (ACCENT, "#d55e00", "#009e73", "#cc79a7", "#e69f00")


@styled
def model_bars(comparison: ModelComparison, correction: str = "fdr", level: float = 0.05) -> Figure:
    """Score of every model with its 95 % interval, the noise ceiling, and which models are told apart.

    Parameters
    ----------
    comparison : ModelComparison
        Bars are its scores and dots those of the replicates. Pale: not above zero at `level`; grey: not
        tested against it. (By shuffled labels, chance instead of zero where unrelated RDMs do not score zero.)
    correction : {"fdr", "bonferroni", "none"}
        Over all pairs of models.
    level : float
        A square right of the bars says that the model of the row scores higher than the model of the column, with a
        corrected two-sided p below this; a dot that the two are not told apart.
    """
    scores = np.asarray(comparison.scores, float)
    n = len(scores)
    height = 0.34 if n <= 16 else 0.22 if n <= 40 else 0.14
    paired = n > 1 and comparison.over != "none"
    names = [clip(str(name), 40) + (f"  {k + 1}" if paired else "") for k, name in enumerate(comparison.names)]
    margin = 0.075 * max(map(len, names)) + 0.3
    grid = min(height * n, 4.0) if paired else 0.0
    across = max(3.0, WIDTH - margin - grid - 0.6) if n > 12 else 4.4
    fig = Figure(figsize=(min(WIDTH, margin + across + grid + 0.4), max(1.9, height * n + 1.35)), layout="constrained")
    ax, *beside = fig.subplots(1, 1 + paired, squeeze=False, width_ratios=[across, grid] if paired else [1])[0]
    _draw_bars(ax, comparison, scores, level)
    size = 9 if height > 0.3 else 7.5 if height > 0.2 else 5.5
    ax.set_yticks(np.arange(n), names, fontsize=size)
    ax.set_xlabel(metric_name(comparison.method))
    if beside:
        _draw_pairs(beside[0], comparison, correction, level, size)
    ceiling = np.isfinite(np.asarray(comparison.ceiling, float)).any()
    tested, untested = tested_against(comparison)
    handles: list[Any] = []
    if tested:
        handles += [Patch(fc=ACCENT, label=f"above {tested}"), Patch(fc=PALE, label=f"not above {tested}")]
    handles += [Patch(fc=UNTESTED, label="not tested against 0")] if untested else []
    handles += [Patch(fc=BAND, alpha=0.75, label="noise ceiling")] if ceiling else []
    if paired:
        handles.append(Line2D([], [], marker="s", ls="", color=ACCENT, ms=6, label="row above column"))
        handles.append(Line2D([], [], marker="o", ls="", color=MUTED, ms=2.5, label="not told apart"))
    if handles:
        fig.legend(handles=handles, loc="outside lower right", ncols=len(handles), columnspacing=1.2, handletextpad=0.5)
    return fig


def tested_against(comparison: ModelComparison) -> tuple[str, bool]:
    """What models were tested to be above, "0", "chance" or "" for none of them, and whether any was not tested."""
    scored = np.isfinite(np.asarray(comparison.scores, float))
    known = np.isfinite(np.asarray(comparison.p_zero, float))
    tested = "chance" if comparison.method in NULL_ELSEWHERE else "0"
    return tested if (scored & known).any() else "", bool((scored & ~known).any())


def _draw_bars(ax: Axes, comparison: ModelComparison, scores: np.ndarray, level: float) -> None:
    n = len(scores)
    low, high = np.asarray(comparison.ceiling, float)
    if np.isfinite(low) and np.isfinite(high):
        ax.axvspan(low, high, color=BAND, lw=0, alpha=0.75, zorder=0)
    elif np.isfinite(high):
        ax.axvline(high, color=MUTED, lw=1.2, ls=(0, (5, 2)), zorder=1)
    else:
        ax.text(
            0.995, 1.01, "ceiling unknown", transform=ax.transAxes, ha="right", va="bottom", color=MUTED, fontsize=8
        )
    p_zero = np.asarray(comparison.p_zero, float)
    colours = np.where(np.isnan(p_zero), UNTESTED, np.where(p_zero <= level, ACCENT, PALE))
    ax.barh(np.arange(n), np.nan_to_num(scores), height=0.7, color=colours.tolist(), zorder=2)
    bounds = np.asarray(comparison.interval(0.95), float)
    beyond = np.clip(np.nan_to_num(np.stack([scores - bounds[:, 0], bounds[:, 1] - scores])), 0, None)
    ax.errorbar(np.nan_to_num(scores), np.arange(n), xerr=beyond, fmt="none", ecolor=INK, elinewidth=1.3, zorder=4)
    each = np.asarray(comparison.per_subject, float)
    if each.shape[1] > 1:
        rows = np.repeat(np.arange(n), each.shape[1])
        ax.plot(each.ravel(), rows + 0.22, "o", ms=2.2, mfc="white", mec=MUTED, mew=0.6, zorder=3)
    for k in np.flatnonzero(np.isnan(scores)).tolist():
        ax.text(0, k, " not scored", va="center", color=MUTED, fontsize=8)
    ax.axvline(0, color=INK, lw=0.8, zorder=3)
    ax.set_ylim(n - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x", color=FAINT, lw=0.6)


def _draw_pairs(ax: Axes, comparison: ModelComparison, correction: str, level: float, size: float) -> None:
    """A square where the model of the row is above that of the column, a dot where the two are not told apart."""
    n = len(comparison.scores)
    place = {name: k for k, name in enumerate(comparison.names)}
    pairs = comparison.pairwise(correction)
    first, second = (pairs[side].map(place).to_numpy(int) for side in ("first", "second"))
    difference, p = pairs["difference"].to_numpy(float), pairs["p_corrected"].to_numpy(float)
    apart = p <= level
    upper, lower = np.where(difference > 0, first, second), np.where(difference > 0, second, first)
    step = min(0.34, 4.0 / n) * 72
    ax.plot(lower[apart], upper[apart], "s", ms=0.42 * step, color=ACCENT, mew=0)
    same = ~apart
    rows, columns = np.append(first[same], second[same]), np.append(second[same], first[same])
    ax.plot(columns, rows, "o", ms=min(2.5, 0.2 * step), color=MUTED, mew=0)
    ax.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.4, -0.6), yticks=[])
    every = int(np.ceil(n * 0.15 / 4.0)) if n > 16 else 1
    ax.xaxis.tick_top()
    ax.set_xticks(np.arange(0, n, every), [str(k + 1) for k in range(0, n, every)], fontsize=size)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for k in range(n):
        ax.axhline(k, color=FAINT, lw=0.5, zorder=0)


@styled
def threshold_heatmap(identification: Identification) -> Figure:
    """Accuracy of identification over the lower and upper threshold of the transform, and its mean by descriptor type.

    Parameters
    ----------
    identification : Identification
        Drawn by its own ``plot`` on the left; on the right its ``by_type`` with intervals, where it was bootstrapped.
    """
    fig = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    left, right = fig.subplots(1, 2, width_ratios=[1.35, 1])
    identification.plot(left)
    types, chance = identification.by_type, float(identification.table["chance"].iloc[0])
    accuracy, y = types["accuracy"].to_numpy(float), np.arange(len(types))
    bounds = types[["ci_low", "ci_high"]].to_numpy(float)
    right.barh(y, np.nan_to_num(accuracy), height=0.6, color=[BAND, *[ACCENT] * (len(types) - 1)])
    beyond = np.clip(np.nan_to_num(np.stack([accuracy - bounds[:, 0], bounds[:, 1] - accuracy])), 0, None)
    right.errorbar(np.nan_to_num(accuracy), y, xerr=beyond, fmt="none", ecolor=INK, elinewidth=1.3)
    right.axvline(chance, color=MUTED, lw=1.2, ls=(0, (5, 2)))
    right.set_yticks(y, types["type"])
    right.set(xlim=(0, 1.02), ylim=(len(types) - 0.4, -0.6), xlabel="accuracy (dashed: chance)", title="mean by type")
    right.tick_params(axis="y", length=0)
    right.spines["left"].set_visible(False)
    return fig


@styled
def time_courses(table: pd.DataFrame) -> Figure:
    """One panel per region: every layer over time, the best in colour, one with its interval, and the ceiling.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows of `align.rsa` with a column time in seconds; of several subjects the mean is drawn, without interval.
    """
    metric = main_metric(table)
    table = table.assign(target=targets(table))
    table = table[table["metric"] == metric]
    regions = table["target"].unique().tolist()
    columns = 1 if len(regions) == 1 else 2
    rows = -(-len(regions) // columns)
    fig = Figure(figsize=(WIDTH, 2.4 * rows + 0.7), layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    shown = _coloured(table)
    for ax, region in zip(axes, regions, strict=False):
        _draw_courses(ax, table[table["target"] == region], shown)
        ax.set_title(region)
        ax.grid(axis="y", color=FAINT, lw=0.6)
        ax.axhline(0, color=INK, lw=0.7)
    for k, ax in enumerate(axes):
        ax.set_visible(k < len(regions))
        if k % columns == 0:
            ax.set_ylabel(metric_name(metric))
        if k + columns >= len(regions):
            ax.set_xlabel("time (s)")
            ax.tick_params(labelbottom=True)
    drawn = table[["score", "ceiling"]].to_numpy(float)
    low, high = np.nanmin(drawn, initial=0.0), np.nanmax(drawn, initial=0.05)
    axes[0].set_ylim(low - 0.1 * (high - low), high + 0.07 * (high - low))
    handles: list[Any] = [Line2D([], [], color=c, label=clip(layer_name(*layer), 40)) for layer, c in shown.items()]
    if len(table[["model", "layer"]].drop_duplicates()) > len(shown):
        handles.append(Line2D([], [], color=BAND, lw=0.8, label="other layers"))
    if table["ceiling_low"].notna().any():
        handles.append(Patch(fc=BAND, alpha=0.6, label="noise ceiling"))
    elif table["ceiling"].notna().any():
        handles.append(Line2D([], [], color=MUTED, lw=1.2, ls=(0, (5, 2)), label="noise ceiling"))
    if (table["p"] < 0.05).any():
        handles.append(Line2D([], [], marker="s", ls="", ms=3, color=MUTED, label="p < .05 at this time"))
    fig.legend(handles=handles, loc="outside lower right", ncols=min(4, len(handles)), columnspacing=1.4)
    return fig


def _coloured(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """A colour for each of the layers that are best of a region at its peak, and for the next best; at most five."""
    mean = table.groupby(["target", "model", "layer", "time"], sort=False)["score"].mean()
    peaks = mean.groupby(["target", "model", "layer"], sort=False).max().dropna().reset_index()
    peaks["place"] = peaks.groupby("target")["score"].rank(ascending=False, method="first")
    order = peaks.sort_values(["place", "score"], ascending=[True, False])[["model", "layer"]].drop_duplicates()
    layers = [(str(model), str(layer)) for model, layer in order.head(len(LINES)).itertuples(index=False)]
    return dict(zip(layers, LINES, strict=False))


def _draw_courses(ax: Axes, part: pd.DataFrame, shown: dict[tuple[str, str], str]) -> None:
    ceiling = part.groupby("time")[["ceiling_low", "ceiling"]].mean()
    if ceiling["ceiling_low"].notna().any():
        ax.fill_between(
            ceiling.index, ceiling["ceiling_low"], ceiling["ceiling"], color=BAND, alpha=0.6, lw=0, zorder=0
        )
    else:
        ax.plot(ceiling.index, ceiling["ceiling"], color=MUTED, lw=1.2, ls=(0, (5, 2)), zorder=1)
    alone = not part.duplicated(["model", "layer", "time"]).any()
    mean = (
        part.groupby(["model", "layer", "time"], sort=False)[["score", "ci_low", "ci_high", "p"]].mean().reset_index()
    )
    names = list(zip(mean["model"].astype(str), mean["layer"].astype(str), strict=True))
    best = names[int(mean["score"].argmax())] if mean["score"].notna().any() else None
    below = 0
    for layer in sorted(dict.fromkeys(names), key=lambda one: one in shown):  # those in colour last, so on top
        rows = mean[[name == layer for name in names]].sort_values("time")
        colour = shown.get(layer)
        if colour is None:
            ax.plot(rows["time"], rows["score"], color=BAND, lw=0.8, zorder=1)
            continue
        ax.plot(rows["time"], rows["score"], color=colour, lw=1.6, zorder=3)
        if alone and layer == best:
            ax.fill_between(rows["time"], rows["ci_low"], rows["ci_high"], color=colour, alpha=0.2, lw=0, zorder=2)
        if alone:
            at = rows["time"][rows["p"] < 0.05]
            over: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "clip_on": False}
            if len(at):  # an empty line outside the axes would count as one in the corner of the page
                ax.plot(at, np.full(len(at), 0.02 + 0.025 * below), "s", ms=2, color=colour, mew=0, **over)
            below += 1
