import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch.nn import functional as F

from neuralign.encoders.spatial import sampling
from neuralign.encoders.spatial.sampling import (
    TRANSFORMS,
    as_maps,
    bilinear,
    by_blocks,
    cell_centres,
    transform_matrix,
    warped_points,
)


def drawn_maps(rows=3, features=2, grid=(5, 4), seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, features, *grid)))


def warped(maps, numbers, transform, outside="zeros"):
    """Maps (row, feature, height, width) through one transform."""
    grid = maps.shape[2:]
    matrix = transform_matrix(torch.tensor(numbers, dtype=maps.dtype), transform)
    points = warped_points(matrix, cell_centres(grid, maps.dtype))
    return bilinear(maps, points[None], outside).transpose(1, 2).unflatten(2, grid)


@pytest.mark.parametrize("outside, mode", [("border", "nearest"), ("zeros", "grid-constant")])
def test_bilinear_is_that_of_scipy(outside, mode):
    maps = drawn_maps()
    points = torch.from_numpy(np.random.default_rng(1).uniform(-1.4, 1.4, (3, 40, 2)))
    found = bilinear(maps, points, outside).numpy()
    assert found.shape == (3, 40, 2)
    h, w = maps.shape[2:]
    for row in range(3):
        x, y = points[row].numpy().T
        places = [((y + 1) * h - 1) / 2, ((x + 1) * w - 1) / 2]
        for feature in range(2):
            expected = map_coordinates(maps[row, feature].numpy(), places, order=1, mode=mode, cval=0.0)
            np.testing.assert_allclose(found[row, :, feature], expected, atol=1e-12)


def test_bilinear_reads_cells_at_their_centres_and_one_set_of_points_for_all_rows():
    maps = drawn_maps()
    found = bilinear(maps, cell_centres((5, 4), torch.float64)[None])
    np.testing.assert_allclose(found.numpy(), maps.flatten(2).transpose(1, 2).numpy(), atol=1e-12)
    # row by row, x to the right and y down
    np.testing.assert_allclose(
        cell_centres((2, 3)).numpy()[[0, 1, 3]], [[-2 / 3, -0.5], [0, -0.5], [-2 / 3, 0.5]], atol=1e-6
    )


def test_bilinear_has_the_gradients_of_finite_differences():
    maps = drawn_maps().requires_grad_()
    points = torch.from_numpy(np.random.default_rng(2).uniform(-0.9, 0.9, (3, 6, 2))).requires_grad_()
    assert torch.autograd.gradcheck(bilinear, (maps, points))


def test_tokens_are_maps_without_a_copy():
    tokens = torch.arange(24.0).view(2, 6, 2)
    maps = as_maps(tokens, (2, 3))
    assert maps.data_ptr() == tokens.data_ptr()
    assert maps[1, 1, 1, 2] == tokens[1, 5, 1]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_zeros_are_the_identity(transform):
    maps = drawn_maps(grid=(6, 6)).float()
    found = warped(maps, [0.0] * TRANSFORMS[transform], transform)
    np.testing.assert_allclose(found.numpy(), maps.numpy(), atol=1e-5)


def test_affine_warps_are_those_of_torch():
    maps, numbers = drawn_maps(), [0.2, -0.3, 0.1, 0.4, -0.25, -0.2]
    theta = torch.tensor(numbers, dtype=torch.float64).view(1, 2, 3) + torch.eye(2, 3, dtype=torch.float64)
    grid = F.affine_grid(theta.expand(3, -1, -1), list(maps.shape), align_corners=False)
    expected = F.grid_sample(maps, grid, align_corners=False)
    np.testing.assert_allclose(warped(maps, numbers, "affine").numpy(), expected.numpy(), atol=1e-12)


def test_a_translation_by_one_cell_shifts_the_map():
    maps = drawn_maps(grid=(4, 5))
    right, down = 2 / 5, 2 / 4
    found = warped(maps, [right, 0.0], "translation")
    np.testing.assert_allclose(found[..., :-1].numpy(), maps[..., 1:].numpy(), atol=1e-12)
    np.testing.assert_allclose(found[..., -1].numpy(), 0, atol=1e-12)
    found = warped(maps, [0.0, down], "translation", "border")
    np.testing.assert_allclose(found[:, :, :-1].numpy(), maps[:, :, 1:].numpy(), atol=1e-12)
    np.testing.assert_allclose(found[:, :, -1].numpy(), maps[:, :, -1].numpy(), atol=1e-12)


def test_a_rotation_by_a_right_angle_turns_the_map_against_the_clock():
    maps = drawn_maps(grid=(5, 5))
    found = warped(maps, [np.pi / 2], "rotation")
    np.testing.assert_allclose(found.numpy(), np.rot90(maps.numpy(), axes=(2, 3)), atol=1e-12)


def test_scale_and_shear_read_where_their_numbers_say():
    centres = cell_centres((3, 3), torch.float64)
    x, y = centres.T
    points = warped_points(transform_matrix(torch.tensor([0.5, -0.3]).double(), "scale"), centres)
    np.testing.assert_allclose(points.numpy(), np.stack([np.exp(0.5) * x, np.exp(-0.3) * y], 1), rtol=1e-7)
    points = warped_points(transform_matrix(torch.tensor([0.5, -0.3]).double(), "shear"), centres)
    np.testing.assert_allclose(points.numpy(), np.stack([x + 0.5 * y, y - 0.3 * x], 1), rtol=1e-6, atol=1e-7)


def test_transforms_of_many_rows_and_units_at_once():
    numbers = torch.randn(2, 3, 1)
    matrices = transform_matrix(numbers, "rotation")
    assert matrices.shape == (2, 3, 2, 3)
    points = warped_points(matrices, cell_centres((2, 2)))
    one = warped_points(transform_matrix(numbers[1, 2], "rotation"), cell_centres((2, 2)))
    assert points.shape == (2, 3, 4, 2)
    torch.testing.assert_close(points[1, 2], one)


def test_places_keep_their_digits_in_half_precision():
    matrices, centres = transform_matrix(torch.randn(5, 6), "affine"), cell_centres((7, 7))
    with torch.autocast("cpu", torch.bfloat16):
        found = warped_points(matrices, centres)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, warped_points(matrices, centres))


def test_an_unknown_transform_is_named_with_its_neighbour():
    with pytest.raises(ValueError, match="rotation"):
        transform_matrix(torch.zeros(1), "rotations")


@pytest.mark.parametrize("per_block", [1, 3, 7])
def test_blocks_of_units_change_neither_outputs_nor_gradients(monkeypatch, per_block):
    x, W = torch.randn(5, 4).double(), torch.randn(7, 4).double()

    def outputs():
        weight = W.clone().requires_grad_()
        seen = []

        def block(units):
            seen.append(units)
            return (x @ weight[units].T).tanh()

        y = by_blocks(block, 7, 10)
        y.square().sum().backward()
        return y.detach(), weight.grad, seen

    whole, gradient, once = outputs()
    assert len(once) == 1
    monkeypatch.setattr(sampling, "CHUNK", 10 * per_block)
    blocked, blocked_gradient, seen = outputs()
    torch.testing.assert_close(blocked, whole)
    torch.testing.assert_close(blocked_gradient, gradient)
    # each block is computed once forward and, where there are several, once more backward
    assert len(seen) == (1 if per_block == 7 else 2 * -(-7 // per_block))
