"""The side of the stimuli, computed once and met by any number of units, regions, subjects and permutations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .folds import Rows as FoldRows
from .layout import Atoms, Trial, layouts, renumbered
from .matrix import DenseFeatures, FeatureMatrix, Rows, as_rows
from .spectrum import EPSILON, Axes, Quadratic, principal_axes, quadratic

# What meets the responses


@dataclass(frozen=True)
class Test:
    """Test rows in coordinates of a training set."""

    trial: Trial
    n: int
    coordinates: Tensor  # (test, axis), dtype of the features, less `mean`
    mean: Tensor  # (axis,), float64
    sums: Tensor  # (axis, atom), float64: centred coordinates summed over each atom
    quadratic: Quadratic

    def distance(self) -> Tensor:
        """Norm of the test rows along each axis, float64, shape (axis,)."""
        return torch.linalg.vector_norm(self.coordinates, dim=0).double()


@dataclass(frozen=True)
class Train:
    """A training set, ready to meet responses: ``b`` of a unit is a product with its rows, or with X'y."""

    atoms: Atoms
    n: int
    top: float
    eigenvalues: Tensor  # (axis,), float64
    axes: Tensor | None  # (axis, column), dtype of the features; b = axes X'y
    coordinates: Tensor | None  # (axis, train), dtype of the features; b = coordinates y
    sums: Tensor  # (axis, atom), float64: coordinates summed over each atom
    roughness: Tensor  # (axis,), float64: rounding of b by X'y, in units of float rounding and of the responses
    tests: tuple[Test, ...]


@dataclass(frozen=True)
class Map:
    """From features to coordinates: ``(X - offset) @ axes``."""

    offset: Tensor  # (column,), float64
    axes: Tensor  # (column, axis), float64 where its rounding could show and there is room, else as the features


@dataclass(frozen=True)
class RowMap:
    """As `Map`, by way of the training rows: its axes are combinations of them, made when they are first asked for."""

    offset: Tensor  # (column,), float64
    features: FeatureMatrix
    weights: Tensor  # (row, axis)
    mean: Tensor | None  # (column,), float64: taken from each row
    squares: Tensor | None  # (column,), float64: square of the scale of each column

    @cached_property
    def axes(self) -> Tensor:
        axes = self.features.combine(self.weights)
        if self.mean is not None:
            axes.addr_(self.mean.to(axes.dtype), self.weights.sum(0).to(axes.dtype), alpha=-1)
        if self.squares is not None:
            axes /= self.squares[:, None].to(axes.dtype)
        return axes

    def without_rows(self) -> Map:
        """The same map on the CPU, which holds its axes and no features."""
        return Map(self.offset.cpu(), self.axes.cpu())


@dataclass(frozen=True)
class KernelMap:
    """From inner products with the training rows to coordinates, by way of `centred`."""

    mean: Tensor | None  # (train,), float64: of each training row's products; None without intercept
    projection: Tensor  # (train, axis), float64

    def coordinates(self, products: Tensor) -> Tensor:
        """Coordinates (row, axis) of rows whose inner products with the training rows are (row, train)."""
        if self.mean is not None:
            products = products - products.mean(1, keepdim=True) - self.mean + self.mean.mean()
        return products @ self.projection


@dataclass(frozen=True)
class _Side:
    """Some rows among the features: their axes, mean, scale, and sums of squares of columns as they are."""

    principal: Axes
    mean: Tensor
    scale: Tensor
    squares: Tensor

    def axes(self) -> Tensor:
        """What turns features into coordinates, float64, shape (column, axis)."""
        return self.principal.vectors / (self.scale[:, None] * self.principal.top**0.5)

    @cached_property
    def roughness(self) -> Tensor:
        """Rounding of ``axes' X'y`` along each axis, in units of float rounding and of the norm of y."""
        return (self.axes().square().T @ self.squares).sqrt()


