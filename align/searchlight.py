"""RDMs of the neighbourhood of every voxel or vertex, and their similarity to models, without holding them all."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from ..datasets.errors import unknown
from ..datasets.rdms import RDMs, n_pairs
from .compare import as_vectors, similarities, warn_undefined
from .compare import check_method as check_comparison
from .geometry.distances import BLOCK, batched
from .geometry.patterns import CROSS_VALIDATED, PLAIN, PatternRDM, dissimilarities, fold_dissimilarities, warn_unscored
from .noise import noise_precision, repeat_residuals
from .rdm import check_arguments, group_means, presentation_folds, stimulus_order, unit_responses

BOUNDARIES = ("keep", "drop")


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """Which features (voxels, vertices) surround which centre.

    Attributes
    ----------
    centres : ndarray of int, shape (centre,)
        The feature at every centre.
    indices : ndarray of int
        Features of all neighbourhoods, one after the other.
    indptr : ndarray of int, shape (centre + 1,)
        Neighbourhood k is ``indices[indptr[k] : indptr[k + 1]]``, which ``self[k]`` gives.
    """

    centres: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray

    def __len__(self) -> int:
        return len(self.centres)

    def __getitem__(self, k: int) -> np.ndarray:
        if not -len(self) <= k < len(self):
            raise IndexError(f"neighbourhood {k} of {len(self)}")
        k %= len(self)
        return self.indices[self.indptr[k] : self.indptr[k + 1]]

    @property
    def sizes(self) -> np.ndarray:
        """Number of features of every neighbourhood."""
        return np.diff(self.indptr)


def volume_neighbours(
    mask: np.ndarray,
    radius: float,
    voxel_size: Sequence[float] = (1.0, 1.0, 1.0),
    least: float = 0.0,
    *,
    boundary: str = "keep",
) -> Neighbourhoods:
    """Spheres around the voxels of a volume.

    Parameters
    ----------
    mask : array of bool, shape (x, y, z)
        The voxels that responses hold, in the order of ``responses_volume[mask]``, which numbers the features. Only
        these enter a sphere.
    radius : float
        In the unit of `voxel_size`. A voxel belongs to a sphere if its centre is nearer than this, not at it.
    voxel_size : sequence of three floats
        Edge lengths of a voxel.
    least : float
        Leave out centres where a smaller share of the voxels of the sphere, as far as it lies in the volume, is in
        the mask. 0 keeps all.
    boundary : {"keep", "drop"}
        Whether to keep centres whose sphere reaches out of the volume.

    Returns
    -------
    Neighbourhoods
        Centres in the order of the mask.

    Raises
    ------
    ValueError
        For a wrong shape, an empty mask, or a radius that is not above zero.
    """
    mask = np.asarray(mask)
    if mask.ndim != 3:
        raise ValueError(f"mask has shape {mask.shape}; expected (x, y, z).")
    mask = mask.astype(bool)
    if not mask.any():
        raise ValueError("mask holds no voxel.")
    edges = np.asarray(voxel_size, np.float64)
    if edges.shape != (3,) or not (edges > 0).all():
        raise ValueError(f"voxel_size={voxel_size!r}; expected three lengths above zero.")
    _check_radius(radius)
    if not 0 <= least <= 1:
        raise ValueError(f"least={least!r}; expected a share from 0 to 1.")
    if boundary not in BOUNDARIES:
        raise ValueError(unknown("boundary", boundary, BOUNDARIES))
    reach = [np.arange(-n, n + 1) for n in np.ceil(radius / edges).astype(int)]
    offsets = np.stack(np.meshgrid(*reach, indexing="ij"), -1).reshape(-1, 3)
    offsets = offsets[((offsets * edges) ** 2).sum(1) < radius**2]

    number = np.full(mask.shape, -1)
    number[mask] = np.arange(mask.sum())
    places = np.argwhere(mask)
    centres, counts, members = [], [], []
    step = max(1, BLOCK // (3 * len(offsets)))
    for start in range(0, len(places), step):
        around = places[start : start + step, None] + offsets
        inside = ((around >= 0) & (around < mask.shape)).all(2)
        around[~inside] = 0
        found = number[tuple(np.moveaxis(around, 2, 0))]
        member = inside & (found >= 0)
        keep = member.sum(1) >= least * inside.sum(1)
        if boundary == "drop":
            keep &= inside.all(1)
        centres.append(start + np.flatnonzero(keep))
        counts.append(member[keep].sum(1))
        members.append(found[keep][member[keep]])
    return _neighbourhoods(centres, counts, members)


def surface_neighbours(vertices: np.ndarray, faces: np.ndarray, radius: float, centres: Any = None) -> Neighbourhoods:
    """Discs around the vertices of a surface, by distance along its edges.

    Parameters
    ----------
    vertices : array of shape (vertex, 3)
        Coordinates; vertices number the features.
    faces : array of int, shape (face, 3)
        Vertices of every triangle.
    radius : float
        In the unit of the coordinates. A vertex belongs to a disc if the shortest way along edges is shorter.
    centres : array of int, optional
        Vertices to put discs around. Default all.

    Returns
    -------
    Neighbourhoods

    Raises
    ------
    ValueError
        For a wrong shape, faces or centres of vertices that are not there, or a radius that is not above zero.
    """
    vertices, faces = np.asarray(vertices, np.float64), np.asarray(faces)
    n = len(vertices)
    for name, array in (("vertices", vertices), ("faces", faces)):
        if array.ndim != 2 or array.shape[1] != 3:
            raise ValueError(f"{name} has shape {array.shape}; expected ({name[:-1].replace('vertice', 'vertex')}, 3).")
    _check_radius(radius)
    asked = np.arange(n) if centres is None else np.asarray(centres)
    for name, array in (("faces", faces), ("centres", asked)):
        if array.dtype.kind not in "iu" or (array.size and not (array.min() >= 0 and array.max() < n)):
            raise ValueError(f"{name} names vertices that are not there; expected integers from 0 to {n - 1}.")
    edges = np.unique(np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1), axis=0)
    edges = edges[edges[:, 0] < edges[:, 1]]
    lengths = np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1)
    graph = coo_array((lengths, (edges[:, 0], edges[:, 1])), shape=(n, n)).tocsr()
    counts, members = [], []
    step = max(1, BLOCK // n)
    for start in range(0, len(asked), step):
        distances = dijkstra(graph, directed=False, indices=asked[start : start + step], limit=radius)
        near = distances < radius
        counts.append(near.sum(1))
        members.append(np.nonzero(near)[1])
    return _neighbourhoods([asked], counts, members)


def _check_radius(radius: float) -> None:
    if not radius > 0:
        raise ValueError(f"radius={radius!r}; expected a length above zero.")


def _neighbourhoods(centres: list, counts: list, members: list) -> Neighbourhoods:
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.intp)
    return Neighbourhoods(np.concatenate(centres).astype(np.intp), np.concatenate(members).astype(np.intp), indptr)


def searchlight(
    X: Any,
    neighbourhoods: Neighbourhoods,
    models: Any = None,
    method: str = "correlation",
    compare: str = "rho-a",
    *,
    noise: Any = None,
    folds: Any = None,
    batch: int | None = None,
    residuals: Any = None,
) -> Any:
    """RDM of every neighbourhood, compared with models.

    Parameters
    ----------
    X : array or Recording
        (stimulus, feature), or (fold, stimulus, feature) for the cross-validated methods. A Recording of one subject
        stands for its means over repeats, or within folds.
    neighbourhoods : Neighbourhoods
        From `volume_neighbours` or `surface_neighbours`, over the features of `X`.
    models : RDMs or array of shape (model, pair), optional
        RDMs over the stimuli of `X`; they are put into its order where it is a Recording.
    method, compare : str
        See `align.rdm` and `align.compare`.
    noise : array of shape (feature,), or str, optional
        For "mahalanobis" and "crossnobis": a diagonal precision of all features, or a method of
        `align.noise.noise_covariance`, which is applied to the features of every neighbourhood by themselves.
    folds : str, optional
        For a Recording and a cross-validated method: the column of its presentations that tells folds, such as "run".
    batch : int, optional
        Centres at a time. Default: as many as keep the working memory near 32 MiB.
    residuals : array of shape (sample, feature), or (array, degrees of freedom), optional
        What a method in `noise` is applied to. Default: what the repeats of `X` leave (`align.noise.repeat_residuals`),
        which needs folds or a Recording.

    Returns
    -------
    ndarray of shape (centre, model)
        Similarities. RDMs of a batch of centres are made, compared, and forgotten.
    iterator of (slice of centres, ndarray of shape (centre, pair))
        Without models.

    Raises
    ------
    ValueError
        For unknown names, neighbourhoods of features that `X` lacks, models of other stimuli, and as `align.rdm`.

    References
    ----------
    Kriegeskorte, Goebel & Bandettini (2006), PNAS 103:3863.
    """
    check_arguments(method, noise, folds, "pairwise")
    patterns, ids, rows, labels = _patterns(X, method, folds)
    _check_features(neighbourhoods, patterns.shape[-1])
    scale, whitener = _noise_of(noise, patterns, rows, labels, residuals, method)
    if scale is not None:
        patterns = patterns * scale.astype(patterns.dtype)
    size = int(neighbourhoods.sizes.max(initial=1))
    n_stimuli = patterns.shape[-2]
    if batch is None:
        batch = max(1, BLOCK // (n_stimuli * max(n_stimuli, size * (len(patterns) if patterns.ndim == 3 else 1))))
    elif batch < 1:
        raise ValueError(f"batch={batch!r}; expected a number of centres, 1 or more.")
    stream = _stream(patterns, neighbourhoods, method, whitener, batch)
    if models is None:
        return stream
    check_comparison(compare, "compare")
    vectors = _model_vectors(models, ids, n_stimuli)
    found = np.full((len(neighbourhoods), len(vectors)), np.nan)
    for some, rdms in stream:
        found[some] = similarities(rdms.astype(np.float64), vectors, compare)
    warn_undefined(found, compare)
    return found


def _patterns(X: Any, method: str, folds: Any) -> tuple[np.ndarray, list[str] | None, np.ndarray | None, Any]:
    """Patterns; ids of the stimuli, where they are known; presentations and their stimuli, where there are any."""
    if not hasattr(X, "average_repeats"):
        if folds is not None:
            raise ValueError("folds is for a Recording; give an array as (fold, stimulus, feature).")
        X = np.asarray(X)
        axes = "(fold, stimulus, feature)" if method in CROSS_VALIDATED else "(stimulus, feature)"
        if X.ndim != axes.count(",") + 1 or X.dtype.kind not in "fiub":
            raise ValueError(f"X has shape {X.shape} and dtype {X.dtype}; method={method!r} expects {axes}.")
        X = X if X.dtype.kind == "f" else X.astype(np.float64)
        if X.ndim == 3:
            return X, None, X.reshape(-1, X.shape[2]), np.tile(np.arange(X.shape[1]), len(X))
        return X, None, None, None
    if X.times is not None:
        raise ValueError("X is a Recording with a time axis; average a window first, X.average_time(start, stop).")
    subjects = X.units["subject"].astype(str).unique()
    if len(subjects) > 1:
        raise ValueError(f"X is a Recording of {len(subjects)} subjects; take one, X.select(subject={subjects[0]!r}).")
    rows, labels = unit_responses(X, np.arange(X.n_units)), X.presentations["stimulus"].to_numpy()
    if method in CROSS_VALIDATED:
        ids = stimulus_order(X)
        return group_means(rows, X, ids, presentation_folds(X, folds)), ids, rows, labels
    averaged = X.average_repeats()
    return averaged.read(), averaged.presentations["stimulus"].astype(str).tolist(), rows, labels


def _check_features(neighbourhoods: Neighbourhoods, n_features: int) -> None:
    most = int(neighbourhoods.indices.max(initial=-1))
    if most >= n_features:
        raise ValueError(
            f"neighbourhoods names feature {most} of {n_features} in X; responses are X = volume[:, mask], or one "
            "column per vertex."
        )


def _noise_of(
    noise: Any, patterns: np.ndarray, rows: np.ndarray | None, labels: Any, residuals: Any, method: str
) -> tuple[np.ndarray | None, Any]:
    """What features are multiplied with, or a function that gives the precision of some features."""
    if residuals is not None and not isinstance(noise, str):
        raise ValueError("residuals is what a method is applied to; give one, e.g. noise='shrinkage-diagonal'.")
    if noise is None:
        return None, None
    n_features = patterns.shape[-1]
    if isinstance(noise, str):
        if residuals is None:
            if rows is None:
                raise ValueError(
                    f"noise={noise!r} needs residuals, or repeats to get them from: X as (fold, stimulus, feature) or "
                    "a Recording."
                )
            residuals = repeat_residuals(rows, labels)
        samples, dof = residuals if isinstance(residuals, tuple) else (residuals, None)
        samples = np.asarray(samples)
        if samples.ndim != 2 or samples.shape[1] != n_features:
            raise ValueError(f"residuals has shape {samples.shape}; expected (sample, {n_features}).")
        return None, lambda some: noise_precision(samples[:, some], noise, dof)
    noise = np.asarray(noise, np.float64)
    if noise.shape != (n_features,):
        raise ValueError(
            f"noise has shape {noise.shape}; a searchlight takes a diagonal precision ({n_features},), as a part of a "
            "full one is none. Give a method with residuals, e.g. noise='shrinkage-diagonal'."
        )
    if not (np.isfinite(noise) & (noise > 0)).all():
        raise ValueError("noise holds values that are not above zero; a precision is positive.")
    return np.sqrt(noise), None


def _model_vectors(models: Any, ids: list[str] | None, n_stimuli: int) -> np.ndarray:
    if isinstance(models, RDMs) and ids is not None:
        models = models.reorder(ids)
    vectors = as_vectors(models, "models")
    if vectors.shape[1] != n_pairs(n_stimuli):
        raise ValueError(f"models has {vectors.shape[1]} pairs; {n_stimuli} stimuli have {n_pairs(n_stimuli)}.")
    return vectors


def _stream(
    patterns: np.ndarray, neighbourhoods: Neighbourhoods, method: str, precision: Any, batch: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """RDMs of batches of centres. Neighbourhoods of one size go through one product, those with gaps by themselves."""
    n_stimuli, n = patterns.shape[-2], len(neighbourhoods)
    plain = "sqeuclidean" if method == "mahalanobis" else method
    together = (plain in PLAIN or plain == "crossnobis") and precision is None and n_stimuli > 2
    whole = np.isfinite(patterns).all(tuple(range(patterns.ndim - 1)))
    kept: list[PatternRDM] = []
    failed: list[str] = []
    n_empty = 0
    for start in range(0, n, batch):
        some = slice(start, min(start + batch, n))
        vectors = np.full((some.stop - start, n_pairs(n_stimuli)), np.nan, patterns.dtype)
        sizes = neighbourhoods.sizes[some]
        n_empty += int((sizes == 0).sum())
        for size in np.unique(sizes[sizes > 0]):
            at = np.flatnonzero(sizes == size)
            members = np.stack([neighbourhoods[start + int(k)] for k in at])
            if together:
                if plain == "crossnobis":
                    vectors[at] = _crossnobis_batch(patterns, members)
                elif size > 1 or plain != "correlation":
                    vectors[at] = batched(np.moveaxis(patterns[:, members], 1, 0), plain)
                done = whole[members].all(1) & np.isfinite(vectors[at]).all(1)
                at, members = at[~done], members[~done]
            for k, member in zip(at, members, strict=True):
                try:
                    one = _single(patterns[..., member], method, None if precision is None else precision(member))
                except ValueError as error:
                    failed.append(str(error))
                    continue
                vectors[k] = one.vector
                kept.append(one)
        yield some, vectors
    if failed and len(failed) == n - n_empty:
        raise ValueError(failed[0])
    if n_empty or failed:
        reasons = [f"{n_empty} of {n} neighbourhoods are empty; their RDMs are NaN."] if n_empty else []
        if failed:
            reasons.append(f"{len(failed)} of {n} neighbourhoods have no RDM, which is NaN (first: {failed[0]})")
        warnings.warn(" ".join(reasons), stacklevel=3)
    warn_unscored(kept, method)


def _single(patterns: np.ndarray, method: str, precision: Any) -> PatternRDM:
    if method in CROSS_VALIDATED:
        return fold_dissimilarities(patterns, method, noise=precision)
    if method == "mahalanobis" and precision is None:  # the patterns are scaled already
        method = "sqeuclidean"
    return dissimilarities(patterns, method, noise=precision, device="cpu")


def _crossnobis_batch(patterns: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Crossnobis of neighbourhoods of one size, shape (centre, pair), from patterns (fold, stimulus, feature)."""
    n_folds, n_stimuli, _ = patterns.shape
    parts = np.moveaxis(patterns[:, :, members].astype(np.float64), 2, 0)  # (centre, fold, stimulus, feature)
    parts -= parts.mean(2, keepdims=True)
    total = parts.sum(1)
    kernel = total @ np.swapaxes(total, -1, -2) - (parts @ np.swapaxes(parts, -1, -2)).sum(1)
    first, second = np.triu_indices(n_stimuli, 1)
    diagonal = np.diagonal(kernel, axis1=1, axis2=2)
    vectors = diagonal[:, first] + diagonal[:, second] - 2 * kernel[:, first, second]
    return vectors / (n_folds * (n_folds - 1) * members.shape[1])
