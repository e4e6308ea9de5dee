"""Scores of every penalty on held-out rows, for a block of units.

`Block` brings the responses into the atoms of a layout. For each training set, `loadings` gives b, and for each
test `Scorer` gives the score of every alpha: by partial fractions (`spectrum.Quadratic`), whose cost does not
depend on the number of alphas, or from the predictions of a few alphas that all others are combinations of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from ..products import product
from .design import SpectralDesign, Test, Train
from .layout import Atoms
from .matrix import Rows
from .moments import SCORES, Moments
from .spectrum import Penalties, fractions

# Rounding of a score's power by float32, in units of its own (`Penalties.rounding`): what is foretold of responses
# without structure, beyond which all units are scored in float64, and what is found of a unit, beyond which it is.
_SMOOTH = 8.0
_ROUGH = 20.0
# Means of runs so much farther apart than responses within them lie that float32 would blur the latter.
_DRIFT = 10.0


class Buffers:
    """Memory that is written again for every block: pages touched for the first time cost more than the work."""

    def __init__(self, device: torch.device):
        self._device = device
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Uninitialised tensor; whatever was asked for under this name before is lost."""
        size = int(np.prod(shape))
        held = self._held.get((name, dtype))
        if held is None or len(held) < size:
            held = self._held[name, dtype] = torch.empty(size, dtype=dtype, device=self._device)
        return held[:size].view(*shape)


@dataclass(frozen=True)
class Block:
    """Responses of some units in the rows of one layout, each atom less its mean.

    Attributes
    ----------
    Y : Tensor, shape (row, unit)
        In the dtype of the features, atom after atom.
    starts : list of int
        Where each atom starts in Y, and the end.
    means : Tensor of float64, shape (atom, unit)
    squares : Tensor of float64, shape (atom, unit)
        Sums over the rows of each atom of squares, about its mean.
    low, high : Tensor of float64, shape (atom, unit)
        Extremes, which tell constant responses from nearly constant ones.
    sizes : Tensor of float64, shape (atom, 1)
    """

    Y: Tensor
    starts: list[int]
    means: Tensor
    squares: Tensor
    low: Tensor
    high: Tensor
    sizes: Tensor

    def mean(self, atoms: Atoms) -> Tensor:
        """Mean over some atoms, exact where responses are constant, shape (unit,)."""
        chosen = list(atoms)
        mean = (self.sizes[chosen] * self.means[chosen]).sum(0) / self.sizes[chosen].sum()
        return torch.where(self.constant(atoms), self.low[chosen[0]], mean)

    def constant(self, atoms: Atoms) -> Tensor:
        """Which units have one value in all these rows."""
        chosen = list(atoms)
        return self.low[chosen].amin(0) == self.high[chosen].amax(0)

    def spread(self, atoms: Atoms, mean: Tensor) -> Tensor:
        """Sum of squares about the mean over some atoms, shape (unit,); 0 where constant."""
        chosen = list(atoms)
        spread = (self.squares[chosen] + self.sizes[chosen] * (self.means[chosen] - mean).square()).sum(0)
        return torch.where(self.constant(atoms), 0.0, spread)

    def drifts(self, atoms: Atoms, mean: Tensor) -> bool:
        """Whether means of some atoms lie so far from `mean` that responses within them would blur in float32."""
        chosen = list(atoms)
        between = (self.sizes[chosen] * (self.means[chosen] - mean).square()).sum(0)
        return bool((between > _DRIFT**2 * self.squares[chosen].sum(0)).any())

    def only(self, units: np.ndarray) -> Block:
        """Some of the units, in memory of their own."""
        means, squares, low, high = (t[:, units] for t in (self.means, self.squares, self.low, self.high))
        return Block(self.Y[:, units].clone(), self.starts, means, squares, low, high, self.sizes)

    @staticmethod
    def joined(some: Sequence[Block]) -> Block:
        """Units of several blocks side by side."""
        first = some[0]
        Y, means, squares, low, high = (
            torch.cat([getattr(one, name) for one in some], 1) for name in ("Y", "means", "squares", "low", "high")
        )
        return Block(Y, first.starts, means, squares, low, high, first.sizes)

    def segments(self, atoms: Atoms) -> list[slice]:
        """Rows of some atoms as few slices of Y."""
        found: list[slice] = []
        for atom in atoms:
            if found and found[-1].stop == self.starts[atom]:
                found[-1] = slice(found[-1].start, self.starts[atom + 1])
            else:
                found.append(slice(self.starts[atom], self.starts[atom + 1]))
        return found


