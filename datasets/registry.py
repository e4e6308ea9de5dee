"""Which datasets there are, where their files lie, and how a name becomes a recording."""

from __future__ import annotations

import hashlib
import inspect
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from .errors import unknown

ENVIRONMENT = "NEURALIGN_DATA"
# Importing one of these registers its datasets; other packages do the same through entry points.
MODULES = ("simulate", "spikes.cowley_v4", "fmri.kriegeskorte_92", "fmri.algonauts2019_78")
ENTRY_POINTS = "neuralign.datasets"


@dataclass(frozen=True)
class FileCard:
    """One file of a dataset: path below its root, and size in bytes and SHA-256 where known."""

    path: str
    size: int | None = None
    sha256: str = ""


@dataclass(frozen=True)
class DatasetCard:
    """What a dataset is, whose it is and where it comes from.

    Attributes
    ----------
    name, title, citation, licence, modality : str
    source : str
        Where to get the files.
    files : tuple of FileCard
    folders : tuple of str
        Names its folder is known to have, besides `name`.
    selection : mapping, read-only
        Keyword of the loader to what it selects.
    notes : str
    needs_root : bool
        False for a dataset that is made on the spot.
    """

    name: str
    title: str
    citation: str
    licence: str
    modality: str
    source: str
    files: tuple[FileCard, ...] = ()
    folders: tuple[str, ...] = ()
    selection: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""
    needs_root: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "selection", MappingProxyType(dict(self.selection)))


Loader = Callable[..., Any]
_REGISTERED: dict[str, tuple[DatasetCard, Loader]] = {}


def register(card: DatasetCard) -> Callable[[Loader], Loader]:
    """Decorator that makes a loader ``loader(root, **selection)`` known under its card's name.

    Raises
    ------
    ValueError
        Another loader has that name.
    """

    def decorate(loader: Loader) -> Loader:
        taken = _REGISTERED.get(card.name)
        if taken is not None and (taken[1].__module__, taken[1].__qualname__) != (
            loader.__module__,
            loader.__qualname__,
        ):
            raise ValueError(f"dataset {card.name!r} is registered twice: by {taken[1].__module__} already.")
        _REGISTERED[card.name] = (card, loader)
        return loader

    return decorate


def load(name: str, root: str | Path | None = None, **selection: Any) -> Any:
    """Load a dataset.

    Parameters
    ----------
    name : str
        One of ``datasets.list()``.
    root : path, optional
        Folder of the dataset, or one that holds that folder. Default: the folder of the dataset in the
        environment variable NEURALIGN_DATA.
    **selection
        What ``datasets.info(name).selection`` offers.

    Returns
    -------
    Recording, TimeSeries or RDMs

    Raises
    ------
    ValueError
        An unknown name or selection (with the nearest known ones).
    FileNotFoundError
        No such folder; the message says where to get the data.
    """
    card, loader = _entry(name)
    parameters = inspect.signature(loader).parameters
    known = [key for key in parameters if key != "root"]
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for key in selection:
            if key not in known:
                raise ValueError(unknown("selection", key, known, f"See datasets.info({name!r}).selection."))
    return loader(_root(card, root), **selection)


def info(name: str) -> DatasetCard:
    """The card of a dataset."""
    return _entry(name)[0]


def list_datasets() -> pd.DataFrame:
    """All datasets: name, title, modality, licence, and whether their folder is found."""
    rows = []
    for name in sorted(_loaders()):
        card = _entry(name)[0]
        found = not card.needs_root or _folder(card, None) is not None
        rows.append((card.name, card.title, card.modality, card.licence, found))
    return pd.DataFrame(rows, columns=["name", "title", "modality", "licence", "found"])


def check(name: str, root: str | Path | None = None) -> pd.DataFrame:
    """Compare the files of a dataset with its card.

    Returns
    -------
    pandas.DataFrame
        One row per file: file, found, size (bytes, -1 where absent) and status in plain words.
    """
    card = info(name)
    folder = _root(card, root)
    rows = [(file.path, *_status(file, folder)) for file in card.files] if folder is not None else []
    return pd.DataFrame(rows, columns=["file", "found", "size", "status"])


def find_file(root: Path, path: str) -> Path | None:
    """A dataset's file: at its path below root, or directly in root, or anywhere below it by name."""
    name = Path(path).name
    for candidate in (root / path, root / name):
        if candidate.is_file():
            return candidate
    return next((found for found in sorted(root.rglob(name)) if found.is_file()), None)


def _status(card: FileCard, folder: Path) -> tuple[bool, int, str]:
    path = find_file(folder, card.path)
    if path is None:
        return False, -1, "absent"
    size = path.stat().st_size
    if card.size is not None and size != card.size:
        return True, size, f"has another size than the {card.size} bytes expected: cut off, or another version"
    if not card.sha256:
        return True, size, "there; content not known, so not compared"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != card.sha256:
        return True, size, "has other content than expected (SHA-256): damaged, or another version"
    return True, size, "as expected"


def _root(card: DatasetCard, root: str | Path | None) -> Path | None:
    """Folder of a dataset that needs one."""
    if not card.needs_root:
        return None
    folder = _folder(card, root)
    if folder is not None:
        return folder
    names = " or ".join(dict.fromkeys((card.name, *card.folders)))
    if root is not None:
        found = f"root={str(root)!r} is no folder"
    elif ENVIRONMENT in os.environ:
        found = f"no folder {names} in {ENVIRONMENT}={os.environ[ENVIRONMENT]!r}"
    else:
        found = f"no root was given and {ENVIRONMENT} is not set"
    raise FileNotFoundError(
        f"{card.name}: {found}. Get the data from {card.source}, then pass root=<its folder> (--root "
        f"in the shell), or put it into a folder {names} and set {ENVIRONMENT} to the folder above."
    )


def _folder(card: DatasetCard, root: str | Path | None) -> Path | None:
    base = root if root is not None else os.environ.get(ENVIRONMENT)
    if not base:
        return None
    for name in (card.name, *card.folders):
        if (Path(base) / name).is_dir():
            return Path(base) / name
    return Path(base) if root is not None and Path(base).is_dir() else None


def _entry(name: str) -> tuple[DatasetCard, Loader]:
    loaders = _loaders()
    if name not in loaders:
        raise ValueError(unknown("dataset", name, sorted(loaders)))
    return loaders[name]


def _loaders() -> dict[str, tuple[DatasetCard, Loader]]:
    _import_loaders()
    return _REGISTERED


@cache
def _import_loaders() -> None:
    """Register the shipped datasets and those of other packages, once."""
    for module in MODULES:
        import_module(f".{module}", __package__)
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:  # another package's fault must not take the shipped datasets away
            warnings.warn(f"datasets of {point.value} cannot be used: {type(error).__name__}: {error}", stacklevel=2)
