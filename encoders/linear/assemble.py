"""Blocks of units, one after the other or on many machines, put together into one fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from .design import SpectralDesign
from .moments import choose
from .responses import Responses
from .stream import BlockFit, BlockFitter, Task, mean_over_units, still_climbing, tolerance

# Makes the array (axis, unit) that the weights are written into.
Store = Callable[[tuple[int, int], np.dtype], np.ndarray]
# Carries out a task on every block of units, with penalties chosen already or None.
Run = Callable[[SpectralDesign, Responses, Task, int, np.ndarray | None], Iterable[BlockFit]]


@dataclass(frozen=True)
class Fit:
    """What is found for every unit, in the columns of Y; NaN (or False) where a unit holds NaN."""

    complete: np.ndarray  # (unit,)
    alpha: np.ndarray  # (unit,), position among the penalties
    score: np.ndarray  # (unit,)
    nested: np.ndarray  # (unit,)
    response_mean: np.ndarray  # (unit,)
    climbing: np.ndarray  # (2, unit); of the mean over units where they share a penalty
    surface: np.ndarray | None  # (alpha, unit)
    weights: np.ndarray | None  # (axis, unit)
    n_doubtful: int  # units scored from predictions, because partial fractions disagreed with them on some

    @property
    def edge_fraction(self) -> float:
        """Fraction of the units without NaN whose scores still climb at an end of the penalties."""
        return float((self.climbing.any(0) & self.complete).sum() / max(1, self.complete.sum()))


def here(
    design: SpectralDesign, responses: Responses, task: Task, width: int, index: np.ndarray | None
) -> Iterator[BlockFit]:
    """Every block in this process."""
    fitter = BlockFitter(design, task)
    for part, values in responses.blocks(width):
        yield fitter.fit(values, part, None if index is None else index[part])


def fit_units(
    design: SpectralDesign,
    responses: Responses,
    task: Task,
    width: int,
    *,
    per_unit: bool,
    index: np.ndarray | None = None,
    store: Store | None = None,
    run: Run = here,
) -> Fit:
    """Score, choose and refit every unit.

    Parameters
    ----------
    design : SpectralDesign
    responses : Responses
        Read once; twice where one penalty is chosen for all units.
    task : Task
    width : int
        Units in a block.
    per_unit : bool
        A penalty for each unit, or one for all.
    index : ndarray of int, shape (unit,), optional
        Penalties chosen already.
    store : callable, optional
        Where weights go; memory unless given.
    run : callable
        Carries out the task on every block, here or elsewhere.
    """
    v = responses.v
    first = task if per_unit or index is not None else replace(task, surface=True, weights=False)
    complete, climbing = np.zeros(v, bool), np.zeros((2, v), bool)
    alpha = np.full(v, len(task.alphas) - 1)
    score, nested, mean = np.full((3, v), np.nan)
    surface = np.full((len(task.alphas), v), np.nan) if first.surface else None
    n_doubtful, weights = 0, None

    def keep(block: BlockFit) -> None:
        nonlocal weights
        if block.weights is not None:
            if weights is None:
                shape, dtype = (len(block.weights), v), block.weights.dtype
                weights = np.empty(shape, dtype, order="F") if store is None else store(shape, dtype)
            weights[:, block.part] = block.weights

    with _bar(v) as bar:
        for block in run(design, responses, first, width, index):
            part = block.part
            complete[part], alpha[part], climbing[:, part] = block.complete, block.index, block.climbing
            score[part], nested[part], mean[part] = block.score, block.nested, block.response_mean
            if surface is not None:
                surface[:, part] = block.surface
            n_doubtful += block.n_doubtful
            keep(block)
            bar.update(part.stop - part.start)
        if not per_unit and index is None and surface is not None:
            average = mean_over_units(surface)
            shared = int(choose(average, tolerance(design.dtype))[0])
            alpha[:], score, climbing[:] = shared, surface[shared], still_climbing(average)
            if task.weights:
                for block in run(design, responses, task, width, alpha):
                    keep(block)
    return Fit(complete, alpha, score, nested, mean, climbing, surface, weights, n_doubtful)


def _bar(v: int):
    from tqdm import tqdm

    return tqdm(total=v, desc="units", unit="unit", disable=None, leave=False, delay=2)
