"""Encoding scores: nested, leak-free cross-validation of features against responses."""

from __future__ import annotations

import inspect
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
from .prediction import METRICS, bootstrap_means, induced, permutation_means, shuffles, unit_scores, widened
from .provenance import provenance
from .score import Evidence, Score, normalise, refuse_twins, tabulate

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
        Default ``RidgeCV(score="r2", standardise=True)``: one alpha per unit, chosen within the training rows.
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
        have one name, or there are too few stimuli.
    """
    models = _as_list(features)
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    _check(brain, metrics, by, bootstrap, permutations)
    for_folds, for_ceiling, for_draws, for_shuffles = np.random.default_rng(seed).spawn(4)
    mean = brain.average_repeats()
    folds = _folds(mean, cv, groups, for_folds)
    if encoder is None:
        from ..encoders import RidgeCV

        encoder = RidgeCV(score="r2", standardise=True)
    observed = np.asarray(mean.read())
    patterns = list(_patterns(observed, folds))
    _warn_unscored(observed, patterns)
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
    scores: list[Score] = []
    units: list[pd.DataFrame] = []
    stimuli = mean.presentations["stimulus"].tolist()
    for model in models:
        rows = model.rows(stimuli)
        for layer in model.layers:
            log.info("%s %s: fitting", model.model, layer)
            X = np.asarray(model[layer])[rows].reshape(len(rows), -1)
            if not np.isfinite(X).all():
                bad = int((~np.isfinite(X).all(1)).sum())
                raise ValueError(
                    f"features: layer {layer!r} of {model.model} is NaN or infinite for {bad} of {n} stimuli"
                )
            predicted = _predict(encoder, X, observed, patterns, group_codes)
            for metric in metrics:
                per_unit = np.full(mean.n_units, np.nan)
                for pattern in patterns:
                    p, y = predicted[:, pattern.units], observed[:, pattern.units]
                    per_unit[pattern.units] = unit_scores(p, y, pattern.tests, metric)
                limit = ceilings if metric == "r2" else np.sqrt(ceilings)
                units.append(_unit_table(model.model, layer, mean.units, metric, per_unit, limit))
                for (subject, region), members in _members(mean.units, by):
                    scored = members & np.isfinite(per_unit)
                    limited = scored & np.isfinite(limit)
                    low, high, p_value = _uncertainty(
                        predicted, observed, patterns, scored, metric, _mean(per_unit[scored]), draws, orders
                    )
                    scores.append(
                        Score(
                            model=model.model,
                            layer=layer,
                            dataset=brain.name,
                            subject=subject,
                            region=region,
                            metric=metric,
                            score=_mean(per_unit[scored]),
                            ceiling=_mean(limit[limited]),
                            normalised=normalise(_mean(per_unit[limited]), _mean(limit[limited])),
                            ci_low=low,
                            ci_high=high,
                            p=p_value,
                            n_units=int(scored.sum()),
                            n_stimuli=int(np.isfinite(observed[:, members]).any(1).sum()),
                            formula=formula,
                            seed=seed_shown,
                        )
                    )
    evidence = Evidence(
        units=pd.concat(units, ignore_index=True),
        provenance=provenance(
            analysis="encoding", encoder=repr(encoder), cv=splits, ceiling=ceiling_name, seed=seed_shown
        ),
    )
    return tabulate(scores, evidence)


def _check(brain: Any, metrics: Sequence[str], by: str | None, bootstrap: int, permutations: int) -> None:
    if not hasattr(brain, "average_repeats"):
        raise ValueError(
            f"brain is {type(brain).__name__}; expected a Recording, from datasets.load or datasets.from_arrays"
            + ("; RDMs are scored by align.rsa" if hasattr(brain, "matrices") else "")
        )
    if not metrics:
        raise ValueError(f"metrics is empty; expected some of {', '.join(METRICS)}")
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(unknown("metrics", metric, METRICS))
    for name, count in (("bootstrap", bootstrap), ("permutations", permutations)):
        if count < 0:
            raise ValueError(f"{name}={count!r}; expected a number of resamples, or 0 for none.")
    if brain.is_time_resolved:
        raise ValueError(
            f"brain has responses over time, shape {tuple(brain.responses.shape)}; expected (presentation, unit): "
            "average a window first, brain.average_time(start, stop)"
        )
    if by is not None and by not in brain.units.columns:
        raise ValueError(unknown("by", by, brain.units.columns))


@dataclass(frozen=True)
class _Pattern:
    """Units that were recorded for the same stimuli, and the folds of those stimuli."""

    units: np.ndarray  # positions
    folds: list[Fold]
    kept: list[tuple[int, np.ndarray]]  # for each of them, which of all folds it is, and where in its test rows

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
    if not models:
        raise ValueError("features is an empty list; give at least one model's Features")
    refuse_twins([model.model for model in models])
    return models


def _folds(mean: Recording, cv: Any, groups: str | None, rng: np.random.Generator) -> list[Fold]:
    """Outer folds; training rows in random order, so that an encoder's own contiguous folds are random ones."""
    if isinstance(cv, str):
        if cv != "split":
            raise ValueError(unknown("cv", cv, ["split"], "Or a number of folds, or a list of (train, test) rows."))
        if "split" not in mean.presentations:
            raise ValueError("cv='split': brain.presentations has no column split with 'train' and 'test'")
        split = mean.presentations["split"].to_numpy()
        folds = [(np.flatnonzero(split == "train"), np.flatnonzero(split == "test"))]
    elif isinstance(cv, int | np.integer):
        folds = mean.folds(int(cv), seed=rng, groups=groups)
    else:
        from ..encoders.linear.folds import fold_rows

        rows = np.arange(mean.n_presentations)
        codes = None if groups is None else mean.presentations[groups].to_numpy()
        folds = fold_rows(cv, rows[:, None], rows, codes)
    return [(rng.permutation(train), test) for train, test in folds]


