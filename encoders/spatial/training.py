"""One trainer for every readout that is fitted by gradients."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ...datasets.errors import unknown
from ..linear.estimator import checked_groups
from ..linear.folds import fold_rows
from .batches import Feed, epoch_order, row_batches
from .checkpoint import Checkpoint, fingerprint
from .losses import FEWEST, Loss, StreamingCorrelation, checked_loss
from .tokens import Tokens

PRECISIONS = ("float32", "bfloat16", "auto")
BLOWN_UP = 1e3  # times the loss that training starts with
COLUMNS = ["epoch", "loss", "validation_r", "seconds"]


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes
    ----------
    loss : {"mse", "correlation", "poisson"}
    lr, weight_decay : float
        Of AdamW.
    epochs : int
        At most.
    batch_size : int
    patience : int
        Epochs without a better validation r after which training stops.
    clip : float or None
        Norm that gradients are clipped to.
    halve_after : int or None
        Epochs after which the learning rate is halved, again and again.
    precision : {"float32", "bfloat16", "auto"}
    compile : bool
        By torch.compile, for batches of one size.
    checkpoint : Path or None
        File ``.safetensors``, written after every epoch.
    seed : int
    verbose : bool or None
        Whether a bar shows epochs and validation r; None where the output is a terminal.
    """

    loss: str = "mse"
    lr: float = 3e-3
    weight_decay: float = 1e-4
    epochs: int = 60
    batch_size: int = 128
    patience: int = 8
    clip: float | None = 1.0
    halve_after: int | None = None
    precision: str = "float32"
    compile: bool = False
    checkpoint: Path | None = None
    seed: int = 0
    verbose: bool | None = None


@dataclass(frozen=True, eq=False)
class Fitted:
    """What training left beside the weights.

    Attributes
    ----------
    history : DataFrame
        Columns epoch, loss (mean over the batches of the epoch, as weights move), validation_r (mean over units) and
        seconds; epoch 0 is the start, which has no loss.
    validation_r : ndarray, shape (unit,)
        Of the best epoch; as the maximum over epochs a little optimistic.
    best_epoch : int
    stopped : {"patience", "epochs", "diverged"}
    """

    history: pd.DataFrame
    validation_r: np.ndarray
    best_epoch: int
    stopped: Literal["patience", "epochs", "diverged"]

    @property
    def score(self) -> float:
        """Validation r of the best epoch, mean over the units that have one; -inf where none has."""
        return mean_r(self.validation_r)

    def divergence(self, lr: float) -> str:
        """What to tell of training that diverged at this learning rate."""
        epoch, loss = self.history[["epoch", "loss"]].iloc[-1]
        r = f"{self.score:.3f}" if np.isfinite(self.score) else "undefined"
        return (
            f"training diverged in epoch {epoch:.0f} (loss {loss:.3g}): stopped with the weights of epoch "
            f"{self.best_epoch} (validation r {r}); lower lr (now {lr:g})"
        )


