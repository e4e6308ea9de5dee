"""One layer on disk: a flat file of rows that is filled block by block, and survives whatever kills its writers.

The folder of a layer holds ::

    entry.json       what it is: rows, shape, dtype, rows per block, what it was made from
    data             (row, ...) in C order, without a header; allocated in full before anything is computed
    manifest.jsonl   one line per block that is safely in `data`, with its SHA-256
    stamp.json       size, time and inode of `data` when all of it was known to be whole
    locks/           one file per block that somebody computes

A block is written, brought to the disk, and only then named in the manifest, by one append: that line is the commit.
Whoever dies before it leaves a block that is not done; the kernel drops the lock with the process.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import secrets
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .disk import bytes_of, check_room, hash_of, readable, reserve, state, sync, without_room, write_at
from .manifest import Manifest

__all__ = ["Entry", "Form", "check_room", "readable"]

log = logging.getLogger("neuralign")

FORMAT = 2
_WHOLE_WRITE = 2**26  # bytes of a block when a whole array is at hand
_SETTLED_NS = 10 * 10**9  # a file older than this gets another time when it is written again, on any disk
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


@dataclass(frozen=True)
class Form:
    """Rows of an entry, the shape of one row, dtype, and how many rows are one block."""

    rows: int
    shape: tuple[int, ...]
    dtype: str
    block: int

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def bytes(self) -> int:
        return self.rows * self.row_bytes

    @property
    def blocks(self) -> int:
        """Number of blocks; the last may be short."""
        return -(-self.rows // self.block)

    def span(self, block: int) -> tuple[int, int]:
        """First row of a block, and the row after its last."""
        return block * self.block, min(self.rows, (block + 1) * self.block)


class Entry:
    """One stored layer, in a folder named by its key.

    A writer says what is to come with `create`, asks for blocks that nobody else computes with `claim`, and hands
    them over with `commit`. A reader gets the layer from `read` once every block is there. Any number of processes
    and threads may do so at the same time.

    Parameters
    ----------
    root : Path
        Folder of the store.
    key : str
        Content hash of everything that the features depend on.
    """

    def __init__(self, root: Path, key: str) -> None:
        self.key = key
        self.folder = root / "features" / key[:2] / key
        self._root = root
        self._described: tuple[object, dict[str, Any] | None] = (None, None)
        self._manifest = Manifest(self.folder / "manifest.jsonl")

    def __reduce__(self) -> tuple[type[Entry], tuple[Path, str]]:  # a process that is handed one reads for itself
        return Entry, (self._root, self.key)

    @property
    def form(self) -> Form | None:
        """What the entry holds; None if it was not created yet, or its description is damaged."""
        entry = self.description()
        return None if entry is None else Form(entry["rows"], tuple(entry["shape"]), entry["dtype"], entry["block"])

    @property
    def about(self) -> dict[str, Any]:
        """What its writer noted about the layer, such as the times of its tokens."""
        return (self.description() or {}).get("about", {})

    def description(self) -> dict[str, Any] | None:
        """Content of ``entry.json``; None if it is absent or damaged."""
        path = self.folder / "entry.json"
        now = state(path)
        if now is None or now != self._described[0]:
            try:
                entry = json.loads(path.read_text())
                whole = entry["format"] == FORMAT and entry["rows"] >= 0 and entry["block"] >= 1
                whole = whole and all(n >= 0 for n in entry["shape"]) and np.dtype(entry["dtype"]).itemsize > 0
                self._described = now, entry if whole else None
            except (OSError, ValueError, KeyError, TypeError):
                self._described = now, None
        return self._described[1]

    def create(
        self,
        rows: int,
        shape: Sequence[int],
        dtype: str,
        block: int,
        made_from: Mapping[str, Any],
        about: Mapping[str, Any] | None = None,
    ) -> Form:
        """Room for a layer on the disk, or what is there already.

        Of what an interrupted run left behind, every block is read once and compared with its hash.

        Parameters
        ----------
        rows : int
            Number of rows.
        shape : sequence of int
            Of one row.
        dtype : str
        block : int
            Rows that are written together. Where the entry exists, its own number stays.
        made_from : mapping
            What the key is the hash of, for the reader of ``entry.json``.
        about : mapping, optional
            Anything that has to come back with the layer.

        Returns
        -------
        Form
            Of the entry on disk.

        Raises
        ------
        ValueError
            If the disk has no room for it.
        """
        wanted = Form(rows, tuple(int(length) for length in shape), np.dtype(dtype).name, block)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock("entry", wait=True):
            found = self.form
            if found is not None and (found.rows, found.shape, found.dtype) == (rows, wanted.shape, wanted.dtype):
                wanted = found
            else:
                try:
                    self._allocate(wanted)
                    self._describe(wanted, made_from, about or {})
                except BaseException:
                    if self.description() is None:  # what nobody describes must not fill the disk
                        (self.folder / "data").unlink(missing_ok=True)
                    raise
                if found is None and not self._manifest.path.exists():
                    return wanted
            if not self._settled():
                self._allocate(wanted)
                self.verify()
        return wanted

    def done(self, holes: bool = False) -> set[int]:
        """Blocks that are committed.

        Parameters
        ----------
        holes : bool
            Count blocks with rows that were left out, too.
        """
        return {block for block, line in self._committed().items() if holes or not line.get("skipped")}

    def holes(self) -> list[int]:
        """Rows that were left out when their block was committed, in order."""
        return sorted(row for line in self._committed().values() for row in line.get("skipped", ()))

    @contextmanager
    def claim(self, block: int) -> Iterator[bool]:
        """The right to compute a block, as long as the context lasts.

        Yields
        ------
        bool
            False if another process or thread is at it, or it is done.
        """
        with self._lock(str(block)) as mine:
            yield mine and block not in self.done()

    def commit(self, block: int, values: np.ndarray, skipped: Collection[int] = ()) -> None:
        """Write the rows of a block; once it returns they outlast the process.

        Parameters
        ----------
        block : int
        values : ndarray, shape (row of the block, ...)
            Of the dtype and shape of the entry.
        skipped : collection of int
            Rows of the entry that stand for stimuli that were left out. Such a block is not `done`: the next run
            tries them again.

        Raises
        ------
        ValueError
            If the values are of another shape or dtype than the entry, or the disk is full.
        """
        form = self._existing()
        start, stop = form.span(block)
        if values.shape != (stop - start, *form.shape) or values.dtype != form.dtype:
            raise ValueError(
                f"values of block {block} are {values.dtype} {values.shape}; expected {form.dtype} "
                f"{(stop - start, *form.shape)}, as the entry was created"
            )
        raw = bytes_of(values)
        try:
            file = os.open(self.folder / "data", os.O_RDWR)
            try:
                write_at(file, raw, start * form.row_bytes)
                sync(file)
            finally:
                os.close(file)
            self._manifest.append(
                {"block": block, "start": start, "stop": stop, "sha256": hashlib.sha256(raw).hexdigest()}
                | ({"skipped": sorted(int(row) for row in skipped)} if skipped else {})
            )
        except OSError as error:
            raise without_room(error, self._root, form.bytes) from error
        if len(self._committed()) == form.blocks:
            self._stamp()

    def busy(self) -> bool:
        """Whether somebody computes a block at this moment."""
        for path in (self.folder / "locks").glob("*"):
            with suppress(FileNotFoundError), path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return True
                except OSError:  # a disk that knows no locks
                    continue
        return False

    def read(self, holes: bool = False) -> np.ndarray | None:
        """The layer, memory-mapped; None if it is not there, not finished or damaged.

        The data are not read: that they are as they were written is told by the size, time and inode of their file.
        Where these differ, every block is compared with its hash, and one warning counts those that are damaged.

        Parameters
        ----------
        holes : bool
            Return a layer with rows that were left out, too; `holes` names them.

        Returns
        -------
        ndarray, shape (row, ...), or None
        """
        form = self.form
        if form is None or len(self.done(holes)) < form.blocks:
            return None
        if not self._settled() and self.verify():
            return None
        if form.bytes == 0:
            return np.empty((form.rows, *form.shape), form.dtype)
        try:
            return np.memmap(self.folder / "data", form.dtype, "r", shape=(form.rows, *form.shape))
        except (OSError, ValueError):  # removed or cut off this moment
            return None

    def verify(self) -> list[int]:
        """Compare every committed block with its hash; those that differ are not done any more.

        Returns
        -------
        list of int
            The damaged blocks, which one warning counts.
        """
        form = self.form
        if form is None:
            return []
        before = state(self.folder / "data")
        suspects = self._differing(self._committed())
        bad = []
        for block in suspects:
            with self._lock(str(block)) as mine:  # somebody who writes it now will commit it
                if mine and self._differing({b: line for b, line in self._committed().items() if b == block}):
                    self._manifest.append({"block": block, "bad": True})
                    bad.append(block)
        if bad:
            named = f"block {bad[0]}" if len(bad) == 1 else f"{len(bad)} blocks (first: {bad[0]})"
            warnings.warn(
                f"stored features of {self.name}: {named} of {form.blocks} damaged on disk, to be computed again",
                UserWarning,
                stacklevel=2,
            )
        elif not suspects and before == state(self.folder / "data") and len(self._committed()) == form.blocks:
            self._stamp()
        return bad

    def write(self, array: np.ndarray, parts: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> None:
        """Store a whole layer that is at hand; nothing happens where it is stored already.

        Parameters
        ----------
        array : ndarray, shape (row, ...)
        parts, about : mapping
            See `create`.
        """
        rows, shape = len(array), array.shape[1:]
        size = max(1, math.prod(shape) * array.itemsize)
        form = self.create(rows, shape, array.dtype.name, max(1, _WHOLE_WRITE // size), parts, about)
        for block in range(form.blocks):
            with self.claim(block) as mine:
                if mine:
                    self.commit(block, array[slice(*form.span(block))])

    @cached_property
    def name(self) -> str:
        """Model and layer, as far as they are known."""
        entry = self.description() or {}
        words = [str(entry[word]) for word in ("model", "layer") if entry.get(word)]
        return " ".join(words) or self.key[:12]

    # ------------------------------------------------------------------------------------------ on the disk

    def _existing(self) -> Form:
        form = self.form
        if form is None:
            raise ValueError(f"{self.folder} holds no entry; create it before its blocks are committed")
        return form

    def _allocate(self, form: Form) -> None:
        """Take the room for all rows now: a full disk shows before a model runs and not days later."""
        path = self.folder / "data"
        missing = form.bytes - (path.stat().st_blocks * 512 if path.exists() else 0)
        check_room(self._root, missing)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if os.fstat(file).st_size > form.bytes:
                    os.ftruncate(file, form.bytes)
                reserve(file, form.bytes)
            finally:
                os.close(file)
        except OSError as error:
            raise without_room(error, self._root, form.bytes) from error

    def _describe(self, form: Form, made_from: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        names = {word: about.get(word, made_from.get(word, "")) for word in ("model", "layer")}
        entry = {"format": FORMAT, **asdict(form), **names, "made_from": made_from, "about": about}
        path = self.folder / "entry.json"
        draft = self.folder / f".entry-{secrets.token_hex(8)}"
        try:
            with draft.open("w") as file:
                json.dump(entry, file, default=str)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError as error:
            raise without_room(error, self._root, form.bytes) from error
        finally:
            draft.unlink(missing_ok=True)

    @contextmanager
    def _lock(self, name: str, wait: bool = False) -> Iterator[bool]:
        """Hold the lock of a block; where the disk knows no locks, everybody does."""
        path = self.folder / "locks" / name
        how = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
        while True:
            with suppress(FileExistsError):  # another holder removed the folder while it was looked at
                path.parent.mkdir(exist_ok=True)
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # the folder of locks went away in between
                continue
            try:
                fcntl.flock(file, how)
            except BlockingIOError:
                os.close(file)
                yield False
                return
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    os.close(file)
                    raise
                log.info("%s has no file locks: several writers will compute the same blocks", path.parent)
                break
            with suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(file).st_ino:
                    break
            os.close(file)  # its last holder removed it: what was locked is not the file of this name
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)  # while it is locked: nobody can hold it and believe it is this one
            os.close(file)
            with suppress(OSError):
                path.parent.rmdir()

    def _committed(self) -> dict[int, dict[str, Any]]:
        """The last word of the manifest on every block that is committed."""
        form = self.form
        if form is None:
            return {}
        # Blocks of another size, from an entry that was described anew, are not blocks of this one.
        return {
            block: line
            for block, line in self._manifest.read().items()
            if block < form.blocks and (line["start"], line["stop"]) == form.span(block)
        }

    def _differing(self, lines: Mapping[int, Mapping[str, Any]]) -> list[int]:
        """Blocks whose bytes are not those that were committed."""
        form = self._existing()

        def differs(block: int) -> bool:
            start, stop = form.span(block)
            with (self.folder / "data").open("rb", buffering=0) as file:
                found = hash_of(file.fileno(), start * form.row_bytes, (stop - start) * form.row_bytes)
            return found != lines[block]["sha256"]

        if not (self.folder / "data").is_file():
            return sorted(lines)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib lets other threads run
            return sorted(block for block, bad in zip(lines, pool.map(differs, lines), strict=True) if bad)

    def _settled(self) -> bool:
        """Whether nothing has touched the data since all of them were known to be whole."""
        now = state(self.folder / "data")
        try:
            return now is not None and json.loads((self.folder / "stamp.json").read_text()) == now
        except (OSError, ValueError):
            return False

    def _stamp(self) -> None:
        """Note that the data are whole.

        Their time is moved back: a clock that ticks every few milliseconds would give a write that follows at once
        the same time, and nobody would notice it.
        """
        draft = self.folder / f".stamp-{secrets.token_hex(8)}"
        with suppress(OSError):  # a store that may only be read; the blocks are compared again next time
            data = self.folder / "data"
            latest = time.time_ns() - _SETTLED_NS
            if data.stat().st_mtime_ns > latest:
                os.utime(data, ns=(latest, latest))
            try:
                draft.write_text(json.dumps(state(self.folder / "data")))
                draft.replace(self.folder / "stamp.json")
            finally:
                draft.unlink(missing_ok=True)
