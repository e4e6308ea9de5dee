"""Geo-topological transforms against rsatoolbox and networkx, where they are right and where they are not.

rsatoolbox's port cuts raw values at quantiles of the whole stack, in place; the authors' code cuts ranks. Both leave
pairs of length zero out of the graph, because networkx reads a zero in a matrix as no edge.
"""

import warnings

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata

from neuralign.align.topology import percolates, rgdm, rgtm

rsatoolbox = pytest.importorskip("rsatoolbox")
transform = pytest.importorskip("rsatoolbox.rdm.transform")
networkx = pytest.importorskip("networkx")


def vectors(n_rdms=3, n_stimuli=30, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([pdist(rng.normal(size=(n_stimuli, 4))) for _ in range(n_rdms)])


def theirs(function, d, *arguments):
    stack = rsatoolbox.rdm.RDMs(np.array(d, ndmin=2))
    return function(stack, *arguments).get_vectors()


def geotopological(d, lower, upper):
    return theirs(transform.geotopological_transform, d, lower, upper)


def by_networkx(weights, edges):
    """Geodesic distances (pair,) as the authors compute them: a graph from the matrix, long edges removed."""
    graph = networkx.from_numpy_array(squareform(weights))
    graph.remove_edges_from([(i, j) for i, j in list(graph.edges) if not squareform(edges)[i, j]])
    return squareform(np.asarray(networkx.floyd_warshall_numpy(graph)), checks=False)


@pytest.mark.parametrize("lower", [0.0, 0.1, 0.5, 0.9])
def test_values_between_quantiles(lower):
    """With nothing cut off above, and one RDM at a time, their transform does what it says."""
    for d in vectors():
        np.testing.assert_allclose(rgtm(d, lower, 1.0, "value-quantile"), geotopological(d, lower, 1.0)[0], atol=1e-9)


def test_quantiles_are_not_those_of_the_stack():
    small = vectors(1)[0]
    stack = np.stack([small, 10 * small])
    pooled = geotopological(stack, 0.2, 1.0)
    assert pooled[0].sum() < 0.2 * geotopological(small, 0.2, 1.0).sum()  # the smaller RDM vanishes
    ours = rgtm(stack, 0.2, 1.0, "value-quantile")
    np.testing.assert_allclose(ours[0], rgtm(small, 0.2, 1.0, "value-quantile"), atol=1e-12)
    np.testing.assert_allclose(ours[0], ours[1], atol=1e-12)


def test_the_caller_keeps_their_data():
    d = vectors(1)
    changed = rsatoolbox.rdm.RDMs(d.copy())
    transform.geotopological_transform(changed, 0.2, 0.8)
    assert np.abs(changed.get_vectors() - d).max() > 0.1
    mine = d.copy()
    rgtm(mine, 0.2, 0.8)
    rgdm(mine, 0.0, 0.8)
    np.testing.assert_array_equal(mine, d)


@pytest.mark.parametrize("lower, upper", [(0.0, 0.075), (0.1, 0.5)])
def test_the_band_between_is_a_line(lower, upper):
    d = vectors(1)[0] / 4  # dissimilarities up to 1 or so, as correlation distances are
    low, high = np.quantile(d, [lower, upper])
    expected = np.clip((d - low) / (high - low), 0, 1)
    np.testing.assert_allclose(rgtm(d, lower, upper, "value-quantile"), expected, atol=1e-12)
    wrong = np.abs(geotopological(d, lower, upper)[0] - expected)
    assert wrong.max() > 0.1  # rescaled values are compared with a threshold on the old scale


def test_order_is_kept_below_zero():
    d = np.random.default_rng(0).normal(0.2, 1, 190)
    order = np.argsort(d)
    assert (np.diff(geotopological(d, 0.1, 1.0)[0][order]) < -1e-6).any()
    assert (np.diff(rgtm(d, 0.1, 1.0, "value-quantile")[order]) >= 0).all()


def test_geodesics_of_values():
    for d in vectors():
        expected = theirs(transform.geodesic_transform, d)[0]
        found = rgdm(d, 0.0, 1.0, threshold="value-quantile", zero_edges="drop")
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_geodesics_of_a_stack_of_values():
    stack = vectors()
    expected = theirs(transform.geodesic_transform, stack)
    np.testing.assert_allclose(rgdm(stack, threshold="value-quantile", zero_edges="drop"), expected, atol=1e-9)


@pytest.mark.parametrize("lower, upper", [(0.0, 1.0), (0.05, 0.3), (0.25, 0.75), (0.0, 0.031), (0.61, 0.93)])
def test_two_steps_of_the_authors(lower, upper):
    for d in vectors():
        weights = (rankdata(d) - 1) / (len(d) - 1)
        low, high = np.quantile(weights, [lower, upper])
        weights = np.where(weights < low, 0, np.where(weights > high, 1, (weights - low) / (high - low)))
        lengths = by_networkx(weights, weights < 1)
        found = rgdm(d, lower, upper, zero_edges="drop", unreachable="max", ranked=True)
        np.testing.assert_allclose(found, _ranks(lengths), atol=1e-9)


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5])
def test_p_shortest_of_the_authors(p):
    for d in vectors():
        weights = (rankdata(d) - 1) / (len(d) - 1)
        lengths = by_networkx(weights, weights <= np.quantile(weights, p))
        found = rgdm(d, variant="p-shortest", p=p, zero_edges="drop", unreachable="max", ranked=True)
        np.testing.assert_allclose(found, _ranks(lengths), atol=1e-9)


def _ranks(lengths):
    """Ranks of lengths without the digits that depend on the order of summation.

    Weights are evenly spaced ranks, so many paths are equally long. The authors rank sums as they come: half of their
    ranks then depend on the order of the stimuli, by up to a few places.
    """
    return rankdata(np.round(lengths, 10))


def test_zero_is_a_length_and_not_a_gap():
    """Where pairs below the threshold join all stimuli, every distance is 0; without these pairs it is not."""
    d = vectors(1)[0]
    weights = rgtm(d, 0.25, 0.75)
    assert percolates(squareform(weights == 0))
    with pytest.warns(UserWarning, match="are 0"):
        assert (rgdm(d, 0.25, 0.75) == 0).all()
    assert (by_networkx(weights, weights < 1) > 0).all()
    # A few such pairs shorten the way round.
    weights = rgtm(d, 0.02, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept, dropped = rgdm(d, 0.02, 0.5), rgdm(d, 0.02, 0.5, zero_edges="drop")
    np.testing.assert_allclose(dropped, by_networkx(weights, weights < 1), atol=1e-12)
    assert (kept <= dropped + 1e-12).all() and (kept < dropped - 0.01).mean() > 0.2
