"""Where the items of a StimulusSet are read from.

An item is what is stored: encoded bytes (an image or wav file), a uint8 array (an image), a string, or a pair
of samples and sampling rate. Decoding is the StimulusSet's business. Files are opened when they are read and
closed again, so sources pickle and may be read from several processes.
"""

from __future__ import annotations

import hashlib
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

Item = bytes | str | np.ndarray | tuple[np.ndarray, int]

# Rows of an HDF5 file that are read together when they follow each other.
_ROWS_PER_READ = 64
# A member of a zip archive that says it is larger than this is no image.
_LARGEST_MEMBER = 512 * 2**20


class Source(Protocol):
    """Ordered items that are read one by one or many in one opening of their file."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Item:
        """The item at a position."""

    def read_many(self, indices: Sequence[int] | np.ndarray) -> Iterator[Item]:
        """Items at positions, in that order; a file is opened once."""

    def digest(self, index: int) -> str:
        """SHA-256 of the item's content."""

    def where(self, index: int) -> str:
        """Where the item lies, for messages."""

    def subset(self, indices: Sequence[int] | np.ndarray) -> Source:
        """The items at positions, in that order, without reading them."""


def digest_item(item: Item) -> str:
    """SHA-256 of an item: encoded bytes as they are, text as UTF-8, arrays with dtype and shape.

    Byte order and memory layout of an array do not matter.
    """
    digest = hashlib.sha256()
    if isinstance(item, bytes):
        digest.update(item)
    elif isinstance(item, str):
        digest.update(item.encode())
    elif isinstance(item, tuple):
        samples, rate = item
        digest.update(f"sound {rate} {digest_item(samples)}".encode())
    else:
        array = np.ascontiguousarray(item, dtype=item.dtype.newbyteorder("<"))
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


class _Base(ABC):
    """What all sources share: reading one is reading many of one."""

    @abstractmethod
    def read_many(self, indices: Sequence[int] | np.ndarray) -> Iterator[Item]: ...

    def read(self, index: int) -> Item:
        return next(iter(self.read_many([index])))

    def digest(self, index: int) -> str:
        return digest_item(self.read(index))


class Items(_Base):
    """Items held in memory: texts, sounds, encoded bytes, images of different sizes."""

    def __init__(self, items: Sequence[Item]):
        self._items = list(items)

    def __len__(self) -> int:
        return len(self._items)

    def read_many(self, indices: Sequence[int] | np.ndarray) -> Iterator[Item]:
        return (self._items[index] for index in indices)

    def where(self, index: int) -> str:
        return "memory"

    def subset(self, indices: Sequence[int] | np.ndarray) -> Items:
        return Items([self._items[index] for index in indices])


class Rows(_Base):
    """Rows of one array, in memory or memory-mapped; a subset shares the array."""

    def __init__(self, array: np.ndarray, rows: np.ndarray | None = None):
        self._array = array
        self._rows = np.arange(len(array)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict:
        # Only the rows that are meant travel to another process.
        array = self._array if len(self._rows) == len(self._array) else np.asarray(self._array[self._rows])
        rows = self._rows if array is self._array else np.arange(len(array))
        return {"_array": array, "_rows": rows}

    def read_many(self, indices: Sequence[int] | np.ndarray) -> Iterator[Item]:
        return (np.asarray(self._array[self._rows[index]]) for index in indices)

    def where(self, index: int) -> str:
        return f"row {self._rows[index]} of an array"

    def subset(self, indices: Sequence[int] | np.ndarray) -> Rows:
        return Rows(self._array, self._rows[np.asarray(indices, dtype=np.intp)])


class Files(_Base):
    """One file per item, read as bytes."""

    def __init__(self, paths: Sequence[str | Path]):
        self._paths = [Path(path).absolute() for path in paths]  # still right after a change of folder

    def __len__(self) -> int:
        return len(self._paths)

    def read_many(self, indices: Sequence[int] | np.ndarray) -> Iterator[Item]:
        return (self._paths[index].read_bytes() for index in indices)

    def where(self, index: int) -> str:
        return str(self._paths[index])

    def subset(self, indices: Sequence[int] | np.ndarray) -> Files:
        return Files([self._paths[index] for index in indices])


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip archive; say what to do about one that is missing, cut off or no archive."""
    if not path.is_file():
        raise FileNotFoundError(f"no zip file at {path}.")
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is not a whole zip archive ({error}); "
            "the download may have been cut off: fetch it again."
        ) from error


def _inflated(archive: zipfile.ZipFile, member: str) -> bytes:
    """Content of a member, at most as long as the archive says; what says or holds more is refused."""
    about = archive.getinfo(member)
    if about.file_size > _LARGEST_MEMBER:
        raise zipfile.BadZipFile(f"{member} says it holds {about.file_size} bytes; at most {_LARGEST_MEMBER} are read")
    if about.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Other decoders cannot be told where to stop.
        raise zipfile.BadZipFile(f"{member} is packed by method {about.compress_type}; pack it as stored or deflated")
    with archive.open(about) as file:
        # Never read() without a length: that inflates all there is. A wrong length fails the checksum.
        return file.read(about.file_size)


class ZipMembers(_Base):
    """Members of a zip archive, read as bytes."""

    def __init__(self, path: str | Path, members: Sequence[str]):
        self._path = Path(path).absolute()
        self._members = list(members)

    def __len__(self) -> int:
        return len(self._members)

    def read_many(self, indices: Sequence[int] | np.ndarray) -> Iterator[Item]:
        with open_zip(self._path) as archive:
            for index in indices:
                yield _inflated(archive, self._members[index])

    def where(self, index: int) -> str:
        return f"{self._path}:{self._members[index]}"

    def subset(self, indices: Sequence[int] | np.ndarray) -> ZipMembers:
        return ZipMembers(self._path, [self._members[index] for index in indices])


class Hdf5Rows(_Base):
    """Rows of a dataset in an HDF5 file."""

    def __init__(self, path: str | Path, dataset: str, rows: np.ndarray):
        self._path = Path(path).absolute()
        self._dataset = dataset
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def read_many(self, indices: Sequence[int] | np.ndarray) -> Iterator[Item]:
        from .storage import open_hdf5

        rows = self._rows[np.asarray(indices, dtype=np.intp)]
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        with open_hdf5(self._path) as file:
            dataset = file[self._dataset]
            for run in np.split(rows, breaks):
                for start in range(0, len(run), _ROWS_PER_READ):
                    part = run[start : start + _ROWS_PER_READ]
                    yield from dataset[part[0] : part[-1] + 1]

    def where(self, index: int) -> str:
        return f"{self._path}:{self._dataset}[{self._rows[index]}]"

    def subset(self, indices: Sequence[int] | np.ndarray) -> Hdf5Rows:
        return Hdf5Rows(self._path, self._dataset, self._rows[np.asarray(indices, dtype=np.intp)])
