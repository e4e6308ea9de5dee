"""Banded ridge regression: feature spaces that are each shrunk by a penalty of their own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from ..device import pick_device
from .design import SpectralDesign
from .estimator import NamedScore, SpectralEncoder, checked_alphas, checked_groups, checked_memory
from .folds import scored_folds
from .matrix import parts
from .ridge import remarks, require_complete
from .shares import Bands, Search, random_shares


class BandedRidgeCV(NamedScore, SpectralEncoder):
    """Ridge regression in which every feature space of every unit has its own penalty.

    With features X_s in space s, the weights b_s of a unit minimise
    ``||y - sum_s X_s b_s||^2 + sum_s alpha_s ||b_s||^2``, where ``alpha_s = alpha / gamma_s`` and the shares gamma
    sum to 1. Shares are drawn at random, every alpha is tried with each, and a unit keeps what predicts it best in
    cross-validation. Features should have comparable scales within a space; what scale a space has as a whole does
    not matter to what can be found, only to where the search looks.

    Parameters
    ----------
    spaces : sequence of int, or of slices or arrays of column numbers
        Number of columns of each space, in the order of the columns; or the columns themselves, each in one space.
    alphas : array of float, shape (alpha,), or None
        Penalties to try with each set of shares. None takes 21 values from 1e-2 to 1e8, two per decade.
    n_iter : int, or array of float, shape (iteration, space)
        How many sets of shares to try, or the shares themselves: at least 0, each row with a sum above 0, which is
        brought to 1. A share of 0 leaves a space out.
    refine : float
        Part of `n_iter` that is drawn near the best shares so far, and tried on the units that these are the best
        for. 0 draws all at random.
    cv, score, per_unit, fit_intercept, device, max_memory
        See `RidgeCV`. Without `per_unit`, shares and alpha are the same for all units.
    seed : int
        Of the shares.

    Attributes
    ----------
    gammas_ : ndarray, shape (iteration, space)
        The shares tried.
    gamma_ : ndarray, shape (space, unit)
        The shares of each unit.
    alpha_ : ndarray, shape (unit,)
    band_alpha_ : ndarray, shape (space, unit)
        The penalty of each space, ``alpha_ / gamma_``; infinite for a space that is left out.
    cv_score_ : ndarray, shape (unit,)
        Cross-validated score at the best shares and alpha. As a maximum over both it is optimistic.
    coef_, intercept_, feature_mean_, response_mean_, n_features_in_
        See `RidgeCV`.

    Notes
    -----
    The first shares are equal, the others are drawn from Dirichlet distributions of concentration 1 and 0.1 in turns,
    as Dupré la Tour et al. do; half of the draws of the latter put nearly all on one space. Responses are read once
    for every set of shares.

    References
    ----------
    Nunez-Elizalde, A. O., Huth, A. G. & Gallant, J. L. (2019). Voxelwise encoding models with non-spherical
    multivariate normal priors. NeuroImage 197, 482-492.

    Dupré la Tour, T., Eickenberg, M., Nunez-Elizalde, A. O. & Gallant, J. L. (2022). Feature-space selection with
    banded ridge regression. NeuroImage 264, 119728.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((100, 30))
    >>> Y = X[:, :10] @ rng.standard_normal((10, 3)) + rng.standard_normal((100, 3))
    >>> encoder = BandedRidgeCV(spaces=[10, 20], n_iter=20).fit(X, Y)
    >>> bool((encoder.gamma_[0] > encoder.gamma_[1]).all())
    True
    """

    def __init__(
        self,
        spaces=None,
        alphas=None,
        n_iter=50,
        refine=0.5,
        cv=5,
        score="r",
        per_unit=True,
        fit_intercept=True,
        device="auto",
        max_memory=None,
        seed=0,
    ):
        self.spaces = spaces
        self.alphas = alphas
        self.n_iter = n_iter
        self.refine = refine
        self.cv = cv
        self.score = score
        self.per_unit = per_unit
        self.fit_intercept = fit_intercept
        self.device = device
        self.max_memory = max_memory
        self.seed = seed

    def fit(self, X, Y, groups=None) -> BandedRidgeCV:
        """Find the shares and the alpha of each unit by cross-validation, then its weights from all rows.

        Parameters
        ----------
        X : array, shape (stimulus, feature)
            All spaces side by side.
        Y : array, shape (stimulus, unit) or (stimulus,)
            Responses; see `RidgeCV.fit`.
        groups : array, shape (stimulus,), or None
            Run, session or repeat of each row, for folds of whole groups.

        Returns
        -------
        BandedRidgeCV
            The estimator itself.

        Raises
        ------
        ValueError
            As `RidgeCV.fit`; if the spaces do not cover the columns of X, each once; or if shares are negative.
        """
        score, alphas, memory = self._checked_score(), checked_alphas(self.alphas), checked_memory(self.max_memory)
        if Y is None:
            self._checked_responses(Y, 0)
        refuse_operators(X)
        X = self._checked_features(X)
        spaces = checked_spaces(self.spaces, X.shape[1])
        folds = scored_folds(self.cv, X, X, checked_groups(groups, len(X)), score)
        responses = self._checked_responses(Y, len(X))
        rng = np.random.default_rng(self.seed)
        drawn, n_refined = self._checked_shares(len(spaces), rng)
        bands = Bands(X, spaces, folds, bool(self.fit_intercept), pick_device(self.device))
        search = Search(bands, responses, alphas, score, bool(self.per_unit), memory)
        with _bar(len(drawn) + n_refined) as bar:
            for shares in drawn:
                search.attempt(shares, None)
                bar.update()
            for _ in range(n_refined):
                search.refine(rng)
                bar.update()
        fit, chosen = search.found()
        require_complete(fit, responses.n)
        shares = np.stack(search.shares)
        self.spaces_, self.alphas_, self.gammas_ = spaces, alphas, shares
        gamma = np.where(fit.complete, shares[chosen].T, np.nan)
        alpha = np.where(fit.complete, alphas[fit.alpha], np.nan)
        self.gamma_, self.alpha_ = self._per_unit(gamma), self._per_unit(alpha)
        with np.errstate(divide="ignore"):
            self.band_alpha_ = self._per_unit(alpha / gamma)
        self.cv_score_ = self._per_unit(fit.score)
        self.edge_fraction_ = fit.edge_fraction
        self._dual, self.weights_ = bands.dual, search.weights(fit, chosen)
        self._dtype = np.float32 if X.dtype == np.float32 else np.float64
        # Weights of rows need the rows, as they were: the caller's array may change.
        self._X_fit: np.ndarray = np.array(X if bands.dual else X[:0])
        self.feature_mean_ = bands.mean
        self.response_mean_ = self._per_unit(fit.response_mean)
        for remark in remarks(fit, alphas):
            warnings.warn(remark, UserWarning, stacklevel=2)
        return self

    def predict_by_band(self, X) -> np.ndarray:
        """What each space contributes to the predictions.

        Parameters
        ----------
        X : array, shape (stimulus, feature)

        Returns
        -------
        ndarray, shape (space, stimulus, unit), or (space, stimulus) after a fit to a vector
            Their sum over spaces, with `response_mean_`, is `predict`.
        """
        check_is_fitted(self)
        X = self._checked_new(X)
        n_units = np.atleast_1d(self.response_mean_).shape[0]
        by_band: np.ndarray = np.empty((len(self.spaces_), len(X), n_units), self._dtype)
        for part, centred, coef in self._blocks(X):
            for band, columns in enumerate(self.spaces_):
                by_band[band, :, part] = (centred[:, columns] @ coef[columns]).cpu().numpy()
        return self._per_unit(by_band)

    def _blocks(self, X: np.ndarray) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Units, rows less the mean of the fit, and the weights of these units."""
        device, memory = pick_device(self.device), checked_memory(self.max_memory)
        centred = torch.from_numpy((X - self.feature_mean_).astype(self._dtype)).to(device)
        per_unit = 4 * np.dtype(self._dtype).itemsize * (X.shape[1] + len(X))
        for part in parts(len(np.atleast_1d(self.response_mean_)), memory // per_unit):
            yield part, centred, torch.from_numpy(self._coef(part)).to(device)

    def predict(self, X) -> np.ndarray:
        """Predicted responses.

        Parameters
        ----------
        X : array, shape (stimulus, feature)

        Returns
        -------
        ndarray, shape (stimulus, unit), or (stimulus,) after a fit to a vector
            NaN for units left out of the fit.
        """
        check_is_fitted(self)
        X = self._checked_new(X)
        mean = np.atleast_1d(self.response_mean_)
        predicted: np.ndarray = np.empty((len(X), len(mean)), self._dtype)
        for part, centred, coef in self._blocks(X):
            predicted[:, part] = (centred @ coef).cpu().numpy() + mean[part]
        return self._per_unit(predicted)

    @property
    def coef_(self) -> np.ndarray:
        """Weights of the features, shape (feature, unit); computed at every call where features outnumber rows."""
        check_is_fitted(self)
        return self._per_unit(self._coef(slice(None)))

    @property
    def intercept_(self) -> np.ndarray:
        """Intercepts, shape (unit,); zeros without `fit_intercept`."""
        check_is_fitted(self)
        mean = np.atleast_1d(self.response_mean_).astype(np.float64)
        for part in parts(len(mean), 4096):
            mean[part] -= self.feature_mean_ @ self._coef(part).astype(np.float64)
        return self._per_unit(mean.astype(self._dtype))

    def _checked_new(self, X: Any) -> np.ndarray:
        refuse_operators(X)
        return super()._checked_new(X)

    def _coef(self, part: slice) -> np.ndarray:
        weights = np.asarray(self._kept_weights()[:, part])
        if not self._dual:
            return weights
        gamma = np.atleast_2d(self.gamma_.T).T[:, part]
        coef: np.ndarray = np.empty((self.n_features_in_, weights.shape[1]), self._dtype)
        for band, columns in enumerate(self.spaces_):
            for some in parts(len(columns), 1024):
                chosen = columns[some]
                coef[chosen] = gamma[band] * ((self._X_fit[:, chosen] - self.feature_mean_[chosen]).T @ weights)
        return coef

    def _checked_shares(self, n_spaces: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """Shares that are tried on all units, and how many more are refined."""
        if not isinstance(self.n_iter, int | np.integer):
            try:
                shares = np.asarray(self.n_iter, dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise ValueError(f"n_iter={self.n_iter!r}: expected a number of sets of shares, or the sets") from error
            if shares.ndim != 2 or shares.shape[1] != n_spaces or not len(shares):
                raise ValueError(
                    f"n_iter has shape {shares.shape}; expected (iteration, {n_spaces}), one share per space"
                )
            if not np.isfinite(shares).all() or (shares < 0).any() or (shares.sum(1) == 0).any():
                raise ValueError("n_iter holds shares that are negative, not finite, or all 0; expected sums above 0")
            return shares / shares.sum(1, keepdims=True), 0
        if self.n_iter < 1 or isinstance(self.n_iter, bool):
            raise ValueError(f"n_iter={self.n_iter!r}: expected at least one set of shares to try")
        if not (isinstance(self.refine, int | float | np.number) and 0 <= self.refine < 1):
            raise ValueError(f"refine={self.refine!r}: expected a part of n_iter, from 0 to below 1")
        if n_spaces == 1:  # there is one way to share with nobody
            return np.ones((1, 1)), 0
        n_refined = int(self.refine * self.n_iter)
        return random_shares(int(self.n_iter) - n_refined, n_spaces, rng), n_refined


def refuse_operators(X: Any) -> None:
    """Features whose columns cannot be told apart by number."""
    if hasattr(X, "project") or isinstance(X, SpectralDesign):
        raise ValueError(f"X is a {type(X).__name__}; expected an array (stimulus, feature), all spaces side by side")


def checked_spaces(spaces: Any, p: int) -> list[np.ndarray]:
    """Column numbers of each space."""
    if spaces is None:
        raise ValueError(f"spaces=None: expected the number of columns of each space, with a sum of {p}")
    found: list[np.ndarray] = []
    start = 0
    try:
        for space in spaces:
            if isinstance(space, int | np.integer):
                columns = np.arange(start, start + int(space))
                start += int(space)
            else:
                columns = np.atleast_1d(np.arange(p)[space])
            found.append(columns)
    except (IndexError, TypeError) as error:
        raise ValueError(
            f"spaces={spaces!r:.200} cannot be read ({error}); expected the number of columns of each space, or slices "
            f"or arrays of column numbers below {p}"
        ) from error
    listed = np.concatenate([*found, []]).astype(int)
    times = np.bincount(listed[(listed >= 0) & (listed < p)], minlength=p)
    if len(listed) != p or (times != 1).any() or any(len(columns) == 0 for columns in found):
        raise ValueError(
            f"spaces cover {int((times > 0).sum())} of the {p} columns of X, {int((times > 1).sum())} of them more "
            f"than once, with sizes {[len(columns) for columns in found]}; expected each column in one space"
        )
    return found


def _bar(n: int):
    from tqdm import tqdm

    return tqdm(total=n, desc="shares", unit="set", disable=None, leave=False, delay=2)
