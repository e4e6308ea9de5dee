"""Whatever transformers can load, by name or from a local folder."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ...datasets.errors import unknown
from .adapters.checkpoints import only_tensors
from .adapters.transformers_models import Family, family_of
from .digest import digest_of
from .language import TextInputs
from .registry import Model, ModelCard
from .text.surprisal import has_causal_head, is_causal, with_surprisal
from .vision import input_size, normalised, preprocessing, require_kind, special_tokens, stacked

if TYPE_CHECKING:
    from ...datasets.stimuli import StimulusSet

SIDES = ("vision", "text")


def from_transformers(name: str, untrained: bool, seed: int, trust_remote_code: bool = False) -> Model:
    """A model of transformers: images, text, video, sound, or one side of a model of images and text.

    Parameters
    ----------
    name : str
        Name on the hub or local folder. A model of images and text reads either; ``NAME#vision`` and ``NAME#text``
        keep one side of it.
    untrained : bool
        Random weights for the same configuration.
    seed : int
        Of the random weights.
    trust_remote_code : bool
        Run code that the repository brings along. Weights are read without running any in either case.

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        If transformers cannot load it, it holds or needs code and `trust_remote_code` is False, or it reads
        something else.
    """
    name, _, side = name.partition("#")
    if side and side not in SIDES:
        raise ValueError(unknown("side", side, SIDES, f"Give {name}#vision or {name}#text."))
    module, config = _loaded(name, untrained, seed, trust_remote_code)
    try:
        family = family_of(config, module)
    except ValueError as error:
        raise ValueError(f"model={name!r} cannot be used: {error}") from error
    label = Path(name).name
    if family.reads == "image and text":
        model = _two_towers(label, module, name, side, trust_remote_code)
    elif side:
        raise ValueError(f"model={name}#{side}: it has no two sides, it reads {family.reads}; leave #{side} out")
    else:
        model = _READERS[family.reads](label, module, name, trust_remote_code)
    return replace(model, card=_card(model, family, name), norm=model.norm or family.norm)


def _loaded(name: str, untrained: bool, seed: int, trust: bool) -> tuple[Any, Any]:
    """The part of a model that reads stimuli, with its weights, and its configuration."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=trust)
        refuse_kernels(config, trust)
        head = has_causal_head(config) and not config.is_encoder_decoder
        kind = transformers.AutoModelForCausalLM if head else transformers.AutoModel
        # What a checkpoint lacks is drawn at random, so the seed holds for both.
        with torch.random.fork_rng(devices=[]), only_tensors():
            torch.manual_seed(seed)
            if untrained:
                model, missing = kind.from_config(config, trust_remote_code=trust), set()
            else:
                found: Any = kind.from_pretrained(
                    name, config=config, trust_remote_code=trust, weights_only=True, output_loading_info=True
                )
                model, report = found
                missing = set(report["missing_keys"])
    except Exception as error:  # damaged files and code of repositories fail in many ways
        raise ValueError(f"model={name!r} {_reason(error)}") from (None if _advises_to_run_code(error) else error)
    base = model.base_model if head else model
    prefix = f"{model.base_model_prefix}." if head else ""
    lost = sorted(key.removeprefix(prefix) for key in missing if key.startswith(prefix))
    if lost:
        warnings.warn(
            f"{name}: {len(lost)} parameters are not in its checkpoint and are random (first: {lost[0]})",
            UserWarning,
            stacklevel=4,
        )
    if head and not missing:
        base = with_surprisal(model)
    return (base.get_encoder() if config.is_encoder_decoder else base).eval(), config


def refuse_kernels(config: Any, trust: bool) -> None:
    """A configuration, or one within it, may name a repository whose code computes attention."""
    attention = getattr(config, "_attn_implementation", None)
    if not trust and isinstance(attention, str) and "/" in attention:
        raise ValueError(f"its configuration takes attention from the repository {attention!r}: trust_remote_code")
    for inner in vars(config).values():
        if hasattr(inner, "_attn_implementation"):
            refuse_kernels(inner, trust)


def _advises_to_run_code(error: Exception) -> bool:
    return "weights_only" in str(error)


