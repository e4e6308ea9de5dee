"""The encoders that `--encoder` names, as `neuralign score` uses them."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from .options import COMPONENTS, TOKEN_ENCODERS

# Where each of them is, and what it is told beside seed and device; penalties are chosen by r2, as those of ridge.
READOUTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "pooled": (".encoders.spatial.ridge", "RidgeReadout", {"reduce": "pooled", "criterion": "r2"}),
    "pca": (".encoders.spatial.ridge", "RidgeReadout", {"reduce": "pca", "criterion": "r2"}),
    "pooling-grid": (".encoders.spatial.pooling_grid", "PoolingGridReadout", {"criterion": "r2"}),
    "factorized": (".encoders.spatial.factorized", "FactorizedReadout", {}),
    "gaussian": (".encoders.spatial.gaussian", "GaussianReadout", {}),
    "semantic": (".encoders.spatial.semantic_transformer", "SemanticTransformerReadout", {}),
    "attention": (".encoders.routing.attention", "AttentionRouter", {}),
    "population": (".encoders.routing.population", "PopulationPriorRidge", {"max_dimension": 128}),
    "in-context": (".encoders.routing.in_context", "InContextEncoder", {}),
}


def encoder_named(name: str, kernel: str | None, seed: int, device: str) -> Any:
    """One of ENCODERS, on features that are standardised with the training rows."""
    from . import encoders

    if name in READOUTS:
        module, class_name, options = READOUTS[name]
        encoder = getattr(importlib.import_module(module, __package__), class_name)
        seeded = {"seed": seed} if "seed" in inspect.signature(encoder).parameters else {}
        return encoder(**options, **seeded, device=device)
    if name == "banded":
        return encoders.BandedRidgeCV(score="r2", seed=seed, device=device)
    if name == "kernel":
        import numpy as np
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        # These two are about 1 where products of standardised rows are about the number of features.
        alphas = None if kernel == "linear" else np.logspace(-6, 4, 21)
        ridge = encoders.KernelRidgeCV(alphas, kernel or "rbf", score="r2", device=device)
        return make_pipeline(StandardScaler(), ridge)
    if name == "pls":
        return encoders.PLSRegression(COMPONENTS, scale=True, score="r2", per_unit=True, device=device)
    return encoders.RidgeCV(score="r2", standardise=True, device=device)


def refuse_without_maps(name: str, stimuli: Any, dataset: str) -> None:
    """An encoder of spatial tokens has nothing to choose between where features have no places."""
    if name in TOKEN_ENCODERS and stimuli is not None and stimuli.kind != "image":
        raise ValueError(
            f"--encoder {name} needs maps of images, and the stimuli of {dataset} are of kind {stimuli.kind!r}; "
            "take ridge"
        )
