"""Images into tensors, and any module of one's own that reads them."""

from __future__ import annotations

import copy
import hashlib
import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from .digest import digest_of
from .registry import Model

if TYPE_CHECKING:
    from ...datasets.stimuli import StimulusSet
    from .registry import Inputs

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageInputs:
    """Resize, crop, scale to [0, 1] and normalise.

    Attributes
    ----------
    size : tuple of int
        Height and width that the module reads.
    shortest : int or None
        First bring the shorter side to this many pixels, then crop the centre to `size`; None resizes the whole
        image to `size`.
    mean, std : tuple of float
        Per channel, in units of the [0, 1] image.
    resample : str
        Name of a filter of PIL: bicubic, bilinear, box, lanczos.
    """

    size: tuple[int, int]
    shortest: int | None = None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    resample: str = "bicubic"

    def read(self, image: Image.Image) -> torch.Tensor:
        """One image as a normalised tensor (channel, height, width)."""
        pixels = torch.from_numpy(self._resized(image))[None]
        return self.finish({"x": pixels}, torch.device("cpu"))["x"][0]

    def decode(self, stimuli: StimulusSet, rows: Sequence[int]) -> list[np.ndarray]:
        """Images at positions, resized and cropped, as uint8 (height, width, 3): what a worker does."""
        require_kind(stimuli, "image")
        return [self._resized(image) for image in stimuli[list(rows)].iter_images()]

    def finish(
        self,
        batch: Mapping[str, torch.Tensor],
        device: torch.device,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> dict[str, torch.Tensor]:
        """A stack of decoded images, uint8 (image, height, width, 3), as the module reads it: what the device does."""
        [pixels] = batch.values()
        return {"x": normalised(pixels.to(device, non_blocking=True), 1 / 255, self.mean, self.std, memory_format)}

    def _resized(self, image: Image.Image) -> np.ndarray:
        image = image.convert("RGB")
        height, width = self.size
        method = Image.Resampling[self.resample.upper()]
        if self.shortest is None:
            image = image.resize((width, height), method)
        else:
            image = image.resize(self._scaled(image.width, image.height, self.shortest), method)
            left, top = self._margin(image.width - width), self._margin(image.height - height)
            image = image.crop((left, top, left + width, top + height))
        return np.array(image)

    def _scaled(self, width: int, height: int, shortest: int) -> tuple[int, int]:
        scale = shortest / min(width, height)
        return round(width * scale), round(height * scale)

    def _margin(self, surplus: int) -> int:
        return surplus // 2

    def batches(self, stimuli: StimulusSet, size: int) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        for start in range(0, len(stimuli), size):
            rows = list(range(start, min(start + size, len(stimuli))))
            pixels = stacked(stimuli, rows, self.decode(stimuli, rows))
            yield rows, self.finish({"x": pixels}, torch.device("cpu"))

    def spec(self) -> Mapping[str, Any]:
        return {"reader": type(self).__name__} | vars(self)

    def digest(self, stimuli: StimulusSet) -> str:
        return stimuli.content_hash


@dataclass(frozen=True)
class CustomImageInputs:
    """A user's own function from a PIL image to a tensor (channel, height, width)."""

    preprocess: Callable[[Image.Image], torch.Tensor]
    by_item = True  # an image does not depend on those beside it

    def batches(self, stimuli: StimulusSet, size: int) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        require_kind(stimuli, "image")
        for start in range(0, len(stimuli), size):
            rows = list(range(start, min(start + size, len(stimuli))))
            yield rows, {"x": stacked(stimuli, rows, [self._read(image) for image in stimuli[rows].iter_images()])}

    def _read(self, image: Image.Image) -> torch.Tensor:
        tensor = torch.as_tensor(self.preprocess(image.convert("RGB")))
        if tensor.ndim != 3:
            raise ValueError(
                f"preprocess returned shape {tuple(tensor.shape)}; expected one image (channel, height, width)"
            )
        return tensor.float()

    def spec(self) -> Mapping[str, Any]:
        return {"reader": type(self).__name__, "preprocess": digest_of(self.preprocess, "preprocess")}

    def digest(self, stimuli: StimulusSet) -> str:
        """With what the function makes of the first image: what it calls may change behind its back."""
        require_kind(stimuli, "image")
        tensor = self._read(stimuli.image(0)).detach().cpu().contiguous()
        probe = hashlib.sha256(tensor.numpy().tobytes() + str(tuple(tensor.shape)).encode()).hexdigest()
        return f"{stimuli.content_hash} {probe}"


def stacked(stimuli: StimulusSet, rows: Sequence[int], images: Sequence[Any]) -> torch.Tensor:
    """Images of one batch, arrays or tensors, as one tensor.

    Raises
    ------
    ValueError
        If two of them differ in shape; the message names both.
    """
    different = [row for row, image in zip(rows, images, strict=True) if image.shape != images[0].shape]
    if different:
        raise ValueError(
            f"stimuli {stimuli.ids[rows[0]]!r} and {stimuli.ids[different[0]]!r} differ in size after the model's "
            "preprocessing, which neither resizes nor crops to one size; give images of one size"
        )
    if isinstance(images[0], np.ndarray):
        # By numpy: torch would start threads beside those of the pass, which then put each other to sleep.
        return torch.from_numpy(np.stack(images))
    return torch.stack(list(images))


def normalised(
    pixels: torch.Tensor,
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
    memory_format: torch.memory_format = torch.contiguous_format,
) -> torch.Tensor:
    """``(scale * pixels - mean) / std`` per channel, on the device of the pixels.

    Parameters
    ----------
    pixels : Tensor of uint8, shape (image, height, width, channel)
    scale : float
        1 / 255 brings pixels to [0, 1].
    mean, std : sequence of float, shape (channel,)
        Of scaled pixels.
    memory_format : torch.memory_format
        How the result lies in memory; its values do not depend on it.

    Returns
    -------
    Tensor of float32, shape (image, channel, height, width)
    """
    x = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=memory_format)
    x /= 1 / scale  # 255 is an exact float, 1 / 255 is not
    x -= torch.tensor(mean, dtype=torch.float32, device=x.device)[:, None, None]
    x /= torch.tensor(std, dtype=torch.float32, device=x.device)[:, None, None]
    return x


