"""What encoders of spatial tokens share: checked data, the order of a fit, predictions and scores."""

from __future__ import annotations

import copy
import warnings
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import nn

from ...datasets.errors import unknown
from ..device import pick_device
from ..linear.estimator import FLOATS
from ..linear.responses import Responses
from .batches import Feed, row_batches
from .checkpoint import checkpoint_path
from .losses import StreamingCorrelation, checked_loss
from .parameters import described, require_number, require_whole
from .setup import Finished, Responder, Setup
from .store import TokenStore
from .targets import Targets, make_targets
from .tokens import Grid, Tokens, checked_tokens
from .training import COLUMNS, PRECISIONS, Fitted, Training, seeded, split_rows, train

__all__ = ["Finished", "GradientReadout", "Setup", "SpatialEncoder"]

METRICS = ("r", "r2")


class SpatialEncoder(RegressorMixin, MultiOutputMixin, BaseEstimator):
    """An encoder of spatial tokens: numpy in, numpy out.

    X is (stimulus, token, feature) with a parameter ``grid=(height, width)``, tokens row by row from the top left, or
    the same flattened to (stimulus, token * feature). Without a grid a matrix is one token per stimulus.

    Attributes
    ----------
    grid_ : (height, width) or None
    n_tokens_, token_features_, n_features_in_ : int
        Tokens of a stimulus, features of a token, and the product of both.
    """

    reads_tokens = True
    grid: Any = None
    grid_: Grid | None
    n_tokens_: int
    token_features_: int
    validation_r_: np.ndarray
    _vector: bool  # whether Y was a vector

    def fit(self, X, Y, groups=None, units=None) -> Self:
        """Fit to responses Y (stimulus, unit); `units` is a table with a row for each unit."""
        raise NotImplementedError

    def predict(self, X) -> np.ndarray:
        """Predicted responses (stimulus, unit), NaN for units that are left out."""
        raise NotImplementedError

    def torch_module(self, detach_routing: bool = False) -> nn.Module:
        """The fitted encoder as a module from raw tokens (row, token, feature) to responses (row, unit)."""
        raise NotImplementedError

    def score(self, X, y, sample_weight=None) -> float:
        """R^2 of the predictions, averaged over the units without NaN; NaN where there is none."""
        predicted, y = self._side_by_side(X, y)
        known = ~(np.isnan(y).any(0) | np.isnan(predicted).any(0))
        if not known.any():
            return float("nan")
        return float(r2_score(y[:, known], predicted[:, known], sample_weight=sample_weight))

    def unit_scores(self, X, Y, metric: str = "r", ceiling: Any = None) -> np.ndarray:
        """Score of each unit on stimuli that the fit has not seen.

        Parameters
        ----------
        X : tokens
        Y : array, shape (stimulus, unit)
            NaN where a response is missing; the rows that are known count.
        metric : {"r", "r2"}
            Pearson correlation or R^2.
        ceiling : array, shape (unit,), or None
            Share of each unit's variance that can be explained. Scores become shares of it: ``r * |r| / ceiling``, or
            ``r2 / ceiling``.

        Returns
        -------
        ndarray, shape (unit,)
            NaN for units that are left out, that have fewer than three known rows or are constant, and for those whose
            ceiling is not above zero: they are out of every mean, and no score is clipped.

        Raises
        ------
        ValueError
            If shapes do not match or the metric is unknown.
        """
        if metric not in METRICS:
            raise ValueError(unknown("metric", metric, METRICS))
        predicted, Y = self._side_by_side(X, Y)
        known = ~np.isnan(Y) & ~np.isnan(predicted)
        moments = StreamingCorrelation(Y.shape[1])
        moments.update(*(torch.from_numpy(np.array(values)) for values in (predicted, Y, known)))
        scores = moments.r()
        if metric == "r2":
            errors = np.where(known, (Y.astype(np.float64) - predicted) ** 2, 0.0).sum(0)
            scores = 1 - errors / moments.variation()
        if ceiling is None:
            return scores
        ceiling = np.asarray(ceiling, np.float64)
        if ceiling.shape != (Y.shape[1],):
            raise ValueError(f"ceiling has shape {ceiling.shape}; expected ({Y.shape[1]},), one for each unit")
        explained = scores * np.abs(scores) if metric == "r" else scores
        above = ceiling > 0
        return np.where(above, explained / np.where(above, ceiling, 1.0), np.nan)

    def _side_by_side(self, X: Any, Y: Any) -> tuple[np.ndarray, np.ndarray]:
        """Predictions and responses of one shape (stimulus, unit)."""
        predicted = self.predict(X)
        Y = check_array(Y, ensure_2d=False, dtype=FLOATS, ensure_all_finite="allow-nan", input_name="y")
        if Y.size != predicted.size or len(Y) != len(predicted):
            raise ValueError(f"Y has shape {Y.shape} and the predictions {predicted.shape}; expected the same")
        return predicted.reshape(len(Y), -1), Y.reshape(len(Y), -1)

    def _needs_grid(self) -> str | None:
        """What of this encoder needs places, in the words of the message; None where nothing does."""
        return None

    def _checked_tokens(self, X: Any, fitting: bool = False) -> Tokens:
        """Tokens of X; with `fitting`, their shape is kept as attributes: grid_, n_tokens_, token_features_."""
        if not fitting:
            check_is_fitted(self)
        nested = isinstance(X, list | tuple) and np.ndim(X) == 3
        in_place = isinstance(X, TokenStore | np.memmap) or hasattr(X, "chunks") or getattr(X, "ndim", 2) == 3 or nested
        if not in_place:  # scikit-learn's checks of a matrix, with the number and names of its columns
            X = validate_data(self, X, reset=fitting, dtype=[*FLOATS, np.float16])
        fitted = None if fitting else (self.n_tokens_, self.token_features_)
        grid = self.grid if fitting else self.grid_
        tokens = checked_tokens(X, grid, needs_grid=self._needs_grid(), fitted=fitted)
        if fitting:
            self.grid_, self.n_tokens_, self.token_features_ = tokens.grid, tokens.n_tokens, tokens.n_features
            if in_place:
                self.n_features_in_ = tokens.n_tokens * tokens.n_features
                if hasattr(self, "feature_names_in_"):  # of a table that an earlier fit had
                    del self.feature_names_in_
        return tokens

    def _checked_responses(self, Y: Any, n: int) -> np.ndarray:
        """Responses (stimulus, unit) in float32 or float64, NaN where missing; remembers whether Y was a vector."""
        if Y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        if hasattr(Y, "presentations") or hasattr(Y, "chunks"):
            Y = Responses(Y).read(slice(None))
        Y = check_array(Y, dtype=FLOATS, ensure_2d=False, ensure_all_finite="allow-nan", input_name="Y")
        self._vector = Y.ndim == 1
        Y = Y[:, None] if self._vector else Y
        if Y.ndim != 2 or len(Y) != n:
            raise ValueError(f"X holds {n} stimuli and Y has shape {Y.shape}; expected ({n}, unit), a row per stimulus")
        return Y

    def _checked_units(self, units: Any, v: int) -> pd.DataFrame | None:
        """A table with a row for each unit, or None."""
        if units is None:
            return None
        if not isinstance(units, pd.DataFrame) or len(units) != v:
            found = f"{len(units)} rows" if isinstance(units, pd.DataFrame) else type(units).__name__
            raise ValueError(f"units: found {found}, expected a table (DataFrame) of {v} rows, one for each unit of Y")
        return units.reset_index(drop=True)

    def _per_unit(self, values: np.ndarray) -> Any:
        """Without unit axis (the last) after a fit to a vector."""
        return values[..., 0] if self._vector else values


