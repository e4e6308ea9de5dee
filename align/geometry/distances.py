"""Distances of patterns through one Gram matrix: numpy arrays or torch tensors, complete or with gaps.

Whatever is quadratic in the stimuli is finished on the host in float64; only the products over features, which are
the work, run in the precision and on the device of the patterns.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from scipy.spatial.distance import squareform

# Elements of a float64 working block (32 MiB): bounds memory beside the input for any number of features.
BLOCK = 2**22

# Elements that are standardised at a time (1 MiB), so that several passes over them stay in the cache.
CACHED = 2**17

# A Gram matrix loses the digits of a dissimilarity that is this much smaller than the two norms it is a
# difference of; such pairs are recomputed from the difference of their patterns.
CLOSE = 1e-3

# A norm below this share of the mean may be rounding alone; such patterns are looked at entry by entry.
DOUBTFUL = 1e-6

# Multiplications from which an array is taken to a GPU: a tenth of a second of a core, and several times the time
# that importing torch takes.
WORTH_MOVING = 2e9
WORTH_IMPORTING = 2e11


def is_tensor(X: Any) -> bool:
    """Whether `X` is a torch tensor; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(X, torch.Tensor)


def namespace(X: Any) -> Any:
    """numpy or torch, whichever `X` belongs to; the functions used here are called alike in both."""
    return sys.modules["torch"] if is_tensor(X) else np


def host(array: Any) -> np.ndarray:
    """Float64 numpy array of an array or a tensor on any device."""
    return array.detach().double().cpu().numpy() if is_tensor(array) else np.asarray(array, np.float64)


def like(values: np.ndarray, X: Any) -> Any:
    """`values` where `X` is, in their own precision."""
    return sys.modules["torch"].as_tensor(values, device=X.device) if is_tensor(X) else values


def cast(array: Any, X: Any) -> Any:
    """`array` in the floating precision of `X`: float32 where that has it, else float64."""
    if is_tensor(X):
        torch = sys.modules["torch"]
        return array.to(torch.float32 if X.dtype == torch.float32 else torch.float64)
    return array.astype(np.float32 if X.dtype == np.float32 else np.float64, copy=False)


