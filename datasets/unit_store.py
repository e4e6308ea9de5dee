"""Responses on disk by blocks of units, in a folder that survives being killed while it is written.

``NAME.units/`` holds ``responses.bin``, one block of 256 units after another, each C-ordered (presentation, unit), so
that all responses of some units are one read; ``store.json``, what the numbers mean and where they came from;
``done.json``, the groups of rows that are there, each with its SHA-256; and ``tables.h5``, presentations, units and
stimuli. A group that is not in ``done.json`` is written anew as a whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
import pandas as pd

from . import storage
from .lazy import Lazy
from .sources import Files, Hdf5Rows, Source, ZipMembers
from .stimuli import StimulusSet

if TYPE_CHECKING:
    from .recording import Recording

FORMAT = "neuralign-units-1"
WIDTH = 256
DTYPES = {"float16": "<f2", "float32": "<f4"}
_RESPONSES, _STORE, _DONE, _TABLES, _LOCK = "responses.bin", "store.json", "done.json", "tables.h5", "store.lock"
_CONTENT = "unit tables"


class Layout(NamedTuple):
    """Where values lie in ``responses.bin``: blocks of `width` units, the last one narrower."""

    n_rows: int
    n_units: int
    width: int
    dtype: np.dtype

    def blocks(self, units: slice) -> list[tuple[int, slice, slice]]:
        """Blocks that overlap with a range of units: (byte of the block, its units, those wanted)."""
        found = []
        for start in range(units.start // self.width * self.width, units.stop, self.width):
            own = slice(start, min(start + self.width, self.n_units))
            wanted = slice(max(start, units.start), min(own.stop, units.stop))
            found.append((start * self.n_rows * self.dtype.itemsize, own, wanted))
        return found

    @property
    def n_bytes(self) -> int:
        return self.n_rows * self.n_units * self.dtype.itemsize


class UnitStore(Lazy):
    """The responses in a finished folder, read by blocks of units without being mapped into memory.

    Parameters
    ----------
    folder : path
    rows : ndarray of int, optional
        Ascending rows that are meant; default all.

    Raises
    ------
    FileNotFoundError
    ValueError
        No store, one that is not finished, or whose file is not as long as it should be.
    """

    cheap_units = True

    def __init__(self, folder: str | Path, rows: np.ndarray | None = None):
        self.folder = Path(folder).absolute()
        about = _described(self.folder)
        groups, done = about["groups"], _done(self.folder)
        if len(done) < len(groups):
            raise ValueError(
                f"{self.folder} is not finished: {len(done)} of {len(groups)} groups of rows are there. Run the same "
                "command again, which goes on where it stopped."
            )
        self.layout = _layout(about)
        found = (self.folder / _RESPONSES).stat().st_size
        if found != self.layout.n_bytes:
            raise ValueError(
                f"{self.folder / _RESPONSES} has {found} bytes; expected {self.layout.n_bytes}. Delete the folder and "
                "convert again."
            )
        self.rows = None if rows is None else np.asarray(rows, dtype=np.int64)
        n_rows = self.layout.n_rows if self.rows is None else len(self.rows)
        self.shape = (n_rows, self.layout.n_units)
        self.dtype = self.layout.dtype
        self.chunks = (n_rows, self.layout.width)
        self.row_groups = (slice(0, n_rows),)

    def block(self, rows: slice, units: slice) -> np.ndarray:
        inner: Any = slice(None)
        first, last = rows.start, rows.stop
        if self.rows is not None:
            wanted = self.rows[rows]
            first, last = int(wanted[0]), int(wanted[-1]) + 1
            inner = wanted - first
        out = np.empty((rows.stop - rows.start, units.stop - units.start), self.dtype)
        handle = os.open(self.folder / _RESPONSES, os.O_RDONLY)
        try:
            for offset, own, wanted_units in self.layout.blocks(units):
                stride = own.stop - own.start
                tile = np.empty((last - first, stride), self.dtype)
                _pread(handle, tile, offset + first * stride * self.dtype.itemsize)
                columns = slice(wanted_units.start - units.start, wanted_units.stop - units.start)
                out[:, columns] = tile[inner, wanted_units.start - own.start : wanted_units.stop - own.start]
        finally:
            os.close(handle)
        return out

    def fingerprint(self) -> str:
        about = (self.folder / _RESPONSES).stat()
        rows = "" if self.rows is None else hashlib.sha256(self.rows.tobytes()).hexdigest()
        return hashlib.sha256(f"{self.folder} {about.st_size} {about.st_mtime_ns} {rows}".encode()).hexdigest()


class UnitStoreWriter:
    """Writes a store group by group; opened anew after a kill, it knows what is left to do.

    Parameters
    ----------
    folder : path
        Made where it is not there; its parent must be.
    shape : (n_presentations, n_units)
    dtype : {"float16", "float32"}
    groups : sequence of slice
        Rows that are written, and after a kill written anew, together.
    fingerprint : str
        Of the source: another one is refused.

    Raises
    ------
    ValueError
        The folder holds a store of another source, shape or dtype (both are named) or other files, or another
        process writes to it.
    """

    def __init__(
        self, folder: str | Path, shape: tuple[int, int], dtype: str, groups: Sequence[slice], fingerprint: str
    ):
        self.folder = Path(folder).absolute()
        self.groups = tuple(groups)
        about = {
            "format": FORMAT,
            "shape": [int(n) for n in shape],
            "dtype": DTYPES[dtype],
            "width": WIDTH,
            "groups": [[group.start, group.stop] for group in self.groups],
            "fingerprint": fingerprint,
        }
        self.layout = _layout(about)
        self._place = 0
        self._digest = hashlib.sha256()
        if not self.folder.parent.is_dir():
            raise FileNotFoundError(f"no folder at {self.folder.parent}; create it before writing {self.folder.name}.")
        self.folder.mkdir(exist_ok=True)
        self._lock = (self.folder / _LOCK).open("w")
        try:
            self._claim(about)
        except BaseException:
            self._lock.close()
            raise
        self._file = os.open(self.folder / _RESPONSES, os.O_RDWR)

    def _claim(self, about: dict[str, Any]) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another process is writing to {self.folder}; wait for it, or give another one."
            ) from error
        for name in (_STORE, _DONE, _TABLES):
            for left in self.folder.glob(f".{name}.*"):  # of a process that was killed between two names
                left.unlink()
        if (self.folder / _STORE).exists():
            _refuse_another(self.folder, _described(self.folder), about)
            return
        strange = [
            one.name for one in self.folder.iterdir() if one.name not in (_RESPONSES, _LOCK) and one.name[0] != "."
        ]
        if strange:
            raise ValueError(f"{self.folder} holds other files ({strange[0]!r}); give a folder that is empty or new.")
        with (self.folder / _RESPONSES).open("wb") as file:
            file.truncate(self.layout.n_bytes)  # takes no space until it is written to
        _write_json(self.folder / _STORE, about)

    def __enter__(self) -> UnitStoreWriter:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._file)
        self._lock.close()

    @property
    def todo(self) -> list[int]:
        """Numbers of the groups that are not there yet."""
        done = _done(self.folder)
        return [number for number in range(len(self.groups)) if str(number) not in done]

    def write(self, group: int, units: slice, values: np.ndarray) -> None:
        """Responses of a group, panel by panel from the first unit on; panels but the last are whole blocks.

        Raises
        ------
        ValueError
            A panel out of order, or a value that float16 cannot hold.
        """
        if units.start != self._place or (units.stop % WIDTH and units.stop != self.layout.n_units):
            raise ValueError(
                f"units {units.start} to {units.stop} of group {group} do not follow {self._place} in whole blocks of "
                f"{WIDTH}."
            )
        with np.errstate(over="ignore"):
            stored = values.astype(self.layout.dtype)
        lost = np.isinf(stored) & np.isfinite(values)
        if lost.any():
            raise ValueError(
                f"responses hold {values[lost][0]:g}, which {self.layout.dtype.name} cannot hold (65504 is its "
                'largest); give dtype="float32".'
            )
        first = self.groups[group].start
        for offset, own, _ in self.layout.blocks(units):
            tile = np.ascontiguousarray(stored[:, own.start - units.start : own.stop - units.start])
            _pwrite(self._file, tile, offset + first * tile.shape[1] * tile.itemsize)
            self._digest.update(tile.data)
        self._place = units.stop

    def finish(self, group: int) -> None:
        """The group is there, also after a loss of power."""
        if self._place != self.layout.n_units:
            raise ValueError(f"group {group} has {self._place} of {self.layout.n_units} units.")
        os.fsync(self._file)
        _write_json(self.folder / _DONE, _done(self.folder) | {str(group): self._digest.hexdigest()})
        self._place, self._digest = 0, hashlib.sha256()

    def write_tables(self, recording: Recording, rows: np.ndarray | None = None) -> None:
        """What the rows and units are, from a recording of the same; `rows` are those that its presentations mean."""
        with storage.new_hdf5(self.folder / _TABLES, _CONTENT) as file:
            file.attrs["name"] = recording.name
            file.attrs["info"] = storage.to_json(recording.info, "info")
            storage.write_table(file, "presentations", recording.presentations)
            storage.write_table(file, "units", recording.units)
            if rows is not None:
                file["rows"] = np.asarray(rows, dtype=np.int64)
            if recording.stimuli is not None:
                _write_stimuli(file, recording.stimuli)


def open_store(folder: str | Path, root: str | Path | None = None) -> Recording:
    """The recording in a folder that was converted; its responses stay there.

    Parameters
    ----------
    folder : path
    root : path, optional
        Where the files of the stimuli are now, if they were moved: they are looked for below it by the ends of their
        old paths.

    Returns
    -------
    Recording
        Without stimuli, and with a warning, where their files are gone.

    Raises
    ------
    FileNotFoundError, ValueError
        As :class:`UnitStore` says.
    """
    from .recording import Recording

    folder = Path(folder)
    UnitStore(folder)  # says what is wrong before tables are looked for
    if not has_tables(folder):
        raise ValueError(f"{folder} is not finished: its tables are missing. Run the same command again.")
    with storage.saved(folder / _TABLES, _CONTENT, lazy=True) as file:
        rows = file["rows"][()] if "rows" in file else None
        return Recording(
            UnitStore(folder, rows),
            storage.read_table(file["presentations"]),
            storage.read_table(file["units"]),
            stimuli=_read_stimuli(file, None if root is None else Path(root)),
            name=str(file.attrs["name"]),
            info=json.loads(file.attrs["info"]),
        )


def has_tables(folder: Path) -> bool:
    """Whether a store has been written to its end."""
    return (folder / _TABLES).is_file()


def state(folder: str | Path) -> tuple[int, int, int] | None:
    """Groups that are there, all groups, and bytes taken on disk; None where no store was begun."""
    folder = Path(folder)
    if not (folder / _STORE).is_file():
        return None
    taken = (folder / _RESPONSES).stat().st_blocks * 512
    return len(_done(folder)), len(_described(folder)["groups"]), taken


def damaged_groups(folder: str | Path) -> list[int]:
    """Groups of rows whose values are not those that were written, by their SHA-256; reads all."""
    folder = Path(folder)
    about = _described(folder)
    layout, damaged = _layout(about), []
    handle = os.open(folder / _RESPONSES, os.O_RDONLY)
    try:
        for number, digest in _done(folder).items():
            start, stop = about["groups"][int(number)]
            found = hashlib.sha256()
            for offset, own, _ in layout.blocks(slice(0, layout.n_units)):
                tile = np.empty((stop - start, own.stop - own.start), layout.dtype)
                _pread(handle, tile, offset + start * tile.shape[1] * tile.itemsize)
                found.update(tile.data)
            if found.hexdigest() != digest:
                damaged.append(int(number))
    finally:
        os.close(handle)
    return sorted(damaged)


# ---------------------------------------------------------------------------------------------- files


def _layout(about: dict[str, Any]) -> Layout:
    n_rows, n_units = about["shape"]
    return Layout(n_rows, n_units, about["width"], np.dtype(about["dtype"]))


def _described(folder: Path) -> dict[str, Any]:
    """What store.json says, if it is one of ours."""
    path = folder / _STORE
    if not path.is_file():
        raise FileNotFoundError(f"no {_STORE} in {folder}: it is no converted dataset, or was never begun.")
    about = _read_json(path)
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} has format {about.get('format')!r}; expected {FORMAT!r}.")
    whole = isinstance(about.get("groups"), list) and isinstance(about.get("width"), int) and about["width"] > 0
    shape = about.get("shape")
    if not whole or about.get("dtype") not in DTYPES.values() or not isinstance(shape, list) or len(shape) != 2:
        raise ValueError(f"{path} is damaged; delete the folder and convert again.")
    return about


def _done(folder: Path) -> dict[str, str]:
    path = folder / _DONE
    return _read_json(path) if path.is_file() else {}


def _refuse_another(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key, what in (("shape", "shape"), ("dtype", "dtype"), ("groups", "sessions"), ("fingerprint", "source")):
        if found[key] != wanted[key]:
            raise ValueError(
                f"{folder} was begun from another {what}: {str(found[key])[:80]}, now {str(wanted[key])[:80]}. The "
                "files, the selection or the options have changed; give another folder, or delete this one."
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete the folder and convert again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged; delete the folder and convert again.")
    return found


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with storage.atomic(path) as temporary, temporary.open("w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name is on disk, too
    finally:
        os.close(folder)


def _pread(handle: int, tile: np.ndarray, offset: int) -> None:
    view = tile.reshape(-1).view(np.uint8).data
    place = 0
    while place < len(view):
        n = os.preadv(handle, [view[place:]], offset + place)
        if n == 0:
            raise ValueError(f"a store ends at byte {offset + place}; delete the folder and convert again.")
        place += n


def _pwrite(handle: int, tile: np.ndarray, offset: int) -> None:
    view = tile.reshape(-1).view(np.uint8).data
    place = 0
    while place < len(view):
        place += os.pwrite(handle, view[place:], offset + place)


# -------------------------------------------------------------------------------------------- stimuli


def _write_stimuli(file: h5py.File, stimuli: StimulusSet) -> None:
    """Where the stimuli lie, if that is in files; those in memory as they are."""
    source = stimuli.source
    if not isinstance(source, Hdf5Rows | Files | ZipMembers):
        storage.write_stimuli(file, stimuli)
        return
    group = file.create_group("stimuli_elsewhere")
    group.attrs["kind"], group.attrs["name"] = stimuli.kind, stimuli.name
    where = pd.DataFrame({"id": list(stimuli.ids)})
    if isinstance(source, Hdf5Rows):
        group.attrs["path"], group.attrs["dataset"] = str(source._path), source._dataset
        where["row"] = np.asarray(source._rows)
    elif isinstance(source, ZipMembers):
        group.attrs["path"] = str(source._path)
        where["member"] = source._members
    else:
        where["path"] = [str(path) for path in source._paths]
    storage.write_table(group, "where", where)
    storage.write_table(group, "table", stimuli.table)
    if stimuli.objects is not None:
        storage.write_table(group, "objects", stimuli.objects)


def _read_stimuli(file: h5py.File, root: Path | None) -> StimulusSet | None:
    if "stimuli" in file:
        return storage.read_stimuli(file["stimuli"], lazy=True)
    if "stimuli_elsewhere" not in file:
        return None
    import warnings

    group = file["stimuli_elsewhere"]
    where = storage.read_table(group["where"])
    old = list(where["path"]) if "path" in where else [str(group.attrs["path"])]
    paths = [_found(Path(path), root) for path in old]
    gone = [path for path, now in zip(old, paths, strict=True) if now is None]
    if gone:
        warnings.warn(
            f"{len(gone)} of {len(old)} files of the stimuli are gone, the first {gone[0]}; the recording is opened "
            "without stimuli. Give root= with the folder where they are now.",
            stacklevel=3,
        )
        return None
    here = [path for path in paths if path is not None]
    source: Source
    if "row" in where:
        source = Hdf5Rows(here[0], str(group.attrs["dataset"]), where["row"].to_numpy())
    elif "member" in where:
        source = ZipMembers(here[0], list(where["member"]))
    else:
        source = Files(here)
    objects = storage.read_table(group["objects"]) if "objects" in group else None
    table = storage.read_table(group["table"])
    return StimulusSet(list(where["id"]), source, str(group.attrs["kind"]), table, objects, str(group.attrs["name"]))


def _found(path: Path, root: Path | None) -> Path | None:
    """The file where it was, or below `root` by the longest end of its old path."""
    if path.is_file():
        return path
    ends = () if root is None else (Path(root, *path.parts[start:]) for start in range(1, len(path.parts)))
    return next((one for one in ends if one.is_file()), None)
