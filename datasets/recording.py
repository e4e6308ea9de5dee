"""The noun `Recording`: responses to discrete presentations of stimuli, repeats kept apart."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from . import averaging, storage
from .axes import as_responses, presentation_table, time_points, time_window, unit_table
from .errors import unknown
from .responses import Responses
from .selection import group_folds, holdout, linked_groups, select_rows
from .stimuli import StimulusSet
from .timeseries import TimeSeries

if TYPE_CHECKING:
    import xarray

__all__ = ["Recording", "TimeSeries"]

# Values per block of units when a recording is passed through once: 32 MiB of float64.
_BLOCK = 2**22
# Bytes that averages of responses on disk may take.
_MEMORY = 2 * 2**30


class Recording(Responses):
    """Responses of units to presentations of stimuli.

    Parameters
    ----------
    responses : array (presentation, unit) or (presentation, unit, time)
        numpy array, memory map, h5py.Dataset or sessions on disk (``lazy.SessionStack``); kept as given, neither
        loaded nor copied. NaN marks what was not recorded. A torch tensor, a table, a list or a masked array is made
        an array.
    presentations : pandas.DataFrame or mapping of columns
        One row per presentation. Column ``stimulus`` (id) is required; ``repeat`` (0, 1, ... per stimulus and
        subject) is filled in; ``session``, ``run``, ``subject``, ``split`` and any others are optional. With
        ``subject``, units of other subjects are NaN in that row.
    units : pandas.DataFrame, optional
        One row per unit (voxel, neuron, electrode). ``unit`` (0, 1, ...), ``subject`` ("1") and ``region``
        ("all") are filled in, and "unassigned" where a subject or a region is missing; ``ncsnr``,
        ``hemisphere``, ``x``, ``y``, ``z`` and any others are optional.
    times : array (time,), optional
        Seconds; needed by, and only by, responses with a time axis.
    stimuli : StimulusSet, optional
        Holds every stimulus that was presented.
    name : str
    truth : object, optional
        What a simulated recording was made from; it belongs to the whole, not to parts of it.
    info : mapping, optional
        Citation, licence and other remarks.

    Raises
    ------
    ValueError
        Shapes that contradict each other, or presentations of stimuli that are not in `stimuli`.

    Notes
    -----
    Immutable by convention: every method returns a new object.
    """

    def __init__(
        self,
        responses: Any,
        presentations: pd.DataFrame | Mapping[str, Any],
        units: pd.DataFrame | None = None,
        times: Any = None,
        stimuli: StimulusSet | None = None,
        name: str = "",
        truth: Any = None,
        info: Mapping[str, Any] | None = None,
    ):
        axes = "(presentation, unit) or (presentation, unit, time)"
        responses = as_responses(responses, axes)
        shape = tuple(responses.shape)
        if len(shape) > 3:
            raise ValueError(f"responses has shape {shape}; expected {axes}.")
        presentations = pd.DataFrame(presentations)
        units = pd.DataFrame(index=range(shape[1])) if units is None else units
        for argument, table, n in (("presentations", presentations, shape[0]), ("units", units, shape[1])):
            if len(table) != n:
                raise ValueError(f"{argument} has {len(table)} rows; responses {shape} needs {n}.")
        if (times is None) != (len(shape) == 2):
            found = "no times" if times is None else "times"
            raise ValueError(
                f"responses has shape {shape} and {found} were given: a third axis needs times, two axes take none."
            )
        self.responses = responses
        self.presentations = presentation_table(presentations, stimuli)
        shown_to = set(self.presentations["subject"].astype(str)) if "subject" in self.presentations else set()
        self.units = unit_table(units, *shown_to) if len(shown_to) == 1 else unit_table(units)
        self.times: np.ndarray | None = None if times is None else time_points(times, shape[2])
        self.stimuli = stimuli
        self.name = name
        self.truth = truth
        self.info: dict[str, Any] = dict(info or {})

    def __repr__(self) -> str:
        title = f" {self.name!r}" if self.name else ""
        n_stimuli = self.presentations["stimulus"].nunique()
        parts = [f"{self.n_presentations} presentations of {n_stimuli} stimuli", f"{self.n_units} units"]
        for column in ("subject", "region"):
            names = [str(one) for one in self.units[column].unique()]
            parts.append(f"{column} {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}")
        if self.times is not None:
            parts.append(f"{len(self.times)} times from {self.times[0]:g} to {self.times[-1]:g} s")
        return f"<Recording{title}: {'; '.join(parts)}>"

    # --------------------------------------------------------------------------------------------- reading

    @property
    def n_presentations(self) -> int:
        return int(self.responses.shape[0])

    @property
    def is_time_resolved(self) -> bool:
        return self.times is not None

    def read(self, units: Any = None, presentations: Any = None) -> np.ndarray:
        """Responses in memory, in the order asked for.

        Parameters
        ----------
        units, presentations : slice, mask or index array, optional
            Default all.

        Returns
        -------
        ndarray of float32 (float64 where the recording holds that), shape (presentation, unit[, time])
            Possibly a view: do not write into it.
        """
        return self._read(units, presentations, "presentations")

    @property
    def _block_size(self) -> int:
        depth = 1 if self.times is None else len(self.times)
        size = max(1, _BLOCK // (self.n_presentations * depth))
        chunks = getattr(self.responses, "chunks", None)
        # A chunk on disk is read whole, so that half a chunk would be read twice.
        return size if chunks is None else -(-size // chunks[1]) * chunks[1]

    def _with(self, **changes: Any) -> Recording:
        names = ("responses", "presentations", "units", "times", "stimuli", "name", "truth", "info")
        return Recording(**({name: getattr(self, name) for name in names} | changes))

    # ------------------------------------------------------------------------------------------- selection

    def select(self, time: tuple[float | None, float | None] | None = None, **criteria: Any) -> Recording:
        """The part of the recording that meets all criteria.

        Parameters
        ----------
        time : (start, stop), optional
            Seconds, both included; None leaves an end open.
        **criteria
            Column of `units` or `presentations` with a value or a list of values: ``region="V4"``,
            ``subject=["1", "2"]``, ``session=3``, ``split="test"``, ``stimulus=[...]``. A column of both
            tables applies to both.

        Returns
        -------
        Recording
            In the order of this one; only the selected part of an array on disk is read. `stimuli` is
            narrowed to those still presented where presentations were left out.

        Raises
        ------
        ValueError
            An unknown column or value (with the nearest known ones), or nothing left.
        """
        rows = select_rows(criteria, {"presentations": self.presentations, "units": self.units})
        within = slice(None)
        if time is not None:
            if self.times is None:
                raise ValueError("time= needs a recording with a time axis; this one has none.")
            within = time_window(self.times, *time)
        return self._take(rows["presentations"], rows["units"], within)

    def _take(self, rows: np.ndarray, columns: np.ndarray | None = None, within: slice = slice(None)) -> Recording:
        columns = np.arange(self.n_units) if columns is None else columns
        whole = len(rows) == self.n_presentations and len(columns) == self.n_units
        responses = self.responses if whole else storage.read_block(self.responses, rows, columns)
        times = self.times
        if times is not None and within != slice(None):
            responses, times = responses[:, :, within], times[within]
        presentations = self.presentations.iloc[rows]
        return self._with(
            responses=responses,
            presentations=presentations,
            units=self.units.iloc[columns],
            times=times,
            stimuli=self.stimuli if len(rows) == self.n_presentations else self._presented(presentations),
        )

    def _presented(self, presentations: pd.DataFrame) -> StimulusSet | None:
        """The stimuli narrowed to those presented, in their order."""
        if self.stimuli is None:
            return None
        presented = set(presentations["stimulus"])
        if len(presented) == len(self.stimuli):
            return self.stimuli
        return self.stimuli.select([one for one in self.stimuli if one in presented])

    # ------------------------------------------------------------------------------------------- averaging

    def average_repeats(self, to: str | Path | None = None, max_memory: int = _MEMORY) -> Recording:
        """Mean over the repeats of each stimulus, unit by unit and time by time, ignoring NaN.

        Parameters
        ----------
        to : path, optional
            Folder for a mean that does not fit in memory: it is written there by units, as float32, and read from
            there. One that was begun for the same recording is finished.
        max_memory : int
            Bytes that the mean of responses on disk, and what is summed up for it, may take.

        Returns
        -------
        Recording
            One presentation per stimulus, in the order of `stimuli` (without them, of first appearance), with
            ``n_repeats``: finite responses behind the mean, of the unit that has most (select a subject or a
            region first for theirs). Where `presentations` holds ``n_repeats``, it is summed over the rows that
            are merged. Columns of `presentations` that do not vary within a stimulus are kept. Stimuli without
            a finite response are left out with one warning.

        Raises
        ------
        ValueError
            No finite response, a mean that takes more than `max_memory` without `to`, or no room on the disk.
        """
        return averaging.average_repeats(self, to, max_memory)

    def split_halves(
        self, seed: int | np.random.Generator = 0, max_memory: int = _MEMORY
    ) -> tuple[Recording, Recording]:
        """Means over two disjoint random halves of the repeats of each stimulus.

        Where `presentations` tells subjects apart, the repeats of each subject are halved. An odd repeat goes
        to either half at random. Stimuli with fewer than two valid repeats (presentations with any finite
        response) are in neither half. `max_memory` as in :meth:`average_repeats`.

        Returns
        -------
        first, second : Recording
            The same stimuli in the same order, as :meth:`average_repeats` gives them.

        Raises
        ------
        ValueError
            No stimulus has two valid repeats, or the halves of responses on disk take more than `max_memory`.
        """
        return averaging.split_halves(self, seed, max_memory)

    def average_time(self, start: float | None = None, stop: float | None = None) -> Recording:
        """Recording of the mean over a time window (seconds, both ends included), ignoring NaN."""
        if self.times is None:
            raise ValueError("average_time needs a recording with a time axis; this one has none.")
        within = time_window(self.times, start, stop)
        mean: np.ndarray = np.empty((self.n_presentations, self.n_units), dtype=self._dtype)
        for block, values in self.unit_blocks(self._block_size):
            window = values[:, :, within].astype(np.float64)
            finite = np.isfinite(window)
            with np.errstate(invalid="ignore"):
                mean[:, block] = np.where(finite, window, 0).sum(axis=2) / finite.sum(axis=2)
        seconds = [float(self.times[within][0]), float(self.times[within][-1])]
        return self._with(responses=mean, times=None, info=self.info | {"time_window": seconds})

    # ------------------------------------------------------------------------------------------- splitting

    def train_test(
        self, test: float | None = None, seed: int | np.random.Generator = 0, groups: Any = None
    ) -> tuple[Recording, Recording]:
        """Two recordings without a stimulus in common.

        Parameters
        ----------
        test : float, optional
            Fraction of the presentations to hold out. Default: the dataset's own split where `presentations`
            has a column ``split`` with "train" and "test" (rows with another value are in neither), else 0.2.
        seed : int or numpy Generator
        groups : str or array (presentation,), optional
            Column of `presentations`, or labels, that are kept together as stimuli are.

        Raises
        ------
        ValueError
            The dataset's own split has a stimulus or a group on both sides, or too few stimuli to split.
        """
        if test is None and "split" in self.presentations.columns:
            split = self.presentations["split"]
            sides = [np.flatnonzero(split == side) for side in ("train", "test")]
            if all(len(side) for side in sides):
                apart = {"stimuli": self.presentations["stimulus"].to_numpy()}
                if groups is not None:
                    apart["groups"] = self._labels(groups)
                for what, labels in apart.items():
                    shared = sorted(set(labels[sides[0]]) & set(labels[sides[1]]), key=str)
                    if shared:
                        raise ValueError(
                            f"{len(shared)} {what} are in train and in test, first {str(shared[0])!r}; "
                            "give test=0.2 to split anew."
                        )
                return self._take(sides[0]), self._take(sides[1])
            raise ValueError(
                f"the column split holds {sorted(split.astype(str).unique())}; expected 'train' and 'test'. "
                "Give test=0.2 to split anew."
            )
        held = holdout(self._groups(groups), 0.2 if test is None else test, seed)
        return self._take(np.flatnonzero(~held)), self._take(np.flatnonzero(held))

    def folds(
        self, n: int = 5, seed: int | np.random.Generator = 0, groups: Any = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Shuffled folds of the presentations, no stimulus (or group) in both parts, as equal as possible.

        Returns
        -------
        list of (train, test)
            Ascending row positions of presentations.
        """
        what = "stimuli" if groups is None else "groups"
        return group_folds(self._groups(groups), n, seed, what)

    def _groups(self, groups: Any) -> np.ndarray:
        """Presentations that must stay together: same stimulus, or linked through the same group."""
        stimulus = self.presentations["stimulus"].to_numpy()
        return linked_groups(stimulus) if groups is None else linked_groups(stimulus, self._labels(groups))

    def _labels(self, groups: Any) -> np.ndarray:
        """Group of each presentation: those of a column, or those given."""
        if isinstance(groups, str):
            if groups not in self.presentations.columns:
                raise ValueError(unknown("groups", groups, self.presentations.columns))
            groups = self.presentations[groups]
        labels = np.asarray(groups)
        if labels.shape != (self.n_presentations,):
            raise ValueError(
                f"groups has shape {labels.shape}; expected one label for each of the "
                f"{self.n_presentations} presentations."
            )
        return labels

    # --------------------------------------------------------------------------------------------- storage

    def save(self, path: str | Path) -> None:
        """Write everything, stimuli included, to one HDF5 file, which replaces an older one once it is whole.

        `truth` is kept where it is a dict of arrays, tables, numbers and strings; else it is left out with a
        warning.
        """
        with storage.new_hdf5(path, "Recording") as file:
            file.attrs["name"] = self.name
            file.attrs["info"] = storage.to_json(self.info, "info")
            storage.write_responses(file, self.responses)
            storage.write_table(file, "presentations", self.presentations)
            storage.write_table(file, "units", self.units)
            if self.times is not None:
                file["times"] = self.times
            if self.stimuli is not None:
                storage.write_stimuli(file, self.stimuli)
            if self.truth is not None:
                left_out = ["truth"]
                if isinstance(self.truth, Mapping):
                    left_out = storage.write_nested(file, "truth", self.truth)
                if left_out:
                    names = ", ".join(left_out)
                    warnings.warn(f"{path}: not saved, as HDF5 cannot hold it: {names}.", stacklevel=2)

    @classmethod
    def load(cls, path: str | Path, lazy: bool = False) -> Recording:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path : path
        lazy : bool
            Leave responses and image arrays in the file and read them by blocks; the file must stay as it is.

        Raises
        ------
        FileNotFoundError
        ValueError
            The file was cut off, or is not a saved Recording.
        """
        with storage.saved(path, "Recording", lazy) as file:
            return cls(
                file["responses"] if lazy else file["responses"][()],
                storage.read_table(file["presentations"]),
                storage.read_table(file["units"]),
                times=file["times"][()] if "times" in file else None,
                stimuli=storage.read_stimuli(file["stimuli"], lazy) if "stimuli" in file else None,
                name=str(file.attrs["name"]),
                truth=storage.read_nested(file["truth"]) if "truth" in file else None,
                info=json.loads(file.attrs["info"]),
            )

    def to_xarray(self) -> xarray.DataArray:
        """A DataArray with dims presentation, unit (, time) and one 1-D coordinate per table column.

        A column that stands in both tables is called ``presentation_<column>`` on the presentations. Stimuli
        and truth are not part of it.
        """
        from .labelled import to_xarray

        axes = {"presentation": self.presentations, "unit": self.units}
        return to_xarray(self.read(), axes, self.times, self.name, self.info)

    @classmethod
    def from_xarray(cls, array: xarray.DataArray, stimuli: StimulusSet | None = None) -> Recording:
        """The recording in a DataArray as :meth:`to_xarray` makes it."""
        from .labelled import from_xarray

        values, axes, times, name, info = from_xarray(array, ("presentation", "unit"))
        return cls(values, axes["presentation"], axes["unit"], times, stimuli, name, info=info)
