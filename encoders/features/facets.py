"""Parts of a block: its input, queries, keys, values, attention output, MLP, and attention maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

FACETS = ("input", "q", "k", "v", "attn", "mlp", "map")

_ATTENTION = {"attn", "attention", "self_attn", "self_attention", "SelfAttention"}
_PROJECTIONS = {
    "q": {"q_proj", "query", "q", "q_lin", "to_q"},
    "k": {"k_proj", "key", "k", "k_lin", "to_k"},
    "v": {"v_proj", "value", "v", "v_lin", "to_v"},
}
# Query, key and value lie side by side in the output. Not so in models that interleave them by head, like GPT-NeoX
# (query_key_value) or CodeGen (qkv_proj).
_FUSED = {"c_attn", "qkv", "Wqkv", "in_proj"}
_MLP = ({"mlp", "feed_forward", "ffn", "ff", "DenseReluDense"}, {"fc2", "linear2"})


@dataclass(frozen=True)
class Tap:
    """Where in a forward pass a layer is read.

    Attributes
    ----------
    layer : str
        Its name in tables: a module, or ``block/facet``.
    module : str
        Module that is watched; ``output`` for the whole one.
    call : int
        Which of its calls, from 1.
    take : {"output", "input", "map", "split", "projection"}
        What the module returns, its first argument, its attention weights, a part of the last axis of what it
        returns, or a projection of an `torch.nn.MultiheadAttention`, which has no module of its own.
    split : (int, int), optional
        Part, from 0, of so many.
    layout : str
        Order of the axes (see `canonical`).
    """

    layer: str
    module: str
    call: int = 1
    take: Literal["output", "input", "map", "split", "projection"] = "output"
    split: tuple[int, int] | None = None
    layout: str = ""


def facet_tap(parts: Mapping[str, nn.Module], block: str, facet: str) -> Tap | None:
    """Where a facet of a block is read; None if the block has no such part.

    It is looked for by the names that parts of blocks have in common over libraries, nearest to the block first.

    Parameters
    ----------
    parts : mapping of str to Module
        Every module by name (`named_modules`).
    block : str
        Name of the block, with ``@2`` for its second call.
    facet : str
        One of `FACETS`. ``attn`` and ``mlp`` are what attention and MLP add to the residual stream, before it is
        added; ``map`` is (stimulus, head, query, key).
    """
    layer = f"{block}/{facet}"
    name, _, count = block.partition("@")
    call = int(count or 1)
    if facet == "input":
        return Tap(layer, name, call, "input")
    inside = _inside(parts, "" if name == "output" and name not in parts else name)
    if facet == "mlp":
        found = _mlp(inside)
        return None if found is None else Tap(layer, found, call)
    attention = next((path for path, part in inside.items() if _is_attention(path, part)), None)
    if attention is None:
        return None
    whole = parts[attention]
    if isinstance(whole, nn.MultiheadAttention):
        return _of_torch(whole, layer, attention, facet, call)
    within = _inside(parts, attention)
    if facet == "attn":  # BERT's module of this name has the residual and its norm in it
        dense = f"{attention}.output.dense"
        return Tap(layer, dense if dense in parts else attention, call)
    direct = {which: _named(within, names) for which, names in _PROJECTIONS.items()}
    fused = next((p for p in within if _last(p) in _FUSED and _is_threefold(parts[p])), None)
    if facet == "map":
        projection = direct["q"] or fused
        owner = projection.rpartition(".")[0] if projection else attention
        drop = f"{owner}.attn_drop"  # where timm's attention has the weights, which it does not return
        return Tap(layer, drop if hasattr(parts[owner], "fused_attn") and drop in parts else owner, call, "map")
    if direct[facet] is not None:
        return Tap(layer, str(direct[facet]), call)
    return None if fused is None else Tap(layer, fused, call, "split", ("qkv".index(facet), 3))


def _of_torch(part: nn.MultiheadAttention, layer: str, path: str, facet: str, call: int) -> Tap:
    layout = "ntf" if part.batch_first else "tnf"
    if facet == "attn":
        return Tap(layer, path, call, layout=layout)
    if facet == "map":
        return Tap(layer, path, call, "map")
    return Tap(layer, path, call, "projection", ("qkv".index(facet), 3), layout)


def _inside(parts: Mapping[str, nn.Module], name: str) -> dict[str, nn.Module]:
    """Modules within one, the nearest first."""
    prefix = f"{name}." if name else ""
    paths = [path for path in parts if path.startswith(prefix) and path != name]
    return {path: parts[path] for path in sorted(paths, key=lambda path: path.count("."))}


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _named(parts: Mapping[str, nn.Module], names: set[str]) -> str | None:
    return next((path for path in parts if _last(path) in names), None)


def _is_attention(path: str, part: nn.Module) -> bool:
    if isinstance(part, nn.MultiheadAttention):
        return True
    # Squeeze-and-excitation goes by the same names, but is made of convolutions alone.
    return _last(path) in _ATTENTION and any(parameter.ndim == 2 for parameter in part.parameters())


def _is_threefold(part: nn.Module) -> bool:
    weight = getattr(part, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.ndim == 2 and max(weight.shape) == 3 * min(weight.shape)


def _mlp(inside: Mapping[str, nn.Module]) -> str | None:
    outside = {path: part for path, part in inside.items() if not set(path.split(".")) & _ATTENTION}
    for names in _MLP:
        found = _named(outside, names)
        if found is not None:
            return found
    return next((path for path in outside if path.endswith(".output.dense")), None)
