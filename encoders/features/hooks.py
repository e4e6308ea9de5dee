"""Forward hooks that copy what a layer says at the moment it says it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .facets import Tap
from .layers import Call, blocks, choose, taps
from .layouts import canonical, guess

__all__ = ["Call", "Tap", "blocks", "canonical", "choose", "collect", "listening", "run", "shapes", "taps", "trace"]

Batch = Mapping[str, Any]  # tensors with a row per stimulus, and flags that the module reads
Reduce = Callable[[torch.Tensor], torch.Tensor]
Sink = Callable[[str, torch.Tensor], None]


class _Stop(Exception):
    """Raised in a hook once nothing that is still to come was asked for."""


def tensor_of(output: Any) -> torch.Tensor | None:
    """The tensor that stands for an output: itself, the first of a tuple, or a model output's hidden state."""
    if isinstance(output, torch.Tensor):
        return output
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is not None:
        return hidden
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, tuple | list) and output:
        return tensor_of(output[0])
    return None


def _labelled(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module by the name of its layer."""
    for name, part in module.named_modules():
        yield name or "output", part


def _forward(module: nn.Module, batch: Batch) -> None:
    with torch.inference_mode():
        if set(batch) == {"x"}:
            module(batch["x"])
        else:
            module(**batch)


def run(
    module: nn.Module,
    batch: Batch,
    on_call: Callable[[str, torch.Tensor, nn.Module, torch.Tensor | None], None],
) -> None:
    """One forward pass that hands every output of every submodule to `on_call`: name, output, module and input."""
    counts: dict[str, int] = {}
    with ExitStack() as stack:
        for label, part in _labelled(module):

            def hook(part: nn.Module, args: Any, kwargs: Any, output: Any, label: str = label) -> None:
                tensor = tensor_of(output)
                if tensor is not None:
                    counts[label] = counts.get(label, 0) + 1
                    on_call(
                        label if counts[label] == 1 else f"{label}@{counts[label]}", tensor, part, _first(args, kwargs)
                    )

            stack.callback(part.register_forward_hook(hook, with_kwargs=True).remove)
        _forward(module, batch)


def trace(module: nn.Module, batch: Batch) -> list[Call]:
    """Every call of a forward pass in the order in which the calls end, with the shape for one stimulus.

    Calls whose first axis is not that of the batch are left out, and those that compute weights (parametrizations).
    """
    calls: list[Call] = []
    seen: dict[tuple[int, ...], set[str]] = {}
    n = next(len(x) for x in batch.values() if isinstance(x, torch.Tensor))

    def note(layer: str, tensor: torch.Tensor, part: nn.Module, source: torch.Tensor | None) -> None:
        if tensor.ndim >= 2 and tensor.shape[0] == n and "parametrizations" not in layer.split("."):
            shape = tuple(tensor.shape[1:])
            before = (calls[-1].shape, calls[-1].layout) if calls else ((), "")
            taken = None if source is None else tuple(source.shape[1:])
            calls.append(Call(layer, shape, guess(part, shape, seen, before), taken))

    run(module, batch, note)
    return calls


def collect(
    module: nn.Module,
    batch: Batch,
    taps: Mapping[str, Tap] | Sequence[str],
    reductions: Mapping[str, Reduce] | Reduce,
    *,
    dtype: torch.dtype = torch.float32,
    sink: Sink | None = None,
) -> dict[str, torch.Tensor]:
    """Reduced layers of one batch; the forward pass ends with the last of them.

    Parameters
    ----------
    module : Module
    batch : mapping of str to Tensor
        Keyword arguments of the module, or ``x``, its only one. What is no tensor is handed on as it is.
    taps : mapping of str to Tap, or sequence of str
        From `layers.taps`, or names of layers.
    reductions : mapping of str to callable, or callable
        From a tensor in canonical order of axes to one with a row per stimulus, on the device of the module.
    dtype : torch.dtype
        Of what is returned.
    sink : callable, optional
        Called with name and reduced tensor from within the forward pass. The tensor may share memory with what later
        operations overwrite: copy it before returning.

    Returns
    -------
    dict of str to Tensor
        On the CPU, with memory of their own; empty where there is a `sink`.

    Raises
    ------
    ValueError
        What a reduction refuses, with the name of the layer.
    RuntimeError
        If a layer was not computed.
    """
    with listening(module, taps, reductions, dtype=dtype, sink=sink) as forward:
        return forward(batch)


@contextmanager
def listening(
    module: nn.Module,
    taps: Mapping[str, Tap] | Sequence[str],
    reductions: Mapping[str, Reduce] | Reduce,
    *,
    dtype: torch.dtype = torch.float32,
    sink: Sink | None = None,
) -> Iterator[Callable[[Batch], dict[str, torch.Tensor]]]:
    """`collect` over many batches with hooks that are registered once: gives a function of a batch.

    Parameters
    ----------
    module, taps, reductions, dtype, sink
        See `collect`.
    """
    places = taps if isinstance(taps, Mapping) else _plain_taps(taps)
    by_layer = reductions if isinstance(reductions, Mapping) else dict.fromkeys(places, reductions)
    waiting: set[str] = set()
    counts: dict[tuple[str, bool], int] = {}
    found: dict[str, torch.Tensor] = {}

    def keep(tap: Tap, tensor: torch.Tensor) -> None:
        try:
            reduced = by_layer[tap.layer](canonical(tensor, tap.layout))
        except ValueError as error:
            raise ValueError(f"layer {tap.layer!r}: {error}") from error
        if sink is not None:
            sink(tap.layer, reduced.to(dtype))
        else:
            # A later operation may write into this tensor in place, so it is copied now and not when it is used.
            found[tap.layer] = reduced.to("cpu", dtype, copy=_share(reduced, tensor))
        waiting.discard(tap.layer)

    def heard(label: str, before: bool, taken: Callable[[Tap], torch.Tensor | None]) -> None:
        counts[label, before] = counts.get((label, before), 0) + 1
        for tap in watched[label, before]:
            if tap.layer in waiting and tap.call == counts[label, before]:
                tensor = taken(tap)
                if tensor is not None:
                    keep(tap, tensor)
        if not waiting:
            raise _Stop

    def forward(batch: Batch) -> dict[str, torch.Tensor]:
        waiting.update(places)
        counts.clear()
        try:
            _forward(module, batch)
        except _Stop:
            pass
        except BaseException:
            found.clear()
            raise
        if waiting:
            raise RuntimeError(f"layers {sorted(waiting)} were not computed for this batch")
        kept = dict(found)
        found.clear()
        return kept

    watched: dict[tuple[str, bool], list[Tap]] = {}
    parts: dict[str, list[nn.Module]] = {}
    for label, part in _labelled(module):
        parts.setdefault(label, []).append(part)
    for tap in places.values():
        for part in parts.get(tap.module, []):
            before = tap.take in ("input", "projection") or _weighs_apart(tap, part)
            watched.setdefault((tap.module, before), [])
            if tap not in watched[tap.module, before]:
                watched[tap.module, before].append(tap)
    with ExitStack() as stack:
        if any(tap.take == "map" for tap in places.values()):
            stack.enter_context(_visible_weights(module))
        for label, before in watched:
            for part in parts[label]:
                stack.callback(_register(part, label, before, heard).remove)
        yield forward


def _plain_taps(layers: Sequence[str]) -> dict[str, Tap]:
    split = {layer: layer.partition("@") for layer in layers}
    return {layer: Tap(layer, name, int(count or 1)) for layer, (name, _, count) in split.items()}


def _register(
    part: nn.Module, label: str, before: bool, heard: Callable[[str, bool, Callable[[Tap], torch.Tensor | None]], None]
) -> Any:
    if before:

        def pre_hook(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            heard(label, before, lambda tap: _taken_before(tap, part, args, kwargs))

        return part.register_forward_pre_hook(pre_hook, with_kwargs=True)

    def hook(part: nn.Module, args: Any, output: Any) -> None:
        if tensor_of(output) is not None:  # as counted by a trace
            heard(label, before, lambda tap: _taken(tap, output))

    return part.register_forward_hook(hook)


def _taken(tap: Tap, output: Any) -> torch.Tensor | None:
    if tap.take == "map":
        weights = output if isinstance(output, torch.Tensor) else output[1] if len(output) > 1 else None
        if not isinstance(weights, torch.Tensor) or weights.ndim != 4:
            raise ValueError(
                f"layer {tap.layer!r}: {tap.module!r} gave no attention weights (stimulus, head, query, key); this "
                "implementation of attention never has them: take 'q' and 'k' instead"
            )
        return weights
    tensor = tensor_of(output)
    if tap.split is not None and tensor is not None:
        part, of = tap.split
        return tensor.chunk(of, -1)[part]
    return tensor


def _taken_before(tap: Tap, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    if tap.take == "input":
        return _first(args, kwargs)
    assert isinstance(part, nn.MultiheadAttention)
    given = signature(nn.MultiheadAttention.forward).bind(part, *args, **kwargs).arguments
    if tap.take == "map":  # once more, beside the pass: the one that was asked for may not weigh at all
        return nn.MultiheadAttention.forward(**(given | {"need_weights": True, "average_attn_weights": False}))[1]
    assert tap.split is not None
    which = tap.split[0]
    source = given[("query", "key", "value")[which]]
    weight = (
        part.in_proj_weight.chunk(3)[which]
        if part.in_proj_weight is not None
        else (part.q_proj_weight, part.k_proj_weight, part.v_proj_weight)[which]
    )
    return F.linear(source, weight, None if part.in_proj_bias is None else part.in_proj_bias.chunk(3)[which])


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """The first tensor among the arguments of a call."""
    return next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)), None)


def _weighs_apart(tap: Tap, part: nn.Module) -> bool:
    return tap.take == "map" and isinstance(part, nn.MultiheadAttention)


def _share(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors may lie in the same memory."""
    if one.device != other.device:
        return False
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


@contextmanager
def _visible_weights(module: nn.Module) -> Iterator[None]:
    """Attention that computes its weights one by one, as models of transformers and timm do on request."""
    configs = {id(config): config for part in module.modules() for config in _configs(getattr(part, "config", None))}
    before = [(config, config._attn_implementation_internal) for config in configs.values()]
    fused = [part for part in module.modules() if vars(part).get("fused_attn") is True]
    try:
        for config, _ in before:
            config._attn_implementation_internal = "eager"
        for part in fused:
            vars(part)["fused_attn"] = False
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation
        for part in fused:
            vars(part)["fused_attn"] = True


def _configs(config: Any) -> Iterator[Any]:
    """A configuration of transformers, and those within it."""
    if hasattr(config, "_attn_implementation_internal"):
        yield config
        for name in getattr(config, "sub_configs", {}):
            yield from _configs(getattr(config, name, None))


def shapes(module: nn.Module, batch: Batch, taps: Mapping[str, Tap]) -> dict[str, tuple[int, ...]]:
    """Shape of each layer for one stimulus, as reductions see it."""
    noted: dict[str, tuple[int, ...]] = {}

    def noting(layer: str) -> Reduce:
        def note(tensor: torch.Tensor) -> torch.Tensor:
            noted[layer] = tuple(tensor.shape[1:])
            return tensor.new_empty(0)

        return note

    collect(module, batch, taps, {layer: noting(layer) for layer in taps})
    return noted
