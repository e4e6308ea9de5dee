"""MATLAB files of every age: v4 to v7 through scipy, v7.3 (which is HDF5) through h5py, alike in what comes back."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import unknown
from .safe import UnsafeFile, hdf5_array

if TYPE_CHECKING:
    from collections.abc import Iterator

    import h5py

_DEEPEST = 50
_HDF5 = b"\x89HDF\r\n\x1a\n"


def read_mat(path: str | Path, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The variables of a MATLAB file, whatever its version.

    Parameters
    ----------
    path : path
    names : sequence of str, optional
        Default all variables.

    Returns
    -------
    dict of str to
        - arrays in MATLAB's order of axes and of MATLAB's class (a double is float64 however it is packed, unless there
          are complex numbers in the same variable of an older file), without axes of length 1; a single value is a
          number; an empty array has shape (0,);
        - str for a row of characters, an array of str for several rows;
        - dict for a struct, list of dicts for an array of structs, list for a cell array, both in column-major
          order.

    Raises
    ------
    FileNotFoundError
    UnsafeFile
        Function handles, objects of classes, links to other files, references in a circle.
    ValueError
        An unknown name (with the nearest ones), or a file that is damaged, cut off or no MATLAB file.
    """
    path = Path(path)
    if _is_hdf5(path):
        return _read_hdf5(path, names)
    raw = _load(path, names)
    return {name: _plain(value, f"{path}:{name}", 0) for name, value in raw.items()}


def mat_variable(path: str | Path, name: str) -> LazyMat:
    """A numeric variable of a MATLAB file, read by slices; ``"struct/field"`` names a field.

    Raises
    ------
    As :func:`read_mat`.
    """
    return LazyMat(path, name)


class LazyMat:
    """A numeric variable that stays in its file: v7.3 is read by slabs, older files whole and once.

    Attributes
    ----------
    shape : tuple
        In MATLAB's order of axes, those of length 1 included.
    dtype : numpy.dtype
    """

    def __init__(self, path: str | Path, name: str):
        self.path, self.name = Path(path).absolute(), name
        self._values: np.ndarray | None = None
        if _is_hdf5(self.path):
            with _opened(self.path) as file:
                node = _numeric(file, name)
                self.shape = tuple(int(n) for n in node.shape[::-1])
                self.dtype = _dtype_of(node)
            return
        first, *fields = name.split("/")
        value = _load(self.path, [first])[first]
        for field in fields:
            holds = [] if not _is_struct(value) or value.size != 1 else sorted(_fields(value.flat[0]))
            if field not in holds:
                raise ValueError(f"{self.path}: " + unknown("name", name, [f"{first}/{one}" for one in holds]))
            value = _fields(value.flat[0])[field]
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biufc":
            raise ValueError(f"{self.path}:{name} is no array of numbers.")
        self._values = value
        self.shape, self.dtype = value.shape, value.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Slices and integers, one per axis from the first; axes left out are read whole."""
        key = key if isinstance(key, tuple) else (key,)
        key = (*key, *[slice(None)] * (self.ndim - len(key)))
        if self._values is not None:
            return np.array(self._values[key])
        with _opened(self.path) as file:
            values = _numeric(file, self.name)[key[::-1]]
        return _as_numbers(np.asarray(values), self.dtype).T

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[()], dtype=dtype)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_values": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["name"])  # type: ignore[misc]


def _is_hdf5(path: Path) -> bool:
    """Whether the signature says v7.3; the name of the file says nothing."""
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}.")
    with path.open("rb") as file:
        head = file.read(520)
    return head[:8] == _HDF5 or head[512:] == _HDF5 or head.startswith(b"MATLAB 7.3")


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    from scipy.io.matlab import MatReadError

    try:
        yield
    except (UnsafeFile, FileNotFoundError):
        raise
    except (
        *(MatReadError, zlib.error, struct.error, OSError, EOFError, ValueError, TypeError, KeyError, IndexError),
        *(NotImplementedError, AttributeError, MemoryError, OverflowError, RecursionError, RuntimeError),
    ) as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as a MATLAB file ({error}); it may be cut off or "
            "damaged: get it again from its source."
        ) from error


# ------------------------------------------------------------------------------------------ v4 to v7


def _load(path: Path, names: Sequence[str] | None) -> dict[str, Any]:
    """Variables as scipy gives them, with all axes and MATLAB's own classes."""
    from scipy.io import loadmat, whosmat

    with _damage(path):
        known = [one[0] for one in whosmat(str(path))]
    for name in names or ():
        if name not in known:
            raise ValueError(f"{path}: " + unknown("name", name, known))

    def load(wanted: Sequence[str], own_class: bool) -> dict[str, Any]:
        with _damage(path), warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            return loadmat(str(path), mat_dtype=own_class, struct_as_record=False, variable_names=list(wanted))

    wanted = list(known if names is None else names)
    try:
        # Doubles that MATLAB packed as uint8 would wrap around at the first subtraction.
        found = load(wanted, own_class=True)
    except np.exceptions.ComplexWarning:
        # scipy drops imaginary parts then: such variables are read as they are stored.
        found = {}
        for name in wanted:
            try:
                found |= load([name], own_class=True)
            except np.exceptions.ComplexWarning:
                found |= load([name], own_class=False)
    return {name: found[name] for name in wanted if name in found}


