"""Words of continuous texts into windows of token ids, and features of tokens into features of words.

Words come as a `StimulusSet` of kind "word": ``StimulusSet.from_words(words, onsets, durations, runs)``. The column
``run`` of its table says which words belong to one text (one run if there is no such column); within a run words are
read in the order of their ``onset`` (as they stand, if there is none). An optional column ``joiner`` holds what is
written before each word, a space if there is none: for writing without spaces, or punctuation in rows of its own.
A word's context is what stands before it in its run, within the set that is given: a subset has a shorter one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from ....datasets.errors import unknown
from ..vision import require_kind
from .surprisal import SURPRISAL
from .windows import own_windows, shared_windows
from .words import align_words, special_tokens, tokenizer_digest

if TYPE_CHECKING:
    from ....datasets.stimuli import StimulusSet

POOLS = ("last", "mean", "sum", "first")
EDGES = ("right", "centre")
_TOKENS = 8192  # of one batch: more only take memory, a processor is busy with these


@dataclass(frozen=True)
class _Plan:
    """Windows of a stimulus set.

    Attributes
    ----------
    texts : list of ndarray of int64
        Token ids of each run.
    spans : ndarray of int, shape (window, 3)
        Run, start and stop of each window.
    window, first, last : ndarray of int, shape (word,)
        Window that a word is kept from, and its tokens in the run.
    before, after : tuple of int
        Special tokens around every window.
    """

    texts: list[np.ndarray]
    spans: np.ndarray
    window: np.ndarray
    first: np.ndarray
    last: np.ndarray
    before: tuple[int, ...]
    after: tuple[int, ...]

    def ids(self, window: int) -> list[int]:
        run, start, stop = self.spans[window]
        return [*self.before, *self.texts[run][start:stop].tolist(), *self.after]


@dataclass(frozen=True)
class WordInputs:
    """A tokenizer that reads words in their context.

    A model that reads from left to right passes over each run once, in windows that overlap where the run is longer
    than the model's context; a model that reads in both directions gets one window per word. A batch holds windows
    of one length only: nothing is padded.

    Attributes
    ----------
    tokenizer
        A fast tokenizer of transformers.
    longest : int or None
        Tokens that the model has positions for.
    causal : bool
        Whether the model reads from left to right.
    context : (int, int) or None
        Fewest and most tokens of context, the word's own included. Words near the start of a run have what there
        is. Equal numbers give each word a window of its own of exactly so many tokens: 1 / stride times the work.
        Default: as many as the model reads, and at least half as many and one. For a model that reads in both
        directions, only the second counts.
    pool : {"last", "mean", "sum", "first"}
        What becomes of the tokens of one word.
    bos : bool or None
        Put the token that begins a text before every window, for a causal model; None where the tokenizer does so
        of its own accord. It counts as one of the positions, not as context.
    edge : {"right", "centre"}
        For a model that reads in both directions: nothing follows the word, or it stands in the middle.
    """

    tokenizer: Any
    longest: int | None = None
    causal: bool = True
    context: tuple[int, int] | None = None
    pool: str = "last"
    bos: bool | None = None
    edge: str = "right"
    _plans: WeakKeyDictionary[StimulusSet, _Plan] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    leaves_out = ("pooler",)  # of models like BERT: it speaks of a window and not of its words
    # A run's first token has no probability where no special token precedes it.
    undefined = {SURPRISAL: "nothing precedes the first token of a run (WordInputs(bos=True) puts a token there)"}  # noqa: RUF012

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise ValueError(unknown("pool", self.pool, POOLS))
        if self.edge not in EDGES:
            raise ValueError(unknown("edge", self.edge, EDGES))
        if self.context is not None:
            _check_context(self.context)

    def __reduce__(self) -> tuple[Any, ...]:  # for other processes: plans belong to the objects of this one
        settings = (self.longest, self.causal, self.context, self.pool, self.bos, self.edge)
        return type(self), (self.tokenizer, *settings)

    def batches(
        self, stimuli: StimulusSet, size: int, rows: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """Windows that the words at `rows` (default all) are kept from.

        Yields
        ------
        rows : list of int
            Positions of words in the stimuli.
        batch : dict
            ``input_ids`` and ``attention_mask`` (window, token); ``index`` (row, 3): the window in this batch that
            a word is kept from, and its first and last token in it. `gather` takes it.
        """
        plan = self._plan(stimuli)
        wanted = np.arange(len(stimuli)) if rows is None else np.asarray(rows, int)
        wanted = wanted[np.argsort(plan.window[wanted], kind="stable")]
        needed, begins = np.unique(plan.window[wanted], return_index=True)
        words_of = dict(zip(needed.tolist(), np.split(wanted, begins[1:]), strict=True))
        lengths = plan.spans[needed, 2] - plan.spans[needed, 1]
        for length in np.unique(lengths):
            alike = needed[lengths == length].tolist()
            step = max(1, min(size, _TOKENS // int(length)))
            for start in range(0, len(alike), step):
                yield self._batch(plan, alike[start : start + step], words_of)

    def _batch(
        self, plan: _Plan, chosen: Sequence[int], words_of: Mapping[int, np.ndarray]
    ) -> tuple[list[int], dict[str, torch.Tensor]]:
        index, rows = [], []
        for position, window in enumerate(chosen):
            words = words_of[window]
            shift = len(plan.before) - plan.spans[window, 1]
            where = np.full(len(words), position)
            index.append(np.stack([where, plan.first[words] + shift, plan.last[words] + shift], axis=1))
            rows.extend(words.tolist())
        ids = torch.tensor([plan.ids(window) for window in chosen])
        return rows, {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "index": torch.from_numpy(np.concatenate(index)),
        }

    def gather(self, layer: str, output: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Features of words from those of the tokens of a batch.

        Parameters
        ----------
        layer : str
        output : tensor (window, token, feature), or (window, token) of the layer "surprisal"
        index : tensor of int64 (row, 3)
            From `batches`.

        Returns
        -------
        tensor of float32 (row, feature)
            Pooled over the tokens of each word; surprisal is always their sum.
        """
        if layer == SURPRISAL:
            output, pool = output[..., None], "sum"
        else:
            pool = self.pool
        if output.ndim != 3:
            raise ValueError(_no_words(tuple(output.shape)))
        window, first, last = index.unbind(1)
        if pool in ("last", "first"):
            return output[window, last if pool == "last" else first].float()
        total = torch.zeros(len(index), output.shape[2], device=output.device)
        for step in range(int((last - first).max()) + 1):  # not index_add_, whose order of sums varies on a GPU
            inside = first + step <= last
            total[inside] += output[window[inside], first[inside] + step].float()
        return total / (last - first + 1)[:, None] if pool == "mean" else total

    def row_shape(self, layer: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one word's features, from that of a layer's output for one window."""
        if layer != SURPRISAL and len(shape) != 2:
            raise ValueError(f"layer {layer!r}: {_no_words((1, *shape))}")
        return (1,) if layer == SURPRISAL else tuple(shape[1:])

    def probe(self, stimuli: StimulusSet) -> dict[str, torch.Tensor]:
        """Two different short windows, to find out what layers there are."""
        plan = self._plan(stimuli)
        ids = torch.tensor([plan.ids(int(plan.window[0]))[:16]] * 2)
        ids[1] = ids[0].flip(0) if len(ids[0].unique()) > 1 else (ids[0] + 1) % len(self.tokenizer)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def info(self, stimuli: StimulusSet) -> Mapping[str, Mapping[str, Any]]:
        """What is worth knowing of each word: tokens of text that its features come from, and its own."""
        plan = self._plan(stimuli)
        starts, stops = plan.spans[plan.window, 1], plan.spans[plan.window, 2]
        seen = plan.last + 1 - starts if self.causal else stops - starts
        return {
            "context": {
                "tokens": seen,
                "word_tokens": plan.last - plan.first + 1,
                "causal": self.causal,
                "pool": self.pool,
                "special_before": len(plan.before),
            }
        }

    def spec(self) -> Mapping[str, Any]:
        return {
            "reader": type(self).__name__,
            "tokenizer": self._tokenizer_digest,
            "longest": self.longest,
            "causal": self.causal,
            "context": self.context,
            "pool": self.pool,
            "bos": self.bos,
            "edge": self.edge,
        }

    def digest(self, stimuli: StimulusSet) -> str:
        """Hash of the words, the order in which they are read, and what stands between them."""
        digest = hashlib.sha256(stimuli.content_hash.encode())
        joiners = _joiners(stimuli)
        for rows in _runs(stimuli):
            digest.update(f"\nrun {rows.tolist()} {[joiners[row] for row in rows[1:]]}".encode())
        return digest.hexdigest()

    @cached_property
    def _tokenizer_digest(self) -> str:
        return tokenizer_digest(self.tokenizer)

    def _plan(self, stimuli: StimulusSet) -> _Plan:
        if stimuli not in self._plans:
            self._plans[stimuli] = self._planned(stimuli)
        return self._plans[stimuli]

    def _planned(self, stimuli: StimulusSet) -> _Plan:
        require_kind(stimuli, "word")
        words = stimuli.texts()
        empty = [stimuli.ids[i] for i, word in enumerate(words) if not word.strip()]
        if empty:
            raise ValueError(f"stimuli: {len(empty)} words are empty (first: {empty[0]!r}); leave them out")
        runs, joiners = _runs(stimuli), _joiners(stimuli)
        aligned = [
            align_words(
                [words[row] for row in rows],
                self.tokenizer,
                [joiners[row] for row in rows],
                [stimuli.ids[row] for row in rows],
            )
            for rows in runs
        ]
        before, after = self._around(words[0])
        room = None if self.longest is None else self.longest - len(before) - len(after)
        spans = np.empty((len(words), 3), int)
        first, last = np.empty(len(words), int), np.empty(len(words), int)
        for run, (rows, text) in enumerate(zip(runs, aligned, strict=True)):
            n = len(text.token_ids)
            least, most = self._context(room, n)
            self._refuse_long(stimuli, rows, text.last - text.first + 1, most)
            first[rows], last[rows] = text.first, text.last
            if self.causal:
                of_word = shared_windows(text.first, text.last, n, most, least)
            else:
                of_word = own_windows(text.first, text.last, n, most, self.edge)
            spans[rows] = np.column_stack([np.full(len(rows), run), of_word])
        spans, window = np.unique(spans, axis=0, return_inverse=True)
        texts = [text.token_ids for text in aligned]
        return _Plan(texts, spans, window.reshape(-1), first, last, before, after)

    def _around(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Special tokens before and after every window; to a causal model the latter would say nothing."""
        before, after = special_tokens(self.tokenizer, text)
        if not self.causal:
            return before, after
        if self.bos is None:
            return before, ()
        if not self.bos:
            return (), ()
        if self.tokenizer.bos_token_id is None:
            raise ValueError("bos=True, but the tokenizer has no token that begins a text; leave bos out")
        return (self.tokenizer.bos_token_id,), ()

    def _context(self, room: int | None, n: int) -> tuple[int, int]:
        """Fewest and most tokens of context, of a text with n tokens."""
        if self.context is not None:
            least, most = self.context
            if room is not None and most > room:
                raise ValueError(
                    f"context={self.context}: the model reads {self.longest} tokens, {room} without special ones; "
                    f"take at most {room}"
                )
            return least, most
        most = max(1, n if room is None else room)
        return min(most, most - most // 2 + 1), most

    def _refuse_long(self, stimuli: StimulusSet, rows: np.ndarray, lengths: np.ndarray, most: int) -> None:
        long = np.flatnonzero(lengths > most)
        if len(long):
            row = rows[long[0]]
            raise ValueError(
                f"stimuli: {len(long)} words have more tokens than the {most} of the context (first: "
                f"{stimuli.ids[row]!r}, {_short(stimuli.texts([stimuli.ids[row]])[0])!r}, {lengths[long[0]]} tokens); "
                "split them or leave them out"
            )


def _runs(stimuli: StimulusSet) -> list[np.ndarray]:
    """Positions of the words of each run, in the order of reading; runs as they first appear."""
    table = stimuli.table
    order = np.argsort(table["onset"].to_numpy(float), kind="stable") if "onset" in table else np.arange(len(stimuli))
    if "run" not in table:
        return [order]
    labels = table["run"].astype(str).to_numpy()
    return [order[labels[order] == label] for label in dict.fromkeys(labels)]


def _joiners(stimuli: StimulusSet) -> list[str]:
    return stimuli.table["joiner"].astype(str).tolist() if "joiner" in stimuli.table else [" "] * len(stimuli)


def _check_context(context: Any) -> None:
    whole = isinstance(context, tuple | list) and len(context) == 2
    if not whole or not all(isinstance(one, int | np.integer) for one in context) or not 1 <= context[0] <= context[1]:
        raise ValueError(f"context={context!r}; expected (fewest, most) tokens, whole numbers with 1 <= fewest <= most")


def _no_words(shape: tuple[int, ...]) -> str:
    return f"shape {shape} is not (window, token, feature), so it has no words; leave the layer out"


def _short(word: str) -> str:
    return word if len(word) <= 40 else word[:37] + "..."
