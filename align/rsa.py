"""Representational similarity analysis of model layers and brain regions, with ceilings and inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..datasets.errors import unknown
from ..datasets.rdms import RDMs
from .ceiling import full_reliability, noise_share
from .compare import check_method as check_comparison
from .compare import compare as compare_rdms
from .compare import rsa_ceiling, similarities
from .inference import (
    Seed,
    bootstrap_similarities,
    percentile_interval,
    permutation_p,
    permutation_similarities,
)
from .provenance import provenance
from .rdm import check_method, dissimilarities, features_rdms, recording_rdms, unit_groups, unit_responses
from .score import Evidence, Score, refuse_twins, tabulate

N_SPLITS = 10  # random halvings of repeats, or of subjects, behind the ceiling of a single RDM
SUBJECTS = ("each", "average")


def rsa(
    features: Any,
    brain: Any,
    rdm: str = "correlation",
    compare: str = "rho-a",
    bootstrap: int = 1000,
    permutations: int = 1000,
    by: str = "region",
    subjects: str = "each",
    seed: Seed = 0,
) -> pd.DataFrame:
    """Score every layer by the similarity of its RDM to those of the brain.

    Parameters
    ----------
    features : Features, RDMs, or a list of these
        Several models go in as a list. Model RDMs are named by the columns model and layer of their table,
        or else label.
    brain : Recording or RDMs
        A Recording gives one RDM per subject and region from responses averaged over repeats. RDMs with a
        table column subject are first averaged over all else (sessions); without one, every RDM is a
        replicate.
    rdm : str
        Dissimilarity, see `align.rdm`; not used for what already is an RDM.
    compare : str
        Similarity of two RDMs, see `align.compare`.
    bootstrap, permutations : int
        Resamples of the stimuli for the interval, and shuffles of the stimulus labels for p; 0 leaves it out.
    by : str
        Column of ``brain.units`` (or ``brain.table``, where it may be absent) that tells regions apart.
    subjects : {"each", "average"}
        Compare with the RDM of each subject and average the similarities, or compare with the average of the
        subjects' RDMs, which is less noisy and so scores higher against a higher ceiling.
    seed : int or numpy Generator

    Returns
    -------
    pandas.DataFrame
        One row per model, layer and region with the columns of `Score`:

        - score: mean over subjects of the similarity of model and brain RDM;
        - ceiling, ceiling_low: with two or more subjects the upper and lower bounds of Nili et al. (2014).
          With one subject the ceiling is ``sqrt(2 r / (1 + r))``, r the similarity of the RDMs of two random
          halves of the repeats, averaged over 10 halvings. This is approximate: the noise of an RDM falls
          faster than with the number of repeats, so the ceiling of noisy data comes out low (0.42 where 0.50
          is right, but 0.82 for 0.85 and 0.96 for 0.96, in a simulation with three repeats). NaN without
          repeats, without agreement between the halves, and for a single RDM;
        - ci_low, ci_high: 95 % over stimuli, for these subjects; wide with few, see `bootstrap_comparison`;
        - p: one-sided, stimulus labels exchangeable, for these subjects.

        ``table.attrs["evidence"].rdms`` holds the model and brain RDMs that were compared.

    Raises
    ------
    ValueError
        For unknown methods, stimuli that the features lack, responses over time, or a wrong type.

    Notes
    -----
    Features and brain are joined by stimulus id: features may hold more stimuli, in any order.

    References
    ----------
    Kriegeskorte, Mur & Bandettini (2008), Frontiers in Systems Neuroscience 2:4. Nili et al. (2014), PLoS
    Computational Biology 10:e1003553. Schuett et al. (2023), eLife 12:e82566.
    """
    check_method(rdm, "rdm")
    check_comparison(compare, "compare")
    if subjects not in SUBJECTS:
        raise ValueError(unknown("subjects", subjects, SUBJECTS))
    for name, count in (("bootstrap", bootstrap), ("permutations", permutations)):
        if count < 0:
            raise ValueError(f"{name}={count!r}; expected a number of resamples, or 0 for none.")
    # Independent streams, so that the interval does not change with the number of permutations.
    for_bootstrap, for_permutation, for_splits = np.random.default_rng(seed).spawn(3)

    brain_rdms, n_units = _brain_rdms(brain, rdm, by)
    ceilings: dict[tuple[str, str], float] = {}
    if subjects == "average":
        brain_rdms, n_units, ceilings = _average_subjects(brain_rdms, n_units, compare, for_splits)
    model_rdms = _model_rdms(features, rdm, brain_rdms.stimulus_ids)
    similarity = compare_rdms(model_rdms, brain_rdms, compare)
    resampled = bootstrap_similarities(model_rdms, brain_rdms, compare, bootstrap, for_bootstrap)
    shuffled = permutation_similarities(model_rdms, brain_rdms, compare, permutations, for_permutation)

    regions = _regions(brain_rdms, by)
    alone = [int(region.rows[0]) for region in regions if len(region.rows) == 1]
    ceilings = _split_half_ceilings(brain, brain_rdms[alone], rdm, compare, by, for_splits) | ceilings
    models, layers = _text(model_rdms.table, "model", ""), _text(model_rdms.table, "layer", "")

    def over_subjects(samples: np.ndarray) -> np.ndarray:
        """(..., model, brain RDM) to (..., region, model)."""
        return np.stack([samples[..., region.rows].mean(-1) for region in regions], axis=-2)

    observed = over_subjects(similarity)
    low, high, p = np.full((3, *observed.shape), np.nan)
    if bootstrap:
        columns = over_subjects(resampled).reshape(bootstrap, -1)
        low, high = (bound.reshape(observed.shape) for bound in percentile_interval(columns))
    if permutations:
        p = permutation_p(observed, over_subjects(shuffled))
    scores = []
    for r, region in enumerate(regions):
        if len(region.rows) > 1:
            ceiling_low, ceiling = rsa_ceiling(brain_rdms[region.rows], compare)
        else:
            ceiling_low, ceiling = float("nan"), ceilings.get((region.subject, region.name), float("nan"))
        known = np.isfinite(brain_rdms[region.rows].matrices) & ~np.eye(brain_rdms.n_stimuli, dtype=bool)
        n_stimuli = int(known.any((0, 1)).sum())
        for k in range(len(model_rdms)):
            scores.append(
                Score(
                    model=models[k],
                    layer=layers[k],
                    dataset=str(getattr(brain, "name", "")),
                    subject=region.subject,
                    region=region.name,
                    metric=compare,
                    score=float(observed[r, k]),
                    ceiling=ceiling,
                    ceiling_low=ceiling_low,
                    ci_low=float(low[r, k]),
                    ci_high=float(high[r, k]),
                    p=float(p[r, k]),
                    n_units=int(n_units[region.rows].sum()),
                    n_stimuli=n_stimuli,
                    formula=_formula(model_rdms.method or "rdm", compare, subjects, bootstrap, permutations),
                    seed=int(seed) if isinstance(seed, (int, np.integer)) else None,
                )
            )
    evidence = Evidence(
        rdms=RDMs.concatenate([model_rdms, brain_rdms]),
        thumbnails=thumbnails(brain_rdms.stimuli, brain_rdms.stimulus_ids),
        provenance=provenance(
            analysis="rsa",
            rdm=rdm,
            compare=compare,
            bootstrap=bootstrap,
            permutations=permutations,
            by=by,
            seed=seed if isinstance(seed, (int, np.integer)) else repr(seed),
        ),
    )
    return tabulate(scores, evidence)


def thumbnails(stimuli: Any, ids: Sequence[str], size: int = 48, most: int = 1000) -> np.ndarray | None:
    """Small pictures of the stimuli `ids`, in that order, for the figures of a report.

    Returns
    -------
    ndarray of uint8, shape (stimulus, size, size, 3), or None
        None where `stimuli` has no images, or where there are more than `most` to show.
    """
    if getattr(stimuli, "kind", None) != "image" or not hasattr(stimuli, "images") or len(ids) > most:
        return None
    return np.asarray(stimuli.images(ids=list(ids), size=size))


@dataclass(frozen=True)
class _Region:
    """Replicates of one region: rows of the stack of brain RDMs."""

    name: str
    subject: str
    rows: np.ndarray


def _regions(brain_rdms: RDMs, by: str) -> list[_Region]:
    regions = []
    names = brain_rdms.table["region"]
    for name in names.unique():
        rows = np.flatnonzero(names == name)
        subject = brain_rdms.table["subject"].iloc[rows[0]] if len(rows) == 1 else f"group of {len(rows)}"
        regions.append(_Region(name, subject, rows))
    return regions


def _brain_rdms(brain: Any, method: str, by: str) -> tuple[RDMs, np.ndarray]:
    """One RDM per subject and region, with the columns kind, region, subject and label; units behind each."""
    if isinstance(brain, RDMs):
        known = [column for column in (by, "subject") if column in brain.table]
        if by not in known and by != "region":
            raise ValueError(unknown("by", by, brain.table.columns))
        found = brain.mean(by=known) if "subject" in known else brain
    elif hasattr(brain, "average_repeats"):
        found = recording_rdms(brain, method, by)
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
    return RDMs(found.vectors, found.stimulus_ids, described, found.method, found.stimuli), n_units


def _model_rdms(features: Any, method: str, stimulus_ids: Sequence[str]) -> RDMs:
    """RDMs of all models over these stimuli, with the columns kind, model, layer and label."""
    if isinstance(features, (list, tuple)):
        if not features:
            raise ValueError("features is an empty list; give at least one model's Features or RDMs.")
        refuse_twins([one.model for one in features if hasattr(one, "model")])
        return RDMs.concatenate([_model_rdms(one, method, stimulus_ids) for one in features])
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
    fallback = _text(table, "label", "") if "label" in table else [f"model {k + 1}" for k in range(len(table))]
    model = _text(table, "model", "") if "model" in table else fallback
    labels = [" ".join(filter(None, pair)) for pair in zip(model, layer, strict=True)]
    described = pd.DataFrame({"kind": "model", "model": model, "layer": layer, "label": labels})
    return RDMs(found.vectors, found.stimulus_ids, described, found.method)


def _text(table: pd.DataFrame, column: str, default: str) -> list[str]:
    return table[column].astype(str).tolist() if column in table else [default] * len(table)


def _average_subjects(
    each: RDMs, n_units: np.ndarray, compare: str, rng: np.random.Generator
) -> tuple[RDMs, np.ndarray, dict[tuple[str, str], float]]:
    """The average RDM of every region, the units behind it, and its ceiling from random halves of the subjects."""
    stacks, counts = [], []
    ceilings: dict[tuple[str, str], float] = {}
    for region in _regions(each, "region"):
        members, n = each[region.rows], len(region.rows)
        stack = members.mean()
        subject = f"average of {n}" if n > 1 else region.subject
        label = " ".join(filter(None, (region.name, subject)))
        table = pd.DataFrame([{"kind": "brain", "region": region.name, "subject": subject, "label": label}])
        stacks.append(RDMs(stack.vectors, each.stimulus_ids, table, each.method, each.stimuli))
        counts.append(n_units[region.rows].sum())
        if n > 1:
            agreement = []
            for _ in range(N_SPLITS):
                order = rng.permutation(n)
                one, other = (members[part].mean().vectors.astype(np.float64) for part in np.array_split(order, 2))
                agreement.append(similarities(one, other, compare)[0, 0])
            shares = (1 / (n // 2), 1 / (n - n // 2), 1 / n)
            ceilings[subject, region.name] = _root_reliability(float(np.mean(agreement)), *shares)
    return RDMs.concatenate(stacks), np.array(counts), ceilings


def _root_reliability(agreement: float, first: float, second: float, full: float) -> float:
    """Ceiling of an RDM from the similarity of those of two halves of the repeats or subjects behind it."""
    reliability = float(full_reliability(agreement, first, second, full))
    return float(np.sqrt(reliability)) if reliability > 0 else float("nan")


def _split_half_ceilings(
    brain: Any, single: RDMs, method: str, compare: str, by: str, rng: np.random.Generator
) -> dict[tuple[str, str], float]:
    """Ceiling per (subject, region) of `single` from RDMs of random halves of the repeats; see `rsa`."""
    ceilings: dict[tuple[str, str], float] = {}
    if isinstance(brain, RDMs):
        return ceilings
    for subject, table in single.table.groupby("subject", sort=False):
        recording = brain.select(subject=subject)
        groups = {region: units for _, region, units in unit_groups(recording, by)}
        agreement = np.full((N_SPLITS, len(table)), np.nan)
        for split in agreement:
            try:
                halves = recording.split_halves(seed=rng)
            except ValueError:  # nothing was repeated
                break
            for k, region in enumerate(table["region"]):
                one, other = (
                    dissimilarities(unit_responses(half, groups[region]), method).vector[None].astype(np.float64)
                    for half in halves
                )
                split[k] = similarities(one, other, compare)[0, 0]
        if np.isnan(agreement).all():
            continue
        shares = [noise_share(part) for part in (*halves, recording.average_repeats())]
        for region, r in zip(table["region"], agreement.mean(0), strict=True):
            ceilings[str(subject), region] = _root_reliability(float(r), *shares)
    return ceilings


def _formula(method: str, compare: str, subjects: str, bootstrap: int, permutations: int) -> str:
    over = "mean over subjects" if subjects == "each" else "RDM averaged over subjects"
    parts = [f"rsa-{method}-{compare}-1: {over}"]
    if bootstrap:
        parts.append("ci: bootstrap over stimuli")
    if permutations:
        parts.append("p: stimulus-label permutation")
    return "; ".join(parts)
