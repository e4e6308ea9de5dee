"""Exact residuals of held-out rows from one decomposition of all rows.

With R = alpha (K + alpha)^-1, which takes responses to the residuals of the fit to all rows, the residuals of rows F
after a fit without them are ``R_FF^-1 (R y)_F``: the formula of leave-one-out, for blocks. With an intercept that is
not penalised R also takes out the mean, and the formula stays exact. It spares the decomposition of each training
set, at a cost that grows with penalties times rows of a fold, so that it pays for few units and many folds.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .design import SpectralDesign
from .matrix import parts
from .moments import SCORES, Moments

# Penalties in units of the largest eigenvalue: below the first, residuals along axes that the stimuli leave free drown
# all others; beyond the second, a prediction is lost among the digits of its residual.
NEAREST = {torch.float32: 1e-10, torch.float64: 1e-8}
FARTHEST = {torch.float32: 1e6, torch.float64: 1e3}


def applies(design: SpectralDesign) -> bool:
    """Whether every fold trains on all that it does not test, in a design of inner products."""
    if not design.dual or design.standardise or len(design.layouts) > 1:
        return False
    n_atoms = len(design.layouts[0].atoms)
    trains = design.layouts[0].trains
    return all(len(tests) == 1 and len(train) + len(tests[0].atoms) == n_atoms for train, tests in trains)


def keeps_digits(design: SpectralDesign, alphas: np.ndarray) -> bool:
    """Whether all penalties lie where residuals and predictions keep their digits."""
    top = design.everything()[0]
    return alphas[0] >= NEAREST[design.dtype] * top and alphas[-1] <= FARTHEST[design.dtype] * top


def held_out_scores(design: SpectralDesign, Y: Tensor, alphas: np.ndarray, score: str) -> list[Tensor]:
    """Scores of every alpha, per fold, each of shape (alpha, unit), float64.

    Parameters
    ----------
    design : SpectralDesign
        One that `applies`.
    Y : Tensor of float64, shape (row, unit)
    alphas : ndarray, shape (alpha,)
    score : {"r", "r2"}
    """
    top, eigenvalues, vectors, constant = design.everything()
    loadings = vectors.T @ Y
    folds = [(trials[0], design.rows_of(0, trials[0].atoms)) for _, trials in design.layouts[0].trains]
    folds.sort(key=lambda fold: fold[0].fold)
    scores = [torch.empty(len(alphas), Y.shape[1], dtype=torch.float64, device=Y.device) for _ in folds]
    relative = torch.from_numpy(alphas / top).to(Y.device)
    # What each penalty leaves of a response along each axis, but for a common factor.
    lefts = (1 + relative[:, None]) / (eigenvalues + relative[:, None])
    if constant is not None:
        lefts[:, constant] = 0.0
    together = max(1, 2048 // max(Y.shape[1], 1))  # penalties in one product, which narrow ones would be slow in
    for k, left in enumerate(lefts):
        if k % together == 0:
            some = lefts[k : k + together].T[:, :, None] * loadings[:, None, :]  # (axis, alpha, unit)
            several = (vectors @ some.reshape(len(vectors), -1)).view(len(vectors), -1, Y.shape[1])
        residuals = several[:, k % together]
        for table, (_, rows) in zip(scores, folds, strict=True):
            factor = torch.linalg.cholesky(_lower(vectors[rows], left))
            error = torch.cholesky_solve(residuals[rows], factor)
            y = Y[rows]
            predicted = y - error
            constant_y = y.amin(0) == y.amax(0)
            centred = y - y.mean(0)
            spread = torch.where(constant_y, 0.0, centred.square().sum(0))
            offset = predicted.mean(0)
            predicted -= offset
            power = predicted.square().sum(0)
            # A prediction this narrow is constant but for the rounding of its residuals.
            power = torch.where(power > 1e-26 * (spread + len(y) * y.mean(0).square()), power, 0.0)
            cross = (predicted * centred).sum(0)
            table[k] = SCORES[score](Moments(cross, power, spread, y.mean(0) - offset, len(y)))
    return scores


def _lower(held: Tensor, left: Tensor) -> Tensor:
    """Lower triangle of ``held diag(left) held'``, with some of what is above it."""
    product = torch.zeros(len(held), len(held), dtype=held.dtype, device=held.device)
    weighted = held * left
    for part in parts(len(held), 96):
        torch.matmul(weighted[part], held[: part.stop].T, out=product[part, : part.stop])
    return product
