"""Names of layers: which there are, how deep they lie, and which of them are meant."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import pandas as pd
from torch import nn

from ...datasets.errors import unknown
from .facets import FACETS, Tap, facet_tap
from .layouts import canonical_shape

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_PATTERNS = (
    "Patterns: * within one part of a dotted name; 'blocks'; 'depth:0.5'; "
    + "a facet of a block as in 'blocks/q' ("
    + ", ".join(FACETS)
    + ")."
)


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
    layout : str
        Order of the axes (see `canonical`); empty where the module does not tell it.
    taken : tuple of int, optional
        Shape of its first argument for one stimulus.
    """

    layer: str
    shape: tuple[int, ...]
    layout: str = ""
    taken: tuple[int, ...] | None = None

    @property
    def canonical_shape(self) -> tuple[int, ...]:
        """Shape for one stimulus as reductions see it."""
        return canonical_shape(self.shape, self.layout)


def choose(
    calls: Sequence[Call],
    layers: str | float | Sequence[str | float] | None,
    default: Sequence[str],
    model: str = "",
    module: nn.Module | None = None,
) -> list[str]:
    """Names of layers, in the order of computation.

    Parameters
    ----------
    calls : sequence of Call
        From `trace`.
    layers : str, float, sequence of them or None
        Names or patterns: ``*`` matches within one part of a dotted name, so that ``layer*`` finds ``layer1`` but not
        ``layer1.0``. ``"all"`` for every layer, ``"blocks"`` for the blocks of the model, None for `default`. A
        number from 0 to 1, or ``"depth:0.5"``, is the block nearest to that depth: block i of L, from 1, lies at i/L,
        and 0 is the input of the first. With ``/`` and a facet (``q``, ``k``, ``v``, ``attn``, ``mlp``, ``map``,
        ``input``) behind any of these, that part of the blocks.
    default : sequence of str
        What stands for the model when nothing is asked for.
    model : str
        Its name, for the error.
    module : Module, optional
        The model itself; blocks, depths and facets are read off it.

    Raises
    ------
    ValueError
        If a name or pattern matches nothing, a depth is not from 0 to 1, or no block has such a facet.
    """
    names = [call.layer for call in calls]
    if layers is None:
        layers = list(default)
    if isinstance(layers, int | float):
        layers = [layers]
    if isinstance(layers, str):
        layers = [part.strip() for part in layers.split(",")]
    if "all" in layers and "all" not in names:
        return names
    of = f"These are the layers of {model}. " if model else ""
    wanted: set[str] = set()
    for pattern in layers:
        found = _found(calls, names, pattern, module)
        if not found:
            raise ValueError(unknown("layers", pattern, names, of + _PATTERNS))
        wanted |= found
    return _in_order(wanted, names, module)


def _found(calls: Sequence[Call], names: Sequence[str], pattern: str | float, module: nn.Module | None) -> set[str]:
    """Layers that one name, pattern, depth or facet stands for."""
    if isinstance(pattern, int | float):
        pattern = f"depth:{pattern}"
    found = {name for name in names if _matches(name, pattern)}
    if module is None or (found and pattern != "blocks"):
        return found
    if pattern == "blocks":
        return set(blocks(module, calls))
    base, slash, facet = pattern.rpartition("/")
    if slash:
        return _facets(calls, names, base, facet, module)
    if pattern.startswith("depth:"):
        return {at_depth(blocks(module, calls), pattern)}
    return set()


def _facets(calls: Sequence[Call], names: Sequence[str], base: str, facet: str, module: nn.Module) -> set[str]:
    if facet not in FACETS:
        raise ValueError(unknown(f"facet of layers={base!r}", facet, FACETS))
    of = _found(calls, names, base, module)
    if not of:
        raise ValueError(unknown("layers", base, names, _PATTERNS))
    parts = dict(module.named_modules())
    called = set(names)
    found = {f"{name}/{facet}" for name in of if _facet(parts, name, facet, called)}
    if not found:
        first = min(of, key=lambda name: names.index(name) if name in called else 0)
        there = [which for which in FACETS if _facet(parts, first, which, called)]
        raise ValueError(
            f"layers='{base}/{facet}': nothing in {first!r} is known to be its {facet!r}; facets found there: "
            f"{', '.join(map(repr, there)) or 'none'}. Name the module itself instead ('all' lists every one)"
        )
    return found


def _facet(parts: Mapping[str, nn.Module], block: str, facet: str, called: Collection[str]) -> Tap | None:
    """Where a facet is read, if what it is read from is called with a row per stimulus."""
    tap = None if "/" in block else facet_tap(parts, block, facet)
    if tap is not None and tap.take in ("output", "split") and tap.layout != "tnf" and _label(tap) not in called:
        return None
    return tap


