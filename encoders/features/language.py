"""Sentences, and words in their context, into token ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .text.inputs import WordInputs
from .text.surprisal import SURPRISAL
from .text.words import tokenizer_digest
from .vision import require_kind

if TYPE_CHECKING:
    from ...datasets.stimuli import StimulusSet


@dataclass(frozen=True)
class TextInputs:
    """A transformers tokenizer.

    A batch holds sentences of one length only: padding changes what some models say of the same sentence.

    Attributes
    ----------
    tokenizer
    longest : int or None
        Tokens that the model has positions for.
    causal : bool
        Whether the model reads from left to right: words in their context are then read in one pass.
    """

    tokenizer: Any
    longest: int | None = None
    causal: bool = False

    by_item = True  # a sentence does not depend on those beside it
    leaves_out = (SURPRISAL,)  # of tokens, the first undefined: a sentence has no one value

    def reading(
        self, stimuli: StimulusSet, context: tuple[int, int] | None = None, pool: str | None = None
    ) -> TextInputs | WordInputs:
        """How these stimuli are read: sentences each for itself, words in their context.

        Raises
        ------
        ValueError
            If `context` or `pool` is given for sentences.
        """
        if stimuli.kind == "word":
            return WordInputs(self.tokenizer, self.longest, self.causal, context, pool or "last")
        for name, value in (("context", context), ("pool", pool)):
            if value is not None:
                raise ValueError(
                    f"{name}={value!r} is read for words only (StimulusSet.from_words); these stimuli are "
                    f"{stimuli.kind}s: leave it out, or take reduce="
                )
        return self

    def batches(self, stimuli: StimulusSet, size: int) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        require_kind(stimuli, "sentence")
        texts = stimuli.texts()
        empty = [stimuli.ids[i] for i, text in enumerate(texts) if not text.strip()]
        if empty:
            raise ValueError(f"stimuli: {len(empty)} sentences are empty (first: {empty[0]!r}); leave them out")
        tokens = self.tokenizer(texts)["input_ids"]
        long = [i for i, ids in enumerate(tokens) if self.longest is not None and len(ids) > self.longest]
        if long:
            raise ValueError(
                f"stimuli: {len(long)} sentences have more tokens than the {self.longest} that the model reads (first: "
                f"{stimuli.ids[long[0]]!r}, {len(tokens[long[0]])} tokens); split them or leave them out"
            )
        by_length: dict[int, list[int]] = {}
        for row, ids in enumerate(tokens):
            by_length.setdefault(len(ids), []).append(row)
        for _, rows in sorted(by_length.items()):
            for start in range(0, len(rows), size):
                batch = rows[start : start + size]
                ids = torch.tensor([tokens[row] for row in batch])
                yield batch, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def spec(self) -> Mapping[str, Any]:
        return {"reader": type(self).__name__, "tokenizer": tokenizer_digest(self.tokenizer)}

    def digest(self, stimuli: StimulusSet) -> str:
        return stimuli.content_hash
