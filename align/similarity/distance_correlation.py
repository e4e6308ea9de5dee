"""Distance correlation: dependence of any form, through the distances between stimuli."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import squareform

from ..rdm import dissimilarities
from .cards import SimilarityCard, measure
from .cka import double_centred, unbiased_alignment


@measure(
    SimilarityCard(
        name="distance-correlation",
        title="Distance correlation",
        formula="sqrt(<A, B> / sqrt(<A, A> <B, B>)), A = HDH of the Euclidean distances D of X, B of Y",
        citation="Szekely, Rizzo & Bakirov (2007), Annals of Statistics 35:2769",
        low=0.0,
        high=1.0,
        larger_is_more_similar=True,
        symmetric=True,
        metric=True,
        distance="arccos-square",
        biased=True,
        unbiased_form="distance-correlation-debiased",
        invariances=frozenset({"orthogonal", "isotropic-scaling", "translation"}),
    )
)
def distance_correlation(X: np.ndarray, Y: np.ndarray) -> float:
    """Distance correlation of X (stimulus, p) and Y (stimulus, q): the root of a cosine of distance matrices."""
    A, B = _centred_distances(X), _centred_distances(Y)
    cosine = (A * B).sum() / np.sqrt((A * A).sum() * (B * B).sum())
    return float(np.sqrt(max(cosine, 0.0)))


@measure(
    SimilarityCard(
        name="distance-correlation-debiased",
        title="Bias-corrected squared distance correlation",
        formula="<A*, B*> / sqrt(<A*, A*> <B*, B*>), A* the U-centred Euclidean distances of X, B* of Y",
        citation="Szekely & Rizzo (2013), Journal of Multivariate Analysis 117:193",
        low=-1.0,
        high=1.0,
        larger_is_more_similar=True,
        symmetric=True,
        metric=True,
        distance="arccos",
        biased=False,
        invariances=frozenset({"orthogonal", "isotropic-scaling", "translation"}),
        fewest_stimuli=4,
    )
)
def distance_correlation_debiased(X: np.ndarray, Y: np.ndarray) -> float:
    """Bias-corrected distance correlation: an estimate of the SQUARE of the population's, so that it may be negative.

    NaN, with a warning, where all stimuli of one representation are equally far from each other.
    """
    return unbiased_alignment("distance-correlation-debiased", _centred_distances(X), _centred_distances(Y))


def _centred_distances(X: np.ndarray) -> np.ndarray:
    """HDH (n, n) of the Euclidean distances between rows, at unit scale: distances of any size stay in range."""
    distances = dissimilarities(X, "euclidean").vector
    return double_centred(squareform(distances / distances.max()))
