"""Orders of rows: permutations that keep what they promise to keep, each as likely as every other."""

import math

import numpy as np
import pytest
from scipy.stats import chisquare

from neuralign.align.schemes import block_shuffles, circular_shifts, shuffles

RUNS = np.repeat(["b", "a", "c"], [23, 17, 30])  # lengths that blocks do not divide, names out of order
N = len(RUNS)

SCHEMES = {
    "shuffles": lambda **k: shuffles(N, RUNS, **k),
    "blocks": lambda **k: block_shuffles(N, 5, RUNS, **k),
    "blocks across": lambda **k: block_shuffles(N, 5, RUNS, across_runs=True, **k),
    "shifts": lambda **k: circular_shifts(N, RUNS, 3, **k),
}
schemes = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


@schemes
def test_every_order_holds_every_row_once(scheme):
    orders = scheme(n_permutations=40)
    assert orders.shape == (40, N)
    assert orders.dtype.kind == "i"
    np.testing.assert_array_equal(np.sort(orders, 1), np.tile(np.arange(N), (40, 1)))
    assert len(np.unique(orders, axis=0)) == 40


@schemes
def test_seed_decides(scheme):
    np.testing.assert_array_equal(scheme(n_permutations=5, seed=3), scheme(n_permutations=5, seed=3))
    generator = np.random.default_rng(3)
    np.testing.assert_array_equal(scheme(n_permutations=5, seed=generator), scheme(n_permutations=5, seed=3))
    assert (scheme(n_permutations=5, seed=3) != scheme(n_permutations=5, seed=4)).any()
    assert (scheme(n_permutations=5, seed=generator) != scheme(n_permutations=5, seed=3)).any()


@pytest.mark.parametrize("scheme", [SCHEMES[name] for name in ("shuffles", "blocks", "shifts")])
def test_rows_stay_in_their_run(scheme):
    assert (RUNS[scheme(n_permutations=50)] == RUNS).all()


def test_groups_need_not_be_neighbours():
    groups = np.arange(40) % 3
    orders = shuffles(40, groups, 50)
    assert (groups[orders] == groups).all()
    assert (orders != np.arange(40)).mean() > 0.8
    free = shuffles(40, None, 50)
    assert (groups[free] != groups).mean() > 0.5


# Blocks


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("block", [1, 4, 5, 7])
def test_blocks_stay_whole_and_never_reach_over_a_run(block, across):
    pieces = []
    for label in "bac":
        rows = np.flatnonzero(label == RUNS)
        pieces += [tuple(rows[k : k + block]) for k in range(0, len(rows), block)]
    begins = {piece[0]: piece for piece in pieces}
    for order in block_shuffles(N, block, RUNS, 20, across_runs=across):
        found, position = [], 0
        while position < N:
            piece = begins[order[position]]
            np.testing.assert_array_equal(order[position : position + len(piece)], piece)
            found.append(piece)
            position += len(piece)
        assert sorted(found) == sorted(pieces)  # every block once, the short last ones among them
        if across:
            assert (RUNS[order] != RUNS).any()


def test_every_order_of_blocks_is_as_likely():
    # Blocks of 3, 3, 3 and 2: 24 orders.
    orders = np.concatenate([block_shuffles(11, 3, None, 20, seed=seed) for seed in range(240)])
    seen, count = np.unique(orders, axis=0, return_counts=True)
    assert len(seen) == 24
    assert (seen == np.arange(11)).all(1).any()  # the given one among them
    assert chisquare(count).pvalue > 0.001


def test_runs_are_shuffled_independently():
    runs = np.repeat([0, 1], 6)
    orders = np.concatenate([block_shuffles(12, 2, runs, 30, seed=seed) for seed in range(240)])
    seen, count = np.unique(orders, axis=0, return_counts=True)
    assert len(seen) == 36
    assert chisquare(count).pvalue > 0.001


def test_blocks_of_one_sample_are_shuffles():
    np.testing.assert_array_equal(block_shuffles(N, 1, RUNS, 30, seed=2), shuffles(N, RUNS, 30, seed=2))


# Circular shifts


def test_shifted_runs_are_rolled():
    for order in circular_shifts(N, RUNS, 3, 50):
        for label in "bac":
            rows = np.flatnonzero(label == RUNS)
            shift = int(np.flatnonzero(order[rows] == rows[0])[0])  # where the first sample went
            assert 3 <= shift <= len(rows) - 3
            np.testing.assert_array_equal(order[rows], np.roll(rows, shift))


