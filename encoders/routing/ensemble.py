"""Encoders of several layers, kinds and seeds, averaged for each unit by how well they predict it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data

from ...datasets.errors import unknown
from ..linear.banded import checked_spaces
from ..linear.estimator import FLOATS
from ..spatial.base import SpatialEncoder
from ..spatial.tokens import checked_grid

CRITERIA = ("r", "r2")
ONLY = "all"  # the one layer of an X without layers


class LayerEnsemble(SpatialEncoder):
    """Weighted mean of encoders of several layers, kinds and seeds, with weights of each unit.

    Every member is fitted to every layer, once for every seed. The weights of a unit are
    ``w_m = exp(temperature * r_m) / sum_m' exp(temperature * r_m')`` over all of these fits, with r_m the score of the
    fit in its own validation: they sum to 1, so that the mean keeps the scale of the responses.

    Parameters
    ----------
    members : sequence of (name, encoder)
        Encoders with a score of their own validation for each unit: `validation_r_`, or `cv_score_` of the criterion.
    spaces : sequence or mapping from layer to int, slice or array of column numbers, or None
        Number of columns of each layer, in the order of the columns, or the columns themselves, where X is a matrix
        that holds the layers side by side, as for `BandedRidgeCV`.
    grids : sequence or mapping from layer to (height, width), or None
        Places of the tokens of each layer, for members that read tokens; None for a layer without places.
    seeds : sequence of int
        Seeds of members that have one; others are fitted once.
    temperature : float
        0 weights all fits alike; the larger, the more the best fit decides. The published code takes 40, or 50.
    criterion : {"r", "r2"}
        The score that weights are made of.

    Attributes
    ----------
    weights_ : ndarray, shape (fit, unit)
        Columns sum to 1. A fit without a score for a unit has the weight 0; where no fit has one, all weigh the same.
    members_ : DataFrame
        A row per fit: member, layer, seed (missing for members without) and its mean validation score over units.
    scores_ : ndarray, shape (fit, unit)
        Validation scores.
    estimators_ : list of encoders
    layers_ : tuple of str

    Notes
    -----
    The published wrapper takes the softmax over layers and repeats it over runs, so that its predictions are as many
    times too large as there are runs; here it is over all fits. Validation scores of different kinds come from
    different rows (folds of ridge regression, the last of the rows for gradients); only their differences matter.

    References
    ----------
    Adeli, H., Minni, S. & Kriegeskorte, N. (2025). Transformer brain encoders explain human high-level visual
    responses. arXiv 2505.17329.

    Examples
    --------
    >>> import numpy as np
    >>> from neuralign.encoders import RidgeCV
    >>> rng = np.random.default_rng(0)
    >>> layers = {"early": rng.standard_normal((100, 5)), "late": rng.standard_normal((100, 8))}
    >>> Y = layers["late"] @ rng.standard_normal((8, 3)) + rng.standard_normal((100, 3))
    >>> encoder = LayerEnsemble([("ridge", RidgeCV())]).fit(layers, Y)
    >>> encoder.weights_.shape, bool((encoder.weights_[1] > 0.99).all())
    ((2, 3), True)
    """

    layers_: tuple[str, ...]
    reads_tokens = False  # it hands them to members that do, each with the grid of its layer

    def __init__(self, members, spaces=None, grids=None, seeds=(0,), temperature=40.0, criterion="r"):
        self.members = members
        self.spaces = spaces
        self.grids = grids
        self.seeds = seeds
        self.temperature = temperature
        self.criterion = criterion

    def fit(self, X, Y, groups=None, units=None) -> Self:
        """Fit every member to every layer, and weight them.

        Parameters
        ----------
        X : mapping from layer to array, or array
            Tokens (stimulus, token, feature) or features (stimulus, feature) of each layer; or a matrix of all layers
            side by side, with `spaces`; or one layer.
        Y : array, shape (stimulus, unit) or (stimulus,)
        groups : array, shape (stimulus,), or None
            Run, session or repeat of each row, for members whose `fit` takes them.
        units : DataFrame or None
            A row per unit, for members whose `fit` takes it.

        Returns
        -------
        LayerEnsemble
            The estimator itself.

        Raises
        ------
        ValueError
            If a parameter is out of its range, layers, spaces and grids do not fit together, a member cannot be
            fitted, or has no validation score of the criterion.

        Warns
        -----
        UserWarning
            Once for each thing that members warn of, with their number; and once with the number of units without a
            score in any member.
        """
        members, seeds, temperature = self._checked_members(), self._checked_seeds(), self._checked_temperature()
        layers = self._layers(X, fitting=True)
        grids = self._checked_grids()
        n = len(next(iter(layers.values())))
        Y = self._checked_responses(Y, n)
        given = {name: value for name, value in (("groups", groups), ("units", units)) if value is not None}
        rows: list[dict[str, Any]] = []
        self.estimators_: list[Any] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for layer, features in layers.items():
                for name, encoder, seed in _variants(members, seeds):
                    if grids.get(layer) is not None and "grid" in encoder.get_params():
                        encoder.set_params(grid=grids[layer])
                    passed = {key: value for key, value in given.items() if has_fit_parameter(encoder, key)}
                    try:
                        self.estimators_.append(encoder.fit(_as_read(encoder, features), Y, **passed))
                    except ValueError as error:
                        raise ValueError(f"member {name!r} on layer {layer!r}: {error}") from error
                    rows.append({"member": name, "layer": layer, "seed": seed})
        scores = np.stack([self._score_of(one, row["member"]) for one, row in zip(self.estimators_, rows, strict=True)])
        self.weights_ = self._per_unit(softmax_weights(scores, temperature))
        self.scores_ = self._per_unit(scores)
        self.members_ = pd.DataFrame(rows).astype({"seed": "Int64"})
        scored = ~np.isnan(scores)
        self.members_["score"] = np.where(scored, scores, 0.0).sum(1) / np.where(scored.any(1), scored.sum(1), np.nan)
        for (category, message), count in Counter((w.category, str(w.message)) for w in caught).items():
            warnings.warn(f"{count} of {len(rows)} fits of members: {message}", category, stacklevel=2)
        unscored = int((~scored).all(0).sum())
        if unscored:
            warnings.warn(
                f"{unscored} of {scores.shape[1]} units have no validation score in any member, which all weigh the "
                "same there",
                UserWarning,
                stacklevel=2,
            )
        return self

    def predict(self, X) -> np.ndarray:
        """Weighted mean of the members' predictions.

        Parameters
        ----------
        X : mapping from layer to array, or array
            As in the fit.

        Returns
        -------
        ndarray, shape (stimulus, unit), or (stimulus,) after a fit to a vector
            NaN where a member that has a weight predicts NaN.
        """
        check_is_fitted(self)
        layers = self._layers(X)
        weights = self.weights_.reshape(len(self.estimators_), -1)
        total: np.ndarray = np.zeros((len(next(iter(layers.values()))), weights.shape[1]))
        dtypes = []
        for encoder, layer, weight in zip(self.estimators_, self.members_["layer"], weights, strict=True):
            predicted = np.asarray(encoder.predict(_as_read(encoder, layers[layer])))
            dtypes.append(predicted.dtype)
            counts = weight > 0
            total[:, counts] += weight[counts] * predicted.reshape(len(total), -1)[:, counts]
        return self._per_unit(total.astype(np.result_type(*dtypes), copy=False))

    def _layers(self, X: Any, fitting: bool = False) -> dict[str, Any]:
        """Features of each layer by name; with `fitting`, names and columns are kept."""
        if isinstance(X, Mapping) and not hasattr(X, "shape"):  # a sparse matrix may be a mapping
            return self._named_layers(X, fitting)
        if self.spaces is None and getattr(X, "ndim", 2) == 3:  # tokens of one layer, as they are
            return self._named_layers({ONLY: X}, fitting)
        if not fitting and not hasattr(self, "_columns"):
            raise ValueError(f"X is a matrix; the fit had the layers {list(self.layers_)}: pass a dict of them")
        X = validate_data(self, X, reset=fitting, dtype=FLOATS, ensure_min_samples=2 if fitting else 1)
        if fitting:
            spaces = [slice(None)] if self.spaces is None else self.spaces
            names = spaces if isinstance(spaces, Mapping) else map(str, range(len(spaces)))
            columns = checked_spaces(spaces.values() if isinstance(spaces, Mapping) else spaces, X.shape[1])
            self._columns = [_as_slice(some) for some in columns]
            self.layers_ = (ONLY,) if self.spaces is None else tuple(names)
        return {layer: X[:, columns] for layer, columns in zip(self.layers_, self._columns, strict=True)}

    def _named_layers(self, X: Mapping[str, Any], fitting: bool) -> dict[str, Any]:
        if fitting:
            if self.spaces is not None:
                raise ValueError("X is a dict of layers, and spaces were given; leave spaces out, or pass one matrix")
            for name in ("_columns", "n_features_in_", "feature_names_in_"):
                self.__dict__.pop(name, None)
            self.layers_ = tuple(X)
        elif hasattr(self, "_columns"):
            raise ValueError(f"X holds layers; the fit had a matrix of {self.n_features_in_} columns")
        absent = [layer for layer in self.layers_ if layer not in X]
        if absent or not X:
            raise ValueError(f"X holds the layers {list(X)}; expected {absent or 'at least one'} too")
        layers = {one: X[one] if hasattr(X[one], "shape") else np.asarray(X[one]) for one in self.layers_}
        lengths = {layer: len(features) for layer, features in layers.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"layers of X hold different numbers of stimuli: {lengths}")
        return layers

    def _checked_members(self) -> list[tuple[str, Any]]:
        pairs = isinstance(self.members, Sequence) and all(
            isinstance(pair, tuple | list) and len(pair) == 2 and hasattr(pair[1], "get_params")
            for pair in self.members
        )
        if not pairs or not self.members:
            raise ValueError(f"members={self.members!r:.100}: expected pairs (name, encoder), at least one")
        names = [name for name, _ in self.members]
        if len(set(names)) < len(names):
            raise ValueError(f"members have the names {names}; expected a different one for each")
        return [(str(name), encoder) for name, encoder in self.members]

    def _checked_seeds(self) -> list[int]:
        seeds = np.asarray(self.seeds)
        if seeds.ndim != 1 or not seeds.size or seeds.dtype.kind not in "iu" or len(np.unique(seeds)) < len(seeds):
            raise ValueError(f"seeds={self.seeds!r}: expected whole numbers, at least one and each once")
        return [int(seed) for seed in seeds]

    def _checked_temperature(self) -> float:
        if self.criterion not in CRITERIA:
            raise ValueError(unknown("criterion", self.criterion, CRITERIA))
        number = isinstance(self.temperature, int | float | np.number) and not isinstance(self.temperature, bool)
        if not number or not 0 <= self.temperature < np.inf:
            raise ValueError(f"temperature={self.temperature!r}: expected a finite number from 0")
        return float(self.temperature)

    def _checked_grids(self) -> dict[str, Any]:
        """Grid of each layer."""
        if self.grids is None:
            return {}
        if isinstance(self.grids, Mapping):
            strange = [layer for layer in self.grids if layer not in self.layers_]
            if strange:
                raise ValueError(unknown("layer of grids", str(strange[0]), list(map(str, self.layers_))))
            return {layer: checked_grid(grid) for layer, grid in self.grids.items()}
        if len(self.grids) != len(self.layers_):
            raise ValueError(
                f"grids holds {len(self.grids)} entries for {len(self.layers_)} layers {list(self.layers_)}; expected "
                "one (height, width) or None for each, or a dict by layer"
            )
        return {layer: checked_grid(grid) for layer, grid in zip(self.layers_, self.grids, strict=True)}

    def _score_of(self, encoder: Any, name: str) -> np.ndarray:
        """Validation score (unit,) of a member that was fitted."""
        final = encoder[-1] if isinstance(encoder, Pipeline) else encoder
        parameters = final.get_params(deep=False)
        found = getattr(final, "validation_r_", None) if self.criterion == "r" else None
        if found is None and self.criterion in (parameters.get("criterion"), parameters.get("score")):
            found = getattr(final, "cv_score_", None)
        if found is None:
            raise ValueError(
                f"member {name!r} ({type(final).__name__}) has no validation score {self.criterion!r} for each unit; "
                f"expected a fit with {'validation_r_ or ' if self.criterion == 'r' else ''}cv_score_ of "
                f"score={self.criterion!r}, such as RidgeCV's: take another member or criterion"
            )
        return np.atleast_1d(np.asarray(found, np.float64))


def softmax_weights(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Weights of members for each unit.

    Parameters
    ----------
    scores : ndarray, shape (member, unit)
        NaN has the weight 0; where all are NaN, the weights are equal.
    temperature : float

    Returns
    -------
    ndarray of float64, shape (member, unit)
        Columns sum to 1.
    """
    scored = ~np.isnan(scores) | np.isnan(scores).all(0)
    known = np.where(np.isnan(scores), 0.0, scores)
    best = np.where(scored, known, -np.inf).max(0)
    weights = np.where(scored, np.exp(temperature * np.where(scored, known - best, 0.0)), 0.0)
    return weights / weights.sum(0)


def _variants(members: Sequence[tuple[str, Any]], seeds: Sequence[int]) -> Iterator[tuple[str, Any, int | None]]:
    """Unfitted members, one for each seed where they have one."""
    for name, encoder in members:
        if "seed" not in encoder.get_params():
            yield name, clone(encoder), None
            continue
        for seed in seeds:
            yield name, clone(encoder).set_params(seed=seed), seed


def _as_read(encoder: Any, features: Any) -> Any:
    """Tokens for an encoder that reads them, for any other all of their features side by side."""
    if getattr(encoder, "reads_tokens", False) or features.ndim == 2:
        return features
    return np.asarray(features).reshape(len(features), -1)


def _as_slice(columns: np.ndarray) -> Any:
    """Columns side by side as a slice, which copies nothing."""
    if len(columns) == columns[-1] - columns[0] + 1 and (np.diff(columns) == 1).all():
        return slice(int(columns[0]), int(columns[-1]) + 1)
    return columns
