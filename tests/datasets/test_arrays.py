import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from neuralign.datasets import Recording, StimulusSet, from_arrays

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
RESPONSES = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
SENTENCES = ["One.", "Two.", "Three.", "Four.", "Five.", "Six."]


def test_one_row_per_stimulus():
    recording = from_arrays(RESPONSES, IMAGES, regions=["V1", "V1", "V4", "IT"])
    assert recording.responses is RESPONSES
    assert list(recording.presentations["stimulus"]) == list(recording.stimuli.ids)
    assert list(recording.units["region"]) == ["V1", "V1", "V4", "IT"]
    np.testing.assert_array_equal(recording.stimuli.images(), IMAGES)
    assert list(from_arrays(RESPONSES, IMAGES, "V4").units["region"]) == ["V4"] * 4
    assert from_arrays(RESPONSES[:, :1], IMAGES).n_units == 1


def test_every_kind_of_stimuli(tmp_path):
    for i, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / f"im{i}.png")
    files = sorted(tmp_path.glob("*.png"))
    for stimuli in (tmp_path, str(tmp_path), files, [str(file) for file in files], IMAGES / 255, list(IMAGES)):
        recording = from_arrays(RESPONSES, stimuli)
        np.testing.assert_array_equal(recording.stimuli.images(), IMAGES)
    assert from_arrays(RESPONSES, files).stimuli.ids[0] == "im0"
    assert from_arrays(RESPONSES, SENTENCES).stimuli.texts() == SENTENCES
    given = StimulusSet.from_images(IMAGES)
    assert from_arrays(RESPONSES, given).stimuli is given
    with pytest.raises(FileNotFoundError, match="nowhere"):
        from_arrays(RESPONSES, tmp_path / "nowhere")


def test_torch_tensors():
    images = torch.from_numpy(IMAGES)
    recording = from_arrays(torch.from_numpy(RESPONSES).requires_grad_(), images)
    np.testing.assert_array_equal(recording.read(), RESPONSES)
    np.testing.assert_array_equal(recording.stimuli.images(), IMAGES)
    half = from_arrays(torch.from_numpy(RESPONSES).to(torch.bfloat16), images)
    np.testing.assert_allclose(half.read(), RESPONSES, rtol=1e-2)


def test_repeats_are_named_by_id_or_position():
    responses = np.arange(48.0).reshape(12, 4)
    order = np.array([3, 1, 0, 2, 5, 4] * 2)
    by_position = from_arrays(responses, IMAGES, stimulus_ids=order)
    by_id = from_arrays(responses, IMAGES, stimulus_ids=[f"image-{i + 1:05d}" for i in order])
    for recording in (by_position, by_id):
        mean = recording.average_repeats().read()
        expected = np.stack([responses[order == i].mean(0) for i in range(6)])
        np.testing.assert_array_equal(mean, expected)
    for ids in (order.astype(float), order.astype(object), torch.from_numpy(order), pd.Series(order)):
        recording = from_arrays(responses, IMAGES, stimulus_ids=ids)
        assert list(recording.presentations["stimulus"]) == list(by_position.presentations["stimulus"])
    # In rows as many as stimuli, numbers are positions too and not names.
    one_each = from_arrays(responses[:6], IMAGES, stimulus_ids=order[:6].astype(float))
    assert list(one_each.presentations["stimulus"]) == list(by_position.presentations["stimulus"][:6])


def test_numbers_that_are_ids_of_other_stimuli_are_refused():
    order = np.array([3, 1, 2, 2, 5, 4])
    named = StimulusSet.from_images(IMAGES, ids=list("012345"))
    assert list(from_arrays(RESPONSES, named, stimulus_ids=order).presentations["stimulus"]) == [str(i) for i in order]
    for ids in (list("543210"), list("123456"), [f"{i:03d}" for i in range(1, 7)]):
        stimuli = StimulusSet.from_images(IMAGES, ids=ids)
        for numbers in (order, order.astype(float)):
            with pytest.raises(ValueError, match="and so are the ids of the stimuli .*strings"):
                from_arrays(RESPONSES, stimuli, stimulus_ids=numbers)
        by_name = from_arrays(RESPONSES, stimuli, stimulus_ids=[ids[i] for i in order])
        assert list(by_name.presentations["stimulus"]) == [ids[i] for i in order]


