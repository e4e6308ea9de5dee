"""Kernel analysis: how precisely classes can be read out of a representation at every complexity of the readout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.spatial.distance import pdist, squareform

from ...datasets.errors import unknown
from .cards import SimilarityCard, measure, prepared

VERSIONS = ("2014", "2013")

# Widths of the Gaussian kernel in median distances, and ridge penalties (Cadieu et al. 2014).
SCALES = np.logspace(-1, 1, 32)
PENALTIES = np.logspace(-4, 3, 56)


@dataclass(frozen=True)
class KernelAnalysis:
    """Precision of the readout against its complexity.

    Attributes
    ----------
    complexity : ndarray of shape (m,)
        "2014": 1 / penalty, ascending. "2013": number of kernel components over the number of stimuli.
    precision : ndarray of shape (m,)
        1 - error, averaged over resamples; 0 is what predicting no class at all would reach.
    precisions : ndarray of shape (resample, m)
    area : float
        Mean height of the curve ("2014": over the logarithm of complexity), averaged over resamples.
    sd : float
        Standard deviation of the area over resamples; NaN for a single one.
    """

    complexity: np.ndarray
    precision: np.ndarray
    precisions: np.ndarray
    area: float
    sd: float


def kernel_analysis(
    X: np.ndarray,
    Y: np.ndarray,
    version: str = "2014",
    *,
    scales: np.ndarray = SCALES,
    penalties: np.ndarray = PENALTIES,
    resamples: int = 10,
    seed: int = 0,
) -> KernelAnalysis:
    """Curve of precision against complexity for a readout of classes with Gaussian kernels.

    Labels are one column per class against the rest, less their mean and scaled so that predicting nothing has
    error 1. The kernel is ``exp(-d^2 / (2 s^2))`` with d Euclidean and s a multiple of the median distance; the
    width with the least error serves at each complexity.

    Parameters
    ----------
    X : array of shape (stimulus, feature)
    Y : array of shape (stimulus,)
        Class labels.
    version : {"2014", "2013"}
        ``"2014"`` (Cadieu et al. 2014): kernel ridge regression; the error is the mean square of the leave-one-out
        residuals, in closed form. ``"2013"`` (Cadieu et al. 2013, after Montavon et al. 2011): what the leading d
        eigenvectors of the kernel leave of the labels; not cross-validated, so even noise reaches 1 at d = n.
    scales : array
        Widths s in median distances between the stimuli of the resample.
    penalties : array
        Ridge penalties, for "2014".
    resamples : int
        Each holds 80 % of the stimuli of the smallest class, and as many of every other class, without repetition.
        Drawn by row, so the curve depends on the order of the stimuli, the less the more resamples.
    seed : int

    Returns
    -------
    KernelAnalysis

    Raises
    ------
    ValueError
        For a class of fewer than three stimuli.

    References
    ----------
    Cadieu et al. (2014), PLoS Computational Biology 10:e1003963. Cadieu et al. (2013), arXiv 1301.3530.
    Montavon et al. (2011), JMLR 12:2563.
    """
    X, Y = prepared(X, Y, "kernel-analysis")
    if version not in VERSIONS:
        raise ValueError(unknown("version", version, VERSIONS))
    scales, penalties = _positive(scales, "scales"), _positive(penalties, "penalties", 2)[::-1]
    if resamples < 1:
        raise ValueError(f"resamples={resamples!r}; expected at least one.")
    names, member, count = np.unique(Y, return_inverse=True, return_counts=True)
    size = int(0.8 * count.min())
    if size < 2:
        raise ValueError(
            f"class {str(names[count.argmin()])!r} of Y has {count.min()} stimuli; resamples of 80 % need three."
        )
    rng = np.random.default_rng(seed)
    precisions = []
    for _ in range(resamples):
        rows = np.concatenate([rng.choice(np.flatnonzero(member == k), size, replace=False) for k in range(len(names))])
        precisions.append(1 - _errors(X[rows], member[rows], version, scales, penalties))
    curves = np.array(precisions)
    # A curve over d components begins with none of them, where nothing is predicted.
    complexity = 1 / penalties if version == "2014" else np.arange(curves.shape[1]) / (curves.shape[1] - 1)
    place = np.log(complexity) if version == "2014" else complexity
    areas = np.trapezoid(curves, place, axis=1) / (place[-1] - place[0])
    sd = float(areas.std(ddof=1)) if resamples > 1 else float("nan")
    return KernelAnalysis(complexity, curves.mean(0), curves, float(areas.mean()), sd)


def _errors(X: np.ndarray, member: np.ndarray, version: str, scales: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """Least error over widths at every complexity, averaged over classes."""
    labels = np.eye(member.max() + 1)[member]
    labels = (labels - labels.mean(0)) / labels.std(0)
    distances = pdist(X)
    width = np.median(distances)
    if width == 0:
        raise ValueError("more than half of the pairs of stimuli in X are identical: the median distance is 0.")
    error = np.full(len(penalties) if version == "2014" else len(X) + 1, np.inf)
    for scale in scales:
        kernel = squareform(np.exp(-(distances**2) / (2 * (scale * width) ** 2)))
        np.fill_diagonal(kernel, 1.0)
        values, vectors = eigh(kernel, overwrite_a=True)
        found = _left_out(values, vectors, labels, penalties) if version == "2014" else _projected(vectors, labels)
        np.minimum(error, found, out=error)
    return error


def _left_out(values: np.ndarray, vectors: np.ndarray, labels: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """Mean square of leave-one-out residuals of kernel ridge regression for every penalty.

    The residual of stimulus i is ``(G^-1 Y)_i / (G^-1)_ii`` with G the kernel plus the penalty on its diagonal.
    """
    # A kernel is positive; what rounding puts below zero would meet the smallest penalties.
    inverse = 1 / (np.maximum(values, 0.0) + penalties[:, None])
    diagonal = inverse @ (vectors**2).T
    projected = vectors.T @ labels
    errors = np.empty(len(penalties))
    for k in range(len(penalties)):
        residual = vectors @ (inverse[k][:, None] * projected) / diagonal[k][:, None]
        errors[k] = (residual**2).mean()
    return errors


def _projected(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean square of the labels outside of the leading 0, 1, ..., n eigenvectors."""
    explained = ((vectors[:, ::-1].T @ labels) ** 2).mean(1) / len(labels)
    return 1 - np.concatenate([[0.0], np.cumsum(explained)])