def _reason(error: Exception) -> str:
    """What an error of transformers means, without its advice to run code."""
    said = str(error).strip() or type(error).__name__
    if "trust_remote_code" in said:
        return (
            "brings code of its own that would have to run. Read that code; if you trust it, pass "
            f"trust_remote_code=True. ({said.splitlines()[0].removesuffix(': trust_remote_code')})"
        )
    if _advises_to_run_code(error):
        return (
            "has a checkpoint that is not one of plain tensors, or is cut off; it was not loaded, as it may hold "
            "code. Fetch it again from its source, or have it saved as safetensors."
        )
    return f"cannot be loaded by transformers: {' '.join(said.split())[:300]}"


def _image_model(label: str, module: Any, name: str, trust: bool) -> Model:
    return Model(label, module, _image_inputs(name, trust), special_tokens=special_tokens(module))


def _text_model(label: str, module: Any, name: str, trust: bool) -> Model:
    tokenizer = _tokenizer(name, trust)
    return Model(label, module, TextInputs(tokenizer, _positions(module, tokenizer), is_causal(module)), pool="mean")


def _tokenizer(name: str, trust: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust)
    except Exception as error:  # missing and damaged files fail in many ways
        raise ValueError(f"model={name!r}: its tokenizer {_reason(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # without files some classes are made without words
        raise ValueError(
            f"model={name!r} comes without its tokenizer; save it beside the weights: tokenizer.save_pretrained(folder)"
        )
    return tokenizer


def _two_towers(label: str, module: Any, name: str, side: str, trust: bool) -> Model:
    """Both sides of a model of images and text, or one; a side whose preprocessing is missing cannot read."""
    from .adapters.towers import tower_model

    def at_hand(load: Callable[[str, bool], Any]) -> Any:
        try:
            return load(name, trust)
        except ValueError as error:
            if "trust_remote_code" in str(error):
                raise
            return None

    images = None if side == "text" else at_hand(_image_inputs)
    tokenizer = None if side == "vision" else at_hand(_tokenizer)
    return tower_model(f"{label}#{side}" if side else label, module, images, tokenizer, side or None)


def _sound_model(label: str, module: Any, name: str, trust: bool) -> Model:
    from .adapters.audio import audio_model

    return audio_model(label, module, name)


def _video_model(label: str, module: Any, name: str, trust: bool) -> Model:
    from .adapters.video import video_model

    return video_model(label, module, name)


_READERS = {"image": _image_model, "text": _text_model, "sound": _sound_model, "clip": _video_model}


def _card(model: Model, family: Family, name: str) -> ModelCard:
    return ModelCard(
        name=model.name,
        title=family.title,
        citation=family.citation or "see the source",
        licence=_licence(name),
        modality=family.reads,
        source=name,
        size=input_size(model.inputs),
        preprocessing=preprocessing(model.inputs),
    )


def _licence(name: str) -> str:
    """Licence that the head of a local model card states."""
    readme = Path(name) / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    found = re.match(r"---\n(?:.*\n)*?licen[sc]e:[ \t]*(\S+)", text)
    return found.group(1).strip("\"'") if found else "see the source"


@dataclass(frozen=True)
class ProcessorInputs:
    """An image processor of transformers, in its version that computes with PIL and numpy."""

    processor: Any
    by_item = True  # an image does not depend on those beside it

    def batches(self, stimuli: StimulusSet, size: int) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        require_kind(stimuli, "image")
        for start in range(0, len(stimuli), size):
            rows = list(range(start, min(start + size, len(stimuli))))
            read = [_processed(self.processor, image) for image in stimuli[rows].iter_images()]
            yield rows, {"pixel_values": stacked(stimuli, rows, read).float()}

    def spec(self) -> Mapping[str, Any]:
        return {"reader": type(self).__name__, "processor": digest_of(self.processor, "preprocessor_config.json")}

    def digest(self, stimuli: StimulusSet) -> str:
        return stimuli.content_hash


@dataclass(frozen=True)
class PixelProcessorInputs(ProcessorInputs):
    """An image processor that ends by scaling and normalising pixels, which the device can do."""

    def decode(self, stimuli: StimulusSet, rows: Sequence[int]) -> list[np.ndarray]:
        """Images at positions, resized and cropped, as uint8 (height, width, 3): what a worker does."""
        require_kind(stimuli, "image")
        images = stimuli[list(rows)].iter_images()
        return [_processed(self.processor, image, **_AS_PIXELS).transpose(1, 2, 0) for image in images]

    def finish(
        self,
        batch: Mapping[str, torch.Tensor],
        device: torch.device,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> dict[str, torch.Tensor]:
        """A stack of decoded images, uint8 (image, height, width, 3), as the module reads it: what the device does."""
        [pixels] = batch.values()
        p = self.processor
        scale = p.rescale_factor if p.do_rescale else 1.0
        mean, std = (p.image_mean, p.image_std) if p.do_normalize else (0.0, 1.0)
        mean, std = ([x] * 3 if isinstance(x, int | float) else list(x) for x in (mean, std))
        return {"pixel_values": normalised(pixels.to(device, non_blocking=True), scale, mean, std, memory_format)}

    def batches(self, stimuli: StimulusSet, size: int) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        for start in range(0, len(stimuli), size):
            rows = list(range(start, min(start + size, len(stimuli))))
            pixels = stacked(stimuli, rows, self.decode(stimuli, rows))
            yield rows, self.finish({"pixel_values": pixels}, torch.device("cpu"))


_AS_PIXELS = {"do_rescale": False, "do_normalize": False}


def _processed(processor: Any, image: Image.Image, **settings: bool) -> np.ndarray:
    """One image as a processor returns it (channel, height, width)."""
    return np.asarray(processor(images=[image.convert("RGB")], return_tensors="np", **settings)["pixel_values"][0])


def _ends_in_arithmetic(processor: Any) -> bool:
    """Whether a processor equals pixels that are scaled and normalised afterwards, tried on images of three shapes."""
    inputs = PixelProcessorInputs(processor)
    draw = np.random.default_rng(0)
    try:
        for height, width in ((40, 52), (300, 260), (17, 16)):
            image = Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8))
            pixels = _processed(processor, image, **_AS_PIXELS)
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or len(pixels) != 3:
                return False
            stack = torch.from_numpy(pixels.transpose(1, 2, 0))[None]
            [found] = inputs.finish({"pixel_values": stack}, torch.device("cpu"))["pixel_values"].numpy()
            whole = _processed(processor, image)
            if found.shape != whole.shape or not np.allclose(found, whole, rtol=1e-5, atol=1e-5):
                return False
    except (AttributeError, TypeError, ValueError, KeyError, IndexError):
        return False  # a processor with steps or settings of its own: it runs as it is
    return True


