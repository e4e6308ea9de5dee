"""A mask over places times weights of features, for each unit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...datasets.errors import unknown
from ..routing.kernels import product_grad
from .base import GradientReadout
from .parameters import require_number
from .sampling import by_blocks
from .setup import Finished, Setup
from .training import Fitted
from .unit_ridge import masked_ridge, pooled_start

MASKS = ("softmax", "l2", "free")
MARGIN = 0.01  # of r: what lies below is luck in the epoch that training stopped at


class FactorizedReadout(GradientReadout):
    """Each unit reads one weighted sum of features at all places, through a mask over places of its own.

    ``y_v = b_v + sum_t s_vt <w_v, x_t>``: in place of a weight for each place and feature, their outer product.
    Training starts at a uniform mask and ridge on the mean token. With `refit`, the features' weights and the intercept
    of each unit are then solved in closed form with its mask held fixed.

    Parameters
    ----------
    mask : {"softmax", "l2", "free"}
        Positive masks that sum to one; masks of any sign and of length one, s / (||s|| + 1e-6); or masks as they are.
    l1 : float
        Weight of sum_t |s_vt| * sum_c |w_vc|, summed over units: the absolute weights of the outer product.
    refit : bool
        Ridge on the masked features, the penalty of each unit chosen by the rows that training stopped by, weights from
        those and the training rows together. A unit whose trained weights predict those rows clearly better, with an r
        more than 0.01 above, keeps them. Not done for loss="poisson", which has no closed form.
    grid : (height, width) or None
        Places of the tokens; a mask needs none.
    loss : {"mse", "correlation", "poisson"}
    lr : float, several, or None
        None tries 0.01, 0.03 and 0.1. Masks need large steps: at rates that suit networks they hardly move, and the
        readout is under-trained where it could do well.
    weight_decay : float
        Of the features' weights.
    epochs, batch_size, patience, validation, precision, compile, checkpoint, seed, device, verbose
        As in `GradientReadout`.

    Attributes
    ----------
    masks_ : ndarray, shape (unit, height, width), or (unit, token) without a grid
        NaN for units that are left out.
    feature_weights_ : ndarray, shape (unit, feature)
        Of tokens in standard deviations, on the scale of training.
    head_ : ndarray of str, shape (unit,)
        "ridge" where the closed form was taken, "sgd" where the trained weights were kept, "" for units left out.
    alpha_ : ndarray, shape (unit,)
        Penalty of the closed form; NaN where it was not taken.

    References
    ----------
    Klindt, D. A., Ecker, A. S., Euler, T. & Bethge, M. (2017). Neural system identification for large populations
    separating "what" and "where". Advances in Neural Information Processing Systems 30.
    """

    _rates = (1e-2, 3e-2, 1e-1)

    def __init__(
        self,
        mask="softmax",
        l1=0.0,
        refit=True,
        grid=None,
        loss="mse",
        lr=None,
        weight_decay=1e-4,
        epochs=120,
        batch_size=128,
        patience=15,
        validation=0.1,
        precision="float32",
        compile=False,
        checkpoint=None,
        seed=0,
        device="auto",
        verbose=None,
    ):
        self.mask = mask
        self.l1 = l1
        self.refit = refit
        self.grid = grid
        self.loss = loss
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.patience = patience
        self.validation = validation
        self.precision = precision
        self.compile = compile
        self.checkpoint = checkpoint
        self.seed = seed
        self.device = device
        self.verbose = verbose

    def _build(self, setup: Setup, lr: float) -> nn.Module:
        if self.mask not in MASKS:
            raise ValueError(unknown("mask", self.mask, MASKS))
        require_number("l1", self.l1, zero=True)
        noise = 1e-3 * torch.randn(setup.n_units, setup.n_tokens, generator=setup.generator)
        return FactorizedModule(pooled_start(setup), noise, setup.bias, self.mask, float(self.l1))

    def _finish(self, module: nn.Module, setup: Setup, fitted: Fitted) -> Finished:
        assert isinstance(module, FactorizedModule)
        r, solved = fitted.validation_r, np.zeros(setup.n_units, bool)
        alpha = np.full(setup.n_units, np.nan)
        if self.refit and setup.loss.standardised:
            ridge = masked_ridge(module.masks(), setup)
            solved = ridge.r.numpy() >= np.nan_to_num(r, nan=-np.inf) - MARGIN
            module.take(torch.from_numpy(solved), ridge.weights, ridge.intercept)
            r, alpha = np.where(solved, ridge.r, r), np.where(solved, ridge.alpha, np.nan)
        places = setup.grid or (setup.n_tokens,)
        self.masks_ = whole(module.masks().detach().cpu().numpy(), setup).reshape(setup.n_all, *places)
        self.feature_weights_ = whole(module.weight.detach().cpu().numpy(), setup)
        self.alpha_ = whole(alpha, setup)
        self.head_ = np.full(setup.n_all, "", "U5")
        self.head_[setup.kept] = np.where(solved, "ridge", "sgd")
        return Finished(module, r, solved)


class FactorizedModule(nn.Module):
    """Masks times features' weights.

    Parameters
    ----------
    weight : Tensor, shape (unit, feature)
        Of the mean token, where training starts.
    noise : Tensor, shape (unit, token)
        What masks differ by from a uniform one, relative to it.
    bias : Tensor, shape (unit,)
    mask : {"softmax", "l2", "free"}
    l1 : float
    """

    def __init__(self, weight: Tensor, noise: Tensor, bias: Tensor, mask: str, l1: float = 0.0):
        super().__init__()
        n_tokens = noise.shape[1]
        self.mask, self.l1 = mask, l1
        self.place = nn.Parameter(noise if mask == "softmax" else (1 + noise) / n_tokens**0.5)
        self.weight = nn.Parameter(weight if mask == "softmax" else weight / n_tokens**0.5)
        self.bias = nn.Parameter(bias.clone())

    def masks(self) -> Tensor:
        """Masks as they are applied, shape (unit, token)."""
        if self.mask == "softmax":
            return self.place.softmax(1)
        if self.mask == "l2":
            return self.place / (self.place.norm(dim=1, keepdim=True) + 1e-6)
        return self.place

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (row, unit) to standardised tokens (row, token, feature)."""
        flat, masks, weight = x.flatten(1), self.masks(), self.weight

        def block(units: slice) -> Tensor:
            # One product with the outer products, which a stimulus shares, in place of (row, token, unit) responses.
            return product_grad(flat, (masks[units, :, None] * weight[units, None, :]).flatten(1))

        y = by_blocks(block, len(weight), 4 * flat.shape[1]) + self.bias
        if self.training and self.l1:
            penalty = (masks.abs().sum(1) * weight.abs().sum(1)).sum()
            return Charged.apply(y, self.l1 * penalty)
        return y

    def decayed(self) -> list[nn.Parameter]:
        """What weight decay shrinks: weights of features, no masks."""
        return [self.weight]

    @torch.no_grad()
    def take(self, units: Tensor, weight: Tensor, bias: Tensor) -> None:
        """Take weights and biases of some units from elsewhere.

        Parameters
        ----------
        units : Tensor of bool, shape (unit,)
        weight : Tensor, shape (unit, feature)
        bias : Tensor, shape (unit,)
        """
        units = units.to(self.weight.device)
        self.weight[units] = weight.to(self.weight)[units]
        self.bias[units] = bias.to(self.bias)[units]


class Charged(torch.autograd.Function):
    """Outputs as they are, whose gradient of any loss brings along that of a penalty.

    Arguments of ``apply``: outputs, and the penalty, a number.
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, penalty: Tensor) -> Tensor:
        ctx.save_for_backward(penalty)
        return outputs.view_as(outputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (penalty,) = ctx.saved_tensors
        return gradient, torch.ones_like(penalty)


def whole(values: np.ndarray, setup: Setup) -> np.ndarray:
    """Values of the units that are fitted, (unit, ...), among all columns of the responses; NaN for the others."""
    found = np.full((setup.n_all, *values.shape[1:]), np.nan, values.dtype)
    found[setup.kept] = values
    return found
