"""All layers of a model as the bands of one encoder: the score of the whole, and the part of each layer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .crossval import (
    Fold,
    Pattern,
    check_request,
    finite_mean,
    fit_encoder,
    layer_matrix,
    models_of,
    outer_folds,
    patterns_of,
    uncertainty,
    unit_table,
    warn_unscored,
)
from .encoding import unit_ceilings
from .prediction import METRICS, shuffles, unit_scores
from .provenance import provenance
from .region_scores import region_scores
from .score import Evidence, Score, tabulate

if TYPE_CHECKING:
    from ..datasets.recording import Recording
    from ..encoders.features.store import Features

log = logging.getLogger("neuralign")

WHOLE = "all"  # what the table calls all layers together
FORMULA = "bands-1"


def score_bands(
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
    """Score how well all layers of a model together predict each region, and what part of the score each layer has.

    The layers of a model are the feature spaces of one banded encoder, in which each has a penalty of its own. The
    score of its predictions is split over layers by the product measure (`encoders.split_r2`, `encoders.split_r`).
    Where layers resemble each other, a part says how the fit shared the work out among them, not what a layer could
    do alone, which `align.score` says, nor what it alone can do, which `align.variance_partition` says.

    Parameters
    ----------
    features : Features or sequence of Features
        One model or several, each with all its layers; joined with the recording by stimulus id.
    brain : Recording
        Responses (presentation, unit); repeats are averaged.
    encoder : scikit-learn regressor, optional
        One with a parameter `spaces`, which is set to the number of columns of each layer, and a method
        `predict_by_band`. Default ``BandedRidgeCV(score="r2")``. It is given features that are standardised with the
        training rows, and layers that are brought to the same total variance, so that equal penalties mean the same
        for a layer of ten features and one of ten thousand.
    cv, by, groups, metrics, ceiling, bootstrap, permutations, seed
        As in `align.score`; with the same seed the folds are the same.

    Returns
    -------
    pandas.DataFrame
        One row per model, layer, subject, value of `by` and metric; see `Score`.

        - layer "all": the score of all layers together, with ceiling, interval and p as in `align.score`.
        - any other layer: its part of that score. Parts add up to the whole and have no ceiling of their own; they may
          be negative, and one may exceed the whole where others take away from it.

        ``table.attrs["evidence"].units`` holds the scores and parts of every unit.

    Raises
    ------
    ValueError
        As `align.score`; if a layer is called "all", or if `encoder` has no bands.

    References
    ----------
    Dupré la Tour, T., Eickenberg, M., Nunez-Elizalde, A. O. & Gallant, J. L. (2022). Feature-space selection with
    banded ridge regression. NeuroImage 264, 119728.
    """
    models = models_of(features)
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    check_request(brain, metrics, by, bootstrap, permutations)
    for model in models:
        if WHOLE in model.layers:
            raise ValueError(
                f"features: {model.model} has a layer called {WHOLE!r}, which stands for all layers together in the "
                "table; give it another name"
            )
    encoder = _checked_encoder(encoder)
    for_folds, for_ceiling, for_draws, for_shuffles = np.random.default_rng(seed).spawn(4)  # as in align.score
    mean = brain.average_repeats()
    folds = outer_folds(mean, cv, groups, for_folds)
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
    formula = f"{FORMULA} {type(encoder).__name__} cv={splits} ceiling={ceiling_name}: mean over folds and units"
    formula += f"; layers: parts of {WHOLE} by the product measure"
    formula += "; ci: basic bootstrap over stimuli" * bool(bootstrap)
    formula += "; p: stimuli shuffled within folds" * bool(permutations)
    common = {"dataset": brain.name, "formula": formula, "seed": seed_shown}
    scores: list[Score] = []
    units: list[pd.DataFrame] = []
    stimuli = mean.presentations["stimulus"].tolist()
    for model in models:
        rows = model.rows(stimuli)
        matrices = [layer_matrix(model, layer, rows) for layer in model.layers]
        log.info("%s: fitting %d layers together", model.model, len(matrices))
        predicted, parts = _predict(encoder, matrices, observed, patterns, group_codes, metrics)
        whole, limits = {}, {}
        for metric in metrics:
            whole[metric] = np.full(mean.n_units, np.nan)
            limits[metric] = ceilings if metric == "r2" else np.sqrt(ceilings)
            for pattern in patterns:
                p, y = predicted[:, pattern.units], observed[:, pattern.units]
                whole[metric][pattern.units] = unit_scores(p, y, pattern.tests, metric)
        for i, layer in enumerate([WHOLE, *model.layers]):
            for metric in metrics:
                per_unit = parts[metric][i - 1] if i else whole[metric]
                limit = np.full(mean.n_units, np.nan) if i else limits[metric]
                units.append(unit_table(model.model, layer, mean.units, metric, per_unit, limit))
                scored = np.isfinite(whole[metric])

                def sureness(some, part=bool(i), predicted=predicted, per_unit=per_unit, metric=metric):
                    if part:
                        return np.nan, np.nan, np.nan
                    value = finite_mean(per_unit[some])
                    return uncertainty(predicted, observed, patterns, some, metric, value, draws, orders)

                row = {"model": model.model, "layer": layer, "metric": metric} | common
                scores += region_scores(mean, observed, per_unit, limit, scored, by, sureness, **row)
    evidence = Evidence(
        units=pd.concat(units, ignore_index=True),
        provenance=provenance(
            analysis="bands", encoder=repr(encoder), cv=splits, ceiling=ceiling_name, seed=seed_shown
        ),
    )
    return tabulate(scores, evidence)


def is_part(table: pd.DataFrame) -> pd.Series:
    """Rows of a table of scores that are parts of another row's score: not to be ranked among scores."""
    return table["formula"].astype(str).str.startswith(FORMULA) & (table["layer"] != WHOLE)


