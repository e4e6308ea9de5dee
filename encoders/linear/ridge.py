"""Ridge regression with a cross-validated penalty for each unit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import assert_all_finite, check_array, check_is_fitted, validate_data

from ...datasets.errors import unknown
from ..device import pick_device
from .folds import fold_rows
from .spectrum import SCORES, Options, Units, choose, cross_validate, parts, refit

DEFAULT_ALPHAS = np.logspace(-2, 8, 21)
DEFAULT_MEMORY = 2**30
FLOATS = [np.float64, np.float32]  # what is neither becomes the first


class RidgeCV(RegressorMixin, MultiOutputMixin, BaseEstimator):
    """Ridge regression from features to units, with the penalty of each unit found by cross-validation.

    For each unit, the weights b minimise ``||y - X b||^2 + alpha ||b||^2``; alpha carries no factor of the
    number of stimuli, and the intercept is not penalised. A fold learns offsets and scales from its training
    rows only.

    Parameters
    ----------
    alphas : array of float, shape (alpha,), or None
        Penalties to try, above zero. None takes 21 values from 1e-2 to 1e8, two per decade.
    cv : int, scikit-learn splitter, or iterable of (train, test)
        An int gives that many contiguous folds, or folds of whole groups where `fit` is given groups. Groups
        are handed on to a splitter; an iterable of rows decides alone.
    score : {"r", "r2"}
        What alpha maximises: the Pearson correlation or R^2, computed per fold and averaged over folds. A
        fold in which the responses, or for "r" the predictions, are constant is left out of a unit's average.
    per_unit : bool
        One alpha for each unit; otherwise one alpha for all, the best on average over units.
    fit_intercept : bool
        Centre X and Y with the training rows.
    standardise : bool
        Scale the features to unit variance over the training rows; constant features stay as they are.
        `coef_` is in the features' own units all the same. A feature that hardly varies in training, such as a
        rectified channel that is nearly always silent, may then be huge in a test row, and its prediction too.
    device : str
        Torch device; "auto" takes a CUDA device where there is one. The responses stay on the CPU and visit
        it block by block.
    max_memory : int or None
        Bytes of temporaries, which bound the number of units treated at once; None is 1 GiB. Beyond rounding,
        the result does not depend on it.

    Attributes
    ----------
    alphas_ : ndarray, shape (alpha,)
        The alphas tried, ascending.
    alpha_ : ndarray, shape (unit,)
        The alpha of each unit, one of `alphas_`. Scores that only rounding can tell apart are ties, and ties
        go to the larger alpha.
    cv_score_ : ndarray, shape (unit,)
        Cross-validated score at `alpha_`. As a maximum over alphas it is a little optimistic.
    cv_scores_ : ndarray, shape (alpha, unit)
        Cross-validated score at every alpha.
    coef_ : ndarray, shape (feature, unit)
        Weights, in the dtype of X.
    intercept_ : ndarray, shape (unit,)
        Intercepts; zeros without `fit_intercept`.
    feature_mean_ : ndarray, shape (feature,)
    response_mean_ : ndarray, shape (unit,)
        Offsets taken out before the fit. `predict` uses them: ``X @ coef_ + intercept_`` is the same, but
        loses digits in float32 where features have large offsets.
    n_features_in_ : int
        Number of features.

    Notes
    -----
    A vector y makes `alpha_`, `cv_score_`, `intercept_` and `response_mean_` numbers, and drops the unit axis
    of the rest.

    Units of a two-dimensional Y that hold NaN are left out: their attributes and predictions are NaN.
    Constant units are predicted as their constant; they take the largest alpha and the score NaN. One warning
    counts each kind.

    The method ``score(X, y)`` shares its name with the parameter: reading the attribute gives the method,
    ``get_params()["score"]`` the parameter.

    References
    ----------
    Hoerl, A. E. & Kennard, R. W. (1970). Ridge regression: biased estimation for nonorthogonal problems.
    Technometrics 12, 55-67.

    Dupré la Tour, T., Eickenberg, M., Nunez-Elizalde, A. O. & Gallant, J. L. (2022). Feature-space selection
    with banded ridge regression. NeuroImage 264, 119728.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((100, 20))
    >>> Y = X @ rng.standard_normal((20, 3)) + rng.standard_normal((100, 3))
    >>> encoder = RidgeCV().fit(X, Y, groups=np.arange(100) // 10)
    >>> encoder.coef_.shape, encoder.predict(X).shape
    ((20, 3), (100, 3))
    """

    def __init__(
        self,
        alphas=None,
        cv=5,
        score="r",
        per_unit=True,
        fit_intercept=True,
        standardise=False,
        device="auto",
        max_memory=None,
    ):
        self.alphas = alphas
        self.cv = cv
        self.score = score
        self.per_unit = per_unit
        self.fit_intercept = fit_intercept
        self.standardise = standardise
        self.device = device
        self.max_memory = max_memory

    # scikit-learn calls a method by the name of our parameter: assigning sets the parameter, reading gives
    # the method, and `get_params` looks behind it.
    @property
    def score(self) -> Callable[..., float]:
        """The method ``score(X, y, sample_weight=None)``: R^2 of the predictions, averaged over units."""
        return self._r2

    @score.setter
    def score(self, name: str) -> None:
        self.__dict__["score"] = name

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name."""
        return super().get_params(deep) | {"score": self.__dict__["score"]}

    def fit(self, X, Y, groups=None) -> RidgeCV:
        """Find the alpha of each unit by cross-validation, then its weights from all rows.

        Parameters
        ----------
        X : array, shape (stimulus, feature)
            Features; float32 and float64 are kept, anything else becomes float64.
        Y : array, shape (stimulus, unit) or (stimulus,)
            Responses.
        groups : array, shape (stimulus,), or None
            Run, session or repeat of each row, for folds of whole groups.

        Returns
        -------
        RidgeCV
            The estimator itself.

        Raises
        ------
        ValueError
            If a parameter is out of its range, X holds NaN or infinite values, Y holds infinite values or no
            unit without NaN, or lengths do not match.
        """
        X, Y = self._checked_data(X, Y)
        options = self._checked_options()
        alphas = _checked_alphas(self.alphas)
        folds = fold_rows(self.cv, X, Y, _checked_groups(groups, len(X)))
        if max(len(test) for _, test in folds) < 2:
            raise ValueError(
                f"cv={self.cv!r} gives test folds of one row, where score={options.score!r} is undefined; "
                "use fewer folds"
            )
        table = Y[:, None] if Y.ndim == 1 else Y
        complete = _complete_columns(table)
        if not complete.any():
            raise ValueError(f"every unit of Y (shape {Y.shape}) holds NaN; leave out the rows without responses")
        units = Units(table, np.flatnonzero(complete))
        features = torch.from_numpy(np.require(X, requirements=["C", "W"])).to(options.device)

        scores = cross_validate(features, units, folds, alphas, options)
        basis = scores if self.per_unit else _mean_over_units(scores)
        tolerance = 64 * float(np.finfo(X.dtype).eps)
        best = np.broadcast_to(choose(basis, tolerance), len(units))
        cv_score = scores[best, np.arange(len(units))]
        weights = refit(features, units, alphas[best], options)

        def per_unit(values: np.ndarray) -> np.ndarray:
            """Values in the columns of Y, NaN for units left out; without unit axis for a vector."""
            if not complete.all():
                fitted = values
                values = np.full((*fitted.shape[:-1], len(complete)), np.nan, dtype=fitted.dtype)
                values[..., complete] = fitted
            return values[..., 0] if Y.ndim == 1 else values

        self.alphas_ = alphas
        self.alpha_ = per_unit(alphas[best])
        self.cv_scores_ = per_unit(scores)
        self.cv_score_ = per_unit(cv_score)
        self.coef_ = per_unit(weights.coef)
        self.intercept_ = per_unit(weights.intercept.astype(weights.coef.dtype))
        self.feature_mean_ = weights.feature_mean
        self.response_mean_ = per_unit(weights.response_mean)
        for remark in _remarks(complete, cv_score, basis, alphas):
            warnings.warn(remark, UserWarning, stacklevel=2)
        return self

    def predict(self, X) -> np.ndarray:
        """Predicted responses.

        Parameters
        ----------
        X : array, shape (stimulus, feature)

        Returns
        -------
        ndarray, shape (stimulus, unit), or (stimulus,) after a fit to a vector
            In the dtype of `coef_`; NaN for units left out of the fit.
        """
        check_is_fitted(self)
        _refuse_tokens(X)
        X = validate_data(self, X, reset=False, dtype=FLOATS)
        device, memory = pick_device(self.device), _checked_memory(self.max_memory)
        coef = self.coef_.reshape(len(self.coef_), -1)
        mean = np.atleast_1d(self.response_mean_)
        centred = np.empty(X.shape, dtype=coef.dtype)
        for rows in parts(len(X), memory // (16 * len(coef))):  # float64 copies, a few rows at a time
            centred[rows] = X[rows] - self.feature_mean_
        features = torch.from_numpy(centred).to(device)
        predicted = np.empty((len(X), coef.shape[1]), dtype=coef.dtype)
        per_unit = coef.itemsize * (2 * len(X) + 2 * len(coef))
        for part in parts(coef.shape[1], memory // per_unit):
            weights = torch.from_numpy(np.array(coef[:, part])).to(device)
            predicted[:, part] = (features @ weights).cpu().numpy() + mean[part]
        return predicted[:, 0] if self.coef_.ndim == 1 else predicted

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

    def _checked_data(self, X, Y) -> tuple[np.ndarray, np.ndarray]:
        """X and Y as floating arrays without infinite values; NaN stays only in a two-dimensional Y."""
        _refuse_tokens(X)
        if Y is None:
            raise ValueError("RidgeCV requires y to be passed, but the target y is None")
        X = validate_data(self, X, dtype=FLOATS, ensure_min_samples=2)
        Y = check_array(Y, dtype=FLOATS, ensure_2d=False, ensure_all_finite="allow-nan", input_name="Y")
        if Y.ndim == 1:
            assert_all_finite(Y, input_name="Y")
        if len(X) != len(Y):
            raise ValueError(f"X has {len(X)} rows and Y has {len(Y)}; expected one row per stimulus in both")
        return X, Y

    def _checked_options(self) -> Options:
        score = self.__dict__["score"]
        if score not in list(SCORES):
            raise ValueError(unknown("score", score, SCORES))
        return Options(
            score=score,
            fit_intercept=bool(self.fit_intercept),
            standardise=bool(self.standardise),
            device=pick_device(self.device),
            memory=_checked_memory(self.max_memory),
        )


def _refuse_tokens(X: Any) -> None:
    if getattr(X, "ndim", 2) > 2:
        raise ValueError(
            f"X has {X.ndim} dimensions (shape {tuple(X.shape)}); expected (stimulus, feature): "
            "flatten the tokens first, with X.reshape(len(X), -1)"
        )


def _checked_alphas(alphas: Any) -> np.ndarray:
    try:
        grid = np.unique(np.asarray(DEFAULT_ALPHAS if alphas is None else alphas, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"alphas={alphas!r}: expected numbers above zero") from error
    if grid.size == 0:
        raise ValueError("alphas is empty; expected at least one number above zero")
    wrong = grid[~(np.isfinite(grid) & (grid > 0))]
    if wrong.size:
        raise ValueError(f"alphas holds {wrong[0]:g}; expected finite numbers above zero")
    return grid


def _checked_groups(groups: Any, n: int) -> np.ndarray | None:
    if groups is None:
        return None
    groups = np.asarray(groups)
    if groups.shape != (n,):
        raise ValueError(f"groups has shape {groups.shape}; expected ({n},), one label for each row of X")
    return groups


def _checked_memory(max_memory: Any) -> int:
    if max_memory is None:
        return DEFAULT_MEMORY
    number = isinstance(max_memory, (int, float, np.number)) and not isinstance(max_memory, bool)
    if not (number and 0 < max_memory < np.inf):
        raise ValueError(f"max_memory={max_memory!r}: expected a number of bytes above zero, or None for 1 GiB")
    return int(max_memory)


def _complete_columns(Y: np.ndarray) -> np.ndarray:
    """Which columns hold no NaN; read in blocks, because a mask of all of Y may be large."""
    return np.concatenate([~np.isnan(Y[:, part]).any(axis=0) for part in parts(Y.shape[1], 2**26 // len(Y))])


def _mean_over_units(scores: np.ndarray) -> np.ndarray:
    """Mean over the units that have a score, shape (alpha, 1)."""
    scored = scores[:, ~np.isnan(scores).all(axis=0)]
    if scored.shape[1] == 0:
        return np.full((len(scores), 1), np.nan)
    return scored.mean(axis=1, keepdims=True)


def _remarks(complete: np.ndarray, cv_score: np.ndarray, basis: np.ndarray, alphas: np.ndarray) -> Iterator[str]:
    """What the user should know of the fit, one sentence for each kind of trouble.

    `complete` has one entry for each unit, `cv_score` for each fitted unit, and `basis` (alpha, choice) is
    the score by which each alpha was chosen.
    """
    v, n_missing, n_unscored = len(complete), int((~complete).sum()), int(np.isnan(cv_score).sum())
    if n_missing:
        yield f"{n_missing} of {v} units hold NaN in Y and are left out: weights and predictions are NaN"
    if n_unscored:
        yield (
            f"{n_unscored} of {v} units have no cross-validated score, as their responses or predictions are "
            "constant in every fold: cv_score_ is NaN, alpha_ the largest of alphas"
        )
    if len(alphas) == 1:
        return
    # What matters is a score that still climbs at the end of the grid; flat ends and units without signal are
    # no reason to worry.
    top = np.fmax.reduce(basis, axis=0)
    low = (basis[0] == top) & (basis[0] - basis[1] > 1e-3)
    high = (basis[-1] == top) & (basis[-1] - basis[-2] > 1e-3)
    at_edge = float(np.mean((low | high) & (top > 0)))
    if at_edge > 0.1:
        yield (
            f"{at_edge:.0%} of the chosen alphas lie at an end of the grid ({alphas[0]:g} to {alphas[-1]:g}), "
            "where the cross-validated score still climbs; pass wider alphas"
        )
