"""The loop: block after block of stimuli through the model, reduced within the pass, committed beside it."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ....datasets.stimuli import StimulusSet
from ..hooks import Tap, listening
from ..registry import Model
from ..shards import Form
from .devices import compiled, computing, evaluation, handed_over, laid_out
from .loader import Batch, batches, by_item, prefetched
from .memory import is_out_of_memory, release
from .writer import Blocks, Store, not_finite

log = logging.getLogger("neuralign")

_POLL = 0.2  # seconds between looks at what others compute
_NAMED = 10  # stimuli that a warning lists

Reduce = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """How a model is run; of these only the precision and whether it is compiled are seen in the features."""

    device: torch.device
    batch_size: int = 64
    precision: str = "float32"
    dtype: str = "float32"
    compile: bool = False
    workers: int = 0
    skip: bool = False
    shard: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class Job:
    """What is to be computed.

    Attributes
    ----------
    model : Model
    stimuli : StimulusSet
    taps : mapping of str to Tap
        Where each layer is read.
    reductions : mapping of str to callable
        What is kept of each layer.
    settings : Settings
    """

    model: Model
    stimuli: StimulusSet
    taps: Mapping[str, Tap]
    reductions: Mapping[str, Reduce]
    settings: Settings
    undefined: dict[str, set[int]] = field(default_factory=dict)
    unreadable: dict[int, str] = field(default_factory=dict)


def run(job: Job, stores: Mapping[str, Store], forms: Mapping[str, Form]) -> None:
    """Compute every block that the stores lack.

    Blocks that another process computes are waited for, and taken over if it dies. A pass that does not fit into
    memory is repeated with half the batch.

    Parameters
    ----------
    job : Job
    stores : mapping of str to Store
        Where each layer goes.
    forms : mapping of str to Form
        Of the stores.

    Raises
    ------
    ValueError
        If a stimulus cannot be read, a layer gives NaN or something else than one row of its shape per stimulus.
    MemoryError
        If not even one stimulus fits.
    """
    by_block: dict[int, list[str]] = {}
    for layer, form in forms.items():
        by_block.setdefault(form.block, []).append(layer)
    module, settings = job.model.module, job.settings
    with (
        evaluation(module, settings.device),
        laid_out(module) as layout,
        computing(settings.device, settings.precision),
    ):
        for layers in by_block.values():
            _run_together(job, {layer: stores[layer] for layer in layers}, forms, layout)
    _report(job)


def _run_together(
    job: Job, stores: Mapping[str, Store], forms: Mapping[str, Form], layout: torch.memory_format
) -> None:
    """Layers whose blocks are the same rows."""
    form, (first, step) = forms[next(iter(stores))], job.settings.shard
    size = min(job.settings.batch_size, form.block)
    todo = _lacking(stores, range(form.blocks)[first::step], holes=False)
    total = sum(stop - start for start, stop in map(form.span, todo))
    shown = sys.stderr.isatty()
    with tqdm(total=total, desc=job.model.name, unit="stimuli", disable=not shown, leave=False) as bar:
        while todo:
            blocks = Blocks(stores, {layer: forms[layer] for layer in stores}, job.settings.device, _checker(job))
            failure = ""
            try:
                _pass(job, blocks, todo, size, form, layout, bar)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failure = str(error).partition("\n")[0]
            finally:
                blocks.close()
            if failure:  # here and not above: an exception that is handled keeps the tensors of its frames alive
                release(job.settings.device)
                size = _halved(size, failure, job.model.name)
            left = [block for block in todo if block not in blocks.committed]
            left = _lacking(stores, left, holes=job.settings.skip)
            if left and len(left) == len(todo) and not failure:
                time.sleep(_POLL)  # all of them are others' work
            todo = left


def _lacking(stores: Mapping[str, Store], blocks: Sequence[int], holes: bool) -> list[int]:
    done = [store.done(holes) for store in stores.values()]
    return [block for block in blocks if not all(block in one for one in done)]


def _halved(size: int, failure: str, model: str) -> int:
    if size == 1:
        raise MemoryError(
            f"{model}: not even one stimulus at a time fits into memory ({failure}); take reduce=, smaller inputs, "
            "another device= or precision='bfloat16'"
        )
    log.warning("%s: batch_size %d -> %d: %s", model, size, size // 2, failure)
    return size // 2


def _pass(
    job: Job,
    blocks: Blocks,
    todo: Sequence[int],
    size: int,
    form: Form,
    layout: torch.memory_format,
    bar: Any,
) -> None:
    """Every block of `todo` that nobody else computes, in batches of `size`."""
    module, settings, inputs = job.model.module, job.settings, job.model.inputs
    layers = list(blocks.layers)
    rows: list[int] = []  # of the batch at hand
    index: list[torch.Tensor] = []

    def keep(layer: str, values: torch.Tensor) -> None:
        if len(values) != len(rows):
            raise ValueError(
                f"layer {layer!r} gives shape {tuple(values.shape)} for {len(rows)} stimuli; its first axis is not "
                "the stimuli: leave it out, or wrap the model so that it is"
            )
        if tuple(values.shape[1:]) != blocks.forms[layer].shape:
            raise ValueError(
                f"layer {layer!r} gives {tuple(values.shape[1:])} for stimulus {job.stimuli.ids[rows[0]]!r} and "
                f"{blocks.forms[layer].shape} before; stimuli of different length need reduce='mean' or 'cls'"
            )
        blocks.put(layer, rows, values)

    taps = {layer: job.taps[layer] for layer in layers}
    reductions = {layer: reduced(inputs, layer, job.reductions[layer], index) for layer in layers}
    source = _source(job, blocks, todo, size, form)
    parts = compiled(module, {tap.module for tap in taps.values()}) if settings.compile else nullcontext()
    with (
        parts,
        listening(module, taps, reductions, sink=keep) as forward,
        closing(prefetched(source)) as ahead,
    ):
        for batch in ahead:
            rows[:] = batch.rows
            if rows:
                tensors = as_read(inputs, batch, module, settings.device, layout)
                index[:] = [tensors.pop("index")] if hasattr(inputs, "gather") else []
                partial = settings.compile and len(rows) < size  # another shape would be compiled anew
                with torch.compiler.set_stance("force_eager") if partial else nullcontext():
                    forward(tensors)
            job.unreadable.update(batch.unreadable)
            blocks.fill(rows, batch.unreadable)
            bar.update(len(rows))
        blocks.finish()


def as_read(
    inputs: Any, batch: Batch, module: nn.Module, device: torch.device, layout: torch.memory_format
) -> dict[str, Any]:
    """A batch as the module reads it, on its device."""
    tensors = batch.tensors
    if hasattr(inputs, "decode"):
        if device.type == "cuda":
            tensors = {name: x.pin_memory() for name, x in tensors.items()}  # what is not pinned holds up the copy
        tensors = inputs.finish(tensors, device, layout)
    return handed_over(tensors, module, device, layout)


def reduced(inputs: Any, layer: str, reduction: Reduce, index: list[torch.Tensor]) -> Reduce:
    """What is kept of a layer; of tokens in windows first what belongs to each word, which `index` tells."""
    if not hasattr(inputs, "gather"):
        return reduction
    return lambda output: reduction(inputs.gather(layer, output, index[0]))


def _source(job: Job, blocks: Blocks, todo: Sequence[int], size: int, form: Form) -> Generator[Batch, None, None]:
    """Batches of the blocks that could be claimed; a block is claimed when the loader comes to it."""
    inputs, settings = job.model.inputs, job.settings
    if by_item(inputs):
        claimed: Iterator[range] = (range(*form.span(block)) for block in todo if blocks.claim(block))
        yield from batches(inputs, job.stimuli, claimed, size, settings.workers, settings.skip)
        return
    claims = [blocks.claim(block) for block in todo]
    if any(claims):
        for rows, tensors in inputs.batches(job.stimuli, size):
            if blocks.wanted(rows):
                yield Batch(rows, tensors)


def _checker(job: Job) -> Callable[[str, np.ndarray, int], None]:
    allowed: Collection[str] = getattr(job.model.inputs, "undefined", ())

    def check(layer: str, values: np.ndarray, start: int) -> None:
        bad = not_finite(values)
        if not len(bad):
            return
        infinite = bad[np.isinf(values[bad]).reshape(len(bad), -1).any(1)]
        if layer in allowed and not len(infinite):
            job.undefined.setdefault(layer, set()).update((start + bad).tolist())
            return
        of = f"layer {layer!r} of {job.model.name}"
        if job.settings.dtype == "float16" and len(infinite):
            raise ValueError(
                f"{of} is beyond 65504, the largest number of float16, for {len(infinite)} of {len(values)} stimuli "
                f"(first: {job.stimuli.ids[start + infinite[0]]!r}); take dtype='float32'"
            )
        raise ValueError(
            f"{of} is NaN or infinite for {len(bad)} of {len(values)} stimuli (first: "
            f"{job.stimuli.ids[start + bad[0]]!r}); look at the preprocessing of that stimulus"
        )

    return check


def _report(job: Job) -> None:
    """One warning for what is undefined, one for what was left out."""
    for layer, rows in job.undefined.items():
        reason = job.model.inputs.undefined[layer]  # type: ignore[attr-defined]
        first = job.stimuli.ids[min(rows)]
        warnings.warn(
            f"layer {layer!r} of {job.model.name} is NaN for {len(rows)} of {len(job.stimuli)} stimuli (first: "
            f"{first!r}): {reason}",
            UserWarning,
            stacklevel=4,
        )
    if job.unreadable:
        bad = sorted(job.unreadable)
        named = ", ".join(repr(job.stimuli.ids[row]) for row in bad[:_NAMED])
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        warnings.warn(
            f"{len(bad)} of {len(job.stimuli)} stimuli cannot be read and are left out: {named}{more}. First reason: "
            f"{job.unreadable[bad[0]]}",
            UserWarning,
            stacklevel=4,
        )
