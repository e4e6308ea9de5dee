"""What tells one module from another: a hash of everything its features can depend on, stable across processes."""

from __future__ import annotations

import copyreg
import dis
import hashlib
import os
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

_OWN = __name__.partition(".")[0]  # our own code is in the key already
_PLAIN = (type(None), type(...), type(NotImplemented), bool, int, float, complex, str, bytes)
_HOOKS = {"_forward_hooks", "_forward_pre_hooks"}
_MACHINERY = set(vars(nn.Module())) - _HOOKS  # parameters, buffers and parts are told one by one
_LABELS = {"name_or_path", "_name_or_path"}  # where transformers read a model: the same model may lie elsewhere


class CannotTell(Exception):
    """Something that features may depend on cannot be hashed."""


def digest_of(value: object, name: str = "value") -> str:
    """Hash of a module, a function or a value: its class, code and state, without names of places in memory.

    Of a module: the values of parameters, buffers and every other attribute, forward hooks, and its classes. Of a
    function: bytecode, constants, defaults, closure, and the globals that it reads. Of a class: every method and
    attribute along its bases, and the source file of its Python module. Of code installed by a package manager:
    the source file of the classes, and the version of the package. Of torch, numpy and Python itself: names. Of
    any other object: what pickle would store.

    Parameters
    ----------
    value : object
    name : str
        What to call it in an error.

    Raises
    ------
    CannotTell
        If part of it has no stable value, like a lock, an open file or a compiled object that cannot be pickled.
    """
    teller = _Teller()
    if isinstance(value, nn.Module):
        teller.read_ahead(value)
    try:
        teller.tell(value, name)
    except RecursionError as error:
        raise CannotTell(f"{name} is nested too deeply") from error
    return teller.hash.hexdigest()


