"""Variance partitioning: what each feature space explains alone, and what it shares with the others."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..datasets.errors import unknown
from .crossval import (
    check_request,
    finite_mean,
    members_of,
    outer_folds,
    patterns_of,
    predict_held_out,
    warn_unscored,
)
from .inference import basic_interval, percentile_interval
from .prediction import bootstrap_means, unit_scores
from .provenance import provenance
from .score import Evidence

if TYPE_CHECKING:
    from ..datasets.recording import Recording
    from ..encoders.features.store import Features

log = logging.getLogger("neuralign")

COLUMNS = ["component", "kind", "subject", "region", "value", "ci_low", "ci_high", "n_units", "n_stimuli"]


def variance_partition(
    spaces: Mapping[str, Features | tuple[Features, str] | np.ndarray],
    brain: Recording | np.ndarray,
    encoder: Any = None,
    cv: Any = 5,
    by: str | None = "region",
    groups: str | Sequence[Any] | None = None,
    bootstrap: int = 1000,
    seed: int | np.random.Generator = 0,
) -> pd.DataFrame:
    """Unique and shared variance of two to four feature spaces, from fits of all their subsets.

    Every non-empty subset of the spaces is fitted anew in every outer fold, scaling and penalty included, and predicts
    the rows held out; the folds are the same for all. R2 of subsets, taken as the variance that their union explains,
    gives by inclusion and exclusion what is explained by exactly these spaces and no others (Borcard et al. 1992;
    de Heer et al. 2017).

    Parameters
    ----------
    spaces : mapping of str to Features, (Features, layer) or array
        Features of one layer, or the name of the layer beside them, are joined with the recording by stimulus id. An
        array (stimulus, feature) has the rows of ``brain.average_repeats()``, or of `brain` where that is an array.
    brain : Recording or array
        Responses (presentation, unit), repeats of which are averaged; or an array (stimulus, unit).
    encoder : scikit-learn regressor, or callable, optional
        Default ``RidgeCV(score="r2", standardise=True)`` on the concatenated spaces. A regressor with a parameter
        `spaces` is given the number of columns of each space of the subset, and so is a callable, which returns a
        regressor: ``lambda sizes: make_pipeline(..., BandedRidgeCV(spaces=sizes))``.
    cv : int, "split", scikit-learn splitter, or sequence of (train, test)
        As in `align.score`; with the same seed the folds are the same.
    by : str or None
        Column of ``brain.units`` over whose values units are averaged, per subject; None for all units.
    groups : str, or one label per row, optional
        Column of ``brain.presentations`` whose values are never on both sides of a fold, nor of the folds in which an
        encoder that takes groups chooses its penalty. Labels where `brain` is an array.
    bootstrap : int
        Draws of stimuli for the 95 % interval; 0 leaves it out.
    seed : int
        Of folds and draws.

    Returns
    -------
    pandas.DataFrame
        One row per component, subject and value of `by`. Kinds:

        - "subset": R2 of some of the spaces, ``"a + b"``, and "total": of all of them.
        - "unique": what is explained by one space alone, ``"a"``: the total less the subset without it.
        - "shared": what is explained by each of some spaces and none of the others, ``"a & b"``. With three spaces,
          ``"a & b"`` does not hold what a and b share with c too, which is ``"a & b & c"``.

        `value` is the mean over units of the mean over folds, in units of R2. Unique and shared parts add up to the
        total, and those that involve any space of a subset to that subset. ``table.attrs["evidence"].units`` holds
        the value of every unit.

    Raises
    ------
    ValueError
        If there are not two to four spaces, they have NaN or the wrong rows, responses are time-resolved, or there are
        too few stimuli.

    Notes
    -----
    Values below zero are kept. A unique part is negative where the space adds nothing but a poorer fit, because a
    fit of more features has more to learn from the same rows; the part that it then seems to share is too large by as
    much. A shared part is negative where spaces suppress each other: they explain more together than the sum of what
    each explains. What all spaces share also carries the means, of training rows in predictions and of held-out rows
    in R2, which cost every subset the same, about 1/n of either and more in small folds. To clip any of these would
    bias means over units, and parts would no longer add up. A fit whose penalty suits each subset keeps the first
    kind small, and one with a penalty for each space, as in banded ridge, smaller.

    Intervals generalise over stimuli, with the fitted encoders as they are: all subsets are scored on the same draws,
    and the parts are combined within each. Those of R2 are basic bootstrap intervals on the scale of the logarithm of
    the unexplained share, as in `align.score`. A unique or shared part is a difference of R2 that may take either sign
    and has no bound to run into: its interval is the basic one on the scale of R2 itself. Percentiles would not do,
    because a draw repeats stimuli, which lowers every R2. That cancels in all parts but the one shared by all spaces,
    which would be too low twice over; mirrored, its interval lies above its value where folds are small, like that of
    R2. With 30 stimuli in a fold or more the intervals of parts cover 92 to 98 % in simulations; with 12 they are too
    wide and cover up to 100 %. That of the unique part of a space that adds nothing covers 88 %, because folds train
    on each other; its value is then below zero, and none of 400 such intervals lay above.

    References
    ----------
    Borcard, D., Legendre, P. & Drapeau, P. (1992). Partialling out the spatial component of ecological variation.
    Ecology 73, 1045-1055.

    Lescroart, M. D., Stansbury, D. E. & Gallant, J. L. (2015). Fourier power, subjective distance, and object
    categories all provide plausible models of BOLD responses in scene-selective visual areas. Frontiers in
    Computational Neuroscience 9, 135.

    de Heer, W. A., Huth, A. G., Griffiths, T. L., Gallant, J. L. & Theunissen, F. E. (2017). The hierarchical cortical
    organization of human speech processing. Journal of Neuroscience 37, 6539-6557.
    """
    recording, groups = _as_recording(brain, groups)
    check_request(recording, ["r2"], by, bootstrap, 0)
    for_folds, _, for_draws, _ = np.random.default_rng(seed).spawn(4)  # as in align.score, whose folds these are
    mean = recording.average_repeats()
    folds = outer_folds(mean, cv, groups, for_folds)
    matrices = _matrices(spaces, mean)
    observed = np.asarray(mean.read())
    patterns = list(patterns_of(observed, folds))
    warn_unscored(observed, patterns)
    n = mean.n_presentations
    draws = for_draws.multinomial(n, np.full(n, 1 / n), size=bootstrap)
    group_codes = None if groups is None else mean.presentations[groups].astype(str).to_numpy()
    members = list(members_of(mean.units, by))

    names = list(matrices)
    subsets = [subset for size in range(1, len(names) + 1) for subset in combinations(names, size)]
    per_unit = np.full((len(subsets), mean.n_units), np.nan)
    resampled = np.full((len(subsets), len(members), bootstrap), np.nan)
    for s, subset in enumerate(subsets):
        log.info("%s: fitting", " + ".join(subset))
        X = np.concatenate([matrices[name] for name in subset], axis=1)
        fresh = _encoder_of(encoder, [matrices[name].shape[1] for name in subset])
        predicted = predict_held_out(fresh, X, observed, patterns, group_codes)
        for pattern in patterns:
            p, y = predicted[:, pattern.units], observed[:, pattern.units]
            per_unit[s, pattern.units] = unit_scores(p, y, pattern.tests, "r2")
        for m, (_, inside) in enumerate(members):
            resampled[s, m] = _resampled(predicted, observed, patterns, inside & np.isfinite(per_unit[s]), draws)

    parts = exclusive_parts(subsets)
    rows, units = [], []
    kinds = [
        *(("unique" if len(subset) == 1 else "shared", " & ".join(subset)) for subset in subsets),
        *(("total" if len(subset) == len(names) else "subset", " + ".join(subset)) for subset in subsets),
    ]
    weights = np.concatenate([parts, np.eye(len(subsets))])
    for (kind, component), weight in zip(kinds, weights, strict=True):
        values = weight @ per_unit
        units.append(mean.units[["subject", "region", "unit"]].assign(component=component, kind=kind, value=values))
        for m, ((subject, region), inside) in enumerate(members):
            scored = inside & np.isfinite(values)
            value = finite_mean(values[scored])
            low, high = _interval(value, weight @ resampled[:, m], kind)
            rows.append(
                {
                    "component": component,
                    "kind": kind,
                    "subject": subject,
                    "region": region,
                    "value": value,
                    "ci_low": low,
                    "ci_high": high,
                    "n_units": int(scored.sum()),
                    "n_stimuli": int(np.isfinite(observed[:, inside]).any(1).sum()),
                }
            )
    table = pd.DataFrame(rows, columns=COLUMNS)
    table.attrs["evidence"] = Evidence(
        units=pd.concat(units, ignore_index=True)[["component", "kind", "subject", "region", "unit", "value"]],
        provenance=provenance(
            analysis="variance partition",
            encoder=repr(encoder),
            cv=cv if isinstance(cv, int | str) else "own-folds",
            seed=int(seed) if isinstance(seed, int | np.integer) else None,
        ),
    )
    return table


def exclusive_parts(subsets: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Weights that turn the variance explained by unions of spaces into that explained by exactly some of them.

    What the spaces S, all of them and no others, explain is ``sum over T in S of (-1)^(|S| - |T| + 1) R2(all - T)``,
    by Moebius inversion of ``R2(all) - R2(all - T)``, which is what lies within T; R2 of no spaces is 0.

    Parameters
    ----------
    subsets : sequence of tuples of str
        All non-empty subsets of some names, each in the order of the names, which is that of the longest.

    Returns
    -------
    ndarray of float64, shape (part, subset)
        Both in the order of `subsets`: row i belongs to exactly the spaces of ``subsets[i]``.

    Examples
    --------
    >>> exclusive_parts([("a",), ("b",), ("a", "b")]).tolist()
    [[0.0, -1.0, 1.0], [-1.0, 0.0, 1.0], [1.0, 1.0, -1.0]]
    """
    everything = max(subsets, key=len)
    column = {subset: i for i, subset in enumerate(subsets)}
    weights = np.zeros((len(subsets), len(subsets)))
    for row, part in zip(weights, subsets, strict=True):
        for size in range(len(part) + 1):
            for taken in combinations(part, size):
                rest = tuple(name for name in everything if name not in taken)
                if rest:
                    row[column[rest]] += (-1) ** (len(part) - size + 1)
    return weights


