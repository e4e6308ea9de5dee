"""Attention with queries that no image changes: forward and backward without what the published code materialises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..products import product

_CACHE = 2**21  # bytes of attention that stay in the cache of a core
_KEPT = 2**28  # bytes of attention that are kept for the backward pass; beyond that it is computed again
_UNITS = 512  # queries of units at a time: products large enough, attention still in the cache


class Workspace:
    """One large buffer that is handed from step to step: a fresh one costs more in page faults than what fills it."""

    def __init__(self) -> None:
        self._free: Tensor | None = None

    def take(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A buffer of a shape, with anything in it; nobody else has it until it is given back."""
        free, self._free = self._free, None
        if free is not None and (tuple(free.shape), free.dtype, free.device) == (shape, like.dtype, like.device):
            return free
        return like.new_empty(shape)

    def give(self, buffer: Tensor) -> None:
        """Take a buffer back that nobody reads any more."""
        self._free = buffer

    def __deepcopy__(self, memo: dict[int, Any]) -> Workspace:
        return Workspace()

    def __getstate__(self) -> dict[str, Any]:
        return {"_free": None}


def _softmax_gradient(da: Tensor, a: Tensor) -> Tensor:
    """Gradient of the logits from that of the weights ``a``, along the last axis."""
    fused = getattr(torch, "_softmax_backward_data", None)
    if fused is None:
        return a * (da - (a * da).sum(-1, keepdim=True))
    return fused(da, a, -1, a.dtype)


def _wide(x: Tensor) -> torch.dtype:
    """What sums over images are kept in."""
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


