"""Ceilings from halves: of the repeats or folds behind a single RDM, or of the subjects behind an average one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ..datasets.rdms import RDMs
from .ceiling import full_reliability, noise_share
from .compare import similarities
from .geometry.crossvalidated import per_fold
from .geometry.patterns import CROSS_VALIDATED
from .noise import repeat_precision
from .rdm import dissimilarities, unit_groups, unit_responses
from .rsa_sides import Recipe, recorded, regions_of

N_SPLITS = 10  # random halvings of repeats, or of subjects, behind the ceiling of a single RDM
Ceilings = dict[tuple[str, str, float], float]  # by `place`
Transform = Callable[[RDMs], RDMs]


def place(subject: str, region: str, time: float) -> tuple[str, str, float]:
    """Key of a ceiling: subject, region and time, -inf where there is none, since NaN is no key."""
    return subject, region, float("-inf") if np.isnan(time) else float(time)


def average_subjects(
    each: RDMs, n_units: np.ndarray, compare: str, transform: Transform | None, rng: np.random.Generator
) -> tuple[RDMs, np.ndarray, Ceilings]:
    """The average RDM of every region, the units behind it, and its ceiling from random halves of the subjects.

    With a `transform` the RDMs are averaged before it; they come back without it.
    """
    stacks, counts = [], []
    ceilings: Ceilings = {}
    for region in regions_of(each):
        members, n = each[region.rows], len(region.rows)
        stack = members.mean()
        subject = f"average of {n}" if n > 1 else region.subject
        label = " ".join(filter(None, (region.name, subject)))
        described = {"kind": "brain", "region": region.name, "subject": subject, "label": label}
        table = pd.DataFrame([described | ({"time": region.time} if "time" in each.table else {})])
        stacks.append(RDMs(stack.vectors, each.stimulus_ids, table, each.method, each.stimuli))
        counts.append(n_units[region.rows].sum())
        if n > 1:
            agreement = []
            for _ in range(N_SPLITS):
                order = rng.permutation(n)
                one, other = (members[part].mean() for part in np.array_split(order, 2))
                agreement.append(_agreement(one, other, compare, transform)[0])
            shares = (1 / (n // 2), 1 / (n - n // 2), 1 / n)
            ceilings[place(subject, region.name, region.time)] = root_reliability(float(np.mean(agreement)), *shares)
    return RDMs.concatenate(stacks), np.array(counts), ceilings


def split_half_ceilings(
    brain: Any, single: RDMs, recipe: Recipe, compare: str, transform: Transform | None, rng: np.random.Generator
) -> Ceilings:
    """Ceiling of every RDM of `single` from RDMs of random halves of its repeats, or of its folds; see `align.rsa`."""
    ceilings: Ceilings = {}
    if isinstance(brain, RDMs):
        return ceilings
    halve = _halves_of_folds if recipe.method in CROSS_VALIDATED else _halves_of_repeats
    for subject, table in single.table.groupby("subject", sort=False):
        wanted = single[table.index.to_numpy()]
        recording, own = brain.select(subject=subject), recipe
        if recipe.noise is not None and not isinstance(recipe.noise, str) and np.ndim(recipe.noise) == 1:
            mine = (brain.units["subject"].astype(str) == subject).to_numpy()
            own = replace(recipe, noise=np.asarray(recipe.noise)[mine])
        found = halve(recording, wanted, own, compare, transform, rng)
        if found is None:
            continue
        agreement, shares = found
        for region, time, r in zip(wanted.table["region"], _times(wanted), agreement, strict=True):
            ceilings[place(str(subject), region, time)] = root_reliability(float(r), *shares)
    return ceilings


def root_reliability(agreement: float, first: float, second: float, full: float) -> float:
    """Ceiling of an RDM from the similarity of those of two halves of the repeats or subjects behind it."""
    reliability = float(full_reliability(agreement, first, second, full))
    return float(np.sqrt(reliability)) if reliability > 0 else float("nan")


Found = tuple[np.ndarray, tuple[float, float, float]] | None


def _halves_of_repeats(
    recording: Any, wanted: RDMs, recipe: Recipe, compare: str, transform: Transform | None, rng: np.random.Generator
) -> Found:
    """Similarity of the RDMs of two halves, mean over halvings, per RDM; noise shares of the halves and of all.

    None over time with noise by name: means over halves, which are what there is, hold no repeats to estimate it from.
    """
    if recipe.window is not None and isinstance(recipe.noise, str):
        return None
    make = _over_time if recipe.window is not None else _static
    maker = make(recording, wanted, recipe)
    agreement = np.full((N_SPLITS, len(wanted)), np.nan)
    for split in agreement:
        try:
            halves = recording.split_halves(seed=rng)
        except ValueError:  # nothing was repeated
            break
        split[:] = _agreement(maker(halves[0]), maker(halves[1]), compare, transform)
    if np.isnan(agreement).all():
        return None
    first, second, full = (noise_share(part) for part in (*halves, recording.average_repeats()))
    return agreement.mean(0), (first, second, full)


def _halves_of_folds(
    recording: Any, wanted: RDMs, recipe: Recipe, compare: str, transform: Transform | None, rng: np.random.Generator
) -> Found:
    """The same of folds, which stay whole; each half needs two of them. None where they are not named."""
    labels = recording.presentations[recipe.folds].unique() if isinstance(recipe.folds, str) else []
    n = len(labels)
    if n < 4 or per_fold(recipe.noise):
        return None
    agreement = np.empty((N_SPLITS, len(wanted)))
    for split in agreement:
        parts = np.array_split(rng.permutation(n), 2)
        halves = [recording.select(**{recipe.folds: [labels[k] for k in part]}) for part in parts]
        one, other = (_rows_like(recorded(half, recipe), wanted, recipe.by) for half in halves)
        split[:] = _agreement(one, other, compare, transform)
    return agreement.mean(0), (1 / (n // 2), 1 / (n - n // 2), 1 / n)


def _static(recording: Any, wanted: RDMs, recipe: Recipe) -> Callable[[Any], RDMs]:
    groups = {region: units for _, region, units in unit_groups(recording, recipe.by)}
    parts = []
    for region in wanted.table["region"]:
        units, noise = groups[region], recipe.noise
        if isinstance(noise, str):  # of all repeats: halves have too few
            X = unit_responses(recording, units)
            known = np.isfinite(X).any(0)
            units = units[known]
            noise = repeat_precision(X[:, known], recording.presentations["stimulus"].to_numpy(), noise)
        elif noise is not None and np.ndim(noise) == 1:
            noise = np.asarray(noise)[units]
        parts.append((units, noise))

    def make(half: Any) -> RDMs:
        vectors = [
            dissimilarities(unit_responses(half, units), recipe.method, noise=noise).vector for units, noise in parts
        ]
        ids = half.presentations["stimulus"].astype(str).tolist()
        return RDMs(np.stack(vectors).astype(np.float64), ids)

    return make


def _over_time(recording: Any, wanted: RDMs, recipe: Recipe) -> Callable[[Any], RDMs]:
    return lambda half: _rows_like(recorded(half, recipe), wanted, recipe.by)


def _rows_like(found: RDMs, wanted: RDMs, by: str) -> RDMs:
    """The RDMs of `found` in the order of those of `wanted`, by region and time."""
    keys = list(zip(found.table[by].astype(str), _times(found), strict=True))
    order = [keys.index(key) for key in zip(wanted.table["region"], _times(wanted), strict=True)]
    return found[order]


def _times(rdms: RDMs) -> list[float]:
    """Times as far as they can be compared: -inf where there are none."""
    return rdms.table["time"].fillna(-np.inf).tolist() if "time" in rdms.table else [-np.inf] * len(rdms)


def _agreement(one: RDMs, other: RDMs, compare: str, transform: Transform | None) -> np.ndarray:
    """Similarity of every RDM with its partner."""
    if transform is not None:
        one, other = transform(one), transform(other)
    pairs = zip(one.vectors.astype(np.float64), other.vectors.astype(np.float64), strict=True)
    return np.array([similarities(x[None], y[None], compare)[0, 0] for x, y in pairs])
