"""Cross-validated scores of responses whose rows are re-ordered, with nothing of the stimuli computed anew.

At a fixed penalty a held-out prediction is linear in the responses: fold f predicts ``H_f y``, with
``H_f = T diag(1 / (l + alpha)) C`` from the test rows T and the training rows C in coordinates of the axes of the
training rows (`spectrum`). The H_f of all folds, stacked, are one matrix with zeros where a fold is tested, so that an
order of the rows costs one product of matrices. Where rows are many and features few the factors of H are cheaper than
H. Both are exact: the mean of the training rows, which changes with the order, is in H.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..products import product
from .design import SpectralDesign, Test, Train
from .layout import Atoms
from .matrix import Rows, parts
from .moments import SCORES, Moments
from .responses import Responses, make_units
from .stream import BlockFitter, Task, block_width, make_plan, tolerance
from .sweep import Buffers

_WIDTH = 512  # columns, each a unit in one order: enough for products of matrices to reach their rate


class OrderedScores(NamedTuple):
    """Scores of some units in some orders of the rows.

    Attributes
    ----------
    orders : slice
    units : ndarray of int, shape (unit,)
        Columns of Y.
    scores : ndarray of float64, shape (order, unit)
        Mean over the folds in which a score is defined; NaN where there is none.
    """

    orders: slice
    units: np.ndarray
    scores: np.ndarray


def fixed_scores(
    design: SpectralDesign, responses: Responses, alpha: np.ndarray, orders: np.ndarray, score: str, memory: int
) -> Iterator[OrderedScores]:
    """Scores at given penalties.

    Parameters
    ----------
    design : SpectralDesign
    responses : Responses
        Read once, by blocks of units.
    alpha : ndarray, shape (unit,)
        Penalty of each unit; NaN leaves the unit out.
    orders : ndarray of int, shape (order, row)
        Row i holds the responses of row ``order[i]``.
    score : {"r", "r2"}
    memory : int
        Bytes for responses, hat matrices and temporaries; spectra come on top.

    Yields
    ------
    OrderedScores
        Units by block and penalty, and for each block of units all orders one after the other. Units that hold NaN, in
        Y or in `alpha`, are left out.
    """
    place = np.argsort(design.order)
    numbers = torch.from_numpy(place[orders[:, design.order]]).to(design.device)
    alphas = np.unique(alpha[~np.isnan(alpha)])
    refitter = Refitter(design, score, cheapest(design, responses.v, alphas, len(orders), memory // 2))
    width = int(np.clip(memory // 4 // refitter.bytes_per_column, 1, _WIDTH))
    held = 24 * design.n  # of a unit: as it is read, in float64, and in the dtype of the features
    for part, values in responses.blocks(max(1, memory // 4 // held)):
        units = make_units(values, part.start, design.order, design.fit_intercept, design.device)
        Y = units.Y.to(design.dtype)
        penalty = alpha[units.columns]
        for one in np.unique(penalty[~np.isnan(penalty)]):
            refitter.at(float(one))
            same = np.flatnonzero(penalty == one)
            for chunk in parts(len(same), width):
                y = Y[:, same[chunk]].contiguous()
                for some in parts(len(orders), width // y.shape[1]):
                    scores = refitter.scores(y, numbers[some]).cpu().numpy()
                    yield OrderedScores(some, units.columns[same[chunk]], scores)


def chosen_scores(
    design: SpectralDesign, responses: Responses, alphas: np.ndarray, orders: np.ndarray, score: str, memory: int
) -> Iterator[OrderedScores]:
    """Scores at the best penalty of each unit, which is chosen anew in every order: what `RidgeCV` calls `cv_score_`.

    Parameters and yields as `fixed_scores`, with `alphas` the grid, ascending. Units that hold NaN have the score NaN.
    """
    plan = make_plan(design, alphas, responses.v * len(orders))
    fitter = BlockFitter(design, Task(alphas, score, plan, surface=False, weights=False))
    width = block_width(design, plan, len(alphas), memory)
    for part, values in responses.blocks(width):
        v = values.shape[1]
        for some in parts(len(orders), width // v):
            columns = values[orders[some].T].reshape(design.n, -1)  # (row, order and unit)
            # The units of one order come first: infinity, which no order loses, is found there and named rightly.
            fit = fitter.fit(columns, slice(part.start, part.start + columns.shape[1]))
            yield OrderedScores(some, np.arange(part.start, part.stop), fit.score.reshape(-1, v))


# How predictions come about


@dataclass(frozen=True)
class Way:
    """How responses become predictions; every way gives the same.

    Attributes
    ----------
    hat : bool
        By the product of test rows, penalties and training rows, rather than by one after the other.
    by_rows : bool
        See `SpectralDesign.trains`.
    """

    hat: bool
    by_rows: bool


def cheapest(design: SpectralDesign, v: int, alphas: np.ndarray, n_orders: int, memory: int) -> Way:
    """The way of fewest flops that keeps the digits, and whose hat matrices fit into so many bytes.

    Parameters
    ----------
    design : SpectralDesign
    v : int
        Number of units.
    alphas : ndarray, shape (alpha,)
        Penalties in use, ascending.
    n_orders : int
    memory : int
    """
    n, p = design.n, design.n_features
    columns = v * n_orders
    hat = rows = products = 0.0
    cells = 0
    for layout in design.layouts:
        sizes = [len(atom) for atom in layout.atoms]
        products += 2 * n * p * columns
        for train, trials in layout.trains:
            n_train = sum(sizes[a] for a in train)
            n_test = sum(sum(sizes[a] for a in trial.atoms) for trial in trials if not trial.inner)
            rank = min(n_train, p)
            hat += 2 * n_test * rank * n_train * len(alphas) + 2 * n_test * n * columns
            rows += 2 * rank * (n_train + n_test) * columns
            products += 2 * rank * (p + n_test) * columns
            cells += n_test * n
    by_rows = design.dual or rows <= products or design.too_rough(float(alphas[0]))
    if hat <= (rows if by_rows else products) and cells * design.dtype.itemsize <= memory:
        return Way(hat=True, by_rows=True)
    return Way(hat=False, by_rows=by_rows)


@dataclass(frozen=True)
class _Fold:
    """Training and test rows of one fold in coordinates of the same axes."""

    train: Train
    atoms: Atoms  # tested
    rows: slice  # among the test rows of all folds of the layout
    coordinates: Tensor  # (test, axis), dtype of the features, less `mean`
    mean: Tensor  # (axis,), float64


@dataclass(frozen=True)
class _Layout:
    rows: list[Rows]  # of each atom
    starts: list[int]  # of each atom, when they stand one after the other; and the end
    sizes: Tensor  # (atom, 1), float64
    folds: list[_Fold]
    n_test: int

    def segments(self, atoms: Atoms) -> list[slice]:
        """Rows of some atoms as few slices."""
        found: list[slice] = []
        for atom in atoms:
            start, stop = self.starts[atom], self.starts[atom + 1]
            joined = bool(found) and found[-1].stop == start
            found[-1:] = [slice(found[-1].start, stop)] if joined else [*found[-1:], slice(start, stop)]
        return found

    def moments(self, atoms: Atoms, means: Tensor, squares: Tensor, tiny: float) -> tuple[Tensor, Tensor]:
        """Mean over some atoms and sum of squares about it, 0 where that is rounding; each of shape (column,)."""
        chosen = list(atoms)
        sizes, means = self.sizes[chosen], means[chosen]
        mean = (sizes * means).sum(0) / sizes.sum()
        spread = (squares[chosen] + sizes * (means - mean).square()).sum(0)
        return mean, torch.where(spread > tiny * (sizes * means.square()).sum(0), spread, 0.0)


class Refitter:
    """Scores of a design at one penalty after the other.

    Parameters
    ----------
    design : SpectralDesign
    score : {"r", "r2"}
    way : Way
    """

    def __init__(self, design: SpectralDesign, score: str, way: Way):
        self.design, self.score, self.way = design, score, way
        self._layouts = [self._layout(k) for k in range(len(design.layouts))]
        self._buffers = Buffers(design.device)
        self._tiny = tolerance(design.dtype) ** 2
        self._alpha = np.nan
        self._hats: list[Tensor] = []

    @property
    def bytes_per_column(self) -> int:
        """Memory that `scores` takes for one unit in one order."""
        n = max(layout.starts[-1] + len(layout.sizes) for layout in self._layouts)
        n_test = max(layout.n_test + len(layout.folds) for layout in self._layouts)
        n_atoms = max(len(layout.sizes) for layout in self._layouts)
        features = 0 if self.way.hat else self.design.n_features * (n_atoms + 4)
        return self.design.dtype.itemsize * (3 * n + 2 * n_test + features) + 64 * n_atoms

    def _layout(self, k: int) -> _Layout:
        sizes = [len(atom) for atom in self.design.layouts[k].atoms]
        folds, start = [], 0
        for train in self.design.trains(k, self.way.by_rows):
            for test in train.tests:
                if not test.trial.inner:
                    folds.append(_Fold(train, test.trial.atoms, slice(start, start + test.n), *_unturned(test)))
                    start += test.n
        starts = np.cumsum([0, *sizes]).tolist()
        column = torch.tensor(sizes, dtype=torch.float64, device=self.design.device)[:, None]
        return _Layout(self.design.rows[k], starts, column, folds, start)

    def at(self, alpha: float) -> None:
        """Set the penalty."""
        self._alpha = alpha
        if self.way.hat:
            self._hats = [self._hat(k, layout) for k, layout in enumerate(self._layouts)]

    def _hat(self, k: int, layout: _Layout) -> Tensor:
        """From responses less the mean of each atom, followed by these means, to predictions and their means.

        Returns
        -------
        Tensor, shape (test row, then fold; row, then atom)
            Test rows of every fold, less the mean of the fold's test rows and their size (`_shrunk`), and (for "r2")
            that mean, of its true size.
        """
        n, means = layout.starts[-1], self.score == "r2"
        shape = (layout.n_test + means * len(layout.folds), n + len(layout.sizes))
        hat = self._buffers.get(f"hat {k}", shape, self.design.dtype).zero_()
        for i, fold in enumerate(layout.folds):
            train = fold.train
            assert train.coordinates is not None
            shrunk = self._shrunk(train)
            sides = [(fold.rows, fold.coordinates.double() * shrunk)]
            if means:
                sides.append(
                    (slice(layout.n_test + i, layout.n_test + i + 1), (self._size(train) * fold.mean * shrunk)[None])
                )
            for rows, side in sides:
                short, start = side.to(self.design.dtype), 0
                for columns in layout.segments(train.atoms):
                    stop = start + columns.stop - columns.start
                    hat[rows, columns] = product(short, train.coordinates[:, start:stop])
                    start = stop
                for atom, total in zip(train.atoms, (side @ train.sums).T, strict=True):
                    hat[rows, n + atom] = total.to(hat.dtype)
            if means and self.design.fit_intercept:
                atoms = list(train.atoms)
                weights = layout.sizes[atoms, 0] / train.n
                hat[layout.n_test + i, [n + atom for atom in atoms]] += weights.to(hat.dtype)
        return hat

    def _shrunk(self, train: Train) -> Tensor:
        """What the penalty makes of each axis, less its size, which a large one would carry out of float32's range."""
        relative = self._alpha / train.top
        return (1 + relative) / (train.eigenvalues + relative)

    def _size(self, train: Train) -> float:
        return 1 / (1 + self._alpha / train.top)

    def scores(self, Y: Tensor, orders: Tensor) -> Tensor:
        """Mean score over folds, float64, shape (order, unit); NaN where no fold has one.

        Parameters
        ----------
        Y : Tensor, shape (row, unit)
            Responses in the dtype and the order of the design, less their mean where it fits an intercept, contiguous.
        orders : Tensor of int64, shape (order, row)
            Numbers of the rows of Y.
        """
        shape = (Y.shape[0], len(orders) * Y.shape[1])
        moved = self._buffers.get("moved", (orders.numel(), Y.shape[1]), Y.dtype)
        torch.index_select(Y, 0, orders.T.reshape(-1), out=moved)
        folds = [one for k in range(len(self._layouts)) for one in self._fold_scores(k, moved.view(shape))]
        return torch.stack(folds).nanmean(0).view(len(orders), Y.shape[1])

    def _fold_scores(self, k: int, Y: Tensor) -> Iterator[Tensor]:
        layout, buffers = self._layouts[k], self._buffers
        n, width = layout.starts[-1], Y.shape[1]
        # Responses less the mean of each atom, and below them these means.
        block = buffers.get("block", (n + len(layout.sizes), width), Y.dtype)
        squares = torch.empty(len(layout.sizes), width, dtype=torch.float64, device=Y.device)
        for a, rows in enumerate(layout.rows):
            y = Y[rows]
            centred = block[layout.starts[a] : layout.starts[a + 1]]
            torch.sub(y, torch.mean(y, 0, out=block[n + a]), out=centred)
            squares[a] = torch.mul(centred, centred, out=buffers.get("work", y.shape, y.dtype)).sum(0)
        predicted, offsets = self._by_hat(k, block) if self.way.hat else self._by_factors(k, block)
        means = block[n:].double()
        for fold, offset in zip(layout.folds, offsets, strict=True):
            mean, spread = layout.moments(fold.atoms, means, squares, self._tiny)
            p, y = predicted[fold.rows], self._tested(layout, fold, block, mean)
            work = buffers.get("work", p.shape, p.dtype)
            size = self._size(fold.train)
            cross = torch.mul(p, y, out=work).sum(0).double() * size
            power = torch.mul(p, p, out=work).sum(0).double() * size**2
            # Responses that never vary in training teach nothing.
            taught = layout.moments(fold.train.atoms, means, squares, self._tiny)[1] > 0
            if not self.design.fit_intercept:
                taught |= means[list(fold.train.atoms)].abs().amax(0) > 0
            cross, power = cross * taught, power * taught
            yield SCORES[self.score](Moments(cross, power, spread, mean - offset, len(p)))

    def _tested(self, layout: _Layout, fold: _Fold, block: Tensor, mean: Tensor) -> Tensor:
        """Responses of the test rows less their mean."""
        n = layout.starts[-1]
        if len(fold.atoms) == 1:
            return block[layout.starts[fold.atoms[0]] : layout.starts[fold.atoms[0] + 1]]
        y = self._buffers.get("test", (fold.rows.stop - fold.rows.start, block.shape[1]), block.dtype)
        start = 0
        for a in fold.atoms:
            stop = start + layout.starts[a + 1] - layout.starts[a]
            shift = (block[n + a] - mean).to(y.dtype)
            torch.add(block[layout.starts[a] : layout.starts[a + 1]], shift, out=y[start:stop])
            start = stop
        return y

    def _by_hat(self, k: int, block: Tensor) -> tuple[Tensor, Tensor | list[float]]:
        """Predictions of the test rows of every fold, less mean and size, and that mean (fold, column) for "r2"."""
        layout, hat = self._layouts[k], self._hats[k]
        predicted = product(hat, block)
        if self.score == "r2":
            return predicted[: layout.n_test], predicted[layout.n_test :].double()
        return predicted, [0.0] * len(layout.folds)

    def _by_factors(self, k: int, block: Tensor) -> tuple[Tensor, Tensor]:
        """As `_by_hat`."""
        layout, buffers = self._layouts[k], self._buffers
        n, width = layout.starts[-1], block.shape[1]
        predicted = buffers.get("predicted", (layout.n_test, width), block.dtype)
        offsets = torch.zeros(len(layout.folds), width, dtype=torch.float64, device=block.device)
        products = None if self.way.by_rows else self._products(layout, block)
        known: Train | None = None
        for i, fold in enumerate(layout.folds):
            train, atoms = fold.train, list(fold.train.atoms)
            if train is not known:
                b, known = self._loadings(layout, train, block, products), train
                b *= self._shrunk(train).to(b.dtype)[:, None]
            predicted[fold.rows] = product(fold.coordinates, b)
            if self.score == "r2":
                offsets[i] = self._size(train) * (fold.mean.to(b.dtype) @ b).double()
                if self.design.fit_intercept:
                    offsets[i] += (layout.sizes[atoms] * block[n:][atoms]).sum(0) / train.n
        return predicted, offsets

    def _products(self, layout: _Layout, block: Tensor) -> Tensor:
        """X'y of each atom, shape (atom, feature, column)."""
        matrix = self.design.matrix
        assert matrix is not None
        shape = (len(layout.rows), self.design.n_features, block.shape[1])
        products = self._buffers.get("products", shape, block.dtype)
        for a, rows in enumerate(layout.rows):
            products[a] = matrix.cross(rows, block[layout.starts[a] : layout.starts[a + 1]])
        return products

    def _loadings(self, layout: _Layout, train: Train, block: Tensor, products: Tensor | None) -> Tensor:
        """Training rows times responses, shape (axis, column)."""
        n, atoms = layout.starts[-1], list(train.atoms)
        b = self._buffers.get("b", (len(train.eigenvalues), block.shape[1]), block.dtype)
        torch.matmul(train.sums.to(b.dtype), block[n:][atoms], out=b)
        if products is not None:
            assert train.axes is not None
            total = self._buffers.get("total", products.shape[1:], products.dtype).zero_()
            for a in atoms:
                total += products[a]
            return b.add_(product(train.axes, total))
        assert train.coordinates is not None
        start = 0
        for rows in layout.segments(train.atoms):
            stop = start + rows.stop - rows.start
            b.add_(product(train.coordinates[:, start:stop], block[rows]))
            start = stop
        return b


def _unturned(test: Test) -> tuple[Tensor, Tensor]:
    """Test rows and their mean in coordinates of the training rows, without the turns of `Quadratic`."""
    coordinates, mean = test.coordinates, test.mean
    if test.quadratic.turns:
        coordinates, mean = coordinates.to(torch.float64, copy=True), mean.clone()  # the design keeps its own
        for axes, turn in test.quadratic.turns:
            coordinates[:, axes] = coordinates[:, axes] @ turn.T
            mean[axes] = mean[axes] @ turn.T
    return coordinates.to(test.coordinates.dtype), mean
