"""Most discriminative stimuli: clusters of units, each with the stimulus that sets it apart from the others."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from .objectives import objective
from .selectivity import ascend, responder

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, eq=False)
class Clusters:
    """Units by what drives them and not the others.

    Attributes
    ----------
    labels : ndarray of int, shape (unit,)
        Cluster of each unit, from 0; -1 for units without response.
    stimuli : ndarray, shape (cluster, ...)
        Parameters of the most discriminative stimulus of each cluster; `images` is what they render to.
    images : ndarray, shape (cluster, ...)
    objective : ndarray of float64, shape (cluster,)
        log K at most, for K clusters, where no other cluster responds to the stimulus; 0 where all respond alike.
    history : DataFrame
        iteration, clusters, objective (their mean), moved (units that changed cluster after it).
    """

    labels: np.ndarray
    stimuli: np.ndarray
    images: np.ndarray
    objective: np.ndarray
    history: pd.DataFrame


def most_discriminative(
    encoder: Any,
    clusters: int | ArrayLike,
    render: Callable[[Tensor], Tensor],
    start: Callable[[int, Generator], Tensor],
    temperature: float = 1.0,
    iterations: int = 20,
    restarts: int = 3,
    seed: int = 0,
    *,
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
    steps: int = 200,
    lr: float = 0.05,
    norm: float | None = None,
    detach_routing: bool = False,
) -> Clusters:
    """Cluster units by the stimuli that tell them apart (Burg et al. 2024, ICLR).

    Two steps in turn: for each cluster c find the stimulus that maximises ``rbar_c / tau - log sum_k exp(rbar_k / tau)
    + log K`` with rbar_k the mean response of cluster k, tau the temperature and K the number of clusters; then give
    each unit to the cluster whose stimulus drives it most. Clusters without units are dropped. It ends when no unit
    moves.

    Parameters
    ----------
    encoder : fitted encoder with `torch_module`, or callable
        As `selectivity.ascend` takes it.
    clusters : int, or array of int, shape (unit,)
        How many to start with, in random groups of even size, or the first labels.
    render : callable
        Parameters to what the encoder takes.
    start : callable
        ``start(n, generator)`` draws the parameters of n stimuli to start from, a tensor (n, ...).
    temperature : float
        tau, in units of the responses: a high one asks for a strong response, a low one for contrast alone.
    iterations : int
        At most.
    restarts : int
        Fresh starts of each cluster in each iteration, beside its last stimulus; the best result is kept.
    seed : int
    mean, std : array, shape (unit,), or None
        Over a reference set of stimuli, by which the responses of units are made comparable.
    steps, lr, norm, detach_routing
        Of each ascent.

    Returns
    -------
    Clusters

    Raises
    ------
    ValueError
        If a number is out of its range, there are more clusters than units, or labels are not one for each unit.

    Warns
    -----
    UserWarning
        If units have no response, or still move in the last iteration; the objective is then that of the clusters
        before the last move.
    """
    import torch

    for argument, number in (("iterations", iterations), ("restarts", restarts)):
        if number < 1:
            raise ValueError(f"{argument}={number} must be at least 1")
    every = responder(encoder, detach_routing)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    fresh = start(1, generator)
    with torch.no_grad():
        known = ~every(render(fresh)).isnan()[0].cpu().numpy()
    if not known.all():
        warnings.warn(
            f"{int((~known).sum())} of {len(known)} units have no response and are in no cluster: label -1",
            stacklevel=2,
        )
    columns = torch.from_numpy(np.flatnonzero(known))
    middle, spread = (None if one is None else np.asarray(one, float)[known] for one in (mean, std))

    def respond(stimuli: Tensor) -> Tensor:
        return every(stimuli)[:, columns]

    labels = _first_labels(clusters, known, rng)
    found: dict[int, np.ndarray] = {}  # parameters of the last stimulus of each cluster
    history: list[dict[str, float]] = []
    for iteration in range(iterations):
        names = np.unique(labels)
        value: dict[int, float] = {}
        for name in names:
            starts = start(restarts, generator)
            if name in found:
                starts = torch.cat([torch.from_numpy(found[name]).to(starts)[None], starts])
            aim = objective(
                "discriminative", labels=labels, cluster=name, temperature=temperature, mean=middle, std=spread
            )
            ascent = ascend(starts, render, respond, aim, steps, lr, norm, seed=int(rng.integers(2**31)))
            best = int(ascent.scores.max(0).argmax())
            found[name], value[name] = ascent.parameters[best], float(ascent.scores[:, best].max())
        stimuli = np.stack([found[name] for name in names])
        with torch.no_grad():
            images = render(torch.from_numpy(stimuli).to(fresh))
            responses = respond(images).double().cpu().numpy()
        responses = (responses - (0 if middle is None else middle)) / (1 if spread is None else spread)
        moved = names[responses.argmax(0)]  # (unit,)
        history.append(
            {
                "iteration": iteration,
                "clusters": len(names),
                "objective": float(np.mean([value[name] for name in names])),
                "moved": int((moved != labels).sum()),
            }
        )
        if (moved == labels).all():
            break
        labels = moved
    else:
        warnings.warn(
            f"units still move after iterations={iterations}: {history[-1]['moved']} of {len(labels)} in the last one",
            stacklevel=2,
        )
    used = np.isin(names, labels)
    found_labels = np.full(len(known), -1)
    found_labels[known] = np.searchsorted(names[used], labels)
    return Clusters(
        labels=found_labels,
        stimuli=stimuli[used],
        images=images.cpu().numpy()[used],
        objective=np.array([value[name] for name in names])[used],
        history=pd.DataFrame(history),
    )


def _first_labels(clusters: int | ArrayLike, known: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Of the units that respond: random groups of even size, or the labels that were given to all."""
    given, n_units = np.asarray(clusters), int(known.sum())
    if given.ndim == 0:
        if not 1 <= int(given) <= n_units:
            raise ValueError(f"clusters={int(given)} of {n_units} units; give a number from 1 to {n_units}")
        return rng.permutation(np.arange(n_units) % int(given))
    if given.shape != known.shape:
        raise ValueError(f"clusters has shape {given.shape}; give a number, or a label for each of {len(known)} units")
    return np.unique(given[known], return_inverse=True)[1]
