"""Where tokens lie in the image, as vectors that are added to the keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TEMPERATURE = 1e4


def sincos(grid: tuple[int, int], n_features: int) -> Tensor:
    """Sines and cosines of the row and of the column of each place of a grid.

    The first half of the features encodes the row y, the second the column x, each counted from 1 and scaled to end at
    2 pi; within a half, sine and cosine alternate, at wavelengths from 2 pi to 1e4 times that.

    Parameters
    ----------
    grid : (height, width)
    n_features : int
        Where it is no multiple of four, features of the next multiple are cut off at the end.

    Returns
    -------
    Tensor of float32, shape (height * width, n_features)
        Places row by row, as tokens are.

    References
    ----------
    Carion, N. et al. (2020). End-to-end object detection with transformers. ECCV.
    """
    height, width = grid
    half = 2 * math.ceil(n_features / 4)
    wavelength = _TEMPERATURE ** (2 * (torch.arange(half, dtype=torch.float64) // 2) / half)

    def waves(n: int) -> Tensor:
        place = torch.arange(1, n + 1, dtype=torch.float64) / (n + 1e-6) * 2 * math.pi
        angle = place[:, None] / wavelength
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], 2).flatten(1)

    rows = waves(height)[:, None].expand(-1, width, -1)
    columns = waves(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], 2).reshape(height * width, -1)[:, :n_features].float().contiguous()
