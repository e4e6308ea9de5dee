"""What lies in the store, whether it is whole, and what of it may go."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd

from ...datasets.errors import unknown
from .shards import Entry

_TRASH = ".trash-"
_LEFTOVERS = (_TRASH, ".scratch-")  # what a run removes at its end, unless it was killed
_LEFT_FOR = 86400.0  # seconds without a change after which nobody can be using them
_DAY = 86400.0


@dataclass(frozen=True)
class _Found:
    """A folder of the store and what is known of it."""

    entry: Entry
    model: str
    layer: str
    rows: int
    shape: str
    dtype: str
    done: int
    blocks: int
    state: str

    @property
    def names(self) -> tuple[str, ...]:
        """What a pattern is compared with."""
        return self.entry.key, self.model, self.layer, f"{self.model}/{self.layer}"


def entries(root: Path) -> pd.DataFrame:
    """Everything that is stored.

    Parameters
    ----------
    root : Path
        Folder of the store.

    Returns
    -------
    DataFrame
        One row per layer, those used last at the end: ``key``, ``model``, ``layer``, ``rows``, ``shape`` of one row,
        ``dtype``, ``bytes`` on disk, ``blocks`` (done/all), ``state`` and ``days`` since it was written. States:
        complete; partial (blocks are missing: the next run computes them); left out (stimuli could not be read);
        damaged (its description cannot be read); format 1 (of an earlier version, which nothing reads any more).
    """
    columns = ["key", "model", "layer", "rows", "shape", "dtype", "bytes", "blocks", "state", "days"]
    rows = [
        (
            one.entry.key,
            one.model,
            one.layer,
            one.rows,
            one.shape,
            one.dtype,
            _size(one.entry.folder),
            f"{one.done}/{one.blocks}",
            one.state,
            _age(one.entry.folder) / _DAY,
        )
        for one in _walk(root)
    ]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values("days", ascending=False, kind="stable", ignore_index=True)


def verify(root: Path, patterns: Sequence[str] = ()) -> pd.DataFrame:
    """Read everything and compare it with its hashes; what differs is computed again by the next run that needs it.

    Parameters
    ----------
    root : Path
    patterns : sequence of str
        See `remove`; none means all.

    Returns
    -------
    DataFrame
        One row per layer: ``key``, ``model``, ``layer``, ``blocks`` that were compared, how many are ``damaged``, and
        the ``state`` after it: as from `entries`, or damaged.
    """
    rows = []
    for one in _chosen(root, patterns):
        compared = len(one.entry.done(holes=True))
        bad = len(one.entry.verify())
        rows.append((one.entry.key, one.model, one.layer, compared, bad, "damaged" if bad else one.state))
    return pd.DataFrame(rows, columns=["key", "model", "layer", "blocks", "damaged", "state"])


def remove(
    root: Path, patterns: Sequence[str] = (), older_than: float | None = None, dry: bool = False
) -> pd.DataFrame:
    """Remove layers from the store, and what killed runs left behind.

    Parameters
    ----------
    root : Path
    patterns : sequence of str
        Models, layers, ``model/layer`` or beginnings of keys of at least 6 characters; ``*`` stands for anything.
        None means everything.
    older_than : float, optional
        Only what was not written for so many days.
    dry : bool
        Remove nothing, but return what would go.

    Returns
    -------
    DataFrame
        What was removed, as from `entries`.

    Raises
    ------
    ValueError
        If a pattern is of nothing in the store, or somebody computes one of the layers at this moment.
    """
    chosen = [
        one for one in _chosen(root, patterns) if older_than is None or _age(one.entry.folder) >= older_than * _DAY
    ]
    busy = [one for one in chosen if one.entry.busy()]
    if busy:
        raise ValueError(
            f"{len(busy)} of {len(chosen)} layers (first: {busy[0].model} {busy[0].layer}) are being computed; wait "
            "until that has ended, or remove others"
        )
    table = entries(root)
    table = table[table["key"].isin([one.entry.key for one in chosen])].reset_index(drop=True)
    if dry:
        return table
    for one in chosen:
        trash = one.entry.folder.with_name(f"{_TRASH}{secrets.token_hex(8)}")
        one.entry.folder.rename(trash)  # at once for everybody, however long it takes to empty it
        shutil.rmtree(trash, ignore_errors=True)
    if not patterns and older_than is None:
        shutil.rmtree(root / "traces", ignore_errors=True)  # layers of models, which one pass finds again
    for path in _leftovers(root):
        shutil.rmtree(path, ignore_errors=True)
    return table


def _walk(root: Path) -> Iterator[_Found]:
    for folder in sorted((root / "features").glob("*/*")):
        if folder.is_dir() and not folder.name.startswith("."):
            yield _look(root, folder)


def _look(root: Path, folder: Path) -> _Found:
    entry = Entry(root, folder.name)
    form = entry.form
    if form is not None:
        about = entry.description() or {}
        done = len(entry.done(holes=True))
        state = "partial" if done < form.blocks else "left out" if entry.holes() else "complete"
        shape = " x ".join(map(str, form.shape)) or "1"
        model, layer = str(about.get("model", "")), str(about.get("layer", ""))
        return _Found(entry, model, layer, form.rows, shape, form.dtype, done, form.blocks, state)
    layer, state = "", "damaged"
    if (folder / "features.npy").exists():
        state = "format 1"
        with suppress(OSError, ValueError, KeyError, TypeError):
            layer = str(json.loads((folder / "entry.json").read_text())["made_from"]["layer"])
    return _Found(entry, "", layer, 0, "", "", 0, 0, state)


def _chosen(root: Path, patterns: Sequence[str]) -> list[_Found]:
    found = list(_walk(root))
    if not patterns:
        return found
    chosen = []
    for pattern in patterns:
        fitting = [one for one in found if _fits(one, pattern)]
        if not fitting:
            raise ValueError(unknown("pattern", pattern, {name for one in found for name in one.names[1:] if name}))
        chosen += [one for one in fitting if one not in chosen]
    return chosen


def _fits(one: _Found, pattern: str) -> bool:
    begins = len(pattern) >= 6 and one.entry.key.startswith(pattern)
    return begins or any(name and fnmatchcase(name, pattern) for name in one.names)


def _leftovers(root: Path) -> list[Path]:
    """Folders that a killed run would have removed."""
    inside = [*root.glob("*"), *(root / "features").glob("*/*")]
    named = [path for path in inside if path.name.startswith(_LEFTOVERS) and path.is_dir()]
    return [path for path in named if path.name.startswith(_TRASH) or _age(path) > _LEFT_FOR]


def _age(folder: Path) -> float:
    """Seconds since anything in a folder was written; `data` carry a time that was moved back."""
    times = [path.stat().st_ctime for path in (folder, *folder.rglob("*")) if path.exists()]
    return max(0.0, time.time() - max(times, default=0.0))


def _size(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
