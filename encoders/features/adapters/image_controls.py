"""Controls for images: how much contrast there is at each spatial frequency, and what colours there are."""

from __future__ import annotations

from math import pi
from pathlib import Path

import torch
from torch import nn

from ....datasets.filters import luminance
from ..registry import Model, ModelCard, register_model
from ..vision import ImageInputs

_SIZE = 128
_BANDS = 8  # of spatial frequency, equal on a logarithmic scale from 1 cycle per image to the finest
_ORIENTATIONS = 4
_HUES = 8


class _Spectrum(nn.Module):
    """Log power of an image per band of spatial frequency and orientation, and its contrast."""

    window: torch.Tensor
    cells: torch.Tensor

    def __init__(self, size: int = _SIZE) -> None:
        super().__init__()
        window = torch.hann_window(size, periodic=False, dtype=torch.float64)
        weights = torch.outer(window, window)
        # Of mean square 1: a window takes power away, and the same share of every band.
        self.register_buffer("window", (weights / weights.square().mean().sqrt()).float(), persistent=False)
        fy, fx = torch.meshgrid(torch.fft.fftfreq(size), torch.fft.fftfreq(size), indexing="ij")
        cycles = torch.hypot(fx, fy) * size
        band = (torch.log2(cycles.clamp_min(0.5)) / torch.log2(torch.tensor(size / 2)) * _BANDS).floor().long()
        turned = (torch.atan2(fy, fx) / pi * _ORIENTATIONS).round().long() % _ORIENTATIONS
        inside = (cycles >= 1) & (cycles < size / 2)
        self.register_buffer(
            "cells", torch.where(inside, band * _ORIENTATIONS + turned, -1).flatten(), persistent=False
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grey = luminance(x).float()
        deviation = grey - grey.mean((1, 2), keepdim=True)
        power = torch.fft.fft2(deviation * self.window).abs().square().flatten(1) / grey[0].numel() ** 2
        inside = self.cells >= 0
        bands = torch.zeros(len(x), _BANDS * _ORIENTATIONS, device=x.device)
        bands.index_add_(1, self.cells[inside], power[:, inside])
        contrast = deviation.square().mean((1, 2)).sqrt()
        return torch.cat([torch.log10(bands + 1e-8), contrast[:, None]], 1)


class _SpatialFrequency(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spectrum = _Spectrum()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.spectrum(x)


@register_model(
    ModelCard(
        name="spatial-frequency",
        title="Log power of the luminance in 8 bands of spatial frequency x 4 orientations, and its contrast",
        citation="Oliva & Torralba 2001, Int J Comput Vis 42:145",
        licence="BSD-3-Clause",
        modality="image",
        source="built in",
        layers=("spectrum",),
        size="128 x 128",
        preprocessing="RGB, whole image resized",
    )
)
def spatial_frequency_model(weights: Path | None, untrained: bool, seed: int) -> Model:
    return Model("spatial-frequency", _SpatialFrequency(), ImageInputs((_SIZE, _SIZE)))


def cielab(rgb: torch.Tensor) -> torch.Tensor:
    """Colours in CIELAB: lightness, green to red, blue to yellow.

    Parameters
    ----------
    rgb : tensor, shape (image, 3, height, width)
        sRGB within [0, 1].

    Returns
    -------
    tensor, shape (image, 3, height, width)
        L* from 0 to 100, a* and b*, for the white of daylight (D65) and the observer of 2 degrees (CIE 15:2004).
    """
    linear = torch.where(rgb > 0.04045, ((rgb.clamp_min(0) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = rgb.new_tensor(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = torch.einsum("kc,nchw->nkhw", to_xyz, linear) / to_xyz.sum(1)[:, None, None]
    small = 6 / 29
    f = torch.where(xyz > small**3, xyz.clamp_min(1e-12) ** (1 / 3), xyz / (3 * small**2) + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


class _ColourStatistics(nn.Module):
    """Mean, standard deviation and skewness of L*, a* and b*, and how the chroma is spread over hues."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lab = cielab(x.float()).flatten(2)
        mean = lab.mean(2)
        deviation = lab - mean[..., None]
        sd = deviation.square().mean(2).sqrt()
        skewness = torch.where(sd > 1e-3, deviation.pow(3).mean(2) / sd.clamp_min(1e-3) ** 3, 0.0)
        chroma = torch.hypot(lab[:, 1], lab[:, 2])
        # A colour between two hues belongs to both in proportion, so that features do not jump.
        place = torch.atan2(lab[:, 2], lab[:, 1]) % (2 * pi) / (2 * pi) * _HUES
        lower = place.floor()
        hues = torch.zeros(len(x), _HUES, device=x.device)
        hues.scatter_add_(1, lower.long() % _HUES, chroma * (1 - (place - lower)))
        hues.scatter_add_(1, (lower.long() + 1) % _HUES, chroma * (place - lower))
        return torch.cat([mean, sd, skewness, hues / chroma.shape[1]], 1)


class _Colour(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.statistics = _ColourStatistics()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.statistics(x)


@register_model(
    ModelCard(
        name="colour",
        title="Mean, spread and skewness of CIELAB lightness, red-green and blue-yellow, and chroma of 8 hues",
        citation="CIE 15:2004, Colorimetry",
        licence="BSD-3-Clause",
        modality="image",
        source="built in",
        layers=("statistics",),
        size="64 x 64",
        preprocessing="RGB, whole image resized",
    )
)
def colour_model(weights: Path | None, untrained: bool, seed: int) -> Model:
    return Model("colour", _Colour(), ImageInputs((64, 64)))
