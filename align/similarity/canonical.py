"""Canonical correlations between two representations, their averages, and the same on held-out stimuli."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import svd
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from ...datasets.errors import unknown
from .cards import SimilarityCard, centred, measure, prepared, prepared_as_fitted, undefined

STATISTICS = ("mean", "mean-square")
SHARES = ("singular-values", "variance")

EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Components:
    """Principal components of one side: scores (stimulus, component), orthonormal and orthogonal to the
    constant, and the projection (feature, component) that gives them from centred features."""

    scores: np.ndarray
    projection: np.ndarray

    @property
    def rank(self) -> int:
        return self.scores.shape[1]


def components(X: np.ndarray, fraction: float = 1.0, of: str = "variance") -> Components:
    """The leading components of X (stimulus, feature): all above rounding, or those that make up a share."""
    if of not in SHARES:
        raise ValueError(unknown("of", of, SHARES))
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction!r} must be above 0 and at most 1: it is a share of the {of}.")
    U, s, Vt = svd(centred(X), full_matrices=False)
    rank = int((s > s[0] * max(X.shape) * EPSILON).sum())
    if fraction < 1:
        sizes = s[:rank] if of == "singular-values" else s[:rank] ** 2
        # A share that is reached exactly must not ask for one component more because of rounding.
        short = np.cumsum(sizes) < fraction * (1 - len(sizes) * EPSILON) * sizes.sum()
        rank = min(rank, int(short.sum()) + 1)
    return Components(U[:, :rank], Vt[:rank].T / s[:rank])


def canonical(x: Components, y: Components) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rotation of x, canonical correlations in descending order, rotation of y; as many as the smaller rank."""
    left, rho, right = svd(x.scores.T @ y.scores, full_matrices=False)
    return left, np.clip(rho, 0, 1), right.T


