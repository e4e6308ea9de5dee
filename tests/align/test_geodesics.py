"""Shortest paths against scipy and closed forms; the geodesic transform against its definition written out."""

import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, dijkstra, floyd_warshall
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata

from neuralign.align.topology import percolates, rgdm, rgtm, shortest_paths
from neuralign.datasets.rdms import RDMs

paths = sys.modules["neuralign.align.topology.paths"]


@pytest.fixture(params=["numba", "scipy"])
def engine(request, monkeypatch):
    """Every test with this fixture runs compiled, and as where numba is not installed."""
    if request.param == "scipy":
        monkeypatch.setitem(sys.modules, "numba", None)
    else:
        pytest.importorskip("numba")
    paths._compiled.cache_clear()
    assert (paths._compiled() is None) == (request.param == "scipy")
    yield request.param
    paths._compiled.cache_clear()


def graph(n, density, seed=0, zeros=0.0):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(size=(n, n))
    weights[rng.uniform(size=(n, n)) < zeros] = 0
    edges = np.triu(rng.uniform(size=(n, n)) < density, 1)
    return np.triu(weights, 1) + np.triu(weights, 1).T, edges | edges.T


def by_dijkstra(weights, edges):
    first, second = np.nonzero(edges)
    return dijkstra(csr_array((weights[first, second], (first, second)), shape=edges.shape))


def agree(found, expected, tolerance=1e-12):
    np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))
    finite = np.isfinite(expected)
    np.testing.assert_allclose(found[finite], expected[finite], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("zeros", [0.0, 0.3])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 31, 32, 33, 35, 64, 100])
def test_shortest_paths(engine, n, density, zeros):
    weights, edges = graph(n, density, n, zeros)
    before = weights.copy(), edges.copy()
    found = shortest_paths(weights, edges)
    agree(found, by_dijkstra(weights, edges))
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(weights, before[0])
    np.testing.assert_array_equal(edges, before[1])


def test_edges_of_length_zero_are_edges(engine):
    weights = np.zeros((4, 4))
    weights[1, 2] = weights[2, 1] = 1.0
    edges = np.zeros((4, 4), bool)
    edges[0, 1] = edges[1, 0] = edges[1, 2] = edges[2, 1] = True
    inf = np.inf
    np.testing.assert_array_equal(
        shortest_paths(weights, edges), [[0, 0, 1, inf], [0, 0, 1, inf], [1, 1, 0, inf], [inf, inf, inf, 0]]
    )


def test_stacks_are_closed_one_by_one(engine):
    pairs = [graph(40, 0.1, seed) for seed in range(6)]
    weights = np.stack([w for w, _ in pairs]).reshape(2, 3, 40, 40)
    edges = np.stack([e for _, e in pairs]).reshape(2, 3, 40, 40)
    found = shortest_paths(weights, edges)
    assert found.shape == (2, 3, 40, 40) and found.dtype == np.float64
    for k, (w, e) in enumerate(pairs):
        np.testing.assert_array_equal(found.reshape(6, 40, 40)[k], shortest_paths(w, e))
    # Whatever the order in memory.
    strided = [np.moveaxis(np.moveaxis(x, 0, -1).copy(), -1, 0) for x in (weights, edges)]
    np.testing.assert_array_equal(shortest_paths(*strided), found)
    np.testing.assert_array_equal(shortest_paths(*(np.asfortranarray(x) for x in (weights[0], edges[0]))), found[0])


def test_single_precision(engine):
    weights, edges = graph(150, 0.05)
    found = shortest_paths(weights, edges, np.float32)
    assert found.dtype == np.float32
    agree(found, by_dijkstra(weights, edges), 2e-6)


@pytest.mark.slow
def test_a_thousand_stimuli(engine):
    rng = np.random.default_rng(0)
    weights = squareform(pdist(rng.normal(size=(1000, 5))))
    edges = weights < np.quantile(weights, 0.1)
    np.fill_diagonal(edges, False)
    agree(shortest_paths(weights, edges), floyd_warshall(np.where(edges, weights, np.inf)))


