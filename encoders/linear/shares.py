"""The search for the shares of feature spaces: what serves all shares, and the best of each unit so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .assemble import Fit
from .design import KernelMap, SpectralDesign
from .folds import Rows as FoldRows
from .matrix import DenseFeatures, Rows
from .moments import choose
from .responses import Responses
from .stream import (
    BlockFit,
    BlockFitter,
    Prepared,
    Task,
    block_width,
    make_plan,
    mean_over_units,
    still_climbing,
    tolerance,
)

_SPREAD = 30.0  # how closely refined weights stay to those they refine: concentration of their Dirichlet law


def random_shares(n: int, n_spaces: int, rng: np.random.Generator) -> np.ndarray:
    """Equal shares first, then draws of Dirichlet distributions of concentration 1 and 0.1, (iteration, space)."""
    shares = np.full((n, n_spaces), 1 / n_spaces)
    for i in range(1, n):
        shares[i] = rng.dirichlet(np.full(n_spaces, 1.0 if i % 2 else 0.1))
    return shares


class Bands:
    """Feature spaces, and what of them serves all shares."""

    def __init__(
        self, X: np.ndarray, spaces: Sequence[np.ndarray], folds: Sequence[FoldRows], centre: bool, device: torch.device
    ):
        self.spaces, self.folds, self.centre, self.device = spaces, folds, centre, device
        self.dual = X.shape[1] > min(len(train) for train, _ in folds)
        self.mean = X.mean(0, dtype=np.float64) if centre else np.zeros(X.shape[1])
        self.dtype = torch.float32 if X.dtype == np.float32 else torch.float64
        if self.dual:
            self._kernels = [DenseFeatures(X[:, columns], centre, device).kernel() for columns in spaces]
        else:
            self._features = DenseFeatures(X, centre, device)
            self._grams: dict[bytes, Tensor] = {}

    def design(self, shares: np.ndarray) -> SpectralDesign:
        """The spaces weighted by the roots of their shares."""
        if self.dual:
            kernel = torch.zeros_like(self._kernels[0])
            for share, one in zip(shares.tolist(), self._kernels, strict=True):
                kernel.add_(one, alpha=share)
            return SpectralDesign(None, self.folds, fit_intercept=self.centre, kernel=kernel, dtype=self.dtype)
        weights = torch.from_numpy(self.roots(shares)).to(self.device)
        matrix = WeightedFeatures(self._features, weights, self._grams)
        return SpectralDesign(matrix, self.folds, fit_intercept=self.centre)

    def roots(self, shares: np.ndarray) -> np.ndarray:
        """Root of the share of each column."""
        roots = np.empty(len(self.mean))
        for share, columns in zip(shares, self.spaces, strict=True):
            roots[columns] = share**0.5
        return roots

    def weights(self, shares: np.ndarray, design: SpectralDesign, by_rows: bool, along: np.ndarray) -> np.ndarray:
        """Weights of rows (dual) or of columns of X, from weights along the axes of a design."""
        to_axes = design.whole(by_rows)[1]
        if isinstance(to_axes, KernelMap):
            given = np.argsort(np.concatenate(design.layouts[0].atoms))  # back to the order of X
            return to_axes.projection.cpu().numpy()[given] @ along.astype(np.float64)
        return self.roots(shares).astype(along.dtype)[:, None] * (to_axes.axes.to(self.dtype).cpu().numpy() @ along)


class WeightedFeatures:
    """Features with weighted columns; Gram matrices of the unweighted ones are computed once. See `FeatureMatrix`."""

    def __init__(self, features: DenseFeatures, weights: Tensor, grams: dict[bytes, Tensor]):
        self._features, self._weights, self._grams = features, weights, grams
        self.offset = features.offset * weights
        self.shape, self.dtype, self.device = features.shape, features.dtype, features.device

    def gram(self, rows: Rows, mean: Tensor | None = None) -> Tensor:
        weights = torch.outer(self._weights, self._weights)
        if mean is not None:
            return self._features.gram(rows, torch.where(self._weights > 0, mean / self._weights, 0.0)) * weights
        key = repr(rows).encode() if isinstance(rows, slice) else rows.cpu().numpy().tobytes()
        if key not in self._grams:
            self._grams[key] = self._features.gram(rows)
        return self._grams[key] * weights

    def kernel(self, scale: Tensor | None = None) -> Tensor:
        return self._features.kernel(1 / self._weights)

    def sums(self, rows: Rows) -> Tensor:
        return self._features.sums(rows) * self._weights

    def squares(self, rows: Rows, mean: Tensor) -> Tensor:
        scale = torch.where(self._weights > 0, mean / self._weights, 0.0)
        return self._features.squares(rows, scale) * self._weights.square()

    def varying(self, rows: Rows) -> Tensor:
        return self._features.varying(rows) & (self._weights > 0)

    def cross(self, rows: Rows, Y: Tensor) -> Tensor:
        return self._features.cross(rows, Y) * self._weights[:, None].to(Y.dtype)

    def project(self, rows: Rows, V: Tensor) -> Tensor:
        return self._features.project(rows, self._weights[:, None] * V)

    def combine(self, W: Tensor) -> Tensor:
        return self._features.combine(W) * self._weights[:, None].to(self.dtype)


Known = tuple[np.ndarray, Prepared]  # column numbers, and the responses in them


class Search:
    """The best shares and penalty of each unit so far."""

    def __init__(self, bands: Bands, responses: Responses, alphas: np.ndarray, score: str, per_unit: bool, memory: int):
        self.bands, self.responses, self.alphas, self.score_name = bands, responses, alphas, score
        self.per_unit, self.memory = per_unit, memory
        v = responses.v
        self.shares: list[np.ndarray] = []
        self._means: list[np.ndarray] = []  # (alpha,), of each set of shares: mean score over units
        self._complete, self._climbing = np.zeros(v, bool), np.zeros((2, v), bool)
        self._doubtful = np.zeros(v, bool)  # under some shares, partial fractions failed
        self._shares, self._alpha = np.zeros(v, int), np.full(v, len(alphas) - 1)
        self._score, self._response_mean = np.full(v, -np.inf), np.full(v, np.nan)
        self._kept: list[Known] | None = None
        self._surface = np.full((len(alphas), v), np.nan)  # of the best shares for all units, without `per_unit`

    def attempt(self, shares: np.ndarray, units: np.ndarray | None) -> None:
        """Try shares on all units, or on those of a mask."""
        number = len(self.shares)
        self.shares.append(shares)
        v = self.responses.v if units is None else int(units.sum())
        surface = np.full((len(self.alphas), self.responses.v), np.nan) if not self.per_unit else None
        for columns, block in self._blocks(shares, units, v):
            found = np.where(np.isnan(block.score), -np.inf, block.score)
            better = found > self._score[columns] + tolerance(self.bands.dtype)
            at = columns[better]
            self._score[at], self._shares[at], self._alpha[at] = found[better], number, block.index[better]
            self._climbing[:, at] = block.climbing[:, better]
            self._complete[columns], self._response_mean[columns] = block.complete, block.response_mean
            if block.n_doubtful:
                self._doubtful[columns[block.complete]] = True
            if surface is not None:
                surface[:, columns] = block.surface
        if surface is not None:
            mean = mean_over_units(surface)[:, 0]
            if not self._means or np.nanmax(mean, initial=-np.inf) > max(
                np.nanmax(one, initial=-np.inf) for one in self._means
            ):
                self._surface = surface
            self._means.append(mean)

    def refine(self, rng: np.random.Generator) -> None:
        """Try shares near those that are the best for many units, on the units that they are the best for."""
        if not self.per_unit:
            best = int(np.argmax([np.nanmax(one, initial=-np.inf) for one in self._means]))
            self.attempt(_near(self.shares[best], rng), None)
            return
        scored = self._complete & (self._score > 0)
        if not scored.any():
            self.attempt(rng.dirichlet(np.ones(len(self.shares[0]))), None)
            return
        counts = np.bincount(self._shares[scored], minlength=len(self.shares))
        number = int(rng.choice(len(counts), p=counts / counts.sum()))
        self.attempt(_near(self.shares[number], rng), self._shares == number)

    def found(self) -> tuple[Fit, np.ndarray]:
        """The fit of every unit, without weights, and which shares it has."""
        v = self.responses.v
        if not self.per_unit:
            best = int(np.argmax([np.nanmax(one, initial=-np.inf) for one in self._means]))
            self._shares[:] = best
            mean = self._means[best][:, None]
            alpha = int(choose(mean, tolerance(self.bands.dtype))[0])
            self._alpha[:], self._score = alpha, self._surface[alpha]
            self._climbing = np.repeat(still_climbing(mean), v, axis=1)
        score = np.where(np.isfinite(self._score), self._score, np.nan)
        fit = Fit(
            self._complete,
            self._alpha,
            score,
            np.full(v, np.nan),
            self._response_mean,
            self._climbing,
            None,
            None,
            int(self._doubtful.sum()),
        )
        return fit, self._shares

    def weights(self, fit: Fit, chosen: np.ndarray) -> np.ndarray:
        """Weights of rows (dual) or columns of X, each unit at its own shares and penalty."""
        bands, v = self.bands, self.responses.v
        # Weights of rows nearly cancel along the large axes of the features: float32 would lose what is left.
        size, dtype = (self.responses.n, torch.float64) if bands.dual else (len(bands.mean), bands.dtype)
        weights = np.full((size, v), np.nan, np.float32 if dtype == torch.float32 else np.float64)
        for number in np.unique(chosen[fit.complete]):
            units = fit.complete & (chosen == number)
            for columns, block, fitter in self._refits(self.shares[number], units, fit.alpha):
                assert block.weights is not None
                weights[:, columns] = bands.weights(
                    self.shares[number], fitter.design, fitter.task.plan.by_rows, block.weights
                )
        return weights

    def _fitter(self, shares: np.ndarray, v: int, weights: bool) -> tuple[BlockFitter, int]:
        design = self.bands.design(shares)
        plan = make_plan(design, self.alphas, v)
        task = Task(self.alphas, self.score_name, plan, not self.per_unit and not weights, weights)
        return BlockFitter(design, task), block_width(design, plan, len(self.alphas), self.memory)

    def _prepared(self, fitter: BlockFitter, units: np.ndarray | None, width: int) -> Iterator[Known]:
        """Blocks of all units, kept if memory allows, or of those of a mask."""
        if self._kept is not None:
            yield from self._kept if units is None else self._joined(units, width)
            return
        fits = 16 * self.responses.n * self.responses.v < self.memory and not self.responses.on_disk
        kept: list[Known] | None = [] if units is None and fits else None
        for part, values in self.responses.blocks(width):
            columns = np.arange(part.start, part.stop)
            if units is not None:
                columns, values = columns[units[part]], values[:, units[part]]
            if len(columns):
                prepared = fitter.prepare(values, slice(int(columns[0]), int(columns[0]) + len(columns)))
                if kept is not None:
                    kept.append((columns, prepared))
                yield columns, prepared
        if kept is not None:
            self._kept = kept

    def _joined(self, units: np.ndarray, width: int) -> Iterator[Known]:
        """Units of a mask out of the blocks that are kept, in as few as their width allows."""
        pieces: list[tuple[Prepared, np.ndarray]] = []
        numbers: list[np.ndarray] = []
        for columns, prepared in self._kept or []:
            chosen = np.flatnonzero(units[columns])
            if pieces and sum(map(len, numbers)) + len(chosen) > width:
                yield np.concatenate(numbers), Prepared.joined(pieces)
                pieces, numbers = [], []
            if len(chosen):
                pieces.append((prepared, chosen))
                numbers.append(columns[chosen])
        if pieces:
            yield np.concatenate(numbers), Prepared.joined(pieces)

    def _blocks(self, shares: np.ndarray, units: np.ndarray | None, v: int) -> Iterator[tuple[np.ndarray, BlockFit]]:
        fitter, width = self._fitter(shares, v, weights=False)
        for columns, prepared in self._prepared(fitter, units, width):
            yield columns, fitter.fit_prepared(prepared)
            prepared.products = None  # of other shares

    def _refits(
        self, shares: np.ndarray, units: np.ndarray, index: np.ndarray
    ) -> Iterator[tuple[np.ndarray, BlockFit, BlockFitter]]:
        fitter, width = self._fitter(shares, int(units.sum()), weights=True)
        for columns, prepared in self._prepared(fitter, units, width):
            yield columns, fitter.fit_prepared(prepared, index[columns]), fitter


def _near(shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shares near others; one that was 0 may come back."""
    return rng.dirichlet(_SPREAD * shares + 0.3)
