"""Principal components of a layer, fitted on stimuli that the user names and on no others."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.linalg
import torch

from ...datasets.errors import unknown
from ...datasets.stimuli import StimulusSet
from ..products import product
from .reduce import Reduction
from .sketch import in_order

_COLUMNS = 2**16  # of features at a time, while fitting
_ROWS = 1024  # of stimuli at a time, while fitting
_AT_ONCE = 2**22  # values that are centred at a time, while projecting
_LARGEST = 10_000  # side of a matrix whose eigenvectors are found in minutes


@dataclass(frozen=True, init=False)
class PCA(Reduction):
    """Keep the first k principal components of a layer: ``extract(..., reduce=PCA(100, fit_on=train_ids))``.

    Parameters
    ----------
    k : int
        Components that are kept.
    fit_on : sequence of str, or boolean array of shape (stimulus,)
        Ids of the stimuli on which components are fitted, or a mask over the stimuli: those on which the encoder
        will be trained. There is no default, because components fitted on all stimuli have seen the test stimuli.
        More than k stimuli are needed.

    Raises
    ------
    ValueError
        If k is below 1, or not more than k different stimuli are named.
    """

    fit_on: tuple[Any, ...] = ()

    def __init__(self, k: int, fit_on: Sequence[str] | np.ndarray):
        super().__init__("pca", size=k)
        if isinstance(fit_on, str):
            raise ValueError(f"fit_on={fit_on!r} is one id; expected a sequence of ids, or a mask over the stimuli")
        named = np.asarray(fit_on)
        if named.ndim != 1 or (named.dtype != bool and named.dtype.kind not in "UO"):
            raise ValueError(
                f"fit_on has shape {named.shape} and dtype {named.dtype}; expected ids of stimuli or a mask over them"
            )
        count = int(named.sum()) if named.dtype == bool else len(set(named.tolist()))
        if count != (len(named) if named.dtype != bool else count):
            raise ValueError(f"fit_on names {len(named)} ids, {len(named) - count} of them twice")
        if count <= k:
            raise ValueError(f"fit_on has {count} stimuli; {k} components need at least {k + 1}")
        object.__setattr__(self, "fit_on", tuple(named.tolist()))

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        raise ValueError("PCA has no components before it is fitted to a layer: pass it to extract as reduce=")

    def rows(self, stimuli: StimulusSet) -> np.ndarray:
        """Rows of the stimuli on which components are fitted, in the order of the stimuli.

        Raises
        ------
        ValueError
            If an id is not among the stimuli, or a mask is not of their number.
        """
        if isinstance(self.fit_on[0], bool):
            if len(self.fit_on) != len(stimuli):
                raise ValueError(f"fit_on is a mask over {len(self.fit_on)} stimuli; there are {len(stimuli)}")
            return np.flatnonzero(self.fit_on)
        places = {name: row for row, name in enumerate(stimuli.ids)}
        for name in self.fit_on:
            if name not in places:
                raise ValueError(unknown("fit_on", name, list(places), "These are ids of the stimuli."))
        return np.sort([places[name] for name in self.fit_on])

    def fitted(self, features: np.ndarray) -> FittedPCA:
        """Components of one layer.

        Parameters
        ----------
        features : array, shape (stimulus, ...)
            What the layer says of the stimuli in `rows`, un-reduced. It is read some columns at a time.
        """
        mean, components, explained = principal_components(features, self.size)
        return FittedPCA(np.vstack([mean, components]), len(features), self.digest(), explained)

    def digest(self) -> str:
        """Hash of what the components are fitted on: ids, or the mask."""
        return hashlib.sha256(repr(self.fit_on).encode()).hexdigest()

    def spec(self) -> Mapping[str, Any]:
        """For the key of the store; with the contents of the stimuli, which are in the key, it tells the fit."""
        return {**super().spec(), "fit_on": self.digest()}


@dataclass(frozen=True, init=False, eq=False)
class FittedPCA(Reduction):
    """Components of one layer, and the projection on them.

    Attributes
    ----------
    basis : array, shape (1 + k, D), float32
        The mean of the rows on which it was fitted, and below it the components. This alone is needed to project,
        and is what the store keeps.
    rows : int
        Number of stimuli on which it was fitted; 0 where it is not known.
    fit_on : str
        Hash of what those were.
    explained : float
        Share of their variance that the components carry; NaN where it is not known.
    """

    basis: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32), repr=False)
    rows: int = 0
    fit_on: str = ""
    explained: float = float("nan")
    __eq__ = object.__eq__  # arrays have no truth value
    __hash__ = object.__hash__

    def __init__(self, basis: np.ndarray, rows: int = 0, fit_on: str = "", explained: float = float("nan")):
        super().__init__("pca", size=len(basis) - 1)
        for name, value in {"basis": basis, "rows": rows, "fit_on": fit_on, "explained": explained}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_placed", {})

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """Coordinates of each stimulus along the components.

        Parameters
        ----------
        output : Tensor, shape (stimulus, ...)
            D values of each stimulus, as `neuralign.encoders.features.sketch.in_order` orders them.

        Returns
        -------
        Tensor, shape (stimulus, k), float32
        """
        width = output.shape[1:].numel()
        if width != self.basis.shape[1]:
            raise ValueError(f"PCA was fitted on {self.basis.shape[1]} values of a stimulus; found {width}")
        mean, directions = self._on(output.device)
        step = max(1, _AT_ONCE // width, self.size // 4)  # components are read anew for each piece
        # The mean is subtracted before the product: where it is large, the difference of two products has no digits.
        parts = [
            product(in_order(output[start : start + step]).flatten(1).float() - mean, directions)
            for start in range(0, len(output), step)
        ]
        return torch.cat(parts) if parts else output.new_empty((0, self.size), dtype=torch.float32)

    def _on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean, and the components as columns, where they are needed."""
        placed: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = vars(self)["_placed"]
        if device not in placed:
            basis = torch.from_numpy(np.array(self.basis, np.float32)).to(device)
            placed[device] = basis[0], basis[1:].T
        return placed[device]

    def row_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.size,)

    def info(self) -> Mapping[str, Any]:
        """What `Features.info` says of it: on how many stimuli it was fitted, on which, and what it explains there."""
        return {"components": self.size, "fit_rows": self.rows, "fit_on": self.fit_on, "explained": self.explained}


