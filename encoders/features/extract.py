"""From stimuli to features."""

from __future__ import annotations

import logging
import operator
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import nn
from tqdm import tqdm

from ...datasets.stimuli import StimulusSet
from ..device import pick_device
from .digest import CannotTell, digest_of
from .hooks import Call, blocks, choose, collect, trace
from .reduce import Reduction, parse_reduction
from .registry import Model, load_model
from .store import Entry, Features, cache_root, code_digest, key_of

log = logging.getLogger("neuralign")


def extract(
    model: str | Model | nn.Module,
    stimuli: StimulusSet,
    layers: str | Sequence[str] | None = None,
    reduce: str | int | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    cache: str | Path | bool | None = None,
    *,
    weights: str | Path | None = None,
    untrained: bool = False,
    seed: int = 0,
    preprocess: Callable[[Any], torch.Tensor] | None = None,
) -> Features:
    """Features of a model's layers for a set of stimuli.

    Parameters
    ----------
    model : str, Model or torch.nn.Module
        See `load_model`. It runs in evaluation mode, and comes back in the mode and on the device in which it was.
    stimuli : StimulusSet
        What the model is shown.
    layers : str, sequence of str or None
        Names or patterns of layers (``*`` stands for anything within one part of a dotted name), ``"all"``, or None
        for the layers that stand for the model.
    reduce : {"mean", "cls"}, int or None
        Average over places or tokens, take the first token, average places into a grid of so many cells along each
        side, or keep everything. Sentences differ in length, so text models average when it is None. An output
        with three axes is read as (stimulus, token, feature), one with four as (stimulus, channel, height,
        width); (stimulus, height, width, channel) cannot be told from the latter and needs a wrapper that permutes.
    device : str
        ``"auto"`` takes a GPU when there is one.
    batch_size : int, optional
        Stimuli per forward pass; default 64. It does not change the features.
    cache : path, bool or None
        Folder of the store; None for NEURALIGN_CACHE or ~/.cache/neuralign; False keeps features in memory only.
        A model with a part that cannot be hashed is never stored, and one warning says which part it is.
    weights, untrained, seed, preprocess
        See `load_model`.

    Returns
    -------
    Features

    Raises
    ------
    ValueError
        If a layer or model is unknown, the stimuli are of another kind than the model reads, or a layer gives NaN
        or something else than one row per stimulus.
    """
    _check_stimuli(stimuli)
    model = load_model(model, weights, untrained, seed, preprocess)
    size = _checked_size(batch_size)
    reduction = parse_reduction(model.pool if reduce is None else reduce)
    if reduction.kind == "grid" and stimuli.kind != "image":
        raise ValueError(f"reduce={reduction.grid} averages places of images; of a {stimuli.kind} take 'mean' or 'cls'")
    where = pick_device(device)
    try:  # before anything runs: a pass may count itself in an attribute
        common = _made_from(model, stimuli) | {"reduce": vars(reduction)}
    except CannotTell as reason:
        common = {}
        if cache is not False:
            warnings.warn(f"features of {model.name} are not stored: {reason}", UserWarning, stacklevel=2)
    root = None if cache is False or not common else cache_root(None if cache in (None, True) else str(cache))
    with evaluation(model.module, where):
        calls = trace_model(model, stimuli, where)
        names = choose(calls, layers, model.layers or blocks(model.module, calls), model.name)
        grids = {call.layer: reduction.map_shape(call.shape) for call in calls}
        parts = {name: common | {"layer": name} for name in names}
        keys = {name: key_of(parts[name]) for name in names} if common else {}
        arrays: dict[str, np.ndarray] = {}
        if root is not None:
            stored = {name: Entry(root, keys[name]).read() for name in names}
            arrays = {name: array for name, array in stored.items() if array is not None}
        missing = [name for name in names if name not in arrays]
        if missing:
            log.info("%s: computing %d of %d layers", model.name, len(missing), len(names))
            for name, array in _compute(model, stimuli, missing, reduction, where, size).items():
                _refuse_nan(model, name, array, stimuli)
                arrays[name] = array
                if root is not None:
                    Entry(root, keys[name]).write(array, parts[name])
    return Features(
        model.name,
        tuple(stimuli.ids),
        {name: arrays[name] for name in names},
        {name: grid for name in names if (grid := grids[name]) is not None},
        keys,
    )


