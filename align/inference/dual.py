"""Variance over new stimuli and new subjects, from resamples of either and of both.

Weights of pairs are products of the weights of two stimuli. What the pairs of a stimulus share is resampled as it
should be, but what is private to a pair is counted three times by a bootstrap over stimuli and twice by a jackknife,
so that twice the jackknife less the bootstrap counts it once. Ratio of mean estimate to truth where one source makes
all the variance of a mean over pairs and subjects, for 40 stimuli and 6 subjects (`tests/align/test_dual.py`):

=======================  =======  ========  ===================  ====================
source of the variance   subject  stimulus  stimulus x subject   pair, pair x subject
=======================  =======  ========  ===================  ====================
dual bootstrap           0.9      1.0       1.4                  2.9, 3.0
corrected                1.1      1.0       1.4                  1.2, 1.5
=======================  =======  ========  ===================  ====================

The cuts of both formulas, at the variance over one of the two alone, keep the interactions above 1.

Student's t of such a sum of variances has the degrees of freedom of `satterthwaite`, not those of the smaller sample.
"""

from __future__ import annotations

import numpy as np

# Subjects, or stimuli, that degrees of freedom are estimated from.
_FEWEST = 5


def dual_variance(
    both: np.ndarray, subjects: np.ndarray, stimuli: np.ndarray, n_subjects: int, n_stimuli: int
) -> np.ndarray:
    """Variance over new subjects and new stimuli from three bootstraps.

    A bootstrap of both counts measurement noise, which differs between subjects and between stimuli, three times;
    each bootstrap of one of them counts it once.

    Parameters
    ----------
    both, subjects, stimuli : arrays of one shape
        Variances when subjects and stimuli are resampled together, and when one of them is.
    n_subjects, n_stimuli : int
        At least two of each.

    Returns
    -------
    ndarray of the same shape
        ``a * subjects + b * stimuli - a * b * (both - subjects - stimuli)`` with ``a = n_subjects / (n_subjects - 1)``
        and ``b`` the same of the stimuli; not below either of the first two terms, and then not above `both`.

    Raises
    ------
    ValueError
        For fewer than two subjects or stimuli.

    References
    ----------
    Schuett et al. (2023), eLife 12:e82566.
    """
    a, b = small_sample(n_subjects, "n_subjects"), small_sample(n_stimuli, "n_stimuli")
    both, subjects, stimuli = (np.asarray(variance, np.float64) for variance in (both, subjects, stimuli))
    variance = _uncut(both, subjects, stimuli, a, b)
    return np.minimum(np.maximum(np.maximum(variance, a * subjects), b * stimuli), both)


def stimulus_variance(stimuli: np.ndarray, jackknife: np.ndarray, n_stimuli: int) -> np.ndarray:
    """Variance over new stimuli, with what is private to a pair counted once; see the module.

    Parameters
    ----------
    stimuli, jackknife : arrays of one shape
        Variances of a bootstrap over stimuli, and of the jackknife, ``(n - 1) / n * sum((leave one out - mean)**2)``.
        Where the jackknife is NaN, the bootstrap stands alone.
    """
    bootstrap = small_sample(n_stimuli, "n_stimuli") * np.asarray(stimuli, np.float64)
    low = np.minimum(np.asarray(jackknife, np.float64) / 2, bootstrap)
    return np.where(np.isnan(jackknife), bootstrap, np.clip(2 * jackknife - bootstrap, low, bootstrap))


def corrected_variance(
    both: np.ndarray,
    subjects: np.ndarray,
    stimuli: np.ndarray,
    jackknife: np.ndarray,
    interaction: np.ndarray,
    n_subjects: int,
    n_stimuli: int,
) -> np.ndarray:
    """As `dual_variance`, with what is private to a pair counted once.

    The formula of the dual bootstrap is linear in what pairs share and in what is private to them, so it is applied
    to the bootstrap and to the jackknife over stimuli, and extrapolated as `stimulus_variance`.

    Parameters
    ----------
    interaction : array of the same shape
        What a jackknife over stimuli adds, in expectation, when subjects are resampled as well; see `jackknife_of`.
    """
    a, b = small_sample(n_subjects, "n_subjects"), small_sample(n_stimuli, "n_stimuli")
    of_jackknife = a * subjects + jackknife - a * interaction
    extrapolated = 2 * of_jackknife - _uncut(both, subjects, stimuli, a, b)
    low = np.maximum(a * subjects, stimulus_variance(stimuli, jackknife, n_stimuli))
    corrected = np.clip(extrapolated, low, np.maximum(both, low))
    plain = dual_variance(both, subjects, stimuli, n_subjects, n_stimuli)
    return np.where(np.isnan(extrapolated), plain, corrected)


