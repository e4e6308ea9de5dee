"""Orders that respect time give p values that are right for series with a memory.

Two independent AR(1) series in runs, each run z-scored, correlated within runs; p from 99 orders, one-sided. A
coefficient of 0.8 means that noise is forgotten (falls below 1 / e) within 4.5 samples. Measured by these tests with
runs of 380, 400 and 420 samples and 2000 pairs of series (plain: 500, blocks of 3: 1000), share of p values at most
0.05 in % and p of the Kolmogorov-Smirnov test against uniform:

=======================  ============  ============
orders                   AR(1) of 0.5  AR(1) of 0.8
=======================  ============  ============
shifts                   4.8   0.17    4.8   0.09
shifts of 10 or more     5.2   0.16    5.2   0.32
blocks of 40             4.9   0.07    5.5   0.33
blocks of 40, any run    4.6   0.13    5.3   0.27
blocks of 3              6.5   0.01    11.0  7e-09
plain                    8.6   6e-04   19.2  3e-13
=======================  ============  ============

Plain shuffles of series without memory reject 4.9 %. Shifts of 20 or more samples in runs of 100 (0.8) reject 11.2 %:
near shifts score like the given order, and without them the null is too far from it.
"""

from functools import partial

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import kstest

from neuralign.align.schemes import block_shuffles, circular_shifts, shuffles

LENGTHS = (380, 400, 420)
PERMUTATIONS = 99


def series(rng, memory, lengths):
    """An AR(1) series per run, z-scored within runs as is done to responses, shape (sample,)."""
    noise = rng.standard_normal((len(lengths), 100 + max(lengths)))
    runs = lfilter([1], [1, -memory], noise, axis=1)[:, 100:]  # beyond the start, which knows of none before it
    scored = [run[:length] for run, length in zip(runs, lengths, strict=True)]
    return np.concatenate([(run - run.mean()) / run.std() for run in scored])


def null_p(scheme, memory, n, lengths=LENGTHS):
    """P values of `n` pairs of series that know nothing of each other, ties broken at random: uniform if right."""
    runs = np.repeat(np.arange(len(lengths)), lengths)
    p = np.empty(n)
    for k in range(n):
        rng = np.random.default_rng([7, k])
        x, y = series(rng, memory, lengths), series(rng, memory, lengths)
        null = x[scheme(len(runs), runs=runs, n_permutations=PERMUTATIONS, seed=rng)] @ y
        p[k] = ((null >= x @ y).sum() + rng.random()) / (1 + PERMUTATIONS)
    return p


def plain(n, runs, **k):
    return shuffles(n, runs, **k)


@pytest.mark.parametrize("memory", [0.5, 0.8])
@pytest.mark.parametrize(
    "scheme",
    [
        circular_shifts,
        partial(circular_shifts, min_shift=10),
        partial(block_shuffles, block=40),
        partial(block_shuffles, block=40, across_runs=True),
    ],
    ids=["shifts", "shifts of 10 or more", "blocks of 40", "blocks of 40 across runs"],
)
def test_p_is_uniform(scheme, memory):
    p = null_p(scheme, memory, 2000)
    assert 0.03 <= (p <= 0.05).mean() <= 0.075
    assert kstest(p, "uniform").pvalue > 0.01


@pytest.mark.parametrize(("memory", "share"), [(0.5, 0.07), (0.8, 0.15)])
def test_plain_shuffles_reject_too_often(memory, share):
    p = null_p(plain, memory, 500)
    assert (p <= 0.05).mean() > share
    assert kstest(p, "uniform").pvalue < 1e-3


def test_plain_shuffles_are_right_without_memory():
    p = null_p(plain, 0, 1000)
    assert 0.03 <= (p <= 0.05).mean() <= 0.075
    assert kstest(p, "uniform").pvalue > 0.01


def test_blocks_shorter_than_the_memory_reject_too_often():
    p = null_p(partial(block_shuffles, block=3), 0.8, 1000)
    assert (p <= 0.05).mean() > 0.08


def test_shifts_that_leave_out_much_of_a_run_reject_too_often():
    p = null_p(partial(circular_shifts, min_shift=20), 0.8, 1000, lengths=(100, 100, 100))
    assert (p <= 0.05).mean() > 0.08
