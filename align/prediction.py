"""How well predictions of held-out responses agree with them, and how sure that is.

Everything here works on predictions and responses of the same shape (stimulus, unit), and on folds: arrays of the
rows that were held out together. A score is computed within each fold and averaged over folds, so that a shift of
the mean from fold to fold counts neither for nor against a model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..datasets.errors import unknown

METRICS = ("r", "r2")
_BLOCK = 2048  # units whose resampled scores are held at a time


def unit_scores(predicted: np.ndarray, observed: np.ndarray, folds: Sequence[np.ndarray], metric: str) -> np.ndarray:
    """Score of every unit, averaged over folds.

    Parameters
    ----------
    predicted, observed : ndarray, shape (stimulus, unit)
    folds : sequence of int arrays
        Rows held out together.
    metric : {"r", "r2"}
        Pearson correlation, or the share of variance around the fold's mean that is explained.

    Returns
    -------
    ndarray of float64, shape (unit,)
        A fold in which the response is constant is left out of the mean; NaN if that leaves none. A constant
        prediction correlates with nothing: its r is 0. (To leave such folds out would bias the mean, because whether
        a fit found anything in its training rows depends on the rows of the other folds.)
    """
    ones = [np.ones((1, len(fold))) for fold in folds]
    return _mean_over_folds(predicted, observed, folds, ones, metric)[0]


def bootstrap_means(
    predicted: np.ndarray,
    observed: np.ndarray,
    folds: Sequence[np.ndarray],
    metric: str,
    counts: np.ndarray,
) -> np.ndarray:
    """Mean score over units when stimuli are drawn anew, with the fitted models as they are.

    Parameters
    ----------
    predicted, observed, folds, metric
        See `unit_scores`.
    counts : ndarray of int, shape (bootstrap, stimulus)
        How often each stimulus was drawn; moments are weighted by it, nothing is copied.

    Returns
    -------
    ndarray of float64, shape (bootstrap,)
    """
    weights = [counts[:, fold].astype(np.float64) for fold in folds]
    total = np.zeros(len(counts))
    n_scored = np.zeros(len(counts))
    for start in range(0, observed.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        scores = _mean_over_folds(predicted[:, block], observed[:, block], folds, weights, metric)
        total += np.nansum(scores, 1)
        n_scored += np.isfinite(scores).sum(1)
    with np.errstate(invalid="ignore"):
        return total / n_scored


def permutation_means(
    predicted: np.ndarray,
    observed: np.ndarray,
    folds: Sequence[np.ndarray],
    metric: str,
    orders: Sequence[np.ndarray],
) -> np.ndarray:
    """Mean score over units when predictions are handed to the wrong stimuli of their fold.

    The mean over units of any sum over stimuli of prediction times response is a sum over the entries of one
    (stimulus, stimulus) matrix, so a permutation costs one look-up per stimulus, whatever the number of units.

    Parameters
    ----------
    predicted, observed, folds, metric
        See `unit_scores`.
    orders : sequence of int arrays, each of shape (permutation, stimulus of the fold)
        Position, within its fold, of the stimulus whose prediction each stimulus is handed.

    Returns
    -------
    ndarray of float64, shape (permutation,)
    """
    per_fold = [_fold_scores(predicted[f], observed[f], np.ones((1, len(f))), metric)[0] for f in folds]
    scored = np.isfinite(per_fold)  # (fold, unit)
    used = scored.any(0)
    null = np.zeros(len(orders[0]))
    if not used.any():
        return null * np.nan
    share = np.where(scored, 1.0, 0.0) / np.maximum(scored.sum(0), 1) / used.sum()  # of a fold and unit in the mean
    for fold, weight, per_fold_scores, order in zip(folds, share, per_fold, orders, strict=True):
        units = weight > 0
        w = weight[units]
        p = predicted[fold][:, units].astype(np.float64)
        y = observed[fold][:, units].astype(np.float64)
        y -= y.mean(0)
        spread = (y * y).sum(0)
        if metric == "r":
            p -= p.mean(0)
            constant = 0.0
            varies = per_fold_scores[units] != 0  # where r was set to 0, it stays 0 under every shuffle
            norm = np.sqrt(np.where(varies, (p * p).sum(0) * spread, 1))
            matrix = (p * np.where(varies, w / norm, 0)) @ y.T
        elif metric == "r2":
            p -= observed[fold][:, units].astype(np.float64).mean(0)
            constant = float((w * (1 - ((p * p).sum(0) + spread) / spread)).sum())
            matrix = (p * (2 * w / spread)) @ y.T
        else:
            raise ValueError(unknown("metric", metric, METRICS))
        null += constant + matrix[order, np.arange(len(fold))].sum(1)
    return null


def shuffles(n: int, n_permutations: int, rng: np.random.Generator) -> np.ndarray:
    """Random orders of n stimuli, shape (n_permutations, n)."""
    return rng.permuted(np.tile(np.arange(n), (n_permutations, 1)), axis=1)


def induced(orders: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The orders that shuffles of all stimuli induce on some of them.

    Units that lack some stimuli are thereby shuffled together with those that have them all: noise that they share
    stays shared.

    Parameters
    ----------
    orders : ndarray of int, shape (permutation, n)
    kept : ndarray of int, shape (m,)
        Positions of the stimuli that are there.

    Returns
    -------
    ndarray of int, shape (permutation, m)
        Positions within `kept`: each shuffle is followed until it arrives at a stimulus that is there.
    """
    place = np.full(orders.shape[1], -1)
    place[kept] = np.arange(len(kept))
    rows = np.arange(len(orders))[:, None]
    reached = orders[:, kept]
    while (place[reached] < 0).any():
        reached = np.where(place[reached] < 0, orders[rows, reached], reached)
    return place[reached]


