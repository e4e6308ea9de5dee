"""The control for clips: motion energy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from ....datasets.filters import gabor_bank, luminance
from ..registry import Model, ModelCard, register_model
from ..vision import require_kind
from .video import sample_frames

if TYPE_CHECKING:
    from ....datasets.stimuli import StimulusSet

RATE = 15.0  # frames per second
SPEEDS = (0.0, 2.0, 4.0)  # cycles per second
DIRECTIONS = 8  # those of still patterns are half as many: there is no telling left from right
WAVELENGTHS = (8.0, 16.0, 32.0)  # pixels of a 64-pixel frame: 8, 4 and 2 cycles per frame
_SPREAD = 1.0  # cycles per second: standard deviation of a filter over temporal frequency
_SIZE, _GRID = 64, 4
_MARGIN, _BEFORE = 16, 8  # pixels around a frame, frames around a clip


class MotionEnergy(nn.Module):
    """Amplitude of quadrature pairs in space and time, each for one direction, speed and size of pattern.

    Notes
    -----
    A filter is a Gaussian around one point of the spectrum over (x, y, t), so that its response is the quadrature pair
    in one complex number and its modulus the motion energy of Adelson & Bergen (1985), as a root: a drifting grating
    of amplitude one gives one. The bank is that of Nishimoto et al. (2011) with three temporal frequencies, eight
    directions and three spatial frequencies, over a grid of 4 x 4 places.
    """

    bank: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        # Of 2 DIRECTIONS orientations over 180 degrees, every second, and the same turned around.
        bank = torch.from_numpy(gabor_bank(_SIZE + 2 * _MARGIN, WAVELENGTHS, DIRECTIONS // 2))
        self.register_buffer("bank", bank, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From clips (clip, frame, 3, 64, 64) to (clip, frame, filter x place)."""
        n, frames = x.shape[:2]
        grey = luminance(x.flatten(0, 1).float()).unflatten(0, (n, frames))
        grey = F.pad(grey, (_MARGIN,) * 4, mode="reflect")
        # The first and last frame stand still: turned around in time they would show the opposite motion.
        grey = torch.cat([grey[:, :1].expand(-1, _BEFORE, -1, -1), grey, grey[:, -1:].expand(-1, _BEFORE, -1, -1)], 1)
        spectrum = torch.fft.fft(grey, dim=1)
        frequency = torch.fft.fftfreq(grey.shape[1], 1 / RATE, device=x.device)
        found = []
        for speed in SPEEDS:
            for sign in (1, -1) if speed else (1,):
                # A pattern cos(2 pi (f.x - w t)) lies at (f, -w): forward motion has the sign of w against f.
                passed = torch.exp(-((frequency + sign * speed) ** 2) / (2 * _SPREAD**2))
                moving = torch.fft.fft2(torch.fft.ifft(spectrum * passed[:, None, None], dim=1)[:, _BEFORE:-_BEFORE])
                for transfer in self.bank:
                    amplitude = torch.fft.ifft2(moving * transfer)[..., _MARGIN:-_MARGIN, _MARGIN:-_MARGIN].abs()
                    found.append(F.adaptive_avg_pool2d(amplitude, _GRID).flatten(2))
        return torch.stack(found, 2).flatten(2)


def filters() -> np.ndarray:
    """Direction in degrees (counterclockwise on the screen from rightward), cycles per second and per frame width.

    Returns
    -------
    ndarray, shape (filter, 3)
        In the order of the features; places vary fastest, see `MotionEnergy`.
    """
    rows = []
    for speed in SPEEDS:
        for sign in (1, -1) if speed else (1,):
            for wavelength in WAVELENGTHS:
                for k in range(DIRECTIONS // 2):
                    angle = -180 * k / (DIRECTIONS // 2) + (0 if sign == 1 else 180)  # rows of an image grow downward
                    rows.append((angle % 360, speed, _SIZE / wavelength))
    return np.array(rows)


class _Motion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.energy = MotionEnergy()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.energy(x)


@dataclass(frozen=True)
class WholeClips:
    """Whole clips at one frame rate; a batch holds clips of one length."""

    by_item = True
    size = _SIZE
    rate = RATE

    def batches(self, stimuli: StimulusSet, size: int) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        require_kind(stimuli, "clip")
        waiting: dict[int, list[tuple[int, torch.Tensor]]] = {}
        for row in range(len(stimuli)):
            clip = self._read(stimuli, row)
            alike = waiting.setdefault(len(clip), [])
            alike.append((row, clip))
            if len(alike) == min(size, max(1, 512 // len(clip))):
                yield self._batch(waiting.pop(len(clip)))
        for alike in waiting.values():
            yield self._batch(alike)

    def spec(self) -> Mapping[str, Any]:
        return {"reader": type(self).__name__, "size": self.size, "rate": self.rate}

    def digest(self, stimuli: StimulusSet) -> str:
        # Frames per second are an annotation, which the hash of the content leaves out.
        return stimuli.content_hash + (f" {stimuli.table['fps'].tolist()}" if "fps" in stimuli.table else "")

    def _read(self, stimuli: StimulusSet, row: int) -> torch.Tensor:
        clip, fps = stimuli.clip(row)
        frames = 1 if not fps > 0 else max(1, int(len(clip) / fps * self.rate + 1e-6))
        try:
            shown = sample_frames(len(clip), frames, fps, self.rate)
        except ValueError as error:
            raise ValueError(f"stimulus {stimuli.ids[row]!r}: {error}") from error
        resized = [
            np.asarray(Image.fromarray(clip[i]).resize((self.size,) * 2, Image.Resampling.BICUBIC)) for i in shown
        ]
        return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)

    @staticmethod
    def _batch(alike: list[tuple[int, torch.Tensor]]) -> tuple[list[int], dict[str, torch.Tensor]]:
        return [row for row, _ in alike], {"x": torch.stack([clip for _, clip in alike]).float() / 255}


def _clock(layer: str, shape: tuple[int, ...], stimuli: StimulusSet) -> np.ndarray | None:
    return (np.arange(shape[0]) + 0.5) / RATE if len(shape) == 2 else None


@register_model(
    ModelCard(
        name="motion-energy",
        title="Motion energy: 8 directions at 2 and 4 Hz, 4 still orientations, each at 3 sizes, on a 4 x 4 grid",
        citation="Adelson & Bergen 1985, J Opt Soc Am A 2:284; Nishimoto et al. 2011, Curr Biol 21:1641",
        licence="BSD-3-Clause",
        modality="clip",
        source="built in",
        layers=("energy",),
        size="64 x 64 at 15 frames per second",
        preprocessing="RGB, whole frames resized",
    )
)
def motion_energy_model(weights: Path | None, untrained: bool, seed: int) -> Model:
    return Model("motion-energy", _Motion(), WholeClips(), pool="mean", clock=_clock, special_tokens=0)
