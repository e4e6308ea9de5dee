"""The simulated subject is what it says: scenes as annotated, regions that compute what is claimed, noise as known."""

import numpy as np
import pandas as pd
import pytest
import torch

from neuralign import align, datasets
from neuralign.datasets.filters import ORIENTATIONS, WAVELENGTHS, EarlyVision, luminance, texture_statistics
from neuralign.datasets.scenes import _PAINTERS, ATTRIBUTES, _paint, dead_leaves, one_over_f
from neuralign.datasets.simulate import IMAGE_SIZE, NCSNR, PREFERRED, REGIONS, visual_cortex

N, V, REPEATS = 160, 40, 3  # more scenes than the 120 statistics that a V4 voxel may weigh


@pytest.fixture(scope="module")
def brain():
    return visual_cortex(N, V, REPEATS, seed=3)


@pytest.fixture(scope="module")
def maps(brain):
    """Amplitude maps (scene, filter, 64, 64) of the pictures that the recording carries."""
    vision = EarlyVision()
    rgb = torch.from_numpy(brain.stimuli.images()).permute(0, 3, 1, 2).float() / 255
    return vision.amplitude(torch.nn.functional.interpolate(luminance(rgb)[:, None], size=64, mode="area")[:, 0])


def signal_of(brain, region):
    return brain.truth["signal"][:, (brain.units["region"] == region).to_numpy()]


def unexplained(features, signal):
    """Weights, and the share of each unit's variance that an exact linear readout with intercept leaves over."""
    design = np.column_stack([np.ones(len(features)), features]).astype(np.float64)
    weights = np.linalg.lstsq(design, signal, rcond=None)[0]
    return weights[1:], ((signal - design @ weights) ** 2).mean(0) / signal.var(0)


# ---------------------------------------------------------------------------------------------------- recording


def test_shapes_and_names(brain):
    assert brain.name == "simulated" and brain.responses.shape == (REPEATS * N, V)
    assert brain.responses.dtype == np.float32 and np.isfinite(brain.responses).all()
    assert brain.stimuli.ids[0] == "scene-00001" and brain.stimuli.ids[-1] == f"scene-{N:05d}"
    assert len(brain.stimuli) == N
    images = brain.stimuli.images()
    assert images.shape == (N, IMAGE_SIZE, IMAGE_SIZE, 3) == (N, 96, 96, 3) and images.dtype == np.uint8
    assert len(np.unique(images.reshape(N, -1), axis=0)) == N
    assert brain.truth["signal"].shape == (N, V)
    np.testing.assert_array_equal(brain.truth["ncsnr"], brain.units["ncsnr"])
    assert brain.units["ncsnr"].between(*NCSNR).all()


