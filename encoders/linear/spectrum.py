"""Cross-validated ridge regression on plain arrays: the computation beneath the estimators.

In the order of use: `decompose` turns training rows into a spectrum, `make_fold` meets it with the test rows,
`sweep` scores every alpha on them, `choose` picks an alpha, and `refit` computes the weights.

What does not grow with the number of units (means, Gram matrix or kernel, eigenvectors) is float64; products
as wide as the units run in the dtype of X. Features and responses are centred and scaled in float64 before
they are rounded to that dtype, so that neither a large offset nor an unusual unit of measurement costs
digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .folds import Rows


@dataclass(frozen=True)
class Options:
    """What all steps share."""

    score: str
    fit_intercept: bool
    standardise: bool
    device: torch.device
    memory: int  # bytes of temporaries


def parts(n: int, width: int) -> Iterator[slice]:
    """Slices of at most `width` that cover ``range(n)``."""
    width = max(1, width)
    for start in range(0, n, width):
        yield slice(start, min(start + width, n))


def column_mean(A: Tensor) -> Tensor:
    """Mean of each column, exact for constant columns: centred, they are zero without rounding."""
    low = A.amin(0)
    return torch.where(low == A.amax(0), low, A.mean(0))


# Features


@dataclass(frozen=True)
class Spectrum:
    """Training rows along their principal axes.

    With F = (X - mean) / scale of the training rows, ``F = top * coordinates @ axes().T``.

    Attributes
    ----------
    X : Tensor, shape (stimulus, feature)
        All rows, as given.
    rows : Tensor, shape (train,)
        The training rows among them.
    mean, scale : Tensor of float64, shape (feature,)
        Offset and scale of each feature over the training rows.
    top : float
        Largest eigenvalue of the Gram matrix of F; 1 if F holds nothing but zeros.
    eigenvalues : Tensor of float64, shape (axis,)
        Divided by `top`; those that rounding cannot tell from zero are left out.
    coordinates : Tensor of float64, shape (train, axis)
        Columns are orthogonal, with the roots of `eigenvalues` as norms.
    rotation : Tensor of float64, shape (feature, axis), in the dual form (train, axis)
        Turns features, or in the dual form inner products with training rows, into coordinates.
    dual : bool
        Whether there are more features than training rows.
    width : int
        Number of features held in float64 at once.
    """

    X: Tensor
    rows: Tensor
    mean: Tensor
    scale: Tensor
    top: float
    eigenvalues: Tensor
    coordinates: Tensor
    rotation: Tensor
    dual: bool
    width: int

    def framed(self, rows: Tensor, part: slice) -> Tensor:
        """Some features of some rows in float64, without offset and scale."""
        return (self.X[rows, part].double() - self.mean[part]) / self.scale[part]

    def project(self, rows: Tensor) -> Tensor:
        """Rows of X in `coordinates`, float64, shape (row, axis)."""
        if not self.dual:
            return self.framed(rows, slice(None)) @ self.rotation
        kernel = torch.zeros(len(rows), len(self.rows), dtype=torch.float64, device=self.X.device)
        for part in parts(self.X.shape[1], self.width):
            kernel += self.framed(rows, part) @ self.framed(self.rows, part).T
        return kernel @ self.rotation

    def axes(self) -> Tensor:
        """Principal axes divided by the root of `top`, in the dtype of X, shape (feature, axis)."""
        if not self.dual:
            return self.rotation.to(self.X.dtype)
        axes = torch.empty(self.X.shape[1], self.rotation.shape[1], dtype=self.X.dtype, device=self.X.device)
        for part in parts(self.X.shape[1], self.width):
            axes[part] = self.framed(self.rows, part).T @ self.rotation
        return axes


def decompose(X: Tensor, rows: Tensor, options: Options) -> Spectrum:
    """Spectrum of some rows, from the smaller of their Gram matrix (feature) and their kernel (stimulus).

    No other row is read, so that test rows cannot reach a fold through offset or scale.

    Parameters
    ----------
    X : Tensor of float32 or float64, shape (stimulus, feature)
    rows : Tensor of int64, shape (train,)
    options : Options
        Features are centred with `fit_intercept`, and divided by their standard deviation with `standardise`.
    """
    n, p = len(rows), X.shape[1]
    dual = p > n
    width = max(1, options.memory // (32 * len(X))) if dual else p
    mean = torch.zeros(p, dtype=torch.float64, device=X.device)
    scale = torch.ones_like(mean)
    small = torch.zeros(min(n, p), min(n, p), dtype=torch.float64, device=X.device)
    for part in parts(p, width):
        F = X[rows, part].double()
        centre = column_mean(F)
        if options.standardise:
            deviation = (F - centre).square().mean(0).sqrt()
            scale[part] = torch.where(deviation > 0, deviation, 1.0)
        if options.fit_intercept:
            mean[part] = centre
        F = (F - mean[part]) / scale[part]
        small += F @ F.T if dual else F.T @ F
    eigenvalues, vectors = torch.linalg.eigh(small)
    top = float(eigenvalues[-1])
    # Smaller eigenvalues, negative ones among them, are zeros and rounding; dividing by the rest is safe.
    keep = eigenvalues > torch.finfo(torch.float64).eps * max(n, p) * max(top, 0.0)
    top = top if top > 0 else 1.0
    eigenvalues, vectors = eigenvalues[keep] / top, vectors[:, keep]
    if dual:
        coordinates, rotation = vectors * eigenvalues.sqrt(), vectors / (eigenvalues.sqrt() * top)
    else:
        rotation = vectors / top**0.5
        coordinates = F @ rotation
    return Spectrum(X, rows, mean, scale, top, eigenvalues, coordinates, rotation, dual, width)


# Scores


@dataclass(frozen=True)
class Moments:
    """What a score needs to know of predictions p and responses y on the test rows, for each unit."""

    cross: Tensor  # sum of (p - mean p)(y - mean y)
    power: Tensor  # sum of (p - mean p)^2
    spread: Tensor  # sum of (y - mean y)^2
    bias: Tensor  # mean y - mean p
    n: int


def pearson(m: Moments) -> Tensor:
    """Pearson correlation; NaN where predictions or responses are constant."""
    return (m.cross / (m.power.sqrt() * m.spread.sqrt())).clamp(-1, 1)


def determination(m: Moments) -> Tensor:
    """R^2, 1 - residual / spread about the mean of the test rows; NaN where responses are constant."""
    residual = m.spread - 2 * m.cross + m.power + m.n * m.bias.square()
    return torch.where(m.spread > 0, 1 - residual / m.spread, torch.nan)


SCORES: dict[str, Callable[[Moments], Tensor]] = {"r": pearson, "r2": determination}


@dataclass(frozen=True)
class Fold:
    """The feature side of one fold in the dtype of X, ready to meet any number of units."""

    train_rows: Tensor
    test_rows: Tensor
    top: float
    eigenvalues: Tensor  # (axis,), float64
    train: Tensor  # (axis, train)
    test: Tensor  # (test, axis), centred over the test rows
    test_mean: Tensor  # (axis,)


def make_fold(spectrum: Spectrum, test_rows: Tensor) -> Fold:
    """Meet the spectrum of the training rows with the test rows."""
    dtype = spectrum.X.dtype
    test = spectrum.project(test_rows)
    test_mean = test.mean(0)
    centred = test - test_mean
    if centred.norm() <= 1e-12 * (test.norm() + spectrum.coordinates.norm()):
        # The test rows differ in nothing the training rows could teach: constant predictions, without
        # rounding.
        centred = torch.zeros_like(centred)
    train = spectrum.coordinates.T.to(dtype).contiguous()
    return Fold(
        spectrum.rows,
        test_rows,
        spectrum.top,
        spectrum.eigenvalues,
        train,
        centred.to(dtype),
        test_mean.to(dtype),
    )


def sweep(fold: Fold, Y: Tensor, alphas: np.ndarray, options: Options) -> Tensor:
    """Score of every alpha on the test rows of one fold.

    Parameters
    ----------
    fold : Fold
    Y : Tensor of float64, shape (stimulus, unit)
        All rows of a block of units.
    alphas : ndarray, shape (alpha,)
    options : Options
        Y is centred over the training rows with `fit_intercept`; `score` names the score.

    Returns
    -------
    Tensor of float64, shape (alpha, unit)
        NaN where the score is undefined.
    """
    dtype, score = fold.train.dtype, SCORES[options.score]
    train, test = Y[fold.train_rows], Y[fold.test_rows]
    if options.fit_intercept:
        mean = column_mean(train)
        train, test = train - mean, test - mean
    test_mean = column_mean(test)
    test = test - test_mean
    spread = test.square().sum(0)
    test = test.to(dtype)
    loadings = fold.train @ train.to(dtype)  # (axis, unit)
    weighted, predicted, product = torch.empty_like(loadings), torch.empty_like(test), torch.empty_like(test)
    scores = torch.empty(len(alphas), Y.shape[1], dtype=torch.float64, device=Y.device)
    for i, alpha in enumerate((alphas / fold.top).tolist()):
        # 1 / (eigenvalue + alpha), less its size, which a large alpha would carry out of float32's range.
        shrinkage, size = (1 + alpha) / (fold.eigenvalues + alpha), 1 / (1 + alpha)
        torch.mul(loadings, shrinkage.to(dtype)[:, None], out=weighted)
        torch.matmul(fold.test, weighted, out=predicted)
        cross = torch.mul(predicted, test, out=product).sum(0).double() * size
        power = torch.mul(predicted, predicted, out=product).sum(0).double() * size**2
        bias = test_mean - (fold.test_mean @ weighted).double() * size
        scores[i] = score(Moments(cross, power, spread, bias, len(test)))
    return scores


def choose(scores: np.ndarray, tolerance: float) -> np.ndarray:
    """Row of the best score of each column: the last among ties, and the last where no score is defined.

    Parameters
    ----------
    scores : ndarray, shape (alpha, unit)
        Alphas ascending.
    tolerance : float
        Scores that differ by no more are ties.
    """
    tied = scores >= np.fmax.reduce(scores, axis=0) - tolerance
    return len(scores) - 1 - np.argmax(tied[::-1], axis=0)


# Units


@dataclass(frozen=True)
class Units:
    """The columns of Y that can be fitted. Y stays where it is and is read block by block."""

    Y: np.ndarray  # (stimulus, unit)
    columns: np.ndarray

    def __len__(self) -> int:
        return len(self.columns)

    def block(self, part: slice, options: Options) -> tuple[Tensor, Tensor, Tensor]:
        """Float64 block of unit size on the device, and the means and sizes taken out, shape (unit,).

        Means are zero without intercept. Predictions are linear in Y, so that the size of the whole column
        may be taken out before a fold; it keeps responses in volt or tesla inside the range of float32.
        """
        columns = self.columns[part]
        first, last = columns[0], columns[-1]
        chosen = self.Y[:, first : last + 1] if last - first < len(columns) else self.Y[:, columns]
        Y = torch.from_numpy(np.array(chosen, dtype=np.float64)).to(options.device)
        mean = column_mean(Y) if options.fit_intercept else torch.zeros_like(Y[0])
        Y -= mean
        size = torch.linalg.vector_norm(Y, dim=0) / len(Y) ** 0.5
        size = torch.where(size > 0, size, 1.0)
        Y /= size
        return Y, mean, size


def cross_validate(X: Tensor, units: Units, folds: list[Rows], alphas: np.ndarray, options: Options) -> np.ndarray:
    """Score of every alpha and unit, averaged over folds, shape (alpha, unit).

    A fold in which the score of a unit is undefined is left out of its average; NaN if none is left.
    """
    total = np.zeros((len(alphas), len(units)))
    count = np.zeros((len(alphas), len(units)), dtype=np.int32)
    for train, test in folds:
        spectrum = decompose(X, torch.from_numpy(train).to(X.device), options)
        fold = make_fold(spectrum, torch.from_numpy(test).to(X.device))
        del spectrum
        rank = len(fold.eigenvalues)
        per_unit = 32 * len(X) + X.element_size() * (len(train) + 2 * rank + 3 * len(test))
        for part in parts(len(units), options.memory // per_unit):
            scores = sweep(fold, units.block(part, options)[0], alphas, options).cpu().numpy()
            known = ~np.isnan(scores)
            total[:, part] += np.where(known, scores, 0.0)
            count[:, part] += known
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@dataclass(frozen=True)
class Weights:
    """Result of `refit` on the CPU, in the original units of X and Y."""

    coef: np.ndarray  # (feature, unit), dtype of X
    intercept: np.ndarray  # (unit,), float64
    feature_mean: np.ndarray  # (feature,), float64; zero without intercept, as is response_mean
    response_mean: np.ndarray  # (unit,), float64


def refit(X: Tensor, units: Units, alpha: np.ndarray, options: Options) -> Weights:
    """Weights of every unit at its own alpha, shape (unit,), from all rows."""
    n, p = X.shape
    spectrum = decompose(X, torch.arange(n, device=X.device), options)
    rows, axes = spectrum.coordinates.T.to(X.dtype), spectrum.axes()
    if options.standardise:
        axes = axes / spectrum.scale[:, None].to(X.dtype)
    coef = np.empty((p, len(units)), dtype=np.float32 if X.dtype == torch.float32 else np.float64)
    intercept, response_mean = np.empty(len(units)), np.empty(len(units))
    per_unit = 32 * n + X.element_size() * (n + 2 * len(rows)) + (8 + 2 * X.element_size()) * p
    for part in parts(len(units), options.memory // per_unit):
        Y, mean, size = units.block(part, options)
        relative = torch.from_numpy(alpha[part] / spectrum.top).to(X.device)
        loadings = rows @ Y.to(X.dtype)
        loadings /= spectrum.eigenvalues.to(X.dtype)[:, None] + relative.to(X.dtype)
        weights = (axes @ loadings) * size.to(X.dtype)
        coef[:, part] = weights.cpu().numpy()
        intercept[part] = (mean - spectrum.mean @ weights.double()).cpu().numpy()
        response_mean[part] = mean.cpu().numpy()
    return Weights(coef, intercept, spectrum.mean.cpu().numpy(), response_mean)
