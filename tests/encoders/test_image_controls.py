"""Controls for images against plain recomputation and known colours."""

import numpy as np
import pytest
import torch

from neuralign.datasets import StimulusSet
from neuralign.encoders import extract
from neuralign.encoders.features.adapters.image_controls import cielab


def _grating(cycles, angle, size=128, contrast=0.3):
    y, x = np.mgrid[:size, :size] / size
    wave = 0.5 + contrast * np.sin(2 * np.pi * cycles * (x * np.cos(angle) + y * np.sin(angle)))
    return np.repeat(np.uint8(np.round(255 * wave))[..., None], 3, -1)


def test_a_grating_falls_into_its_band_and_orientation():
    cycles, angles = (1.3, 6.0, 20.0, 50.0), (0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
    images = [_grating(c, a) for c in cycles for a in angles]
    spectrum = extract("spatial-frequency", StimulusSet.from_images(images), cache=False)["spectrum"]
    assert spectrum.shape == (16, 33)
    for row, (c, k) in enumerate((c, k) for c in cycles for k in range(4)):
        band = int(np.log2(c) / np.log2(64) * 8)
        assert spectrum[row, :32].argmax() == band * 4 + k, (c, k)


def test_power_and_contrast_are_those_of_the_image():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (128, 128, 3), np.uint8)
    found = extract("spatial-frequency", StimulusSet.from_images([image]), cache=False)["spectrum"][0]
    grey = image @ np.array([0.299, 0.587, 0.114]) / 255
    assert found[32] == pytest.approx(grey.std(), rel=1e-5)
    window = np.outer(np.hanning(128), np.hanning(128))
    power = np.abs(np.fft.fft2((grey - grey.mean()) * window / np.sqrt((window**2).mean()))) ** 2 / 128**4
    frequency = np.fft.fftfreq(128) * 128
    slow = np.zeros((8, 4))
    for i in range(128):
        for j in range(128):
            cycles = np.hypot(frequency[i], frequency[j])
            if 1 <= cycles < 64:
                turn = int(np.rint(np.arctan2(frequency[i], frequency[j]) / np.pi * 4)) % 4
                slow[int(np.floor(np.log2(cycles) / 6 * 8 + 1e-6)), turn] += power[i, j]
    # Powers of two lie on the edge of a band, where float32 may round either way.
    np.testing.assert_allclose(10 ** found[:32].reshape(8, 4).sum(0), 10 ** np.log10(slow).sum(0), rtol=0.3)
    np.testing.assert_allclose((10 ** found[:32]).sum(), slow.sum(), rtol=1e-4)


def test_a_flat_image_has_no_power_and_no_colour():
    flat = StimulusSet.from_images(np.full((2, 64, 64, 3), 128, np.uint8))
    spectrum = extract("spatial-frequency", flat, cache=False)["spectrum"]
    np.testing.assert_allclose(spectrum[:, :32], -8, atol=1e-3)
    np.testing.assert_allclose(spectrum[:, 32], 0, atol=1e-6)
    colour = extract("colour", flat, cache=False)["statistics"]
    assert colour[0, 0] == pytest.approx(53.585, abs=0.01)  # L* of the middle grey 128
    np.testing.assert_allclose(colour[:, 1:], 0, atol=0.02)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [  # corners of sRGB in CIELAB for D65, as colour tables have them
        ((1, 1, 1), (100.0, 0.0, 0.0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
    ],
)
def test_known_colours(rgb, lab):
    found = cielab(torch.tensor(rgb, dtype=torch.float32)[None, :, None, None])[0, :, 0, 0]
    np.testing.assert_allclose(found, lab, atol=0.02)


def test_colour_statistics_equal_a_plain_computation():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (3, 64, 64, 3), np.uint8)
    images[1] = images[1] // 4  # a dark one
    found = extract("colour", StimulusSet.from_images(images), cache=False)["statistics"]
    assert found.shape == (3, 17)
    for image, row in zip(images, found, strict=True):
        lab = cielab(torch.from_numpy(image / 255.0).permute(2, 0, 1)[None])[0].flatten(1).numpy()
        np.testing.assert_allclose(row[:3], lab.mean(1), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(row[3:6], lab.std(1), rtol=1e-4)
        skewness = ((lab - lab.mean(1, keepdims=True)) ** 3).mean(1) / lab.std(1) ** 3
        np.testing.assert_allclose(row[6:9], skewness, atol=1e-3)
        hues = np.zeros(8)
        for a, b in lab[1:].T:
            place = np.arctan2(b, a) % (2 * np.pi) / (np.pi / 4)
            for k in (int(place), int(place) + 1):
                hues[k % 8] += np.hypot(a, b) * (1 - abs(place - k))
        np.testing.assert_allclose(row[9:], hues / 64**2, rtol=1e-3, atol=1e-3)


def test_hue_says_which_colour_there_is():
    patches = np.zeros((2, 64, 64, 3), np.uint8)
    patches[0, ..., 0] = patches[1, ..., 2] = 255
    red, blue = extract("colour", StimulusSet.from_images(patches), cache=False)["statistics"][:, 9:]
    assert red.argmax() == 1  # 40 degrees
    assert blue.argmax() == 7  # 306 degrees
