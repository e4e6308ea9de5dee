"""Designs in files: spectra computed once, then read by other processes, on other days."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...datasets.storage import atomic
from ..device import pick_device
from ..features.digest import digest_of
from .design import SpectralDesign

FORMAT = "neuralign-design-2"  # counts up where members of a class below change their meaning
# What a file may hold, and the module of each: kernels stand above the encoders that write files.
_HOMES = {
    "SpectralDesign": "design", "Layout": "layout", "Trial": "layout", "Train": "design", "Test": "design",
    "_Side": "design",
    "Map": "design", "RowMap": "design", "KernelMap": "design", "Axes": "spectrum", "Quadratic": "spectrum",
    "DenseFeatures": "matrix",
    "DelayedFeatures": "delays", "Delays": "delays", "KernelDesign": "kernel", "Kernel": "kernel",
}  # fmt: skip
_PLAIN = (type(None), bool, int, float, str)
# Members that spectra are computed from, and members that hold them.
_INPUTS = (
    "n", "n_features", "n_folds", "fit_intercept", "standardise", "nested", "layouts", "order", "matrix", "_kernel",
    "dtype",
)  # fmt: skip
_SPECTRA = ("_trains", "_wholes", "_gram", "_of_all", "_spread", "_everything")


def save_design(design: SpectralDesign, path: str | Path) -> None:
    """Write a design with all spectra that it has computed so far, atomically.

    Parameters
    ----------
    design : SpectralDesign
    path : str or Path
        Overwritten if it exists. The file holds the features too: about as many bytes as the design in memory.

    Raises
    ------
    ValueError
        If the features are of a class that a file cannot hold.
    """
    content = {"format": FORMAT, "device": str(design.device), "design": _encoded(design, "design")}
    with atomic(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def load_design(path: str | Path, device: str | torch.device | None = None, *, mmap: bool = True) -> SpectralDesign:
    """Read a design from `save_design`; nothing that was computed is computed again.

    A file is data and no program: nothing in it is executed.

    Parameters
    ----------
    path : str or Path
    device : str or torch.device, optional
        Where to compute; where the design was made unless given.
    mmap : bool
        On the CPU, map the file into memory, so that processes on one machine share its pages and read what they
        use. The file must then stay where it is for as long as the design, and encoders fitted to it, are used.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    ValueError
        If the file holds no design, a damaged one, or one of another version of the format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is no whole design saved by neuralign "
            f"({str(error).strip().splitlines()[:1]}); save it again"
        ) from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        what = f"a design in the format {found}" if str(found).startswith("neuralign-design") else "no design"
        raise ValueError(f"{path} holds {what}; expected {FORMAT}: make the design again and save it")
    where = pick_device(content["device"]) if device is None else torch.device(device)
    try:
        design = _decoded(content["design"], where)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} holds a design of another version ({error!r}); make it again and save it") from error
    if not isinstance(design, SpectralDesign):
        raise ValueError(f"{path} holds a {type(design).__name__}; expected a design")
    return design


def inputs_digest(design: SpectralDesign) -> str:
    """Hash of the features, folds and options of a design, whatever has been computed of it."""
    try:
        release = version("neuralign")
    except PackageNotFoundError:
        release = "unknown"
    return digest_of([FORMAT, release, [_encoded(getattr(design, name), name) for name in _INPUTS]])


def known_spectra(design: SpectralDesign) -> tuple[Any, ...]:
    """Which spectra a design has computed so far."""
    return tuple(sorted(design._trains)), tuple(sorted(design._wholes)), design._everything is not None


def take_spectra(design: SpectralDesign, known: SpectralDesign) -> None:
    """Give a design the spectra of another one that is made from the same features and folds."""
    for name in _SPECTRA:
        setattr(design, name, getattr(known, name))


# A tree of tensors, numbers and text


def _encoded(value: Any, where: str) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "bif":
        plain = value.flags.writeable and min(value.strides, default=0) >= 0
        return {"is": "ndarray", "of": torch.from_numpy(value if plain else np.array(value))}
    if type(value) in (list, tuple):
        return type(value)(_encoded(member, where) for member in value)
    if type(value) is dict:
        return {"is": "dict", "of": [(_encoded(k, where), _encoded(v, where)) for k, v in value.items()]}
    if isinstance(value, slice):
        return {"is": "slice", "of": _encoded((value.start, value.stop, value.step), where)}
    if isinstance(value, torch.dtype):
        return {"is": "dtype", "of": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"is": "device", "of": None}
    if type(value).__name__ not in _HOMES or _kind(type(value).__name__) is not type(value):
        raise ValueError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which a design file cannot hold; "
            "expected features in an array, DelayedFeatures or a kernel"
        )
    return {"is": type(value).__name__, "of": {k: _encoded(v, f"{where}.{k}") for k, v in _members(value)}}


def _kind(name: str) -> type:
    return getattr(import_module(f".{_HOMES[name]}", __package__), name)


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    if is_dataclass(value):  # and nothing that it may have cached beside its fields
        yield from ((field.name, getattr(value, field.name)) for field in fields(value))
    else:
        yield from vars(value).items()


def _decoded(tree: Any, device: torch.device) -> Any:
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, list | tuple):
        return type(tree)(_decoded(member, device) for member in tree)
    if not isinstance(tree, dict):
        return tree
    what, of = tree["is"], tree["of"]
    if what == "ndarray":
        return of.numpy()
    if what == "dict":
        return {_decoded(k, device): _decoded(v, device) for k, v in of}
    if what == "slice":
        return slice(*of)
    if what == "dtype":
        return {"float32": torch.float32, "float64": torch.float64}[of]
    if what == "device":
        return device
    kind = _kind(what)
    members = {name: _decoded(member, device) for name, member in of.items()}
    if is_dataclass(kind) and {field.name for field in fields(kind)} != set(members):
        raise TypeError(f"{what} has members {sorted(members)}")
    made: Any = object.__new__(kind)  # as pickle does: members are those of an object that was made before
    vars(made).update(members)
    return made
