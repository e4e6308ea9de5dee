"""RDMs over time: one per window of a time-resolved recording."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd

from ..datasets.rdms import RDMs
from .geometry.distances import BLOCK, batched
from .geometry.patterns import (
    CROSS_VALIDATED,
    PLAIN,
    PatternRDM,
    dissimilarities,
    fold_dissimilarities,
    marginal_precision,
    warn_unscored,
)
from .noise import inverse_of_covariance, noise_covariance, repeat_residuals
from .rdm import (
    check_arguments,
    check_recording_noise,
    group_means,
    group_noise,
    presentation_folds,
    stimulus_order,
    unit_groups,
    unit_responses,
)


def rdm_over_time(
    recording: Any,
    method: str = "correlation",
    window: float = 0.0,
    step: float | None = None,
    by: str = "region",
    *,
    noise: Any = None,
    folds: Any = None,
    device: Any = "auto",
) -> RDMs:
    """One RDM per subject, region and time window.

    Parameters
    ----------
    recording : Recording
        With a time axis.
    method : str
        See `align.rdm`.
    window : float
        Length of the windows, in seconds; responses are averaged within a window. 0: single time points.
    step : float, optional
        From the start of a window to that of the next, in seconds. Default: `window`, so that every time point is in
        one window; or every time point.
    by : str
        Column of ``recording.units`` that tells regions apart.
    noise, folds
        See `align.rdm`, for every window the same. A method of `align.noise.noise_covariance` estimates one
        precision per subject and region, from the mean of the covariances of the windows (Guggenmos et al. 2018), so
        that dissimilarities can be compared over time.
    device : str or torch.device
        See `align.rdm`.

    Returns
    -------
    RDMs
        The table has columns subject, `by`, n_units, time (the middle of the window, in seconds), start and stop (its
        first and last time point): every RDM is that of ``recording.average_time(start, stop)``.

    Raises
    ------
    ValueError
        For a recording without a time axis, windows that are longer than the recording, and as `align.rdm`.

    References
    ----------
    Guggenmos, Sterzer & Cichy (2018), NeuroImage 173:434.
    """
    check_arguments(method, noise, folds, "pairwise")
    if recording.times is None:
        raise ValueError("recording has no time axis; align.rdm gives the RDMs of responses without one.")
    windows = time_windows(recording.times, window, step)
    groups = unit_groups(recording, by)
    check_recording_noise(noise, groups)
    if method in CROSS_VALIDATED:
        ids, patterns = stimulus_order(recording), recording
    else:
        patterns = recording.average_repeats()
        ids = patterns.presentations["stimulus"].astype(str).tolist()
    folds = presentation_folds(recording, folds) if method in CROSS_VALIDATED else None
    rows: list[dict[str, Any]] = []
    found: list[PatternRDM] = []
    n_silent = 0
    for subject, value, units in groups:
        name = f"subject {subject!r}, {by} {value!r}"
        responses = unit_responses(patterns, units)
        known = np.isfinite(responses).any((0, 2))
        n_silent += int((~known).sum())
        responses = responses[:, known]
        precision = noise if isinstance(noise, str) else marginal_precision(group_noise(noise, units), known)
        if isinstance(noise, str):
            everything = responses if patterns is recording else unit_responses(recording, units[known])
            precision = _precision(everything, recording.presentations["stimulus"].to_numpy(), windows, noise)
        for first, last in windows:
            start, stop = float(recording.times[first]), float(recording.times[last])
            row = {"subject": subject, by: value, "n_units": int(known.sum())}
            rows.append(row | {"time": (start + stop) / 2, "start": start, "stop": stop})
        if method in CROSS_VALIDATED:
            for one in windows:
                means = group_means(_mean(responses, one), recording, ids, folds)
                found.append(fold_dissimilarities(means, method, name, noise=precision))
        else:
            found += _without_folds(responses, windows, method, name, precision, device)
    if n_silent:
        warnings.warn(
            f"{n_silent} of {len(recording.units)} units lack responses; the RDMs are without them.", stacklevel=2
        )
    warn_unscored(found, method)
    vectors = np.stack([one.vector for one in found])
    return RDMs(vectors, ids, pd.DataFrame(rows), method, getattr(recording, "stimuli", None))


def time_windows(times: np.ndarray, window: float = 0.0, step: float | None = None) -> list[tuple[int, int]]:
    """First and last time point of every window that lies within `times` (seconds, ascending).

    A window holds the time points from its start up to, and not including, its start plus `window`.

    Raises
    ------
    ValueError
        For a negative window, a step that is not above zero, or a window longer than the recording.
    """
    if not window >= 0:
        raise ValueError(f"window={window!r}; expected seconds, or 0 for single time points.")
    if step is not None and not step > 0:
        raise ValueError(f"step={step!r}; expected seconds above zero.")
    interval = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    if window == 0 and step is None:
        return [(k, k) for k in range(len(times))]
    rounding = 1e-6 * interval
    length = window + interval if window == 0 else window
    ahead = step if step is not None else length
    # A time point stands for the interval up to the next one.
    n_windows = int(np.floor((times[-1] + interval - times[0] - length + rounding) / ahead)) + 1
    found = []
    for k in range(n_windows):
        start = times[0] + k * ahead - rounding
        within = np.flatnonzero((times >= start) & (times < start + length))
        if len(within):
            found.append((int(within[0]), int(within[-1])))
    if not found:
        raise ValueError(
            f"window={window!r} s does not fit; times run from {times[0]:g} to {times[-1]:g} s. Take a shorter one."
        )
    return list(dict.fromkeys(found))


def _mean(responses: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """Mean over a window of (row, unit, time), ignoring NaN."""
    part = responses[:, :, window[0] : window[1] + 1]
    if part.shape[2] == 1:
        return part[:, :, 0]
    known = np.isfinite(part)
    if known.all():
        return part.mean(2, dtype=np.float64).astype(responses.dtype)
    with np.errstate(invalid="ignore"):
        return (np.where(known, part, 0).sum(2, dtype=np.float64) / known.sum(2)).astype(responses.dtype)


def _without_folds(
    responses: np.ndarray, windows: list[tuple[int, int]], method: str, name: str, precision: Any, device: Any
) -> list[PatternRDM]:
    """RDMs of the windows of (stimulus, unit, time): in batches, and by itself each that is not whole."""
    n_stimuli, n_units = responses.shape[:2]
    found: list[PatternRDM] = []
    at_a_time = max(1, BLOCK // max(1, n_stimuli * max(n_stimuli, n_units)))
    for start in range(0, len(windows), at_a_time):
        some = [_mean(responses, one) for one in windows[start : start + at_a_time]]
        vectors = None
        if method in PLAIN and n_units > 1 and n_stimuli > 2:
            vectors = batched(np.stack(some), method)
        for k, X in enumerate(some):
            if vectors is not None and np.isfinite(vectors[k]).all():
                found.append(PatternRDM(vectors[k], 0, n_stimuli))
            else:
                found.append(dissimilarities(X, method, name, noise=precision, device=device))
    return found


def _precision(responses: np.ndarray, labels: np.ndarray, windows: list[tuple[int, int]], method: str) -> np.ndarray:
    """Precision from the mean over windows of the covariances of what repeats leave."""
    finite = np.isfinite(responses)
    whole = finite.all((1, 2))
    partly = int((finite.any((1, 2)) & ~whole).sum())
    if partly:
        warnings.warn(
            f"{partly} of {len(whole)} presentations are not finite in some units or at some times; the noise is "
            "estimated without them.",
            stacklevel=3,
        )
    rows, names = responses[whole], labels[whole]
    total = np.zeros((responses.shape[1],) * 2)
    for one in windows:
        residuals, dof = repeat_residuals(_mean(rows, one), names)
        total += noise_covariance(residuals, method, dof)
    return inverse_of_covariance(total / len(windows), method, dof * len(windows))
