"""Models of the form X @ left @ right: what they share, and the scores of all their truncations at once.

Partial least squares and reduced-rank regression predict by a sum of components, each a score of the stimulus
times a loading of the unit. The fit with one component fewer is the same sum cut short, so that moments of all
truncations are cumulative sums, without a prediction of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import assert_all_finite, check_array, validate_data
from torch import Tensor

from ..device import pick_device
from .estimator import FLOATS, NamedScore, checked_groups, floats_for, refuse_tokens
from .folds import Rows, scored_folds

EPS = torch.finfo(torch.float64).eps
BLOCK = 2**25  # float64 numbers of a temporary, 256 MiB


def column_mean(A: Tensor) -> Tensor:
    """Mean of each column, exact for constant columns: centred, they are zero without rounding."""
    low = A.amin(0)
    return torch.where(low == A.amax(0), low, A.mean(0))


def column_blocks(n: int, size: int) -> list[slice]:
    """Slices that cover ``range(n)``, each of as many columns of `size` numbers as a temporary holds."""
    width = max(1, BLOCK // max(1, size))
    return [slice(start, min(start + width, n)) for start in range(0, n, width)]


# Both sides of the training rows


@dataclass(frozen=True)
class Axes:
    """Training rows along their principal axes: ``(X - mean) / scale = left @ diag(singular) @ V'``.

    Attributes
    ----------
    X : Tensor, shape (stimulus, feature)
        All rows, as given; `rows` of them train.
    mean, scale : Tensor of float64, shape (feature,)
    singular : Tensor of float64, shape (axis,)
        Those that rounding cannot tell from zero are left out.
    left : Tensor of float64, shape (train, axis)
        Orthonormal columns.
    rotation : Tensor of float64, shape (feature, axis), in the dual form (train, axis)
        Turns features, or in the dual form inner products with training rows, into rows of `left`.
    """

    X: Tensor
    rows: Tensor
    mean: Tensor
    scale: Tensor
    singular: Tensor
    left: Tensor
    rotation: Tensor
    dual: bool  # more features than training rows

    def framed(self, rows: Tensor, part: slice = slice(None)) -> Tensor:
        """Some features of some rows in float64, without offset and scale."""
        return (self.X[rows, part].double() - self.mean[part]) / self.scale[part]

    def project(self, rows: Tensor) -> Tensor:
        """What `left` would hold for these rows of X, float64, shape (row, axis)."""
        if not self.dual:
            return self.framed(rows) @ self.rotation
        kernel = torch.zeros(len(rows), len(self.rows), dtype=torch.float64, device=self.X.device)
        for part in column_blocks(self.X.shape[1], 2 * len(self.X)):
            kernel += self.framed(rows, part) @ self.framed(self.rows, part).T
        return kernel @ self.rotation

    def weights(self, directions: Tensor) -> Tensor:
        """Weights of the features, float64, shape (feature, component), of ``left @ directions``."""
        turned = self.rotation @ directions
        if not self.dual:
            return turned / self.scale[:, None]
        parts = column_blocks(self.X.shape[1], 2 * len(self.X))
        return torch.cat([self.framed(self.rows, part).T @ turned / self.scale[part, None] for part in parts])


def principal_axes(X: Tensor, rows: Tensor, centre: bool, scale: bool) -> Axes:
    """Principal axes of some rows, from the smaller of their Gram matrices; no other row is read.

    Parameters
    ----------
    X : Tensor of float32 or float64, shape (stimulus, feature)
    rows : Tensor of int64, shape (train,)
    centre, scale : bool
        Take out the mean, and the standard deviation (n - 1 in its denominator) of features that vary.
    """
    n, p = len(rows), X.shape[1]
    dual = p > n
    offset = torch.zeros(p, dtype=torch.float64, device=X.device)
    size = torch.ones_like(offset)
    gram = torch.zeros(min(n, p), min(n, p), dtype=torch.float64, device=X.device)
    for part in column_blocks(p, 2 * n) if dual else [slice(0, p)]:
        F = X[rows, part].double()
        mean, deviation = moments(F)
        if centre:
            offset[part] = mean
        if scale:
            size[part] = deviation
        F = (F - offset[part]) / size[part]
        gram += F @ F.T if dual else F.T @ F
    eigenvalues, vectors = torch.linalg.eigh(gram)
    keep = eigenvalues > EPS * max(n, p) * max(float(eigenvalues[-1]), 0.0)
    eigenvalues, vectors = eigenvalues[keep].flip(0), vectors[:, keep].flip(1)
    singular = eigenvalues.sqrt()
    rotation = vectors / (eigenvalues if dual else singular)
    left = vectors if dual else F @ rotation
    return Axes(X, rows, offset, size, singular, left, rotation, dual)


def moments(A: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (n - 1 in its denominator) of each column; 1 for one that is constant."""
    mean = column_mean(A)
    deviation = (A - mean).square().sum(0).div(max(1, len(A) - 1)).sqrt()
    return mean, torch.where(deviation > 0, deviation, 1.0)


