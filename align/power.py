"""How many subjects and stimuli a comparison of models needs: experiments simulated and tested as real ones are."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial.distance import squareform

from ..datasets.errors import unknown
from ..datasets.rdms import RDMs
from .compare import as_vectors, check_method
from .inference import Seed, compare_models
from .rdm import rdm
from .rdm_models import as_models

COLUMNS = ["n_subjects", "n_stimuli", "test", "model", "power", "se", "score"]


def rsa_power(
    models: RDMs | np.ndarray | Sequence[Any],
    true: int | str | RDMs | np.ndarray,
    n_subjects: int | Sequence[int],
    n_stimuli: int | Sequence[int],
    noise: float,
    n_simulations: int = 500,
    method: str = "rho-a",
    over: str = "both",
    alpha: float = 0.05,
    seed: Seed = 0,
    *,
    n_channels: int = 100,
    bootstrap: int = 200,
) -> pd.DataFrame:
    """Share of simulated experiments in which the tests of `compare_models` find what is there.

    Every experiment draws new stimuli from those of the models and new subjects. A subject has `n_channels` channels
    whose tuning is drawn at random such that their RDM is the true one in expectation, and noise is added to each
    pattern. Its RDM is measured by squared Euclidean distances, less what noise adds to them on average, as
    cross-validation would.

    Parameters
    ----------
    models : RDMs, or a list of RDM models and RDMs
        As in `compare_models`, over the stimuli that experiments draw from.
    true : int, str or RDMs
        The geometry of the brain: the position of a model or its name, as in the table of `compare_models`, where
        `models` are RDMs; or one RDM over the same stimuli. An RDM that no patterns have (squared distances that
        are not Euclidean) gets the least constant added that mends it, which no correlation sees.
    n_subjects, n_stimuli : int or sequence of int
        Sizes of experiments; every combination is simulated. With all stimuli of the models in each experiment, the
        stimuli do not vary.
    noise : float
        Standard deviation of the noise of a pattern's channel over that of the signal.
    n_simulations : int
        Per combination.
    method, over : str
        See `compare_models`.
    alpha : float
        Level of the tests, each on its own.
    seed : int or numpy Generator
    n_channels : int
        Fewer channels make subjects differ more, as each sees fewer of the dimensions.
    bootstrap : int
        Resamples of each experiment.

    Returns
    -------
    DataFrame
        One row per size, test and model: n_subjects, n_stimuli, test, model, power (share of experiments), se (its
        binomial standard error), score (mean over experiments). An experiment in which a model has no score or a test
        no p is left out of that rate, and one warning counts these; a rate without any experiment is NaN, as are
        those of all tests with over="none". Tests:

        =================  =====================================================================================
        ``above-zero``     the score of the model is above zero, one-sided; NaN for "cosine", "cosine-whitened",
                           "bures" and "riemannian", by which unrelated RDMs do not score zero
        ``below-best``     the model scores below the one with the highest mean score over experiments, and the
                           two-sided test of their difference is significant; not for that one itself
        ``below-ceiling``  the model scores below the lower bound of the ceiling, by a significant two-sided test
        ``highest``        no test: the model has the highest score of all
        =================  =====================================================================================

    Raises
    ------
    ValueError
        For an unknown true model, sizes beyond the models' stimuli, and what `compare_models` refuses.

    References
    ----------
    Schuett et al. (2023), eLife 12:e82566.
    """
    check_method(method)
    models = _with_ids(models)
    names, ids = _names_and_stimuli(models)
    patterns = _patterns(_true_rdm(models, true, names, ids))
    sizes = [(int(s), int(n)) for s in np.atleast_1d(n_subjects) for n in np.atleast_1d(n_stimuli)]
    for _, n in sizes:
        if not 3 <= n <= len(ids):
            raise ValueError(f"n_stimuli={n}; expected 3 to {len(ids)}, the stimuli of the models.")
    for name, value, good, expected in (
        ("noise", noise, noise >= 0, "0 or more, in standard deviations of the signal"),
        ("alpha", alpha, 0 < alpha < 1, "a level between 0 and 1"),
        ("n_simulations", n_simulations, n_simulations >= 1, "at least 1"),
        ("n_channels", n_channels, n_channels >= 1, "at least 1"),
    ):
        if not good:
            raise ValueError(f"{name}={value!r}; expected {expected}.")
    rows, lost, said = list[tuple](), 0, list[str]()
    # Streams of their own, so that a size gives the same numbers beside whichever others.
    for (subjects, stimuli), rng in zip(sizes, np.random.default_rng(seed).spawn(len(sizes)), strict=True):
        found = []
        for _ in range(n_simulations):
            chosen = np.sort(rng.choice(len(ids), stimuli, replace=False))
            brain = _measured(patterns[chosen], subjects, noise, n_channels, rng, [ids[k] for k in chosen])
            with warnings.catch_warnings(record=True) as caught:  # one for all experiments follows
                warnings.simplefilter("always", UserWarning)
                found.append(compare_models(models, brain, method, over=over, bootstrap=bootstrap, seed=rng))
            said += [str(one.message) for one in caught[:1]]
        of_size, without = _rows(found, names, subjects, stimuli, alpha)
        rows, lost = rows + of_size, lost + without
    if lost or said:
        total = len(sizes) * n_simulations
        parts = [f"{lost} lack a score or p of some model and are left out of its rates"] if lost else []
        parts += [f"{len(said)} warned, the first: {said[0]}"] if said else []
        warnings.warn(f"of {total} experiments {'; '.join(parts)}", stacklevel=2)
    return pd.DataFrame(rows, columns=COLUMNS)


def _rows(found: list, names: list[str], n_subjects: int, n_stimuli: int, alpha: float) -> tuple[list[tuple], int]:
    """Rows of the table, and how many experiments are left out of the rate of some model.

    A test that no experiment has at all, of any model, is no loss: it is not to be had.
    """
    scores = np.array([one.scores for one in found])
    best = int(np.nan_to_num([_mean(column) for column in scores.T], nan=-np.inf).argmax())
    first, second = np.triu_indices(len(names), 1)
    pairs = np.full((len(found), len(names), len(names)), np.nan)
    if len(names) > 1 and found[0].over != "none":
        pairs[:, first, second] = pairs[:, second, first] = [one.pairwise("none")["p"] for one in found]
    others = np.arange(len(names)) != best
    lower = np.array([one.ceiling[0] for one in found])[:, None]
    p_zero, p_ceiling = (np.array([getattr(one, name) for one in found]) for name in ("p_zero", "p_ceiling"))
    highest = np.where(np.isnan(scores), -np.inf, scores).argmax(1)[:, None] == np.arange(len(names))
    hits = {
        "above-zero": _hits(p_zero <= alpha, p_zero),
        "below-best": _hits((pairs[:, best] <= alpha) & (scores < scores[:, [best]]), pairs[:, best])[:, others],
        "below-ceiling": _hits((p_ceiling <= alpha) & (scores < lower), p_ceiling),
        "highest": _hits(highest, scores),
    }
    lost = np.isnan(scores).any(1)
    rows = []
    for test, hit in hits.items():
        if not np.isnan(hit).all():
            lost |= np.isnan(hit).any(1)
        tested = np.flatnonzero(others) if test == "below-best" else np.arange(len(names))
        for k, column in zip(tested, hit.T, strict=True):
            power, n = _mean(column), int((~np.isnan(column)).sum())
            se = float(np.sqrt(power * (1 - power) / n)) if n else np.nan
            rows.append((n_subjects, n_stimuli, test, names[k], power, se, _mean(scores[:, k])))
    return rows, int(lost.sum())


def _hits(hit: np.ndarray, value: np.ndarray) -> np.ndarray:
    """1 or 0 per experiment and model, NaN where the value that decides it is."""
    return np.where(np.isnan(value), np.nan, hit)


def _mean(values: np.ndarray) -> float:
    """Of what is known; NaN where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _with_ids(models: Any) -> Any:
    """Arrays as RDMs, as experiments with a part of the stimuli need to know which these are."""
    if isinstance(models, np.ndarray):
        vectors = as_vectors(models, "models")
        return RDMs(vectors, [str(k) for k in range(len(squareform(vectors[0])))])
    return models