def _as_recording(brain: Any, groups: Any) -> tuple[Any, str | None]:
    """An array as a recording of rows that are all different stimuli, and the column of groups."""
    from ..datasets.recording import Recording

    if hasattr(brain, "average_repeats"):
        if groups is not None and not isinstance(groups, str):
            raise ValueError(
                f"groups is {type(groups).__name__}; with a Recording it names a column of brain.presentations, "
                f"one of {', '.join(map(str, brain.presentations))}"
            )
        if groups is not None and groups not in brain.presentations:
            raise ValueError(unknown("groups", groups, brain.presentations.columns))
        return brain, groups
    if not hasattr(brain, "shape"):
        return brain, groups  # refused with everything else that is no recording
    if len(brain.shape) != 2:
        raise ValueError(f"brain has shape {tuple(brain.shape)}; expected (stimulus, unit), or a Recording")
    n = len(brain)
    presentations = pd.DataFrame({"stimulus": [f"row {i}" for i in range(n)]})
    if groups is not None:
        labels = [] if isinstance(groups, str) else list(groups)
        if len(labels) != n:
            found = repr(groups) if isinstance(groups, str) else f"{len(labels)} labels"
            raise ValueError(f"groups is {found}; with an array of responses it needs one label for each of {n} rows")
        presentations["group"] = labels
    return Recording(brain, presentations), None if groups is None else "group"