def projection_weights(
    X: np.ndarray, Y: np.ndarray, x: Components, y: Components, left: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """Weight of every canonical correlation (component,), summing to 1: see `PWCCA`."""
    features, variates = (X, x.scores @ left) if x.rank <= y.rank else (Y, y.scores @ right)
    weights = np.abs(variates.T @ centred(features)).sum(1)
    return weights / weights.sum()


class CCA(BaseEstimator):
    """Canonical correlation analysis: directions from some stimuli, correlations along them on others.

    Parameters
    ----------
    statistic : str
        "mean": mean of the canonical correlations rho_i, i up to the smaller rank. "mean-square": mean of
        rho_i^2, the R^2_CCA of Kornblith et al. (2019); in `score` each square keeps the sign of its
        correlation, so that noise averages to 0.

    Attributes
    ----------
    x_weights_, y_weights_ : ndarray of shape (feature, component)
    correlations_ : ndarray of shape (component,)
        On the stimuli of `fit`, in descending order.

    References
    ----------
    Hotelling (1936), Biometrika 28:321.
    """

    _name = "cca"

    def __init__(self, statistic: str = "mean") -> None:
        self.statistic = statistic

    def fit(self, X: Any, Y: Any) -> CCA:
        """Canonical directions of X (stimulus, p) and Y (stimulus, q), centred on their means over stimuli."""
        X, Y = prepared(X, Y, self._name)
        _check_statistic(self.statistic)
        for name, side in (("X", X), ("Y", Y)):
            if not np.ptp(side, axis=0).any():
                raise ValueError(f"{name} does not vary over the {len(side)} stimuli of fit; there is no direction.")
        x, y = self._components(X), self._components(Y)
        left, self.correlations_, right = canonical(x, y)
        self.x_mean_, self.y_mean_ = X.mean(0), Y.mean(0)
        self.x_weights_, self.y_weights_ = x.projection @ left, y.projection @ right
        self.component_weights_ = self._component_weights(X, Y, x, y, left, right)
        return self

    def transform(self, X: Any, Y: Any) -> tuple[np.ndarray, np.ndarray]:
        """Canonical variates of both sides, each of shape (stimulus, component), around the means of `fit`."""
        check_is_fitted(self)
        X, Y = prepared_as_fitted(X, Y, self._name, (len(self.x_mean_), len(self.y_mean_)))
        return (X - self.x_mean_) @ self.x_weights_, (Y - self.y_mean_) @ self.y_weights_

    def score(self, X: Any, Y: Any) -> float:
        """Average of the correlations between the variates of the two sides, over the stimuli given.

        NaN, with a warning, where a variate does not vary over them.
        """
        x, y = (centred(side) for side in self.transform(X, Y))
        norms = np.linalg.norm(x, axis=0) * np.linalg.norm(y, axis=0)
        if not norms.all():
            return undefined(self._name, f"{int((norms == 0).sum())} canonical variates do not vary over these stimuli")
        rho = np.einsum("sc,sc->c", x, y) / norms
        return float(self.component_weights_ @ (rho * np.abs(rho) if self.statistic == "mean-square" else rho))

    def _components(self, X: np.ndarray) -> Components:
        return components(X)

    def _component_weights(
        self, X: np.ndarray, Y: np.ndarray, x: Components, y: Components, left: np.ndarray, right: np.ndarray
    ) -> np.ndarray:
        n = min(x.rank, y.rank)
        return np.full(n, 1 / n)


class SVCCA(CCA):
    """CCA of the leading principal components of either side.

    Parameters
    ----------
    statistic : str
        See `CCA`.
    fraction : float
        The fewest components are kept whose singular values, in descending order, add up to this share.
    of : str
        What is added up: "singular-values" themselves, as most code under this name does, or their squares,
        the "variance", which keeps fewer components.

    References
    ----------
    Raghu et al. (2017), NeurIPS, arXiv 1706.05806.
    """

    _name = "svcca"

    def __init__(self, statistic: str = "mean", fraction: float = 0.99, of: str = "singular-values") -> None:
        super().__init__(statistic)
        self.fraction = fraction
        self.of = of

    def _components(self, X: np.ndarray) -> Components:
        return components(X, self.fraction, self.of)


class PWCCA(CCA):
    """CCA whose correlations are weighted by what each canonical variate accounts for on the smaller side.

    The weight of variate h_i (norm 1 over stimuli) is ``sum_j |<h_i, x_j>|`` over the centred features x_j of
    the side of smaller rank (of X when both are equal), divided by the sum of all weights; in `score` it is
    that of the stimuli of `fit`.

    References
    ----------
    Morcos, Raghu & Bengio (2018), NeurIPS, arXiv 1806.05759.
    """

    _name = "pwcca"

    def __init__(self) -> None:
        super().__init__("mean")

    def _component_weights(
        self, X: np.ndarray, Y: np.ndarray, x: Components, y: Components, left: np.ndarray, right: np.ndarray
    ) -> np.ndarray:
        return projection_weights(X, Y, x, y, left, right)


@measure(
    SimilarityCard(
        name="cca",
        title="Mean canonical correlation",
        formula="mean_i rho_i, rho the singular values of Qx'Qy, Qx and Qy orthonormal bases of Xc and Yc, "
        "i up to the smaller rank",
        citation="Hotelling (1936), Biometrika 28:321; R^2_CCA: Kornblith et al. (2019), ICML, arXiv 1905.00414",
        low=0.0,
        high=1.0,
        larger_is_more_similar=True,
        symmetric=True,
        metric=False,
        biased=True,
        unbiased_form="cross-validate",
        invariances=frozenset({"affine"}),
        fits=True,
    ),
    CCA,
)
def cca(X: np.ndarray, Y: np.ndarray, *, statistic: str = "mean") -> float:
    """Mean of the canonical correlations, all of them, or of their squares (statistic="mean-square").

    NaN, with a warning, where a side spans all stimuli (as with as many features as stimuli): every
    correlation is then 1 whatever the other side is. Below that, chance grows with the features: of
    independent Gaussians the mean is .43 at n = 200 and p = q = 50. `estimator("cca")` scores held-out
    stimuli.
    """
    return _in_sample(X, Y, components(X), components(Y), "cca", statistic)


@measure(
    SimilarityCard(
        name="svcca",
        title="Mean canonical correlation of leading principal components",
        formula="mean_i rho_i of the components of X and of Y whose singular values make up 99 % of their sum",
        citation="Raghu et al. (2017), NeurIPS, arXiv 1706.05806",
        low=0.0,
        high=1.0,
        larger_is_more_similar=True,
        symmetric=True,
        metric=False,
        biased=True,
        unbiased_form="cross-validate",
        invariances=frozenset({"orthogonal", "isotropic-scaling", "translation"}),
        fits=True,
    ),
    SVCCA,
)
def svcca(
    X: np.ndarray, Y: np.ndarray, *, statistic: str = "mean", fraction: float = 0.99, of: str = "singular-values"
) -> float:
    """CCA of leading principal components; for the options see `SVCCA`, for NaN and chance `cca`."""
    return _in_sample(X, Y, components(X, fraction, of), components(Y, fraction, of), "svcca", statistic)


@measure(
    SimilarityCard(
        name="pwcca",
        title="Projection-weighted canonical correlation",
        formula="sum_i a_i rho_i / sum_i a_i, a_i = sum_j |<h_i, x_j>|, h_i the canonical variates and x_j the "
        "features of the side of smaller rank (X when equal)",
        citation="Morcos, Raghu & Bengio (2018), NeurIPS, arXiv 1806.05759",
        low=0.0,
        high=1.0,
        larger_is_more_similar=True,
        symmetric=False,
        metric=False,
        biased=True,
        unbiased_form="cross-validate",
        invariances=frozenset({"permutation", "isotropic-scaling", "translation"}),
        fits=True,
    ),
    PWCCA,
)
def pwcca(X: np.ndarray, Y: np.ndarray) -> float:
    """CCA weighted by the smaller side, see `PWCCA`; for NaN and chance see `cca`."""
    return _in_sample(X, Y, components(X), components(Y), "pwcca", "mean")


def _in_sample(X: np.ndarray, Y: np.ndarray, x: Components, y: Components, name: str, statistic: str) -> float:
    """Average of the canonical correlations over the stimuli that the directions are taken from."""
    _check_statistic(statistic)
    full = [side for side, found in (("X", x), ("Y", y)) if found.rank == len(X) - 1]
    if full:
        spans = "X and Y each span" if len(full) == 2 else f"{full[0]} spans"
        return undefined(
            name,
            f"{spans} all {len(X)} stimuli, so that every canonical correlation is 1; use fewer features, or "
            f'estimator("{name}") on held-out stimuli',
        )
    left, rho, right = canonical(x, y)
    if name == "pwcca":
        return float(projection_weights(X, Y, x, y, left, right) @ rho)
    return float(np.mean(rho**2 if statistic == "mean-square" else rho))


def _check_statistic(statistic: str) -> None:
    if statistic not in STATISTICS:
        raise ValueError(unknown("statistic", statistic, STATISTICS))
