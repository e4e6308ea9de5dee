import numpy as np
import pytest

from neuralign import datasets


@pytest.fixture(scope="module")
def root(real_data):
    return real_data("cowley_v4")


@pytest.fixture(scope="module")
def brain(root):
    return datasets.load("cowley-v4", root=root, session="210325")


def test_mean_over_repeats_is_the_published_mean(root, brain):
    raw = np.load(root / "responses_raw/responses_210325.npy")
    published = np.load(root / "responses_repeat_averaged/responses_210325.npy")
    np.testing.assert_array_equal(np.nanmean(raw, axis=2), published)
    mean = brain.average_repeats()
    np.testing.assert_array_equal(mean.read(), published.T.astype(np.float32))
    assert mean.responses.shape == (640, 50)
    n_repeats = np.isfinite(raw[0]).sum(1)
    np.testing.assert_array_equal(mean.presentations["n_repeats"], n_repeats)
    assert (n_repeats.min(), n_repeats.max()) == (6, 10)


def test_images_are_in_the_order_of_the_responses(brain):
    assert brain.stimuli.ids[:2] == ("image0001", "image0002") and len(brain.stimuli) == 640
    assert brain.stimuli[:3].images().shape == (3, 112, 112, 3)


def median_correlation(a, b):
    """Over units, of (stimulus, unit) responses."""
    return np.median([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)])


def plain_halves(raw, seed):
    """Halves of (unit, image, repeat) counts, one image after the other."""
    rng = np.random.default_rng(seed)
    halves = np.empty((2, raw.shape[1], raw.shape[0]))
    for image in range(raw.shape[1]):
        valid = rng.permutation(np.flatnonzero(np.isfinite(raw[0, image])))
        for k, repeats in enumerate((valid[: len(valid) // 2], valid[len(valid) // 2 :])):
            halves[k, image] = raw[:, image, repeats].mean(1)
    return halves


def test_split_half_reliability_equals_a_plain_loop(root, brain):
    raw = np.load(root / "responses_raw/responses_210325.npy")
    expected = [median_correlation(*plain_halves(raw, seed)) for seed in range(20)]
    found = [median_correlation(*(half.read() for half in brain.split_halves(seed))) for seed in range(20)]
    # Either median varies by 0.005 from split to split, so the means of 20 by about 0.002 between them.
    assert np.mean(found) == pytest.approx(np.mean(expected), abs=0.006)


def test_session_with_means_only(root):
    brain = datasets.load("cowley-v4", root=root, session="201025")
    published = np.load(root / "responses_repeat_averaged/responses_201025.npy")
    np.testing.assert_array_equal(brain.read(), published.T.astype(np.float32))
    assert brain.responses.shape == (1200, 89) == (len(brain.stimuli), 89)


def test_files_are_as_the_card_says(root):
    assert set(datasets.check("cowley-v4", root)["status"]) == {"as expected"}
