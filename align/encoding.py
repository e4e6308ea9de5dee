"""Encoding scores: nested, leak-free cross-validation of features against responses."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..datasets.errors import unknown
from .ceiling import ncsnr_ceiling, split_half_ceiling
from .inference import basic_interval, permutation_p
from .prediction import METRICS, bootstrap_means, permutation_means, unit_scores
from .provenance import provenance
from .score import Evidence, Score, tabulate

if TYPE_CHECKING:
    from ..datasets.recording import Recording
    from ..encoders.features.store import Features

log = logging.getLogger("neuralign")

CEILINGS = ("auto", "split-half", "ncsnr", "none")
Fold = tuple[np.ndarray, np.ndarray]


def score(
    features: Features | Sequence[Features],
    brain: Recording,
    encoder: Any = None,
    cv: int | str | Sequence[Fold] = 5,
    by: str | None = "region",
    groups: str | None = None,
    metrics: Sequence[str] = METRICS,
    ceiling: str = "auto",
    bootstrap: int = 1000,
    permutations: int = 1000,
    seed: int = 0,
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
        Default ``RidgeCV(score="r2", standardise=True)``: one alpha per unit, chosen within the training rows.
    cv : int, "split" or sequence of (train, test)
        Outer folds over stimuli, shuffled by `seed`; the recording's own train and test split; or rows, in the order
        of ``brain.average_repeats()``.
    by : str or None
        Column of ``brain.units`` over whose values units are averaged, per subject; None for all units.
    groups : str, optional
        Column of ``brain.presentations`` whose values are never on both sides of a fold.
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
        the mean over folds; the ceiling is the mean over the same units, a unit whose repeats do not agree counting
        as 0; the normalised score is their ratio. Intervals (basic bootstrap) generalise over stimuli, with the
        fitted encoders as they are; those of r2 reach higher above the score than below it, because a mean that is
        estimated within each fold lowers r2. p is one-sided. ``table.attrs["evidence"].units`` holds the score of
        every unit.

    Raises
    ------
    ValueError
        If responses are time-resolved, stimuli are missing from the features, or there are too few stimuli.
    """
    models = _as_list(features)
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(unknown("metrics", metric, METRICS))
    if brain.is_time_resolved:
        raise ValueError(
            f"brain has responses over time, shape {tuple(brain.responses.shape)}; expected (presentation, unit): "
            "average a window first, brain.average_time(start, stop)"
        )
    if by is not None and by not in brain.units.columns:
        raise ValueError(unknown("by", by, brain.units.columns))
    mean = brain.average_repeats()
    folds = _folds(mean, cv, groups, seed)
    if encoder is None:
        from ..encoders import RidgeCV

        encoder = RidgeCV(score="r2", standardise=True)
    observed = np.asarray(mean.read())
    patterns = list(_patterns(observed, folds))
    _warn_unscored(observed, patterns)
    ceilings, ceiling_name = unit_ceilings(brain, mean, ceiling, seed)
    rng = np.random.default_rng(seed)
    n_stimuli = mean.n_presentations
    draws = rng.multinomial(n_stimuli, np.full(n_stimuli, 1 / n_stimuli), size=bootstrap) if bootstrap else None
    shuffle_seed = int(rng.integers(2**63))
    splits = cv if isinstance(cv, int | str) else "own-folds"

    scores: list[Score] = []
    units: list[pd.DataFrame] = []
    stimuli = mean.presentations["stimulus"].tolist()
    for model in models:
        rows = model.rows(stimuli)
        for layer in model.layers:
            log.info("%s %s: fitting", model.model, layer)
            X = np.asarray(model[layer])[rows].reshape(len(rows), -1)
            predicted = _predict(encoder, X, observed, patterns)
            for metric in metrics:
                per_unit = np.full(mean.n_units, np.nan)
                for pattern in patterns:
                    p, y = predicted[:, pattern.units], observed[:, pattern.units]
                    per_unit[pattern.units] = unit_scores(p, y, pattern.tests, metric)
                limit = ceilings if metric == "r2" else np.sqrt(ceilings)
                units.append(_unit_table(model.model, layer, mean.units, metric, per_unit, limit))
                for (subject, region), members in _members(mean.units, by):
                    low, high, p_value = _uncertainty(
                        predicted, observed, patterns, members, metric, per_unit, draws, permutations, shuffle_seed
                    )
                    scores.append(
                        Score(
                            model=model.model,
                            layer=layer,
                            dataset=brain.name,
                            subject=subject,
                            region=region,
                            metric=metric,
                            score=_mean(per_unit[members]),
                            ceiling=_mean(limit[members & np.isfinite(per_unit)]),
                            ci_low=low,
                            ci_high=high,
                            p=p_value,
                            n_units=int(np.isfinite(per_unit[members]).sum()),
                            n_stimuli=int(np.isfinite(observed[:, members]).any(1).sum()),
                            formula=f"encoding-1 {type(encoder).__name__} cv={splits} ceiling={ceiling_name} "
                            "ci=stimuli p=stimuli",
                            seed=seed,
                        )
                    )
    evidence = Evidence(
        units=pd.concat(units, ignore_index=True),
        provenance=provenance(analysis="encoding", encoder=repr(encoder), cv=splits, ceiling=ceiling_name, seed=seed),
    )
    return tabulate(scores, evidence)


@dataclass(frozen=True)
class _Pattern:
    """Units that were recorded for the same stimuli, and the folds of those stimuli."""

    units: np.ndarray  # positions
    folds: list[Fold]

    @property
    def tests(self) -> list[np.ndarray]:
        return [test for _, test in self.folds]


