"""Forward hooks that copy what a layer says at the moment it says it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from ...datasets.errors import unknown


class _Stop(Exception):
    """Raised in a hook once nothing that is still to come was asked for."""


@dataclass(frozen=True)
class Call:
    """One call of one submodule during a forward pass.

    Attributes
    ----------
    layer : str
        Name of the submodule; ``name@2`` for the second call of a module that is used more than once. The whole
        module is called ``output``.
    shape : tuple of int
        Shape of its output for one stimulus.
    """

    layer: str
    shape: tuple[int, ...]


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


def run(
    module: nn.Module,
    batch: dict[str, torch.Tensor],
    on_call: Callable[[str, torch.Tensor], None],
    parts: set[str] | None = None,
) -> None:
    """One forward pass that hands outputs of submodules (those in `parts`, or all) to `on_call`.

    `on_call` may end the pass by raising `_Stop`.
    """
    counts: dict[str, int] = {}
    handles = []

    def hook_of(name: str) -> Callable[..., None]:
        def hook(part: nn.Module, inputs: Any, output: Any) -> None:
            tensor = tensor_of(output)
            if tensor is not None:
                counts[name] = counts.get(name, 0) + 1
                on_call(name if counts[name] == 1 else f"{name}@{counts[name]}", tensor)

        return hook

    try:
        for name, part in module.named_modules():
            if parts is None or (name or "output") in parts:
                handles.append(part.register_forward_hook(hook_of(name or "output")))
        with torch.inference_mode():
            if set(batch) == {"x"}:
                module(batch["x"])
            else:
                module(**batch)
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()


def trace(module: nn.Module, batch: dict[str, torch.Tensor]) -> list[Call]:
    """Every call of a forward pass in the order in which the calls end, with the shape for one stimulus."""
    calls: list[Call] = []
    n = len(next(iter(batch.values())))

    def note(layer: str, tensor: torch.Tensor) -> None:
        if tensor.ndim >= 2 and tensor.shape[0] == n:
            calls.append(Call(layer, tuple(tensor.shape[1:])))

    run(module, batch, note)
    return calls


def choose(
    calls: Sequence[Call], layers: str | Sequence[str] | None, default: Sequence[str], model: str = ""
) -> list[str]:
    """Names of layers, in the order of computation.

    Parameters
    ----------
    calls : sequence of Call
        From `trace`.
    layers : str, sequence of str or None
        ``"all"`` for every layer, None for `default`, else names or patterns: ``*`` matches within one part of a
        dotted name, so that ``layer*`` finds ``layer1`` but not ``layer1.0``.
    default : sequence of str
        What stands for the model when nothing is asked for.
    model : str
        Its name, for the error.

    Raises
    ------
    ValueError
        If a name or pattern matches nothing.
    """
    names = [call.layer for call in calls]
    if layers is None:
        layers = list(default)
    if isinstance(layers, str):
        layers = [part.strip() for part in layers.split(",")]
    if "all" in layers and "all" not in names:
        return names
    wanted: set[str] = set()
    for pattern in layers:
        found = {name for name in names if _matches(name, pattern)}
        if not found:
            of = f"These are the layers of {model}. " if model else ""
            raise ValueError(unknown("layers", pattern, names, of + "Patterns: * within one part of a dotted name."))
        wanted |= found
    return [name for name in names if name in wanted]


def _matches(name: str, pattern: str) -> bool:
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def blocks(module: nn.Module, calls: Sequence[Call]) -> list[str]:
    """What stands for a model that names no layers: its longest list of blocks, else its direct parts."""
    names = {call.layer for call in calls}
    lists = [
        [f"{name}.{i}".lstrip(".") for i in range(len(part))]
        for name, part in module.named_modules()
        if isinstance(part, nn.ModuleList)
    ]
    lists = [kept for members in lists if (kept := [m for m in members if m in names])]
    if lists:
        return max(lists, key=len)
    return [name for name, _ in module.named_children() if name in names] or ["output"]


def collect(
    module: nn.Module,
    batch: dict[str, torch.Tensor],
    layers: Sequence[str],
    reduce: Callable[[torch.Tensor], torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Reduced outputs of the named layers, on the CPU; the pass ends with the last of them."""
    waiting = set(layers)
    found: dict[str, torch.Tensor] = {}

    def take(layer: str, tensor: torch.Tensor) -> None:
        if layer in waiting:
            # A later operation may write into this tensor in place, so it is copied now and not when it is used.
            try:
                reduced = reduce(tensor)
            except ValueError as error:
                raise ValueError(f"layer {layer!r}: {error}") from error
            found[layer] = reduced.to("cpu", torch.float32, copy=True)
            waiting.discard(layer)
            if not waiting:
                raise _Stop

    run(module, batch, take, {layer.partition("@")[0] for layer in layers})
    if waiting:
        raise RuntimeError(f"layers {sorted(waiting)} were not computed for this batch")
    return found
