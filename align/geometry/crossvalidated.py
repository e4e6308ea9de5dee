"""Dissimilarities of patterns with folds: crossnobis and cross-validated Poisson; and what whitens patterns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.linalg import cholesky, lapack, solve_triangular
from scipy.sparse import csr_array

from .distances import CLOSE, all_finite, blocks, cast, host, is_tensor, like, namespace, product, upper_triangle


def fold_means(X: Any, labels: ArrayLike, folds: ArrayLike | None = None) -> tuple[Any, list, list]:
    """Mean pattern of every label within every fold.

    Parameters
    ----------
    X : array or tensor of shape (presentation, feature)
        NaN where a feature was not measured; means ignore it.
    labels : array_like of shape (presentation,)
        The stimulus of every presentation.
    folds : array_like of shape (presentation,), optional
        The fold of every presentation, such as its run. Default: the first presentation of every label is in
        fold 0, the second in fold 1, and so on.

    Returns
    -------
    means : array or tensor of shape (fold, label, feature)
        Float32 where `X` is, else float64; NaN where a label has no presentation in a fold.
    labels, folds : list
        In the order of first appearance.

    Raises
    ------
    ValueError
        For labels or folds of another length, or with missing values (NaN, None).
    """
    code, names = _codes(labels, len(X), "labels")
    if folds is None:
        folds = pd.Series(code).groupby(code).cumcount().to_numpy()
    fold, fold_names = _codes(folds, len(X), "folds")
    cell = fold * len(names) + code
    n_cells = len(names) * len(fold_names)
    shape = (len(fold_names), len(names), X.shape[1])
    if np.bincount(cell, minlength=1).max() == 1:  # one presentation each: nothing to average
        X = cast(X, X)
        if len(cell) == n_cells:
            in_order = bool((np.diff(cell) == 1).all())
            return (X if in_order else X[like(np.argsort(cell), X)]).reshape(shape), names, fold_names
        means = X.new_full((n_cells, X.shape[1]), np.nan) if is_tensor(X) else np.full((n_cells, X.shape[1]), np.nan)
        means = cast(means, X)
        means[like(cell, X)] = X
        return means.reshape(shape), names, fold_names
    means = _tensor_means(X, cell, n_cells) if is_tensor(X) else _means(X, cell, n_cells)
    return cast(means, X).reshape(shape), names, fold_names


def _codes(given: ArrayLike, n: int, argument: str) -> tuple[np.ndarray, list]:
    """Every value as a number, and the values in the order of those numbers."""
    # As objects, for an array of a list of names would turn NaN into the name "nan".
    values = np.asarray(given, dtype=object) if isinstance(given, list | tuple) else np.asarray(given)
    if values.shape != (n,):
        raise ValueError(
            f"{argument} has shape {values.shape}; expected one for each of the {n} rows of X (presentations)."
        )
    missing = int(pd.isna(values).sum())
    if missing:
        raise ValueError(
            f"{argument} is missing (NaN or None) for {missing} of {n} presentations; expected one for each. Leave "
            f"these presentations out: with keep = pandas.notna({argument}), X[keep] and likewise labels and folds; "
            "of a Recording, recording.select(run=[...]) with the values that are there."
        )
    code, names = pd.factorize(values, use_na_sentinel=False)
    return code, list(names)


def _means(X: np.ndarray, cell: np.ndarray, n_cells: int) -> np.ndarray:
    member = csr_array((np.ones(len(cell)), (cell, np.arange(len(cell)))), shape=(n_cells, len(cell)))
    means = np.empty((n_cells, X.shape[1]))
    for columns in blocks(X.shape[1], len(X)):
        values = X[:, columns].astype(np.float64)
        known = ~np.isnan(values)
        with np.errstate(invalid="ignore", divide="ignore"):
            if known.all():
                means[:, columns] = (member @ values) / member.sum(1)[:, None]
            else:
                means[:, columns] = (member @ np.where(known, values, 0)) / (member @ known.astype(np.float64))
    return means


def _tensor_means(X: Any, cell: np.ndarray, n_cells: int) -> Any:
    xp = namespace(X)
    into, values = like(cell, X), X.double()
    total = xp.zeros((n_cells, X.shape[1]), dtype=xp.float64, device=X.device)
    count = xp.zeros_like(total)
    known = ~xp.isnan(values)
    return total.index_add_(0, into, xp.nan_to_num(values, nan=0.0)) / count.index_add_(0, into, known.double())


def crossnobis(folds: Any, precision: Any = None) -> np.ndarray:
    """Cross-validated squared Mahalanobis distance per feature, for every pair of stimuli.

    The mean over all ordered pairs of different folds m, n of ``(b_mi - b_mj)' S (b_ni - b_nj) / n_features``.
    As noise is independent between folds it is unbiased: two stimuli without a difference lie at zero on average,
    so that values are negative about half the time. Nothing is cut off at zero.

    Parameters
    ----------
    folds : array or tensor of shape (fold, stimulus, feature)
        Mean pattern per fold. A row that is not finite is a stimulus that the fold lacks.
    precision : array of shape (feature, feature) or (feature,), or a sequence of these, one per fold, optional
        S, the inverse of the noise covariance; (feature,) is a diagonal. Default the identity, which is never
        formed. With one per fold, of the noise of that fold's mean, S of two folds is the inverse of the mean of
        their covariances.

    Returns
    -------
    ndarray of float64, shape (pair,)
        NaN for pairs that are together in fewer than two folds.

    Raises
    ------
    ValueError
        For a wrong shape, fewer than two folds, or a precision that is not one.

    Notes
    -----
    With the sum over folds B, ``sum_(m != n) b_m S b_n' = B S B' - sum_m b_m S b_m'``: one product per fold and
    one more, instead of one per pair of folds. Where stimuli are missing from folds, stimuli that are in the same
    folds share that sum; where there are many such sets, the pairs of folds are cheaper. A pair counts
    every pair of folds that holds both stimuli the same, whatever the number of presentations behind a fold.

    References
    ----------
    Walther et al. (2016), NeuroImage 137:188. Diedrichsen et al. (2016), arXiv:1607.01371.
    """
    _check_folds(folds)
    n_folds, _, n_features = folds.shape
    present = np.ones(folds.shape[:2], bool)
    if not all_finite(folds):
        present = np.stack([_finite_rows(fold) for fold in folds])
    if per_fold(precision):
        if len(precision) != n_folds:
            raise ValueError(f"noise holds {len(precision)} precisions for {n_folds} folds; give one per fold.")
        covariances = [_covariance(one, n_features, f"noise[{m}]") for m, one in enumerate(precision)]
        return _by_pairs_of_folds([host(fold) for fold in folds], present, n_features, covariances)
    factor = whitening_factor(precision, n_features)
    # A further set of folds costs additions, a pair of folds a product, which grows with the stimuli: they break even
    # near sets = folds x stimuli / 64.
    if len(np.unique(present, axis=1).T) > n_folds * max(1, folds.shape[1] // 64):
        rows = [whitened(fold[like(known, folds)], factor) for fold, known in zip(folds, present, strict=True)]
        return _by_pairs_of_folds([_spread(*one) for one in zip(rows, present, strict=True)], present, n_features)
    return _by_sums(folds, present, factor)


def _check_folds(folds: Any) -> None:
    if folds.ndim != 3:
        raise ValueError(f"folds has shape {tuple(folds.shape)}; expected (fold, stimulus, feature).")
    if len(folds) < 2:
        raise ValueError(f"folds has {len(folds)} fold; cross-validation needs at least 2.")


def _finite_rows(X: Any) -> np.ndarray:
    finite = namespace(X).isfinite(X).all(1)
    return finite.cpu().numpy() if is_tensor(X) else finite


def _spread(rows: Any, known: np.ndarray) -> Any:
    """Rows at the places that are known, zeros elsewhere."""
    if known.all():
        return rows
    shape = (len(known), rows.shape[1])
    out = rows.new_zeros(shape) if is_tensor(rows) else np.zeros(shape, rows.dtype)
    out[like(known, rows)] = rows
    return out


def _by_sums(folds: Any, present: np.ndarray, factor: np.ndarray | None) -> np.ndarray:
    """Crossnobis from the sums over folds of stimuli that are in the same folds."""
    n_stimuli, n_features = folds.shape[1:]
    # The mean of a fold is no part of a difference within it; without it the products keep their digits.
    parts = []
    for fold, known in zip(folds, present, strict=True):
        parts.append(_spread(whitened(fold if known.all() else fold[like(known, folds)], factor), known))
    cross, norms = np.zeros((n_stimuli, n_stimuli)), np.zeros(present.shape)
    for part, norm in zip(parts, norms, strict=True):
        gram = host(product(part, part))
        norm[:] = np.diagonal(gram)
        cross += gram
    both = norms.T @ present  # (i, j): squared norms of i summed over the folds that hold j, too
    both = both + both.T
    within = both - 2 * cross

    patterns, member = np.unique(present, axis=1, return_inverse=True)
    members = [np.flatnonzero(member.ravel() == g) for g in range(patterns.shape[1])]
    total = np.zeros((n_stimuli, n_stimuli))
    for g, rows in enumerate(members):
        for h in range(g, len(members)):
            shared = np.flatnonzero(patterns[:, g] & patterns[:, h])
            if len(shared) < 2:
                continue
            columns = members[h]
            left = _sum_of(parts, shared, rows)
            right = left if g == h else _sum_of(parts, shared, columns)
            gram = host(product(left, right))
            if g == h:
                row_norms = column_norms = np.diagonal(gram)
            else:
                row_norms, column_norms = (host((one * one).sum(1)) for one in (left, right))
            block = row_norms[:, None] + column_norms - 2 * gram
            total[np.ix_(rows, columns)] = block
            total[np.ix_(columns, rows)] = block.T
    total -= within
    first, second = np.nonzero(np.triu(within < CLOSE * both, 1))
    for pairs in blocks(len(first), n_features * len(parts)):
        i, j = first[pairs], second[pairs]
        weights = (present[:, i] & present[:, j]).astype(np.float64)
        differences = [
            (part[like(i, part)] - part[like(j, part)]) * like(weight[:, None], part)
            for part, weight in zip(parts, weights, strict=True)
        ]
        squares = sum(host((one * one).sum(1)) for one in differences)
        total[i, j] = host((sum(differences) ** 2).sum(1)) - squares
    count = present.T.astype(np.float64) @ present
    total[count < 2] = np.nan
    total /= np.maximum(count * (count - 1), 1) * n_features
    return upper_triangle(total)


def _sum_of(parts: list, shared: np.ndarray, rows: np.ndarray) -> Any:
    """Sum of some rows over two or more folds."""
    if len(rows) == len(parts[0]):
        some = [parts[m] for m in shared]
    else:
        some = [parts[m][like(rows, parts[m])] for m in shared]
    total = some[0] + some[1]
    for one in some[2:]:
        total += one
    return total


def _by_pairs_of_folds(
    folds: list, present: np.ndarray, n_features: int, covariances: list[np.ndarray] | None = None
) -> np.ndarray:
    """Crossnobis as the mean over pairs of folds, of those stimuli that both hold."""
    n_stimuli = present.shape[1]
    total, count = np.zeros((n_stimuli, n_stimuli)), np.zeros((n_stimuli, n_stimuli))
    for m in range(len(folds)):
        for n in range(m + 1, len(folds)):
            rows = np.flatnonzero(present[m] & present[n])
            first, second = (_centred(folds[k][like(rows, folds[k])]) for k in (m, n))
            if covariances is not None and len(rows):
                first, second = _whitened_by_mean(first, second, covariances[m], covariances[n])
            gram = host(product(first, second))
            diagonal = np.diagonal(gram)
            total[np.ix_(rows, rows)] += diagonal[:, None] + diagonal - gram - gram.T
            count[np.ix_(rows, rows)] += 1
    with np.errstate(invalid="ignore", divide="ignore"):
        return upper_triangle(total / count / n_features)


def _centred(X: Any) -> Any:
    """Column-centred rows. What rounding the mean leaves is common to all, and so in no difference of theirs."""
    return cast(X - cast(X.mean(0, dtype=namespace(X).float64), X), X) if len(X) else cast(X, X)


def _whitened_by_mean(
    first: np.ndarray, second: np.ndarray, one: np.ndarray, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Patterns of two folds, whitened by the mean of the covariances (or variances) of the two."""
    if one.ndim != other.ndim:
        one, other = (np.diag(part) if part.ndim == 1 else part for part in (one, other))
    mean = (one + other) / 2
    if mean.ndim == 1:
        return first / np.sqrt(mean), second / np.sqrt(mean)
    factor = cholesky(mean, lower=True)
    first, second = (solve_triangular(factor, part.T, lower=True).T for part in (first, second))
    return first, second


