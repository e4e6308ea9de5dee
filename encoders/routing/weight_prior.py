"""A prior over the weights of units, and what it makes of their responses: Gaussians, and mixtures of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SHARES = np.array([0.002, 0.005, 0.01, 0.02, 0.05, *np.arange(0.1, 0.95, 0.05), 0.95, 0.98, 0.99])
FLOOR = 1e-6  # of the noise, as a share of the variance of a unit


# One context: units whose responses to the same stimuli are known


@dataclass(frozen=True, eq=False)
class Context:
    """Sufficient statistics of units that share their stimuli, after the offsets are taken out of both sides.

    A flat prior over the intercept of a unit is the same as offsets taken out, at the cost of one degree of freedom.

    Attributes
    ----------
    units : ndarray of int, shape (unit,)
    gram : Tensor, shape (axis, axis)
    cross : Tensor, shape (axis, unit)
    power : Tensor, shape (unit,)
        ``X'X``, ``X'Y`` and the squares of Y.
    freedom : int
        Rows less one.
    x_mean : Tensor, shape (axis,)
    y_mean, y_scale : Tensor, shape (unit,)
    """

    units: np.ndarray
    gram: Tensor
    cross: Tensor
    power: Tensor
    freedom: int
    x_mean: Tensor
    y_mean: Tensor
    y_scale: Tensor


def gather(X: Tensor, Y: np.ndarray, units: np.ndarray, scale: bool) -> list[Context]:
    """Contexts of some units, which are grouped by the rows that they are known in.

    Parameters
    ----------
    X : Tensor of float64, shape (stimulus, axis)
    Y : ndarray, shape (stimulus, unit)
        NaN where a response is not known.
    units : ndarray of int
        Units that vary over their known rows.
    scale : bool
        Bring each unit to unit variance over its rows.
    """
    known = ~np.isnan(Y[:, units])
    patterns, member = np.unique(known, axis=1, return_inverse=True)
    contexts = []
    for p in range(patterns.shape[1]):
        rows, own = np.flatnonzero(patterns[:, p]), units[member.ravel() == p]
        x = X[torch.from_numpy(rows).to(X.device)]
        y = torch.from_numpy(Y[np.ix_(rows, own)].astype(np.float64)).to(X.device)
        x_mean, y_mean = x.mean(0), y.mean(0)
        x, y = x - x_mean, y - y_mean
        y_scale = y.square().sum(0).div(len(rows) - 1).sqrt() if scale else torch.ones_like(y_mean)
        y = y / y_scale
        contexts.append(Context(own, x.T @ x, x.T @ y, y.square().sum(0), len(rows) - 1, x_mean, y_mean, y_scale))
    return contexts


# The prior and what it makes of a context


@dataclass(frozen=True, eq=False)
class Prior:
    """A mixture of Gaussians over weights.

    Attributes
    ----------
    share : Tensor, shape (component,)
    mean : Tensor, shape (component, axis)
    covariance : Tensor, shape (component, axis, axis)
    """

    share: Tensor
    mean: Tensor
    covariance: Tensor

    def __len__(self) -> int:
        return len(self.share)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A context along the axes in which one component leaves all of its units independent.

    With ``Sigma = L L'`` and ``L'X'XL = V diag(l) V'``, weights are ``mu + A z`` with ``A = L V`` and z standard
    normal; whatever the noise of a unit, its posterior over z is diagonal: mean ``c / (l + noise)``, variance
    ``noise / (l + noise)``. One decomposition serves all units and all levels of noise.

    Attributes
    ----------
    to_weights : Tensor, shape (axis, axis)
        A.
    values : Tensor, shape (axis, 1)
        l.
    c : Tensor, shape (axis, unit)
        ``A'X'(y - X mu)``.
    energy : Tensor, shape (unit,)
        Squares of ``y - X mu``.
    freedom : int
    """

    to_weights: Tensor
    values: Tensor
    c: Tensor
    energy: Tensor
    freedom: int

    def log_evidence(self, noise: Tensor) -> Tensor:
        """Log density of the responses of each unit, shape (unit,), at a variance of noise for each."""
        total = self.values + noise
        quadratic = (self.energy - (self.c.square() / total).sum(0)).clamp(min=0) / noise
        log_det = (self.freedom - len(self.values)) * noise.log() + total.log().sum(0)
        return -0.5 * (quadratic + log_det + self.freedom * np.log(2 * np.pi))


def spectrum(context: Context, mean: Tensor, covariance: Tensor) -> Spectrum:
    """A context seen by one component of the prior."""
    root = torch.linalg.cholesky(covariance)
    values, vectors = torch.linalg.eigh(root.T @ context.gram @ root)
    to_weights = root @ vectors
    drive = context.gram @ mean
    c = to_weights.T @ (context.cross - drive[:, None])
    energy = (context.power - 2 * mean @ context.cross + mean @ drive).clamp(min=0)
    return Spectrum(to_weights, values.clamp(min=0)[:, None], c, energy, context.freedom)