class _Teller:
    """Walks through a value in a fixed order and feeds a hash."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.met: dict[int, tuple[int, object]] = {}  # keeps what it met alive: a freed id may be given again
        self.kinds: dict[int, type] = {}
        self.files: set[str] = set()
        self.contents: dict[int, bytes] = {}  # of tensors that were hashed already, by id

    def read_ahead(self, module: nn.Module) -> None:
        """Hash the tensors of a module at once, on every core: hashlib lets other threads run.

        Where there is nothing plain to hash, the walk says so, by name.
        """
        if isinstance(module, torch.jit.ScriptModule):
            return
        tensors = {id(one): one for one in (*module.parameters(), *module.buffers()) if _is_plain(one)}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self.contents = dict(zip(tensors, pool.map(_content, tensors.values()), strict=True))

    def say(self, *words: object) -> None:
        for word in words:
            data = word if isinstance(word, bytes) else str(word).encode("utf-8", "surrogatepass")
            self.hash.update(len(data).to_bytes(8, "little") + data)

    def tell(self, value: Any, where: str) -> None:
        if type(value) in _PLAIN:
            self.say(type(value).__name__, value if isinstance(value, bytes) else repr(value))
            return
        if id(value) in self.met:
            self.say("again", self.met[id(value)][0])
            return
        self.met[id(value)] = (len(self.met), value)
        if isinstance(value, nn.Module):
            self.module(value, where)
        elif isinstance(value, torch.Tensor):
            self.tensor(value, where)
        elif isinstance(value, np.ndarray):
            self.say("array", value.dtype, value.shape)
            if value.dtype.hasobject:
                self.tell(value.tolist(), where)
            else:
                self.hash.update(value.tobytes())
        elif type(value) in (list, tuple):
            self.say(type(value).__name__, len(value))
            for i, item in enumerate(value):
                self.tell(item, f"{where}[{i}]")
        elif type(value) is dict:
            self.say("dict", len(value))
            for key, item in value.items():
                if isinstance(key, str) and key in _LABELS:
                    continue
                self.tell(key, f"a key of {where}")
                self.tell(item, f"{where}[{key!r}]" if type(key) in _PLAIN else where)
        elif type(value) in (set, frozenset):
            self.say(type(value).__name__, *sorted(digest_of(item, where) for item in value))
        elif isinstance(value, types.FunctionType):
            self.function(value, where)
        elif isinstance(value, types.CodeType):
            self.code(value, where)
        elif isinstance(value, types.MethodType):
            self.say("method")
            self.tell(value.__func__, where)
            self.tell(value.__self__, where)
        elif isinstance(value, type):
            self.kind(value, where)
        elif isinstance(value, types.ModuleType):
            self.say("namespace", value.__name__)
            self.package(value.__name__)
            if not _is_library(value.__name__):
                self.file(value.__name__)
        else:
            self.thing(value, where)

    def module(self, module: nn.Module, where: str) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            raise CannotTell(f"{where} is a compiled module, whose code is not at hand")
        self.say("module")
        self.kind(type(module), where)
        own = vars(module)
        if type(module).__module__ == "torch._dynamo.eval_frame":  # torch.compile: its own state is of this process
            self.tell(own["_modules"]["_orig_mod"], where)
            return
        for group in ("_parameters", "_buffers", "_modules"):
            members = own.get(group, {})
            self.say(group, *members)  # parts in order: a container calls them one after another
            for name, member in members.items():
                self.tell(member, f"{where}.{name}")
        for group in sorted(_HOOKS):
            for hook in own.get(group, {}).values():  # the keys count the hooks of this process
                self.tell(hook, f"a hook of {where}")
        for name in sorted(own.keys() - _MACHINERY - _HOOKS - _LABELS):
            self.say(name)
            self.tell(own[name], f"{where}.{name}")

    def tensor(self, tensor: torch.Tensor, where: str) -> None:
        if not _is_plain(tensor):
            raise CannotTell(f"{where} is a tensor without plain values")
        self.say("tensor", tensor.dtype, tuple(tensor.shape), self.contents.get(id(tensor)) or _content(tensor))

    def function(self, function: types.FunctionType, where: str) -> None:
        self.say("function", function.__module__, function.__qualname__)
        place = function.__globals__.get("__name__", "")
        if not _is_library(place):
            self.tell(function.__code__, where)
            self.package(place)
            self.file(place)
            if not _is_installed(place):
                for name in sorted(set(_globals_read(function.__code__)) & function.__globals__.keys()):
                    self.say(name)
                    self.tell(function.__globals__[name], f"{name}, which {function.__qualname__} reads")
        # Wrappers of a library hold the function that they wrap in their closure.
        self.tell([function.__defaults__, function.__kwdefaults__], f"defaults of {where}")
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self.say(name)
            try:
                content = cell.cell_contents
            except ValueError:  # not filled yet
                continue
            self.tell(content, f"{name}, which {function.__qualname__} closes over")

    def code(self, code: types.CodeType, where: str) -> None:
        self.say("code", code.co_code, code.co_exceptiontable, code.co_flags, code.co_argcount)
        self.say(code.co_posonlyargcount, code.co_kwonlyargcount)
        self.say(*code.co_names, "|", *code.co_varnames, "|", *code.co_freevars, "|", *code.co_cellvars)
        self.tell(list(code.co_consts), where)

    def kind(self, kind: type, where: str) -> None:
        for base in kind.__mro__:
            place = base.__module__
            self.say("class", place, base.__qualname__)
            if _is_library(place) or id(base) in self.kinds:
                continue
            self.kinds[id(base)] = base
            self.package(place)
            self.file(place)
            if _is_installed(place):
                continue
            for name, value in sorted(vars(base).items()):
                value = getattr(value, "fget", None) or getattr(value, "__func__", value)  # property, staticmethod
                generated = name.startswith("__") and not isinstance(value, types.FunctionType)
                slot = isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType)
                if not generated and not slot and name != "_abc_impl":
                    self.say(name)
                    self.tell(value, f"{base.__qualname__}.{name}")

    def thing(self, value: Any, where: str) -> None:
        try:
            reducer = copyreg.dispatch_table.get(type(value))
            stored = reducer(value) if reducer else value.__reduce_ex__(4)
            if isinstance(stored, str):  # known by its name alone
                self.say("name", getattr(value, "__module__", ""), stored)
                self.tell(getattr(value, "__wrapped__", None), where)
                return
            made_by, arguments, *rest = stored
            rest = [list(part) if isinstance(part, Iterator) else part for part in rest]
        except Exception as error:  # whatever another package's __reduce__ may raise
            raise CannotTell(f"{where} is a {type(value).__qualname__}, which has no stored form") from error
        self.say("thing")
        self.kind(type(value), where)
        if made_by is not copyreg.__newobj__:  # type: ignore[attr-defined]
            self.tell(made_by, where)
        self.tell([arguments, *rest], where)

    def package(self, place: str) -> None:
        top = place.partition(".")[0]
        self.say(top, getattr(sys.modules.get(top), "__version__", ""))

    def file(self, place: str) -> None:
        """The source file of a Python module; one typed at a prompt has none, but its bytecode is told."""
        path = getattr(sys.modules.get(place), "__file__", None)
        if path and path not in self.files and Path(path).is_file():
            self.files.add(path)
            self.say("file", Path(path).read_bytes())


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type != "meta"


def _content(tensor: torch.Tensor) -> bytes:
    """SHA-256 of the values of a tensor, in order."""
    value = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()
    return hashlib.sha256(value.flatten().view(torch.uint8).numpy().data if value.numel() else b"").digest()


def _is_library(place: str) -> bool:
    """Whether a name of a Python module says enough: its version is in the key, or it is Python's own."""
    top = place.partition(".")[0]
    return top in sys.stdlib_module_names or top in ("torch", "numpy", _OWN)


def _is_installed(place: str) -> bool:
    path = getattr(sys.modules.get(place), "__file__", None) or ""
    return bool({"site-packages", "dist-packages"} & set(Path(path).parts))


def _globals_read(code: types.CodeType) -> Iterator[str]:
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield step.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals_read(constant)
