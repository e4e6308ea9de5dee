"""Geometry, topology and inference side by side with peers (``make bench``): seconds on one core, growth of memory.

Every row runs in a process of its own with one thread; its two sides take turns, and the ratio is the median over
turns. Peers that take minutes run on a part of the work and are scaled up, as their line says. One row by hand, small
to see that it runs: ``python tests/performance/bench_geometry.py comparison_pearson small``.
"""

import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

# Growth of memory below which 1,000 calls count as flat, in MB.
FLAT = 5

SIZES = {
    "full": {
        "stimuli": 1000, "features": 5000, "rdms": 1000, "bootstrap": 1000, "conditions": 200, "channels": 5000,
        "samples": 400, "units": 500, "nodes": 1000, "pairs": 20, "calls": 1000, "turns": 5,
    },
    "small": {
        "stimuli": 60, "features": 80, "rdms": 10, "bootstrap": 40, "conditions": 12, "channels": 50,
        "samples": 30, "units": 20, "nodes": 40, "pairs": 2, "calls": 20, "turns": 1,
    },
}  # fmt: skip


def in_turns(work, ours, peers, at_least, turns, scale=None):
    """Times of our function and of peers, called in turns; `scale` says how much less work each peer does."""
    functions = {"neuralign": ours, **peers}
    for function in functions.values():
        function()  # loads code, compiles and touches memory
    seconds = {name: [] for name in functions}
    for _ in range(turns):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append((time.perf_counter() - start) * (scale or {}).get(name, 1))
    rows = []
    for name in peers:
        ratio = statistics.median(b / a for a, b in zip(seconds["neuralign"], seconds[name], strict=True))
        part = f", from 1/{scale[name]:g} of the work" if scale and name in scale else ""
        rows.append(
            f"{work:64} {statistics.median(seconds['neuralign']):8.3f} s   {name} "
            f"{statistics.median(seconds[name]):8.3f} s{part}   {ratio:6.1f}x (at least {at_least[name]:g}x)"
        )
    return rows


def resident():
    """Resident memory in MB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) / 1000


def peak_above(function):
    """Peak of resident memory during a call, in MB above what was there before; Linux only."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident()
    function()
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) / 1000
    return peak - before


def correlation_rdm(size):
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm

    from neuralign import align

    X = np.random.default_rng(0).standard_normal((size["stimuli"], size["features"]))
    return in_turns(
        f"correlation RDM {X.shape[0]} x {X.shape[1]}",
        lambda: align.rdm(X, "correlation"),
        {"rsatoolbox": lambda: calc_rdm(Dataset(X), method="correlation")},
        {"rsatoolbox": 10},
        size["turns"],
    )


