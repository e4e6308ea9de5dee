"""What the spectral encoders share: checked data, and predictions from weights along principal axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import assert_all_finite, check_array, check_is_fitted, validate_data

from ...datasets.errors import unknown
from ..device import pick_device
from ..products import product
from .design import Map, RowMap
from .matrix import parts
from .moments import SCORES
from .responses import Responses

DEFAULT_ALPHAS = np.logspace(-2, 8, 21)
DEFAULT_MEMORY = 2**30
FLOATS: list[type] = [np.float64, np.float32]  # what is neither becomes the first


def floats_for(X: object) -> list[type]:
    """Dtypes that features are computed in: half precision holds no more than float32 does."""
    return FLOATS[::-1] if getattr(X, "dtype", None) == np.float16 else FLOATS


class NamedScore:
    """An encoder with a parameter ``score`` beside the method of that name.

    scikit-learn calls a method by the name of our parameter: assigning sets the parameter, reading gives the method,
    and `get_params` looks behind it.
    """

    @property
    def score(self) -> Callable[..., float]:
        """The method ``score(X, y, sample_weight=None)``: R^2 of the predictions, averaged over units."""
        return self._r2  # type: ignore[attr-defined]

    @score.setter
    def score(self, name: str) -> None:
        self.__dict__["score"] = name

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name."""
        return super().get_params(deep) | {"score": self.__dict__["score"]}  # type: ignore[misc]

    def _checked_score(self) -> str:
        score = self.__dict__["score"]
        if score not in list(SCORES):
            raise ValueError(unknown("score", score, SCORES))
        return score


