"""The attention router against the plain published computation, and what must not change its answers."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from neuralign.encoders.routing.modules import Queries, RegionHeads, RoutedResponses, Router, UnitHeads
from neuralign.encoders.routing.positions import sincos
from neuralign.encoders.routing.regions import canonical_order, patterns

_spec = importlib.util.spec_from_file_location("plain_attention", Path(__file__).with_name("plain_attention.py"))
plain_attention = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(plain_attention)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def router(n=5, d=12, grid=(3, 4), width=12, heads=3, rank=None, position="sincos", seed=0, **options):
    places = sincos(grid, d) if position == "sincos" else None
    draw = generator(seed)
    return Router(
        Queries(n, width, rank, draw), d, grid[0] * grid[1], width, heads, draw, position=position, places=places,
        **options,
    )  # fmt: skip


def region_heads(mask, width, overlap="mean", seed=3):
    found = patterns(mask, overlap)
    heads = RegionHeads(width, found, torch.randn(mask.shape[1], generator=generator(seed)), generator(seed))
    drawn = torch.randn(mask.shape[1], width, generator=generator(seed + 1))
    with torch.no_grad():
        for weight, units in zip(heads.weights, found.members, strict=True):
            weight.copy_(drawn[torch.from_numpy(units)])
    return heads


def by_unit(heads, gradient=False):
    """Weights of region heads, or their gradients, in the order of the units."""
    return torch.cat([weight.grad if gradient else weight for weight in heads.weights])[heads.back]


def images(b=4, t=12, d=12, seed=9):
    return torch.randn(b, t, d, generator=generator(seed))


def overlapping(n_regions, n_units, seed=0):
    """Every region has units, every unit a region, some units several."""
    rng = np.random.default_rng(seed)
    mask = rng.random((n_regions, n_units)) < 0.25
    mask[rng.integers(0, n_regions, n_units), np.arange(n_units)] = True
    mask[np.arange(n_regions), np.arange(n_regions)] = True
    return mask


def close(found, wanted, bound):
    """Largest difference, in units of the largest number wanted."""
    assert found.shape == wanted.shape
    found, wanted = found.detach(), wanted.detach()
    assert (found - wanted).abs().max() <= bound * wanted.abs().max().clamp(min=1e-3)


PAIRS = [  # ours, in a plain module
    ("query_embed.weight", "router.queries.basis"),
    ("attention.out_proj.weight", "router.wo"),
    ("attention.out_proj.bias", "router.bo"),
    ("linear1.weight", "router.ffn.w1"),
    ("linear2.weight", "router.ffn.w2"),
    ("norm3.weight", "router.ffn.before.weight"),
    ("final_norm.bias", "router.ffn.after.bias"),
]


def compare_with_plain(ours, plain, bound=2e-5):
    plain_attention.take_over(plain, ours.router, ours.heads)
    x, target = images(), torch.randn(4, 21, generator=generator(5))
    found, wanted = ours(x), plain(x)
    close(found, wanted, bound)
    ((found - target) ** 2).mean().backward()
    ((wanted - target) ** 2).mean().backward()
    gradients = dict(ours.named_parameters())
    theirs = dict(plain.decoder.named_parameters())
    for name, own in PAIRS:
        close(gradients[own].grad, theirs[name].grad, bound)
    dq, dk, dv = theirs["attention.in_proj_weight"].grad.chunk(3)
    for own, wanted in (("wq", dq), ("wk", dk), ("wv", dv)):
        close(gradients[f"router.{own}"].grad, wanted, bound)
    assert theirs["attention.in_proj_bias"].grad.chunk(3)[1].abs().max() < 1e-6  # that we have no bias of keys


@pytest.mark.parametrize("fold", [True, False])
def test_region_queries_equal_the_published_computation_and_its_gradients(fold):
    mask = overlapping(5, 21)
    mask[:3, 11:], mask[3:, :11] = False, False  # two hemispheres
    mask[0, 11:], mask[0, :11] = False, True
    mask[3, 11:] = True
    ours = RoutedResponses(router(ffn=16, fold=fold), region_heads(mask, 12, "sum"))
    halves = [torch.from_numpy(mask[:3, :11].astype(np.int64)), torch.from_numpy(mask[3:, 11:].astype(np.int64))]
    plain = plain_attention.PlainRegions(halves, 12, 3, 16, sincos((3, 4), 12))
    compare_with_plain(ours, plain)
    dweight = torch.cat([embed.weight.grad for embed in plain.embeds])
    dbias = torch.cat([embed.bias.grad for embed in plain.embeds])
    close(by_unit(ours.heads, gradient=True), dweight, 2e-5)
    close(ours.heads.bias.grad[ours.heads.back], dbias, 2e-5)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("own_kernel", [True, False])
def test_unit_queries_equal_the_published_computation_and_its_gradients(fold, own_kernel, monkeypatch):
    monkeypatch.setattr("neuralign.encoders.routing.modules._OWN_KERNEL", 0 if own_kernel else 10**9)
    ours = RoutedResponses(router(21, ffn=16, fold=fold), UnitHeads(12, torch.zeros(21), generator(3)))
    torch.nn.init.normal_(ours.heads.weight, generator=generator(4))
    plain = plain_attention.PlainUnits(21, 12, 3, 16, sincos((3, 4), 12))
    compare_with_plain(ours, plain)
    close(ours.heads.weight.grad, plain.embed.weight.grad, 2e-5)
    close(ours.heads.bias.grad, plain.embed.bias.grad, 2e-5)


@pytest.mark.parametrize("position", ["sincos", "learned", "map", "none"])
@pytest.mark.parametrize("ffn", [0, 16])
def test_folded_equals_unfolded(position, ffn):
    ours = router(position=position, ffn=ffn)
    if ours.map is not None:
        torch.nn.init.normal_(ours.map, generator=generator(1))
    answers = []
    for fold in (True, False):
        ours.fold = fold
        x = images().requires_grad_()
        y = ours(x)
        gradients = torch.autograd.grad((y * images(4, 5, 12, 1)).sum(), [x, *ours.parameters()])
        answers.append([y, *gradients])
    for folded, unfolded in zip(*answers, strict=True):
        close(folded, unfolded, 1e-5)


@pytest.mark.parametrize("overlap", ["mean", "sum", "first"])
def test_grouped_heads_equal_masked_heads(overlap):
    mask, x = overlapping(5, 40), images(6)
    heads, routed = region_heads(mask, 12, overlap), router()(x)
    weight, bias = by_unit(heads), heads.bias[heads.back]
    share = torch.from_numpy(mask.astype(np.float32))
    if overlap == "mean":
        share = share / share.sum(0)
    if overlap == "first":
        share = torch.eye(5)[torch.from_numpy(mask.argmax(0))].T
    every = torch.einsum("brd,vd->brv", routed, weight) + bias  # each region's token to each unit
    close(heads(routed), (every * share).sum(1), 2e-6)


@pytest.mark.parametrize("position", ["sincos", "learned", "map", "none"])
def test_attention_sums_to_one_and_is_what_pools(position):
    ours, x = router(position=position), images()
    weights = ours.weights(x)
    assert weights.shape == (4, 5, 3, 12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 5, 3), rtol=1e-6, atol=1e-6)
    assert (weights >= 0).all()
    close(ours.pooled(x), torch.einsum("bqht,btd->bqhd", weights, x), 1e-5)
    close(ours.pooled(x, slice(1, 3)), torch.einsum("bqht,btd->bqhd", weights, x)[:, 1:3], 1e-5)


@pytest.mark.parametrize("fold", [True, False])
def test_without_positions_the_order_of_tokens_does_not_matter(fold):
    x = images()
    each = torch.stack([image[torch.randperm(12, generator=generator(i))] for i, image in enumerate(x)])
    blind, placed = router(position="none", fold=fold), router(position="sincos", fold=fold)
    close(blind(each), blind(x), 1e-5)
    assert (placed(each) - placed(x)).abs().max() > 0.01
    order = torch.randperm(12, generator=generator(3))
    close(blind.weights(x[:, order]), blind.weights(x)[..., order], 1e-5)


@pytest.mark.parametrize("position", ["sincos", "learned", "map", "none"])
def test_constant_tokens_give_a_constant(position):
    ours, token = router(position=position), torch.randn(12, generator=generator(2))
    x = token.expand(4, 12, 12).contiguous()
    wanted = ours.wo @ (ours.wv @ token + ours.bv) + ours.bo
    close(ours(x), wanted.expand(4, 5, 12), 1e-5)


def test_relabelled_regions_start_alike_and_answer_alike():
    mask, x, order = overlapping(5, 20), images(), np.array([3, 1, 4, 0, 2])

    def answers(mask):
        draw = generator(0)
        queries = Queries(5, 12, None, draw, canonical_order(mask))
        ours = Router(queries, 12, 12, 12, 3, draw)
        return region_heads(mask, 12)(ours(x)), queries.basis

    first, queries = answers(mask)
    second, shuffled = answers(mask[order])
    torch.testing.assert_close(shuffled, queries[torch.from_numpy(order)])
    close(second, first, 2e-6)


def test_low_rank_queries_of_full_rank_are_unit_queries():
    x, low, full = images(), router(7, rank=7), router(7)
    with torch.no_grad():
        low.queries.mixture.copy_(torch.eye(7))
    for name, parameter in full.named_parameters():
        with torch.no_grad():
            low.get_parameter(name).copy_(parameter)
    close(low(x), full(x), 1e-6)
    assert torch.linalg.matrix_rank(router(20, rank=4).queries().detach()) == 4


def test_places_alone_route_every_image_alike():
    ours = router(position="map", content=False)
    torch.nn.init.normal_(ours.map, generator=generator(1))
    weights = ours.weights(images())
    assert torch.equal(weights, weights[:1].expand_as(weights)) and weights.std(-1).min() > 0
    assert not hasattr(ours, "wk")


def test_detached_routes_change_gradients_of_tokens_alike_folded_and_not():
    ours, x = router(), images().requires_grad_()
    found = []
    for fold in (True, False):
        ours.fold = fold
        for detach in (True, False):
            ours.detach_routing = detach
            found.append(torch.autograd.grad(ours(x).square().sum(), x)[0])
    close(found[0], found[2], 1e-5)
    close(found[1], found[3], 1e-5)
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_keys_and_values_are_folded_where_that_multiplies_less():
    """Multiplications of both ways for an image, written out."""
    for n, heads, d in ((2, 4, 64), (16, 4, 64), (40, 4, 64), (1, 1, 8), (100, 2, 16)):
        ours = router(n, d, (4, 4), d, heads)
        tokens, e = 16, d // heads
        folded = 2 * n * heads * tokens * d
        unfolded = 2 * tokens * d * d + 2 * n * heads * tokens * e
        assert ours.folds(torch.float32) == (folded < unfolded)
    ours = router(50, 768, (4, 4), 768, 16)
    assert ours.folds(torch.bfloat16) and not router(60, 768, (4, 4), 768, 16).folds(torch.bfloat16)
    assert not router(2, 64, (4, 4), 64, 4, fold=False).folds(torch.float32)


def test_dropout_acts_in_training_only():
    ours, x = router(ffn=16, dropout=0.2), images()
    torch.manual_seed(0)
    assert (ours(x) - ours(x)).abs().max() > 0.01
    ours.eval()
    assert torch.equal(ours(x), ours(x))


def test_the_published_size_has_the_published_parameters():
    ours = router(50, 768, (31, 31), 768, 16, ffn=1024)
    sizes = {name: parameter.numel() for name, parameter in ours.named_parameters()}
    ffn = sum(size for name, size in sizes.items() if name.startswith(("ffn.w", "ffn.b1")))
    attention = sum(sizes[name] for name in ("wq", "wk", "wv", "wo", "bq", "bv", "bo"))
    assert attention / 1e6 == pytest.approx(2.36, abs=0.005)
    assert ffn / 1e6 == pytest.approx(1.57, abs=0.005)
    assert sizes["queries.basis"] / 1e6 == pytest.approx(0.04, abs=0.005)
    heads = (19_004 + 20_544) * (768 + 1)
    assert heads / 1e6 == pytest.approx(30.4, abs=0.05)
    assert (sum(sizes.values()) + heads) / 1e6 == pytest.approx(34.4, abs=0.05)
