"""From files by session to a store by unit, with its size told first; a killed conversion goes on where it stopped."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import storage, unit_store
from .errors import unknown
from .lazy import Lazy, SessionStack
from .unit_store import WIDTH, UnitStoreWriter

if TYPE_CHECKING:
    from .recording import Recording

# Rows of an array that is not cut into sessions: values per group, 64 MiB of float32.
_GROUP = 2**24


@dataclass(frozen=True)
class Plan:
    """What a conversion takes.

    Attributes
    ----------
    n_presentations, n_units : int
    dtype : str
    bytes : int
        Size of the finished store.
    free_bytes : int
        Free on the disk of the folder.
    bytes_done : int
        Already taken by what was converted before.
    groups_done, groups : int
        Sessions (or runs of rows) that are there, and all.
    """

    n_presentations: int
    n_units: int
    dtype: str
    bytes: int
    free_bytes: int
    bytes_done: int
    groups_done: int
    groups: int

    def text(self) -> str:
        """One sentence for a person."""
        return (
            f"{self.n_presentations} presentations x {self.n_units} units as {self.dtype}: {_size(self.bytes)}; "
            f"{_size(self.free_bytes)} are free; {self.groups_done} of {self.groups} sessions are there"
        )


def plan_conversion(recording: Recording, out: str | Path, dtype: str = "float16") -> Plan:
    """What :func:`convert` would take, without writing anything.

    Raises
    ------
    ValueError
        An unknown dtype, or responses with a time axis.
    """
    if dtype not in unit_store.DTYPES:
        raise ValueError(unknown("dtype", dtype, unit_store.DTYPES))
    if recording.is_time_resolved:
        raise ValueError(
            f"responses have shape {recording.responses.shape}; a store by unit holds (presentation, unit). Select a "
            "window with average_time(start, stop) first."
        )
    out = Path(out)
    done, n_groups, taken = unit_store.state(out) or (0, len(_groups(recording.responses)), 0)
    n_bytes = recording.n_presentations * recording.n_units * np.dtype(dtype).itemsize
    return Plan(recording.n_presentations, recording.n_units, dtype, n_bytes, _free(out), taken, done, n_groups)


def require_space(out: str | Path, n_bytes: int) -> None:
    """Refuse a store that the disk has no room for, less what of it is there already."""
    taken = (unit_store.state(out) or (0, 0, 0))[2]
    free = _free(Path(out))
    if n_bytes - taken > free:
        raise ValueError(
            f"no room for {out}: it takes {_size(n_bytes)}, {_size(taken)} of which are there, and {_size(free)} are "
            f"free. Free {_size(n_bytes - taken - free)}, select less, or give another disk."
        )


def _free(out: Path) -> int:
    """Bytes free on the disk of a folder that may not be there yet."""
    return shutil.disk_usage(next(one for one in (out, *out.absolute().parents) if one.exists())).free


def convert(
    recording: Recording,
    out: str | Path,
    dtype: str = "float16",
    max_memory: int = 2**30,
    progress: Callable[[int, int], None] | None = None,
) -> Recording:
    """Write responses to a folder by units, session by session; run again after a kill, it goes on.

    Parameters
    ----------
    recording : Recording
        Without a time axis; its responses may stay on disk.
    out : path
        Folder, made where it is not there.
    dtype : {"float16", "float32"}
        float16 keeps 3 digits, more than a single trial has.
    max_memory : int
        Bytes that may be held at once: fewer mean more passes through every session's file.
    progress : callable, optional
        Called with the sessions that are there and all sessions, after each.

    Returns
    -------
    Recording
        The same, read from the store; ``truth`` is not kept.

    Raises
    ------
    ValueError
        Too little room on the disk (before anything is written), a value that float16 cannot hold, a folder that was
        begun from another source or is being written to.
    """
    require_space(out, plan_conversion(recording, out, dtype).bytes)
    responses = recording.responses
    groups = _groups(responses)
    with UnitStoreWriter(out, responses.shape, dtype, groups, fingerprint(recording)) as writer:
        for group in writer.todo:
            n_rows = groups[group].stop - groups[group].start
            # A value is held as it is read, scaled and stored, and half the room is for its standardising.
            width = max(1, max_memory // (16 * n_rows * WIDTH)) * WIDTH
            for units, values in _panels(responses, group, groups[group], width):
                writer.write(group, units, values)
            writer.finish(group)
            if progress is not None:
                progress(len(groups) - len(writer.todo), len(groups))
        writer.write_tables(recording)
    return unit_store.open_store(out)


def _groups(responses: Any) -> tuple[slice, ...]:
    """Rows that are converted together: the sessions, or runs of rows."""
    if isinstance(responses, Lazy) and len(responses.row_groups) > 1:
        return responses.row_groups
    n_rows, n_units = responses.shape[:2]
    step = max(1, _GROUP // n_units)
    return tuple(slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def _panels(responses: Any, group: int, rows: slice, width: int) -> Iterator[tuple[slice, np.ndarray]]:
    n_units = responses.shape[1]
    for start in range(0, n_units, width):
        units = slice(start, min(start + width, n_units))
        # Straight from the session: what it keeps for readers of rows would be held twice.
        session = isinstance(responses, SessionStack)
        yield units, np.asarray(responses.session_values(group, units) if session else responses[rows, units])


def fingerprint(recording: Recording) -> str:
    """Of the source of responses and of the tables: changes where the store would."""
    responses = recording.responses
    digest = hashlib.sha256()
    if isinstance(responses, Lazy):
        digest.update(responses.fingerprint().encode())
    else:
        held = storage.portable(responses)
        if isinstance(held, storage.OnDisk):
            about = Path(held.path).stat()
            what = f"{held.path} {held.dataset} {held.layout} {about.st_size} {about.st_mtime_ns}"
            digest.update(what.encode())
        else:
            for start in range(0, len(responses), 1024):
                digest.update(np.ascontiguousarray(responses[start : start + 1024]).data)
    for table in (recording.presentations, recording.units):
        for column, cells in table.items():
            values = cells.to_numpy()
            numbers = values.dtype.kind in "biuf"
            text = values.tobytes() if numbers else ",".join(storage.cell_texts(cells)).encode()
            digest.update(f"\n{column} {values.dtype.kind}: ".encode() + text)
    return digest.hexdigest()


def _size(n_bytes: int) -> str:
    """Bytes for a person: 18.0 GB."""
    amount, unit = float(max(n_bytes, 0)), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "bytes" or amount >= 100 else f"{amount:.1f} {unit}"
