"""Responses that stay in their files: sessions of betas one after another, read by session and by unit."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from . import storage
from .errors import unknown

# Bytes of a file that are read in one piece.
_SLAB = 64 * 2**20
# Values whose mean and spread are computed at once.
_STATISTICS = 2**21
_LARGEST_ARRAY = 2**30
_KINDS = ("hdf5", "nifti", "mgh", "npy")
_ORDERS = ("reversed", "volume", "rows")


class Lazy(ABC):
    """An array (presentation, unit) that is read when it is asked for.

    Attributes
    ----------
    shape : (int, int)
    dtype : numpy.dtype
    chunks : (int, int) or None
        Rows and units that are read together at no more cost than one of them.
    row_groups : tuple of slice
        Rows that lie in one file.
    cheap_units : bool
        Whether some units of all rows cost about their own bytes; else they cost whole files.
    """

    shape: tuple[int, int]
    dtype: np.dtype
    chunks: tuple[int, int] | None = None
    row_groups: tuple[slice, ...]
    cheap_units: bool = False

    @abstractmethod
    def block(self, rows: slice, units: slice) -> np.ndarray:
        """Values of ranges of rows and units, each with start and stop within the array."""

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of where the values come from: it changes with the files, but reads none of them."""

    @property
    def ndim(self) -> int:
        return 2

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """Values of one or two slices of step 1."""
        key = key if isinstance(key, tuple) else (key,)
        if len(key) > 2 or not all(isinstance(one, slice) and one.step in (None, 1) for one in key):
            raise ValueError(f"{type(self).__name__} is read by slices [rows, units] of step 1; found {key}.")
        rows, units = (slice(*one.indices(n)[:2]) for one, n in zip((*key, slice(None))[:2], self.shape, strict=True))
        if rows.stop <= rows.start or units.stop <= units.start:
            return np.empty((max(0, rows.stop - rows.start), max(0, units.stop - units.start)), self.dtype)
        return self.block(rows, units)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        n_bytes = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        if n_bytes > _LARGEST_ARRAY:
            raise ValueError(
                f"these responses {self.shape} take {n_bytes / 1e9:.1f} GB in memory; read them by unit_blocks(), or "
                "select rows and units first."
            )
        return np.asarray(self[:, :], dtype=dtype)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.shape} {self.dtype}, {len(self.row_groups)} groups of rows>"


@dataclass(frozen=True, eq=False)
class Session:
    """One file of responses to the trials of one session.

    Attributes
    ----------
    path : Path
    kind : {"hdf5", "nifti", "mgh", "npy"}
    dataset : str
        Name in an HDF5 file; "" otherwise.
    n_rows : int
        Trials in the file.
    order : {"reversed", "volume", "rows"}
        Axes: (trial, z, y, x), where a flat index has x running fastest; (x, y, z, trial) of a file of volumes, for
        which the same flat index holds; (trial, unit).
    take : ndarray of int, optional
        Trials that are kept, ascending; z-scores are those of all trials.
    """

    path: Path
    kind: Literal["hdf5", "nifti", "mgh", "npy"]
    dataset: str
    n_rows: int
    order: Literal["reversed", "volume", "rows"]
    take: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(unknown("kind", self.kind, _KINDS))
        if self.order not in _ORDERS:
            raise ValueError(unknown("order", self.order, _ORDERS))
        if (self.kind in ("nifti", "mgh")) != (self.order == "volume"):
            raise ValueError(f"kind={self.kind!r} with order={self.order!r}; volumes are nifti or mgh, and they alone.")
        if self.take is not None:
            take = np.asarray(self.take)
            if take.ndim != 1 or take.dtype.kind not in "iu" or (np.diff(take) <= 0).any():
                raise ValueError("take must hold ascending positions of trials; sort them and drop those said twice.")
            if len(take) and (take[0] < 0 or take[-1] >= self.n_rows):
                raise ValueError(
                    f"take runs from {take[0]} to {take[-1]}; {self.path} has trials 0 to {self.n_rows - 1}."
                )

    @property
    def n_kept(self) -> int:
        return self.n_rows if self.take is None else len(self.take)


