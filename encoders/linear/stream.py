"""One pass over the units: score every penalty, choose, and compute the weights, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..device import doubles_are_fast
from .design import SpectralDesign, Train
from .held_out import applies, held_out_scores, keeps_digits
from .layout import Atoms
from .moments import choose
from .responses import Units, make_units
from .sweep import Block, Buffers, Scorer, cross_products, loadings, make_block

_WIDEST = 512  # units in a block: enough for products of matrices to reach their rate
_SAMPLED = 4  # units of each block whose scores are computed a second time
EIGH = 9  # flops of a decomposition of k x k, in units of k^3 products


@dataclass(frozen=True)
class Plan:
    """How the responses are met; every plan gives the same scores.

    Attributes
    ----------
    method : {"fractions", "prediction", "held-out"}
        Partial fractions, predictions of a few penalties, or residuals from one decomposition of all rows.
    by_rows : bool
        See `SpectralDesign.trains`.
    """

    method: str
    by_rows: bool


def make_plan(design: SpectralDesign, alphas: np.ndarray, v: int) -> Plan:
    """The cheapest way, by flops, that keeps the digits."""
    n, p = design.n, design.n_features
    long = 2.0 if design.dtype == torch.float32 and doubles_are_fast(design.device) else 1.0  # a flop in float64
    if not doubles_are_fast(design.device):
        long = 32.0
    sets = [([len(rows) for rows in layout.atoms], *one) for layout in design.layouts for one in layout.trains]
    by_rows = fractions = prediction = prepare = held_out = 0.0
    few = min(len(alphas), 12 if design.dtype == torch.float32 else 18)
    for size, train, tests in sets:
        n_train = sum(size[a] for a in train)
        rank = min(n_train, p)
        prepare += long * EIGH * rank**3
        by_rows += 2 * n_train * rank * v + (0 if design.dual else long * 2 * n_train * p * rank)
        for trial in tests:
            n_test = sum(size[a] for a in trial.atoms)
            fractions += 2 * n_test * rank * v + 2 * rank**2 * (v + long * n_test)
            prediction += few * 2 * n_test * rank * v
            held_out += long * len(alphas) * (n_test**2 * n + n_test**3 / 3 + 2 * n_test**2 * v)
    by_products = 2 * n * p * v + sum(2 * p * min(p, n) * v for _ in sets)
    rows = design.dual or by_rows < by_products
    scored = min(fractions, prediction) + prepare + (by_rows if rows else by_products)
    held_out += long * len(alphas) * 2 * n**2 * v
    if design.dual and applies(design) and held_out < scored and keeps_digits(design, alphas):
        return Plan("held-out", True)
    method = "fractions" if fractions <= prediction else "prediction"
    if not rows and design.too_rough(float(alphas[0])):
        design.forget(by_rows=False)
        rows = True
    return Plan(method, rows)


@dataclass(frozen=True)
class Task:
    """What is asked of every block.

    Attributes
    ----------
    alphas : ndarray, shape (alpha,)
        Ascending.
    score : {"r", "r2"}
    plan : Plan
    surface : bool
        Return the score of every penalty.
    weights : bool
        Return the weights at the best penalty.
    """

    alphas: np.ndarray
    score: str
    plan: Plan
    surface: bool
    weights: bool


@dataclass(frozen=True)
class BlockFit:
    """What is found for the units of one block; NaN where a unit holds NaN.

    Attributes
    ----------
    part : slice
        Columns of Y.
    complete : ndarray of bool, shape (unit,)
    index : ndarray of int, shape (unit,)
        Position of the chosen penalty.
    score, nested, response_mean : ndarray of float64, shape (unit,)
    climbing : ndarray of bool, shape (2, unit)
        Where scores still climb at the lower and at the upper end of the penalties.
    surface : ndarray of float64, shape (alpha, unit), or None
    weights : ndarray, shape (axis, unit), or None
    n_doubtful : int
        Units scored a second time, because partial fractions and predictions disagreed on some of them.
    """

    part: slice
    complete: np.ndarray
    index: np.ndarray
    score: np.ndarray
    nested: np.ndarray
    response_mean: np.ndarray
    climbing: np.ndarray
    surface: np.ndarray | None
    weights: np.ndarray | None
    n_doubtful: int


class Prepared:
    """Units of a block as a design wants them; what its first layout makes of them is kept while it is of use."""

    def __init__(self, values: np.ndarray, part: slice, design: SpectralDesign):
        self.part, self.n_columns = part, values.shape[1]
        self.units = make_units(values, part.start, design.order, design.fit_intercept, design.device)
        self.block: Block | None = None
        self.products: Tensor | None = None

    @classmethod
    def joined(cls, pieces: Sequence[tuple[Prepared, np.ndarray]]) -> Prepared:
        """Some columns of several blocks side by side, in memory of their own.

        Parameters
        ----------
        pieces : sequence of (Prepared, ndarray of int)
            Positions of the columns within each, ascending.
        """
        units, blocks, start = [], [], 0
        for prepared, kept in pieces:
            inside = prepared.units.columns - prepared.part.start
            chosen = np.flatnonzero(np.isin(inside, kept))
            units.append(prepared.units.only(chosen, start + np.searchsorted(kept, inside[chosen])))
            if prepared.block is not None:
                blocks.append(prepared.block.only(chosen))
            start += len(kept)
        made = object.__new__(cls)
        made.part, made.n_columns = slice(0, start), start
        made.units = Units.joined(units)
        made.block, made.products = Block.joined(blocks) if blocks else None, None
        return made


class BlockFitter:
    """Fits blocks of units to a design; holds what blocks have in common, and memory to work in."""

    def __init__(self, design: SpectralDesign, task: Task):
        self.design, self.task = design, task
        self.tolerance = tolerance(design.dtype)
        self._buffers = Buffers(design.device)
        self._known_scorers: dict[str, list[list[tuple[Train, list[Scorer]]]]] = {}

    def prepare(self, values: np.ndarray, part: slice) -> Prepared:
        """Units in memory of their own, to be fitted to several designs with the same folds."""
        prepared = Prepared(values, part, self.design)
        if len(self.design.layouts) == 1:
            buffers = Buffers(self.design.device)
            prepared.block = make_block(prepared.units.Y, self.design.rows[0], self.design.dtype, buffers)
        return prepared

    def fit(self, values: np.ndarray, part: slice, index: np.ndarray | None = None) -> BlockFit:
        """Score, choose and refit.

        Parameters
        ----------
        values : ndarray, shape (row, unit)
        part : slice
            The columns of Y that these are.
        index : ndarray of int, shape (unit,), optional
            Penalties that are chosen already: only weights are computed.
        """
        return self.fit_prepared(Prepared(values, part, self.design), index)

    def fit_prepared(self, prepared: Prepared, index: np.ndarray | None = None) -> BlockFit:
        """As `fit`."""
        task, design, v = self.task, self.design, prepared.n_columns
        units, part = prepared.units, prepared.part
        inside = units.columns - part.start
        complete = np.zeros(v, dtype=bool)
        complete[inside] = True
        score, nested, mean = np.full((3, v), np.nan)
        mean[inside] = units.mean.cpu().numpy()
        surface = np.full((len(task.alphas), v), np.nan) if task.surface else None
        chosen = np.full(v, len(task.alphas) - 1) if index is None else index
        climbing = np.zeros((2, v), dtype=bool)
        n_doubtful = 0
        if len(inside) and index is None:
            table, nested[inside], n_doubtful = self._scored(prepared)
            best = choose(table, self.tolerance)
            chosen[inside], score[inside] = best, table[best, np.arange(len(inside))]
            climbing[:, inside] = still_climbing(table)
            if surface is not None:
                surface[:, inside] = table
        weights = None
        if task.weights:
            weights = np.full((self._rank, v), np.nan, np.float32 if design.dtype == torch.float32 else np.float64)
            if len(inside):
                weights[:, inside] = self._weights(prepared, chosen[inside])
        return BlockFit(part, complete, chosen, score, nested, mean, climbing, surface, weights, n_doubtful)

    def _scored(self, prepared: Prepared) -> tuple[np.ndarray, np.ndarray, int]:
        """Mean score (alpha, unit), nested score (unit,), and how many units partial fractions failed."""
        design, task, units = self.design, self.task, prepared.units
        if task.plan.method == "held-out":
            folds = held_out_scores(design, units.Y, task.alphas, task.score)
            return mean_over_folds(folds), np.full(len(units.columns), np.nan), 0
        scores = self._scores(prepared, task.plan.method)
        n_doubtful = 0
        if task.plan.method == "fractions" and not scores.agree(choose(scores.table, self.tolerance), design.dtype):
            scores = self._scores(prepared, "prediction")
            n_doubtful = len(units.columns)
        return scores.table, scores.nested(self.tolerance), n_doubtful

    def _scores(self, prepared: Prepared, method: str) -> _Scores:
        design, buffers = self.design, self._buffers
        outer: list[Tensor | None] = [None] * design.n_folds
        inner: list[list[Tensor]] = [[] for _ in range(design.n_folds)]
        samples: list[_Sample] = []
        for k, sets in enumerate(self._scorers(method)):
            block, products = self._met(prepared, k)
            for train, scorers in sets:
                mean = block.mean(train.atoms) * design.fit_intercept
                dtype = max((scorer.dtype for scorer in scorers), key=lambda dtype: dtype.itemsize)
                if block.drifts(train.atoms, mean):
                    dtype = torch.float64
                b = loadings(train, block, mean, summed(products, train.atoms, buffers), dtype)
                for scorer in scorers:
                    scores = scorer(b, block, mean, buffers)
                    trial = scorer.test.trial
                    if trial.inner:
                        inner[trial.fold].append(scores)
                        continue
                    outer[trial.fold] = scores
                    if method == "fractions":
                        samples.append(_Sample(scorer, b, block, mean))
        return _Scores([one for one in outer if one is not None], inner, samples)

    def _met(self, prepared: Prepared, k: int) -> tuple[Block, Tensor | None]:
        """Units in the atoms of a layout, and X'y of each where that is what training sets share."""
        design, buffers = self.design, self._buffers
        only = len(design.layouts) == 1
        block = prepared.block if only else None
        if block is None:
            block = make_block(prepared.units.Y, design.rows[k], design.dtype, buffers)
        products = prepared.products if only else None
        if products is None and not (self.task.plan.by_rows or design.dual):
            products = cross_products(design, k, block, buffers)
        if only:
            prepared.block, prepared.products = block, products
        return block, products

    def _scorers(self, method: str) -> list[list[tuple[Train, list[Scorer]]]]:
        """For each layout and training set, what scores its tests."""
        if method not in self._known_scorers:
            task, design, predict = self.task, self.design, method == "prediction"
            self._known_scorers[method] = [
                [
                    (train, [Scorer(train, test, task.alphas, task.score, predict) for test in train.tests])
                    for train in design.trains(k, task.plan.by_rows)
                ]
                for k in range(len(design.layouts))
            ]
        return self._known_scorers[method]

    @property
    def _rank(self) -> int:
        return len(self.design.whole(self.task.plan.by_rows)[0].eigenvalues)

    def _weights(self, prepared: Prepared, index: np.ndarray) -> np.ndarray:
        """Weights (axis, unit) of all rows, each unit at its own penalty."""
        design, buffers, units = self.design, self._buffers, prepared.units
        train = design.whole(self.task.plan.by_rows)[0]
        block, products = self._met(prepared, 0)
        mean = block.mean(train.atoms) * design.fit_intercept
        b = loadings(train, block, mean, summed(products, train.atoms, buffers), design.dtype)
        relative = torch.from_numpy(self.task.alphas[index] / train.top).to(design.device)
        b *= units.size.to(b.dtype)
        penalised = torch.add(train.eigenvalues[:, None], relative, out=buffers.get("work", b.shape, torch.float64))
        return b.div_(penalised).cpu().numpy()


