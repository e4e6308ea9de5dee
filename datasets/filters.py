"""Gabor energy and texture statistics of images.

They stand on the lowest floor because two rooms need them: the simulated subject is made from them, and the
``gabor`` and ``texture`` control models compute them on any image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

WAVELENGTHS = (4.0, 8.0, 16.0, 32.0)  # pixels of a 64-pixel image: 16, 8, 4 and 2 cycles per image
ORIENTATIONS = 4


def gabor_bank(size: int, wavelengths: Sequence[float] = WAVELENGTHS, orientations: int = ORIENTATIONS) -> np.ndarray:
    """Complex Gabor filters, one octave wide, as transfer functions over spatial frequency.

    A filter is a Gaussian around one frequency on one side of the spectrum only, so that its response is the
    quadrature pair in one complex number, and its modulus the local contrast amplitude (Adelson & Bergen 1985).

    Parameters
    ----------
    size : int
        Height and width, in pixels, of the images that are filtered.
    wavelengths : sequence of float
        Wavelengths in pixels.
    orientations : int
        Number of orientations, evenly spaced over 180 degrees.

    Returns
    -------
    ndarray of float32, shape (wavelength x orientation, size, size)
        Transfer functions in the order of ``numpy.fft.fft2``, wavelength by wavelength, zero at frequency zero.
    """
    fy, fx = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")
    bank = []
    for wavelength in wavelengths:
        centre = 1 / wavelength
        along_sd = centre / 3 / np.sqrt(2 * np.log(2))  # half height at 2/3 and 4/3 of the centre: one octave
        across_sd = centre * np.tan(np.pi / (2 * orientations)) / np.sqrt(2 * np.log(2))
        for k in range(orientations):
            angle = np.pi * k / orientations
            along = fx * np.cos(angle) + fy * np.sin(angle)
            across = -fx * np.sin(angle) + fy * np.cos(angle)
            transfer = np.exp(-((along - centre) ** 2) / (2 * along_sd**2) - across**2 / (2 * across_sd**2))
            transfer[0, 0] = 0
            bank.append(2 * transfer)  # a grating of amplitude one gives a modulus of one
    return np.stack(bank).astype(np.float32)


def gabor_amplitude(images: torch.Tensor, bank: torch.Tensor, margin: int) -> torch.Tensor:
    """Local contrast amplitude of each filter: the root of the energy of its quadrature pair.

    Parameters
    ----------
    images : tensor, shape (image, height, width)
        Grey images.
    bank : tensor, shape (filter, height + 2 margin, width + 2 margin)
        From `gabor_bank` at the padded size.
    margin : int
        Pixels mirrored around the image, so that the border is not wrapped around.

    Returns
    -------
    tensor, shape (image, filter, height, width)
    """
    padded = F.pad(images[:, None], (margin,) * 4, mode="reflect")
    response = torch.fft.ifft2(torch.fft.fft2(padded) * bank)
    return response[..., margin:-margin, margin:-margin].abs()


def texture_statistics(amplitude: torch.Tensor) -> torch.Tensor:
    """Position-free statistics of amplitude maps: log mean per filter, then correlation of every two filters.

    The means say how much contrast an image holds at each scale and orientation, the correlations how scales and
    orientations meet in one place: the magnitude statistics of Portilla & Simoncelli (2000).

    Parameters
    ----------
    amplitude : tensor, shape (image, filter, height, width)

    Returns
    -------
    tensor, shape (image, filter + filter (filter - 1) / 2)
        Correlations in the order of the upper triangle, row by row; 0 where a map is constant.
    """
    maps = amplitude.flatten(2)
    means = maps.mean(2)
    centred = maps - means[..., None]
    unit = centred / centred.norm(dim=2, keepdim=True).clamp_min(1e-12)
    correlation = unit @ unit.transpose(1, 2)
    upper = torch.triu_indices(maps.shape[1], maps.shape[1], offset=1, device=maps.device)
    return torch.cat([torch.log(means + 1e-4), correlation[:, upper[0], upper[1]]], 1)


class EarlyVision:
    """Grey images of a fixed size to amplitude maps, in batches that bound memory.

    Parameters
    ----------
    size : int
        Images are square, `size` pixels wide.
    """

    def __init__(self, size: int = 64) -> None:
        self.size = size
        self.margin = size // 4
        self.bank = torch.from_numpy(gabor_bank(size + 2 * self.margin))

    def amplitude(self, images: torch.Tensor) -> torch.Tensor:
        """Amplitude maps (image, filter, size, size) of grey images (image, size, size)."""
        return gabor_amplitude(images, self.bank.to(images.device), self.margin)


def luminance(images: torch.Tensor) -> torch.Tensor:
    """Luminance (image, height, width) of RGB images (image, 3, height, width), by the weights of ITU-R BT.601."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=images.dtype, device=images.device)
    return torch.einsum("nchw,c->nhw", images, weights)
