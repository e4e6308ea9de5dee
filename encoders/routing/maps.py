"""Maps of attention with names: which places of a stimulus each query reads."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import entr

from ...datasets.errors import unknown
from ...datasets.rdms import stimulus_positions
from .places import covered, hit_cells

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

    from ...datasets.stimuli import StimulusSet

AXES = ("stimulus", "query", "head", "y", "x")
OFF_ONE = 0.02  # how far from one a map may add up; bfloat16 has eight bits
CHUNK = 2**25  # bytes of maps in float64 at a time
UNIFORM = 1e-5  # spread of a map, as a share of its mean, below which it is rounding


@dataclass(frozen=True, eq=False)
class RoutingMaps:
    """Attention of every query over the places of every stimulus.

    Stimuli, queries, heads and cells are found by name or number, never by guessing at an order.

    Attributes
    ----------
    weights : ndarray of float32, shape (stimulus, query, head, y, x)
        Every map adds up to one. Cells row by row from the top left.
    queries : tuple of str
        Regions, or units.
    stimulus_ids : tuple of str
    grid : (height, width) or None
        None for tokens without places: the maps are then (1, token).
    reduced : bool
        Whether the one map on the head axis is the mean over heads.
    name : str
        What the maps belong to, for titles: a subject, a layer.
    images : ndarray of uint8, shape (stimulus, height, width, 3), or None
        Pictures of the stimuli.
    objects : DataFrame or None
        What is in the stimuli, as `StimulusSet.objects`: columns stimulus, category and a box.

    Notes
    -----
    A **box** is a row of a table with the columns stimulus and left, top, right, bottom, or stimulus and x, y, size
    (centre and half the width of a square), in fractions of the image, y down.
    """

    weights: np.ndarray
    queries: tuple[str, ...]
    stimulus_ids: tuple[str, ...]
    grid: tuple[int, int] | None = None
    reduced: bool = False
    name: str = ""
    images: np.ndarray | None = None
    objects: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        weights = np.asarray(self.weights, np.float32)
        object.__setattr__(self, "weights", weights)
        if self.grid is not None:
            height, width = self.grid
            object.__setattr__(self, "grid", (int(height), int(width)))
        for axis, names in (("queries", self.queries), ("stimulus_ids", self.stimulus_ids)):
            object.__setattr__(self, axis, tuple(str(one) for one in names))
            twice = pd.Index(getattr(self, axis)).duplicated()
            if twice.any():
                raise ValueError(f"{axis} holds {getattr(self, axis)[int(twice.argmax())]!r} more than once")
        expected = (len(self.stimulus_ids), len(self.queries))
        if weights.ndim != 5 or weights.shape[:2] != expected or 0 in weights.shape:
            raise ValueError(
                f"weights has shape {weights.shape}; expected ({expected[0]} stimuli, {expected[1]} queries, head, y, "
                "x), none of them empty"
            )
        if self.grid is None and weights.shape[3] != 1:
            raise ValueError(
                f"weights are maps of {weights.shape[3]} x {weights.shape[4]} without a grid; pass grid=(height, "
                "width), or give maps of (1, token) for tokens without places"
            )
        if self.grid is not None and weights.shape[3:] != self.grid:
            raise ValueError(f"weights are maps of {weights.shape[3]} x {weights.shape[4]}; grid is {self.grid}")
        if self.reduced and weights.shape[2] != 1:
            raise ValueError(f"reduced=True, but weights have {weights.shape[2]} heads; expected their mean, one map")
        sums = weights.sum((3, 4), dtype=np.float64)
        if not (abs(sums - 1) < OFF_ONE).all() or not (weights >= 0).all():
            wrong = ~(abs(sums - 1) < OFF_ONE) | ~(weights >= 0).all((3, 4))
            raise ValueError(
                f"{int(wrong.sum())} of {wrong.size} maps are not weights above zero that add up to one; the first "
                f"adds up to {sums[wrong][0]:.3g}"
            )
        if self.images is not None:
            _check_images(self.images, len(self.stimulus_ids))

    def __len__(self) -> int:
        return len(self.stimulus_ids)

    def __repr__(self) -> str:
        heads = "mean over heads" if self.reduced else f"heads: {self.n_heads}"
        title = f" {self.name!r}" if self.name else ""
        height, width = self.weights.shape[3:]
        cells = f"{width} tokens" if self.grid is None else f"{height} x {width} cells"
        return f"<RoutingMaps{title} of {cells}: stimuli: {len(self)}, queries: {len(self.queries)}, {heads}>"

    @property
    def n_heads(self) -> int:
        """Maps of every stimulus and query."""
        return self.weights.shape[2]

    @property
    def n_cells(self) -> int:
        """Places of a map."""
        return self.weights.shape[3] * self.weights.shape[4]

    # ---------------------------------------------------------------------------------------------- other maps

    def mean_heads(self) -> RoutingMaps:
        """The mean over heads, one map for each stimulus and query."""
        if self.reduced:
            return self
        mean = self.weights.mean(2, keepdims=True, dtype=np.float64)
        return dataclasses.replace(self, weights=mean, reduced=True)

    def select(
        self, queries: str | Iterable[str] | None = None, stimulus_ids: str | Iterable[str] | None = None
    ) -> RoutingMaps:
        """The maps of some queries and stimuli, in the order asked for; None keeps them all.

        Raises
        ------
        ValueError
            If there is no such query or stimulus, or none is left.
        """
        wanted = list(self.queries) if queries is None else _listed(queries)
        for one in wanted:
            if one not in self.queries:
                raise ValueError(unknown("query", one, self.queries))
        ids = list(self.stimulus_ids) if stimulus_ids is None else _listed(stimulus_ids)
        rows = stimulus_positions(self.stimulus_ids, ids, "the routing maps")
        columns = np.array([self.queries.index(one) for one in wanted], np.intp)
        return dataclasses.replace(
            self,
            weights=self.weights[np.ix_(rows, columns)],
            queries=tuple(wanted),
            stimulus_ids=tuple(ids),
            images=None if self.images is None else self.images[rows],
            objects=None if self.objects is None else self.objects[self.objects["stimulus"].isin(ids)],
        )

    def with_stimuli(self, stimuli: StimulusSet, size: int = 96) -> RoutingMaps:
        """The same maps with pictures of their stimuli, and the objects in these where they are known.

        Parameters
        ----------
        stimuli : StimulusSet
            Holds every stimulus of the maps, found by id.
        size : int
            Pictures are made this many pixels high and wide, as the encoder saw them: whole and square.
        """
        objects = stimuli.objects
        if objects is not None:
            objects = objects[objects["stimulus"].isin(self.stimulus_ids)].reset_index(drop=True)
        return dataclasses.replace(self, images=stimuli.images(self.stimulus_ids, size), objects=objects)

    # ------------------------------------------------------------------------------------------------- figures

    def entropy(self, base: float = 2, normalised: bool = False) -> pd.DataFrame:
        """How widely attention spreads.

        Parameters
        ----------
        base : float
            Of the logarithm: 2 for bits.
        normalised : bool
            Divide by the entropy of even attention, so that 1 is even and 0 is all on one cell; NaN for one cell.

        Returns
        -------
        DataFrame, shape (stimulus, query)
            The mean over heads of the entropy of each; of reduced maps the entropy of the mean, which is at least as
            high, since heads may disagree.
        """
        if not base > 1:
            raise ValueError(f"base={base!r}: expected a number above 1, such as 2 for bits")
        found = entr(self.weights).sum((3, 4), dtype=np.float64).mean(2)
        if normalised:
            found = found / np.log(self.n_cells) if self.n_cells > 1 else np.full_like(found, np.nan)
        else:
            found = found / np.log(base)
        return self._by_query(found)

    def peak(self) -> pd.DataFrame:
        """The cell that each map is highest at, the first in reading order among equals.

        Returns
        -------
        DataFrame
            A row for each stimulus, query and (unless reduced) head: stimulus, query, head, y, x (cell), weight, and
            centre_x, centre_y, the middle of the cell in fractions of the image; NaN without a grid.
        """
        height, width = self.weights.shape[3:]
        flat = self.weights.reshape(*self.weights.shape[:3], -1)
        cell = flat.argmax(-1)
        y, x = np.divmod(cell.ravel(), width)
        places = (1.0, 1.0) if self.grid is not None else (np.nan, np.nan)
        return self._rows().assign(
            y=y,
            x=x,
            weight=np.take_along_axis(flat, cell[..., None], -1).ravel(),
            centre_x=(x + 0.5) / width * places[1],
            centre_y=(y + 0.5) / height * places[0],
        )

    def centre_of_mass(self) -> pd.DataFrame:
        """Where each map lies on average, and how far from there.

        Returns
        -------
        DataFrame
            A row for each stimulus, query and (unless reduced) head: stimulus, query, head, x, y and spread (root mean
            square distance from it) in fractions of the image.

        Raises
        ------
        ValueError
            If the maps have no grid.
        """
        height, width = self._places("the centre of mass")
        across, down = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
        weights = self.weights.astype(np.float64)
        total = weights.sum((3, 4))
        columns, lines = weights.sum(3) / total[..., None], weights.sum(4) / total[..., None]
        x, y = columns @ across, lines @ down
        square = columns @ across**2 - x**2 + lines @ down**2 - y**2
        spread = np.sqrt(np.maximum(square, 0))
        return self._rows().assign(x=x.ravel(), y=y.ravel(), spread=spread.ravel())

    def similarity(self) -> pd.DataFrame:
        """Correlation of the maps (means over heads) of every two queries, over all cells of all stimuli.

        Every map has the same mean, so that what counts is where queries look within a stimulus.

        Returns
        -------
        DataFrame, shape (query, query)
            NaN for queries whose maps are even, with one warning that counts them.
        """
        products = sum(np.tensordot(part, part, ((0, 2), (0, 2))) for part in self._deviations())
        size = np.sqrt(np.diag(products))
        even = size / np.sqrt(len(self) * self.n_cells) * self.n_cells < UNIFORM
        if even.any():
            warnings.warn(
                f"{int(even.sum())} of {len(even)} queries attend evenly to all cells; their similarity is NaN",
                UserWarning,
                stacklevel=2,
            )
        known = np.where(even, np.nan, size)
        found = products / known / known[:, None]
        return pd.DataFrame(np.clip(found, -1, 1), index=pd.Index(self.queries, name="query"), columns=self.queries)

    def variation(self) -> pd.Series:
        """Share of each query's maps (means over heads) that changes from stimulus to stimulus.

        Of the squared distance of its maps from even attention, the part that is not that of their mean: 0 for a fixed
        mask, near 1 where attention goes wherever the content is.

        Returns
        -------
        Series, shape (query,)
            NaN for one stimulus, and for queries that attend evenly.
        """
        total, mean = np.zeros(len(self.queries)), np.zeros((len(self.queries), self.n_cells))
        for part in self._deviations():
            total += (part**2).sum((0, 2)) / (len(self) * self.n_cells)
            mean += part.sum(0) / len(self)
        fixed = (mean**2).mean(1)
        undefined = (np.sqrt(total) * self.n_cells < UNIFORM) | (len(self) == 1)
        share = 1 - fixed / np.where(undefined, np.nan, total)
        return pd.Series(share, index=pd.Index(self.queries, name="query"), name="variation")

    def mass(self, boxes: pd.DataFrame) -> pd.DataFrame:
        """Share of attention (mean over heads) inside the boxes of a stimulus.

        A cell that lies partly inside counts by the share of its area; overlapping boxes count once. Even attention
        has the share of the image's area that the boxes cover.

        Parameters
        ----------
        boxes : DataFrame
            See the notes of the class; rows of stimuli that the maps do not hold are passed over.

        Returns
        -------
        DataFrame, shape (stimulus, query)
            NaN for stimuli without a box.

        Raises
        ------
        ValueError
            If the maps have no grid, or columns are missing.
        """
        cover = covered(boxes, self.stimulus_ids, self._places("a share of attention inside boxes"))
        mean = self.mean_heads().weights[:, :, 0].astype(np.float64)
        return self._by_query(np.einsum("sqyx,syx->sq", mean, cover))

    def on_objects(self, objects: pd.DataFrame | None = None) -> pd.DataFrame:
        """How much of each query's attention is on the objects of a category, and how often its peak is.

        Parameters
        ----------
        objects : DataFrame, optional
            Boxes with a column category, where a set of stimuli with objects is not attached already.

        Returns
        -------
        DataFrame
            A row for each query and category, over the `n_stimuli` that hold the category: mass, the share of attention
            on it, and hits, the share of stimuli where the peak of the map (mean over heads) is on it: the middle of
            the cell is in a box, or the middle of a box in the cell. mass_by_chance and hits_by_chance are what the
            same maps have when they are laid over stimuli at random, so that a mask that is the same for all of them
            has no more than chance, wherever objects tend to be.

        Raises
        ------
        ValueError
            If no objects are known, columns are missing, or the maps have no grid.
        """
        objects = self.objects if objects is None else objects
        if objects is None:
            raise ValueError(
                "objects: none are known; pass a table of boxes with a column category, or attach the stimuli by "
                "with_stimuli(stimuli)"
            )
        if "category" not in objects:
            raise ValueError(f"objects has the columns {', '.join(map(str, objects))}; expected category among them")
        grid = self._places("attention on objects")
        flat = self.mean_heads().weights.reshape(len(self), len(self.queries), -1)
        peak = flat.argmax(-1)
        rows = []
        for category, boxes in objects.groupby("category", sort=False):
            cover = covered(boxes, self.stimulus_ids, grid).reshape(len(self), -1)
            holds = ~np.isnan(cover[:, 0])
            if not holds.any():
                continue
            cover, n = cover[holds], int(holds.sum())
            cells = hit_cells(boxes, self.stimulus_ids, grid)[holds].reshape(n, -1)
            for k, query in enumerate(self.queries):
                found = {
                    "mass": (cover * flat[holds, k]).sum(1).mean(),
                    "mass_by_chance": cover.mean(0) @ flat[:, k].mean(0, dtype=np.float64),
                    "hits": cells[np.arange(n), peak[holds, k]].mean(),
                    "hits_by_chance": cells.mean(0)[peak[:, k]].mean(),
                }
                rows.append({"query": query, "category": str(category), "n_stimuli": n} | found)
        columns = ["query", "category", "n_stimuli", "mass", "mass_by_chance", "hits", "hits_by_chance"]
        table = pd.DataFrame(rows, columns=columns)
        return table.sort_values("query", key=lambda names: names.map(self.queries.index), kind="stable").reset_index(
            drop=True
        )

    # -------------------------------------------------------------------------------------------- going elsewhere

    def to_xarray(self) -> xarray.DataArray:
        """A DataArray with dims (stimulus, query, head, y, x), without head where reduced.

        Raises
        ------
        ImportError
            Without xarray.
        """
        from ...datasets.labelled import to_xarray

        axes = {
            "stimulus": pd.DataFrame({"stimulus": self.stimulus_ids}),
            "query": pd.DataFrame({"query": self.queries}),
        }
        if not self.reduced:
            axes["head"] = pd.DataFrame({"head": range(self.n_heads)})
        for axis, length in zip(AXES[3:], self.weights.shape[3:], strict=True):
            axes[axis] = pd.DataFrame({axis: range(length)})
        values = self.weights[:, :, 0] if self.reduced else self.weights
        return to_xarray(values, axes, None, "attention", {"name": self.name} if self.name else {})

    def plot(
        self,
        images: StimulusSet | np.ndarray | None = None,
        stimuli: int | Sequence[str] = 6,
        queries: str | Sequence[str] | None = None,
        boxes: pd.DataFrame | None = None,
    ) -> Figure:
        """Attention (mean over heads) drawn over the stimuli, one row for each query, all on one scale.

        Parameters
        ----------
        images : StimulusSet or ndarray of uint8, shape (stimulus, height, width, 3), optional
            Pictures, found by id, or in the order of `stimulus_ids`. By default those that are attached; without any
            the maps are drawn alone.
        stimuli : int or sequence of str
            How many stimuli, taken at even distances, or which.
        queries : str or sequence of str, optional
            Which queries; by default all, and of more than twelve as many at even distances.
        boxes : DataFrame, optional
            Boxes to outline; by default those of the objects that are attached.

        Raises
        ------
        ValueError
            If the maps have no grid, there is no such query or stimulus, or images do not fit the maps.
        """
        from .overlays import draw

        self._places("a picture")
        shown = self if images is None else self._with_images(images)
        return draw(shown, stimuli, None if queries is None else _listed(queries), boxes)

    # ------------------------------------------------------------------------------------------------- beneath

    def _with_images(self, images: Any) -> RoutingMaps:
        if hasattr(images, "images"):
            return self.with_stimuli(images)
        return dataclasses.replace(self, images=np.asarray(images))

    def _deviations(self) -> Iterator[np.ndarray]:
        """Maps (mean over heads) minus even attention, (stimulus, query, cell), some stimuli at a time."""
        step = max(1, CHUNK // (8 * len(self.queries) * self.n_cells))
        for start in range(0, len(self), step):
            mean = self.weights[start : start + step].mean(2, dtype=np.float64)
            mean = mean.reshape(len(mean), len(self.queries), self.n_cells)
            yield mean - mean.mean(2, keepdims=True)

    def _places(self, what: str) -> tuple[int, int]:
        """The grid of maps that have one."""
        if self.grid is None:
            raise ValueError(f"the maps are of {self.n_cells} tokens without a grid: {what} needs places")
        return self.grid

    def _by_query(self, values: np.ndarray) -> pd.DataFrame:
        """(stimulus, query) as a table."""
        return pd.DataFrame(values, index=pd.Index(self.stimulus_ids, name="stimulus"), columns=list(self.queries))

    def _rows(self) -> pd.DataFrame:
        """The names of every map, in order."""
        index = pd.MultiIndex.from_product(
            [self.stimulus_ids, self.queries, range(self.n_heads)], names=["stimulus", "query", "head"]
        )
        rows = index.to_frame(index=False)
        return rows.drop(columns="head") if self.reduced else rows


def _listed(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else [str(one) for one in names]


def _check_images(images: np.ndarray, n: int) -> None:
    shape = np.shape(images)
    if len(shape) != 4 or shape[0] != n or shape[3] != 3 or np.asarray(images).dtype != np.uint8:
        raise ValueError(
            f"images has shape {shape} and dtype {np.asarray(images).dtype}; expected uint8 of shape ({n}, height, "
            "width, 3), a picture for each stimulus of the maps in their order"
        )