def _uncut(both: np.ndarray, subjects: np.ndarray, stimuli: np.ndarray, a: float, b: float) -> np.ndarray:
    return a * subjects + b * stimuli - a * b * (both - subjects - stimuli)


def satterthwaite(
    total: np.ndarray, subjects: np.ndarray, stimuli: np.ndarray, n_subjects: int, n_stimuli: int
) -> np.ndarray:
    """Degrees of freedom of a variance over new subjects and new stimuli.

    Parameters
    ----------
    total : array
        The variance over both, ``subjects + stimuli - interaction``.
    subjects, stimuli : arrays of the same shape
        The variances over one of them, each with the interaction of the two in it, as mean squares have it.
    n_subjects, n_stimuli : int

    Returns
    -------
    ndarray of the same shape
        ``total**2 / (subjects**2 / n + stimuli**2 / m + interaction**2 / (n * m))``, with n and m one less than the
        numbers of subjects and stimuli. Not below the smaller of n and m, which is what either variance alone would
        leave, and not above their sum, beyond which only a negative interaction, or the subtraction of one, would
        lead. The smaller of n and m where there is no variance, and where there are fewer than five subjects or
        stimuli.

    Notes
    -----
    Three or four subjects tell too little of their own variance: where it is small by chance, the degrees of freedom
    of the stimuli would take its place, and a test at .1 % was found to reject .4 to .6 % of nulls.

    The approximate degrees of freedom of Satterthwaite (1946) for subjects crossed with stimuli, as in the quasi F of
    Clark (1973): the interaction is subtracted, but what its estimate is unsure of is added.

    References
    ----------
    Satterthwaite (1946), Biometrics Bulletin 2:110-114. Clark (1973), Journal of Verbal Learning and Verbal Behavior
    12:335-359.
    """
    n, m = n_subjects - 1, n_stimuli - 1
    total, subjects, stimuli = (np.asarray(one, np.float64) for one in (total, subjects, stimuli))
    if min(n_subjects, n_stimuli) < _FEWEST:
        return np.full(total.shape, float(min(n, m)))
    unsure = subjects**2 / n + stimuli**2 / m + (subjects + stimuli - total) ** 2 / (n * m)
    with np.errstate(invalid="ignore", divide="ignore"):
        dof = np.where(unsure > 0, total**2 / unsure, min(n, m))
    return np.clip(dof, min(n, m), n + m)


def small_sample(n: int, name: str) -> float:
    """``n / (n - 1)``: a bootstrap of n items varies by that much less than new items do."""
    if n < 2:
        raise ValueError(f"{name}={n}; a variance over them needs at least two.")
    return n / (n - 1)


def variance_of_differences(samples: np.ndarray) -> np.ndarray:
    """Variance of the difference of every two columns, shape (column, column).

    Parameters
    ----------
    samples : array of shape (n, column)
        A NaN leaves a sample out of the differences it enters. Fewer than two samples: NaN.
    """
    known = ~np.isnan(samples)
    centre = np.divide(
        np.where(known, samples, 0).sum(0), known.sum(0), out=np.zeros(known.shape[1]), where=known.any(0)
    )
    a, m = np.where(known, samples - centre, 0.0), known.astype(np.float64)
    square = (a**2).T @ m
    n, total = m.T @ m, a.T @ m
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = square + square.T - 2 * (a.T @ a) - (total - total.T) ** 2 / n
        variance = np.where(n > 1, np.maximum(spread, 0) / (n - 1), np.nan)
    same = np.arange(len(variance))
    variance[same, same] = np.where(n[same, same] > 1, 0.0, np.nan)
    return variance


def jackknife_of(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Jackknife variance of the difference of every two columns, and its interaction with subjects.

    Parameters
    ----------
    values : array of shape (stimulus, column, subject)
        With each stimulus left out in turn. A column with a NaN has a NaN variance.

    Returns
    -------
    variance, interaction : ndarray of shape (column, column)
        Of the mean over subjects. `interaction` is the expected increase of the variance when subjects are drawn with
        replacement: the mean square of what is a subject's own, over the number of subjects.
    """
    n, _, n_subjects = values.shape
    deviation = values - values.mean(0)
    mean = deviation.mean(2)
    own = np.einsum("ias,ibs->ab", deviation, deviation) / n_subjects**2
    scale = (n - 1) / n
    variance = scale * _of_differences(mean.T @ mean)
    return variance, scale * _of_differences(own) - variance / n_subjects


def _of_differences(gram: np.ndarray) -> np.ndarray:
    diagonal = np.diag(gram)
    return np.maximum(diagonal[:, None] + diagonal - gram - gram.T, 0)
