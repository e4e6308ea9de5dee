"""Images into tensors, and any module of one's own that reads them."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping
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
        image = image.convert("RGB")
        height, width = self.size
        method = Image.Resampling[self.resample.upper()]
        if self.shortest is None:
            image = image.resize((width, height), method)
        else:
            scale = self.shortest / min(image.size)
            image = image.resize((round(image.width * scale), round(image.height * scale)), method)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255).permute(2, 0, 1)
        return (pixels - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]

    def batches(self, stimuli: StimulusSet, size: int) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        require_kind(stimuli, "image")
        for start in range(0, len(stimuli), size):
            rows = list(range(start, min(start + size, len(stimuli))))
            yield rows, {"x": torch.stack([self.read(image) for image in stimuli[rows].iter_images()])}

    def spec(self) -> Mapping[str, Any]:
        return {"reader": type(self).__name__} | vars(self)

    def digest(self, stimuli: StimulusSet) -> str:
        return stimuli.content_hash


@dataclass(frozen=True)
class CustomImageInputs:
    """A user's own function from a PIL image to a tensor (channel, height, width)."""

    preprocess: Callable[[Image.Image], torch.Tensor]

    def batches(self, stimuli: StimulusSet, size: int) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        require_kind(stimuli, "image")
        for start in range(0, len(stimuli), size):
            rows = list(range(start, min(start + size, len(stimuli))))
            yield rows, {"x": torch.stack([self._read(image) for image in stimuli[rows].iter_images()])}

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


def reinitialise(module: nn.Module, seed: int) -> nn.Module:
    """A copy of a module with every parameter drawn anew by its layer's own initialisation."""
    import copy

    module = copy.deepcopy(module)
    covered: set[int] = set()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in module.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
                covered.update(id(p) for p in part.parameters(recurse=False))
    left = [name for name, p in module.named_parameters() if id(p) not in covered]
    if left:
        raise ValueError(
            f"untrained: {len(left)} parameters have no initialisation of their own (first: {left[0]}); "
            "pass a factory that builds the untrained model"
        )
    return module
