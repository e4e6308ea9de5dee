"""From stimuli to features."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from ...datasets.stimuli import StimulusSet
from .disk import check_room
from .engine.devices import evaluation
from .engine.memory import refuse_what_does_not_fit
from .engine.plan import Plan
from .engine.run import Job, run
from .engine.sample import trace_model
from .engine.several import all_devices, on_every
from .engine.task import Probed, Task, forms_of, prepare, probe, shapes_of
from .engine.writer import InMemory
from .grams import gram_matrix, scratch
from .pca import PCA, FittedPCA
from .reduce import Reduction
from .registry import Model
from .shards import Entry, Form
from .store import Features, key_of

__all__ = ["evaluation", "extract", "gram", "plan", "trace_model"]

log = logging.getLogger("neuralign")

_LESS = "take reduce= (a grid of 7 keeps 49 places), fewer layers, dtype='float16'"


def extract(
    model: str | Model | nn.Module,
    stimuli: StimulusSet,
    layers: str | float | Sequence[str | float] | None = None,
    reduce: str | int | Reduction | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    cache: str | Path | bool | None = None,
    *,
    weights: str | Path | None = None,
    untrained: bool = False,
    seed: int = 0,
    preprocess: Callable[[Any], torch.Tensor] | None = None,
    dtype: str = "float32",
    precision: str = "auto",
    compile: bool = False,
    workers: int | None = None,
    on_error: str = "raise",
    context: tuple[int, int] | None = None,
    pool: str | None = None,
    trust_remote_code: bool = False,
    shard: tuple[int, int] | None = None,
) -> Features:
    """Features of a model's layers for a set of stimuli.

    What was computed is stored block by block and found again by what it was computed from; a run that was killed
    goes on where it stopped, and several runs share the work.

    Parameters
    ----------
    model : str, Model or torch.nn.Module
        See `load_model`. It runs in evaluation mode, and comes back in the mode and on the device in which it was.
    stimuli : StimulusSet
        What the model is shown.
    layers : str, float, sequence of them or None
        Names or patterns of layers (``*`` stands for anything within one part of a dotted name), ``"blocks"``,
        ``"all"``, a relative depth from 0 to 1, a facet of blocks like ``"blocks/q"`` (q, k, v, attn, mlp, map), or
        None for the layers that stand for the model.
    reduce : str, int, Reduction or None
        What is kept of a layer. An int averages places into a grid of so many cells along each side; ``"mean"``,
        ``"max"``, ``"cls"``, ``"mean-patch"`` and ``"last"`` keep one vector; ``"sketch:K"`` K numbers whose
        correlations are those of the layer; `PCA` components fitted on stimuli that it names; see `Reduction`. None or
        ``"none"`` keeps everything, but for models of texts and sounds, which differ in length: there None averages.
    device : str
        ``"auto"`` takes a GPU when there is one; ``"cuda:all"`` shares the stimuli between all of them.
    batch_size : int, optional
        Stimuli per forward pass; default 64. It does not change the features, and is halved where memory runs out.
    cache : path, bool or None
        Folder of the store; None for NEURALIGN_CACHE or ~/.cache/neuralign; False keeps features in memory only.
        A model with a part that cannot be hashed is never stored, and one warning says which part it is.
    weights, untrained, seed, preprocess, trust_remote_code
        See `load_model`.
    dtype : {"float32", "float16"}
        Of the features. float16 takes half the room and keeps three digits; what it cannot hold is refused.
    precision : {"auto", "float32", "bfloat16", "float16"}
        In which the model computes; sums are of float32. ``"auto"`` is bfloat16 on a GPU that has it.
    compile : bool
        Compile the model first: minutes once, which many images may be worth.
    workers : int, optional
        Processes that decode images. Default: on a GPU one per core, at most 16; on the CPU none, one thread reads
        ahead.
    on_error : {"raise", "skip"}
        Leave out stimuli that cannot be read, with one warning that names them, instead of refusing them.
    context, pool
        For words in their context, see `WordInputs`: fewest and most tokens, and how tokens become a word.
    shard : (int, int), optional
        (i, n) computes every n-th block of stimuli from the i-th on, as one of n jobs that share a store; the
        features that come back are those that are done by then.

    Returns
    -------
    Features

    Raises
    ------
    ValueError
        If a layer or model is unknown, the stimuli are of another kind than the model reads, one of them cannot be
        read, the disk or the memory cannot hold the features, or a layer gives NaN or something else than one row per
        stimulus.
    MemoryError
        If not even one stimulus at a time fits into memory.
    """
    arguments = {name: value for name, value in locals().items() if name not in ("device", "shard")}
    if device == "cuda:all":
        if cache is False or shard is not None:
            raise ValueError("device='cuda:all' shares a store between processes; leave cache=False and shard out")
        devices = all_devices()
        if len(devices) > 1:
            on_every(devices, extract, arguments)
        device = devices[0]
    task = prepare(**arguments, device=device, shard=shard)
    found = _stored(task)
    missing = [layer for layer in task.names if layer not in found]
    if missing:
        found |= _compute(task, missing)
    return _features(task, found)


def plan(
    model: str | Model | nn.Module,
    stimuli: StimulusSet,
    layers: str | float | Sequence[str | float] | None = None,
    reduce: str | int | Reduction | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    cache: str | Path | bool | None = None,
    **options: Any,
) -> Plan:
    """What `extract` would compute and store, without doing so.

    Parameters
    ----------
    model, stimuli, layers, reduce, device, batch_size, cache, **options
        As `extract` takes them.

    Returns
    -------
    Plan
        ``print(plan)`` shows it.
    """
    task = prepare(model, stimuli, layers, reduce, device, batch_size, cache, **options)
    found = _stored(task)
    missing = [layer for layer in task.names if layer not in found]
    shapes, seconds = {layer: tuple(one.array.shape[1:]) for layer, one in found.items()}, None
    if missing:
        start = time.perf_counter()
        probed, n = probe(task, missing, dict.fromkeys(missing, task.reduction))
        seconds = (time.perf_counter() - start) / n * len(stimuli)
        shapes |= {layer: probed[layer].shape for layer in missing}
    forms = forms_of(task, shapes)
    states, left = {}, 0
    for layer in task.names:
        done = set() if task.root is None else Entry(task.root, task.keys[layer]).done()
        states[layer] = "hit" if layer in found else "partial" if done else "missing"
        left += 0 if layer in found or done else forms[layer].bytes  # room for all blocks is taken with the first
    held = 2 * sum(forms[layer].block * forms[layer].row_bytes for layer in missing)
    return Plan(
        task.model.name,
        len(stimuli),
        pd.DataFrame(
            {
                "layer": task.names,
                "shape": [forms[layer].shape for layer in task.names],
                "bytes": [forms[layer].bytes for layer in task.names],
                "state": [states[layer] for layer in task.names],
            }
        ),
        0 if task.root is None else left,
        held + (sum(form.bytes for form in forms.values()) if task.root is None else 0),
        seconds,
        "" if task.root is None else str(task.root),
    )


def gram(
    model: str | Model | nn.Module,
    stimuli: StimulusSet,
    layers: str | float | Sequence[str | float] | None = None,
    *,
    centre: bool = False,
    device: str = "auto",
    cache: str | Path | bool | None = None,
    **options: Any,
) -> Features:
    """Exact inner products of the un-reduced features of all pairs of stimuli.

    RSA, CKA and kernel regressions depend on features through these alone, so that nothing has to be sketched or
    pooled for them. The features themselves lie in a scratch folder of the store while a layer is computed.

    Parameters
    ----------
    model, stimuli, layers, device, **options
        As `extract` takes them; there is no ``reduce``.
    centre : bool
        Subtract the mean over stimuli of each feature first.
    cache : path, bool or None
        As in `extract`: folder of the store, where the products are found again; False keeps all in memory.

    Returns
    -------
    Features
        ``result[layer]`` is (stimulus, stimulus), float32.

    Raises
    ------
    ValueError
        As from `extract`.
    """
    task = prepare(model, stimuli, layers, Reduction(), device, None, cache, **options)
    if "reduce" in options:
        raise ValueError("reduce= is not read by gram, whose products are those of whole layers; leave it out")
    parts = {layer: {**task.parts[layer], "gram": {"centre": centre}} for layer in task.names if task.root is not None}
    keys = {layer: key_of(parts[layer]) for layer in parts}
    arrays: dict[str, np.ndarray] = {}
    for layer in task.names:
        known = Entry(task.root, keys[layer]).read() if task.root is not None else None
        if known is None:
            with _scratch(task) as folder:
                whole = extract(task.model, stimuli, [layer], Reduction(), device, None, folder, **_rest(options))
                known = gram_matrix(whole[layer], centre, task.settings.device)
                del whole
            if task.root is not None:
                entry = Entry(task.root, keys[layer])
                entry.write(known, parts[layer], {"model": task.model.name, "layer": f"gram of {layer}"})
                known = entry.read()
                if known is None:
                    raise OSError(f"{entry.folder} was removed or damaged as soon as it was written")
        arrays[layer] = known
    return Features(task.model.name, tuple(stimuli.ids), arrays, keys_=keys)


@dataclass(frozen=True)
class _Layer:
    """A layer that is at hand: all rows, those that were left out, and what its writer noted of it."""

    array: np.ndarray
    absent: np.ndarray
    about: Mapping[str, Any]


# ------------------------------------------------------------------------------------- what is there, what is not


def _stored(task: Task) -> dict[str, _Layer]:
    """Layers that are stored as a whole."""
    if task.root is None:
        return {}
    found, partly = {}, 0
    for layer in task.names:
        entry = Entry(task.root, task.keys[layer])
        array = entry.read()
        if array is not None:
            found[layer] = _Layer(array, np.empty(0, int), entry.about)
        else:
            partly += bool(entry.done())
    states = {"stored": len(found), "stored in part": partly, "to compute": len(task.names) - len(found) - partly}
    said = ", ".join(f"{n} {state}" for state, n in states.items() if n)
    log.info("%s: %d layer%s, %s", task.model.name, len(task.names), "s" * (len(task.names) > 1), said)
    return found


# ---------------------------------------------------------------------------------------------- computing it


def _compute(task: Task, layers: Sequence[str]) -> dict[str, _Layer]:
    """Compute and store what is missing of these layers."""
    reductions: dict[str, Reduction] = dict.fromkeys(layers, task.reduction)
    if isinstance(task.reduction, PCA):
        reductions = dict(_fitted(task, task.reduction, layers))
    probed = shapes_of(task, layers, reductions)
    forms = forms_of(task, {layer: probed[layer].shape for layer in layers})
    about = {layer: _about(task, layer, reductions[layer], probed[layer]) for layer in layers}
    stores: dict[str, Entry | InMemory] = {}
    if task.root is None:
        refuse_what_does_not_fit({layer: form.bytes for layer, form in forms.items()}, f"{_LESS}, or leave cache out")
        stores = {layer: InMemory(form) for layer, form in forms.items()}
    else:
        entries = {layer: Entry(task.root, task.keys[layer]) for layer in layers}
        fresh = sum(forms[layer].bytes for layer, entry in entries.items() if entry.form is None)
        check_room(task.root, fresh, f"{_LESS}, or give a folder on a larger disk with cache=")
        for layer, entry in entries.items():
            form = forms[layer]
            forms[layer] = entry.create(form.rows, form.shape, form.dtype, form.block, task.parts[layer], about[layer])
        stores.update(entries)
    job = Job(task.model, task.stimuli, {layer: task.taps[layer] for layer in layers}, reductions, task.settings)
    run(job, stores, forms)
    return {layer: _layer_of(store, forms[layer], about[layer]) for layer, store in stores.items()}


def _layer_of(store: Entry | InMemory, form: Form, about: Mapping[str, Any]) -> _Layer:
    """A layer as it stands after a run: rows of other shards, and of what cannot be read, are absent."""
    there = np.zeros(form.rows, bool)
    for block in store.done(holes=True):
        there[slice(*form.span(block))] = True
    there[store.holes()] = False
    if isinstance(store, InMemory):
        return _Layer(store.array, np.flatnonzero(~there), about)
    array = store.read(holes=True)
    if array is None and not there.all():
        array = np.memmap(store.folder / "data", form.dtype, "r", shape=(form.rows, *form.shape))
    if array is None:
        raise OSError(f"{store.folder} was removed or damaged while it was computed; run it again")
    return _Layer(array, np.flatnonzero(~there), about)


def _about(task: Task, layer: str, reduction: Reduction, probed: Probed) -> dict[str, Any]:
    """What comes back with a layer from the store."""
    about: dict[str, Any] = {"model": task.model.name, "layer": layer}
    about["grid"] = reduction.map_shape(probed.seen)
    times = None if task.model.clock is None else task.model.clock(layer, probed.seen, task.stimuli)
    if times is not None and reduction.kind == "none" and len(probed.shape) == 2 and len(times) == probed.shape[0]:
        about["times"] = times.tolist()
    if isinstance(reduction, FittedPCA):
        about["info"] = dict(reduction.info())
    return about


def _fitted(task: Task, reduction: PCA, layers: Sequence[str]) -> Iterator[tuple[str, FittedPCA]]:
    """Components of each layer, from the stimuli on which they are to be fitted."""
    rows = reduction.rows(task.stimuli)
    found: dict[str, Entry] = {}
    for layer in layers if task.root is not None else ():
        key = key_of({**task.parts[layer], "of": "components"})
        found[layer] = Entry(task.root, key)  # type: ignore[arg-type]
    for layer in layers:
        basis = found[layer].read() if layer in found else None
        if basis is not None:
            about = found[layer].about
            yield layer, FittedPCA(basis, about["fit_rows"], reduction.digest(), about["explained"])
            continue
        with _scratch(task) as folder:
            settings = task.settings
            whole = extract(
                task.model,
                task.stimuli[rows],
                [layer],
                Reduction(),
                str(settings.device),
                settings.batch_size,
                folder,
                precision=settings.precision,
                workers=settings.workers,
            )
            one = reduction.fitted(whole[layer])
            del whole
        if layer in found:
            names = {"model": task.model.name, "layer": f"components of {layer}"}
            found[layer].write(one.basis, task.parts[layer], names | dict(one.info()))
        yield layer, one


@contextmanager
def _scratch(task: Task) -> Iterator[Path | bool]:
    """Where features lie that nobody will ask for again."""
    if task.root is None:
        yield False
        return
    with scratch(task.root) as folder:
        yield folder


def _rest(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a run that hold for a model which is built already."""
    built = ("weights", "untrained", "seed", "preprocess", "trust_remote_code", "context", "pool")
    return {name: value for name, value in options.items() if name not in built}


def _features(task: Task, found: Mapping[str, _Layer]) -> Features:
    absent = np.unique(np.concatenate([found[layer].absent for layer in task.names]))
    ids = task.stimuli.ids
    arrays = {layer: found[layer].array for layer in task.names}
    if len(absent):
        kept = np.setdiff1d(np.arange(len(ids)), absent)
        ids = tuple(ids[row] for row in kept)
        arrays = {layer: np.asarray(array[kept]) for layer, array in arrays.items()}
        if task.settings.shard[1] > 1:
            log.info("%s: %d of %d stimuli are done", task.model.name, len(kept), len(task.stimuli))
    about = {layer: found[layer].about for layer in task.names}
    inputs: Any = task.model.inputs
    info = dict(inputs.info(task.stimuli)) if hasattr(inputs, "info") else {}
    info |= {layer: one["info"] for layer, one in about.items() if one.get("info")}
    grids = {layer: (int(grid[0]), int(grid[1])) for layer, one in about.items() if (grid := one.get("grid"))}
    times = {layer: np.array(one["times"]) for layer, one in about.items() if one.get("times")}
    return Features(task.model.name, tuple(ids), arrays, grids, dict(task.keys), times, info)
