"""Procedural scenes: textured objects of known category, place, size and attributes before natural backgrounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

# What each category can vary in; every attribute is uniform on [0, 1].
ATTRIBUTES: dict[str, tuple[str, str, str]] = {
    "face": ("eye_distance", "smile", "hair"),
    "house": ("roof", "windows", "brightness"),
    "tool": ("length", "head", "tilt"),
    "flower": ("petals", "depth", "hue"),
}


def _ramp(distance: np.ndarray, softness: float) -> np.ndarray:
    """Coverage from signed distance: one inside, zero outside, an antialiased edge of `softness` between."""
    return np.clip(0.5 - distance / softness, 0, 1)


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB of a hue on the circle [0, 1)."""
    phase = (hue + np.array([0, 2 / 3, 1 / 3])) % 1
    return value * (1 - saturation * (1 - np.clip(np.abs(phase * 6 - 3) - 1, 0, 1)))


def one_over_f(size: int, rng: np.random.Generator) -> np.ndarray:
    """Coloured noise whose amplitude falls as one over spatial frequency, like that of natural images."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij"))
    frequency[0, 0] = np.inf
    spectrum = rng.standard_normal((3, 2, *frequency.shape))
    planes = np.fft.irfft2((spectrum[:, 0] + 1j * spectrum[:, 1]) / frequency, s=(size, size))
    planes /= planes.std((1, 2), keepdims=True)
    light, warm, green = planes
    rgb = np.stack([light + 0.35 * warm, light + 0.3 * green, light - 0.35 * warm], 2)
    return np.clip(rng.uniform(0.35, 0.6) + rng.uniform(0.07, 0.15) * rgb, 0, 1)


def dead_leaves(size: int, rng: np.random.Generator, n_leaves: int = 70) -> np.ndarray:
    """Discs that occlude each other, radii by a power law: the edges and scales of natural images (Lee et al. 2001)."""
    y, x = np.mgrid[:size, :size] / size
    image = np.broadcast_to(_colour(rng.uniform(), 0.25, rng.uniform(0.3, 0.7)), (size, size, 3)).copy()
    smallest, largest = 0.03, 0.45
    radii = 1 / np.sqrt(rng.uniform(largest**-2, smallest**-2, n_leaves))  # density ~ radius^-3
    for radius in np.sort(radii)[::-1]:
        cx, cy = rng.uniform(-0.1, 1.1, 2)
        colour = _colour(rng.uniform(), rng.uniform(0.1, 0.45), rng.uniform(0.2, 0.8))
        cover = _ramp(np.hypot(x - cx, y - cy) - radius, 1.5 / size)[..., None]
        image += cover * (colour - image)
    return image


Layer = tuple[np.ndarray, np.ndarray]  # coverage (height, width) and colour (3,) or (height, width, 3)


def _face(u: np.ndarray, v: np.ndarray, soft: float, a: np.ndarray) -> list[Layer]:
    eye_distance, smile, hair = a
    head = np.hypot(u / 0.75, v / 0.95) - 1
    layers = [
        (_ramp(np.hypot(u / 0.85, (v + 0.1) / 1.0) - 0.98, soft), _colour(0.08, 0.6 * hair, 0.15 + 0.7 * hair)),
        (_ramp(np.maximum(head, -v - 0.55), soft), np.array([0.9, 0.72, 0.6])),
    ]
    for side in (-1, 1):
        x = side * (0.16 + 0.28 * eye_distance)
        layers.append((_ramp((np.hypot((u - x) / 1.4, v + 0.15) - 0.1) * 2, soft), np.array([0.95, 0.95, 0.95])))
        layers.append((_ramp((np.hypot(u - x, v + 0.15) - 0.07) * 2, soft), np.array([0.1, 0.1, 0.15])))
    layers.append((_ramp(np.hypot(u / 0.6, (v - 0.12) / 1.6) - 0.1, soft), np.array([0.75, 0.5, 0.42])))
    curve = v - 0.48 - 3 * (smile - 0.5) * (0.08 - u**2)
    layers.append((_ramp(np.maximum(np.abs(curve) - 0.06, np.abs(u) - 0.36), soft), np.array([0.6, 0.15, 0.18])))
    return layers


def _house(u: np.ndarray, v: np.ndarray, soft: float, a: np.ndarray) -> list[Layer]:
    roof, windows, brightness = a
    eaves = -0.15
    height = 0.25 + 0.6 * roof
    gable = np.maximum((eaves - v) / height + np.abs(u) / 0.95 - 1, v - eaves)
    wall = np.maximum(np.abs(u) - 0.78, np.abs(v - 0.4) - 0.55)
    layers = [
        (_ramp(wall, soft), np.array([1, 0.92, 0.78]) * (0.35 + 0.6 * brightness)),
        (_ramp(gable * 0.6, soft), np.array([0.5, 0.2, 0.14])),
        (_ramp(np.maximum(np.abs(u) - 0.12, np.abs(v - 0.7) - 0.25), soft), np.array([0.25, 0.16, 0.1])),
    ]
    half = 0.06 + 0.16 * windows
    for x in (-0.45, 0.45):
        for y in (0.12, 0.62):
            pane = np.maximum(np.abs(u - x) - half, np.abs(v - y) - half)
            layers.append((_ramp(pane, soft), np.array([0.2, 0.3, 0.5])))
    return layers


def _tool(u: np.ndarray, v: np.ndarray, soft: float, a: np.ndarray) -> list[Layer]:
    length, head, tilt = a
    angle = np.pi * tilt
    along, across = u * np.cos(angle) + v * np.sin(angle), -u * np.sin(angle) + v * np.cos(angle)
    reach = 0.4 + 0.55 * length
    handle = np.maximum(np.abs(along) - reach, np.abs(across) - 0.09)
    block = np.maximum(np.abs(along - reach) - 0.16, np.abs(across) - 0.18 - 0.4 * head)
    return [
        (_ramp(handle, soft), np.array([0.55, 0.38, 0.2])),
        (_ramp(block, soft), np.array([0.45, 0.47, 0.52])),
    ]


def _flower(u: np.ndarray, v: np.ndarray, soft: float, a: np.ndarray) -> list[Layer]:
    petals, depth, hue = a
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    edge = 0.95 * (1 - (0.1 + 0.5 * depth) * 0.5 * (1 + np.cos((4 + np.round(5 * petals)) * angle)))
    return [
        (_ramp((radius - edge) * 0.7, soft), _colour(hue, 0.6, 0.9)),
        (_ramp(radius - 0.28, soft), np.array([0.95, 0.8, 0.25])),
    ]


_PAINTERS: dict[str, Callable[[np.ndarray, np.ndarray, float, np.ndarray], list[Layer]]] = {
    "face": _face,
    "house": _house,
    "tool": _tool,
    "flower": _flower,
}


def _paint(
    image: np.ndarray,
    category: str,
    centre: tuple[float, float],
    radius: float,
    attributes: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Draw one object into `image`; centre and radius in fractions of the image's width."""
    size = image.shape[0]
    reach = 1.3 * radius  # the head of a long tool juts out
    left, right = (int(np.clip((centre[0] + s * reach) * size, 0, size)) for s in (-1, 1))
    top, bottom = (int(np.clip((centre[1] + s * reach) * size, 0, size)) for s in (-1, 1))
    y, x = np.mgrid[top:bottom, left:right] + 0.5
    u, v = (x / size - centre[0]) / radius, (y / size - centre[1]) / radius
    patch = image[top:bottom, left:right]
    # A fine grating of random orientation over the whole object: its surface texture.
    angle, cycles = rng.uniform(0, np.pi), rng.uniform(3, 6)
    grain = 1 + rng.uniform(0.06, 0.18) * np.sin(2 * np.pi * cycles * (u * np.cos(angle) + v * np.sin(angle)))
    for cover, colour in _PAINTERS[category](u, v, 1.5 / (radius * size), attributes):
        patch += cover[..., None] * (np.clip(colour * grain[..., None], 0, 1) - patch)