class SpectralDesign:
    """Features, folds and their spectra: all of a ridge regression that does not depend on the responses.

    `RidgeCV.design` makes one; fit encoders to it in place of the features, ``RidgeCV().fit(design, Y)``, for as many
    regions, subjects with the same stimuli and permutations as there are. Spectra are computed when they are first
    asked for, and kept.

    Parameters
    ----------
    X : ndarray of float32 or float64, shape (stimulus, feature), or FeatureMatrix
        A FeatureMatrix has its rows in the order of the responses.
    folds : list of (train, test)
        Row numbers.
    fit_intercept : bool
        Take the mean over the training rows from features and responses.
    standardise : bool
        Divide features by their standard deviation over the training rows.
    nested : bool
        Also leave out every pair of folds, so that a penalty can be chosen without the fold it is scored on.
    kernel : Tensor of float64, shape (stimulus, stimulus), optional
        Inner products of the rows, in place of X.
    device : torch.device
    dtype : torch.dtype, optional
        Of products with the responses; with a kernel only.
    """

    def __init__(
        self,
        X: Any,
        folds: Sequence[FoldRows],
        *,
        fit_intercept: bool = True,
        standardise: bool = False,
        nested: bool = False,
        kernel: Tensor | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        source = X if kernel is None else kernel
        self.n, self.n_features = int(source.shape[0]), int(source.shape[1])
        self.n_folds = len(folds)
        self.fit_intercept, self.standardise, self.nested = fit_intercept, standardise, nested
        self.layouts = layouts(folds, self.n, nested)
        self.order = np.arange(self.n)
        self.matrix: FeatureMatrix | None = None
        self._kernel = kernel
        if kernel is not None:
            self.device, self.dtype = kernel.device, dtype or kernel.dtype
        elif isinstance(X, np.ndarray):
            if len(self.layouts) == 1:  # rows of an atom side by side are a slice, which copies nothing
                self.order = np.concatenate(self.layouts[0].atoms)
                self.layouts = [renumbered(self.layouts[0])]
            device = torch.device("cpu") if device is None else device
            self.matrix = DenseFeatures(X, fit_intercept, device, self.order)
            self.device, self.dtype = device, self.matrix.dtype
        else:
            self.matrix, self.device, self.dtype = X, X.device, X.dtype
        self.rows = [[as_rows(rows, self.device) for rows in layout.atoms] for layout in self.layouts]
        self._trains: dict[tuple[int, bool], list[Train]] = {}
        self._wholes: dict[bool, tuple[Train, Map | RowMap | KernelMap]] = {}
        self._gram: Tensor | None = None
        self._of_all: _Side | None = None
        self._spread: tuple[float, Tensor, Tensor] | None = None
        self._everything: tuple[float, Tensor, Tensor, int | None] | None = None

    # -------------------------------------------------------------------------------------------------- files

    def save(self, path: Any) -> None:
        """Write the design with all spectra computed so far; see `design_file.save_design`."""
        from .design_file import save_design

        save_design(self, path)

    @staticmethod
    def load(path: Any, device: Any = None) -> SpectralDesign:
        """Read a design from `save`; nothing is computed again."""
        from .design_file import load_design

        return load_design(path, device)

    # -------------------------------------------------------------------------------------------------- shape

    def rows_of(self, layout: int, atoms: Atoms) -> Rows:
        """Rows of some atoms, in their order."""
        numbers = [self.layouts[layout].atoms[a] for a in atoms]
        return as_rows(np.concatenate(numbers), self.device)

    @property
    def dual(self) -> bool:
        """Whether spectra come from inner products of rows, as there are fewer of them than features."""
        if self._kernel is not None:
            return True
        sizes = [sum(len(layout.atoms[a]) for a in train) for layout in self.layouts for train, _ in layout.trains]
        return self.n_features > min(sizes, default=self.n)

    # ------------------------------------------------------------------------------------------------ spectra

    def too_rough(self, alpha: float) -> bool:
        """Whether the rounding of X'y would show in predictions at the least penalty.

        X'y is as rough as columns are large, offsets of the training rows included. A prediction takes that roughness
        along each axis, divided by eigenvalue and penalty, as far out as rows lie there: all rows, and test rows,
        which may lie further.
        """
        if self.dual:
            return False
        limit = (1e-5 if self.dtype == torch.float32 else 1e-10) / torch.finfo(self.dtype).eps
        if self._spread is None:
            side = self._axes_of_all()
            self._spread = side.principal.top, side.principal.eigenvalues, side.roughness
        top, eigenvalues, roughness = self._spread
        growths = [roughness * eigenvalues.sqrt() / (eigenvalues + alpha / top)]
        if not _exceeds(growths, limit):
            growths = [
                train.roughness * test.distance() * (train.n / test.n) ** 0.5 / (train.eigenvalues + alpha / train.top)
                for layout in range(len(self.layouts))
                for train in self.trains(layout, by_rows=False)
                for test in train.tests
            ]
        return _exceeds(growths, limit)

    def forget(self, by_rows: bool) -> None:
        """Drop the spectra of one way to meet the responses."""
        self._wholes.pop(by_rows, None)
        for key in [key for key in self._trains if key[1] == by_rows]:
            del self._trains[key]

    def trains(self, layout: int, by_rows: bool) -> list[Train]:
        """Training sets of one layout, with their tests.

        Parameters
        ----------
        layout : int
        by_rows : bool
            Meet the rows of the responses one training set after the other, or else X'y of each atom, which all
            training sets share. A design from a kernel has rows only.
        """
        by_rows = by_rows or self.dual
        key = (layout, by_rows)
        if key not in self._trains:
            self._trains[key] = [
                self._train(layout, atoms, trials, by_rows)[0] for atoms, trials in self.layouts[layout].trains
            ]
        return self._trains[key]

    def whole(self, by_rows: bool) -> tuple[Train, Map | RowMap | KernelMap]:
        """All rows as a training set, and what brings new rows into its coordinates.

        Parameters
        ----------
        by_rows : bool
            See `trains`.
        """
        by_rows = by_rows or self.dual
        if by_rows not in self._wholes:
            atoms = tuple(range(len(self.layouts[0].atoms)))
            self._wholes[by_rows] = self._train(0, atoms, (), by_rows)
            self._of_all = None  # as large as what has been made of it
            if not self.dual:
                self._gram = None
        return self._wholes[by_rows]

    def everything(self) -> tuple[float, Tensor, Tensor, int | None]:
        """All axes of the centred kernel of all rows, those of eigenvalue zero among them.

        Returns
        -------
        top : float
            Largest eigenvalue.
        eigenvalues : Tensor of float64, shape (row,)
            In units of `top`, ascending, none below zero.
        vectors : Tensor of float64, shape (row, row)
        constant : int or None
            The axis along which all rows are equal, which the intercept takes; None without intercept.
        """
        if self._everything is None:
            rows = slice(0, self.n)
            kernel = self._kernel_of(rows, self.n)[0]
            constant = None
            if self.fit_intercept:
                kernel = _centred(kernel)
                # Far above all others, so that no other axis can mix with it.
                kernel += 2 * float(torch.linalg.norm(kernel)) / self.n
                constant = self.n - 1
            eigenvalues, vectors = torch.linalg.eigh(kernel)
            largest = float(eigenvalues[: self.n - 1 if constant is not None else self.n].amax().clamp(min=0))
            top = largest if largest > 0 else 1.0
            self._everything = top, eigenvalues.clamp(min=0) / top, vectors, constant
        return self._everything

    def _train(
        self, layout: int, atoms: Atoms, trials: Sequence[Trial], by_rows: bool
    ) -> tuple[Train, Map | RowMap | KernelMap]:
        if self.dual:
            return self._from_kernel(layout, atoms, trials)
        return self._from_gram(layout, atoms, trials, by_rows)

    def _from_gram(self, layout: int, atoms: Atoms, trials: Sequence[Trial], by_rows: bool) -> tuple[Train, Map]:
        matrix = self.matrix
        assert matrix is not None
        rows = self.rows_of(layout, atoms)
        n = sum(len(self.layouts[layout].atoms[a]) for a in atoms)
        side = self._axes_of(layout, atoms) if trials else self._axes_of_all()
        principal, mean, axes = side.principal, side.mean, side.axes()
        atom_rows = self.rows[layout]
        sizes = [len(self.layouts[layout].atoms[a]) for a in atoms]
        sums = torch.stack([matrix.sums(atom_rows[a]) - m * mean for a, m in zip(atoms, sizes, strict=True)], 1)
        shift = mean @ axes

        def project(test: Rows) -> Tensor:
            return matrix.project(test, axes) - shift

        coordinates = project(rows).to(self.dtype).T.contiguous() if by_rows else None
        train = Train(
            atoms,
            n,
            principal.top,
            principal.eigenvalues,
            None if by_rows else axes.T.to(self.dtype).contiguous(),
            coordinates,
            axes.T @ sums,
            side.roughness,
            tuple(self._test(layout, trial, principal.eigenvalues, project) for trial in trials),
        )
        return train, Map(matrix.offset + mean, axes if by_rows else axes.to(self.dtype))

    def _axes_of_all(self) -> _Side:
        if self._of_all is None:
            self._of_all = self._axes_of(0, tuple(range(len(self.layouts[0].atoms))))
        return self._of_all

    def _axes_of(self, layout: int, atoms: Atoms) -> _Side:
        """Principal axes of some rows among the features."""
        matrix = self.matrix
        assert matrix is not None
        rows = self.rows_of(layout, atoms)
        n = sum(len(self.layouts[layout].atoms[a]) for a in atoms)
        gram = self._gram_of(layout, atoms, rows, n)
        squares = gram.diagonal().clone()
        varying = matrix.varying(rows)
        mean = torch.zeros_like(squares)
        if self.fit_intercept:
            mean = matrix.sums(rows) / n
            gram -= n * torch.outer(mean, mean)
            if bool((n * mean.square() > 1e4 * gram.diagonal())[varying].any()):
                gram = matrix.gram(rows, mean)  # little is left of what was subtracted from
            gram *= torch.outer(varying, varying)
        scale = torch.ones_like(mean)
        if self.standardise:
            variance = gram.diagonal() / n if self.fit_intercept else self._variance(rows, n)
            scale = torch.where(varying & (variance > 0), variance.clamp(min=0).sqrt(), 1.0)
            gram /= torch.outer(scale, scale)
        return _Side(principal_axes(gram, max(n, len(gram))), mean, scale, squares)

    def _gram_of(self, layout: int, atoms: Atoms, rows: Rows, n: int) -> Tensor:
        """Gram matrix of some rows, from that of all rows where few are left out."""
        matrix = self.matrix
        assert matrix is not None
        if self._gram is None:
            self._gram = matrix.gram(slice(None))
        others = [rows for a, rows in enumerate(self.layouts[layout].atoms) if a not in atoms]
        n_others = sum(map(len, others))
        if n_others == 0:
            return self._gram.clone()
        if n_others < n:
            rest = matrix.gram(as_rows(np.sort(np.concatenate(others)), self.device))
            gram = self._gram - rest
            # Where rows that are left out are very much larger, little would be left of the digits of the others.
            if bool((rest.diagonal() <= 1e3 * gram.diagonal()).logical_or(rest.diagonal() == 0).all()):
                return gram
        return matrix.gram(rows)

    def _variance(self, rows: Rows, n: int) -> Tensor:
        """Variance of each feature over some rows."""
        matrix = self.matrix
        assert matrix is not None
        return matrix.squares(rows, matrix.sums(rows) / n) / n

    def _from_kernel(
        self, layout: int, atoms: Atoms, trials: Sequence[Trial]
    ) -> tuple[Train, Map | RowMap | KernelMap]:
        rows = self.rows_of(layout, atoms)
        n = sum(len(self.layouts[layout].atoms[a]) for a in atoms)
        kernel, scale, features = self._kernel_of(rows, n)
        inner = kernel[rows][:, rows]
        mean = inner.mean(0)
        if self._everything is not None and not trials:
            principal = self._known_axes(rows)
        else:
            principal = principal_axes(_centred(inner) if self.fit_intercept else inner, max(n, self.n_features))
        root = principal.eigenvalues.sqrt()
        to_axes = KernelMap(mean if self.fit_intercept else None, principal.vectors / (root * principal.top))

        def project(test: Rows) -> Tensor:
            return to_axes.coordinates(kernel[test][:, rows])

        coordinates = (principal.vectors * root).T
        position = np.cumsum([0, *(len(self.layouts[layout].atoms[a]) for a in atoms)])
        sums = torch.stack([coordinates[:, i:j].sum(1) for i, j in pairwise(position)], 1)
        train = Train(
            atoms,
            n,
            principal.top,
            principal.eigenvalues,
            None,
            coordinates.to(self.dtype).contiguous(),
            sums,
            torch.zeros_like(principal.eigenvalues),
            tuple(self._test(layout, trial, principal.eigenvalues, project) for trial in trials),
        )
        if trials or features is None:
            return train, to_axes
        # All rows: their axes among the features, whose rows are less their mean.
        weights = to_axes.projection
        if rows != slice(0, self.n):
            weights = torch.zeros(self.n, len(principal.eigenvalues), dtype=torch.float64, device=self.device)
            weights[rows] = to_axes.projection
        # Rounding grows with the root of the spread of the spectrum.
        steep = len(principal.eigenvalues) > 0 and float(principal.eigenvalues[0]) < 1e-3
        mean_row = features.sums(rows) / n if self.fit_intercept else None
        return train, RowMap(
            features.offset if mean_row is None else features.offset + mean_row,
            features,
            weights if steep else weights.to(self.dtype),
            mean_row,
            scale.square() if self.standardise else None,
        )

    def _known_axes(self, rows: Rows) -> Axes:
        """Principal axes of all rows, in the order of `rows`, from `everything`."""
        top, eigenvalues, vectors, constant = self.everything()
        least = EPSILON * max(self.n, self.n_features)
        first = int(torch.searchsorted(eigenvalues, least, right=True))
        keep = slice(first, len(eigenvalues) if constant is None else constant)  # the constant axis is the last
        return Axes(top, eigenvalues[keep], vectors[rows][:, keep])

    def _kernel_of(self, rows: Rows, n: int) -> tuple[Tensor, Tensor, FeatureMatrix | None]:
        """Inner products of all rows, with the scale of some where features are standardised."""
        matrix = self.matrix
        if matrix is None:
            assert self._kernel is not None
            return self._kernel, torch.ones(()), None
        if self.standardise:
            variance = self._variance(rows, n)
            scale = torch.where(matrix.varying(rows) & (variance > 0), variance.sqrt(), 1.0)
            return matrix.kernel(scale), scale, matrix  # type: ignore[call-arg]
        if self._gram is None:
            self._gram = matrix.kernel()
        return self._gram, torch.ones_like(matrix.offset), matrix

    def _test(self, layout: int, trial: Trial, eigenvalues: Tensor, project: Any) -> Test:
        test = project(self.rows_of(layout, trial.atoms))
        mean = test.mean(0)
        size = float(test.square().sum())
        test = test - mean
        if float(test.square().sum()) <= 1e-24 * (size + float(eigenvalues.sum())):
            # The test rows differ in nothing that the training rows could teach: constant predictions, without
            # rounding.
            test.zero_()
        n, form = len(test), quadratic(eigenvalues, test, self.dtype)
        for axes, turn in form.turns:
            mean[axes] = mean[axes] @ turn
        position = np.cumsum([0, *(len(self.layouts[layout].atoms[a]) for a in trial.atoms)])
        sums = torch.stack([test[i:j].sum(0) for i, j in pairwise(position)], 1)
        return Test(trial, n, test.to(self.dtype), mean, sums, form)


def _exceeds(growths: Sequence[Tensor], limit: float) -> bool:
    return any(bool((growth > limit).any()) for growth in growths)


def _centred(kernel: Tensor) -> Tensor:
    """Inner products of rows less their mean."""
    mean = kernel.mean(0)
    centred = kernel - mean
    centred -= (mean - mean.mean())[:, None]
    return centred
