"""Files that could hold code or lead elsewhere, read so that they cannot: npy, npz, pickles, zip archives, HDF5.

No size that a file tells is believed before it is compared with the bytes that are there, and no name in it leads
out of it. Pickles are left to the unpickler in ``unpickling.py``.
"""

from __future__ import annotations

import ast
import io
import math
import os
import pickle
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from .errors import unknown
from .sources import open_zip
from .unpickling import DEEPEST, RestrictedUnpickler, UnsafeFile, made

if TYPE_CHECKING:
    import h5py

__all__ = [
    "RestrictedUnpickler",
    "UnsafeFile",
    "hdf5_array",
    "load_npy",
    "load_npz",
    "load_pickle",
    "unpack",
    "zip_members",
]

# No header of an array of plain numbers is longer.
_LONGEST_HEADER = 10_000
# A member of a zip archive that says it is larger than this is refused unless a reader asks for more.
_LARGEST_MEMBER = 512 * 2**20
_LARGEST_NPZ_MEMBER = 8 * 2**30
_PIECE = 2**24
_NPY = b"\x93NUMPY"
_DAMAGE = (
    EOFError,
    pickle.UnpicklingError,
    TypeError,
    AttributeError,
    ValueError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    SyntaxError,
)


# ------------------------------------------------------------------------------------------------- npy


def load_npy(path_or_file: str | Path | BinaryIO, *, pickled: bool = False, mmap: bool = False) -> Any:
    """The array in an ``.npy`` file.

    Parameters
    ----------
    path_or_file : path, or a binary file that can seek
    pickled : bool
        The format demands a pickle: an object array, or a bare pickle under the name ``.npy``. It is read by
        :class:`RestrictedUnpickler`; an object array without axes comes back as the object in it.
    mmap : bool
        A read-only memory map in place of an array in memory; needs a path.

    Returns
    -------
    ndarray, or what was pickled

    Raises
    ------
    UnsafeFile
        The file holds a pickle and `pickled` is False, or the pickle asks for anything but data.
    ValueError
        The file is no npy file, or damaged, or shorter than its header says.
    """
    if isinstance(path_or_file, str | Path):
        path = Path(path_or_file)
        if not path.is_file():
            raise FileNotFoundError(f"no file at {path}.")
        with _Bounded(io.FileIO(path)) as file:
            return _read_npy(file, str(path), pickled, path if mmap else None)
    if mmap:
        raise ValueError("mmap=True needs the path of a file; found an open one.")
    name = str(getattr(path_or_file, "name", "the file"))
    return _read_npy(path_or_file, name, pickled, None)


def _read_npy(file: BinaryIO, name: str, pickled: bool, mapped: Path | None) -> Any:
    start = file.tell()
    magic = file.read(len(_NPY))
    if magic != _NPY:
        if not pickled:
            raise ValueError(
                f"{name} is no npy file: it starts with {magic!r}, not {_NPY!r}. Get it again from its source."
            )
        file.seek(start)
        return _unpickled(file, name)
    with _damage(name):
        shape, fortran, dtype = _npy_header(file, name)
    if dtype.hasobject:
        if not pickled:
            raise UnsafeFile(
                f"{name} holds pickled Python objects, which can run code; an array of numbers was expected. Get it "
                "again from its source, or save the numbers as an array of their own."
            )
        found = _unpickled(file, name)
        if not isinstance(found, np.ndarray) or found.size != math.prod(shape):
            raise ValueError(f"{name} is damaged: its header says shape {shape}, its pickle holds another one.")
        found = found.reshape(shape, order="F" if fortran else "C") if found.shape != shape else found
        return found.item() if shape == () else found
    offset = file.tell()
    there = file.seek(0, os.SEEK_END) - offset
    needed = math.prod(shape) * dtype.itemsize
    if there < needed:
        raise ValueError(
            f"{name} is cut off: its header says {shape} {dtype}, {needed} bytes, and {there} are there. Get it again "
            "from its source."
        )
    if needed == 0:
        return np.empty(shape, dtype)
    order = "F" if fortran else "C"
    if mapped is not None:
        return np.memmap(mapped, dtype=dtype, mode="r", offset=offset, shape=shape, order=cast(Any, order))
    file.seek(offset)
    array = np.empty(shape, dtype, order=cast(Any, order))
    _fill(file, array.reshape(-1, order="A").view(np.uint8).data, name)
    return array


