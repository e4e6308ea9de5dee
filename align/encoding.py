"""Encoding scores: nested, leak-free cross-validation of features against responses."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..datasets.errors import unknown
from .ceiling import ncsnr_ceiling, split_half_ceiling
from .crossval import (
    check_request,
    finite_mean,
    layer_matrix,
    models_of,
    outer_folds,
    patterns_of,
    predict_held_out,
    uncertainty,
    unit_table,
    warn_unscored,
)
from .prediction import METRICS, shuffles, unit_scores
from .provenance import provenance
from .readouts import fitted_for
from .region_scores import region_scores
from .score import Evidence, Score, tabulate

if TYPE_CHECKING:
    from ..datasets.recording import Recording
    from ..encoders.features.store import Features

log = logging.getLogger("neuralign")

CEILINGS = ("auto", "split-half", "ncsnr", "none")


def score(
    features: Features | Sequence[Features],
    brain: Recording,
    encoder: Any = None,
    cv: Any = 5,
    by: str | None = "region",
    groups: str | None = None,
    metrics: str | Sequence[str] = METRICS,
    ceiling: str = "auto",
    bootstrap: int = 1000,
    permutations: int = 1000,
    seed: int | np.random.Generator = 0,
) -> pd.DataFrame:
    """Score how well each layer predicts each region, on stimuli that the fit has not seen.

    Repeats are averaged, so that a stimulus is one row. In every outer fold the encoder is fitted anew on the other
    folds, scaling and choice of alpha included, and predicts the rows held out.

    Parameters
    ----------
    features : Features or sequence of Features
        One model or several; joined with the recording by stimulus id.
    brain : Recording
        Responses (presentation, unit).
    encoder : scikit-learn regressor, optional
        Default ``RidgeCV(score="r2", standardise=True)``: one alpha per unit, chosen within the training rows. One that
        reads spatial tokens, such as `AttentionRouter`, is given the grid of each layer, and a `fit` with the parameter
        `units` the rows of ``brain.units`` that it is fitted to.
    cv : int, "split", scikit-learn splitter, or sequence of (train, test)
        Outer folds over stimuli, shuffled by `seed`; the recording's own train and test split; or folds over the rows
        of ``brain.average_repeats()``.
    by : str or None
        Column of ``brain.units`` over whose values units are averaged, per subject; None for all units.
    groups : str, optional
        Column of ``brain.presentations`` whose values are never on both sides of a fold, nor of the folds in which an
        encoder that takes groups chooses its alpha.
    metrics : sequence of {"r", "r2"}
        Pearson r, and the share of variance explained.
    ceiling : {"auto", "split-half", "ncsnr", "none"}
        Where the ceiling comes from; "auto" takes the repeats where there are any, else a column ncsnr of
        ``brain.units``.
    bootstrap, permutations : int
        Draws of stimuli for the 95 % interval, and shuffles of stimuli within folds for the p value; 0 leaves it out.
    seed : int
        Of folds, halves, draws and shuffles.

    Returns
    -------
    pandas.DataFrame
        One row per model, layer, subject, value of `by` and metric; see `Score`. The score is the mean over units of
        the mean over folds. The ceiling is the mean over units, one whose repeats do not agree counting as 0, and the
        normalised score is the ratio of the two over the units that have a ceiling. Intervals (basic bootstrap)
        generalise over stimuli, with the fitted encoders as they are; those of r2 lie above the score where folds are
        small, because a mean that is estimated within each fold lowers r2. p is one-sided, from predictions shuffled
        within folds; with several folds it is conservative (`align.prediction.widened`).
        ``table.attrs["evidence"].units`` holds the score of every unit.

    Raises
    ------
    ValueError
        If responses are time-resolved, stimuli are missing from the features or their features are NaN, two models
        have one name, there are too few stimuli, or an encoder of spatial tokens meets tokens without a grid.
    """
    models = models_of(features)
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    check_request(brain, metrics, by, bootstrap, permutations)
    for_folds, for_ceiling, for_draws, for_shuffles = np.random.default_rng(seed).spawn(4)
    mean = brain.average_repeats()
    folds = outer_folds(mean, cv, groups, for_folds)
    if encoder is None:
        from ..encoders import RidgeCV

        encoder = RidgeCV(score="r2", standardise=True)
    readouts = {(model.model, layer): fitted_for(encoder, model, layer) for model in models for layer in model.layers}
    observed = np.asarray(mean.read())
    patterns = list(patterns_of(observed, folds))
    warn_unscored(observed, patterns)
    ceilings, ceiling_name = unit_ceilings(brain, mean, ceiling, for_ceiling)
    n = mean.n_presentations
    draws = for_draws.multinomial(n, np.full(n, 1 / n), size=bootstrap)
    orders = [shuffles(len(test), permutations, for_shuffles) for _, test in folds]
    group_codes = None if groups is None else mean.presentations[groups].astype(str).to_numpy()

    splits = cv if isinstance(cv, int | str) else "own-folds"
    seed_shown = int(seed) if isinstance(seed, int | np.integer) else None
    formula = f"encoding-1 {type(encoder).__name__} cv={splits} ceiling={ceiling_name}: mean over folds and units"
    formula += "; ci: basic bootstrap over stimuli" * bool(bootstrap)
    formula += "; p: stimuli shuffled within folds" * bool(permutations)
    common = {"dataset": brain.name, "formula": formula, "seed": seed_shown}
    scores: list[Score] = []
    units: list[pd.DataFrame] = []
    stimuli = mean.presentations["stimulus"].tolist()
    for model in models:
        rows = model.rows(stimuli)
        for layer in model.layers:
            log.info("%s %s: fitting", model.model, layer)
            X = layer_matrix(model, layer, rows)
            readout = readouts[model.model, layer]
            predicted = predict_held_out(readout, X, observed, patterns, group_codes, units=mean.units)
            for metric in metrics:
                per_unit = np.full(mean.n_units, np.nan)
                for pattern in patterns:
                    p, y = predicted[:, pattern.units], observed[:, pattern.units]
                    per_unit[pattern.units] = unit_scores(p, y, pattern.tests, metric)
                limit = ceilings if metric == "r2" else np.sqrt(ceilings)
                units.append(unit_table(model.model, layer, mean.units, metric, per_unit, limit))
                scored = np.isfinite(per_unit)

                def sureness(some, predicted=predicted, per_unit=per_unit, metric=metric):
                    value = finite_mean(per_unit[some])
                    return uncertainty(predicted, observed, patterns, some, metric, value, draws, orders)

                row = {"model": model.model, "layer": layer, "metric": metric} | common
                scores += region_scores(mean, observed, per_unit, limit, scored, by, sureness, **row)
    evidence = Evidence(
        units=pd.concat(units, ignore_index=True),
        provenance=provenance(
            analysis="encoding", encoder=repr(encoder), cv=splits, ceiling=ceiling_name, seed=seed_shown
        ),
    )
    return tabulate(scores, evidence)


def unit_ceilings(
    brain: Recording, mean: Recording, source: str, seed: int | np.random.Generator
) -> tuple[np.ndarray, str]:
    """Explainable share of variance per unit, and the name of its source; NaN where there is none."""
    if source not in CEILINGS:
        raise ValueError(unknown("ceiling", source, CEILINGS))
    if source == "auto":
        repeated = bool((mean.presentations["n_repeats"] >= 2).any())
        source = "split-half" if repeated else "ncsnr" if "ncsnr" in brain.units else "none"
    if source == "split-half":
        return split_half_ceiling(brain, seed=seed), source
    if source == "ncsnr":
        if "ncsnr" not in brain.units:
            raise ValueError(unknown("ceiling='ncsnr' needs a column of brain.units: column", "ncsnr", brain.units))
        return ncsnr_ceiling(brain.units["ncsnr"].to_numpy(), mean.presentations["n_repeats"].to_numpy()), source
    return np.full(brain.n_units, np.nan), source
