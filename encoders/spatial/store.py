"""Tokens in half precision on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from ...datasets.errors import unknown
from ...datasets.storage import atomic

VALUES, TABLE, DRAFT = "tokens.npy", "tokens.json", ".part"
DTYPES = ("float16", "float32")


class TokenStore:
    """Tokens (stimulus, token, feature) in a folder: numbers that are read as a memory map, and what they are.

    Half precision takes 11 bits of each number, which is finer than features are reproducible; 10,000 images of
    256 tokens and 768 features are 3.9 GB.

    Attributes
    ----------
    folder : Path
    array : memory map, shape (stimulus, token, feature)
    grid : (height, width) or None
        Places of the tokens, row by row from the top left.
    stimulus_ids : tuple of str, or None
    layer, key : str
        The layer that the tokens are of, and what identifies their content.
    """

    def __init__(self, folder: Path, array: np.ndarray, table: dict[str, Any]):
        self.folder, self.array = folder, array
        grid, ids = table["grid"], table["stimulus_ids"]
        self.grid: tuple[int, int] | None = None if grid is None else (int(grid[0]), int(grid[1]))
        self.stimulus_ids = None if ids is None else tuple(ids)
        self.layer, self.key = str(table["layer"]), str(table["key"])

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers of stimuli, tokens and features."""
        return self.array.shape

    @property
    def ndim(self) -> int:
        """Three: stimulus, token, feature."""
        return self.array.ndim

    @property
    def dtype(self) -> np.dtype:
        """Of the numbers on disk."""
        return self.array.dtype

    def __len__(self) -> int:
        return len(self.array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype=dtype)

    def __repr__(self) -> str:
        layer = f", layer {self.layer!r}" if self.layer else ""
        size = " x ".join(map(str, self.shape))
        return f"TokenStore({str(self.folder)!r}: {size} {self.dtype}, grid {self.grid}{layer})"

    @classmethod
    def build(
        cls,
        folder: str | Path,
        batches: Iterable[Any] | Callable[[int], Iterable[Any]],
        n: int,
        grid: Any,
        *,
        stimulus_ids: Sequence[str] | None = None,
        layer: str = "",
        dtype: str = "float16",
        key: str = "",
    ) -> Self:
        """Write tokens batch by batch; an interrupted build goes on where it stopped.

        Parameters
        ----------
        folder : path
            Made if it is not there; its parent must be.
        batches : iterable of array (stimulus, token, feature), or callable
            In the order of the stimuli. What was written before an interruption is passed over; a function of the
            number of stimuli to pass over, which gives the batches from there on, does not compute them again.
        n : int
            Number of stimuli.
        grid : (height, width) or None
        stimulus_ids : sequence of str, or None
        layer, key : str
            Kept as they are; a folder that holds tokens under another key or layer is refused.
        dtype : {"float16", "float32"}

        Returns
        -------
        TokenStore

        Raises
        ------
        ValueError
            If numbers are NaN, infinite or beyond the range of the dtype, batches differ in shape or are too few or
            too many, or the folder holds other tokens.
        """
        from .tokens import checked_grid

        if dtype not in DTYPES:
            raise ValueError(unknown("dtype", dtype, DTYPES))
        pair = checked_grid(grid)
        if stimulus_ids is not None and len(stimulus_ids) != n:
            raise ValueError(f"stimulus_ids names {len(stimulus_ids)} stimuli; expected n={n}")
        folder = Path(folder)
        folder.mkdir(exist_ok=True)
        table = {
            "n": int(n),
            "grid": None if pair is None else list(pair),
            "stimulus_ids": None if stimulus_ids is None else [str(one) for one in stimulus_ids],
            "layer": layer,
            "dtype": dtype,
            "key": key,
        }
        if (folder / TABLE).exists():
            _require_same(folder, TABLE, table)
            return cls.open(folder)
        done = _require_same(folder, TABLE + DRAFT, table)["rows"] if (folder / (TABLE + DRAFT)).exists() else 0
        _write(folder, batches, table, done)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a folder of tokens.

        Raises
        ------
        FileNotFoundError
            If there are none.
        ValueError
            If they are not whole.
        """
        folder = Path(folder)
        if not (folder / TABLE).exists():
            part = (
                " (a build was interrupted: call TokenStore.build again)" if (folder / (TABLE + DRAFT)).exists() else ""
            )
            raise FileNotFoundError(f"no tokens in {folder}{part}; expected {TABLE} and {VALUES}, as build writes them")
        table = json.loads((folder / TABLE).read_text())
        array = np.load(folder / VALUES, mmap_mode="r")
        if array.ndim != 3 or len(array) != table["n"]:
            raise ValueError(
                f"{folder / VALUES} has shape {array.shape}; {TABLE} says {table['n']} stimuli: build anew"
            )
        return cls(folder, array, table)


def _require_same(folder: Path, name: str, table: dict[str, Any]) -> dict[str, Any]:
    """The table in a folder, which has to say the same."""
    found = json.loads((folder / name).read_text())
    for key, value in table.items():
        if found.get(key) != value:
            raise ValueError(
                f"{folder} holds tokens with {key}={found.get(key)!r:.80}, and {key}={value!r:.80} is to be built; "
                "name another folder, or delete it"
            )
    return found


def _write(folder: Path, batches: Any, table: dict[str, Any], done: int) -> None:
    """Write the batches that are missing, and put the files in place."""
    n, draft = table["n"], folder / (VALUES + DRAFT)
    array = np.lib.format.open_memmap(draft, "r+") if done else None
    start = done
    passed = done if callable(batches) else 0  # stimuli of the batches that came so far
    for batch in batches(done) if callable(batches) else batches:
        values = np.asarray(batch)
        values, passed = values[max(done - passed, 0) :], passed + len(values)
        if not len(values):
            continue
        if passed > n:
            raise ValueError(f"batches hold more than n={n} stimuli; pass the number that there are")
        _require_range(values, done, table)
        if array is None:
            array = np.lib.format.open_memmap(draft, "w+", table["dtype"], (n, *values.shape[1:]))
        if values.shape[1:] != array.shape[1:]:
            raise ValueError(
                f"stimuli from {done} on have {values.shape[1:]} (token, feature), those before {array.shape[1:]}; "
                "expected the same for all"
            )
        array[done : done + len(values)] = values
        done += len(values)
        array.flush()
        with atomic(folder / (TABLE + DRAFT)) as path:
            path.write_text(json.dumps(table | {"rows": done}))
    if done < n or array is None:
        raise ValueError(f"batches hold {done - start} stimuli after the first {start}; expected n={n} in all")
    del array
    draft.replace(folder / VALUES)
    with atomic(folder / TABLE) as path:
        path.write_text(json.dumps(table))
    (folder / (TABLE + DRAFT)).unlink()


def _require_range(values: np.ndarray, first: int, table: dict[str, Any]) -> None:
    grid = table["grid"]
    if values.ndim != 3 or (grid is not None and values.shape[1] != grid[0] * grid[1]):
        places = "" if grid is None else f" with {grid[0] * grid[1]} tokens, as grid={tuple(grid)} has places"
        raise ValueError(f"a batch has shape {values.shape}; expected (stimulus, token, feature){places}")
    largest = np.abs(values.astype(np.float32, copy=False)).reshape(len(values), -1).max(1)
    wrong = ~(largest <= np.finfo(table["dtype"]).max)  # NaN is not below either
    if wrong.any():
        i = int(wrong.argmax())
        mend = "pass dtype='float32'" if np.isfinite(largest[i]) else "leave the stimulus out"
        raise ValueError(
            f"{int(wrong.sum())} stimuli hold values that {table['dtype']} cannot, stimulus {first + i} the first "
            f"(largest {largest[i]:g}, limit {np.finfo(table['dtype']).max:g}); {mend}"
        )
