"""A run with its arguments checked and its layers known, before anything is computed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import nn

from ....datasets.errors import unknown
from ....datasets.stimuli import StimulusSet
from ...device import pick_device
from ..digest import CannotTell, digest_of
from ..hooks import Call, Tap, blocks, choose, listening, taps
from ..layouts import canonical_shape
from ..ledger import Ledger, recall_calls, remember_calls
from ..pca import PCA
from ..reduce import Reduction
from ..registry import Model, load_model
from ..shards import Form
from ..store import cache_root, code_digest, key_of
from .arguments import check_stimuli, checked_reduction, checked_shard, checked_size, reading
from .devices import computing, evaluation, laid_out, pick_precision
from .loader import by_item, pick_workers
from .memory import block_rows
from .run import Settings, as_read, reduced
from .sample import Sample, doubled, traced


@dataclass(frozen=True)
class Task:
    """A run with its arguments checked and its layers known; nothing is computed yet."""

    model: Model
    stimuli: StimulusSet
    reduction: Reduction
    settings: Settings
    root: Path | None
    names: list[str]
    taps: Mapping[str, Tap]
    shapes: Mapping[str, tuple[int, ...]]
    parts: Mapping[str, Mapping[str, Any]]
    keys: Mapping[str, str]
    sample: Sample


def prepare(
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
) -> Task:
    check_stimuli(stimuli)
    for name, value, known in (
        ("dtype", dtype, ("float32", "float16")),
        ("on_error", on_error, ("raise", "skip")),
    ):
        if value not in known:
            raise ValueError(unknown(name, value, known))
    model = load_model(model, weights, untrained, seed, preprocess, trust_remote_code)
    model = reading(model, stimuli, context, pool)
    size = checked_size(batch_size)
    reduction = checked_reduction(reduce, model, stimuli)
    where = pick_device(device)
    settings = Settings(
        where,
        size,
        pick_precision(precision, where),
        dtype,
        compile,
        pick_workers(workers, model.inputs, stimuli, where),
        on_error == "skip",
        checked_shard(shard),
    )
    if settings.skip and not by_item(model.inputs):
        raise ValueError(f"on_error='skip': {model.name} reads all stimuli together, so that none can be left out")
    root = None if cache is False else cache_root(None if cache in (None, True) else str(cache))
    try:  # before anything runs: a pass may count itself in an attribute
        common: dict[str, Any] = _made_from(model, stimuli, root)
    except CannotTell as reason:
        common = {}
        if root is not None:
            warnings.warn(f"features of {model.name} are not stored: {reason}", UserWarning, stacklevel=4)
        root = None
    if root is None and shard is not None:
        raise ValueError(f"shard={shard}: jobs share a store; leave cache=False out")
    sample = Sample(model.inputs, stimuli, settings.skip)
    calls = _calls(model, stimuli, settings, root, common, sample)
    names = choose(calls, layers, model.layers or blocks(model.module, calls), model.name, model.module)
    places = taps(model.module, names, calls, model.axes)
    common |= {"reduce": dict(reduction.spec()), "dtype": dtype, "precision": settings.precision}
    if compile:
        common |= {"compile": True}
    if any(tap.take == "map" for tap in places.values()):  # for which attention is computed in another way
        common |= {"attention": "eager"}
    parts = {name: common | {"layer": name, "tap": asdict(places[name])} for name in names} if root else {}
    keys = {name: key_of(parts[name]) for name in parts}
    raw = {call.layer: call.shape for call in calls}
    shapes = {
        name: canonical_shape(raw[name], tap.layout)
        for name, tap in places.items()
        if name in raw and tap.take == "output" and tap.split is None
    }
    return Task(model, stimuli, reduction, settings, root, names, places, shapes, parts, keys, sample)


def _made_from(model: Model, stimuli: StimulusSet, root: Path | None) -> dict[str, Any]:
    """Everything but the layer and the reduction on which features depend."""
    made_from = {
        "module": digest_of(model.module, type(model.module).__name__),
        "code": code_digest(),
        "libraries": {"torch": torch.__version__, "numpy": np.__version__, "PIL": PIL.__version__},
        "inputs": dict(model.inputs.spec()),
    }
    if root is not None:
        with Ledger(root) as known:
            stimuli.digests_by(known)
    return made_from | {"stimuli": model.inputs.digest(stimuli)}


def _calls(
    model: Model,
    stimuli: StimulusSet,
    settings: Settings,
    root: Path | None,
    common: Mapping[str, Any],
    sample: Sample,
) -> list[Call]:
    """The layers of a model: from the last time that it was shown these stimuli, or from a pass over two of them."""
    known = None if root is None else recall_calls(root, common)
    if known is not None:
        return [Call(**{**one, "shape": tuple(one["shape"])}) for one in known]
    with evaluation(model.module, settings.device), computing(settings.device, settings.precision):
        calls = traced(model, stimuli, settings.device, sample)
    if root is not None:
        remember_calls(root, common, [asdict(call) for call in calls])
    return calls


@dataclass(frozen=True)
class Probed:
    """Shape of what is kept of one stimulus, and of the layer as reductions see it."""

    shape: tuple[int, ...]
    seen: tuple[int, ...]


def shapes_of(task: Task, layers: Sequence[str], reductions: Mapping[str, Reduction]) -> dict[str, Probed]:
    """Shapes of layers, from those of the calls; only where these do not tell it from another pass."""
    inputs: Any = task.model.inputs
    found: dict[str, Probed] = {}
    for layer in layers:
        if layer not in task.shapes:
            continue
        seen = task.shapes[layer]
        if hasattr(inputs, "gather"):
            seen = tuple(inputs.row_shape(layer, seen))
        try:
            found[layer] = Probed(reductions[layer].row_shape(seen), seen)
        except ValueError as error:
            raise ValueError(f"layer {layer!r}: {error}") from error
    rest = [layer for layer in layers if layer not in found]
    return found | (probe(task, rest, reductions)[0] if rest else {})


def probe(task: Task, layers: Sequence[str], reductions: Mapping[str, Reduction]) -> tuple[dict[str, Probed], int]:
    """What a pass over a few stimuli gives of each layer, and how many they were."""
    module, inputs, settings = task.model.module, task.model.inputs, task.settings
    seen: dict[str, tuple[int, ...]] = {}
    kept: dict[str, tuple[int, ...]] = {}
    index: list[torch.Tensor] = []

    def noting(layer: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def note(output: torch.Tensor) -> torch.Tensor:
            seen[layer] = tuple(output.shape[1:])
            reduction = reductions[layer]
            return output.new_empty((len(output), reduction.size)) if _unfitted(reduction) else reduction(output)

        return reduced(inputs, layer, note, index)

    def keep(layer: str, values: torch.Tensor) -> None:
        kept[layer] = tuple(values.shape[1:])

    places = {layer: task.taps[layer] for layer in layers}
    with (
        evaluation(module, settings.device),
        laid_out(module) as layout,
        computing(settings.device, settings.precision),
        listening(module, places, {layer: noting(layer) for layer in layers}, sink=keep) as forward,
    ):
        batch = doubled(as_read(inputs, task.sample.batch, module, settings.device, layout))
        if hasattr(inputs, "gather"):
            index.append(batch.pop("index"))
        forward(batch)
    return {layer: Probed(kept[layer], seen[layer]) for layer in layers}, max(2, len(task.sample.batch.rows))


def _unfitted(reduction: Reduction) -> bool:
    return isinstance(reduction, PCA)


def forms_of(task: Task, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Form]:
    """Rows, shape and blocks of layers that are computed together."""
    n, settings = len(task.stimuli), task.settings
    sizes = {layer: Form(n, shape, settings.dtype, 1) for layer, shape in shapes.items()}
    row_bytes = sum(form.row_bytes for form in sizes.values())
    block = block_rows(row_bytes, n, settings.batch_size, settings.device, settings.shard[1])
    return {layer: replace(form, block=block) for layer, form in sizes.items()}
