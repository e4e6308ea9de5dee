"""What encoders that read spatial tokens are told of a layer before they are fitted to its flat rows."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..encoders.features.store import Features


def fitted_for(encoder: Any, model: Features, layer: str) -> Any:
    """The encoder for one layer: one that reads tokens is given the grid of the layer's tokens.

    Every layer is passed on flat, (stimulus, token * feature), token after token; an encoder of spatial tokens cuts
    the rows again by its parameter `grid`.

    Parameters
    ----------
    encoder : scikit-learn regressor
        Returned as it is unless it has ``reads_tokens``; otherwise a clone is returned.
    model : Features
    layer : str
        The grid is ``model.grids[layer]`` or, for tokens that come without one, the encoder's own. A layer
        (stimulus, feature) is one token, whatever the encoder's own grid.

    Raises
    ------
    ValueError
        If the layer has tokens but no grid is known for them, or one of another number of places.
    """
    if not getattr(encoder, "reads_tokens", False):
        return encoder
    from sklearn.base import clone

    shape = np.shape(model[layer])
    if len(shape) == 2:
        return clone(encoder).set_params(grid=None)
    own = encoder.get_params(deep=False)["grid"]
    grid = model.grids.get(layer, own)
    n_tokens = prod(shape[1:-1])
    if grid is None:
        raise ValueError(
            f"features: layer {layer!r} of {model.model} has {n_tokens} tokens without a grid, and "
            f"{type(encoder).__name__} needs to know which places they are: extract it with reduce=6 or another number "
            f"of cells a side, or pass Features(..., grids={{{layer!r}: (height, width)}}) with height * width = "
            f"{n_tokens}, or take RidgeCV"
        )
    if n_tokens != prod(grid):
        raise ValueError(
            f"features: layer {layer!r} of {model.model} has shape {shape}, and the grid {tuple(grid)} has "
            f"{prod(grid)} places; expected (stimulus, token, feature) with one token per place"
        )
    return clone(encoder).set_params(grid=(int(grid[0]), int(grid[1])))