def test_shifts_are_uniform_and_independent():
    runs = np.repeat([0, 1], [10, 12])
    n_distinct = 5 * 7  # shifts of 3 to 7, and of 3 to 9
    drawn = np.concatenate([circular_shifts(22, runs, 3, 20, seed=seed) for seed in range(350)])
    pairs = np.stack([np.argmax(drawn == 0, 1), np.argmax(drawn == 10, 1) - 10], 1)
    seen, count = np.unique(pairs, axis=0, return_counts=True)
    assert len(seen) == n_distinct
    assert seen.min(0).tolist() == [3, 3] and seen.max(0).tolist() == [7, 9]
    # Without replacement counts scatter less than chi2 expects, by the share that is left out.
    assert chisquare(count).pvalue > 0.001


def test_shifts_of_long_experiments_are_uniform():
    runs = np.repeat(np.arange(12), 100)  # 99**12 shifts: each run is drawn on its own
    orders = circular_shifts(1200, runs, 1, 3000)
    for run in (0, 11):
        shift = np.argmax(orders[:, runs == run] == 100 * run, 1)
        assert shift.min() >= 1 and shift.max() <= 99
        assert chisquare(np.bincount(shift, minlength=100)[1:]).pvalue > 0.001
    assert len(np.unique(orders, axis=0)) == 3000


def test_all_shifts_can_be_asked_for():
    orders = circular_shifts(30, min_shift=5, n_permutations=21)
    np.testing.assert_array_equal(np.sort(np.argmax(orders == 0, 1)), np.arange(5, 26))


# Too few orders


@pytest.mark.parametrize(
    ("draw", "n_distinct"),
    [
        (lambda n: circular_shifts(30, min_shift=5, n_permutations=n), 21),
        (lambda n: circular_shifts(22, np.repeat([0, 1], [10, 12]), 3, n), 35),
        (lambda n: block_shuffles(11, 3, n_permutations=n), 23),
        (lambda n: block_shuffles(11, 3, [0] * 5 + [1] * 6, n), 3),
        (lambda n: block_shuffles(11, 3, [0] * 5 + [1] * 6, n, across_runs=True), 23),
        (lambda n: shuffles(6, [0, 1, 0, 1, 0, 1], n), 35),
    ],
)
def test_too_few_orders_are_counted(draw, n_distinct):
    assert len(draw(n_distinct)) == n_distinct
    with pytest.raises(
        ValueError, match=rf"n_permutations={n_distinct + 1}: there are {n_distinct} .*1 / {n_distinct + 1}"
    ):
        draw(n_distinct + 1)


def test_nothing_to_exchange():
    for draw in (
        lambda: shuffles(5, np.arange(5), 1),
        lambda: block_shuffles(20, 10, np.repeat([0, 1], 10), 1),
        lambda: block_shuffles(20, 30, None, 1),
    ):
        with pytest.raises(ValueError, match="there are 0 orders"):
            draw()


def test_many_orders_are_not_counted_one_by_one():
    assert math.factorial(20) > 10**18
    assert block_shuffles(100_000, 1, n_permutations=1).shape == (1, 100_000)


def test_bad_input():
    with pytest.raises(ValueError, match=r"runs has shape \(70,\); expected one label for each of the 71 rows"):
        circular_shifts(71, RUNS)
    with pytest.raises(ValueError, match=r"groups has shape \(70,\)"):
        shuffles(71, RUNS)
    with pytest.raises(ValueError, match="runs changes 3 times between 2 runs"):
        circular_shifts(40, np.repeat([0, 1, 0, 1], 10))
    with pytest.raises(ValueError, match="runs changes 3 times between 2 runs"):
        block_shuffles(40, 2, np.repeat([0, 1, 0, 1], 10))
    with pytest.raises(ValueError, match="a run of 17 samples, too short .* at least 18 samples"):
        circular_shifts(N, RUNS, 9)
    with pytest.raises(ValueError, match="min_shift=0"):
        circular_shifts(N, RUNS, 0)
    with pytest.raises(ValueError, match="block=0"):
        block_shuffles(N, 0, RUNS)
    with pytest.raises(ValueError, match="n_permutations=0"):
        circular_shifts(N, RUNS, n_permutations=0)
    with pytest.raises(ValueError, match="n=0"):
        shuffles(0)