def _patterns(observed: np.ndarray, folds: list[Fold]) -> Iterator[_Pattern]:
    """Group usable units by the stimuli that they have responses for: subjects may have seen different ones."""
    finite = np.isfinite(observed)
    kinds, member = np.unique(finite, axis=1, return_inverse=True)
    member = np.ravel(member)
    for kind in range(kinds.shape[1]):
        seen = kinds[:, kind]
        subsets = [(train[seen[train]], test[seen[test]]) for train, test in folds]
        usable = [k for k, (train, test) in enumerate(subsets) if len(train) >= 2 and len(test) >= 2]
        kept = [(k, np.flatnonzero(seen[folds[k][1]])) for k in usable]
        units = np.flatnonzero(member == kind)
        varies = np.ptp(observed[np.ix_(seen, units)], axis=0) > 0 if seen.any() else np.zeros(len(units), bool)
        if kept and varies.any():
            yield _Pattern(units[varies], [subsets[k] for k in usable], kept)


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


def _predict(
    encoder: Any, X: np.ndarray, observed: np.ndarray, patterns: list[_Pattern], groups: np.ndarray | None
) -> np.ndarray:
    """Predictions of held-out rows, NaN where a unit has none; `groups` go to an encoder that takes them."""
    from sklearn.base import clone

    takes_groups = groups is not None and "groups" in inspect.signature(encoder.fit).parameters
    predicted = np.full(observed.shape, np.nan, np.float32)
    for pattern in patterns:
        for train, test in pattern.folds:
            Y = observed[np.ix_(train, pattern.units)]
            # A unit may be constant on these training rows alone; what it is then predicted to be is that constant.
            varies = np.ptp(Y, axis=0) > 0
            predicted[np.ix_(test, pattern.units[~varies])] = Y[0, ~varies]
            if varies.any():
                extra = {"groups": groups[train]} if takes_groups and groups is not None else {}
                fitted = clone(encoder).fit(X[train], Y[:, varies], **extra)
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
    scored: np.ndarray,
    metric: str,
    score: float,
    draws: np.ndarray,
    orders: list[np.ndarray],
) -> tuple[float, float, float]:
    """95 % interval and p value of the mean over the units in the mask `scored`."""
    parts = [(pattern, pattern.units[scored[pattern.units]]) for pattern in patterns]
    parts = [(pattern, units) for pattern, units in parts if len(units)]
    if not parts:
        return np.nan, np.nan, np.nan
    share = np.array([len(units) for _, units in parts]) / scored.sum()
    low = high = p_value = np.nan
    if len(draws):
        means = [bootstrap_means(predicted[:, u], observed[:, u], p.tests, metric, draws) for p, u in parts]
        low, high = basic_interval(score, np.average(means, axis=0, weights=share), metric)
    if len(orders[0]):
        nulls = [
            permutation_means(
                predicted[:, u], observed[:, u], p.tests, metric, [induced(orders[k], kept) for k, kept in p.kept]
            )
            for p, u in parts
        ]
        null = widened(np.average(nulls, axis=0, weights=share), len(orders))
        p_value = float(permutation_p(np.array([score]), null[:, None])[0])
    return low, high, p_value


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else np.nan