def _matrices(spaces: Any, mean: Recording) -> dict[str, np.ndarray]:
    """Features (stimulus, feature) of every space, in the order of the rows of `mean`."""
    if not isinstance(spaces, Mapping) or hasattr(spaces, "layers"):
        raise ValueError(
            f"spaces is {type(spaces).__name__}; expected a dict from the names of two to four feature spaces to their "
            "Features or arrays"
        )
    if not 2 <= len(spaces) <= 4:
        raise ValueError(
            f"spaces holds {len(spaces)} feature spaces; expected two to four, whose subsets can still be told apart "
            "by a reader: join some of them"
        )
    stimuli = mean.presentations["stimulus"].tolist()
    matrices = {}
    for name, space in spaces.items():
        name = str(name)
        features, layer = space if isinstance(space, tuple) else (space, None)
        if hasattr(features, "layers"):
            if layer is None and len(features.layers) != 1:
                raise ValueError(
                    f"spaces[{name!r}] has {len(features.layers)} layers ({', '.join(features.layers)}); expected one: "
                    f"give (features, {features.layers[-1]!r})"
                )
            X = np.asarray(features[features.layers[0] if layer is None else layer])[features.rows(stimuli)]
        else:
            X = np.asarray(features)
            if X.ndim < 2 or len(X) != len(stimuli):
                raise ValueError(
                    f"spaces[{name!r}] has shape {X.shape}; expected (stimulus, feature) with {len(stimuli)} rows, "
                    "those of brain.average_repeats(): arrays are not joined by stimulus, Features are"
                )
        X = X.reshape(len(X), -1)
        bad = int((~np.isfinite(X).all(1)).sum())
        if bad:
            raise ValueError(f"spaces[{name!r}] is NaN or infinite for {bad} of {len(X)} stimuli")
        matrices[name] = X
    return matrices


