"""What is kept of a layer's output."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import torch
import torch.nn.functional as F

from ...datasets.errors import unknown


@dataclass(frozen=True)
class Reduction:
    """From the output of a layer to (stimulus, feature) or (stimulus, token, feature).

    Attributes
    ----------
    kind : {"none", "mean", "cls", "grid"}
        Keep everything, average over places or tokens, take the first token, or average places into a grid.
    grid : int
        Cells along each side of the grid; a map that is no larger is kept as it is. Tokens that form a square,
        with or without a class token before them, are places too; the class token is dropped.

    Notes
    -----
    Three axes are (stimulus, token, feature), four are (stimulus, channel, height, width). A layer of layout
    (stimulus, height, width, channel) cannot be told from the latter: wrap the model so that it permutes.
    """

    kind: str = "none"
    grid: int = 0

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        if output.ndim == 4:  # (stimulus, channel, height, width): places become tokens
            if self.kind == "cls":
                raise ValueError("reduce='cls' needs tokens; this layer is a map of channels: take 'mean' or a grid")
            if self.kind == "mean":
                return output.mean((2, 3))
            if self.kind == "grid" and min(output.shape[2:]) > self.grid:
                output = F.adaptive_avg_pool2d(output, self.grid)
            return output.flatten(2).transpose(1, 2)
        if output.ndim == 3:  # (stimulus, token, feature)
            if self.kind == "mean":
                return output.mean(1)
            if self.kind == "grid":
                n = output.shape[1]
                side = _side(n)
                if side is None:
                    raise ValueError(
                        f"reduce={self.grid} needs tokens that form a square, with or without one class token; found "
                        f"shape (stimulus, token, feature) = {tuple(output.shape)}: take 'mean', 'cls' or None"
                    )
                return self(output[:, n - side**2 :].transpose(1, 2).unflatten(2, (side, side)))
            return output[:, 0] if self.kind == "cls" else output
        return output.flatten(1)

    def map_shape(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Height and width of the token grid that is kept of one stimulus' output, if it is a map."""
        if len(shape) == 2 and self.kind == "grid" and (side := _side(shape[0])):
            shape = (shape[1], side, side)
        if len(shape) != 3 or self.kind == "mean":
            return None
        height, width = shape[1:]
        return (self.grid, self.grid) if self.kind == "grid" and min(height, width) > self.grid else (height, width)


def _side(n: int) -> int | None:
    """Side of the square that n tokens form, or all but the first of them."""
    side = isqrt(n)
    return side if n - side**2 in (0, 1) and side else None


def parse_reduction(reduce: str | int | None) -> Reduction:
    """A reduction from what a user writes: None, "mean", "cls", or cells along each side of a grid."""
    if reduce is None:
        return Reduction()
    if isinstance(reduce, int) and not isinstance(reduce, bool):
        if reduce < 1:
            raise ValueError(f"reduce={reduce}: a grid has at least 1 cell along each side")
        return Reduction("grid", reduce)
    if reduce in ("mean", "cls"):
        return Reduction(str(reduce))
    raise ValueError(unknown("reduce", reduce, ["mean", "cls"], "Or an int: cells along each side of a grid."))