def blocks(n_items: int, item_size: int, elements: int | None = None) -> list[slice]:
    """Slices of items of at most `elements` numbers each (default BLOCK), one item at least."""
    step = max(1, (BLOCK if elements is None else elements) // max(item_size, 1))
    return [slice(start, min(start + step, n_items)) for start in range(0, n_items, step)]


def upper_triangle(matrix: np.ndarray) -> np.ndarray:
    """Pairs of a symmetric matrix in the order of squareform, shape (pair,)."""
    return squareform(matrix, checks=False)


def all_finite(X: Any) -> bool:
    """Whether every entry is finite; a sum says so in one pass, and only a doubtful one is looked into."""
    if not is_tensor(X) and X.dtype.kind != "f":
        return True
    xp = namespace(X)
    with np.errstate(over="ignore", invalid="ignore"):
        if bool(xp.isfinite(X.sum())):
            return True
    return all(bool(xp.isfinite(X[rows]).all()) for rows in blocks(len(X), X[0].size if xp is np else X[0].numel()))


def row_shift_and_norm(X: Any, centre: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean of every row (0 without `centre`) and the norm of what is left; norm 0 for rounding alone.

    Parameters
    ----------
    X : array or tensor of shape (row, feature)

    Returns
    -------
    shift, norm : ndarray of float64, shape (row,)
    """
    xp = namespace(X)
    shift, norm = np.zeros(len(X)), np.zeros(len(X))
    for rows in blocks(len(X), X.shape[1], CACHED if xp is np else BLOCK):
        part = X[rows]
        if centre:
            mean = part.mean(1, dtype=xp.float64)
            part = part - mean[:, None]
            shift[rows] = host(mean)
        elif xp is not np:
            part = part.double()
        else:
            part = part.astype(np.float64, copy=False)
        norm[rows] = np.sqrt(host(xp.einsum("ij,ij->i", part, part)))
    if centre:
        doubtful = np.flatnonzero(norm <= DOUBTFUL * np.abs(shift) * np.sqrt(X.shape[1]))
        for row in doubtful:
            if bool((X[int(row)] == X[int(row), 0]).all()):
                norm[row] = 0.0
    return shift, norm


def squared_distances(X: Any, shift: np.ndarray | None = None, scale: np.ndarray | None = None) -> np.ndarray:
    """Squared Euclidean distances of the rows of ``(X - shift) / scale``.

    One Gram matrix of column-centred patterns: the centring, in float64, is what keeps float32 accurate when
    responses sit far from zero. Pairs that are nearly alike come from the difference of their patterns.

    Parameters
    ----------
    X : array or tensor of shape (row, feature), finite
    shift, scale : ndarray of float64, shape (row,), optional
        What is taken off every row and what it is divided by; default 0 and 1.

    Returns
    -------
    ndarray of float64, shape (row, row)
        Symmetric, zero on the diagonal, never negative. Products are summed in float32 where `X` is float32.
    """
    gram = _gram_of_tensor(X, shift, scale) if is_tensor(X) else _gram(X, shift, scale)
    squared, first, second = from_gram(gram)
    for pairs in blocks(len(first), X.shape[1]):
        i, j = first[pairs], second[pairs]
        difference = _rows(X, i, shift, scale) - _rows(X, j, shift, scale)
        squared[i, j] = squared[j, i] = host((difference**2).sum(1))
    return squared


def from_gram(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squared distances from a Gram matrix, which is overwritten, and the pairs too close for it.

    Returns
    -------
    squared : ndarray of shape (row, row)
    first, second : ndarray of int
        Pairs whose squared distance is below CLOSE of the sum of their squared norms, first < second.
    """
    norms = np.diagonal(gram).copy()
    found = []
    for rows in blocks(len(gram), len(gram), CACHED):
        part = gram[rows]
        sums = norms[rows, None] + norms
        part *= -2
        part += sums
        np.maximum(part, 0, out=part)
        sums *= CLOSE
        found.append(np.flatnonzero(part < sums) + rows.start * len(gram))
    np.fill_diagonal(gram, 0)
    first, second = np.divmod(np.concatenate(found), len(gram))
    above = first < second
    return gram, first[above], second[above]


def _rows(X: Any, rows: np.ndarray, shift: np.ndarray | None, scale: np.ndarray | None) -> Any:
    """Some rows of ``(X - shift) / scale`` in float64."""
    part = X[like(rows, X)]
    part = part.double() if is_tensor(part) else part.astype(np.float64)
    if shift is not None:
        part -= like(shift[rows, None], X)
    if scale is not None:
        part /= like(scale[rows, None], X)
    return part


def _gram(X: np.ndarray, shift: np.ndarray | None, scale: np.ndarray | None) -> np.ndarray:
    """Gram matrix of the column-centred rows of ``(X - shift) / scale``, float64."""
    n = len(X)
    shift = np.zeros(n) if shift is None else shift
    weight = np.ones(n) if scale is None else 1 / scale
    dtype = np.float32 if X.dtype == np.float32 else np.float64
    gram = np.zeros((n, n))
    for columns in blocks(X.shape[1], n):
        part = X[:, columns]
        rows_at_a_time = blocks(n, part.shape[1], CACHED)
        mean = np.full(part.shape[1], -(shift @ weight))
        for rows in rows_at_a_time:
            mean += weight[rows] @ part[rows].astype(np.float64, copy=False)
        mean /= n
        block = np.empty(part.shape, dtype)
        room = np.empty((rows_at_a_time[0].stop, part.shape[1]))
        for rows in rows_at_a_time:
            cached = room[: rows.stop - rows.start]
            np.subtract(part[rows], shift[rows, None], out=cached)
            cached *= weight[rows, None]
            cached -= mean
            block[rows] = cached
        gram += block @ block.T
    return gram


def _gram_of_tensor(X: Any, shift: np.ndarray | None, scale: np.ndarray | None) -> np.ndarray:
    """`_gram` of a tensor, on its device."""
    torch = sys.modules["torch"]
    gram = torch.zeros((len(X), len(X)), dtype=torch.float64, device=X.device)
    for columns in blocks(X.shape[1], len(X)):
        block = X[:, columns].double()  # X itself where that is in float64: nothing is written to it
        if shift is not None:
            block = block - like(shift[:, None], X)
        if scale is not None:
            block = block / like(scale[:, None], X)
        block = cast(block - block.mean(0), X)
        gram += product(block, block)
    return host(gram)


def product(a: Any, b: Any) -> Any:
    """``a @ b.T`` of two arrays (..., row, feature), without the short mantissas that a GPU may be set to."""
    if not is_tensor(a):
        return a @ np.swapaxes(b, -1, -2)
    matmul = sys.modules["torch"].backends.cuda.matmul
    allowed, matmul.allow_tf32 = matmul.allow_tf32, False
    try:
        return a @ b.swapaxes(-1, -2)
    finally:
        matmul.allow_tf32 = allowed


def pairwise_complete(X: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Dissimilarities of patterns with gaps, every pair from the features that both have.

    Parameters
    ----------
    X : array of shape (row, feature)
        NaN where a feature was not measured; no infinite values.
    method : {"sqeuclidean", "euclidean", "correlation", "cosine"}
        Means, norms and the number of features are those of the shared features.

    Returns
    -------
    matrix : ndarray of float64, shape (row, row)
        NaN for pairs that share too few features (none; one for "correlation") or where one of the two is
        constant (zero for "cosine") on what they share. Over pairs that differ in their features, a matrix of
        correlation distances need not be that of any set of points.
    n_shared : ndarray of int, shape (row, row)

    Notes
    -----
    Moments over shared features are products of the patterns, with zeros in the gaps, and of the masks of what is
    known; both are accumulated over blocks of features in float64.
    """
    angular = method in ("correlation", "cosine")
    shift, scale = _known_shift_and_scale(X, method)
    n = len(X)
    count, cross, square, total = (np.zeros((n, n)) for _ in range(4))
    for columns in blocks(X.shape[1], n):
        block = X[:, columns].astype(np.float64)
        known = ~np.isnan(block)
        block -= shift[:, None]
        block /= scale[:, None]
        block[~known] = 0
        if not angular:  # differences do not change with what all rows have in common
            block -= block.sum(0) / np.maximum(known.sum(0), 1)
            block[~known] = 0
        mask = known.astype(np.float64)
        count += mask @ mask.T
        cross += block @ block.T
        square += (block * block) @ mask.T
        if method == "correlation":
            total += block @ mask.T
    n_shared = np.rint(count).astype(int)
    with np.errstate(divide="ignore", invalid="ignore"):
        if angular:
            if method == "correlation":
                cross -= total * total.T / count
                rest = square - total**2 / count
                square = np.where(rest > CLOSE**4 * square, rest, 0)
            matrix = 1 - cross / np.sqrt(square * square.T)
            matrix[(square == 0) | (square.T == 0)] = np.nan
            norms = np.where(np.isnan(matrix), np.nan, 1.0)
        else:
            norms = (square + square.T) / count
            matrix = norms - 2 * cross / count
    matrix[n_shared < (2 if method == "correlation" else 1)] = np.nan
    first, second = np.nonzero(np.triu(matrix < CLOSE * norms, 1))
    for pairs in blocks(len(first), X.shape[1]):
        i, j = first[pairs], second[pairs]
        matrix[i, j] = matrix[j, i] = _exact_pairs(X[i], X[j], method)
    np.fill_diagonal(matrix, 0)
    return (np.sqrt(matrix) if method == "euclidean" else matrix), n_shared


def _known_shift_and_scale(X: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and norm of what is known of every row, so that moments over a part of it lose no digits."""
    shift, scale = np.zeros(len(X)), np.ones(len(X))
    if method not in ("correlation", "cosine"):
        return shift, scale
    for rows in blocks(*X.shape):
        block = X[rows].astype(np.float64)
        known = ~np.isnan(block)
        if method == "correlation":
            shift[rows] = np.where(known, block, 0).sum(1) / np.maximum(known.sum(1), 1)
        norm = np.linalg.norm(np.where(known, block - shift[rows, None], 0), axis=1)
        scale[rows] = np.where(norm > 0, norm, 1)
    return shift, scale


def _exact_pairs(a: np.ndarray, b: np.ndarray, method: str) -> np.ndarray:
    """Dissimilarity of each row of `a` with the same row of `b` from differences, before any square root."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    shared = ~(np.isnan(a) | np.isnan(b))
    count = shared.sum(1)
    a, b = np.where(shared, a, 0), np.where(shared, b, 0)
    if method in ("correlation", "cosine"):
        units = []
        for part in (a, b):
            if method == "correlation":
                part = np.where(shared, part - (part.sum(1) / count)[:, None], 0)
            units.append(part / np.linalg.norm(part, axis=1, keepdims=True))
        return ((units[0] - units[1]) ** 2).sum(1) / 2
    return ((a - b) ** 2).sum(1) / count


def batched(X: Any, method: str) -> Any:
    """Dissimilarities of many sets of patterns of one shape.

    Parameters
    ----------
    X : array or tensor of shape (batch, stimulus, feature)
    method : {"sqeuclidean", "euclidean", "correlation", "cosine"}

    Returns
    -------
    ndarray of shape (batch, pair)
        Float32 where `X` is, else float64. Pairs of a pattern that is not finite, or constant for "correlation"
        or zero for "cosine", are NaN. Close pairs are not recomputed as `squared_distances` does: float32 is
        worked in float64, which holds seven digits of them.
    """
    xp = namespace(X)
    dtype = np.float32 if str(X.dtype).endswith("float32") else np.float64
    work = X.double() if is_tensor(X) else X.astype(np.float64)  # a copy for float64, too: it is written to
    if is_tensor(X) and X.dtype == xp.float64:
        work = work.clone()
    scored = xp.isfinite(work).all(-1)
    work[~scored] = 0
    if method == "correlation":
        constant = (work == work[..., :1]).all(-1)
        work -= work.mean(-1)[..., None]
        work[constant] = 0
    if method in ("correlation", "cosine"):
        norm = xp.sqrt(xp.einsum("bij,bij->bi", work, work))
        scored &= norm > 0
        norm[~scored] = 1
        work /= norm[..., None]
    else:
        count = scored.sum(-1)
        count[count == 0] = 1
        work -= (work.sum(-2) / count[:, None])[:, None]
        work[~scored] = 0
    gram, scored = host(product(work, work)), (scored.cpu().numpy() if is_tensor(X) else scored)
    first, second = np.triu_indices(X.shape[1], 1)
    norms = np.diagonal(gram, axis1=1, axis2=2)
    vectors = gram[:, first, second]
    vectors *= -2
    vectors += norms[:, first]
    vectors += norms[:, second]
    np.maximum(vectors, 0, out=vectors)
    vectors /= 2 if method in ("correlation", "cosine") else X.shape[2]
    if method == "euclidean":
        np.sqrt(vectors, out=vectors)
    vectors[~(scored[:, first] & scored[:, second])] = np.nan
    return vectors.astype(dtype, copy=False)


def placed(X: Any, device: Any = "auto", work: float = 0.0) -> Any:
    """Patterns where their products are computed: a numpy array, or a tensor on a GPU.

    Parameters
    ----------
    X : array or tensor
    device : str or torch.device
        ``"auto"`` leaves a tensor where it is, and takes an array to a GPU, where there is one, if the work is
        worth the way: more than WORTH_MOVING with torch at hand, more than WORTH_IMPORTING without.
    work : float
        Multiplications to be done.

    Returns
    -------
    ndarray, or tensor of float32 or float64
    """
    if not is_tensor(X):
        X = np.asarray(X)
        if device == "auto":
            enough = WORTH_MOVING if "torch" in sys.modules else WORTH_IMPORTING
            if work < enough:
                return X
            import torch

            from ...encoders.device import doubles_are_fast, pick_device

            device = "cuda" if torch.cuda.is_available() else "cpu"
            if device == "cuda" and X.dtype != np.float32 and not doubles_are_fast(pick_device(device)):
                return X
        if str(device) == "cpu" or X.dtype.kind not in "fiub":
            return X
    import torch

    from ...encoders.device import pick_device

    X = torch.as_tensor(X).detach()
    if X.dtype not in (torch.float32, torch.float64):
        X = X.to(torch.float32 if X.dtype in (torch.float16, torch.bfloat16) else torch.float64)
    if device != "auto":
        X = X.to(pick_device(device))
    return X if X.device.type == "cuda" else X.cpu().numpy()