@pytest.mark.parametrize(
    "responses",
    [
        pd.DataFrame(RESPONSES),
        torch.from_numpy(RESPONSES),
        RESPONSES.tolist(),
        np.ma.masked_array(RESPONSES, RESPONSES > 1),
        np.ma.masked_array((100 * RESPONSES).astype(np.int16), RESPONSES > 1),
    ],
)
def test_whatever_holds_responses_becomes_an_array(responses):
    masked = np.ma.getmaskarray(responses) if isinstance(responses, np.ma.MaskedArray) else np.zeros((6, 4), bool)
    expected = np.where(masked, np.nan, np.ma.getdata(np.asarray(responses)))
    for recording in (from_arrays(responses, IMAGES), Recording(responses, {"stimulus": list("abcdef")})):
        assert type(recording.responses) is np.ndarray
        np.testing.assert_allclose(recording.read(), expected, rtol=1e-6)
    assert list(recording.units["unit"]) == [0, 1, 2, 3]


def test_ids_name_stimuli_that_have_no_names():
    recording = from_arrays(RESPONSES, IMAGES, stimulus_ids=list("fedcba"))
    assert recording.stimuli.ids == tuple("fedcba")
    np.testing.assert_array_equal(recording.stimuli.images(["f"])[0], IMAGES[0])


@pytest.mark.parametrize(
    ("responses", "stimuli", "arguments", "words"),
    [
        (RESPONSES[:5], IMAGES, {}, "5 rows for 6 stimuli.*stimulus_ids"),
        (RESPONSES.T, IMAGES, {}, "4 rows for 6 stimuli.*responses.T"),
        (RESPONSES[:, 0], IMAGES, {}, r"responses\[:, None\]"),
        (RESPONSES[:, :, None], IMAGES, {}, r"\(6, 4, 1\).*np\.repeat\(ids, n_repeats\)"),
        (RESPONSES[:1], IMAGES[:1], {}, "at least two"),
        (RESPONSES * np.nan, IMAGES, {}, "NaN throughout"),
        (np.where(RESPONSES > 1, np.inf, 0), IMAGES, {}, f"{(RESPONSES > 1).sum()} infinite"),
        (RESPONSES, IMAGES, {"regions": ["V1", "V4"]}, "2 names for 4 units"),
        (RESPONSES, IMAGES, {"stimulus_ids": [1, 2, 3]}, "6 rows"),
        (RESPONSES, IMAGES, {"stimulus_ids": [1, 2, 3, 4, 5, 6]}, "count from 1"),
        (RESPONSES, IMAGES, {"stimulus_ids": [0, 1, 2, 3, 4, 4.5]}, "holds 4.5; numbers are positions"),
        (RESPONSES, IMAGES, {"stimulus_ids": [0, 1, 2, 3, 4, np.nan]}, "holds nan; numbers are positions"),
        (3.0, IMAGES, {}, r"shape \(\); expected"),
        ([[1.0, 2.0], [3.0]], IMAGES, {}, "differ in length"),
        (RESPONSES, IMAGES[0], {}, "single image in a list"),
        (RESPONSES, IMAGES, {"stimulus_ids": ["image-00001"] * 5 + ["image-0002"]}, "did you mean"),
        (RESPONSES.astype(complex), IMAGES, {}, "real numbers"),
    ],
)
def test_what_does_not_fit_is_explained(responses, stimuli, arguments, words):
    with pytest.raises(ValueError, match=words):
        from_arrays(responses, stimuli, **arguments)


def test_missing_values_and_times_are_fine():
    responses = RESPONSES.copy()
    responses[:, 2] = np.nan
    assert np.isnan(from_arrays(responses, IMAGES).read()[:, 2]).all()
    recording = from_arrays(RESPONSES[:, :, None].repeat(3, 2), IMAGES, times=[0.1, 0.2, 0.3])
    assert recording.is_time_resolved and recording.responses.shape == (6, 4, 3)
