"""Partial least squares regression, with every number of components from one fit.

The covariance of features and responses does not change when either side is rotated. Centred features are
U diag(s) V', so that the whole iteration runs on the singular values s and on what U'Y, or its Gram matrix
where there are many units, holds of the responses: two Gram products first, and after them nothing grows with
the number of features or units until the weights are wanted.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ..device import pick_device
from .folds import Rows
from .low_rank import (
    EPS,
    Axes,
    LowRankRegressor,
    Responses,
    RunningMean,
    checked_counts,
    choose_first,
    left_out,
    nested_scores,
    principal_axes,
    spread_over_units,
    unscored,
)


def dominant_eigenvector(apply: Callable[[Tensor], Tensor], like: Tensor) -> tuple[float, Tensor]:
    """Largest eigenvalue and its eigenvector of a positive semidefinite matrix, to rounding.

    Lanczos with full reorthogonalisation. The start is a fixed draw, which decides nothing but which vector of
    a tied eigenspace is found; unlike a column of the matrix it is orthogonal to no eigenvector of a balanced
    design.

    Parameters
    ----------
    apply : callable
        Product of the matrix with a vector.
    like : Tensor of float64, shape (size,)
        Size and device.
    """
    size = len(like)
    start = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(like.device)
    basis = torch.empty(min(size, 32), size, dtype=torch.float64, device=like.device)
    basis[0] = start / start.norm()
    diagonal, beside = np.empty(size), np.empty(size)
    check = 4
    for step in range(size):
        product = apply(basis[step])
        diagonal[step] = float(basis[step] @ product)
        for _ in range(2):  # once leaves what cancellation left
            product = product - basis[: step + 1].T @ (basis[: step + 1] @ product)
        beside[step] = float(product.norm())
        exhausted = step + 1 == size or beside[step] <= EPS * np.abs(diagonal[: step + 1]).max()
        if exhausted or step + 1 >= check:
            small = np.diag(diagonal[: step + 1]) + np.diag(beside[:step], -1)
            values, vectors = np.linalg.eigh(small)
            if exhausted or beside[step] * abs(vectors[-1, -1]) <= EPS * values[-1]:
                break
            check = int(1.25 * check) + 1
        if step + 1 == len(basis):
            basis = torch.cat([basis, torch.empty_like(basis)])
        basis[step + 1] = product / beside[step]
    vector = torch.from_numpy(vectors[:, -1].copy()).to(like.device) @ basis[: len(vectors)]
    return float(values[-1]), vector / vector.norm()


def pls_components(singular: Tensor, responses: Tensor, is_gram: bool, count: int) -> Tensor:
    """Scores of the components, orthonormal, along the principal axes.

    For each component the weights w are the dominant left singular vector of what the components before it
    leave of X'Y. With the scores T so far that is ``diag(s) (I - T T') N``; the next score is
    ``(I - T T') diag(s) w``, of norm 1. Only the responses are deflated, by projection, and scores are
    orthogonalised twice.

    Parameters
    ----------
    singular : Tensor of float64, shape (axis,)
        s, the singular values of X.
    responses : Tensor of float64, shape (axis, unit), or (axis, axis) if `is_gram`
        N, the responses along the axes, or ``N N'``.
    is_gram : bool
    count : int
        Number of components wanted.

    Returns
    -------
    Tensor of float64, shape (axis, component)
        Fewer components where the axes, or the covariance with the responses, are used up.
    """
    r = len(singular)
    T = torch.empty(r, min(count, r), dtype=torch.float64, device=singular.device)
    # What rounding leaves of a covariance that is used up: squares of it are known to EPS, itself to EPS too.
    negligible = r * EPS if is_gram else r * (8 * EPS) ** 2
    left, first = responses, 0.0
    for k in range(T.shape[1]):
        M = singular[:, None] * left
        if is_gram:
            M *= singular
            value, w = dominant_eigenvector(M.__matmul__, singular)
        else:
            value, c = dominant_eigenvector(partial(_twice, M), M[0])
            w = M @ c
        first = max(first, value)
        if value <= negligible * first:
            return T[:, :k]
        score = singular * w
        for _ in range(2):
            score = score - T[:, :k] @ (T[:, :k].T @ score)
        T[:, k] = score = score / score.norm()
        left = left - torch.outer(score, score @ left)
        if is_gram:
            left = left - torch.outer(left @ score, score)
    return T


def _twice(M: Tensor, x: Tensor) -> Tensor:
    return M.T @ (M @ x)


def fit_components(X: Tensor, rows: Tensor, responses: Responses, count: int, scale: bool) -> tuple[Axes, Tensor]:
    """Principal axes of some rows and the components along them."""
    axes = principal_axes(X, rows, centre=True, scale=scale)
    return axes, pls_components(axes.singular, *responses.along(axes), count)


def cross_validate(
    X: Tensor, responses: Responses, folds: list[Rows], counts: np.ndarray, scale: bool, score: str
) -> np.ndarray:
    """Score of every number of components, averaged over folds, shape (count, unit)."""
    mean = RunningMean((len(counts), len(responses)))
    for train, test in folds:
        train_rows, test_rows = torch.from_numpy(train).to(X.device), torch.from_numpy(test).to(X.device)
        axes, T = fit_components(X, train_rows, responses, int(counts[-1]), scale)
        scores, own = axes.project(test_rows) @ T, axes.left @ T
        for part in responses.blocks():
            Y = responses.block(part, train_rows)[0]
            loadings = own.T @ Y[train_rows]
            mean.add(nested_scores(scores, loadings, Y[test_rows], counts, score), np.s_[:, part])
    return mean.result()


def mean_over_units(scores: np.ndarray) -> np.ndarray:
    """Mean over the units that have a score, shape (count, 1)."""
    mean = RunningMean((len(scores),))
    mean.add(torch.from_numpy(scores))
    return mean.result()[:, None]


class PLSRegression(LowRankRegressor):
    """Partial least squares regression from features to units, every number of components from one fit.

    The components are those of NIPALS regression (PLS2, PLS1 for one unit): each has the weights, of norm 1,
    whose score covaries most with the responses of all units, after the scores before it are taken out.

    Parameters
    ----------
    n_components : int, or sequence of int
        Number of components; several are tried by cross-validation.
    scale : bool
        Scale features and responses to unit variance; those that are constant stay as they are. The responses
        are scaled because the units share components, in which one of large variance counts for more.
    cv : int, scikit-learn splitter, or iterable of (train, test)
        Folds for several `n_components`. An int gives that many contiguous folds, or folds of whole groups
        where `fit` is given groups.
    score : {"r", "r2"}
        What the number of components maximises: the Pearson correlation or R^2, computed per fold and averaged
        over folds. A fold in which the responses, or for "r" the predictions, are constant is left out.
    per_unit : bool
        A number of components for each unit; otherwise one for all, the best on average over units.
    device : str
        Torch device; "auto" takes a CUDA device where there is one. The responses stay on the CPU and visit it
        block by block.

    Attributes
    ----------
    n_components_ : int, or ndarray of int, shape (unit,), with `per_unit` and several `n_components`
        Number of components used. Scores that only rounding can tell apart are ties, and ties go to the
        smaller number; 0 for units left out.
    rotations_ : ndarray, shape (feature, component)
        Weights of the scores, ``(X - feature_mean_) @ rotations_``, which are orthonormal over training rows.
    loadings_ : ndarray, shape (component, unit)
        Response of each unit to each score.
    coef_ : ndarray, shape (feature, unit)
        Weights at `n_components_`, in the dtype of X; multiplied at every look.
    intercept_ : ndarray, shape (unit,)
        Intercepts at `n_components_`.
    feature_mean_ : ndarray, shape (feature,)
    response_mean_ : ndarray, shape (unit,)
        Offsets taken out before the fit.
    counts_ : ndarray of int, shape (count,)
        The numbers of components given, ascending.
    cv_score_ : ndarray, shape (unit,)
        Cross-validated score at `n_components_`, where several were given. As a maximum it is a little optimistic.
    cv_scores_ : ndarray, shape (count, unit)
        Cross-validated score at every number of components, where several were given.
    n_features_in_ : int
        Number of features.

    Notes
    -----
    A vector y makes `cv_score_`, `intercept_` and `response_mean_` numbers, and drops the unit axis of the rest
    except `loadings_`.

    Units of a two-dimensional Y that hold NaN are left out, also from the components. Constant units are
    predicted as their constant. Where the rank of the features, or of their covariance with the responses, is
    smaller than the number of components, the fit stops there. One warning counts each kind.

    Gram matrices are float64 whatever the dtype of X; singular values of X below 1e-7 of the largest, or so,
    count as zero.

    References
    ----------
    Rännar, S., Lindgren, F., Geladi, P. & Wold, S. (1994). A PLS kernel algorithm for data sets with many
    variables and fewer objects. Part 1: theory and algorithm. Journal of Chemometrics 8, 111-125.

    de Jong, S. & ter Braak, C. J. F. (1994). Comments on the PLS kernel algorithm. Journal of Chemometrics 8,
    169-174.

    Dayal, B. S. & MacGregor, J. F. (1997). Improved PLS algorithms. Journal of Chemometrics 11, 73-85.

    Rosipal, R. & Trejo, L. J. (2001). Kernel partial least squares regression in reproducing kernel Hilbert
    space. Journal of Machine Learning Research 2, 97-123.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((100, 20))
    >>> Y = X @ rng.standard_normal((20, 3)) + rng.standard_normal((100, 3))
    >>> encoder = PLSRegression(n_components=5).fit(X, Y)
    >>> encoder.coef_.shape, encoder.predict(X, n_components=2).shape
    ((20, 3), (100, 3))
    """

    n_components_: Any

    def __init__(self, n_components=25, scale=False, cv=5, score="r", per_unit=False, device="auto"):
        self.n_components = n_components
        self.scale = scale
        self.cv = cv
        self.score = score
        self.per_unit = per_unit
        self.device = device

    def fit(self, X, Y, groups=None) -> PLSRegression:
        """Find the components, and their number by cross-validation where several are given.

        Parameters
        ----------
        X : array, shape (stimulus, feature)
            Features; float32 and float64 are kept, anything else becomes float64.
        Y : array, shape (stimulus, unit) or (stimulus,)
            Responses.
        groups : array, shape (stimulus,), or None
            Run, session or repeat of each row, for folds of whole groups.

        Returns
        -------
        PLSRegression
            The estimator itself.

        Raises
        ------
        ValueError
            If a parameter is out of its range, X holds NaN or infinite values, Y holds infinite values or no
            unit without NaN, or lengths do not match.
        """
        X, Y, complete = self._checked_data(X, Y)
        counts = checked_counts(self.n_components, "n_components")
        several = np.ndim(self.n_components) > 0
        score, folds = self._checked_folds(self.cv, X, Y, groups) if several else ("r", [])
        device, scale, vector = pick_device(self.device), bool(self.scale), Y.ndim == 1
        responses = Responses(Y.reshape(len(Y), -1), np.flatnonzero(complete), centre=True, scale=scale)
        features = torch.from_numpy(np.require(X, requirements=["C", "W"])).to(device)

        rows = torch.arange(len(X), device=device)
        axes, T = fit_components(features, rows, responses, int(counts[-1]), scale)
        own = axes.left @ T
        loadings = np.empty((T.shape[1], len(responses)), dtype=X.dtype)
        mean = np.empty(len(responses))
        for part in responses.blocks():
            block, block_mean, size = responses.block(part, rows)
            loadings[:, part] = ((own.T @ block) * size).cpu().numpy()
            mean[part] = block_mean.cpu().numpy()
        used = counts[-1:]  # one number for all, or one for each unit
        remarks = left_out(complete)
        if several:
            scores = cross_validate(features, responses, folds, counts, scale, score)
            basis = scores if self.per_unit else mean_over_units(scores)
            best = np.broadcast_to(choose_first(basis, 64 * float(np.finfo(X.dtype).eps)), len(responses))
            cv_score = scores[best, np.arange(len(responses))]
            used = counts[best] if self.per_unit else counts[best[:1]]
            self.cv_scores_ = spread_over_units(scores, complete, vector)
            self.cv_score_ = spread_over_units(cv_score, complete, vector)
            remarks += unscored(cv_score)
        else:
            self.__dict__.pop("cv_scores_", None)  # of an earlier fit
            self.__dict__.pop("cv_score_", None)
        used = np.minimum(used, T.shape[1])
        if several and self.per_unit and not vector:
            each = np.zeros(len(complete), dtype=np.int64)
            each[complete] = used
            self.n_components_ = each
        else:
            self.n_components_ = int(used[0])
        self.counts_ = counts
        self.rotations_ = axes.weights(T).cpu().numpy().astype(X.dtype)
        self.loadings_ = spread_over_units(loadings, complete, vector=False)
        self.feature_mean_ = axes.mean.cpu().numpy()
        self.response_mean_ = spread_over_units(mean, complete, vector)
        if T.shape[1] < counts[-1]:
            remarks.append(
                f"n_components={int(counts[-1])} is more than the {T.shape[1]} that the rank of X and Y allows; "
                f"the fit stops at {T.shape[1]}, and more predict the same"
            )
        for remark in remarks:
            warnings.warn(remark, UserWarning, stacklevel=2)
        return self

    def predict(self, X, n_components=None) -> np.ndarray:
        """Predicted responses.

        Parameters
        ----------
        X : array, shape (stimulus, feature)
        n_components : int, or None for `n_components_`
            Up to the largest number given to the estimator.

        Returns
        -------
        ndarray, shape (stimulus, unit), or (stimulus,) after a fit to a vector
            In the dtype of `coef_`; NaN for units left out of the fit.
        """
        check_is_fitted(self)
        return self._product(X, *self._factors(n_components))

    def weights(self, n_components=None) -> np.ndarray:
        """Weights of the features, as `coef_`, at a number of components, shape (feature, unit)."""
        return self._weights(*self._factors(n_components))

    @property
    def coef_(self) -> np.ndarray:
        """Weights at `n_components_`, shape (feature, unit)."""
        return self.weights()

    @property
    def intercept_(self) -> np.ndarray:
        """Intercepts at `n_components_`, shape (unit,)."""
        return self._intercept(*self._factors(None))

    def _factors(self, n_components: Any) -> tuple[np.ndarray, np.ndarray]:
        if n_components is None:
            kept = np.arange(len(self.loadings_))[:, None] < self.n_components_
            return self.rotations_, np.where(kept | np.isnan(self.loadings_), self.loadings_, 0)
        most = int(self.counts_[-1])
        whole = isinstance(n_components, (int, np.integer)) and not isinstance(n_components, bool)
        if not (whole and 1 <= n_components <= most):
            raise ValueError(
                f"n_components={n_components!r}: expected a whole number from 1 to {most}, the most that was fitted"
            )
        return self.rotations_[:, :n_components], self.loadings_[:n_components]
