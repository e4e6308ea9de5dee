"""What each band of features contributes to a score of the whole: the product measure.

A linear model of several feature spaces predicts the sum of what its bands predict. The product measure hands each
band its covariance with what the sum is compared to, so that the parts add up to the score exactly, whatever the
correlations among bands (Hoffman 1960; Pratt 1987). It splits one fit; variance partitioning compares several.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

# A standard deviation below this share of the mean is rounding.
_FLOOR = 1e-10


def split_r2(by_band: ArrayLike, observed: ArrayLike, intercept: ArrayLike = 0.0) -> np.ndarray:
    """Split the R2 of a prediction over the bands whose predictions add up to it.

    Parameters
    ----------
    by_band : array, shape (band, stimulus, unit) or (band, stimulus)
        What each band predicts, in the unit of the responses.
    observed : array, shape (stimulus, unit) or (stimulus,)
        Responses to the same stimuli, of any mean.
    intercept : float or array, shape (unit,)
        What is added to the sum over bands to make the prediction: the intercept where bands predict from features as
        they are, the mean response of the training rows where these are centred. The split is the same.

    Returns
    -------
    ndarray of float64, shape (band, unit) or (band,)
        Adds up over bands to ``1 - sum((y - prediction)^2) / sum((y - mean(y))^2)``, with the mean of the rows given.
        A part is negative where its band makes the prediction worse, or mostly takes back what another predicts. NaN
        for units that are constant or lack values, with one warning that counts them.

    Raises
    ------
    ValueError
        If shapes do not fit together.

    Notes
    -----
    With responses y, predictions p_b of bands and their sum p, each centred on the n rows given, and the bias m of the
    prediction, which is its mean, intercept included, less that of the responses,

    ``R2 = (sum_b <p_b, 2 y - p> - n m^2) / <y, y>``.

    The first term is the product measure. The second is the price of an intercept, and of offsets, that were learned
    from other rows: nothing in training rows, about the noise variance over the number of training rows and that of
    test rows in others. It belongs to the sum and to no band, because an offset can be moved from a band to the
    intercept without changing the model. Each band bears of it the share that it has in the sum over bands of
    ``<p_b, p_b>``, so that a band that predicts nothing contributes nothing; if none predicts anything, equal shares.

    Rows that were held out together make one call: an R2 that is a mean over folds is split by the mean of the splits.

    References
    ----------
    Hoffman, P. J. (1960). The paramorphic representation of clinical judgment. Psychological Bulletin 57, 116-131.

    Pratt, J. W. (1987). Dividing the indivisible: using simple symmetry to partition variance explained. Proceedings
    of the Second International Tampere Conference in Statistics, 245-260.

    Dupré la Tour, T., Eickenberg, M., Nunez-Elizalde, A. O. & Gallant, J. L. (2022). Feature-space selection with
    banded ridge regression. NeuroImage 264, 119728.

    Examples
    --------
    >>> first, second = np.array([1.0, -1.0, 0.0, 0.0]), np.array([0.0, 0.0, 2.0, -2.0])
    >>> split_r2([first, second], first + second + 3, intercept=3).tolist()
    [0.2, 0.8]
    """
    bands, y, mean, shape = _checked(by_band, observed)
    try:
        offset = np.broadcast_to(np.asarray(intercept, np.float64), mean.shape)
    except ValueError as error:
        raise ValueError(
            f"intercept has shape {np.shape(intercept)}; expected a number, or one for each of {len(mean)} units"
        ) from error
    bias = offset + bands.mean(1, dtype=np.float64).sum(0) - mean
    remainder = 2 * y - _sum_of_centred(bands)
    parts, energy = np.empty((2, len(bands), len(mean)))
    for b, band in enumerate(bands):
        p = _centred(band)
        parts[b] = (p * remainder).sum(0)
        energy[b] = (p * p).sum(0)
    energy[:, ~energy.any(0)] = 1
    parts -= energy / energy.sum(0) * len(y) * bias**2
    return (parts / (y * y).sum(0)).reshape(shape)


def split_r(by_band: ArrayLike, observed: ArrayLike) -> np.ndarray:
    """Split the Pearson correlation of a prediction over the bands whose predictions add up to it.

    A band contributes its covariance with the responses over the standard deviations of the responses and of the sum
    of the bands. An intercept makes no difference.

    Parameters
    ----------
    by_band : array, shape (band, stimulus, unit) or (band, stimulus)
        What each band predicts.
    observed : array, shape (stimulus, unit) or (stimulus,)
        Responses to the same stimuli.

    Returns
    -------
    ndarray of float64, shape (band, unit) or (band,)
        Adds up over bands to the correlation. A part is negative where its band correlates negatively with the
        responses, and can exceed 1 where bands predict against each other. Zero where the sum is constant, which
        correlates with nothing; NaN for units that are constant or lack values, with one warning that counts them.

    Raises
    ------
    ValueError
        If shapes do not fit together.

    Examples
    --------
    >>> first, second = np.array([1.0, -1.0, 0.0, 0.0]), np.array([0.0, 0.0, 2.0, -2.0])
    >>> split_r([first, second], first + second).round(3).tolist()
    [0.2, 0.8]
    """
    bands, y, _, shape = _checked(by_band, observed)
    total = _sum_of_centred(bands)
    spread = (total * total).sum(0)
    # Bands that take each other back leave rounding, which must not be scaled up to a correlation.
    sizes = np.abs(bands).max((0, 1), initial=0).astype(np.float64)
    varies = ~(np.sqrt(spread / len(y)) <= np.finfo(bands.dtype).eps * sizes)
    norm = np.sqrt((y * y).sum(0) * np.where(varies, spread, 1))
    return np.stack([np.where(varies, (_centred(band) * y).sum(0) / norm, 0 * norm) for band in bands]).reshape(shape)


def _checked(by_band: ArrayLike, observed: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]]:
    """Bands (band, stimulus, unit), centred responses (stimulus, unit), their mean (unit,), and shape of the result.

    Responses of units that cannot be scored are NaN.
    """
    bands, y = np.asarray(by_band), np.asarray(observed)
    if y.ndim not in (1, 2) or bands.ndim != y.ndim + 1 or bands.shape[1:] != y.shape or len(bands) == 0 or len(y) < 2:
        raise ValueError(
            f"by_band has shape {bands.shape} and observed {y.shape}; expected (band, stimulus, unit) and "
            "(stimulus, unit), or both without units, with two stimuli at least: np.stack the predictions of bands"
        )
    shape = (len(bands), *y.shape[1:])
    if bands.dtype.kind != "f":
        bands = bands.astype(np.float64)
    bands, y = bands.reshape(*bands.shape[:2], -1), y.reshape(len(y), -1).astype(np.float64)
    mean = y.mean(0)
    y = y - mean
    unscored = ~(np.sqrt((y * y).mean(0)) > _FLOOR * np.abs(mean)) | ~np.isfinite(bands).all((0, 1))
    if unscored.any():
        warnings.warn(
            f"{int(unscored.sum())} of {len(mean)} units are constant or lack responses or predictions; their parts "
            "are NaN",
            stacklevel=3,
        )
        y[:, unscored] = np.nan
    return bands, y, mean, shape


def _centred(band: np.ndarray) -> np.ndarray:
    return band - band.mean(0, dtype=np.float64)


def _sum_of_centred(bands: np.ndarray) -> np.ndarray:
    """The sum over bands, shape (stimulus, unit); in float64 without a float64 copy of all bands."""
    total = np.zeros(bands.shape[1:])
    for band in bands:
        total += _centred(band)
    return total