def _as_list(features: Features | Sequence[Features]) -> list[Features]:
    models: list[Any] = list(features) if isinstance(features, list | tuple) else [features]
    for model in models:
        if not hasattr(model, "layers") or not hasattr(model, "rows"):
            raise ValueError(
                f"features holds {type(model).__name__}; expected Features, as encoders.extract returns them, "
                "or Features(model, stimulus_ids, {layer: array}) for arrays of your own"
            )
    return models


def _folds(mean: Recording, cv: int | str | Sequence[Fold], groups: str | None, seed: int) -> list[Fold]:
    if isinstance(cv, str):
        if cv != "split":
            raise ValueError(unknown("cv", cv, ["split"], "Or a number of folds, or a list of (train, test) rows."))
        if "split" not in mean.presentations:
            raise ValueError("cv='split': brain.presentations has no column split with 'train' and 'test'")
        split = mean.presentations["split"].to_numpy()
        return [(np.flatnonzero(split == "train"), np.flatnonzero(split == "test"))]
    if isinstance(cv, int):
        return mean.folds(cv, seed=seed, groups=groups)
    return [(np.asarray(train), np.asarray(test)) for train, test in cv]


def _patterns(observed: np.ndarray, folds: list[Fold]) -> Iterator[_Pattern]:
    """Group usable units by the stimuli that they have responses for: subjects may have seen different ones."""
    finite = np.isfinite(observed)
    kinds, member = np.unique(finite, axis=1, return_inverse=True)
    member = np.ravel(member)
    for kind in range(kinds.shape[1]):
        seen = kinds[:, kind]
        kept = [(train[seen[train]], test[seen[test]]) for train, test in folds]
        kept = [(train, test) for train, test in kept if len(train) >= 2 and len(test) >= 2]
        units = np.flatnonzero(member == kind)
        varies = np.ptp(observed[np.ix_(seen, units)], axis=0) > 0 if seen.any() else np.zeros(len(units), bool)
        if kept and varies.any():
            yield _Pattern(units[varies], kept)


def _warn_unscored(observed: np.ndarray, patterns: list[_Pattern]) -> None:
    n_units = observed.shape[1]
    n_scored = sum(len(pattern.units) for pattern in patterns)
    if n_scored == 0:
        raise ValueError(
            f"brain: none of {n_units} units can be scored: responses are constant or missing, or there are fewer "
            "than 2 stimuli on each side of every fold; take fewer folds or more stimuli"
        )
    if n_scored < n_units:
        warnings.warn(
            f"{n_units - n_scored} of {n_units} units are constant or lack responses; their scores are NaN",
            stacklevel=3,
        )


def unit_ceilings(brain: Recording, mean: Recording, source: str, seed: int) -> tuple[np.ndarray, str]:
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


def _predict(encoder: Any, X: np.ndarray, observed: np.ndarray, patterns: list[_Pattern]) -> np.ndarray:
    """Predictions of held-out rows, NaN where a unit has none."""
    from sklearn.base import clone

    predicted = np.full(observed.shape, np.nan, np.float32)
    for pattern in patterns:
        for train, test in pattern.folds:
            Y = observed[np.ix_(train, pattern.units)]
            # A unit may be constant on these training rows alone; what it is then predicted to be is that constant.
            varies = np.ptp(Y, axis=0) > 0
            predicted[np.ix_(test, pattern.units[~varies])] = Y[0, ~varies]
            if varies.any():
                fitted = clone(encoder).fit(X[train], Y[:, varies])
                out = np.asarray(fitted.predict(X[test])).reshape(len(test), -1)
                predicted[np.ix_(test, pattern.units[varies])] = out
    return predicted


def _unit_table(
    model: str, layer: str, units: pd.DataFrame, metric: str, scores: np.ndarray, limit: np.ndarray
) -> pd.DataFrame:
    table = units[["subject", "region", "unit"]].copy()
    table.insert(0, "model", model)
    table.insert(1, "layer", layer)
    return table.assign(metric=metric, score=scores, ceiling=limit)


def _members(units: pd.DataFrame, by: str | None) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
    """Subject and value of `by`, with the mask of their units, in order of appearance."""
    values = units[by].astype(str) if by is not None else pd.Series("all", index=units.index)
    pairs = pd.DataFrame({"subject": units["subject"].astype(str), "value": values})
    for subject, value in pairs.drop_duplicates().itertuples(index=False):
        yield (subject, value), ((pairs["subject"] == subject) & (pairs["value"] == value)).to_numpy()


def _uncertainty(
    predicted: np.ndarray,
    observed: np.ndarray,
    patterns: list[_Pattern],
    members: np.ndarray,
    metric: str,
    per_unit: np.ndarray,
    draws: np.ndarray | None,
    permutations: int,
    seed: int,
) -> tuple[float, float, float]:
    """95 % interval and p value of the mean over the scored units among `members`."""
    parts = [(p, p.units[members[p.units] & np.isfinite(per_unit[p.units])]) for p in patterns]
    parts = [(pattern, units) for pattern, units in parts if len(units)]
    if not parts:
        return np.nan, np.nan, np.nan
    share = np.array([len(units) for _, units in parts], float)
    share /= share.sum()
    low = high = p_value = np.nan
    observed_mean = _mean(per_unit[members])
    if draws is not None:
        means = [bootstrap_means(predicted[:, u], observed[:, u], p.tests, metric, draws) for p, u in parts]
        low, high = basic_interval(observed_mean, np.average(means, axis=0, weights=share))
    if permutations:
        rng = np.random.default_rng(seed)  # the same shuffles for every layer and region, so that p values compare
        nulls = [
            permutation_means(predicted[:, u], observed[:, u], p.tests, metric, permutations, rng) for p, u in parts
        ]
        null = np.average(nulls, axis=0, weights=share)
        p_value = float(permutation_p(np.array([observed_mean]), null[:, None])[0])
    return low, high, p_value


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else np.nan
