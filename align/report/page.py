"""The page of a report: its sections with figures and captions, and the table, as one HTML text."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader

from ..bands import is_part
from ..provenance import provenance
from ..results import NUMBERS, csv_text
from ..score import COLUMNS, Evidence, tabulate
from . import figures
from .inference_sections import comparison_section, identification_section, time_section
from .parts import Picture, Section, ceiling_words, picture
from .rdm_sections import gallery_section, layer_section, map_section
from .routing_sections import routing_headlines, routing_lede, routing_section
from .summary import (
    averaged,
    best_layers,
    headlines,
    is_geometry,
    is_timed,
    layer_name,
    main_metric,
    metric_name,
    targets,
)

if TYPE_CHECKING:
    from ...encoders.routing.maps import RoutingMaps
    from ..inference import ModelComparison

MOST_SUBJECTS = 8
# Columns that stand above the table instead of in it where they are the same in every row.
CONSTANTS = ("dataset", "formula", "seed")


def render(tables: list[pd.DataFrame], beside: Sequence[Evidence] = ()) -> str:
    """The page about these tables of scores, and about evidence beside them, as text; either may be missing."""
    tables = [table for table in tables if len(table)]
    table = pd.concat([_bare(part) for part in tables], ignore_index=True) if tables else tabulate([])
    named = table.assign(target=targets(table.drop(columns="target", errors="ignore")))
    named = named.drop_duplicates([*COLUMNS, *{"time"}.intersection(named)])
    # Parts of a score stand in the table; they are no scores to be ranked or drawn as a profile.
    scores, geometry = named[~is_geometry(named) & ~is_part(named)], named[is_geometry(named)]
    static, timed = geometry[~is_timed(geometry)], geometry[is_timed(geometry)]
    evidence = [(_bare(part), part.attrs["evidence"]) for part in tables if "evidence" in part.attrs]
    evidence += [(table.iloc[:0], found) for found in beside]
    sections = [
        _score_section("Encoding scores", scores, _SCORE_HEATMAP, _SCORE_PROFILE),
        _unit_section(table[~is_part(table)], evidence),
        routing_section(evidence),
        gallery_section(evidence),
        _score_section("RSA scores", static, _RSA_HEATMAP, _RSA_PROFILE),
        time_section(timed),
        comparison_section(evidence),
        identification_section(evidence),
        map_section(evidence),
        layer_section(evidence),
    ]
    routes = [found.routing for _, found in evidence if found.routing is not None]
    page = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html")
    return page.render(
        lede=" ".join([*([_lede(table)] if len(table) else []), *map(routing_lede, routes)]),
        headlines=[
            *_all_headlines(scores, geometry, _comparisons(named, evidence)),
            *_routing_headlines(routes, table),
        ],
        sections=[section for section in sections if section is not None],
        table=_table(table),
        csv="data:text/csv;charset=utf-8;base64," + base64.b64encode(csv_text(table).encode()).decode(),
        makings=[(_what(part), _making(found.provenance)) for part, found in evidence if found.provenance],
        has_table=len(table) > 0,
        has_routing=len(routes) > 0,
        has_scores=len(scores) > 0,
        has_geometry=len(geometry) > 0,
        has_time=len(timed) > 0,
        has_comparison=any(found.comparison for _, found in evidence),
        formulas=table["formula"].drop_duplicates().tolist(),
        versions=", ".join(f"{name} {number}" for name, number in provenance()["versions"].items()),
    )


def _bare(table: pd.DataFrame) -> pd.DataFrame:
    """The table without its evidence, which concatenation would compare."""
    bare = table.copy()
    bare.attrs = {}
    return bare


# ---------------------------------------------------------------------------------------------------------- head


def _lede(table: pd.DataFrame) -> str:
    models = table["model"].unique()
    n_layers = len(table[["model", "layer"]].drop_duplicates())
    n_regions = targets(table).nunique()
    said = f"{_count(len(models), 'model')} ({_listed(models)}) with {_count(n_layers, 'layer')} in all, compared with "
    datasets = _listed([name for name in table["dataset"].unique() if name])
    said += f"{_count(n_regions, 'region')} of {datasets or 'one brain'}"
    subjects = [name for name in table["subject"].unique() if name and not str(name).startswith("group of ")]
    if len(subjects) > 1:
        said += f" in {len(subjects)} subjects"
    n_stimuli = table["n_stimuli"].max()
    return said + (f", on {_count(int(n_stimuli), 'stimulus', 'stimuli')}." if n_stimuli > 0 else ".")


def _comparisons(
    named: pd.DataFrame, evidence: Sequence[tuple[pd.DataFrame, Evidence]]
) -> dict[tuple[str, str], ModelComparison]:
    """How models compare with each other, by formula and target of the table.

    A comparison beside the tables does not name its region; it belongs to the table where there is only one.
    """
    found: dict[tuple[str, str], ModelComparison] = {}
    rsa = named[is_geometry(named)]
    for part, one in evidence:
        for region, comparison in one.comparison.items():
            rows = rsa if not len(part) else rsa[rsa["formula"].isin(part["formula"]) & (rsa["region"] == region)]
            if len(part):
                rows = rows[rows["dataset"].isin(part["dataset"])]
            keys = list(rows[["formula", "target"]].drop_duplicates().itertuples(index=False, name=None))
            if len(keys) == 1:
                found.setdefault(keys[0], comparison)
    return found


def _all_headlines(
    scores: pd.DataFrame, geometry: pd.DataFrame, comparisons: Mapping[tuple[str, str], ModelComparison]
) -> Iterator[tuple[str, list[str]]]:
    """Sentences with what they are about, where that is not plain from there being one kind only."""
    for name, part, other in (("Encoding", scores, geometry), ("RSA", geometry, scores)):
        formulas = list(part.groupby("formula", sort=False))
        for formula, rows in formulas:
            heading = name if len(other) or len(formulas) > 1 else ""
            on = {target: found for (made, target), found in comparisons.items() if made == formula}
            yield (f"{heading}: {formula}" if len(formulas) > 1 else heading), headlines(rows, on)


def _routing_headlines(routes: Sequence[RoutingMaps], table: pd.DataFrame) -> Iterator[tuple[str, list[str]]]:
    """Sentences about routing maps, with whose they are where that is not plain."""
    for k, maps in enumerate(routes, 1):
        sentences = routing_headlines(maps)
        if sentences:
            plain = not len(table) and len(routes) == 1
            which = maps.name or (f"maps {k}" if len(routes) > 1 else "")
            yield "" if plain else f"Routing: {which}" if which else "Routing", sentences


def _count(n: int, singular: str, plural: str = "") -> str:
    return f"{n} {singular if n == 1 else plural or singular + 's'}"


def _listed(names: Any, most: int = 6) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# ------------------------------------------------------------------------------------------------------- scores

_SCORE_HEATMAP = (
    "How well each layer (row) predicts each region (column) on stimuli that the fit has not seen: {metric}{mean}. "
    "{share}Framed with a star: the best layer of the region.{hatched}"
)
_SCORE_PROFILE = (
    "{metric} from the first to the last layer of each model. {intervals} {ceiling} Look for where along a model "
    "each region peaks{controls}."
)
_RSA_HEATMAP = (
    "How closely the geometry of each layer (row) matches that of each region (column): {metric} between their "
    "RDMs{mean}. {share}Framed with a star: the best layer of the region.{hatched}"
)
_RSA_PROFILE = "{metric} between RDMs from the first to the last layer of each model. {intervals} {ceiling}"


def _score_section(title: str, table: pd.DataFrame, heatmap: str, profile: str) -> Section | None:
    if not table["score"].notna().any():
        return None
    formulas = list(table.groupby("formula", sort=False))
    if len(formulas) == 1:
        return Section(title, _score_pictures(table, heatmap, profile))
    parts = [Section(str(formula), _score_pictures(rows, heatmap, profile)) for formula, rows in formulas]
    return Section(title, parts=[part for part in parts if part.pictures])


def _score_pictures(table: pd.DataFrame, heatmap: str, profile: str) -> list[Picture]:
    if not table["score"].notna().any():
        return []
    metric = metric_name(main_metric(table))
    mean = averaged(table)
    n_subjects = int(mean["n_subjects"].max())
    several = bool((mean["n_rows"] > 1).any())
    best = "; ".join(f"{target}: {layer_name(*layer)}" for target, layer in best_layers(mean).items())
    intervals = "Bars: 95 % interval."
    if several:
        intervals = "Bold: mean; thin: each subject, whose intervals are in the table."
    elif not mean["ci_low"].notna().any():
        intervals = ""
    n_layers = mean.drop_duplicates(["model", "layer"])["model"].value_counts()
    shares = n_layers.sum() <= figures.MOST_SHARES and mean["normalised"].notna().any()
    words = {
        "share": "Small type: share of the noise ceiling. " if shares else "",
        "metric": metric,
        "mean": f", mean over {n_subjects} subjects" if n_subjects > 1 else ", mean over seeds" if several else "",
        "intervals": intervals,
        "ceiling": ceiling_words(mean),
        "controls": ", and for how far above the models of a single layer" if 1 in n_layers.array else "",
        "hatched": " Hatched: not scored." if mean["score"].isna().any() else "",
    }
    pictures = [
        picture(
            figures.score_heatmap(table),
            f"Heatmap of {metric} by layer and region. Best: {best}.",
            heatmap.format(**words),
        )
    ]
    if 1 < n_subjects <= MOST_SUBJECTS:
        caption = f"The same, {metric}, for each of the {n_subjects} subjects on one colour scale: do they agree?"
        pictures.append(picture(figures.subject_heatmaps(table), f"Heatmaps of {metric} per subject.", caption))
    alt = f"Profile of {metric} over layers, one panel per region. Best: {best}."
    pictures.append(picture(figures.layer_profile(table), alt, profile.format(**words).strip()))
    return pictures


# -------------------------------------------------------------------------------------------------------- units


def _unit_section(table: pd.DataFrame, evidence: list[tuple[pd.DataFrame, Evidence]]) -> Section | None:
    several = table["dataset"].nunique() > 1
    chosen: dict[str, list[pd.DataFrame]] = {}
    for part, found in evidence:
        if not len(found.units):
            continue
        metric = main_metric(part)
        units = found.units[found.units["metric"] == metric]
        units = units.assign(target=units["region"].astype(str).replace("", "brain"))
        prefix = f"{part['dataset'].iloc[0]} · " if several else ""
        best = best_layers(averaged(part.assign(dataset="")))
        found_regions = units["target"].unique().tolist()
        for target in sorted(found_regions, key=[*best, *found_regions].index):
            rows = units[units["target"] == target]
            model, layer = best.get(target) or _best_by_units(rows)
            rows = rows[(rows["model"] == model) & (rows["layer"] == layer)]
            if rows["score"].notna().any():
                formula = str(part["formula"].iloc[0])
                chosen.setdefault(formula, []).append(rows.assign(target=f"{prefix}{target}"))
    if not chosen:
        return None
    pictures = []
    for rows_of_formula in chosen.values():
        units = pd.concat(rows_of_formula, ignore_index=True)
        metric = metric_name(str(units["metric"].iloc[0]))
        n_without = int(units["score"].isna().sum())
        caption = (
            f"{metric} of every unit under the best layer of its region (blue) against the ceilings of the same units "
            "(grey); dashed lines are medians."
        )
        if units["ceiling"].notna().any():
            caption += " Below: one dot per unit; above the dashed line the score is below the ceiling."
        if n_without:
            caption += f" {_count(n_without, 'unit')} could not be scored."
        medians = units.groupby("target", sort=False)["score"].median()
        alt = f"Histograms of unit {metric}. Medians: " + "; ".join(f"{k} {v:.2f}" for k, v in medians.items()) + "."
        pictures.append(picture(figures.unit_histograms(units), alt, caption))
    return Section("Unit scores against their ceilings", pictures)


def _best_by_units(units: pd.DataFrame) -> tuple[str, str]:
    """Where regions of the table are not those of the units: the layer with the highest mean score of units."""
    means = units.groupby(["model", "layer"], sort=False)["score"].mean()
    return means.fillna(-math.inf).idxmax()  # type: ignore[return-value]


# ----------------------------------------------------------------------------------------------- table and method


def _table(table: pd.DataFrame) -> dict[str, Any]:
    """Header and cells; a cell is (text, value to sort by), and numbers are told from text by their column."""
    constants = [c for c in CONSTANTS if len(table) > 1 and table[c].nunique(dropna=False) == 1]
    columns = [c for c in COLUMNS if c not in constants] + [c for c in table if c not in COLUMNS]
    numbers = [c for c in columns if c in NUMBERS or pd.api.types.is_numeric_dtype(table[c])]
    rows = [
        [_cell(value) if column in numbers else (str(value), "") for column, value in zip(columns, row, strict=True)]
        for row in table[columns].itertuples(index=False, name=None)
    ]
    shown = {c: _cell(table[c].iloc[0])[0] if c in NUMBERS else str(table[c].iloc[0]) for c in constants}
    return {
        "header": [(str(column), column in numbers) for column in columns],
        "rows": rows,
        "constants": {name: value for name, value in shown.items() if value not in ("", "–")},
    }


def _cell(value: Any) -> tuple[str, str]:
    number = float(value) if value is not None and not pd.isna(value) else math.nan
    if not math.isfinite(number):
        return "–", ""
    text = f"{number:.0f}" if isinstance(value, int | np.integer) else f"{number:.3f}"
    return text.replace("-", "−"), repr(number)


def _what(table: pd.DataFrame) -> str:
    """What a table holds, as a heading."""
    kinds = is_geometry(table)
    kind = "RSA" if kinds.all() else "Encoding scores" if not kinds.any() else "Scores"
    datasets = _listed([name for name in table["dataset"].unique() if name])
    return f"{kind} of {datasets}" if datasets else kind


def _making(made: Mapping[str, Any]) -> dict[str, str]:
    """Provenance as one line of text per item."""
    lines = {}
    for name, value in made.items():
        if isinstance(value, Mapping):
            joint = " " if name == "versions" else " = "
            lines[str(name)] = ", ".join(f"{key}{joint}{item}" for key, item in value.items())
        else:
            lines[str(name)] = str(value)
    return {name: text for name, text in lines.items() if text}