@dataclass
class Progress:
    """Where training stands: all that goes from one epoch to the next beside weights and optimiser."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = -np.inf
    best_r: np.ndarray = field(default_factory=lambda: np.empty(0))
    start_loss: float = np.nan
    stopped: str = ""

    @property
    def epoch(self) -> int:
        """The last epoch that is through."""
        return len(self.history) - 1


def train(
    module: nn.Module,
    tokens: Tokens,
    Y: Tensor,
    known: Tensor | None,
    train_rows: np.ndarray,
    validation_rows: np.ndarray,
    standard: tuple[Tensor, Tensor],
    how: Training,
    device: torch.device,
    identity: Mapping[str, Any] | None = None,
) -> Fitted:
    """Train a module; it is left with the weights of the epoch of best validation r.

    The order of an epoch's rows and everything drawn at random in it depend on the seed and its number alone, so that
    training that goes on from a checkpoint ends at the same bits, at the same number of threads on the same machine.

    Parameters
    ----------
    module : nn.Module
        From standardised tokens (row, token, feature) to outputs (row, unit), before the link of the loss. It may have
        ``decayed()``, the parameters that weight decay shrinks (without it, those of two dimensions or more),
        ``parameter_groups(lr)``, groups for the optimiser in place of that, and ``constrain()``, called after each
        step without gradients.
    tokens : Tokens
    Y : Tensor of float32, shape (stimulus, unit)
        Responses on the scale of training.
    known : Tensor of bool, shape (stimulus, unit), or None
        Which entries of Y count; None is all of them.
    train_rows, validation_rows : ndarray of int
    standard : (mean, std)
        Tensors, shape (feature,), that tokens are standardised with.
    how : Training
    device : torch.device
    identity : mapping or None
        What identifies the fit beside all this, for the checkpoint: class and parameters.

    Returns
    -------
    Fitted

    Raises
    ------
    ValueError
        If a name is unknown, tokens hold NaN or infinite values, or the checkpoint is of another fit.
    """
    return Trainer(module, tokens, Y, known, train_rows, validation_rows, standard, how, device, identity).run()


class Trainer:
    """One training run; see `train`."""

    def __init__(self, module, tokens, Y, known, train_rows, validation_rows, standard, how, device, identity=None):
        self.loss: Loss = checked_loss(how.loss)
        self.how: Training = how
        self.device = device
        self.train_rows, self.validation_rows = np.sort(train_rows), np.sort(validation_rows)
        self.half = half_precision(how.precision, tokens, device)
        self.store = None
        if how.checkpoint is not None:
            self.store = Checkpoint(
                how.checkpoint, self._identity(module, tokens, Y, known, standard) | dict(identity or {})
            )
        self.feed = Feed(tokens, standard, device, self.half or torch.float32)
        self.Y, self.known = Y.to(device), None if known is None else known.to(device)
        self.module: nn.Module = module.to(device)
        self.stepped = compiled(module, device) if how.compile else module
        groups = parameter_groups(module, how)
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimiser = torch.optim.AdamW(groups, lr=how.lr, fused=fusible(self.parameters))
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.progress = Progress()
        self.best = snapshot(module)

    def run(self) -> Fitted:
        """Epoch by epoch to the end, from where a checkpoint stands if there is one."""
        from tqdm import tqdm

        how = self.how
        if self.store is None or not self.store.restore(self.module, self.optimiser, self.progress, self.best):
            self._after_epoch(np.nan, time.perf_counter())
        progress = self.progress
        if progress.stopped == "epochs" and progress.epoch < how.epochs:
            progress.stopped = ""
        bar = tqdm(
            total=how.epochs,
            initial=progress.epoch,
            desc="epochs",
            disable=None if how.verbose is None else not how.verbose,
        )
        with bar:
            while not progress.stopped:
                if progress.epoch >= how.epochs:
                    progress.stopped = "epochs"
                    break
                self._one_epoch(progress.epoch + 1)
                if self.store is not None:
                    self.store.save(self.module, self.optimiser, progress, self.best)
                bar.update()
                bar.set_postfix(r=f"{progress.history[-1]['validation_r']:.3f}", best=f"{progress.best_score:.3f}")
        if self.store is not None:
            self.store.save(self.module, self.optimiser, progress, self.best)
        self.module.load_state_dict(self.best)
        self.module.eval()
        history = pd.DataFrame(progress.history, columns=COLUMNS).astype({"epoch": int})
        return Fitted(history, progress.best_r, progress.best_epoch, progress.stopped)  # type: ignore[arg-type]

    def _one_epoch(self, epoch: int) -> None:
        how, began = self.how, time.perf_counter()
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * 0.5 ** ((epoch - 1) // how.halve_after if how.halve_after else 0)
        with seeded(how.seed, epoch, self.device):
            loss = self._steps(epoch)
        if not loss <= BLOWN_UP * max(1.0, abs(self.progress.start_loss)):  # NaN is not below either
            self.progress.stopped = "diverged"
            self._record(epoch, loss, np.nan, began)
            return
        self._after_epoch(loss, began)
        if epoch - self.progress.best_epoch >= how.patience:
            self.progress.stopped = "patience"

    def _steps(self, epoch: int) -> float:
        """The steps of an epoch; its mean loss, NaN where a loss or a gradient was not finite."""
        how, constrain = self.how, getattr(self.module, "constrain", None)
        order = epoch_order(self.train_rows, how.seed, epoch, how.batch_size if how.compile else None)
        batches = row_batches(order, how.batch_size, fixed=how.compile)
        total = torch.zeros((), device=self.device)
        limit = float("inf") if how.clip is None else how.clip
        self.module.train()
        for rows, x in zip(batches, self.feed.each(batches), strict=True):
            index = torch.from_numpy(rows).to(self.device)
            outputs = self._outputs(self.stepped, x)
            loss = self.loss(outputs, self.Y[index], None if self.known is None else self.known[index])
            self.optimiser.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
            if np.isnan(self.progress.start_loss):
                self.progress.start_loss = float(loss.detach())
            total += len(rows) * loss.detach() + 0 * norm  # NaN from here on where one of them is not finite
            if self.device.type == "cpu" and not bool(total.isfinite()):
                return float("nan")
            self.optimiser.step()
            if constrain is not None:
                with torch.no_grad():
                    constrain()
        mean = float(total) / sum(map(len, batches))
        return mean if np.isfinite(mean) else float("nan")

    def _outputs(self, module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.half or torch.bfloat16, enabled=self.half is not None):
            outputs = module(x)
        return outputs.float()

    def _after_epoch(self, loss: float, began: float) -> None:
        """Validation r of the weights as they are, which are kept where they are the best."""
        (r, size), progress = self._validation_r(), self.progress
        score, epoch = mean_r(r), len(progress.history)
        # One step can throw all weights far away, and the direction of what they predict may still be right.
        bound = BLOWN_UP * max(1.0, abs(progress.start_loss)) if self.how.loss == "mse" else np.finfo(float).max
        if epoch and not size <= bound:
            progress.stopped = "diverged"
            self._record(epoch, loss, np.nan, began)
            return
        if score > progress.best_score or not epoch:
            progress.best_epoch, progress.best_score, progress.best_r = epoch, score, r
            self.best = snapshot(self.module)
        self._record(epoch, loss, score, began)

    def _record(self, epoch: int, loss: float, score: float, began: float) -> None:
        shown = score if np.isfinite(score) else np.nan
        seconds = time.perf_counter() - began
        self.progress.history.append({"epoch": epoch, "loss": loss, "validation_r": shown, "seconds": seconds})

    @torch.no_grad()
    def _validation_r(self) -> tuple[np.ndarray, float]:
        """Validation r of each unit, and the mean square of what is predicted."""
        self.module.eval()
        squares, numbers = 0.0, 0
        moments = StreamingCorrelation(self.Y.shape[1], self.device if self.device.type == "cuda" else "cpu")
        batches = row_batches(self.validation_rows, self.how.batch_size)
        for rows, x in zip(batches, self.feed.each(batches), strict=True):
            index = torch.from_numpy(rows).to(self.device)
            responses = self.loss.link(self._outputs(self.module, x))
            squares, numbers = squares + float(responses.double().square().sum()), numbers + responses.numel()
            moments.update(responses, self.Y[index], None if self.known is None else self.known[index])
        return moments.r(), squares / max(numbers, 1)

    def _identity(
        self, module: nn.Module, tokens: Tokens, Y: Tensor, known: Tensor | None, standard: tuple[Tensor, Tensor]
    ) -> dict[str, str]:
        """What a checkpoint must have been written with."""
        ends = np.unique(np.r_[: min(64, tokens.n), max(tokens.n - 64, 0) : tokens.n])
        settings = {
            name: value for name, value in vars(self.how).items() if name not in ("checkpoint", "verbose", "epochs")
        }
        return {
            **{name: repr(value) for name, value in settings.items()},
            "precision used": str(self.half or torch.float32),
            "shape of X": str((tokens.n, tokens.n_tokens, tokens.n_features)),
            "shape of Y": str(tuple(Y.shape)),
            "values of X": fingerprint([tokens.read(ends), *standard]),
            "values of Y": fingerprint([Y] if known is None else [Y, known]),
            "rows": fingerprint([self.train_rows, self.validation_rows]),
            "initial weights": fingerprint(module.state_dict().values()),
            "torch": torch.__version__,
        }


def mean_r(r: np.ndarray) -> float:
    """Mean over the units that have a correlation; -inf where none has."""
    known = r[~np.isnan(r)]
    return float(known.mean()) if known.size else -np.inf


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of weights and buffers in memory of the CPU."""
    return {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}


