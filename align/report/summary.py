"""What a tidy table of scores says: the layers in order, means over subjects, and the best layer per region."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from ..inference import ModelComparison

METRIC_NAMES = {
    "r": "Pearson r",
    "r2": "R²",
    "pearson": "Pearson r",
    "spearman": "Spearman rho",
    "rho-a": "Spearman rho-a",
    "tau-a": "Kendall tau-a",
    "tau-b": "Kendall tau-b",
    "cosine": "Cosine similarity",
    "cosine-whitened": "Whitened cosine",
    "pearson-whitened": "Whitened Pearson r",
    "bures": "Bures similarity",
    "riemannian": "Negative Riemannian distance",
}
# What `align.rsa` writes into its formula.
_TRANSFORMED = re.compile(r"RG[TD]M from .*?(?=, (?:mean over|RDM averaged))")
_DRAWN = re.compile(r"; ci: (?:dual )?bootstrap over ([^;,]+)")
_MEANS = ["score", "ceiling", "ceiling_low", "normalised"]
_SINGLE = ["ci_low", "ci_high", "p"]
_KEYS = ["model", "layer", "target"]


def is_geometry(table: pd.DataFrame) -> pd.Series:
    """Rows that compare RDMs; all others are encoding scores."""
    return table["formula"].astype(str).str.startswith("rsa")


def is_timed(table: pd.DataFrame) -> pd.Series:
    """Rows that belong to one window of time, in seconds in the column time; all others are without time."""
    return table["time"].notna() if "time" in table else pd.Series(False, index=table.index)


def transforms_of(table: pd.DataFrame) -> str:
    """The transform that RDMs of a table of RSA went through, "" for none."""
    return _in_formulas(table, _TRANSFORMED)


def drawn_in(table: pd.DataFrame) -> str:
    """What the intervals of a table of RSA are over: stimuli, subjects or both; "" where there are none."""
    return _in_formulas(table, _DRAWN)


def makings(table: pd.DataFrame) -> list[str]:
    """What must be known to read scores of RSA: the transform of the RDMs, and what the intervals are over."""
    transform, drawn = transforms_of(table), drawn_in(table)
    return ([f"RDMs through {transform}"] if transform else []) + ([f"intervals over {drawn}"] if drawn else [])


def _in_formulas(table: pd.DataFrame, pattern: re.Pattern[str]) -> str:
    formulas = table.loc[is_geometry(table), "formula"].astype(str).unique()
    found = [match[match.re.groups] for match in map(pattern.search, formulas) if match]
    return " or ".join(dict.fromkeys(found))


def at_peak(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of every target at the time of its highest score (mean over subjects); rows without time as they are."""
    timed = is_timed(table)
    if not timed.any():
        return table
    rows = table[timed & (table["metric"] == main_metric(table))]
    rows = rows.assign(target=targets(table).loc[rows.index])
    mean = rows.groupby(["target", "model", "layer", "time"], sort=False)["score"].mean().dropna()
    peak = mean.groupby("target", sort=False).idxmax()
    at = {target: key[3] for target, key in peak.items()}
    return table[~timed | (table["time"] == targets(table).map(at))]


def main_metric(table: pd.DataFrame) -> str:
    """The metric that figures show: r where there is one, else the first."""
    metrics = table["metric"].unique()
    return "r" if "r" in metrics else str(metrics[0])


def metric_name(metric: str) -> str:
    """How an axis or a sentence calls a metric."""
    return METRIC_NAMES.get(metric, metric)


def targets(table: pd.DataFrame) -> pd.Series:
    """What is predicted, per row: the region, and the dataset too where there are several.

    A table that is part of a larger one brings the names that this has there in a column target.
    """
    if "target" in table:
        return table["target"].astype(str)
    region = table["region"].astype(str)
    region = region.where(region != "", "brain")
    dataset = table["dataset"].astype(str)
    return dataset + " · " + region if dataset.nunique() > 1 else region


def layer_name(model: str, layer: str) -> str:
    """Model and layer as one name; a model that is one layer goes by its own."""
    return model if layer in ("", model) else f"{model} · {layer}"


def averaged(table: pd.DataFrame) -> pd.DataFrame:
    """One row per model, layer and target for the main metric: the mean over subjects (and seeds).

    Returns
    -------
    pandas.DataFrame
        Columns model, layer, target, score, ceiling, ceiling_low, normalised (means of what is known), ci_low,
        ci_high, p (NaN where several rows were averaged: their intervals cannot be), lowest, highest (score),
        n_rows, n_subjects. Models, layers and targets in order of appearance, the layers of a model together.
    """
    table = table[table["metric"] == main_metric(table)]
    table = table.assign(target=targets(table))
    groups = table.groupby(_KEYS, sort=False)
    mean = groups[_MEANS].mean()
    alone = groups.size() == 1
    mean[_SINGLE] = groups[_SINGLE].first().where(alone, np.nan)
    mean["lowest"], mean["highest"] = groups["score"].min(), groups["score"].max()
    mean["n_rows"] = groups.size()
    mean["n_subjects"] = groups["subject"].nunique()
    mean = mean.reset_index()
    rank = {model: k for k, model in enumerate(mean["model"].unique())}
    return mean.sort_values("model", key=lambda models: models.map(rank), kind="stable", ignore_index=True)


