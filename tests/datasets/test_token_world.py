"""The world of tokens is what it says: recomputed here from its parts, one image at a time."""

import numpy as np
import pytest

from neuralign.datasets.token_world import KINDS, PRESENT, token_world

SMALL = {"n": 300, "n_test": 50, "n_validation": 50}


def explained(parts, signal):
    """Share of the variance of signals (row, unit) in the span of parts (row, part) and a constant."""
    design = np.column_stack([parts, np.ones(len(parts))])
    residual = signal - design @ np.linalg.lstsq(design, signal, rcond=None)[0]
    return 1 - residual.var(0) / signal.var(0)


def drives(world, left_only=False):
    """Attributes of the object that each region answers to, image by image: (region, image, attribute)."""
    found = np.zeros((len(world.names), len(world.tokens), world.attributes.shape[2]))
    for i, labels in enumerate(world.labels):
        for r, category in enumerate(world.preferred):
            for t, label in enumerate(labels):
                if label == category and (not left_only or (t % world.grid[1]) < world.grid[1] // 2):
                    found[r, i] = world.attributes[i, t]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_rows_and_seed(kind):
    world = token_world(kind, **SMALL, seed=3)
    assert world.tokens.shape == (400, 49, 32) and world.tokens.dtype == np.float32
    assert world.responses.shape == world.signal.shape == (400, 40)
    assert np.array_equal(np.concatenate([world.train, world.validation, world.test]), np.arange(400))
    assert [len(rows) for rows in (world.train, world.validation, world.test)] == [300, 50, 50]
    assert list(world.regions) == [name for name in world.names for _ in range(10)]
    same, other = token_world(kind, **SMALL, seed=3), token_world(kind, **SMALL, seed=4)
    assert np.array_equal(same.tokens, world.tokens) and np.array_equal(same.responses, world.responses)
    assert not np.array_equal(other.tokens, world.tokens)
    assert np.allclose(world.signal.mean(0), 0, atol=1e-5) and np.allclose(world.signal.std(0), 1, atol=1e-5)


def test_objects_stand_in_one_cell_each():
    world = token_world("content", n=3000, n_test=0, n_validation=0, seed=1)
    count = np.stack([(world.labels == category).sum(1) for category in range(4)], axis=1)
    assert set(np.unique(count)) == {0, 1}
    assert np.abs(count.mean(0) - PRESENT).max() < 4 * np.sqrt(0.21 / 3000)
    for r, category in enumerate(world.preferred):
        seen = world.target_cell[:, r] >= 0
        assert np.array_equal(seen, count[:, category] == 1)
        assert np.array_equal(world.target_cell[seen, r], np.argmax(world.labels == category, axis=1)[seen])
    cells = np.bincount(world.target_cell[world.target_cell >= 0], minlength=49)
    expected = cells.sum() / 49
    assert np.abs(cells - expected).max() < 5 * np.sqrt(expected), "some cells hold objects more often than others"


def test_tokens_are_labels_attributes_and_noise():
    world = token_world("content", n=3000, n_test=0, n_validation=0, seed=2)
    rows = world.tokens.reshape(-1, 32).astype(float)
    design = np.column_stack([(world.labels.reshape(-1, 1) == np.arange(4)), world.attributes.reshape(-1, 6)])
    basis = np.linalg.lstsq(design.astype(float), rows, rcond=None)[0]
    gram = basis @ basis.T
    assert np.allclose(gram, np.diag([9] * 4 + [1] * 6), atol=0.17)  # lengths 3 and 1, orthogonal
    assert np.isclose((rows - design @ basis).std(), 0.3, atol=0.005)


@pytest.mark.parametrize("kind", ["content", "joint", "mixed"])
def test_regions_answer_to_the_attributes_of_their_object(kind):
    world = token_world(kind, **SMALL, rho=0.5 if kind == "mixed" else 0.0, preferred=(2, 0, 2), seed=5)
    assert world.names == ("R1", "R2", "R3") and world.responses.shape[1] == 30
    own = drives(world, left_only=kind == "joint")
    for r, name in enumerate(world.names):
        of_region = world.signal[:, world.regions == name]
        assert explained(own[r], of_region).min() > 1 - 1e-8, name
        assert explained(own[1 - r % 2], of_region).max() < 0.2, name  # those of the other category
    if kind == "joint":
        assert explained(drives(world)[0], world.signal[:, :10]).max() < 0.8, "the right half counts too"


def test_retinotopic_units_pool_a_field():
    world = token_world("retinotopic", **SMALL, grid=(5, 8), seed=6)
    for unit in range(0, 40, 7):
        field = np.zeros((5, 8))
        for y in range(5):
            for x in range(8):
                distance = (y - world.centres[unit, 0]) ** 2 + (x - world.centres[unit, 1]) ** 2
                field[y, x] = np.exp(-distance / 2)
        pooled = np.einsum("stf,t->sf", world.tokens.astype(float), field.ravel())
        assert explained(pooled, world.signal[:, [unit]])[0] > 1 - 1e-8
        mirrored = np.einsum("stf,t->sf", world.tokens.astype(float), field[::-1, ::-1].ravel())
        assert explained(mirrored, world.signal[:, [unit]])[0] < 0.9
    assert (world.centres >= 0).all() and (world.centres <= (4, 7)).all() and world.centres[:, 1].max() > 5


def test_global_units_read_the_mean_and_null_units_nothing():
    world = token_world("global", **SMALL, seed=7)
    assert explained(world.tokens.astype(float).mean(1), world.signal).min() > 1 - 1e-8
    null = token_world("null", n=4000, n_test=0, n_validation=0, seed=7)
    assert explained(null.tokens.astype(float).mean(1), null.signal).max() < 3 * 32 / 4000
    assert (null.ceiling == 0).all()


@pytest.mark.parametrize("ceiling", [0.3, 0.8, 1.0])
def test_noise_gives_the_ceiling(ceiling):
    world = token_world("global", n=20000, n_test=0, n_validation=0, grid=(2, 2), ceiling=ceiling, seed=8)
    r = [np.corrcoef(world.signal[:, i], world.responses[:, i])[0, 1] for i in range(40)]
    assert (world.ceiling == ceiling).all()
    assert np.abs(np.array(r) - ceiling).max() < 5 * (1 - ceiling**2) / np.sqrt(20000) + 1e-6


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_objects_are_at_home_with_probability_rho(rho):
    world = token_world("mixed", n=4000, n_test=0, n_validation=0, rho=rho, seed=9)
    for r in range(4):
        cells = world.target_cell[world.target_cell[:, r] >= 0, r]
        share = np.bincount(cells, minlength=49).max() / len(cells)
        expected = rho + (1 - rho) / 49  # a wandering object may come home; others' homes are taken more often
        assert abs(share - expected) < (0.015 if rho < 1 else 1e-12) + (0.012 if rho == 0 else 0)
    count = np.stack([(world.labels == category).sum(1) for category in range(4)], axis=1)
    assert np.array_equal(count, world.target_cell >= 0), "two objects share a cell"


def test_shuffled_tokens_take_everything_along():
    plain = token_world("mixed", **SMALL, rho=1.0, seed=10)
    world = token_world("mixed", **SMALL, rho=1.0, shuffle=True, seed=10)
    assert np.array_equal(plain.responses, world.responses)
    assert np.allclose(plain.tokens.sum(1), world.tokens.sum(1), atol=1e-4)
    for i in range(0, 400, 29):
        for r, category in enumerate(world.preferred):
            cell = world.target_cell[i, r]
            assert (cell >= 0) == (plain.target_cell[i, r] >= 0)
            if cell >= 0:
                assert world.labels[i, cell] == category
                assert np.array_equal(world.tokens[i, cell], plain.tokens[i, plain.target_cell[i, r]])
                assert np.array_equal(world.attributes[i, cell], plain.attributes[i, plain.target_cell[i, r]])
    shares = [np.bincount(world.target_cell[world.target_cell[:, r] >= 0, r]).max() / 280 for r in range(4)]
    assert max(shares) < 0.15


def test_leakage_mixes_tokens_and_leaves_responses():
    plain = token_world("retinotopic", **SMALL, seed=11)
    for m in (0.25, 1.0):
        world = token_world("retinotopic", **SMALL, leakage=m, seed=11)
        assert np.array_equal(plain.responses, world.responses)
        for i in (0, 399):
            mean = sum(plain.tokens[i].astype(float)) / 49
            assert np.allclose(world.tokens[i], (1 - m) * plain.tokens[i] + m * mean, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "contents"}, "kind='contents' is unknown; did you mean 'content'"),
        ({"kind": "content", "rho": 0.5}, "rho=0.5 has no meaning in the content world"),
        ({"kind": "mixed", "rho": 1.5}, "rho=1.5 is a share"),
        ({"kind": "content", "leakage": -0.1}, "leakage=-0.1 is a share"),
        ({"kind": "content", "ceiling": 0.0}, "ceiling=0.0 is a correlation"),
        ({"kind": "content", "n": 1}, "n=1 is too few"),
        ({"kind": "content", "grid": (1, 3)}, r"grid=\(1, 3\) has no room for categories=4"),
        ({"kind": "joint", "grid": (9, 1)}, "has no left half"),
        ({"kind": "content", "features": 9}, "features=9 are too few .* at least 10"),
        ({"kind": "content", "preferred": (0, 4)}, "give numbers from 0 to 3"),
        ({"kind": "content", "units_per_region": 0}, "units_per_region=0 is too few"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        token_world(**options)
