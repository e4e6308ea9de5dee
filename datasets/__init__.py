"""Brains and stimuli: recordings with what was shown, by name, from one's own arrays, or simulated."""

if __name__ == "datasets":
    raise ImportError("the checkout root is on sys.path; use python -P or the neuralign command")

from importlib import import_module
from types import ModuleType

from .arrays import from_arrays
from .rdms import RDMs
from .recording import Recording
from .registry import check, info, load
from .registry import list_datasets as list
from .stimuli import StimulusSet
from .timeseries import TimeSeries

__all__ = [
    "RDMs",
    "Recording",
    "StimulusSet",
    "TimeSeries",
    "check",
    "from_arrays",
    "info",
    "list",
    "load",
    "simulate",
]


def __getattr__(name: str) -> ModuleType:
    if name == "simulate":
        return import_module(".simulate", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