def _chunks(x: Tensor, m: int) -> Iterator[slice]:
    """Images whose attention fits into the cache of a core together; all of them on another device."""
    b, t = x.shape[:2]
    step = b if x.device.type != "cpu" else max(1, _CACHE // (m * t * x.element_size()))
    return (slice(i, min(i + step, b)) for i in range(0, b, step))


def _rows_by_tokens(U: Tensor, x: Tensor) -> Tensor:
    """``U @ x_b'`` for the images of a chunk: U (m, d) or (b, m, d), x (b, t, d); the answer is (b, m, t)."""
    if x.shape[0] == 1:
        return product(U[0] if U.ndim == 3 else U, x[0].T)[None]
    if U.ndim == 2:
        return torch.matmul(U, x.transpose(1, 2))
    return torch.bmm(U, x.transpose(1, 2))


def _pooled(a: Tensor, x: Tensor) -> Tensor:
    """``a_b @ x_b``: (b, m, t) and (b, t, d) to (b, m, d)."""
    return product(a[0], x[0])[None] if x.shape[0] == 1 else torch.bmm(a, x)


def _attend(x: Tensor, u: Tensor, s: Tensor | None, a: Tensor, z: Tensor) -> None:
    """Weights into ``a`` and what they pool into ``z``, of the images of a chunk."""
    if len(x) == 1 and x.dtype != torch.float32:
        torch.mm(u, x[0].T, out=a[0])
        logits = a
    else:
        logits = _rows_by_tokens(u, x)
    if s is not None:
        logits += s
    torch.softmax(logits, -1, out=a)
    if len(x) == 1 and x.dtype == torch.float32:
        z.copy_(_pooled(a, x))
    else:
        torch.bmm(a, x, out=z) if len(x) > 1 else torch.mm(a[0], x[0], out=z[0])


class FoldedAttention(torch.autograd.Function):
    """Tokens pooled with ``softmax_t(u . x_t + s_t)``, keys and values folded into the queries.

    Queries that do not depend on the image leave one product on each side of the softmax: neither keys nor values are
    ever formed. Images pass one by one, or as many at a time as leave their attention in the cache.

    Arguments of ``apply``: tokens x (image, token, feature), folded queries u (route, feature), logits of places s
    (route, token) or None, and ``detach_routing``, which lets gradients of the tokens pass through the values alone.
    The answer is (image, route, feature).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, u: Tensor, s: Tensor | None, detach_routing: bool = False) -> Tensor:
        b, t, d = x.shape
        m = u.shape[0]
        needed = any(ctx.needs_input_grad)
        z = x.new_empty(b, m, d)
        chunks = list(_chunks(x, m))
        a = x.new_empty(b if needed else chunks[0].stop, m, t)
        for rows in chunks:
            _attend(x[rows], u, s, a[rows] if needed else a[: rows.stop - rows.start], z[rows])
        if needed:
            ctx.save_for_backward(x, u, a)
        ctx.detach_routing = detach_routing
        ctx.has_places = s is not None
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        x, u, kept = ctx.saved_tensors
        wants_x, wants_u = ctx.needs_input_grad[:2]
        wants_s = ctx.has_places and ctx.needs_input_grad[2]
        m, t = kept.shape[1:]
        dx = torch.empty_like(x) if wants_x else None
        du = torch.zeros(u.shape, dtype=_wide(x), device=x.device) if wants_u else None
        ds = torch.zeros((m, t), dtype=_wide(x), device=x.device) if wants_s else None
        through_routes = wants_u or wants_s or (wants_x and not ctx.detach_routing)
        dz = dz.contiguous()
        for rows in _chunks(x, m):
            xs, a = x[rows], kept[rows]
            if dx is not None:
                dx[rows] = _pooled(a.transpose(1, 2), dz[rows])
            if not through_routes:
                continue
            dl = _softmax_gradient(_rows_by_tokens(dz[rows], xs), a)
            if du is not None:
                flat = dl.transpose(0, 1).reshape(m, -1)
                du += product(flat, xs.reshape(-1, xs.shape[2]))
            if ds is not None:
                ds += dl.sum(0, dtype=ds.dtype)
            if dx is not None and not ctx.detach_routing:
                dx[rows] += _pooled(dl.transpose(1, 2), u.expand(len(xs), -1, -1))
        return dx, None if du is None else du.to(u.dtype), None if ds is None else ds.to(u.dtype), None


class UnitAttention(torch.autograd.Function):
    """Attention of many queries that no image changes, with keys and values formed once.

    Image by image and head by head, units pass in chunks whose attention stays in the cache. It is kept for the
    backward pass only while all of it is small, and else computed again, so that memory grows with units and not with
    units times tokens.

    Arguments of ``apply``: scaled queries q (head, unit, e), keys k and values w (image, head, token, e), logits of
    places s (head, unit, token) or None, the `Workspace` that attention is kept in, the number of units in a chunk,
    and the bytes of attention that are kept. The answer is (image, unit, head, e).
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        w: Tensor,
        s: Tensor | None,
        workspace: Workspace | None = None,
        chunk: int = _UNITS,
        keep: int = _KEPT,
    ) -> Tensor:
        (h, v, e), (b, _, t, _) = q.shape, k.shape
        needed = any(ctx.needs_input_grad)
        fits = b * h * v * t * q.element_size() <= keep
        out = q.new_empty(b, h, v, e)
        kept = (workspace or Workspace()).take((b, h, v, t), q) if needed and fits else None
        buffer = q.new_empty(min(chunk, v), t) if kept is None else None
        for i in range(b):
            for j in range(h):
                for first in range(0, v, chunk):
                    units = slice(first, min(first + chunk, v))
                    a = buffer[: units.stop - first] if kept is None else kept[i, j, units]  # type: ignore[index]
                    _unit_weights(q, k, s, i, j, units, a)
                    torch.mm(a, w[i, j], out=out[i, j, units])
        ctx.save_for_backward(q, k, w, s)
        ctx.kept, ctx.workspace, ctx.chunk = kept, workspace, chunk
        return out.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, w, s = ctx.saved_tensors
        (h, v, e), (b, _, t, _) = q.shape, k.shape
        chunk, wide = ctx.chunk, _wide(q)
        dout = dout.transpose(1, 2).contiguous()  # (b, h, v, e)
        dq = torch.zeros(q.shape, dtype=wide, device=q.device)
        dk, dw = torch.empty_like(k), torch.empty_like(w)
        ds = torch.zeros(s.shape, dtype=wide, device=s.device) if s is not None and ctx.needs_input_grad[3] else None
        width = min(chunk, v)
        buffer = q.new_empty(width, t) if ctx.kept is None else None
        da = q.new_empty(width, t)
        for i in range(b):
            for j in range(h):
                dk_ij = torch.zeros((t, e), dtype=wide, device=q.device)
                dw_ij = torch.zeros((t, e), dtype=wide, device=q.device)
                for first in range(0, v, chunk):
                    units = slice(first, min(first + chunk, v))
                    if buffer is None:
                        a = ctx.kept[i, j, units]
                    else:
                        a = buffer[: units.stop - first]
                        _unit_weights(q, k, s, i, j, units, a)
                    g = dout[i, j, units]
                    dw_ij += a.T @ g
                    dl = _softmax_gradient(torch.mm(g, w[i, j].T, out=da[: len(g)]), a)
                    dk_ij += dl.T @ q[j, units]
                    dq[j, units] += dl @ k[i, j]
                    if ds is not None:
                        ds[j, units] += dl
                dk[i, j], dw[i, j] = dk_ij, dw_ij
        if ctx.kept is not None and ctx.workspace is not None:
            ctx.workspace.give(ctx.kept)
        ctx.kept = None
        return dq.to(q.dtype), dk, dw, None if ds is None else ds.to(q.dtype), None, None, None


