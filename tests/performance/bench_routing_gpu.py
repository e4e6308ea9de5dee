"""Ten epochs of the attention router on a GPU, against what its memory and its products allow (``make bench``)."""

import time

import numpy as np
import pytest
import torch

from neuralign.encoders.routing.attention import AttentionRouter

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")
N, GRID, D, UNITS, REGIONS, HEADS, EPOCHS, BATCH = 9_000, (16, 16), 768, 40_000, 50, 16, 10, 256


def rates():
    """Products in bfloat16 per second (FLOP/s), and bytes per second read and written by a copy."""
    A = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    flat = torch.empty(2**29, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(flat)
    best = []
    for work in (lambda: A @ A, lambda: target.copy_(flat)):
        seconds = []
        for _ in range(6):
            torch.cuda.synchronize()
            start = time.perf_counter()
            work()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        best.append(min(seconds))
    return 2 * 8192**3 / best[0], 2 * flat.nbytes / best[1]


@pytest.mark.parametrize("compiled", [False, True])
def bench_ten_epochs(compiled, capsys):
    """Seconds of ten epochs, and the larger of two bounds: products, and bytes of tokens and of the optimiser."""
    draw = np.random.default_rng(0)
    tokens = draw.standard_normal((N, GRID[0] * GRID[1], D), dtype=np.float32).astype(np.float16)
    Y = draw.standard_normal((N, UNITS), dtype=np.float32)
    router = AttentionRouter(
        regions=np.arange(UNITS) % REGIONS, heads=HEADS, head="sgd", grid=GRID, lr=5e-4, epochs=EPOCHS, patience=EPOCHS,
        batch_size=BATCH, precision="bfloat16", compile=compiled, device="cuda", verbose=False,
    )  # fmt: skip
    router.fit(tokens, Y)
    seconds = float(router.history_.loc[router.history_["epoch"] > 0, "seconds"].sum())

    flops, bandwidth = rates()
    n_train, routes, t = round(0.9 * N), REGIONS * HEADS, GRID[0] * GRID[1]
    steps = EPOCHS * -(-n_train // BATCH)
    # Logits, pooled tokens, and the two products of the backward pass; heads forward, to weights and to tokens; once
    # more the forward pass for the validation rows.
    core = 2 * routes * t * D
    work = EPOCHS * (n_train * (4 * core + 6 * D * UNITS) + (N - n_train) * (2 * core + 2 * D * UNITS))
    parameters = sum(p.numel() for p in router.module_.parameters())
    # Tokens are read by both products of each pass; AdamW reads weight, gradient and two moments and writes three.
    moved = EPOCHS * 4 * tokens[:n_train].nbytes + steps * 28 * parameters
    bounds = {"products": work / flops, "bytes": moved / bandwidth}
    larger = max(bounds, key=bounds.get)
    with capsys.disabled():
        print(
            f"\n{EPOCHS} epochs, {N} x {t} x {D}, {UNITS:,} units, compile={compiled}: {seconds:.1f} s; bounds "
            f"{bounds['products']:.2f} s (products at {flops / 1e12:.0f} TFLOP/s), {bounds['bytes']:.2f} s (bytes at "
            f"{bandwidth / 1e9:.0f} GB/s): {bounds[larger] / seconds:.0%} of the bound of {larger}",
            end="",
        )
    assert seconds < 600
