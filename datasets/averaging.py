"""Means over repeats, in one pass through responses that need not fit in memory."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from .lazy import Lazy

if TYPE_CHECKING:
    from .recording import Recording

# Bytes per mean while sessions are summed up: a sum, a count, the mean, and one session's share of them.
_BYTES_PER_MEAN = 20
# Bytes per value of one session: as it is read, in double precision, and where it is finite.
_BYTES_PER_VALUE = 40
# Whole files that are read more often than this are worth a conversion.
_PASSES = 3


def average_repeats(recording: Recording, to: str | Path | None, max_memory: int) -> Recording:
    """:meth:`Recording.average_repeats`, whose warnings name the line that called it."""
    code, order = _stimulus_codes(recording)
    _warn_of_passes(recording, len(order), max_memory)
    if to is None:
        _require_room(recording, [len(order)], max_memory, "give to=<folder>, and it is written there; or ")
        [(mean, n_repeats, silent)] = _averages(recording, [(code, len(order))], max_memory)
        return _averaged(recording, mean, n_repeats, silent, code, order, level=4)
    return _average_to(recording, Path(to), code, order, max_memory)


def _average_to(recording: Recording, to: Path, code: np.ndarray, order: list[str], max_memory: int) -> Recording:
    """The mean in a store on disk; what was written before a kill is written anew."""
    from .convert import fingerprint, require_space
    from .unit_store import UnitStore, UnitStoreWriter, has_tables, open_store

    if recording.is_time_resolved:
        raise ValueError(
            f"to= holds responses (presentation, unit); these have shape {recording.responses.shape}. Select a window "
            "with average_time(start, stop) first, or give max_memory= for a mean in memory."
        )
    shape = (len(order), recording.n_units)
    source = hashlib.sha256(fingerprint(recording).encode() + code.astype("<i8").tobytes()).hexdigest()
    require_space(to, 4 * shape[0] * shape[1])
    with UnitStoreWriter(to, shape, "float32", [slice(0, len(order))], f"mean of {source}") as writer:
        if not (has_tables(to) and not writer.todo):
            n_repeats, silent = np.zeros(len(order)), np.ones(len(order), dtype=bool)
            for units, [(mean, most)] in _panels(recording, [(code, len(order))], max_memory, aligned=True):
                writer.write(0, units, mean)
                np.maximum(n_repeats, most, out=n_repeats)
                silent &= ~np.isfinite(mean).any(axis=1)
            writer.finish(0)
            kept = np.flatnonzero(~silent)
            held = UnitStore(to, None if len(kept) == len(order) else kept)
            mean_recording = _averaged(recording, held, n_repeats, silent, code, order, level=5)
            writer.write_tables(mean_recording, held.rows)
    return open_store(to)


def split_halves(recording: Recording, seed: int | np.random.Generator, max_memory: int) -> tuple[Recording, Recording]:
    """:meth:`Recording.split_halves`."""
    code, order = _stimulus_codes(recording)
    _warn_of_passes(recording, 2 * len(order), max_memory)
    valid = _valid_presentations(recording, max_memory)
    rng = np.random.default_rng(seed)
    half = np.full(recording.n_presentations, -1)
    subject = recording.presentations.get("subject", pd.Series("", index=recording.presentations.index))
    cell = pd.MultiIndex.from_arrays([code, pd.factorize(subject)[0]]).factorize(sort=True)[0]
    for rows in _split_by(cell):
        rows = rng.permutation(rows[valid[rows]])
        if len(rows) >= 2:
            half[rows] = (np.arange(len(rows)) + rng.integers(2)) % 2
    if (half < 0).all():
        most = int(np.bincount(cell[valid]).max(initial=0))
        within = " by a subject" if "subject" in recording.presentations else ""
        raise ValueError(
            f"split_halves needs two valid repeats of a stimulus{within}; these {len(order)} stimuli have {most} "
            "at most. A recording that was averaged cannot be split: use the one with its repeats."
        )
    kept = np.unique(code[half >= 0])
    _require_room(recording, [len(kept)] * 2, max_memory, "")
    place = np.full(len(order), -1)
    place[kept] = np.arange(len(kept))
    names = [order[one] for one in kept]
    codes = [np.where(half == one, place[code], -1) for one in (0, 1)]
    halves = _averages(recording, [(part, len(kept)) for part in codes], max_memory)
    first, second = (
        _averaged(recording, *found, part, names, level=5) for found, part in zip(halves, codes, strict=True)
    )
    return first, second


def _stimulus_codes(recording: Recording) -> tuple[np.ndarray, list[str]]:
    """Stimulus of each presentation as a number, and the stimuli in the order of those numbers."""
    names = recording.presentations["stimulus"]
    presented = recording._presented(recording.presentations)
    order = list(names.unique()) if presented is None else list(presented)
    return pd.Index(order, dtype=object).get_indexer(pd.Index(names, dtype=object)), order


def _require_room(recording: Recording, n_rows: list[int], max_memory: int, mend: str) -> None:
    """Refuse means that take more memory than they may; those of responses in memory take no more than these."""
    responses = recording.responses
    if isinstance(responses, np.ndarray) and not isinstance(responses, np.memmap):
        return
    depth = int(np.prod(responses.shape[1:], dtype=np.int64))
    n_bytes = sum(n_rows) * depth * np.dtype(recording._dtype).itemsize
    if n_bytes > max_memory:
        raise ValueError(
            f"the mean takes {n_bytes / 1e9:.1f} GB and max_memory is {max_memory / 1e9:.1f} GB; {mend}give a larger "
            "max_memory= in bytes, or select units first."
        )


def _averages(
    recording: Recording, members: list[tuple[np.ndarray, int]], max_memory: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Means over sets of presentations, in memory.

    Parameters
    ----------
    members : list of (code (presentation,), n)
        Averaged row of each presentation, -1 for none, and the number of averaged rows.

    Returns
    -------
    list of (mean (row, unit[, time]), n_repeats (row,), silent (row,))
        Repeats of the unit that has most; rows without a finite mean.
    """
    depth = recording.responses.shape[2:]
    means = [np.empty((n, recording.n_units, *depth), dtype=recording._dtype) for _, n in members]
    n_repeats = [np.zeros(n) for _, n in members]
    for units, found in _panels(recording, members, max_memory):
        for mean, most, (values, counted) in zip(means, n_repeats, found, strict=True):
            mean[:, units] = values
            np.maximum(most, counted, out=most)
    silent = [np.asarray(~np.isfinite(mean).reshape(len(mean), -1).any(axis=1)) for mean in means]
    return list(zip(means, n_repeats, silent, strict=True))


