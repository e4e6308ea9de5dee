"""Whatever transformers can load, by name or from a local folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .digest import digest_of
from .language import TextInputs
from .registry import Model
from .vision import require_kind

if TYPE_CHECKING:
    from ...datasets.stimuli import StimulusSet


def from_transformers(name: str, untrained: bool, seed: int) -> Model:
    """A vision or text model of transformers.

    Parameters
    ----------
    name : str
        Name on the hub or local folder. Code that a repository brings along is never run.
    untrained : bool
        Random weights for the same configuration.
    seed : int
        Of the random weights.

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        If transformers cannot load it, or it reads neither images nor text.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = (
                AutoModel.from_config(config) if untrained else AutoModel.from_pretrained(name, trust_remote_code=False)
            )
    except (OSError, ValueError) as error:
        raise ValueError(f"model={name!r} cannot be loaded by transformers: {str(error).splitlines()[0]}") from error
    main = getattr(module, "main_input_name", "")
    label = Path(name).name
    if main == "pixel_values":
        return Model(label, module.eval(), _image_inputs(name))
    if main == "input_ids":
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        return Model(label, module.eval(), TextInputs(tokenizer, _positions(config, tokenizer)), pool="mean")
    raise ValueError(f"model={name!r} reads {main!r}; only images and text are read here")


@dataclass(frozen=True)
class ProcessorInputs:
    """An image processor of transformers, in its version that computes with PIL and numpy."""

    processor: Any

    def batches(self, stimuli: StimulusSet, size: int) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        require_kind(stimuli, "image")
        for start in range(0, len(stimuli), size):
            rows = list(range(start, min(start + size, len(stimuli))))
            images = [image.convert("RGB") for image in stimuli[rows].iter_images()]
            read = [self.processor(images=[image], return_tensors="pt")["pixel_values"][0] for image in images]
            different = [i for i, x in zip(rows, read, strict=True) if x.shape != read[0].shape]
            if different:
                raise ValueError(
                    f"stimuli {stimuli.ids[start]!r} and {stimuli.ids[different[0]]!r} differ in size after the "
                    "model's preprocessing, which neither resizes nor crops to one size; give images of one size"
                )
            yield rows, {"pixel_values": torch.stack(read).float()}

    def spec(self) -> Mapping[str, Any]:
        return {"reader": type(self).__name__, "processor": digest_of(self.processor, "preprocessor_config.json")}

    def digest(self, stimuli: StimulusSet) -> str:
        return stimuli.content_hash


def _image_inputs(name: str) -> ProcessorInputs:
    """The model's own preprocessing, as its preprocessor_config.json and the defaults of its class say."""
    import transformers

    modern = int(transformers.__version__.split(".")[0]) >= 5
    by_pil: dict[str, Any] = {"backend": "pil"} if modern else {"use_fast": False}
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False, **by_pil)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"model={name!r}: transformers cannot build its image processor: {str(error).splitlines()[0]} "
            "Save it beside the weights (processor.save_pretrained(folder) writes preprocessor_config.json)."
        ) from error
    return ProcessorInputs(processor)


def _positions(config: Any, tokenizer: Any) -> int | None:
    """Tokens that a text model has positions for; None where it has no table of positions."""
    longest = getattr(config, "max_position_embeddings", None)
    return None if longest is None else min(longest, tokenizer.model_max_length)
