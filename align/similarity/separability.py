"""How well a representation separates given classes, from distances alone."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.spatial.distance import pdist, squareform

from .cards import SimilarityCard, measure


@measure(
    SimilarityCard(
        name="gdv",
        title="Generalised discrimination value",
        formula="D^-1/2 [mean over classes of their mean distance inside - mean over pairs of classes of their mean "
        "distance between], of z = (x - mean) / (2 sd) per feature, sd over n (not n - 1); 0: no separation, -1: two "
        "classes of equal size that are points",
        citation="Schilling et al. (2021), Neural Networks 139:278",
        low=-np.inf,
        high=np.inf,
        larger_is_more_similar=False,
        symmetric=False,
        metric=False,
        biased=False,
        invariances=frozenset({"permutation", "feature-scaling", "translation"}),
        kind="separability",
        fewest_stimuli=6,
    )
)
def gdv(X: np.ndarray, Y: np.ndarray) -> float:
    """Generalised discrimination value of X (stimulus, feature) for the class labels Y (stimulus,).

    More negative is better separated. The mean distance inside a class is over its own pairs; it is not divided
    by the number of classes again. Features that do not vary are left out of X and of D, with a warning.

    Raises
    ------
    ValueError
        For a class of one stimulus, which has no distance inside.
    """
    names, member, count = np.unique(Y, return_inverse=True, return_counts=True)
    if count.min() < 2:
        raise ValueError(
            f"class {str(names[count.argmin()])!r} of Y has one stimulus; every class needs two, so leave it out or "
            "merge it with another."
        )
    varies = np.ptp(X, axis=0) > 0
    if not varies.all():
        warnings.warn(f"{(~varies).sum()} of {len(varies)} features do not vary and are left out.", stacklevel=3)
        X = X[:, varies]
    z = 0.5 * (X - X.mean(0)) / X.std(0)
    classes = np.eye(len(names))[member]
    total = classes.T @ squareform(pdist(z)) @ classes
    pairs = np.outer(count, count) - np.diag(count)
    mean = total / pairs
    between = mean[np.triu_indices(len(names), 1)].mean()
    return float((np.diag(mean).mean() - between) / np.sqrt(X.shape[1]))
