"""A first look at a model: which layers it has."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from ....datasets.stimuli import StimulusSet
from ..hooks import Call, trace
from ..registry import Model
from .devices import handed_over
from .loader import Batch, alone, by_item, together
from .run import as_read


def trace_model(model: Model, stimuli: StimulusSet, device: torch.device) -> list[Call]:
    """The layers of a model with their shapes, from a forward pass over two different stimuli."""
    return traced(model, stimuli, device, Sample(model.inputs, stimuli, False))


def traced(model: Model, stimuli: StimulusSet, device: torch.device, sample: Sample) -> list[Call]:
    inputs: Any = model.inputs
    if hasattr(inputs, "probe"):
        batch = handed_over(sample.probe(), model.module, device, torch.contiguous_format)
    else:
        batch = doubled(as_read(inputs, sample.batch, model.module, device, torch.contiguous_format))
        batch.pop("index", None)
    left_out = getattr(inputs, "leaves_out", ())
    return [call for call in trace(model.module, batch) if call.layer.partition(".")[0] not in left_out]


class Sample:
    """One or two of the stimuli, which tell what layers there are; read once, when they are first needed."""

    def __init__(self, inputs: Any, stimuli: StimulusSet, skip: bool) -> None:
        self._inputs, self._stimuli, self._skip = inputs, stimuli, skip

    @cached_property
    def batch(self) -> Batch:
        if not by_item(self._inputs):
            return Batch(*next(iter(self._inputs.batches(self._stimuli, 2))))
        first = self._first
        if first + 1 < len(self._stimuli):
            try:
                return together(self._inputs, self._stimuli, [first, first + 1])
            except (ValueError, OSError):  # the second is of another size, or cannot be read: the run will say
                pass
        return alone(self._inputs, self._stimuli, first)

    def probe(self) -> dict[str, Any]:
        return self._inputs.probe(self._stimuli[self._first :] if self._first else self._stimuli)

    @cached_property
    def _first(self) -> int:
        """The first stimulus that can be read."""
        for row in range(len(self._stimuli) - 1 if self._skip else 0):
            try:
                alone(self._inputs, self._stimuli, row)
                return row
            except (ValueError, OSError):
                continue
        return len(self._stimuli) - 1 if self._skip else 0


def doubled(tensors: dict[str, Any]) -> dict[str, Any]:
    """Two different stimuli: one alone would not tell the axis of the stimuli from another of length 1."""
    n = next(len(x) for x in tensors.values() if isinstance(x, torch.Tensor))
    if "index" in tensors or n > 1:
        return tensors
    return {name: torch.cat([x, x.flip(-1)]) if isinstance(x, torch.Tensor) else x for name, x in tensors.items()}
