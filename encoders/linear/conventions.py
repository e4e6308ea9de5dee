"""Penalties of other packages as ours, where weights minimise ``||y - X b||^2 + alpha ||b||^2``."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.utils.validation import check_array

_CELLS = 2**23  # values held at once: 64 MiB
_EXACT = 1e-12  # of the length of the weights


def from_huth(alpha: Any, X: Any = None, normalised: bool = False) -> Any:
    """Alpha from that of the Huth laboratory's ridge, whose filter is ``S / (S^2 + alpha^2)``.

    Parameters
    ----------
    alpha : float or array of float
        Their `alpha`, zero or above.
    X : array, shape (sample, feature), or None
        With `normalised`: the features as given to their solver, delayed and z-scored.
    normalised : bool
        Their `normalpha`: alpha counts in largest singular values of X.

    Returns
    -------
    float or ndarray
        ``alpha^2``, or with `normalised` ``(alpha S_max)^2``; shaped like `alpha`.

    Raises
    ------
    ValueError
        If an alpha is negative or not finite, or X is there without `normalised`, or the other way round.

    References
    ----------
    Antonello, R., Vaidya, A. & Huth, A. G. (2023). Scaling laws for language encoding models in fMRI. NeurIPS 36.
    `ridge_utils/ridge.py` of HuthLab/encoding-model-scaling-laws.

    Examples
    --------
    >>> from_huth(30.0)
    900.0
    """
    alpha = _checked(alpha, "alpha", zero=True)
    if normalised != (X is not None):
        raise ValueError(
            f"normalised={normalised} and X is {'missing' if X is None else 'given'}; pass both for alphas in largest "
            "singular values of X (normalpha=True), and neither otherwise"
        )
    if normalised:
        X = check_array(X, dtype=np.float64, input_name="X")
        alpha = alpha * np.linalg.norm(X, 2)
    return _plain(alpha**2)


def from_mtrf(regularization: Any, sampling_rate: float, n_trials: int = 1) -> Any:
    """Alpha from the `regularization` of mTRFpy and the `lambda` of the mTRF-Toolbox.

    Both add ``regularization * sampling_rate`` to the diagonal. mTRFpy does so after it has averaged X'X and X'y over
    trials, so that its penalty grows with the number of trials; the toolbox for Matlab sums over trials.

    Parameters
    ----------
    regularization : float or array of float
        Their ridge parameter, zero or above.
    sampling_rate : float
        Samples per second, their `fs`.
    n_trials : int
        For mTRFpy, how many trials were trained on: in cross-validation those of the training folds. For Matlab, 1.

    Returns
    -------
    float or ndarray
        ``regularization * sampling_rate * n_trials``, shaped like `regularization`.

    Raises
    ------
    ValueError
        If `regularization` is negative or not finite, or another number is not above zero.

    Notes
    -----
    Their weights are ours times `sampling_rate`; predictions are the same. Their bias carries no penalty, as our
    intercept. Their features are delayed with zeros before the start of a trial, and not centred first: the same
    columns are `Delays.apply(X, runs, centre=False)`.

    References
    ----------
    Crosse, M. J., Di Liberto, G. M., Bednar, A. & Lalor, E. C. (2016). The multivariate temporal response function
    (mTRF) toolbox. Frontiers in Human Neuroscience 10, 604.

    Bialas, O., Dou, J. & Lalor, E. C. (2023). mTRFpy: a Python package for temporal response function analysis.
    Journal of Open Source Software 8, 5657.

    Examples
    --------
    >>> from_mtrf(0.5, sampling_rate=64, n_trials=10)
    320.0
    """
    regularization = _checked(regularization, "regularization", zero=True)
    rate = _checked(sampling_rate, "sampling_rate")
    return _plain(regularization * rate * _checked(n_trials, "n_trials"))


def from_fraction(X: Any, Y: Any, fraction: Any, fit_intercept: bool = True) -> Any:
    """Alpha at which weights have a fraction of the length that they have without penalty.

    Fractional ridge regression chooses, for each unit, alpha so that ``||b(alpha)|| = fraction * ||b(0)||``. fracridge
    reads alpha from an interpolated table; here it is exact, up to rounding.

    Parameters
    ----------
    X : array, shape (stimulus, feature)
        Features.
    Y : array, shape (stimulus, unit) or (stimulus,)
        Responses.
    fraction : float or array of float, shape (fraction,)
        Above 0, where all weights vanish, and up to 1, which is least squares (of the smallest length, where there
        are many).
    fit_intercept : bool
        Centre X and Y first, as `RidgeCV` does with the same parameter. fracridge's function never does.

    Returns
    -------
    float or ndarray, shape (fraction, unit)
        Without the fraction axis for a single fraction, without the unit axis for a vector Y. NaN, with one warning
        that counts them, for units that hold NaN or have no weights at any alpha, as constant ones.

    Raises
    ------
    ValueError
        If a fraction is out of range, X holds NaN or infinite values, or lengths do not match.

    Notes
    -----
    One over the length is a concave, increasing function of alpha. Newton's steps from zero towards a value of it
    therefore never overshoot, and always arrive.

    References
    ----------
    Rokem, A. & Kay, K. (2020). Fractional ridge regression: a fast, interpretable reparameterization of ridge
    regression. GigaScience 9, giaa133.

    Moré, J. J. & Sorensen, D. C. (1983). Computing a trust region step. SIAM Journal on Scientific and Statistical
    Computing 4, 553-572.

    Examples
    --------
    >>> import numpy as np
    >>> from_fraction(np.eye(3), np.array([1.0, 2.0, 3.0]), 0.25, fit_intercept=False)  # b = y / (1 + alpha)
    3.0
    """
    X = check_array(X, dtype=np.float64, input_name="X")
    Y = check_array(Y, dtype=np.float64, ensure_2d=False, ensure_all_finite="allow-nan", input_name="Y")
    if Y.ndim > 2 or len(X) != len(Y):
        raise ValueError(
            f"X has {len(X)} rows and Y has shape {Y.shape}; expected (stimulus, unit) with a row for each row of X"
        )
    fractions = _checked(fraction, "fraction")
    if fractions.ndim > 1 or (fractions > 1).any():
        raise ValueError(f"fraction={fraction!r}: expected numbers above 0 and up to 1, or a vector of them")
    table = Y.reshape(len(Y), -1)
    if fit_intercept:
        X = X - X.mean(0)
    U, S, _ = np.linalg.svd(X, full_matrices=False)
    top = S[0]
    keep = top * max(X.shape) * np.finfo(np.float64).eps < S
    U, S = U[:, keep], S[keep] / top
    alphas = np.full((fractions.size, table.shape[1]), np.nan)
    width = max(1, _CELLS // len(X))
    for start in range(0, table.shape[1], width):
        block = table[:, start : start + width]
        if fit_intercept:
            varies = block.min(0) < block.max(0)  # false for NaN
            block = np.where(varies, block - block.mean(0), np.nan)
        squares = (S[:, None] * (U.T @ block)) ** 2
        known = squares.sum(0) > 0
        if known.any():
            for f, wanted in enumerate(fractions.ravel()):
                alphas[f, start : start + width][known] = top**2 * _alpha_at(wanted, S**2, squares[:, known])
    missing = int(np.isnan(alphas[0]).sum())
    if missing:
        warnings.warn(
            f"{missing} of {table.shape[1]} units have no alpha, as they hold NaN or have no weights at any alpha",
            UserWarning,
            stacklevel=2,
        )
    alphas = alphas if fractions.ndim else alphas[0]
    return _plain(alphas[..., 0] if Y.ndim == 1 else alphas)


def _alpha_at(fraction: float, eigenvalues: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Alpha of each unit at which its weights have a fraction of their length.

    Parameters
    ----------
    eigenvalues : ndarray, shape (axis,)
        Of X'X, above zero.
    squares : ndarray, shape (axis, unit)
        Squares of X'y on each axis, so that those of the weights are ``squares / (eigenvalues + alpha)^2``.
    """
    eigenvalues = eigenvalues[:, None]
    full = (squares / eigenvalues**2).sum(0)
    alpha = np.zeros(squares.shape[1])
    while True:
        parts = squares / (eigenvalues + alpha) ** 2
        length = parts.sum(0)
        excess = np.sqrt(length / full) / fraction - 1
        alpha = np.maximum(alpha + excess * length / (parts / (eigenvalues + alpha)).sum(0), 0.0)
        if not (np.abs(excess) > _EXACT).any():
            return alpha


def _checked(value: Any, name: str, zero: bool = False) -> np.ndarray:
    """Finite numbers above zero, or zero too."""
    expected = f"expected finite numbers {'of zero or above' if zero else 'above zero'}"
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}={value!r}: {expected}") from error
    if numbers.size == 0 or not (np.isfinite(numbers) & ((numbers > 0) | (zero & (numbers == 0)))).all():
        raise ValueError(f"{name}={value!r}: {expected}")
    return numbers


def _plain(values: np.ndarray) -> Any:
    """A number rather than an array without axes."""
    return float(values) if np.ndim(values) == 0 else values
