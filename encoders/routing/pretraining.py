"""What a network that writes weights is trained on: units, their contexts and queries, step by step."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..spatial.checkpoint import Checkpoint
from ..spatial.training import Progress, Training, fusible, parameter_groups, seeded, snapshot
from .hypernetwork import Hypernetwork, predictions

CHUNK = 100  # steps from one checkpoint to the next
WARM_UP = 100  # steps in which the learning rate rises
LAST_RATE = 0.01  # share of the learning rate that is left at the end

Population = Callable[[int, np.random.Generator], Any]


@dataclass(frozen=True)
class Stage:
    """What the steps of a stage show the network.

    Attributes
    ----------
    name : str
    X : Tensor of float32, shape (stimulus, axis)
    raw : ndarray, shape (stimulus, feature), or None
        Centred features, for a population that gives weights for them.
    Y : Tensor of float32, shape (stimulus, unit), or None
        Responses of real units; None draws units.
    """

    name: str
    X: Tensor
    raw: np.ndarray | None
    Y: Tensor | None


@dataclass
class Pretraining(Progress):
    """Where pretraining stands; an entry of the history is a chunk of steps."""

    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Draws:
    """How units, contexts and queries are drawn."""

    context: tuple[int, int]
    units: int
    queries: int
    ceiling: tuple[float, float]
    population: Population | None

    def sizes(self, n: int) -> tuple[int, int, int]:
        """Smallest and largest context, and queries, that n stimuli allow."""
        queries = min(self.queries, max(n // 3, 1))
        largest = min(self.context[1], n - queries)
        return min(self.context[0], largest), largest, queries

    def step(self, stage: Stage, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Stimuli and responses of a context, stimuli and targets of the queries.

        All units of a step share their stimuli, so that these are embedded together. Targets of drawn units are free of
        noise, which moves no minimum of the squared error and makes its gradient less noisy.
        """
        n = len(stage.X)
        low, high, queries = self.sizes(n)
        length = high if stage.name == "synthetic" else int(rng.integers(low, high + 1))
        rows = rng.choice(n, length + queries, replace=False)
        index = torch.from_numpy(rows).to(stage.X.device)
        x = stage.X[index]
        if stage.Y is not None:
            v = stage.Y.shape[1]
            chosen = rng.choice(v, min(self.units, v), replace=False)
            responses = target = stage.Y[index][:, torch.from_numpy(chosen).to(index.device)].T
        else:
            responses, target = self._drawn(stage, rows, x, rng)
        context, offset, scale = normalised(responses[:, :length])
        return x[:length], context, x[length:], (target[:, length:] - offset) / scale

    def _drawn(self, stage: Stage, rows: np.ndarray, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Noisy responses of units whose weights are drawn, and the signal in them, both (unit, stimulus)."""
        if self.population is None:
            weights = rng.standard_normal((x.shape[1], self.units))
            signal = (x @ torch.from_numpy(weights).to(x)).T
        else:
            f = stage.raw.shape[1]  # type: ignore[union-attr]
            weights = np.asarray(self.population(self.units, rng), dtype=np.float64)
            if weights.shape != (f, self.units):
                raise ValueError(
                    f"population gives weights of shape {weights.shape}; expected (feature, unit) = {(f, self.units)}"
                )
            signal = torch.from_numpy((stage.raw[rows] @ weights).T).to(x)  # type: ignore[index]
        deviation = signal.std(1, keepdim=True)
        signal = signal / torch.where(deviation > 0, deviation, 1.0)
        share = torch.from_numpy(rng.uniform(*self.ceiling, size=(self.units, 1))).to(x)
        noise = torch.from_numpy(rng.standard_normal(tuple(signal.shape))).to(x)
        return share.sqrt() * signal + (1 - share).sqrt() * noise, share.sqrt() * signal


def normalised(responses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Responses (unit, stimulus) without offset, at unit variance; and offset and scale, shape (unit, 1)."""
    offset = responses.mean(1, keepdim=True)
    scale = (responses - offset).square().sum(1, keepdim=True).div(max(responses.shape[1] - 1, 1)).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    return (responses - offset) / scale, offset, scale


def learning_rate(step: int, steps: int, lr: float) -> float:
    """A short rise, then half a cosine down to a hundredth."""
    rise = min(1.0, (step + 1) / min(WARM_UP, max(steps // 10, 1)))
    fall = LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + np.cos(np.pi * step / steps))
    return float(lr * rise * fall)


Chunk = tuple[Stage, int, int]  # stage, first step, steps


def chunks(stage: Stage, steps: int) -> list[Chunk]:
    """The steps of a stage, from one checkpoint to the next."""
    return [(stage, at, min(CHUNK, steps - at)) for at in range(0, steps, CHUNK)]


@dataclass(frozen=True, eq=False)
class Pretrainer:
    """Training of a hypernetwork.

    Everything that is drawn in a chunk of steps depends on the seed and its number alone, so that training that goes
    on from a checkpoint ends at the same bits.

    Attributes
    ----------
    module : Hypernetwork
    work : list of (stage, first step, steps)
    draws : Draws
    lr, weight_decay : float
    seed : int
    half : bool
        Whether products are computed in bfloat16.
    verbose : bool or None
    device : torch.device
    """

    module: Hypernetwork
    work: list[Chunk]
    draws: Draws
    lr: float
    weight_decay: float
    seed: int
    half: bool
    verbose: bool | None
    device: torch.device

    def run(self, store: Checkpoint | None) -> list[dict[str, Any]]:
        """All chunks, from where a checkpoint stands; the history.

        Raises
        ------
        ValueError
            If training diverges in the first chunk. In a later one it stops with the weights before it, and a warning.
        """
        from tqdm import tqdm

        progress = Pretraining()
        groups = parameter_groups(self.module, Training(lr=self.lr, weight_decay=self.weight_decay))
        parameters = [p for group in groups for p in group["params"]]
        optimiser = torch.optim.AdamW(groups, lr=self.lr, fused=fusible(parameters))
        if store is not None:
            store.restore(self.module, optimiser, progress, {})
        total, sound = sum(steps for _, _, steps in self.work), snapshot(self.module)
        done = sum(steps for _, _, steps in self.work[: len(progress.history)])
        with tqdm(
            total=total, initial=done, desc="steps", disable=None if self.verbose is None else not self.verbose
        ) as bar:
            for number in range(len(progress.history), len(self.work)):
                (stage, at, steps), began = self.work[number], time.perf_counter()
                with seeded(self.seed, number + 1, self.device):
                    loss = self._chunk(number, done, total, optimiser, parameters)
                if not np.isfinite(loss):
                    self.module.load_state_dict(sound)
                    told = f"training diverged in stage {stage.name!r} between steps {at} and {at + steps}"
                    if not done:
                        raise ValueError(f"{told}, before anything was learned; lower lr (now {self.lr:g})")
                    warnings.warn(
                        f"{told}: stopped with the weights of step {done} of {total}; lower lr (now {self.lr:g})",
                        UserWarning,
                        stacklevel=5,
                    )
                    break
                done, sound = done + steps, snapshot(self.module)
                seconds = time.perf_counter() - began
                progress.history.append({"stage": stage.name, "step": at + steps, "loss": loss, "seconds": seconds})
                if store is not None:
                    store.save(self.module, optimiser, progress, {})
                bar.update(steps)
                bar.set_postfix(stage=stage.name, loss=f"{loss:.3f}")
        self.module.eval()
        return progress.history

    def _chunk(
        self,
        number: int,
        done: int,
        total: int,
        optimiser: torch.optim.Optimizer,
        parameters: list[torch.nn.Parameter],
    ) -> float:
        """Mean loss of the steps of a chunk, NaN where a loss or a gradient was not finite."""
        stage, _, steps = self.work[number]
        self.module.train()
        summed = torch.zeros((), device=self.device)
        for i in range(steps):
            x, context, x_query, target = self.draws.step(stage, np.random.default_rng([self.seed, number, i]))
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(done + i, total, self.lr)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                weights = self.module(x, context)
            loss = (predictions(weights.float(), x_query) - target).square().mean()
            optimiser.zero_grad(set_to_none=False)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            summed += loss.detach() + 0 * norm
            if self.device.type == "cpu" and not bool(summed.isfinite()):
                return float("nan")
            optimiser.step()
        return float(summed) / steps
