"""Arrays with labelled axes as xarray holds them, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import xarray


def to_xarray(
    values: np.ndarray,
    axes: Mapping[str, pd.DataFrame],
    times: np.ndarray | None,
    name: str,
    attributes: Mapping[str, Any],
) -> xarray.DataArray:
    """A DataArray with one 1-D coordinate per table column; never a MultiIndex.

    A column that another table holds too, or that is called like another axis, gets the name of its axis in
    front; the last table keeps the plain name.
    """
    xr = _xarray()
    dims = [*axes, *(["time"] if times is not None else [])]
    coordinates: dict[str, Any] = {}
    for dim, table in reversed(list(axes.items())):
        for column in map(str, table.columns):
            taken = column in coordinates or (column in dims and column != dim)
            coordinates[f"{dim}_{column}" if taken else column] = (dim, table[column].to_numpy())
    if times is not None:
        coordinates["time"] = ("time", times)
    return xr.DataArray(values, coordinates, dims, name or None, dict(attributes))


def from_xarray(
    array: xarray.DataArray, dims: Sequence[str]
) -> tuple[np.ndarray, dict[str, pd.DataFrame], np.ndarray | None, str, dict[str, Any]]:
    """Values, a table per axis, times, name and attributes of a DataArray as :func:`to_xarray` makes it."""
    _xarray()
    found = {str(dim) for dim in array.dims}
    if found not in (set(dims), {*dims, "time"}):
        raise ValueError(
            f"the array has dims {tuple(array.dims)}; expected {(*dims, 'time')} or {tuple(dims)}. Use rename(...)."
        )
    multi = [dim for dim in array.indexes if isinstance(array.indexes[dim], pd.MultiIndex) and dim in found]
    array = array.reset_index(multi).transpose(*dims, *(["time"] if "time" in found else []))
    names = {str(name) for name in array.coords}
    axes = {}
    for dim in dims:
        columns = {}
        for name, coordinate in array.coords.items():
            if coordinate.dims == (dim,):
                plain = str(name).removeprefix(f"{dim}_")
                columns[plain if plain in names or plain in found else str(name)] = coordinate.to_numpy()
        axes[dim] = pd.DataFrame(columns, index=pd.RangeIndex(array.sizes[dim]))
    times = None
    if "time" in found:
        if "time" not in array.coords:
            raise ValueError("the array has a dim time without a coordinate; give it seconds.")
        times = array["time"].to_numpy()
    return array.to_numpy(), axes, times, str(array.name or ""), {str(k): v for k, v in array.attrs.items()}


def _xarray() -> ModuleType:
    try:
        import xarray
    except ImportError as error:
        raise ImportError("xarray is not installed; pip install xarray") from error
    return xarray
