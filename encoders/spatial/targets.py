"""Responses as training takes them: which units can be fitted, and on what scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..linear.matrix import parts
from .losses import FEWEST, Loss

BLOCK = 2**25  # numbers in float64 at a time


@dataclass(frozen=True, eq=False)
class Targets:
    """Responses of the units that can be fitted, on the scale of training.

    Attributes
    ----------
    kept : ndarray of int, shape (unit,)
        Columns of the responses.
    fill : ndarray of float64, shape (column,)
        What the other columns are predicted as: NaN, or the constant that they are.
    mean, std : ndarray of float64, shape (unit,)
        Over the known training rows; 0 and 1 for a loss on responses as they are.
    raw_mean : ndarray of float64, shape (unit,)
        Mean over the known training rows, whatever the loss.
    Y : Tensor of float32, shape (stimulus, unit)
        Zero where a response is not known.
    known : Tensor of bool, shape (stimulus, unit), or None
        None where all are known.
    n_missing, n_constant : int
        Columns that are left out for want of responses, and that are constant.
    """

    kept: np.ndarray
    fill: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    raw_mean: np.ndarray
    Y: Tensor
    known: Tensor | None
    n_missing: int
    n_constant: int

    def remarks(self) -> Iterator[str]:
        """What became of the columns that are not fitted."""
        v = len(self.fill)
        if self.n_missing:
            yield (
                f"{self.n_missing} of {v} units have fewer than {FEWEST} known responses among the stimuli trained on "
                "and are left out: their predictions are NaN"
            )
        if self.n_constant:
            yield (
                f"{self.n_constant} of {v} units are constant over the stimuli trained on and are predicted as their "
                "constant"
            )


def make_targets(Y: np.ndarray, train_rows: np.ndarray, loss: Loss) -> Targets:
    """Which units of responses (stimulus, unit) can be fitted, and what they are trained on.

    Parameters
    ----------
    Y : ndarray, shape (stimulus, unit)
        NaN where a response is missing.
    train_rows : ndarray of int
        The rows that offsets and scales are taken from.
    loss : Loss

    Returns
    -------
    Targets

    Raises
    ------
    ValueError
        If no unit has responses, or counts are negative.
    """
    n, v = Y.shape
    mean, std, fill = np.empty(v), np.ones(v), np.full(v, np.nan)
    enough, constant = np.empty(v, bool), np.empty(v, bool)
    blocks = list(parts(v, max(BLOCK // n, 1)))
    for part in blocks:
        values = Y[train_rows, part].astype(np.float64)
        there = ~np.isnan(values)
        count = there.sum(0)
        first = values[there.argmax(0), np.arange(values.shape[1])]
        about = np.where(there, values - first, 0.0)  # about a value of theirs, a constant is zero without rounding
        shift = about.sum(0) / np.maximum(count, 1)
        spread = np.where(there, about - shift, 0.0)
        enough[part], constant[part] = count >= FEWEST, (about == 0).all(0)
        mean[part], std[part] = first + shift, np.sqrt((spread**2).sum(0) / np.maximum(count, 1))
        if not loss.standardised:
            negative = np.nanmin(np.where(np.isnan(Y[:, part]), 0, Y[:, part]), 0) < 0
            if negative.any():
                unit = part.start + int(negative.argmax())
                raise ValueError(
                    f"Y is negative in unit {unit} (least value {np.nanmin(Y[:, unit]):g}), and loss={loss.name!r} is "
                    "for counts; take loss='mse', or responses that were not centred"
                )
    if not enough.any():
        raise ValueError(
            f"every unit of Y (shape {Y.shape}) has fewer than {FEWEST} known responses among the {len(train_rows)} "
            "stimuli trained on; leave out the stimuli without responses"
        )
    flat = constant | ~(std > 1e-9 * np.abs(mean))
    fill = np.where(enough & flat, mean, np.nan)
    kept = np.flatnonzero(enough & ~flat)
    targets = torch.empty(n, len(kept))
    known = torch.empty(n, len(kept), dtype=torch.bool)
    centre, scale = (mean[kept], std[kept]) if loss.standardised else (np.zeros(len(kept)), np.ones(len(kept)))
    for part in parts(len(kept), max(BLOCK // n, 1)) if len(kept) else ():
        values = (Y[:, kept[part]] - centre[part]) / scale[part]
        there = ~np.isnan(values)
        targets[:, part] = torch.from_numpy(np.where(there, values, 0.0)).float()
        known[:, part] = torch.from_numpy(there)
    return Targets(
        kept,
        fill,
        centre,
        scale,
        mean[kept],
        targets,
        None if bool(known.all()) else known,
        int((~enough).sum()),
        int((enough & flat).sum()),
    )