def _positive(values: np.ndarray, name: str, least: int = 1) -> np.ndarray:
    values = np.unique(np.asarray(values, np.float64))
    if len(values) < least or not (values > 0).all():
        raise ValueError(f"{name} holds {values}; expected positive numbers, at least {least} of them.")
    return values


@measure(
    SimilarityCard(
        name="kernel-analysis",
        title="Kernel analysis, area under the curve of precision against complexity",
        formula="mean over log(1/penalty) of 1 - min_s looe, looe the mean square of (G^-1 Y)_i / (G^-1)_ii over "
        "stimuli and one-against-rest labels of unit variance, G = exp(-d^2/(2 s^2)) + penalty I; 10 resamples of 80 "
        "%, drawn by row, so the value depends on the order of the stimuli: average over seed",
        citation="Cadieu et al. (2014), PLoS Computational Biology 10:e1003963",
        low=-np.inf,
        high=1.0,
        larger_is_more_similar=True,
        symmetric=False,
        metric=False,
        biased=False,
        invariances=frozenset({"orthogonal", "isotropic-scaling", "translation"}),
        kind="separability",
        fewest_stimuli=9,
    )
)
def kernel_analysis_area(X: np.ndarray, Y: np.ndarray, version: str = "2014", seed: int = 0) -> float:
    """Area of `kernel_analysis`: how precisely classes are read out, over all complexities.

    Resamples are drawn by row: the same stimuli in another order give other resamples and another value. Where that
    matters, average over several values of `seed`, or raise `resamples` of `kernel_analysis`.
    """
    return kernel_analysis(X, Y, version, seed=seed).area
