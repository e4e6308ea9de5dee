"""Training steps of the attention router and of the plain published computation, side by side (``make bench``).

The peer is `tests/encoders/plain_attention.py`: attention that returns its full weights, every token projected to every
unit and masked afterwards, float32 and the default AdamW. Both start from the same parameters, see the same data and
have the same loss before the first step, which is checked. The backbone, which the published code runs anew in every
step, is left out of both.
"""

import copy
import json
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from neuralign.encoders.routing.modules import Queries, RegionHeads, RoutedResponses, Router, UnitHeads
from neuralign.encoders.routing.positions import sincos
from neuralign.encoders.routing.regions import patterns

ONE = Path(__file__).with_name("one_routing.py")


@dataclass(frozen=True)
class Shape:
    batch: int
    units: int
    queries: int
    grid: tuple = (31, 31)
    features: int = 768
    heads: int = 16
    ffn: int = 1024


def plain_attention():
    """The plain computation that the tests compare with."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
    try:
        import plain_attention as found
    finally:
        sys.path.pop(0)
    return found


def router(shape, draw):
    d = shape.features
    return Router(
        Queries(shape.queries, d, None, draw), d, shape.grid[0] * shape.grid[1], d, shape.heads, draw,
        position="sincos", places=sincos(tuple(shape.grid), d), ffn=shape.ffn,
    )  # fmt: skip


def region_modules(shape):
    """Ours, and the plain one of two hemispheres with half of the regions and units each."""
    draw, plain = torch.Generator().manual_seed(0), plain_attention()
    v, q = shape.units // 2, shape.queries // 2
    label = np.sort(np.arange(v) % q)
    mask = np.arange(2 * q)[:, None] == np.r_[label, q + label]
    heads = RegionHeads(shape.features, patterns(mask, "sum"), torch.zeros(2 * v), draw)
    ours = RoutedResponses(router(shape, draw), heads)
    halves = [torch.from_numpy(half.astype(np.int64)) for half in (mask[:q, :v], mask[q:, v:])]
    places = sincos(shape.grid, shape.features)
    peer = plain.PlainRegions(halves, shape.features, shape.heads, shape.ffn, places)
    plain.take_over(peer, ours.router, ours.heads)
    return ours, peer


def unit_modules(shape):
    draw, plain = torch.Generator().manual_seed(0), plain_attention()
    ours = RoutedResponses(router(shape, draw), UnitHeads(shape.features, torch.zeros(shape.units), draw))
    places = sincos(tuple(shape.grid), shape.features)
    peer = plain.PlainUnits(shape.units, shape.features, shape.heads, shape.ffn, places)
    plain.take_over(peer, ours.router, ours.heads)
    return ours, peer


def data(shape):
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randn(shape.batch, shape.grid[0] * shape.grid[1], shape.features, generator=draw)
    return tokens, torch.randn(shape.batch, shape.units, generator=draw)


def stepper(module, tokens, Y, dtype, plain=False):
    """One step of training as our trainer does it, or with the defaults of torch."""
    module.train()
    optimiser = torch.optim.AdamW(module.parameters(), lr=5e-4, **({} if plain else {"fused": True}))
    tokens = tokens.to(dtype)

    def step():
        loss = torch.nn.functional.mse_loss(module(tokens).float(), Y)
        optimiser.zero_grad(set_to_none=plain)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 0.1)
        optimiser.step()
        return float(loss.detach())

    return step


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name, modules, shape",
    [
        ("region queries", region_modules, Shape(batch=8, units=19_000, queries=50)),
        ("unit queries", unit_modules, Shape(batch=2, units=2_000, queries=2_000)),
    ],
)
def bench_step(name, modules, shape, dtype, threads, versus):
    """A step at the published size; the targets are 4 and 1.5 times for region queries, 8 for unit queries."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours, peer = modules(shape)
        tokens, Y = data(shape)
        mine, theirs = stepper(ours, tokens, Y, dtype), stepper(peer, tokens, Y, torch.float32, plain=True)
        with torch.no_grad():
            first = [float(torch.nn.functional.mse_loss(m(x).float(), Y)) for m, x in ((ours, tokens), (peer, tokens))]
        assert first[0] == pytest.approx(first[1], rel=1e-5)
        work = f"step, {name}, {str(dtype)[6:]}, batch {shape.batch}, {shape.units:,} units, threads {threads}"
        versus(work, mine, theirs, "plain", rounds=5)
    finally:
        torch.set_num_threads(before)


def bench_memory_of_unit_queries(capsys):
    """Memory of a step against the number of units: a doubling must not cost more than 2.3 times."""
    tokens = {"grid": (16, 16), "features": 384, "heads": 8, "ffn": 512}

    def megabytes(units, plain=False):
        request = json.dumps({"units": units, "tokens": tokens, "plain": plain})
        done = subprocess.run([sys.executable, "-P", str(ONE), request], check=True, capture_output=True, text=True)
        return float(done.stdout.split()[-1])

    sizes = [1000, 2000, 4000, 8000]
    ours, plain = [megabytes(v) for v in sizes], [megabytes(v, plain=True) for v in sizes[:2]]
    with capsys.disabled():
        print(
            "\nmemory of a step, unit queries: "
            + ", ".join(f"{v} {m:.0f} MB" for v, m in zip(sizes, ours, strict=True)),
            end="",
        )
        print("; plain: " + ", ".join(f"{v} {m:.0f} MB" for v, m in zip(sizes, plain, strict=False)), end="")
    assert all(b / a < 2.3 for a, b in pairwise(ours))


def bench_same_training(capsys):
    """A few steps of both from the same start: the losses stay together."""
    shape = Shape(batch=4, units=400, queries=10, grid=(7, 7), features=64, heads=4, ffn=128)
    ours, peer = region_modules(shape)
    again = copy.deepcopy(ours)
    tokens, Y = data(shape)
    runs = [stepper(ours, tokens, Y, torch.float32), stepper(peer, tokens, Y, torch.float32, plain=True)]
    runs.append(stepper(again, tokens, Y, torch.bfloat16))
    losses = np.array([[run() for _ in range(20)] for run in runs])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    np.testing.assert_allclose(losses[2], losses[1], rtol=3e-2)
    with capsys.disabled():
        print(
            f"\nloss after 20 steps: ours {losses[0, -1]:.4f}, bfloat16 {losses[2, -1]:.4f}, plain {losses[1, -1]:.4f}"
        )