def require_kind(stimuli: StimulusSet, kind: str) -> None:
    """Refuse stimuli of another kind than the model reads."""
    if stimuli.kind != kind:
        raise ValueError(f"stimuli are of kind {stimuli.kind!r}; this model reads stimuli of kind {kind!r}")


def from_factory(
    path: str, preprocess: Callable[[Image.Image], torch.Tensor] | None, untrained: bool, seed: int
) -> Model:
    """Call ``package.module:factory`` for a module, or a pair (module, preprocess) unless `preprocess` is given."""
    package, _, name = path.partition(":")
    try:
        factory = getattr(importlib.import_module(package), name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"model={path!r}: no module {error.name!r}; it must be importable (installed, or its folder on PYTHONPATH)"
        ) from error
    except AttributeError as error:
        raise ValueError(f"model={path!r}: module {package!r} has no {name!r}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # a factory that initialises at random gives the same model for the same seed
        made = factory()
    if isinstance(made, tuple):
        if len(made) != 2:
            raise ValueError(f"model={path!r} returned {len(made)} things; expected a module or (module, preprocess)")
        made, own = made
        preprocess = own if preprocess is None else preprocess
    return from_module(made, preprocess, path, untrained, seed)


def from_module(
    module: Any,
    preprocess: Callable[[Image.Image], torch.Tensor] | None,
    name: str,
    untrained: bool,
    seed: int,
) -> Model:
    """Wrap a module that reads images."""
    if not isinstance(module, nn.Module):
        raise ValueError(f"model={name!r} gave {type(module).__name__}; expected a torch.nn.Module")
    if preprocess is None:
        raise ValueError(
            f"model={name!r} has no preprocessing; pass preprocess=, a function from a PIL image to a tensor "
            "(channel, height, width), or let the factory return (module, preprocess)"
        )
    if untrained:
        module = reinitialise(module, seed)
    inputs = preprocess if isinstance(preprocess, ImageInputs) else CustomImageInputs(preprocess)
    return Model(name, module, inputs)


# What models call the tokens that they put before the patches.
_TOKEN = re.compile(r"(.*\.)?(cls|class|dist|distillation|reg|register|storage)_(token|tokens|embedding)")


def special_tokens(module: nn.Module) -> int:
    """Tokens before the first patch, by the names of their parameters: class tokens, registers."""
    found = (p.shape[-2] if p.ndim > 1 else 1 for name, p in module.named_parameters() if _TOKEN.fullmatch(name))
    return sum(found)


def reinitialise(module: nn.Module, seed: int) -> nn.Module:
    """A copy of a module with every parameter drawn anew by the initialisation of its own.

    A module with a method ``redrawn`` gives the copy itself. A model of transformers is built anew from its
    configuration, also where it is part of the module, and what was added to it draws by its rules. Any other layer
    draws by its ``reset_parameters``.

    Raises
    ------
    ValueError
        If a parameter belongs to none of these.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        redrawn = getattr(module, "redrawn", None)
        if callable(redrawn):
            return redrawn()
        module = copy.deepcopy(module)
        covered: set[int] = set()
        rules: dict[str, Any] = {}  # of models of transformers, by their path
        for path, part in module.named_modules():
            if all(id(p) in covered for p in part.parameters()):
                continue
            if hasattr(part, "base_model_prefix") and hasattr(part, "config"):
                covered |= _drawn_from_config(part, path)
                rules[path] = part._init_weights
            elif callable(getattr(part, "reset_parameters", None)):
                part.reset_parameters()
                for around, rule in rules.items():
                    if not around or path.startswith(around + "."):
                        rule(part)
                covered.update(id(p) for p in part.parameters(recurse=False))
    left = [name for name, p in module.named_parameters() if id(p) not in covered]
    if left:
        raise ValueError(
            f"untrained: {len(left)} parameters have no initialisation of their own (first: {left[0]}); "
            "pass a factory that builds the untrained model"
        )
    return module


def _drawn_from_config(part: Any, path: str) -> set[int]:
    """Give a model of transformers the weights of a new one of its configuration; which parameters those are."""
    fresh = type(part)(copy.deepcopy(part.config))
    mine = dict(part.named_parameters())
    drawn = {name: p for name, p in fresh.named_parameters() if name in mine}
    different = [name for name, p in drawn.items() if p.shape != mine[name].shape]
    if different:
        raise ValueError(
            f"untrained: {path or type(part).__name__} does not follow its configuration (first: {different[0]}); "
            "pass a factory that builds the untrained model"
        )
    with torch.no_grad():
        for name, p in drawn.items():
            mine[name].copy_(p)
    return {id(mine[name]) for name in drawn}


# ------------------------------------------------------------------------------------------- for the cards


def input_size(inputs: Inputs) -> str:
    """What one input measures, as far as the preprocessing says."""
    processor = getattr(inputs, "processor", None)
    size = getattr(inputs, "size", None)
    if processor is not None:
        size = _sides(getattr(processor, "crop_size", None)) if getattr(processor, "do_center_crop", False) else None
        size = size or _sides(getattr(processor, "size", None))
    if isinstance(size, tuple):
        return " x ".join(map(str, size))
    longest = getattr(inputs, "longest", None)
    return f"up to {longest} tokens" if longest else ""


def _sides(size: Any) -> tuple[int, int] | None:
    read = size.get if hasattr(size, "get") else lambda name: getattr(size, name, None)
    height, width = read("height"), read("width")
    if height and width:
        return int(height), int(width)
    return None


def preprocessing(inputs: Inputs) -> str:
    """What happens to a stimulus before the module reads it, in words and constants."""
    processor = getattr(inputs, "processor", None)
    if processor is not None:
        names = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "rescale_factor", "image_mean")
        told = {name: getattr(processor, name, None) for name in (*names, "image_std")}
    else:
        told = {name: value for name, value in inputs.spec().items() if name != "reader" and value is not None}
        told = {name: value for name, value in told.items() if not _is_digest(value)}
    words = ", ".join(f"{name} {_plain(value)}" for name, value in told.items() if value is not None)
    return f"{type(processor or inputs).__name__}: {words}" if words else type(processor or inputs).__name__


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64


def _plain(value: Any) -> str:
    if hasattr(value, "items"):
        return " x ".join(str(side) for side in value.values() if side is not None)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "/".join(map(_plain, value))
    return str(getattr(value, "name", value)).lower() if not isinstance(value, int) else str(value)