def _npy_header(file: BinaryIO, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the first axis runs fastest, and dtype; the file then stands at the values."""
    version = tuple(file.read(2))
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"npy version {version}; known are 1.0, 2.0 and 3.0")
    n_length = 2 if version == (1, 0) else 4
    length = int.from_bytes(file.read(n_length), "little")
    if length > _LONGEST_HEADER:
        raise UnsafeFile(f"{name} says its header takes {length} bytes; at most {_LONGEST_HEADER} are read.")
    text = file.read(length)
    if len(text) < length:
        raise ValueError("cut off within its header")
    plain = text.decode("utf-8" if version == (3, 0) else "latin1")
    # Files of Python 2 write their sizes as 10L.
    header = ast.literal_eval(re.sub(r"(\d+)L\b", r"\1", plain).strip())
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise ValueError("its header is not that of an array")
    shape = header["shape"]
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 2**62 for n in shape) or len(shape) > 32:
        raise ValueError(f"its header says shape {str(shape)[:80]}")
    dtype = np.lib.format.descr_to_dtype(header["descr"])
    if dtype.itemsize == 0 and not dtype.hasobject and math.prod(shape) > _PIECE:
        raise UnsafeFile(f"{name} says it holds {math.prod(shape)} values of no bytes each.")
    return shape, bool(header["fortran_order"]), dtype


def _fill(file: Any, view: memoryview, name: str) -> None:
    """Read until the view is full; a file may give less than asked for at once."""
    place = 0
    while place < len(view):
        piece = file.read(min(_PIECE, len(view) - place))
        if not piece:
            raise ValueError(f"{name} is cut off: {place} of {len(view)} bytes are there; get it from its source.")
        view[place : place + len(piece)] = piece
        place += len(piece)


class _Bounded(io.BufferedReader):
    """A file that never allocates more than it holds, whatever a length within it says."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _PIECE:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def load_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays in an ``.npz`` file by name; a member with pickled objects is refused.

    Raises
    ------
    UnsafeFile
        Pickled objects, names that lead out of a folder, or members of more than 8 GiB.
    ValueError
        The file is damaged or cut off.
    """
    path = Path(path)
    arrays = {}
    with open_zip(path) as archive:
        for member in zip_members(archive, limit=_LARGEST_NPZ_MEMBER):
            where = f"{path}:{member.filename}"
            with _damage(where), archive.open(member) as file:
                arrays[member.filename.removesuffix(".npy")] = _member_array(file, member.file_size, where)
    return arrays


def _member_array(file: Any, size: int, where: str) -> np.ndarray:
    """An array from a member that can only be read forwards."""
    if file.read(len(_NPY)) != _NPY:
        raise ValueError(f"{where} is no npy file; get it again from its source.")
    shape, fortran, dtype = _npy_header(file, where)
    if dtype.hasobject:
        raise UnsafeFile(f"{where} holds pickled Python objects, which can run code; expected numbers or texts.")
    needed = math.prod(shape) * dtype.itemsize
    if needed > size:
        raise ValueError(f"{where} is cut off: its header says {shape} {dtype}, {needed} bytes, and {size} are there.")
    array = np.empty(shape, dtype, order="F" if fortran else "C")
    if needed:
        _fill(file, array.reshape(-1, order="A").view(np.uint8).data, where)
    return array


@contextmanager
def _damage(name: str) -> Iterator[None]:
    """Whatever goes wrong while a file is read is said of the file."""
    try:
        yield
    except UnsafeFile:
        raise
    except (*_DAMAGE, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError) as error:
        raise ValueError(f"{name} is damaged ({error}); get it again from its source.") from error


# --------------------------------------------------------------------------------------------- pickles


def load_pickle(path: str | Path) -> Any:
    """What a pickle of arrays, dicts, lists, texts and numbers holds; see :class:`RestrictedUnpickler`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}.")
    with _Bounded(io.FileIO(path)) as file:
        return _unpickled(file, str(path))


def _unpickled(file: BinaryIO, name: str) -> Any:
    """Run the pickle with stand-ins, then make the arrays."""
    with _damage(name):
        try:
            return made(RestrictedUnpickler(file).load())
        except UnsafeFile as error:
            raise UnsafeFile(f"{name} {error}") from error


# ----------------------------------------------------------------------------------------- zip archives


