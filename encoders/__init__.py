"""Models of the stimuli, and maps from their features to responses."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .features.extract import extract
    from .features.registry import Model, ModelCard, load_model, model_cards, register_model
    from .features.store import Features
    from .features.vision import ImageInputs
    from .linear.ridge import RidgeCV

__all__ = [
    "Features",
    "ImageInputs",
    "Model",
    "ModelCard",
    "RidgeCV",
    "extract",
    "load_model",
    "model_cards",
    "register_model",
]

# torch takes a second to import; a name brings it in when it is first used.
_HOMES = {
    "Features": ".features.store",
    "ImageInputs": ".features.vision",
    "Model": ".features.registry",
    "ModelCard": ".features.registry",
    "RidgeCV": ".linear.ridge",
    "extract": ".features.extract",
    "load_model": ".features.registry",
    "model_cards": ".features.registry",
    "register_model": ".features.registry",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
