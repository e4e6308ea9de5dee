"""Representational dissimilarity matrices from patterns of responses or features."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..datasets.errors import unknown
from ..datasets.rdms import RDMs, stimulus_positions

METHODS = ("sqeuclidean", "euclidean", "correlation", "cosine")

# Elements of a float64 working block (32 MiB): bounds memory beside the input for any number of features.
BLOCK = 2**22

# A Gram matrix loses the digits of a dissimilarity that is this much smaller than the two norms it is a
# difference of; such pairs are recomputed from the difference of their patterns.
CLOSE = 1e-3


def rdm(X: Any, method: str = "correlation", noise: Any = None, folds: Any = None) -> RDMs:
    """Dissimilarity of every pair of stimuli.

    Parameters
    ----------
    X : array of shape (stimulus, feature), Recording or Features
        An array gives one RDM with the ids "0", "1", ...; a Recording one RDM per subject and region from
        responses averaged over repeats; Features one RDM per layer, where (stimulus, token, feature) counts
        as stimulus by token x feature.
    method : str
        ========================  ==========================================================================
        ``"sqeuclidean"``         ``sum((x_i - x_j)**2) / n_features``
        ``"euclidean"``           ``sqrt(sum((x_i - x_j)**2) / n_features)``
        ``"correlation"``         ``1 - r(x_i, x_j)``, r Pearson's over features (Kriegeskorte et al. 2008)
        ``"cosine"``              ``1 - cos(x_i, x_j)``
        ========================  ==========================================================================
    noise, folds
        For methods that whiten or cross-validate; none of the methods above takes them.

    Returns
    -------
    RDMs
        One row per RDM. Float32 input is computed in float32 around float64 means, other input in float64.
        A pattern without a dissimilarity (NaN or infinite; constant for "correlation"; zero for "cosine")
        gives NaN for its pairs, with one warning that counts the patterns. Features that are NaN for all
        stimuli are left out.

    Raises
    ------
    ValueError
        For an unknown method, arguments the method does not take, fewer than 3 stimuli, or a wrong shape.

    References
    ----------
    Kriegeskorte, Mur & Bandettini (2008), Frontiers in Systems Neuroscience 2:4.
    """
    check_method(method)
    for name, value in (("noise", noise), ("folds", folds)):
        if value is not None:
            raise ValueError(f"method={method!r} takes no {name}; leave {name} out.")
    if hasattr(X, "average_repeats"):
        return recording_rdms(X, method)
    if hasattr(X, "layers") and hasattr(X, "stimulus_ids"):
        return features_rdms(X, method)
    X = np.asarray(X)
    if X.ndim == 2 and X.shape[1] < fewest_features(method):
        raise ValueError(f"X has {X.shape[1]} features; {method!r} needs at least {fewest_features(method)}.")
    pattern_rdm = dissimilarities(X, method)
    _warn_unscored([pattern_rdm], method)
    return RDMs(pattern_rdm.vector, [str(k) for k in range(len(X))], method=method)


def check_method(method: str, argument: str = "method") -> None:
    """Raise ValueError for a dissimilarity that is not known."""
    if method not in METHODS:
        raise ValueError(unknown(argument, method, METHODS))


def fewest_features(method: str) -> int:
    """Below this number of features (or units) a dissimilarity is not defined, and comes back as NaN."""
    return 2 if method == "correlation" else 1


def features_rdms(features: Any, method: str, stimulus_ids: Sequence[str] | None = None) -> RDMs:
    """One RDM per layer of a Features object; the table has columns model and layer.

    `stimulus_ids` picks and orders stimuli by id; None keeps all in their own order.
    """
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
        X = np.asarray(features[layer])[rows]
        found.append(dissimilarities(X.reshape(len(X), -1), method, f"layer {layer!r}"))
    _warn_unscored(found, method)
    table = pd.DataFrame({"model": model, "layer": [str(layer) for layer in layers]})
    return RDMs(np.stack([one.vector for one in found]), wanted, table, method, getattr(features, "stimuli", None))


def recording_rdms(recording: Any, method: str, by: str = "region") -> RDMs:
    """One RDM per subject and value of the unit column `by`, from responses averaged over repeats.

    The table has columns subject, `by` and n_units.
    """
    _check_no_times(recording)
    averaged = recording.average_repeats()
    ids = averaged.presentations["stimulus"].astype(str).tolist()
    rows, found, n_silent = [], [], 0
    for subject, value, units in unit_groups(averaged, by):
        patterns = unit_responses(averaged, units)
        n_known = int(np.isfinite(patterns).any(0).sum())
        n_silent += len(units) - n_known
        rows.append({"subject": subject, by: value, "n_units": n_known})
        found.append(dissimilarities(patterns, method, f"subject {subject!r}, {by} {value!r}"))
    if n_silent:
        warnings.warn(
            f"{n_silent} of {len(averaged.units)} units lack responses; the RDMs are without them.", stacklevel=3
        )
    _warn_unscored(found, method)
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
    """Responses of some units, shape (presentation, unit)."""
    return np.asarray(recording.responses)[:, units]


def _check_no_times(recording: Any) -> None:
    shape = tuple(recording.responses.shape)
    if len(shape) != 2:
        raise ValueError(
            f"responses has shape {shape}: RSA over time is not available. "
            "Average time first, e.g. recording.average_time(0.07, 0.17), to make it (presentation, unit)."
        )


@dataclass(frozen=True)
class PatternRDM:
    """Dissimilarity vector of one set of patterns, and how many patterns have no dissimilarity."""

    vector: np.ndarray
    n_unscored: int
    n_patterns: int


def dissimilarities(X: np.ndarray, method: str, name: str = "X") -> PatternRDM:
    """Dissimilarities of the rows of `X` (stimulus, feature); see `rdm`."""
    X = np.asarray(X)
    if X.ndim != 2:
        raise ValueError(f"{name} has shape {X.shape}; expected (stimulus, feature).")
    if X.dtype.kind not in "fiub":
        raise ValueError(f"{name} has dtype {X.dtype}; expected real numbers.")
    n_stimuli, n_features = X.shape
    if n_stimuli < 3:
        raise ValueError(f"{name} has {n_stimuli} stimuli; an RDM that can be compared needs at least 3.")
    if n_features == 0:
        raise ValueError(f"{name} has no features; {method!r} needs at least {fewest_features(method)}.")

    finite = np.concatenate([np.isfinite(X[rows]) for rows in _blocks(n_stimuli, n_features)])
    if not finite.all():
        known = finite.any(0)
        X, finite = X[:, known], finite[:, known]
    scored = finite.all(1) if X.shape[1] >= fewest_features(method) else np.zeros(n_stimuli, bool)
    shift, scale = np.zeros(n_stimuli), np.ones(n_stimuli)
    if method in ("correlation", "cosine"):
        shift[scored], scale[scored] = _row_shift_and_norm(X[scored], centre=method == "correlation")
        scored &= scale > 0

    dtype = X.dtype if X.dtype == np.float32 else np.dtype(np.float64)
    matrix = np.full((n_stimuli, n_stimuli), np.nan)
    if scored.any():
        squared = _squared_distances(X[scored], shift[scored, None], scale[scored, None], dtype)
        # The squared distance of unit vectors is twice one minus their product: one route for all methods.
        squared /= 2 if method in ("correlation", "cosine") else X.shape[1]
        matrix[np.ix_(scored, scored)] = np.sqrt(squared) if method == "euclidean" else squared
    vector = matrix[np.triu_indices(n_stimuli, 1)].astype(dtype)
    return PatternRDM(vector, int((~scored).sum()), n_stimuli)


def _blocks(n_items: int, item_size: int) -> list[slice]:
    step = max(1, BLOCK // max(item_size, 1))
    return [slice(start, min(start + step, n_items)) for start in range(0, n_items, step)]


def _row_shift_and_norm(X: np.ndarray, centre: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean of every row (0 without `centre`) and the norm of what is left; norm 0 for rounding alone."""
    shift, norm = np.zeros(len(X)), np.zeros(len(X))
    for rows in _blocks(*X.shape):
        block = X[rows].astype(np.float64)
        if centre:
            constant = block.min(1) == block.max(1)
            shift[rows] = block.mean(1)
            block -= shift[rows, None]
            block[constant] = 0.0
        norm[rows] = np.linalg.norm(block, axis=1)
    return shift, norm


