"""Feature-weighted receptive fields: the best of a grid of Gaussian fields for each unit, in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from scipy.special import erf
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from ..device import pick_device
from ..linear.assemble import Fit
from ..linear.estimator import checked_memory
from ..linear.folds import Rows
from ..linear.ridge import Ridge
from ..linear.stream import Plan, tolerance
from ..products import product
from .ridge import ClosedFormReadout
from .tokens import Grid, Tokens

MOST_CENTRES = 15  # on each side, where centres are the places of the tokens
SAME = 1e-6  # fields that differ by no more on any place are one


class PoolingGridReadout(ClosedFormReadout):
    """Every unit pools the tokens with one Gaussian field and weights the pooled features (fwRF).

    ``y = b + <w, sum_t g_t x_t>``, where g is the mass of a round Gaussian over the places of the tokens, with a sum of
    1. All fields of a grid of centres and sizes are tried, each with one decomposition per fold for all penalties and
    units, and a unit keeps the field and the penalty that predict it best in cross-validation: the global optimum over
    the grid, without gradients. Pooled features are centred and scaled with the training rows of each fold alone.

    Parameters
    ----------
    centres : array of float, shape (centre, 2), or None
        Centres (x, y) in fractions of the image, from its top left. None takes the centres of the tokens' places, at
        most 15 on a side.
    sizes : float or sequence of float
        Standard deviations, in fractions of the width of the image. Places are taken to be square.
    uniform : bool
        Also try the mean over all places.
    alphas, cv, device, max_memory
        See `RidgeCV`; `max_memory` also bounds the pooled features that are held at a time.
    criterion : {"r", "r2"}
        What field and penalty maximise: the parameter `score` of `RidgeCV`.
    standardise : bool
        Scale pooled features to unit variance over the training rows.
    grid : (height, width)
        Places of the tokens, row by row from the top left.

    Attributes
    ----------
    fields_ : DataFrame
        Columns x, y (fractions of the image) and size, a row per field, from the largest; the uniform field has the
        size infinity. Fields that the places cannot tell apart are one, with the largest of their sizes.
    field_ : ndarray of int, shape (unit,)
        Row of `fields_` of each unit; ties go to the larger field, and -1 stands for units left out.
    alpha_, alphas_, edge_fraction_
        See `RidgeCV`.
    cv_score_ : ndarray, shape (unit,)
        Cross-validated score at the field and the penalty of each unit. As a maximum over both it is optimistic, the
        more so the more fields are tried.
    validation_r_ : ndarray, shape (unit,)
        `cv_score_`, with criterion "r".
    coef_ : ndarray, shape (feature, unit)
        Weights of pooled features, in their own units.
    response_mean_ : ndarray, shape (unit,)
    grid_, n_tokens_, token_features_, n_features_in_

    Notes
    -----
    The published search scores one hold-out set by squared error and scales features with it; here every fold scales
    with its training rows. Units that hold NaN are left out, as by `RidgeCV`: predictions are NaN, with one warning.

    References
    ----------
    St-Yves, G. & Naselaris, T. (2018). The feature-weighted receptive field: an interpretable encoding model for
    complex feature spaces. NeuroImage 180, 188-202.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> tokens = rng.standard_normal((200, 16, 5))
    >>> Y = tokens[:, 6] @ rng.standard_normal((5, 2))
    >>> encoder = PoolingGridReadout(sizes=[0.1, 0.5], grid=(4, 4)).fit(tokens, Y)
    >>> encoder.fields_.loc[encoder.field_, ["x", "y", "size"]].to_numpy().tolist()
    [[0.625, 0.375, 0.1], [0.625, 0.375, 0.1]]
    """

    def __init__(
        self,
        centres=None,
        sizes=(0.0625, 0.125, 0.25, 0.5, 1.0),
        uniform=True,
        alphas=None,
        cv=5,
        criterion="r",
        standardise=True,
        grid=None,
        device="auto",
        max_memory=None,
    ):
        self.centres = centres
        self.sizes = sizes
        self.uniform = uniform
        self.alphas = alphas
        self.cv = cv
        self.criterion = criterion
        self.standardise = standardise
        self.grid = grid
        self.device = device
        self.max_memory = max_memory

    def _needs_grid(self) -> str | None:
        return "a Gaussian field"

    def fit(self, X, Y, groups=None, units=None) -> Self:
        """Fields and penalties by cross-validation, then weights from all rows.

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
        PoolingGridReadout
            The estimator itself.

        Raises
        ------
        ValueError
            If a parameter is out of its range, there is no field, tokens come without a grid, X holds NaN or infinite
            values, Y holds infinite values or no unit without NaN, or shapes do not fit together.

        Warns
        -----
        UserWarning
            Once for each kind of trouble, as `RidgeCV`.
        """
        tokens, Y, folds, alphas = self._checked(X, Y, groups)
        assert tokens.grid is not None
        fields, masses = fields_of(tokens.grid, self.centres, self.sizes, bool(self.uniform))
        fit, field = self._search(tokens, masses, Y, folds, alphas)
        self.fields_ = fields
        self.field_ = self._per_unit(np.where(fit.complete, field, -1))
        self._solve(tokens, masses, Y, fit, field, alphas)
        self._keep(alphas, fit)
        return self

    def _search(
        self, tokens: Tokens, masses: np.ndarray, Y: np.ndarray, folds: list[Rows], alphas: np.ndarray
    ) -> tuple[Fit, np.ndarray]:
        """The best penalty of each unit, and its field."""
        best: Fit | None = None
        field = np.zeros(Y.shape[1], dtype=np.int64)
        plan: Plan | None = None
        # Scores that differ by no more are ties, which the larger field wins.
        margin = tolerance(torch.float64 if tokens.dtype == np.float64 else torch.float32)
        with _bar(len(masses)) as bar:
            for k, features in self._pooled(tokens, masses):
                # To meet the responses by rows is safe for all features; by columns, a field may be too rough for it.
                fit, _, plan = self._solved(features, Y, folds, alphas, weights=False, plan=plan)
                plan = plan if plan.by_rows else None
                best, better = (fit, np.zeros(0, int)) if best is None else _the_better(best, fit, margin)
                field[better] = k
                bar.update()
        assert best is not None
        return best, field

    def _pooled(self, tokens: Tokens, masses: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Pooled features (stimulus, feature) of field after field; as many at a time are pooled as memory holds."""
        each = tokens.n * tokens.n_features * tokens.dtype.itemsize
        step = max(checked_memory(self.max_memory) // each, 1)
        for start in range(0, len(masses), step):
            pooled = tokens.mean_tokens(masses[start : start + step])
            for k in range(pooled.shape[1]):
                yield start + k, pooled[:, k]

    def _solve(
        self, tokens: Tokens, masses: np.ndarray, Y: np.ndarray, fit: Fit, field: np.ndarray, alphas: np.ndarray
    ) -> None:
        """Weights from all rows, of all units of a field at once."""
        used, place = np.unique(field[fit.complete], return_inverse=True)
        self._masses, self._of_units = masses[used], np.full(Y.shape[1], -1)
        self._of_units[fit.complete] = place
        self._coef: np.ndarray = np.full((tokens.n_features, Y.shape[1]), np.nan, tokens.dtype)
        self._offsets: np.ndarray = np.empty((len(used), tokens.n_features))
        self._response_mean = fit.response_mean
        for k, features in self._pooled(tokens, self._masses):
            units = np.flatnonzero(self._of_units == k)
            engine = Ridge(
                alpha=alphas[fit.alpha[units]],
                standardise=bool(self.standardise),
                device=self.device,
                max_memory=self.max_memory,
            ).fit(np.ascontiguousarray(features), Y[:, units])
            self._coef[:, units], self._offsets[k] = engine.coef_, engine.feature_mean_

    @property
    def coef_(self) -> np.ndarray:
        """Weights of pooled features, without unit axis after a fit to a vector."""
        check_is_fitted(self)
        return self._per_unit(self._coef)

    @property
    def response_mean_(self) -> Any:
        """Mean response of each unit, shape (unit,)."""
        check_is_fitted(self)
        return self._per_unit(self._response_mean)

    def receptive_field(self, unit: int = 0) -> np.ndarray:
        """Weight of every place of the tokens in what a unit pools.

        Parameters
        ----------
        unit : int
            Column of the responses.

        Returns
        -------
        ndarray, shape (height, width)
            With a sum of 1; NaN for a unit left out of the fit.

        Raises
        ------
        ValueError
            If there is no such unit.
        """
        check_is_fitted(self)
        v = len(self._of_units)
        if not isinstance(unit, int | np.integer) or not 0 <= unit < v:
            raise ValueError(f"unit={unit!r}: expected a whole number from 0 to {v - 1}, the units of the fit")
        place = self._of_units[unit]
        return (self._masses[place] if place >= 0 else np.full(self.n_tokens_, np.nan)).reshape(self.grid_)

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
        members = [np.flatnonzero(self._of_units == k) for k in range(len(self._masses))]
        weights = [torch.from_numpy(self._coef[:, units]).to(device) for units in members]
        predicted: np.ndarray = np.full((tokens.n, len(self._of_units)), np.nan, self._coef.dtype)
        for rows in tokens.chunks(np.arange(tokens.n)):
            pooled = (tokens.mean_tokens(self._masses, rows) - self._offsets).astype(self._coef.dtype)
            for k, (units, coef) in enumerate(zip(members, weights, strict=True)):
                out = product(torch.from_numpy(pooled[:, k]).to(device), coef).cpu().numpy()
                predicted[np.ix_(rows, units)] = out + self._response_mean[units]
        return self._per_unit(predicted)

    def torch_module(self, detach_routing: bool = False) -> nn.Module:
        """The readout as a module, with gradients to the tokens.

        Parameters
        ----------
        detach_routing : bool
            Changes nothing here: where a field lies does not depend on the image.

        Returns
        -------
        nn.Module
            Tokens (row, token, feature) in float32 to responses (row, unit); NaN for units left out of the fit, which
            pass no gradient.
        """
        check_is_fitted(self)
        return PooledAffine(self._masses, self._of_units, self._coef, self._offsets, self._response_mean)


class PooledAffine(nn.Module):
    """Units that pool with one of a few fields and weight what they pool."""

    masses: Tensor
    offsets: Tensor
    coef: Tensor
    bias: Tensor
    order: Tensor

    def __init__(
        self, masses: np.ndarray, of_units: np.ndarray, coef: np.ndarray, offsets: np.ndarray, bias: np.ndarray
    ):
        super().__init__()
        by_field = np.argsort(of_units, kind="stable")
        self.sizes = np.bincount(of_units + 1, minlength=len(masses) + 1).tolist()  # the first are left out
        self.register_buffer("masses", torch.from_numpy(masses).float())
        self.register_buffer("offsets", torch.from_numpy(offsets).float())
        self.register_buffer("coef", torch.from_numpy(coef[:, by_field]).float().nan_to_num(nan=0.0))
        bias = np.where(of_units < 0, np.nan, bias)
        self.register_buffer("bias", torch.from_numpy(bias).float())
        self.register_buffer("order", torch.from_numpy(np.argsort(by_field)))

    def forward(self, tokens: Tensor) -> Tensor:
        pooled = torch.einsum("kt,btd->kbd", self.masses, tokens) - self.offsets[:, None]
        coef = self.coef.split(self.sizes, dim=1)
        out = [tokens.new_zeros(len(tokens), self.sizes[0])]
        out += [one @ weights for one, weights in zip(pooled, coef[1:], strict=True)]
        return torch.cat(out, 1)[:, self.order] + self.bias


def fields_of(grid: Grid, centres: Any, sizes: Any, uniform: bool) -> tuple[pd.DataFrame, np.ndarray]:
    """Gaussian fields and their masses over the places of a grid.

    Parameters
    ----------
    grid : (height, width)
    centres : array of float, shape (centre, 2), or None
        Centres (x, y) in fractions of the image; None for those of the places, at most 15 on a side.
    sizes : float or sequence of float
        Standard deviations in fractions of the width of the image.
    uniform : bool
        Whether to add the mean over all places, as a field of infinite size.

    Returns
    -------
    fields : DataFrame
        Columns x, y and size, from the largest; fields that differ on no place are there once, with the largest size.
    masses : ndarray of float64, shape (field, place)
        Rows with a sum of 1.

    Raises
    ------
    ValueError
        If centres lie outside the image, sizes are not above zero, or no field is left.
    """
    found_centres, found_sizes = _checked_centres(centres, grid), _checked_sizes(sizes)
    table = [(0.5, 0.5, np.inf)] * uniform
    table += [(x, y, size) for size in found_sizes[::-1] for x, y in found_centres]
    if not table:
        raise ValueError("sizes is empty and uniform=False: no field is left; pass at least one size")
    fields = pd.DataFrame(table, columns=["x", "y", "size"])
    masses = gaussian_masses(grid, *(fields[name].to_numpy() for name in ("x", "y", "size")))
    _, first = np.unique(np.round(masses / SAME).astype(np.int64), axis=0, return_index=True)
    first.sort()
    return fields.iloc[first].reset_index(drop=True), masses[first]


def gaussian_masses(grid: Grid, x: np.ndarray, y: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Mass of round Gaussians over the places of a grid, as shares of their mass within the image.

    Integrated over each place, so that a field far smaller than a place is that place and no accident of where it is
    sampled.

    Parameters
    ----------
    grid : (height, width)
    x, y : ndarray of float64, shape (field,)
        Centres in fractions of the image.
    size : ndarray of float64, shape (field,)
        Standard deviations in fractions of the width of the image, whose places are square; infinite for the uniform
        field.

    Returns
    -------
    ndarray of float64, shape (field, height * width)
    """
    height, width = grid
    along_x = _masses_along(width, x, size)
    along_y = _masses_along(height, y, size * width / height)
    masses = (along_y[:, :, None] * along_x[:, None, :]).reshape(len(x), -1)
    return masses / masses.sum(1, keepdims=True)


def _masses_along(places: int, centre: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Mass of Gaussians on the unit interval, in equal parts of it, shape (field, place)."""
    edges = (np.linspace(0, 1, places + 1) - centre[:, None]) / (np.sqrt(2) * size[:, None])
    masses = np.where(np.isinf(size)[:, None], 1 / places, np.diff(erf(edges), axis=1))
    return masses / masses.sum(1, keepdims=True)


def _checked_centres(centres: Any, grid: Grid) -> np.ndarray:
    if centres is None:
        rows, columns = ((np.arange(side) + 0.5) / side for side in np.minimum(grid, MOST_CENTRES))
        return np.stack([np.tile(columns, len(rows)), np.repeat(rows, len(columns))], 1)
    try:
        found = np.asarray(centres, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"centres={centres!r:.100}: expected pairs (x, y) in fractions of the image") from error
    if found.ndim != 2 or found.shape[1] != 2 or not len(found):
        raise ValueError(f"centres has shape {found.shape}; expected (centre, 2), pairs (x, y)")
    outside = found[~((found >= 0) & (found <= 1)).all(1)]
    if len(outside):
        raise ValueError(f"centres holds {tuple(outside[0].tolist())}; expected fractions of the image, from 0 to 1")
    return found


def _checked_sizes(sizes: Any) -> np.ndarray:
    try:
        found = np.unique(np.asarray(sizes, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"sizes={sizes!r:.100}: expected numbers above zero") from error
    wrong = found[~(np.isfinite(found) & (found > 0))]
    if wrong.size:
        raise ValueError(
            f"sizes holds {wrong[0]:g}; expected finite numbers above zero, in fractions of the image's width "
            "(uniform=True adds the field of infinite size)"
        )
    return found


def _the_better(best: Fit, fit: Fit, margin: float) -> tuple[Fit, np.ndarray]:
    """What serves each unit better, and the units that the second serves better; NaN never does."""
    better = (fit.score > best.score + margin) | (np.isnan(best.score) & ~np.isnan(fit.score))
    return replace(
        best,
        alpha=np.where(better, fit.alpha, best.alpha),
        score=np.where(better, fit.score, best.score),
        climbing=np.where(better, fit.climbing, best.climbing),
        n_doubtful=max(best.n_doubtful, fit.n_doubtful),
    ), np.flatnonzero(better)


def _bar(n: int):
    from tqdm import tqdm

    return tqdm(total=n, desc="fields", unit="field", disable=None, leave=False, delay=2)
