"""Encoding side by side with himalaya, each fit in a process of its own (``make bench``): seconds, memory, same alphas.

The rows are those of the table in README. Ours is run before, between and after its peers, and its median is what
counts, as is that of a peer; a peer that would take minutes is run once. NEURALIGN_BENCH=large adds the row that
streams 200,000 units from disk, which writes 6.5 GB to a temporary folder and takes a quarter of an hour.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ONE = Path(__file__).with_name("one_fit.py")
ROWS = [
    # n, p, v, alphas, folds, peers
    (5000, 2000, 20000, 20, 5, ["RidgeCV-numpy", "RidgeCV-torch"]),
    (2000, 1000, 5000, 20, 5, ["RidgeCV-numpy", "RidgeCV-torch"]),
    (2000, 1000, 5000, 99, 5, ["RidgeCV-torch"]),
    (1000, 8000, 10000, 20, 5, ["KernelRidgeCV-numpy", "KernelRidgeCV-torch", "RidgeCV-torch"]),
    (2400, 5000, 100, 20, 10, ["KernelRidgeCV-numpy", "KernelRidgeCV-torch"]),
]


def run(tmp_path, **request):
    out = tmp_path / "chosen.npz"
    command = [sys.executable, "-P", str(ONE), json.dumps(request | {"out": str(out)})]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    with np.load(out) as chosen:
        return result | {"alpha": chosen["arr_0"], "score": chosen["arr_1"]}


def median(runs):
    """The run of median time; the faster of two."""
    return sorted(runs, key=lambda one: one["seconds"])[(len(runs) - 1) // 2]


def own_flops(n, p, v, folds):
    """Flops of our products with responses, all in float32."""
    n_train = n - n // folds
    rank = min(n_train, p)
    fractions = folds * 2 * rank**2 * v + 2 * n * rank * v
    if p > n_train:
        return fractions + folds * 2 * n_train * rank * v + 2 * n * min(n, p) * v
    return fractions + 2 * n * p * v + (folds + 1) * 2 * p * rank * v


@pytest.mark.parametrize("n, p, v, alphas, folds, peers", ROWS)
def bench_fit(n, p, v, alphas, folds, peers, tmp_path, capsys):
    size = {"n": n, "p": p, "v": v, "alphas": alphas, "folds": folds}
    rounds = 1 if alphas * n * p * v > 5e11 else 3  # the others take the peers minutes
    ours, theirs = [run(tmp_path, method="neuralign", **size)], {peer: [] for peer in peers}
    for peer in peers * rounds:
        theirs[peer].append(run(tmp_path, method=peer, **size))
        ours.append(run(tmp_path, method="neuralign", **size))
    mine = median(ours)
    share = own_flops(n, p, v, folds) / mine["rate"] / mine["seconds"]
    lines = [f"{n} x {p} x {v}, {alphas} alphas, {folds} folds"]
    lines.append(f"  {'neuralign':22} {mine['seconds']:8.2f} s {mine['gb']:6.2f} GB   {share:.0%} of the GEMM rate")
    for peer, runs in theirs.items():
        its = median(runs)
        same = np.isclose(its["alpha"], mine["alpha"], rtol=1e-3).mean()
        difference = np.abs(its["score"] - mine["score"]).max()
        lines.append(
            f"  himalaya {peer:13} {its['seconds']:8.2f} s {its['gb']:6.2f} GB   "
            f"{its['seconds'] / mine['seconds']:.1f}x   same alphas {same:.2%}, scores within {difference:.0e}"
        )
    with capsys.disabled():
        print("\n" + "\n".join(lines), end="")


def bench_99_alphas_against_20(tmp_path, capsys):
    size = {"method": "neuralign", "n": 2000, "p": 1000, "v": 5000, "folds": 5}
    pairs = [[run(tmp_path, alphas=a, **size)["seconds"] for a in (99, 20)] for _ in range(3)]
    with capsys.disabled():
        print(f"\n99 alphas take {np.median([a / b for a, b in pairs]):.2f} times as long as 20", end="")


@pytest.mark.skipif(os.environ.get("NEURALIGN_BENCH") != "large", reason="writes 6.5 GB; NEURALIGN_BENCH=large runs it")
def bench_stream(tmp_path, capsys):
    n, p, v, folds = 8000, 4096, 200000, 5
    ours = run(tmp_path, method="neuralign", n=n, p=p, v=v, alphas=20, folds=folds, folder=str(tmp_path))
    bound = own_flops(n, p, v, folds) / ours["rate"]
    with capsys.disabled():
        print(
            f"\n{n} x {p} x {v} streamed from HDF5: {ours['seconds']:.0f} s, {ours['seconds'] / bound:.2f} times the "
            f"GEMM time of its flops, peak {ours['gb']:.2f} GB above the features",
            end="",
        )


def bench_banded(versus, capsys):
    from himalaya.backend import set_backend
    from himalaya.kernel_ridge import solve_multiple_kernel_ridge_random_search
    from himalaya.scoring import r2_score

    from neuralign import encoders

    rng = np.random.default_rng(0)
    n, v, sizes = 600, 4000, [300, 500, 800]
    X = rng.standard_normal((n, sum(sizes)), dtype=np.float32)
    active = np.repeat(rng.random((3, v)) < 0.5, sizes, axis=0)
    weights = rng.standard_normal((sum(sizes), v), dtype=np.float32) * active / np.repeat(sizes, sizes)[:, None] ** 0.5
    Y = (X @ weights + rng.standard_normal((n, v))).astype(np.float32)
    alphas, shares = np.logspace(0, 5, 20), rng.dirichlet([1, 1, 1], 20)
    backend = set_backend("torch")
    bands = np.split(X - X.mean(0), np.cumsum(sizes)[:-1], axis=1)
    kernels = backend.asarray(np.stack([one @ one.T for one in bands]))
    found = {}

    def ours(n_iter=20):
        encoder = encoders.BandedRidgeCV(sizes, alphas, n_iter=n_iter, score="r2").fit(X, Y)
        found["ours"] = encoder.cv_score_.mean()

    def same():
        ours(shares)

    def peer():
        scores = solve_multiple_kernel_ridge_random_search(
            kernels,
            backend.asarray(Y),
            n_iter=backend.asarray(shares.astype(np.float32)),
            alphas=backend.asarray(alphas.astype(np.float32)),
            score_func=r2_score,
            fit_intercept=True,
            return_weights="dual",
            progress_bar=False,
            n_targets_batch=1000,
        )[2]
        found["peer"] = float(scores.max(0).values.mean())

    for how, fit in (("our search", ours), ("its shares", same)):
        versus(
            f"banded, 3 spaces, 600 x 1600 x 4000, 20 shares x 20 alphas, {how}", fit, peer, "himalaya torch", rounds=3
        )
        with capsys.disabled():
            print(f"\n  mean best R2 {found['ours']:.5f} and {found['peer']:.5f}", end="")
