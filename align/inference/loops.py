"""Rank statistics of bootstrap samples of stimuli, compiled: sorts and counts that no product of matrices can do.

Every RDM is sorted once. A sample only changes how often each pair of stimuli occurs, so that the mid-ranks of a
sample follow from one walk along the sorted pairs, and Kendall's statistic from one walk with a binary indexed tree.
Importing this module imports numba; `weighted` and `ceilings` do so when they need it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

RHO_A, SPEARMAN, TAU_A, TAU_B = range(4)


@njit(cache=True)
def _occurrences(first, second, w, positions, times):
    """Number of pairs that occur and of their repetitions; fills position (-1: absent) and repetitions of each."""
    count, total = 0, 0
    for pair in range(len(first)):
        t = w[first[pair]] * w[second[pair]]
        if t > 0:
            positions[pair] = count
            times[count] = t
            count += 1
            total += t
        else:
            positions[pair] = -1
    return count, total


@njit(cache=True)
def _ranks(order, group, positions, times, total, ranks, dense, along, member):
    """Twice the centred mid-rank of every pair that occurs, its group of ties, and the pairs in sorted order.

    Returns the number of groups and of tied pairs of pairs.
    """
    found = 0
    for k in range(len(order)):  # no branch: which pairs occur is random, and would be predicted wrongly
        position = positions[order[k]]
        along[found] = position
        member[found] = group[k]
        found += position >= 0
    below, n_groups, tied_pairs, k = 0, 0, 0, 0
    while k < found:
        start, tied = k, 0
        while k < found and member[k] == member[start]:
            tied += times[along[k]]
            k += 1
        for place in range(start, k):
            ranks[along[place]] = 2 * below + tied - total
            dense[along[place]] = n_groups
        n_groups += 1
        tied_pairs += tied * (tied - 1) // 2
        below += tied
    return n_groups, tied_pairs


@njit(cache=True)
def _sorted(keys, count, order, other, histogram):
    """Order of whole numbers from 0, by a radix sort of eleven bits at a time; returns the array that holds it."""
    largest = 0
    for k in range(count):
        order[k] = k
        largest = max(largest, keys[k])
    shift = 0
    while largest >> shift > 0:
        histogram[:] = 0
        for k in range(count):
            histogram[(keys[k] >> shift) & 2047] += 1
        start = 0
        for digit in range(2048):
            size = histogram[digit]
            histogram[digit] = start
            start += size
        for k in range(count):
            digit = (keys[order[k]] >> shift) & 2047
            other[histogram[digit]] = order[k]
            histogram[digit] += 1
        order, other = other, order
        shift += 11
    return order


@njit(cache=True)
def _pool_ranks(keys, order, times, count, total, ranks, dense):
    """As `_ranks`, of a pool whose sorted order is known; `order` is the walk."""
    below, n_groups, tied_pairs, k = 0, 0, 0, 0
    while k < count:
        start, tied = k, 0
        while k < count and keys[order[k]] == keys[order[start]]:
            tied += times[order[k]]
            k += 1
        for member in range(start, k):
            ranks[order[member]] = 2 * below + tied - total
            dense[order[member]] = n_groups
        n_groups += 1
        tied_pairs += tied * (tied - 1) // 2
        below += tied
    return n_groups, tied_pairs


@njit(cache=True, fastmath=True)
def _product(a, b, times, count):
    total = 0.0
    for k in range(count):
        total += a[k] * b[k] * times[k]
    return total


@njit(cache=True)
def _score(along, dense_x, dense_y, n_groups_y, times, count, tree):
    """Concordant minus discordant pairs of pairs; ties in either count nothing."""
    tree[: n_groups_y + 1] = 0
    score, added, k = 0, 0, 0
    while k < count:
        start = k
        while k < count and dense_x[along[k]] == dense_x[along[start]]:
            pair = along[k]
            at, less = dense_y[pair], 0
            while at > 0:
                less += tree[at]
                at -= at & -at
            at, up_to = dense_y[pair] + 1, 0
            while at > 0:
                up_to += tree[at]
                at -= at & -at
            score += times[pair] * (less - (added - up_to))
            k += 1
        for member in range(start, k):
            pair = along[member]
            at = dense_y[pair] + 1
            while at <= n_groups_y:
                tree[at] += times[pair]
                at += at & -at
            added += times[pair]
    return score


@njit(cache=True)
def _statistic(kind, cross, square_x, square_y, ties_x, ties_y, total):
    """From products of doubled ranks, or from the score of concordance; NaN where one side is constant."""
    whole = total * (total - 1) / 2.0
    if total < 3 or ties_x == total * (total - 1) // 2 or ties_y == total * (total - 1) // 2:
        return np.nan
    if kind == RHO_A:
        n = float(total)
        return 3.0 * cross / (n * n * n - n)
    if kind == SPEARMAN:
        return cross / np.sqrt(square_x * square_y)
    if kind == TAU_A:
        return cross / whole
    return cross / np.sqrt((whole - ties_x) * (whole - ties_y))


@njit(cache=True)
def similarities(order, group, n_models, first, second, weights, kind):
    """Similarity of the first `n_models` RDMs with all others in every sample, shape (sample, model, other).

    `order` and `group` (rdm, pair): pairs by rising dissimilarity, and which of them are tied. `weights` (sample,
    stimulus): whole numbers.
    """
    n_rdms, n_pairs = order.shape
    samples = np.full((len(weights), n_models, n_rdms - n_models), np.nan)
    positions, times = np.empty(n_pairs, np.int32), np.empty(n_pairs, np.int64)
    member = np.empty(n_pairs, np.int32)
    ranks, dense, along = np.empty((n_rdms, n_pairs)), np.empty((n_rdms, n_pairs), np.int32), order.copy()
    groups, ties, square = np.empty(n_rdms, np.int64), np.empty(n_rdms, np.int64), np.empty(n_rdms)
    tree = np.empty(n_pairs + 1, np.int64)
    for sample in range(len(weights)):
        count, total = _occurrences(first, second, weights[sample], positions, times)
        for k in range(n_rdms):
            groups[k], ties[k] = _ranks(
                order[k], group[k], positions, times, total, ranks[k], dense[k], along[k], member
            )
            square[k] = _product(ranks[k], ranks[k], times, count)
        for i in range(n_models):
            for j in range(n_models, n_rdms):
                if kind >= TAU_A:
                    cross = float(_score(along[i], dense[i], dense[j], groups[j], times, count, tree))
                else:
                    cross = _product(ranks[i], ranks[j], times, count)
                samples[sample, i, j - n_models] = _statistic(
                    kind, cross, square[i], square[j], ties[i], ties[j], total
                )
    return samples


@njit(cache=True)
def ceilings(order, group, first, second, weights, subjects, kind):
    """Every RDM with the pool of the others' ranks and with that of all, shape (sample, rdm, 2).

    `subjects` (sample, rdm): how often each RDM occurs. All its copies are left out of the pool of the others; an RDM
    that does not occur is NaN.
    """
    n_rdms, n_pairs = order.shape
    samples = np.full((len(weights), n_rdms, 2), np.nan)
    positions, times = np.empty(n_pairs, np.int32), np.empty(n_pairs, np.int64)
    member = np.empty(n_pairs, np.int32)
    ranks, dense, along = np.empty((n_rdms, n_pairs)), np.empty((n_rdms, n_pairs), np.int32), order.copy()
    groups, ties, square = np.empty(n_rdms, np.int64), np.empty(n_rdms, np.int64), np.empty(n_rdms)
    pool, pool_ranks, pool_dense = np.empty(n_pairs), np.empty(n_pairs), np.empty(n_pairs, np.int32)
    keys, one, other = np.empty(n_pairs, np.int64), np.empty(n_pairs, np.int32), np.empty(n_pairs, np.int32)
    histogram, tree = np.empty(2048, np.int64), np.empty(n_pairs + 1, np.int64)
    for sample in range(len(weights)):
        count, total = _occurrences(first, second, weights[sample], positions, times)
        n_subjects = 0
        pool[:count] = 0
        for k in range(n_rdms):
            v = subjects[sample, k]
            n_subjects += v
            groups[k], ties[k] = _ranks(
                order[k], group[k], positions, times, total, ranks[k], dense[k], along[k], member
            )
            square[k] = _product(ranks[k], ranks[k], times, count)
            for p in range(count):
                pool[p] += v * ranks[k, p]
        lowest = n_subjects * total  # no pool is below -lowest
        for left_out in range(-1, n_rdms):  # -1: the pool of all
            v = 0 if left_out < 0 else subjects[sample, left_out]
            if v == n_subjects or (left_out >= 0 and v == 0):
                continue
            for p in range(count):
                taken = 0.0 if left_out < 0 else v * ranks[left_out, p]
                keys[p] = np.int64(pool[p] - taken) + lowest
            walk = _sorted(keys, count, one, other, histogram)
            _, pool_ties = _pool_ranks(keys, walk, times, count, total, pool_ranks, pool_dense)
            pool_square = _product(pool_ranks, pool_ranks, times, count)
            for k in range(n_rdms):
                if subjects[sample, k] == 0 or (left_out >= 0 and k != left_out):
                    continue
                if kind >= TAU_A:
                    cross = float(_score(walk, pool_dense, dense[k], groups[k], times, count, tree))
                else:
                    cross = _product(pool_ranks, ranks[k], times, count)
                samples[sample, k, 1 if left_out < 0 else 0] = _statistic(
                    kind, cross, pool_square, square[k], pool_ties, ties[k], total
                )
    return samples
