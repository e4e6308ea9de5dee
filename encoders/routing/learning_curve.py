"""How well encoders predict new stimuli from few."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

FEWEST = 3  # test rows that a correlation needs


def learning_curve(
    encoders: Mapping[str, Any],
    X,
    Y,
    sizes: Sequence[int] = (10, 30, 100, 300, 1000),
    repeats: int = 5,
    test: float = 0.2,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores on held-out stimuli against the number of stimuli that an encoder is given.

    In each repeat some stimuli are kept for the test; the encoders see the first n of the others in random order, the
    same ones for all, so that the sets grow. An encoder that learned from a population, as `PopulationPriorRidge` or
    `InContextEncoder` after its fit, is conditioned on them; any other is cloned and fitted. For that population, take
    other units: one that has seen the test rows of these units has an advantage that new units never give.

    Parameters
    ----------
    encoders : mapping of str to encoder
    X : array, shape (stimulus, feature)
    Y : array, shape (stimulus, unit)
    sizes : sequence of int
        Numbers of stimuli; those that there are not enough stimuli for are left out, with a warning.
    repeats : int
    test : float
        Share of the stimuli that is kept for the test.
    seed : int

    Returns
    -------
    DataFrame
        Columns encoder, n, repeat, r (Pearson correlation) and explained (one minus the variance of the residuals over
        that of the responses), both on average over the units that have one. ``attrs["test_rows"]`` lists the test
        rows of each repeat.

    Raises
    ------
    ValueError
        If there is no encoder, no size can be had, or lengths do not match.

    References
    ----------
    Yu, M. et al. (2025). Meta-learning an in-context transformer model of human higher visual cortex. NeurIPS 38.
    """
    X, Y = np.asarray(X), np.asarray(Y)
    Y = Y.reshape(len(Y), -1)
    if not encoders:
        raise ValueError("encoders is empty; expected encoders by name, such as {'ridge': RidgeCV()}")
    if len(X) != len(Y):
        raise ValueError(f"X has {len(X)} rows and Y has {len(Y)}; expected one row per stimulus in both")
    number = isinstance(test, (int, float, np.number)) and not isinstance(test, bool)
    if not (number and 0 < test < 1):
        raise ValueError(f"test={test!r}: expected a share between 0 and 1")
    if not (isinstance(repeats, (int, np.integer)) and repeats >= 1):
        raise ValueError(f"repeats={repeats!r}: expected an int of at least 1")
    n_test = max(FEWEST, round(len(X) * float(test)))
    n_train = len(X) - n_test
    possible = [int(n) for n in sizes if 1 <= n <= n_train]
    if not possible:
        raise ValueError(f"sizes={list(sizes)} are all more than the {n_train} rows beside the test; pass smaller ones")
    remarks: Counter[str] = Counter()
    if len(possible) < len(sizes):
        left = f"{len(sizes) - len(possible)} of {len(sizes)} sizes are more than the {n_train} rows beside the test"
        remarks[f"{left}, and are left out"] += 1
    lines, test_rows = [], []
    for repeat in range(repeats):
        order = np.random.default_rng([seed, repeat]).permutation(len(X))
        held_out, others = np.sort(order[:n_test]), order[n_test:]
        test_rows.append(held_out.tolist())
        for n in possible:
            rows = others[:n]
            for name, encoder in encoders.items():
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    predicted = _informed(encoder, X[rows], Y[rows]).predict(X[held_out]).reshape(n_test, -1)
                remarks.update({f"{name}: {w.message}" for w in caught})
                r, explained = unit_scores(predicted, Y[held_out])
                lines.append((name, n, repeat, _mean(r), _mean(explained)))
    for remark, times in remarks.items():
        warnings.warn(remark if times == 1 else f"{remark} (in {times} fits)", UserWarning, stacklevel=2)
    table = pd.DataFrame(lines, columns=["encoder", "n", "repeat", "r", "explained"])
    table.attrs["test_rows"] = test_rows
    return table


def unit_scores(predicted: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlation and share of variance explained of each unit over its known rows; NaN where not defined.

    Parameters
    ----------
    predicted, Y : ndarray, shape (stimulus, unit)

    Returns
    -------
    r, explained : ndarray, shape (unit,)
    """
    known = ~np.isnan(Y)
    n = known.sum(0)
    count = np.maximum(n, 1)

    def centred(A: np.ndarray) -> np.ndarray:
        A = np.where(known, A, 0.0)
        return np.where(known, A - A.sum(0) / count, 0.0)

    p, y, residual = centred(predicted), centred(Y), centred(Y - predicted)
    vp, vy = (p * p).sum(0), (y * y).sum(0)
    size = np.where(known, predicted, 0.0)
    varies = (vy > 0) & (n >= FEWEST)
    moves = varies & (vp > 1e-24 * np.maximum((size * size).sum(0), np.finfo(float).tiny))
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.where(moves, (p * y).sum(0) / np.sqrt(vp * vy), np.nan)
        explained = np.where(varies, 1 - (residual * residual).sum(0) / vy, np.nan)
    return r, explained


def _informed(encoder: Any, X: np.ndarray, Y: np.ndarray) -> Any:
    """An encoder that knows these rows: conditioned on them where it learned from a population, else fitted."""
    if hasattr(encoder, "condition"):
        try:
            check_is_fitted(encoder)
        except NotFittedError:
            pass
        else:
            return encoder.condition(X, Y)
    return clone(encoder).fit(X, Y)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
