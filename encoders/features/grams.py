"""Exact inner products of all pairs of stimuli, from features that need not fit into memory."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ..device import pick_device
from ..products import product

SCRATCH = ".scratch-"  # how folders begin that nobody will miss
_TILE = 1024  # rows of one product
_COLUMNS = 512  # over which a product sums in float32: four times as many would cost a digit
_VALUES = 2**24  # of features in memory at a time


def gram_matrix(features: np.ndarray, centre: bool = False, device: str | torch.device = "cpu") -> np.ndarray:
    """Inner products of all pairs of rows.

    Parameters
    ----------
    features : array, shape (stimulus, ...)
        All that belongs to a stimulus is one row. It is read once, some columns at a time, and may be a memory map.
    centre : bool
        Subtract the mean over stimuli of each feature first. The result is what centring the matrix on both sides
        gives, without the digits that this would cost where the mean is large.
    device : str or torch.device
        Where products are computed.

    Returns
    -------
    array, shape (stimulus, stimulus), float32
        Symmetric to the last bit. Each product sums at most 512 features in float32, the products are added in
        float64, for which 8 bytes per pair of stimuli are needed besides the result.

    Raises
    ------
    ValueError
        If there are no features.
    """
    rows = features.reshape(len(features), math.prod(features.shape[1:]))
    n, width = rows.shape
    if not n or not width:
        raise ValueError(f"features has shape {features.shape}; expected at least one stimulus and one feature")
    where = pick_device(device) if isinstance(device, str) else device
    sums = torch.zeros(n, n, dtype=torch.float64, device=where)
    step = max(_COLUMNS, _VALUES // n)
    for first in range(0, width, step):
        columns = np.array(rows[:, first : first + step], np.float32)
        if centre:
            columns -= rows[:, first : first + step].mean(0, dtype=np.float64)
        block = torch.from_numpy(columns).to(where)
        for top in range(0, n, _TILE):
            for left in range(top, n, _TILE):
                tile = sums[top : top + _TILE, left : left + _TILE]
                for piece in block.split(_COLUMNS, dim=1):
                    tile += product(piece[top : top + _TILE], piece[left : left + _TILE].T)
    gram = np.empty((n, n), np.float32)
    for top in range(0, n, _TILE):
        for left in range(top, n, _TILE):
            known = sums[top : top + _TILE, left : left + _TILE].float().cpu().numpy()
            if left == top:
                known = np.triu(known) + np.triu(known, 1).T
            gram[top : top + _TILE, left : left + _TILE] = known
            gram[left : left + _TILE, top : top + _TILE] = known.T
    return gram


@contextmanager
def scratch(root: str | Path | None = None) -> Iterator[Path]:
    """A folder under `root`, or where the system keeps such folders, which is gone afterwards."""
    if root is not None:
        Path(root).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
