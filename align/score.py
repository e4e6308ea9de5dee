"""The noun `Score` and the tidy table of scores."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from ..datasets.rdms import RDMs
    from ..encoders.routing.maps import RoutingMaps
    from .inference import ModelComparison
    from .topology import Identification

COLUMNS = [
    "model",
    "layer",
    "dataset",
    "subject",
    "region",
    "metric",
    "score",
    "ceiling",
    "ceiling_low",
    "normalised",
    "ci_low",
    "ci_high",
    "p",
    "n_units",
    "n_stimuli",
    "formula",
    "seed",
]


@dataclass(frozen=True)
class Score:
    """One number with its ceiling, its uncertainty and what it was computed from.

    Attributes
    ----------
    model, layer, dataset, subject, region, metric : str
        What was compared with what, and how.
    score : float
        The raw score, never divided by a ceiling.
    ceiling : float
        The highest score that noise in the responses allows, in the unit of `score`; NaN when unknown.
    ceiling_low : float
        Lower bound of the ceiling where the method has one (RSA: leave one subject out); else NaN.
    ci_low, ci_high : float
        95 % interval; `formula` says over what it generalises.
    p : float
        One-sided p value of the permutation test named in `formula`.
    n_units, n_stimuli : int
        Units and stimuli that entered the score.
    formula : str
        Identifier of the exact computation; it changes when the computation does.
    seed : int or None
        Seed of folds and resampling; None when a Generator was handed over.
    normalised : float
        Score divided by ceiling unless given: where some units have no ceiling, the ratio over those that have one.
    """

    model: str
    layer: str
    dataset: str
    subject: str
    region: str
    metric: str
    score: float
    ceiling: float = math.nan
    ceiling_low: float = math.nan
    ci_low: float = math.nan
    ci_high: float = math.nan
    p: float = math.nan
    n_units: int = 0
    n_stimuli: int = 0
    formula: str = ""
    seed: int | None = None
    normalised: float = math.nan

    def __post_init__(self) -> None:
        if math.isnan(self.normalised):
            object.__setattr__(self, "normalised", normalise(self.score, self.ceiling))


def normalise(score: float, ceiling: float) -> float:
    """Score divided by its ceiling; NaN unless the ceiling is above zero."""
    return score / ceiling if ceiling > 0 else math.nan


@dataclass(frozen=True, eq=False)
class Evidence:
    """What stands behind a table of scores: the report draws from it, and nothing else needs it.

    Attributes
    ----------
    units : pandas.DataFrame
        One row per model, layer and unit: model, layer, subject, region, unit, metric, score, ceiling.
    rdms : RDMs or None
        The RDMs that were compared; ``rdms.table`` has columns kind ("model" or "brain") and label.
    thumbnails : ndarray of uint8, shape (stimulus, height, width, 3), or None
        Small pictures of the stimuli, in the order of ``rdms.stimulus_ids``.
    provenance : dict
        Versions, seed, options and command line.
    comparison : dict from str to ModelComparison
        Per region, how its models compare with each other; empty where they were not.
    identification : Identification or None
        How often regions or layers were told apart, by thresholds of a topological transform.
    routing : RoutingMaps or None
        Where the encoder's attention lies in the stimuli.
    """

    units: pd.DataFrame = field(default_factory=pd.DataFrame)
    rdms: RDMs | None = None
    thumbnails: np.ndarray | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    comparison: Mapping[str, ModelComparison] = field(default_factory=dict)
    identification: Identification | None = None
    routing: RoutingMaps | None = None

    def __deepcopy__(self, memo: dict) -> Evidence:
        return self  # pandas deep-copies `attrs` at every step, and this never changes


def refuse_twins(names: Sequence[str]) -> None:
    """Two models of one name could not be told apart in the table."""
    twins = [name for name in dict.fromkeys(names) if list(names).count(name) > 1]
    if twins:
        raise ValueError(
            f"features holds {list(names).count(twins[0])} models called {twins[0]!r}; give each its own name"
        )


def tabulate(scores: Iterable[Score], evidence: Evidence | None = None) -> pd.DataFrame:
    """Tidy table of scores, one row each; `evidence` travels in ``table.attrs["evidence"]``."""
    rows = [dataclasses.asdict(score) for score in scores]
    table = pd.DataFrame(rows, columns=COLUMNS)
    if evidence is not None:
        table.attrs["evidence"] = evidence
    return table