def _is_struct(value: Any) -> bool:
    from scipy.io.matlab import mat_struct

    is_object = isinstance(value, np.ndarray) and value.dtype == object and value.size > 0
    return is_object and all(isinstance(one, mat_struct) for one in value.flat)


def _fields(one: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(one).items() if name != "_fieldnames"}


def _plain(value: Any, where: str, depth: int) -> Any:
    """scipy's form of a variable as texts, numbers, arrays, dicts and lists."""
    from scipy.io.matlab import MatlabFunction, MatlabObject, MatlabOpaque
    from scipy.sparse import issparse

    if depth > _DEEPEST:
        raise UnsafeFile(f"{where} is nested more than {_DEEPEST} deep.")
    if isinstance(value, MatlabFunction | MatlabObject | MatlabOpaque):
        raise UnsafeFile(_no_data(where, type(value).__name__.removeprefix("Matlab").lower()))
    if issparse(value):
        raise ValueError(_no_sparse(where))
    if not isinstance(value, np.ndarray):
        raise UnsafeFile(_no_data(where, type(value).__name__))
    if _is_struct(value):
        rows = [
            {name: _plain(one, f"{where}.{name}", depth + 1) for name, one in _fields(element).items()}
            for element in value.ravel(order="F")
        ]
        return rows[0] if len(rows) == 1 else rows
    if value.dtype == object:
        return [_plain(one, f"{where}{{{i}}}", depth + 1) for i, one in enumerate(value.ravel(order="F"), 1)]
    if value.dtype.names:
        raise UnsafeFile(_no_data(where, "object"))
    if value.dtype.kind in "US":
        return "" if value.size == 0 else _squeezed(value)
    return _squeezed(value)


def _squeezed(value: np.ndarray) -> Any:
    if value.size == 0:
        return np.zeros(0, value.dtype)
    value = np.squeeze(value)
    return value.item() if value.ndim == 0 else value


def _no_data(where: str, what: str) -> str:
    return (
        f"{where} is a MATLAB {what}, not data; it is not read. Ask for the variables you need with names=, or save "
        "them in MATLAB as arrays, structs or cells."
    )


def _no_sparse(where: str) -> str:
    return f"{where} is a sparse matrix, which is not read; save it in MATLAB as full(x)."


# ------------------------------------------------------------------------------------------------ v7.3


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from .storage import open_hdf5

    with _damage(path):
        file = open_hdf5(path)
    try:
        with _damage_of_nodes(path):
            yield file
    finally:
        file.close()


@contextmanager
def _damage_of_nodes(path: Path) -> Iterator[None]:
    """h5py tells damage by errors that are not ValueError."""
    try:
        yield
    except (OSError, KeyError, RuntimeError, TypeError, MemoryError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path} is damaged or no MATLAB file ({error}); get it again from its source.") from error


def _read_hdf5(path: Path, names: Sequence[str] | None) -> dict[str, Any]:
    with _opened(path) as file:
        known = [name for name in file if not name.startswith("#")]
        for name in names or ():
            if name not in known:
                raise ValueError(f"{path}: " + unknown("name", name, known))
        reader = _Hdf5Reader(path)
        return {name: reader.child(file, name, 0) for name in names or known}


def _numeric(file: h5py.File, name: str) -> h5py.Dataset:
    node = hdf5_array(file, name)
    kind = _kind(node)
    if node.dtype.kind not in "biufcV" or kind in ("char", "cell") or "MATLAB_sparse" in node.attrs:
        raise ValueError(f"{file.filename}:{name} is a {kind or node.dtype}; expected an array of numbers.")
    if node.dtype.names and set(node.dtype.names) != {"real", "imag"}:
        raise ValueError(f"{file.filename}:{name} holds records; expected an array of numbers.")
    return node


def _dtype_of(node: h5py.Dataset) -> np.dtype:
    if node.dtype.names:
        return np.result_type(node.dtype["real"], np.complex64)
    return np.dtype(bool) if _kind(node) == "logical" else node.dtype