class _Sample:
    """A few units of a block, kept to score them a second time from their predictions."""

    def __init__(self, scorer: Scorer, b: Tensor, block: Block, train_mean: Tensor):
        v = b.shape[1]
        self.units = np.unique(np.linspace(0, v - 1, _SAMPLED).astype(int))
        self._scorer = scorer
        self._b, self._train_mean = b[:, self.units].clone(), train_mean[self.units]
        self._block = block.only(self.units)

    def score(self, index: np.ndarray) -> Tensor:
        """Scores (unit,) at the penalties that were chosen for all units of the block."""
        return self._scorer.directly(self._b, self._block, self._train_mean, index[self.units])


@dataclass(frozen=True)
class _Scores:
    """Scores (alpha, unit) of each fold, and of the pairs of folds that choose a penalty for one."""

    outer: list[Tensor]
    inner: list[list[Tensor]]
    samples: list[_Sample]

    @cached_property
    def table(self) -> np.ndarray:
        return mean_over_folds(self.outer)

    def agree(self, index: np.ndarray, dtype: torch.dtype) -> bool:
        """Whether partial fractions and predictions give a sample of units the same scores."""
        again = mean_over_folds([sample.score(index)[None] for sample in self.samples])[0]
        units = self.samples[0].units
        difference = np.abs(again - self.table[index[units], units])
        return bool(np.nanmax(difference, initial=0.0) <= (1e-4 if dtype == torch.float32 else 1e-7))

    def nested(self, tolerance: float) -> np.ndarray:
        """Mean over folds of the score at the penalty that the other folds choose without it.

        A fold that trains on nothing that another tests, as the first of a time series, has nothing to choose with.
        """
        if not any(self.inner):
            return np.full(self.table.shape[1], np.nan)
        units = np.arange(self.table.shape[1])
        scores = []
        for fold, chooses in zip(self.outer, self.inner, strict=True):
            if not chooses:
                continue
            index = choose(mean_over_folds(chooses), tolerance)
            scores.append(fold[torch.from_numpy(index), torch.from_numpy(units)][None])
        return mean_over_folds(scores)[0]