class SessionStack(Lazy):
    """Sessions one after another, with the same units in each.

    Parameters
    ----------
    sessions : sequence of Session
    columns : ndarray of int (unit,)
        Ascending flat indices of the units in a trial, in the file's own order of axes.
    scale : float
        Factor that makes stored values responses.
    zscore : bool
        Each unit is z-scored over the trials of each session, with the population's standard deviation, before
        trials are left out; missing trials are ignored. A unit that does not vary in a session is NaN there, with
        one warning.
    dtype : numpy dtype
        Of the values given, a float.

    Raises
    ------
    ValueError
        Files of another shape than the sessions or the first file say (with both).

    Notes
    -----
    An HDF5 file is read along its chunks. Those that span all trials of a voxel are read by boxes of voxels, so that
    some units cost their own bytes; others by runs of trials. A compressed volume can only be read whole.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        columns: np.ndarray,
        scale: float = 1.0,
        zscore: bool = False,
        dtype: Any = np.float32,
    ):
        self.sessions = tuple(sessions)
        self.columns = np.asarray(columns, dtype=np.int64)
        self.scale, self.zscore, self.dtype = float(scale), bool(zscore), np.dtype(dtype)
        if not self.sessions:
            raise ValueError("sessions is empty; give the file of at least one session.")
        if self.columns.ndim != 1 or not len(self.columns) or self.columns[0] < 0 or (np.diff(self.columns) <= 0).any():
            raise ValueError(
                f"columns has shape {self.columns.shape}; expected ascending flat indices of units from 0, such as "
                "np.flatnonzero(mask)."
            )
        self._axes: tuple[int, ...] | None = None
        cheap = [self._check(session) for session in self.sessions]
        self.cheap_units = all(cheap)
        ends = np.cumsum([session.n_kept for session in self.sessions])
        self.row_groups = tuple(
            slice(int(end) - session.n_kept, int(end)) for end, session in zip(ends, self.sessions, strict=True)
        )
        self.shape = (int(ends[-1]), len(self.columns))
        self._kept: tuple[tuple[int, int, int], np.ndarray] | None = None
        self._said = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}

    def _check(self, session: Session) -> bool:
        """Compare a file with what is said of it; returns whether units are cheap to read from it."""
        n_rows, axes, cheap = _about(session)
        if n_rows != session.n_rows:
            raise ValueError(f"{session.path} holds {n_rows} trials; expected {session.n_rows}.")
        self._axes = axes if self._axes is None else self._axes
        if axes != self._axes:
            raise ValueError(
                f"{session.path} has trials of shape {axes}; those of {self.sessions[0].path} have {self._axes}. "
                "Are they of the same subject and space?"
            )
        if self.columns[-1] >= math.prod(axes):
            raise ValueError(
                f"columns runs to {self.columns[-1]}; a trial of {session.path} has shape {axes}, {math.prod(axes)} "
                "values. Was the mask made for another space?"
            )
        return cheap

    def block(self, rows: slice, units: slice) -> np.ndarray:
        out = np.empty((rows.stop - rows.start, units.stop - units.start), self.dtype)
        for number, group in enumerate(self.row_groups):
            start, stop = max(rows.start, group.start), min(rows.stop, group.stop)
            if start < stop:
                values = self._of_session(number, units)
                out[start - rows.start : stop - rows.start] = values[start - group.start : stop - group.start]
        return out

    def session_blocks(self, width: int) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Every session in turn, at most `width` units at once: (rows, units, values)."""
        for number, group in enumerate(self.row_groups):
            for start in range(0, self.shape[1], width):
                units = slice(start, min(start + width, self.shape[1]))
                yield group, units, self.session_values(number, units)

    def _of_session(self, number: int, units: slice) -> np.ndarray:
        """Values of a session, kept until others are asked for: whoever reads row by row gets them from memory."""
        key = (number, units.start, units.stop)
        kept = self._kept
        if kept is None or kept[0] != key:
            kept = self._kept = None  # before the next is read: two would be twice the memory
            kept = self._kept = (key, self.session_values(number, units))
        return kept[1]

    def session_values(self, number: int, units: slice) -> np.ndarray:
        """Values of one session (trial kept, unit), read anew and not kept."""
        session = self.sessions[number]
        values = _read_session(session, self.columns[units], cast("tuple[int, ...]", self._axes), self.dtype)
        if self.scale != 1:
            values *= self.dtype.type(self.scale)
        if self.zscore:
            constant = _standardise(values)
            if constant and not self._said:
                self._said = True
                warnings.warn(
                    f"{session.path.name}: {constant} of {values.shape[1]} units do not vary in this session and are "
                    "NaN there; other sessions may hold more.",
                    stacklevel=2,
                )
        return values if session.take is None else values[session.take]

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.scale!r} {self.zscore} {self.dtype.str}".encode())
        digest.update(self.columns.astype("<i8").tobytes())
        for session in self.sessions:
            about = session.path.stat()
            what = [str(session.path.absolute()), about.st_size, about.st_mtime_ns, session.dataset, session.n_rows]
            what += [session.order, None if session.take is None else np.asarray(session.take).tolist()]
            digest.update(json.dumps(what).encode())
        return digest.hexdigest()