def test_values_off_the_graph_do_not_matter(engine):
    weights, edges = graph(30, 0.2)
    expected = shortest_paths(weights, edges)
    np.testing.assert_array_equal(shortest_paths(np.where(edges, weights, -np.nan), edges), expected)
    np.testing.assert_array_equal(shortest_paths(np.where(edges, weights, -1), edges), expected)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda w, e: (w[:3], e), "expected"),
        (lambda w, e: (w, e[:3, :3]), "expected"),
        (lambda w, e: (-w, e), "negative"),
        (lambda w, e: (w * np.nan, e), "NaN"),
        (lambda w, e: (np.triu(w), e), "weights is not symmetric"),
        (lambda w, e: (w, np.triu(e)), "edges is not symmetric"),
    ],
)
def test_graphs_that_cannot_be(spoil, message):
    with pytest.raises(ValueError, match=message):
        shortest_paths(*spoil(*graph(10, 0.5)))
    with pytest.raises(ValueError, match="float32 or float64"):
        shortest_paths(*graph(10, 0.5), dtype=np.int64)


def test_percolates():
    for seed in range(30):
        _, edges = graph(20, 0.12, seed)
        expected = connected_components(csr_array(edges), directed=False)[0] == 1
        assert percolates(edges) == expected
        assert percolates(np.triu(edges)) == percolates(np.tril(edges)) == expected
    assert percolates(np.ones((3, 3), bool)) and not percolates(np.zeros((2, 2), bool))


# The transform.


def vectors(n_rdms=3, n_stimuli=20, seed=0, features=3):
    rng = np.random.default_rng(seed)
    return np.stack([pdist(rng.normal(size=(n_stimuli, features))) for _ in range(n_rdms)])


def written_out(d, variant="two-step", lower=0.0, upper=1.0, zero_edges="keep", p=0.05, k=3):
    """Geodesic distances of one RDM from the paper's definition, without neuralign's transform or paths."""
    r = (rankdata(d) - 1) / (len(d) - 1)
    if variant == "two-step":
        low, high = np.quantile(r, lower), np.quantile(r, upper)
        weight = np.clip((r - low) / (high - low), 0, 1)
        edge = weight < 1
    else:
        weight = (r - r.min()) / (r.max() - r.min())
        edge = weight <= np.quantile(weight, p)
    if variant == "k-nearest":
        near = squareform(weight) + np.diag(np.full(len(squareform(weight)), np.inf))
        mine = near.argsort(1).argsort(1) < k
        edge = squareform(mine | mine.T, checks=False)
    if zero_edges == "drop":
        edge = edge & (weight > 0)
    return squareform(by_dijkstra(squareform(weight), squareform(edge)), checks=False)