def _matches(name: str, pattern: str) -> bool:
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _in_order(wanted: set[str], names: Sequence[str], module: nn.Module | None) -> list[str]:
    """Layers as a forward pass comes by them."""
    place = {name: i for i, name in reversed(list(enumerate(names)))}
    plain = [name for name in names if name in wanted]
    if module is None or len(plain) == len(wanted):
        return plain

    def when(item: tuple[str, Tap]) -> tuple[float, int]:
        layer, tap = item
        if layer in place:
            return place[layer], len(FACETS)
        block, _, facet = layer.rpartition("/")
        at: float = place.get(_label(tap), place.get(block, len(names)))
        if tap.take == "input":  # before anything within the module
            inside = [i for name, i in place.items() if name.startswith(tap.module + ".")]
            at = min([at, *inside]) - 0.5 if tap.call == 1 else at - 0.5
        return at, FACETS.index(facet)

    return [layer for layer, _ in sorted(taps(module, sorted(wanted)).items(), key=when)]


def _label(tap: Tap) -> str:
    return tap.module if tap.call == 1 else f"{tap.module}@{tap.call}"


def at_depth(of: Sequence[str], depth: str | float) -> str:
    """The block nearest to a relative depth; 0 is the input of the first.

    Parameters
    ----------
    of : sequence of str
        From `blocks`; number i of L, from 1, lies at depth i/L.
    depth : float or str
        From 0 to 1, or ``"depth:0.5"``.

    Raises
    ------
    ValueError
        If it is not a number from 0 to 1.
    """
    try:
        value = float(str(depth).removeprefix("depth:"))
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise ValueError(f"layers={depth!r}; expected a relative depth, from 0 (input of the first block) to 1")
    nearest = min(range(len(of) + 1), key=lambda i: (round(abs(i / len(of) - value), 9), -i))  # of two, the deeper
    return of[nearest - 1] if nearest else f"{of[0]}/input"


def taps(
    module: nn.Module,
    names: Sequence[str],
    calls: Sequence[Call] = (),
    axes: Mapping[str, str] | None = None,
) -> dict[str, Tap]:
    """Where each layer is read in a forward pass.

    Parameters
    ----------
    module : Module
    names : sequence of str
        From `choose`.
    calls : sequence of Call
        From `trace`; they tell the order of axes of layers that no pattern of `axes` names.
    axes : mapping of str to str, optional
        Order of axes by pattern of layer (see `canonical`).

    Raises
    ------
    ValueError
        If a block has no such facet.
    """
    parts = dict(module.named_modules())
    layouts = {call.layer: call.layout for call in calls}
    found: dict[str, Tap] = {}
    for name in names:
        block, slash, facet = name.rpartition("/")
        tap: Tap | None
        if slash and name not in layouts and facet in FACETS:
            tap = facet_tap(parts, block, facet)
            if tap is None:
                raise ValueError(f"layers={name!r}: {block!r} has no part that is known to be its {facet!r}")
        else:
            label, _, count = name.partition("@")
            tap = Tap(name, label, int(count or 1))
        found[name] = tap if tap.layout or tap.take == "map" else _laid_out(tap, layouts, axes or {})
    return found


def _laid_out(tap: Tap, layouts: Mapping[str, str], axes: Mapping[str, str]) -> Tap:
    given = (layout for pattern, layout in axes.items() if _matches(tap.layer, pattern))
    layout = next(given, "" if tap.take == "input" else layouts.get(_label(tap), ""))
    return Tap(tap.layer, tap.module, tap.call, tap.take, tap.split, layout)


def blocks(module: nn.Module, calls: Sequence[Call]) -> list[str]:
    """What stands for a model that names no layers: its blocks, in the order of computation, else its direct parts.

    Blocks are the members of lists whose members have one class. Lists with members of the same class are one row of
    blocks, as in the stages of a ResNet. Of several rows it is the one with the most parameters; where that is a list
    of stages, whose outputs differ in shape, the row within them. Only what was called counts: of a model with two
    towers it is the tower that ran.
    """
    parts = dict(module.named_modules())
    called: dict[str, list[str]] = {}
    for call in calls:
        called.setdefault(call.layer.partition("@")[0], []).append(call.layer)
    rows: dict[object, list[str]] = {}
    for name, part in parts.items():
        if isinstance(part, _CONTAINERS):
            members = [path for key in part._modules if (path := f"{name}.{key}".lstrip(".")) in called]
            for kind in [_kind_of_row(part, name, members, parts)] if members else []:
                rows.setdefault(kind, []).extend(members)
    rows.pop(None, None)
    if not rows:
        direct = [name for name, _ in module.named_children() if name in called]
        return direct or ["output"]
    size = {kind: sum(p.numel() for name in row for p in parts[name].parameters()) for kind, row in rows.items()}
    composite = [kind for kind, row in rows.items() if any(True for _ in parts[row[0]].children())]
    best = max(composite or rows, key=lambda kind: (size[kind], -len(rows[kind])))
    if _are_stages(rows[best], calls):
        finer = [kind for kind in composite if size[kind] >= size[best] / 2 and _all_within(rows[kind], rows[best])]
        best = max(finer, key=lambda kind: (size[kind], -len(rows[kind])), default=best)
    chosen = {name for path in rows[best] for name in called[path]}
    return [call.layer for call in calls if call.layer in chosen]


