"""Models with parameters: fitted to some stimuli and subjects of a sample, compared with the others.

A bootstrap sample of stimuli has fewer different ones to make folds of, and the variance of its cross-validated scores
is not that of new stimuli. Over 150 simulated experiments (30 stimuli, 6 fixed subjects, Pearson, a fixed and a
weighted model; `tests/align/test_comparison.py`, slow) it was 0.63 and 0.72 of the truth after the correction for the
assignment to folds, and 95 % intervals covered .85 and .87. A jackknife, with the other stimuli in the folds they were
in, gave 1.03 and 1.08, and .93 and .91. The variance of the difference of the two models, most of it private to pairs,
was twice the truth by the jackknife and three times by the bootstrap, so tests between them are cautious.

Over subjects the scores depend on each other, because the models of one are fitted to the others: the variance between
subjects was half the truth for the difference of two equal models, and tests rejected .15. It is that of leaving out
each subject, from training as well as from the score, where that is larger. No estimate from the scores of the folds
alone can do this (Bengio & Grandvalet 2004, Journal of Machine Learning Research 5:1089-1105). What the few assignments
to folds behind a score leave unsure is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .ceilings import subject_ceilings
from .weighted import progress, weighted_similarities, within

if TYPE_CHECKING:
    from ..rdm_models import RDMModel

_FEWEST = 3  # stimuli of a test fold, of three pairs


def automatic_folds(n_stimuli: int, n_subjects: int) -> tuple[int, int]:
    """Folds over stimuli and subjects, for a bootstrap sample's share (1 - 1/e) of different ones.

    Two stimulus folds below 12 stimuli, three below 24, four below 40, else five; subject folds likewise from 6, 12
    and 20 subjects; one, which is none, for a single subject (Schuett et al. 2023, eLife 12:e82566).
    """
    stimuli, subjects = (1 - np.exp(-1)) * n_stimuli, (1 - np.exp(-1)) * n_subjects
    k_stimuli = 2 + sum(stimuli >= least for least in (12, 24, 40))
    k_subjects = 2 + sum(subjects >= least for least in (6, 12, 20))
    return k_stimuli, 1 if n_subjects == 1 else k_subjects


def check_folds(folds: object, n_stimuli: int, n_subjects: int) -> tuple[int, int]:
    """Numbers of folds, or a ValueError that says what they should be."""
    if isinstance(folds, str):
        if folds != "auto":
            raise ValueError(f"crossvalidate={folds!r}; expected 'auto' or (stimulus folds, subject folds).")
        folds = automatic_folds(n_stimuli, n_subjects)
    try:
        k_stimuli, k_subjects = (int(k) for k in folds)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise ValueError(f"crossvalidate={folds!r}; expected 'auto' or (stimulus folds, subject folds).") from None
    if k_stimuli < 1 or k_subjects < 1:
        raise ValueError(
            f"crossvalidate={(k_stimuli, k_subjects)}; expected numbers of folds from 1, which is no split."
        )
    if n_stimuli < _FEWEST * k_stimuli:
        raise ValueError(
            f"crossvalidate asks for {k_stimuli} folds of {n_stimuli} stimuli; a fold needs {_FEWEST}, so give at "
            f"least {_FEWEST * k_stimuli} stimuli, or fewer folds: crossvalidate=({max(1, n_stimuli // _FEWEST)}, "
            f"{k_subjects})."
        )
    if n_subjects < k_subjects:
        raise ValueError(f"crossvalidate asks for {k_subjects} folds of {n_subjects} subjects; give fewer folds.")
    return k_stimuli, k_subjects


def crossvalidated(
    models: Sequence[RDMModel],
    y: np.ndarray,
    method: str,
    weights: np.ndarray,
    subject_weights: np.ndarray,
    assignment: tuple[np.ndarray, np.ndarray],
    covariance: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Similarity of every model with the subjects of test folds, on the stimuli of test folds.

    Parameters
    ----------
    models : sequence of RDM models over the stimuli of `y`
    y : array of shape (rdm, pair)
    weights : int array of shape (sample, stimulus)
        All copies of a stimulus are in one fold, and all copies of a subject.
    subject_weights : int array of shape (sample, rdm)
    assignment : (int array of shape (sample, stimulus), int array of shape (sample, rdm))
        The folds of stimuli and subjects, from `assign`.

    Returns
    -------
    scores : ndarray of shape (sample, model, rdm)
        Mean over the stimulus folds. NaN for subjects that do not occur, and for samples with fewer than three
        different stimuli, or one subject, per fold.
    ceilings : ndarray of shape (sample, rdm, 2)
        Bounds on the stimuli of the test folds; the lower one leaves out one subject at a time.
    """
    stimulus_fold, subject_fold = assignment
    k_stimuli, k_subjects = int(stimulus_fold.max()) + 1, int(subject_fold.max()) + 1
    n = len(weights)
    enough = ((weights > 0).sum(1) >= _FEWEST * k_stimuli) & ((subject_weights > 0).sum(1) >= k_subjects)
    tested = np.concatenate([weights * (stimulus_fold == k) for k in range(k_stimuli)])
    repeated = np.tile(subject_weights, (k_stimuli, 1))
    bounds = subject_ceilings(y, method, tested, repeated, covariance)
    ceilings = bounds.reshape(k_stimuli, n, len(y), 2).mean(0)
    fixed = np.array([model.fixed for model in models])
    scores = np.full((n, len(models), len(y)), np.nan)
    if fixed.any():
        x = np.stack([model.predict() for model in models if model.fixed])
        found = weighted_similarities(x, y, method, tested, covariance)
        scores[:, fixed] = found.reshape(k_stimuli, n, len(x), len(y)).mean(0)
    others = [model for model in models if not model.fixed]
    places = np.flatnonzero(~fixed)
    for sample in progress(n if others else 0, "cross-validated models"):
        if not enough[sample]:
            continue
        w, v = weights[sample], subject_weights[sample]
        for fold in range(k_subjects):
            test = np.flatnonzero((subject_fold[sample] == fold) & (v > 0))
            train = np.flatnonzero((subject_fold[sample] != fold) & (v > 0)) if k_subjects > 1 else test
            brains = y[np.repeat(train, v[train])]
            score = np.zeros((len(others), len(test)))
            for part in range(k_stimuli):
                inside = stimulus_fold[sample] == part
                learnt = w * ~inside if k_stimuli > 1 else w
                predicted = np.stack([model.fit(brains, learnt, method, covariance).predict() for model in others])
                score += _similarities_within(predicted, y[test], method, w * inside, covariance)
            scores[sample, places[:, None], test] = score / k_stimuli
    absent = subject_weights == 0
    scores[~enough], ceilings[~enough] = np.nan, np.nan
    scores[np.broadcast_to(absent[:, None], scores.shape)] = np.nan
    return scores, ceilings


def assign(
    weights: np.ndarray, subject_weights: np.ndarray, folds: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A random fold for every stimulus and every subject that occurs in a sample, -1 for the others."""
    stimuli = np.stack([_assignment(w > 0, folds[0], rng) for w in weights])
    return stimuli, np.stack([_assignment(v > 0, folds[1], rng) for v in subject_weights])


def _assignment(present: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Folds of equal sizes but for one item."""
    fold = np.full(len(present), -1)
    items = rng.permutation(np.flatnonzero(present))
    fold[items] = np.arange(len(items)) % k
    return fold


def _similarities_within(
    x: np.ndarray, y: np.ndarray, method: str, w: np.ndarray, covariance: np.ndarray | None
) -> np.ndarray:
    """`weighted_similarities` of one sample of few stimuli, of which only these are looked at."""
    stimuli = np.flatnonzero(w)
    first, second = np.triu_indices(len(w), 1)
    pairs = np.flatnonzero(w[first] * w[second])
    part = None if covariance is None else within(covariance, stimuli)
    return weighted_similarities(x[:, pairs], y[:, pairs], method, w[stimuli][None], part)[0]
