"""Which layer predicts each unit best, chosen on the training folds and scored on the one held out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .crossval import (
    Fold,
    check_request,
    fit_encoder,
    layer_matrix,
    models_of,
    outer_folds,
    patterns_of,
    rows_of,
    warn_unscored,
)
from .prediction import unit_scores
from .provenance import provenance
from .readouts import fitted_for
from .score import Evidence

if TYPE_CHECKING:
    from ..datasets.recording import Recording
    from ..encoders.features.store import Features

log = logging.getLogger("neuralign")

COLUMNS = ["model", "subject", "region", "unit", "layer", "agreement", "score", "n_folds"]
_INNER_FOLDS = 5


def best_layer(
    features: Features | Sequence[Features],
    brain: Recording,
    encoder: Any = None,
    cv: Any = 5,
    groups: str | None = None,
    metric: str = "r2",
    seed: int | np.random.Generator = 0,
) -> pd.DataFrame:
    """Best layer of every unit, and how well layers chosen that way predict stimuli that had no part in the choice.

    In every outer fold, each layer is fitted to the training rows and cross-validated within them; a unit takes the
    layer with the highest cross-validated score, and only the prediction of that layer is scored on the rows held out.
    The highest of the scores of all layers on held-out rows, which is often reported, is not: as a maximum over noise
    it is above zero for a unit that no layer predicts, and the more so the more layers there are.

    Parameters
    ----------
    features : Features or sequence of Features
        One model or several, each with two layers or more; joined with the recording by stimulus id. Layers are chosen
        within a model.
    brain : Recording
        Responses (presentation, unit); repeats are averaged.
    encoder : scikit-learn regressor, optional
        Default ``RidgeCV(score="r2", standardise=True)``. Where a fitted encoder has ``cv_score_``, one value per
        unit, that chooses the layer, in the encoder's own metric; any other is refitted in five folds of the
        training rows, scored by `metric`. An encoder of spatial tokens is given the grid of each layer, as in
        `align.score`.
    cv : int, "split", scikit-learn splitter, or sequence of (train, test)
        Outer folds, as in `align.score`; with the same seed they are the same.
    groups : str, optional
        Column of ``brain.presentations`` whose values are never on both sides of a fold, outer or inner.
    metric : {"r2", "r"}
        Of the score on held-out rows.
    seed : int
        Of folds.

    Returns
    -------
    pandas.DataFrame
        One row per model and unit, with columns model, subject, region and unit, and

        - layer: the one chosen in most folds, of equally many the first; NaN where none had a score to be chosen by.
        - agreement: share of folds that chose it. Near one over the number of layers, the layers cannot be told apart.
        - score: of the chosen layer on the fold held out, averaged over folds. It belongs to the choice, which
          may differ from fold to fold, and not to `layer` alone.
        - n_folds: folds in which the unit was scored.

        ``table.attrs["evidence"].units`` holds the layer and the score of every fold.

    Raises
    ------
    ValueError
        If a model has fewer than two layers, responses are time-resolved, stimuli are missing from the features or
        their features are NaN, or there are too few stimuli.

    References
    ----------
    Güçlü, U. & van Gerven, M. A. J. (2015). Deep neural networks reveal a gradient in the complexity of neural
    representations across the ventral stream. Journal of Neuroscience 35, 10005-10014.

    Kriegeskorte, N., Simmons, W. K., Bellgowan, P. S. F. & Baker, C. I. (2009). Circular analysis in systems
    neuroscience: the dangers of double dipping. Nature Neuroscience 12, 535-540.
    """
    models = models_of(features)
    check_request(brain, [metric], None, 0, 0)
    for model in models:
        if len(model.layers) < 2:
            raise ValueError(
                f"features: {model.model} has {len(model.layers)} layer; expected two or more to choose from, e.g. "
                "encoders.extract(model, stimuli, layers=[...])"
            )
    for_folds, *_ = np.random.default_rng(seed).spawn(4)  # as in align.score, whose folds these are
    mean = brain.average_repeats()
    folds = outer_folds(mean, cv, groups, for_folds)
    if encoder is None:
        from ..encoders import RidgeCV

        encoder = RidgeCV(score="r2", standardise=True)
    readouts = {(model.model, layer): fitted_for(encoder, model, layer) for model in models for layer in model.layers}
    observed = np.asarray(mean.read())
    patterns = list(patterns_of(observed, folds))
    warn_unscored(observed, patterns)
    group_codes = None if groups is None else mean.presentations[groups].astype(str).to_numpy()

    stimuli = mean.presentations["stimulus"].tolist()
    tables, evidence = [], []
    for model in models:
        rows = model.rows(stimuli)
        chosen = np.full((len(folds), mean.n_units), -1)
        scores = np.full((len(folds), mean.n_units), np.nan)
        for pattern in patterns:
            for (k, _), (train, test) in zip(pattern.kept, pattern.folds, strict=True):
                log.info("%s: choosing layers without fold %d", model.model, k)
                Y = observed[:, pattern.units]
                varies = np.ptp(Y[train], axis=0) > 0
                # What has no layer chosen is scored all the same: to leave out folds in which training rows hold
                # nothing would bias the mean.
                predicted = np.tile(Y[train[0]].astype(np.float32), (len(test), 1))
                best = np.full(len(pattern.units), -np.inf)
                for i, layer in enumerate(model.layers if varies.any() else []):
                    X = layer_matrix(model, layer, rows)
                    readout = readouts[model.model, layer]
                    described = rows_of(mean.units, pattern.units[varies])
                    fold = (train, test)
                    criterion, prediction = _tried(readout, X, Y[:, varies], fold, group_codes, described, metric)
                    won = criterion > best[varies]
                    units = np.flatnonzero(varies)[won]
                    best[units] = criterion[won]
                    chosen[k, pattern.units[units]] = i
                    taken = won if i else np.full(len(won), True)
                    predicted[:, np.flatnonzero(varies)[taken]] = prediction[:, taken]
                scores[k, pattern.units] = unit_scores(predicted, Y[test], [np.arange(len(test))], metric)
        chosen[np.isnan(scores)] = -1  # where the response is constant on the rows held out
        tables.append(_summary(model, mean.units, chosen, scores))
        evidence.append(_by_fold(model, mean.units, chosen, scores))
    table = pd.concat(tables, ignore_index=True)
    table.attrs["evidence"] = Evidence(
        units=pd.concat(evidence, ignore_index=True),
        provenance=provenance(
            analysis="best layer",
            encoder=repr(encoder),
            metric=metric,
            cv=cv if isinstance(cv, int | str) else "own-folds",
            seed=int(seed) if isinstance(seed, int | np.integer) else None,
        ),
    )
    return table


def _tried(
    encoder: Any,
    X: np.ndarray,
    Y: np.ndarray,
    fold: Fold,
    groups: np.ndarray | None,
    units: pd.DataFrame,
    metric: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Cross-validated score (unit,) within the training rows, NaN where it has none, and predictions of test rows."""
    train, test = fold
    labels = None if groups is None else groups[train]
    fitted = fit_encoder(encoder, X[train], Y[train], labels, units)
    criterion = np.asarray(getattr(fitted, "cv_score_", None))
    if criterion.shape != (Y.shape[1],):
        criterion = _inner_scores(encoder, X[train], Y[train], labels, units, metric)
    return criterion, np.asarray(fitted.predict(X[test])).reshape(len(test), -1)