def per_fold(precision: Any) -> bool:
    """Whether there is one precision per fold: a list or a tuple, or an array of matrices."""
    return isinstance(precision, list | tuple) or getattr(precision, "ndim", 0) == 3


def whitening_factor(precision: Any, n_features: int, name: str = "noise") -> np.ndarray | None:
    """The square root that patterns are multiplied with: of a diagonal, or the lower Cholesky factor of a matrix.

    Raises
    ------
    ValueError
        For a precision of another size, or one that is not symmetric and positive definite.
    """
    if precision is None:
        return None
    precision = _checked(precision, n_features, name)
    if precision.ndim == 1:
        return np.sqrt(precision)
    try:
        return cholesky(precision, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        raise _not_positive(precision, name) from None


def _checked(precision: Any, n_features: int, name: str) -> np.ndarray:
    precision = host(precision)
    if precision.shape not in ((n_features,), (n_features, n_features)):
        raise ValueError(
            f"{name} has shape {precision.shape}; expected the precision of {n_features} features, "
            f"({n_features}, {n_features}) or, for a diagonal, ({n_features},)."
        )
    if not np.isfinite(precision).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(precision)).sum())} values that are not finite.")
    if precision.ndim == 1:
        if (precision <= 0).any():
            raise _not_positive(precision, name)
    elif np.abs(precision - precision.T).max(initial=0) > 1e-6 * np.abs(precision).max(initial=0):
        raise ValueError(f"{name} is not symmetric; a precision is the inverse of a covariance.")
    return precision


