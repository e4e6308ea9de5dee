"""Which models there are, and how a name becomes a model that is ready to read stimuli."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...datasets.errors import unknown

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from ...datasets.stimuli import StimulusSet

UNTRAINED = "-untrained"
ZOOS = ("torchvision:", "timm:", "open_clip:")  # packages of vision models, see adapters.vision_zoo


@dataclass(frozen=True)
class ModelCard:
    """What is known of a model before it is built.

    Attributes
    ----------
    name, title, citation, licence, modality : str
    source : str
        Where the weights come from.
    layers : tuple of str
        Layers that stand for the model when none are named.
    weights : str
        Pattern of the file with the weights; empty for a model that has none.
    folders : tuple of str
        Folders below ``NEURALIGN_DATA`` in which the weights are looked for when no path is given.
    size : str
        What one input measures, like ``"224 x 224"``.
    preprocessing : str
        What happens to a stimulus before the model reads it.
    """

    name: str
    title: str
    citation: str
    licence: str
    modality: str
    source: str
    layers: tuple[str, ...] = ()
    weights: str = ""
    folders: tuple[str, ...] = ()
    size: str = ""
    preprocessing: str = ""


class Inputs(Protocol):
    """Preprocessing: how stimuli become what the module reads."""

    def batches(self, stimuli: StimulusSet, size: int) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """Positions and keyword or positional inputs (key ``"x"``) of each batch."""
        ...

    def spec(self) -> Mapping[str, Any]:
        """Every constant that the features depend on, as plain values."""
        ...

    def digest(self, stimuli: StimulusSet) -> str:
        """Hash of what is read from the stimuli."""
        ...


@dataclass(frozen=True, eq=False)
class Model:
    """A module with its preprocessing.

    Attributes
    ----------
    name : str
        As it stands in tables.
    module : torch.nn.Module
        `extract` runs it in evaluation mode.
    inputs : Inputs
        Preprocessing.
    layers : tuple of str
        Default layers; empty to take the blocks of the module.
    pool : {"mean", None}
        What `extract` does with tokens when no reduction is named: sentences differ in length, so text models
        average, image models keep every position.
    card : ModelCard or None
    axes : mapping of str to str
        Order of the axes of layers, by pattern of their names, where it cannot be read off the module: one letter
        each for n stimulus, c channel, t time, h height, w width.
    clock : callable or None
        When each token of a layer is: from the layer, its shape for one stimulus and the stimuli, to seconds (token,)
        or None.
    norm : str
        How the last block, the final normalisation and what others call the last hidden state hang together.
    special_tokens : int
        Tokens before the first patch: the class token and registers.
    """

    name: str
    module: nn.Module
    inputs: Inputs
    layers: tuple[str, ...] = ()
    pool: str | None = None
    card: ModelCard | None = field(default=None, repr=False)
    axes: Mapping[str, str] = field(default_factory=dict, repr=False)
    clock: Callable[[str, tuple[int, ...], StimulusSet], np.ndarray | None] | None = field(default=None, repr=False)
    norm: str = field(default="", repr=False)
    special_tokens: int = 1


Builder = Callable[[Path | None, bool, int], Model]  # weights, untrained, seed

_BUILDERS: dict[str, tuple[ModelCard, Builder]] = {}
# Importing one of these registers its models; other packages do the same through entry points.
MODULES = (
    "controls",
    "cifar_resnet",
    "adapters.image_controls",
    "adapters.video_controls",
    "adapters.word_controls",
    "adapters.sound_controls",
)


def register_model(card: ModelCard) -> Callable[[Builder], Builder]:
    """Decorator that adds a model: a function of (weights, untrained, seed) that returns a `Model`.

    Raises
    ------
    ValueError
        If another function has registered a model of that name.
    """

    def add(builder: Builder) -> Builder:
        _, first = _BUILDERS.get(card.name, (card, builder))
        if (first.__module__, first.__qualname__) != (builder.__module__, builder.__qualname__):  # not a reload
            raise ValueError(
                f"name={card.name!r} is taken by {first.__module__}.{first.__qualname__}; give the model another name"
            )
        _BUILDERS[card.name] = (card, builder)
        return builder

    return add


@cache
def _load_shipped() -> None:
    for module in MODULES:
        importlib.import_module(f".{module}", __package__)
    for entry in entry_points(group="neuralign.models"):
        try:
            entry.load()
        except Exception as error:  # another package's fault must not take ours down
            warnings.warn(f"models of {entry.value} were not loaded: {error}", stacklevel=3)


def model_cards() -> list[ModelCard]:
    """Cards of every registered model, by name."""
    _load_shipped()
    return [card for _, (card, _) in sorted(_BUILDERS.items())]


def reads_weights(model: str) -> bool:
    """Whether a name is that of a registered model which a file of weights belongs to."""
    _load_shipped()
    return model in _BUILDERS and bool(_BUILDERS[model][0].weights)


def load_model(
    model: str | Model | nn.Module,
    weights: str | Path | None = None,
    untrained: bool = False,
    seed: int = 0,
    preprocess: Callable[[Any], torch.Tensor] | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Build a model from its name.

    Parameters
    ----------
    model : str, Model or torch.nn.Module
        A registered name (``neuralign models``), with ``-untrained`` at its end for a randomly initialised copy;
        ``package.module:factory``, a function that returns a module or a pair (module, preprocess);
        ``transformers:NAME``, or a local folder with a ``config.json``, for whatever transformers can load, with
        ``#text`` or ``#vision`` behind it for one side of a model of images and text; ``torchvision:NAME``,
        ``timm:NAME`` or ``open_clip:ARCHITECTURE/TAG`` where these packages are installed; or a module itself.
    weights : path, optional
        File, or folder that holds the file, with the weights. Default: the model's folder below the environment
        variable ``NEURALIGN_DATA``. For torchvision, timm and open_clip a checkpoint of one's own. Files are read
        without running code that they may hold, or refused.
    untrained : bool
        Random initialisation instead of the weights.
    seed : int
        Of the random initialisation.
    preprocess : callable, optional
        From a PIL image to a tensor (channel, height, width), for a module or factory; it comes before what a
        factory returns.
    trust_remote_code : bool
        Run the code that a repository or folder of transformers brings along; without it such a model is refused.

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        If the name is unknown (the message lists the nearest names), or `weights` or `preprocess` is given to a
        model that does not read it.
    FileNotFoundError
        If the weights are not there; the message says where they come from.
    """
    from . import vision

    remote = True if trust_remote_code else None
    if isinstance(model, Model):
        by = f"the model {model.name}, which is built already"
        _refuse_unused(by, weights=weights, preprocess=preprocess, trust_remote_code=remote)
        if not untrained:
            return model
        return replace(model, name=model.name + UNTRAINED, module=vision.reinitialise(model.module, seed))
    if isinstance(model, str) and model.endswith(UNTRAINED):
        model, untrained = model.removesuffix(UNTRAINED), True
    path = None if weights is None else Path(weights)
    _load_shipped()
    if not _is_of_transformers(model):
        _refuse_unused("what is not a model of transformers", trust_remote_code=remote)
    if not isinstance(model, str):
        _refuse_unused("a module, which holds its weights", weights=weights)
        built = vision.from_module(model, preprocess, type(model).__name__, untrained, seed)
    elif model in _BUILDERS:
        card, builder = _BUILDERS[model]
        _refuse_unused(f"{model}, which has preprocessing of its own", preprocess=preprocess)
        if not card.weights:
            _refuse_unused(f"{model}, which has no weights", weights=weights)
        built = builder(path, untrained, seed)
        size = card.size or vision.input_size(built.inputs)
        told = card.preprocessing or vision.preprocessing(built.inputs)
        card = replace(card, size=size, preprocessing=told)
        built = replace(built, card=card, layers=built.layers or card.layers)
    elif _is_of_transformers(model):
        from .pretrained import from_transformers

        _refuse_unused("a model of transformers, whose folder holds both", weights=weights, preprocess=preprocess)
        built = from_transformers(model.removeprefix("transformers:"), untrained, seed, trust_remote_code)
    elif model.startswith(ZOOS):
        from .adapters.vision_zoo import from_zoo

        _refuse_unused(f"{model}, which has preprocessing of its own", preprocess=preprocess)
        built = from_zoo(model, path, untrained, seed)
    elif ":" in model:
        _refuse_unused("a factory, which builds the trained model", weights=weights)
        built = vision.from_factory(model, preprocess, untrained, seed)
    else:
        raise ValueError(
            unknown(
                "model",
                model,
                sorted(_BUILDERS),
                "Give a registered name, package.module:factory, transformers:NAME, a folder with config.json, "
                "torchvision:NAME, timm:NAME or open_clip:ARCHITECTURE/TAG.",
            )
        )
    return replace(built, name=built.name + UNTRAINED) if untrained and _has_weights(built) else built


