"""Pickles of data, read so that they cannot do anything else.

A pickle is a program. The one that runs here may build numpy arrays, dtypes and scalars, dicts, lists, texts and
numbers, and nothing else: what it names is not looked up but swapped for stand-ins of our own, which only write down
what they were told. Arrays are made from these notes afterwards, with every size compared.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import numpy as np

DEEPEST = 20


class UnsafeFile(ValueError):
    """A file asked for something that no file of data needs."""


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that knows arrays, dtypes and scalars of numpy, ordered dicts and bytes.

    No name in a pickle reaches an object of Python: each is looked up in a table of stand-ins. These have no
    attributes to write to, so that one file cannot prepare the ground for the next.

    Notes
    -----
    :meth:`load` returns stand-ins, which :func:`made` turns into arrays; ``safe.load_pickle`` and ``safe.load_npy``
    do both.
    """

    def __init__(self, file: BinaryIO):
        super().__init__(cast(Any, file), encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if module == "numpy.dtypes" and re.fullmatch(r"[A-Z][A-Za-z0-9]*DType", name):
            return _DtypeClass(name)
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise UnsafeFile(
                f"asked for {module}.{name}; a file of data needs numpy arrays, dicts, lists, texts and numbers "
                "alone. It was not opened further: get it again from its source."
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafeFile(f"refers to an object outside itself ({str(pid)[:40]}); get it again from its source.")


class _Name:
    """A name that may be handed on but does nothing."""

    __slots__ = ()


class _Ndarray(_Name):
    __slots__ = ()


class _DtypeName(_Name):
    __slots__ = ()

    def __call__(self, code: Any, align: Any = False, copy: Any = False) -> _Dtype:
        return _Dtype(code)


class _DtypeClass(_Name):
    """A class such as ``numpy.dtypes.Float64DType``."""

    __slots__ = ("_code",)

    def __init__(self, name: str):
        self._code = name.removesuffix("DType").lower()

    def __call__(self) -> _Dtype:
        return _Dtype(self._code)

    def __setstate__(self, state: Any) -> None:
        raise UnsafeFile("writes to a class; get it again from its source.")


class _Reconstruct(_Name):
    __slots__ = ()

    def __call__(self, subtype: Any, shape: Any, code: Any) -> _Array:
        if not isinstance(subtype, _Ndarray) or shape != (0,):
            raise UnsafeFile(f"asked for an array of another class, shape {str(shape)[:40]}; get it again.")
        return _Array()


class _Scalar(_Name):
    __slots__ = ()

    def __call__(self, dtype: Any, content: Any = None) -> _Array:
        return _Array((1, (), dtype, False, content), scalar=True)


class _FromBuffer(_Name):
    __slots__ = ()

    def __call__(self, content: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> _Array:
        if order not in ("C", "F") or axis_order is not None:
            raise UnsafeFile(f"holds an array in order {str(order)[:20]}; expected C or F.")
        return _Array((1, shape, dtype, order == "F", content))


class _Encode(_Name):
    __slots__ = ()

    def __call__(self, text: Any, encoding: Any = None) -> bytes:
        if encoding != "latin1" or not isinstance(text, str):
            raise UnsafeFile(f"asked for the codec {str(encoding)[:40]!r}; bytes in a pickle need 'latin1' alone.")
        return text.encode("latin1")


class _Bytes(_Name):
    __slots__ = ()

    def __call__(self) -> bytes:
        return b""


class _OrderedDict(_Name):
    __slots__ = ()

    def __call__(self, pairs: Any = ()) -> dict:
        return dict(pairs)


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_STAND_INS: dict[tuple[str, str], _Name] = {
    ("numpy", "ndarray"): _Ndarray(),
    ("numpy", "dtype"): _DtypeName(),
    **dict.fromkeys([(module, "_reconstruct") for module in _MULTIARRAY], _Reconstruct()),
    **dict.fromkeys([(module, "scalar") for module in _MULTIARRAY], _Scalar()),
    **dict.fromkeys([(module, "_frombuffer") for module in _NUMERIC], _FromBuffer()),
    ("_codecs", "encode"): _Encode(),
    **dict.fromkeys([("builtins", "bytes"), ("__builtin__", "bytes")], _Bytes()),
    ("collections", "OrderedDict"): _OrderedDict(),
}


class _Dtype:
    """A dtype as a pickle describes it."""

    __slots__ = ("code", "state")

    def __init__(self, code: Any):
        self.code, self.state = code, None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def made(self, depth: int = 0) -> np.dtype:
        """The dtype, from its parts: numpy's own way trusts offsets that a file may name at will."""
        if not isinstance(self.code, str) or len(self.code) > 40 or depth > DEEPEST:
            raise UnsafeFile("describes a dtype in an unknown way.")
        state: Any = self.state
        if state is None:
            return np.dtype(self.code)
        version, byteorder, subarray, names, fields, itemsize = state[:6]
        if version not in (3, 4) or byteorder not in ("<", ">", "=", "|"):
            raise ValueError(f"a dtype of version {str(version)[:10]}")
        if subarray is not None:
            return np.dtype((_dtype(subarray[0], depth + 1), subarray[1]))
        if names is not None:
            parts = [fields[name] for name in names]
            return np.dtype(
                {
                    "names": [str(name) for name in names],
                    "formats": [_dtype(part[0], depth + 1) for part in parts],
                    "offsets": [int(part[1]) for part in parts],
                    "itemsize": int(itemsize),
                }
            )
        if self.code in ("M8", "m8") and len(state) > 8:
            unit, count = state[8][1][:2]
            letters = unit.decode("latin1") if isinstance(unit, bytes) else str(unit)
            return np.dtype(f"{self.code}[{int(count)}{letters}]").newbyteorder(byteorder)
        return np.dtype(self.code).newbyteorder(byteorder)


def _dtype(found: Any, depth: int = 0) -> np.dtype:
    if not isinstance(found, _Dtype):
        raise UnsafeFile(f"describes a dtype by a {type(found).__name__}.")
    return found.made(depth)


class _Array:
    """An array or scalar as a pickle describes it."""

    __slots__ = ("scalar", "state")

    def __init__(self, state: Any = None, scalar: bool = False):
        self.state, self.scalar = state, scalar

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def made(self, make: Callable[[Any], Any]) -> Any:
        """The array; `make` turns what is in one of objects into data."""
        if self.state is None:
            raise ValueError("an array without content")
        shape, described, fortran, content = self.state[-4:]
        dtype = _dtype(described)
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 32:
            raise ValueError(f"an array of shape {str(shape)[:40]}")
        order: Any = "F" if fortran else "C"
        if dtype.hasobject:
            if self.scalar or dtype.kind != "O" or not isinstance(content, list) or len(content) != math.prod(shape):
                raise UnsafeFile("holds objects in a form that no array is saved in.")
            objects = np.empty(len(content), object)
            for place, value in enumerate(content):
                objects[place] = make(value)
            return objects.reshape(shape, order=order)
        if isinstance(content, str):  # written by Python 2
            content = content.encode("latin1")
        if not isinstance(content, bytes | bytearray) or len(content) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"an array {shape} of {dtype} with other than its bytes")
        if dtype.itemsize == 0:
            return np.empty(shape, dtype)
        # bytearray: what was pickled may be written to, as an array of one's own may.
        writable = content if isinstance(content, bytearray) else bytearray(content)
        array = np.frombuffer(writable, dtype).reshape(shape, order=order)
        return array[()] if self.scalar else array


def made(found: Any) -> Any:
    """What a pickle described, with arrays in place of their descriptions; nothing but data may be in it."""
    known: dict[int, Any] = {}
    open_: set[int] = set()

    def make(value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | bytearray):
            return value
        if id(value) in known:
            return known[id(value)]
        if id(value) in open_ or depth > DEEPEST:
            raise UnsafeFile(f"holds itself, or is nested more than {DEEPEST} deep; get it again from its source.")
        open_.add(id(value))
        inside = depth + 1
        result: Any
        if isinstance(value, dict):
            result = {make(key, inside): make(one, inside) for key, one in value.items()}
        elif isinstance(value, list | tuple):
            result = type(value)(make(one, inside) for one in value)
        elif isinstance(value, _Dtype):
            result = value.made()
        elif isinstance(value, _Array):
            result = value.made(lambda one: make(one, inside))
        else:
            raise UnsafeFile(f"holds a {type(value).__name__}; expected arrays, dicts, lists, texts and numbers.")
        open_.discard(id(value))
        known[id(value)] = result
        return result

    return make(found, 0)
