"""The control for sounds: a mel spectrogram."""

from __future__ import annotations

from math import log
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..registry import Model, ModelCard, register_model
from .audio import SoundInputs

if TYPE_CHECKING:
    from ....datasets.stimuli import StimulusSet

RATE, WINDOW, HOP, BINS = 16000, 400, 160, 80  # hertz; 25 ms every 10 ms
_LINEAR, _STEP = 1000.0, 200 / 3  # hertz: the scale is linear up to 1000, 15 mels


def mel(hertz: np.ndarray | float) -> np.ndarray:
    """Pitch on the mel scale of Slaney (1998): linear up to 1000 Hz, logarithmic above."""
    hertz = np.asarray(hertz, float)
    above = _LINEAR / _STEP + np.log(np.maximum(hertz, _LINEAR) / _LINEAR) * 27 / log(6.4)
    return np.where(hertz < _LINEAR, hertz / _STEP, above)


def hertz(mels: np.ndarray | float) -> np.ndarray:
    """The inverse of `mel`."""
    mels = np.asarray(mels, float)
    knee = _LINEAR / _STEP
    return np.where(mels < knee, mels * _STEP, _LINEAR * np.exp(np.maximum(mels - knee, 0) * log(6.4) / 27))


def filter_bank(rate: int = RATE, window: int = WINDOW, bins: int = BINS) -> np.ndarray:
    """Triangles over frequency, equally spaced in mels from 0 Hz to half the sampling rate, each of area one.

    Returns
    -------
    ndarray, shape (bin, window // 2 + 1)
    """
    frequencies = np.fft.rfftfreq(window, 1 / rate)
    edges = hertz(np.linspace(0, mel(rate / 2), bins + 2))[:, None]
    rising = (frequencies - edges[:-2]) / np.diff(edges[:-1], axis=0)
    falling = (edges[2:] - frequencies) / np.diff(edges[1:], axis=0)
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])


class _Mel(nn.Module):
    """Log10 of the power in each mel band, (sound, frame, band)."""

    window: torch.Tensor
    bank: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("bank", torch.from_numpy(filter_bank()).float(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frames = x.float().unfold(1, WINDOW, HOP)
        power = torch.fft.rfft(frames * self.window).abs().square()
        return torch.log10((power @ self.bank.T).clamp_min(1e-10))


class _MelSpectrogram(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mel = _Mel()

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        return self.mel(input_values)


def _clock(layer: str, shape: tuple[int, ...], stimuli: StimulusSet) -> np.ndarray | None:
    return (np.arange(shape[0]) * HOP + WINDOW / 2) / RATE if len(shape) == 2 else None


@register_model(
    ModelCard(
        name="mel",
        title="Log mel spectrogram: 80 bands, windows of 25 ms every 10 ms",
        citation="Slaney 1998, Auditory Toolbox, Interval Research report 1998-010",
        licence="BSD-3-Clause",
        modality="sound",
        source="built in",
        layers=("mel",),
        size="16000 Hz",
        preprocessing="one channel, resampled",
    )
)
def mel_model(weights: Path | None, untrained: bool, seed: int) -> Model:
    inputs = SoundInputs(RATE, normalise=False, shortest=WINDOW)
    return Model("mel", _MelSpectrogram(), inputs, pool="mean", clock=_clock, special_tokens=0)