def _checked_encoder(encoder: Any) -> Any:
    if encoder is None:
        from ..encoders import BandedRidgeCV

        return BandedRidgeCV(score="r2")
    bands = not isinstance(encoder, type) and hasattr(encoder, "get_params") and hasattr(encoder, "predict_by_band")
    if not (bands and "spaces" in encoder.get_params()):
        raise ValueError(
            f"encoder is {encoder!r}; expected a regressor with a parameter spaces and a method predict_by_band, such "
            "as BandedRidgeCV()"
        )
    return encoder


def _predict(
    encoder: Any,
    matrices: list[np.ndarray],
    observed: np.ndarray,
    patterns: list[Pattern],
    groups: np.ndarray | None,
    metrics: list[str],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Predictions of held-out rows (stimulus, unit), and for each metric the part of every layer (layer, unit).

    Parts are means over the folds in which a unit varies, as the scores that they add up to.
    """
    from sklearn.base import clone

    fresh = clone(encoder).set_params(spaces=[X.shape[1] for X in matrices])
    # In float64: where penalties are large, predictions vary by less than float32 resolves beside their mean.
    predicted = np.full(observed.shape, np.nan)
    total = {metric: np.zeros((len(matrices), observed.shape[1])) for metric in metrics}
    n_folds = {metric: np.zeros(observed.shape[1]) for metric in metrics}
    for pattern in patterns:
        for train, test in pattern.folds:
            Y, held_out = observed[np.ix_(train, pattern.units)], observed[np.ix_(test, pattern.units)]
            # A unit may be constant on these training rows alone; what it is then predicted to be is that constant.
            varies = np.ptp(Y, axis=0) > 0
            offset = Y[0].astype(np.float64)
            by_band = np.zeros((len(matrices), *held_out.shape), np.float32)
            if varies.any():
                X_train, X_test = _standardised(matrices, (train, test))
                labels = None if groups is None else groups[train]
                fitted = fit_encoder(fresh, X_train, Y[:, varies], labels)
                by_band[:, :, varies] = fitted.predict_by_band(X_test).reshape(len(matrices), len(test), -1)
                whole = np.asarray(fitted.predict(X_test), np.float64).reshape(len(test), -1)
                offset[varies] = (whole - by_band[:, :, varies].sum(0, dtype=np.float64)).mean(0)
            together = by_band.sum(0, dtype=np.float64) + offset
            predicted[np.ix_(test, pattern.units)] = together
            for metric in metrics:
                parts = _split(by_band, held_out, offset, metric)
                if metric == "r":  # a prediction that hardly varies has none, and neither have its parts
                    parts *= unit_scores(together, held_out, [np.arange(len(test))], metric) != 0
                known = np.isfinite(parts).all(0)
                total[metric][:, pattern.units[known]] += parts[:, known]
                n_folds[metric][pattern.units[known]] += 1
    with np.errstate(invalid="ignore"):
        return predicted, {metric: total[metric] / n_folds[metric] for metric in metrics}


def _standardised(matrices: list[np.ndarray], fold: Fold) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows of all layers side by side, on scales that the training rows set."""
    train, test = fold
    varying = [np.ptp(X[train], axis=0) > 0 for X in matrices]
    sizes = np.maximum(1, [varies.sum() for varies in varying])
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for X, varies, size in zip(matrices, varying, sizes, strict=True):
        mean, spread = X[train].mean(0, dtype=np.float64), X[train].std(0, dtype=np.float64)
        scale = np.where(varies, spread, 1) * np.sqrt(size / sizes.mean())
        for side, rows in zip(sides, (train, test), strict=True):
            side.append(((X[rows] - mean) / scale).astype(X.dtype if X.dtype == np.float32 else np.float64))
    return np.concatenate(sides[0], axis=1), np.concatenate(sides[1], axis=1)


def _split(by_band: np.ndarray, observed: np.ndarray, offset: np.ndarray, metric: str) -> np.ndarray:
    """Parts (layer, unit) of the score of one fold; NaN where a unit does not vary in it."""
    from ..encoders import split_r, split_r2

    with warnings.catch_warnings():
        # Such a fold is left out of the score too, without a word as long as there is another.
        warnings.filterwarnings("ignore", message=".*are constant or lack responses", category=UserWarning)
        return split_r(by_band, observed) if metric == "r" else split_r2(by_band, observed, offset)
