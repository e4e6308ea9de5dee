"""Ridge regression whose prior is learned from a population of units, for new units with few stimuli."""

from __future__ import annotations

import copy
import warnings
from typing import Any, Self

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ...datasets.errors import unknown
from ..device import pick_device
from .few_rows import FewRowsEncoder, fitted_units, leading_axes
from .weight_prior import Context, Prior, gather, maximise, posterior_weights

NOISES = ("unit", "shared")
MAX_DIMENSION = 512  # axes that a prior is learned over where nothing else is asked for
SUPPORT = 16  # quantiles of the noise of the population that stand for its distribution


class PopulationPriorRidge(FewRowsEncoder):
    """Ridge regression towards the weights of a population of units, learned from their responses.

    Weights of a unit are drawn from a Gaussian, or a mixture of them, with mean mu and covariance Sigma: ``y = X w +
    noise``. `fit` finds mu, Sigma and the noise of each unit by expectation maximisation over the units it is given;
    `condition` gives the weights of new units from few stimuli, which for one Gaussian are

        ``w = mu + Sigma X' (X Sigma X' + noise I)^-1 (y - X mu)``,

    the Bayes-optimal estimate where the prior holds. Ridge regression is the case ``mu = 0``, Sigma a multiple of the
    identity, ``alpha`` the ratio of noise to it.

    Parameters
    ----------
    components : int
        Gaussians of the mixture.
    iterations : int
        Steps of expectation maximisation, at most.
    tol : float
        Gain in log evidence per response below which they stop.
    noise : {"unit", "shared"}
        One variance of noise for each unit or for all. New units have that of the population: averaged over the
        quantiles of its distribution by their evidence, or the shared one.
    shrinkage : float
        How much a covariance is held to a multiple of the identity, that of ridge regression: as if `shrinkage` units
        for every axis had shown it. What multiple is learned as well.
    standardise : bool
        Scale the features to unit variance over the rows of `fit`, and the responses of each unit over its own rows.
        Without it, units of large responses count for more.
    max_dimension : int or None
        Leading principal axes of the rows of `fit` that the prior is learned over, where features are more. None
        takes 512; a step costs their cube.
    device : str
        Torch device; "auto" takes a CUDA device where there is one.
    seed : int
        For the clusters that a mixture starts from.

    Attributes
    ----------
    prior_mean_ : ndarray, shape (component, axis)
    prior_covariance_ : ndarray, shape (component, axis, axis)
    prior_weight_ : ndarray, shape (component,)
        The mixture, over scaled features along `axes_` and, with `standardise`, for units of unit variance.
    axes_ : ndarray, shape (feature, axis)
        The identity unless features outnumber `max_dimension`.
    responsibility_ : ndarray, shape (component, unit)
        Probability that a unit belongs to a component.
    noise_ : ndarray, shape (unit,)
        Variance of the noise of each unit, in squares of the units of the responses.
    log_likelihood_ : ndarray, shape (iteration,)
        What is maximised: log evidence of all units, and the terms that hold the prior. It never falls.
    coef_ : ndarray, shape (feature, unit)
    intercept_ : ndarray, shape (unit,)
        Weights in the features' own units.
    n_features_in_ : int

    Notes
    -----
    Responses may hold NaN: units are grouped by the rows in which they are known, and each such group costs a
    decomposition in every step. Units with fewer than two responses in `condition`, or three in `fit`, are left out
    (NaN), constant ones are predicted as their constant; one warning counts both.

    A vector y drops the unit axis of `coef_`, `intercept_` and `noise_`. In `fit` the prior learns from the same
    responses as the weights do.

    References
    ----------
    Yu, M., Nan, M., Adeli, H., Prince, J. S., Pyles, J. A., Wehbe, L., Henderson, M. M., Tarr, M. J. & Luo, A. F.
    (2025). Meta-learning an in-context transformer model of human higher visual cortex. NeurIPS 38.

    Lindley, D. V. & Smith, A. F. M. (1972). Bayes estimates for the linear model. Journal of the Royal Statistical
    Society B 34, 1-41.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X, weights = rng.standard_normal((200, 8)), rng.standard_normal((8, 3)) @ rng.standard_normal((3, 90))
    >>> Y = X @ weights + rng.standard_normal((200, 90))
    >>> prior = PopulationPriorRidge().fit(X, Y[:, :80])
    >>> prior.condition(X[:10], Y[:10, 80:]).predict(X).shape
    (200, 10)
    """

    def __init__(
        self,
        components=1,
        iterations=50,
        tol=1e-6,
        noise="unit",
        shrinkage=1.0,
        standardise=True,
        max_dimension=None,
        device="auto",
        seed=0,
    ):
        self.components = components
        self.iterations = iterations
        self.tol = tol
        self.noise = noise
        self.shrinkage = shrinkage
        self.standardise = standardise
        self.max_dimension = max_dimension
        self.device = device
        self.seed = seed

    def fit(self, X, Y, groups=None) -> Self:
        """Learn the prior from a population, and the weights of its units under it.

        Parameters
        ----------
        X : array, shape (stimulus, feature)
        Y : array, shape (stimulus, unit) or (stimulus,)
            NaN where a response is missing.
        groups : array, shape (stimulus,), or None
            Not used: nothing is cross-validated.

        Returns
        -------
        The estimator itself.

        Raises
        ------
        ValueError
            If a parameter is out of its range, X or Y holds infinite values, no unit can be fitted, or lengths do not
            match.
        """
        k, held = self._checked_parameters()
        X, Y = self._checked(X, Y, reset=True)
        device = pick_device(self.device)
        units, constant, remarks = fitted_units(Y, 2 if self._vector else 3)
        if 0 < len(units) < k:
            remarks.append(f"components={k} for {len(units)} units that can be fitted; as many components are learned")
        k = min(k, len(units))
        mean, scale = X.mean(0), np.ones(X.shape[1])
        if self.standardise:
            scale = X.std(0)
            scale[~(scale > 1e-12 * np.abs(mean))] = 1.0
        self.feature_mean_, self.feature_scale_ = mean, scale
        self.axes_ = leading_axes(
            (X - mean) / scale, MAX_DIMENSION if self.max_dimension is None else self.max_dimension
        )
        contexts = gather(self._along(X, device), Y, units, bool(self.standardise))
        if k:
            prior, noise, history = maximise(
                contexts,
                k,
                shared=self.noise == "shared",
                held=held * self.axes_.shape[1],
                iterations=int(self.iterations),
                tol=float(self.tol),
                seed=int(self.seed),
            )
        else:  # every unit is constant: nothing is known of weights
            d = self.axes_.shape[1]
            prior = Prior(torch.ones(1).double(), torch.zeros(1, d).double(), torch.eye(d).double()[None])
            noise, history = [], []
        self.prior_weight_, self.prior_mean_, self.prior_covariance_ = (
            t.cpu().numpy() for t in (prior.share, prior.mean, prior.covariance)
        )
        self.log_likelihood_ = np.array(history)
        levels = torch.cat(noise) if noise else torch.ones(1).double()
        self._support = np.quantile(levels.cpu().numpy(), (np.arange(SUPPORT) + 0.5) / SUPPORT)
        if self.noise == "shared":
            self._support = self._support[:1]
        self._keep(contexts, Y, constant, prior, [n[None] for n in noise])
        for remark in remarks:
            warnings.warn(remark, UserWarning, stacklevel=2)
        return self

    def condition(self, X, Y, noise=None) -> Self:
        """Weights of new units, from the prior and their responses to few stimuli.

        Parameters
        ----------
        X : array, shape (stimulus, feature)
        Y : array, shape (stimulus, unit) or (stimulus,)
            NaN where a response is missing; two known responses are enough.
        noise : float, array of shape (unit,), or None
            Variance of the noise, where it is known, in squares of the units of the responses.

        Returns
        -------
        A new estimator with the same prior; this one keeps its units.

        Raises
        ------
        ValueError
            As `fit`, or if noise is not above zero.
        """
        check_is_fitted(self, "prior_mean_")
        new = copy.copy(self)
        X, Y = new._checked(X, Y, reset=False)
        units, constant, remarks = fitted_units(Y, 2)
        device = pick_device(self.device)
        contexts = gather(self._along(X, device), Y, units, bool(self.standardise))
        mixture = (self.prior_weight_, self.prior_mean_, self.prior_covariance_)
        prior = Prior(*(torch.from_numpy(values).to(device) for values in mixture))
        if noise is None:
            support = torch.from_numpy(self._support).to(device)[:, None]
            levels = [support.expand(-1, len(c.units)) for c in contexts]
        else:
            given = _checked_noise(noise, Y.shape[1])
            levels = [torch.from_numpy(given[c.units]).to(device)[None] / c.y_scale.square() for c in contexts]
        new._keep(contexts, Y, constant, prior, levels)
        for remark in remarks:
            warnings.warn(remark, UserWarning, stacklevel=2)
        return new

    def _checked_parameters(self) -> tuple[int, float]:
        if self.noise not in NOISES:
            raise ValueError(unknown("noise", self.noise, NOISES))
        for name, low in (("components", 1), ("iterations", 1), ("max_dimension", 1)):
            value = getattr(self, name)
            if name == "max_dimension" and value is None:
                continue
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < low:
                raise ValueError(f"{name}={value!r}: expected an int of at least {low}")
        number = isinstance(self.shrinkage, (int, float, np.number)) and not isinstance(self.shrinkage, bool)
        if not (number and 0 < self.shrinkage < np.inf):
            raise ValueError(f"shrinkage={self.shrinkage!r}: expected a number above zero, such as 1.0")
        return int(self.components), float(self.shrinkage)

    def _along(self, X: np.ndarray, device: torch.device) -> Tensor:
        """Scaled features along the axes of the prior."""
        scaled = (X - self.feature_mean_) / self.feature_scale_
        whole = self.axes_.shape[0] == self.axes_.shape[1]
        return torch.from_numpy(scaled if whole else scaled @ self.axes_).to(device)

    def _keep(
        self, contexts: list[Context], Y: np.ndarray, constant: np.ndarray, prior: Prior, levels: list[Tensor]
    ) -> None:
        """Weights of all units, as attributes."""
        v, d = Y.shape[1], self.axes_.shape[1]
        along, intercept, noise = np.full((d, v), np.nan), np.full(v, np.nan), np.full(v, np.nan)
        responsibility = np.full((len(prior), v), np.nan)
        for context, level in zip(contexts, levels, strict=True):
            weights, share, expected = posterior_weights(context, prior, level)
            weights = weights * context.y_scale
            along[:, context.units] = weights.cpu().numpy()
            intercept[context.units] = (context.y_mean - context.x_mean @ weights).cpu().numpy()
            noise[context.units] = (expected * context.y_scale.square()).cpu().numpy()
            responsibility[:, context.units] = share.cpu().numpy()
        along[:, constant], noise[constant] = 0.0, 0.0
        intercept[constant] = np.nanmax(Y[:, constant], axis=0)
        coef = self.axes_ @ along / self.feature_scale_[:, None]
        self.coef_ = self._per_unit(coef)
        self.intercept_ = self._per_unit(intercept - self.feature_mean_ @ coef)
        self.noise_, self.responsibility_ = self._per_unit(noise), self._per_unit(responsibility)


def _checked_noise(noise: Any, v: int) -> np.ndarray:
    given = np.asarray(noise, dtype=np.float64)
    if given.shape not in [(), (v,)]:
        raise ValueError(f"noise has shape {given.shape}; expected one number, or shape ({v},), one for each unit")
    if not (np.isfinite(given) & (given > 0)).all():
        raise ValueError("noise holds values that are not finite or not above zero; expected variances")
    return np.broadcast_to(given, (v,))