def _is_of_transformers(model: object) -> bool:
    if not isinstance(model, str) or model in _BUILDERS:
        return False
    return model.startswith("transformers:") or (Path(model.partition("#")[0]) / "config.json").is_file()


def _refuse_unused(by: str, **arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name}= is not read by {by}; leave it out")


def controls_of(models: Iterable[str], kind: str) -> list[str]:
    """What a model must beat to say something: the raw pixels of images, and the same network without training."""
    models = list(models)
    controls = ["pixels"] if kind == "image" else []
    for name in models:
        plain = name in _BUILDERS and not _BUILDERS[name][0].weights
        if not plain and not name.endswith(UNTRAINED):
            controls.append(name + UNTRAINED)
    return [name for name in controls if name not in models]


def _has_weights(model: Model) -> bool:
    return next(iter(model.module.parameters()), None) is not None


def find_weights(card: ModelCard, weights: Path | None) -> Path:
    """The file of a model's weights, given a file or a folder, or nothing but what NEURALIGN_DATA names."""
    root = os.environ.get("NEURALIGN_DATA")
    places = [weights] if weights else [Path(root) / folder for folder in card.folders] if root else []
    for place in places:
        if place.is_file():
            return place
        found = sorted(place.rglob(card.weights)) if place.is_dir() else []
        if found:
            return found[0]
    where = weights or root or "None, and NEURALIGN_DATA is not set"
    raise FileNotFoundError(
        f"weights={where}: no file {card.weights} of {card.name} there. Get it from {card.source} and pass "
        f"weights= (--weights) with its file or folder, or take '{card.name}{UNTRAINED}'."
    )
