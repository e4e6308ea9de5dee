"""Tables that a terminal shows well."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from . import datasets
from .align.bands import WHOLE, is_part
from .align.report.summary import at_peak, is_timed, makings

if TYPE_CHECKING:
    from .align.inference import ModelComparison
    from .encoders import Model

MOST_PAIRS = 30  # of models; with more of them only those that are told apart are listed


def summary(table: pd.DataFrame, metric: str = "r") -> str:
    """Normalised scores, models and layers by regions, the best of each region starred."""
    rows = table[table["metric"] == metric]
    wide = rows.pivot_table("normalised", ["model", "layer"], "region", sort=False)
    marked = wide.apply(lambda column: _starred(column, column.max()))
    return aligned(marked.reset_index(), right=wide.columns)


def readable(table: pd.DataFrame) -> str:
    """Every row of a tidy table of scores with its interval, ceiling and p; the best of each region starred.

    The title of RSA says how RDMs were transformed and what the intervals are over. Parts of scores are not ranked.
    Of scores over time, those at the highest of each region. Where models were compared with each other, the pairs
    follow.
    """
    parts = []
    evidence = table.attrs.get("evidence")
    timed = is_timed(table).any()
    if timed:
        table = pd.concat([at_peak(rows) for _, rows in table.groupby(["dataset", "metric"], sort=False)])
    for (dataset, metric), found in table.groupby(["dataset", "metric"], sort=False):
        region = found.groupby(["subject", "region"], sort=False)
        rows = found.iloc[region.ngroup().argsort(kind="stable")]
        partial = is_part(rows)
        ranked = rows["score"].mask(partial)
        best = ranked.groupby([rows["subject"], rows["region"]], sort=False).transform("max")
        several = rows["subject"].nunique() > 1
        words = rows[["subject", "region", "model", "layer"]].drop(columns=[] if several else ["subject"])
        words = words.loc[:, (words != "").any()]  # given RDMs have no layers
        numbers: dict[str, pd.Series] = {"time (s)": _fixed(rows["time"])} if timed else {}
        numbers |= {str(metric): _fixed(rows["score"]) + (ranked == best).map({True: "*", False: " "})}
        if rows["ci_low"].notna().any():
            bounds = _fixed(rows["ci_low"]) + " to " + _fixed(rows["ci_high"])
            numbers["95 % interval"] = bounds.where(rows["ci_low"].notna(), "-")
        for column in ("ceiling_low", "ceiling", "normalised", "p"):
            if rows[column].notna().any():
                numbers["lower ceiling" if column == "ceiling_low" else column] = _fixed(rows[column])
        whose = [dataset] if several else [dataset, rows["subject"].iloc[0]]
        heading = ", ".join(dict.fromkeys(str(name) for name in whose if name))
        note = f"* best; layers are parts of {WHOLE}" if partial.any() else "* best"
        note += "; at the time of the highest score of each region" if timed else ""
        note += "".join(f"; {words}" for words in makings(rows))
        size = f"{metric}, {rows['n_stimuli'].max()} stimuli{_units(rows)} ({note})"
        body = aligned(pd.concat([words, pd.DataFrame(numbers)], axis=1), right=numbers)
        parts.append(f"{heading}: {size}\n{body}" if heading else f"{size}\n{body}")
    if evidence is not None:
        parts += [pairs(comparison, region) for region, comparison in evidence.comparison.items()]
    return "\n\n".join(parts)


def pairs(comparison: ModelComparison, region: str) -> str:
    """Differences of models in one region, with two-sided p values corrected for all pairs."""
    if len(comparison.names) < 2:
        return f"{region}: one model, nothing to compare it with".removeprefix(": ")
    table = comparison.pairwise()
    apart = table["p_corrected"] <= 0.05
    shown = table if len(table) <= MOST_PAIRS else table[apart]
    drawn = {"both": "stimuli and subjects"}.get(comparison.over, comparison.over)
    if len(table) == 1:
        said = f"the two models are {'' if apart.any() else 'not '}told apart"
    else:
        said = f"{apart.sum()} of {len(table)} pairs of models {'is' if apart.sum() == 1 else 'are'} told apart"
    heading = f"{region or 'models'}: {said} (over {drawn}; FDR 5 %)"
    if not len(shown):
        return heading
    differences = pd.DataFrame(
        {
            "difference": _fixed(shown["difference"]) + apart[shown.index].map({True: "*", False: " "}),
            "se": _fixed(shown["se"]),
            "p": _fixed(shown["p"]),
            "corrected": _fixed(shown["p_corrected"]),
        }
    )
    return (
        heading
        + "\n"
        + aligned(pd.concat([shown[["first", "second"]], differences], axis=1), right=list(map(str, differences)))
    )


def _units(rows: pd.DataFrame) -> str:
    most = rows["n_units"].max()
    if not most:  # given RDMs do not say how many units are behind them
        return ""
    each = " a region" if rows["region"].nunique() > 1 else ""
    return f", {'' if (rows['n_units'] == most).all() else 'up to '}{most} unit{'s' if most > 1 else ''}{each}"


def _fixed(numbers: pd.Series) -> pd.Series:
    return numbers.map(lambda number: "-" if pd.isna(number) else f"{number:.3f}")


def _starred(scores: pd.Series, best: float) -> pd.Series:
    return _fixed(scores) + (scores == best).map({True: "*", False: " "})


def aligned(table: pd.DataFrame, right: Collection[str] = ()) -> str:
    """A table as text: words from the left, numbers and the columns `right` to the right."""
    columns = []
    for name in table:
        column = table[name]
        to_right = name in right or (pd.api.types.is_numeric_dtype(column) and column.dtype != bool)
        cells = [str(name), *({True: "yes", False: "no"}[one] if column.dtype == bool else str(one) for one in column)]
        width = max(map(len, cells))
        columns.append([cell.rjust(width) if to_right else cell.ljust(width) for cell in cells])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def layer_table(model: Model) -> pd.DataFrame:
    """Layers of a model in the order of computation.

    Parameters
    ----------
    model : Model
        It is shown stimuli of the kind that it reads.

    Returns
    -------
    DataFrame
        ``layer``; ``shape`` of its output for one stimulus (numbers of tokens, frames and places depend on the stimuli
        in some models); ``depth``, from 0 for what the first block reads to 1 for the last block; ``facets``, where
        there are blocks with attention, by which their parts are asked for (``layer/q``); ``default``, a star if the
        layer stands for the model.

    Raises
    ------
    ValueError
        If the model reads none of the examples; the message is that of its preprocessing.
    """
    from .encoders.device import pick_device
    from .encoders.features.extract import trace_model
    from .encoders.features.layers import blocks, layer_tree

    calls = trace_model(*_shown(model), pick_device("cpu"))
    tree = layer_tree(model.module, calls)
    facets = tree[tree["kind"] == "facet"]
    of_block: dict[str, list[str]] = {}
    for layer, block in zip(facets["layer"], facets["parent"], strict=True):
        of_block.setdefault(block, []).append(layer.rpartition("/")[2])
    chosen = model.layers or blocks(model.module, calls)
    layers = tree[tree["kind"] != "facet"].reset_index(drop=True)
    table = pd.DataFrame(
        {
            "layer": layers["layer"],
            "shape": layers["shape"].map(lambda shape: " x ".join(map(str, shape))),
            "depth": layers["relative_depth"].round(3),
            "facets": layers["layer"].map(lambda layer: " ".join(of_block.get(layer, []))),
            "default": layers["layer"].isin(chosen).map({True: "*", False: ""}),
        }
    )
    every = {facet for found in of_block.values() for facet in found}
    return table.drop(columns="facets") if every <= {"input"} else table


def _shown(model: Model) -> tuple[Model, datasets.StimulusSet]:
    """A model as it reads the first kind of example that it accepts, and that example."""
    refusals: dict[str, str] = {}
    for example in _examples():
        inputs = model.inputs
        try:
            if hasattr(inputs, "reading"):
                inputs = inputs.reading(example)
            next(iter(inputs.batches(example, 2)))
        except ValueError as error:
            refusals[example.kind] = str(error)
            continue
        return replace(model, inputs=inputs), example
    modality = model.card.modality if model.card else ""
    told = refusals.get(modality) or "; ".join(dict.fromkeys(refusals.values()))
    raise ValueError(f"model {model.name}: no example of stimuli to show its layers with: {told}")


def _examples() -> Iterator[datasets.StimulusSet]:
    import numpy as np

    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (2, 64, 64, 3), np.uint8)
    yield datasets.StimulusSet.from_images(pixels, table=pd.DataFrame({"label": ["one", "other"]}))
    words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
    yield datasets.StimulusSet.from_sentences([" ".join(words) + ".", " ".join(words[::-1]) + "."])
    yield datasets.StimulusSet.from_clips(draw.integers(0, 256, (2, 16, 64, 64, 3), np.uint8), fps=8)
    yield datasets.StimulusSet.from_sounds(list(draw.normal(0, 0.1, (2, 16000))), 16000)
    seconds = np.arange(len(words)) / 3
    yield datasets.StimulusSet.from_words(words, seconds, np.full(len(words), 0.3))
