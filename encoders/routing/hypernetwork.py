"""The transformer that reads stimuli and responses of a unit and writes the weights of its linear encoder."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """Two linear layers after layer norm and leaky rectifier, beside a linear bypass.

    Parameters
    ----------
    n_in, n_hidden, n_out : int
    dropout : float
    """

    def __init__(self, n_in: int, n_hidden: int, n_out: int, dropout: float = 0.0):
        super().__init__()
        self.norm_in, self.norm_hidden = nn.LayerNorm(n_in), nn.LayerNorm(n_hidden)
        self.into, self.out, self.bypass = nn.Linear(n_in, n_hidden), nn.Linear(n_hidden, n_out), nn.Linear(n_in, n_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """From (..., n_in) to (..., n_out)."""
        h = self.into(self.dropout(F.leaky_relu(self.norm_in(x), 0.1)))
        return self.bypass(x) + self.out(self.dropout(F.leaky_relu(self.norm_hidden(h), 0.1)))


class ContextBlock(nn.Module):
    """Self-attention, then a gated feed-forward layer, each after layer norm and added to its input.

    The queries are multiplied by the logarithm of the length of the sequence: a softmax over more tokens is flatter,
    and this keeps it as sharp whatever their number.

    Parameters
    ----------
    width, heads, hidden : int
    dropout : float
    scale_length : bool
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0, scale_length: bool = True):
        super().__init__()
        self.heads, self.scale_length, self.p = heads, scale_length, dropout
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value, self.project = (nn.Linear(width, m * width) for m in (1, 2, 1))
        self.gate, self.feed = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, n_read: int | None = None) -> Tensor:
        """New values of the first `n_read` tokens, or of all.

        Parameters
        ----------
        tokens : Tensor, shape (unit, token, width)
        n_read : int or None

        Returns
        -------
        Tensor, shape (unit, n_read, width)
        """
        units, length, width = tokens.shape
        normed, kept = self.norm_attention(tokens), tokens if n_read is None else tokens[:, :n_read]
        asked = normed if n_read is None else normed[:, :n_read]
        q = self.query(asked * math.log(length) if self.scale_length else asked)
        k, v = self.key_value(normed).chunk(2, -1)
        q, k, v = (t.unflatten(-1, (self.heads, width // self.heads)).transpose(1, 2) for t in (q, k, v))
        found = F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.0)
        x = kept + self.dropout(self.project(found.transpose(1, 2).reshape(units, -1, width)))
        gate, value = self.gate(self.norm_feed(x)).chunk(2, -1)
        return x + self.dropout(self.feed(F.silu(gate) * value))


class Hypernetwork(nn.Module):
    """From a context, (stimulus, response) pairs of a unit, to the weights of a linear encoder of this unit.

    A pair is one token, the context a set of them without order; registers stand before them, and the first register
    of the last layer is read out.

    Parameters
    ----------
    n_features, width, layers, heads, registers : int
    hidden : int
        Of the feed-forward layers.
    dropout : float
    scale_length : bool

    References
    ----------
    Yu, M. et al. (2025). Meta-learning an in-context transformer model of human higher visual cortex. NeurIPS 38.
    """

    def __init__(
        self,
        n_features: int,
        width: int,
        layers: int,
        heads: int,
        registers: int,
        hidden: int,
        dropout: float = 0.0,
        scale_length: bool = True,
    ):
        super().__init__()
        self.embed = ResidualBlock(n_features + 1, 2 * width, width, dropout)
        self.registers = nn.Parameter(0.02 * torch.randn(registers, width))
        self.blocks = nn.ModuleList(ContextBlock(width, heads, hidden, dropout, scale_length) for _ in range(layers))
        self.write = ResidualBlock(width, 2 * width, n_features + 1, dropout)

    def decayed(self) -> Iterator[nn.Parameter]:
        """Parameters that weight decay shrinks: matrices, without the registers."""
        return (p for name, p in self.named_parameters() if p.ndim >= 2 and name != "registers")

    def forward(self, x: Tensor, responses: Tensor) -> Tensor:
        """Weights and intercept of each unit.

        Parameters
        ----------
        x : Tensor, shape (stimulus, feature)
            Stimuli that all units of the context share.
        responses : Tensor, shape (unit, stimulus)

        Returns
        -------
        Tensor, shape (unit, feature + 1)
            The intercept is last.
        """
        units = len(responses)
        pairs = torch.cat([x.expand(units, -1, -1), responses[..., None].to(x.dtype)], -1)
        tokens = torch.cat([self.registers.expand(units, -1, -1), self.embed(pairs)], 1)
        for i, block in enumerate(self.blocks):
            # Nothing but the first register is read of the last layer.
            tokens = block(tokens, 1 if i == len(self.blocks) - 1 else None)
        return self.write(tokens[:, 0])


def predictions(weights: Tensor, x: Tensor) -> Tensor:
    """Responses of linear encoders: weights (unit, feature + 1), stimuli (stimulus, feature), to (unit, stimulus)."""
    return weights[:, :-1] @ x.T + weights[:, -1:]
