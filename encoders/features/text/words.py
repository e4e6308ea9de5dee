"""Which tokens spell which words: by character offsets, from one call of the tokenizer over the whole text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_OF_THE_LAST_CALL = ("truncation", "padding")


@dataclass(frozen=True)
class Alignment:
    """Tokens of a text and the words that they spell.

    Attributes
    ----------
    token_ids : ndarray of int64, shape (token,)
        Without special tokens.
    offsets : ndarray of int64, shape (token, 2)
        Characters from and up to which each token reaches in the text.
    first, last : ndarray of int64, shape (word,)
        Word w is spelled by the tokens ``first[w]`` to ``last[w]``, both included. A token that reaches into two
        words belongs to both.
    """

    token_ids: np.ndarray
    offsets: np.ndarray
    first: np.ndarray
    last: np.ndarray


def align_words(
    words: Sequence[str], tokenizer: Any, joiner: str | Sequence[str] = " ", ids: Sequence[str] | None = None
) -> Alignment:
    """Tokens of a text that is written as words one after another.

    Parameters
    ----------
    words : sequence of str
    tokenizer
        A fast tokenizer of transformers.
    joiner : str or sequence of str
        What stands between words: one string, or one per word, which stands before it (that of the first word is
        not read).
    ids : sequence of str, optional
        What to call the words in an error.

    Returns
    -------
    Alignment

    Raises
    ------
    ValueError
        If the tokenizer gives no offsets, or a word has no token of its own (a character that the tokenizer drops).

    Notes
    -----
    A token spells a word if it covers at least one of its characters. Some tokenizers count the space before a word
    to the word's first token and others do not; either way the token overlaps only the word.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"tokenizer is a {type(tokenizer).__name__}, which does not say which characters a token covers; expected "
            "a fast tokenizer: load it from a folder with tokenizer.json"
        )
    begins, ends, text = _written(words, joiner)
    encoded = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, padding=False, verbose=False
    )
    token_ids = np.asarray(encoded["input_ids"], np.int64)
    offsets = np.asarray(encoded["offset_mapping"], np.int64).reshape(-1, 2)
    # Words are disjoint and in order: the words that a token covers are those from the first that ends after the
    # token's beginning up to the last that begins before the token's end.
    low = np.searchsorted(ends, offsets[:, 0], side="right")
    high = np.searchsorted(begins, offsets[:, 1], side="left")
    high[offsets[:, 0] == offsets[:, 1]] = 0  # a token without characters spells nothing
    tokens = np.arange(len(token_ids))
    first = np.full(len(begins), len(tokens))
    last = np.full(len(begins), -1)
    for step in range(int((high - low).max(initial=0))):  # nearly always one word per token
        reaches = low + step < high
        np.minimum.at(first, low[reaches] + step, tokens[reaches])
        np.maximum.at(last, low[reaches] + step, tokens[reaches])
    lost = np.flatnonzero(last < 0)
    if len(lost):
        name = f"words[{lost[0]}]" if ids is None else repr(ids[lost[0]])
        raise ValueError(
            f"words: {len(lost)} of {len(begins)} have no token (first: {name}, {words[lost[0]]!r}); the "
            "tokenizer drops their characters: spell them in another way or leave them out"
        )
    return Alignment(token_ids, offsets, first, last)


def _written(words: Sequence[str], joiner: str | Sequence[str]) -> tuple[np.ndarray, np.ndarray, str]:
    """Characters at which words begin and end, and the text."""
    joiners = [joiner] * len(words) if isinstance(joiner, str) else list(joiner)
    if len(joiners) != len(words):
        raise ValueError(f"joiner has {len(joiners)} strings for {len(words)} words; give one per word, or one for all")
    parts = [part for before, word in zip(["", *joiners[1:]], words, strict=True) for part in (before, word)]
    ends = np.cumsum([len(part) for part in parts])
    return ends[0::2], ends[1::2], "".join(parts)


def special_tokens(tokenizer: Any, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that a tokenizer puts before and after every text of its own accord, as in the model's training."""
    encoded = tokenizer(text, return_special_tokens_mask=True, truncation=False, padding=False, verbose=False)
    ids, own = encoded["input_ids"], np.flatnonzero(np.asarray(encoded["special_tokens_mask"]) == 0)
    return tuple(ids[: own[0]]), tuple(ids[own[-1] + 1 :])


def tokenizer_digest(tokenizer: Any) -> str:
    """Hash of everything that a tokenizer's ids depend on.

    Not of its settings for truncation and padding: they are those of its last call, and neither is ever done here.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: Any = sorted(tokenizer.get_vocab().items())
    else:
        rules = {key: value for key, value in json.loads(backend.to_str()).items() if key not in _OF_THE_LAST_CALL}
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
