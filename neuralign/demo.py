"""The demonstration, and tables that a terminal shows well."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from . import align, datasets, encoders

if TYPE_CHECKING:
    from .encoders import Model

log = logging.getLogger("neuralign")

MODELS = ("pixels", "gabor", "texture", "annotations", "resnet20-cifar-untrained")


def run(out: str | Path = "report.html", seed: int = 0, device: str = "auto") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Simulate a subject, score five models by encoding and by RSA, and write the report.

    Parameters
    ----------
    out : path
        The HTML page.
    seed : int
        Of the subject, the untrained network, folds and resampling.
    device : str
        See `encoders.extract`.

    Returns
    -------
    encoding, geometry : pandas.DataFrame
        Tables of `align.score` and `align.rsa`.
    """
    log.info("simulating 600 scenes and 1200 voxels of V1, V4, FFA and PPA")
    brain = datasets.simulate.visual_cortex(seed=seed)
    log.info("extracting features of %s", ", ".join(MODELS))
    features = [encoders.extract(name, brain.stimuli, reduce=8, seed=seed, device=device) for name in MODELS]
    log.info("scoring by cross-validated ridge regression")
    encoding = align.score(features, brain, encoders.RidgeCV(score="r2", standardise=True, device=device), seed=seed)
    log.info("comparing representational geometries")
    geometry = align.rsa(features, brain, bootstrap=200, permutations=200, seed=seed)
    log.info("drawing the report")
    align.report([encoding, geometry], out)
    return encoding, geometry


def summary(table: pd.DataFrame, metric: str = "r") -> str:
    """Normalised scores, models and layers by regions, the best of each region starred."""
    rows = table[table["metric"] == metric]
    wide = rows.pivot_table("normalised", ["model", "layer"], "region", sort=False)
    best = wide.max()
    marked = wide.apply(lambda column: [f"{v:.3f}{'*' if v == best[column.name] else ' '}" for v in column])
    return marked.rename_axis(columns=None).reset_index().to_string(index=False)


def readable(table: pd.DataFrame) -> str:
    """Every row of a tidy table of scores with its interval, ceiling and p; the best of each region starred."""
    parts = []
    for (dataset, metric), rows in table.groupby(["dataset", "metric"], sort=False):
        group = ["subject", "region"]
        best = rows.groupby(group)["score"].transform("max")
        shown = rows[["model", "layer", *group]].copy()
        shown[metric] = [f"{s:.3f}{'*' if s == b else ' '}" for s, b in zip(rows["score"], best, strict=True)]
        shown["95 % interval"] = [f"{a:.3f} to {b:.3f}" for a, b in zip(rows["ci_low"], rows["ci_high"], strict=True)]
        if rows["ceiling_low"].notna().any():
            shown["lower ceiling"] = rows["ceiling_low"].map("{:.3f}".format)
        shown["ceiling"] = rows["ceiling"].map("{:.3f}".format)
        shown["normalised"] = rows["normalised"].map("{:.3f}".format)
        shown["p"] = rows["p"].map("{:.3f}".format)
        n_units, n_stimuli = rows["n_units"].max(), rows["n_stimuli"].max()
        size = f"{n_stimuli} stimuli" + (f", {n_units} units a region at most" if n_units else "")
        parts.append(f"{dataset}: {metric}, {size} (* best)\n{shown.to_string(index=False)}")
    return "\n\n".join(parts)


def layer_table(model: Model) -> pd.DataFrame:
    """Layers of a model in the order of computation, with the shape of their output for one stimulus."""
    import numpy as np

    from .encoders.device import pick_device
    from .encoders.features.extract import trace_model

    if model.pool == "mean":
        example = datasets.StimulusSet.from_sentences(["The quick brown fox jumps over the lazy dog."])
    else:
        example = datasets.StimulusSet.from_images(
            np.full((2, 64, 64, 3), 128, np.uint8), table=pd.DataFrame({"label": ["one", "other"]})
        )
    calls = trace_model(model, example, pick_device("cpu"))
    chosen = model.layers
    rows = [(call.layer, " x ".join(map(str, call.shape)), "*" if call.layer in chosen else "") for call in calls]
    return pd.DataFrame(rows, columns=["layer", "shape", "default"])
