"""From stimuli to features."""

from __future__ import annotations

import hashlib
import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..device import pick_device
from .hooks import Call, blocks, choose, collect, trace
from .reduce import Reduction, parse_reduction
from .registry import Model, load_model
from .store import Entry, Features, cache_root, code_digest, key_of

if TYPE_CHECKING:
    from ...datasets.stimuli import StimulusSet

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
        See `load_model`.
    stimuli : StimulusSet
        What the model is shown.
    layers : str, sequence of str or None
        Names or patterns of layers (``*`` stands for anything within one part of a dotted name), ``"all"``, or None
        for the layers that stand for the model.
    reduce : {"mean", "cls"}, int or None
        Average over places or tokens, take the first token, average places into a grid of so many cells along each
        side, or keep everything. Sentences differ in length, so text models average when it is None.
    device : str
        ``"auto"`` takes a GPU when there is one.
    batch_size : int, optional
        Stimuli per forward pass; default 64. It does not change the features.
    cache : path, bool or None
        Folder of the store; None for NEURALIGN_CACHE or ~/.cache/neuralign; False keeps features in memory only.
    weights, untrained, seed, preprocess
        See `load_model`.

    Returns
    -------
    Features

    Raises
    ------
    ValueError
        If a layer or model is unknown, the stimuli are of another kind than the model reads, or a layer gives NaN.
    """
    model = load_model(model, weights, untrained, seed, preprocess)
    if len(stimuli) == 0:
        raise ValueError("stimuli is empty; at least one stimulus is needed")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; expected at least 1")
    reduction = parse_reduction(model.pool if reduce is None else reduce)
    where = pick_device(device)
    module = model.module.to(where)
    calls = trace_model(model, stimuli, where)
    names = choose(calls, layers, model.layers or blocks(module, calls))
    grids = {call.layer: reduction.map_shape(call.shape) for call in calls}

    common = {
        "weights": weights_digest(module),
        "module": module_digest(module),
        "code": code_digest(),
        "libraries": {"torch": torch.__version__, "transformers": _version_of("transformers")},
        "inputs": dict(model.inputs.spec()),
        "stimuli": model.inputs.digest(stimuli),
        "reduce": vars(reduction),
    }
    parts = {name: common | {"layer": name} for name in names}
    keys = {name: key_of(parts[name]) for name in names}
    root = None if cache is False else cache_root(None if cache in (None, True) else str(cache))
    arrays: dict[str, np.ndarray] = {}
    if root is not None:
        for name in names:
            stored = Entry(root, keys[name]).read()
            if stored is not None:
                arrays[name] = stored[0]
    missing = [name for name in names if name not in arrays]
    if missing:
        log.info("%s: computing %d of %d layers", model.name, len(missing), len(names))
        computed = _compute(model, stimuli, missing, reduction, where, batch_size or 64)
        for name, array in computed.items():
            _refuse_nan(model, name, array, stimuli)
            arrays[name] = array
            if root is not None:
                entry = Entry(root, keys[name])
                entry.write(array, grids[name], parts[name])
    return Features(
        model.name,
        tuple(stimuli.ids),
        {name: arrays[name] for name in names},
        {name: grid for name in names if (grid := grids[name]) is not None},
        keys,
    )


def trace_model(model: Model, stimuli: StimulusSet, device: torch.device) -> list[Call]:
    """The layers of a model with their shapes, from a forward pass over the first stimulus."""
    _, batch = next(iter(model.inputs.batches(stimuli, 1)))
    return trace(model.module, {name: tensor.to(device) for name, tensor in batch.items()})


def _compute(
    model: Model, stimuli: StimulusSet, layers: Sequence[str], reduction: Reduction, device: torch.device, size: int
) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    shown = sys.stderr.isatty()
    with tqdm(total=len(stimuli), desc=model.name, unit="stimuli", disable=not shown, leave=False) as bar:
        for rows, batch in model.inputs.batches(stimuli, size):
            on_device = {name: tensor.to(device) for name, tensor in batch.items()}
            for name, tensor in collect(model.module, on_device, layers, reduction).items():
                values = tensor.numpy()
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


def _refuse_nan(model: Model, layer: str, array: np.ndarray, stimuli: StimulusSet) -> None:
    bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))
    if len(bad):
        raise ValueError(
            f"layer {layer!r} of {model.name} is NaN or infinite for {len(bad)} of {len(array)} stimuli "
            f"(first: {stimuli.ids[bad[0]]!r}); look at the preprocessing of that stimulus"
        )


def weights_digest(module: nn.Module) -> str:
    """Hash of every parameter and buffer, by name, type, shape and value."""
    digest = hashlib.sha256()
    tensors = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def module_digest(module: nn.Module) -> str:
    """Hash of what a module does besides its weights: the source of its classes and its plain settings."""
    digest = hashlib.sha256(repr(module).encode())
    sources: Mapping[str, str] = {
        f"{kind.__module__}.{kind.__qualname__}": _source(kind)
        for kind in {type(part) for part in module.modules()}
        if not kind.__module__.startswith("torch.")
    }
    digest.update(repr(sorted(sources.items())).encode())
    for name, part in module.named_modules():
        plain = {
            key: value
            for key, value in vars(part).items()
            if not key.startswith("_") and key != "training" and _is_plain(value)
        }
        digest.update(f"{name}{sorted(plain.items())}".encode())
    return digest.hexdigest()


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""  # typed at a prompt; its weights and settings still count


def _version_of(package: str) -> str:
    module = sys.modules.get(package)
    return getattr(module, "__version__", "not used")