def test_regions_share_the_voxels(brain):
    assert brain.units["region"].value_counts().to_dict() == dict.fromkeys(REGIONS, V // 4)
    uneven = visual_cortex(12, 11).units["region"].value_counts()
    assert set(uneven.index) == set(REGIONS) and uneven.sum() == 11 and set(uneven) == {2, 3}
    in_v1 = brain.units["region"] == "V1"
    fields = brain.units[["x", "y", "size"]]
    assert fields[in_v1].notna().all(axis=None) and fields[~in_v1].isna().all(axis=None)
    eccentricity = np.hypot(brain.units["x"] - 0.5, brain.units["y"] - 0.5)[in_v1]
    np.testing.assert_array_equal(eccentricity.argsort(), brain.units["size"][in_v1].argsort())


def test_each_repeat_shows_each_stimulus_once_in_an_order_of_its_own(brain):
    shown = [rows["stimulus"].tolist() for _, rows in brain.presentations.groupby("repeat")]
    assert len(shown) == REPEATS == brain.presentations["session"].nunique()
    for order in shown:
        assert sorted(order) == list(brain.stimuli.ids)
    assert shown[0] != shown[1] != shown[2] != shown[0]


def test_everything_comes_from_the_seed(brain):
    again, other = visual_cortex(N, V, REPEATS, seed=np.random.default_rng(3)), visual_cortex(N, V, REPEATS, seed=4)
    np.testing.assert_array_equal(again.responses, brain.responses)
    np.testing.assert_array_equal(again.truth["signal"], brain.truth["signal"])
    np.testing.assert_array_equal(again.stimuli.images(), brain.stimuli.images())
    pd.testing.assert_frame_equal(again.presentations, brain.presentations)
    pd.testing.assert_frame_equal(again.units, brain.units)
    pd.testing.assert_frame_equal(again.stimuli.objects, brain.stimuli.objects)
    assert (other.stimuli.images() != brain.stimuli.images()).any(axis=(1, 2, 3)).all()
    assert not np.isclose(other.truth["signal"], brain.truth["signal"]).any(axis=0).all()


def test_objects_are_as_annotated(brain):
    objects = brain.stimuli.objects
    attributes = [name for names in ATTRIBUTES.values() for name in names]
    assert list(objects.columns) == ["stimulus", "category", "x", "y", "size", *attributes]
    assert set(objects["stimulus"]) == set(brain.stimuli.ids)
    per_scene = objects.groupby("stimulus")["category"]
    assert set(per_scene.size()) == {1, 2, 3}
    assert (per_scene.nunique() == per_scene.size()).all()
    assert set(objects["category"]) == set(ATTRIBUTES)
    for column in ("x", "y"):
        assert (objects[column] - objects["size"]).ge(0).all() and (objects[column] + objects["size"]).le(1).all()
    for category, names in ATTRIBUTES.items():
        own = objects[objects["category"] == category]
        assert own[list(names)].stack().between(0, 1).all() and own[list(names)].notna().all(axis=None)
        assert own[[name for name in attributes if name not in names]].isna().all(axis=None)


# --------------------------------------------------------------------------------------------- what regions compute


def test_signal_is_standardised(brain):
    np.testing.assert_allclose(brain.truth["signal"].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(brain.truth["signal"].std(0), 1, atol=1e-6)


def pooled_amplitude(maps, x, y, sd):
    """Amplitude (scene, filter) under a Gaussian field, one pixel after the other."""
    size = maps.shape[-1]
    total = np.zeros(maps.shape[:2])
    weight_sum = 0.0
    for row in range(size):
        for column in range(size):
            dx, dy = (column + 0.5) / size - x, (row + 0.5) / size - y
            weight = np.exp(-(dx * dx + dy * dy) / (2 * sd * sd))
            total += weight * maps[:, :, row, column]
            weight_sum += weight
    return total / weight_sum


def test_v1_pools_amplitude_under_its_field_with_a_tuning(brain, maps):
    """From the fields alone the readout is found by regression, and has the shape of the tuning."""
    signal = signal_of(brain, "V1")
    fields = brain.units[brain.units["region"] == "V1"]
    maps = maps.numpy().astype(np.float64)
    pooled = [pooled_amplitude(maps, *field) for field in fields[["x", "y", "size"]].itertuples(index=False)]
    spread = np.stack(pooled, 2).std((0, 2))  # of each filter, over scenes and voxels
    for unit, amplitude in enumerate(pooled):
        weights, left = unexplained(amplitude / spread, signal[:, [unit]])
        assert left[0] < 1e-9
        log_tuning = np.log(weights[:, 0]).reshape(len(WAVELENGTHS), ORIENTATIONS)
        by_octave, by_angle = log_tuning.mean(1), log_tuning.mean(0)
        separable = by_octave[:, None] + by_angle - log_tuning.mean()
        np.testing.assert_allclose(log_tuning, separable, atol=5e-3)
        np.testing.assert_allclose(np.diff(by_octave, 2), -1, atol=5e-3)  # log Gaussian, one octave wide
        a, b, c, d = by_angle - by_angle.mean()  # cos(2 (angle - preferred)) every 45 degrees
        np.testing.assert_allclose([a + c, b + d, a * a + b * b], [0, 0, 1], atol=1e-2)


def test_v1_voxel_sees_nothing_outside_its_field(brain, maps):
    signal = signal_of(brain, "V1")
    fields = brain.units[brain.units["region"] == "V1"].reset_index()
    grid = (np.arange(64) + 0.5) / 64
    for unit, x, y, sd in fields[["x", "y", "size"]].itertuples():
        outside = np.hypot(grid[None, :] - x, grid[:, None] - y) > 4 * sd
        blind = np.where(outside, 0, maps.numpy()).astype(np.float64)
        _, left = unexplained(pooled_amplitude(blind, x, y, sd), signal[:, [unit]])
        assert left[0] < 1e-4
        _, left = unexplained(pooled_amplitude(maps.numpy(), 1 - x, y, sd), signal[:, [unit]])
        assert left[0] > 0.02 or abs(x - 0.5) < 0.05  # a mirrored field does not do


def test_v4_weighs_few_correlations_between_filters(brain, maps):
    signal = signal_of(brain, "V4")
    n_filters = ORIENTATIONS * len(WAVELENGTHS)
    correlations = np.stack([np.corrcoef(scene.reshape(n_filters, -1)) for scene in maps.numpy().astype(float)])
    correlations = correlations[:, *np.triu_indices(n_filters, 1)]
    weights, left = unexplained((correlations - correlations.mean(0)) / correlations.std(0), signal)
    assert left.max() < 1e-6
    used = (np.abs(weights) > 1e-2 * np.abs(weights).max(0)).sum(0)
    assert used.min() >= 1 and 4 <= used.mean() <= 14


def test_texture_statistics_do_not_depend_on_place(maps):
    moved = torch.roll(maps[:20], (17, -9), dims=(2, 3))
    np.testing.assert_allclose(texture_statistics(moved), texture_statistics(maps[:20]), atol=1e-5)
    shuffled = (
        maps[:20]
        .flatten(2)[:, :, torch.randperm(64 * 64, generator=torch.Generator().manual_seed(0))]
        .reshape(20, -1, 64, 64)
    )
    shuffled[:, ::2] = torch.roll(shuffled[:, ::2], 1, dims=3)  # filters no longer meet in one place
    assert (texture_statistics(shuffled) - texture_statistics(maps[:20])).abs().max() > 0.1


@pytest.mark.parametrize("region", PREFERRED)
def test_category_regions_answer_to_attributes_alone(brain, region):
    category = PREFERRED[region]
    objects = brain.stimuli.objects
    seen = objects[objects["category"] == category].set_index("stimulus").reindex(brain.stimuli.ids)
    present = seen["category"].notna().to_numpy()
    signal = signal_of(brain, region)
    assert np.ptp(signal[~present], axis=0).max() == 0
    assert (signal[present].std(0) > 0.1).all()
    centred = np.where(present[:, None], seen[list(ATTRIBUTES[category])] - 0.5, 0)
    weights, left = unexplained(np.column_stack([present, centred]), signal)
    assert left.max() < 1e-12  # nothing is left for place, size, or other objects to explain
    assert np.linalg.matrix_rank(weights[1:], tol=1e-3) == 3  # voxels differ in their weights


# ----------------------------------------------------------------------------------------------------------- noise


def test_noise_is_what_ncsnr_says():
    repeats = 40
    brain = visual_cortex(60, 40, repeats, seed=1)
    signal, ncsnr = brain.truth["signal"], brain.truth["ncsnr"]
    row = {stimulus: i for i, stimulus in enumerate(brain.stimuli.ids)}
    stacked = np.empty((repeats, 60, 40))
    for k, (stimulus, repeat) in enumerate(brain.presentations[["stimulus", "repeat"]].itertuples(index=False)):
        stacked[repeat, row[stimulus]] = brain.responses[k]
    mean = stacked.mean(0)
    percent = (signal * mean).mean(0)  # slope on the standardised signal
    assert ((percent > 0.4) & (percent < 1.6)).all() and percent.std() > 0.1
    np.testing.assert_allclose(mean.mean(0) / percent, 1, atol=0.15)
    noise = np.sqrt(((stacked - mean) ** 2).sum((0, 1)) / (60 * (repeats - 1)))
    ratio = percent / noise / ncsnr  # known to 2 to 4 % per voxel
    np.testing.assert_allclose(ratio, 1, atol=0.12)
    assert ratio.mean() == pytest.approx(1, abs=0.015)
    residual = (stacked - mean) / noise
    assert abs(np.corrcoef(residual[0].ravel(), residual[1].ravel())[0, 1]) < 0.1
    across = np.corrcoef(residual.reshape(-1, 40).T)[np.triu_indices(40, 1)]
    assert np.abs(across).max() < 0.1  # independent over voxels


def test_ceiling_is_the_squared_correlation_of_signal_and_mean(brain):
    mean = brain.average_repeats().read()
    found = np.array([np.corrcoef(s, m)[0, 1] ** 2 for s, m in zip(brain.truth["signal"].T, mean.T, strict=True)])
    ceiling = align.ncsnr_ceiling(brain.truth["ncsnr"], REPEATS)
    assert (found - ceiling).mean() == pytest.approx(0, abs=0.015)
    np.testing.assert_allclose(found, ceiling, atol=0.15)
    assert np.corrcoef(found, ceiling)[0, 1] > 0.9


# ---------------------------------------------------------------------------------------------------------- pictures


def amplitude_slope(images):
    """Of the mean amplitude spectrum against frequency, in log-log, between 3 and 30 cycles per image."""
    size = images.shape[1]
    cycles = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")) * size
    amplitude = np.abs(np.fft.fft2(images.mean(3))).mean(0)
    rings = np.arange(3, 31)
    spectrum = [amplitude[np.abs(cycles - ring) < 0.5].mean() for ring in rings]
    return np.polyfit(np.log(rings), np.log(spectrum), 1)[0]


def test_backgrounds_have_the_spectrum_of_natural_images():
    rng = np.random.default_rng(0)
    noise = np.stack([one_over_f(96, rng) for _ in range(60)])
    leaves = np.stack([dead_leaves(96, rng) for _ in range(60)])
    for images in (noise, leaves):
        assert images.shape == (60, 96, 96, 3) and images.min() >= 0 and images.max() <= 1
    assert ((noise == 0) | (noise == 1)).mean() < 1e-3  # clipping is rare
    assert amplitude_slope(noise) == pytest.approx(-1, abs=0.05)
    assert -1.6 < amplitude_slope(leaves) < -1
    white = rng.uniform(size=(60, 96, 96, 3))
    assert amplitude_slope(white) == pytest.approx(0, abs=0.05)


BACKDROP = np.array([1.0, 0.0, 1.0])  # no object is of this colour


def painted(category, radius, attributes, size=96):
    image = np.tile(BACKDROP, (size, size, 1))
    _paint(image, category, (0.5, 0.5), radius, np.asarray(attributes), np.random.default_rng(0))
    return image


def covered(image):
    return np.abs(image - BACKDROP).max(2) > 0.3


@pytest.mark.parametrize("category", ATTRIBUTES)
def test_painters(category):
    areas = [covered(painted(category, radius, [0.5] * 3)).sum() for radius in (0.125, 0.16, 0.2, 0.25)]
    assert areas == sorted(areas) and areas[3] / areas[0] == pytest.approx(4, rel=0.15)  # twice as wide, same shape
    for attribute in range(3):
        low, high = (painted(category, 0.25, np.where(np.arange(3) == attribute, v, 0.5)) for v in (0.1, 0.9))
        assert (np.abs(low - high).max(2) > 0.1).sum() > 20


@pytest.mark.parametrize("category", ATTRIBUTES)
def test_no_object_is_cut_off(category):
    """The patch that is painted holds all of the object: its layers, drawn over the whole image, cover no more."""
    y, x = (np.mgrid[:96, :96] + 0.5) / 96
    u, v = (x - 0.5) / 0.25, (y - 0.5) / 0.25
    for first, second, third in np.ndindex(2, 2, 9):
        attributes = np.array([first, second, third / 8])
        uncovered = np.prod(
            [1 - cover for cover, _ in _PAINTERS[category](u, v, 1.5 / (0.25 * 96), attributes)], axis=0
        )
        changed = (painted(category, 0.25, attributes) != BACKDROP).any(2)
        np.testing.assert_array_equal(changed, uncovered < 1)


# ---------------------------------------------------------------------------------------------------------- the door


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_stimuli": 1}, "n_stimuli=1 is too few; at least 2"),
        ({"n_units": 3}, "n_units=3 is too few; at least 4"),
        ({"n_repeats": 0}, "n_repeats=0 is too few; at least 1"),
        ({"n_stimuli": 2, "n_units": 4, "seed": 0}, "n_stimuli=2: none of these scenes shows a house, so PPA has no"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        visual_cortex(**arguments)


def test_registry():
    brain = datasets.load("simulated", n_stimuli="40", n_units="8", seed="5")
    assert brain.responses.shape == (120, 8)
    np.testing.assert_array_equal(brain.responses, visual_cortex(40, 8, seed=5).responses)
    for value in ("many", "2.5", 2.5, None):
        with pytest.raises(ValueError, match=r"n_units=.* expected a whole number"):
            datasets.load("simulated", n_stimuli=40, n_units=value)
    assert "simulated" in set(datasets.list()["name"])
