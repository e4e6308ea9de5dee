"""A linear readout with dropout: the least that the trainer and the base of the family can be tested with."""

import torch
from torch import nn

from neuralign.encoders.spatial.base import GradientReadout


class Linear(nn.Module):
    def __init__(self, setup, dropout):
        super().__init__()
        n_features = setup.n_tokens * setup.n_features
        start = torch.randn(n_features, setup.n_units, generator=setup.generator)
        self.weight = nn.Parameter(0.01 * start / n_features**0.5)
        self.bias = nn.Parameter(setup.bias.clone())
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return torch.addmm(self.bias, self.dropout(x).flatten(1), self.weight)


class LinearReadout(GradientReadout):
    def __init__(
        self,
        dropout=0.0,
        grid=None,
        loss="mse",
        lr=None,
        weight_decay=1e-4,
        epochs=60,
        batch_size=128,
        patience=8,
        validation=0.1,
        precision="float32",
        compile=False,
        checkpoint=None,
        seed=0,
        device="cpu",
        verbose=False,
    ):
        self.dropout = dropout
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

    def _build(self, setup, lr):
        return Linear(setup, self.dropout)
