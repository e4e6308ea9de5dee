"""The demonstration."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from . import align, datasets, encoders

log = logging.getLogger("neuralign")

MODELS = ("pixels", "gabor", "texture", "annotations", "resnet20-cifar-untrained")


def run(out: str | Path = "report.html", seed: int = 0, device: str = "auto") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Simulate a subject, score five models by encoding and by RSA, and write the report.

    Parameters
    ----------
    out : path
        The HTML page.
    seed : int
        Of the subject, the untrained network, folds and resampling.
    device : str
        See `encoders.extract`.

    Returns
    -------
    encoding, geometry : pandas.DataFrame
        Tables of `align.score` and `align.rsa`.
    """
    log.info("simulating 600 scenes and 1200 voxels of V1, V4, FFA and PPA")
    brain = datasets.simulate.visual_cortex(seed=seed)
    log.info("extracting features of %s", ", ".join(MODELS))
    features = [encoders.extract(name, brain.stimuli, reduce=8, seed=seed, device=device) for name in MODELS]
    log.info("scoring by cross-validated ridge regression")
    encoding = align.score(features, brain, encoders.RidgeCV(score="r2", standardise=True, device=device), seed=seed)
    log.info("comparing representational geometries")
    geometry = align.rsa(features, brain, bootstrap=200, permutations=200, seed=seed)
    log.info("drawing the report")
    align.report([encoding, geometry], out)
    return encoding, geometry
