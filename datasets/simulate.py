"""A simulated subject whose computations are known: the ground truth that every encoder and comparison must recover."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .recording import Recording
from .registry import DatasetCard, register
from .scenes import ATTRIBUTES, scenes
from .stimuli import StimulusSet

IMAGE_SIZE = 96
REGIONS = ("V1", "V4", "FFA", "PPA")
PREFERRED = {"FFA": "face", "PPA": "house"}
NCSNR = (0.6, 1.6)  # range over voxels: with three repeats, 52 to 88 % of the variance can be explained


def visual_cortex(
    n_stimuli: int = 600, n_units: int = 1200, n_repeats: int = 3, seed: int | np.random.Generator = 0
) -> Recording:
    """Simulate the responses of four visual regions to procedural scenes.

    A quarter of the voxels each:

    - **V1** pools Gabor amplitude over a retinotopic receptive field that grows with eccentricity, tuned to an
      orientation and a spatial frequency;
    - **V4** weighs texture statistics of the whole image: how the amplitudes of two filters go together over space;
    - **FFA** and **PPA** answer to a face or a house wherever it stands and however large it is, each voxel with its
      own weights on the three attributes of its category.

    Noise is Gaussian and independent over repeats. Its standard deviation is set per voxel through `ncsnr`, the
    standard deviation of the signal over that of the noise, so that the noise ceiling is known exactly:
    ``ncsnr**2 / (ncsnr**2 + 1 / n_repeats)`` of the variance of the mean over repeats.

    Parameters
    ----------
    n_stimuli, n_units, n_repeats : int
        Scenes, voxels in all (a multiple of four is split evenly), and presentations of each scene.
    seed : int or numpy.random.Generator
        Everything random comes from it.

    Returns
    -------
    Recording
        Responses (presentation, unit) in percent signal change. ``units`` has region, ncsnr and, for V1, the
        receptive field (x, y, size in fractions of the image). ``stimuli.objects`` lists every object with
        category, place, size and attributes. ``truth`` holds the noiseless ``signal`` (stimulus, unit), standardised
        over the stimuli, and ``ncsnr`` (unit,).
    """
    for argument, value, least in (("n_stimuli", n_stimuli, 2), ("n_units", n_units, 4), ("n_repeats", n_repeats, 1)):
        if value < least:
            raise ValueError(f"{argument}={value} is too few; at least {least} are needed")
    rng = np.random.default_rng(seed)
    images, objects = scenes(n_stimuli, IMAGE_SIZE, rng)
    ids = np.array([f"scene-{i:05d}" for i in range(1, n_stimuli + 1)])
    for name, category in PREFERRED.items():
        if category not in set(objects["category"]):
            raise ValueError(
                f"n_stimuli={n_stimuli}: none of these scenes shows a {category}, so {name} has no signal; "
                "take more scenes or another seed"
            )
    objects.insert(0, "stimulus", ids[objects.pop("scene")])
    stimuli = StimulusSet.from_images(images, ids=list(ids), objects=objects)

    v1, v4 = _early_features(images)
    region = np.sort(np.arange(n_units) % len(REGIONS))  # as even as can be, region by region
    units = pd.DataFrame({"region": np.array(REGIONS)[region], "subject": "simulated"})
    n_in = np.bincount(region, minlength=len(REGIONS))
    v1_signal, fields = _v1(v1, n_in[0], rng)
    units = units.join(fields)
    signal = np.concatenate(
        [v1_signal, _v4(v4, n_in[1], rng)]
        + [_category(objects, ids, PREFERRED[name], n, rng) for name, n in zip(REGIONS[2:], n_in[2:], strict=True)],
        axis=1,
    )
    signal = (signal - signal.mean(0)) / signal.std(0)

    ncsnr = np.exp(rng.uniform(np.log(NCSNR[0]), np.log(NCSNR[1]), n_units))
    units["ncsnr"] = ncsnr
    percent = rng.uniform(0.5, 1.5, n_units)  # percent signal change per standard deviation of the signal
    responses = np.empty((n_repeats, n_stimuli, n_units), np.float32)
    order = np.empty((n_repeats, n_stimuli), int)
    for repeat in range(n_repeats):
        order[repeat] = rng.permutation(n_stimuli)
        noise = rng.standard_normal((n_stimuli, n_units), np.float32)
        responses[repeat] = (1 + signal[order[repeat]] + noise / ncsnr) * percent
    presentations = pd.DataFrame(
        {
            "stimulus": ids[order.ravel()],
            "repeat": np.repeat(np.arange(n_repeats), n_stimuli),
            "session": np.repeat(np.arange(1, n_repeats + 1), n_stimuli).astype(str),
        }
    )
    return Recording(
        responses.reshape(-1, n_units),
        presentations,
        units,
        stimuli=stimuli,
        name="simulated",
        truth={"signal": signal, "ncsnr": ncsnr},
    )


def _early_features(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Amplitude maps (image, filter, size, size) and texture statistics (image, statistic) of RGB images."""
    import torch

    from .filters import EarlyVision, luminance, texture_statistics

    vision = EarlyVision()
    maps, statistics = [], []
    for start in range(0, len(images), 64):
        rgb = torch.from_numpy(images[start : start + 64]).permute(0, 3, 1, 2).float() / 255
        grey = torch.nn.functional.interpolate(luminance(rgb)[:, None], size=vision.size, mode="area")[:, 0]
        amplitude = vision.amplitude(grey)
        maps.append(amplitude.numpy())
        statistics.append(texture_statistics(amplitude).numpy())
    return np.concatenate(maps), np.concatenate(statistics)


