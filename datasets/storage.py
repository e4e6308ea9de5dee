"""Arrays, tables and stimuli in one HDF5 file, and arrays that stay in it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from .sources import Hdf5Rows, Item, Items, Rows
from .stimuli import StimulusSet

FORMAT = "neuralign-1"
_TEXT = h5py.string_dtype()
# Rows or columns that lie closer than this are read in one piece and thinned out in memory.
_GAP = 64
# Values per piece read from disk: 64 MiB of float32.
_PIECE = 2**24


def open_hdf5(path: str | Path) -> h5py.File:
    """Open an HDF5 file for reading; say what to do about one that is missing, cut off or no HDF5 file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}.")
    try:
        return h5py.File(path.absolute(), "r")  # can be opened again by its name after a change of folder
    except OSError as error:
        size = path.stat().st_size
        raise ValueError(
            f"{path} ({size} bytes) is not a whole HDF5 file ({error}); "
            "it may have been cut off: fetch or save it again."
        ) from error


@contextmanager
def new_hdf5(path: str | Path, content: str) -> Iterator[h5py.File]:
    """Write an HDF5 file beside `path` and move it there once whole, so that no half file is ever seen."""
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["format"] = FORMAT
        file.attrs["content"] = content
        yield file


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A file to write beside `path` that moves there once whole, so that no half file is ever seen."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder at {path.parent}; create it before saving.")
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp gives the file to its owner alone
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def open_saved(path: str | Path, content: str) -> h5py.File:
    """Open a file written by :func:`new_hdf5`; a foreign one is a ValueError."""
    file = open_hdf5(path)
    found = str(file.attrs.get("format", "")), str(file.attrs.get("content", ""))
    if found != (FORMAT, content):
        file.close()
        what = f"holds {_noun(found[1])} ({found[0]})" if found[1] else "is an HDF5 file of another program"
        raise ValueError(f"{path} {what}; expected {_noun(content)} saved by neuralign ({FORMAT}).")
    try:
        _require_closed(file)
    except BaseException:
        file.close()
        raise
    return file


def _noun(content: str) -> str:
    """What a file holds, in a sentence: a Recording, but results."""
    return content if content.islower() else f"a {content}"


def _require_closed(file: h5py.File) -> None:
    """Refuse a file of which anything leads to other files."""
    links: dict[str, object] = {}
    file.visititems_links(links.__setitem__)  # returns None, which goes on; raising in there is not allowed
    for name, link in links.items():
        if isinstance(link, h5py.ExternalLink):
            raise ValueError(f"{file.filename}: {name} is a link to another file, {link.filename}; it is not followed.")
        if isinstance(link, h5py.HardLink) and isinstance(file[name], h5py.Dataset):
            require_inside(file[name])


def require_inside(dataset: h5py.Dataset) -> None:
    """Refuse a dataset whose values lie in other files, which the file could name at will."""
    if dataset.is_virtual or dataset.external:
        raise ValueError(
            f"{dataset.file.filename}:{dataset.name} keeps its values in other files, which are not read; "
            "copy them into one file first."
        )