def tolerance(dtype: torch.dtype) -> float:
    """Scores that differ by no more are ties, which only rounding tells apart."""
    return 64 * float(torch.finfo(dtype).eps)


def mean_over_folds(scores: Sequence[Tensor]) -> np.ndarray:
    """Mean of the folds in which a score is defined, NaN if there is none."""
    return torch.stack(list(scores)).nanmean(0).cpu().numpy()


def mean_over_units(scores: np.ndarray) -> np.ndarray:
    """Mean over the same units at every penalty, shape (alpha, 1).

    These are the units with a score at every penalty at which any unit has one; if there are none, those with a score
    at that penalty.
    """
    mean = np.full((len(scores), 1), np.nan)
    scored = ~np.isnan(scores)
    known = scored.any(axis=1)
    everywhere = scored[known].all(axis=0)
    mean[known] = np.nanmean(scores[known][:, everywhere if everywhere.any() else slice(None)], axis=1, keepdims=True)
    return mean


def still_climbing(scores: np.ndarray) -> np.ndarray:
    """Where the best penalty is the first or the last and its neighbour is worse, shape (2, unit).

    Flat ends, and units without signal, are no reason to look further.
    """
    if len(scores) == 1:
        return np.zeros((2, scores.shape[1]), dtype=bool)
    top = np.fmax.reduce(scores, axis=0)
    low = (scores[0] == top) & (scores[0] - scores[1] > 1e-3)
    high = (scores[-1] == top) & (scores[-1] - scores[-2] > 1e-3)
    return np.stack([low, high]) & (top > 0)