def _encoder_of(encoder: Any, sizes: list[int]) -> Any:
    """A regressor for spaces of so many columns."""
    from sklearn.base import clone

    if encoder is None:
        from ..encoders import RidgeCV

        return RidgeCV(score="r2", standardise=True)
    if isinstance(encoder, type) or not (hasattr(encoder, "fit") or callable(encoder)):
        raise ValueError(
            f"encoder is {encoder!r}; expected a regressor, such as RidgeCV(), or a function from the numbers of "
            "columns of the spaces to a regressor"
        )
    if not hasattr(encoder, "fit"):
        return encoder(sizes)
    return clone(encoder).set_params(spaces=sizes) if "spaces" in encoder.get_params() else encoder


def _resampled(
    predicted: np.ndarray, observed: np.ndarray, patterns: list[Any], scored: np.ndarray, draws: np.ndarray
) -> np.ndarray:
    """Mean R2 over the units in the mask `scored`, in each draw of stimuli."""
    total = np.zeros(len(draws))
    for pattern in patterns:
        units = pattern.units[scored[pattern.units]]
        if len(units) and len(draws):
            means = bootstrap_means(predicted[:, units], observed[:, units], pattern.tests, "r2", draws)
            total += means * len(units) / scored.sum()
    return total if scored.any() else np.full(len(draws), np.nan)


def _interval(value: float, samples: np.ndarray, kind: str) -> tuple[float, float]:
    """95 % basic bootstrap interval; parts, which are differences of R2, stay on the scale of R2."""
    if len(samples) == 0 or np.isnan(value):
        return np.nan, np.nan
    if kind in ("subset", "total"):
        return basic_interval(value, samples, "r2")
    [low], [high] = percentile_interval(samples[:, None])
    return 2 * value - high, 2 * value - low