@contextmanager
def saved(path: str | Path, content: str, lazy: bool) -> Iterator[h5py.File]:
    """Read from a file written by :func:`new_hdf5`; what is missing or unreadable in it is a ValueError.

    A lazy file stays open for as long as an array in it is referred to.
    """
    file = open_saved(path, content)
    try:
        yield file
    except (KeyError, IndexError, OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        lazy = False
        raise ValueError(f"{path} holds {_noun(f'damaged {content}')} ({error}); save or fetch it again.") from error
    finally:
        if not lazy:
            file.close()


# ----------------------------------------------------------------------------------------- lazy arrays


def read_block(array: Any, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """``array[rows][:, columns]`` for an array in memory, memory-mapped or in an HDF5 file.

    An HDF5 dataset takes sorted, unique indices on one axis only and is slow with many of them, so it is read
    in plain rectangles that cover the wanted rows and columns.

    Returns
    -------
    ndarray, shape (rows, columns) or (rows, columns, time)
        A view where rows and columns are ranges of an array in memory.
    """
    row_range, column_range = _as_range(rows), _as_range(columns)
    if row_range is not None and column_range is not None:
        return np.asarray(array[row_range, column_range])
    if isinstance(array, np.ndarray):
        if column_range is not None:
            return np.asarray(array[rows, column_range])
        if row_range is not None:
            return np.asarray(array[row_range, columns])
        return np.asarray(array[rows[:, None], columns])
    out = np.empty((len(rows), len(columns), *array.shape[2:]), dtype=array.dtype)
    depth = int(np.prod(array.shape[2:], dtype=np.int64))
    for column_places, column_slice in _pieces(columns, max(1, _PIECE // depth)):
        width = column_slice.stop - column_slice.start
        for row_places, row_slice in _pieces(rows, max(1, _PIECE // (depth * width))):
            piece = array[row_slice, column_slice]
            inner = np.ix_(rows[row_places] - row_slice.start, columns[column_places] - column_slice.start)
            out[np.ix_(row_places, column_places)] = piece[inner]
    return out


def _as_range(indices: np.ndarray) -> slice | None:
    """The slice that equals ascending neighbouring indices, if they are that."""
    if len(indices) == 0:
        return slice(0, 0)
    if (np.diff(indices) == 1).all():
        return slice(int(indices[0]), int(indices[-1]) + 1)
    return None


def _pieces(indices: np.ndarray, longest: int) -> Iterator[tuple[np.ndarray, slice]]:
    """Cover indices by ranges: places in `indices` and the range that holds their values."""
    order = np.argsort(indices, kind="stable")
    values = indices[order]
    start = 0
    while start < len(values):
        reach = np.searchsorted(values, values[start] + longest)
        gaps = np.flatnonzero(np.diff(values[start:reach]) > _GAP)
        stop = start + int(gaps[0]) + 1 if len(gaps) else int(reach)
        yield order[start:stop], slice(int(values[start]), int(values[stop - 1]) + 1)
        start = stop


def write_responses(parent: h5py.Group, array: Any) -> None:
    """Responses (row, unit[, time]) from memory or disk, by blocks of rows."""
    depth = int(np.prod(array.shape[1:], dtype=np.int64))
    # Chunks of up to a megabyte serve reading by units and by presentations alike.
    chunks = (min(array.shape[0], 512), min(array.shape[1], max(1, 512 * array.shape[1] // depth)))
    out = parent.create_dataset("responses", array.shape, array.dtype, chunks=chunks + array.shape[2:])
    size = max(512, _PIECE // depth // 512 * 512)
    for start in range(0, array.shape[0], size):
        out[start : start + size] = array[start : start + size]


class OnDisk:
    """How an array on disk travels to another process: by the name of its file."""

    def __init__(self, array: h5py.Dataset | np.memmap):
        name = array.file.filename if isinstance(array, h5py.Dataset) else array.filename
        self.path = str(Path(str(name)).absolute())
        if isinstance(array, h5py.Dataset):
            self.dataset, self.layout = array.name, None
        else:
            self.dataset, self.layout = None, (array.dtype, array.shape, array.offset)

    def open(self) -> h5py.Dataset | np.memmap:
        if self.layout is None:
            return open_hdf5(self.path)[self.dataset]
        dtype, shape, offset = self.layout
        return np.memmap(self.path, dtype=dtype, shape=shape, offset=offset, mode="r")


def portable(array: Any) -> Any:
    """The array, or :class:`OnDisk` where it is a whole file's."""
    if isinstance(array, h5py.Dataset):
        return OnDisk(array)
    # A slice of a memory map keeps its class but not its offset and strides: only the whole map is reopened.
    whole = isinstance(array, np.memmap) and array.base is not None and not isinstance(array.base, np.ndarray)
    if whole and array.filename is not None and array.flags.c_contiguous:
        return OnDisk(array)
    return array


# ---------------------------------------------------------------------------------------------- tables


def write_table(parent: h5py.Group, name: str, table: pd.DataFrame) -> None:
    """A DataFrame as one dataset per column; the index is not kept."""
    group = parent.create_group(name)
    group.attrs["table"] = True
    group.attrs["rows"] = len(table)
    group.attrs["columns"] = json.dumps([str(column) for column in table.columns])
    for position, column in enumerate(table.columns):
        values = table[column].to_numpy()
        if values.dtype.kind in "biufc":
            group.create_dataset(str(position), data=values)
        elif values.dtype.kind in "mM":
            group.create_dataset(str(position), data=values.view(np.int64)).attrs["dtype"] = values.dtype.str
        elif all(isinstance(value, str) for value in values):
            group.create_dataset(str(position), data=[str(value) for value in values], dtype=_TEXT)
        else:
            coded = cell_texts(table[column])
            group.create_dataset(str(position), data=coded, dtype=_TEXT).attrs["json"] = True


def read_table(group: h5py.Group) -> pd.DataFrame:
    """The DataFrame of :func:`write_table`, with index 0, 1, ..."""
    table = pd.DataFrame(index=pd.RangeIndex(int(group.attrs["rows"])))
    for position, column in enumerate(json.loads(group.attrs["columns"])):
        dataset = group[str(position)]
        if dataset.attrs.get("json", False):
            cells = [json.loads(text) for text in dataset.asstr()[()]]
            table[column] = pd.Series(cells) if cells else pd.Series([], dtype=object)
        elif h5py.check_string_dtype(dataset.dtype):
            table[column] = dataset.asstr()[()]
        else:
            table[column] = dataset[()].view(dataset.attrs.get("dtype", dataset.dtype))
    return table


def cell_texts(column: pd.Series) -> list[str]:
    """The cells of a column as JSON, the same for a column that was saved and read again."""
    return [to_json(value, f"column {column.name!r}") for value in column]


def to_json(value: Any, what: str) -> str:
    """JSON of a value, whose name is `what` in messages; arrays become lists, other objects text."""
    try:
        return json.dumps(_plain(value), default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} holds {str(value)[:80]}, which cannot be saved ({error}); make it text.") from error


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; missing becomes None."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in "mM":
        value = value.tolist()
    if isinstance(value, list | tuple | dict | bool | int | str):
        return value
    missing = pd.isna(value)
    if isinstance(missing, bool) and missing:
        return None
    return value if isinstance(value, float) else str(value)


# --------------------------------------------------------------------------------- nested dictionaries


def write_nested(parent: h5py.Group, name: str, values: Mapping[str, Any]) -> list[str]:
    """A dict of arrays, tables, numbers, strings and such dicts; returns the keys that cannot be written."""
    group = parent.create_group(name)
    left_out = []
    for key, value in values.items():
        key = str(key).replace("/", "|")
        if isinstance(value, Mapping):
            left_out += [f"{key}.{inner}" for inner in write_nested(group, key, value)]
        elif isinstance(value, pd.DataFrame):
            write_table(group, key, value)
        else:
            array = np.asarray(value)
            if array.dtype.kind in "biufc":
                group.create_dataset(key, data=array)
            elif array.dtype.kind == "U":
                group.create_dataset(key, data=array.astype(object), dtype=_TEXT)
            else:
                left_out.append(key)
    return left_out


def read_nested(group: h5py.Group) -> dict[str, Any]:
    """The dict of :func:`write_nested`; numbers and strings come back as Python's own."""
    values: dict[str, Any] = {}
    for key, node in group.items():
        if isinstance(node, h5py.Group):
            values[key] = read_table(node) if node.attrs.get("table", False) else read_nested(node)
            continue
        value = node.asstr()[()] if h5py.check_string_dtype(node.dtype) else node[()]
        if isinstance(value, np.ndarray) and value.dtype == object:
            value = value.astype(str)
        values[key] = value.item() if isinstance(value, np.generic) else value
    return values


# --------------------------------------------------------------------------------------------- stimuli


def write_stimuli(parent: h5py.Group, stimuli: StimulusSet) -> None:
    """Stimuli with their content: image arrays of one size as an array, all else as encoded bytes."""
    group = parent.create_group("stimuli")
    group.attrs["kind"] = stimuli.kind
    group.attrs["name"] = stimuli.name
    group.create_dataset("ids", data=list(stimuli.ids), dtype=_TEXT)
    write_table(group, "table", stimuli.table)
    if stimuli.objects is not None:
        write_table(group, "objects", stimuli.objects)
    if isinstance(stimuli.source, Rows | Hdf5Rows):
        images: h5py.Dataset | None = None
        for row, item in enumerate(stimuli._items(np.arange(len(stimuli)))):
            assert isinstance(item, np.ndarray)
            if images is None:
                one = item.shape
                images = group.create_dataset("images", (len(stimuli), *one), item.dtype, chunks=(1, *one))
            images[row] = item
        return
    blob = group.create_dataset("bytes", shape=(0,), maxshape=(None,), chunks=(2**20,), dtype=np.uint8)
    headers, ends = [], []
    for item in stimuli._items(np.arange(len(stimuli))):
        header, content = _encode(item)
        start = blob.shape[0]
        blob.resize(start + len(content), axis=0)
        blob[start:] = np.frombuffer(content, dtype=np.uint8)
        headers.append(json.dumps(header))
        ends.append(start + len(content))
    group.create_dataset("headers", data=headers, dtype=_TEXT)
    group.create_dataset("ends", data=np.asarray(ends, dtype=np.int64))


def read_stimuli(group: h5py.Group, lazy: bool) -> StimulusSet:
    """The stimuli of :func:`write_stimuli`; image arrays may stay in the file."""
    ids = group["ids"].asstr()[()]
    source: Rows | Hdf5Rows | Items
    if "images" in group:
        images = group["images"]
        name = group.file.filename
        source = Hdf5Rows(name, images.name, np.arange(len(images))) if lazy else Rows(images[()])
    else:
        content = group["bytes"][()].tobytes()
        ends = group["ends"][()]
        starts = np.concatenate([[0], ends[:-1]])
        headers = group["headers"].asstr()[()]
        spans = zip(headers, starts, ends, strict=True)
        source = Items([_decode(json.loads(header), content[start:end]) for header, start, end in spans])
    table = read_table(group["table"])
    objects = read_table(group["objects"]) if "objects" in group else None
    return StimulusSet(ids, source, str(group.attrs["kind"]), table, objects, str(group.attrs["name"]))


def _encode(item: Item) -> tuple[dict[str, Any], bytes]:
    if isinstance(item, bytes):
        return {"is": "bytes"}, item
    if isinstance(item, str):
        return {"is": "text"}, item.encode()
    array, rate = item if isinstance(item, tuple) else (item, 0)
    kind = "sound" if isinstance(item, tuple) else "array"
    return {"is": kind, "dtype": array.dtype.str, "shape": array.shape, "rate": rate}, array.tobytes()


def _decode(header: dict[str, Any], content: bytes) -> Item:
    if header["is"] == "bytes":
        return content
    if header["is"] == "text":
        return content.decode()
    array = np.frombuffer(content, dtype=header["dtype"]).reshape(header["shape"])
    return (array, int(header["rate"])) if header["is"] == "sound" else array