def principal_components(features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The mean of rows, and the directions along which they vary most.

    The smaller of the two sides is decomposed: inner products of the centred rows (Sirovich 1987), or the covariance
    of the features. Both are accumulated in float64 over columns or rows, so that `features` may be larger than memory.

    Parameters
    ----------
    features : array, shape (row, ...)
        All that belongs to a row is flattened to D values.
    k : int

    Returns
    -------
    mean : array, shape (D,), float32
    components : array, shape (k, D), float32
        Orthonormal, in falling order of variance; the entry of largest magnitude of each is positive.
    explained : float
        Share of the variance of the rows that the k components carry.

    Raises
    ------
    ValueError
        If the rows vary along fewer than k directions, or both sides are too long to be decomposed.
    """
    rows = features.reshape(len(features), math.prod(features.shape[1:]))
    n, width = rows.shape
    if min(n, width) > _LARGEST:
        raise ValueError(
            f"fit_on has {n} stimuli and the layer {width} values; one of them may be {_LARGEST} at most: fit on fewer "
            "stimuli, or pool the layer by a grid"
        )
    mean = np.concatenate([columns.mean(0) for columns in _by_columns(rows)])
    side = min(n, width)
    moments = np.zeros((side, side))
    if n <= width:
        for columns in _by_columns(rows):
            columns -= columns.mean(0)
            moments += columns @ columns.T
    else:
        for first in range(0, n, _ROWS):
            centred = rows[first : first + _ROWS].astype(np.float64) - mean
            moments += centred.T @ centred
    total = float(np.trace(moments))
    values, vectors = scipy.linalg.eigh(moments, subset_by_index=[max(0, side - k), side - 1])
    values, vectors = values[::-1], vectors[:, ::-1]
    rank = int((values > total * side * np.finfo(np.float64).eps).sum())
    if rank < k:
        raise ValueError(
            f"k={k} components, but the {n} stimuli of fit_on vary along {rank} directions of this layer's {width}: "
            "take fewer components or more stimuli"
        )
    if n <= width:
        ones = np.full(n, 1 / n)  # the mean is taken off the weights: sum_i w_i (x_i - m) = sum_i (w_i - mean w) x_i
        weights = ((vectors - ones @ vectors) / np.sqrt(values)).T
        components = np.concatenate([weights @ columns for columns in _by_columns(rows)], axis=1)
    else:
        components = vectors.T
    largest = np.abs(components).argmax(1)
    components = components * np.sign(components[np.arange(k), largest])[:, None]
    return mean.astype(np.float32), components.astype(np.float32), float(values.sum() / total)


def _by_columns(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, rows.shape[1], _COLUMNS):
        yield rows[:, start : start + _COLUMNS].astype(np.float64)