class GradientReadout(SpatialEncoder):
    """An encoder that is trained by gradients: `_build` makes the module, the rest is here.

    A subclass has the parameters grid, loss, lr, weight_decay, epochs, batch_size, patience, validation, precision,
    compile, checkpoint, seed, device and verbose; clip and halve_after only if it says so.

    Attributes
    ----------
    module_ : nn.Module
        Standardised tokens to outputs on the scale of training, before the link of the loss.
    validation_r_ : ndarray, shape (unit,)
        Correlation on the rows that training stopped by; optimistic, as epoch and learning rate were chosen by it.
    history_ : DataFrame
        Columns epoch, loss, validation_r and seconds, of the learning rate that was chosen.
    lr_ : float
    lr_scores_ : dict of float to float
        Mean validation r at each learning rate that was tried; NaN where training diverged.
    """

    module_: nn.Module | None
    history_: pd.DataFrame
    lr_: float
    lr_scores_: dict[float, float]

    clip: float | None = 1.0
    halve_after: int | None = None
    _rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)  # tried where lr is None

    # Parameters, which every subclass spells out for scikit-learn.
    loss: str
    lr: Any
    weight_decay: float
    epochs: int
    batch_size: int
    patience: int
    validation: Any
    precision: str
    compile: bool
    checkpoint: Any
    seed: int
    device: Any
    verbose: bool | None

    def _build(self, setup: Setup, lr: float) -> nn.Module:
        """The module to be trained: standardised tokens (row, token, feature) to outputs (row, unit).

        It starts the same whenever it is built with the same seed, if all that it draws is drawn from
        ``setup.generator`` or torch's own generator.
        """
        raise NotImplementedError

    def _default_rates(self, setup: Setup) -> tuple[float, ...]:
        """Learning rates that are tried where lr is None."""
        return self._rates

    def _finish(self, module: nn.Module, setup: Setup, fitted: Fitted) -> Finished:
        """What follows the gradients, such as closed-form heads."""
        return Finished(module, fitted.validation_r)

    def fit(self, X, Y, groups=None, units=None) -> Self:
        """Train with each learning rate, and keep the one of best mean validation r.

        Parameters
        ----------
        X : array, memory map, h5py.Dataset or TokenStore
            Tokens, shape (stimulus, token, feature) or (stimulus, token * feature).
        Y : array, shape (stimulus, unit) or (stimulus,)
            Responses; NaN where one is missing, which leaves out that response and no other.
        groups : array, shape (stimulus,), or None
            Run, session or repeat of each row: rows of one group either train or stop training.
        units : DataFrame or None
            A row for each unit, such as `Recording.units`.

        Returns
        -------
        The estimator itself.

        Raises
        ------
        ValueError
            If a parameter is out of its range, X holds NaN or infinite values, Y holds infinite values or no unit
            with responses, lengths do not match, or training diverges at every one of several learning rates.

        Warns
        -----
        UserWarning
            Once with the numbers of units that are left out or constant; once if training at the one learning rate
            diverged, and the last good weights are kept.
        """
        loss = checked_loss(self.loss)
        how = self._checked_training()
        device = pick_device(self.device)
        tokens = self._checked_tokens(X, fitting=True)
        responses = self._checked_responses(Y, tokens.n)
        units = self._checked_units(units, responses.shape[1])
        train_rows, validation_rows = split_rows(tokens.n, self.validation, groups, how.seed)
        targets = make_targets(responses, train_rows, loss)
        remarks = "; ".join(targets.remarks())
        if remarks:
            warnings.warn(remarks, UserWarning, stacklevel=2)
        standard = tuple(torch.from_numpy(values).float() for values in tokens.moments(train_rows))
        setup = Setup(
            tokens=tokens,
            standard=(standard[0], standard[1]),
            Y=targets.Y,
            known=targets.known,
            train_rows=train_rows,
            validation_rows=validation_rows,
            kept=targets.kept,
            n_all=len(targets.fill),
            units=None if units is None else units.iloc[targets.kept].reset_index(drop=True),
            y_mean=targets.mean,
            y_std=targets.std,
            bias=loss.start(targets.raw_mean),
            loss=loss,
            generator=torch.Generator().manual_seed(how.seed),
            device=device,
        )
        self._train_and_keep(setup, targets, how)
        return self

    def _train_and_keep(self, setup: Setup, targets: Targets, how: Training) -> None:
        """Train at every learning rate, finish the best, and set the attributes of the fit."""
        r = np.full(setup.n_all, np.nan)
        if setup.n_units:
            module, fitted = self._best_of_rates(setup, how)
            finished = self._finish(module, setup, fitted)
            self.module_ = finished.module.to("cpu").eval()
            r[setup.kept] = finished.validation_r
            slope, offset = self._scale(setup, finished)
            self.history_ = fitted.history
        else:
            self.module_, self.history_, self.lr_, self.lr_scores_ = None, pd.DataFrame(columns=COLUMNS), np.nan, {}
            slope, offset = np.empty(0), np.empty(0)
        self.validation_r_ = self._per_unit(r)
        mean, std = setup.standard
        self._scales = {
            "mean": mean,
            "inverse": 1 / std,
            "slope": torch.from_numpy(slope).float(),
            "offset": torch.from_numpy(offset).float(),
            "fill": torch.from_numpy(targets.fill).float(),
            "kept": torch.from_numpy(setup.kept),
        }

    def _best_of_rates(self, setup: Setup, how: Training) -> tuple[nn.Module, Fitted]:
        """The module of the learning rate with the best mean validation r, the first among equals."""
        rates = self._checked_rates(setup)
        best: tuple[nn.Module, Fitted] | None = None
        self.lr_scores_ = {}
        told = ""
        for lr in rates:
            checkpoint = how.checkpoint
            if checkpoint is not None and len(rates) > 1:
                checkpoint = checkpoint.with_name(f"{checkpoint.stem}.lr-{lr:g}{checkpoint.suffix}")
            setup.generator.manual_seed(how.seed)
            with seeded(how.seed, 0, setup.device):
                module = self._build(setup, lr)
            fitted = train(
                module,
                setup.tokens,
                setup.Y,
                setup.known,
                setup.train_rows,
                setup.validation_rows,
                setup.standard,
                Training(**vars(how) | {"lr": lr, "checkpoint": checkpoint}),
                setup.device,
                self._identity(setup),
            )
            if fitted.stopped == "diverged":
                told, self.lr_scores_[lr] = fitted.divergence(lr), np.nan
                if len(rates) > 1:
                    continue
                warnings.warn(told, UserWarning, stacklevel=4)
            else:
                self.lr_scores_[lr] = fitted.score if np.isfinite(fitted.score) else np.nan
            if best is None or fitted.score > best[1].score:
                best, self.lr_ = (module, fitted), lr
        if best is None:
            raise ValueError(f"training diverged at every lr of {list(rates)}; the last time: {told}")
        return best

    def _scale(self, setup: Setup, finished: Finished) -> tuple[np.ndarray, np.ndarray]:
        """Slope and offset of each unit, from outputs to responses."""
        slope, offset = np.ones(setup.n_units), np.zeros(setup.n_units)
        if not setup.loss.calibrated:
            moments = StreamingCorrelation(setup.n_units)
            feed = Feed(setup.tokens, setup.standard, torch.device("cpu"))
            with torch.no_grad():
                for rows in row_batches(setup.train_rows, self.batch_size):
                    known = None if setup.known is None else setup.known[rows]
                    moments.update(setup.loss.link(finished.module(feed(rows)).float()), setup.Y[rows], known)
            free = np.ones(setup.n_units, bool) if finished.scaled is None else ~finished.scaled
            fitted_slope, fitted_offset = moments.line()
            # Predictions that run against the responses they were trained on say nothing: the mean is left of them.
            rising = fitted_slope > 0
            slope = np.where(free, np.where(rising, fitted_slope, 0.0), slope)
            offset = np.where(free, np.where(rising, fitted_offset, 0.0), offset)
        return slope * setup.y_std, offset * setup.y_std + setup.y_mean

    def predict(self, X) -> np.ndarray:
        """Predicted responses.

        Parameters
        ----------
        X : array, memory map, h5py.Dataset or TokenStore
            Tokens, shape (stimulus, token, feature) or (stimulus, token * feature); one stimulus is enough.

        Returns
        -------
        ndarray of float32, shape (stimulus, unit), or (stimulus,) after a fit to a vector
            NaN for units that were left out of the fit.

        Raises
        ------
        ValueError
            If X holds NaN or infinite values, or other numbers of tokens or features than the fit had.
        """
        tokens = self._checked_tokens(X)
        device = pick_device(self.device)
        module = self.torch_module().to(device)
        predicted = np.empty((tokens.n, len(self._scales["fill"])), np.float32)
        with torch.no_grad():
            for start in range(0, tokens.n, self.batch_size):
                rows = np.arange(start, min(start + self.batch_size, tokens.n))
                predicted[rows] = module(tokens.batch(rows, device)).cpu().numpy()
        return self._per_unit(predicted)

    def torch_module(self, detach_routing: bool = False) -> nn.Module:
        """The fitted encoder as a module of torch, for gradients with respect to the tokens.

        Parameters
        ----------
        detach_routing : bool
            Hold the maps of attention, where there are any, fixed at what the tokens make of them: gradients then say
            what to change along the route, not how to change the route.

        Returns
        -------
        nn.Module
            Raw tokens (row, token, feature) of float32 to responses (row, unit) in the units of Y. It is a copy.
        """
        check_is_fitted(self)
        module = copy.deepcopy(self.module_)
        if detach_routing and hasattr(module, "detach_routing"):
            module.detach_routing = True  # type: ignore[union-attr]
        return Responder(module, self._scales, checked_loss(self.loss)).eval()

    def _checked_rates(self, setup: Setup) -> tuple[float, ...]:
        """Learning rates to try."""
        given: Any = self._default_rates(setup) if self.lr is None else self.lr
        try:
            rates = tuple(float(lr) for lr in (given if np.ndim(given) else [given]))
        except (TypeError, ValueError) as error:
            raise ValueError(f"lr={self.lr!r}: expected a number above zero, several of them, or None") from error
        if not rates or not all(np.isfinite(lr) and lr > 0 for lr in rates):
            raise ValueError(f"lr={self.lr!r}: expected a number above zero, several of them, or None")
        return rates

    def _checked_training(self) -> Training:
        """How to train, with every parameter in its range; the learning rate is set later."""
        for name, least in (("epochs", 1), ("batch_size", 1), ("patience", 1), ("seed", 0)):
            require_whole(name, getattr(self, name), least)
        if self.halve_after is not None:
            require_whole("halve_after", self.halve_after, 1)
        require_number("weight_decay", self.weight_decay, zero=True)
        if self.clip is not None:
            require_number("clip", self.clip, zero=False)
        if self.precision not in PRECISIONS:
            raise ValueError(unknown("precision", self.precision, PRECISIONS))
        return Training(
            loss=self.loss,
            weight_decay=float(self.weight_decay),
            epochs=int(self.epochs),
            batch_size=int(self.batch_size),
            patience=int(self.patience),
            clip=self.clip,
            halve_after=self.halve_after,
            precision=self.precision,
            compile=bool(self.compile),
            checkpoint=None if self.checkpoint is None else checkpoint_path(self.checkpoint),
            seed=int(self.seed),
            verbose=self.verbose,
        )

    def _identity(self, setup: Setup) -> dict[str, str]:
        """What a checkpoint of this fit must agree in, beside what the trainer knows."""
        of_training = {"checkpoint", "verbose", "epochs", "lr", "validation", "device"}
        parameters = {name: value for name, value in self.get_params().items() if name not in of_training}
        found = {name: described(value) for name, value in parameters.items()}
        return {"encoder": type(self).__name__, "units": described(setup.units)} | found
