"""Heads in closed form: ridge from what attention pools to the responses."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...datasets.errors import unknown
from ..linear.estimator import checked_alphas
from ..linear.ridge import Ridge, RidgeCV
from ..spatial.tokens import Tokens
from .modules import RoutedResponses, Router, combined
from .regions import Patterns

FEATURES = ("pooled", "token")
_MEMORY = 2**30  # bytes of routed features at a time
_FEWEST = 3  # rows that a correlation needs


@dataclass(frozen=True, eq=False)
class ClosedForm:
    """Ridge heads of units.

    Attributes
    ----------
    weight : ndarray of float32, shape (unit, feature)
    bias : ndarray of float32, shape (unit,)
    r : ndarray, shape (unit,)
        Correlation on the rows that penalties were chosen by, NaN where it is undefined.
    alpha : ndarray, shape (unit,)
        Penalty; NaN for units without enough rows, which have no head.
    """

    weight: np.ndarray
    bias: np.ndarray
    r: np.ndarray
    alpha: np.ndarray


def routed_features(
    router: Router,
    found: Patterns,
    standardised: Callable[[np.ndarray], Tensor],
    tokens: Tokens,
    rows: np.ndarray,
    kind: str,
) -> Iterator[tuple[int, np.ndarray]]:
    """What the units of each pattern are predicted from: (pattern, features of shape (row, feature)).

    Features of "pooled" are the standardised tokens that each head pools, side by side; those of "token" the routed
    token. The tokens are read once for as many patterns as fit into memory together.
    """
    width = router.heads * router.n_features if kind == "pooled" else router.width
    step = max(_MEMORY // (4 * len(rows) * width), 1)
    n_patterns = len(found.sizes)
    for first in range(0, n_patterns, step):
        block = found.rows(first, min(first + step, n_patterns))
        used = np.flatnonzero(block.any(0))
        queries = slice(int(used[0]), int(used[-1]) + 1)
        combine = torch.from_numpy(np.ascontiguousarray(block[:, queries])).to(next(router.parameters()).device)
        out = np.empty((len(rows), len(block), width), np.float32)
        done = 0
        with torch.no_grad():
            for chunk in tokens.chunks(rows):
                z = router.pooled(standardised(chunk), queries)
                features = z.flatten(2) if kind == "pooled" else router.from_pooled(z)
                out[done : done + len(chunk)] = torch.matmul(combine, features).cpu().numpy()
                done += len(chunk)
        for i in range(len(block)):
            yield first + i, out[:, i]


def closed_form_heads(
    features: Iterator[tuple[int, np.ndarray]],
    width: int,
    members: list[np.ndarray],
    Y: np.ndarray,
    known: np.ndarray,
    cv: Any,
    alphas: np.ndarray,
    device: str = "auto",
) -> ClosedForm:
    """Ridge from routed features to the units of each pattern, with a penalty for each unit.

    Parameters
    ----------
    features : iterator of (pattern, ndarray of shape (row, feature))
    width : int
        Number of features.
    members : list of ndarray of int
        Units of each pattern.
    Y : ndarray, shape (row, unit)
    known : ndarray of bool, shape (row, unit)
        Which responses count.
    cv : (training rows, validation rows), or int
        Rows whose fit chooses the penalty by the others, both of them numbers of rows of Y; or contiguous folds. The
        heads themselves are fitted to all known rows.
    alphas : ndarray, shape (alpha,)
    device : str

    Returns
    -------
    ClosedForm
    """
    v = Y.shape[1]
    weight, bias = np.zeros((v, width), np.float32), np.zeros(v, np.float32)
    r, alpha = np.full(v, np.nan), np.full(v, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for pattern, F in features:
            for units, rows in _same_rows(members[pattern], known):
                folds = _folds(cv, rows)
                if folds is None:
                    continue
                X, y = F[rows], Y[np.ix_(rows, units)]
                search = RidgeCV(alphas, cv=folds, standardise=True, weights="none", device=device).fit(X, y)
                heads = Ridge(search.alpha_, standardise=True, device=device).fit(X, y)
                weight[units], bias[units] = heads.coef_.T, heads.intercept_
                r[units], alpha[units] = search.cv_score_, search.alpha_
    return ClosedForm(weight, bias, r, alpha)


def _same_rows(units: np.ndarray, known: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Units that are known on the same rows, and these rows."""
    packed = np.packbits(known[:, units], axis=0).T
    _, kind = np.unique(packed, axis=0, return_inverse=True)
    for one in range(kind.max() + 1):
        alike = units[kind.reshape(-1) == one]
        yield alike, np.flatnonzero(known[:, alike[0]])


