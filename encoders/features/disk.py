"""The disk under the store: room that is taken before it is needed, whole writes, hashes of what lies there."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

_PIECE = 2**20  # bytes that are hashed or written at a time
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
sync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


def check_room(root: Path, size: int, mend: str = "") -> None:
    """Refuse what the disk cannot hold, before anything is computed.

    Parameters
    ----------
    root : Path
        Folder of the store; it need not exist.
    size : int
        Bytes that are to be written.
    mend : str
        What would need less, for the message.

    Raises
    ------
    ValueError
        If fewer bytes are free, beside 1 GB (5 % of a small disk) that is left to everybody else.
    """
    there = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.exists())
    usage = shutil.disk_usage(there)
    if size > 0 and size > usage.free - min(10**9, usage.total // 20):
        raise ValueError(no_room(there, size, usage.free, mend))


def readable(size: float) -> str:
    """Bytes in the unit that is easiest to read: 19 GB."""
    power = min(6, max(0, int(math.log10(max(size, 1)) // 3)))
    amount = size / 1000**power
    return f"{amount:.0f} {_UNITS[power]}" if amount >= 99.5 else f"{amount:.3g} {_UNITS[power]}"


def no_room(place: Path, size: int, free: int, mend: str = "") -> str:
    mend = mend or "store less with reduce= or fewer layers, or give a folder on a larger disk with cache="
    return f"features need {readable(size)}, and {place} has {readable(free)} free; {mend}"


def without_room(error: OSError, root: Path, size: int) -> Exception:
    """What to say of an error of the disk."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    return ValueError(no_room(root, size, shutil.disk_usage(root).free))


def state(path: Path) -> dict[str, int] | None:
    """What changes when anybody writes to a file or puts another in its place."""
    try:
        found = path.stat()
    except OSError:
        return None
    return {
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
        "ino": found.st_ino,
    }


def reserve(file: int, size: int) -> None:
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    os.ftruncate(file, size)


def bytes_of(values: np.ndarray) -> memoryview:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def write_at(file: int, raw: memoryview, place: int) -> None:
    while len(raw):
        n = os.pwrite(file, raw[: 64 * _PIECE], place)
        raw, place = raw[n:], place + n


def hash_of(file: int, place: int, size: int) -> str:
    digest = hashlib.sha256()
    while size > 0 and (piece := os.pread(file, min(size, _PIECE), place)):
        digest.update(piece)
        place, size = place + len(piece), size - len(piece)
    return digest.hexdigest()