@dataclass(frozen=True)
class Responses:
    """The columns of Y that can be fitted. Y stays where it is and is read block by block."""

    Y: np.ndarray  # (stimulus, unit)
    columns: np.ndarray
    centre: bool
    scale: bool

    def __len__(self) -> int:
        return len(self.columns)

    def blocks(self) -> list[slice]:
        """Blocks of units."""
        return column_blocks(len(self), 4 * len(self.Y))

    def block(self, part: slice, train: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All rows of a block in float64, and the mean and size of its training rows, which are taken out."""
        Y = torch.from_numpy(np.array(self.Y[:, self.columns[part]], dtype=np.float64)).to(train.device)
        mean, size = moments(Y[train])
        mean = mean if self.centre else torch.zeros_like(mean)
        size = size if self.scale else torch.ones_like(size)
        return (Y - mean) / size, mean, size

    def along(self, axes: Axes) -> tuple[Tensor, bool]:
        """``N = left' Y``, shape (axis, unit), or ``N N'`` if it is smaller; and whether it is ``N N'``."""
        rows = axes.rows
        if len(self) <= len(axes.singular):
            return torch.cat([axes.left.T @ self.block(part, rows)[0][rows] for part in self.blocks()], 1), False
        size = len(rows) if axes.dual else len(axes.singular)
        gram = torch.zeros(size, size, dtype=torch.float64, device=axes.left.device)
        for part in self.blocks():
            Y = self.block(part, rows)[0][rows]
            side = Y if axes.dual else axes.left.T @ Y
            gram += side @ side.T
        return (axes.left.T @ gram @ axes.left if axes.dual else gram), True


# Scores


def nested_scores(scores: Tensor, loadings: Tensor, Y: Tensor, counts: np.ndarray, score: str) -> Tensor:
    """Score of the predictions ``scores[:, :k] @ loadings[:k]`` for every k of `counts`.

    Parameters
    ----------
    scores : Tensor of float64, shape (stimulus, component)
        Of the test rows, in units in which those of the training rows have norm 1.
    loadings : Tensor of float64, shape (component, unit)
    Y : Tensor of float64, shape (stimulus, unit)
        Responses, without the offset of the training rows.
    counts : ndarray of int, shape (count,)
        From 1; a count beyond the number of components stands for all of them.
    score : {"r", "r2"}
        Pearson correlation, or R^2 about the mean of these rows.

    Returns
    -------
    Tensor of float64, shape (count, unit)
        NaN where the responses, or for "r" the predictions, are constant.
    """
    if scores.shape[1] == 0:  # the prediction is the offset
        scores, loadings = torch.zeros_like(Y[:, :1]), torch.zeros_like(Y[:1])
    score_mean = scores.mean(0)
    centred = scores - score_mean
    # Scores that differ by rounding alone are constant, and so are those of rows orthogonal to training.
    varies = centred.norm(dim=0) > 1e-12 * (scores.norm(dim=0) + 1)
    centred = torch.where(varies, centred, 0.0)
    mean = column_mean(Y)
    responses = Y - mean
    spread = responses.square().sum(0)

    gram = centred.T @ centred
    own = gram.diagonal()
    pairs = 2 * gram.tril(-1) + torch.diag(own)  # each pair of components counts once, with the later of them
    chosen = torch.from_numpy(np.minimum(counts, len(loadings)) - 1).to(Y.device)
    cross = (loadings * (centred.T @ responses)).cumsum(0)[chosen]
    power = (loadings * (pairs @ loadings)).cumsum(0)[chosen]
    largest = (loadings.square() * own[:, None]).cumsum(0)[chosen] * (chosen + 1)[:, None]
    power = torch.where(power > 64 * EPS * largest, power, 0.0)
    if score == "r":
        return (cross / (power.sqrt() * spread.sqrt())).clamp(-1, 1).where((power > 0) & (spread > 0), torch.nan)
    bias = mean - (loadings * score_mean[:, None]).cumsum(0)[chosen]
    residual = spread - 2 * cross + power + len(Y) * bias.square()
    return torch.where(spread > 0, 1 - residual / spread, torch.nan)


class RunningMean:
    """Mean over what is added, entry by entry, without what is NaN; NaN where nothing else was added."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.total = np.zeros(shape)
        self.count = np.zeros(shape, dtype=np.int64)

    def add(self, scores: Tensor, where: Any = ...) -> None:
        """Add scores, shape (count, unit), to the entries `where`: one for each unit, or one for all."""
        values = scores.cpu().numpy()
        known = ~np.isnan(values)
        values = np.where(known, values, 0.0)
        if self.total[where].ndim < values.ndim:
            values, known = values.sum(-1), known.sum(-1)
        self.total[where] += values
        self.count[where] += known

    def result(self) -> np.ndarray:
        return np.where(self.count > 0, self.total / np.maximum(self.count, 1), np.nan)


def choose_first(scores: np.ndarray, tolerance: float) -> np.ndarray:
    """Row of the best score of each column: the first among ties, and the first where no score is defined.

    Parameters
    ----------
    scores : ndarray, shape (choice, column)
        From the simplest model to the richest.
    tolerance : float
        Scores that differ by no more are ties.
    """
    return np.argmax(scores >= np.fmax.reduce(scores, axis=0) - tolerance, axis=0)


# Estimators


class LowRankRegressor(NamedScore, RegressorMixin, MultiOutputMixin, BaseEstimator):
    """Estimators that predict by ``(X - feature_mean_) @ left @ right + response_mean_``."""

    device: Any
    feature_mean_: np.ndarray
    response_mean_: np.ndarray
    predict: Callable[..., np.ndarray]

    def _r2(self, X, y, sample_weight=None) -> float:
        """R^2 of the predictions, averaged over the units without NaN; NaN where there is none."""
        predicted = self.predict(X)
        y = check_array(y, ensure_2d=False, dtype=FLOATS, ensure_all_finite="allow-nan", input_name="y")
        if y.size != predicted.size or len(y) != len(predicted):
            raise ValueError(f"y has shape {y.shape} and the predictions {predicted.shape}; expected the same")
        y, predicted = y.reshape(len(y), -1), predicted.reshape(len(y), -1)
        known = _complete_columns(y) & _complete_columns(predicted)
        if not known.any():
            return float("nan")
        return float(r2_score(y[:, known], predicted[:, known], sample_weight=sample_weight))

    def _product(self, X, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Predictions from the factors (feature, component) and (component, unit), in their dtype."""
        refuse_tokens(X)
        X = validate_data(self, X, reset=False, dtype=floats_for(X))
        device = pick_device(self.device)
        weights = torch.from_numpy(np.array(left)).to(device)  # torch wants what may be written
        scores = torch.empty(len(X), left.shape[1], dtype=weights.dtype, device=device)
        for rows in column_blocks(len(X), X.shape[1]):
            centred = (X[rows] - self.feature_mean_).astype(left.dtype)  # in float64, against large offsets
            scores[rows] = torch.from_numpy(centred).to(device) @ weights
        predicted = np.empty((len(X), right.shape[1]), dtype=left.dtype)
        mean = np.atleast_1d(self.response_mean_)
        for part in column_blocks(right.shape[1], len(X) + len(right)):
            loadings = torch.from_numpy(np.array(right[:, part])).to(device)
            predicted[:, part] = (scores @ loadings).cpu().numpy() + mean[part]
        return predicted[:, 0] if np.ndim(self.response_mean_) == 0 else predicted

    def _weights(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Weights of the features, shape (feature, unit); without unit axis after a fit to a vector."""
        return left @ (right[:, 0] if np.ndim(self.response_mean_) == 0 else right)

    def _intercept(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Intercepts for features as they are, in the dtype of the factors."""
        shift = (self.feature_mean_ @ left.astype(np.float64)) @ right.astype(np.float64)
        return (self.response_mean_ - (shift[0] if np.ndim(self.response_mean_) == 0 else shift)).astype(left.dtype)

    def _checked_data(self, X, Y) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """X and Y as floating arrays without infinite values, and which units hold no NaN."""
        refuse_tokens(X)
        if Y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        X = validate_data(self, X, dtype=floats_for(X), ensure_min_samples=2)
        Y = check_array(Y, dtype=FLOATS, ensure_2d=False, ensure_all_finite="allow-nan", input_name="Y")
        if Y.ndim == 1:
            assert_all_finite(Y, input_name="Y")
        if len(X) != len(Y):
            raise ValueError(f"X has {len(X)} rows and Y has {len(Y)}; expected one row per stimulus in both")
        complete = _complete_columns(Y.reshape(len(Y), -1))
        if not complete.any():
            raise ValueError(f"every unit of Y (shape {Y.shape}) holds NaN; leave out the rows without responses")
        return X, Y, complete

    def _checked_folds(self, cv: Any, X: np.ndarray, Y: np.ndarray, groups: Any) -> tuple[str, list[Rows]]:
        """Name of the score and rows of the folds."""
        score = self._checked_score()
        return score, scored_folds(cv, X, Y, checked_groups(groups, len(X)), score)


def checked_counts(given: Any, name: str) -> np.ndarray:
    """Whole numbers from 1, ascending."""
    counts = np.unique(given)
    if counts.size == 0 or counts.dtype.kind not in "iu" or counts[0] < 1:
        raise ValueError(f"{name}={given!r}: expected a whole number from 1, or several of them")
    return counts.astype(np.int64)


def spread_over_units(values: np.ndarray, complete: np.ndarray, vector: bool) -> np.ndarray:
    """Values of the fitted units in the columns of Y, NaN for units left out; a vector drops the unit axis."""
    if not complete.all():
        fitted = values
        values = np.full((*fitted.shape[:-1], len(complete)), np.nan, dtype=fitted.dtype)
        values[..., complete] = fitted
    return values[..., 0] if vector else values


def left_out(complete: np.ndarray) -> list[str]:
    """What to say of units that hold NaN, if any."""
    missing = int((~complete).sum())
    what = f"{missing} of {len(complete)} units hold NaN in Y and are left out: weights and predictions are NaN"
    return [what] if missing else []


def unscored(cv_score: np.ndarray) -> list[str]:
    """What to say of fitted units without a cross-validated score, if any."""
    undefined = int(np.isnan(cv_score).sum())
    what = f"{undefined} of {len(cv_score)} units have no cross-validated score, as their responses or predictions"
    return [f"{what} are constant in every fold"] if undefined else []


def _complete_columns(Y: np.ndarray) -> np.ndarray:
    """Which columns hold no NaN; read in blocks, because a mask of all of Y may be large."""
    return np.concatenate([~np.isnan(Y[:, part]).any(axis=0) for part in column_blocks(Y.shape[1], len(Y))])
