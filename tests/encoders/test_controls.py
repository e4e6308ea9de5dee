"""The built-in models against slow references."""

import numpy as np
import pandas as pd
import pytest
import torch

from neuralign.datasets import StimulusSet
from neuralign.datasets.filters import EarlyVision, gabor_bank, luminance, texture_statistics
from neuralign.encoders import extract
from neuralign.encoders.features.controls import encode_annotations


def test_a_grating_drives_its_own_filter_with_its_own_amplitude():
    vision = EarlyVision(64)
    y, x = np.mgrid[:64, :64]
    for wavelength, k in ((4, 0), (8, 1), (16, 3)):
        angle = np.pi * k / 4
        phase = 2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / wavelength
        for shift in (0, 1.3):  # a quadrature pair does not see the phase
            grating = torch.from_numpy(0.5 + 0.3 * np.sin(phase + shift)).float()[None]
            centre = vision.amplitude(grating)[0, :, 24:40, 24:40].mean((1, 2)).numpy()
            best = [4, 8, 16, 32].index(wavelength) * 4 + k
            assert centre.argmax() == best
            assert centre[best] == pytest.approx(0.3, rel=0.05)


def test_amplitude_equals_convolution_in_space():
    rng = np.random.default_rng(0)
    size, margin = 24, 6
    bank = gabor_bank(size + 2 * margin, wavelengths=(6.0,), orientations=2)
    image = rng.uniform(size=(size, size))
    padded = np.pad(image, margin, mode="reflect")
    from neuralign.datasets.filters import gabor_amplitude

    found = gabor_amplitude(torch.from_numpy(image)[None].float(), torch.from_numpy(bank), margin)[0].numpy()
    n = len(padded)
    for f, transfer in enumerate(bank):
        kernel = np.fft.ifft2(transfer)
        for row, column in [(0, 0), (5, 17), (23, 23)]:
            total = sum(
                kernel[(row + margin - i) % n, (column + margin - j) % n] * padded[i, j]
                for i in range(n)
                for j in range(n)
            )
            assert found[f, row, column] == pytest.approx(abs(total), rel=1e-4)


def test_texture_statistics_are_means_and_correlations():
    maps = torch.from_numpy(np.random.default_rng(1).gamma(2, size=(3, 5, 8, 8))).float()
    found = texture_statistics(maps).numpy()
    for i, image in enumerate(maps.numpy()):
        flat = image.reshape(5, -1)
        np.testing.assert_allclose(found[i, :5], np.log(flat.mean(1) + 1e-4), atol=1e-5)
        np.testing.assert_allclose(found[i, 5:], np.corrcoef(flat)[np.triu_indices(5, 1)], atol=1e-5)


def test_texture_does_not_see_where_things_are():
    maps = torch.rand(2, 4, 8, 8)
    moved = torch.roll(maps, (3, 2), (2, 3))
    np.testing.assert_allclose(texture_statistics(maps), texture_statistics(moved), atol=1e-5)


def test_models_agree_with_their_parts():
    stimuli = StimulusSet.from_images(np.random.default_rng(2).integers(0, 256, (3, 64, 64, 3), np.uint8))
    rgb = torch.from_numpy(stimuli.images()).permute(0, 3, 1, 2).float() / 255
    amplitude = EarlyVision(64).amplitude(luminance(rgb))
    cells = amplitude.reshape(3, 16, 8, 8, 8, 8).mean((3, 5)).flatten(2).transpose(1, 2)
    np.testing.assert_allclose(extract("gabor", stimuli, cache=False)["energy"], cells, atol=1e-5)
    found = extract("texture", stimuli, cache=False)["statistics"]
    np.testing.assert_allclose(found, texture_statistics(amplitude), atol=1e-5)
    small = StimulusSet.from_images(stimuli.images(size=32))
    pixels = extract("pixels", small, cache=False)["pixels"]
    np.testing.assert_allclose(pixels, small.images().reshape(3, -1, 3) / 255.0, atol=1e-6)


def test_annotations_from_objects_and_table():
    objects = pd.DataFrame(
        {
            "stimulus": ["a", "a", "b", "c"],
            "category": ["face", "face", "house", "face"],
            "size": [0.1, 0.2, 0.4, 0.3],
            "smile": [1.0, 0.5, np.nan, 0.0],
        }
    )
    table = pd.DataFrame({"lit": [True, False, True], "scene": ["in", "out", "in"], "same": 1}, index=list("abc"))
    images = np.zeros((3, 4, 4, 3), np.uint8)
    stimuli = StimulusSet.from_images(images, ids=list("abc"), table=table, objects=objects)
    found = encode_annotations(stimuli)
    expected = {
        "face.count": [2, 0, 1],
        "face.size": [0.3, 0, 0.3],
        "face.smile": [1.5, 0, 0],
        "house.count": [0, 1, 0],
        "house.size": [0, 0.4, 0],
        "lit": [1, 0, 1],
        "scene_in": [1, 0, 1],
        "scene_out": [0, 1, 0],
    }
    assert set(found.columns) == set(expected)  # what does not vary is not there
    for column, values in expected.items():
        np.testing.assert_allclose(found[column], values, atol=1e-6)
    features = extract("annotations", stimuli, cache=False)
    np.testing.assert_allclose(features["annotations"], found)


def test_annotations_need_something_that_varies():
    stimuli = StimulusSet.from_images(np.zeros((3, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="carry no annotations that vary"):
        extract("annotations", stimuli, cache=False)


def test_annotations_that_cannot_be_numbers_are_named():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    objects = pd.DataFrame({"stimulus": ["a", "b"], "size": [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"\['stimulus', 'size'\]; the annotations need a column 'category'"):
        encode_annotations(StimulusSet.from_images(images, ids=["a", "b"], objects=objects))
    table = pd.DataFrame({"taken": pd.to_datetime(["2020-01-01", "2021-01-01"])})
    with pytest.raises(ValueError, match=r"columns \['taken'\] hold times"):
        encode_annotations(StimulusSet.from_images(images, ids=["a", "b"], table=table))