def _as_numbers(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if values.dtype.names:
        return (values["real"] + 1j * values["imag"]).astype(dtype)
    return values.astype(dtype, copy=False)


def _kind(node: Any) -> str:
    kind = node.attrs.get("MATLAB_class", b"")
    return kind.decode("latin1") if isinstance(kind, bytes) else str(kind)


class _Hdf5Reader:
    """One pass over a v7.3 file; what is referred to twice is read once."""

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[int, Any] = {}
        self.open: set[int] = set()

    def child(self, group: Any, name: str, depth: int) -> Any:
        """A member of a group, unless it is a link, which MATLAB never writes."""
        import h5py

        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise UnsafeFile(f"{self.path}:{group.name}/{name} is a link, which MATLAB does not write; not followed.")
        return self.node(group[name], depth)

    def node(self, node: Any, depth: int) -> Any:
        import h5py

        where = f"{self.path}:{node.name}"
        address = h5py.h5o.get_info(node.id).addr
        if address in self.known:
            return self.known[address]
        if address in self.open or depth > _DEEPEST:
            raise UnsafeFile(f"{where} refers to itself, or is nested more than {_DEEPEST} deep.")
        kind = _kind(node)
        self.open.add(address)
        if "MATLAB_object_decode" in node.attrs or kind == "function_handle":
            raise UnsafeFile(_no_data(where, kind or "object"))
        if "MATLAB_sparse" in node.attrs:
            raise ValueError(_no_sparse(where))
        value = self._group(node, depth) if isinstance(node, h5py.Group) else self._dataset(node, kind, depth, where)
        self.open.discard(address)
        self.known[address] = value
        return value

    def _group(self, group: Any, depth: int) -> Any:
        """A struct, or an array of structs, whose fields are arrays of references."""
        import h5py

        names = list(group)
        order = group.attrs.get("MATLAB_fields")
        if order is not None:
            written = [b"".join(np.asarray(one).ravel().tolist()).decode("latin1") for one in order]
            names = written if sorted(written) == sorted(names) else names
        links = {name: group.get(name, getlink=True) for name in names}
        nodes = [group[name] for name in names if isinstance(links[name], h5py.HardLink)]
        if names and len(nodes) == len(names) and all(_is_field_of_array(node) for node in nodes):
            columns = [self._references(node, depth) for node in nodes]
            return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        return {name: self.child(group, name, depth + 1) for name in names}

    def _dataset(self, dataset: Any, kind: str, depth: int, where: str) -> Any:
        import h5py

        from .storage import require_inside

        try:
            require_inside(dataset)
        except ValueError as error:
            raise UnsafeFile(str(error)) from None
        if dataset.attrs.get("MATLAB_empty", 0):
            return {"char": "", "cell": [], "struct": []}.get(kind, np.zeros(0, _empty_dtype(kind)))
        if kind == "cell" or h5py.check_ref_dtype(dataset.dtype):
            return self._references(dataset, depth)
        if kind == "char":
            return _text(np.asarray(dataset[()]), where)
        if h5py.check_string_dtype(dataset.dtype):
            return _squeezed(np.asarray(dataset.asstr()[()]).astype(str).T)
        if dataset.dtype.names and set(dataset.dtype.names) != {"real", "imag"}:
            raise UnsafeFile(f"{where} holds records of {dataset.dtype.names}, which MATLAB does not write.")
        if dataset.dtype.hasobject or dataset.dtype.kind not in "biufcV":
            raise UnsafeFile(f"{where} holds {dataset.dtype}; expected numbers, texts, structs or cells.")
        return _squeezed(_as_numbers(np.asarray(dataset[()]), _dtype_of(dataset)).T)

    def _references(self, dataset: Any, depth: int) -> list[Any]:
        """Whatever an array of references names, in column-major order: that of the file."""
        found = []
        for reference in np.asarray(dataset[()]).ravel():
            if not reference:
                raise ValueError(f"{self.path}:{dataset.name} holds a reference to nothing.")
            found.append(self.node(dataset.file[reference], depth + 1))
        return found


def _is_field_of_array(node: Any) -> bool:
    import h5py

    return isinstance(node, h5py.Dataset) and bool(h5py.check_ref_dtype(node.dtype)) and not _kind(node)


def _empty_dtype(kind: str) -> np.dtype:
    names = {"double": "f8", "single": "f4", "logical": "?"}
    return np.dtype(names.get(kind, kind if kind.removeprefix("u").startswith("int") else "f8"))


def _text(codes: np.ndarray, where: str) -> Any:
    """Characters stored as UTF-16 codes, transposed; a row is one text."""
    if codes.dtype.kind not in "iu":
        raise UnsafeFile(f"{where} holds characters as {codes.dtype}; expected codes.")
    if codes.size == 0:
        return ""
    rows = np.atleast_2d(codes.T).reshape(-1, codes.shape[0] if codes.ndim > 1 else codes.size)
    texts = [row.astype("<u2").tobytes().decode("utf-16-le", "replace") for row in rows]
    return texts[0] if len(texts) == 1 else np.array(texts)
