"""Modules of the attention router: standardised tokens to routed tokens to responses."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .kernels import FoldedAttention, HeadValues, UnitAttention, Workspace, product_grad
from .regions import Patterns

_OWN_KERNEL = 2**17  # queries times tokens, from which on the kernel over chunks of queries is the faster


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight' + bias`` in the dtype of x."""
    if x.dtype != torch.float32:
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    y = product_grad(x, weight)
    return y if bias is None else y + bias


def by_head(parts: Tensor, weight: Tensor) -> list[Tensor]:
    """``parts_h @ weight_h'`` for each head: parts (head, ..., k), weight (head, n, k)."""
    return [linear(part, of_head) for part, of_head in zip(parts.unbind(0), weight.unbind(0), strict=True)]


def _drawn(shape: tuple[int, ...], sd: float, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=generator) * sd)


class Queries(nn.Module):
    """Query vectors: one for each, or, with a rank, mixtures of so many.

    Parameters
    ----------
    n : int
    width : int
    rank : int or None
    generator : torch.Generator
    order : sequence of int, or None
        Which query takes the first, second, ... vector that is drawn.
    """

    def __init__(self, n: int, width: int, rank: int | None, generator: torch.Generator, order: Any = None):
        super().__init__()
        self.basis = _drawn((n if rank is None else rank, width), 1.0, generator)
        self.mixture = None if rank is None else _drawn((n, rank), rank**-0.5, generator)
        if order is not None and rank is None:
            with torch.no_grad():
                self.basis[torch.as_tensor(order)] = self.basis.clone()

    def forward(self) -> Tensor:
        """Shape (query, width)."""
        return self.basis if self.mixture is None else self.mixture @ self.basis