@pytest.mark.parametrize("zero_edges", ["keep", "drop"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lower": 0.0, "upper": 0.1},
        {"lower": 0.05, "upper": 0.3},
        {"lower": 0.02, "upper": 0.077},
        {"variant": "p-shortest"},
        {"variant": "p-shortest", "p": 0.2},
        {"variant": "k-nearest", "k": 1},
        {"variant": "k-nearest", "k": 4},
    ],
)
def test_equals_its_definition(engine, options, zero_edges):
    for d in vectors():
        expected = written_out(d, zero_edges=zero_edges, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = rgdm(d, zero_edges=zero_edges, **options)
        expected[np.isinf(expected)] = np.nan
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_by_default_only_the_longest_edge_goes():
    # Ranks 0, 0.5, 1: the pair at 1 is reached over the third stimulus.
    np.testing.assert_array_equal(rgdm(np.array([1.0, 5.0, 9.0])), [0, 0.5, 0.5])
    np.testing.assert_array_equal(rgdm(np.array([9.0, 1.0, 5.0])), [0.5, 0, 0.5])
    np.testing.assert_array_equal(rgdm(np.array([1.0, 5.0, 9.0]), 0, 10, threshold="absolute"), [0.1, 0.5, 0.6])


def test_a_ring_has_two_ways_round():
    n = 24
    angle = 2 * np.pi * np.arange(n) / n
    ring = pdist(np.c_[np.cos(angle), np.sin(angle)])
    apart = np.subtract.outer(np.arange(n), np.arange(n)) % n
    steps = squareform(np.minimum(apart, apart.T))
    # Edges between neighbours alone; scaled to [0, 1] their length is 0, so absolute thresholds keep it.
    shortest = ring.min()
    found = rgdm(ring, 0.0, 1.5 * shortest, threshold="absolute")
    np.testing.assert_allclose(found, steps / 1.5, rtol=1e-9)
    wider = rgdm(ring, 0.0, 3.2 * shortest, threshold="absolute")  # chords cut corners
    assert (wider <= steps / 3.2 + 1e-12).all() and wider.max() < found.max()


@pytest.mark.parametrize(
    "options",
    [
        {"lower": 0.02, "upper": 0.3},
        {"variant": "p-shortest", "p": 0.2},
        {"variant": "k-nearest", "k": 3},
        {"variant": "k-nearest", "k": 2, "threshold": "value-quantile"},
    ],
)
@pytest.mark.parametrize("ties", [False, True])
def test_the_order_of_the_stimuli_does_not_matter(options, ties):
    d = np.round(vectors(1), 1) if ties else vectors(1)
    ids = [f"s{k}" for k in range(20)]
    shuffled = list(np.random.default_rng(1).permutation(ids))
    rdms = RDMs(d, ids)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for ranked in (False, True):  # not even in which paths are equally long
            one = rgdm(rdms, ranked=ranked, **options).reorder(shuffled)
            other = rgdm(rdms.reorder(shuffled), ranked=ranked, **options)
            np.testing.assert_array_equal(one.vectors, other.vectors)


def test_neighbours_of_either_end():
    # Stimulus 2 has 1 as its nearest, but 1 and 0 are each other's: an edge all the same.
    d = squareform(np.array([[0, 1, 6, 9], [1, 0, 4, 8], [6, 4, 0, 5], [9, 8, 5, 0.0]]))
    found = squareform(rgdm(d, variant="k-nearest", k=1, threshold="value-quantile"))
    scaled = (d - 1) / 8
    joined = squareform(scaled)[[0, 1, 2], [1, 2, 3]]
    np.testing.assert_allclose(found[0], np.concatenate([[0], np.cumsum(joined)]))


def test_each_rdm_on_its_own_and_the_input_untouched():
    before = np.concatenate([vectors(1), 10 * vectors(1, seed=1)])
    for options in ({"upper": 0.7}, {"variant": "k-nearest", "k": 12}, {"variant": "p-shortest", "p": 0.7}):
        stack = before.copy()
        together = rgdm(stack, **options)
        np.testing.assert_array_equal(stack, before)
        for k in range(2):
            np.testing.assert_array_equal(together[k], rgdm(before[k], **options))


def test_pairs_at_zero_that_join_everything_are_told():
    d = vectors(3, 40, features=2)
    d[1] = vectors(1, 40, features=30)[0]
    assert percolates(squareform(rgtm(d[1], 0.4, 0.75) == 0))
    with pytest.warns(UserWarning, match="all geodesic distances of 3 of 3 RDMs are 0.*zero_edges='drop'") as caught:
        collapsed = rgdm(d, 0.6, 0.75)
    assert len(caught) == 1 and (collapsed == 0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dropped = rgdm(d, 0.6, 0.75, zero_edges="drop")
    assert (dropped > 0).all()


def two_islands(n=6):
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(n, 2)), 100 + rng.normal(size=(n, 2))])
    return pdist(points)


def test_unreachable_pairs():
    d = two_islands()
    across = squareform(np.kron(1 - np.eye(2), np.ones((6, 6)))).astype(bool)
    share = across.mean()
    with pytest.warns(UserWarning, match=f"{share:.1%} of the pairs in 1 of 1 RDMs are NaN") as caught:
        found = rgdm(d, 0, 10, threshold="absolute")
    assert len(caught) == 1
    np.testing.assert_array_equal(np.isnan(found), across)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        most = rgdm(d, 0, 10, threshold="absolute", unreachable="max")
        ranked = rgdm(d, 0, 10, threshold="absolute", unreachable="max", ranked=True)
    np.testing.assert_array_equal(most[~across], found[~across])
    assert (most[across] == found[~across].max()).all()
    np.testing.assert_allclose(ranked, rankdata(np.where(across, np.inf, found)))
    with pytest.warns(UserWarning, match="are NaN"):
        without = rgdm(d, 0, 10, threshold="absolute", ranked=True)
    np.testing.assert_allclose(without, rankdata(found, nan_policy="omit"))


def test_a_graph_without_edges():
    d = 1 + vectors(1)
    with pytest.warns(UserWarning, match="100.0% of the pairs in 1 of 1 RDMs are NaN"):
        assert np.isnan(rgdm(d, 0, 0.5, threshold="absolute")).all()
    for ranked in (False, True):
        stack = np.concatenate([d, (d - d.min()) / d.max()])
        with pytest.warns(
            UserWarning, match="1 of 2 RDMs are NaN: none of their pairs is an edge.*Raise upper"
        ) as caught:
            found = rgdm(stack, 0, 0.5, threshold="absolute", unreachable="max", ranked=ranked)
        assert len(caught) == 1 and np.isnan(found[0]).all() and np.isfinite(found[1]).all()
    with pytest.warns(UserWarning, match="1 of 1 RDMs are NaN.*zero_edges='keep'"):
        assert np.isnan(rgdm(d, 1, 1, threshold="absolute", zero_edges="drop", unreachable="max")).all()


