"""The mel spectrogram against an independent one."""

import numpy as np
import pytest

from neuralign.datasets import StimulusSet
from neuralign.encoders import extract
from neuralign.encoders.features.adapters.sound_controls import filter_bank, hertz, mel


def test_the_scale_goes_there_and_back():
    assert mel(np.array([1000.0])) == pytest.approx(15)
    assert mel(np.array([6400.0])) == pytest.approx(42)
    frequencies = np.linspace(0, 8000, 500)
    np.testing.assert_allclose(hertz(mel(frequencies)), frequencies, atol=1e-8)


def test_filters_equal_those_of_transformers():
    from transformers.audio_utils import mel_filter_bank

    theirs = mel_filter_bank(201, 80, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(filter_bank().T, theirs, atol=1e-12)


def test_the_spectrogram_equals_that_of_transformers():
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    rng = np.random.default_rng(0)
    sound = np.float32(rng.normal(scale=0.1, size=8000))
    found = extract("mel", StimulusSet.from_sounds([sound], 16000), reduce="none", cache=False)["mel"][0]
    theirs = spectrogram(
        sound,
        window_function(400, "hann"),
        frame_length=400,
        hop_length=160,
        center=False,
        power=2.0,
        mel_filters=mel_filter_bank(201, 80, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney"),
        log_mel="log10",
        mel_floor=1e-10,
    )
    np.testing.assert_allclose(found, theirs.T, atol=1e-4)


def test_a_tone_peaks_in_its_band_whatever_the_sampling_rate():
    for rate in (16000, 44100):
        t = np.arange(rate) / rate
        tones = [np.float32(0.5 * np.sin(2 * np.pi * f * t)) for f in (300, 1000, 4000)]
        found = extract("mel", StimulusSet.from_sounds(tones, rate), cache=False)["mel"]
        centres = hertz(np.linspace(0, mel(8000.0), 82))[1:-1]
        for row, f in zip(found, (300, 1000, 4000), strict=True):
            assert centres[row.argmax()] == pytest.approx(f, rel=0.1)


def test_times_of_frames_and_sounds_of_any_length():
    rng = np.random.default_rng(1)
    sounds = [np.float32(rng.normal(scale=0.1, size=n)) for n in (4000, 5000, 4000)]
    assert extract("mel", StimulusSet.from_sounds(sounds, 16000), cache=False)["mel"].shape == (3, 80)
    alike = extract("mel", StimulusSet.from_sounds(sounds[::2], 16000), reduce="none", cache=False)
    n = alike["mel"].shape[1]
    assert n == 1 + (4000 - 400) // 160
    np.testing.assert_allclose(alike.times["mel"], (np.arange(n) * 160 + 200) / 16000)


def test_a_sound_too_short_is_named():
    with pytest.raises(ValueError, match=r"sound-00001.*at least 400"):
        extract("mel", StimulusSet.from_sounds([np.zeros(100, np.float32)], 16000), cache=False)
