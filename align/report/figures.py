"""The figures of scores: each function takes a table or its evidence and returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from .style import ACCENT, BAND, FAINT, INK, MUTED, SCORES, WIDTH, clip, ink_on, styled
from .summary import (
    averaged,
    best_layers,
    by_model,
    layer_name,
    layers_of,
    main_metric,
    metric_name,
    percent,
    short,
    targets,
)

MOST_SHARES = 30  # layers; with more of them the heatmap has no room for shares of the ceiling


# ------------------------------------------------------------------------------------------------------- scores


@styled
def score_heatmap(table: pd.DataFrame) -> Figure:
    """Layers by regions in the main metric, mean over subjects, with the share of the ceiling in small type.

    Parameters
    ----------
    table : pandas.DataFrame
        Tidy table of `align.score` or `align.rsa`.
    """
    mean = averaged(table)
    layers, regions = layers_of(mean), list(mean["target"].unique())
    score, normalised = _grid(mean, "score"), _grid(mean, "normalised")
    # Cells shrink with the number of layers, and lose their numbers before these overlap.
    height = 0.4 if len(layers) <= MOST_SHARES else 0.2 if len(layers) <= 90 else 0.09
    width = min(1.05, 7.0 / len(regions))
    numbered = height >= 0.2 and width >= 0.34
    labels = [layer_name(*layer) for layer in layers]
    margin = 0.075 * min(44, max(map(len, labels))) + 0.35
    size = (min(WIDTH, max(3.8, margin + width * len(regions) + 1.1)), height * max(len(layers), 3) + 1.0)
    fig = Figure(figsize=size, layout="constrained")
    ax = fig.subplots()
    norm = _score_scale(score)
    mesh = _mesh(ax, score, norm)
    _mark_best(ax, mean, layers, regions)
    if numbered:
        for (row, column), value in np.ndenumerate(score):
            share = percent(float(normalised[row, column])) if height >= 0.4 else ""
            centred: dict[str, Any] = {"ha": "center", "va": "center"}
            centred["color"] = ink_on(SCORES(norm(value))) if np.isfinite(value) else MUTED
            y, points = row + (0.37 if share else 0.5), 9 if height >= 0.4 else 7
            ax.text(column + 0.5, y, short(value), fontsize=points, **centred)
            ax.text(column + 0.5, row + 0.76, share, fontsize=6.5, **centred)
    step = 1 if height >= 0.2 else int(np.ceil(0.15 / height))
    ax.set_yticks(np.arange(0.5, len(layers), step), [clip(label, 46) for label in labels[::step]])
    _label_regions(ax, regions, width)
    _separate_models(ax, layers, reach=margin / (width * len(regions)))
    tall = min(1.0, 4 / (height * len(layers)))
    bar = fig.colorbar(mesh, ax=ax, fraction=0.03, pad=0.02, aspect=30, anchor=(0, 1), shrink=tall)
    bar.set_label(metric_name(main_metric(table)))
    bar.outline.set_visible(False)
    star = Line2D([], [], marker="*", ls="", color=INK, ms=8, label="best layer of the region")
    fig.legend(handles=[star], loc="outside lower right")
    return fig


@styled
def subject_heatmaps(table: pd.DataFrame) -> Figure:
    """The same heatmap without numbers, one for each subject, on one colour scale."""
    subjects = list(table["subject"].unique())
    table = table.assign(target=targets(table))
    mean = averaged(table)
    layers, regions = layers_of(mean), list(mean["target"].unique())
    parts = [averaged(table[table["subject"] == subject]) for subject in subjects]
    grids = [_grid(part, "score", layers, regions) for part in parts]
    norm = _score_scale(np.concatenate(grids))
    columns = min(len(subjects), 4)
    rows = int(np.ceil(len(subjects) / columns))
    height = max(1.2, min(4.5, 0.19 * len(layers)))
    fig = Figure(figsize=(WIDTH, rows * (height + 0.55)), layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False)
    step = int(np.ceil(len(layers) * 0.16 / height))
    for k, ax in enumerate(axes.flat):
        if k >= len(subjects):
            ax.set_visible(False)
            continue
        mesh = _mesh(ax, grids[k], norm)
        _mark_best(ax, parts[k], layers, regions)
        labels = [clip(layer_name(*layer), 34) for layer in layers[::step]] if k % columns == 0 else []
        ax.set_yticks(np.arange(0.5, len(layers), step) if labels else [], labels, fontsize=7.5)
        _label_regions(ax, regions, 5.5 / columns / len(regions))
        ax.set_title(subjects[k], pad=4)
        _separate_models(ax, layers)
    bar = fig.colorbar(mesh, ax=axes, fraction=0.02, pad=0.01, aspect=30)
    bar.set_label(metric_name(main_metric(table)))
    bar.outline.set_visible(False)
    return fig


@styled
def layer_profile(table: pd.DataFrame) -> Figure:
    """One panel per region: score and 95 % interval of every layer in the order of its model, and the ceiling.

    With several subjects the bold line is their mean, without interval, and each of them is a thin line.
    """
    metric = main_metric(table)
    table = table.assign(target=targets(table))
    mean = averaged(table)
    layers, regions = layers_of(mean), list(mean["target"].unique())
    place = _places(layers)
    columns = 1 if len(regions) == 1 or len(layers) > 16 else 2
    rows = int(np.ceil(len(regions) / columns))
    fig = Figure(figsize=(WIDTH, 2.15 * rows + 1.3), layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    several = bool((mean["n_rows"] > 1).any())
    drawn = table["metric"] == metric
    best = best_layers(mean)
    for k, ax in enumerate(axes.flat):
        if k >= len(regions):
            ax.set_visible(False)
            continue
        part = mean[mean["target"] == regions[k]]
        _draw_ceiling(ax, part)
        if several:
            own = table[(table["target"] == regions[k]) & drawn]
            for _, rows_of_one in own.groupby(["subject", "seed"], sort=False, dropna=False):
                _draw_layers(ax, rows_of_one, place, thin=True)
        _draw_layers(ax, part, place)
        if regions[k] in best:
            row = part[(part["model"] == best[regions[k]][0]) & (part["layer"] == best[regions[k]][1])].iloc[0]
            x, y = place[best[regions[k]]], row["score"]
            ax.plot(x, y, marker="o", ms=12, mfc="none", mec=INK, mew=1.2, zorder=5)
        ax.set_title(regions[k], pad=18 if k < columns else 8)
        ax.grid(axis="y", color=FAINT, lw=0.6)
        ax.tick_params(axis="x", length=0)
        _name_layers(ax, place, layers, WIDTH / columns, models=k < columns, ticks=k + columns >= len(regions))
        if k % columns == 0:
            ax.set_ylabel(metric_name(metric))
    ax.set_xlim(-0.7, max(place.values()) + 0.7)
    shown = np.append(mean[["score", "ci_low", "ci_high", "ceiling"]].to_numpy(float), table["score"][drawn])
    low, high = np.nanmin(shown, initial=0.0), np.nanmax(shown, initial=0.05)
    ax.set_ylim(low - 0.07 * (high - low) if low < 0 else 0, high + 0.07 * (high - low))
    fig.legend(handles=_profile_legend(mean, several), loc="outside lower right", ncols=6, columnspacing=1.4)
    return fig


def _grid(
    mean: pd.DataFrame, values: str, layers: Sequence | None = None, regions: Sequence | None = None
) -> np.ndarray:
    """(layer, region) array of one column of an averaged table."""
    wide = mean.pivot(index=["model", "layer"], columns="target", values=values)
    layers = layers_of(mean) if layers is None else layers
    regions = list(mean["target"].unique()) if regions is None else regions
    return wide.reindex(index=pd.MultiIndex.from_tuples(layers), columns=list(regions)).to_numpy(float)


def _score_scale(score: np.ndarray) -> Normalize:
    finite = score[np.isfinite(score)]
    low, high = min(0.0, finite.min(initial=0.0)), finite.max(initial=0.0)
    return Normalize(low, high if high > low else low + 1)


def _mesh(ax: Axes, score: np.ndarray, norm: Normalize) -> Any:
    mesh = ax.pcolormesh(np.ma.masked_invalid(score), cmap=SCORES, norm=norm, edgecolors="white", linewidth=1)
    for row, column in zip(*np.nonzero(~np.isfinite(score)), strict=True):
        ax.add_patch(Rectangle((column, row), 1, 1, fc="white", ec=BAND, hatch="////", lw=0))
    ax.invert_yaxis()
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return mesh


def _mark_best(ax: Axes, mean: pd.DataFrame, layers: Sequence, regions: Sequence) -> None:
    for region, layer in best_layers(mean).items():
        row, column = layers.index(layer), regions.index(region)
        ax.add_patch(Rectangle((column + 0.02, row + 0.02), 0.96, 0.96, fill=False, ec=INK, lw=1.6, zorder=4))
        ax.plot(column + 0.9, row + 0.22, "*", color="white", mec=INK, mew=0.7, ms=8, zorder=5)


def _label_regions(ax: Axes, regions: Sequence[str], width: float) -> None:
    """Region names above the cells, `width` inches each; upright where they do not fit."""
    upright = max(map(len, regions)) * 0.075 > width
    ax.xaxis.tick_top()
    ax.set_xticks(np.arange(0.5, len(regions)), regions, rotation=90 if upright else 0)


def _separate_models(ax: Axes, layers: list, reach: float = 0.0) -> None:
    """Thin lines between models, drawn out over the labels by `reach` widths of the axes."""
    row = 0
    over: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "clip_on": False}
    for _, members in list(by_model(layers))[:-1]:
        row += len(members)
        (line,) = ax.plot([-reach, 1], [row, row], color=MUTED, lw=0.7, zorder=3, **over)
        line.set_in_layout(False)  # it lies over the labels, which have room already


def _places(layers: list[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """Position of every layer on the axis, with a gap between models."""
    place, x = {}, 0.0
    for model, members in by_model(layers):
        for layer in members:
            place[model, layer] = x
            x += 1
        x += 0.7
    return place


def _draw_ceiling(ax: Axes, part: pd.DataFrame) -> None:
    high, low = part["ceiling"].median(), part["ceiling_low"].median()
    if not np.isfinite(high):
        ax.text(0.995, 0.97, "ceiling unknown", transform=ax.transAxes, ha="right", va="top", color=MUTED, fontsize=8)
    elif np.isfinite(low):
        ax.axhspan(low, high, color=BAND, lw=0, alpha=0.75, zorder=0)
    else:
        ax.axhspan(high, high + 10, color=BAND, lw=0, alpha=0.35, zorder=0)
        ax.axhline(high, color=MUTED, lw=1.2, ls=(0, (5, 2)), zorder=1)


def _draw_layers(ax: Axes, part: pd.DataFrame, place: dict, thin: bool = False) -> None:
    for _, rows in part.groupby("model", sort=False):
        x = np.array([place[layer] for layer in zip(rows["model"], rows["layer"], strict=True)])
        rows, x = rows.iloc[np.argsort(x)], np.sort(x)
        score = rows["score"].to_numpy(float)
        marker = "D" if len(x) == 1 else "o"
        if thin:
            ax.plot(x, score, color=ACCENT, lw=0.7, alpha=0.4, marker=marker if len(x) == 1 else "", ms=3, mew=0)
            continue
        bounds = rows[["ci_low", "ci_high"]].to_numpy(float)
        beyond = np.clip(np.stack([score - bounds[:, 0], bounds[:, 1] - score]), 0, None)
        ax.errorbar(x, score, yerr=beyond, fmt="none", ecolor=ACCENT, elinewidth=1.2, zorder=3)
        hollow = {"mfc": "white", "mec": ACCENT, "mew": 1.3} if len(x) == 1 else {}
        ax.plot(x, score, color=ACCENT, marker=marker, ms=5, zorder=4, **hollow)  # type: ignore[arg-type]


def _name_layers(ax: Axes, place: dict, layers: list, width: float, models: bool, ticks: bool) -> None:
    """Layer names below the axis, or every so many of them; names of models with several layers above it."""
    per_inch = (max(place.values()) + 1.4) / (width - 0.8)
    step = int(np.ceil(per_inch * 0.16))
    shown, names = [], []
    for model, members in by_model(layers):
        for k in range(0, len(members), step):
            shown.append(place[model, members[k]])
            names.append(clip(members[k] if len(members) > 1 else model, 28) or model)
        if len(members) > 1 and models:
            first, last = place[model, members[0]], place[model, members[-1]]
            room = max(4, int((last - first + 1.4) / per_inch / 0.068))
            name = model if len(model) <= room else model[: room - 1] + "…"
            over = {"transform": ax.get_xaxis_transform(), "clip_on": False}
            ax.plot([first - 0.3, last + 0.3], [1.03, 1.03], color=MUTED, lw=0.7, **over)  # type: ignore[arg-type]
            ax.text((first + last) / 2, 1.045, name, ha="center", va="bottom", fontsize=8, color=MUTED, **over)  # type: ignore[arg-type]
    ax.set_xticks(shown, names, rotation=45, ha="right", rotation_mode="anchor")
    ax.tick_params(axis="x", labelbottom=ticks)


def _profile_legend(mean: pd.DataFrame, several: bool) -> list[Any]:
    counts = mean.drop_duplicates(["model", "layer"])["model"].value_counts()
    handles: list[Any] = []
    if (counts > 1).any():
        handles.append(Line2D([], [], color=ACCENT, marker="o", ms=5, label="layers of a model"))
    if (counts == 1).any():
        handles.append(
            Line2D([], [], ls="", marker="D", ms=5, mfc="white", mec=ACCENT, mew=1.3, label="single-layer model")
        )
    if several:
        handles.append(Line2D([], [], color=ACCENT, lw=0.7, alpha=0.6, label="one subject"))
    handles.append(Line2D([], [], ls="", marker="o", ms=10, mfc="none", mec=INK, mew=1.2, label="best"))
    if mean["ceiling"].notna().any():
        if mean["ceiling_low"].notna().any():
            handles.append(Patch(fc=BAND, alpha=0.75, label="noise ceiling"))
        else:
            handles.append(Line2D([], [], color=MUTED, lw=1.2, ls=(0, (5, 2)), label="noise ceiling"))
    return handles


# -------------------------------------------------------------------------------------------------------- units


@styled
def unit_histograms(units: pd.DataFrame) -> Figure:
    """Unit scores of one layer per region against their ceilings.

    Parameters
    ----------
    units : pandas.DataFrame
        Columns target, model, layer, metric, score, ceiling; one model, layer and metric per target. Below 3000
        units per target a scatter of score over ceiling stands under the histogram.
    """
    groups = list(units.groupby("target", sort=False))
    ceilings = units["ceiling"].notna().any()
    scatter = bool(ceilings) and max(len(group) for _, group in groups) < 3000
    columns = min(4, max(2, len(groups)))
    rows = int(np.ceil(len(groups) / columns))
    heights = [1.5, 2.3] if scatter else [2.0]
    fig = Figure(
        figsize=(WIDTH * columns / 4 if columns < 4 else WIDTH, rows * (sum(heights) + 0.7)), layout="constrained"
    )
    axes = fig.subplots(
        rows * len(heights), columns, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights * rows}
    )
    values = units[["score", "ceiling"]].to_numpy(float)
    low, high = np.nanmin(values, initial=0.0), np.nanmax(values, initial=0.05)
    bins = np.linspace(low, high, 31)
    for k in range(rows * columns):
        row, column = k // columns * len(heights), k % columns
        if k >= len(groups):
            for below in range(len(heights)):
                axes[row + below, column].set_visible(False)
            continue
        target, group = groups[k]
        top, bottom = axes[row, column], axes[row + len(heights) - 1, column]
        score, ceiling = group["score"].to_numpy(float), group["ceiling"].to_numpy(float)
        _draw_histogram(top, score, ceiling, bins)
        top.set_title(str(target), pad=16)
        best = clip(layer_name(group["model"].iloc[0], group["layer"].iloc[0]), 34)
        top.text(0, 1.02, best, transform=top.transAxes, fontsize=8, color=MUTED, va="bottom")
        if scatter and not np.isfinite(ceiling).any():
            bottom.text(0.5, 0.5, "ceiling unknown", transform=bottom.transAxes, ha="center", color=MUTED)
        elif scatter:
            bottom.plot(bins[[0, -1]], bins[[0, -1]], color=MUTED, lw=0.8, ls=(0, (5, 2)))
            bottom.scatter(score, ceiling, s=7, color=ACCENT, alpha=0.35, lw=0, rasterized=len(score) > 400)
            bottom.grid(color=FAINT, lw=0.6)
            bottom.set_ylim(bottom=np.nanmin(ceiling, initial=0.0))
        if column == 0:
            bottom.set_ylabel("ceiling of the unit")
            top.set_ylabel("units")
        bottom.set_xlabel(metric_name(str(group["metric"].iloc[0])))
        bottom.tick_params(labelbottom=True)
    handles = [Patch(fc=ACCENT, alpha=0.8, label="score"), Patch(fc=BAND, ec=MUTED, lw=0.8, label="ceiling")]
    fig.legend(handles=handles[: 2 if ceilings else 1], loc="outside lower right", ncols=2)
    return fig


def _draw_histogram(ax: Axes, score: np.ndarray, ceiling: np.ndarray, bins: np.ndarray) -> None:
    edges = bins.tolist()
    ax.hist(ceiling[np.isfinite(ceiling)], bins=edges, color=BAND)
    ax.hist(score[np.isfinite(score)], bins=edges, color=ACCENT, alpha=0.8)
    ax.hist(ceiling[np.isfinite(ceiling)], bins=edges, histtype="step", color=MUTED, lw=0.8)
    for values, colour in ((ceiling, MUTED), (score, INK)):
        if np.isfinite(values).any():
            ax.axvline(np.nanmedian(values), color=colour, lw=1, ls=(0, (2, 1.5)))
    ax.tick_params(axis="y", length=0)
