"""What a run is asked for, checked before anything happens."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

from ....datasets.stimuli import StimulusSet
from ..reduce import Reduction, parse_reduction
from ..registry import Model

_OF_VECTORS = ("none", "sketch", "sketch-raw", "sparse", "sparse-raw", "pca")  # reductions of what has no places


def check_stimuli(stimuli: object) -> None:
    if isinstance(stimuli, StimulusSet):
        return
    if isinstance(getattr(stimuli, "stimuli", None), StimulusSet):
        raise ValueError(f"stimuli is a {type(stimuli).__name__}; pass brain.stimuli, what the brain was shown")
    raise ValueError(
        f"stimuli is a {type(stimuli).__name__}; expected a StimulusSet: pass brain.stimuli, "
        "StimulusSet.from_images(...) or StimulusSet.from_sentences(...)"
    )


def checked_size(batch_size: Any) -> int:
    try:
        size = 64 if batch_size is None else operator.index(batch_size)
    except TypeError:
        size = 0
    if size < 1:
        raise ValueError(f"batch_size={batch_size!r}; expected a whole number, at least 1")
    return size


def checked_shard(shard: Any) -> tuple[int, int]:
    if shard is None:
        return 0, 1
    whole = isinstance(shard, tuple | list) and len(shard) == 2 and all(type(one) is int for one in shard)
    if not whole or not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard={shard!r}; expected (i, n), the i-th of n jobs, with 0 <= i < n")
    return shard[0], shard[1]


def checked_reduction(reduce: str | int | Reduction | None, model: Model, stimuli: StimulusSet) -> Reduction:
    words = stimuli.kind == "word" and hasattr(model.inputs, "gather")
    reduction = parse_reduction(None if words and reduce is None else model.pool if reduce is None else reduce)
    if words and reduction.kind not in _OF_VECTORS:
        raise ValueError(
            f"reduce={reduce!r}: the features of a word are one vector; take None or 'sketch:K' (pool= says how tokens "
            "become a word)"
        )
    if reduction.kind == "grid" and stimuli.kind not in ("image", "clip"):
        raise ValueError(f"reduce={reduction.grid} averages places of images; of a {stimuli.kind} take 'mean' or 'cls'")
    if isinstance(reduce, Reduction):
        return reduction
    steps = getattr(model.inputs, "frames", 0) // getattr(model.inputs, "tubelet", 1)
    tokens_of_clips = stimuli.kind == "clip" and hasattr(model.inputs, "tubelet")
    return replace(reduction, special=model.special_tokens, frames=steps if tokens_of_clips else 0)


def reading(model: Model, stimuli: StimulusSet, context: tuple[int, int] | None, pool: str | None) -> Model:
    """The model with inputs that read stimuli of this kind."""
    if hasattr(model.inputs, "reading"):
        return replace(model, inputs=model.inputs.reading(stimuli, context, pool))
    for name, value in (("context", context), ("pool", pool)):
        if value is not None:
            raise ValueError(f"{name}={value!r} is read by language models only; leave it out for {model.name}")
    return model