def widened(null: np.ndarray, n_folds: int) -> np.ndarray:
    """The null of a score over folds that train on each other.

    Shuffles within folds treat the folds as independent, but two stimuli of different folds meet twice in a
    cross-validated score: one trains and the other tests, and the other way round. For a fit that is linear in the
    responses the two agree at most perfectly, so that the variance under the null is at most twice that of the
    shuffles, whatever the number of folds. Widened by that factor, the test is conservative and never liberal.
    """
    return null if n_folds == 1 else null.mean() + np.sqrt(2) * (null - null.mean())


def _mean_over_folds(
    predicted: np.ndarray,
    observed: np.ndarray,
    folds: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
    metric: str,
) -> np.ndarray:
    """Scores (draw, unit), averaged over the folds in which they are defined."""
    total = np.zeros((len(weights[0]), observed.shape[1]))
    n_folds = np.zeros_like(total)
    for fold, weight in zip(folds, weights, strict=True):
        scores = _fold_scores(predicted[fold], observed[fold], weight, metric)
        defined = np.isfinite(scores)
        total += np.where(defined, scores, 0)
        n_folds += defined
    with np.errstate(invalid="ignore"):
        return total / n_folds


def _fold_scores(predicted: np.ndarray, observed: np.ndarray, weights: np.ndarray, metric: str) -> np.ndarray:
    """Scores (draw, unit) of one fold under weights (draw, stimulus), from weighted moments."""
    y = observed.astype(np.float64)
    p = predicted.astype(np.float64)
    centre, scale = y.mean(0), y.std(0)  # moments of shifted and scaled values keep their digits
    floor = 1e-10
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.where(scale > floor * np.abs(centre), scale, np.nan)
        y, p = (y - centre) / scale, (p - centre) / scale
        n = weights.sum(1, keepdims=True)
        sum_y, sum_p = weights @ y, weights @ p
        yy, pp, py = weights @ (y * y), weights @ (p * p), weights @ (p * y)
        spread_y = yy - sum_y**2 / n
        if metric == "r2":
            return np.where(spread_y > floor * n, 1 - (pp - 2 * py + yy) / spread_y, np.nan)
        if metric != "r":
            raise ValueError(unknown("metric", metric, METRICS))
        spread_p = pp - sum_p**2 / n
        r = (py - sum_p * sum_y / n) / np.sqrt(spread_p * spread_y)
        r = np.where(spread_p > floor * np.maximum(pp, floor), r, 0)
        return np.where(spread_y > floor * n, r, np.nan)
