"""Searchlights against one RDM per neighbourhood, and neighbourhoods against all distances."""

import sys
import types
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.sparse.csgraph import dijkstra
from scipy.spatial.distance import cdist

from neuralign.align.compare import compare
from neuralign.align.geometry.crossvalidated import crossnobis
from neuralign.align.noise import noise_precision, repeat_residuals
from neuralign.align.rdm import rdm
from neuralign.align.searchlight import Neighbourhoods, searchlight, surface_neighbours, volume_neighbours
from neuralign.datasets.rdms import RDMs
from neuralign.datasets.recording import Recording


def ball_mask(shape=(7, 8, 6), seed=0):
    return np.random.default_rng(seed).random(shape) < 0.8


def neighbours_of(members):
    """Neighbourhoods from a list of lists."""
    sizes = [len(one) for one in members]
    return Neighbourhoods(
        np.arange(len(members)), np.concatenate([np.asarray(one, int) for one in members]), np.cumsum([0, *sizes])
    )


def some_neighbours(n_features=30, n=12, seed=0):
    rng = np.random.default_rng(seed)
    return neighbours_of([rng.choice(n_features, rng.integers(3, 7), replace=False) for _ in range(n)])


# ---------------------------------------------------------------------------------------------- neighbourhoods


@pytest.mark.parametrize("radius", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("voxel_size", [(1, 1, 1), (1, 2, 0.7)])
def test_spheres_against_all_distances(radius, voxel_size):
    mask = ball_mask()
    places = np.argwhere(mask) * voxel_size
    near = cdist(places, places) < radius
    found = volume_neighbours(mask, radius, voxel_size)
    assert len(found) == mask.sum() == len(found.sizes)
    np.testing.assert_array_equal(found.centres, np.arange(mask.sum()))
    for k in range(len(found)):
        assert sorted(found[k]) == np.flatnonzero(near[k]).tolist()


def test_the_radius_itself_is_outside():
    mask = np.ones((5, 5, 5), bool)
    centre = np.ravel_multi_index((2, 2, 2), mask.shape)
    assert volume_neighbours(mask, 1.0).sizes[centre] == 1
    assert volume_neighbours(mask, 1.0 + 1e-9).sizes[centre] == 7
    assert volume_neighbours(mask, 2.0).sizes[centre] == 27


def test_share_in_the_mask_and_the_edge_of_the_volume():
    mask = ball_mask()
    places = np.argwhere(mask)
    grid = np.argwhere(np.ones(mask.shape))
    around = cdist(places, grid) < 2.5
    share = (around & mask.ravel()).sum(1) / around.sum(1)
    kept = volume_neighbours(mask, 2.5, least=0.8)
    assert 0 < len(kept) < mask.sum()
    np.testing.assert_array_equal(kept.centres, np.flatnonzero(share >= 0.8))
    inner = ((places >= 2) & (places < np.array(mask.shape) - 2)).all(1)
    dropped = volume_neighbours(mask, 2.5, boundary="drop")
    np.testing.assert_array_equal(dropped.centres, np.flatnonzero(inner))
    assert sorted(dropped[0]) == sorted(volume_neighbours(mask, 2.5)[int(dropped.centres[0])])


def test_spheres_do_not_leave_the_mask(monkeypatch):
    """Nor does the number of centres at a time matter."""
    mask = np.zeros((6, 6, 6), bool)
    mask[:3] = True
    found = volume_neighbours(mask, 3.0)
    assert found.indices.max() == mask.sum() - 1
    monkeypatch.setattr(sys.modules["neuralign.align.searchlight"], "BLOCK", 1)
    again = volume_neighbours(mask, 3.0)
    np.testing.assert_array_equal(again.indices, found.indices)
    np.testing.assert_array_equal(again.indptr, found.indptr)


def bent_sheet(n=6):
    """A triangulated sheet with unequal edges, its vertices and faces."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    vertices = np.stack([x, y, np.sin(x)], -1).reshape(-1, 3) + 0.1 * rng.normal(size=(n * n, 3))
    corner = np.array([i * n + j for i in range(n - 1) for j in range(n - 1)])
    faces = np.concatenate(
        [np.stack([corner, corner + 1, corner + n], 1), np.stack([corner + 1, corner + n, corner + n + 1], 1)]
    )
    return vertices, faces


@pytest.mark.parametrize("radius", [0.5, 2.0, 100.0])
def test_discs_against_shortest_paths(radius, monkeypatch):
    vertices, faces = bent_sheet()
    weights = np.full((36, 36), np.inf)
    for face in faces:
        for a, b in ((0, 1), (1, 2), (2, 0)):
            i, j = face[a], face[b]
            weights[i, j] = weights[j, i] = np.linalg.norm(vertices[i] - vertices[j])
    ways = dijkstra(np.where(np.isinf(weights), 0, weights))
    found = surface_neighbours(vertices, faces, radius)
    for k in range(36):
        assert sorted(found[k]) == np.flatnonzero(ways[k] < radius).tolist()
    some = surface_neighbours(vertices, faces, radius, centres=[7, 3])
    assert some.centres.tolist() == [7, 3]
    np.testing.assert_array_equal(some[0], found[7])
    monkeypatch.setattr(sys.modules["neuralign.align.searchlight"], "BLOCK", 1)
    np.testing.assert_array_equal(surface_neighbours(vertices, faces, radius).indices, found.indices)


def test_vertices_at_one_place_and_vertices_without_faces():
    vertices = np.array([[0, 0, 0], [0, 0, 0], [1, 0, 0], [9, 9, 9]], float)
    found = surface_neighbours(vertices, np.array([[0, 1, 2]]), 0.5)
    assert [sorted(found[k]) for k in range(4)] == [[0, 1], [0, 1], [2], [3]]


def test_neighbourhoods_are_indexed():
    found = some_neighbours()
    np.testing.assert_array_equal(found[-1], found[11])
    with pytest.raises(IndexError):
        found[12]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"mask": np.ones((2, 2))}, r"mask has shape \(2, 2\)"),
        ({"mask": np.zeros((2, 2, 2))}, "mask holds no voxel"),
        ({"radius": 0}, "radius=0; expected a length above zero"),
        ({"voxel_size": (1, 1)}, "three lengths above zero"),
        ({"least": 2}, "least=2; expected a share"),
        ({"boundary": "dorp"}, "boundary='dorp' is unknown; did you mean 'drop'"),
    ],
)
def test_bad_volumes(arguments, message):
    with pytest.raises(ValueError, match=message):
        volume_neighbours(**({"mask": np.ones((2, 2, 2)), "radius": 2.0} | arguments))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"vertices": np.ones((3, 2))}, r"vertices has shape \(3, 2\); expected \(vertex, 3\)"),
        ({"faces": np.ones((2, 4), int)}, r"faces has shape \(2, 4\); expected \(face, 3\)"),
        ({"faces": np.array([[0, 1, 36]])}, "faces names vertices that are not there; .* 0 to 35"),
        ({"faces": np.array([[0.0, 1, 2]])}, "faces names vertices"),
        ({"centres": [-1]}, "centres names vertices"),
        ({"radius": -1.0}, "radius=-1.0"),
    ],
)
def test_bad_surfaces(arguments, message):
    vertices, faces = bent_sheet()
    with pytest.raises(ValueError, match=message):
        surface_neighbours(**({"vertices": vertices, "faces": faces, "radius": 1.0} | arguments))


# ------------------------------------------------------------------------------------------------- searchlights


@pytest.mark.parametrize("batch", [None, 1, 5])
@pytest.mark.parametrize("method", ["sqeuclidean", "euclidean", "correlation", "cosine", "poisson"])
def test_every_neighbourhood_is_an_rdm(method, batch):
    X = np.random.default_rng(0).uniform(1, 5, size=(8, 30))
    around = some_neighbours()
    found = np.concatenate([vectors for _, vectors in searchlight(X, around, method=method, batch=batch)])
    wanted = np.stack([rdm(X[:, around[k]], method).vectors[0] for k in range(len(around))])
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_slices_follow_one_another():
    around = some_neighbours()
    slices = [some for some, _ in searchlight(np.random.default_rng(0).normal(size=(5, 30)), around, batch=5)]
    assert slices == [slice(0, 5), slice(5, 10), slice(10, 12)]


@pytest.mark.parametrize("measure", ["pearson", "rho-a"])
def test_models_are_compared_with_every_rdm(measure):
    rng = np.random.default_rng(0)
    X, models = rng.normal(size=(8, 30)).astype(np.float32), rng.uniform(size=(3, 28))
    around = some_neighbours()
    found = searchlight(X, around, models, "correlation", measure, batch=5)
    wanted = [compare(rdm(X[:, around[k]]).vectors, models, measure)[0] for k in range(12)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def folded(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(8, 30)) + rng.normal(size=(4, 8, 30)) @ (np.eye(30) + 0.1 * rng.normal(size=(30, 30)))


@pytest.mark.parametrize("noise", [None, "diagonal array", "shrinkage-diagonal", "residuals"])
def test_crossnobis_with_noise(noise):
    """The noise of every neighbourhood is that of its own features."""
    X, around = folded(), some_neighbours()
    residuals = np.random.default_rng(3).normal(size=(60, 30))
    diagonal = np.random.default_rng(4).uniform(1, 2, 30)
    options = {
        None: {},
        "diagonal array": {"noise": diagonal},
        "shrinkage-diagonal": {"noise": "shrinkage-diagonal"},
        "residuals": {"noise": "full", "residuals": (residuals, 50)},
    }[noise]
    found = np.concatenate([vectors for _, vectors in searchlight(X, around, method="crossnobis", **options)])
    from_repeats, dof = repeat_residuals(X.reshape(-1, 30), np.tile(np.arange(8), 4))
    for k in range(len(around)):
        some = around[k]
        precision = {
            None: None,
            "diagonal array": diagonal[some],
            "shrinkage-diagonal": noise_precision(from_repeats[:, some], dof=dof),
            "residuals": noise_precision(residuals[:, some], "full", 50),
        }[noise]
        np.testing.assert_allclose(found[k], crossnobis(X[:, :, some], precision), rtol=1e-8, atol=1e-11)


def test_mahalanobis_with_noise():
    X, around = folded().mean(0), some_neighbours()
    residuals, diagonal = np.random.default_rng(3).normal(size=(60, 30)), np.random.default_rng(4).uniform(1, 2, 30)
    given = np.concatenate([v for _, v in searchlight(X, around, method="mahalanobis", noise=diagonal)])
    stream = searchlight(X, around, method="mahalanobis", noise="full", residuals=residuals)
    full = np.concatenate([v for _, v in stream])
    for k in range(len(around)):
        some = around[k]
        np.testing.assert_allclose(given[k], rdm(X[:, some], "mahalanobis", diagonal[some]).vectors[0], rtol=1e-9)
        precision = noise_precision(residuals[:, some], "full")
        np.testing.assert_allclose(full[k], rdm(X[:, some], "mahalanobis", precision).vectors[0], rtol=1e-9)


def test_poisson_cv_and_folds_that_lack_a_stimulus():
    counts = np.random.default_rng(0).poisson(4, size=(4, 8, 30)).astype(float)
    counts[2, 3] = np.nan
    around = some_neighbours()
    for method in ("poisson-cv", "crossnobis"):
        found = np.concatenate([vectors for _, vectors in searchlight(counts, around, method=method)])
        for k in range(len(around)):
            wanted = rdm(counts[:, :, around[k]], method).vectors[0]
            np.testing.assert_allclose(found[k], wanted, rtol=1e-9, atol=1e-12)


def recording(seed=0):
    X = folded(seed).reshape(-1, 30)
    order = np.random.default_rng(1).permutation(32)
    table = pd.DataFrame({"stimulus": [f"s{k}" for k in np.tile(range(8), 4)], "run": np.repeat(range(4), 8)})
    return Recording(X[order], table.iloc[order].reset_index(drop=True), pd.DataFrame({"unit": range(30)}))


@pytest.mark.parametrize(
    "method, options",
    [
        ("correlation", {}),
        ("crossnobis", {"folds": "run", "noise": "shrinkage-diagonal"}),
        ("mahalanobis", {"noise": "shrinkage-identity"}),
    ],
)
def test_recordings_join_models_by_id(method, options):
    brain, around = recording(), some_neighbours()
    ids = [f"s{k}" for k in (3, 1, 0, 2, 7, 5, 6, 4)]
    models = RDMs(np.random.default_rng(0).uniform(size=(2, 28)), ids)
    found = searchlight(brain, around, models, method, "pearson", **options)
    for k in range(len(around)):
        part = Recording(brain.read()[:, around[k]], brain.presentations[["stimulus", "run"]])
        np.testing.assert_allclose(found[k], compare(rdm(part, method, **options), models, "pearson")[0], rtol=1e-6)


def test_gaps_and_empty_neighbourhoods_are_counted():
    X = np.random.default_rng(0).normal(size=(8, 30))
    X[2, 4] = np.nan
    X[3, [10, 11, 12]] = 1.0
    around = neighbours_of([[1, 2, 3], [3, 4, 5], [], [10, 11, 12]])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        [(_, found)] = list(searchlight(X, around))
    assert sorted(str(one.message)[:40] for one in caught) == [
        "1 of 16 patterns are constant, NaN or in",
        "1 of 4 neighbourhoods are empty; their R",
    ]
    assert np.isnan(found).sum(1).tolist() == [0, 0, 28, 7]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_allclose(found[1], rdm(X[:, [3, 4, 5]]).vectors[0], rtol=1e-10)


def test_neighbourhoods_without_a_precision_are_counted():
    X, residuals = folded().mean(0), np.random.default_rng(3).normal(size=(60, 30))
    residuals[:, 4] = 0
    around = neighbours_of([[1, 2, 3], [3, 4, 5]])
    with pytest.warns(UserWarning, match="1 of 2 neighbourhoods have no RDM.*1 of 3 units have residuals without var"):
        stream = searchlight(X, around, method="mahalanobis", noise="diagonal", residuals=residuals)
        [(_, found)] = list(stream)
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()
    with pytest.raises(ValueError, match="residuals without variance"):
        list(searchlight(X, around, method="mahalanobis", noise="diagonal", residuals=0 * residuals))


def test_all_rdms_are_never_in_memory():
    """2,000 neighbourhoods of 60 stimuli: 28 MB of RDMs, compared in a few."""
    import tracemalloc

    X = np.random.default_rng(0).normal(size=(60, 100))
    around = neighbours_of([np.random.default_rng(k).choice(100, 5, replace=False) for k in range(2000)])
    models = np.random.default_rng(0).uniform(size=(2, 1770))
    searchlight(X, some_neighbours(), models, batch=20)
    tracemalloc.start()
    searchlight(X, around, models, compare="pearson", batch=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


def test_without_models_nothing_is_computed_before_it_is_asked_for():
    stream = searchlight(np.ones((5, 30)), some_neighbours())
    assert isinstance(stream, types.GeneratorType)


@pytest.mark.parametrize(
    "X, options, message",
    [
        (np.ones((5, 20)), {}, "neighbourhoods names feature 29 of 20 in X"),
        (np.ones((2, 5, 30)), {}, r"shape \(2, 5, 30\) .* expects \(stimulus, feature\)"),
        (np.ones((5, 30)), {"method": "crossnobis"}, r"expects \(fold, stimulus, feature\)"),
        (np.ones((5, 30)), {"method": "mahalanobis", "noise": "full"}, "needs residuals, or repeats"),
        (np.ones((5, 30)), {"method": "mahalanobis", "noise": np.eye(30)}, "takes a diagonal precision .30,."),
        (np.ones((5, 30)), {"method": "mahalanobis", "noise": np.zeros(30)}, "not above zero"),
        (np.ones((5, 30)), {"method": "mahalanobis", "noise": np.ones(30), "residuals": np.ones((9, 30))}, "applied"),
        (np.ones((5, 30)), {"method": "mahalanobis", "noise": "full", "residuals": np.ones((9, 3))}, r"\(9, 3\)"),
        (np.ones((5, 30)), {"noise": np.ones(30)}, "'correlation' takes no noise"),
        (np.ones((2, 5, 30)), {"method": "crossnobis", "folds": "run"}, "folds is for a Recording"),
        (np.ones((5, 30)), {"models": np.ones((1, 6))}, "models has 6 pairs; 5 stimuli have 10"),
        (np.ones((5, 30)), {"models": np.ones((1, 10)), "compare": "r"}, "compare='r' is unknown"),
        (np.ones((5, 30)), {"batch": 0}, "batch=0; expected a number of centres"),
    ],
)
def test_bad_input(X, options, message):
    with pytest.raises(ValueError, match=message):
        searchlight(X, some_neighbours(), **options)


def test_bad_recordings():
    with pytest.raises(ValueError, match="average a window first"):
        searchlight(
            Recording(np.ones((4, 30, 2)), pd.DataFrame({"stimulus": list("abcd")}), times=[0, 1]), some_neighbours()
        )
    units = pd.DataFrame({"subject": ["1"] * 15 + ["2"] * 15})
    with pytest.raises(ValueError, match=r"Recording of 2 subjects; take one, X.select\(subject='1'\)"):
        searchlight(Recording(np.ones((4, 30)), pd.DataFrame({"stimulus": list("abcd")}), units), some_neighbours())