def _names_and_stimuli(models: Any) -> tuple[list[str], list[str]]:
    parts = list(models) if isinstance(models, (list, tuple)) else [models]
    ids = getattr(parts[0], "stimulus_ids", None) if parts else None
    if ids is None:
        raise ValueError(
            "models hold no stimulus ids; make them of RDMs, so that experiments can draw some of their stimuli."
        )
    return [model.name for model in as_models(models, ids)], list(ids)


def _true_rdm(models: Any, true: Any, names: list[str], ids: list[str]) -> np.ndarray:
    if isinstance(true, RDMs):
        vectors = true.reorder(ids).vectors
    elif isinstance(true, np.ndarray):
        vectors = as_vectors(true, "true")
    else:
        if not isinstance(models, RDMs):
            raise ValueError(f"true={true!r} names one of several RDMs, but models are a list; give the RDM itself.")
        if isinstance(true, str) and true not in names:
            raise ValueError(unknown("true", true, names))
        row = names.index(true) if isinstance(true, str) else int(true)
        if not 0 <= row < len(names):
            raise ValueError(f"true={true!r}; expected 0 to {len(names) - 1}, the position of a model, or its name.")
        vectors = models.vectors[row : row + 1]
    if len(vectors) != 1 or vectors.shape[1] != len(ids) * (len(ids) - 1) // 2:
        raise ValueError(f"true has shape {vectors.shape}; expected one RDM over the {len(ids)} stimuli of the models.")
    if np.isnan(vectors).any():
        raise ValueError(f"true holds {int(np.isnan(vectors).sum())} unknown pairs; it has to be known throughout.")
    return vectors[0].astype(np.float64)


def _patterns(vector: np.ndarray) -> np.ndarray:
    """Patterns (stimulus, dimension) with this RDM up to a constant and scale, of mean variance 1 per stimulus."""
    distances = squareform(vector)
    n = len(distances)
    centring = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(-centring @ distances @ centring / 2)
    # A constant c on all pairs adds c / 2 to every eigenvalue but that of the constant pattern, which stays 0.
    lacking = max(0.0, -float(values[0]))
    if lacking > 1e-10 * np.abs(values).max():
        values = values + lacking
        values[np.abs(vectors.sum(0)) > 0.5 * np.sqrt(n)] = 0
    values = np.maximum(values, 0)
    if not values.sum() > 0:
        raise ValueError("true is constant at 0; there is no geometry to find.")
    return vectors * np.sqrt(values * n / values.sum())


def _measured(
    patterns: np.ndarray, n_subjects: int, noise: float, n_channels: int, rng: np.random.Generator, ids: list[str]
) -> RDMs:
    vectors = []
    for _ in range(n_subjects):
        responses = patterns @ rng.standard_normal((patterns.shape[1], n_channels))
        responses += noise * rng.standard_normal(responses.shape)
        vectors.append(rdm(responses, "sqeuclidean").vectors[0] - 2 * noise**2)
    table = pd.DataFrame({"subject": [f"subject {k + 1}" for k in range(n_subjects)]})
    return RDMs(np.array(vectors), ids, table)
