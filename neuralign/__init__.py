"""Score how well the layers of a model predict the responses of a brain."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import align, datasets, encoders

try:
    __version__ = version("neuralign")
except PackageNotFoundError:  # a source tree on the path that was never installed
    __version__ = "unknown"

__all__ = ["__version__", "align", "datasets", "encoders"]


def __getattr__(name: str) -> ModuleType:
    if name in ("align", "datasets", "encoders"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'neuralign' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
