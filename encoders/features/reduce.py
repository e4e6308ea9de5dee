"""What is kept of a layer's output, computed on the device before anything is copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt, prod
from typing import Any

import torch
import torch.nn.functional as F

from ...datasets.errors import unknown
from .sketch import in_order, project

_POOLS = ("none", "mean", "max", "cls", "mean-patch", "last")
_PROJECTIONS = ("sketch", "sketch-raw", "sparse", "sparse-raw")
_KINDS = (*_POOLS, "grid", "time", *_PROJECTIONS, "pca")


@dataclass(frozen=True)
class Reduction:
    """From the output of a layer to (stimulus, feature) or (stimulus, token, feature).

    Attributes
    ----------
    kind : str
        ``none``: everything. ``mean``, ``max``: over all places or tokens, the class token among them.
        ``mean-patch``: the mean without class and register tokens. ``cls``, ``last``: the first, the last token.
        ``grid``: the mean within each cell of a grid over places. ``time``: the mean within each of a number of
        stretches of time. ``sketch``: a count-sketch of all values, whose inner products, and after the mean of each
        row is subtracted its correlations, estimate those of the layer; ``sketch-raw`` without the subtraction.
        ``sparse``, ``sparse-raw``: a sparse random projection instead. ``pca``: see `PCA`.
    grid : int
        Cells along each side of the grid; a map that is no larger is kept as it is. Tokens that form a square,
        with or without special tokens before them, are places too; the special tokens are dropped.
    time : int
        Stretches into which time is cut; a shorter output is kept as it is. With `grid` both are pooled.
    size : int
        Values that a projection keeps of a stimulus.
    seed : int
        Seed of a random projection.
    special : int
        Tokens before the first patch: class token and registers.
    frames : int
        Steps of time of which the tokens of a video tell, slowest first; 0 where each token is a step of its own
        (sound, words) or where there is no time.

    Notes
    -----
    Two axes are (stimulus, feature) and kept, but for projections. Three are (stimulus, token, feature), four
    (stimulus, channel, height, width), five (stimulus, channel, time, height, width). Averages are accumulated in
    float32 at least.
    """

    kind: str = "none"
    grid: int = 0
    time: int = 0
    size: int = 0
    seed: int = 0
    special: int = 1
    frames: int = 0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(unknown("kind", self.kind, _KINDS))
        for name, kinds in {"grid": ("grid",), "time": ("time",), "size": (*_PROJECTIONS, "pca")}.items():
            value = getattr(self, name)
            if self.kind in kinds and value < 1:
                raise ValueError(f"{name}={value}: reduce={self.kind!r} needs at least 1")
            if self.kind not in kinds and value and (name, self.kind) != ("time", "grid"):
                raise ValueError(f"{name}={value} is not read by reduce={self.kind!r}; leave it out")
        for name in ("time", "seed", "special", "frames"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}; expected 0 or more")

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """The reduced output, on its device.

        Parameters
        ----------
        output : Tensor, shape (stimulus, ...)

        Returns
        -------
        Tensor, shape (stimulus, feature) or (stimulus, token, feature)
            Where everything is kept it may share memory with `output`.

        Raises
        ------
        ValueError
            If the output lacks what is asked for: tokens, places or time.
        """
        if self.kind in _PROJECTIONS:
            method, _, raw = self.kind.partition("-")
            return project(output, self.size, self.seed, centre=not raw, method=method)
        if output.ndim not in (3, 4, 5):
            return output.flatten(1)
        if self.kind in ("mean", "max") or (self.kind == "mean-patch" and output.ndim > 3):
            axes = (1,) if output.ndim == 3 else tuple(range(2, output.ndim))
            return output.amax(axes) if self.kind == "max" else output.mean(axes, dtype=_sums(output))
        if self.kind in ("grid", "time"):
            return self._pooled(output)
        if output.ndim == 3:
            return self._of_tokens(output)
        if self.kind in ("cls", "last"):
            raise ValueError(
                f"reduce={self.kind!r} needs tokens; this layer is a map of channels: take 'mean' or a grid"
            )
        return in_order(output)

    def _of_tokens(self, output: torch.Tensor) -> torch.Tensor:
        if self.kind == "cls":
            if not self.special:
                raise ValueError("reduce='cls' needs a class token; this model has none: take 'mean' or a grid")
            return output[:, 0]
        if self.kind == "last":
            return output[:, -1]
        if self.kind == "mean-patch":
            return output[:, self._first_patch(output.shape[1]) :].mean(1, dtype=_sums(output))
        return output

    def _pooled(self, output: torch.Tensor) -> torch.Tensor:
        """Means within cells of space and stretches of time: (stimulus, time x place, feature)."""
        if output.ndim == 3:
            shape = self._map_of(tuple(output.shape))
            output = output[:, output.shape[1] - prod(shape) :].transpose(1, 2).unflatten(2, shape)
        elif output.ndim == 4 and self.time:
            raise ValueError(f"time={self.time} needs time; this layer gives maps of images: take a grid or 'mean'")
        here = tuple(output.shape[2:])
        there = self._cells(here)
        if there != here:
            output = output.to(_sums(output))
            pools: list[Callable[..., torch.Tensor]] = [
                F.adaptive_avg_pool1d,
                F.adaptive_avg_pool2d,
                F.adaptive_avg_pool3d,
            ]
            output = pools[len(there) - 1](output, there)
        return output.flatten(2).transpose(1, 2)

    def _cells(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """How many cells there are along time, height and width, as far as there are such axes."""
        timed, space = (shape[:1], shape[1:]) if len(shape) != 2 else ((), shape)
        if self.time and timed:
            timed = (min(self.time, timed[0]),)
        if self.grid and space and min(space) > self.grid:
            space = (self.grid, self.grid)
        return (*timed, *space)

    def _map_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The axes that tokens of this (stimulus, token, feature) shape run over: (time,), (height, width) or all."""
        n = shape[1]
        if self.kind == "time" and not self.frames:
            return (n,)
        if self.time and not self.frames:
            raise ValueError(f"grid={self.grid} with time={self.time} needs maps over time, or tokens of known frames")
        if axes := self._squares(n):
            return axes
        of = f"{self.frames} squares" if self.frames else "a square"
        raise ValueError(
            f"reduce={self.grid or self.kind!r} needs tokens that form {of}, with or without {self.special} before "
            f"them (the class token); found shape (stimulus, token, feature) = {shape}: take 'mean', 'cls' or None"
        )

    def _squares(self, n: int) -> tuple[int, ...] | None:
        """Axes of the patches if n tokens, or all but the special ones before them, form a square in each frame."""
        for patches in (n - self.special, n):
            places, rest = divmod(patches, max(1, self.frames))
            if places > 0 and not rest and isqrt(places) ** 2 == places:
                return (*((self.frames,) if self.frames else ()), isqrt(places), isqrt(places))
        return None

    def _first_patch(self, n: int) -> int:
        if axes := self._squares(n):
            return n - prod(axes)
        return self.special if n > self.special else 0

    def row_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape that is kept of one stimulus whose output has this shape, without computing anything.

        Parameters
        ----------
        shape : tuple of int
            Of the output for one stimulus.

        Raises
        ------
        ValueError
            As from the call itself.
        """
        if self.size:
            return (min(self.size, prod(shape)),)
        # A tensor without memory goes through the call, so that the two cannot tell different things.
        return tuple(self(torch.empty((1, *shape), device="meta")).shape[1:])

    def map_shape(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Height and width of the token grid that is kept of one stimulus' output, if it is a map."""
        if self.kind not in ("none", "grid", "cls"):
            return None
        if len(shape) == 2 and self.kind == "grid" and not self.frames and (axes := self._squares(shape[0])):
            shape = (shape[1], *axes)
        if len(shape) != 3:
            return None
        height, width = self._cells(shape[1:]) if self.kind == "grid" else shape[1:]
        return height, width

    def spec(self) -> Mapping[str, Any]:
        """What features depend on, for the key of the store: the kind and the settings that it reads."""
        reads = {"grid": ("grid", "time", "special", "frames"), "time": ("time", "special", "frames")}
        reads |= dict.fromkeys(_PROJECTIONS, ("size", "seed")) | {"mean-patch": ("special", "frames"), "pca": ("size",)}
        return {"kind": self.kind} | {name: getattr(self, name) for name in reads.get(self.kind, ())}


