"""Boxes in images, and the cells of a grid that they lie on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

CORNERS = ("left", "top", "right", "bottom")
SQUARE = ("x", "y", "size")


def corners(boxes: pd.DataFrame) -> pd.DataFrame:
    """Boxes by their corners: columns stimulus, left, top, right, bottom, in fractions of the image, y down.

    Parameters
    ----------
    boxes : DataFrame
        Columns stimulus and left, top, right, bottom, or stimulus and x, y, size (centre and half the width of a
        square).

    Raises
    ------
    ValueError
        If columns are missing, a value is, or a box has no area.
    """
    names = list(map(str, boxes.columns))
    if "stimulus" not in boxes or not (set(CORNERS) <= set(names) or set(SQUARE) <= set(names)):
        raise ValueError(
            f"boxes has the columns {', '.join(names) or 'none'}; expected stimulus with {', '.join(CORNERS)}, or "
            f"stimulus with {', '.join(SQUARE)}"
        )
    if set(CORNERS) <= set(names):
        edges = boxes[list(CORNERS)].to_numpy(float)
    else:
        x, y, half = boxes[list(SQUARE)].to_numpy(float).T
        edges = np.stack([x - half, y - half, x + half, y + half], 1)
    empty = ~((edges[:, 2] > edges[:, 0]) & (edges[:, 3] > edges[:, 1])) | ~np.isfinite(edges).all(1)
    if empty.any():
        found = ", ".join(f"{value:.3g}" for value in edges[empty][0])
        raise ValueError(
            f"{int(empty.sum())} of {len(boxes)} boxes have no area, the first (left, top, right, bottom) = ({found}); "
            "leave them out"
        )
    table = pd.DataFrame(edges, columns=list(CORNERS))
    table.insert(0, "stimulus", boxes["stimulus"].astype(str).to_numpy())
    return table


def covered(boxes: pd.DataFrame, stimulus_ids: Sequence[str], grid: tuple[int, int]) -> np.ndarray:
    """Share of each cell's area that the boxes of a stimulus cover, those that overlap counted once.

    Returns
    -------
    ndarray, shape (stimulus, y, x)
        NaN for stimuli without a box.
    """
    height, width = grid
    found = np.full((len(stimulus_ids), height, width), np.nan)
    for row, edges in _by_stimulus(boxes, stimulus_ids):
        # Edges of cells and boxes cut the image into rectangles that are wholly inside or outside of every box.
        x = np.unique(np.clip([*np.linspace(0, 1, width + 1), *edges[:, 0], *edges[:, 2]], 0, 1))
        y = np.unique(np.clip([*np.linspace(0, 1, height + 1), *edges[:, 1], *edges[:, 3]], 0, 1))
        mid_x, mid_y = (x[1:] + x[:-1]) / 2, (y[1:] + y[:-1]) / 2
        across = (edges[:, :1] < mid_x) & (mid_x < edges[:, 2:3])
        down = (edges[:, 1:2] < mid_y) & (mid_y < edges[:, 3:])
        inside = (down[:, :, None] & across[:, None, :]).any(0)
        area = np.where(inside, np.diff(y)[:, None] * np.diff(x), 0)
        cell = (mid_y * height).astype(int)[:, None] * width + (mid_x * width).astype(int)
        found[row] = np.bincount(cell.ravel(), area.ravel(), height * width).reshape(grid) * height * width
    return found


def hit_cells(boxes: pd.DataFrame, stimulus_ids: Sequence[str], grid: tuple[int, int]) -> np.ndarray:
    """Cells whose middle lies in a box, or that hold the middle of one, which may be smaller than a cell.

    Returns
    -------
    ndarray of bool, shape (stimulus, y, x)
    """
    height, width = grid
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    found = np.zeros((len(stimulus_ids), height, width), bool)
    for row, edges in _by_stimulus(boxes, stimulus_ids):
        left, top, right, bottom = edges.T[:, :, None, None]
        found[row] = ((left <= x) & (x <= right) & (top <= y[:, None]) & (y[:, None] <= bottom)).any(0)
        middle_x, middle_y = edges[:, 0::2].mean(1), edges[:, 1::2].mean(1)
        seen = (middle_x >= 0) & (middle_x <= 1) & (middle_y >= 0) & (middle_y <= 1)
        column = np.minimum((middle_x[seen] * width).astype(int), width - 1)
        found[row, np.minimum((middle_y[seen] * height).astype(int), height - 1), column] = True
    return found


def _by_stimulus(boxes: pd.DataFrame, stimulus_ids: Sequence[str]) -> Iterator[tuple[int, np.ndarray]]:
    """Rows of the stimuli that have boxes, with the corners (box, 4) of these."""
    table = corners(boxes)
    position = {name: row for row, name in enumerate(stimulus_ids)}
    for name, rows in table.groupby("stimulus", sort=False):
        if name in position:
            yield position[str(name)], rows[list(CORNERS)].to_numpy()
