"""Outer folds, and predictions of the rows that they hold out: what every analysis by an encoder shares."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..datasets.errors import unknown
from .inference import basic_interval, permutation_p
from .prediction import METRICS, bootstrap_means, induced, permutation_means, widened
from .score import refuse_twins

if TYPE_CHECKING:
    from ..datasets.recording import Recording
    from ..encoders.features.store import Features

Fold = tuple[np.ndarray, np.ndarray]


def check_request(brain: Any, metrics: Sequence[str], by: str | None, bootstrap: int, permutations: int) -> None:
    """Refuse a recording that cannot be scored, and options out of their range."""
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


def models_of(features: Features | Sequence[Features]) -> list[Features]:
    """Features of one model or several as a list, each with a name of its own."""
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


def layer_matrix(model: Features, layer: str, rows: np.ndarray) -> np.ndarray:
    """Features (stimulus, feature) of one layer, refused if any are NaN or infinite."""
    X = np.asarray(model[layer])[rows].reshape(len(rows), -1)
    bad = int((~np.isfinite(X).all(1)).sum())
    if bad:
        raise ValueError(
            f"features: layer {layer!r} of {model.model} is NaN or infinite for {bad} of {len(rows)} stimuli"
        )
    return X


def outer_folds(mean: Recording, cv: Any, groups: str | None, rng: np.random.Generator) -> list[Fold]:
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


@dataclass(frozen=True)
class Pattern:
    """Units that were recorded for the same stimuli, and the folds of those stimuli."""

    units: np.ndarray  # positions
    folds: list[Fold]
    kept: list[tuple[int, np.ndarray]]  # for each of them, which of all folds it is, and where in its test rows

    @property
    def tests(self) -> list[np.ndarray]:
        return [test for _, test in self.folds]


def patterns_of(observed: np.ndarray, folds: list[Fold]) -> Iterator[Pattern]:
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
            yield Pattern(units[varies], [subsets[k] for k in usable], kept)


def warn_unscored(observed: np.ndarray, patterns: list[Pattern]) -> None:
    """One warning that counts the units without scores; an error if there is no other."""
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


def fit_encoder(
    encoder: Any, X: np.ndarray, Y: np.ndarray, groups: np.ndarray | None, units: pd.DataFrame | None = None
) -> Any:
    """A fresh encoder fitted to these rows; `groups` and the table of the units go to one that takes them."""
    from sklearn.base import clone

    offered = {"groups": groups, "units": units}
    taken = inspect.signature(encoder.fit).parameters
    return clone(encoder).fit(
        X, Y, **{name: value for name, value in offered.items() if value is not None and name in taken}
    )


def predict_held_out(
    encoder: Any,
    X: np.ndarray,
    observed: np.ndarray,
    patterns: list[Pattern],
    groups: np.ndarray | None,
    *,
    units: pd.DataFrame | None = None,
) -> np.ndarray:
    """Predictions of held-out rows, NaN where a unit has none.

    `groups`, one per row, and `units`, a table with one row per unit, go to an encoder whose `fit` takes them; of the
    table the rows of the units that are fitted together.
    """
    predicted = np.full(observed.shape, np.nan, np.float32)
    for pattern in patterns:
        for train, test in pattern.folds:
            Y = observed[np.ix_(train, pattern.units)]
            # A unit may be constant on these training rows alone; what it is then predicted to be is that constant.
            varies = np.ptp(Y, axis=0) > 0
            predicted[np.ix_(test, pattern.units[~varies])] = Y[0, ~varies]
            if varies.any():
                labels = None if groups is None else groups[train]
                described = None if units is None else rows_of(units, pattern.units[varies])
                fitted = fit_encoder(encoder, X[train], Y[:, varies], labels, described)
                out = np.asarray(fitted.predict(X[test])).reshape(len(test), -1)
                predicted[np.ix_(test, pattern.units[varies])] = out
    return predicted


def rows_of(units: pd.DataFrame, positions: np.ndarray) -> pd.DataFrame:
    """Rows of the table of units by position, counted anew."""
    return units.iloc[positions].reset_index(drop=True)


def unit_table(
    model: str, layer: str, units: pd.DataFrame, metric: str, scores: np.ndarray, limit: np.ndarray
) -> pd.DataFrame:
    """Score and ceiling of every unit, as the evidence behind a table holds them."""
    table = units[["subject", "region", "unit"]].copy()
    table.insert(0, "model", model)
    table.insert(1, "layer", layer)
    return table.assign(metric=metric, score=scores, ceiling=limit)


def members_of(units: pd.DataFrame, by: str | None) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
    """Subject and value of `by`, with the mask of their units, in order of appearance."""
    values = units[by].astype(str) if by is not None else pd.Series("all", index=units.index)
    pairs = pd.DataFrame({"subject": units["subject"].astype(str), "value": values})
    for subject, value in pairs.drop_duplicates().itertuples(index=False):
        yield (subject, value), ((pairs["subject"] == subject) & (pairs["value"] == value)).to_numpy()


def uncertainty(
    predicted: np.ndarray,
    observed: np.ndarray,
    patterns: list[Pattern],
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


def finite_mean(values: np.ndarray) -> float:
    """Mean of the values that are there; NaN if none is."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else np.nan
