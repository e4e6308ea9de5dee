"""What a module is built for, and what is left of it after a fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from .losses import Loss
from .tokens import Grid, Tokens


@dataclass(frozen=True, eq=False)
class Setup:
    """What a module is built for.

    Attributes
    ----------
    tokens : Tokens
    standard : (mean, std)
        Tensors of float32, shape (feature,), over the tokens of the training rows; modules see standardised tokens.
    Y : Tensor of float32, shape (stimulus, unit)
        Responses of the units that can be fitted, on the scale of training; zero where they are not known.
    known : Tensor of bool, shape (stimulus, unit), or None
        Which entries of Y are known; None is all of them.
    train_rows, validation_rows : ndarray of int
    kept : ndarray of int, shape (unit,)
        Columns, of the responses that were passed to `fit`, of the units that can be fitted.
    n_all : int
        Number of those columns.
    units : DataFrame or None
        Rows of the table of units, of the units that can be fitted.
    y_mean, y_std : ndarray of float64, shape (unit,)
        From the scale of training to responses: ``output * y_std + y_mean``.
    bias : Tensor of float32, shape (unit,)
        Where biases of the units start.
    loss : Loss
    generator : torch.Generator
        For the initial weights; torch's own generator is seeded alike while a module is built.
    device : torch.device
    """

    tokens: Tokens
    standard: tuple[Tensor, Tensor]
    Y: Tensor
    known: Tensor | None
    train_rows: np.ndarray
    validation_rows: np.ndarray
    kept: np.ndarray
    n_all: int
    units: pd.DataFrame | None
    y_mean: np.ndarray
    y_std: np.ndarray
    bias: Tensor
    loss: Loss
    generator: torch.Generator
    device: torch.device

    @property
    def n_tokens(self) -> int:
        """Tokens of a stimulus."""
        return self.tokens.n_tokens

    @property
    def n_features(self) -> int:
        """Features of a token."""
        return self.tokens.n_features

    @property
    def grid(self) -> Grid | None:
        """Places of the tokens."""
        return self.tokens.grid

    @property
    def n_units(self) -> int:
        """Units that can be fitted."""
        return len(self.kept)


@dataclass(frozen=True, eq=False)
class Finished:
    """A module after what follows the gradients.

    Attributes
    ----------
    module : nn.Module
        Standardised tokens to outputs, as the one that was trained.
    validation_r : ndarray, shape (unit,)
    scaled : ndarray of bool, shape (unit,), or None
        Units whose outputs have the scale of the responses whatever the loss, as those of closed forms; the others of
        a loss that fixes no scale are given theirs by least squares over the training rows.
    """

    module: nn.Module
    validation_r: np.ndarray
    scaled: np.ndarray | None = None


class Responder(nn.Module):
    """Raw tokens to responses: standardised, through a fitted module and a link, and in the units of the responses.

    Parameters
    ----------
    module : nn.Module or None
        None where no unit could be fitted.
    scales : dict of str to Tensor
        mean and inverse standard deviation (feature,) of the tokens, slope and offset (unit,) of the outputs, columns
        kept (unit,), and what the other columns are filled with, (column,).
    loss : Loss
    """

    def __init__(self, module: nn.Module | None, scales: dict[str, Tensor], loss: Loss):
        super().__init__()
        self.module, self.link = module, loss.link
        for name, value in scales.items():
            self.register_buffer(name, value.clone())

    def forward(self, tokens: Tensor) -> Tensor:
        """Responses (row, unit) to tokens (row, token, feature)."""
        scales = dict(self.named_buffers(recurse=False))
        whole = scales["fill"].expand(len(tokens), -1)
        if self.module is None:
            return whole.clone()
        standard = (tokens - scales["mean"]) * scales["inverse"]
        responses = self.link(self.module(standard).float()) * scales["slope"] + scales["offset"]
        if responses.shape[1] == whole.shape[1]:
            return responses
        return whole.index_copy(1, scales["kept"], responses)
