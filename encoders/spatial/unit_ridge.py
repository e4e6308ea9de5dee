"""Closed forms around training: ridge where each unit has features of its own, and where training starts."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..linear.estimator import checked_alphas
from ..linear.ridge import Ridge, RidgeCV
from ..products import product
from .batches import Feed
from .losses import FEWEST
from .setup import Setup

CHUNK = 2**28  # bytes of features of units at a time
PLACES = 2**25  # bytes of what units make of every place of some stimuli
TIE = 1e-9  # correlations no further apart are ties, which go to the larger penalty


@dataclass(frozen=True, eq=False)
class UnitRidge:
    """Ridge weights of units.

    Attributes
    ----------
    weights : Tensor of float64, shape (unit, feature)
        In the features' own units.
    intercept : Tensor of float64, shape (unit,)
    r : Tensor of float64, shape (unit,)
        Correlation over the validation rows, of the weights from the training rows alone, at `alpha`; NaN where it is
        undefined.
    alpha : Tensor of float64, shape (unit,)
    """

    weights: Tensor
    intercept: Tensor
    r: Tensor
    alpha: Tensor


def unit_ridge(features: Tensor, Y: Tensor, known: Tensor, training: Tensor, alphas: np.ndarray) -> UnitRidge:
    """Ridge regression of each unit on features of its own, with the penalty that predicts its validation rows best.

    For each unit, weights b minimise ``||y - X b||^2 + alpha ||b||^2`` over its known rows, features in standard
    deviations. The penalty is the one whose weights from the training rows correlate best with the validation rows; the
    weights that are returned are from both together.

    Parameters
    ----------
    features : Tensor, shape (unit, row, feature)
    Y : Tensor, shape (row, unit)
    known : Tensor of bool, shape (row, unit)
        Rows that count.
    training : Tensor of bool, shape (row,)
        Training rows; the others are for validation.
    alphas : ndarray, shape (alpha,)
        Ascending.

    Returns
    -------
    UnitRidge
    """
    X, y = features.double(), Y.T.double()
    counts = known.T & training
    x_mean, y_mean, scale, A, c = _normal_equations(X, y, counts)
    rest = ~training
    Z = (X[:, rest] - x_mean[:, None]) / scale[:, None]
    penalties = torch.from_numpy(np.asarray(alphas, np.float64)).to(X)
    spectrum, axes = torch.linalg.eigh(A)
    spectrum = spectrum.clamp(min=0)[..., None]
    along = (axes.transpose(1, 2) @ c[..., None]) / (spectrum + penalties)  # unit, axis, alpha
    if A.shape[1] == X.shape[2]:
        predicted = (Z @ axes) @ along
    else:
        S = _standardised(X, counts, x_mean, scale)
        predicted = (Z @ (S.transpose(1, 2) @ axes)) @ along
    r = _correlations(predicted, y[:, rest], (known.T & rest)[:, rest])
    best = r.nan_to_num(-np.inf).amax(1, keepdim=True)
    # the last of those that are as good as the best: the largest penalty
    chosen = len(penalties) - 1 - ((r.nan_to_num(-np.inf) >= best - TIE).flip(1).int()).argmax(1)
    alpha = penalties[chosen]

    counts = known.T
    x_mean, y_mean, scale, A, c = _normal_equations(X, y, counts)
    weights = torch.linalg.solve(A + alpha[:, None, None] * torch.eye(A.shape[1]).to(A), c[..., None])
    if A.shape[1] != X.shape[2]:
        weights = _standardised(X, counts, x_mean, scale).transpose(1, 2) @ weights
    weights = weights[..., 0] / scale
    intercept = y_mean - (weights * x_mean).sum(1)
    return UnitRidge(weights, intercept, r.gather(1, chosen[:, None])[:, 0], alpha)


def _normal_equations(X: Tensor, y: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Means, scales, and the smaller of both Gram matrices with what it is solved for; rows that do not count are 0."""
    n = counts.sum(1).clamp(min=1)[:, None]
    k = counts[..., None].to(X)
    x_mean = (X * k).sum(1) / n
    centred = (X - x_mean[:, None]) * k
    std = (centred.square().sum(1) / n).sqrt()
    size = (X.square() * k).sum(1).div(n).sqrt()
    scale = torch.where(std > 1e-7 * size, std, 1.0)
    S = centred / scale[:, None]
    y_mean = (y * counts).sum(1) / n[:, 0]
    deviations = (y - y_mean[:, None]) * counts
    if X.shape[2] <= X.shape[1]:
        return x_mean, y_mean, scale, S.transpose(1, 2) @ S, (deviations[:, None] @ S)[:, 0]
    return x_mean, y_mean, scale, S @ S.transpose(1, 2), deviations