def _are_stages(row: Sequence[str], calls: Sequence[Call]) -> bool:
    """Whether the members of one list differ in the shape of what they return, as stages of a hierarchy do."""
    shapes = {call.shape for call in calls if call.layer in row}
    return len(shapes) > 1 and len({name.rpartition(".")[0] for name in row}) == 1


def _all_within(inner: Sequence[str], outer: Sequence[str]) -> bool:
    return all(any(name.startswith(f"{above}.") for above in outer) for name in inner)


def _kind_of_row(part: nn.Module, name: str, members: Sequence[str], parts: Mapping[str, nn.Module]) -> object:
    """What lists of one row have in common: the class of their members; a list of its own goes by its name."""
    kinds = {type(parts[path]) for path in members}
    if len(kinds) == 1 and not issubclass(next(iter(kinds)), _CONTAINERS):
        return next(iter(kinds)) if any(True for _ in parts[members[0]].children()) else _leaves(part, name)
    return name or "." if isinstance(part, nn.ModuleList) or len(kinds) == 1 else None


def _leaves(part: nn.Module, name: str) -> str | None:
    return name or "." if isinstance(part, nn.ModuleList) else None


def layer_tree(module: nn.Module, calls: Sequence[Call]) -> pd.DataFrame:
    """Every layer of a model and the facets of its blocks.

    Parameters
    ----------
    module : Module
    calls : sequence of Call
        From `trace`.

    Returns
    -------
    DataFrame
        ``layer``; ``parent``, the layer around it, or empty; ``depth``, blocks that are done once it is computed, its
        own included; ``relative_depth``, the same from 0 to 1; ``shape`` for one stimulus, None for attention maps;
        ``kind``: block, stem (before the first block), facet or module.
    """
    parts = dict(module.named_modules())
    row = blocks(module, calls)
    names = [call.layer for call in calls]
    shapes = {call.layer: call.shape for call in calls}
    order = {name: i for i, name in enumerate(row)}
    first = min((i for i, name in enumerate(names) if _owner(name, order)), default=0)
    done = 0
    rows: list[tuple[str, str, int, float, tuple[int, ...] | None, str]] = []
    for i, call in enumerate(calls):
        owner = _owner(call.layer, order)
        done = order[owner] + 1 if owner else done
        kind = "block" if call.layer in order else "stem" if i < first else "module"
        rows.append((call.layer, _parent(call.layer, shapes), done, done / len(row), call.shape, kind))
        for facet in FACETS if kind == "block" else ():
            tap = _facet(parts, call.layer, facet, shapes)
            if tap is not None:
                shape = _facet_shape(tap, call, shapes)
                at = done - 1 if facet == "input" else done
                rows.append((tap.layer, call.layer, at, at / len(row), shape, "facet"))
    return pd.DataFrame(rows, columns=["layer", "parent", "depth", "relative_depth", "shape", "kind"])


def _owner(name: str, blocks_: Mapping[str, int]) -> str | None:
    """The block that a layer is or lies in."""
    path, _, count = name.partition("@")
    parts = path.split(".")
    for k in range(len(parts), 0, -1):
        for suffix in (f"@{count}", "") if count else ("",):
            if (above := ".".join(parts[:k]) + suffix) in blocks_:
                return above
    return None


def _parent(name: str, known: Mapping[str, object]) -> str:
    path = name.partition("@")[0]
    while "." in path:
        path = path.rpartition(".")[0]
        if path in known:
            return path
    return "output" if name != "output" and "output" in known else ""


def _facet_shape(tap: Tap, block: Call, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """Shape for one stimulus, as far as shapes of the calls tell it."""
    if tap.take == "input":
        return None if block.taken is None else tuple(block.taken)
    shape = shapes.get(_label(tap))
    if shape is None or tap.take in ("map", "projection"):
        return None
    return (*shape[:-1], shape[-1] // tap.split[1]) if tap.split else shape


def final_norm(module: nn.Module, calls: Sequence[Call]) -> str | None:
    """The norm that a model applies to what its last block returns, or None.

    Blocks are read before it. Where transformers count it into ``hidden_states`` (GPT-2, Llama, Whisper), the last of
    these is this layer, elsewhere it is the last block.
    """
    parts = dict(module.named_modules())
    last = blocks(module, calls)[-1]
    at = next((i for i, call in enumerate(calls) if call.layer == last), len(calls))
    for call in calls[at + 1 :]:
        part = parts.get(call.layer.partition("@")[0])
        if part is not None and call.shape == calls[at].shape and "norm" in type(part).__name__.lower():
            return call.layer
    return None
