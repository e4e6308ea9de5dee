"""The page of a report and the figures in it."""

import numpy as np
import pandas as pd
from scipy.spatial.distance import pdist

from neuralign.align.score import Evidence, Score, tabulate
from neuralign.datasets.rdms import RDMs

REGIONS = ("V1", "V2", "V4", "IT")
MODELS = {
    "resnet20-cifar": ("layer1", "layer2", "layer3", "head"),
    "texture": ("moments", "statistics"),
    "dino-small": ("blocks.3", "blocks.8"),
    "pixels": ("pixels",),
    "untrained": ("random",),
}
LAYERS = [(model, layer) for model, layers in MODELS.items() for layer in layers]
DEMO_UNITS, DEMO_STIMULI = 1200, 60


def _mean_scores(rng):
    """(layer, region): every region peaks one layer later than the one before."""
    depth = {pair: (k + 1) / len(MODELS[pair[0]]) for pair in LAYERS for k in [MODELS[pair[0]].index(pair[1])]}
    peak = np.linspace(0.3, 0.95, len(REGIONS))
    table = np.array([[0.62 - 0.5 * (depth[pair] - at) ** 2 for at in peak] for pair in LAYERS])
    table -= 0.05 * np.array([list(MODELS).index(model) for model, _ in LAYERS])[:, None]
    return table + rng.normal(0, 0.015, table.shape)


def demo_scores(subjects=("m1",), dataset="demo-v4", seed=0):
    """Encoding scores as align.score gives them, with NaN cells and a region without a ceiling."""
    rng = np.random.default_rng(seed)
    scores, units = [], []
    region_of = rng.choice(REGIONS, DEMO_UNITS)
    for subject in subjects:
        mean = _mean_scores(rng)
        mean[6, 1] = np.nan
        ceilings = np.clip(rng.normal(0.74, 0.12, DEMO_UNITS), 0.1, 0.98)
        ceilings[region_of == "V2"] = np.nan
        for (model, layer), row in zip(LAYERS, mean, strict=True):
            per_unit = row[[REGIONS.index(name) for name in region_of]] * np.nan_to_num(ceilings, nan=0.7) / 0.74
            per_unit = per_unit + rng.normal(0, 0.07, DEMO_UNITS)
            frame = pd.DataFrame({"model": model, "layer": layer, "subject": subject, "region": region_of})
            frame["unit"] = [f"u{k}" for k in range(DEMO_UNITS)]
            units.append(frame.assign(metric="r", score=per_unit, ceiling=ceilings))
            for region, value in zip(REGIONS, row, strict=True):
                mine = region_of == region
                common = {"model": model, "layer": layer, "dataset": dataset, "subject": subject, "region": region}
                common |= {"n_units": int(mine.sum()), "n_stimuli": 600, "seed": seed}
                common |= {"formula": "encoding-1 RidgeCV cv=5 ceiling=split-half ci=stimuli p=stimuli"}
                limit = float(ceilings[mine].mean()) if region != "V2" else np.nan
                bounds = {"ci_low": value - 0.02, "ci_high": value + 0.022, "p": 0.001}
                scores.append(Score(metric="r", score=value, ceiling=limit, **bounds, **common))
                scores.append(Score(metric="r2", score=value**2, ceiling=limit**2, **common))
    provenance = {
        "made": "2026-11-21T12:00:00+00:00",
        "command": "neuralign score demo --seed 0",
        "versions": {"neuralign": "0.1.0", "torch": "2.6"},
        "options": {"seed": seed, "encoder": "RidgeCV()"},
    }
    return tabulate(scores, Evidence(units=pd.concat(units, ignore_index=True), provenance=provenance))


def demo_rsa(n_stimuli=DEMO_STIMULI, subjects=2, thumbnails=True, seed=1):
    """RSA scores as align.rsa gives them; stimuli are blobs whose colour and size the regions represent."""
    rng = np.random.default_rng(seed)
    kinds = np.arange(n_stimuli) * 5 // n_stimuli
    latent = np.clip(rng.random((5, 2))[kinds] + rng.normal(0, 0.09, (n_stimuli, 2)), 0, 1)
    colour = np.stack([0.25 + 0.7 * latent[:, 0], np.full(n_stimuli, 0.55), 0.95 - 0.7 * latent[:, 0]], 1)
    ids = [f"s{k:03d}" for k in range(n_stimuli)]
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    inside = (x**2 + y**2)[None] < (0.15 + 0.8 * latent[:, 1])[:, None, None]
    images = np.where(inside[..., None], colour[:, None, None], 0.93)
    vectors, rows = [], []
    for k, (model, layer) in enumerate(LAYERS):
        vectors.append(pdist(latent * [1, 0.1 + 0.1 * k] + rng.normal(0, 0.06, latent.shape)))
        rows.append({"kind": "model", "model": model, "layer": layer, "label": f"{model} {layer}"})
    for k, region in enumerate(REGIONS):
        for subject in range(subjects):
            vectors.append(pdist(latent * [1, 0.1 + 0.3 * k] + rng.normal(0, 0.12, latent.shape)))
            one = f"s{subject + 1}"
            rows.append({"kind": "brain", "region": region, "subject": one, "label": f"{region} {one}"})
    rdms = RDMs(np.array(vectors), ids, pd.DataFrame(rows), "euclidean")
    mean = _mean_scores(rng) * 0.8
    scores = [
        Score(
            model=model,
            layer=layer,
            dataset="demo-v4",
            subject=f"group of {subjects}",
            region=region,
            metric="rho-a",
            score=value,
            ceiling=0.66,
            ceiling_low=0.58,
            ci_low=value - 0.04,
            ci_high=value + 0.04,
            p=0.002,
            n_units=300,
            n_stimuli=n_stimuli,
            formula="rsa-euclidean-rho-a-1: mean over subjects; ci: bootstrap over stimuli",
            seed=seed,
        )
        for region, column in zip(REGIONS, mean.T, strict=True)
        for (model, layer), value in zip(LAYERS, column, strict=True)
    ]
    pictures = (255 * images).astype(np.uint8) if thumbnails else None
    provenance = {"analysis": "rsa", "rdm": "euclidean", "bootstrap": 1000, "seed": seed}
    return tabulate(scores, Evidence(rdms=rdms, thumbnails=pictures, provenance=provenance))
