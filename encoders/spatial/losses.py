"""What training minimises, and correlations that are gathered batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...datasets.errors import unknown

FLOOR = 1e-6  # of a Poisson rate
FEWEST = 3  # rows that a correlation needs: that of two is 1 or -1, whatever they hold


@dataclass(frozen=True)
class Loss:
    """What training minimises, and how outputs of a module become responses.

    Attributes
    ----------
    name : str
    standardised : bool
        Whether modules are trained on responses in standard deviations from their mean; else on responses as they are.
    link : callable
        From outputs of a module to responses, on the scale of training.
    calibrated : bool
        Whether the minimum fixes scale and offset of the outputs.
    """

    name: str
    standardised: bool
    link: Callable[[Tensor], Tensor]
    calibrated: bool
    value: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def __call__(self, predicted: Tensor, Y: Tensor, known: Tensor | None = None) -> Tensor:
        """The loss of outputs (row, unit) of a module, before the link, against responses, where they are known.

        Parameters
        ----------
        predicted, Y : Tensor, shape (row, unit)
            What Y holds where it is not known does not count, unless it is not finite.
        known : Tensor of bool, shape (row, unit), or None
            Which entries of Y count; None is all of them.

        Returns
        -------
        Tensor, a number
        """
        return self.value(predicted, Y, known)

    def start(self, mean: np.ndarray) -> Tensor:
        """Bias, shape (unit,), at which an output without any stimulus predicts the mean on the scale of training."""
        if self.standardised:
            return torch.zeros(len(mean))
        rate = torch.from_numpy(np.maximum(mean, 1e-3)).float()
        return rate + torch.log(-torch.expm1(-rate))  # the inverse of softplus


def squared_error(predicted: Tensor, Y: Tensor, known: Tensor | None = None) -> Tensor:
    """Mean squared error over the known entries."""
    if known is None:
        return F.mse_loss(predicted, Y)
    squares = torch.where(known, predicted - Y, 0.0).square()
    return squares.sum() / known.sum().clamp(min=1)


def one_minus_correlation(predicted: Tensor, Y: Tensor, known: Tensor | None = None) -> Tensor:
    """One minus the Pearson correlation over the known rows of a batch, mean over units with at least three of them."""
    if known is None:
        known = torch.ones_like(Y, dtype=torch.bool)
    n = known.sum(0)
    share = known / n.clamp(min=1)
    p = torch.where(known, predicted - (share * predicted).sum(0), 0.0)
    y = torch.where(known, Y - (share * torch.where(known, Y, 0.0)).sum(0), 0.0)
    scale = ((share * p.square()).sum(0) + 1e-8).sqrt() * ((share * y.square()).sum(0) + 1e-8).sqrt()
    r = (share * p * y).sum(0) / scale
    counts = n >= FEWEST
    return torch.where(counts, 1 - r, 0.0).sum() / counts.sum().clamp(min=1)


def poisson(predicted: Tensor, Y: Tensor, known: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of counts, less what does not depend on the rate; mean over the known entries."""
    rate = positive_rate(predicted)
    terms = rate - Y * rate.log()
    if known is None:
        return terms.mean()
    return torch.where(known, terms, 0.0).sum() / known.sum().clamp(min=1)


def positive_rate(outputs: Tensor) -> Tensor:
    """Softplus of the outputs of a module: rates above zero."""
    return F.softplus(outputs) + FLOOR


def same(outputs: Tensor) -> Tensor:
    """Outputs as they are."""
    return outputs


LOSSES = {
    loss.name: loss
    for loss in (
        Loss("mse", True, same, True, squared_error),
        Loss("correlation", True, same, False, one_minus_correlation),
        Loss("poisson", False, positive_rate, True, poisson),
    )
}


def checked_loss(name: object) -> Loss:
    """The loss of a name.

    Raises
    ------
    ValueError
        If there is none of this name.
    """
    if not isinstance(name, str) or name not in LOSSES:
        raise ValueError(unknown("loss", name, LOSSES))
    return LOSSES[name]


class StreamingCorrelation:
    """Pearson correlation of each unit from batches of rows, in one pass.

    Moments are float64 and taken about the first known response and its prediction, so that an offset far above the
    standard deviation costs no digits.

    Parameters
    ----------
    n_units : int
    device : torch.device or str
        Where moments are gathered; it has to know float64.
    """

    def __init__(self, n_units: int, device: torch.device | str = "cpu"):
        self.n = torch.zeros(n_units, dtype=torch.float64, device=device)
        self._pivot = torch.zeros(2, n_units, dtype=torch.float64, device=device)
        self._sums = torch.zeros(5, n_units, dtype=torch.float64, device=device)  # p, y, pp, yy, py

    def update(self, predicted: Tensor, Y: Tensor, known: Tensor | None = None) -> None:
        """Take in rows of predictions and responses, both (row, unit), where they are known."""
        p, y = (values.detach().to(self.n.device).double() for values in (predicted, Y))
        if not len(p):
            return
        known = torch.ones_like(y, dtype=torch.bool) if known is None else known.to(self.n.device)
        new = (self.n == 0) & known.any(0)
        if new.any():
            first = known.int().argmax(0)[None]
            found = torch.cat([p.gather(0, first), y.gather(0, first)])
            self._pivot = torch.where(new, found, self._pivot)
        p, y = torch.where(known, p - self._pivot[0], 0.0), torch.where(known, y - self._pivot[1], 0.0)
        self.n += known.sum(0)
        self._sums += torch.stack([p.sum(0), y.sum(0), (p * p).sum(0), (y * y).sum(0), (p * y).sum(0)])

    def _central(self) -> tuple[Tensor, Tensor, Tensor]:
        n = self.n.clamp(min=1)
        p, y, pp, yy, py = self._sums
        return pp - p * p / n, yy - y * y / n, py - p * y / n

    def r(self) -> np.ndarray:
        """Correlations, shape (unit,); NaN where either side is constant or fewer than three rows are known."""
        vp, vy, c = self._central()
        _, _, pp, yy, _ = self._sums
        varies = (vp > 1e-13 * pp) & (vy > 1e-13 * yy) & (self.n >= FEWEST)
        r = c / (vp * vy).sqrt()
        return torch.where(varies, r.clamp(-1, 1), torch.nan).cpu().numpy()

    def variation(self) -> np.ndarray:
        """Sum of squares of the known responses about their mean, shape (unit,); NaN for a constant unit."""
        _, vy, _ = self._central()
        varies = (vy > 1e-13 * self._sums[3]) & (self.n >= FEWEST)
        return torch.where(varies, vy, torch.nan).cpu().numpy()

    def line(self) -> tuple[np.ndarray, np.ndarray]:
        """Slope and intercept, shape (unit,), of the least-squares line from predictions to responses.

        Where predictions are constant the slope is 0 and the intercept the mean response.
        """
        vp, _, c = self._central()
        n = self.n.clamp(min=1)
        slope = torch.where(vp > 0, c / vp.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        mean_p, mean_y = self._sums[0] / n + self._pivot[0], self._sums[1] / n + self._pivot[1]
        return slope.cpu().numpy(), (mean_y - slope * mean_p).cpu().numpy()