def _folds(cv: Any, rows: np.ndarray) -> Any:
    """What RidgeCV takes for the rows that are known, or None where they are too few."""
    if isinstance(cv, int):
        return cv if len(rows) >= _FEWEST * cv else None
    train, validation = (np.flatnonzero(np.isin(rows, side)) for side in cv)
    return [(train, validation)] if min(len(train), len(validation)) >= _FEWEST else None


def head_alphas(alphas: Any, kind: str, heads: int) -> np.ndarray:
    """Penalties of ridge heads.

    Features that several heads pool alike stand side by side: a penalty a on one of them is as strong as heads * a
    on all. With one token per stimulus, where all heads pool the same, the heads are those of ridge on the token.
    """
    if kind not in FEATURES:
        raise ValueError(unknown("head_features", kind, FEATURES))
    return checked_alphas(alphas) * (heads if kind == "pooled" else 1)


class RefittedResponses(nn.Module):
    """A router with heads in closed form; units without one keep the head that was trained.

    Parameters
    ----------
    router : Router
    trained : nn.Module
        Routed tokens to outputs of all units.
    found : Patterns
    heads : ClosedForm
    chosen : ndarray of bool, shape (unit,)
        Units that take the closed form.
    kind : {"pooled", "token"}
    """

    router: Router
    trained: nn.Module
    combine: Tensor | None
    weight: Tensor
    bias: Tensor
    chosen: Tensor
    back: Tensor

    def __init__(
        self,
        router: Router,
        trained: nn.Module,
        found: Patterns,
        heads: ClosedForm,
        chosen: np.ndarray,
        kind: str,
    ):
        super().__init__()
        self.router, self.trained, self.kind, self.sizes = router, trained, kind, list(found.sizes)
        self.every = bool(chosen.all())
        order = torch.from_numpy(found.order)
        self.register_buffer("combine", found.mixing())
        self.register_buffer("weight", torch.from_numpy(heads.weight)[order])
        self.register_buffer("bias", torch.from_numpy(heads.bias)[order])
        self.register_buffer("back", torch.argsort(order))
        self.register_buffer("chosen", torch.from_numpy(chosen.copy()))

    @property
    def detach_routing(self) -> bool:
        """Whether gradients of the tokens pass through the values alone."""
        return self.router.detach_routing

    @detach_routing.setter
    def detach_routing(self, value: bool) -> None:
        self.router.detach_routing = value

    def take_over(self, older: RefittedResponses) -> None:
        """Heads in closed form of units that have none here, from an older module of the same units."""
        missing = ~self.chosen & older.chosen
        rows = missing[torch.argsort(self.back)]  # pattern by pattern, as the weights are
        self.weight[rows], self.bias[rows] = older.weight[rows], older.bias[rows]
        self.chosen |= older.chosen
        self.every = bool(self.chosen.all())

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (image, unit) of standardised tokens (image, token, feature)."""
        with torch.autocast(x.device.type, enabled=False):
            z = self.router.pooled(x)
            routed = self.router.from_pooled(z) if self.kind == "token" or not self.every else z
            features = routed if self.kind == "token" else z.flatten(2)
            of_patterns = combined(self.combine, features.float()).unbind(1)
            parts = zip(of_patterns, self.weight.split(self.sizes), strict=True)
            y = (torch.cat([token @ weight.T for token, weight in parts], 1) + self.bias)[:, self.back]
            return y if self.every else torch.where(self.chosen, y, self.trained(routed))


def refitted(
    module: RoutedResponses | RefittedResponses, found: Patterns, heads: ClosedForm, chosen: np.ndarray, kind: str
) -> RefittedResponses:
    """A module with heads in closed form for the units that are chosen, and for the others the heads it had."""
    if isinstance(module, RoutedResponses):
        return RefittedResponses(module.router, module.heads, found, heads, chosen, kind)
    new = RefittedResponses(module.router, module.trained, found, heads, chosen, kind)
    new.take_over(module)
    return new


def moments(Y: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each unit over its known rows, the latter 1 where it would be 0."""
    n = known.sum(0).clip(1)
    mean = np.where(known, Y, 0.0).sum(0) / n
    std = np.sqrt((np.where(known, Y - mean, 0.0) ** 2).sum(0) / n)
    return mean, np.where(std > 0, std, 1.0)
