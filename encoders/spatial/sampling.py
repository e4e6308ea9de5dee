"""Reading maps between the cells of their grid: points in fractions of half an image, bilinear samples, warps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...datasets.errors import unknown
from .tokens import Grid

CHUNK = 2**26  # bytes of samples that are kept for the backward pass at a time

# Numbers that each kind of warp is made of.
TRANSFORMS = {"affine": 6, "translation": 2, "rotation": 1, "scale": 2, "shear": 2}


def cell_centres(grid: Grid, dtype: torch.dtype = torch.float32) -> Tensor:
    """Centres of the cells of a grid.

    Parameters
    ----------
    grid : (height, width)
    dtype : torch.dtype

    Returns
    -------
    Tensor, shape (height * width, 2)
        x to the right and y down, row by row; the image spans -1 to 1 on both axes, so that the outer cells' centres
        lie half a cell inside.
    """
    h, w = grid
    y, x = ((2 * torch.arange(side, dtype=dtype) + 1) / side - 1 for side in (h, w))
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2)


def as_maps(tokens: Tensor, grid: Grid) -> Tensor:
    """Tokens (row, token, feature) as maps (row, feature, height, width), without a copy."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def bilinear(maps: Tensor, points: Tensor, outside: Literal["zeros", "border"] = "border") -> Tensor:
    """Maps at points, interpolated between the centres of their four nearest cells.

    Parameters
    ----------
    maps : Tensor, shape (row, feature, height, width)
    points : Tensor, shape (row, point, 2) or (1, point, 2)
        x to the right and y down, from -1 to 1 over the image; one set of points serves all rows.
    outside : {"border", "zeros"}
        What lies beyond the centres of the outer cells: the nearest of them, or zeros one cell further out.

    Returns
    -------
    Tensor, shape (row, point, feature)
        Differentiable in both; the derivative by a point that lies on the centre of a cell is that of one side.
    """
    points = points.expand(len(maps), -1, -1)
    sampled = F.grid_sample(maps, points[:, :, None], mode="bilinear", padding_mode=outside, align_corners=False)
    return sampled[..., 0].transpose(1, 2)


def transform_matrix(parameters: Tensor, transform: str) -> Tensor:
    """Affine matrices of a kind of transform: where each point of the warped map is read in the original.

    Parameters
    ----------
    parameters : Tensor, shape (..., parameter)
        Zeros are the identity. affine: what is added to the six numbers of the identity's matrix, row by row;
        translation: x and y, in fractions of half the image; rotation: radians, clockwise as seen for what is read,
        so that contents turn the other way; scale: logarithms of the factors of x and y; shear: x by y, and y by x.
    transform : {"affine", "translation", "rotation", "scale", "shear"}

    Returns
    -------
    Tensor, shape (..., 2, 3)

    Raises
    ------
    ValueError
        If the transform is unknown.
    """
    if transform not in TRANSFORMS:
        raise ValueError(unknown("transform", transform, TRANSFORMS))
    zero, one = torch.zeros_like(parameters[..., 0]), torch.ones_like(parameters[..., 0])
    p: Any = parameters.unbind(-1)
    if transform == "affine":
        rows = [one + p[0], p[1], p[2], p[3], one + p[4], p[5]]
    elif transform == "translation":
        rows = [one, zero, p[0], zero, one, p[1]]
    elif transform == "rotation":
        cos, sin = p[0].cos(), p[0].sin()
        rows = [cos, -sin, zero, sin, cos, zero]
    elif transform == "scale":
        rows = [p[0].exp(), zero, zero, zero, p[1].exp(), zero]
    else:
        rows = [one, p[0], zero, p[1], one, zero]
    return torch.stack(rows, -1).unflatten(-1, (2, 3))


def warped_points(matrix: Tensor, centres: Tensor) -> Tensor:
    """Where an affine warp reads each cell.

    Parameters
    ----------
    matrix : Tensor, shape (..., 2, 3)
    centres : Tensor, shape (token, 2)
        From `cell_centres`.

    Returns
    -------
    Tensor, shape (..., token, 2)
        In the dtype of the matrices, under autocast too: eight bits would not tell places apart.
    """
    t = len(centres)
    with torch.autocast(matrix.device.type, enabled=False):
        places = torch.cat([centres, torch.ones_like(centres[:, :1])], 1)
        # one product for all: the six numbers of a matrix times what each adds to x and y of each token
        added = torch.einsum("tk,ij->iktj", places, torch.eye(2).to(places)).reshape(6, 2 * t)
        return (matrix.reshape(-1, 6) @ added).view(*matrix.shape[:-2], t, 2)


def by_blocks(function: Callable[[slice], Tensor], n: int, bytes_each: int) -> Tensor:
    """Outputs (row, unit) of a function of blocks of units, side by side, with the temporaries of one block at a time.

    Parameters
    ----------
    function : callable
        Takes a slice of units, and gives (row, unit of the slice).
    n : int
        Number of units.
    bytes_each : int
        Of the temporaries of a unit. More than one block are computed again in the backward pass, instead of kept.

    Returns
    -------
    Tensor, shape (row, unit)
    """
    step = max(CHUNK // max(bytes_each, 1), 1)
    if n <= step or not torch.is_grad_enabled():
        return torch.cat([function(slice(i, i + step)) for i in range(0, n, step)], 1)
    size = math.ceil(n / math.ceil(n / step))
    blocks = [
        checkpoint(function, slice(i, i + size), use_reentrant=False, preserve_rng_state=False)
        for i in range(0, n, size)
    ]
    return torch.cat(blocks, 1)