def _image_inputs(name: str, trust: bool = False) -> ProcessorInputs:
    """The model's own preprocessing, as its preprocessor_config.json and the defaults of its class say."""
    import transformers

    modern = int(transformers.__version__.split(".")[0]) >= 5
    by_pil: dict[str, Any] = {"backend": "pil"} if modern else {"use_fast": False}
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=trust, **by_pil)
    except (OSError, ValueError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise ValueError(f"model={name!r}: its image processor {_reason(error)}") from error
        raise ValueError(
            f"model={name!r}: transformers cannot build its image processor: {str(error).splitlines()[0]} "
            "Save it beside the weights (processor.save_pretrained(folder) writes preprocessor_config.json)."
        ) from error
    return PixelProcessorInputs(processor) if _ends_in_arithmetic(processor) else ProcessorInputs(processor)


def _positions(module: Any, tokenizer: Any) -> int | None:
    """Tokens that a text model has positions for; None where it has no table of positions."""
    longest = getattr(module.config, "max_position_embeddings", None)
    if longest is None:
        return None
    for path, part in module.named_modules():
        padding = getattr(part, "padding_idx", None)
        if path.endswith("position_embeddings") and padding is not None:  # positions are counted from behind it
            longest = min(longest, part.num_embeddings - padding - 1)
    return min(longest, tokenizer.model_max_length)