def _made_from(model: Model, stimuli: StimulusSet) -> dict[str, Any]:
    """Everything but the layer and the reduction on which features depend."""
    return {
        "module": digest_of(model.module, type(model.module).__name__),
        "code": code_digest(),
        "libraries": {"torch": torch.__version__, "numpy": np.__version__, "PIL": PIL.__version__},
        "inputs": dict(model.inputs.spec()),
        "stimuli": model.inputs.digest(stimuli),
    }


@contextmanager
def evaluation(module: nn.Module, device: torch.device) -> Iterator[None]:
    """A module in evaluation mode on a device; afterwards in the mode and on the device in which it was."""
    modes = {part: part.training for part in module.modules()}
    homes = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
    if len(homes) > 1:
        raise ValueError(f"model: its tensors lie on {sorted(map(str, homes))}; move it to one device")
    try:
        module.eval().to(device)
        yield
    finally:
        for home in homes:
            module.to(home)
        for part, mode in modes.items():
            part.training = mode


def trace_model(model: Model, stimuli: StimulusSet, device: torch.device) -> list[Call]:
    """The layers of a model with their shapes, from a forward pass over the first stimulus.

    It is shown twice: a first axis of length 1 would not tell the stimuli from any other axis of length 1.
    """
    _, batch = next(iter(model.inputs.batches(stimuli, 1)))
    return trace(model.module, _hand_over({name: torch.cat([x, x]) for name, x in batch.items()}, model, device))


def _hand_over(batch: dict[str, torch.Tensor], model: Model, device: torch.device) -> dict[str, torch.Tensor]:
    """A batch on the device of the module, and in its precision."""
    precision = next((p.dtype for p in model.module.parameters() if p.is_floating_point()), None)
    return {name: x.to(device, precision if x.is_floating_point() else None) for name, x in batch.items()}


def _compute(
    model: Model, stimuli: StimulusSet, layers: Sequence[str], reduction: Reduction, device: torch.device, size: int
) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    shown = sys.stderr.isatty()
    with tqdm(total=len(stimuli), desc=model.name, unit="stimuli", disable=not shown, leave=False) as bar:
        for rows, batch in model.inputs.batches(stimuli, size):
            for name, tensor in collect(model.module, _hand_over(batch, model, device), layers, reduction).items():
                values = tensor.numpy()
                if len(values) != len(rows):
                    raise ValueError(
                        f"layer {name!r} gives shape {values.shape} for {len(rows)} stimuli; its first axis is not "
                        "the stimuli: leave it out, or wrap the model so that it is"
                    )
                if name not in arrays:
                    arrays[name] = np.empty((len(stimuli), *values.shape[1:]), np.float32)
                if values.shape[1:] != arrays[name].shape[1:]:
                    raise ValueError(
                        f"layer {name!r} gives {values.shape[1:]} for stimulus {stimuli.ids[rows[0]]!r} and "
                        f"{arrays[name].shape[1:]} before; stimuli of different length need reduce='mean' or 'cls'"
                    )
                arrays[name][rows] = values
            bar.update(len(rows))
    return {name: arrays[name] for name in layers}


def _check_stimuli(stimuli: object) -> None:
    if isinstance(stimuli, StimulusSet):
        return
    if isinstance(getattr(stimuli, "stimuli", None), StimulusSet):
        raise ValueError(f"stimuli is a {type(stimuli).__name__}; pass brain.stimuli, what the brain was shown")
    raise ValueError(
        f"stimuli is a {type(stimuli).__name__}; expected a StimulusSet: pass brain.stimuli, "
        "StimulusSet.from_images(...) or StimulusSet.from_sentences(...)"
    )


def _checked_size(batch_size: Any) -> int:
    try:
        size = 64 if batch_size is None else operator.index(batch_size)
    except TypeError:
        size = 0
    if size < 1:
        raise ValueError(f"batch_size={batch_size!r}; expected a whole number, at least 1")
    return size


def _refuse_nan(model: Model, layer: str, array: np.ndarray, stimuli: StimulusSet) -> None:
    bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))
    if len(bad):
        raise ValueError(
            f"layer {layer!r} of {model.name} is NaN or infinite for {len(bad)} of {len(array)} stimuli "
            f"(first: {stimuli.ids[bad[0]]!r}); look at the preprocessing of that stimulus"
        )