def _not_positive(precision: np.ndarray, name: str) -> ValueError:
    smallest = precision.min() if precision.ndim == 1 else np.linalg.eigvalsh(precision)[0]
    return ValueError(
        f"{name} is not positive definite (smallest eigenvalue {smallest:.3g}); a precision is. "
        "align.noise.noise_precision with a shrinkage method gives one."
    )


def _covariance(precision: Any, n_features: int, name: str) -> np.ndarray:
    precision = _checked(precision, n_features, name)
    return 1 / precision if precision.ndim == 1 else positive_inverse(precision, name)


def positive_inverse(matrix: np.ndarray, name: str = "noise") -> np.ndarray:
    """Inverse of a symmetric positive definite matrix.

    Raises
    ------
    ValueError
        If it is not positive definite.
    """
    factor, failed = lapack.dpotrf(matrix.T, lower=True)  # the transpose is what LAPACK need not rearrange
    if not failed:
        inverse, failed = lapack.dpotri(factor, lower=True, overwrite_c=True)
    if failed:
        raise _not_positive(matrix, name)
    inverse = inverse + inverse.T  # the other half of a factor is zero
    inverse[np.diag_indices(len(inverse))] /= 2
    return inverse


def whitened(X: Any, factor: np.ndarray | None) -> Any:
    """Column-centred patterns (row, feature) times what `whitening_factor` gives, in the precision of `X`."""
    X = _centred(X)
    if factor is None:
        return X
    factor = cast(like(factor, X), X)
    return X * factor if factor.ndim == 1 else product(X, factor.T)