def summed(products: Tensor | None, atoms: Atoms, buffers: Buffers) -> Tensor | None:
    """X'y of some atoms (feature, unit), from that of each."""
    if products is None:
        return None
    chosen = torch.zeros(1, len(products), dtype=products.dtype, device=products.device)
    chosen[0, list(atoms)] = 1
    total = buffers.get("summed", products.shape[1:], products.dtype)
    torch.matmul(chosen, products.flatten(1), out=total.view(1, -1))
    return total


def block_width(design: SpectralDesign, plan: Plan, n_alphas: int, memory: int) -> int:
    """Units whose temporaries fit into so many bytes."""
    short = design.dtype.itemsize
    rank = min(design.n, design.n_features)
    sizes = [[len(rows) for rows in layout.atoms] for layout in design.layouts]
    trials = [
        sum(size[a] for a in trial.atoms)
        for size, layout in zip(sizes, design.layouts, strict=True)
        for _, tests in layout.trains
        for trial in tests
    ]
    per_unit = design.n * (24 + 3 * short)  # responses as read, the next ones, in float64 and about their means
    per_unit += rank * (16 + 3 * short)  # loadings
    per_unit += short * max(trials, default=0) * (min(n_alphas, 12) + 3)  # predictions of a skeleton
    per_unit += 8 * n_alphas * (len(trials) + 9)  # scores
    if not all(isinstance(rows, slice) for layout in design.rows for rows in layout):
        per_unit += design.n * (8 + short)
    if plan.method == "held-out":
        per_unit += 8 * (4 * design.n)
    if not plan.by_rows:
        per_unit += short * design.n_features * (max(map(len, sizes)) + 1)
    return int(min(_WIDEST, max(1, memory // per_unit)))
