"""Shared neighbours, class separability and similarity of similarity matrices, each against plain loops."""

import itertools
import sys

import numpy as np
import pytest
from scipy.stats import spearmanr

from neuralign.align.similarity import card, similarity


def sides(seed, n=40, p=6, q=8):
    rng = np.random.default_rng(seed)
    code = rng.normal(size=(n, 3))
    return [code @ rng.normal(size=(3, w)) + 0.5 * rng.normal(size=(n, w)) + rng.normal(size=w) for w in (p, q)]


def shared_by_loop(X, Y, k, closeness):
    counts = []
    for i in range(len(X)):
        near = []
        for side in (X, Y):
            others = [j for j in range(len(side)) if j != i]
            others.sort(key=lambda j: -closeness(side[i], side[j]))
            near.append(set(others[:k]))
        counts.append(len(near[0] & near[1]) / k)
    return np.mean(counts)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_mutual_neighbours_by_loop(k):
    X, Y = sides(0)
    assert similarity("mutual-knn", X, Y, k=k) == pytest.approx(shared_by_loop(X, Y, k, cosine), abs=1e-12)
    by_distance = similarity("mutual-knn", X, Y, k=k, neighbours="euclidean")
    assert by_distance == pytest.approx(shared_by_loop(X, Y, k, lambda a, b: -np.linalg.norm(a - b)), abs=1e-12)


def test_patterns_are_scaled_before_the_inner_product():
    """As they come, the longest patterns would be everybody's neighbours: three conventions, three values."""
    X, Y = sides(1)
    X, Y = X * np.exp(np.random.default_rng(0).normal(size=(40, 1))), Y + 1
    raw = shared_by_loop(X, Y, 10, np.dot)
    normalised = similarity("mutual-knn", X, Y)
    assert normalised == pytest.approx(shared_by_loop(X, Y, 10, cosine), abs=1e-12)
    assert len({round(v, 3) for v in (raw, normalised, similarity("mutual-knn", X, Y, neighbours="euclidean"))}) == 3


def test_rows_in_parts_give_the_same(monkeypatch):
    X, Y = sides(2)
    whole = similarity("mutual-knn", X, Y)
    monkeypatch.setattr(sys.modules["neuralign.align.similarity.neighbours"], "ROWS", 7)
    assert similarity("mutual-knn", X, Y) == pytest.approx(whole, abs=1e-14)


def test_neighbours_by_chance():
    values = []
    for k in range(100):
        X, Y = np.random.default_rng(k).normal(size=(2, 30, 6))
        values.append(similarity("mutual-knn", X, Y))
    assert card("mutual-knn").chance(30) == 10 / 29
    assert abs(np.mean(values) - 10 / 29) < 4 * np.std(values, ddof=1) / 10


def test_ties_count_by_their_chance():
    """All stimuli equally near in X: k / (n - 1) whatever Y is, and whatever the order of the stimuli."""
    X, Y = np.eye(20), sides(3, n=20)[0]
    assert similarity("mutual-knn", X, Y, k=4) == pytest.approx(4 / 19, abs=1e-12)
    assert similarity("mutual-knn", X, X, k=4) == pytest.approx(4 / 19, abs=1e-12)
    # Half of the patterns twice: against the mean over random tie-breaking.
    rng = np.random.default_rng(0)
    twice = np.repeat(rng.normal(size=(10, 4)), 2, axis=0)
    values = []
    for _ in range(400):
        jitter = twice + 1e-9 * rng.normal(size=twice.shape)
        values.append(similarity("mutual-knn", jitter, Y, k=4))
    assert similarity("mutual-knn", twice, Y, k=4) == pytest.approx(np.mean(values), abs=4 * np.std(values) / 20)
    order = rng.permutation(20)
    assert similarity("mutual-knn", twice[order], Y[order], k=4) == pytest.approx(
        similarity("mutual-knn", twice, Y, k=4), abs=1e-12
    )


def test_patterns_of_zeros_are_near_to_all_alike():
    X, Y = sides(4)
    X[3] = 0
    assert 0 <= similarity("mutual-knn", X, Y) <= 1


def test_bad_neighbours():
    X, Y = sides(0)
    with pytest.raises(ValueError, match="k=39; expected at least 1 and fewer than the 39 other stimuli"):
        similarity("mutual-knn", X, Y, k=39)
    with pytest.raises(ValueError, match="neighbours='euclid' is unknown; did you mean 'euclidean'"):
        similarity("mutual-knn", X, Y, neighbours="euclid")