def _inner_scores(
    encoder: Any, X: np.ndarray, Y: np.ndarray, groups: np.ndarray | None, units: pd.DataFrame, metric: str
) -> np.ndarray:
    """Score (unit,) over folds of rows that are in random order already."""
    from ..encoders.linear.folds import fold_rows

    available = len(X) // 2 if groups is None else len(np.unique(groups))
    folds = fold_rows(min(_INNER_FOLDS, available), X, Y, groups)
    predicted = np.full(Y.shape, np.nan)
    for train, test in folds:
        inner = None if groups is None else groups[train]
        fitted = fit_encoder(encoder, X[train], Y[train], inner, units)
        predicted[test] = fitted.predict(X[test]).reshape(len(test), -1)
    return unit_scores(predicted, Y, [test for _, test in folds], metric)


def _summary(model: Features, units: pd.DataFrame, chosen: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """One row per unit; `chosen` is -1 where a fold chose no layer, `scores` NaN where it was not scored."""
    votes = np.stack([(chosen == i).sum(0) for i in range(len(model.layers))])
    scored = np.isfinite(scores)
    n_folds = scored.sum(0)
    layers = np.array([*model.layers, np.nan], dtype=object)
    with np.errstate(invalid="ignore"):
        columns = {
            "model": model.model,
            "layer": layers[np.where(votes.any(0), votes.argmax(0), -1)],
            "agreement": votes.max(0) / n_folds,
            "score": np.where(scored, scores, 0).sum(0) / n_folds,
            "n_folds": n_folds,
        }
    return units[["subject", "region", "unit"]].assign(**columns)[COLUMNS]


def _by_fold(model: Features, units: pd.DataFrame, chosen: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    layers = np.array([*model.layers, np.nan], dtype=object)
    parts = [
        units[["subject", "region", "unit"]].assign(model=model.model, fold=k, layer=layers[chosen[k]], score=scores[k])
        for k in range(len(chosen))
    ]
    return pd.concat(parts, ignore_index=True)[["model", "subject", "region", "unit", "fold", "layer", "score"]]