def make_block(Y: Tensor, rows: Sequence[Rows], dtype: torch.dtype, buffers: Buffers) -> Block:
    """Responses (row, unit), float64, in the atoms of a layout."""
    n_units = Y.shape[1]
    centred = buffers.get("responses", Y.shape, dtype)
    table = torch.empty(4, len(rows), n_units, dtype=torch.float64, device=Y.device)
    starts = [0]
    for a, numbers in enumerate(rows):
        y = Y[numbers]
        low, high = torch.aminmax(y, dim=0)
        mean = torch.where(low == high, low, y.mean(0))
        deviation = torch.sub(y, mean, out=buffers.get("deviation", y.shape, torch.float64))
        starts.append(starts[-1] + len(y))
        centred[starts[-2] : starts[-1]] = deviation
        table[0, a], table[1, a], table[2, a], table[3, a] = mean, deviation.square_().sum(0), low, high
    sizes = torch.diff(torch.tensor(starts, dtype=torch.float64, device=Y.device))[:, None]
    return Block(centred, starts, table[0], table[1], table[2], table[3], sizes)


# What training rows have in common with the responses


def cross_products(design: SpectralDesign, layout: int, block: Block, buffers: Buffers) -> Tensor:
    """X'y of each atom, in the dtype of the features, shape (atom, feature, unit)."""
    assert design.matrix is not None
    products = buffers.get("cross", (len(block.sizes), design.n_features, block.Y.shape[1]), block.Y.dtype)
    for a, rows in enumerate(design.rows[layout]):
        y = block.Y[block.starts[a] : block.starts[a + 1]]
        products[a] = design.matrix.cross(rows, y)
    return products


def loadings(train: Train, block: Block, mean: Tensor, products: Tensor | None, dtype: torch.dtype) -> Tensor:
    """b of one training set, shape (axis, unit); exactly zero for units without deviations in it.

    Parameters
    ----------
    mean : Tensor of float64, shape (unit,)
        What is taken from the responses: their mean over the training rows, or zero without intercept.
    products : Tensor, shape (feature, unit), or None
        X'y summed over the training rows, for a training set that has axes.
    dtype : torch.dtype
        Of the result; products with the responses are in theirs.
    """
    if train.axes is not None:
        assert products is not None
        b = product(train.axes, products)
    else:
        assert train.coordinates is not None
        start, found = 0, None
        for rows in block.segments(train.atoms):
            part = product(train.coordinates[:, start : start + rows.stop - rows.start], block.Y[rows])
            found = part if found is None else found.add_(part)
            start += rows.stop - rows.start
        assert found is not None
        b = found
    b = b.to(dtype)
    b.addmm_(train.sums.to(dtype), (block.means[list(train.atoms)] - mean).to(dtype))
    silent = block.constant(train.atoms) & (block.low[train.atoms[0]] == mean)
    return b.mul_(~silent) if bool(silent.any()) else b


# Scores


