"""Permutation tests of encoding scores: could a score be this high if stimuli had nothing to do with responses?

The rows of the responses are re-ordered, those of the features stay, and the whole cross-validation is done again:
every fold is fitted to re-ordered training rows and scored on re-ordered test rows. Nothing of the stimuli is computed
again for it (`encoders.linear.refit`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..datasets.errors import unknown
from .schemes import Seed, block_shuffles, circular_shifts, shuffles

if TYPE_CHECKING:
    from ..encoders.linear.refit import OrderedScores

SCHEMES = ("shuffle", "block", "circular")


@dataclass(frozen=True)
class PermutationTest:
    """Scores and how often permutations of the responses reach them; NaN for units without a score.

    Attributes
    ----------
    observed : ndarray of float64, shape (unit,)
        Cross-validated score of the responses as they are.
    p : ndarray of float64, shape (unit,)
        ``(1 + number of permutations that score at least observed) / (1 + n)``, of each unit by itself; see `fdr`.
    p_family : ndarray of float64, shape (unit,)
        The same for the largest score of all units in a permutation (Westfall & Young 1993; Nichols & Holmes 2002, Hum
        Brain Mapp 15:1): the chance of any unit with so small a value, if there is nothing in any, is that value.
    null_mean, null_std : ndarray of float64, shape (unit,)
        Of the scores of the permutations that have one.
    n : int
        Number of permutations.
    null : ndarray, shape (n, unit), or None
        Scores of all permutations, in the dtype of the features, if they were asked for.
    """

    observed: np.ndarray
    p: np.ndarray
    p_family: np.ndarray
    null_mean: np.ndarray
    null_std: np.ndarray
    n: int
    null: np.ndarray | None = None


def permutation_test(
    design: Any,
    Y: Any,
    alpha: ArrayLike | None = None,
    *,
    alphas: ArrayLike | None = None,
    scheme: str = "shuffle",
    runs: ArrayLike | None = None,
    block: int | None = None,
    min_shift: int | None = None,
    n: int = 1000,
    score: str = "r",
    seed: Seed = 0,
    keep_null: bool = False,
    max_memory: int | None = None,
) -> PermutationTest:
    """Test cross-validated ridge scores against those of re-ordered responses.

    Parameters
    ----------
    design : SpectralDesign or array, shape (stimulus, feature)
        What ``RidgeCV(...).design(X, groups)`` makes of features; features themselves get five folds, of whole runs
        where there are `runs`, as many as there are if they are fewer than five.
    Y : array, shape (stimulus, unit) or (stimulus,)
        Responses in memory, in a memory map or HDF5 dataset, or a Recording; read once.
    alpha : float or array, shape (unit,), optional
        Penalties fixed beforehand or chosen on other data; NaN leaves a unit out. Not those that a fit to these
        responses has chosen: the responses as they are would have had their pick and the permutations not, so that the
        test rejects too often. Without signal (60 stimuli, 50 features of falling size), permutations at the penalties
        of ``RidgeCV().fit(X, Y).alpha_`` rejected 12.5 % of units at 5 %; chosen anew, as below, 4.6 %
        (``tests/recovery/test_permutation_calibration.py``).
    alphas : array of float, shape (alpha,), optional
        Where `alpha` is not given: the penalties from which each unit takes the best, in every permutation anew, so
        that both sides have their pick. By default those of `RidgeCV`. Costs a few times as much as a fixed alpha.
    scheme : {"shuffle", "block", "circular"}
        How rows are re-ordered; see `schemes`. "shuffle" takes any order, for stimuli in random order that are
        recorded one by one. Of a time series, neighbours must stay together: "block" exchanges blocks of rows,
        "circular" shifts the series in time.
    runs : array, shape (stimulus,), optional
        Run of each row. Rows never leave their run, so that a run's mean, drift and noise stay with it; folds should
        be of whole runs. For stimuli that may only be exchanged within a session or a subject, its label.
    block : int, optional
        Rows in a block, with scheme "block"; see `block_shuffles`.
    min_shift : int, optional
        Rows to shift by at least, with scheme "circular"; 1 unless given; see `circular_shifts`.
    n : int
        Number of permutations. The smallest p is ``1 / (1 + n)``.
    score : {"r", "r2"}
        As of `RidgeCV`: per fold, averaged over the folds in which it is defined.
    seed : int or numpy.random.Generator
    keep_null : bool
        Keep the scores of all permutations, (n, unit) numbers.
    max_memory : int, optional
        Bytes for temporaries; 1 GiB unless given.

    Returns
    -------
    PermutationTest

    Raises
    ------
    ValueError
        Penalties, schemes or lengths that do not fit together, a fitted encoder in place of a design, or fewer orders
        than `n` needs.

    Notes
    -----
    All units share a permutation, so that what they have in common stays in the null of the largest score. Scores that
    only rounding can tell apart are equal, and a permutation in which a unit has no score counts as one that reaches
    it: both can only make p larger. The test asks whether features and responses are independent; responses of all
    orders must then be equally likely, under "circular" those of all shifts.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((80, 5))
    >>> Y = X @ rng.standard_normal((5, 2)) * [1, 0] + rng.standard_normal((80, 2))
    >>> test = permutation_test(X, Y, n=99)
    >>> bool(test.p[0] == 0.01), bool(test.p[1] > 0.05)
    (True, True)
    """
    from ..encoders.linear.estimator import checked_alphas, checked_memory
    from ..encoders.linear.moments import SCORES
    from ..encoders.linear.refit import chosen_scores, fixed_scores
    from ..encoders.linear.responses import Responses
    from ..encoders.linear.stream import tolerance

    if score not in list(SCORES):
        raise ValueError(unknown("score", score, SCORES))
    if alpha is not None and alphas is not None:
        raise ValueError(
            "alpha and alphas were both given; expected penalties that are fixed, or a grid to choose from"
        )
    memory = checked_memory(max_memory)
    design = _design_of(design, runs, score)
    responses = Responses(_responses_of(Y))
    if responses.n != design.n:
        raise ValueError(f"Y has {responses.n} rows and the design {design.n}; expected one row per stimulus in both")
    orders = _orders(design.n, scheme, runs, block, min_shift, n, seed)
    orders = np.concatenate([np.arange(design.n)[None], orders])  # the first is what is tested
    pieces: Iterable[OrderedScores]
    if alpha is None:
        pieces = chosen_scores(design, responses, checked_alphas(alphas), orders, score, memory)
    else:
        pieces = fixed_scores(design, responses, _fixed(alpha, responses.v), orders, score, memory)
    dtype = np.float32 if design.dtype.itemsize == 4 else np.float64
    tally = _Tally(responses.v, n, tolerance(design.dtype), np.empty((n, responses.v), dtype) if keep_null else None)
    with _bar(responses.v * len(orders)) as bar:
        for piece in pieces:
            tally.add(piece)
            bar.update(piece.scores.size)
    return tally.result()


class _Tally:
    """Scores counted as they come, without keeping those of the permutations.

    Parameters
    ----------
    v, n : int
        Units and permutations.
    rounding : float
        Scores that differ by no more are equal.
    null : ndarray, shape (n, v), or None
        Filled with the scores of the permutations.
    """

    def __init__(self, v: int, n: int, rounding: float, null: np.ndarray | None):
        self._n, self._rounding, self._null = n, rounding, null
        if null is not None:
            null.fill(np.nan)
        self._observed = np.full(v, np.nan)
        self._reached, self._defined = np.zeros((2, v), np.int64)
        # Of differences from the observed score: sums of them and of their squares lose no digits to its size.
        self._sum, self._squares = np.zeros((2, v))
        self._largest = np.full(n, -np.inf)
        self._undefined = np.zeros(n, bool)

    def add(self, piece: OrderedScores) -> None:
        """Take scores; those of the rows as they are come before all others of the same units."""
        orders, units, scores = piece
        if orders.start == 0:
            self._observed[units], scores = scores[0], scores[1:]
        if not len(scores):
            return
        drawn = slice(orders.stop - 1 - len(scores), orders.stop - 1)
        scored = ~np.isnan(self._observed[units])
        units, scores = units[scored], scores[:, scored]
        if self._null is not None:
            self._null[drawn, units] = scores
        if not len(units):
            return
        difference = scores - self._observed[units]
        missing = np.isnan(difference)
        self._reached[units] += (missing | (difference >= -self._rounding)).sum(0)
        self._defined[units] += (~missing).sum(0)
        self._sum[units] += np.nansum(difference, 0)
        self._squares[units] += np.nansum(difference**2, 0)
        self._undefined[drawn] |= missing.any(1)
        np.maximum(self._largest[drawn], np.where(missing, np.inf, scores).max(1), out=self._largest[drawn])

    def result(self) -> PermutationTest:
        observed, n, n_missing = self._observed, self._n, int(np.isnan(self._observed).sum())
        if n_missing:
            warnings.warn(
                f"{n_missing} of {len(observed)} units have no score, as they hold NaN, have no alpha, or their "
                "responses or predictions are constant in every fold: p is NaN",
                stacklevel=3,
            )
        if self._undefined.any():
            warnings.warn(
                f"{int(self._undefined.sum())} of {n} permutations leave units without a score; they count as larger "
                "than every score",
                stacklevel=3,
            )
        unscored = np.isnan(observed)
        reached = n - np.searchsorted(np.sort(self._largest), observed - self._rounding, side="left")
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = self._sum / self._defined
            variance = (self._squares - self._sum * mean) / (self._defined - 1)
        return PermutationTest(
            observed,
            np.where(unscored, np.nan, (1 + self._reached) / (1 + n)),
            np.where(unscored, np.nan, (1 + reached) / (1 + n)),
            observed + mean,
            np.sqrt(np.maximum(variance, 0)),
            n,
            self._null,
        )


def _design_of(given: Any, runs: ArrayLike | None, score: str) -> Any:
    """A design, made of features where that is what was given."""
    from ..encoders.linear.design import SpectralDesign
    from ..encoders.linear.folds import FEWEST
    from ..encoders.linear.ridge import RidgeCV

    if isinstance(given, SpectralDesign):
        if given.n_folds == 0:
            raise ValueError("design has no folds; expected one made by RidgeCV(...).design(X, groups)")
        return given
    if hasattr(given, "get_params"):
        raise ValueError(
            f"design is an encoder ({type(given).__name__}); expected RidgeCV(...).design(X, groups), or features. The "
            "alphas that a fit to these responses has chosen are no use: pass a grid as alphas, to choose anew in "
            "every permutation"
        )
    n_runs = 1 if runs is None else len(np.unique(np.asarray(runs)))
    n_folds, shape = 5 if n_runs == 1 else min(5, n_runs), np.shape(given)
    fewest = n_folds * FEWEST[score]
    if shape and shape[0] < fewest:
        raise ValueError(
            f"design holds features of {shape[0]} rows; expected at least {fewest}, for {n_folds} folds of "
            f"{FEWEST[score]} rows to score, or a design of fewer folds: RidgeCV(cv=...).design(X, groups)"
        )
    return RidgeCV(cv=n_folds, score=score).design(given, runs if n_runs > 1 else None)


def _responses_of(Y: Any) -> Any:
    """Responses (stimulus, unit), left where they are."""
    if hasattr(Y, "presentations") or hasattr(Y, "chunks") or isinstance(Y, np.memmap):
        return Y
    values = np.asarray(Y)
    return values[:, None] if values.ndim == 1 else values


def _fixed(alpha: ArrayLike, v: int) -> np.ndarray:
    """One penalty for each unit."""
    given = np.asarray(alpha, np.float64)
    if given.shape not in ((), (1,), (v,)):
        raise ValueError(f"alpha has shape {given.shape}; expected a number, or one for each of the {v} units of Y")
    wrong = given[~(np.isnan(given) | ((given > 0) & np.isfinite(given)))]
    if wrong.size or np.isnan(given).all():
        found = f"{wrong[0]:g}" if wrong.size else "nothing but NaN"
        raise ValueError(f"alpha holds {found}; expected finite numbers above zero, with NaN for units to leave out")
    return np.broadcast_to(given, v)


def _orders(
    n_rows: int, scheme: str, runs: ArrayLike | None, block: int | None, min_shift: int | None, n: int, seed: Seed
) -> np.ndarray:
    """Orders of the rows, shape (n, row)."""
    if scheme not in SCHEMES:
        raise ValueError(unknown("scheme", scheme, SCHEMES))
    for name, value, its in (("block", block, "block"), ("min_shift", min_shift, "circular")):
        if value is not None and scheme != its:
            raise ValueError(f'{name}={value} was given with scheme="{scheme}"; it goes with scheme="{its}"')
    if runs is not None and np.shape(runs) != (n_rows,):
        raise ValueError(f"runs has shape {np.shape(runs)}; expected one label for each of the {n_rows} rows of Y")
    if scheme == "circular":
        return circular_shifts(n_rows, runs, 1 if min_shift is None else min_shift, n, seed)
    if scheme == "shuffle":
        return shuffles(n_rows, runs, n, seed)
    if block is None:
        raise ValueError(
            'scheme="block" needs the number of rows in a block, much longer than the noise remembers: pass block'
        )
    return block_shuffles(n_rows, block, runs, n, seed)


def _bar(n_scores: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=n_scores, desc="permutations", unit="score", disable=None, leave=False, delay=2, unit_scale=True)
