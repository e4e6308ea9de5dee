"""Sentences into token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

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
    """

    tokenizer: Any
    longest: int | None = None

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
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        rules = backend.to_str() if backend is not None else repr(vocabulary)
        return {"reader": type(self).__name__, "tokenizer": hashlib.sha256(rules.encode()).hexdigest()}

    def digest(self, stimuli: StimulusSet) -> str:
        return stimuli.content_hash
