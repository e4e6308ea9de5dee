"""Models against the RDMs of subjects: scores, ceilings, and their variance over new stimuli and new subjects."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...datasets.errors import unknown
from ...datasets.rdms import RDMs, n_stimuli_of
from ..compare import as_vectors, check_method, similarities, warn_undefined
from ..geometry.whitening import checked_covariance
from .ceilings import mean_of_subjects, subject_ceilings, weighted_ceilings
from .comparison import ModelComparison
from .crossvalidation import assign, check_folds, crossvalidated
from .dual import (
    corrected_variance,
    dual_variance,
    jackknife_of,
    satterthwaite,
    small_sample,
    stimulus_variance,
    variance_of_differences,
)
from .intervals import Seed
from .resampling import permutation_p, permutation_similarities, permutation_variance
from .tests import NULL_ELSEWHERE, t_p
from .weighted import refuse_copies, resample_weights, weighted_similarities, within

if TYPE_CHECKING:
    from ..rdm_models import RDMModel

OVER = ("stimuli", "subjects", "both", "none")
VARIANCES = ("corrected", "bootstrap")
# Assignments to folds: averaged for a score, for every sample, and for every stimulus left out.
_OF_SCORES, _OF_SAMPLES, _OF_JACKKNIFE = 10, 2, 4


def compare_models(
    models: RDMs | np.ndarray | Sequence[Any],
    brain: RDMs | np.ndarray,
    method: str = "rho-a",
    *,
    over: str = "both",
    bootstrap: int = 1000,
    crossvalidate: tuple[int, int] | str | None = None,
    permutations: int = 0,
    covariance: np.ndarray | None = None,
    seed: Seed = 0,
    variance: str = "corrected",
) -> ModelComparison:
    """Compare models by their similarity to the RDMs of subjects, with ceilings, intervals and tests.

    Parameters
    ----------
    models : RDMs, or a list of RDM models and RDMs
        Every RDM is a fixed model. Models with parameters (`WeightedRDM`, `SelectedRDM`, `InterpolatedRDM`) are
        fitted inside cross-validation. An array of shape (model, pair) must be in the order of `brain`.
    brain : RDMs, or array of shape (subject, pair)
        Replicates, of one region. With a column subject in the table, the RDMs of a subject are averaged first.
    method : str
        The comparison, see `align.compare`. "bures" and "riemannian" go with over="subjects" or "none" only.
    over : {"both", "stimuli", "subjects", "none"}
        What intervals and tests generalise to: new subjects and stimuli, or those of one kind with the others as they
        are. "none" resamples nothing: scores and ceilings alone.
    bootstrap : int
        Number of resamples.
    crossvalidate : (int, int) or "auto", optional
        Stimulus and subject folds. All models are then scored on test folds, so that they are compared on the same
        stimuli. By default where a model has parameters, with "auto": 2 to 5 folds, after the number of stimuli and
        subjects.
    permutations : int
        Shuffles of the stimulus labels behind `p_zero`, instead of a t test; for fixed models. The only `p_zero` of
        "cosine", "cosine-whitened", "bures" and "riemannian": unrelated RDMs do not score zero by these, so that a t
        test against zero would reject whatever the model, and without shuffles it is NaN.
    covariance : array of shape (stimulus,) or (stimulus, stimulus), optional
        See `align.compare`, in the order of the brain's stimuli. A matrix goes with over="subjects" or "none" only.
    seed : int or numpy Generator
    variance : {"corrected", "bootstrap"}
        "bootstrap": the dual bootstrap of Schuett et al. (2023), or n / (n - 1) times the variance of the samples.
        "corrected" takes out, by a jackknife over stimuli, what a bootstrap over stimuli counts three times: intervals
        that are narrower by up to a third and cover as they say; see `neuralign.align.inference.dual`.
        Cross-validated scores have instead the jackknife over stimuli, with the others in their folds, and over
        subjects the variance between them or the jackknife, whichever is larger: the bootstrap, whose folds hold
        copies, comes out a third too small for them. Both are extrapolated to infinitely many assignments to folds,
        and what the assignments of the score itself leave unsure is added.
        The degrees of freedom over "both" are those of Satterthwaite with "corrected", see
        `neuralign.align.inference.dual.satterthwaite`, and one less than the smaller number with "bootstrap".

    Returns
    -------
    ModelComparison
        With .interval(), .pairwise(), .to_frame(), .summary() and .plot().

    Raises
    ------
    ValueError
        For unknown names, other stimuli on the two sides, one subject to resample, fewer than two resamples, several
        regions, too few stimuli to split, and comparisons that cannot be resampled as asked.

    Notes
    -----
    Whether the score of a fixed model is above zero is tested, where stimuli are new and with "corrected", by t with
    the variance of unrelated models: that of all orders of the model's stimuli (`permutation_variance`; Mantel 1967),
    with what subjects add to it. The variance of the score itself is half too large where the score is zero, and most
    so where it is above zero by chance, so that 1 to 2 % were rejected at 5 %. As with shuffled labels, the hypothesis
    is no relation: a model without a correlation that yet says where the brain's dissimilarities vary is found above
    zero too often (`tests/recovery/test_model_comparison_calibration.py`).

    The mean over subjects of the similarity with each is tested, so subjects count equally. A subject without any
    value (a constant RDM) is left out, with a warning. A model without a value in a sample, as a category model may
    be when a sample misses a category, leaves that sample out for itself and says so.

    References
    ----------
    Schuett et al. (2023), eLife 12:e82566. Nili et al. (2014), PLoS Computational Biology 10:e1003553. Mantel (1967),
    Cancer Research 27:209-220.
    """
    check_method(method)
    for name, value, known in (("over", over, OVER), ("variance", variance, VARIANCES)):
        if value not in known:
            raise ValueError(unknown(name, value, known))
    n = 0 if over == "none" else bootstrap
    if over != "none" and bootstrap < 2:
        raise ValueError(f"bootstrap={bootstrap!r}; a variance needs at least two resamples. For none: over='none'.")
    if permutations < 0:
        raise ValueError(f"permutations={permutations!r}; expected a number of shuffles, or 0 for none.")
    from ..rdm_models import as_models  # which imports this package

    subjects = _subjects(brain)
    ready = as_models(models, subjects.stimulus_ids)
    data = _Data.of(ready, subjects, method, covariance)
    if over in ("subjects", "both") and data.n_subjects < 2:
        raise ValueError(
            f"over={over!r} resamples subjects, but brain holds {data.n_subjects} with values; give the RDMs of "
            "several, or take over='stimuli'."
        )
    if over in ("stimuli", "both"):
        refuse_copies(method, np.array([[2]]), covariance)
    fitted = not all(model.fixed for model in data.models)
    folds = None
    if crossvalidate is not None or fitted:
        folds = check_folds("auto" if crossvalidate is None else crossvalidate, data.n_stimuli, data.n_subjects)
    if permutations and fitted:
        raise ValueError("permutations are for fixed models: a fit does not survive shuffled labels. Set it to 0.")
    for_stimuli, for_subjects, for_permutations, for_folds = np.random.default_rng(seed).spawn(4)
    weights = resample_weights(data.n_stimuli, n, for_stimuli)
    counts = resample_weights(data.n_subjects, n, for_subjects)
    if folds is None:
        found = _fixed(data, over, weights, counts, variance)
    else:
        found = _crossvalidated(data, over, weights, counts, folds, variance, for_folds)
    m = len(data.models)
    warn_undefined(found.per_subject, method)
    lost = int(np.isnan(found.samples[:, :m]).any(1).sum())
    if lost:
        warnings.warn(
            f"{lost} of {n} resamples have no value for some model; the variances of these models leave them out.",
            stacklevel=2,
        )
    if data.n_subjects < 2:
        warnings.warn("the ceiling needs at least two subjects, found one; it is NaN.", stacklevel=2)
    spread = found.variance
    dof = data.dof(over)
    scores = found.per_subject.mean(1)
    p_zero, p_ceiling = np.full((2, m), np.nan)
    if dof:
        if method not in NULL_ELSEWHERE:
            of_zero, dof_of_zero = spread[:m, -1], found.dof[:m, -1]
            if over != "subjects" and variance == "corrected" and folds is None and not permutations:
                of_zero, dof_of_zero = _unrelated(data, over, found.per_subject, for_permutations)
            p_zero = t_p(scores, of_zero, dof_of_zero, two_sided=False)
        p_ceiling = t_p(scores - found.ceiling[0], spread[:m, m], found.dof[:m, m])
    if permutations:
        null = permutation_similarities(
            data.predictions(), data.y, method, permutations, for_permutations, data.covariance
        )
        p_zero = permutation_p(scores, null.mean(2))
    return ModelComparison(
        names=[model.name for model in data.models],
        method=method,
        over=over,
        n_stimuli=data.n_stimuli,
        n_subjects=data.n_subjects,
        dof=dof,
        scores=scores,
        per_subject=found.per_subject,
        samples=found.samples[:, :m],
        ceiling=found.ceiling,
        ceiling_samples=found.samples[:, m:],
        variance=spread[:m, -1],
        difference_variance=spread[:m, :m],
        ceiling_variance=spread[:m, m : m + 2],
        p_zero=p_zero,
        p_ceiling=p_ceiling,
        seed=int(seed) if isinstance(seed, (int, np.integer)) else None,
        folds=folds,
        variance_dof=found.dof[:m, -1],
        difference_dof=found.dof[:m, :m],
        ceiling_dof=found.dof[:m, m : m + 2],
    )


@dataclass(frozen=True)
class _Data:
    """Models and subjects over the stimuli that the subjects know."""

    models: list[RDMModel]
    y: np.ndarray
    method: str
    covariance: np.ndarray | None

    @classmethod
    def of(cls, models: list[RDMModel], subjects: RDMs, method: str, covariance: np.ndarray | None) -> _Data:
        y = subjects.vectors.astype(np.float64)
        n = subjects.n_stimuli
        if covariance is not None:
            if method not in ("cosine-whitened", "pearson-whitened", "riemannian"):
                raise ValueError(
                    f"covariance is for method='cosine-whitened', 'pearson-whitened' or 'riemannian', not {method!r}."
                )
            covariance = checked_covariance(covariance, n)
        first, second = np.triu_indices(n, 1)
        seen = ~np.isnan(y).all(0)
        stimuli = np.union1d(first[seen], second[seen])
        if 2 < len(stimuli) < n:
            ids = [subjects.stimulus_ids[k] for k in stimuli]
            y = subjects.reorder(ids).vectors.astype(np.float64)
            models = [model.on(ids) for model in models]
            covariance = None if covariance is None else within(covariance, stimuli)
        with_itself = [similarities(row[None], row[None], method, covariance)[0, 0] for row in y]
        usable = ~np.isnan(with_itself)
        if not usable.all():
            warnings.warn(
                f"{(~usable).sum()} of {len(y)} subjects have an RDM without a value even with itself: constant, of "
                "fewer than three known pairs, or for 'riemannian' not of squared distances in enough dimensions. They "
                "are left out.",
                stacklevel=3,
            )
            if not usable.any():
                raise ValueError(f"brain holds no RDM that {method!r} can compare; see the warning.")
        return cls(models, y[usable], method, covariance)

    @property
    def n_stimuli(self) -> int:
        return n_stimuli_of(self.y.shape[1])

    @property
    def n_subjects(self) -> int:
        return len(self.y)

    def dof(self, over: str) -> int:
        """One less than the smaller number of what is resampled."""
        sizes = {"stimuli": self.n_stimuli, "subjects": self.n_subjects, "none": 1}
        return sizes.get(over, min(self.n_stimuli, self.n_subjects)) - 1

    def predictions(self) -> np.ndarray:
        return np.stack([model.predict() for model in self.models])


@dataclass(frozen=True)
class _Found:
    """Columns are models, lower and upper bound; the last one of `variance` and `dof` is zero itself."""

    per_subject: np.ndarray
    ceiling: np.ndarray
    samples: np.ndarray
    variance: np.ndarray
    dof: np.ndarray


def _fixed(data: _Data, over: str, weights: np.ndarray, counts: np.ndarray, variance: str) -> _Found:
    x, y, method, covariance = data.predictions(), data.y, data.method, data.covariance
    n_stimuli, n_subjects = data.n_stimuli, data.n_subjects
    once = np.ones((1, n_stimuli), np.int64)
    jackknifed = over in ("stimuli", "both") and variance == "corrected"
    parts = [once, once - np.eye(n_stimuli, dtype=np.int64)] if jackknifed else [once]
    if over in ("stimuli", "both"):
        parts.append(weights)
    at = np.concatenate(parts)
    similarity = weighted_similarities(x, y, method, at, covariance)
    bounds = subject_ceilings(y, method, at, None, covariance).transpose(0, 2, 1)
    if n_subjects < 2:
        bounds = np.full_like(bounds, np.nan)
    values = np.concatenate([similarity, bounds], axis=1)  # (sample, model and bound, subject)
    first = len(at) - len(weights)
    jackknife = interaction = np.full((len(x) + 3,) * 2, np.nan)
    if jackknifed:
        jackknife, interaction = jackknife_of(_with_zero(values[1:first], axis=1))

    def of_subjects(similarity: np.ndarray, weights: np.ndarray) -> np.ndarray:
        scores = mean_of_subjects(np.swapaxes(similarity, 1, 2), counts[:, :, None])
        return np.concatenate([scores, weighted_ceilings(y, method, weights, counts, covariance)], axis=1)

    samples: dict[str, np.ndarray] = {"none": np.empty((0, len(x) + 2))}
    if over in ("stimuli", "both"):
        samples["stimuli"] = values[first:].mean(2)
    if over in ("subjects", "both"):
        every = np.broadcast_to(once, (len(counts), n_stimuli))
        of_all = np.broadcast_to(similarity[:1], (len(counts), *similarity.shape[1:]))
        samples["subjects"] = of_subjects(of_all, every)
    if over == "both":
        samples["both"] = of_subjects(similarity[first:], weights)
    spread = {name: variance_of_differences(_with_zero(found, axis=1)) for name, found in samples.items()}
    dof = np.full_like(jackknife, data.dof(over))
    if over == "both":
        three = spread["both"], spread["subjects"], spread["stimuli"]
        if jackknifed:
            total = corrected_variance(*three, jackknife, interaction, n_subjects, n_stimuli)
            alone = small_sample(n_subjects, "n_subjects") * three[1], stimulus_variance(three[2], jackknife, n_stimuli)
            dof = satterthwaite(total, *alone, n_subjects, n_stimuli)
        else:
            total = dual_variance(*three, n_subjects, n_stimuli)
    elif over == "stimuli":
        total = stimulus_variance(spread["stimuli"], jackknife, n_stimuli)
    elif over == "subjects":
        total = small_sample(n_subjects, "n_subjects") * spread["subjects"]
    else:
        total = spread["none"]
    return _Found(values[0, : len(x)], values[0, len(x) :].mean(1), samples[over], total, dof)


def _unrelated(data: _Data, over: str, per_subject: np.ndarray, seed: Seed) -> tuple[np.ndarray, np.ndarray]:
    """Variance of the scores of models that have nothing to do with the brain, and its degrees of freedom."""
    n, m = data.n_subjects, data.n_stimuli
    stimuli, own = permutation_variance(data.predictions(), data.y, data.method, data.covariance, seed)
    if over == "stimuli":
        return stimuli, np.full(len(stimuli), m - 1.0)
    subjects = per_subject.var(1, ddof=1) / n
    total = np.maximum(subjects + stimuli - own, np.maximum(subjects, stimuli))
    return total, satterthwaite(total, subjects, stimuli, n, m)


def _crossvalidated(
    data: _Data,
    over: str,
    weights: np.ndarray,
    counts: np.ndarray,
    folds: tuple[int, int],
    variance: str,
    rng: np.random.Generator,
) -> _Found:
    n, n_stimuli, n_subjects = len(weights), data.n_stimuli, data.n_subjects

    def once(n: int, items: int) -> np.ndarray:
        return np.ones((n, items), np.int64)

    def values(w: np.ndarray, v: np.ndarray, assignment: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Of models, bounds and zero: (sample, column, subject)."""
        scores, bounds = crossvalidated(data.models, data.y, data.method, w, v, assignment, data.covariance)
        if n_subjects < 2:
            bounds = np.full_like(bounds, np.nan)
        return _with_zero(np.concatenate([scores, bounds.transpose(0, 2, 1)], axis=1), axis=1)

    def resampled(w: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Samples, and their variance without that of the assignment to folds."""
        found = []
        for _ in range(_OF_SAMPLES):
            by_subject = np.swapaxes(values(w, v, assign(w, v, folds, rng)), 1, 2)
            found.append(mean_of_subjects(by_subject, v[:, :, None]))
        mean = np.mean(found, axis=0)
        of_one = np.mean([variance_of_differences(one) for one in found], axis=0)
        return mean[:, :-1], _beyond(variance_of_differences(mean), of_one, _OF_SAMPLES)

    def left_out() -> tuple[np.ndarray, np.ndarray]:
        """As `jackknife_of`, with the folds of the others left as they are, and without the variance of folds."""
        w, v = once(n_stimuli, n_stimuli) - np.eye(n_stimuli, dtype=np.int64), once(n_stimuli, n_subjects)
        found = []
        for _ in range(_OF_JACKKNIFE):
            fold, subject_fold = assign(once(1, n_stimuli), once(1, n_subjects), folds, rng)
            found.append(values(w, v, (np.tile(fold, (n_stimuli, 1)), np.tile(subject_fold, (n_stimuli, 1)))))
        of_one = np.mean([jackknife_of(one) for one in found], axis=0)
        jackknife, interaction = _beyond(np.array(jackknife_of(np.mean(found, axis=0))), of_one, _OF_JACKKNIFE)
        return jackknife, interaction

    def between_subjects() -> np.ndarray:
        """Variance over subjects: of the mean of theirs, or by leaving each out of training too, if that is larger."""
        of_mean = variance_of_differences(observed.T) / n_subjects
        if n_subjects < 2 * folds[1]:  # a fold would be empty
            return of_mean
        w, v = once(n_subjects, n_stimuli), once(n_subjects, n_subjects) - np.eye(n_subjects, dtype=np.int64)
        found = []
        for _ in range(_OF_JACKKNIFE):
            fold, subject_fold = assign(once(1, n_stimuli), once(1, n_subjects), folds, rng)
            left = values(w, v, (np.tile(fold, (n_subjects, 1)), np.tile(subject_fold, (n_subjects, 1))))
            found.append(mean_of_subjects(np.swapaxes(left, 1, 2), v[:, :, None])[:, :, None])
        of_one = np.mean([jackknife_of(one)[0] for one in found], axis=0)
        jackknife = _beyond(jackknife_of(np.mean(found, axis=0))[0], of_one, _OF_JACKKNIFE)
        return np.fmax(jackknife, of_mean)

    every = once(_OF_SCORES, n_stimuli), once(_OF_SCORES, n_subjects)
    each = values(*every, assign(*every, folds, rng))
    observed = each.mean(0)
    # The score is a mean over few assignments; the variances below are those over infinitely many.
    of_folds = variance_of_differences(each.mean(2)) / _OF_SCORES
    draw: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
        "both": lambda: resampled(weights, counts),
        "subjects": lambda: resampled(once(n, n_stimuli), counts),
        "stimuli": lambda: resampled(weights, once(n, n_subjects)),
    }
    samples = np.empty((0, len(observed) - 1))
    total = np.full((len(observed),) * 2, np.nan)
    dof = np.full_like(total, data.dof(over))
    if over != "none":
        samples, by_bootstrap = draw[over]()
    if over != "none" and variance == "corrected":
        jackknife, interaction = left_out() if over != "subjects" else (total, total)
        of_subjects = between_subjects() if over != "stimuli" else total
        if over == "both":
            total = of_subjects + jackknife - small_sample(n_subjects, "n_subjects") * interaction
            total = np.maximum(total, np.maximum(of_subjects, jackknife))
            dof = satterthwaite(total, of_subjects, jackknife, n_subjects, n_stimuli)
        else:
            total = jackknife if over == "stimuli" else of_subjects
        total = total + of_folds
    lost = np.isnan(total)
    if over == "both" and lost.any():
        others = draw["subjects"]()[1], draw["stimuli"]()[1]
        total = np.where(lost, dual_variance(by_bootstrap, *others, n_subjects, n_stimuli), total)
    elif over != "none":
        size = n_stimuli if over == "stimuli" else n_subjects
        total = np.where(lost, small_sample(size, over) * by_bootstrap, total)
    return _Found(observed[:-3], observed[-3:-1].mean(1), samples, total, dof)


def _beyond(of_mean: np.ndarray, of_one: np.ndarray, n: int) -> np.ndarray:
    """Variance for infinitely many assignments to folds, from that of the mean of n and of one; half of it at least."""
    return np.maximum((n * of_mean - of_one) / (n - 1), of_mean / 2)


def _with_zero(values: np.ndarray, axis: int) -> np.ndarray:
    """With a last column of zeros: the difference from it is the value itself."""
    shape = list(values.shape)
    shape[axis] = 1
    return np.concatenate([values, np.zeros(shape)], axis=axis)


def _subjects(brain: RDMs | np.ndarray) -> RDMs:
    if not isinstance(brain, RDMs):
        vectors = as_vectors(brain, "brain")
        return RDMs(vectors, [f"stimulus {k + 1}" for k in range(n_stimuli_of(vectors.shape[1]))])
    if "region" in brain.table and brain.table["region"].nunique(dropna=False) > 1:
        regions = ", ".join(map(repr, brain.table["region"].unique()[:5]))
        raise ValueError(f"brain holds several regions: {regions}; take one with brain.select(region=...).")
    return brain.mean(by="subject") if "subject" in brain.table else brain
