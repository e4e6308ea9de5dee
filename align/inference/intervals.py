"""Intervals from bootstrap samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

Seed = int | np.random.Generator | None


def percentile_interval(samples: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Central interval that holds `level` of the samples, per column.

    Parameters
    ----------
    samples : array of shape (n, column)
        NaN samples are left out, with one warning that counts them; a column of NaN alone stays NaN.
    level : float between 0 and 1

    Returns
    -------
    low, high : ndarray of shape (column,)
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level!r}; expected a share between 0 and 1, e.g. 0.95.")
    samples = np.asarray(samples, np.float64)
    missing = np.isnan(samples)
    scored = ~missing.all(0)
    left_out = int(missing[:, scored].sum())
    if left_out:
        warnings.warn(
            f"{left_out} of {missing[:, scored].size} resamples have no value; the interval leaves them out.",
            stacklevel=2,
        )
    bounds = np.full((2, samples.shape[1]), np.nan)
    if len(samples) and scored.any():
        bounds[:, scored] = np.nanquantile(samples[:, scored], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return bounds[0], bounds[1]


# Scales on which a score has no bound to run into: Fisher's z, and the logarithm of the unexplained share.
SCALES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "r": (lambda r: np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)), np.tanh),
    "r2": (lambda r2: -np.log1p(-np.minimum(r2, 1 - 1e-12)), lambda z: -np.expm1(-z)),
}


def basic_interval(observed: float, samples: np.ndarray, metric: str, level: float = 0.95) -> tuple[float, float]:
    """Basic bootstrap interval: the percentile interval mirrored at the observed value, on the scale of the metric.

    A resample repeats stimuli, which lowers a score that is centred within its sample; mirrored, that bias is taken
    out twice, once for the resampling and once for the sample itself (Davison & Hinkley 1997, section 5.2).

    Parameters
    ----------
    observed : float
    samples : array of shape (n,)
        NaN samples are left out.
    metric : {"r", "r2"}
        Its scale is Fisher's z, or the logarithm of the unexplained share: no bound lies above 1.
    level : float between 0 and 1

    Returns
    -------
    low, high : float
    """
    forth, back = SCALES[metric]
    low, high = percentile_interval(forth(np.asarray(samples, np.float64))[:, None], level)
    centre = forth(np.asarray(observed, np.float64))
    return float(back(2 * centre - high[0])), float(back(2 * centre - low[0]))