def stack_hemispheres(left: Lazy, right: Lazy) -> Lazy:
    """The units of two arrays side by side, those of the left first.

    Raises
    ------
    ValueError
        Sessions of the two sides differ in number or length.
    """
    return _SideBySide(left, right)


class _SideBySide(Lazy):
    def __init__(self, left: Lazy, right: Lazy):
        if left.row_groups != right.row_groups:
            sizes = [[group.stop - group.start for group in side.row_groups] for side in (left, right)]
            raise ValueError(f"left has sessions of {sizes[0]} rows, right of {sizes[1]}; expected the same on both.")
        self.sides = (left, right)
        self.shape = (left.shape[0], left.shape[1] + right.shape[1])
        self.dtype = np.result_type(left.dtype, right.dtype)
        self.row_groups = left.row_groups
        self.cheap_units = left.cheap_units and right.cheap_units

    def block(self, rows: slice, units: slice) -> np.ndarray:
        parts, place = [], 0
        for side in self.sides:
            start, stop = max(units.start - place, 0), min(units.stop - place, side.shape[1])
            if start < stop:
                parts.append(side[rows, start:stop])
            place += side.shape[1]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1, dtype=self.dtype)

    def fingerprint(self) -> str:
        return hashlib.sha256("|".join(side.fingerprint() for side in self.sides).encode()).hexdigest()


# --------------------------------------------------------------------------------------- one session


def _about(session: Session) -> tuple[int, tuple[int, ...], bool]:
    """Trials in a file, the axes of one in the order of flat indices, and whether units are cheap to read."""
    if session.order == "volume":
        from .nifti import header

        about = header(session.path)
        return about.n, about.shape, False
    if session.kind == "npy":
        array = _mapped(session)
        return array.shape[0], array.shape[1:], bool(array.flags.f_contiguous)
    from .safe import hdf5_array

    with storage.open_hdf5(session.path) as file:
        dataset = hdf5_array(file, session.dataset)
        if dataset.ndim < 2 or dataset.dtype.kind not in "iuf":
            raise ValueError(f"{session.path}:{session.dataset} is {dataset.dtype} {dataset.shape}; expected betas.")
        return int(dataset.shape[0]), tuple(int(n) for n in dataset.shape[1:]), _spans_trials(dataset)


def _spans_trials(dataset: Any) -> bool:
    return dataset.chunks is not None and dataset.chunks[0] * 2 > dataset.shape[0]


def _mapped(session: Session) -> np.ndarray:
    from .safe import load_npy

    array = load_npy(session.path, mmap=True)
    if array.ndim < 2 or array.dtype.kind not in "iuf":
        raise ValueError(f"{session.path} is {array.dtype} {array.shape}; expected (trial, unit).")
    return array


