"""The sections of a page about inference: models against each other, thresholds, and time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..inference.tests import NULL_ELSEWHERE
from . import inference_figures
from .parts import Section, ceiling_words, picture
from .rdm_sections import Evidences
from .summary import at_peak, averaged, best_layers, layer_name, main_metric, metric_name

if TYPE_CHECKING:
    from ..inference import ModelComparison

MOST_COMPARED = 40  # models; a grid of more pairs is not read
_OVER = {
    "stimuli": "another draw of stimuli, for these subjects",
    "subjects": "another draw of subjects, on these stimuli",
    "both": "another draw of both stimuli and subjects",
}


def comparison_section(evidence: Evidences) -> Section | None:
    """Bars with intervals and ceiling, and which pairs of models are told apart."""
    parts = []
    for _, found in evidence:
        for region, comparison in found.comparison.items():
            if not 0 < len(comparison.names) <= MOST_COMPARED:
                continue
            metric = metric_name(comparison.method)
            caption = f"{metric} of every model with the RDMs of {region or 'the brain'}"
            if comparison.n_subjects > 1:
                caption += f", mean over {comparison.n_subjects} subjects (dots: each)"
            if comparison.over in _OVER:
                caption += f". Lines: 95 % intervals for {_OVER[comparison.over]}"
            caption += f". {_tests(comparison)}".rstrip()
            if np.isfinite(comparison.ceiling).all():
                caption += " Grey band: between the lower and the upper bound of the noise ceiling."
            if len(comparison.names) > 1 and comparison.over in _OVER:
                caption += (
                    " Grid: a square where the model of the row is above that of the column at a false discovery rate "
                    "of 5 % over all pairs; a dot where the data do not tell them apart."
                )
            scored = dict(zip(comparison.names, comparison.scores, strict=True))
            alt = f"Bars of {metric} per model: " + "; ".join(f"{name} {score:.2f}" for name, score in scored.items())
            parts.append(
                Section(region or "brain", [picture(inference_figures.model_bars(comparison), alt + ".", caption)])
            )
    if not parts:
        return None
    if len(parts) == 1:
        return Section("Models compared", parts[0].pictures)
    return Section("Models compared", parts=parts)


def _tests(comparison: ModelComparison) -> str:
    """What the colours of the bars say."""
    tested, untested = inference_figures.tested_against(comparison)
    said = [f"Pale: not above {'zero' if tested == '0' else tested} (one-sided p > .05)."] if tested else []
    if untested:
        said.append("Grey bars: not tested against zero" if tested else "No bar is tested against zero")
        if comparison.method in NULL_ELSEWHERE:
            said[-1] += ", which is not what unrelated RDMs score by this comparison"
        said[-1] += "."
    return " ".join(said)


def identification_section(evidence: Evidences) -> Section | None:
    """Accuracy over the thresholds of the topological transform."""
    pictures = []
    for _, found in evidence:
        if found.identification is None:
            continue
        table = found.identification.table
        best = table["accuracy"].max()
        caption = (
            "How often the RDM of one subject or instance is assigned to the right region or layer by the others', "
            "after a transform that keeps the dissimilarities between a lower and an upper threshold. Top left: all "
            "of the geometry; towards the diagonal: only who is near whom. The highest of so many cells is a little "
            "flattering; the means on the right, over all cells of a type, are not."
        )
        alt = f"Heatmap of accuracy by lower and upper threshold, at most {best:.2f}."
        pictures.append(picture(inference_figures.threshold_heatmap(found.identification), alt, caption))
    return Section("Identification by thresholds", pictures) if pictures else None


def time_section(table: pd.DataFrame) -> Section | None:
    """RSA scores over time."""
    if not table["score"].notna().any():
        return None
    pictures = []
    for _, rows in table.groupby("formula", sort=False):
        metric = metric_name(main_metric(rows))
        caption = (
            f"{metric} between RDMs over time. In colour: the layers that are highest at the peak of a region"
            f"{', the best with its 95 % interval' if rows['ci_low'].notna().any() else ''}; grey: the others. Neither "
            "intervals nor p values are corrected for the number of times."
        )
        caption += f" {ceiling_words(rows)}".rstrip()
        best = best_layers(averaged(at_peak(rows)))
        alt = (
            f"Courses of {metric} over time. Best: "
            + "; ".join(f"{k}: {layer_name(*v)}" for k, v in best.items())
            + "."
        )
        pictures.append(picture(inference_figures.time_courses(rows), alt, caption))
    return Section("RSA over time", pictures)