def _rates(X: Any, prior: tuple[float, float], name: str = "X") -> np.ndarray:
    """Counts as expected rates under a gamma prior, float64; NaN stays."""
    X = host(X)
    expected, weight = prior
    if not (expected >= 0 and weight >= 0):
        raise ValueError(f"prior={prior!r}; expected (rate, weight), neither below zero.")
    with np.errstate(invalid="ignore"):
        negative = int((X < 0).sum())
        if negative:
            raise ValueError(f"{name} holds {negative} negative values; Poisson methods take counts or rates.")
        if expected * weight == 0 and (X == 0).any():
            raise ValueError(f"prior={prior!r} leaves zero counts at zero; give a rate and a weight above zero.")
        return (X + expected * weight) / (1 + weight)


def poisson(X: Any, prior: tuple[float, float] = (1.0, 0.1)) -> np.ndarray:
    """Symmetrised Kullback-Leibler divergence of Poisson rates per feature, for every pair of stimuli.

    ``sum((l_i - l_j) * (log l_i - log l_j)) / n_features``, the sum of the two divergences, without a factor 1/2,
    with ``l = (x + rate * weight) / (1 + weight)``.

    Parameters
    ----------
    X : array or tensor of shape (stimulus, feature)
        Counts or rates. NaN where a feature was not measured: a pair then counts the features that both have.
    prior : (rate, weight)
        Mean of a gamma prior, and the number of observations that it is worth.

    Returns
    -------
    ndarray of float64, shape (pair,)
        Not below zero; NaN for pairs without a feature in common.

    Raises
    ------
    ValueError
        For negative counts, or a prior that leaves a rate at zero.

    References
    ----------
    Schuett et al. (2023), eLife 12:e82566.
    """
    rates = _rates(X, prior)
    known = np.isfinite(rates)
    mask = known.astype(np.float64)
    count = mask @ mask.T
    left, right = _centred_known(rates, known), _centred_known(np.log(np.where(known, rates, 1)), known)
    own = (left * right) @ mask.T
    size = np.abs(left * right) @ mask.T
    cross = left @ right.T
    total = own + own.T - cross - cross.T
    first, second = np.nonzero(np.triu(total < CLOSE * (size + size.T), 1))
    for pairs in blocks(len(first), rates.shape[1]):
        i, j = first[pairs], second[pairs]
        terms = (rates[i] - rates[j]) * (np.log(rates[i]) - np.log(rates[j]))
        total[i, j] = np.where(known[i] & known[j], terms, 0).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return upper_triangle(np.where(count > 0, total / count, np.nan))