def _read_session(session: Session, columns: np.ndarray, axes: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """All trials of some units."""
    out = np.empty((session.n_rows, len(columns)), dtype)
    if session.order == "volume":
        from .nifti import header, volumes

        about = header(session.path)
        for row, values in enumerate(volumes(session.path, columns)):
            out[row] = values
        if about.is_scaled:
            out *= dtype.type(about.slope)
            out += dtype.type(about.inter)
    elif session.kind == "npy":
        array = _mapped(session)
        flat = array.reshape(len(array), -1)
        step = max(1, _SLAB // (flat.shape[1] * flat.itemsize))
        for start in range(0, len(flat), step):
            out[start : start + step] = flat[start : start + step, columns]
    else:
        with storage.open_hdf5(session.path) as file:
            dataset = file[session.dataset]
            fill = _fill_by_units if _spans_trials(dataset) else _fill_by_trials
            fill(dataset, columns, axes, out)
    return out


def _fill_by_units(dataset: Any, columns: np.ndarray, axes: tuple[int, ...], out: np.ndarray) -> None:
    """From chunks that span trials: boxes of voxels, all trials of each."""
    if len(axes) == 1:
        widest = max(1, _SLAB // (dataset.shape[0] * dataset.dtype.itemsize))
        for places, run in storage._pieces(columns, widest):
            out[:, places] = dataset[:, run][:, columns[places] - run.start]
        return
    n_y, n_x = axes[-2:]
    line, x = np.divmod(columns, n_x)  # a line is a row of voxels along x
    plane = line // n_y
    # A box is a run of neighbouring lines of one plane, cut where it would take too much memory.
    breaks = np.flatnonzero((np.diff(line) > 1) | (np.diff(plane) > 0)) + 1
    for places in np.split(np.arange(len(columns)), breaks):
        low, high = int(x[places].min()), int(x[places].max()) + 1
        tallest = max(1, _SLAB // (dataset.shape[0] * (high - low) * dataset.dtype.itemsize))
        first = line[places[0]]
        for part in np.split(places, np.searchsorted(line[places], np.arange(first, line[places[-1]], tallest)[1:])):
            _fill_box(dataset, part, line[part], x[part], axes, out)


def _fill_box(
    dataset: Any, places: np.ndarray, line: np.ndarray, x: np.ndarray, axes: tuple[int, ...], out: np.ndarray
) -> None:
    low, high = int(x.min()), int(x.max()) + 1
    *before, top = (int(one) for one in np.unravel_index(int(line[0]), axes[:-1]))
    key = (slice(None), *before, slice(top, top + int(line[-1] - line[0]) + 1), slice(low, high))
    box = dataset[key].reshape(dataset.shape[0], -1)
    out[:, places] = box[:, (line - line[0]) * (high - low) + x - low]


def _fill_by_trials(dataset: Any, columns: np.ndarray, axes: tuple[int, ...], out: np.ndarray) -> None:
    """From contiguous values or chunks of few trials: runs of trials, of the planes that hold wanted voxels."""
    per_plane = math.prod(axes[1:])
    first, last = int(columns[0]) // per_plane, int(columns[-1]) // per_plane + 1
    n_bytes = (last - first) * per_plane * dataset.dtype.itemsize
    step = max(1, _SLAB // n_bytes)
    if dataset.chunks is not None and step >= dataset.chunks[0]:
        step -= step % dataset.chunks[0]  # half a chunk would be read twice
    inner = columns - first * per_plane
    for start in range(0, dataset.shape[0], step):
        slab = dataset[start : start + step, first:last]
        out[start : start + step] = slab.reshape(len(slab), -1)[:, inner]


def _standardise(values: np.ndarray) -> int:
    """z-score columns in place, ignoring NaN; returns how many do not vary, which become NaN."""
    constant = 0
    width = max(1, _STATISTICS // len(values))
    for start in range(0, values.shape[1], width):
        part = values[:, start : start + width]
        wide = part.astype(np.float64)
        finite = np.isfinite(wide)
        n = finite.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            wide -= np.where(finite, wide, 0).sum(axis=0) / n
            spread = np.sqrt((np.where(finite, wide, 0) ** 2).sum(axis=0) / n)
            # Compared as they are: a mean of equal numbers may differ from them in its last digit.
            highest = np.where(finite, part, -np.inf).max(axis=0)
            flat = (n > 0) & (highest == np.where(finite, part, np.inf).min(axis=0))
            spread[flat] = np.nan
            part[...] = wide / spread
        constant += int(flat.sum())
    return constant