def parameter_groups(module: nn.Module, how: Training) -> list[dict[str, Any]]:
    """Parameters as AdamW takes them: those that decay, and the others."""
    if hasattr(module, "parameter_groups"):
        return list(module.parameter_groups(how.lr))  # type: ignore[operator]
    parameters = [p for p in module.parameters() if p.requires_grad]
    decayed = module.decayed() if hasattr(module, "decayed") else [p for p in parameters if p.ndim >= 2]  # type: ignore[operator]
    shrunk = {id(p) for p in decayed}
    groups = [
        {"params": [p for p in parameters if id(p) in shrunk], "weight_decay": how.weight_decay},
        {"params": [p for p in parameters if id(p) not in shrunk], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def fusible(parameters: list[nn.Parameter]) -> bool:
    """Whether AdamW can update these parameters in one kernel, ten times faster on a CPU."""
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)


def compiled(module: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A module as torch.compile makes it for batches of one size."""
    fast = torch.compile(module, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else "default")

    def outputs(x: Tensor) -> Tensor:
        try:
            return fast(x)
        except RuntimeError as error:
            raise ValueError(f"compile=True: the compiled module fails ({error}); take compile=False") from error

    return outputs


def half_precision(name: Any, tokens: Tokens, device: torch.device) -> torch.dtype | None:
    """The dtype that products are computed in, or None for float32.

    Parameters
    ----------
    name : {"float32", "bfloat16", "auto"}
        "auto" is bfloat16 on a GPU, and on processors that multiply it in hardware where a stimulus has at least
        16,384 numbers, as the gain is in large products.
    tokens : Tokens
    device : torch.device

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    if name not in PRECISIONS:
        raise ValueError(unknown("precision", name, PRECISIONS))
    if name == "auto":
        in_hardware = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        fast = any(getattr(torch.cpu, test, lambda: False)() for test in in_hardware)
        large = tokens.n_tokens * tokens.n_features >= 2**14
        name = "bfloat16" if device.type == "cuda" or (device.type == "cpu" and fast and large) else "float32"
    return torch.bfloat16 if name == "bfloat16" else None


@contextmanager
def seeded(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """torch's random numbers as seed and epoch say, and afterwards as they were."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        yield


def split_rows(n: int, validation: Any, groups: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to stop by.

    Parameters
    ----------
    n : int
        Number of stimuli.
    validation : float or (training rows, validation rows)
        Share of the stimuli that are drawn at random, at least three of them; or the rows.
    groups : array, shape (stimulus,), or None
        Labels of rows that stay together when they are drawn.
    seed : int

    Returns
    -------
    train_rows, validation_rows : ndarray of int
        Ascending.

    Raises
    ------
    ValueError
        If there are fewer than eight stimuli or two groups, either side comes out too small, or `validation` is out of
        its range.
    """
    if n < 8:
        stimuli = "1 stimulus" if n == 1 else f"{n} stimuli"
        raise ValueError(f"X holds {stimuli} (n_samples={n}); expected at least 8, three of which training stops by")
    groups = checked_groups(groups, n)
    if isinstance(validation, (tuple, list)) and len(validation) == 2:
        rows = np.empty((n, 1))
        try:
            train_rows, validation_rows = fold_rows([tuple(validation)], rows, rows, None)[0]
        except ValueError as error:
            raise ValueError(str(error).replace("fold 0 of cv", "validation")) from error
    else:
        number = isinstance(validation, (int, float, np.number)) and not isinstance(validation, bool)
        if not (number and 0 < validation < 1):
            raise ValueError(
                f"validation={validation!r:.80}: expected a share between 0 and 1, or (training rows, validation rows)"
            )
        labels = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
        wanted = min(max(round(n * float(validation)), FEWEST), n - FEWEST)
        order = np.random.default_rng(seed).permutation(labels.max() + 1)
        reached = np.cumsum(np.bincount(labels)[order])
        n_groups = int(np.searchsorted(reached, wanted)) + 1
        held_out = np.isin(labels, order[:n_groups])
        train_rows, validation_rows = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    if len(validation_rows) < FEWEST or len(train_rows) < FEWEST:
        cause = "" if groups is None else f" from {len(np.unique(groups))} groups that stay together"
        raise ValueError(
            f"validation={validation!r:.80} leaves {len(train_rows)} stimuli to train on and {len(validation_rows)} to "
            f"stop by{cause}; expected at least {FEWEST} of each"
        )
    return np.sort(train_rows), np.sort(validation_rows)
