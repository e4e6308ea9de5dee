"""Noise ceilings: the score that a perfect model would reach on responses as noisy as these."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..datasets.errors import unknown

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from ..datasets.recording import Recording

METRICS = ("r", "r2")


def split_half_ceiling(
    brain: Recording, seed: int | np.random.Generator = 0, metric: str = "r2", n_splits: int = 10
) -> np.ndarray:
    """Ceiling per unit from the agreement of two halves of the repeats, corrected to all repeats.

    The repeats of every stimulus are split at random into two halves, each is averaged, and the two are correlated
    over stimuli. The correlation, averaged over splits, is brought from half to all repeats by `full_reliability`.

    Parameters
    ----------
    brain : Recording
        Responses (presentation, unit) with repeats; stimuli shown once are left out.
    seed : int or numpy.random.Generator
        Of the splits.
    metric : {"r2", "r"}
        Unit of the ceiling: the share of variance that can be explained, or its root, the highest correlation with
        the mean over repeats.
    n_splits : int
        Random splits that are averaged.

    Returns
    -------
    ndarray of float64, shape (unit,)
        The ceiling of the mean over all repeats of all stimuli, those shown once among them. Between 0 and 1; 0 where
        the halves do not agree, which means that no ceiling could be found; NaN for constant or missing responses,
        and for subjects who saw no stimulus twice.

    Raises
    ------
    ValueError
        If no stimulus has two repeats.
    """
    _check_metric(metric)
    rng = np.random.default_rng(seed)
    subject = brain.units["subject"].to_numpy()
    reliability = np.full(brain.n_units, np.nan)
    refused: ValueError | None = None
    for name in dict.fromkeys(subject):  # subjects may have seen different stimuli, or have lost different repeats
        members = subject == name
        recording = brain if members.all() else brain.select(subject=name)
        agreement = np.zeros(recording.n_units)
        try:
            for _ in range(n_splits):
                one, other = recording.split_halves(seed=rng)
                agreement += _column_correlation(one.read(), other.read())
        except ValueError as error:  # this subject saw nothing twice
            refused = error
            continue
        shares = [noise_share(part) for part in (one, other, recording.average_repeats())]
        reliability[members] = full_reliability(agreement / n_splits, *shares)
    if refused is not None and np.isnan(reliability).all():
        raise refused
    return _in_unit(reliability, metric)


def noise_share(averaged: Recording) -> float:
    """Noise variance left in the mean over repeats, in units of one presentation's: 1 / n, averaged over stimuli."""
    return float((1 / averaged.presentations["n_repeats"]).mean())


def full_reliability(r: ArrayLike, first: float, second: float, full: float) -> np.ndarray:
    """Reliability of the mean over all repeats from the correlation of the means over two parts of them.

    With noise variance x in units of the signal's, the parts correlate by
    ``r = 1 / sqrt((1 + first x) (1 + second x))``; solved for x, the reliability of all repeats is
    ``1 / (1 + full x)``. For equal halves that is the formula of Spearman (1910) and Brown (1910),
    ``2 r / (1 + r)``, which is too low where the halves are not equal, as with three repeats.

    Parameters
    ----------
    r : array_like
        Correlation of the two parts.
    first, second, full : float
        One over the number of repeats in the first part, the second part and all of them, averaged over stimuli.

    Returns
    -------
    ndarray of float64
        0 where r is not above zero, NaN where it is NaN.

    Examples
    --------
    >>> float(full_reliability(0.5, 1 / 2, 1 / 2, 1 / 4))  # two and two of four
    0.6666666666666666
    """
    r = np.asarray(r, float)
    positive = np.clip(r, 1e-12, 1)
    total, product = first + second, first * second
    noise = (np.sqrt(total**2 - 4 * product * (1 - positive**-2)) - total) / (2 * product)
    return np.where(np.isnan(r), np.nan, np.where(r > 0, 1 / (1 + full * noise), 0.0))


