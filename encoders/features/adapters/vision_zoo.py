"""Models of torchvision, timm and open_clip, where these are installed, with the preprocessing that they state."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ....datasets.errors import unknown
from ..registry import Model, ModelCard
from ..vision import IMAGENET_MEAN, IMAGENET_STD, ImageInputs, input_size, preprocessing, special_tokens
from .checkpoints import load_into, load_state, only_tensors

_MEND = (
    "{package} is not installed. Its version must fit torch build for build: pip install 'neuralign[vision]' in a "
    "fresh environment, or give module:factory or a folder of transformers"
)


def from_zoo(model: str, weights: Path | None, untrained: bool, seed: int) -> Model:
    """A model by ``torchvision:NAME``, ``timm:NAME`` or ``open_clip:ARCHITECTURE/TAG``.

    Parameters
    ----------
    model : str
    weights : path or None
        A checkpoint of one's own instead of the published weights; preprocessing stays that of the published ones.
    untrained : bool
        Random weights.
    seed : int
        Of the random weights.

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        If the package is not installed, has no model of that name or no weights for it, or its preprocessing is not
        resize, crop and normalise.
    """
    package, _, name = model.partition(":")
    try:
        library = importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"model={model!r}: {_MEND.format(package=package)} ({error})") from error
    if weights is not None and untrained:
        raise ValueError(f"weights={weights} is not read by an untrained model; leave one of the two out")
    trained = not untrained and weights is None
    # Some of these packages would unpickle whatever a checkpoint holds.
    with torch.random.fork_rng(devices=[]), only_tensors():
        torch.manual_seed(seed)
        whole, inputs, about = _BUILDERS[package](library, name, trained)
    if weights is not None:
        load_into(whole, load_state(weights), weights, model)
    module = whole.visual if package == "open_clip" else whole
    known: dict[str, Any] = {
        "title": name,
        "citation": "see the source",
        "licence": "see the source",
        "source": package,
    } | about
    card = ModelCard(
        name=model, modality="image", size=input_size(inputs), preprocessing=preprocessing(inputs), **known
    )
    return Model(model, module.eval(), inputs, card=card, special_tokens=special_tokens(module))


class TorchvisionInputs(ImageInputs):
    """Resize and crop to the pixel as the transforms of torchvision do, on which timm and open_clip stand."""

    def _scaled(self, width: int, height: int, shortest: int) -> tuple[int, int]:
        long = int(shortest * max(width, height) / min(width, height))
        return (shortest, long) if width <= height else (long, shortest)

    def _margin(self, surplus: int) -> int:
        return round(surplus / 2)


_Built = tuple[Any, ImageInputs, dict[str, str]]  # of the last, what is known for the card


def _torchvision(library: Any, name: str, trained: bool) -> _Built:
    models = library.models
    known = list(models.list_models())
    if name not in known:
        raise ValueError(unknown("model", name, known, "These are the models of torchvision."))
    published = models.get_model_weights(name)
    if trained and not len(published):
        raise ValueError(f"model='torchvision:{name}' has no published weights; pass weights=, or untrained=True")
    best = published.DEFAULT if len(published) else None
    module = models.get_model(name, weights=best if trained else None)
    if best is None:
        return module, TorchvisionInputs((224, 224), 256, IMAGENET_MEAN, IMAGENET_STD), {}
    return module, _of_torchvision(name, best.transforms()), {"source": f"torchvision, {best}"}


def _of_torchvision(name: str, preset: Any) -> ImageInputs:
    """What an ``ImageClassification`` preset of torchvision does."""
    try:
        [crop], [shortest] = preset.crop_size, preset.resize_size
        resample = getattr(preset.interpolation, "value", preset.interpolation)
        return TorchvisionInputs((crop, crop), shortest, tuple(preset.mean), tuple(preset.std), str(resample))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"model='torchvision:{name}': its preprocessing is not resize, crop and normalise; pass module:factory "
            "with a preprocess function of your own"
        ) from error


def _timm(library: Any, name: str, trained: bool) -> _Built:
    try:
        module = library.create_model(name, pretrained=trained)
    except RuntimeError as error:
        if "nknown model" in str(error):
            raise ValueError(unknown("model", name, library.list_models(), "These are models of timm.")) from error
        raise ValueError(f"model='timm:{name}': {str(error).splitlines()[0]}") from error
    config = importlib.import_module(f"{library.__name__}.data").resolve_model_data_config(module)
    _, height, width = config["input_size"]
    shortest = None
    mode = config.get("crop_mode", "center")
    if mode == "center":
        if height != width:
            raise ValueError(f"model='timm:{name}' crops to {height} x {width}; pass module:factory with preprocess=")
        shortest = math.floor(height / config["crop_pct"])
    elif mode != "squash" or config["crop_pct"] != 1:
        raise ValueError(f"model='timm:{name}' crops by {mode!r}; pass module:factory with preprocess=")
    inputs = TorchvisionInputs(
        (height, width), shortest, tuple(config["mean"]), tuple(config["std"]), str(config["interpolation"])
    )
    about = getattr(module, "pretrained_cfg", None) or {}
    return (
        module,
        inputs,
        {
            "title": str(about.get("architecture") or name),
            "licence": str(about.get("license") or "see the source"),
            "citation": str(about.get("paper_name") or about.get("origin_url") or "see the source"),
            "source": f"timm, {about.get('hf_hub_id') or about.get('url') or name}",
        },
    )


def _open_clip(library: Any, name: str, trained: bool) -> _Built:
    architecture, _, tag = name.partition("/")
    known = list(library.list_models())
    if architecture not in known:
        raise ValueError(unknown("model", architecture, known, "Give open_clip:ARCHITECTURE/TAG."))
    tags = list(library.list_pretrained_tags_by_model(architecture))
    if trained and tag not in tags:
        raise ValueError(unknown("tag", tag, tags, f"These are the weights of {architecture} in open_clip."))
    whole = library.create_model(architecture, pretrained=tag if trained else None)
    config = dict(library.get_model_preprocess_cfg(whole))
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    mode = config.get("resize_mode", "shortest")
    if config.get("mode", "RGB") != "RGB" or mode not in ("shortest", "squash"):
        raise ValueError(f"model='open_clip:{name}' resizes by {mode!r}; pass module:factory with preprocess=")
    shortest = None if mode == "squash" or height != width else height
    resample = config.get("interpolation", "bicubic")
    inputs = TorchvisionInputs((height, width), shortest, tuple(config["mean"]), tuple(config["std"]), resample)
    return whole, inputs, {"title": f"{architecture}, images", "source": f"open_clip, {architecture} {tag}".rstrip()}


_BUILDERS: Mapping[str, Callable[[Any, str, bool], _Built]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "open_clip": _open_clip,
}
