"""Persistent homology of RDMs, and topological divergence of two representations."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist, squareform

from ...datasets.rdms import RDMs
from ..compare import as_vectors, joined_vectors
from .transforms import place


def persistence(
    rdms: RDMs | np.ndarray, most_dimension: int = 1, longest: float | None = None, rank: bool = False
) -> list[list[np.ndarray]]:
    """Bars of the Vietoris-Rips filtration of every RDM: clusters, loops, voids.

    Stimuli are joined in the order of their dissimilarity. A component (dimension 0), a loop (1) or a void (2) is born
    at one dissimilarity and dies, joined or filled, at another.

    Parameters
    ----------
    rdms : RDMs, or array of shape (rdm, pair) or (pair,)
        Not negative. A pair that is NaN is never joined directly.
    most_dimension : int
        Highest dimension; the work grows steeply with it.
    longest : float, optional
        Stop at this dissimilarity: what lives on dies at infinity. Shortens the work with many stimuli.
    rank : bool
        Replace dissimilarities by their ranks scaled to [0, 1], so that bars do not depend on the scale of the RDM.

    Returns
    -------
    list over RDMs of lists over dimensions of ndarray (bar, 2)
        Birth and death, the longest-lived first; one component never dies (inf).

    Raises
    ------
    ImportError
        Without ripser.
    ValueError
        For negative dissimilarities.

    Notes
    -----
    Correlation and squared distances are no metrics. Their bars pair the same births and deaths as those of their
    square roots, which are metrics where the dissimilarity is a squared distance. ripser computes in single precision.

    References
    ----------
    Bauer (2021), Journal of Applied and Computational Topology 5:391. Brown & Farivar (2025), Frontiers in
    Neuroscience 19:1597899.
    """
    vectors = as_vectors(rdms, "rdms")
    if most_dimension < 0:
        raise ValueError(f"most_dimension={most_dimension}; expected 0 or more.")
    if longest is not None and not longest > 0:
        raise ValueError(f"longest={longest}; expected a dissimilarity above 0.")
    if rank:
        vectors = place(vectors, "rank-quantile").values
    if (vectors < 0).any():
        raise ValueError(
            f"rdms holds {int((vectors < 0).sum())} negative dissimilarities, the lowest {np.nanmin(vectors):.3g}; a "
            "filtration starts at 0. rank=True uses their order alone."
        )
    return [_bars(squareform(vector, checks=False), most_dimension, longest) for vector in vectors]


def rtd(
    X: np.ndarray,
    Y: np.ndarray,
    batch: int = 500,
    n_batches: int = 10,
    dimension: int = 1,
    normalise: float = 0.9,
    seed: int | np.random.Generator = 0,
) -> float:
    """Representation topology divergence: features of shape that appear in one representation and not in the other.

    Parameters
    ----------
    X, Y : array of shape (stimulus, feature)
        The same stimuli in the same order; features may differ in number.
    batch, n_batches : int
        The divergence is averaged over random batches of this many stimuli; with at most `batch` stimuli it is that of
        all of them, and nothing is random. It grows with the number of stimuli in a batch.
    dimension : int
        Of the features that are counted; 1 in the paper.
    normalise : float
        Distances are divided by this quantile of the full distance matrix, its diagonal included.
    seed : int or numpy Generator
        Of the batches.

    Returns
    -------
    float
        0 for equal geometries; larger is less similar. Scale-free.

    Raises
    ------
    ImportError
        Without ripser.
    ValueError
        For other stimuli on the two sides, values that are not finite, or all distances zero.

    Notes
    -----
    Per direction, the summed length of the bars of a graph of twice the stimuli, with distances 0 among the first
    copies, those of X between copies, and the smaller of both among the second copies; then the mean of both.

    References
    ----------
    Barannikov et al. (2022), ICML, PMLR 162:1607.
    """
    X, Y = _stimulus_rows(X, "X"), _stimulus_rows(Y, "Y")
    if len(X) != len(Y):
        raise ValueError(f"X has {len(X)} stimuli and Y {len(Y)}; both must hold the same stimuli in the same order.")
    if batch < 3 or n_batches < 1:
        raise ValueError(f"batch={batch}, n_batches={n_batches}; expected at least 3 stimuli in at least 1 batch.")
    rng = np.random.default_rng(seed)
    n = len(X)
    batches = [np.arange(n)] if n <= batch else [rng.permutation(n)[:batch] for _ in range(n_batches)]
    return float(np.mean([_divergence(pdist(X[rows]), pdist(Y[rows]), dimension, normalise) for rows in batches]))


def rtd_rdms(a: RDMs | np.ndarray, b: RDMs | np.ndarray, dimension: int = 1, normalise: float = 0.9) -> np.ndarray:
    """Representation topology divergence of every RDM of `a` and every RDM of `b`, over all stimuli.

    Parameters
    ----------
    a, b : RDMs, or arrays of shape (rdm, pair) or (pair,)
        RDMs are joined by stimulus id. Distances are taken as they are; all pairs must be known, none negative.
    dimension, normalise
        See `rtd`.

    Returns
    -------
    ndarray of shape (rdm of a, rdm of b)
        A distance: larger is less similar.
    """
    left, right = joined_vectors(a, b)
    for name, vectors in (("a", left), ("b", right)):
        wrong = int((~(vectors >= 0)).sum())
        if wrong:
            raise ValueError(f"{name} holds {wrong} pairs that are NaN or negative; the divergence needs all pairs.")
    return np.array([[_divergence(x, y, dimension, normalise) for y in right] for x in left])


def _divergence(x: np.ndarray, y: np.ndarray, dimension: int, normalise: float) -> float:
    """Mean over both directions of the summed lengths of bars, from distances (pair,)."""
    if not 0 < normalise <= 1:
        raise ValueError(f"normalise={normalise}; expected a quantile above 0 and up to 1.")
    if dimension < 1:
        raise ValueError(f"dimension={dimension}; expected 1 or more: components are joined in both alike.")
    first, second = (squareform(vector) for vector in (x, y))
    for name, matrix in (("the first", first), ("the second", second)):
        scale = np.quantile(matrix, normalise)
        if not scale > 0:
            raise ValueError(f"the {normalise:g} quantile of the distances of {name} side is 0; there is no scale.")
        matrix /= scale
    nearer = np.minimum(first, second)
    total = 0.0
    for own in (first, second):
        doubled = np.block([[np.zeros_like(own), own], [own, nearer]])
        bars = _bars(doubled, dimension, None)[dimension]
        total += float((bars[:, 1] - bars[:, 0]).sum())
    return total / 2


def _bars(matrix: np.ndarray, most_dimension: int, longest: float | None) -> list[np.ndarray]:
    matrix = np.where(np.isnan(matrix), np.inf, matrix)
    threshold = np.inf if longest is None else float(longest)
    diagrams = _ripser()(matrix, distance_matrix=True, maxdim=most_dimension, thresh=threshold)["dgms"]
    return [np.asarray(bars, np.float64)[np.argsort(bars[:, 0] - bars[:, 1], kind="stable")] for bars in diagrams]


def _ripser() -> Any:
    try:
        return importlib.import_module("ripser").ripser
    except ImportError:
        message = "persistent homology needs ripser; install it with pip install 'neuralign[topology]'."
        raise ImportError(message) from None


def _stimulus_rows(X: np.ndarray, name: str) -> np.ndarray:
    X = np.asarray(X, dtype=np.float64)
    if X.ndim != 2 or len(X) < 3:
        raise ValueError(f"{name} has shape {X.shape}; expected (stimulus, feature) with at least 3 stimuli.")
    if not np.isfinite(X).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(X)).sum())} values that are not finite.")
    return X