def ncsnr_ceiling(ncsnr: ArrayLike, n_repeats: ArrayLike, metric: str = "r2") -> np.ndarray:
    """Ceiling from the noise-ceiling signal-to-noise ratio of Allen et al. (2022), Nat Neurosci 25:116.

    ``ncsnr**2 / (ncsnr**2 + 1 / n)``, where ncsnr is the standard deviation of the signal over that of the noise of
    one presentation, and n the repeats that were averaged. With different numbers of repeats, ``1 / n`` is averaged
    over stimuli.

    Parameters
    ----------
    ncsnr : array_like, shape (unit,)
    n_repeats : int or array_like, shape (stimulus,)
        Repeats behind the mean of each stimulus.
    metric : {"r2", "r"}
        Share of variance, or its root.

    Returns
    -------
    ndarray of float64, shape (unit,)

    Examples
    --------
    >>> float(ncsnr_ceiling(1.0, 3))
    0.75
    """
    _check_metric(metric)
    n = np.asarray(n_repeats, float)
    if n.size == 0 or not np.all(n > 0):
        raise ValueError(f"n_repeats={n_repeats!r}: expected numbers above zero, one for all or one per stimulus")
    snr = np.asarray(ncsnr, float)
    if np.any(snr < 0):
        raise ValueError(
            f"ncsnr holds {int((snr < 0).sum())} negative values; a ratio of standard deviations is at least 0"
        )
    with np.errstate(divide="ignore"):
        return _in_unit(1 / (1 + np.mean(1 / n) / snr**2), metric)


def estimate_ncsnr(brain: Recording) -> np.ndarray:
    """Standard deviation of signal over noise, per unit, from the variance over repeats.

    Noise variance is the variance over repeats (one degree of freedom lost per stimulus), averaged over stimuli; it
    is taken from the variance over all presentations, and what is left, at least zero, is signal
    (Allen et al. 2022; Hebart et al. 2023, eLife 12:e82580).

    Parameters
    ----------
    brain : Recording
        Responses (presentation, unit) with repeats.

    Returns
    -------
    ndarray of float64, shape (unit,)
        NaN for constant or missing responses.
    """
    responses = brain.read().astype(np.float64)
    stimulus = np.unique(brain.presentations["stimulus"].to_numpy(), return_inverse=True)[1]
    n_stimuli = stimulus.max() + 1
    valid = np.isfinite(responses)
    filled = np.where(valid, responses, 0)
    counts, sums = np.zeros((2, n_stimuli, responses.shape[1]))
    np.add.at(counts, stimulus, valid)
    np.add.at(sums, stimulus, filled)
    means = sums / np.maximum(counts, 1)
    deviations = np.where(valid, responses - means[stimulus], 0)
    squares = np.zeros_like(sums)
    np.add.at(squares, stimulus, deviations**2)
    repeated = counts >= 2
    if not repeated.any():
        raise ValueError("brain has no stimulus with two repeats; noise cannot be told from signal")
    with np.errstate(invalid="ignore", divide="ignore"):
        noise = np.where(repeated, squares / (counts - 1), 0).sum(0) / repeated.sum(0)
        total = np.nanvar(np.where(valid, responses, np.nan), axis=0, ddof=1)
        return np.where(total > 0, np.sqrt(np.maximum(total - noise, 0) / noise), np.nan)


def _check_metric(metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(unknown("metric", metric, METRICS))


def _in_unit(reliability: np.ndarray, metric: str) -> np.ndarray:
    return np.sqrt(reliability) if metric == "r" else reliability


def _column_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson r of every column of `a` with that of `b`, over rows where both are finite; NaN if one is constant."""
    both = np.isfinite(a) & np.isfinite(b)
    n = both.sum(0)
    a, b = (np.where(both, x, 0).astype(np.float64) for x in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = ((x - x.sum(0) / n) * both for x in (a, b))
        return (a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0))