class Router(nn.Module):
    """Multi-head cross-attention from queries, which no image changes, to the tokens of an image.

    The published layer starts from a target of zeros: its normalisation leaves a constant, which is part of the
    queries here, and there is nothing to add its output to. The bias of keys is constant over tokens and vanishes in
    the softmax; there is none.

    Parameters
    ----------
    queries : Queries
    n_features, n_tokens, width, heads : int
    generator : torch.Generator
    content : bool
        Whether the logits depend on the tokens; otherwise on places alone.
    position : "sincos", "learned", "map" or "none"
        What is added to the keys: `places`; free vectors; or, in their stead, a free logit of each place for each query
        and head.
    places : Tensor, shape (token, feature), or None
        For "sincos".
    ffn : int
        Width of a feed-forward layer, between normalisations, as published; 0 leaves both out, and routed tokens are
        linear in what attention pools.
    dropout : float
    fold : bool or "auto"
        Whether keys and values are folded into the queries; "auto" counts the operations of both.
    """

    places: Tensor | None

    def __init__(
        self,
        queries: Queries,
        n_features: int,
        n_tokens: int,
        width: int,
        heads: int,
        generator: torch.Generator,
        *,
        content: bool = True,
        position: str = "none",
        places: Tensor | None = None,
        ffn: int = 0,
        dropout: float = 0.0,
        fold: bool | str = "auto",
    ):
        super().__init__()
        self.queries, self.heads, self.content = queries, heads, content
        self.dropout, self.fold, self.detach_routing = dropout, fold, False
        n = (queries.basis if queries.mixture is None else queries.mixture).shape[0]
        self.n_queries, self.n_tokens, self.n_features, self.width = n, n_tokens, n_features, width
        needs_keys = content or position in ("sincos", "learned")
        if needs_keys:
            self.wq, self.bq = _drawn((width, width), width**-0.5, generator), nn.Parameter(torch.zeros(width))
            self.wk = _drawn((width, n_features), n_features**-0.5, generator)
        self.wv, self.bv = _drawn((width, n_features), n_features**-0.5, generator), nn.Parameter(torch.zeros(width))
        self.wo, self.bo = _drawn((width, width), width**-0.5, generator), nn.Parameter(torch.zeros(width))
        self.register_buffer("places", places if position == "sincos" else None)
        self.learned = _drawn((n_tokens, n_features), 0.1, generator) if position == "learned" else None
        self.map = nn.Parameter(torch.zeros(heads, n, n_tokens)) if position == "map" else None
        self.has_keys = needs_keys
        self.ffn = _FeedForward(width, ffn, dropout, generator) if ffn else None
        self._workspace = Workspace()

    def routes(self) -> tuple[Tensor | None, Tensor | None]:
        """Folded queries (route, feature) and logits of places (route, token); routes are queries, head by head."""
        u = s = None
        if self.has_keys:
            wk = self.wk.view(self.heads, -1, self.n_features)
            u = torch.stack(by_head(self.scaled_queries(torch.float32), wk.transpose(1, 2))).flatten(0, 1)
            places = self.places if self.learned is None else self.learned
            if places is not None:
                s = product_grad(u, places)
            if not self.content:
                u = None
        if self.map is not None:
            s = self.map.flatten(0, 1)
        return u, s

    def scaled_queries(self, dtype: torch.dtype) -> Tensor:
        """Shape (head, query, e), over the square root of e."""
        q = linear(self.queries().to(dtype), self.wq, self.bq).view(self.n_queries, self.heads, -1)
        return q.transpose(0, 1) * (self.width // self.heads) ** -0.5

    def folds(self, dtype: torch.dtype) -> bool:
        """Whether keys and values are folded into the queries."""
        if not self.content:
            return True
        if self.fold != "auto":
            return bool(self.fold)
        if self.dropout:
            return False
        m, d, e = self.n_queries * self.heads, self.n_features, self.width // self.heads
        return m * d < d * self.width + m * e or (dtype == torch.bfloat16 and m <= 1.1 * d)

    def pooled(self, x: Tensor, queries: slice = slice(None)) -> Tensor:
        """Tokens (image, token, feature), as each head of some queries pools them: (image, query, head, feature)."""
        u, s = (self._of_queries(side, queries, x.dtype) for side in self.routes())
        if u is None:  # the same for every image
            assert s is not None
            z = torch.matmul(torch.softmax(s, -1), x)
        else:
            z = FoldedAttention.apply(x, u, s, self.detach_routing)
        return z.view(len(x), self.heads, -1, self.n_features).transpose(1, 2)

    def _of_queries(self, side: Tensor | None, queries: slice, dtype: torch.dtype) -> Tensor | None:
        if side is None:
            return None
        if queries != slice(None):
            side = side.unflatten(0, (self.heads, -1))[:, queries].flatten(0, 1)
        return side.to(dtype)

    def weights(self, x: Tensor) -> Tensor:
        """Attention in float32, shape (image, query, head, token)."""
        u, s = self.routes()
        m = self.n_queries * self.heads
        logits = x.new_zeros(len(x), m, x.shape[1]) if u is None else torch.matmul(u.to(x.dtype), x.transpose(1, 2))
        if s is not None:
            logits = logits + s.to(x.dtype)
        weights = torch.softmax(logits.float(), -1)
        return weights.view(len(x), self.heads, self.n_queries, -1).transpose(1, 2)

    def from_pooled(self, z: Tensor) -> Tensor:
        """Routed tokens (image, query, width) from `pooled`."""
        wv = self.wv.view(self.heads, -1, self.n_features)
        values = HeadValues.apply(z.transpose(1, 2), wv.to(z.dtype))
        return self._after(values + self.bv.to(z.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Routed tokens (image, query, width) of tokens (image, token, feature), computed in the dtype of x."""
        return self.from_pooled(self.pooled(x)) if self.folds(x.dtype) else self._after(self._unfolded(x))

    def _unfolded(self, x: Tensor) -> Tensor:
        """Attended values (image, query, width)."""
        b, t, _ = x.shape
        q = self.scaled_queries(x.dtype)
        places = self.places if self.learned is None else self.learned
        at_places = x if places is None else x + places.to(x.dtype)
        keys = linear(at_places.detach() if self.detach_routing else at_places, self.wk)
        values = linear(x, self.wv, self.bv)
        k, w = (side.view(b, t, self.heads, -1).transpose(1, 2) for side in (keys, values))
        s = None if self.map is None else self.map.to(x.dtype)
        rate = self.dropout if self.training else 0.0
        if rate or x.device.type != "cpu" or self.n_queries * t < _OWN_KERNEL:
            out = F.scaled_dot_product_attention(q.expand(b, -1, -1, -1), k, w, s, rate, scale=1.0)
            return out.transpose(1, 2).flatten(2)
        return UnitAttention.apply(q.contiguous(), k.contiguous(), w.contiguous(), s, self._workspace).flatten(2)

    def _after(self, values: Tensor) -> Tensor:
        u = F.dropout(linear(values, self.wo, self.bo), self.dropout, self.training)
        return u if self.ffn is None else self.ffn(u)


class _FeedForward(nn.Module):
    """``LN(u + W2 relu(W1 LN(u)))``."""

    def __init__(self, width: int, hidden: int, dropout: float, generator: torch.Generator):
        super().__init__()
        self.before, self.after, self.dropout = nn.LayerNorm(width), nn.LayerNorm(width), dropout
        self.w1, self.b1 = _drawn((hidden, width), math.sqrt(2 / width), generator), nn.Parameter(torch.zeros(hidden))
        self.w2, self.b2 = _drawn((width, hidden), hidden**-0.5, generator), nn.Parameter(torch.zeros(width))

    def forward(self, u: Tensor) -> Tensor:
        hidden = F.dropout(F.relu(linear(_normalised(self.before, u), self.w1, self.b1)), self.dropout, self.training)
        z = u + F.dropout(linear(hidden, self.w2, self.b2), self.dropout, self.training)
        return _normalised(self.after, z)


def _normalised(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


def combined(combine: Tensor | None, tokens: Tensor) -> Tensor:
    """Tokens (image, pattern, feature) of patterns of regions from those of regions."""
    return tokens if combine is None else torch.matmul(combine, tokens)


class RegionHeads(nn.Module):
    """A linear map for each unit, from the combined tokens of its regions; one product for each pattern of regions.

    Parameters
    ----------
    width : int
    found : Patterns
    bias : Tensor, shape (unit,)
        Where the biases start.
    generator : torch.Generator
    """

    combine: Tensor | None
    counts: Tensor
    back: Tensor

    def __init__(self, width: int, found: Patterns, bias: Tensor, generator: torch.Generator):
        super().__init__()
        order, sizes = torch.from_numpy(found.order), found.sizes
        repeated = torch.from_numpy(found.counts).repeat_interleave(torch.as_tensor(sizes))
        drawn = torch.randn(len(order), width, generator=generator) * (0.01 * width**-0.5)
        # An array for each pattern: its gradient is added up while it is in the cache, not written to fresh pages.
        self.weights = nn.ParameterList([nn.Parameter(part.clone()) for part in drawn[order].split(sizes)])
        self.bias = nn.Parameter(bias[order] / repeated)
        self.register_buffer("combine", found.mixing())
        self.register_buffer("counts", repeated)
        self.register_buffer("back", torch.argsort(order))
        self._in_order = bool((order == torch.arange(len(order))).all())

    def forward(self, tokens: Tensor) -> Tensor:
        """Outputs (image, unit) in float32 from routed tokens (image, region, width)."""
        of_patterns = combined(self.combine, tokens.float()).unbind(1)
        parts = [F.linear(token, weight) for token, weight in zip(of_patterns, self.weights, strict=True)]
        y = torch.cat(parts, 1) + self.counts * self.bias
        return y if self._in_order else y[:, self.back]


class UnitHeads(nn.Module):
    """A linear map for each unit, from its own token."""

    def __init__(self, width: int, bias: Tensor, generator: torch.Generator):
        super().__init__()
        self.weight = _drawn((len(bias), width), 0.01 * width**-0.5, generator)
        self.bias = nn.Parameter(bias.clone())

    def forward(self, tokens: Tensor) -> Tensor:
        """Outputs (image, unit) in float32 from routed tokens (image, unit, width)."""
        return (tokens.float() * self.weight).sum(-1) + self.bias


class RoutedResponses(nn.Module):
    """A router and its heads: standardised tokens (image, token, feature) to outputs (image, unit)."""

    router: Router
    heads: nn.Module

    def __init__(self, router: Router, heads: nn.Module):
        super().__init__()
        self.router, self.heads = router, heads

    @property
    def detach_routing(self) -> bool:
        """Whether gradients of the tokens pass through the values alone."""
        return self.router.detach_routing

    @detach_routing.setter
    def detach_routing(self, value: bool) -> None:
        self.router.detach_routing = value

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # each product is in the dtype of its tokens already
            return self.heads(self.router(x))