def test_unknown_pairs_have_no_edge_and_stay_unknown():
    d = vectors(1)[0]
    holes = d.copy()
    missing = np.argsort(d)[[0, 3, 50]]
    holes[missing] = np.nan
    for options in ({"upper": 0.5}, {"variant": "k-nearest", "k": 8}, {"variant": "p-shortest", "p": 0.5}):
        found = rgdm(holes, **options)
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(found)), np.sort(missing))
    far = d.copy()
    far[missing] = 1e6  # as though there were no step between these two
    np.testing.assert_allclose(
        rgdm(holes, 0, 2.0, threshold="absolute", unreachable="max")[~np.isnan(holes)],
        rgdm(far, 0, 2.0, threshold="absolute", unreachable="max")[~np.isnan(holes)],
    )


def test_constant_rdms_are_counted():
    stack = vectors()
    stack[1] = 2.0
    with pytest.warns(UserWarning, match="1 of 3 RDMs are NaN: all their dissimilarities are equal") as caught:
        found = rgdm(stack)
    assert len(caught) == 1 and np.isnan(found[1]).all() and np.isfinite(found[[0, 2]]).all()


def test_negative_dissimilarities():
    d = np.random.default_rng(0).normal(0.3, 1, 190)
    for options in (
        {"upper": 0.5},
        {"lower": -0.5, "upper": 0.5, "threshold": "absolute"},
        {"variant": "k-nearest", "k": 8},
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = rgdm(d, **options)
        assert np.nanmin(found) >= 0 and np.isfinite(found).any()


def test_type_and_labels_are_kept():
    ids = [f"s{k}" for k in range(20)]
    rdms = RDMs(vectors(), ids, pd.DataFrame({"region": ["V1", "V4", "IT"]}), "correlation")
    out = rgdm(rdms, 0.0, 0.5)
    assert isinstance(out, RDMs) and list(out.table["region"]) == ["V1", "V4", "IT"]
    assert out.method == "correlation-rgdm(0,0.5)"
    assert rgdm(rdms, ranked=True, zero_edges="drop").method == "correlation-rgdm(0,1)-drop-ranked"
    assert rgdm(rdms, variant="k-nearest", k=9).method == "correlation-rgdm(k-nearest 9)"
    assert rgdm(rdms, 0, 9, threshold="absolute").method == "correlation-rgdm(0,9)-absolute"
    assert rgdm(vectors(1)[0]).shape == (190,)


def test_five_stimuli():
    assert np.isfinite(rgdm(vectors(2, 5))).all()
    assert np.isfinite(rgdm(vectors(2, 5), variant="k-nearest", k=4)).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lower": 0.8, "upper": 0.2}, "above upper"),
        ({"upper": 1.5}, "quantiles"),
        ({"variant": "two_step"}, "did you mean 'two-step'"),
        ({"zero_edges": "kept"}, "did you mean 'keep'"),
        ({"unreachable": "inf"}, "unreachable='inf' is unknown"),
        ({"threshold": "value"}, "threshold='value' is unknown"),
        ({"variant": "k-nearest"}, "k is missing"),
        ({"variant": "k-nearest", "k": 0}, "1 to 19"),
        ({"variant": "k-nearest", "k": 20}, "k=20 neighbours with 20 stimuli"),
        ({"variant": "p-shortest", "p": 0}, "p=0"),
        ({"variant": "p-shortest", "p": 1.0}, "p=1.0"),
        ({"variant": "p-shortest", "lower": 0.1}, "thresholds of variant='two-step'"),
        ({"variant": "k-nearest", "k": 3, "threshold": "absolute"}, "absolute"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        rgdm(vectors(), **options)


def test_both_engines_give_the_same_transform(monkeypatch):
    pytest.importorskip("numba")
    d = vectors(2, 45)
    options = {"lower": 0.01, "upper": 0.5, "unreachable": "max", "ranked": True}
    compiled = rgdm(d, **options)
    monkeypatch.setattr(paths, "_compiled", lambda: None)
    np.testing.assert_array_equal(rgdm(d, **options), compiled)