def posterior_weights(context: Context, prior: Prior, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior mean of the weights of each unit, averaged over components and levels of noise.

    Parameters
    ----------
    context : Context
    prior : Prior
    noise : Tensor, shape (level, unit)
        Levels that are equally probable before the responses are seen.

    Returns
    -------
    weights : Tensor, shape (axis, unit)
    share : Tensor, shape (component, unit)
        Probability that a unit belongs to a component.
    expected : Tensor, shape (unit,)
        Posterior mean of the noise.
    """
    spectra = [spectrum(context, m, s) for m, s in zip(prior.mean, prior.covariance, strict=True)]
    evidence = torch.stack([torch.stack([s.log_evidence(level) for level in noise]) for s in spectra])
    evidence = evidence + prior.share.log()[:, None, None]  # (component, level, unit)
    p = torch.softmax(evidence.flatten(0, 1), 0).view_as(evidence)
    weights = torch.zeros_like(context.cross)
    for own, mean, s in zip(p, prior.mean, spectra, strict=True):
        gain = torch.zeros_like(s.c)
        for probability, level in zip(own, noise, strict=True):
            gain += probability / (s.values + level)
        weights += own.sum(0) * mean[:, None] + s.to_weights @ (gain * s.c)
    return weights, p.sum(1), (p.sum(0) * noise).sum(0)


# Learning it


def isotropic(context: Context) -> tuple[Tensor, Tensor]:
    """Variance of the weights and of the noise of each unit under ridge regression, at the largest evidence."""
    values, vectors = torch.linalg.eigh(context.gram)
    values, c = values.clamp(min=0)[:, None], vectors.T @ context.cross
    variance = context.power / context.freedom
    spread = (values.sum() / context.freedom).clamp(min=torch.finfo(values.dtype).tiny)
    best = torch.full_like(variance, -torch.inf)
    weight, noise = torch.zeros_like(variance), variance.clone()
    for share in SHARES.tolist():
        prior, rest = share * variance / spread, (1 - share) * variance
        total = values * prior + rest
        quadratic = (context.power - (c.square() * prior / total).sum(0)).clamp(min=0) / rest
        log_det = (context.freedom - len(values)) * rest.log() + total.log().sum(0)
        evidence = -0.5 * (quadratic + log_det)
        better = evidence > best
        best = torch.where(better, evidence, best)
        weight, noise = torch.where(better, prior, weight), torch.where(better, rest, noise)
    return weight, noise


def starting_prior(contexts: Sequence[Context], size: float, noise: list[Tensor], k: int, seed: int) -> Prior:
    """Isotropic components; several are centred on clusters of the weights that ridge regression finds."""
    d, like = len(contexts[0].gram), contexts[0].gram
    eye = size * torch.eye(d, dtype=like.dtype, device=like.device)
    one = Prior(like.new_ones(1), like.new_zeros(1, d), eye[None])
    if k == 1:
        return one
    from sklearn.cluster import KMeans

    found = [posterior_weights(c, one, s[None])[0] for c, s in zip(contexts, noise, strict=True)]
    clusters = KMeans(k, n_init=10, random_state=seed).fit(torch.cat(found, 1).T.cpu().numpy())
    counts = np.bincount(clusters.labels_, minlength=k)
    return Prior(
        torch.from_numpy(counts / counts.sum()).to(like),
        torch.from_numpy(clusters.cluster_centers_).to(like),
        eye.expand(k, d, d).clone(),
    )


def maximise(
    contexts: Sequence[Context], k: int, *, shared: bool, held: float, iterations: int, tol: float, seed: int
) -> tuple[Prior, list[Tensor], list[float]]:
    """The prior under which the responses are most probable, by expectation maximisation.

    It maximises the log evidence of all units less, for every component,
    ``(held (log det Sigma + size tr Sigma^-1 - d log size) + mu'mu / start) / 2``, over d axes: `held` units' worth of
    evidence for ``size I``, whose size is learned too, and one for a mean of zero, by the variance of weights under
    ridge regression, from which size starts. A population that is small beside the number of axes stays near ridge
    regression; clusters that are tight stay tight.

    Parameters
    ----------
    contexts : sequence of Context
    k : int
        Components.
    shared : bool
        One variance of noise for all units, else one for each.
    held : float
        Units' worth of evidence for isotropic covariances.
    iterations : int
    tol : float
        Gain, relative to the number of responses, below which it stops.
    seed : int

    Returns
    -------
    prior : Prior
    noise : list of Tensor, one for each context, shape (unit,)
    history : list of float
        What is maximised, before each step; it does not fall.
    """
    found = [isotropic(context) for context in contexts]
    freedom = sum(context.freedom * len(context.power) for context in contexts)
    floor = [FLOOR * context.power / context.freedom for context in contexts]
    typical = sum(float(c.power.sum()) for c in contexts) / freedom
    spread = sum(float(c.gram.trace()) * len(c.power) for c in contexts) / freedom
    tiny = torch.finfo(torch.float64).tiny
    start = max(float(torch.cat([weight for weight, _ in found]).mean()), 1e-6 * typical / max(spread, tiny), tiny)
    size = start
    noise = _levelled([n for _, n in found], contexts, shared, floor)
    prior = starting_prior(contexts, size, noise, k, seed)
    history: list[float] = []
    for _ in range(iterations):
        prior_then, noise_then = prior, noise
        value, prior, noise, size = _step(contexts, prior, noise, size, start, held, floor, shared)
        history.append(value)
        if len(history) > 1 and history[-1] - history[-2] < tol * freedom:
            return prior_then, noise_then, history
    return prior, noise, history


def _levelled(noise: list[Tensor], contexts: Sequence[Context], shared: bool, floor: list[Tensor]) -> list[Tensor]:
    """One level for all units where it is shared; never below the floor."""
    if not shared:
        return [torch.maximum(n, f) for n, f in zip(noise, floor, strict=True)]
    freedom = sum(c.freedom * len(c.power) for c in contexts)
    level = sum(float(n.sum()) * c.freedom for n, c in zip(noise, contexts, strict=True)) / freedom
    level = max(level, max(float(f.min()) for f in floor))
    return [torch.full_like(n, level) for n in noise]


def _step(
    contexts: Sequence[Context],
    prior: Prior,
    noise: list[Tensor],
    size: float,
    start: float,
    held: float,
    floor: list[Tensor],
    shared: bool,
) -> tuple[float, Prior, list[Tensor], float]:
    """What is maximised at this prior, and the next prior, noise and size."""
    k, d = prior.mean.shape
    like = prior.mean
    count, first = like.new_zeros(k), like.new_zeros(k, d)
    second = like.new_zeros(k, d, d)  # of the weights about the present mean
    value, levels = 0.0, []
    for context, s2 in zip(contexts, noise, strict=True):
        spectra = [spectrum(context, m, s) for m, s in zip(prior.mean, prior.covariance, strict=True)]
        joint = torch.stack([s.log_evidence(s2) for s in spectra]) + prior.share.log()[:, None]
        value += float(torch.logsumexp(joint, 0).sum())
        responsibility = torch.softmax(joint, 0)
        level = torch.zeros_like(s2)
        for j, (s, r) in enumerate(zip(spectra, responsibility, strict=True)):
            shrunk = s2 / (s.values + s2)  # posterior variance
            z = s.c / (s.values + s2)
            level += r * (s.energy - 2 * (s.c * z).sum(0) + (s.values * z.square()).sum(0) + (s.values * shrunk).sum(0))
            count[j] += r.sum()
            first[j] += s.to_weights @ (z @ r)
            inner = (z * r) @ z.T + torch.diag(shrunk @ r)
            second[j] += s.to_weights @ inner @ s.to_weights.T
        levels.append(level.clamp(min=0) / context.freedom)
    means, covariances = [], []
    eye = torch.eye(d, dtype=like.dtype, device=like.device)
    for j in range(k):
        root = torch.linalg.cholesky(prior.covariance[j])
        precision = torch.cholesky_inverse(root)
        mu = prior.mean[j]
        log_det = 2 * root.diagonal().log().sum()
        prior_terms = log_det + size * precision.trace() - d * np.log(size)
        value -= 0.5 * float(held * prior_terms + mu @ mu / start)
        new = start * torch.linalg.solve(count[j] * start * eye + prior.covariance[j], count[j] * mu + first[j])
        shift = new - mu
        scatter = second[j] - torch.outer(first[j], shift) - torch.outer(shift, first[j])
        scatter = scatter + count[j] * torch.outer(shift, shift) + held * size * eye
        means.append(new)
        covariances.append((scatter + scatter.T) / (2 * (count[j] + held)))
    precisions = torch.cholesky_inverse(torch.linalg.cholesky(torch.stack(covariances)))
    size = k * d / float(precisions.diagonal(dim1=1, dim2=2).sum())
    share = (count / count.sum()).clamp(min=torch.finfo(like.dtype).tiny)
    return (
        value,
        Prior(share, torch.stack(means), torch.stack(covariances)),
        _levelled(levels, contexts, shared, floor),
        size,
    )
