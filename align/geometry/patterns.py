"""One dissimilarity vector from one set of patterns: what is scored, what is left out, and by which engine."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.distance import squareform

from .crossvalidated import crossnobis, per_fold, poisson, poisson_cv, positive_inverse, whitened, whitening_factor
from .distances import (
    all_finite,
    host,
    is_tensor,
    like,
    namespace,
    pairwise_complete,
    placed,
    row_shift_and_norm,
    squared_distances,
    upper_triangle,
)

METHODS = (
    "sqeuclidean", "euclidean", "correlation", "cosine", "mahalanobis", "crossnobis", "poisson", "poisson-cv",
)  # fmt: skip
PLAIN = METHODS[:4]
WHITENED = ("mahalanobis", "crossnobis")
POISSON = ("poisson", "poisson-cv")

# What needs folds, and what it is without them.
CROSS_VALIDATED = {"crossnobis": "mahalanobis", "poisson-cv": "poisson"}


@dataclass(frozen=True)
class PatternRDM:
    """Dissimilarity vector of one set of patterns, and what of the patterns could not be used.

    Attributes
    ----------
    vector : ndarray of shape (pair,)
    n_unscored : int
        Patterns without a dissimilarity.
    n_patterns : int
    n_incomplete : int
        Patterns that lack some features and are scored on the others.
    n_left_out : int
        Features that are left out because some patterns lack them.
    """

    vector: np.ndarray
    n_unscored: int
    n_patterns: int
    n_incomplete: int = 0
    n_left_out: int = 0


def fewest_features(method: str) -> int:
    """Below this number of features (or units) a dissimilarity is not defined, and comes back as NaN."""
    return 2 if method == "correlation" else 1


def dissimilarities(
    X: Any,
    method: str,
    name: str = "X",
    *,
    noise: Any = None,
    missing: str = "pairwise",
    prior: tuple[float, float] = (1.0, 0.1),
    device: Any = "auto",
) -> PatternRDM:
    """Dissimilarities of the rows of `X` (stimulus, feature); see `align.rdm`. `name` is that of `X` in errors."""
    X = X if is_tensor(X) else np.asarray(X)
    if X.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(X.shape)}; expected (stimulus, feature).")
    n_stimuli, n_features = X.shape
    _check_patterns(X, n_stimuli, n_features, method, name)
    X = placed(X, device, float(n_stimuli) ** 2 * n_features)
    single = _is_single(X)
    usable, whole, n_left_out = np.ones(n_stimuli, bool), np.ones(n_stimuli, bool), 0
    if not all_finite(X):
        finite, infinite = _known(X)
        keep = np.asarray(finite.any(0))
        usable, whole = np.asarray(finite.any(1) & ~infinite), np.asarray(finite[:, keep].all(1))
        if missing == "nan":
            usable &= whole
        elif method == "mahalanobis":
            without_gaps = np.asarray(finite[usable].all(0) & keep)
            n_left_out = int(keep.sum() - without_gaps.sum())
            keep, whole = without_gaps, np.ones(n_stimuli, bool)
        if not keep.all():
            X, noise = X[:, like(np.flatnonzero(keep), X)], marginal_precision(noise, keep)
    if X.shape[1] < fewest_features(method):
        usable[:] = False
    if usable.all():
        matrix, usable = _matrix(X, method, noise, bool(whole.all()), prior)
    else:
        matrix = np.full((n_stimuli, n_stimuli), np.nan)
        if usable.any():
            rows = np.flatnonzero(usable)
            some, scored = _matrix(X[like(rows, X)], method, noise, bool(whole[rows].all()), prior)
            matrix[np.ix_(rows, rows)] = some
            usable[rows] = scored
    n_incomplete = int((usable & ~whole).sum())
    vector = upper_triangle(matrix).astype(np.float32 if single else np.float64, copy=False)
    return PatternRDM(vector, int((~usable).sum()), n_stimuli, n_incomplete, n_left_out)


def _matrix(
    X: Any, method: str, noise: Any, complete: bool, prior: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Matrix of dissimilarities of patterns without infinite values, and which of them have any."""
    scored = np.ones(len(X), bool)
    if method == "poisson":
        return squareform(poisson(X, prior)), scored
    if method == "mahalanobis":
        squared = squared_distances(whitened(X, whitening_factor(noise, X.shape[1])))
        return np.divide(squared, X.shape[1], out=squared), scored
    if not complete:
        matrix, _ = pairwise_complete(X.cpu().numpy() if is_tensor(X) else X, method)
        return matrix, np.isfinite(matrix).sum(1) > 1
    if method in ("correlation", "cosine"):
        # The squared distance of unit vectors is twice one minus their product: one route for all methods.
        shift, norm = row_shift_and_norm(X, centre=method == "correlation")
        scored = norm > 0
        if scored.all():
            squared = squared_distances(X, shift, norm)
            return np.divide(squared, 2, out=squared), scored
        matrix = np.full((len(X), len(X)), np.nan)
        if scored.any():
            rows = np.flatnonzero(scored)
            matrix[np.ix_(rows, rows)] = squared_distances(X[like(rows, X)], shift[rows], norm[rows]) / 2
        return matrix, scored
    squared = squared_distances(X)
    squared /= X.shape[1]
    return (np.sqrt(squared, out=squared) if method == "euclidean" else squared), scored