def _squared_distances(X: np.ndarray, shift: np.ndarray, scale: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Squared Euclidean distances of the rows of ``(X - shift) / scale``, shape (row, row), float64.

    One Gram matrix of column-centred patterns: the centring, in float64, is what keeps float32 accurate when
    responses sit far from zero.
    """
    gram = np.zeros((len(X), len(X)))
    for columns in _blocks(X.shape[1], len(X)):
        block = (X[:, columns].astype(np.float64) - shift) / scale
        block -= block.mean(0)
        block = block.astype(dtype, copy=False)
        gram += block @ block.T
    norms = np.diagonal(gram)[:, None] + np.diagonal(gram)
    squared = np.maximum(norms - 2 * gram, 0)
    first, second = np.nonzero(np.triu(squared < CLOSE * norms, 1))
    for pairs in _blocks(len(first), X.shape[1]):
        i, j = first[pairs], second[pairs]
        left = (X[i].astype(np.float64) - shift[i]) / scale[i]
        right = (X[j].astype(np.float64) - shift[j]) / scale[j]
        squared[i, j] = squared[j, i] = ((left - right) ** 2).sum(1)
    return squared


def _warn_unscored(found: Sequence[PatternRDM], method: str) -> None:
    unscored = sum(one.n_unscored for one in found)
    if unscored:
        total = sum(one.n_patterns for one in found)
        reason = {"correlation": "constant, NaN or infinite", "cosine": "zero, NaN or infinite"}
        warnings.warn(
            f"{unscored} of {total} patterns are {reason.get(method, 'NaN or infinite')}; "
            "their dissimilarities are NaN.",
            stacklevel=3,
        )
