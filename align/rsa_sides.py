"""The two sides of RSA: RDMs of models and of regions, over the same stimuli and transformed alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import numpy as np
import pandas as pd

from ..datasets.errors import unknown
from ..datasets.rdms import RDMs
from .rdm import features_rdms, recording_rdms
from .score import refuse_twins

TRANSFORMS = ("rgtm", "rgdm")
PLAIN = ("sqeuclidean", "euclidean", "correlation", "cosine")


@dataclass(frozen=True)
class Topology:
    """A geo-topological transform of RDMs: which one, its thresholds and its other options."""

    lower: float
    upper: float
    transform: str = "rgtm"
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Any) -> Topology | None:
        """From None, (lower, upper), or a mapping with these names and others; see `align.rsa`."""
        if given is None or isinstance(given, cls):
            return given
        from .topology.transforms import check_thresholds

        known = dict(given) if isinstance(given, Mapping) else {}
        refused = f"topology={given!r}; expected two thresholds (lower, upper), e.g. (0.2, 0.8), or a dict with them."
        if not isinstance(given, Mapping):
            thresholds = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
            if len(thresholds) != 2:
                raise ValueError(refused)
            known = {"lower": thresholds[0], "upper": thresholds[1]}
        transform = known.pop("transform", "rgtm")
        if transform not in TRANSFORMS:
            raise ValueError(unknown("transform of topology", transform, TRANSFORMS))
        missing = [name for name in ("lower", "upper") if name not in known]
        if missing:
            raise ValueError(f"topology lacks {' and '.join(missing)}; give both thresholds, e.g. (0.2, 0.8).")
        try:
            lower, upper = float(known.pop("lower")), float(known.pop("upper"))
        except (TypeError, ValueError):
            raise ValueError(refused) from None
        if not lower <= upper:
            raise ValueError(f"topology=({lower:g}, {upper:g}): the lower threshold must not be above the upper one.")
        found = cls(lower, upper, transform, known)
        offered = [name for name in signature(found.function).parameters if name not in ("rdms", "lower", "upper")]
        for name in known:
            if name not in offered:
                raise ValueError(unknown("option of topology", name, offered))
        check_thresholds(lower, upper, known.get("threshold", "rank-quantile"))
        return found

    @property
    def function(self) -> Callable[..., RDMs]:
        """What `transform` names."""
        from .topology import rgdm, rgtm

        return rgtm if self.transform == "rgtm" else rgdm

    def __call__(self, rdms: RDMs) -> RDMs:
        """The transformed RDMs, each on its own."""
        return self.function(rdms, self.lower, self.upper, **self.options)

    def __str__(self) -> str:
        others = "".join(f", {name} {value}" for name, value in self.options.items())
        return f"{self.transform.upper()} from {self.lower:g} to {self.upper:g}{others}"


@dataclass(frozen=True)
class Recipe:
    """How the RDMs of a recording are made; see `align.rsa` for its fields."""

    method: str = "correlation"
    by: str = "region"
    noise: Any = None
    folds: Any = None
    window: float | None = None
    step: float | None = None

    @property
    def whitening(self) -> dict[str, Any]:
        """The arguments beyond those that every method takes."""
        given = {"noise": self.noise, "folds": self.folds}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def for_models(self) -> str:
        """The dissimilarity of features, which have neither noise nor repeats: distances go with distances."""
        return self.method if self.method in PLAIN else "sqeuclidean"


@dataclass(frozen=True)
class Region:
    """Replicates of one region, at one time where there are times: rows of the stack of brain RDMs."""

    name: str
    subject: str
    rows: np.ndarray
    time: float = float("nan")


def regions_of(brain_rdms: RDMs) -> list[Region]:
    """Regions in the order of their appearance; with a column time, those of one time after the other."""
    table = brain_rdms.table
    times = table["time"].to_numpy(float) if "time" in table else np.full(len(table), np.nan)
    found = []
    for time in pd.unique(times):
        now = (times == time) | (np.isnan(times) & np.isnan(time))
        for name in table["region"][now].unique():
            rows = np.flatnonzero(now & (table["region"] == name).to_numpy())
            subject = table["subject"].iloc[rows[0]] if len(rows) == 1 else f"group of {len(rows)}"
            found.append(Region(name, subject, rows, float(time)))
    return found


def brain_side(brain: Any, recipe: Recipe) -> tuple[RDMs, np.ndarray]:
    """One RDM per subject and region (and time), with the columns kind, region, subject, label (and time).

    Returns
    -------
    rdms : RDMs
    n_units : ndarray of int, shape (rdm,)
        Units behind each; 0 where RDMs were given.
    """
    by = recipe.by
    if isinstance(brain, RDMs):
        found = _given(brain, recipe)
    elif hasattr(brain, "average_repeats"):
        found = recorded(brain, recipe)
    else:
        raise ValueError(f"brain is a {type(brain).__name__}; expected a Recording or RDMs.")
    table = found.table
    n_units = table["n_units"].fillna(0).to_numpy(int) if "n_units" in table else np.zeros(len(table), int)
    region = _text(table, by, "")
    subject = _text(table, "subject" if "subject" in table else "label", "")
    labels = [
        " ".join(filter(None, pair)) or f"brain {k + 1}" for k, pair in enumerate(zip(region, subject, strict=True))
    ]
    described = pd.DataFrame({"kind": "brain", "region": region, "subject": subject, "label": labels})
    if "time" in table:
        described["time"] = table["time"].to_numpy(float)
    return RDMs(found.vectors, found.stimulus_ids, described, found.method, found.stimuli), n_units


def as_replicates(rdms: RDMs) -> RDMs:
    """The RDMs of one region as those of as many subjects, also where nothing names these."""
    table = pd.DataFrame({"subject": [str(k + 1) for k in range(len(rdms))]})
    return RDMs(rdms.vectors, rdms.stimulus_ids, table, rdms.method, rdms.stimuli)


def _given(brain: RDMs, recipe: Recipe) -> RDMs:
    for name in ("noise", "folds", "window"):
        if getattr(recipe, name) is not None:
            raise ValueError(f"brain holds RDMs that are made already, so {name} has no use; leave it out.")
    known = [column for column in (recipe.by, "subject", "time") if column in brain.table]
    if recipe.by not in known and recipe.by != "region":
        raise ValueError(unknown("by", recipe.by, brain.table.columns))
    return brain.mean(by=known) if "subject" in known else brain


def recorded(recording: Any, recipe: Recipe) -> RDMs:
    """RDMs of a recording; over time with ``recipe.window``."""
    timed = recording.responses.ndim == 3
    shape = tuple(recording.responses.shape)
    if recipe.window is None and timed:
        raise ValueError(
            f"responses has shape {shape}, with times: give window, in seconds (--window in the shell), for RSA over "
            "time, or average time first, e.g. recording.average_time(0.07, 0.17)."
        )
    if recipe.window is not None and not timed:
        raise ValueError(f"window={recipe.window!r}, but responses has shape {shape}, without times; leave it out.")
    if recipe.window is None:
        return recording_rdms(recording, recipe.method, recipe.by, **recipe.whitening)
    from .time import rdm_over_time

    return rdm_over_time(recording, recipe.method, recipe.window, recipe.step, recipe.by, **recipe.whitening)


def model_side(features: Any, method: str, stimulus_ids: Sequence[str], n_before: int = 0) -> RDMs:
    """RDMs of all models over these stimuli, with the columns kind, model, layer and label.

    RDMs without a name go by their number, counted from `n_before`.
    """
    if isinstance(features, (list, tuple)):
        if not features:
            raise ValueError("features is an empty list; give at least one model's Features or RDMs.")
        refuse_twins([one.model for one in features if hasattr(one, "model")])
        stacks: list[RDMs] = []
        for one in features:
            stacks.append(model_side(one, method, stimulus_ids, n_before=sum(map(len, stacks))))
        return RDMs.concatenate(stacks)
    if isinstance(features, RDMs):
        found = features.reorder(stimulus_ids)
    elif hasattr(features, "layers") and hasattr(features, "stimulus_ids"):
        found = features_rdms(features, method, stimulus_ids)
    else:
        raise ValueError(
            f"features is a {type(features).__name__}; expected Features, model RDMs, or a list of these. "
            "An array becomes RDMs with align.rdm, which then need the brain's stimulus ids."
        )
    table = found.table
    layer = _text(table, "layer", "")
    fallback = _text(table, "label", "") if "label" in table else _numbered(len(table), n_before)
    model = _text(table, "model", "") if "model" in table else fallback
    labels = [" ".join(filter(None, pair)) for pair in zip(model, layer, strict=True)]
    described = pd.DataFrame({"kind": "model", "model": model, "layer": layer, "label": labels})
    return RDMs(found.vectors, found.stimulus_ids, described, found.method)


def _numbered(n: int, n_before: int) -> list[str]:
    return [f"model {n_before + k + 1}" for k in range(n)]


def _text(table: pd.DataFrame, column: str, default: str) -> list[str]:
    return table[column].astype(str).tolist() if column in table else [default] * len(table)