def _place(rng: np.random.Generator, taken: list[tuple[float, float, float]], radius: float) -> tuple[float, float]:
    """A centre inside the image, away from the objects already there if one is found in a few tries."""
    for _ in range(30):
        x, y = rng.uniform(radius, 1 - radius, 2)
        if all(np.hypot(x - cx, y - cy) > 0.9 * (radius + r) for cx, cy, r in taken):
            break
    return float(x), float(y)


def scenes(n_stimuli: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, pd.DataFrame]:
    """Draw scenes of one to three objects of different categories.

    Parameters
    ----------
    n_stimuli : int
        Number of scenes.
    size : int
        Height and width in pixels.
    rng : numpy.random.Generator
        Source of everything random.

    Returns
    -------
    images : ndarray of uint8, shape (n_stimuli, size, size, 3)
    objects : pandas.DataFrame
        One row per object: scene (row of `images`), category, x, y, size (centre and half width in fractions of
        the image), and the category's attributes, NaN in the columns of other categories.
    """
    categories = list(ATTRIBUTES)
    images = np.empty((n_stimuli, size, size, 3), np.uint8)
    objects = []
    for scene in range(n_stimuli):
        image = (one_over_f if rng.uniform() < 0.5 else dead_leaves)(size, rng)
        taken: list[tuple[float, float, float]] = []
        for category in rng.choice(categories, rng.integers(1, 4), replace=False):
            radius = float(rng.uniform(0.13, 0.25))
            x, y = _place(rng, taken, radius)
            taken.append((x, y, radius))
            attributes = rng.uniform(0, 1, 3)
            _paint(image, category, (x, y), radius, attributes, rng)
            objects.append(
                {"scene": scene, "category": category, "x": x, "y": y, "size": radius}
                | dict(zip(ATTRIBUTES[category], attributes, strict=True))
            )
        images[scene] = np.round(image * 255)
    names = [name for attributes in ATTRIBUTES.values() for name in attributes]
    return images, pd.DataFrame(objects, columns=["scene", "category", "x", "y", "size", *names])