def layers_of(mean: pd.DataFrame) -> list[tuple[str, str]]:
    """Every (model, layer) of an averaged table, in its order."""
    return list(mean[["model", "layer"]].drop_duplicates().itertuples(index=False, name=None))


def by_model(layers: list[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """Models with their layers, from neighbouring (model, layer) pairs."""
    models = list(dict.fromkeys(model for model, _ in layers))
    for model in models:
        yield model, [layer for owner, layer in layers if owner == model]


def best_layers(mean: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """The (model, layer) with the highest score per target; targets without any score are left out."""
    scored = mean.dropna(subset=["score"])
    rows = scored.loc[scored.groupby("target", sort=False)["score"].idxmax()]
    keys = zip(rows["model"].tolist(), rows["layer"].tolist(), strict=True)
    return dict(zip(rows["target"].tolist(), keys, strict=True))


def headlines(table: pd.DataFrame, comparisons: Mapping[str, ModelComparison] | None = None) -> list[str]:
    """One plain sentence per target: its best layer with score, interval, ceiling and share of the ceiling.

    Of scores over time, those at the highest. With a comparison of the models on a target, the sentence says where
    the best is told apart from none of the others.
    """
    table = at_peak(table)
    mean = averaged(table)
    metric = main_metric(table)
    times = dict(zip(targets(table), table["time"], strict=True)) if is_timed(table).all() else {}
    geometry = bool(is_geometry(table).all())
    best = best_layers(mean)
    transform, drawn = transforms_of(table), drawn_in(table)
    sentences = []
    for target in mean["target"].unique().tolist():
        rows = mean[mean["target"] == target]
        if target not in best:
            sentences.append(f"{target} could not be scored.")
            continue
        model, layer = best[target]
        row = rows[(rows["model"] == model) & (rows["layer"] == layer)].iloc[0]
        name = model if layer in ("", model) else f"{model} / {layer}"
        of = f"The geometry of {target}" + (f" (RDMs through {transform})" if transform else "")
        said = f"{of} is best matched" if geometry else f"{target} is best predicted"
        mean_of = "mean " if row["n_rows"] > 1 else ""
        said += f" by {name}"
        said += _not_told_apart((comparisons or {}).get(target), model, layer, metric)
        if target in times:
            said += f", at {times[target]:.3g}\u00a0s"
        said += f": {mean_of}{'R²' if metric == 'r2' else metric} = {short(row['score'])}"
        if math.isfinite(row["ci_low"]):
            said += f" [{short(row['ci_low'])}, {short(row['ci_high'])}]"
            said += f" over {drawn}" if drawn else ""
        if row["n_rows"] > 1:
            said += f" over {row['n_rows']} {'subjects' if row['n_subjects'] == row['n_rows'] else 'results'}"
            said += f" ({short(row['lowest'])} to {short(row['highest'])})"
        if not math.isfinite(row["ceiling"]):
            said += ", ceiling unknown"
        elif not math.isfinite(row["normalised"]):
            said += f", ceiling {short(row['ceiling'])}"
        else:
            said += f", ceiling {short(row['ceiling'])}, {percent(row['normalised'])} of it"
        if row["p"] > 0.05:
            said += f"; not above chance (p\u00a0=\u00a0{short(row['p'])})"
        sentences.append(said + ".")
    return sentences


def _not_told_apart(comparison: ModelComparison | None, model: str, layer: str, metric: str) -> str:
    """That a comparison tells this model apart from none of the others; "" where it does, or does not know it."""
    name = " ".join(dict.fromkeys(filter(None, (model, layer))))
    if comparison is None or comparison.over == "none" or comparison.method != metric or name not in comparison.names:
        return ""
    pairs = comparison.pairwise()
    own = pairs[(pairs["first"] == name) | (pairs["second"] == name)]
    if not len(own) or (own["p_corrected"] <= 0.05).any():
        return ""
    others = "the other model" if len(own) == 1 else f"any of the other {len(own)} models"
    over = {"both": "stimuli and subjects"}.get(comparison.over, comparison.over)
    return f", which cannot be told from {others} (over {over}; FDR\u00a05\u00a0%)"


def short(value: float) -> str:
    """Two decimals without the zero in front, as correlations are printed; an en dash for NaN."""
    if not math.isfinite(value):
        return "–"
    text = f"{abs(value):.2f}".removeprefix("0")
    return ("−" if value < 0 and text != ".00" else "") + text


def percent(value: float) -> str:
    """A share as a whole percentage; empty for NaN."""
    return f"{round(100 * value)}\u00a0%".replace("-", "−") if math.isfinite(value) else ""