def fold_dissimilarities(
    folds: Any,
    method: str,
    name: str = "X",
    *,
    noise: Any = None,
    missing: str = "pairwise",
    prior: tuple[float, float] = (1.0, 0.1),
) -> PatternRDM:
    """Cross-validated dissimilarities of `folds` (fold, stimulus, feature); see `align.rdm`.

    A stimulus that a fold lacks is NaN throughout there. Of what other gaps there are, `missing` = "pairwise" leaves
    out the features, and "nan" the stimuli, in that fold.
    """
    folds = folds if is_tensor(folds) else np.asarray(folds)
    if folds.ndim != 3:
        raise ValueError(f"{name} has shape {tuple(folds.shape)}; expected (fold, stimulus, feature).")
    n_folds, n_stimuli, n_features = folds.shape
    _check_patterns(folds, n_stimuli, n_features, method, name)
    if n_folds < 2:
        raise ValueError(
            f"{name} has {n_folds} fold; cross-validation needs at least 2. Give folds, such as the run of every "
            "presentation, or repeats."
        )
    n_left_out = 0
    if not all_finite(folds):
        finite, infinite = _known(folds.reshape(-1, n_features))
        throughout, here = np.asarray(finite.any(0)), np.asarray(finite.any(1) & ~infinite)
        keep = throughout
        if missing == "pairwise" and here.any():
            keep = np.asarray(finite[here].all(0))
            n_left_out = int((throughout & ~keep).sum())
        if not keep.all():
            folds, noise = folds[:, :, like(np.flatnonzero(keep), folds)], marginal_precision(noise, keep)
    if not folds.shape[2]:
        return PatternRDM(np.full(n_stimuli * (n_stimuli - 1) // 2, np.nan), n_stimuli, n_stimuli, 0, n_left_out)
    vector = crossnobis(folds, noise) if method == "crossnobis" else poisson_cv(folds, prior)
    unscored = int((np.isnan(squareform(vector)).sum(1) >= n_stimuli - 1).sum())
    if _is_single(folds):
        vector = vector.astype(np.float32)
    return PatternRDM(vector, unscored, n_stimuli, 0, n_left_out)


def _check_patterns(X: Any, n_stimuli: int, n_features: int, method: str, name: str) -> None:
    if not is_tensor(X) and X.dtype.kind not in "fiub":
        raise ValueError(f"{name} has dtype {X.dtype}; expected real numbers.")
    if n_stimuli < 3:
        raise ValueError(f"{name} has {n_stimuli} stimuli; an RDM that can be compared needs at least 3.")
    if n_features == 0:
        raise ValueError(f"{name} has no features; {method!r} needs at least {fewest_features(method)}.")


def _is_single(X: Any) -> bool:
    return str(X.dtype).endswith("float32")


def _known(X: Any) -> tuple[np.ndarray, np.ndarray]:
    """Which entries are finite (row, feature), and which rows hold an infinite one."""
    xp = namespace(X)
    finite, infinite = xp.isfinite(X), xp.isinf(X).any(1)
    return (finite.cpu().numpy(), infinite.cpu().numpy()) if is_tensor(X) else (finite, infinite)


def marginal_precision(noise: Any, keep: np.ndarray) -> Any:
    """Precision of some features: that of their own covariance, not a part of the precision of all."""
    if noise is None:
        return None
    if per_fold(noise):
        return [marginal_precision(one, keep) for one in noise]
    noise = host(noise)
    if noise.shape == (len(keep),):
        return noise[keep]
    if noise.shape != (len(keep), len(keep)):
        return noise  # of a wrong size, which is named where it is used
    return positive_inverse(positive_inverse(noise)[np.ix_(keep, keep)])


def warn_unscored(found: Sequence[PatternRDM], method: str) -> None:
    """One warning that counts what could not be used of the patterns of some RDMs; none if all was."""
    total = sum(one.n_patterns for one in found)
    unscored, incomplete, left_out = (
        sum(getattr(one, name) for one in found) for name in ("n_unscored", "n_incomplete", "n_left_out")
    )
    parts = []
    if unscored:
        reason = {"correlation": "constant, NaN or infinite", "cosine": "zero, NaN or infinite"}
        default = "NaN or infinite"
        if method in CROSS_VALIDATED:
            default += ", or in too few folds"
        why = reason.get(method, default)
        parts.append(f"{unscored} of {total} patterns are {why}; their dissimilarities are NaN.")
    if incomplete:
        parts.append(
            f"{incomplete} of {total} patterns miss some features; dissimilarities use those that both patterns have."
        )
    if left_out:
        parts.append(f"{left_out} features that some patterns miss are left out.")
    if parts:
        warnings.warn(" ".join(parts), stacklevel=3)
