"""The result of a comparison of models: scores, ceilings, intervals and tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from ...datasets.errors import unknown
from .tests import NULL_ELSEWHERE, TESTS, adjusted, bootstrap_p, signed_rank_p, t_p

# Subjects from which on shares of bootstrap samples of them are p values.
FEWEST = 20


@dataclass(frozen=True, eq=False, repr=False)
class ModelComparison:
    """How well models predict the RDMs of subjects; made by `compare_models`.

    Attributes
    ----------
    names : list of str, length model
    method : str
        The comparison of RDMs.
    over : {"stimuli", "subjects", "both", "none"}
        What was resampled, so what the intervals and tests generalise to.
    n_stimuli, n_subjects : int
    dof : int
        One less than the smaller number of what was resampled, the fewest degrees of freedom of intervals and t tests;
        0 for "none".
    scores : ndarray of shape (model,)
        Mean similarity over subjects; cross-validated for all models when any is fitted.
    per_subject : ndarray of shape (model, subject)
    samples : ndarray of shape (n, model)
        Bootstrap samples of the scores.
    ceiling : ndarray of shape (2,)
        Lower and upper bound of the noise ceiling.
    ceiling_samples : ndarray of shape (n, 2)
    variance : ndarray of shape (model,)
        Of the scores, over what was resampled.
    difference_variance : ndarray of shape (model, model)
    ceiling_variance : ndarray of shape (model, 2)
        Of the differences between scores and bounds.
    p_zero : ndarray of shape (model,)
        One-sided, that the score is above zero: by t, or by shuffles of the stimulus labels where they were asked for.
        The t of fixed models over stimuli has the variance of models that are unrelated to the brain
        (`permutation_variance`), not `variance`, which is too large where the score is zero.
        By shuffles alone for "cosine", "cosine-whitened", "bures" and "riemannian", and NaN without them: unrelated
        RDMs do not score zero by these.
    p_ceiling : ndarray of shape (model,)
        Two-sided, by t, that the score differs from the lower bound of the ceiling. Above the bound a small value says
        that the model does better than the mean of the other subjects does, not that it falls short.
    seed : int or None
    folds : (int, int) or None
        Stimulus and subject folds of the cross-validation.
    variance_dof, difference_dof, ceiling_dof : ndarray or None
        Degrees of freedom of each entry of `variance`, `difference_variance` and `ceiling_variance`: of Satterthwaite
        where both subjects and stimuli are new, see `neuralign.align.inference.dual.satterthwaite`. None, as in files
        of earlier versions: `dof`.
    """

    names: list[str]
    method: str
    over: str
    n_stimuli: int
    n_subjects: int
    dof: int
    scores: np.ndarray
    per_subject: np.ndarray
    samples: np.ndarray
    ceiling: np.ndarray
    ceiling_samples: np.ndarray
    variance: np.ndarray
    difference_variance: np.ndarray
    ceiling_variance: np.ndarray
    p_zero: np.ndarray
    p_ceiling: np.ndarray
    seed: int | None = None
    folds: tuple[int, int] | None = None
    variance_dof: np.ndarray | None = None
    difference_dof: np.ndarray | None = None
    ceiling_dof: np.ndarray | None = None

    def interval(self, level: float = 0.95) -> np.ndarray:
        """Intervals for the scores, ``score -+ t * standard error``, shape (model, 2); NaN with over="none"."""
        if not 0 < level < 1:
            raise ValueError(f"level={level!r}; expected a share between 0 and 1, e.g. 0.95.")
        if not self.dof:
            return np.full((len(self.names), 2), np.nan)
        dof = self.dof if self.variance_dof is None else self.variance_dof
        reach = student.ppf((1 + level) / 2, dof) * np.sqrt(self.variance)
        return np.stack([self.scores - reach, self.scores + reach], axis=1)

    def pairwise(self, correction: str = "fdr", test: str = "t") -> pd.DataFrame:
        """Tests of every two models against each other.

        Parameters
        ----------
        correction : {"fdr", "bonferroni", "none"}
            Over all pairs.
        test : {"t", "bootstrap", "signed-rank"}
            Student's t of the difference, with the variance over what was resampled; the share of bootstrap samples
            on the other side of zero, which needs 20 subjects where subjects were resampled; or Wilcoxon's signed-rank
            test over subjects, which says nothing of other stimuli and is NaN of one subject. All two-sided.

        Returns
        -------
        DataFrame
            One row per pair: first, second, difference (first less second), se, t, p, p_corrected.

        Raises
        ------
        ValueError
            For an unknown test or correction, for a test by resamples where there are none, and for tests that would
            reject far too often: signed ranks where stimuli were resampled (a third of true nulls at 5 %), and
            bootstrap samples of few subjects (15 % with five).
        """
        if test not in TESTS:
            raise ValueError(unknown("test", test, TESTS))
        if test != "signed-rank" and self.over == "none":
            raise ValueError(
                f"test={test!r} needs resamples, and these models were compared with over='none'; compare them over "
                "stimuli, subjects or both, or take test='signed-rank'."
            )
        if test == "signed-rank" and self.over in ("stimuli", "both"):
            raise ValueError(
                "test='signed-rank' is for the stimuli at hand, and these models were compared "
                f"over={self.over!r}; take test='t', or compare them with over='subjects'."
            )
        if test == "bootstrap" and self.over == "subjects" and self.n_subjects < FEWEST:
            raise ValueError(
                f"test='bootstrap' over {self.n_subjects} subjects rejects too often; it needs {FEWEST}. Take test='t'."
            )
        i, j = np.triu_indices(len(self.names), 1)
        difference, variance = self.scores[i] - self.scores[j], self.difference_variance[i, j]
        if test == "t":
            p = t_p(difference, variance, self.dof if self.difference_dof is None else self.difference_dof[i, j])
        elif test == "bootstrap":
            p = bootstrap_p(self.samples[:, i] - self.samples[:, j])
        else:
            p = signed_rank_p((self.per_subject[i] - self.per_subject[j]).T)
        with np.errstate(invalid="ignore", divide="ignore"):
            t = np.where(variance > 0, difference / np.sqrt(variance), np.nan)
        names = np.array(self.names, dtype=object)
        columns = {"first": names[i], "second": names[j], "difference": difference, "se": np.sqrt(variance), "t": t}
        return pd.DataFrame(columns | {"p": p, "p_corrected": adjusted(p, correction)})

    def to_frame(self) -> pd.DataFrame:
        """One row per model: model, score, se, ci_low, ci_high, ceiling_low, ceiling, p, p_ceiling.

        Column p is `p_zero`: NaN where unrelated RDMs do not score zero by `method` and no labels were shuffled.
        """
        interval = self.interval()
        return pd.DataFrame(
            {
                "model": self.names,
                "score": self.scores,
                "se": np.sqrt(self.variance),
                "ci_low": interval[:, 0],
                "ci_high": interval[:, 1],
                "ceiling_low": self.ceiling[0],
                "ceiling": self.ceiling[1],
                "p": self.p_zero,
                "p_ceiling": self.p_ceiling,
            }
        )

    def summary(self, correction: str = "fdr") -> str:
        """The comparison in words and a table; pairwise tests are corrected by `correction`."""
        sampled = {"both": "subjects and stimuli", "none": "nothing"}.get(self.over, self.over)
        lines = [
            f"{self.method} of {_count(len(self.names), 'model')} with {_count(self.n_subjects, 'subject')} on "
            f"{_count(self.n_stimuli, 'stimulus', 'stimuli')}",
            f"Resampled: {sampled}"
            + (f", {len(self.samples)} times; t with {self._dof_in_words()} degrees of freedom." if self.dof else "."),
        ]
        if self.folds:
            lines.append(f"Cross-validated: {self.folds[0]} stimulus folds, {self.folds[1]} subject folds.")
        lines.append(f"Noise ceiling: {self.ceiling[0]:.3f} to {self.ceiling[1]:.3f}.")
        lines.append(
            self.to_frame().drop(columns=["ceiling_low", "ceiling"]).to_string(index=False, float_format=_short)
        )
        if np.isfinite(self.p_ceiling).any():
            above = int((self.scores > self.ceiling[0]).sum())
            lines.append(
                f"p_ceiling: two-sided, against the lower bound {self.ceiling[0]:.3f}; "
                f"{above} of {_count(len(self.names), 'model')} {'lies' if above == 1 else 'lie'} above it."
            )
        if self.method in NULL_ELSEWHERE and np.isnan(self.p_zero).all():
            lines.append(
                f"p is NaN: by {self.method} unrelated RDMs do not score 0, so a t test against 0 says nothing; set "
                "permutations, for fixed models."
            )
        if self.over != "none" and len(self.names) > 1:
            pairs = self.pairwise(correction)
            apart = int((pairs["p_corrected"] <= 0.05).sum())
            if len(pairs) == 1:
                lines.append(f"The two models {'differ' if apart else 'are not told apart'} (p <= .05).")
            else:
                lines.append(
                    f"{apart} of {len(pairs)} pairs of models {'differs' if apart == 1 else 'differ'} (p <= .05, "
                    f"correction: {correction})."
                )
        return "\n".join(lines)

    def _dof_in_words(self) -> str:
        each = [self.dof] if self.variance_dof is None else np.floor(self.variance_dof).astype(int).tolist()
        return f"{min(each)}" if min(each) == max(each) else f"{min(each)} to {max(each)}"

    def __repr__(self) -> str:
        return self.summary()

    def plot(self, ax: Any = None, correction: str = "fdr") -> Any:
        """Bars with 95 % intervals, the band of the noise ceiling, and lines over pairs that differ.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Default: those of a new figure.
        correction : {"fdr", "bonferroni", "none"}
            Of the pairwise t tests; lines at p <= .05.

        Returns
        -------
        matplotlib.figure.Figure
        """
        return _plot(self, ax, correction)


def _plot(comparison: ModelComparison, ax: Any, correction: str) -> Any:
    from matplotlib.figure import Figure

    from ..report.style import ACCENT, BAND, INK, MUTED, clip, styled

    @styled
    def draw(ax: Any) -> Any:
        n = len(comparison.names)
        if ax is None:
            ax = Figure(figsize=(max(3.6, 0.55 * n + 1.6), 3.6), layout="constrained").subplots()
        place = np.arange(n)
        interval = comparison.interval()
        low, high = comparison.ceiling
        if np.isfinite([low, high]).all():
            ax.axhspan(low, high, color=BAND, lw=0, label="noise ceiling")
        ax.bar(place, comparison.scores, width=0.7, color=ACCENT)
        if np.isfinite(interval).any():
            ax.vlines(place, *interval.T, color=INK, lw=1.2)
        ax.axhline(0, color=MUTED, lw=0.7)
        ax.set_xticks(place, [clip(name, 24) for name in comparison.names], rotation=30 if n > 4 else 0, ha="right")
        if n <= 4:
            for label in ax.get_xticklabels():
                label.set_ha("center")
        ax.set_ylabel(f"{comparison.method} with the brain")
        values = np.concatenate([interval.ravel(), comparison.scores, comparison.ceiling, [0.0]])
        bottom, top = np.nanmin(values), np.nanmax(values)
        step = 0.035 * (top - bottom or 1)
        if comparison.over != "none" and n > 1:
            pairs = comparison.pairwise(correction)
            i, j = np.triu_indices(n, 1)
            order = np.argsort(j - i, kind="stable")
            for pair in order[(pairs["p_corrected"] <= 0.05).to_numpy()[order]]:
                top += step
                ax.plot([i[pair], j[pair]], [top, top], color=INK, lw=0.8, gid="pair")
        ax.set_ylim(bottom - step, top + 2 * step)
        return ax.figure

    return draw(ax)


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def _short(value: float) -> str:
    return f"{value:.2g}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"