class AxisEncoder(RegressorMixin, MultiOutputMixin, BaseEstimator):
    """Predictions from weights along axes that the training rows span.

    A fit leaves `axes_` (feature or training row, axis) and `weights_` (axis, unit): their product may be far larger
    than both, and is computed when it is asked for.
    """

    axes_: np.ndarray
    weights_: np.ndarray | None
    response_mean_: np.ndarray
    _vector: bool  # whether Y was a vector
    _dtype: type

    def _coordinates(self, X: Any, device: torch.device, memory: int) -> torch.Tensor:
        """New rows along the axes, in the dtype of the fit, shape (row, axis)."""
        raise NotImplementedError

    def _coefficients(self) -> np.ndarray:
        """Product of axes and weights, without unit axis after a fit to a vector."""
        coef: np.ndarray = np.empty((len(self.axes_), self._kept_weights().shape[1]), self._dtype)
        for part in parts(coef.shape[1], 4096):
            coef[:, part] = self._coef(part)
        return coef[:, 0] if self._vector else coef

    def _coef(self, part: slice) -> np.ndarray:
        return (self.axes_ @ np.asarray(self._kept_weights()[:, part])).astype(self._dtype, copy=False)

    def _kept_weights(self) -> np.ndarray:
        check_is_fitted(self)
        if self.weights_ is None:
            raise ValueError(f"this {type(self).__name__} kept no weights: fit it with weights='memory' or a path")
        return self.weights_

    def predict(self, X) -> np.ndarray:
        """Predicted responses.

        Parameters
        ----------
        X : array, shape (stimulus, feature)

        Returns
        -------
        ndarray, shape (stimulus, unit), or (stimulus,) after a fit to a vector
            In the dtype of the fit; NaN for units left out of the fit.
        """
        weights = self._kept_weights()
        X = self._checked_new(X)
        device, memory = pick_device(self.device), checked_memory(self.max_memory)
        coordinates = self._coordinates(X, device, memory)
        predicted: np.ndarray = np.empty((len(coordinates), weights.shape[1]), dtype=self._dtype)
        mean = np.atleast_1d(self.response_mean_)
        per_unit = coordinates.element_size() * 2 * (len(coordinates) + len(weights))
        for part in parts(weights.shape[1], memory // per_unit):
            block = torch.from_numpy(np.array(weights[:, part])).to(device)
            predicted[:, part] = product(coordinates, block).cpu().numpy() + mean[part]
        return predicted[:, 0] if self._vector else predicted

    def _checked_new(self, X: Any) -> Any:
        if hasattr(X, "project"):
            if X.shape[1] != self.n_features_in_:
                raise ValueError(f"X has {X.shape[1]} features; the fit had {self.n_features_in_}")
            return X
        refuse_tokens(X)
        return validate_data(self, X, reset=False, dtype=floats_for(X))

    def _per_unit(self, values: np.ndarray) -> Any:
        """Without unit axis after a fit to a vector."""
        return values[..., 0] if self._vector else values

    def _r2(self, X, y, sample_weight=None) -> float:
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

    def _checked_features(self, X: Any) -> Any:
        """X as a floating array; features that are not held as an array as they are."""
        if hasattr(X, "project"):
            self.n_features_in_ = X.shape[1]
            return X
        refuse_tokens(X)
        return validate_data(self, X, dtype=floats_for(X), ensure_min_samples=2)

    def _checked_responses(self, Y: Any, n: int) -> Responses:
        """Responses to be read by blocks; what is in memory is checked at once, the rest as it is read."""
        if Y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        on_disk = hasattr(Y, "presentations") or hasattr(Y, "chunks") or (isinstance(Y, np.memmap) and Y.ndim == 2)
        if not on_disk:
            Y = check_array(Y, dtype=FLOATS, ensure_2d=False, ensure_all_finite="allow-nan", input_name="Y")
            self._vector = Y.ndim == 1
            if self._vector:
                assert_all_finite(Y, input_name="Y")
                Y = Y[:, None]
        else:
            self._vector = False
        responses = Responses(Y)
        if responses.n != n:
            raise ValueError(f"X has {n} rows and Y has {responses.n}; expected one row per stimulus in both")
        return responses


class SpectralEncoder(AxisEncoder):
    """Predictions from weights along the principal axes of the stimuli.

    A fit leaves `axes_` (feature, axis) and `weights_` (axis, unit): their product, `coef_`, may be far larger than
    both, and is computed when it is asked for.
    """

    feature_mean_: np.ndarray
    _to_axes: Map | RowMap

    @property
    def axes_(self) -> np.ndarray:  # type: ignore[override]
        """Principal axes of the stimuli, shape (feature, axis); where features outnumber rows, made when asked for."""
        check_is_fitted(self)
        return self._to_axes.axes.cpu().numpy()

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if isinstance(state.get("_to_axes"), RowMap):  # a fit that is given away does not carry its stimuli
            state["_to_axes"] = state["_to_axes"].without_rows()
        return state

    @property
    def coef_(self) -> np.ndarray:
        """Weights of the features, shape (feature, unit); computed at every call."""
        return self._coefficients()

    @property
    def intercept_(self) -> np.ndarray:
        """Intercepts, shape (unit,); zeros without `fit_intercept`."""
        shift = self.feature_mean_ @ self.axes_.astype(np.float64)
        weights = self._kept_weights()
        intercept = np.atleast_1d(self.response_mean_).astype(np.float64)
        for part in parts(weights.shape[1], 4096):
            intercept[part] -= shift @ np.asarray(weights[:, part], np.float64)
        return self._per_unit(intercept.astype(self._dtype))

    def _coordinates(self, X: Any, device: torch.device, memory: int) -> torch.Tensor:
        """New rows along the principal axes, in the dtype of the fit, shape (row, axis)."""
        axes = self._to_axes.axes.to(device)
        dtype = torch.float32 if self._dtype == np.float32 else torch.float64
        if hasattr(X, "project"):  # features that are not held as an array, less the offset that they were given
            shift = torch.from_numpy(self.feature_mean_).to(device) - X.offset
            return (X.project(slice(None), axes.double()) - shift @ axes.double()).to(dtype)
        coordinates = torch.empty(len(X), axes.shape[1], dtype=dtype, device=device)
        for rows in parts(len(X), memory // (32 * max(X.shape[1], 1))):
            centred = torch.from_numpy(X[rows] - self.feature_mean_).to(device)
            coordinates[rows] = (centred.to(axes.dtype) @ axes).to(dtype)
        return coordinates


def refuse_tokens(X: Any) -> None:
    """Features over tokens are not flattened behind the user's back."""
    if getattr(X, "ndim", 2) > 2:
        raise ValueError(
            f"X has {X.ndim} dimensions (shape {tuple(X.shape)}); expected (stimulus, feature): "
            "flatten the tokens first, with X.reshape(len(X), -1)"
        )


def checked_alphas(alphas: Any) -> np.ndarray:
    """Penalties, ascending and each once."""
    try:
        grid = np.unique(np.asarray(DEFAULT_ALPHAS if alphas is None else alphas, dtype=np.float64))
    except (TypeError, ValueError) as error:
        default = f"None for {len(DEFAULT_ALPHAS)} from {DEFAULT_ALPHAS[0]:g} to {DEFAULT_ALPHAS[-1]:g}"
        raise ValueError(f"alphas={alphas!r}: expected numbers above zero, or {default}") from error
    if grid.size == 0:
        raise ValueError("alphas is empty; expected at least one number above zero")
    wrong = grid[~(np.isfinite(grid) & (grid > 0))]
    if wrong.size:
        raise ValueError(f"alphas holds {wrong[0]:g}; expected finite numbers above zero")
    return grid


def checked_groups(groups: Any, n: int) -> np.ndarray | None:
    """One label for each row, or None."""
    if groups is None:
        return None
    groups = np.asarray(groups)
    if groups.shape != (n,):
        raise ValueError(f"groups has shape {groups.shape}; expected ({n},), one label for each row of X")
    return groups


def checked_memory(max_memory: Any) -> int:
    """Bytes of temporaries."""
    if max_memory is None:
        return DEFAULT_MEMORY
    number = isinstance(max_memory, (int, float, np.number)) and not isinstance(max_memory, bool)
    if not (number and 0 < max_memory < np.inf):
        raise ValueError(f"max_memory={max_memory!r}: expected a number of bytes above zero, or None for 1 GiB")
    return int(max_memory)
