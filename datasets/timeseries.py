"""The noun `TimeSeries`: responses to a continuous stimulus, run by run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from . import storage
from .axes import as_responses, event_table, unit_table
from .responses import Responses
from .selection import group_folds, linked_groups, select_rows
from .stimuli import StimulusSet

if TYPE_CHECKING:
    import xarray


class TimeSeries(Responses):
    """Responses of units sampled while a continuous stimulus (a film, a story) runs.

    Parameters
    ----------
    responses : array (sample, unit)
        numpy array, memory map or h5py.Dataset; kept as given. Runs follow each other along the samples.
    sampling_rate : float
        Samples per second (fMRI: 1 / repetition time).
    events : pandas.DataFrame, optional
        What was shown when: onset and duration (seconds from the start of the run), stimulus (id), run.
        ``duration`` is NaN when absent; ``run`` may be absent where there is one run.
    runs : array (sample,), optional
        Label of the run each sample belongs to; default one run "1". The samples of a run are neighbours.
    units : pandas.DataFrame, optional
        One row per unit, as in :class:`~neuralign.datasets.Recording`.
    stimuli : StimulusSet, optional
        Holds every stimulus of the events.
    name : str
    info : mapping, optional
        Citation, licence and other remarks.

    Notes
    -----
    Immutable by convention: every method returns a new object.
    """

    def __init__(
        self,
        responses: Any,
        sampling_rate: float,
        events: pd.DataFrame | None = None,
        runs: Any = None,
        units: pd.DataFrame | None = None,
        stimuli: StimulusSet | None = None,
        name: str = "",
        info: Mapping[str, Any] | None = None,
    ):
        responses = as_responses(responses, "(sample, unit)")
        shape = tuple(responses.shape)
        if len(shape) != 2:
            raise ValueError(f"responses has shape {shape}; expected (sample, unit).")
        if not sampling_rate > 0:
            raise ValueError(f"sampling_rate={sampling_rate!r}; expected samples per second, above zero.")
        labels = np.full(shape[0], "1") if runs is None else np.asarray(runs).astype(str)
        if labels.shape != shape[:1]:
            raise ValueError(f"runs has shape {labels.shape}; expected one label for each of {shape[0]} samples.")
        self.runs: np.ndarray = labels.astype(object)
        starts = self.runs[np.flatnonzero(np.r_[True, self.runs[1:] != self.runs[:-1]])]
        if len(starts) != len(set(starts)):
            raise ValueError("the samples of a run must be neighbours; sort responses and runs by run.")
        units = pd.DataFrame(index=range(shape[1])) if units is None else units
        if len(units) != shape[1]:
            raise ValueError(f"units has {len(units)} rows; responses {shape} needs {shape[1]}.")
        self.responses = responses
        self.sampling_rate = float(sampling_rate)
        self.events = event_table(events, stimuli, self.runs)
        self.units = unit_table(units)
        self.stimuli = stimuli
        self.name = name
        self.info: dict[str, Any] = dict(info or {})

    def __repr__(self) -> str:
        title = f" {self.name!r}" if self.name else ""
        n_runs = len(set(self.runs))
        return (
            f"<TimeSeries{title}: {self.n_samples} samples at {self.sampling_rate:g} Hz in {n_runs} runs; "
            f"{self.n_units} units; {len(self.events)} events>"
        )

    @property
    def n_samples(self) -> int:
        return int(self.responses.shape[0])

    @property
    def times(self) -> np.ndarray:
        """Seconds from the start of its run, per sample."""
        count = pd.Series(self.runs).groupby(self.runs, sort=False).cumcount()
        return count.to_numpy() / self.sampling_rate

    def read(self, units: Any = None, samples: Any = None) -> np.ndarray:
        """Responses in memory, float32 (float64 where they are that), shape (sample, unit); do not write to it.

        Parameters
        ----------
        units, samples : slice, mask or index array, optional
            Default all.
        """
        return self._read(units, samples, "samples")

    def select(self, **criteria: Any) -> TimeSeries:
        """The part that meets all criteria: columns of `units` (region, subject, unit, ...), and ``run``.

        Events and stimuli of runs that are left out go with them.

        Raises
        ------
        ValueError
            An unknown column or value (with the nearest known ones), or nothing left.
        """
        rows = select_rows(criteria, {"samples": pd.DataFrame({"run": self.runs}), "units": self.units})
        samples, columns = rows["samples"], rows["units"]
        whole = len(samples) == self.n_samples and len(columns) == self.n_units
        events, stimuli = self.events, self.stimuli
        if len(samples) < self.n_samples:
            events = events[events["run"].isin(self.runs[samples])]
            if stimuli is not None and len(events):
                shown = set(events["stimulus"])
                stimuli = stimuli.select([one for one in stimuli if one in shown])
        return TimeSeries(
            self.responses if whole else storage.read_block(self.responses, samples, columns),
            self.sampling_rate,
            events,
            self.runs[samples],
            self.units.iloc[columns],
            stimuli,
            self.name,
            self.info,
        )

    def folds(
        self, n: int | None = None, seed: int | np.random.Generator = 0, trim: float = 0.0
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Folds for cross-validation that do not leak through slow responses.

        Several runs: whole runs are held out (default one at a time), shuffled by seed and as equal in samples
        as that allows. One run: contiguous blocks (default 5) in order, and training samples nearer than
        `trim` seconds to the held-out block are left out.

        Parameters
        ----------
        n : int, optional
            Number of folds.
        seed : int or numpy Generator
        trim : float
            Seconds; at least the span of the delays and of the haemodynamic response. Whole runs need none.

        Returns
        -------
        list of (train, test)
            Ascending sample positions.
        """
        groups = linked_groups(self.runs)
        n_runs = int(groups.max()) + 1
        if n_runs > 1:
            return group_folds(groups, n_runs if n is None else n, seed, what="runs")
        n = 5 if n is None else n
        if n < 2 or n > self.n_samples:
            raise ValueError(f"n={n!r} blocks of {self.n_samples} samples are impossible; give 2 to that number.")
        if trim < 0:
            raise ValueError(f"trim={trim!r} seconds; expected zero or more.")
        margin = int(np.ceil(round(trim * self.sampling_rate, 6)))
        samples = np.arange(self.n_samples)
        folds = []
        for test in np.array_split(samples, n):
            train = samples[(samples < test[0] - margin) | (samples > test[-1] + margin)]
            if not len(train):
                raise ValueError(
                    f"trim={trim:g} s leaves no training sample of {self.n_samples / self.sampling_rate:g} s."
                )
            folds.append((train, test))
        return folds

    def save(self, path: str | Path) -> None:
        """Write everything, stimuli included, to one HDF5 file, which replaces an older one once it is whole."""
        with storage.new_hdf5(path, "TimeSeries") as file:
            file.attrs["name"] = self.name
            file.attrs["info"] = storage.to_json(self.info, "info")
            file.attrs["sampling_rate"] = self.sampling_rate
            storage.write_responses(file, self.responses)
            storage.write_table(file, "samples", pd.DataFrame({"run": self.runs}))
            storage.write_table(file, "events", self.events)
            storage.write_table(file, "units", self.units)
            if self.stimuli is not None:
                storage.write_stimuli(file, self.stimuli)

    @classmethod
    def load(cls, path: str | Path, lazy: bool = False) -> TimeSeries:
        """Read what :meth:`save` wrote; `lazy` leaves responses and images in the file, which must stay as it is.

        Raises
        ------
        FileNotFoundError
        ValueError
            The file was cut off, or is not a saved TimeSeries.
        """
        with storage.saved(path, "TimeSeries", lazy) as file:
            return cls(
                file["responses"] if lazy else file["responses"][()],
                float(file.attrs["sampling_rate"]),
                storage.read_table(file["events"]),
                storage.read_table(file["samples"])["run"],
                storage.read_table(file["units"]),
                storage.read_stimuli(file["stimuli"], lazy) if "stimuli" in file else None,
                str(file.attrs["name"]),
                json.loads(file.attrs["info"]),
            )

    def to_xarray(self) -> xarray.DataArray:
        """A DataArray with dims sample and unit; run and seconds within the run are coordinates of the samples.

        Events and stimuli are not part of it.
        """
        from .labelled import to_xarray

        samples = pd.DataFrame({"run": self.runs, "seconds": self.times})
        attributes = self.info | {"sampling_rate": self.sampling_rate}
        return to_xarray(self.read(), {"sample": samples, "unit": self.units}, None, self.name, attributes)
