"""Models that predict an RDM: fixed ones, and ones with parameters that are fitted to brains."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from scipy.optimize import nnls

from ..datasets.rdms import RDMs, n_stimuli_of, on_stimuli
from .compare import as_vectors, check_method
from .geometry.whitening import whitened
from .inference.weighted import CENTRED, PRODUCTS, gram, rescaled, weighted_similarities, within

Self = TypeVar("Self", bound="RDMModel")
_RANK = 1e-10  # eigenvalues below this share of the largest are directions that the components do not span


class RDMModel(ABC):
    """What all models share: component RDMs, and weights with which a prediction is their sum.

    Parameters
    ----------
    rdms : RDMs, or array of shape (component, pair)
        RDMs are joined with the brain by stimulus id; an array must be in its order.
    name : str
        Default: for a fixed model the table of `rdms` (columns model and layer, or else label), or the kind of model.

    Attributes
    ----------
    vectors : array of shape (component, pair)
    stimulus_ids : list of str, or None
    weights : array of shape (component,), or None before `fit`
    """

    fixed = False
    fewest = 1

    def __init__(self, rdms: RDMs | np.ndarray, name: str = "") -> None:
        self.vectors = as_vectors(rdms, "rdms")
        self.stimulus_ids = list(rdms.stimulus_ids) if isinstance(rdms, RDMs) else None
        self.weights: np.ndarray | None = None
        kind = type(self).__name__
        if len(self.vectors) < self.fewest:
            raise ValueError(f"rdms holds {len(self.vectors)} RDMs; {kind} needs at least {self.fewest}.")
        self.name = name or kind

    def __repr__(self) -> str:
        state = "" if self.fixed else ", fitted" if self.weights is not None else ", not fitted"
        return f"{type(self).__name__}({self.name!r}, {len(self.vectors)} x {self.vectors.shape[1]} pairs{state})"

    def on(self: Self, stimulus_ids: Sequence[str]) -> Self:
        """The same model over these stimuli, in this order; a model of an array takes the ids as its own.

        Raises
        ------
        ValueError
            For stimuli that the model lacks, or another number of them where it knows no ids.
        """
        if self.stimulus_ids is None and n_stimuli_of(self.vectors.shape[1]) != len(stimulus_ids):
            raise ValueError(
                f"model {self.name!r} is over {n_stimuli_of(self.vectors.shape[1])} stimuli, the brain over "
                f"{len(stimulus_ids)}; make it of RDMs, which are joined by stimulus id."
            )
        found = copy.copy(self)
        if self.stimulus_ids is not None:
            found.vectors = RDMs(self.vectors, self.stimulus_ids).reorder(stimulus_ids).vectors
        found.stimulus_ids = list(stimulus_ids)
        return found

    def renamed(self: Self, name: str) -> Self:
        """The same model under another name."""
        found = copy.copy(self)
        found.name = name
        return found

    def with_vectors(self: Self, vectors: np.ndarray) -> Self:
        """The same model, not fitted, of other RDMs over its stimuli: as many, shape (component, pair)."""
        if vectors.shape != self.vectors.shape:
            raise ValueError(f"vectors has shape {vectors.shape}; expected that of the model, {self.vectors.shape}.")
        found = copy.copy(self)
        found.vectors = vectors
        found.weights = self.weights if self.fixed else None
        return found

    def fit(
        self: Self,
        brain: RDMs | np.ndarray,
        stimulus_weights: np.ndarray | None = None,
        method: str = "pearson",
        covariance: np.ndarray | None = None,
    ) -> Self:
        """A model fitted to the mean similarity with these RDMs; this one is left as it is.

        Parameters
        ----------
        brain : RDMs, or array of shape (rdm, pair)
        stimulus_weights : int array of shape (stimulus,), optional
            How often each stimulus occurs; stimuli of weight 0 play no part.
        method : str
            The comparison, see `align.compare`. What fits by least squares does so under the inner product of
            "cosine", "pearson" and their whitened forms, and under that of "pearson" for all other methods.
        covariance : array of shape (stimulus,) or (stimulus, stimulus), optional
            Of the patterns, for whitened forms.
        """
        check_method(method)
        if isinstance(brain, RDMs) and self.stimulus_ids is not None:
            brain = on_stimuli(brain, self.stimulus_ids, "brain")
        y = as_vectors(brain, "brain")
        n_stimuli = n_stimuli_of(self.vectors.shape[1])
        if y.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"brain has {y.shape[1]} pairs and model {self.name!r} {self.vectors.shape[1]}; both must be over the "
                "same stimuli."
            )
        w = np.ones(n_stimuli, np.int64) if stimulus_weights is None else np.asarray(stimulus_weights)
        if w.shape != (n_stimuli,):
            raise ValueError(f"stimulus_weights has shape {w.shape}; expected ({n_stimuli},), one per stimulus.")
        fitted = copy.copy(self)
        fitted.weights = self._weights(y, w, method, covariance)
        return fitted

    def predict(self, stimulus_ids: Sequence[str] | None = None) -> np.ndarray:
        """The predicted dissimilarities, shape (pair,).

        Raises
        ------
        ValueError
            For a model with parameters that was not fitted.
        """
        if self.weights is None:
            raise ValueError(f"model {self.name!r} is not fitted; predict with what its fit returns.")
        vectors = self.vectors if stimulus_ids is None else self.on(stimulus_ids).vectors
        used = np.flatnonzero(self.weights)  # an unknown pair of a component without weight stays known
        return self.weights[used] @ vectors[used]

    @abstractmethod
    def _weights(self, y: np.ndarray, w: np.ndarray, method: str, covariance: np.ndarray | None) -> np.ndarray:
        """Weights of the components, from subjects y (rdm, pair) and multiplicities w of the stimuli."""


class FixedRDM(RDMModel):
    """A model without parameters: one RDM."""

    fixed = True

    def __init__(self, rdm: RDMs | np.ndarray, name: str = "") -> None:
        super().__init__(rdm, name)
        if len(self.vectors) != 1:
            raise ValueError(f"rdm holds {len(self.vectors)} RDMs; a fixed model is one. Make one model of each.")
        if isinstance(rdm, RDMs):
            self.name = name or names_of(rdm)[0] or self.name
        self.weights = np.ones(1)

    def _weights(self, y: np.ndarray, w: np.ndarray, method: str, covariance: np.ndarray | None) -> np.ndarray:
        return np.ones(1)


class WeightedRDM(RDMModel):
    """A weighted sum of RDMs: features that add up to squared distances.

    Parameters
    ----------
    rdms : RDMs, or array of shape (component, pair)
    penalty : float
        Of the sum of squared weights, of components and target scaled to norm 1: 1 weighs a weight as much as a
        prediction of its size. 0 for least squares.
    non_negative : bool
        Weights of squared distances are scales of features, so they are not negative.

    Notes
    -----
    The target is the mean of the brain RDMs, each scaled to norm 1 (and centred, for correlations): the direction
    nearest to it is that with the highest mean similarity. Solved by non-negative least squares (Lawson & Hanson) or
    in closed form. Where no non-negative sum correlates positively, the component that correlates best stands alone.

    References
    ----------
    Khaligh-Razavi & Kriegeskorte (2014), PLoS Computational Biology 10:e1003915. Jozwik, Kriegeskorte & Mur (2016),
    Neuropsychologia 83:201.
    """

    def __init__(
        self, rdms: RDMs | np.ndarray, penalty: float = 0.0, non_negative: bool = True, *, name: str = ""
    ) -> None:
        super().__init__(rdms, name)
        if not penalty >= 0:
            raise ValueError(f"penalty={penalty!r}; expected a number from 0, which is no penalty.")
        self.penalty, self.non_negative = float(penalty), bool(non_negative)

    def _weights(self, y: np.ndarray, w: np.ndarray, method: str, covariance: np.ndarray | None) -> np.ndarray:
        gram, scale = _gram_with_target(self.vectors, y, w, method, covariance)
        usable = np.flatnonzero(np.isfinite(scale))
        weights = np.zeros(len(self.vectors))
        if not len(usable):
            return np.full(len(weights), np.nan)
        inner, target = gram[np.ix_(usable, usable)], gram[usable, -1]
        values, directions = np.linalg.eigh(inner + self.penalty * np.eye(len(inner)))
        spanned = values > _RANK * values[-1]
        root = directions[:, spanned] * np.sqrt(values[spanned])
        right = (directions[:, spanned].T @ target) / np.sqrt(values[spanned])
        if self.non_negative:
            found = nnls(root.T, right)[0]
            if not found.any():
                found = (np.arange(len(usable)) == np.argmax(target)).astype(np.float64)
        else:
            found = np.linalg.lstsq(root.T, right, rcond=None)[0]
        weights[usable] = found / scale[usable]
        return weights


class SelectedRDM(RDMModel):
    """The one of several RDMs that is most similar to the brains it is fitted to, e.g. the best layer."""

    def _weights(self, y: np.ndarray, w: np.ndarray, method: str, covariance: np.ndarray | None) -> np.ndarray:
        score = weighted_similarities(self.vectors, y, method, w[None], covariance)[0].mean(1)
        weights = np.zeros(len(score))
        if np.isnan(score).all():
            return np.full(len(score), np.nan)
        weights[np.nanargmax(score)] = 1
        return weights


class InterpolatedRDM(RDMModel):
    """A point on the path along several RDMs, straight between neighbours: e.g. one of a range of exponents.

    Notes
    -----
    On each segment the similarity has one stationary point, known in closed form; it and the ends are compared.
    """

    fewest = 2

    def _weights(self, y: np.ndarray, w: np.ndarray, method: str, covariance: np.ndarray | None) -> np.ndarray:
        gram, scale = _gram_with_target(self.vectors, y, w, method, covariance)
        gram, scale = np.nan_to_num(gram), np.nan_to_num(scale)  # a constant RDM has no length
        best, weights = -np.inf, np.full(len(self.vectors), np.nan)
        for k in range(len(self.vectors) - 1):
            ends = scale[k : k + 2]
            inner = gram[k : k + 2, k : k + 2] * np.outer(ends, ends)
            target = gram[k : k + 2, -1] * ends
            for share in _candidates(inner, target):
                mix = np.array([1 - share, share])
                square = mix @ inner @ mix
                score = target @ mix / np.sqrt(square) if square > 1e-12 * inner.max() else -np.inf
                if score > best:
                    best, weights = score, np.zeros(len(self.vectors))
                    weights[k : k + 2] = mix
        return weights


def _candidates(inner: np.ndarray, target: np.ndarray) -> list[float]:
    """Where ``(t_0 + a (t_1 - t_0)) / |x_0 + a (x_1 - x_0)|`` may be largest, a in [0, 1]."""
    slope, step = target[1] - target[0], inner[0, 1] - inner[0, 0]
    length = inner[0, 0] + inner[1, 1] - 2 * inner[0, 1]
    below = target[0] * length - slope * step
    share = (slope * inner[0, 0] - target[0] * step) / below if below != 0 else 0.0
    return [0.0, 1.0, share] if 0 < share < 1 else [0.0, 1.0]


def _gram_with_target(
    vectors: np.ndarray, y: np.ndarray, w: np.ndarray, method: str, covariance: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Inner products of components and target, all of norm 1, and the norms of the components (NaN: constant).

    The target is the last row. Pairs that any of them does not know, or that do not occur, are left out.
    """
    if method not in PRODUCTS:
        method, covariance = "pearson", None
    n, centred = len(vectors), method in CENTRED
    first, second = np.triu_indices(len(w), 1)
    pairs = np.flatnonzero((w[first] * w[second] > 0) & np.isfinite(vectors.sum(0) + y.sum(0)))
    if len(pairs) < 3:
        return np.full((n + 1, n + 1), np.nan), np.full(n, np.nan)
    z, unit = rescaled(np.concatenate([vectors[:, pairs], y[:, pairs]]), centred)
    stimuli = np.flatnonzero(w)
    place = np.cumsum(w > 0) - 1
    first, second, w = place[first[pairs]], place[second[pairs]], w[stimuli]
    part = None if covariance is None else within(covariance, stimuli)
    if part is not None and part.ndim == 2:
        if len(pairs) < len(stimuli) * (len(stimuli) - 1) // 2:
            raise ValueError("a covariance matrix goes with models and brains that know all pairs; give variances.")
        inner, count = z @ whitened(z, part).T, float(len(pairs))
    else:
        inner, count = gram(z, first, second, w, method, part)
    square = np.diag(inner)
    norm = np.sqrt(np.where(square > 1e-12 * count, square, np.nan))
    # The mean of the brains at norm 1, from their products alone.
    share = np.nan_to_num(1 / norm[n:])
    size = np.sqrt(share @ inner[n:, n:] @ share)
    found = np.ones((n + 1, n + 1))
    found[:n, :n] = inner[:n, :n] / np.outer(norm[:n], norm[:n])
    found[:n, n] = found[n, :n] = inner[:n, n:] @ share / norm[:n] / size if size > 0 else np.nan
    return found, norm[:n] * unit[:n]


