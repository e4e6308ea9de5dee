"""Scores from moments of predictions and responses, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """What a score needs to know of predictions p and responses y on the test rows, for each unit."""

    cross: Tensor  # sum of (p - mean p)(y - mean y)
    power: Tensor  # sum of (p - mean p)^2
    spread: Tensor  # sum of (y - mean y)^2
    bias: Tensor | float  # mean y - mean p; read by "r2" alone
    n: int


def pearson(m: Moments) -> Tensor:
    """Pearson correlation; NaN where predictions or responses are constant."""
    norm = m.power.clamp(min=0).sqrt() * m.spread.sqrt()
    return torch.where(norm > 0, m.cross / norm, torch.nan).clamp(-1, 1)


def determination(m: Moments) -> Tensor:
    """R^2, 1 - residual / spread about the mean of the test rows; NaN where responses are constant."""
    residual = m.spread - 2 * m.cross + m.power + m.n * m.bias**2
    return torch.where(m.spread > 0, 1 - residual / m.spread, torch.nan)


SCORES: dict[str, Callable[[Moments], Tensor]] = {"r": pearson, "r2": determination}


def choose(scores: np.ndarray, tolerance: float) -> np.ndarray:
    """Row of the best score of each column: the last among ties, and the last where no score is defined.

    Parameters
    ----------
    scores : ndarray, shape (alpha, unit)
        Alphas ascending.
    tolerance : float
        Scores that differ by no more are ties.
    """
    tied = scores >= np.fmax.reduce(scores, axis=0) - tolerance
    return len(scores) - 1 - np.argmax(tied[::-1], axis=0)