def _comparison(size, ours, theirs, at_least):
    import torch  # noqa: F401 - loaded wherever features are extracted, and then used for large products
    from rsatoolbox.rdm import RDMs, compare

    from neuralign import align

    a, b = np.random.default_rng(0).uniform(size=(2, size["rdms"], 92 * 91 // 2))
    return in_turns(
        f"{ours} of {len(a)} with {len(b)} RDMs of 92 stimuli",
        lambda: align.compare(a, b, ours),
        {"rsatoolbox": lambda: compare(RDMs(a), RDMs(b), theirs)},
        {"rsatoolbox": at_least},
        size["turns"],
    )


def comparison_pearson(size):
    return _comparison(size, "pearson", "corr", 12)


def comparison_rho_a(size):
    return _comparison(size, "rho-a", "rho-a", 8)


def comparison_tau_a(size):
    """Tau-a of a few RDMs, peer and scipy; the table of the issue names no least ratio."""
    from rsatoolbox.rdm import RDMs, compare
    from scipy.stats import kendalltau

    from neuralign import align

    n = size["pairs"]
    a, b = np.random.default_rng(0).uniform(size=(2, n, 92 * 91 // 2))
    return in_turns(
        f"tau-a of {n} with {n} RDMs of 92 stimuli",
        lambda: align.compare(a, b, "tau-a"),
        {
            "rsatoolbox": lambda: compare(RDMs(a), RDMs(b), "tau-a"),
            "scipy": lambda: [kendalltau(x, y) for x in a for y in b],
        },
        {"rsatoolbox": 1, "scipy": 1},
        size["turns"],
    )


def _bootstrap(size, ours, theirs, at_least):
    from rsatoolbox.inference import eval_bootstrap_pattern
    from rsatoolbox.model import ModelFixed
    from rsatoolbox.rdm import RDMs

    from neuralign.align.inference import compare_models

    rng = np.random.default_rng(0)
    model, brain = rng.uniform(size=(3, 4186)), rng.uniform(size=(20, 4186))
    models = [ModelFixed(str(k), vector) for k, vector in enumerate(model)]
    n, draws = size["bootstrap"], 20  # the peer's 1000 draws would take up to a quarter of an hour
    return in_turns(
        f"{n} bootstraps of 92 stimuli, 20 subjects, 3 models, ceilings, {ours}",
        lambda: compare_models(model, brain, ours, over="stimuli", bootstrap=n),
        {"rsatoolbox": lambda: eval_bootstrap_pattern(models, RDMs(brain), method=theirs, N=draws)},
        {"rsatoolbox": at_least},
        min(size["turns"], 3),
        {"rsatoolbox": n / draws},
    )


def bootstrap_pearson(size):
    return _bootstrap(size, "pearson", "corr", 100)


def bootstrap_rho_a(size):
    return _bootstrap(size, "rho-a", "rho-a", 60)


def bootstrap_whitened(size):
    return _bootstrap(size, "pearson-whitened", "corr_cov", 100)


def crossnobis(size):
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm

    from neuralign import align

    n, folds, p = size["conditions"], 4, size["channels"]
    X = np.random.default_rng(0).standard_normal((folds, n, p))
    labels = {"condition": np.tile(np.arange(n), folds), "fold": np.repeat(np.arange(folds), n)}
    data = Dataset(X.reshape(-1, p), obs_descriptors=labels)

    def peer():
        calc_rdm(data, method="crossnobis", descriptor="condition", cv_descriptor="fold")

    def ours():
        align.rdm(X, "crossnobis")

    rows = in_turns(
        f"crossnobis {n} conditions x {folds} folds x {p} channels",
        ours,
        {"rsatoolbox": peer},
        {"rsatoolbox": 20},
        size["turns"],
    )
    return [
        *rows,
        f"  memory above the data: neuralign {peak_above(ours):.0f} MB, rsatoolbox {peak_above(peer):.0f} MB",
    ]


def precision(size):
    from rsatoolbox.data.noise import prec_from_residuals

    from neuralign.align.noise import noise_precision

    X = np.random.default_rng(0).standard_normal((size["samples"], size["units"]))
    return in_turns(
        f"shrinkage precision {X.shape[0]} x {X.shape[1]}",
        lambda: noise_precision(X, "shrinkage-diagonal"),
        {"rsatoolbox": lambda: prec_from_residuals(X.copy(), method="shrinkage_diag")},
        {"rsatoolbox": 8},
        size["turns"],
    )


def _geodesics(size, dtype):
    import networkx as nx
    from scipy.sparse.csgraph import floyd_warshall
    from scipy.spatial.distance import pdist, squareform

    from neuralign.align.topology import shortest_paths

    n = size["nodes"]
    weights = squareform(pdist(np.random.default_rng(0).standard_normal((n, 10))))
    edges = ~np.eye(n, dtype=bool)
    rows = in_turns(
        f"geodesics of {n} stimuli, all pairs joined, {dtype}",
        lambda: shortest_paths(weights, edges, np.dtype(dtype).type),
        {
            "networkx": lambda: nx.floyd_warshall_numpy(nx.from_numpy_array(weights)),
            "scipy": lambda: floyd_warshall(weights),
        },
        {"networkx": 20, "scipy": 5},
        min(size["turns"], 3),
    )
    difference = np.abs(shortest_paths(weights, edges, np.dtype(dtype).type) - floyd_warshall(weights)).max()
    return [*rows, f"  largest difference from scipy {difference:.1e}, of distances up to {weights.max():.1f}"]


def geodesics_float32(size):
    return _geodesics(size, "float32")


def geodesics_float64(size):
    return _geodesics(size, "float64")


def memory(size):
    """Growth of resident memory over 1,000 calls of each function, after a first round of calls."""
    from neuralign import align
    from neuralign.align.compare import METHODS, rsa_ceiling
    from neuralign.align.inference import compare_models
    from neuralign.align.noise import noise_covariance, noise_precision
    from neuralign.align.searchlight import searchlight, volume_neighbours
    from neuralign.align.similarity import card, measures, similarity
    from neuralign.align.topology import identify, persistence, rgdm, rgtm
    from neuralign.datasets.rdms import RDMs

    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    X, Y, labels = rng.standard_normal((30, 12)), rng.standard_normal((30, 10)), np.arange(30) % 3
    folds, counts = rng.standard_normal((4, 30, 12)), rng.poisson(3.0, size=(4, 30, 12))
    names, parts = np.tile(np.arange(30), 4)[1:], np.repeat(np.arange(4), 30)[1:]
    covariance = np.eye(12) + 0.1
    vectors, brain = rng.uniform(size=(4, 435)), rng.uniform(size=(5, 435))
    euclidean = np.concatenate([align.rdm(rng.standard_normal((30, 40)), "sqeuclidean").vectors for _ in range(4)])
    table = {"region": ["a", "b"] * 2, "subject": list("xxyy")}
    regions = RDMs(vectors, [str(k) for k in range(30)], pd.DataFrame(table))
    spheres = volume_neighbours(np.ones((2, 2, 2), bool), 1.5)
    calls = {f"rdm {method}": (lambda m=method: align.rdm(X, m)) for method in ("sqeuclidean", "correlation", "cosine")}
    calls |= {
        "rdm mahalanobis": lambda: align.rdm(X, "mahalanobis", noise=covariance),
        "rdm crossnobis": lambda: align.rdm(folds, "crossnobis", noise=covariance),
        "rdm crossnobis, ragged": lambda: align.rdm(
            folds.reshape(120, 12)[1:], "crossnobis", labels=names, folds=parts
        ),
        "rdm poisson-cv": lambda: align.rdm(counts, "poisson-cv"),
        "noise_covariance": lambda: noise_covariance(X),
        "noise_precision": lambda: noise_precision(X),
        "rsa_ceiling": lambda: rsa_ceiling(brain, "rho-a"),
        "rgtm": lambda: rgtm(vectors, 0.2, 0.8),
        "rgdm": lambda: rgdm(vectors, 0.0, 0.5),
        "identify": lambda: identify(regions, grid=[(0.0, 1.0), (0.2, 0.8)], bootstrap=2, permutations=2),
        "persistence": lambda: persistence(vectors),
        "searchlight": lambda: searchlight(X[:, :8], spheres, vectors),
        "compare_models": lambda: compare_models(vectors, brain, "pearson", over="both", bootstrap=20),
        "compare_models rho-a": lambda: compare_models(vectors, brain, "rho-a", over="both", bootstrap=20),
    }
    calls |= {
        f"compare {m}": (lambda m=m: align.compare(euclidean, euclidean, m)) for m in METHODS if m != "riemannian"
    }
    calls |= {
        f"similarity {m}": (lambda m=m: similarity(m, X, Y if card(m).kind == "pair" else labels))
        for m in measures().index
        if m != "kernel-analysis"
    }
    # A hundred times as slow as the others, so a tenth of the calls.
    slow = {
        "compare riemannian": lambda: align.compare(euclidean[:1], euclidean[:1], "riemannian"),
        "similarity kernel-analysis": lambda: similarity("kernel-analysis", X, labels),
    }
    rows = []
    for function, n in [*((f, size["calls"]) for f in calls), *((f, size["calls"] // 10) for f in slow)]:
        call = {**calls, **slow}[function]
        for _ in range(max(n // 20, 2)):
            call()
        gc.collect()
        before = resident()
        for _ in range(n):
            call()
        gc.collect()
        grown = resident() - before
        rows.append(f"{n} calls of {function:32} {grown:+6.2f} MB {'' if grown < FLAT else f'(not under {FLAT})'}")
    return rows


ROWS = [
    correlation_rdm, comparison_pearson, comparison_rho_a, comparison_tau_a, bootstrap_pearson, bootstrap_rho_a,
    bootstrap_whitened, crossnobis, precision, geodesics_float32, geodesics_float64, memory,
]  # fmt: skip


@pytest.mark.parametrize("row", [row.__name__ for row in ROWS])
def bench_row(row, capsys):
    size = "small" if os.environ.get("NEURALIGN_BENCH") == "small" else "full"
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    command = [sys.executable, "-P", __file__, row, size]
    # tqdm's bars and warnings of peers go to standard error, which is shown if the row fails.
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads)
    assert done.returncode == 0, done.stderr[-2000:]
    with capsys.disabled():
        print("\n" + "\n".join(json.loads(done.stdout.splitlines()[-1])), end="")


if __name__ == "__main__":
    name, chosen = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "full"
    print(json.dumps({row.__name__: row for row in ROWS}[name](SIZES[chosen])))
