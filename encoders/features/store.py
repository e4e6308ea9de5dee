"""Features: one array per layer, found again by what they were computed from and never by a name."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.errors import unknown
from ...datasets.rdms import stimulus_positions


@dataclass(frozen=True, eq=False)
class Features(Mapping):
    """Arrays of a model's layers, rows in the order of the stimuli.

    ``features["layer"]`` is (stimulus, feature), or (stimulus, token, feature) for layers that keep places or
    tokens; it may lie on disk and is read as it is used.

    Attributes
    ----------
    model : str
    stimulus_ids : tuple of str
        One per row.
    arrays : mapping of str to ndarray
    grids : mapping of str to (int, int)
        Height and width of the token grid, for layers whose tokens are places of a map.
    keys_ : mapping of str to str
        Content hash under which each layer is stored.
    """

    model: str
    stimulus_ids: tuple[str, ...]
    arrays: Mapping[str, np.ndarray]
    grids: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    keys_: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for layer, array in self.arrays.items():
            if len(array) != len(self.stimulus_ids):
                raise ValueError(
                    f"arrays[{layer!r}] has {len(array)} rows; expected one per stimulus, {len(self.stimulus_ids)}"
                )

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in the order of computation."""
        return list(self.arrays)

    def __getitem__(self, layer: str) -> np.ndarray:
        if layer not in self.arrays:
            raise KeyError(unknown("layer", layer, self.arrays))
        return self.arrays[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """Positions of stimuli by id; ValueError names those that are missing."""
        return stimulus_positions(self.stimulus_ids, ids, f"the features of {self.model}")

    def __repr__(self) -> str:
        layers = ", ".join(f"{name} {tuple(array.shape[1:])}" for name, array in self.arrays.items())
        return f"<Features of {self.model}: {len(self.stimulus_ids)} stimuli; {layers}>"


def cache_root(cache: str | Path | None = None) -> Path:
    """Folder of the store: `cache`, else the environment variable NEURALIGN_CACHE, else ~/.cache/neuralign."""
    return Path(cache or os.environ.get("NEURALIGN_CACHE") or Path.home() / ".cache" / "neuralign")


def key_of(parts: Mapping[str, Any]) -> str:
    """Content hash of everything that the features depend on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@cache
def code_digest() -> str:
    """Hash of the code that computes features: a changed formula is a changed key."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    read_by = [here.parents[1] / "datasets" / f"{name}.py" for name in ("filters", "media", "sources", "stimuli")]
    for path in [*sorted(here.glob("*.py")), *read_by]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


class Entry:
    """One stored layer: ``features.npy`` beside ``entry.json``, in a folder named by the key."""

    def __init__(self, root: Path, key: str) -> None:
        self.folder = root / "features" / key[:2] / key

    def read(self) -> np.ndarray | None:
        """The array, memory-mapped; None if it is not there or damaged."""
        try:
            entry = json.loads((self.folder / "entry.json").read_text())
            array = np.load(self.folder / "features.npy", mmap_mode="r")
            whole = list(array.shape) == entry["shape"] and array.dtype == np.float32
        except (OSError, ValueError, EOFError, KeyError, TypeError):
            return None
        n = max(1, len(array) * 2**24 // max(1, array.size))  # no mask as large as the array
        return array if whole and all(np.isfinite(array[i : i + n]).all() for i in range(0, len(array), n)) else None

    def write(self, array: np.ndarray, parts: Mapping[str, Any]) -> None:
        """Store an array so that a reader finds all of it or nothing."""
        draft = self.folder.parent / f".draft-{secrets.token_hex(8)}"
        draft.mkdir(parents=True)
        try:
            np.save(draft / "features.npy", array)
            entry = {"shape": list(array.shape), "made_from": parts}
            (draft / "entry.json").write_text(json.dumps(entry, default=str))
            try:
                draft.rename(self.folder)
            except OSError:
                if self.read() is not None:  # another process was faster with the same features
                    return
                shutil.rmtree(self.folder, ignore_errors=True)
                draft.rename(self.folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
