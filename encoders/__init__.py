"""Models of the stimuli, and maps from their features to responses."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .features.adapters.audio import right_edge, sound_windows
    from .features.adapters.checkpoints import load_state
    from .features.adapters.video import clip_frames, on_frames
    from .features.extract import extract, gram, plan
    from .features.pca import PCA
    from .features.reduce import Reduction
    from .features.registry import Model, ModelCard, load_model, model_cards, register_model
    from .features.store import Features
    from .features.text.inputs import WordInputs
    from .features.vision import ImageInputs
    from .linear.attribution import split_r, split_r2
    from .linear.banded import BandedRidgeCV
    from .linear.conventions import from_fraction, from_huth, from_mtrf
    from .linear.delays import Delays
    from .linear.design import SpectralDesign
    from .linear.kernel import KernelRidgeCV
    from .linear.pls import PLSRegression
    from .linear.reduced_rank import ReducedRankRidge
    from .linear.ridge import Ridge, RidgeCV
    from .routing.attention import AttentionRouter
    from .routing.ensemble import LayerEnsemble
    from .routing.in_context import InContextEncoder
    from .routing.learning_curve import learning_curve
    from .routing.maps import RoutingMaps
    from .routing.population import PopulationPriorRidge
    from .spatial.factorized import FactorizedReadout
    from .spatial.gaussian import GaussianReadout
    from .spatial.pooling_grid import PoolingGridReadout
    from .spatial.ridge import RidgeReadout
    from .spatial.semantic_transformer import SemanticTransformerReadout
    from .spatial.store import TokenStore

__all__ = [
    "PCA",
    "AttentionRouter",
    "BandedRidgeCV",
    "Delays",
    "FactorizedReadout",
    "Features",
    "GaussianReadout",
    "ImageInputs",
    "InContextEncoder",
    "KernelRidgeCV",
    "LayerEnsemble",
    "Model",
    "ModelCard",
    "PLSRegression",
    "PoolingGridReadout",
    "PopulationPriorRidge",
    "ReducedRankRidge",
    "Reduction",
    "Ridge",
    "RidgeCV",
    "RidgeReadout",
    "RoutingMaps",
    "SemanticTransformerReadout",
    "SpectralDesign",
    "TokenStore",
    "WordInputs",
    "clip_frames",
    "extract",
    "from_fraction",
    "from_huth",
    "from_mtrf",
    "gram",
    "learning_curve",
    "load_model",
    "load_state",
    "model_cards",
    "on_frames",
    "plan",
    "register_model",
    "right_edge",
    "sound_windows",
    "split_r",
    "split_r2",
]

# torch takes a second to import; a name brings it in when it is first used.
_HOMES = {
    "AttentionRouter": ".routing.attention",
    "BandedRidgeCV": ".linear.banded",
    "Delays": ".linear.delays",
    "FactorizedReadout": ".spatial.factorized",
    "Features": ".features.store",
    "GaussianReadout": ".spatial.gaussian",
    "ImageInputs": ".features.vision",
    "InContextEncoder": ".routing.in_context",
    "KernelRidgeCV": ".linear.kernel",
    "LayerEnsemble": ".routing.ensemble",
    "Model": ".features.registry",
    "ModelCard": ".features.registry",
    "PCA": ".features.pca",
    "PLSRegression": ".linear.pls",
    "PoolingGridReadout": ".spatial.pooling_grid",
    "PopulationPriorRidge": ".routing.population",
    "ReducedRankRidge": ".linear.reduced_rank",
    "Reduction": ".features.reduce",
    "Ridge": ".linear.ridge",
    "RidgeCV": ".linear.ridge",
    "RidgeReadout": ".spatial.ridge",
    "RoutingMaps": ".routing.maps",
    "SemanticTransformerReadout": ".spatial.semantic_transformer",
    "SpectralDesign": ".linear.design",
    "TokenStore": ".spatial.store",
    "WordInputs": ".features.text.inputs",
    "clip_frames": ".features.adapters.video",
    "extract": ".features.extract",
    "from_fraction": ".linear.conventions",
    "from_huth": ".linear.conventions",
    "from_mtrf": ".linear.conventions",
    "gram": ".features.extract",
    "learning_curve": ".routing.learning_curve",
    "load_model": ".features.registry",
    "load_state": ".features.adapters.checkpoints",
    "model_cards": ".features.registry",
    "on_frames": ".features.adapters.video",
    "plan": ".features.extract",
    "register_model": ".features.registry",
    "right_edge": ".features.adapters.audio",
    "sound_windows": ".features.adapters.audio",
    "split_r": ".linear.attribution",
    "split_r2": ".linear.attribution",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