class Scorer:
    """Scores of every alpha on the test rows of one fold.

    Parameters
    ----------
    train, test : Train, Test
    alphas : ndarray, shape (alpha,)
    score : {"r", "r2"}
    by_prediction : bool
        Predict, as far as needed to reach every alpha, rather than take partial fractions.
    """

    def __init__(self, train: Train, test: Test, alphas: np.ndarray, score: str, by_prediction: bool):
        self.train, self.test, self.score, self.alphas = train, test, score, alphas
        relative = alphas / train.top
        self.dtype = test.coordinates.dtype
        self.skeleton = Skeleton(train, relative, self.dtype) if by_prediction else None
        self._relative = torch.from_numpy(relative).to(train.eigenvalues.device)
        self._forms: dict[torch.dtype, _Form] = {}
        if self.skeleton is None and self.dtype == torch.float32 and self._form(self.dtype).rounding > _SMOOTH:
            self.dtype = torch.float64

    def _form(self, dtype: torch.dtype) -> _Form:
        if dtype not in self._forms:
            self._forms[dtype] = _Form(self.train, self.test, self._relative, dtype)
        return self._forms[dtype]

    def __call__(self, b: Tensor, block: Block, train_mean: Tensor, buffers: Buffers) -> Tensor:
        """Scores, float64, shape (alpha, unit); NaN where undefined.

        Parameters
        ----------
        b : Tensor, shape (axis, unit)
            See `loadings`; in `dtype`, or a longer one that scores are then computed in.
        block : Block
        train_mean : Tensor of float64, shape (unit,)
        buffers : Buffers
        """
        test, given = self.test, b
        b = test.quadratic.turned(b)
        mean = block.mean(test.trial.atoms)
        spread = block.spread(test.trial.atoms, mean)
        shift = block.means[list(test.trial.atoms)] - mean
        bias = mean - train_mean
        if self.skeleton is not None:
            return self._by_prediction(b, block, shift, spread, bias, buffers)
        scores, rough = self._by_fractions(b, block, shift, spread, bias, buffers)
        if len(rough):
            scores[:, rough] = self(given[:, rough].double(), block.only(rough), train_mean[rough], buffers)
        return scores

    def directly(self, b: Tensor, block: Block, train_mean: Tensor, index: np.ndarray) -> Tensor:
        """Score of each unit at a penalty of its own, from its prediction in float64, shape (unit,)."""
        test, atoms = self.test, self.test.trial.atoms
        mean = block.mean(atoms)
        relative = torch.from_numpy(self.alphas[index] / self.train.top).to(b.device)
        weights = test.quadratic.turned(b.double()) / (self.train.eigenvalues[:, None] + relative)
        predicted = test.coordinates.double() @ weights
        y = torch.cat([block.Y[block.starts[a] : block.starts[a + 1]] + block.means[a] - mean for a in atoms])
        bias = mean - train_mean - test.mean @ weights
        spread = block.spread(atoms, mean)
        cross, power = (predicted * y).sum(0), predicted.square().sum(0)
        return SCORES[self.score](Moments(cross, power, spread, bias, test.n))

    def _by_fractions(
        self, b: Tensor, block: Block, shift: Tensor, spread: Tensor, bias: Tensor, buffers: Buffers
    ) -> tuple[Tensor, np.ndarray]:
        """Scores, and the units for which the dtype of `b` is not enough."""
        test, form = self.test, self._form(b.dtype)
        start, c = 0, None
        for rows in block.segments(test.trial.atoms):
            part = product(test.coordinates[start : start + rows.stop - rows.start].T, block.Y[rows])
            c = part if c is None else c.add_(part)
            start += rows.stop - rows.start
        assert c is not None
        work = c.to(b.dtype)
        if len(test.trial.atoms) > 1:
            work.addmm_(test.sums.to(b.dtype), shift.to(b.dtype))
        cross = form.shrunk @ work.mul_(b)
        work = product(form.partial, b).mul_(b)
        power = form.differences @ work
        rough = np.empty(0, dtype=np.int64)
        if b.dtype == torch.float32:
            # Each term rounds on its own, so that their squares add up; neighbouring penalties hardly differ in it.
            rounding = (form.differences[:: form.stride].square() @ work.square_()).sqrt_()
        power += form.squares @ torch.mul(b, b, out=work)
        if b.dtype == torch.float32:
            rough = torch.nonzero((rounding > _ROUGH * power[:: form.stride]).any(0))[:, 0].cpu().numpy()
        if self.score == "r2":
            bias = bias - (form.shifted @ b).double() * form.sizes
        cross, power = cross.double() * form.sizes, power.double() * form.sizes.square()
        return SCORES[self.score](Moments(cross, power, spread, bias, test.n)), rough

    def _by_prediction(
        self, b: Tensor, block: Block, shift: Tensor, spread: Tensor, bias: Tensor, buffers: Buffers
    ) -> Tensor:
        test, skeleton = self.test, self.skeleton
        assert skeleton is not None
        atoms = test.trial.atoms
        y = buffers.get("test", (test.n, b.shape[1]), block.Y.dtype)
        start = 0
        for a, at in enumerate(atoms):
            stop = start + block.starts[at + 1] - block.starts[at]
            y[start:stop] = block.Y[block.starts[at] : block.starts[at + 1]]
            if len(atoms) > 1:
                y[start:stop] += shift[a].to(y.dtype)
            start = stop
        kept = []
        for s in range(len(skeleton.shrunk)):
            weighted = buffers.get("weighted", b.shape, y.dtype).copy_(b)
            weighted *= skeleton.shrunk[s].to(y.dtype)[:, None]
            kept.append(product(test.coordinates, weighted))
        scores = torch.empty(len(self.alphas), b.shape[1], dtype=torch.float64, device=b.device)
        predicted = buffers.get("predicted", y.shape, y.dtype)
        term = buffers.get("term", y.shape, y.dtype)
        for k, (weights, size) in enumerate(zip(skeleton.weights.tolist(), skeleton.sizes.tolist(), strict=True)):
            predicted.zero_()
            for weight, one in zip(weights, kept, strict=True):
                if weight:
                    predicted.add_(one, alpha=weight)
            cross = torch.mul(predicted, y, out=term).sum(0).double() * size
            power = torch.mul(predicted, predicted, out=term).sum(0).double() * size**2
            shifted: Tensor | float = bias
            if self.score == "r2":
                shifted = bias - size * ((skeleton.table[k] * test.mean) @ b.double())
            scores[k] = SCORES[self.score](Moments(cross, power, spread, shifted, test.n))
        return scores


