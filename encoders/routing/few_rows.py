"""What encoders share that write linear weights of units from few stimuli."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import assert_all_finite, check_array, check_is_fitted, validate_data

from ..linear.estimator import FLOATS, refuse_tokens


class FewRowsEncoder(RegressorMixin, MultiOutputMixin, BaseEstimator):
    """A linear encoder of what was learned from a population, and of the few responses of the units it is given.

    A fit leaves `coef_` (feature, unit) and `intercept_` (unit,).
    """

    _vector: bool
    _dtype: type
    coef_: np.ndarray
    intercept_: Any

    def fit(self, X, Y, groups=None) -> Self:
        """Learn from a population, and weights for its units."""
        raise NotImplementedError

    def condition(self, X, Y) -> Self:
        """Weights of new units."""
        raise NotImplementedError

    def predict(self, X) -> np.ndarray:
        """Predicted responses.

        Parameters
        ----------
        X : array, shape (stimulus, feature)

        Returns
        -------
        ndarray, shape (stimulus, unit), or (stimulus,) after a fit to a vector
            NaN for units that were left out.
        """
        check_is_fitted(self, "coef_")
        refuse_tokens(X)
        X = validate_data(self, X, reset=False, dtype=FLOATS)
        return (X.astype(np.float64) @ self.coef_ + self.intercept_).astype(self._dtype)

    def score(self, X, y, sample_weight=None) -> float:
        """R^2 of the predictions, averaged over the units without NaN; NaN where there is none."""
        predicted = self.predict(X)
        y = check_array(y, ensure_2d=False, dtype=FLOATS, ensure_all_finite="allow-nan", input_name="y")
        if y.size != predicted.size or len(y) != len(predicted):
            raise ValueError(f"y has shape {y.shape} and the predictions {predicted.shape}; expected the same")
        y, predicted = y.reshape(len(y), -1), predicted.reshape(len(y), -1)
        known = ~(np.isnan(y).any(0) | np.isnan(predicted).any(0))
        if not known.any():
            return float("nan")
        return float(r2_score(y[:, known], predicted[:, known], sample_weight=sample_weight))

    def _checked(self, X: Any, Y: Any, *, reset: bool, fewest: int = 2) -> tuple[np.ndarray, np.ndarray]:
        """Features in float64 and responses (stimulus, unit); remembers dtype and whether Y was a vector."""
        if Y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        refuse_tokens(X)
        X = validate_data(self, X, reset=reset, dtype=FLOATS, ensure_min_samples=fewest)
        Y = check_array(Y, dtype=FLOATS, ensure_2d=False, ensure_all_finite="allow-nan", input_name="Y")
        if len(Y) != len(X):
            raise ValueError(f"X has {len(X)} rows and Y has {len(Y)}; expected one row per stimulus in both")
        self._dtype, self._vector = X.dtype.type, Y.ndim == 1
        if self._vector:
            assert_all_finite(Y, input_name="Y")
        return X.astype(np.float64), Y.reshape(len(Y), -1).astype(np.float64)

    def _per_unit(self, values: np.ndarray) -> Any:
        """Without unit axis (the last) after a fit to a vector."""
        return values[..., 0] if self._vector else values


def fitted_units(Y: np.ndarray, fewest: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Units that vary over enough known rows, units that are constant there, and what to tell of the rest.

    Raises
    ------
    ValueError
        If no unit has enough known rows.
    """
    known = ~np.isnan(Y)
    enough = known.sum(0) >= fewest
    if not enough.any():
        raise ValueError(
            f"no unit of Y (shape {Y.shape}) has {fewest} responses that are not NaN; leave out the rows without "
            "responses, or pass more"
        )
    low = np.where(known, Y, np.inf).min(0)
    high = np.where(known, Y, -np.inf).max(0)
    constant = enough & (low == high)
    remarks = []
    if not enough.all():
        remarks.append(
            f"{int((~enough).sum())} of {Y.shape[1]} units have fewer than {fewest} responses that are not NaN; "
            "their weights and predictions are NaN"
        )
    if constant.any():
        remarks.append(f"{int(constant.sum())} of {Y.shape[1]} units are constant and predicted as their constant")
    return np.flatnonzero(enough & ~constant), np.flatnonzero(constant), remarks


def leading_axes(X: np.ndarray, most: int) -> np.ndarray:
    """Leading principal axes of centred rows, shape (feature, axis); the identity where features are few enough."""
    n, f = X.shape
    if f <= most:
        return np.eye(f)
    if n <= f:
        values, left = np.linalg.eigh(X @ X.T)
        order = np.argsort(values)[::-1][:most]
        order = order[values[order] > 1e-12 * values.max()]
        return X.T @ (left[:, order] / np.sqrt(values[order]))
    values, axes = np.linalg.eigh(X.T @ X)
    return axes[:, np.argsort(values)[::-1][:most]]