def _panels(
    recording: Recording, members: list[tuple[np.ndarray, int]], max_memory: int, aligned: bool = False
) -> Iterator[tuple[slice, list[tuple[np.ndarray, np.ndarray]]]]:
    """Means and counts of some units after others: (units, [(mean, n_repeats), ...])."""
    depth = recording.responses.shape[2:]
    # A presentation that is a mean itself stands for the repeats behind it.
    behind = recording.presentations.get("n_repeats")
    weight = None if behind is None else pd.to_numeric(behind).fillna(1).to_numpy(np.float64)
    for units, parts in _passes(recording, sum(n for _, n in members), max_memory, aligned):
        sums = [_Sums(code, n, weight) for code, n in members]
        for rows, values in parts:
            flat = values.reshape(len(values), -1).astype(np.float64)
            finite = np.isfinite(flat)
            valid = np.ones((len(flat), 1))  # one column stands for all where nothing is missing
            if not finite.all():
                flat, valid = np.where(finite, flat, 0), finite.astype(np.float64)
            for each in sums:
                each.add(rows, flat, valid)
        width = units.stop - units.start
        yield units, [(each.mean(recording._dtype).reshape(-1, width, *depth), each.most()) for each in sums]


class _Sums:
    """Sums and counts of averaged rows, to which parts of the presentations are added."""

    def __init__(self, code: np.ndarray, n: int, weight: np.ndarray | None):
        self.code, self.n, self.weight = code, n, weight
        self.total: np.ndarray | None = None
        self.count: np.ndarray = np.zeros((n, 1), dtype=np.int32)
        self.repeats: np.ndarray = np.zeros((n, 1))

    def add(self, rows: slice, flat: np.ndarray, valid: np.ndarray) -> None:
        code = self.code[rows]
        used = np.flatnonzero(code >= 0)
        touched, local = np.unique(code[used], return_inverse=True)
        members = csr_array((np.ones(len(used)), (local, used)), shape=(len(touched), len(code)))
        if self.total is None:
            self.total = np.zeros((self.n, flat.shape[1]))
        whole = len(touched) == self.n  # every averaged row is met: no copy of the sums is picked and put back
        place: Any = slice(None) if whole else touched
        self.total[place] += members @ flat
        self.count = _grown(self.count, valid.shape[1])
        self.count[place] += (members @ valid).astype(np.int32)
        if self.weight is not None:
            self.repeats = _grown(self.repeats, valid.shape[1])
            self.repeats[place] += members @ (valid * self.weight[rows][:, None])

    def mean(self, dtype: Any) -> np.ndarray:
        assert self.total is not None
        with np.errstate(invalid="ignore", divide="ignore"):
            self.total /= self.count
        return self.total.astype(dtype, copy=False)

    def most(self) -> np.ndarray:
        """Repeats behind a mean, of the unit that has most."""
        return (self.count if self.weight is None else self.repeats).max(axis=1).astype(np.float64)


