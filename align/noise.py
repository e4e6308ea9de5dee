"""Noise covariance of units, and its inverse, from residuals or from repeats."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..datasets.errors import unknown
from .geometry.crossvalidated import fold_means, positive_inverse

# Residuals below this share of what they are residuals of are rounding, and count as none.
ROUNDING = 1e-12

METHODS = ("full", "diagonal", "shrinkage-identity", "shrinkage-diagonal")


def noise_covariance(residuals: Any, method: str = "shrinkage-diagonal", dof: int | None = None) -> np.ndarray:
    """Covariance of units over samples of noise.

    Parameters
    ----------
    residuals : array of shape (sample, unit)
        Residuals of a regression, or what `repeat_residuals` gives. Their mean is taken off.
    method : str
        ========================  ==========================================================================
        ``"full"``                the sample covariance, singular with fewer samples than units
        ``"diagonal"``            variances alone
        ``"shrinkage-identity"``  weighted mean of the sample covariance and the mean variance of all units,
                                  with the weight of Ledoit & Wolf (2004)
        ``"shrinkage-diagonal"``  correlations shrunk towards zero, variances kept, with the weight of Schaefer
                                  & Strimmer (2005)
        ========================  ==========================================================================
    dof : int, optional
        Degrees of freedom that the sums of squares are divided by: samples minus regressors. Default samples - 1.

    Returns
    -------
    ndarray of float64, shape (unit, unit)

    Raises
    ------
    ValueError
        For an unknown method, a wrong shape, fewer than 2 samples without gaps, or a `dof` below 1.

    Notes
    -----
    Samples that are not finite throughout are left out, with one warning that counts them, and taken off `dof`.
    Both weights need sums over samples of products of four residuals, which add up to squares of sums of squares
    per sample: no array is larger than the covariance itself.

    References
    ----------
    Ledoit & Wolf (2004), Journal of Multivariate Analysis 88:365. Schaefer & Strimmer (2005), Statistical
    Applications in Genetics and Molecular Biology 4:32.
    """
    if method not in METHODS:
        raise ValueError(unknown("method", method, METHODS))
    X, dof = _checked(residuals, dof)
    n, n_units = X.shape
    if method == "diagonal":
        return np.diag(np.einsum("ij,ij->j", X, X) / dof)
    scatter = X.T @ X
    if method == "full":
        return scatter / dof
    if method == "shrinkage-identity":
        squares = np.einsum("ij,ij->i", X, X)
        mean_variance = squares.sum() / (n * n_units)
        size = np.vdot(scatter, scatter) / n**2
        spread = size - n_units * mean_variance**2
        error = min((np.vdot(squares, squares) / n - size) / n, spread)
        weight = error / spread if spread > 0 else 1.0
        covariance = scatter
        covariance *= (1 - weight) / dof
        covariance[np.diag_indices(n_units)] += weight * mean_variance * n / dof
        return covariance
    variance = np.diagonal(scatter) / dof
    inverse = np.divide(1, variance, out=np.zeros(n_units), where=variance > 0)
    X *= X  # X is a copy
    squares = X @ inverse  # of every sample, over standardised units
    # Sums over pairs of different units: those over all pairs less those of a unit with itself.
    square_mean = (np.vdot(squares, squares) - np.einsum("ij,ij->j", X, X) @ inverse**2) / (n - 1)
    mean_square = (inverse @ (scatter * scatter) @ inverse - dof**2 * np.count_nonzero(inverse)) / (n - 1) ** 2
    error = n / dof**2 * (square_mean - mean_square)
    weight = float(np.clip(error / mean_square, 0, 1)) if mean_square > 0 else 1.0
    covariance = scatter
    covariance *= (1 - weight) / dof
    covariance[np.diag_indices(n_units)] = variance
    return covariance


def noise_precision(residuals: Any, method: str = "shrinkage-diagonal", dof: int | None = None) -> np.ndarray:
    """Inverse of `noise_covariance`: what `align.rdm` takes as `noise`.

    Parameters
    ----------
    residuals, method, dof
        See `noise_covariance`.

    Returns
    -------
    ndarray of float64, shape (unit, unit), or (unit,) for "diagonal"

    Raises
    ------
    ValueError
        As `noise_covariance`; and where the covariance has no inverse: units without variance, or "full" with no
        more degrees of freedom than units.
    """
    covariance = noise_covariance(residuals, method, dof)
    return inverse_of_covariance(covariance, method, _rank(residuals, dof))


def inverse_of_covariance(covariance: np.ndarray, method: str, dof: int) -> np.ndarray:
    """Precision from what `noise_covariance` gave by `method`; see `noise_precision`."""
    variances = np.diagonal(covariance)
    silent = int((variances <= 0).sum())
    if silent:
        raise ValueError(
            f"{silent} of {len(variances)} units have residuals without variance, and so no precision; leave them out."
        )
    if method == "diagonal":
        return 1 / variances
    if method == "full" and dof < len(variances):
        raise ValueError(
            f"the full covariance of {len(variances)} units from {dof} degrees of freedom has no inverse; take "
            "method='shrinkage-diagonal', or fewer units."
        )
    try:
        return positive_inverse(covariance)
    except ValueError as error:
        raise ValueError(
            f"the {method} covariance of {len(variances)} units has no inverse; units may be copies of one another. "
            "Take method='diagonal', or leave them out."
        ) from error


def repeat_residuals(X: Any, labels: ArrayLike | None = None) -> tuple[np.ndarray, int]:
    """What is left of every presentation without the mean of its stimulus.

    Parameters
    ----------
    X : array of shape (presentation, unit), or Recording
        A Recording of one subject, without a time axis. Not written to.
    labels : array_like of shape (presentation,)
        The stimulus of every presentation; a Recording knows its own.

    Returns
    -------
    residuals : ndarray of float64, shape (sample, unit)
        Rows of stimuli with two presentations or more, in the order of `X`.
    dof : int
        Rows minus stimuli, the degrees of freedom of these residuals, for any numbers of presentations.

    Raises
    ------
    ValueError
        For a wrong shape, labels that do not fit, or where nothing is repeated.

    Notes
    -----
    Presentations that are not finite throughout are left out first, with one warning that counts those that hold
    something. A unit with gaps everywhere is better left out beforehand.
    """
    if hasattr(X, "average_repeats"):
        X, names = _recording_rows(X)
    elif labels is None:
        raise ValueError("labels is None; give the stimulus of every presentation, as an array does not know it.")
    else:
        names = np.asarray(labels)
    X = _as_samples(X, "X", "(presentation, unit)")
    if names.shape != (len(X),):
        raise ValueError(f"labels has shape {names.shape}; expected one for each of the {len(X)} presentations of X.")
    whole = _whole_rows(X, "presentations")
    if not whole.all():
        X, names = X[whole], names[whole]
    code = pd.factorize(names, use_na_sentinel=False)[0]
    repeated = np.bincount(code, minlength=1)[code] > 1
    if not repeated.any():
        raise ValueError(
            f"no stimulus has two presentations ({len(names)} presentations of {len(np.unique(code))} stimuli, "
            "all units finite); noise cannot be told from signal. Units with gaps can be left out."
        )
    code, rows = pd.factorize(code[repeated])[0], X[repeated].astype(np.float64)
    means = fold_means(rows, code, np.zeros(len(code), int))[0][0]
    size = np.einsum("ij,ij->j", rows, rows)
    rows -= means[code]
    return _without_rounding(rows, size), len(rows) - len(means)


def repeat_precision(X: Any, labels: ArrayLike | None = None, method: str = "shrinkage-diagonal") -> np.ndarray:
    """`noise_precision` of `repeat_residuals`: the precision of the noise of one presentation."""
    residuals, dof = repeat_residuals(X, labels)
    return noise_precision(residuals, method, dof)


def _recording_rows(recording: Any) -> tuple[np.ndarray, np.ndarray]:
    if recording.times is not None:
        raise ValueError(
            "X is a Recording with a time axis; average a window first, recording.average_time(start, stop)."
        )
    subjects = recording.units["subject"].astype(str).unique()
    if len(subjects) > 1:
        raise ValueError(
            f"X is a Recording of {len(subjects)} subjects, whose noise is unrelated; take one, "
            f"recording.select(subject={subjects[0]!r})."
        )
    return recording.read(), recording.presentations["stimulus"].to_numpy()


def _as_samples(X: Any, argument: str, expected: str) -> np.ndarray:
    X = np.asarray(X)
    if X.ndim != 2 or X.dtype.kind not in "fiub":
        raise ValueError(f"{argument} has shape {X.shape} and dtype {X.dtype}; expected real numbers {expected}.")
    return X


def _whole_rows(X: np.ndarray, what: str) -> np.ndarray:
    """Rows without gaps; warns of those that have some."""
    finite = np.isfinite(X)
    whole = finite.all(1)
    partly = int((finite.any(1) & ~whole).sum())
    if partly:
        gaps = int((~finite[finite.any(1)]).any(0).sum())
        warnings.warn(
            f"{partly} of {len(X)} {what} are not finite in some of the {X.shape[1]} units ({gaps} units have gaps); "
            "the noise is estimated without them.",
            stacklevel=4,
        )
    return whole


def _checked(residuals: Any, dof: int | None) -> tuple[np.ndarray, int]:
    """Centred samples without gaps, a copy, and their degrees of freedom."""
    X = _as_samples(residuals, "residuals", "(sample, unit)")
    whole = _whole_rows(X, "samples")
    X = X[whole].astype(np.float64) if not whole.all() else X.astype(np.float64)
    if len(X) < 2:
        raise ValueError(
            f"residuals has {len(X)} samples that are finite in all {X.shape[1]} units, of {len(whole)}; expected 2 "
            "or more. Leave out the units with gaps."
        )
    size = np.einsum("ij,ij->j", X, X)
    X -= X.mean(0)
    _without_rounding(X, size)
    found = _rank(residuals, dof)
    if found < 1:
        raise ValueError(f"dof={dof!r} leaves {found} for {len(X)} samples; expected samples minus regressors.")
    return X, found


def _without_rounding(residuals: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Residuals, zero for the units that have none; `size` is the sum of squares before the mean was taken off."""
    residuals[:, np.einsum("ij,ij->j", residuals, residuals) <= ROUNDING**2 * size] = 0
    return residuals


def _rank(residuals: Any, dof: int | None) -> int:
    """Degrees of freedom, less the samples that cannot be used."""
    finite = np.isfinite(np.asarray(residuals)).all(1)
    return int(finite.sum()) - 1 if dof is None else int(dof) - int((~finite).sum())
