"""What an encoder says its units respond to: ranked stimuli, weights among embeddings, ascent through any renderer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from torch import Tensor

    from .objectives import Objective


STIMULI = 256  # that a callable in place of an encoder is given at a time
ENTRIES = 2**24  # cosines of weights and embeddings that are held at a time
SMOOTHING = (0.9, 0.999)  # of the mean and of the mean square of gradients in an ascent


def rank_stimuli(
    encoder: Any,
    X: Any,
    objective: Objective,
    stimulus_ids: Sequence[str] | None = None,
    top: int | None = None,
) -> pd.DataFrame:
    """Order stimuli by an objective of the responses that an encoder predicts for them.

    Parameters
    ----------
    encoder : fitted encoder with `predict`, or callable
        A callable takes a tensor of stimuli, float32, and gives their responses (stimulus, unit).
    X : array
        Features or tokens of the stimuli, as the encoder takes them.
    objective : callable
        Responses (stimulus, unit) to (stimulus,), as `objectives.objective` makes it.
    stimulus_ids : sequence of str, or None
        Names; None is numbers of rows.
    top : int or None
        How many to return; None is all.

    Returns
    -------
    DataFrame
        stimulus, score, rank (1 is the best); best first, equal scores in the order of X. Stimuli without a score come
        last, their rank missing.

    Raises
    ------
    ValueError
        If there are not as many ids as stimuli, ids occur twice, `top` is below 1, or the objective does not give one
        number for each stimulus.

    Warns
    -----
    UserWarning
        If stimuli have no score.
    """
    import torch

    if top is not None and top < 1:
        raise ValueError(f"top={top} stimuli cannot be returned; ask for at least 1, or None for all")
    responses = torch.from_numpy(_predicted(encoder, X))
    names = np.arange(len(responses)) if stimulus_ids is None else np.asarray(stimulus_ids)
    if len(names) != len(responses):
        raise ValueError(f"stimulus_ids names {len(names)} stimuli, X has {len(responses)}")
    if len(np.unique(names)) != len(names):
        raise ValueError(f"stimulus_ids names {len(names) - len(np.unique(names))} stimuli twice")
    with torch.no_grad():
        found = objective(responses)
    if found.shape != responses.shape[:1]:
        raise ValueError(
            f"the objective gave shape {tuple(found.shape)} for {len(responses)} stimuli; it must give one number each"
        )
    scores = found.double().numpy()
    lost = np.isnan(scores)
    if lost.any():
        warnings.warn(
            f"{int(lost.sum())} of {len(scores)} stimuli have no score, because the units of the objective have no "
            "prediction there; they have no rank",
            stacklevel=2,
        )
    order = np.argsort(np.where(lost, np.inf, -scores), kind="stable")[:top]
    rank = pd.array(np.arange(1, len(order) + 1), "Int64")
    rank[lost[order]] = pd.NA
    return pd.DataFrame({"stimulus": names[order], "score": scores[order], "rank": rank})


def _predicted(encoder: Any, X: Any) -> np.ndarray:
    """Responses (stimulus, unit) of an encoder or a callable."""
    import torch

    if hasattr(encoder, "predict"):
        responses = np.asarray(encoder.predict(X))
    else:
        with torch.no_grad():
            parts = [
                encoder(torch.as_tensor(np.asarray(X[start : start + STIMULI]), dtype=torch.float32))
                for start in range(0, len(X), STIMULI)
            ]
        responses = torch.cat(parts).cpu().numpy()
    return responses[:, None] if responses.ndim == 1 else responses


def project_weights(W: ArrayLike, bank: Any, temperature: float = 150.0, chunk: int = 65536) -> np.ndarray:
    """Project weights of units onto the embeddings of natural images.

    Weights of a linear encoder on a normalised embedding point where no image may lie. BrainSCUBA (Luo et al. 2024,
    ICLR) takes in their place the mean of an embedding bank, weighted by how well each embedding m drives the unit::

        p = softmax(temperature * cos(w, m));  direction = sum p m / ||m||;  length = sum p ||m||

    and returns the direction at this length. A high temperature takes the nearest embedding; at 0 every unit gets the
    mean direction of the bank.

    Parameters
    ----------
    W : array, shape (feature, unit)
        As `coef_` of an encoder transposed; for one unit (feature,) will do.
    bank : array, memory map or dataset of h5py, shape (embedding, feature)
        Read in order, in chunks, once.
    temperature : float
        Factor of the cosines; 150 in the paper.
    chunk : int
        Embeddings read at a time; the result does not depend on it.

    Returns
    -------
    ndarray of float64, shape (feature, unit) or (feature,)
        NaN for units whose weights are all zero or not finite.

    Raises
    ------
    ValueError
        If features differ, the bank is empty, an embedding is zero or not finite, or a number is out of its range.

    Warns
    -----
    UserWarning
        If units have no direction.
    """
    W = np.asarray(W, float)
    vector, W = W.ndim == 1, W.reshape(len(W), -1)
    if len(bank.shape) != 2 or bank.shape[1] != len(W) or not bank.shape[0]:
        raise ValueError(
            f"bank has shape {tuple(bank.shape)}, weights have {len(W)} features; give (embedding, feature) of the "
            "same features, at least one embedding"
        )
    if not (np.isfinite(temperature) and temperature >= 0) or chunk < 1:
        raise ValueError(f"temperature={temperature} must be finite and at least 0, chunk={chunk} at least 1")
    length = np.linalg.norm(W, axis=0)
    usable = np.isfinite(length) & (length > 0)
    if not usable.all():
        warnings.warn(
            f"{int((~usable).sum())} of {len(usable)} units have no direction: their weights are zero or not finite",
            stacklevel=2,
        )
    directions = W[:, usable] / length[usable]
    n_units = directions.shape[1]
    highest, mass, lengths = np.full(n_units, -np.inf), np.zeros(n_units), np.zeros(n_units)
    sums = np.zeros_like(directions)
    for start in range(0, bank.shape[0], chunk):
        rows = np.asarray(bank[start : start + chunk], float)
        norms = np.linalg.norm(rows, axis=1)
        wrong = ~(np.isfinite(norms) & (norms > 0))
        if wrong.any():
            raise ValueError(
                f"{int(wrong.sum())} embeddings of the bank, the first of them row {start + int(np.argmax(wrong))}, "
                "are zero or not finite and have no direction; leave them out"
            )
        rows = rows / norms[:, None]  # the bank is not ours to change
        width = max(1, ENTRIES // len(rows))
        for units in (slice(first, first + width) for first in range(0, n_units, width)):
            logits = temperature * (rows @ directions[:, units])
            top = np.maximum(highest[units], logits.max(0))
            kept, p = np.exp(highest[units] - top), np.exp(logits - top)
            mass[units] = kept * mass[units] + p.sum(0)
            lengths[units] = kept * lengths[units] + norms @ p
            sums[:, units] = kept * sums[:, units] + rows.T @ p
            highest[units] = top
    projected = np.full_like(W, np.nan)
    projected[:, usable] = sums / np.linalg.norm(sums, axis=0) * (lengths / mass)
    return projected[:, 0] if vector else projected


@dataclass(frozen=True, eq=False)
class Ascent:
    """Where an ascent ended.

    Attributes
    ----------
    parameters : ndarray, shape (stimulus, ...)
        Those with the highest score on the way, stimulus by stimulus.
    image : ndarray
        What they render to.
    scores : ndarray of float64, shape (step + 1, stimulus)
        From the start on.
    """

    parameters: np.ndarray
    image: np.ndarray
    scores: np.ndarray


def ascend(
    parameters: Any,
    render: Callable[[Tensor], Tensor],
    encoder: Any,
    objective: Objective,
    steps: int = 200,
    lr: float = 0.05,
    norm: float | None = None,
    seed: int = 0,
    detach_routing: bool = False,
) -> Ascent:
    """Find what drives an objective most by gradient ascent through any differentiable renderer.

    A step goes along the mean of past gradients, divided by one running root mean square for a whole stimulus. Dividing
    each coordinate by its own, as Adam does, would turn a linear unit's optimum from w into sign(w).

    Parameters
    ----------
    parameters : array or tensor, shape (stimulus, ...)
        Where to start, in float32 or float64: pixels, Fourier coefficients, latents of a generator. Stimuli do not
        influence each other.
    render : callable
        Parameters to what the encoder takes, such as tokens (stimulus, token, feature); a backbone belongs here.
    encoder : fitted encoder with `torch_module`, or callable
        A callable takes what is rendered and gives responses (stimulus, unit).
    objective : callable
        Responses to (stimulus,), as `objectives.objective` makes it.
    steps : int
    lr : float
        Root mean square of the first step over the parameters of a stimulus; with `norm`, relative to theirs.
    norm : float or None
        Euclidean length that the parameters of each stimulus are held at.
    seed : int
        For renderers that draw, such as those that jitter: torch's generator is forked and seeded.
    detach_routing : bool
        Keep gradients from flowing through where an attention encoder looks: content is optimised, its route is not.

    Returns
    -------
    Ascent

    Raises
    ------
    ValueError
        If a number is out of its range, the objective is not finite, does not depend on the parameters or does not give
        one number for each stimulus, or `detach_routing` is asked of a callable.
    """
    import torch

    if steps < 0 or lr <= 0 or (norm is not None and norm <= 0):
        raise ValueError(f"steps={steps} must be at least 0, lr={lr} and norm={norm} above 0")
    respond = responder(encoder, detach_routing)
    now = torch.as_tensor(parameters).detach().clone()
    if not now.is_floating_point() or now.ndim < 2 or not now.numel():
        raise ValueError(
            f"parameters have dtype {now.dtype} and shape {tuple(now.shape)}; give floating point (stimulus, ...)"
        )
    width = now[0].numel()
    unit = lr if norm is None else lr * norm / width**0.5
    shape = (-1,) + (1,) * (now.ndim - 1)  # one number for each stimulus, against its parameters
    if norm is not None:
        now = _at_length(now, norm)
    best, best_score = now.clone(), torch.full(now.shape[:1], -torch.inf, dtype=torch.float64)
    mean, square, scores = torch.zeros_like(now), now.new_zeros(len(now)), []
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        for step in range(steps + 1):
            now.requires_grad_(True)
            values = objective(respond(render(now)))
            if values.shape != now.shape[:1] or not values.isfinite().all():
                raise ValueError(
                    f"the objective gave shape {tuple(values.shape)}, {int((~values.isfinite()).sum())} of them not "
                    f"finite, at step {step}; it must give one finite number for each of {len(now)} stimuli"
                )
            if not values.requires_grad:
                raise ValueError("the objective does not depend on the parameters: somewhere on the way gradients stop")
            score = values.detach().double().cpu()
            scores.append(score.numpy())
            better = score > best_score
            best[better.to(now.device)] = now.detach()[better.to(now.device)]
            best_score = torch.maximum(score, best_score)
            if step == steps:
                break
            (gradient,) = torch.autograd.grad(values.sum(), now)
            with torch.no_grad():
                mean.lerp_(gradient, 1 - SMOOTHING[0])
                square.lerp_(gradient.flatten(1).square().mean(1), 1 - SMOOTHING[1])
                towards = mean / (1 - SMOOTHING[0] ** (step + 1))
                size = (square / (1 - SMOOTHING[1] ** (step + 1))).sqrt()
                change = towards / size.clamp_min(torch.finfo(size.dtype).tiny).view(shape)
                now = now.detach() + unit * change
                if norm is not None:
                    now = _at_length(now, norm)
        with torch.no_grad():
            image = render(best)
    return Ascent(best.cpu().numpy(), image.cpu().numpy(), np.stack(scores))


def _at_length(parameters: Tensor, norm: float) -> Tensor:
    """Parameters of each stimulus at a Euclidean length."""
    flat = parameters.detach().flatten(1)
    length = flat.norm(dim=1, keepdim=True)
    if not (length > 0).all():
        raise ValueError(f"norm={norm} cannot be given to parameters that are all zero; start elsewhere")
    return (flat * (norm / length)).view_as(parameters)


def responder(encoder: Any, detach_routing: bool = False) -> Callable[[Tensor], Tensor]:
    """What gives differentiable responses: the module of a fitted encoder, or a callable as it is.

    Raises
    ------
    ValueError
        If `encoder` is neither, or `detach_routing` is asked of a callable.
    """
    if hasattr(encoder, "torch_module"):
        module = encoder.torch_module(detach_routing=detach_routing).eval().requires_grad_(False)
        parameter = next(chain(module.parameters(), module.buffers()), None)
        return module if parameter is None else partial(_on_device, module, parameter.device)
    if not callable(encoder):
        raise ValueError(
            f"{type(encoder).__name__} gives no gradients; take an encoder of spatial tokens or a callable on tensors"
        )
    if detach_routing:
        raise ValueError("detach_routing needs an encoder with torch_module; a callable has no routing to detach")
    return encoder


def _on_device(module: Any, device: Any, stimuli: Tensor) -> Tensor:
    return module(stimuli.to(device))
