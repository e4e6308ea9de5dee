"""Kernels of routed attention against plain formulas and finite differences."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from neuralign.encoders.routing import kernels
from neuralign.encoders.routing.kernels import FoldedAttention, HeadValues, UnitAttention, Workspace, product_grad
from neuralign.encoders.routing.positions import sincos


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(*shape, seed=0, dtype=torch.float64, grad=True):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_(grad)


def plain_folded(x, u, s):
    logits = torch.einsum("md,btd->bmt", u, x) + (0 if s is None else s)
    weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return torch.einsum("bmt,btd->bmd", weights, x)


def plain_units(q, k, w, s):
    logits = torch.einsum("hve,bhte->bhvt", q, k) + (0 if s is None else s)
    weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return torch.einsum("bhvt,bhte->bvhe", weights, w)


@pytest.mark.parametrize("places", [False, True])
@pytest.mark.parametrize("cache", [1, 2**21])  # image by image, and all at once
def test_folded_attention_passes_gradcheck(places, cache, monkeypatch):
    monkeypatch.setattr(kernels, "_CACHE", cache)
    x, u, s = drawn(3, 5, 4), drawn(6, 4, seed=1), drawn(6, 5, seed=2) if places else None
    assert gradcheck(FoldedAttention.apply, (x, u, s, False))
    torch.testing.assert_close(FoldedAttention.apply(x, u, s, False), plain_folded(x, u, s), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("keep", [0, 2**28])  # attention computed again, and kept
@pytest.mark.parametrize("places", [False, True])
def test_unit_attention_passes_gradcheck(places, keep):
    q, k, w = drawn(2, 7, 3), drawn(2, 2, 5, 3, seed=1), drawn(2, 2, 5, 3, seed=2)
    s = drawn(2, 7, 5, seed=3) if places else None
    assert gradcheck(lambda *args: UnitAttention.apply(*args, Workspace(), 3, keep), (q, k, w, s))
    found = UnitAttention.apply(q, k, w, s, None, 3, keep)
    torch.testing.assert_close(found, plain_units(q, k, w, s), rtol=1e-12, atol=1e-12)


def test_values_of_heads_pass_gradcheck():
    z, w = drawn(3, 2, 4, 5), drawn(2, 3, 5, seed=1)
    assert gradcheck(HeadValues.apply, (z, w))
    wanted = torch.einsum("bhqd,hed->bqhe", z, w).flatten(2)
    torch.testing.assert_close(HeadValues.apply(z, w), wanted, rtol=1e-12, atol=1e-12)


def test_the_gradient_of_detached_routes_is_that_of_frozen_attention():
    x, u = drawn(2, 5, 4), drawn(6, 4, seed=1)
    g = drawn(2, 6, 4, seed=3, grad=False)
    (FoldedAttention.apply(x, u, None, True) * g).sum().backward()
    frozen = torch.softmax(torch.einsum("md,btd->bmt", u, x), -1).detach()
    wanted = torch.einsum("bmt,bmd->btd", frozen, g)
    torch.testing.assert_close(x.grad, wanted, rtol=1e-12, atol=1e-12)
    assert u.grad.abs().max() > 0


def test_the_fused_gradient_of_softmax_equals_the_formula(monkeypatch):
    a, da = torch.softmax(drawn(4, 9, grad=False), -1), drawn(4, 9, seed=1, grad=False)
    fused = kernels._softmax_gradient(da, a)
    monkeypatch.delattr(torch, "_softmax_backward_data")
    torch.testing.assert_close(fused, kernels._softmax_gradient(da, a), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(300, 70, 48), (3, 5, 4)])
def test_float32_products_and_their_gradients_equal_float64(shape):
    t, m, d = shape
    A, W = drawn(2, t, d, dtype=torch.float32), drawn(m, d, seed=1, dtype=torch.float32)
    g = drawn(2, t, m, seed=2, dtype=torch.float32, grad=False)
    y = product_grad(A, W)
    y.backward(g)
    torch.testing.assert_close(y.double(), A.double() @ W.double().T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(A.grad.double(), g.double() @ W.double(), rtol=1e-4, atol=1e-4)
    wanted = torch.einsum("btm,btd->md", g.double(), A.double())
    torch.testing.assert_close(W.grad.double(), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_folded_attention_of_large_images_in_both_precisions(dtype, bound):
    x, u = drawn(3, 200, 96, dtype=torch.float32), drawn(64, 96, seed=1, dtype=torch.float32)
    u = (u / 10).detach().requires_grad_()
    g = drawn(3, 64, 96, seed=2, dtype=torch.float32, grad=False)
    wanted = plain_folded(x.double(), u.double(), None)
    du_wanted = torch.autograd.grad((wanted * g).sum(), u)[0]
    z = FoldedAttention.apply(x.detach().to(dtype), u.to(dtype), None, False)
    du = torch.autograd.grad((z.float() * g).sum(), u)[0]
    for found, true in ((z, wanted), (du, du_wanted)):
        assert float(((found.double() - true).norm() / true.norm()).detach()) < bound


def test_a_workspace_in_use_is_not_handed_out_twice():
    q, k, w = drawn(1, 4, 2), drawn(1, 1, 3, 2, seed=1), drawn(1, 1, 3, 2, seed=2)
    workspace = Workspace()
    first = UnitAttention.apply(q, k, w, None, workspace)
    second = UnitAttention.apply(2 * q, k, w, None, workspace)  # before the backward pass of the first
    found = torch.autograd.grad(first.sum() + 0 * second.sum(), (q, k, w))
    wanted = torch.autograd.grad(plain_units(q, k, w, None).sum(), (q, k, w))
    for mine, true in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-12, atol=1e-12)
    buffer = workspace.take((1, 1, 4, 3), q)
    workspace.give(buffer)
    assert workspace.take((1, 1, 4, 3), q) is buffer
    assert workspace.take((1, 1, 4, 3), q) is not buffer


def test_nothing_is_kept_without_gradients():
    x, u = drawn(2, 5, 4, grad=False), drawn(6, 4, seed=1, grad=False)
    assert FoldedAttention.apply(x, u, None, False).grad_fn is None


def slow_sincos(height, width, d):
    """Place by place, feature by feature."""
    half = 2 * int(np.ceil(d / 4))
    out = np.zeros((height, width, 2 * half))
    for y in range(height):
        for x in range(width):
            for i in range(half):
                scale = 10000 ** (2 * (i // 2) / half)
                wave = np.cos if i % 2 else np.sin
                out[y, x, i] = wave((y + 1) / (height + 1e-6) * 2 * np.pi / scale)
                out[y, x, half + i] = wave((x + 1) / (width + 1e-6) * 2 * np.pi / scale)
    return out.reshape(height * width, -1)[:, :d]


@pytest.mark.parametrize("grid, d", [((3, 4), 8), ((1, 1), 6), ((2, 5), 6), ((4, 3), 7), ((7, 7), 1)])
def test_positions_follow_the_definition(grid, d):
    np.testing.assert_allclose(sincos(grid, d).numpy(), slow_sincos(*grid, d), atol=1e-6)
