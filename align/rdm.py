"""Representational dissimilarity matrices from patterns of responses or features."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..datasets.errors import unknown
from ..datasets.rdms import RDMs, stimulus_positions
from .geometry.crossvalidated import fold_means, per_fold
from .geometry.distances import is_tensor, placed
from .geometry.patterns import (
    CROSS_VALIDATED,
    METHODS,
    WHITENED,
    PatternRDM,
    dissimilarities,
    fewest_features,
    fold_dissimilarities,
    warn_unscored,
)
from .noise import METHODS as NOISE_METHODS
from .noise import repeat_precision

__all__ = [
    "METHODS",
    "PatternRDM",
    "check_method",
    "dissimilarities",
    "features_rdms",
    "fewest_features",
    "rdm",
    "recording_rdms",
    "unit_groups",
    "unit_responses",
]

MISSING = ("pairwise", "nan")


def rdm(
    X: Any,
    method: str = "correlation",
    noise: Any = None,
    folds: Any = None,
    *,
    labels: ArrayLike | None = None,
    missing: str = "pairwise",
    prior: tuple[float, float] = (1.0, 0.1),
    device: Any = "auto",
) -> RDMs:
    """Dissimilarity of every pair of stimuli.

    Parameters
    ----------
    X : array or tensor, Recording or Features
        (stimulus, feature), or (presentation, feature) with `labels`, or (fold, stimulus, feature) for the
        cross-validated methods, where a stimulus that a fold lacks is NaN. A Recording gives one RDM per subject
        and region; Features one RDM per layer, where (stimulus, token, feature) counts as stimulus by token x
        feature.
    method : str
        P is the number of features.

        ========================  ==========================================================================
        ``"sqeuclidean"``         ``sum((x_i - x_j)**2) / P``
        ``"euclidean"``           ``sqrt(sum((x_i - x_j)**2) / P)``
        ``"correlation"``         ``1 - r(x_i, x_j)``, r Pearson's over features (Kriegeskorte et al. 2008)
        ``"cosine"``              ``1 - cos(x_i, x_j)``
        ``"mahalanobis"``         ``(x_i - x_j)' S (x_i - x_j) / P``, S the noise precision
        ``"crossnobis"``          ``(b_mi - b_mj)' S (b_ni - b_nj) / P``, mean over pairs of different folds m, n:
                                  without the bias of noise, negative for some (Walther et al. 2016)
        ``"poisson"``             ``sum((l_i - l_j) * (log l_i - log l_j)) / P``, l the rates behind the counts
        ``"poisson-cv"``          the same with l and log l from different folds, mean over all folds
        ========================  ==========================================================================
    noise : array, str or sequence, optional
        For "mahalanobis" (needed) and "crossnobis" (default the identity): the PRECISION of the noise,
        (feature, feature) or, for a diagonal, (feature,), as `align.noise.noise_precision` gives it; for
        "crossnobis" also a list of these, one per fold, each of the noise of that fold's mean. Or a method of
        `align.noise.noise_covariance`, which estimates it from repeats: X is then a Recording, presentations
        with `labels`, or folds. Estimated from the very repeats that are compared, a full precision shrinks most
        the noise that it has seen: where features outnumber the residuals, crossnobis is then biased upwards, and
        "diagonal", or a precision from other data, is safe.
    folds : sequence or str, optional
        For the cross-validated methods: the fold of every presentation; for a Recording a column of its
        presentations, e.g. "run". Default: the first presentation of every stimulus is one fold, the second
        another, and so on.
    labels : array_like of shape (presentation,), optional
        The stimulus of every presentation of an array; presentations are averaged, within folds where there are
        any. For (fold, stimulus, feature) the ids of the stimuli.
    missing : {"pairwise", "nan"}
        Patterns that lack some features: "pairwise" computes every dissimilarity from the features that both
        have (divided by their number); whitened and cross-validated methods drop features with gaps instead.
        "nan" gives such patterns no dissimilarity.
    prior : (rate, weight)
        Of the Poisson methods: rates are ``(x + rate * weight) / (1 + weight)``.
    device : str or torch.device
        Where the products of patterns are computed. "auto": tensors where they are, arrays on a GPU where there
        is one and the work is worth it.

    Returns
    -------
    RDMs
        One row per RDM, ids "0", "1", ... where nothing tells stimuli apart. Float32 input is computed in float32
        around float64 means (Poisson always in float64), other input in float64. A pattern without a
        dissimilarity (infinite, NaN throughout; constant for "correlation"; zero for "cosine") gives NaN for its
        pairs. One warning counts these and the patterns with gaps. Features that are NaN for all stimuli are left
        out.

    Raises
    ------
    ValueError
        For an unknown method, arguments the method does not take or lacks, fewer than 3 stimuli, a wrong shape,
        or RDMs in the place of patterns.

    References
    ----------
    Kriegeskorte, Mur & Bandettini (2008), Frontiers in Systems Neuroscience 2:4. Walther et al. (2016), NeuroImage
    137:188. Schuett et al. (2023), eLife 12:e82566.
    """
    check_arguments(method, noise, folds, missing)
    if isinstance(X, RDMs):
        raise ValueError(
            f"X holds {len(X)} RDMs that are made already; expected patterns (an array, a Recording or Features). Hand "
            "the RDMs themselves to align.compare, align.rsa or align.topology."
        )
    if hasattr(X, "average_repeats") or (hasattr(X, "layers") and hasattr(X, "stimulus_ids")):
        if labels is not None:
            raise ValueError("labels is for arrays; a Recording and Features know their stimuli.")
        if hasattr(X, "average_repeats"):
            return recording_rdms(X, method, noise=noise, folds=folds, missing=missing, prior=prior, device=device)
        return features_rdms(X, method, noise=noise, missing=missing, prior=prior, device=device)
    X = X if is_tensor(X) else np.asarray(X)
    if X.ndim == 2 and X.shape[1] < fewest_features(method):
        raise ValueError(f"X has {X.shape[1]} features; {method!r} needs at least {fewest_features(method)}.")
    if X.ndim in (2, 3):
        X = placed(X, device, float(X.shape[-2]) * np.prod(X.shape))
    if method in CROSS_VALIDATED:
        found, ids = _cross_validated(X, method, noise, folds, labels, prior, missing)
    else:
        if isinstance(noise, str):
            if labels is None:
                raise ValueError(
                    f"noise={noise!r} needs repeats to estimate the noise from; give labels, the stimulus of every "
                    "presentation, or a precision (align.noise.noise_precision)."
                )
            X, noise = _with_precision(X, labels, noise)
        names: Sequence = range(len(X)) if X.ndim else []
        if labels is not None:
            _check_presentations(X)
            means, names, _ = fold_means(X, labels, np.zeros(len(X), int))
            X = means[0]
        found = dissimilarities(X, method, noise=noise, missing=missing, prior=prior, device=device)
        ids = [str(name) for name in names]
    warn_unscored([found], method)
    return RDMs(found.vector, ids, method=method)


def check_method(method: str, argument: str = "method") -> None:
    """Raise ValueError for a dissimilarity that is not known."""
    if method not in METHODS:
        raise ValueError(unknown(argument, method, METHODS))


def check_arguments(method: str, noise: Any, folds: Any, missing: str) -> None:
    """Raise ValueError for an unknown name, and for what the method does not take or lacks."""
    check_method(method)
    if missing not in MISSING:
        raise ValueError(unknown("missing", missing, MISSING))
    for name, value, takers in (("noise", noise, WHITENED), ("folds", folds, CROSS_VALIDATED)):
        if value is not None and method not in takers:
            raise ValueError(f"method={method!r} takes no {name}; leave {name} out.")
    if isinstance(noise, str) and noise not in NOISE_METHODS:
        raise ValueError(unknown("noise", noise, NOISE_METHODS))
    if method == "mahalanobis":
        if noise is None:
            raise ValueError("method='mahalanobis' needs noise; without it, it is 'sqeuclidean'.")
        if per_fold(noise):
            raise ValueError("method='mahalanobis' takes one noise precision; one per fold is for 'crossnobis'.")


def _check_presentations(X: Any) -> None:
    if X.ndim != 2:
        raise ValueError(f"X has shape {tuple(X.shape)}; expected (presentation, feature) with labels.")


def _cross_validated(
    X: Any, method: str, noise: Any, folds: Any, labels: ArrayLike | None, prior: tuple[float, float], missing: str
) -> tuple[PatternRDM, list[str]]:
    """RDM of an array with folds, and the ids of its stimuli."""
    if X.ndim == 3:
        if folds is not None:
            raise ValueError("folds is for presentations; the first axis of X (fold, stimulus, feature) tells folds.")
        names = list(range(X.shape[1])) if labels is None else np.asarray(labels).tolist()
        if len(names) != X.shape[1]:
            raise ValueError(f"labels has {len(names)} ids for {X.shape[1]} stimuli of X (fold, stimulus, feature).")
        if isinstance(noise, str):
            rows, noise = _with_precision(X.reshape(-1, X.shape[2]), np.tile(np.arange(X.shape[1]), len(X)), noise)
            X = rows.reshape(*X.shape[:2], -1)
    else:
        _check_presentations(X)
        if labels is None:
            raise ValueError(
                f"method={method!r} needs repeats; give labels, the stimulus of every presentation, or X as "
                "(fold, stimulus, feature)."
            )
        if isinstance(noise, str):
            X, noise = _with_precision(X, labels, noise)
        X, names, _ = fold_means(X, labels, folds)
    ids = [str(name) for name in names]
    return fold_dissimilarities(X, method, noise=noise, prior=prior, missing=missing), ids


def _with_precision(X: Any, labels: ArrayLike, method: str) -> tuple[Any, np.ndarray]:
    """Presentations without the features that are NaN throughout, and the noise precision of the others."""
    rows = X.cpu().numpy() if is_tensor(X) else X
    _check_presentations(rows)
    known = np.isfinite(rows).any(0)
    if not known.all():
        X, rows = X[:, np.flatnonzero(known)], rows[:, known]
    return X, repeat_precision(rows, labels, method)


def features_rdms(
    features: Any,
    method: str,
    stimulus_ids: Sequence[str] | None = None,
    *,
    noise: Any = None,
    missing: str = "pairwise",
    prior: tuple[float, float] = (1.0, 0.1),
    device: Any = "auto",
) -> RDMs:
    """One RDM per layer of a Features object; the table has columns model and layer.

    `stimulus_ids` picks and orders stimuli by id; None keeps all in their own order. `noise` is a precision, or a
    mapping of layers to precisions.
    """
    if method in CROSS_VALIDATED:
        raise ValueError(
            f"method={method!r} needs folds, which features do not have; the same dissimilarity without them is "
            f"{CROSS_VALIDATED[method]!r}."
        )
    if isinstance(noise, str):
        raise ValueError(f"noise={noise!r} needs repeats, which features do not have; give a precision.")
    ids = [str(name) for name in features.stimulus_ids]
    model = str(getattr(features, "model", ""))
    if stimulus_ids is None:
        rows: Any = slice(None)
        wanted = ids
    else:
        wanted = list(stimulus_ids)
        rows = stimulus_positions(ids, wanted, f"the features of {model!r}")
    layers = list(features.layers)
    found = []
    for layer in layers:
        X = features[layer]
        X = (X if is_tensor(X) else np.asarray(X))[rows]
        precision = noise.get(layer) if isinstance(noise, Mapping) else noise
        flat = X.reshape(len(X), -1)
        options: dict[str, Any] = {"noise": precision, "missing": missing, "prior": prior, "device": device}
        found.append(dissimilarities(flat, method, f"layer {layer!r}", **options))
    warn_unscored(found, method)
    table = pd.DataFrame({"model": model, "layer": [str(layer) for layer in layers]})
    return RDMs(np.stack([one.vector for one in found]), wanted, table, method, getattr(features, "stimuli", None))


def recording_rdms(
    recording: Any,
    method: str,
    by: str = "region",
    *,
    noise: Any = None,
    folds: Any = None,
    missing: str = "pairwise",
    prior: tuple[float, float] = (1.0, 0.1),
    device: Any = "auto",
) -> RDMs:
    """One RDM per subject and value of the unit column `by`.

    From responses averaged over repeats, or within folds for the cross-validated methods. The table has columns
    subject, `by` and n_units. `noise` is a method of `align.noise.noise_covariance`, applied to the repeats of
    every subject and region by themselves; or a diagonal precision of all units; or, where there is one subject and
    one region, a precision (or one per fold). `folds` is a column of the presentations, or their folds.
    """
    check_arguments(method, noise, folds, missing)
    _check_no_times(recording)
    groups = unit_groups(recording, by)
    check_recording_noise(noise, groups)
    if method in CROSS_VALIDATED:
        ids = stimulus_order(recording)
        folds = presentation_folds(recording, folds)
        patterns = None
    else:
        patterns = recording.average_repeats()
        ids = patterns.presentations["stimulus"].astype(str).tolist()
    rows, found, n_silent = [], [], 0
    for subject, value, units in groups:
        name = f"subject {subject!r}, {by} {value!r}"
        X = unit_responses(recording if patterns is None else patterns, units)
        known = np.isfinite(X).any(0)
        n_silent += len(units) - int(known.sum())
        rows.append({"subject": subject, by: value, "n_units": int(known.sum())})
        precision = group_noise(noise, units)
        if isinstance(noise, str):
            labels = recording.presentations["stimulus"].to_numpy()
            precision = repeat_precision(unit_responses(recording, units)[:, known], labels, noise)
            X = X[:, known]
        if patterns is None:
            means = group_means(X, recording, ids, folds)
            found.append(fold_dissimilarities(means, method, name, noise=precision, prior=prior, missing=missing))
        else:
            options: dict[str, Any] = {"noise": precision, "missing": missing, "prior": prior, "device": device}
            found.append(dissimilarities(X, method, name, **options))
    if n_silent:
        warnings.warn(
            f"{n_silent} of {len(recording.units)} units lack responses; the RDMs are without them.", stacklevel=3
        )
    warn_unscored(found, method)
    vectors = np.stack([one.vector for one in found])
    return RDMs(vectors, ids, pd.DataFrame(rows), method, getattr(recording, "stimuli", None))


def unit_groups(recording: Any, by: str) -> list[tuple[str, str, np.ndarray]]:
    """(subject, value of the unit column `by`, positions of the units) in the order of first appearance."""
    units = recording.units
    if by not in units:
        raise ValueError(unknown("by", by, units.columns, mend="It names a column of the recording's units."))
    subject = units["subject"] if "subject" in units else pd.Series("", index=units.index)
    keys = [subject.astype(str).to_numpy(), units[by].astype(str).to_numpy()]
    groups = pd.Series(np.arange(len(units))).groupby(keys, sort=False)
    return [(str(key[0]), str(key[1]), positions.to_numpy()) for key, positions in groups]


def unit_responses(recording: Any, units: np.ndarray) -> np.ndarray:
    """Responses of some units, shape (presentation, unit[, time])."""
    return np.asarray(recording.read(units=units))


def check_recording_noise(noise: Any, groups: Sequence) -> None:
    """Raise ValueError for a precision that cannot be that of every subject and region."""
    if noise is None or isinstance(noise, str):
        return
    if len(groups) > 1 and (per_fold(noise) or np.ndim(noise) != 1):
        raise ValueError(
            f"noise is a precision, but the recording has {len(groups)} sets of units (by subject and region), and a "
            "part of a precision is none. Select one of them, or give a method, e.g. noise='shrinkage-diagonal'."
        )


def group_noise(noise: Any, units: np.ndarray) -> Any:
    """The part of a diagonal precision that belongs to some units; anything else as it is."""
    if noise is None or isinstance(noise, str) or per_fold(noise) or np.ndim(noise) != 1:
        return noise
    return np.asarray(noise)[units]


def stimulus_order(recording: Any) -> list[str]:
    """Ids of the stimuli that were presented, in the order of `Recording.average_repeats`."""
    shown = recording.presentations["stimulus"]
    order = list(shown.unique())
    if getattr(recording, "stimuli", None) is not None:
        presented = set(order)
        order = [one for one in recording.stimuli if one in presented]
    return [str(one) for one in order]


def presentation_folds(recording: Any, folds: Any) -> np.ndarray | None:
    """Fold of every presentation: a column, the folds themselves, or None for repeats."""
    if folds is None:
        return None
    table = recording.presentations
    if isinstance(folds, str):
        if folds not in table:
            raise ValueError(unknown("folds", folds, table.columns, "It names a column of the presentations."))
        return table[folds].to_numpy()
    folds = np.asarray(folds)
    if folds.shape != (len(table),):
        raise ValueError(f"folds has shape {folds.shape}; expected one for each of {len(table)} presentations.")
    return folds


def group_means(X: np.ndarray, recording: Any, ids: Sequence[str], folds: np.ndarray | None) -> np.ndarray:
    """Mean responses (fold, stimulus, unit) of some units, over the presentations that hold any of them.

    Stimuli are in the order of `ids`, NaN where a fold lacks them. Without `folds`, repeats are counted over these
    presentations.
    """
    valid = np.isfinite(X).any(1)
    if not valid.any():
        return np.full((2, len(ids), X.shape[1]), np.nan, X.dtype)
    shown = recording.presentations["stimulus"].astype(str).to_numpy()[valid]
    means, names, _ = fold_means(X[valid], shown, None if folds is None else folds[valid])
    if names == list(ids):
        return means
    whole = np.full((len(means), len(ids), X.shape[1]), np.nan, means.dtype)
    whole[:, stimulus_positions(ids, names, "the recording")] = means
    return whole


def _check_no_times(recording: Any) -> None:
    shape = tuple(recording.responses.shape)
    if len(shape) != 2:
        raise ValueError(
            f"responses has shape {shape}: rdm takes (presentation, unit). align.rdm_over_time gives an RDM per time "
            "window; or average a window first, e.g. recording.average_time(0.07, 0.17)."
        )
