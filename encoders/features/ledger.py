"""What was found out before and need not be found out again: hashes of files, and layers of models."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from .disk import hash_of

log = logging.getLogger("neuralign")

_RACY_NS = 2 * 10**9  # a file as young as this may be written again without getting another time
_TABLE = "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, touched TEXT, sha256 TEXT) WITHOUT ROWID"


class Ledger:
    """SHA-256 of files, by path, size, times and inode: a file that nobody touched is read once.

    It is used as a context, ``with Ledger(root) as digest:``, and called with a path. New hashes are written when the
    context ends. Where its database cannot be used, every file is read.

    Parameters
    ----------
    root : Path
        Folder of the store; the hashes lie in ``ledger.db``.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / "ledger.db"
        self._base: sqlite3.Connection | None = None
        self._found: list[tuple[bytes, str, str]] = []

    def __enter__(self) -> Ledger:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(self._path, timeout=30)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=NORMAL")  # what a crash takes away is hashed again
            self._base.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._base is not None and self._found:
                with self._base:
                    self._base.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", self._found)
        except sqlite3.Error as failure:
            self._give_up(failure)
        self._found = []
        if self._base is not None:
            self._base.close()
            self._base = None

    def __call__(self, path: Path) -> str | None:
        """SHA-256 of the bytes of a file; None if it cannot be read."""
        # This runs once per stimulus, on the way to features that are all stored: few objects, no needless copies.
        name = os.fsencode(path if path.is_absolute() else path.absolute())
        try:
            before = _touched(path.stat())
            if (known := self._known(name, before)) is not None:
                return known
            with path.open("rb", buffering=0) as file:
                digest = hash_of(file.fileno(), 0, os.fstat(file.fileno()).st_size)
            after = path.stat()
        except OSError:
            return None
        if before == _touched(after) and after.st_mtime_ns < time.time_ns() - _RACY_NS:
            self._found.append((name, before, digest))
        return digest

    def _known(self, name: bytes, touched: str) -> str | None:
        if self._base is None:
            return None
        try:
            row = self._base.execute(
                "SELECT sha256 FROM files WHERE path = ? AND touched = ?", (name, touched)
            ).fetchone()
        except sqlite3.Error as error:
            self._give_up(error)
            return None
        return None if row is None else row[0]

    def _give_up(self, error: Exception) -> None:
        log.info("%s cannot be used (%s): every stimulus is read to see whether it changed", self._path, error)
        if self._base is not None:
            with suppress(sqlite3.Error):
                self._base.close()
            self._base = None


def _touched(found: os.stat_result) -> str:
    """What changes when anybody writes to a file or puts another in its place."""
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def recall_calls(root: Path, parts: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """What `remember_calls` was given for the same parts; None if that never happened, or the file is damaged.

    Parameters
    ----------
    root : Path
        Folder of the store.
    parts : mapping
        Everything on which the calls of a model's layers depend.
    """
    try:
        found = json.loads(_trace_file(root, parts).read_text())
        calls = found["calls"]
        return calls if found["sha256"] == _hash(calls) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember_calls(root: Path, parts: Mapping[str, Any], calls: Sequence[Mapping[str, Any]]) -> None:
    """Keep the layers of a model, so that a run that finds all of its features needs no forward pass to name them.

    Parameters
    ----------
    root, parts
        See `recall_calls`.
    calls : sequence of mapping
        Of what JSON can hold; tuples come back as lists.
    """
    path = _trace_file(root, parts)
    draft = path.with_name(f".{secrets.token_hex(8)}")
    plain = json.loads(json.dumps(list(calls)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps({"sha256": _hash(plain), "calls": plain}))
        draft.replace(path)
    except OSError as error:
        log.info("%s cannot be written (%s): the next run shows the model a stimulus again", path, error)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _trace_file(root: Path, parts: Mapping[str, Any]) -> Path:
    name = _hash(dict(parts))
    return root / "traces" / name[:2] / f"{name}.json"


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