def _unit_weights(q: Tensor, k: Tensor, s: Tensor | None, i: int, j: int, units: slice, out: Tensor) -> None:
    """Attention of some units in one head of one image, into ``out``."""
    torch.mm(q[j, units], k[i, j].T, out=out)
    if s is not None:
        out += s[j, units]
    torch.softmax(out, -1, out=out)


class HeadValues(torch.autograd.Function):
    """Values of pooled tokens, head by head: z (image, head, query, d) and w (head, e, d) to (image, query, head * e).

    The gradient of z, as large as z, is written once, in the layout in which attention reads it.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, w: Tensor) -> Tensor:
        (b, h, n, _), e = z.shape, w.shape[1]
        ctx.save_for_backward(z, w)
        values = z.new_empty(b * n, h * e)
        for j in range(h):
            values[:, j * e : (j + 1) * e] = product(z[:, j].reshape(b * n, -1), w[j].T)
        return values.view(b, n, h * e)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dvalues: Tensor) -> tuple[Tensor | None, Tensor | None]:
        z, w = ctx.saved_tensors
        (b, h, n, d), e = z.shape, w.shape[1]
        dz = torch.empty_like(z) if ctx.needs_input_grad[0] else None
        dw = torch.empty_like(w) if ctx.needs_input_grad[1] else None
        for j in range(h):
            g = dvalues[..., j * e : (j + 1) * e].reshape(b * n, e)
            if dz is not None:
                dz[:, j] = product(g, w[j]).view(b, n, d)
            if dw is not None:
                dw[j] = product(g.T, z[:, j].reshape(b * n, d))
        return dz, dw


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, A: Tensor, W: Tensor) -> Tensor:
        ctx.save_for_backward(A, W)
        return product(A, W.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        A, W = ctx.saved_tensors
        dA = product(dy, W) if ctx.needs_input_grad[0] else None
        dW = product(dy.T, A) if ctx.needs_input_grad[1] else None
        return dA, dW


def product_grad(A: Tensor, W: Tensor) -> Tensor:
    """``A @ W'`` with the forward and both backward products at the rate of the hardware.

    Parameters
    ----------
    A : Tensor, shape (..., k)
    W : Tensor, shape (n, k)

    Returns
    -------
    Tensor, shape (..., n)
    """
    if A.dtype != torch.float32 or A.device.type != "cpu":
        return F.linear(A, W)
    return _Product.apply(A.reshape(-1, A.shape[-1]), W).view(*A.shape[:-1], len(W))
