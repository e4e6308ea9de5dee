"""Models without weights: the controls that every trained model must beat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from ...datasets.filters import EarlyVision, luminance, texture_statistics
from .registry import Model, ModelCard, register_model
from .vision import ImageInputs

if TYPE_CHECKING:
    from ...datasets.stimuli import StimulusSet


class _Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pixels = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pixels(x)


@register_model(
    ModelCard(
        name="pixels",
        title="RGB pixels of the image at 32 x 32",
        citation="none needed",
        licence="BSD-3-Clause",
        modality="image",
        source="built in",
        layers=("pixels",),
    )
)
def pixels_model(weights: Path | None, untrained: bool, seed: int) -> Model:
    return Model("pixels", _Pixels(), ImageInputs((32, 32)))


class _Amplitude(nn.Module):
    """Gabor amplitude of the luminance of square images."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.vision = EarlyVision(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.vision.amplitude(luminance(x))


class _Gabor(nn.Module):
    def __init__(self, size: int = 64, grid: int = 8) -> None:
        super().__init__()
        self.amplitude = _Amplitude(size)
        self.energy = nn.AdaptiveAvgPool2d(grid)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.energy(self.amplitude(x))


@register_model(
    ModelCard(
        name="gabor",
        title="Gabor pyramid: contrast amplitude of quadrature pairs, 4 scales x 4 orientations on an 8 x 8 grid",
        citation="Adelson & Bergen 1985, J Opt Soc Am A 2:284; Kay et al. 2008, Nature 452:352",
        licence="BSD-3-Clause",
        modality="image",
        source="built in",
        layers=("energy",),
    )
)
def gabor_model(weights: Path | None, untrained: bool, seed: int) -> Model:
    return Model("gabor", _Gabor(), ImageInputs((64, 64)))


class _Statistics(nn.Module):
    def forward(self, amplitude: torch.Tensor) -> torch.Tensor:
        return texture_statistics(amplitude)


class _Texture(nn.Module):
    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.amplitude = _Amplitude(size)
        self.statistics = _Statistics()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.statistics(self.amplitude(x))


@register_model(
    ModelCard(
        name="texture",
        title="Texture statistics: mean Gabor amplitudes and their correlations, pooled over the image",
        citation="Portilla & Simoncelli 2000, Int J Comput Vis 40:49",
        licence="BSD-3-Clause",
        modality="image",
        source="built in",
        layers=("statistics",),
    )
)
def texture_model(weights: Path | None, untrained: bool, seed: int) -> Model:
    return Model("texture", _Texture(), ImageInputs((64, 64)))


def encode_annotations(stimuli: StimulusSet) -> pd.DataFrame:
    """Numbers from the annotations that travel with the stimuli.

    Of the objects, per category: how many there are, and the sum of every numeric attribute that the category has.
    Of the table: numeric and true/false columns as they are, text columns as one indicator per value. A missing
    value counts as 0.

    Returns
    -------
    pandas.DataFrame
        One row per stimulus, one column per feature.

    Raises
    ------
    ValueError
        If the stimuli carry no annotation that varies, objects lack a category, or a column holds times.
    """
    parts = []
    if stimuli.objects is not None and len(stimuli.objects):
        if "category" not in stimuli.objects:
            raise ValueError(
                f"objects has columns {list(stimuli.objects.columns)}; the annotations need a column 'category', "
                "the kind of each object"
            )
        for category, objects in stimuli.objects.groupby("category"):
            by_stimulus = objects.groupby("stimulus")
            counts = by_stimulus.size().rename("count").to_frame()
            attributes = objects.select_dtypes("number").dropna(axis=1, how="all").columns
            summed = counts.join(by_stimulus[list(attributes)].sum())
            parts.append(summed.reindex(stimuli.ids).add_prefix(f"{category}."))
    if stimuli.table is not None:
        table = stimuli.table
        times = table.select_dtypes(["datetime", "datetimetz", "timedelta"]).columns
        if len(times):
            raise ValueError(f"table: columns {list(times)} hold times; turn them into numbers or leave them out")
        numbers = table.select_dtypes(["number", "bool"])
        texts = table.drop(columns=numbers.columns)
        parts += [numbers, *([pd.get_dummies(texts, dtype=float)] if texts.shape[1] else [])]
    encoded = pd.concat(parts, axis=1).fillna(0).astype("float32") if parts else pd.DataFrame()
    encoded = encoded.loc[:, encoded.nunique() > 1]
    if encoded.shape[1] == 0:
        raise ValueError("stimuli carry no annotations that vary: give the StimulusSet a table= or objects=")
    return encoded


@dataclass(frozen=True)
class TableInputs:
    """Reads annotations instead of the stimuli themselves."""

    def batches(self, stimuli: StimulusSet, size: int) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        values = encode_annotations(stimuli).to_numpy(np.float32)
        yield list(range(len(stimuli))), {"x": torch.from_numpy(values.copy())}

    def spec(self) -> Mapping[str, Any]:
        return {"reader": type(self).__name__}

    def digest(self, stimuli: StimulusSet) -> str:
        return stimuli.table_hash


class _Annotations(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.annotations = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.annotations(x)


@register_model(
    ModelCard(
        name="annotations",
        title="Semantic labels of the stimuli: categories, their attributes, and the columns of the stimulus table",
        citation="Huth et al. 2012, Neuron 76:1210 (encoding by hand-labelled categories)",
        licence="BSD-3-Clause",
        modality="any annotated stimuli",
        source="built in",
        layers=("annotations",),
    )
)
def annotations_model(weights: Path | None, untrained: bool, seed: int) -> Model:
    return Model("annotations", _Annotations(), TableInputs())
