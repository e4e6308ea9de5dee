"""The two towers of CLIP and SigLIP: images and sentences, each through its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ....datasets.errors import unknown
from ..language import TextInputs
from ..registry import Inputs, Model
from ..text.words import tokenizer_digest
from ..vision import require_kind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ....datasets.stimuli import StimulusSet

TOWERS = {"vision": "image", "text": "sentence"}  # and the stimuli that each reads


class Towers(nn.Module):
    """One or both towers of a model of images and text, with what brings them into their joint space.

    The tower runs that the input belongs to, so one model reads images and sentences; names of layers are those of the
    whole model. The scale of the similarities, which no layer depends on, is left out.

    Parameters
    ----------
    model : CLIPModel or SiglipModel
    towers : tuple of {"vision", "text"}
    """

    def __init__(self, model: Any, towers: tuple[str, ...] = tuple(TOWERS)) -> None:
        super().__init__()
        self.config = model.config
        self.made_by = type(model)
        self.towers = towers
        if "vision" in towers:
            self.vision_model = model.vision_model
            if hasattr(model, "visual_projection"):
                self.visual_projection = model.visual_projection
        if "text" in towers:
            self.text_model = model.text_model
            if hasattr(model, "text_projection"):
                self.text_projection = model.text_projection

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Joint embedding, (stimulus, feature), not brought to length 1, of images or of sentences."""
        if pixel_values is not None:
            pooled = self.vision_model(pixel_values=pixel_values).pooler_output
            return self.visual_projection(pooled) if hasattr(self, "visual_projection") else pooled
        pooled = self.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return self.text_projection(pooled) if hasattr(self, "text_projection") else pooled

    def redrawn(self) -> Towers:
        """A copy with random weights, from the state of torch's generator."""
        return Towers(self.made_by(copy.deepcopy(self.config)), self.towers).eval()


@dataclass(frozen=True)
class PaddedTextInputs:
    """Sentences for SigLIP, whose text tower was trained on one length: shorter ones are filled up, without a mask.

    Its embedding is read off the last place, so that what fills up is part of the model.

    Attributes
    ----------
    tokenizer
    length : int
        Tokens of every sentence.
    """

    tokenizer: Any
    length: int

    by_item = True

    def batches(self, stimuli: StimulusSet, size: int) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        require_kind(stimuli, "sentence")
        texts = stimuli.texts()
        empty = [stimuli.ids[i] for i, text in enumerate(texts) if not text.strip()]
        if empty:
            raise ValueError(f"stimuli: {len(empty)} sentences are empty (first: {empty[0]!r}); leave them out")
        filled = self.tokenizer(texts, padding="max_length", max_length=self.length, verbose=False)["input_ids"]
        long = [i for i, ids in enumerate(filled) if len(ids) > self.length]
        if long:
            raise ValueError(
                f"stimuli: {len(long)} sentences have more tokens than the {self.length} that the model reads (first: "
                f"{stimuli.ids[long[0]]!r}, {len(filled[long[0]])} tokens); split them or leave them out"
            )
        for start in range(0, len(texts), size):
            rows = list(range(start, min(start + size, len(texts))))
            yield rows, {"input_ids": torch.tensor([filled[row] for row in rows])}

    def spec(self) -> Mapping[str, Any]:
        return {"reader": type(self).__name__, "tokenizer": tokenizer_digest(self.tokenizer), "length": self.length}

    def digest(self, stimuli: StimulusSet) -> str:
        return stimuli.content_hash


@dataclass(frozen=True)
class TowerInputs:
    """Readers of images and of sentences; the kind of the stimuli says which of them reads.

    Attributes
    ----------
    readers : mapping of str to Inputs
        By kind of stimuli.
    model : str
        Its name, for messages.
    """

    readers: Mapping[str, Inputs]
    model: str

    def reading(self, stimuli: StimulusSet, context: tuple[int, int] | None = None, pool: str | None = None) -> Inputs:
        """The reader of these stimuli.

        Raises
        ------
        ValueError
            If there is none, or `context` or `pool` is given, which words in their context need.
        """
        for name, value in (("context", context), ("pool", pool)):
            if value is not None:
                raise ValueError(f"{name}={value!r} is read for words only; {self.model} reads images and sentences")
        if stimuli.kind not in self.readers:
            has = " and ".join(f"{kind}s" for kind in self.readers)
            raise ValueError(
                f"stimuli are of kind {stimuli.kind!r}; this copy of {self.model} reads {has}. The other tower needs "
                "its preprocessor_config.json (images) or tokenizer (sentences) beside the weights."
            )
        return self.readers[stimuli.kind]

    def batches(self, stimuli: StimulusSet, size: int) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        return self.reading(stimuli).batches(stimuli, size)

    def spec(self) -> Mapping[str, Any]:
        return {"reader": type(self).__name__} | {kind: dict(reader.spec()) for kind, reader in self.readers.items()}

    def digest(self, stimuli: StimulusSet) -> str:
        return self.reading(stimuli).digest(stimuli)


def tower_model(
    label: str,
    module: PreTrainedModel,
    images: Inputs | None,
    tokenizer: Any | None,
    tower: str | None = None,
) -> Model:
    """A model of images and text of transformers.

    Parameters
    ----------
    label : str
        Name of the model in tables.
    module : CLIPModel or SiglipModel
    images : Inputs or None
        Its reader of images; None where its preprocessing is not at hand.
    tokenizer : PreTrainedTokenizerFast or None
        None where it is not at hand.
    tower : {"vision", "text"}, optional
        Keep only this one. Default both: the kind of the stimuli says which one runs.

    Returns
    -------
    Model
        Its layer ``output`` is the joint embedding. Layers of sentences keep their tokens: take ``reduce="mean"`` for
        sentences of different length.

    Raises
    ------
    ValueError
        If the tower is unknown, or cannot read anything.
    """
    if tower is not None and tower not in TOWERS:
        raise ValueError(unknown("tower", tower, TOWERS))
    kind = module.config.model_type
    texts: Inputs | None = None
    if tokenizer is not None:
        longest = int(module.config.text_config.max_position_embeddings)
        texts = PaddedTextInputs(tokenizer, longest) if kind == "siglip" else TextInputs(tokenizer, longest)
    towers = tuple(TOWERS) if tower is None else (tower,)
    found = {"vision": images, "text": texts}
    readers = {TOWERS[one]: reader for one in towers if (reader := found[one]) is not None}
    if not readers:
        raise ValueError(
            f"model={label!r} comes without its preprocessing; put its preprocessor_config.json (images) or tokenizer "
            "(sentences) beside the weights"
        )
    return Model(
        label,
        Towers(module, towers).eval(),
        TowerInputs(readers, label),
        special_tokens=1 if kind == "clip" else 0,
    )