def names_of(rdms: RDMs) -> list[str]:
    """Names of model RDMs: columns model and layer, once where they are the same, or else label; "" without any."""
    table = rdms.table
    columns = [column for column in ("model", "layer") if column in table] or [c for c in ("label",) if c in table]
    return [" ".join(dict.fromkeys(filter(None, map(str, row)))) for row in table[columns].to_numpy()]


def as_models(models: Any, stimulus_ids: Sequence[str]) -> list[RDMModel]:
    """Models over these stimuli, each under a name of its own; every RDM is a fixed one.

    Raises
    ------
    ValueError
        For anything else than RDMs, models of RDMs and lists of these, and for none at all.
    """
    found: list[RDMModel] = []
    for one in models if isinstance(models, (list, tuple)) else [models]:
        if isinstance(one, RDMModel):
            found.append(one)
        elif isinstance(one, (RDMs, np.ndarray)):
            stack = one if isinstance(one, RDMs) else as_vectors(one, "models")
            names = names_of(one) if isinstance(one, RDMs) else [""] * len(stack)
            for k, name in enumerate(names):
                found.append(FixedRDM(stack[k : k + 1], name or f"model {len(found) + 1}"))
        else:
            raise ValueError(
                f"models holds a {type(one).__name__}; expected RDMs, RDM models such as WeightedRDM, or a list of "
                "these."
            )
    if not found:
        raise ValueError("models is empty; give at least one.")
    ready, seen = [], dict[str, int]()
    for model in found:
        there = model.on(stimulus_ids)
        seen[model.name] = seen.get(model.name, 0) + 1
        if seen[model.name] > 1:
            there = there.renamed(f"{model.name} ({seen[model.name]})")
        ready.append(there)
    return ready


__all__ = ["FixedRDM", "InterpolatedRDM", "RDMModel", "SelectedRDM", "WeightedRDM"]