def gdv_by_loop(X, labels, ddof=0, divide_again=False):
    z = 0.5 * (X - X.mean(0)) / X.std(0, ddof=ddof)
    names = sorted(set(labels))
    groups = [z[np.array(labels) == name] for name in names]
    inside = [np.mean([np.linalg.norm(a - b) for a, b in itertools.combinations(group, 2)]) for group in groups]
    between = [
        np.mean([np.linalg.norm(a - b) for a in first for b in second])
        for first, second in itertools.combinations(groups, 2)
    ]
    intra = np.mean(inside) / (len(names) if divide_again else 1)
    return (intra - np.mean(between)) / np.sqrt(X.shape[1])


def test_gdv_by_loop():
    rng = np.random.default_rng(0)
    labels = ["house"] * 7 + ["face"] * 12 + ["tool"] * 5
    X = rng.normal(size=(24, 6)) + np.repeat(rng.normal(size=(3, 6)), [7, 12, 5], axis=0)
    value = similarity("gdv", X, labels)
    assert value == pytest.approx(gdv_by_loop(X, labels), abs=1e-12)
    # The mean inside is divided by the classes once, and the sd is that of the n stimuli.
    assert value != pytest.approx(gdv_by_loop(X, labels, divide_again=True), abs=0.05)
    assert value != pytest.approx(gdv_by_loop(X, labels, ddof=1), abs=1e-4)


def test_gdv_at_its_two_marks():
    labels = np.repeat([0, 1], 20)
    points = np.repeat([[0.0, 5.0, 2.0], [1.0, 3.0, 9.0]], 20, axis=0)
    assert similarity("gdv", points, labels) == pytest.approx(-1, abs=1e-12)
    values = [similarity("gdv", np.random.default_rng(k).normal(size=(40, 5)), labels) for k in range(60)]
    assert abs(np.mean(values)) < 4 * np.std(values, ddof=1) / np.sqrt(60)
    # Both intra over L and the pairs inside: a code that divides again is far from 0 without any classes.
    wrong = [gdv_by_loop(np.random.default_rng(k).normal(size=(40, 5)), labels, divide_again=True) for k in range(3)]
    assert np.mean(wrong) < -0.2


def test_gdv_without_some_features_or_pairs():
    rng = np.random.default_rng(1)
    X, labels = rng.normal(size=(20, 4)), np.arange(20) % 2
    with pytest.warns(UserWarning, match="2 of 6 features do not vary and are left out"):
        value = similarity("gdv", np.hstack([X, np.ones((20, 2))]), labels)
    assert value == pytest.approx(similarity("gdv", X, labels), abs=1e-12)
    with pytest.raises(ValueError, match="class 'c' of Y has one stimulus; every class needs two"):
        similarity("gdv", X, ["a"] * 10 + ["b"] * 9 + ["c"])


def test_ssm_by_scipy_with_and_without_the_diagonal():
    X, Y = sides(5)
    S, T = np.corrcoef(X), np.corrcoef(Y)
    upper = np.triu_indices(40, 1)
    out = similarity("ssm", X, Y)
    assert out == pytest.approx(spearmanr(S[upper], T[upper]).statistic, abs=1e-12)
    assert similarity("ssm", X, Y, diagonal="out") == out
    full = [np.where(np.eye(40), 1.0, (M + M.T) / 2).ravel() for M in (S, T)]
    inside = similarity("ssm", X, Y, diagonal="in")
    assert inside == pytest.approx(spearmanr(*full).statistic, abs=1e-9)


def test_the_diagonal_lifts_the_similarity_of_unrelated_representations():
    X, Y = np.random.default_rng(0).normal(size=(2, 20, 50))
    assert abs(similarity("ssm", X, Y)) < 0.2
    assert similarity("ssm", X, Y, diagonal="in") > similarity("ssm", X, Y) + 0.1


def test_ssm_where_it_has_no_value():
    X, Y = sides(6, n=10)
    X[2] = 4.0
    with pytest.warns(UserWarning, match="'ssm' is NaN: 1 patterns of X are constant over features"):
        assert np.isnan(similarity("ssm", X, Y))
    with pytest.raises(ValueError, match="diagonal='inside' is unknown"):
        similarity("ssm", *sides(6), diagonal="inside")
