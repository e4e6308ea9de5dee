"""Matching of units: for every unit of one representation, which unit or units of the other do the same."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod

import numpy as np
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import coo_array, eye_array, kron, vstack
from scipy.spatial.distance import cdist
from sklearn.base import BaseEstimator
from sklearn.linear_model import Lasso

from ...datasets.errors import unknown
from .cards import SimilarityCard, centred, measure, prepared, prepared_as_fitted, undefined

BY = ("correlation", "distance")

# Units up to which unequal numbers are repeated until both sides have as many: then a plan is an assignment.
REPEATED = 2000

# Entries of the plan up to which a linear programme finds it, at about a kilobyte of memory each.
LARGEST_PLAN = 2_000_000


class _UnitMatching(BaseEstimator, ABC):
    """Weights over pairs of units, found on some stimuli; the score is their mean correlation on others.

    On the stimuli of the fit, the best of many noisy correlations is above zero by chance alone.
    """

    _name = ""

    @abstractmethod
    def _plan(self, correlations: np.ndarray) -> coo_array:
        """Weights of the pairs of units that go together, from all correlations (p, q)."""

    def fit(self, X: np.ndarray, Y: np.ndarray) -> _UnitMatching:
        """Match the units of X (stimulus, p) with those of Y (stimulus, q), into ``plan_`` (p, q)."""
        X, Y = prepared(X, Y, self._name)
        units, curves = zip(*(_varying(side, name) for side, name in ((X, "X"), (Y, "Y"))), strict=True)
        plan = self._plan(curves[0].T @ curves[1])
        shape = X.shape[1], Y.shape[1]
        self.plan_ = coo_array((plan.data, (units[0][plan.row], units[1][plan.col])), shape=shape)
        return self

    def score(self, X: np.ndarray, Y: np.ndarray) -> float:
        """Mean correlation of matched units over these stimuli; pairs that do not vary here are left out."""
        X, Y = prepared_as_fitted(X, Y, self._name, self.plan_.shape)
        x, y = _unit_length(X[:, self.plan_.row]), _unit_length(Y[:, self.plan_.col])
        known = np.asarray(x.any(0) & y.any(0))
        if not known.any():
            return undefined(self._name, "no matched pair of units varies over the stimuli")
        if not known.all():
            warnings.warn(f"{(~known).sum()} of {len(known)} matched pairs do not vary and are left out.", stacklevel=2)
        return float(np.average(np.einsum("ij,ij->j", x, y)[known], weights=self.plan_.data[known]))


class BipartiteMatching(_UnitMatching):
    """One unit of X to one unit of Y, so that the sum of correlations is largest (Li et al. 2016).

    Units of the larger side that find no partner are left out.
    """

    _name = "bipartite-matching"

    def _plan(self, correlations: np.ndarray) -> coo_array:
        rows, columns = linear_sum_assignment(correlations, maximize=True)
        return _pairs(rows, columns, correlations.shape)


class SemiMatching(_UnitMatching):
    """Every unit with its best partner, who may be the partner of many (Li et al. 2016).

    Parameters
    ----------
    symmetric : bool
        Mean of both directions; otherwise the units of X look for a partner, and units of Y may go without.
    """

    _name = "semi-matching"

    def __init__(self, symmetric: bool = False) -> None:
        self.symmetric = symmetric

    def _plan(self, correlations: np.ndarray) -> coo_array:
        p, q = correlations.shape
        forth = _pairs(np.arange(p), correlations.argmax(1), (p, q))
        if not self.symmetric:
            return forth
        back = _pairs(correlations.argmax(0), np.arange(q), (p, q))
        return ((forth + back) / 2).tocoo()


class SoftMatching(_UnitMatching):
    """Soft matching: every unit of X shares out weight 1 / p, every unit of Y takes in 1 / q.

    The plan is optimal transport between the two sets of tuning curves; with p = q it is a permutation.

    Parameters
    ----------
    by : {"correlation", "distance"}
        The largest mean correlation; or the least ``sqrt(sum_ij P_ij |x_i - y_j|^2)`` over plans P, for tuning
        curves less their means, in the units of the data. Units that do not vary take part in the second alone.

    References
    ----------
    Khosla & Williams (2024), UniReps, PMLR 243:326.
    """

    _name = "soft-matching"

    def __init__(self, by: str = "correlation") -> None:
        self.by = by

    def _plan(self, correlations: np.ndarray) -> coo_array:
        return transport(correlations)

    def fit(self, X: np.ndarray, Y: np.ndarray) -> SoftMatching:
        """Best plan between the units of X (stimulus, p) and of Y (stimulus, q), into ``plan_`` (p, q)."""
        if self.by not in BY:
            raise ValueError(unknown("by", self.by, BY))
        if self.by == "correlation":
            super().fit(X, Y)
        else:
            X, Y = prepared(X, Y, self._name)
            self.plan_ = transport(-cdist(centred(X).T, centred(Y).T, "sqeuclidean"))
        return self

    def score(self, X: np.ndarray, Y: np.ndarray) -> float:
        """Mean correlation of matched units over these stimuli, or the distance."""
        if self.by == "correlation":
            return super().score(X, Y)
        X, Y = prepared_as_fitted(X, Y, self._name, self.plan_.shape)
        difference = centred(X)[:, self.plan_.row] - centred(Y)[:, self.plan_.col]
        return float(np.sqrt((difference**2).sum(0) @ self.plan_.data))


class SparsePrediction(BaseEstimator):
    """Every unit of Y as a sum of few units of X: least squares with an L1 penalty (Li et al. 2016).

    Parameters
    ----------
    penalty : float
        For units scaled to sd 1 on both sides: a predictor enters when its correlation with what is left to
        explain exceeds this. The paper sweeps it over powers of ten from 1 to 1e-5.

    Attributes
    ----------
    weights_ : ndarray of shape (p, q)
    n_predictors_ : ndarray of shape (q,)
        Units of X that a unit of Y is predicted from.
    """

    def __init__(self, penalty: float = 0.1) -> None:
        self.penalty = penalty

    def fit(self, X: np.ndarray, Y: np.ndarray) -> SparsePrediction:
        """Weights from X (stimulus, p) to Y (stimulus, q)."""
        X, Y = prepared(X, Y, "sparse-prediction")
        self.mean_, self.weights_ = X.mean(0), _sparse_weights(X, Y, self.penalty)
        self.n_predictors_ = (self.weights_ != 0).sum(0)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predicted deviations of Y from its means, (stimulus, q)."""
        return (X - self.mean_) @ self.weights_

    def score(self, X: np.ndarray, Y: np.ndarray) -> float:
        """Correlation of prediction and unit over these stimuli, averaged over units of Y that vary."""
        X, Y = prepared_as_fitted(X, Y, "sparse-prediction", self.weights_.shape)
        return _mean_correlation(self.predict(X), Y)


