"""Weights of new units from few stimuli, by a network that has seen many units."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from sklearn.utils.validation import check_array, check_is_fitted
from torch import Tensor

from ...datasets.errors import unknown
from ..device import pick_device
from ..linear.estimator import FLOATS
from ..spatial.checkpoint import Checkpoint, fingerprint
from ..spatial.training import PRECISIONS, seeded
from .few_rows import FewRowsEncoder, fitted_units, leading_axes
from .hypernetwork import Hypernetwork
from .pretraining import Chunk, Draws, Population, Pretrainer, Stage, chunks, normalised

STAGES = ("synthetic", "variable", "real")
MAX_DIMENSION = 64  # axes that are read where features are more and nothing else is asked for
BLOCK = 2**28  # bytes of activations when weights are written


class InContextEncoder(FewRowsEncoder):
    """Linear encoders that a network writes for units of which it is shown few stimuli and responses.

    A transformer reads the context of a unit, pairs of stimulus and response, as a set, and writes the weights of a
    linear encoder of that unit; no gradient step is taken for it (Yu et al. 2025). It learns to in three stages: from
    drawn units with contexts of one length, then of any length, then from real units. `pretrain` trains it on a
    population, `condition` writes weights of new units; `fit` does both for the units it is given.

    Where weights come from one Gaussian, `PopulationPriorRidge` is Bayes-optimal and takes milliseconds: this network
    comes near it. It has more to find where weights are not Gaussian.

    Parameters
    ----------
    width, layers, heads, registers : int
        Of the transformer.
    ffn : int
        Width of its feed-forward layers, in multiples of `width`.
    stages : sequence of {"synthetic", "variable", "real"}
        "synthetic": drawn units, and contexts of the largest length; "variable": contexts of every length; "real":
        units that were recorded, left out where `pretrain` is given none.
    steps : sequence of int
        Steps of each stage.
    context : (int, int)
        Shortest and longest context in training, as far as there are stimuli. Others are accepted afterwards.
    units_per_step, query_rows : int
        Units of a step, and stimuli that their predictions are compared on.
    ceiling : (float, float)
        Smallest and largest share of the variance of a drawn unit that is signal.
    lr, weight_decay : float
        Of AdamW; the learning rate rises for some steps, then falls to a hundredth along a cosine.
    dropout : float
    scale_length : bool
        Multiply the queries of attention by the logarithm of the length of the context.
    max_dimension : int or None
        Leading principal axes of the stimuli that are read, where features are more; None takes 64. More of them ask
        for a larger network, and more steps.
    checkpoint : path or None
        File ``.safetensors``; interrupted pretraining goes on from it and ends at the same bits.
    seed : int
    precision : {"float32", "bfloat16", "auto"}
        "auto" is bfloat16 on a GPU.
    device : str
        Torch device; "auto" takes a CUDA device where there is one.
    verbose : bool or None
        Whether a bar shows the steps; None where the output is a terminal.

    Attributes
    ----------
    predicted_weights_ : ndarray, shape (feature + 1, unit)
        Weights in the features' own units; the intercept is last.
    coef_ : ndarray, shape (feature, unit)
    intercept_ : ndarray, shape (unit,)
        The same.
    module_ : Hypernetwork
    history_ : DataFrame
        Columns stage, step, loss (mean over up to a hundred steps before it) and seconds.
    axes_ : ndarray, shape (feature, axis)
    n_features_in_ : int

    Notes
    -----
    The responses of a unit are read in standard deviations from their mean over the context, so that scale and offset
    of a unit do not matter; the order of the context does not either.

    Responses may hold NaN in `condition`: units are grouped by the rows in which they are known. In `pretrain`, units
    that hold NaN are left out, with a warning. Units with fewer than two responses are left out (NaN), constant ones
    are predicted as their constant; one warning counts each.

    After a `fit` that pretrains on the units it is given, their scores on new stimuli are honest, but the network knows
    these units. What it makes of new ones is asked by `pretrain` on others, and `condition`.

    References
    ----------
    Yu, M., Nan, M., Adeli, H., Prince, J. S., Pyles, J. A., Wehbe, L., Henderson, M. M., Tarr, M. J. & Luo, A. F.
    (2025). Meta-learning an in-context transformer model of human higher visual cortex. NeurIPS 38.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X, weights = rng.standard_normal((200, 8)), rng.standard_normal((8, 90))
    >>> Y = X @ weights + rng.standard_normal((200, 90))
    >>> encoder = InContextEncoder(width=16, layers=1, steps=(20, 20, 20)).pretrain(X, Y[:, :80])
    >>> encoder.condition(X[:10], Y[:10, 80:]).predict(X).shape
    (200, 10)
    """

    def __init__(
        self,
        width=128,
        layers=4,
        heads=4,
        registers=4,
        ffn=2,
        stages=STAGES,
        steps=(2000, 2000, 1000),
        context=(30, 500),
        units_per_step=32,
        query_rows=100,
        ceiling=(0.3, 0.9),
        lr=1e-3,
        weight_decay=1e-2,
        dropout=0.0,
        scale_length=True,
        max_dimension=None,
        checkpoint=None,
        seed=0,
        precision="float32",
        device="auto",
        verbose=None,
    ):
        self.width = width
        self.layers = layers
        self.heads = heads
        self.registers = registers
        self.ffn = ffn
        self.stages = stages
        self.steps = steps
        self.context = context
        self.units_per_step = units_per_step
        self.query_rows = query_rows
        self.ceiling = ceiling
        self.lr = lr
        self.weight_decay = weight_decay
        self.dropout = dropout
        self.scale_length = scale_length
        self.max_dimension = max_dimension
        self.checkpoint = checkpoint
        self.seed = seed
        self.precision = precision
        self.device = device
        self.verbose = verbose

    def pretrain(self, X, Y=None, population=None, X_bank=None) -> Self:
        """Train the network to write weights.

        Parameters
        ----------
        X : array, shape (stimulus, feature)
        Y : array, shape (stimulus, unit), or None
            Responses of real units to the stimuli of X, for the stage "real". Not those of units that are to be new.
        population : callable or None
            ``population(n_units, rng)`` gives weights (feature, unit) of drawn units, for the features as they are; the
            scale of a unit does not matter. None draws weights that are isotropic over scaled features.
        X_bank : array, shape (stimulus, feature), or None
            More stimuli, without responses, for drawn units; None takes X.

        Returns
        -------
        The estimator itself.

        Raises
        ------
        ValueError
            If a parameter is out of its range, there are fewer than eight stimuli, training diverges, or the checkpoint
            is of other training.
        """
        if Y is None:
            X = self._checked_stimuli(X, reset=True)
        else:
            X, Y = self._checked(X, Y, reset=True, fewest=8)
        bank = X if X_bank is None else self._checked_stimuli(X_bank, reset=False)
        self._train(X, Y, population, bank)
        self._pretrained = True
        return self

    def fit(self, X, Y, groups=None) -> Self:
        """Pretrain on these units, unless `pretrain` was called before, and write their weights.

        Parameters
        ----------
        X : array, shape (stimulus, feature)
        Y : array, shape (stimulus, unit) or (stimulus,)
        groups : array, shape (stimulus,), or None
            Not used: nothing is cross-validated.

        Returns
        -------
        The estimator itself.

        Raises
        ------
        ValueError
            As `pretrain`, or if no unit can be fitted.
        """
        ready = getattr(self, "_pretrained", False)
        X, Y = self._checked(X, Y, reset=not ready, fewest=2 if ready else 8)
        if not ready:
            self._train(X, Y, None, X)
        for remark in self._write(X, Y):
            warnings.warn(remark, UserWarning, stacklevel=2)
        return self

    def condition(self, X, Y) -> Self:
        """Weights of new units, written from their responses to few stimuli.

        Parameters
        ----------
        X : array, shape (stimulus, feature)
        Y : array, shape (stimulus, unit) or (stimulus,)
            NaN where a response is missing; two known responses are enough.

        Returns
        -------
        A new estimator with the same network; this one keeps its units.

        Raises
        ------
        ValueError
            If X or Y holds infinite values, no unit can be fitted, or lengths do not match.
        """
        check_is_fitted(self, "module_")
        new = copy.copy(self)
        X, Y = new._checked(X, Y, reset=False)
        for remark in new._write(X, Y):
            warnings.warn(remark, UserWarning, stacklevel=2)
        return new

    @property
    def predicted_weights_(self) -> np.ndarray:
        """Weights, shape (feature + 1, unit); the intercept is last."""
        check_is_fitted(self, "coef_")
        return np.concatenate([self.coef_, np.asarray(self.intercept_)[None]])

    def _train(self, X: np.ndarray, Y: np.ndarray | None, population: Population | None, bank: np.ndarray) -> None:
        plan, draws = self._checked_plan(Y is not None), self._checked_draws(population)
        device = pick_device(self.device)
        self._set_frame(bank)
        stimuli, raw = self._along(bank, device), None if population is None else bank - self.feature_mean_
        real = None if Y is None else self._real(X, Y, device)
        work: list[Chunk] = []
        for name, steps in plan:
            if name != "real":
                work += chunks(Stage(name, stimuli, raw, None), steps)
            elif real is not None:
                work += chunks(real, steps)
        if not work:
            raise ValueError(f"stages={list(self.stages)!r} leave nothing to train on: no unit is complete and varies")
        with seeded(self.seed, 0, torch.device("cpu")):
            module = self._new_module()
        identity = {
            **{n: repr(v) for n, v in self.get_params().items() if n not in ("checkpoint", "verbose", "device")},
            "population": "None" if population is None else getattr(population, "__qualname__", repr(type(population))),
            "values of X": fingerprint([X, bank]),
            "values of Y": fingerprint([] if Y is None else [Y]),
            "initial weights": fingerprint(module.state_dict().values()),
            "torch": torch.__version__,
        }
        store = None if self.checkpoint is None else Checkpoint(Path(self.checkpoint), identity)
        self.module_ = module.to(device)
        trainer = Pretrainer(
            self.module_,
            work,
            draws,
            float(self.lr),
            float(self.weight_decay),
            int(self.seed),
            self._half(device),
            self.verbose,
            device,
        )
        self.history_ = pd.DataFrame(trainer.run(store), columns=["stage", "step", "loss", "seconds"])

    @torch.no_grad()
    def _write(self, X: np.ndarray, Y: np.ndarray) -> list[str]:
        """Weights of these units, as attributes; what to tell of them."""
        units, constant, remarks = fitted_units(Y, 2)
        device = next(self.module_.parameters()).device
        x = self._along(X, device)
        coef, intercept = np.full((X.shape[1], Y.shape[1]), np.nan), np.full(Y.shape[1], np.nan)
        known = ~np.isnan(Y[:, units])
        patterns, member = np.unique(known, axis=1, return_inverse=True)
        per_unit = 48 * int(self.width) * (len(X) + int(self.registers))
        size = max(1, BLOCK // per_unit)
        for p in range(patterns.shape[1]):
            rows, own = np.flatnonzero(patterns[:, p]), units[member.ravel() == p]
            context = x[torch.from_numpy(rows).to(device)]
            for start in range(0, len(own), size):
                part = own[start : start + size]
                y = torch.from_numpy(Y[np.ix_(rows, part)].T).to(device)  # float64: offsets may be large
                responses, offset, scale = normalised(y)
                with torch.autocast(device.type, torch.bfloat16, enabled=self._half(device)):
                    weights = self.module_(context, responses)
                weights = (weights.double() * scale).cpu().numpy()
                coef[:, part] = self._to_axes @ weights[:, :-1].T
                intercept[part] = weights[:, -1] + offset[:, 0].cpu().numpy()
        coef[:, constant] = 0.0
        intercept[constant] = np.nanmax(Y[:, constant], axis=0)
        self.coef_ = self._per_unit(coef)
        self.intercept_ = self._per_unit(intercept - self.feature_mean_ @ coef)
        return remarks

    def _set_frame(self, bank: np.ndarray) -> None:
        """Offsets, scales and axes of the stimuli, which come out with a mean square of 1 over stimuli and axes."""
        mean, scale = bank.mean(0), bank.std(0)
        scale[~(scale > 1e-12 * np.abs(mean))] = 1.0
        standard = (bank - mean) / scale
        self.feature_mean_ = mean
        self.axes_ = leading_axes(standard, MAX_DIMENSION if self.max_dimension is None else int(self.max_dimension))
        size = np.sqrt(np.mean((standard @ self.axes_) ** 2))
        self._to_axes = self.axes_ / (scale[:, None] * (size if size > 0 else 1.0))

    def _along(self, X: np.ndarray, device: torch.device) -> Tensor:
        return torch.from_numpy(((X - self.feature_mean_) @ self._to_axes).astype(np.float32)).to(device)

    def _real(self, X: np.ndarray, Y: np.ndarray, device: torch.device) -> Stage | None:
        """The stage of recorded units; None where no unit is known in all rows and varies."""
        good = ~np.isnan(Y).any(0) & (np.ptp(Y, axis=0) > 0)
        holes = int(np.isnan(Y).any(0).sum())
        if holes:
            warnings.warn(
                f"{holes} of {Y.shape[1]} units hold NaN and are left out of pretraining", UserWarning, stacklevel=4
            )
        if not good.any():
            return None
        # Each context takes out its own offset and scale, which float32 would not do well far from zero.
        standard = (Y[:, good] - Y[:, good].mean(0)) / Y[:, good].std(0)
        return Stage("real", self._along(X, device), None, torch.from_numpy(standard.astype(np.float32)).to(device))

    def _new_module(self) -> Hypernetwork:
        width, heads = int(self.width), int(self.heads)
        if width % heads:
            possible = ", ".join(str(h) for h in range(1, width + 1) if width % h == 0)
            raise ValueError(f"heads={heads} do not divide width={width}; take one of {possible}")
        return Hypernetwork(
            self.axes_.shape[1],
            width,
            int(self.layers),
            heads,
            int(self.registers),
            int(self.ffn * width),
            float(self.dropout),
            bool(self.scale_length),
        )

    def _half(self, device: torch.device) -> bool:
        return self.precision == "bfloat16" or (self.precision == "auto" and device.type == "cuda")

    def _checked_stimuli(self, X: Any, *, reset: bool) -> np.ndarray:
        placeholder = np.zeros(len(X) if hasattr(X, "__len__") else 1)
        return self._checked(X, placeholder, reset=reset, fewest=8)[0]

    def _checked_plan(self, has_units: bool) -> list[tuple[str, int]]:
        stages, steps = list(self.stages), list(self.steps)
        for name in stages:
            if name not in STAGES:
                raise ValueError(unknown("stages", name, STAGES))
        if len(steps) != len(stages) or not all(isinstance(s, (int, np.integer)) and s >= 1 for s in steps):
            raise ValueError(
                f"steps={steps!r} for stages={stages!r}; expected an int of at least 1 for each stage, such as "
                f"{tuple([1000] * len(stages))}"
            )
        if not stages or (stages == ["real"] and not has_units):
            raise ValueError(f"stages={stages!r} leave nothing to train on; pass Y, or add 'synthetic' and 'variable'")
        return list(zip(stages, (int(s) for s in steps), strict=True))

    def _checked_draws(self, population: Any) -> Draws:
        for name in ("width", "layers", "heads", "registers", "units_per_step", "query_rows"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r}: expected an int of at least 1")
        if self.precision not in PRECISIONS:
            raise ValueError(unknown("precision", self.precision, PRECISIONS))
        context = check_array([self.context], dtype=FLOATS, input_name="context")[0]
        if len(context) != 2 or not 2 <= context[0] <= context[1]:
            raise ValueError(
                f"context={self.context!r}: expected (shortest, longest), both at least 2, such as (30, 500)"
            )
        ceiling = check_array([self.ceiling], dtype=FLOATS, input_name="ceiling")[0]
        if len(ceiling) != 2 or not 0 < ceiling[0] <= ceiling[1] <= 1:
            raise ValueError(
                f"ceiling={self.ceiling!r}: expected two shares of variance above 0 and up to 1, ascending"
            )
        if population is not None and not callable(population):
            raise ValueError(
                f"population={type(population).__name__} is not callable; expected population(n_units, rng) -> weights "
                "(feature, unit), or None"
            )
        low, high = int(context[0]), int(context[1])
        share = (float(ceiling[0]), float(ceiling[1]))
        return Draws((low, high), int(self.units_per_step), int(self.query_rows), share, population)