def _standardised(X: Tensor, counts: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return (X - mean[:, None]) / scale[:, None] * counts[..., None]


def _correlations(predicted: Tensor, y: Tensor, counts: Tensor) -> Tensor:
    """Correlation, shape (unit, alpha), of predictions (unit, row, alpha) with responses (unit, row)."""
    k = counts[..., None].to(predicted)
    n = k.sum(1, keepdim=True).clamp(min=1)
    y = y[..., None]
    p = (predicted - (predicted * k).sum(1, keepdim=True) / n) * k
    d = (y - (y * k).sum(1, keepdim=True) / n) * k
    power, spread = p.square().sum(1), d.square().sum(1)
    varies = (power > 1e-20) & (spread > 0) & (k.sum(1) >= FEWEST)
    return torch.where(varies, (p * d).sum(1) / (power * spread).sqrt(), torch.nan)


def masked_ridge(masks: Tensor, setup: Setup, alphas: np.ndarray | None = None) -> UnitRidge:
    """`unit_ridge` of each unit on the tokens that its mask adds up.

    Parameters
    ----------
    masks : Tensor, shape (unit, token)
    setup : Setup
    alphas : ndarray, shape (alpha,), or None
        None takes those of `RidgeCV`.

    Returns
    -------
    UnitRidge
        Weights for standardised tokens, on the CPU.
    """
    penalties = checked_alphas(alphas)
    rows = np.union1d(setup.train_rows, setup.validation_rows)
    training = torch.from_numpy(np.isin(rows, setup.train_rows))
    known = torch.ones_like(setup.Y, dtype=torch.bool) if setup.known is None else setup.known
    Y, known = setup.Y[rows].cpu(), known[rows].cpu()
    feed = Feed(setup.tokens, setup.standard, setup.device)
    step = max(CHUNK // (32 * len(rows) * setup.n_features), 1)
    found = []
    for first in range(0, setup.n_units, step):
        units = slice(first, first + step)
        block = masks[units].detach().to(setup.device)
        features = torch.empty(len(block), len(rows), setup.n_features)
        done = 0
        for chunk in setup.tokens.chunks(rows):
            features[:, done : done + len(chunk)] = torch.einsum("vt,ntd->vnd", block, feed(chunk)).cpu()
            done += len(chunk)
        found.append(unit_ridge(features, Y[:, units], known[:, units], training, penalties))
    return UnitRidge(*(torch.cat([getattr(part, name) for part in found]) for name in UnitRidge.__annotations__))


def pooled_start(setup: Setup) -> Tensor:
    """Weights of ridge on mean tokens, from the training rows: where readouts with a field start.

    Weights of zero and a uniform field are a saddle of the bilinear problem, where neither tells what the other should
    be. So the penalty is never above the number of stimuli, whatever predicts best: a start may be poor, but not zero.
    Entries that are not known are read as the mean, which is good enough for a start.

    Parameters
    ----------
    setup : Setup

    Returns
    -------
    Tensor of float32, shape (unit, feature)
        For the mean of standardised tokens.
    """
    train, rest = setup.train_rows, setup.validation_rows
    uniform = np.full((1, setup.n_tokens), 1 / setup.n_tokens)
    mean, std = (np.asarray(values.cpu(), np.float64) for values in setup.standard)
    pooled = (setup.tokens.mean_tokens(uniform, np.concatenate([train, rest]))[:, 0] - mean) / std
    Y = filled(setup)
    n = len(train)
    split = [(np.arange(n), np.arange(n, n + len(rest)))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chosen = RidgeCV(cv=split, standardise=True, weights="none", device=str(setup.device))
        alpha = chosen.fit(pooled, Y[np.concatenate([train, rest])]).alpha_
        start = Ridge(alpha=np.minimum(alpha, n), standardise=True, device=str(setup.device))
        weights = start.fit(pooled[:n], Y[train]).coef_.T
    # of a softplus at the bias, so that outputs change as the responses do
    slope = 1.0 if setup.loss.standardised else torch.sigmoid(setup.bias.double().cpu())[:, None].numpy()
    return torch.from_numpy(np.ascontiguousarray(weights / slope)).float()


def best_places(weights: Tensor, setup: Setup) -> Tensor:
    """The place whose token, weighed by a unit's weights, correlates best with its responses to the training rows.

    Parameters
    ----------
    weights : Tensor, shape (unit, feature)
    setup : Setup

    Returns
    -------
    Tensor of int, shape (unit,)
        Token numbers.
    """
    Y = torch.from_numpy(filled(setup)).float()
    Y -= Y[setup.train_rows].mean(0)
    feed = Feed(setup.tokens, setup.standard, setup.device)
    t, step = setup.n_tokens, max(PLACES // (4 * setup.n_tokens), 1)
    places = []
    for first in range(0, setup.n_units, step):
        W = weights[first : first + step].T.contiguous().to(setup.device)
        sums, squares, cross = (torch.zeros(t, W.shape[1], dtype=torch.float64) for _ in range(3))
        for chunk in setup.tokens.chunks(setup.train_rows, max(PLACES // max(W.shape[1] // setup.n_features, 1), 1)):
            drive = product(feed(chunk).reshape(-1, setup.n_features), W).view(len(chunk), t, -1).cpu()
            sums += drive.sum(0)
            squares += drive.square().sum(0)
            cross += torch.einsum("ntv,nv->tv", drive, Y[chunk, first : first + step])
        variance = (squares - sums.square() / len(setup.train_rows)).clamp(min=1e-12)
        places.append((cross / variance.sqrt()).argmax(0))
    return torch.cat(places)


def filled(setup: Setup) -> np.ndarray:
    """Responses on the scale of training, shape (stimulus, unit) in float64; the mean where they are not known."""
    Y = setup.Y.cpu().double().numpy()
    if setup.known is None:
        return Y
    known = setup.known.cpu().numpy()
    there = known[setup.train_rows]
    return np.where(known, Y, (Y[setup.train_rows] * there).sum(0) / there.sum(0))
