"""Signal and noise in repeated responses: what can be explained of them, and how much of that a prediction explains.

Everything rests on two numbers per unit: the power of the signal (the variance over stimuli of the response that all
repeats have in common) and the power of the noise (the variance that one repeat adds). They come from pairs of
repeats: over the stimuli that have both, the covariance of the two is signal, and half the variance of their
difference is noise. A stimulus counts the same whatever the number of its repeats. Where every stimulus has every
repeat, this is exactly the estimator of Sahani & Linden (2003), Adv Neural Inf Process Syst 15:125.

Responses are arrays (repeat, stimulus, unit) in which NaN stands for repeats that were not recorded, or a
`Recording`, which `repeats_of` turns into one. The mean of a repeat over stimuli is neither signal nor noise.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..datasets.recording import Recording

_BLOCK = 2**22  # responses held in float64 at a time
_FLOOR = 1e-10  # a spread below this share of the mean is rounding


class SignalPower(NamedTuple):
    """Variances over stimuli of one presentation, in the squared unit of the responses; arrays of shape (unit,)."""

    signal: np.ndarray
    noise: np.ndarray


class InterSubjectCeiling(NamedTuple):
    """Correlations of shape (unit,) between which that of the best model lies."""

    lower: np.ndarray
    upper: np.ndarray


def repeats_of(brain: Recording) -> np.ndarray:
    """The responses of a recording with an axis of repeats.

    Parameters
    ----------
    brain : Recording
        Responses (presentation, unit).

    Returns
    -------
    ndarray of shape (repeat, stimulus, unit)
        Of the recording's dtype. Repeats of a stimulus are numbered anew for each subject, in the order of
        presentations; NaN where there are fewer. Stimuli are in the order of `Recording.average_repeats`, and those
        without a finite response are left out as they are there.

    Raises
    ------
    ValueError
        The responses have a time axis.
    """
    if brain.is_time_resolved:
        raise ValueError(
            "responses is a Recording with a time axis; expected (presentation, unit). Use average_time() first, or "
            "hand over an array (repeat, stimulus, unit)."
        )
    values = brain.read()
    table = brain.presentations
    shown = table["stimulus"]
    order = list(shown.unique())
    if brain.stimuli is not None:
        presented = set(order)
        order = [one for one in brain.stimuli if one in presented]
    stimulus = shown.map({one: k for k, one in enumerate(order)}).to_numpy()
    cell = ["stimulus", "subject"] if "subject" in table else ["stimulus"]
    repeat = table.groupby(cell, dropna=False).cumcount().to_numpy()
    repeats = np.full((repeat.max() + 1, len(order), brain.n_units), np.nan, dtype=values.dtype)
    if "subject" not in table:
        repeats[repeat, stimulus] = values
    else:  # two subjects share a place: each fills its own units, which are NaN in the rows of the other
        subject = table["subject"].astype(str).to_numpy()
        for name in dict.fromkeys(subject):
            rows = np.flatnonzero(subject == name)
            places = repeats[repeat[rows], stimulus[rows]]
            repeats[repeat[rows], stimulus[rows]] = np.where(np.isfinite(values[rows]), values[rows], places)
    return repeats[:, np.isfinite(repeats).any((0, 2))]


def signal_power(responses: ArrayLike | Recording) -> SignalPower:
    """Power of signal and noise of one presentation (Sahani & Linden 2003).

    Parameters
    ----------
    responses : array_like, shape (repeat, stimulus, unit), or Recording
        NaN where a stimulus has fewer repeats. Stimuli with a single one are left out.

    Returns
    -------
    SignalPower
        `signal` is unbiased and therefore below zero for some units without signal; `noise` is not below zero. Their
        sum is the total power, and ``sqrt(signal / noise)`` the ncsnr of `ncsnr_ceiling`. NaN, with one warning that
        counts them, for units whose responses are constant or have no two stimuli with two repeats.

    Raises
    ------
    ValueError
        Another shape, or no unit has two stimuli with two repeats.
    """
    powers, _ = _powers(responses)
    _warn_unscored(powers.signal)
    return powers


def explainable_variance(responses: ArrayLike | Recording, corrected: bool = True) -> np.ndarray:
    """Share of the variance of one presentation that repeats have in common.

    Parameters
    ----------
    responses : array_like, shape (repeat, stimulus, unit), or Recording
        See `signal_power`. Where repeats are runs, it is customary to z-score each run first.
    corrected : bool
        Signal power over total power: the normalised signal power of Sahani & Linden, which is also
        ``ncsnr**2 / (ncsnr**2 + 1)``, the ceiling (R2) of one presentation. Without the correction, the noise that is
        left in the mean over n repeats counts as signal, which adds 1 / n of the noise (as in Hsu, Borst &
        Theunissen 2004, Network 15:91; Schoppe et al. 2016).

    Returns
    -------
    ndarray of float64, shape (unit,)
        At most 1. The corrected share is unbiased to first order, so that units without signal scatter around 0, to
        both sides. NaN as in `signal_power`.

    Raises
    ------
    ValueError
        See `signal_power`.
    """
    (signal, noise), share = _powers(responses)
    explainable = (signal if corrected else signal + share * noise) / (signal + noise)
    _warn_unscored(explainable)
    return explainable


def signal_power_explained(predicted: ArrayLike, responses: ArrayLike | Recording) -> np.ndarray:
    """Share of the signal power that a prediction explains, SPE (Sahani & Linden 2003).

    The variance of the mean over repeats minus that of what the prediction leaves of it, over the signal power. A
    scale that is off counts against the prediction, an offset does not. There is no lower bound.

    Parameters
    ----------
    predicted : array_like, shape (stimulus, unit)
        Predictions of a model that saw none of these responses.
    responses : array_like, shape (repeat, stimulus, unit), or Recording
        See `signal_power`; stimuli of a Recording in the order of `Recording.average_repeats`.

    Returns
    -------
    ndarray of float64, shape (unit,)
        1 in expectation for the signal itself. NaN, with one warning that counts them, where the signal power is not
        above zero, or a prediction is missing.

    Raises
    ------
    ValueError
        Shapes that do not fit together, or see `signal_power`.
    """
    repeats = _as_repeats(responses)
    (signal, _), _ = _powers(repeats)
    _, of_prediction, covariance = _moments(predicted, repeats)
    spe = _over_positive(2 * covariance - of_prediction, signal)
    _warn_unscored(spe, "the signal power is not above zero, or responses or predictions are missing")
    return spe


def cc_max(responses: ArrayLike | Recording) -> np.ndarray:
    """Highest correlation that a model can reach with the mean over repeats, CCmax.

    ``sqrt(signal / (signal + noise / n))``, where 1 / n is averaged over stimuli that have different numbers of
    repeats (Hsu, Borst & Theunissen 2004; Schoppe et al. 2016, Front Comput Neurosci 10:10). It is `ncsnr_ceiling`
    (metric "r") of the ncsnr found in the repeats.

    Parameters
    ----------
    responses : array_like, shape (repeat, stimulus, unit), or Recording
        See `signal_power`.

    Returns
    -------
    ndarray of float64, shape (unit,)
        Between 0 and 1; 0 where the signal power is not above zero: no ceiling could be found. NaN as in
        `signal_power`.

    Raises
    ------
    ValueError
        See `signal_power`.
    """
    ceiling = _cc_max(*_powers(responses))
    _warn_unscored(ceiling)
    return ceiling


def cc_norm(predicted: ArrayLike, responses: ArrayLike | Recording) -> np.ndarray:
    """Correlation of a prediction with the mean over repeats, over CCmax (Schoppe et al. 2016).

    Parameters
    ----------
    predicted : array_like, shape (stimulus, unit)
        Predictions of a model that saw none of these responses.
    responses : array_like, shape (repeat, stimulus, unit), or Recording
        See `signal_power`; stimuli of a Recording in the order of `Recording.average_repeats`.

    Returns
    -------
    ndarray of float64, shape (unit,)
        Close to the correlation of the prediction with the signal in the mean over units, but too high where the
        signal is weak (CCmax is then the root of a small and noisy number), and by chance far above 1. A constant
        prediction has 0. NaN, with one warning that counts them, where CCmax is not above zero or a prediction is
        missing.

    Raises
    ------
    ValueError
        Shapes that do not fit together, or see `signal_power`.
    """
    repeats = _as_repeats(responses)
    powers, share = _powers(repeats)
    of_mean, of_prediction, covariance = _moments(predicted, repeats)
    with np.errstate(invalid="ignore", divide="ignore"):
        cc_abs = np.where(of_prediction == 0, 0, covariance / np.sqrt(of_mean * of_prediction))
    normalised = _over_positive(cc_abs, _cc_max(powers, share))
    _warn_unscored(normalised, "CCmax is not above zero, or responses or predictions are missing")
    return normalised


def inter_subject_ceiling(responses: ArrayLike) -> InterSubjectCeiling:
    """How well subjects predict each other, unit by unit.

    Each subject's unit is z-scored over stimuli. The lower bound correlates it with the mean of the other subjects,
    the upper bound with the mean of all, its own noise among them (Nili et al. 2014, PLoS Comput Biol 10:e1003553).
    Correlations are averaged over subjects as they are, without Fisher's z: a ceiling has to be averaged as the
    scores that stand beside it, and only for the plain mean is the upper bound one (the mean of z-scored responses
    is the prediction with the highest mean correlation).

    Parameters
    ----------
    responses : array_like, shape (subject, stimulus, unit)
        Units that subjects share, e.g. regions or parcels. NaN where a subject has no response. With missing
        responses, each correlation is over the stimuli of the subject, and the upper bound is approximate.

    Returns
    -------
    InterSubjectCeiling
        Mean correlations between -1 and 1. NaN, with one warning that counts them, for units in which fewer than two
        subjects have responses that vary.

    Raises
    ------
    ValueError
        Another shape, or fewer than two subjects.
    """
    subjects = np.asarray(responses)
    if subjects.ndim != 3 or len(subjects) < 2:
        raise ValueError(
            f"responses has shape {subjects.shape}; expected (subject, stimulus, unit) with at least two subjects."
        )
    lower, upper = np.full((2, subjects.shape[2]), np.nan)
    for block, values in _unit_blocks(subjects):
        valid = np.isfinite(values)
        filled = np.where(valid, values, 0)
        z = _standardised(filled, valid) * np.sqrt(valid.sum(1, keepdims=True))
        valid &= (z != 0).any(1, keepdims=True)  # a constant subject tells nothing of the others
        n_others = valid.sum(0) - valid
        with np.errstate(invalid="ignore", divide="ignore"):
            others = (z.sum(0) - z) / n_others
            everyone = np.broadcast_to(z.sum(0) / valid.sum(0), z.shape)
        shared = valid & (n_others > 0)
        for bound, prediction in ((lower, others), (upper, everyone)):
            r = np.sum(_standardised(z, shared) * _standardised(np.where(shared, prediction, 0), shared), axis=1)
            counted = shared.sum(1) > 1
            with np.errstate(invalid="ignore", divide="ignore"):
                bound[block] = np.where(counted, r, 0).sum(0) / counted.sum(0)
    _warn_unscored(lower, "fewer than two subjects have responses that vary")
    return InterSubjectCeiling(lower, upper)


def _as_repeats(responses: ArrayLike | Recording) -> np.ndarray:
    repeats = repeats_of(responses) if isinstance(responses, Recording) else np.asarray(responses)
    if repeats.ndim != 3:
        raise ValueError(f"responses has shape {repeats.shape}; expected (repeat, stimulus, unit), or a Recording.")
    return repeats


def _unit_blocks(values: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of units in float64, as many as memory should hold."""
    size = max(1, _BLOCK // max(1, values.shape[0] * values.shape[1]))
    for start in range(0, values.shape[2], size):
        block = slice(start, start + size)
        yield block, values[:, :, block].astype(np.float64)


def _powers(responses: ArrayLike | Recording) -> tuple[SignalPower, np.ndarray]:
    """Signal and noise, and the share (unit,) of the noise that is left in the mean over repeats.

    With weights w over the stimuli that have both repeats of a pair, a covariance is the sum of w x y minus the
    product of the sums of w x and w y over the sum of w; divided by the sum of w minus that of w**2 over that of w it
    is unbiased. Numerators and denominators are summed over pairs, and all their sums are entries of (repeat, repeat)
    matrices, one product each.
    """
    repeats = _as_repeats(responses)
    n_units = repeats.shape[2]
    signal, noise, share = np.full((3, n_units), np.nan)
    repeated = np.zeros(n_units, bool)
    other = ~np.eye(len(repeats), dtype=bool)
    for block, values in _unit_blocks(repeats):
        y = np.ascontiguousarray(values.transpose(2, 0, 1))  # (unit, repeat, stimulus)
        valid = np.isfinite(y)
        count = valid.sum(1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            centre = np.where(valid, y, 0).sum((1, 2)) / valid.sum((1, 2))
            share[block] = np.where(count > 0, 1 / count, 0).sum((1, 2)) / (count > 0).sum((1, 2))
        y = np.where(valid, y - centre[:, None, None], 0)  # products of small numbers keep their digits
        present = valid.astype(np.float64)
        present_t = present.transpose(0, 2, 1)
        weight = np.where(count > 1, 1 / np.maximum(count * (count - 1), 1), 0)  # of all pairs of a stimulus: 1
        pairs = other & (present @ present_t > 1)  # one shared stimulus does not vary
        total = (weight * present) @ present_t
        with np.errstate(invalid="ignore", divide="ignore"):
            sums = (weight * y) @ present_t
            of_pair = (weight * y) @ y.transpose(0, 2, 1) - sums * sums.transpose(0, 2, 1) / total
            of_one = (weight * y * y) @ present_t - sums**2 / total
            freedom = total - (weight**2 * present) @ present_t / total
        repeated[block] = pairs.any((1, 2))
        covariance, variance, freedom = (np.where(pairs, x, 0).sum((1, 2)) for x in (of_pair, of_one, freedom))
        with np.errstate(invalid="ignore", divide="ignore"):
            power, in_all = covariance / freedom, variance / freedom
        varies = repeated[block] & (in_all > (_FLOOR * np.abs(centre)) ** 2)
        signal[block] = np.where(varies, power, np.nan)
        noise[block] = np.where(varies, np.maximum(in_all - power, 0), np.nan)
    if not repeated.any():
        raise ValueError(
            f"responses of shape {repeats.shape} has no unit with two stimuli of two repeats each, so that noise "
            "cannot be told from signal. Responses that were averaged cannot be used: hand over all repeats."
        )
    return SignalPower(signal, noise), share


def _cc_max(powers: SignalPower, share: np.ndarray) -> np.ndarray:
    signal = np.maximum(powers.signal, 0)
    return np.sqrt(signal / (signal + share * powers.noise))


def _moments(predicted: ArrayLike, repeats: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variance (unit,) of the mean over repeats, of the prediction, and their covariance, over stimuli with repeats."""
    prediction = np.asarray(predicted)
    if prediction.shape != repeats.shape[1:]:
        raise ValueError(
            f"predicted has shape {prediction.shape}; expected (stimulus, unit) {repeats.shape[1:]}, as in responses."
        )
    moments = np.full((3, repeats.shape[2]), np.nan)
    for block, values in _unit_blocks(repeats):
        finite = np.isfinite(values)
        count = finite.sum(0)
        seen = count > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(seen, np.where(finite, values, 0).sum(0) / count, 0)
            p = np.where(seen, prediction[:, block].astype(np.float64), 0)
            n = seen.sum(0)
            y, scale = np.where(seen, mean - mean.sum(0) / n, 0), np.abs(p).max(0)
            p = np.where(seen, p - p.sum(0) / n, 0)
            p = np.where(np.abs(p).max(0) > _FLOOR * scale, p, 0 * p)  # constant but for rounding; NaN stays
            moments[:, block] = np.stack([(y * y).sum(0), (p * p).sum(0), (y * p).sum(0)]) / (n - 1)
    return moments[0], moments[1], moments[2]


def _standardised(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Centred and of norm 1 over axis 1 where `valid`; 0 elsewhere, and 0 throughout where constant."""
    n = np.maximum(valid.sum(1, keepdims=True), 1)
    values = np.where(valid, values, 0)
    largest = np.abs(values).max(1, keepdims=True)
    values = np.where(valid, values - values.sum(1, keepdims=True) / n, 0)
    norm = np.sqrt((values * values).sum(1, keepdims=True))
    return np.divide(values, norm, out=np.zeros_like(values), where=norm > _FLOOR * largest * np.sqrt(n))


def _over_positive(score: np.ndarray, ceiling: np.ndarray) -> np.ndarray:
    """The ratio, NaN where the ceiling is not above zero."""
    return np.divide(score, ceiling, out=np.full_like(score, np.nan), where=ceiling > 0)


def _warn_unscored(values: np.ndarray, why: str = "responses are constant, or not repeated") -> None:
    unscored = int(np.isnan(values).sum())
    if unscored:
        warnings.warn(f"{unscored} of {len(values)} units are NaN: {why}.", stacklevel=3)