def _sums(output: torch.Tensor) -> torch.dtype:
    """What averages are accumulated and kept in."""
    return torch.float64 if output.dtype == torch.float64 else torch.float32


def parse_reduction(reduce: str | int | Reduction | None) -> Reduction:
    """A reduction from what a user writes.

    Parameters
    ----------
    reduce : None, int, str or Reduction
        None and ``"none"`` keep everything; an int is a grid of so many cells along each side; ``"mean"``, ``"max"``,
        ``"cls"``, ``"mean-patch"`` and ``"last"`` name themselves; ``"grid:K"``, ``"time:K"``, ``"grid:K+time:K"``,
        ``"sketch:K"``, ``"sketch-raw:K"``, ``"sparse:K"`` and ``"sparse-raw:K"`` carry a number. A `Reduction`, like
        `PCA`, is taken as it is.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    if reduce is None:
        return Reduction()
    if isinstance(reduce, Reduction):
        return reduce
    if isinstance(reduce, int) and not isinstance(reduce, bool):
        if reduce < 1:
            raise ValueError(f"reduce={reduce}: a grid has at least 1 cell along each side")
        return Reduction("grid", reduce)
    if isinstance(reduce, str):
        if reduce in _POOLS:
            return Reduction(reduce)
        parts = [part.strip().partition(":")[::2] for part in reduce.split("+")]
        numbers = {name: int(number) for name, number in parts if number.isdecimal() and int(number)}
        if len(numbers) == len(parts):
            if numbers.keys() <= {"grid", "time"}:
                return Reduction("grid" if "grid" in numbers else "time", **numbers)
            if len(numbers) == 1 and (kind := next(iter(numbers))) in _PROJECTIONS:
                return Reduction(kind, size=numbers[kind])
    known = [*_POOLS, *(f"{kind}:K" for kind in ("grid", "time", *_PROJECTIONS))]
    mend = "Or an int: cells along each side of a grid; K stands for a whole number, at least 1."
    raise ValueError(unknown("reduce", reduce, known, mend))