def zip_members(archive: zipfile.ZipFile, limit: int | None = _LARGEST_MEMBER) -> list[zipfile.ZipInfo]:
    """The files in an archive, all with names that stay within a folder.

    Parameters
    ----------
    archive : ZipFile
    limit : int or None
        Largest size in bytes that a member may say it has; None takes any.

    Raises
    ------
    UnsafeFile
        A name that is absolute, leads upwards, holds a backslash or a drive, occurs twice, or is a link; a member
        that is too large.
    """
    members = []
    seen: set[str] = set()
    for member in archive.infolist():
        name = member.filename
        parts = name.rstrip("/").split("/")
        kind = stat.S_IFMT(member.external_attr >> 16)
        wrong = None
        if name.startswith("/") or PureWindowsPath(name).drive or "\\" in member.orig_filename or "\0" in name:
            wrong = "has an absolute name"
        elif any(part in ("", ".", "..") for part in parts):
            wrong = "leads out of its folder"
        elif kind == stat.S_IFLNK or (kind and kind not in (stat.S_IFREG, stat.S_IFDIR)):
            wrong = "is a link or a device"
        elif name in seen:
            wrong = "is there twice"
        elif limit is not None and member.file_size > limit:
            wrong = f"says it holds {member.file_size} bytes; at most {limit} are read"
        elif member.flag_bits & 0x1:
            wrong = "is encrypted"
        if wrong:
            raise UnsafeFile(
                f"{archive.filename}: member {name[:80]!r} {wrong}; nothing was taken from it. Get it from its source."
            )
        seen.add(name)
        if not member.is_dir():
            members.append(member)
    return members


def unpack(zip_path: str | Path, folder: str | Path) -> list[Path]:
    """Unpack an archive into a folder, which no member can leave.

    Returns
    -------
    list of paths, in the order of the archive

    Raises
    ------
    UnsafeFile
        As :func:`zip_members` says, and a member that would be written through a link out of the folder.
    ValueError
        The archive is damaged or cut off.
    """
    zip_path, folder = Path(zip_path), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    inside = folder.resolve()
    written = []
    with open_zip(zip_path) as archive:
        for member in zip_members(archive, limit=None):
            target = folder / member.filename
            if not target.resolve().is_relative_to(inside):
                raise UnsafeFile(f"{zip_path}: {member.filename!r} would be written to {target.resolve()}.")
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.part")
            with _damage(f"{zip_path}:{member.filename}"):
                try:
                    with archive.open(member) as source, partial.open("wb") as out:
                        left = member.file_size
                        while piece := source.read(min(_PIECE, left)):
                            out.write(piece)
                            left -= len(piece)
                        # A checksum is compared at the end of a member; what is longer than it says fails here.
                        if left or source.read(1):
                            raise ValueError("a member of another length than the archive says")
                    partial.replace(target)
                finally:
                    partial.unlink(missing_ok=True)
            written.append(target)
    return written


# ------------------------------------------------------------------------------------------------ HDF5


def hdf5_array(file: h5py.File, name: str, ndim: int | None = None) -> h5py.Dataset:
    """A dataset that lies wholly within a file.

    Parameters
    ----------
    file : h5py.File or Group
    name : str
        Path of the dataset, ``group/dataset``.
    ndim : int, optional
        Number of axes it must have.

    Raises
    ------
    UnsafeFile
        The path crosses a link to another file, or the values lie in other files, or are Python objects.
    ValueError
        No such dataset (with the nearest names), or another number of axes.
    """
    import h5py

    from .storage import require_inside

    node = _walk(file, name, 0)
    where = f"{file.file.filename}:{name}"
    if not isinstance(node, h5py.Dataset):
        raise ValueError(f"{where} is a group with {sorted(node)[:20]}; expected a dataset.")
    try:
        require_inside(node)
    except ValueError as error:
        raise UnsafeFile(str(error)) from None
    plain = h5py.check_string_dtype(node.dtype) or h5py.check_ref_dtype(node.dtype)
    if node.dtype.hasobject and not plain:
        raise UnsafeFile(f"{where} holds {node.dtype} objects; expected numbers or texts.")
    if ndim is not None and node.ndim != ndim:
        raise ValueError(f"{where} has shape {node.shape}; expected {ndim} axes.")
    return node


def _walk(group: Any, name: str, depth: int) -> Any:
    """The node at a path, link by link, none of which may leave the file."""
    import h5py

    if depth > DEEPEST:
        raise UnsafeFile(f"{group.file.filename}:{name} leads in a circle of links.")
    node: Any = group.file if name.startswith("/") else group
    for part in name.strip("/").split("/"):
        if not isinstance(node, h5py.Group) or part not in node.keys():  # noqa: SIM118  `in node` follows links
            raise ValueError(f"{group.file.filename}: " + unknown("dataset", name, _names(group)))
        link = node.get(part, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise UnsafeFile(
                f"{group.file.filename}: {name} is a link to another file, {link.filename}; it is not followed."
            )
        node = _walk(node, link.path, depth + 1) if isinstance(link, h5py.SoftLink) else node[part]
    return node


def _names(group: Any) -> list[str]:
    """Names of the datasets in a group, for messages."""
    import h5py

    names: list[str] = []
    group.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
    return names