def _grown(counts: np.ndarray, width: int) -> np.ndarray:
    """One column that stood for all becomes as many as are needed."""
    return counts if counts.shape[1] >= width else np.repeat(counts, width, axis=1)


def _passes(
    recording: Recording, n_means: int, max_memory: int, aligned: bool = False
) -> Iterator[tuple[slice, Iterator[tuple[slice, np.ndarray]]]]:
    """Ranges of units, each with the parts of its presentations: all at once, or session by session."""
    width, groups = _panel(recording, n_means, max_memory, aligned)
    for start in range(0, recording.n_units, width):
        units = slice(start, min(start + width, recording.n_units))
        yield units, ((rows, _values(recording, rows, units)) for rows in groups)


def _panel(recording: Recording, n_means: int, max_memory: int, aligned: bool = False) -> tuple[int, tuple[slice, ...]]:
    """Units that are averaged together, and the parts of the presentations that are read one after another."""
    from .unit_store import WIDTH

    responses = recording.responses
    if isinstance(responses, Lazy) and responses.chunks is None and len(responses.row_groups) > 1:
        groups = responses.row_groups
        largest = max(group.stop - group.start for group in groups)
        width = max(1, max_memory // (_BYTES_PER_MEAN * n_means + _BYTES_PER_VALUE * largest))
    else:
        groups = (slice(0, recording.n_presentations),)
        width = recording._block_size
    return (max(1, width // WIDTH) * WIDTH if aligned else width), groups


def _warn_of_passes(recording: Recording, n_means: int, max_memory: int) -> None:
    """Say once that a conversion would pay; called two frames below the method of the recording."""
    width, groups = _panel(recording, n_means, max_memory)
    n_passes = -(-recording.n_units // width)
    if len(groups) > 1 and n_passes > _PASSES and not recording.responses.cheap_units:
        warnings.warn(
            f"every session's file is read {n_passes} times, {width} units at once; convert the recording first "
            "(neuralign datasets convert), or give a larger max_memory=.",
            stacklevel=4,
        )


def _values(recording: Recording, rows: slice, units: slice) -> np.ndarray:
    return np.asarray(recording.responses[rows, units]).astype(recording._dtype, copy=False)


def _averaged(
    recording: Recording,
    mean: Any,
    n_repeats: np.ndarray,
    silent: np.ndarray,
    code: np.ndarray,
    order: list[str],
    level: int,
) -> Recording:
    """A recording of means, without those of silent stimuli.

    `code` is the averaged row of each presentation, -1 for none; `mean` holds all rows in memory, or is an array on
    disk that leaves the silent ones out; `level` is how many frames up the caller stands whom a warning names.
    """
    table = recording.presentations[code >= 0]
    if (n_repeats == np.rint(n_repeats)).all():
        n_repeats = n_repeats.astype(int)
    first = table.assign(code=code[code >= 0]).drop_duplicates("code").set_index("code").sort_index()
    # Cells that are lists cannot be counted as they are.
    comparable = recording.presentations.apply(lambda cells: cells.astype(str) if cells.dtype == object else cells)
    varying = comparable.groupby("stimulus").nunique(dropna=False).gt(1).any()
    kept = [column for column in table.columns if column != "repeat" and not varying.get(column, False)]
    merged = len(table) > len(first)
    if merged or "n_repeats" not in table.columns:
        first = first.assign(n_repeats=n_repeats)
    presentations = first[[*(one for one in kept if one != "n_repeats"), "n_repeats"]].reset_index(drop=True)
    if silent.any():
        warnings.warn(
            f"{int(silent.sum())} of {len(order)} stimuli have no finite response and are left out.", stacklevel=level
        )
        if silent.all():
            raise ValueError("responses hold no finite value: there is nothing to average.")
        presentations = presentations[~silent]
        mean = mean[~silent] if isinstance(mean, np.ndarray) else mean
    stimuli = recording._presented(presentations)
    return recording._with(responses=mean, presentations=presentations, stimuli=stimuli)


def _valid_presentations(recording: Recording, max_memory: int) -> np.ndarray:
    """Presentations with any finite response."""
    n = recording.n_presentations
    if np.dtype(recording.responses.dtype).kind != "f":
        return np.ones(n, dtype=bool)
    valid = np.zeros(n, dtype=bool)
    for _, parts in _passes(recording, n, max_memory):
        for rows, values in parts:
            valid[rows] |= np.isfinite(values.reshape(len(values), -1)).any(axis=1)
        if valid.all():  # other units cannot change it
            break
    return valid


def _split_by(code: np.ndarray) -> list[np.ndarray]:
    """Positions of each code, ascending."""
    return np.split(np.argsort(code, kind="stable"), np.cumsum(np.bincount(code))[:-1])
