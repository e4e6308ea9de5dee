"""Responses and their axes: tables of presentations, units and events with their defaults, and times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from .errors import unknown
from .stimuli import StimulusSet

# What a unit without a region, or without a subject, is counted under.
UNASSIGNED = "unassigned"


def as_array(values: Any) -> Any:
    """Numbers as an array, as they are where they have a shape and a dtype (memory maps, HDF5 datasets).

    Tensors, tables and lists become numpy arrays, and masked values NaN.
    """
    if hasattr(values, "detach"):  # a torch tensor, perhaps on a GPU, perhaps bfloat16
        values = values.detach().cpu()
        return values.float().numpy() if "bfloat16" in str(values.dtype) else values.numpy()
    if isinstance(values, np.ma.MaskedArray) and values.dtype.kind in "biuf":
        return np.ma.filled(values.astype(np.result_type(values.dtype, np.float32)), np.nan)
    if isinstance(values, pd.DataFrame | pd.Series | pd.Index) or not hasattr(values, "shape"):
        try:
            return np.asarray(values)
        except ValueError as error:
            raise ValueError(f"a {type(values).__name__} of rows that differ in length is no array: {error}") from error
    return values


def as_responses(responses: Any, axes: str) -> Any:
    """Responses as an array of real numbers; `axes` says for the message which axes it needs."""
    responses = as_array(responses)
    shape = tuple(responses.shape)
    if len(shape) < 2:
        mend = " For one unit pass responses[:, None]." if shape else ""
        raise ValueError(f"responses has shape {shape}; expected {axes}.{mend}")
    if np.dtype(responses.dtype).kind not in "biuf":
        raise ValueError(f"responses are {responses.dtype}; expected real numbers.")
    if 0 in shape:
        raise ValueError(f"responses has shape {shape}: nothing is in it.")
    return responses


def presentation_table(table: pd.DataFrame, stimuli: StimulusSet | None) -> pd.DataFrame:
    """Presentations with index 0, 1, ..., repeats filled in and stimuli checked."""
    if "stimulus" not in table.columns:
        raise ValueError(f"presentations needs a column 'stimulus'; found {list(table.columns)}.")
    if table["stimulus"].isna().any():
        raise ValueError(f"{int(table['stimulus'].isna().sum())} presentations have no stimulus id.")
    table = table.reset_index(drop=True)
    table["stimulus"] = table["stimulus"].astype(str).astype(object)
    if "repeat" not in table.columns:
        repeat = table.groupby(presentation_cell(table), dropna=False).cumcount().to_numpy()
        table.insert(table.columns.tolist().index("stimulus") + 1, "repeat", repeat)
    check_known(table["stimulus"], stimuli, "presentations")
    return table


def presentation_cell(table: pd.DataFrame) -> list[str]:
    """Columns within which presentations repeat each other: the stimulus and, where it is told, the subject."""
    return [column for column in ("stimulus", "subject") if column in table.columns]


def unit_table(table: pd.DataFrame, subject: str = "1") -> pd.DataFrame:
    """Units with index 0, 1, ... and label, subject and region filled in."""
    table = table.reset_index(drop=True)
    defaults: dict[str, Any] = {"unit": np.arange(len(table)), "subject": subject, "region": "all"}
    for position, (column, default) in enumerate(defaults.items()):
        if column not in table.columns:
            table.insert(min(position, table.shape[1]), column, default)
    for column in ("subject", "region"):
        missing = table[column].isna()
        if missing.any():
            table[column] = table[column].astype(object).where(~missing, UNASSIGNED)
    table["subject"] = table["subject"].astype(str).astype(object)
    return table


def event_table(table: pd.DataFrame | None, stimuli: StimulusSet | None, runs: np.ndarray) -> pd.DataFrame:
    """Events with index 0, 1, ... and columns onset, duration, stimulus and run."""
    if table is None:
        return pd.DataFrame({"onset": [], "duration": [], "stimulus": [], "run": []}).astype(
            {"onset": float, "duration": float, "stimulus": object, "run": object}
        )
    absent = [column for column in ("onset", "stimulus") if column not in table.columns]
    if absent:
        raise ValueError(f"events needs columns onset (seconds) and stimulus; found {list(table.columns)}.")
    table = table.reset_index(drop=True)
    table["stimulus"] = table["stimulus"].astype(str).astype(object)
    if "duration" not in table.columns:
        table.insert(1, "duration", np.nan)
    known = pd.unique(runs)
    if "run" not in table.columns:
        if len(known) > 1:
            raise ValueError(f"events has no column run, but there are {len(known)} runs; say which is meant.")
        table["run"] = known[0]
    table["run"] = table["run"].astype(str).astype(object)
    strangers = table.loc[~table["run"].isin(known), "run"]
    if len(strangers):
        raise ValueError(f"{len(strangers)} events: " + unknown("run", strangers.iloc[0], known))
    check_known(table["stimulus"], stimuli, "events")
    return table


def check_known(shown: pd.Series, stimuli: StimulusSet | None, what: str) -> None:
    """Refuse rows whose stimulus is not in the set: their number and the first of them."""
    if stimuli is None:
        return
    strangers = shown[~shown.isin(stimuli.ids)]
    if len(strangers):
        raise ValueError(
            f"{len(strangers)} of {len(shown)} {what} show stimuli that are not in the set, the first: "
            + unknown("stimulus", strangers.iloc[0], stimuli.ids)
        )


def time_points(times: Any, n: int) -> np.ndarray:
    """Times in seconds, one per time point and ascending."""
    times = np.asarray(times, dtype=float)
    if times.shape != (n,):
        raise ValueError(f"times has shape {times.shape}; responses has {n} time points.")
    if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise ValueError("times must be finite and ascending, in seconds.")
    return times


def time_window(times: np.ndarray, start: float | None, stop: float | None) -> slice:
    """Time points from start to stop, both included."""
    low = -np.inf if start is None else start
    high = np.inf if stop is None else stop
    within = np.flatnonzero((times >= low) & (times <= high))
    if not len(within):
        raise ValueError(
            f"time=({start}, {stop}) holds no time point; they run from {times[0]:g} to {times[-1]:g} seconds."
        )
    return slice(int(within[0]), int(within[-1]) + 1)
