"""Features: one array per layer, found again by what they were computed from and never by a name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.errors import unknown
from ...datasets.rdms import stimulus_positions
from .shards import Entry as Entry  # part of the store for everybody else


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
    times : mapping of str to ndarray, shape (token,)
        Seconds from the onset of the stimulus, for layers whose tokens follow each other in time.
    info : mapping of str to mapping
        What else is to be known about how they were computed, such as the context of every word.
    """

    model: str
    stimulus_ids: tuple[str, ...]
    arrays: Mapping[str, np.ndarray]
    grids: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    keys_: Mapping[str, str] = field(default_factory=dict)
    times: Mapping[str, np.ndarray] = field(default_factory=dict)
    info: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

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


# Where features lie and how they get there; no number depends on it.
NOT_NUMBERS = (
    "disk.py",
    "engine/memory.py",
    "engine/plan.py",
    "engine/several.py",
    "engine/writer.py",
    "ledger.py",
    "manifest.py",
    "shards.py",
    "upkeep.py",
)
# What numbers depend on besides the modules of this folder.
NUMBERS_BESIDE = (
    "datasets/filters.py",
    "datasets/media.py",
    "datasets/sources.py",
    "datasets/stimuli.py",
    "datasets/stimulus_sources.py",
    "encoders/products.py",
)


@cache
def code_digest() -> str:
    """Hash of the code that computes features: a changed formula is a changed key."""
    here = Path(__file__).parent
    files = {path.relative_to(here).as_posix(): path for path in here.rglob("*.py")}
    for name in NOT_NUMBERS:
        files.pop(name, None)
    files |= {f"../../{name}": here.parents[1] / name for name in NUMBERS_BESIDE}
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        content = path.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()
