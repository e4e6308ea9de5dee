"""Reduced-rank ridge regression, with every rank from one decomposition."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ..device import pick_device
from .estimator import checked_alphas
from .folds import Rows
from .low_rank import (
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

DEFAULT_ALPHAS = np.logspace(-2, 8, 11)


def fitted_axes(singular: Tensor, responses: Tensor, is_gram: bool, alpha: float, count: int) -> tuple[Tensor, Tensor]:
    """Components of the fitted values of ridge regression, along the principal axes of X.

    Ridge regression is least squares on rows ``sqrt(alpha) I`` added to X and zeros added to Y, and the best fit
    of rank k is that of those rows, cut to its leading singular vectors. With ``X = U diag(s) V'``, ``N = U'Y``
    and ``D = s^2 / (s^2 + alpha)``, it has the singular values of ``D^(1/2) N``; they come from the smaller of
    ``N' D N`` (unit) and ``D^(1/2) N N' D^(1/2)`` (axis). With left vectors E the fit is
    ``U P_k P_k' N``, ``P = D^(1/2) E``.

    Parameters
    ----------
    singular : Tensor of float64, shape (axis,)
    responses : Tensor of float64, shape (axis, unit), or (axis, axis) if `is_gram`
        N, or ``N N'``.
    is_gram : bool
    alpha : float
    count : int
        Number of components wanted, at most the smaller side of N.

    Returns
    -------
    directions : Tensor, shape (axis, component)
        P with columns of norm 1, the largest singular value first.
    loaders : Tensor, shape (axis, component)
        P times its norms: what turns N into loadings.
    """
    root = (singular / (singular.square() + alpha).sqrt())[:, None]
    shrunk = root * responses
    if is_gram:
        E = torch.linalg.eigh(shrunk * root.T)[1].flip(1)[:, :count]
    else:
        right = torch.linalg.eigh(shrunk.T @ shrunk)[1].flip(1)[:, :count]
        # Orthonormal also where singular values are too small for the Gram matrix to tell them apart.
        E = torch.linalg.qr(shrunk @ right)[0]
    P = root * E
    length = P.norm(dim=0)
    return P / length, P * length


def cross_validate(
    X: Tensor, responses: Responses, folds: list[Rows], alphas: np.ndarray, ranks: np.ndarray, score: str
) -> tuple[np.ndarray, np.ndarray]:
    """Score of every alpha and rank, one decomposition for each fold and alpha.

    Returns
    -------
    mean : ndarray, shape (alpha, rank)
        Over the folds and units in which the score is defined.
    scored : ndarray of bool, shape (unit,)
        Which units have a score in any fold.
    """
    mean = RunningMean((len(alphas), len(ranks)))
    scored = np.zeros(len(responses), dtype=bool)
    for train, test in folds:
        train_rows, test_rows = torch.from_numpy(train).to(X.device), torch.from_numpy(test).to(X.device)
        axes = principal_axes(X, train_rows, centre=responses.centre, scale=False)
        side, is_gram = responses.along(axes)
        projected, models = axes.project(test_rows), []
        for alpha in alphas.tolist():
            count = min(int(ranks[-1]), *side.shape)
            directions, loaders = fitted_axes(axes.singular, side, is_gram, alpha, count)
            models.append((projected @ directions, axes.left @ loaders))
        for part in responses.blocks():
            Y = responses.block(part, train_rows)[0]
            for i, (scores, own) in enumerate(models):
                values = nested_scores(scores, own.T @ Y[train_rows], Y[test_rows], ranks, score)
                mean.add(values, i)
                scored[part] |= (~values.isnan()).any(0).cpu().numpy()
    return mean.result(), scored


class ReducedRankRidge(LowRankRegressor):
    """Ridge regression of low rank: all units are predicted through a few shared directions.

    The weights B of rank k minimise ``||Y - X B||^2 + alpha ||B||^2`` over all B of that rank: they are those of
    ridge regression, projected on the leading principal directions of its fitted values, to which the rows for
    the penalty belong. One alpha and one rank for all units are found together by cross-validation. A fold
    learns offsets from its training rows only.

    Parameters
    ----------
    alphas : array of float, shape (alpha,), or None
        Penalties to try, above zero, without a factor of the number of stimuli. None takes 11 values from 1e-2
        to 1e8, one per decade.
    ranks : int, sequence of int, or None
        Ranks to try. None takes every rank; with many units, the largest rank sets the cost.
    cv : int, scikit-learn splitter, or iterable of (train, test)
        An int gives that many contiguous folds, or folds of whole groups where `fit` is given groups.
    score : {"r2", "r"}
        What alpha and rank maximise: R^2 or the Pearson correlation, averaged over folds and units. A fold in
        which the responses of a unit, or for "r" its predictions, are constant is left out.
    fit_intercept : bool
        Centre X and Y with the training rows.
    device : str
        Torch device; "auto" takes a CUDA device where there is one. The responses stay on the CPU and visit it
        block by block.

    Attributes
    ----------
    alphas_ : ndarray, shape (alpha,)
    ranks_ : ndarray of int, shape (rank,)
        What was tried, ascending.
    alpha_ : float
    rank_ : int
        The best of them. Scores that only rounding can tell apart are ties, and ties go to the smaller rank,
        then to the larger alpha.
    cv_score_ : float
        Cross-validated score at `alpha_` and `rank_`. As a maximum it is a little optimistic.
    cv_scores_ : ndarray, shape (alpha, rank)
        Cross-validated score of every pair.
    left_ : ndarray, shape (feature, rank)
        Weights of the directions.
    right_ : ndarray, shape (rank, unit)
        Directions in the space of units, orthonormal over the units that are fitted.
    coef_ : ndarray, shape (feature, unit)
        ``left_ @ right_``, in the dtype of X; multiplied at every look.
    intercept_ : ndarray, shape (unit,)
        Intercepts; zeros without `fit_intercept`.
    feature_mean_ : ndarray, shape (feature,)
    response_mean_ : ndarray, shape (unit,)
        Offsets taken out before the fit; zeros without `fit_intercept`.
    n_features_in_ : int
        Number of features.

    Notes
    -----
    Units of a two-dimensional Y that hold NaN are left out, also from the directions. Constant units are
    predicted as their constant. One warning counts each kind. A vector y makes `intercept_` and
    `response_mean_` numbers, and drops the unit axis of `coef_`; its rank is 1.

    Units of large variance count for more in the directions; scale Y where they should not.

    References
    ----------
    Mukherjee, A. & Zhu, J. (2011). Reduced rank ridge regression and its kernel extensions. Statistical
    Analysis and Data Mining 4, 612-622.

    Izenman, A. J. (1975). Reduced-rank regression for the multivariate linear model. Journal of Multivariate
    Analysis 5, 248-264.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((100, 20))
    >>> Y = X @ rng.standard_normal((20, 2)) @ rng.standard_normal((2, 9)) + rng.standard_normal((100, 9))
    >>> encoder = ReducedRankRidge().fit(X, Y)
    >>> encoder.rank_, encoder.left_.shape, encoder.right_.shape
    (2, (20, 2), (2, 9))
    """

    def __init__(self, alphas=None, ranks=None, cv=5, score="r2", fit_intercept=True, device="auto"):
        self.alphas = alphas
        self.ranks = ranks
        self.cv = cv
        self.score = score
        self.fit_intercept = fit_intercept
        self.device = device

    def fit(self, X, Y, groups=None) -> ReducedRankRidge:
        """Find alpha and rank by cross-validation, then the weights from all rows.

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
        ReducedRankRidge
            The estimator itself.

        Raises
        ------
        ValueError
            If a parameter is out of its range, X holds NaN or infinite values, Y holds infinite values or no
            unit without NaN, or lengths do not match.
        """
        X, Y, complete = self._checked_data(X, Y)
        alphas, centre, vector = (
            checked_alphas(DEFAULT_ALPHAS if self.alphas is None else self.alphas),
            bool(self.fit_intercept),
            Y.ndim == 1,
        )
        full = min(len(X) - centre, X.shape[1], int(complete.sum()))
        ranks = np.arange(1, full + 1) if self.ranks is None else checked_counts(self.ranks, "ranks")
        score, folds = self._checked_folds(self.cv, X, Y, groups)
        device = pick_device(self.device)
        responses = Responses(Y.reshape(len(Y), -1), np.flatnonzero(complete), centre=centre, scale=False)
        features = torch.from_numpy(np.require(X, requirements=["C", "W"])).to(device)

        scores, scored = cross_validate(features, responses, folds, alphas, ranks, score)
        simplest_first = scores[::-1].T.reshape(-1, 1)  # by rank, and for each rank from the largest alpha
        best = int(choose_first(simplest_first, 64 * float(np.finfo(X.dtype).eps))[0])
        at_rank, at_alpha = best // len(alphas), len(alphas) - 1 - best % len(alphas)

        rows = torch.arange(len(X), device=device)
        axes = principal_axes(features, rows, centre=centre, scale=False)
        side, is_gram = responses.along(axes)
        count = min(int(ranks[at_rank]), *side.shape)
        directions, loaders = fitted_axes(axes.singular, side, is_gram, float(alphas[at_alpha]), count)
        own = axes.left @ loaders
        right, mean = np.empty((count, len(responses))), np.empty(len(responses))
        for part in responses.blocks():
            block, block_mean, _ = responses.block(part, rows)
            right[:, part] = (own.T @ block).cpu().numpy()
            mean[part] = block_mean.cpu().numpy()
        length = np.linalg.norm(right, axis=1)
        left = axes.weights(directions).cpu().numpy() * length

        self.alphas_, self.ranks_ = alphas, ranks
        self.alpha_, self.rank_ = float(alphas[at_alpha]), count
        self.cv_scores_, self.cv_score_ = scores, float(scores[at_alpha, at_rank])
        self.left_ = left.astype(X.dtype)
        right /= np.where(length > 0, length, 1.0)[:, None]
        self.right_ = spread_over_units(right.astype(X.dtype), complete, vector=False)
        self.feature_mean_ = axes.mean.cpu().numpy()
        self.response_mean_ = spread_over_units(mean, complete, vector)
        remarks = left_out(complete) + unscored(np.where(scored, 0.0, np.nan))
        if ranks[-1] > full:
            remarks.append(f"ranks holds {int(ranks[-1])}; X and Y allow {full}, which stands for what is more")
        for remark in [*remarks, *_remarks(scores[:, at_rank], at_alpha, alphas)]:
            warnings.warn(remark, UserWarning, stacklevel=2)
        return self

    def predict(self, X) -> np.ndarray:
        """Predicted responses.

        Parameters
        ----------
        X : array, shape (stimulus, feature)

        Returns
        -------
        ndarray, shape (stimulus, unit), or (stimulus,) after a fit to a vector
            In the dtype of `coef_`; NaN for units left out of the fit.
        """
        check_is_fitted(self)
        return self._product(X, self.left_, self.right_)

    @property
    def coef_(self) -> np.ndarray:
        """Weights, shape (feature, unit)."""
        return self._weights(self.left_, self.right_)

    @property
    def intercept_(self) -> np.ndarray:
        """Intercepts, shape (unit,)."""
        return self._intercept(self.left_, self.right_)


def _remarks(scores: np.ndarray, chosen: int, alphas: np.ndarray) -> Iterator[str]:
    """A word where the score, shape (alpha,), still climbs at the end of the grid that was chosen."""
    inward = {0: 1, len(alphas) - 1: len(alphas) - 2}.get(chosen)
    if len(alphas) > 1 and inward is not None and scores[chosen] > max(0.0, scores[inward] + 1e-3):
        yield (
            f"alpha_={alphas[chosen]:g} lies at an end of the grid ({alphas[0]:g} to {alphas[-1]:g}), where the "
            "cross-validated score still climbs; pass wider alphas"
        )