def _v1(maps: np.ndarray, n_units: int, rng: np.random.Generator) -> tuple[np.ndarray, pd.DataFrame]:
    """Amplitude under a Gaussian field, weighed by tuning to orientation (von Mises) and frequency (log Gaussian)."""
    from .filters import ORIENTATIONS, WAVELENGTHS

    n_stimuli, n_filters, size, _ = maps.shape
    x, y = rng.uniform(0.1, 0.9, (2, n_units))
    sd = 0.08 + 0.12 * np.hypot(x - 0.5, y - 0.5)
    grid = (np.arange(size) + 0.5) / size
    field = np.exp(
        -((grid - x[:, None]) ** 2)[:, None, :] / (2 * sd**2)[:, None, None]
        - ((grid - y[:, None]) ** 2)[:, :, None] / (2 * sd**2)[:, None, None]
    ).reshape(n_units, -1)
    field /= field.sum(1, keepdims=True)
    angle = np.pi * np.arange(ORIENTATIONS) / ORIENTATIONS
    octave = np.log2(np.array(WAVELENGTHS))
    preferred_angle = rng.uniform(0, np.pi, (n_units, 1))
    preferred_octave = rng.uniform(octave.min(), octave.max(), (n_units, 1))
    tuning = np.einsum(
        "uf,uo->ufo",
        np.exp(-((octave - preferred_octave) ** 2) / 2),
        np.exp(np.cos(2 * (angle - preferred_angle))),
    ).reshape(n_units, n_filters)
    # Filters have different typical amplitudes; tuning weighs them in units of their own spread.
    pooled = maps.reshape(n_stimuli * n_filters, -1) @ field.T.astype(np.float32)
    pooled = pooled.reshape(n_stimuli, n_filters, n_units)
    pooled = pooled / pooled.std((0, 2), keepdims=True)
    return np.einsum("sfu,uf->su", pooled, tuning), pd.DataFrame({"x": x, "y": y, "size": sd})


def _v4(statistics: np.ndarray, n_units: int, rng: np.random.Generator) -> np.ndarray:
    """Random weights, several statistics a voxel, on the correlations between filters."""
    from .filters import ORIENTATIONS, WAVELENGTHS

    correlations = statistics[:, ORIENTATIONS * len(WAVELENGTHS) :]
    standard = (correlations - correlations.mean(0)) / correlations.std(0)
    weights = rng.standard_normal((standard.shape[1], n_units))
    weights *= rng.uniform(size=weights.shape) < 8 / len(weights)
    weights[rng.integers(0, len(weights), n_units), np.arange(n_units)] += 1  # none is left without a weight
    return standard @ weights


def _category(
    objects: pd.DataFrame, ids: np.ndarray, category: str, n_units: int, rng: np.random.Generator
) -> np.ndarray:
    """Presence of a category plus weighted attributes of the object, whatever its place and size."""
    attributes = list(ATTRIBUTES[category])
    seen = objects[objects["category"] == category].groupby("stimulus")[attributes].sum().reindex(ids)
    present = seen.notna().all(axis=1).to_numpy(float)
    values = np.where(present[:, None] > 0, seen.to_numpy() - 0.5, 0)
    return 0.5 * present[:, None] + values @ rng.normal(0, 1, (len(attributes), n_units))


@register(
    DatasetCard(
        name="simulated",
        title="Simulated visual cortex: V1, V4, FFA and PPA voxels with known computations, 600 procedural scenes",
        citation="neuralign, neuralign.datasets.simulate.visual_cortex",
        licence="BSD-3-Clause",
        modality="fMRI (simulated)",
        source="made on the spot; needs no files",
        selection={
            "n_stimuli": "number of scenes (600)",
            "n_units": "number of voxels (1200)",
            "n_repeats": "presentations of each scene (3)",
            "seed": "seed of everything random (0)",
        },
        needs_root=False,
    )
)
def load_simulated(
    root: Path | None = None, n_stimuli: Any = 600, n_units: Any = 1200, n_repeats: Any = 3, seed: Any = 0
) -> Recording:
    """Registry entry of `visual_cortex`; numbers may come as text from the command line."""
    return visual_cortex(
        _whole("n_stimuli", n_stimuli), _whole("n_units", n_units), _whole("n_repeats", n_repeats), _whole("seed", seed)
    )


def _whole(argument: str, value: Any) -> int:
    try:
        number = int(value)
        exact = isinstance(value, str) or number == value
    except (TypeError, ValueError, OverflowError):
        exact = False
    if not exact:
        raise ValueError(f"{argument}={value!r}; expected a whole number")
    return number