def _centred_known(X: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Columns without the mean of what is known, zero elsewhere: differences of rows do not change."""
    X = np.where(known, X, 0)
    return np.where(known, X - X.sum(0) / np.maximum(known.sum(0), 1), 0)


def poisson_cv(folds: Any, prior: tuple[float, float] = (1.0, 0.1)) -> np.ndarray:
    """Cross-validated symmetrised Poisson divergence per feature, for every pair of stimuli.

    The mean over folds of ``sum((l_i - l_j) * (log t_i - log t_j)) / n_features``, t the rates of the fold and l
    those of the mean of the other folds.

    Parameters
    ----------
    folds : array or tensor of shape (fold, stimulus, feature)
        Mean counts per fold. A row that is not finite is a stimulus that the fold lacks.
    prior : (rate, weight)
        See `poisson`.

    Returns
    -------
    ndarray of float64, shape (pair,)
        Negative values occur; NaN for pairs without a fold that holds both and leaves both somewhere else.

    Raises
    ------
    ValueError
        For fewer than two folds, negative counts, or a prior that leaves a rate at zero.

    References
    ----------
    Schuett et al. (2023), eLife 12:e82566.
    """
    _check_folds(folds)
    folds = host(folds)
    present = np.isfinite(folds).all(2)
    counts = np.where(present[..., None], folds, 0)
    _rates(counts, prior, "folds")  # refuses what it cannot take before anything is subtracted
    total, n_present = counts.sum(0), present.sum(0)
    n_stimuli, n_features = counts.shape[1:]
    summed, count = np.zeros((n_stimuli, n_stimuli)), np.zeros((n_stimuli, n_stimuli))
    for fold, here in zip(counts, present, strict=True):
        rows = np.flatnonzero(here & (n_present > 1))
        others = np.maximum(total[rows] - fold[rows], 0)  # rounding of sums is no negative count
        train = _rates(others / (n_present[rows] - 1)[:, None], prior, "folds")
        test = np.log(_rates(fold[rows], prior, "folds"))
        gram = _centred(train) @ _centred(test).T
        diagonal = np.diagonal(gram)
        summed[np.ix_(rows, rows)] += diagonal[:, None] + diagonal - gram - gram.T
        count[np.ix_(rows, rows)] += 1
    with np.errstate(invalid="ignore", divide="ignore"):
        return upper_triangle(summed / count / n_features)
