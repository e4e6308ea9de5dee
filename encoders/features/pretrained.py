"""Whatever transformers can load, by name or from a local folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from .language import TextInputs
from .registry import Model
from .vision import IMAGENET_MEAN, IMAGENET_STD, ImageInputs

_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # PIL's numbering


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
        return Model(label, module.eval(), _PixelValues(**_image_settings(name, config)))
    if main == "input_ids":
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        return Model(label, module.eval(), TextInputs(tokenizer), pool="mean")
    raise ValueError(f"model={name!r} reads {main!r}; only images and text are read here")


class _PixelValues(ImageInputs):
    """Hands the tensor over under the name that transformers' vision models read."""

    def batches(self, stimuli, size):
        for rows, batch in super().batches(stimuli, size):
            yield rows, {"pixel_values": batch["x"]}


def _image_settings(name: str, config: Any) -> dict[str, Any]:
    """Preprocessing from the model's own preprocessor_config.json; ImageNet's where there is none."""
    from transformers.utils import cached_file

    path = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    settings = json.loads(Path(path).read_text()) if path else {}
    size = settings.get("size", getattr(config, "image_size", 224))
    crop = settings.get("crop_size", size) if settings.get("do_center_crop") else None
    shortest = size.get("shortest_edge") if isinstance(size, dict) else None
    if shortest is not None and crop is None:
        crop = shortest
    normalise = settings.get("do_normalize", True)
    return {
        "size": _pair(crop if crop is not None else size),
        "shortest": shortest,
        "mean": tuple(settings.get("image_mean", IMAGENET_MEAN)) if normalise else (0.0, 0.0, 0.0),
        "std": tuple(settings.get("image_std", IMAGENET_STD)) if normalise else (1.0, 1.0, 1.0),
        "resample": _RESAMPLE[settings.get("resample", 3)],
    }


def _pair(size: dict[str, int] | list[int] | int) -> tuple[int, int]:
    """Height and width from any of the ways in which preprocessor_config.json writes them."""
    if isinstance(size, dict):
        height = size["shortest_edge"] if "shortest_edge" in size else size["height"]
        return height, size.get("width", height)
    return (size, size) if isinstance(size, int) else (size[0], size[1])