class _Form:
    """Partial fractions of one test in one dtype; see `spectrum.Quadratic` and `Penalties`."""

    def __init__(self, train: Train, test: Test, relative: Tensor, dtype: torch.dtype):
        form = test.quadratic
        known = Penalties(train.eigenvalues, relative, form)
        self.rounding, self.sizes = known.rounding, known.sizes
        self.stride = -(-len(relative) // 20)
        self.partial, diagonal = form.partial, form.diagonal
        if dtype != form.partial.dtype:
            coordinates = test.coordinates.double()
            self.partial, diagonal = fractions(train.eigenvalues, coordinates), coordinates.square().sum(0)
        self.shrunk = known.shrunk.to(dtype)
        self.differences = (2 * known.differences).to(dtype)
        self.squares = (known.shrunk.square() * diagonal).to(dtype)
        self.shifted = (known.shrunk * test.mean).to(dtype)


class Skeleton:
    """A few penalties whose predictions those of all others are combinations of.

    The factors ``l / (l + alpha)`` of a grid of penalties span a space of few dimensions, because neighbours are
    alike; columns of that table are picked by a pivoted QR decomposition (Cheng et al. 2005, SIAM J Sci Comput 26).
    """

    def __init__(self, train: Train, relative: np.ndarray, dtype: torch.dtype):
        eigenvalues = train.eigenvalues.cpu().numpy()
        # Less its size, which a large penalty would carry out of float32's range.
        table = (1 + relative[:, None]) / (eigenvalues + relative[:, None])
        self.sizes = 1 / (1 + relative)
        tolerance = 1e-8 if dtype == torch.float32 else 1e-14
        if len(relative) > 1 and len(eigenvalues):
            weighted = (table * eigenvalues).T  # what is far down the spectrum counts little in a prediction
            _, R, pivots = scipy.linalg.qr(weighted, mode="economic", pivoting=True)
            diagonal = np.abs(np.diag(R))
            rank = max(1, int((diagonal > tolerance * diagonal[0]).sum()))
            weights = np.zeros((len(relative), rank))
            weights[pivots[:rank]] = np.eye(rank)
            weights[pivots[rank:]] = scipy.linalg.solve_triangular(R[:rank, :rank], R[:rank, rank:]).T
            chosen = pivots[:rank]
        else:
            weights, chosen = np.eye(len(relative)), np.arange(len(relative))
        device = train.eigenvalues.device
        self.weights = weights  # (alpha, kept)
        self.shrunk = torch.from_numpy(table[chosen]).to(device)  # (kept, axis)
        self.table = torch.from_numpy(table).to(device)