def transport(gain: np.ndarray) -> coo_array:
    """Plan P (p, q) with the largest ``sum P * gain``, whose rows sum to 1 / p and columns to 1 / q.

    Equal numbers of units are an assignment problem, and so are numbers whose least common multiple is small
    enough to repeat the units; the others go to a linear programme.

    Raises
    ------
    ValueError
        For more than `LARGEST_PLAN` pairs of units in numbers that do not go into one another.
    """
    p, q = gain.shape
    common = math.lcm(p, q)
    if common <= max(REPEATED, p, q):
        rows, columns = linear_sum_assignment(
            np.repeat(np.repeat(gain, common // p, axis=0), common // q, axis=1), maximize=True
        )
        weights = np.full(common, 1 / common)
        plan = coo_array((weights, (rows // (common // p), columns // (common // q))), shape=(p, q))
        plan.sum_duplicates()
        return plan
    if p * q > LARGEST_PLAN:
        raise ValueError(
            f"X has {p} and Y {q} units: a plan of {p * q} pairs is beyond {LARGEST_PLAN}. Take as many units on both "
            "sides, or a multiple: then matching is an assignment, which is quick."
        )
    sums = vstack([kron(eye_array(p), np.ones((1, q))), kron(np.ones((1, p)), eye_array(q))]).tocsr()
    marginals = np.concatenate([np.full(p, 1 / p), np.full(q, 1 / q)])
    # One of the sums follows from the others.
    found = linprog(-gain.ravel(), A_eq=sums[:-1], b_eq=marginals[:-1], method="highs-ds")
    if found.status:
        raise RuntimeError(f"no transport plan was found: {found.message}")
    return coo_array(np.where(found.x > 0, found.x, 0).reshape(p, q))


def _pairs(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> coo_array:
    return coo_array((np.full(len(rows), 1 / len(rows)), (rows, columns)), shape=shape)


def _varying(X: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(positions, curves of length 1) of the units that vary over stimuli; the others are counted in a warning."""
    units = np.flatnonzero(np.ptp(X, axis=0))
    left_out = X.shape[1] - len(units)
    if left_out:
        warnings.warn(f"{left_out} of {X.shape[1]} units of {name} do not vary and are left out.", stacklevel=3)
    return units, _unit_length(X[:, units])


def _unit_length(X: np.ndarray) -> np.ndarray:
    """Columns centred and scaled to length 1, so that inner products are correlations; 0 where constant."""
    X = centred(X)
    length = np.linalg.norm(X, axis=0)
    return X / np.where(length > 0, length, 1.0)


def _scaled(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns centred and scaled to sd 1 (0 where constant), and the scales."""
    X = centred(X)
    sd = X.std(0)
    scale = np.where(sd > 0, sd, 1.0)
    return X / scale, scale


def _sparse_weights(X: np.ndarray, Y: np.ndarray, penalty: float) -> np.ndarray:
    """Weights (p, q) of L1-penalised least squares on scaled units, in the units of the data."""
    if not penalty > 0:
        raise ValueError(f"penalty={penalty!r}; expected a positive number, below 1 for any predictor at all.")
    x, scale_x = _scaled(X)
    y, scale_y = _scaled(Y)
    lasso = Lasso(alpha=penalty, fit_intercept=False, precompute=x.T @ x, max_iter=100_000, tol=1e-12)
    weights = np.reshape(lasso.fit(x, y).coef_, (Y.shape[1], X.shape[1])).T
    return weights / scale_x[:, None] * scale_y


def _mean_correlation(predicted: np.ndarray, Y: np.ndarray) -> float:
    """Mean over the columns of Y that vary; a prediction that does not vary has learnt nothing and counts 0."""
    r = np.einsum("ij,ij->j", _unit_length(predicted), _unit_length(Y))
    return float(r[np.ptp(Y, axis=0) > 0].mean())


@measure(
    SimilarityCard(
        name="soft-matching",
        title="Soft matching of units",
        formula="max sum_ij P_ij corr(x_i, y_j) over P >= 0 with rows summing to 1/p and columns to 1/q",
        citation="Khosla & Williams (2024), UniReps, PMLR 243:326",
        low=-1.0,
        high=1.0,
        larger_is_more_similar=True,
        symmetric=True,
        metric=True,
        distance="arccos",
        biased=True,
        unbiased_form="cross-validate",
        invariances=frozenset({"permutation", "feature-scaling", "translation"}),
        fits=True,
    ),
    SoftMatching,
)
def soft_matching(X: np.ndarray, Y: np.ndarray, by: str = "correlation") -> float:
    """Score of `SoftMatching`, matched and scored on the same stimuli."""
    return SoftMatching(by).fit(X, Y).score(X, Y)


@measure(
    SimilarityCard(
        name="bipartite-matching",
        title="One-to-one matching of units",
        formula="mean of corr(x_i, y_m(i)) over the min(p, q) pairs of the matching m with the largest sum",
        citation="Li et al. (2016), ICLR, arXiv 1511.07543",
        low=-1.0,
        high=1.0,
        larger_is_more_similar=True,
        symmetric=True,
        metric=False,
        biased=True,
        unbiased_form="cross-validate",
        invariances=frozenset({"permutation", "feature-scaling", "translation"}),
        fits=True,
    ),
    BipartiteMatching,
)
def bipartite_matching(X: np.ndarray, Y: np.ndarray) -> float:
    """Score of `BipartiteMatching`, matched and scored on the same stimuli."""
    return BipartiteMatching().fit(X, Y).score(X, Y)


@measure(
    SimilarityCard(
        name="semi-matching",
        title="Best partner of every unit",
        formula="mean_i max_j corr(x_i, y_j)",
        citation="Li et al. (2016), ICLR, arXiv 1511.07543",
        low=-1.0,
        high=1.0,
        larger_is_more_similar=True,
        symmetric=False,
        metric=False,
        biased=True,
        unbiased_form="cross-validate",
        invariances=frozenset({"permutation", "feature-scaling", "translation"}),
        fits=True,
    ),
    SemiMatching,
)
def semi_matching(X: np.ndarray, Y: np.ndarray, symmetric: bool = False) -> float:
    """Score of `SemiMatching`, matched and scored on the same stimuli. No transport, though some call it soft."""
    return SemiMatching(symmetric).fit(X, Y).score(X, Y)


@measure(
    SimilarityCard(
        name="sparse-prediction",
        title="Prediction of units from few units",
        formula="mean over units of Y of the correlation with their prediction from X, L1-penalised least squares "
        "fitted to the other folds of the stimuli; folds are drawn by row, so the value depends on the order of the "
        "stimuli: average over seed",
        citation="Li et al. (2016), ICLR, arXiv 1511.07543",
        low=-1.0,
        high=1.0,
        larger_is_more_similar=True,
        symmetric=False,
        metric=False,
        biased=False,
        invariances=frozenset({"permutation", "feature-scaling", "translation"}),
        fits=True,
        fewest_stimuli=5,
    ),
    SparsePrediction,
)
def sparse_prediction(X: np.ndarray, Y: np.ndarray, penalty: float = 0.1, folds: int = 5, seed: int = 0) -> float:
    """Cross-validated `SparsePrediction` of the units of Y from those of X.

    Folds are drawn by row: the same stimuli in another order fall into other folds and give another value. Where that
    matters, average over several values of `seed`.

    Parameters
    ----------
    X, Y : arrays of shape (stimulus, unit)
    penalty : float
        See `SparsePrediction`.
    folds : int
        Parts of the stimuli that are predicted in turn; the correlation is over all of them together.
    seed : int
        Of the random parts.
    """
    n = len(X)
    if not 2 <= folds <= n:
        raise ValueError(f"folds={folds!r}; expected 2 to {n} for {n} stimuli.")
    predicted = np.empty(Y.shape)
    parts = np.array_split(np.random.default_rng(seed).permutation(n), folds)
    for test in parts:
        train = np.setdiff1d(np.arange(n), test)
        predicted[test] = (X[test] - X[train].mean(0)) @ _sparse_weights(X[train], Y[train], penalty)
    return _mean_correlation(predicted, Y)
