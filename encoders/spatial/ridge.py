"""Ridge regression from tokens: all of them, their mean, or their principal components."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from ...datasets.errors import unknown
from ..device import pick_device
from ..linear.assemble import Fit, fit_units
from ..linear.design import Map, RowMap, SpectralDesign
from ..linear.estimator import checked_alphas, checked_groups, checked_memory
from ..linear.folds import Rows, scored_folds
from ..linear.low_rank import (
    EPS,
    Axes,
    RunningMean,
    checked_counts,
    choose_first,
    nested_scores,
    principal_axes,
)
from ..linear.low_rank import Responses as Columns
from ..linear.moments import SCORES
from ..linear.responses import Responses
from ..linear.ridge import remarks
from ..linear.stream import Plan, Task, block_width, make_plan, still_climbing
from ..products import product
from .base import SpatialEncoder
from .tokens import Tokens

REDUCTIONS = {
    "flat": "every feature of every token has a weight",
    "pooled": "the mean over tokens",
    "pca": "leading principal components of all features of all tokens",
}


class ClosedFormReadout(SpatialEncoder):
    """Readouts that are solved for rather than trained; penalties are found by cross-validation.

    A subclass has the parameters alphas, cv, criterion, standardise, grid, device and max_memory.
    """

    alphas: Any
    cv: Any
    criterion: str
    standardise: bool
    device: Any
    max_memory: Any
    _vector: bool

    def _checked(self, X: Any, Y: Any, groups: Any) -> tuple[Tokens, np.ndarray, list[Rows], np.ndarray]:
        """Tokens, responses (stimulus, unit), rows of the folds and penalties."""
        if self.criterion not in list(SCORES):
            raise ValueError(unknown("criterion", self.criterion, SCORES))
        alphas = checked_alphas(self.alphas)
        checked_memory(self.max_memory)
        tokens = self._checked_tokens(X, fitting=True)
        if tokens.n < 2:
            raise ValueError("X has 1 sample: a fit needs stimuli to train with and others to choose penalties by")
        Y = self._checked_responses(Y, tokens.n)
        if np.isnan(Y).any(0).all():
            raise ValueError(
                f"every unit of Y (shape {Y.shape}) holds NaN; leave out the rows without responses, or take a readout "
                "that is trained by gradients, which leaves out single entries"
            )
        placeholder = np.empty((tokens.n, 1))
        folds = scored_folds(self.cv, placeholder, placeholder, checked_groups(groups, tokens.n), self.criterion)
        return tokens, Y, folds, alphas

    def _solved(
        self,
        features: np.ndarray,
        Y: np.ndarray,
        folds: list[Rows],
        alphas: np.ndarray,
        *,
        weights: bool,
        plan: Plan | None = None,
    ) -> tuple[Fit, SpectralDesign, Plan]:
        """Ridge regression from features (stimulus, feature) by the engine, which says how it met the responses."""
        design = SpectralDesign(
            np.ascontiguousarray(features), folds, standardise=bool(self.standardise), device=pick_device(self.device)
        )
        responses = Responses(Y)
        plan = make_plan(design, alphas, responses.v) if plan is None else plan
        task = Task(alphas, self.criterion, plan, surface=False, weights=weights)
        width = block_width(design, plan, len(alphas), checked_memory(self.max_memory))
        return fit_units(design, responses, task, width, per_unit=True), design, plan

    def _keep(self, alphas: np.ndarray, fit: Fit) -> None:
        """What was found for each unit, as attributes, with one warning for each kind of trouble."""
        self.alphas_ = alphas
        self.alpha_ = self._per_unit(np.where(fit.complete, alphas[fit.alpha], np.nan))
        self.cv_score_ = self._per_unit(fit.score)
        if self.criterion == "r":
            self.validation_r_ = self.cv_score_
        else:
            self.__dict__.pop("validation_r_", None)
        self.edge_fraction_ = fit.edge_fraction
        for remark in remarks(fit, alphas):
            warnings.warn(remark, UserWarning, stacklevel=3)


class RidgeReadout(ClosedFormReadout):
    """Ridge regression from spatial tokens, in closed form: the baselines of every other readout.

    With tokens x_t of an image, ``y = b + sum_t <w_t, x_t>`` ("flat"), ``y = b + <w, mean_t x_t>`` ("pooled"), or
    ridge regression from the leading principal components of all features of all tokens ("pca"). The penalty of each
    unit, and for "pca" its number of components, are found by cross-validation. A fold learns means, scales and
    components from its training rows only.

    Parameters
    ----------
    reduce : {"flat", "pooled", "pca"}
    components : int or sequence of int
        Numbers of components to try, for "pca". What exceeds the rank of the stimuli stands for all components, with
        which the readout is the flat one.
    alphas, cv, device, max_memory
        See `RidgeCV`.
    criterion : {"r", "r2"}
        What penalties maximise: the parameter `score` of `RidgeCV`.
    standardise : bool
        Scale features (pooled ones for "pooled"; those of each place for "flat" and "pca") to unit variance over the
        training rows, before any component is taken.
    grid : (height, width) or None
        Places of the tokens, row by row from the top left. Needed to cut flattened tokens into places for "pooled";
        "flat" and "pca" do without.

    Attributes
    ----------
    alpha_, alphas_, cv_score_, edge_fraction_
        See `RidgeCV`.
    validation_r_ : ndarray, shape (unit,)
        `cv_score_`, with criterion "r". As a maximum over penalties it is a little optimistic.
    components_ : ndarray of int, shape (unit,)
        Number of components of each unit; with "pca".
    coef_ : ndarray, shape (token * feature, unit), for "pooled" (feature, unit)
        Weights, in the features' own units.
    feature_mean_, response_mean_ : ndarray
        Offsets taken out before the fit.
    grid_, n_tokens_, token_features_, n_features_in_

    Notes
    -----
    Units that hold NaN are left out, as by `RidgeCV`: their attributes and predictions are NaN, with one warning.
    A principal component regression without penalty is what some papers compare attention with; the penalty is part
    of a fair comparison.

    References
    ----------
    Hoerl, A. E. & Kennard, R. W. (1970). Ridge regression: biased estimation for nonorthogonal problems.
    Technometrics 12, 55-67.

    Adeli, H., Minni, S. & Kriegeskorte, N. (2025). Transformer brain encoders explain human high-level visual
    responses. arXiv 2505.17329.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> tokens = rng.standard_normal((120, 9, 4))
    >>> Y = tokens.mean(1) @ rng.standard_normal((4, 3)) + 0.1 * rng.standard_normal((120, 3))
    >>> RidgeReadout("pooled", grid=(3, 3)).fit(tokens, Y).predict(tokens).shape
    (120, 3)
    """

    def __init__(
        self,
        reduce="flat",
        components=(16, 64, 256),
        alphas=None,
        cv=5,
        criterion="r",
        standardise=True,
        grid=None,
        device="auto",
        max_memory=None,
    ):
        self.reduce = reduce
        self.components = components
        self.alphas = alphas
        self.cv = cv
        self.criterion = criterion
        self.standardise = standardise
        self.grid = grid
        self.device = device
        self.max_memory = max_memory

    def fit(self, X, Y, groups=None, units=None) -> Self:
        """Penalties by cross-validation, then weights from all rows.

        Parameters
        ----------
        X : array, memory map, h5py.Dataset or TokenStore
            Tokens, shape (stimulus, token, feature), or flattened (stimulus, token * feature).
        Y : array, shape (stimulus, unit) or (stimulus,)
        groups : array, shape (stimulus,), or None
            Run, session or repeat of each row, for folds of whole groups.
        units : DataFrame or None
            Not used: a unit's place in cortex does not enter.

        Returns
        -------
        RidgeReadout
            The estimator itself.

        Raises
        ------
        ValueError
            If a parameter is out of its range, X holds NaN or infinite values, Y holds infinite values or no unit
            without NaN, or shapes do not fit together.

        Warns
        -----
        UserWarning
            Once for each kind of trouble, as `RidgeCV`.
        """
        if self.reduce not in REDUCTIONS:
            raise ValueError(unknown("reduce", self.reduce, REDUCTIONS))
        tokens, Y, folds, alphas = self._checked(X, Y, groups)
        features = self._features(tokens, np.arange(tokens.n))
        solve = self._principal if self.reduce == "pca" else self._plain
        self._keep(alphas, solve(features, Y, folds, alphas))
        return self

    def _features(self, tokens: Tokens, rows: np.ndarray) -> np.ndarray:
        """What the regression reads, shape (row, feature)."""
        if self.reduce == "pooled":
            return tokens.mean_tokens(np.full((1, tokens.n_tokens), 1 / tokens.n_tokens), rows)[:, 0]
        dtype = torch.float64 if tokens.dtype == np.float64 else torch.float32
        return tokens.batch(rows, dtype=dtype).flatten(1).numpy()

    def _plain(self, features: np.ndarray, Y: np.ndarray, folds: list[Rows], alphas: np.ndarray) -> Fit:
        fit, design, plan = self._solved(features, Y, folds, alphas, weights=True)
        to_axes = design.whole(plan.by_rows)[1]
        assert isinstance(to_axes, Map | RowMap) and fit.weights is not None
        self._keep_factors(to_axes.axes.cpu().numpy().astype(fit.weights.dtype, copy=False), fit.weights)
        self.feature_mean_ = to_axes.offset.cpu().numpy()
        self._response_mean, self._dtype = fit.response_mean, fit.weights.dtype
        return fit

    def _principal(self, features: np.ndarray, Y: np.ndarray, folds: list[Rows], alphas: np.ndarray) -> Fit:
        X = torch.from_numpy(features).to(pick_device(self.device))
        counts = checked_counts(self.components, "components")
        complete = ~np.isnan(Y).any(0)
        responses = Columns(Y, np.flatnonzero(complete), centre=True, scale=False)
        whole = principal_axes(X, torch.arange(len(Y), device=X.device), centre=True, scale=bool(self.standardise))
        counts = np.unique(np.minimum(counts, max(len(whole.singular), 1)))
        table = component_scores(X, responses, folds, counts, alphas, bool(self.standardise), self.criterion)
        # From few components to many, and within a number from the largest penalty to the least.
        simplest_first = table[:, ::-1].reshape(-1, len(responses))
        best = choose_first(simplest_first, 64 * EPS)
        chosen, alpha = best // len(alphas), len(alphas) - 1 - best % len(alphas)
        climbing = np.stack([still_climbing(one) for one in table])  # (count, end, unit)
        at = np.arange(len(responses))
        self._keep_components(whole, responses, counts[chosen], alphas[alpha])
        self.components_ = self._per_unit(_spread(counts[chosen], complete, 0))
        return Fit(
            complete,
            _spread(alpha, complete, len(alphas) - 1),
            _spread(simplest_first[best, at], complete, np.nan),
            np.full(len(complete), np.nan),
            self._response_mean,
            np.stack([_spread(side, complete, False) for side in climbing[chosen, :, at].T]),
            None,
            None,
            0,
        )

    def _keep_components(self, whole: Axes, responses: Columns, counts: np.ndarray, alpha: np.ndarray) -> None:
        """Weights of all rows: the axes are orthogonal, so that each component is shrunk on its own."""
        kept = min(int(counts.max()), len(whole.singular))
        singular = whole.singular[:kept, None]
        device = singular.device
        scale = _of_engine(len(whole.rows), bool(self.standardise))
        directions = torch.diag(singular[:, 0])
        if len(whole.singular) > kept:
            directions = torch.cat([directions, directions.new_zeros(len(whole.singular) - kept, kept)])
        right: np.ndarray = np.full((kept, responses.Y.shape[1]), np.nan)
        means: np.ndarray = np.full(responses.Y.shape[1], np.nan)
        beyond = torch.arange(kept, device=device)[:, None]
        for part in responses.blocks():
            y, mean, _ = responses.block(part, whole.rows)
            penalty, count = (torch.from_numpy(values[part]).to(device) for values in (alpha, counts))
            weights = singular * (whole.left[:, :kept].T @ y) / (singular.square() + penalty / scale)
            columns = responses.columns[part]
            right[:, columns] = weights.mul_(beyond < count).cpu().numpy()
            means[columns] = mean.cpu().numpy()
        self._dtype = np.dtype(np.float64 if whole.X.dtype == torch.float64 else np.float32)
        left = whole.weights(directions).cpu().numpy()
        self._keep_factors(left.astype(self._dtype), right.astype(self._dtype))
        self.feature_mean_, self._response_mean = whole.mean.cpu().numpy(), means

    def _keep_factors(self, left: np.ndarray, right: np.ndarray) -> None:
        """Weights as one matrix, or as two where these hold less."""
        few = left.shape[0] * right.shape[1] <= left.size + right.size
        self._factors: Sequence[np.ndarray] = (left @ right,) if few else (left, right)

    @property
    def coef_(self) -> np.ndarray:
        """Weights of the features, without unit axis after a fit to a vector."""
        check_is_fitted(self)
        return self._per_unit(self._factors[0] if len(self._factors) == 1 else self._factors[0] @ self._factors[1])

    @property
    def response_mean_(self) -> Any:
        """Mean response of each unit, shape (unit,)."""
        check_is_fitted(self)
        return self._per_unit(self._response_mean)

    def predict(self, X) -> np.ndarray:
        """Predicted responses.

        Parameters
        ----------
        X : array, memory map, h5py.Dataset or TokenStore
            Tokens, of the shape that the fit had.

        Returns
        -------
        ndarray, shape (stimulus, unit), or (stimulus,) after a fit to a vector
            NaN for units left out of the fit.
        """
        check_is_fitted(self)
        tokens, device = self._checked_tokens(X), pick_device(self.device)
        factors = [torch.from_numpy(factor).to(device) for factor in self._factors]
        predicted: np.ndarray = np.empty((tokens.n, len(self._response_mean)), self._dtype)
        for rows in tokens.chunks(np.arange(tokens.n)):
            out = torch.from_numpy((self._features(tokens, rows) - self.feature_mean_).astype(self._dtype)).to(device)
            for factor in factors:
                out = product(out, factor)
            predicted[rows] = out.cpu().numpy() + self._response_mean
        return self._per_unit(predicted)

    def torch_module(self, detach_routing: bool = False) -> nn.Module:
        """The readout as a module, with gradients to the tokens.

        Parameters
        ----------
        detach_routing : bool
            Changes nothing here: where a linear readout looks does not depend on the image.

        Returns
        -------
        nn.Module
            Tokens (row, token, feature) in float32 to responses (row, unit); NaN for units left out of the fit, which
            pass no gradient.
        """
        check_is_fitted(self)
        return Affine(self._factors, self.feature_mean_, self._response_mean, pooled=self.reduce == "pooled")


class Affine(nn.Module):
    """``(features - offset) @ factors + bias``, of all tokens side by side or of their mean."""

    offset: Tensor
    bias: Tensor

    def __init__(self, factors: Sequence[np.ndarray], offset: np.ndarray, bias: np.ndarray, pooled: bool):
        super().__init__()
        self.pooled = pooled
        self.register_buffer("offset", torch.from_numpy(offset).float())
        self.register_buffer("bias", torch.from_numpy(np.asarray(bias)).float())  # NaN where the weights are
        self.names = [f"factor_{i}" for i in range(len(factors))]
        for name, factor in zip(self.names, factors, strict=True):
            self.register_buffer(name, torch.from_numpy(factor).float().nan_to_num(nan=0.0))

    def forward(self, tokens: Tensor) -> Tensor:
        out = (tokens.mean(1) if self.pooled else tokens.flatten(1)) - self.offset
        for name in self.names:
            out = out @ getattr(self, name)
        return out + self.bias


def component_scores(
    X: Tensor,
    responses: Columns,
    folds: Sequence[Rows],
    counts: np.ndarray,
    alphas: np.ndarray,
    standardise: bool,
    criterion: str,
) -> np.ndarray:
    """Cross-validated score of ridge regression from leading principal components of the training rows.

    Parameters
    ----------
    X : Tensor, shape (stimulus, feature)
    responses : low_rank.Responses
    folds : sequence of (train, test)
    counts : ndarray of int, shape (count,)
        Numbers of components, ascending; one beyond the rank of a training set stands for all of its components.
    alphas : ndarray, shape (alpha,)
    standardise : bool
    criterion : {"r", "r2"}

    Returns
    -------
    ndarray, shape (count, alpha, unit)
        Mean over the folds in which a score is defined, NaN where there is none.
    """
    table = RunningMean((len(counts), len(alphas), len(responses)))
    for train, test in folds:
        train_rows, test_rows = (torch.from_numpy(rows).to(X.device) for rows in (train, test))
        axes = principal_axes(X, train_rows, centre=True, scale=standardise)
        kept = min(int(counts[-1]), len(axes.singular))
        squares = axes.singular[:kept, None].square() * _of_engine(len(train), standardise)
        scores = axes.project(test_rows)[:, :kept]
        for part in responses.blocks():
            y = responses.block(part, train_rows)[0]
            loadings = axes.left[:, :kept].T @ y[train_rows]
            for a, alpha in enumerate(alphas.tolist()):
                shrunk = loadings * (squares / (squares + alpha))
                table.add(nested_scores(scores, shrunk, y[test_rows], counts, criterion), (slice(None), a, part))
    return table.result()


def _of_engine(n: int, standardise: bool) -> float:
    """Squares of features scaled as by the engine (n in the denominator), over those of `principal_axes` (n - 1)."""
    return n / (n - 1) if standardise else 1.0


def _spread(values: np.ndarray, complete: np.ndarray, otherwise: Any) -> np.ndarray:
    """Values of the units without NaN among those of all units."""
    found = np.full(len(complete), otherwise, dtype=values.dtype)
    found[complete] = values
    return found
