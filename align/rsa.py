"""Representational similarity analysis of model layers and brain regions, with ceilings and inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..datasets.errors import unknown
from ..datasets.rdms import RDMs
from .compare import check_method as check_comparison
from .compare import compare as compare_rdms
from .compare import rsa_ceiling
from .inference import (
    Seed,
    bootstrap_similarities,
    percentile_interval,
    permutation_p,
    permutation_similarities,
)
from .provenance import provenance
from .rdm import check_method
from .rsa_halves import Ceilings, average_subjects, place, split_half_ceilings
from .rsa_sides import Recipe, Region, Topology, as_replicates, brain_side, model_side, regions_of
from .score import Evidence, Score, refuse_twins, tabulate

if TYPE_CHECKING:
    from .inference import ModelComparison

SUBJECTS = ("each", "average")
OVER = ("stimuli", "subjects", "both")


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
    *,
    topology: Any = None,
    over: str = "stimuli",
    noise: Any = None,
    folds: Any = None,
    window: float | None = None,
    step: float | None = None,
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
        Resamples (of what `over` says) for the interval, and shuffles of the stimulus labels for p; 0 leaves it out.
    by : str
        Column of ``brain.units`` (or ``brain.table``, where it may be absent) that tells regions apart.
    subjects : {"each", "average"}
        Compare with the RDM of each subject and average the similarities, or compare with the average of the
        subjects' RDMs, which is less noisy and so scores higher against a higher ceiling.
    seed : int or numpy Generator
    topology : (lower, upper) or dict, optional
        Transform the RDMs of models and brain, each on its own and after any averaging over sessions or subjects:
        two thresholds for `align.topology.rgtm`, or a dict with lower, upper, transform ("rgtm" or "rgdm") and any
        other option of that transform. Transformed RDMs have many ties, which "pearson" and "spearman" take best.
    over : {"stimuli", "subjects", "both"}
        What is drawn anew for the interval. "stimuli": for these subjects. "subjects", "both": two or more subjects
        are needed; the interval is Student's t around the score, and the models are compared with each other in
        ``table.attrs["evidence"].comparison``, one `ModelComparison` per region.
    noise, folds
        Of the brain, for the dissimilarities that whiten ("mahalanobis") or cross-validate ("crossnobis",
        "poisson-cv"); see `align.rdm`. A name of the method for ``noise``, and of a column of
        ``brain.presentations`` for ``folds``. With more units than repeats, "diagonal" is the noise to name for
        "crossnobis": a covariance of the same repeats whitens the noise in the distances too, and biases them
        upwards. Features have neither noise nor folds: beside these methods, and beside "poisson", models are
        measured by "sqeuclidean".
    window, step : float, optional
        Seconds: RSA over time, in windows of this width (0: single samples) at these steps (default: the width).
        Every window is a row of the table, with its centre in an additional column time. All windows share their
        draws; p values and intervals are for one window and not corrected for their number.

    Returns
    -------
    pandas.DataFrame
        One row per model, layer and region (and time) with the columns of `Score`:

        - score: mean over subjects of the similarity of model and brain RDM;
        - ceiling, ceiling_low: with two or more subjects the upper and lower bounds of Nili et al. (2014).
          With one subject the ceiling is ``sqrt(2 r / (1 + r))``, r the similarity of the RDMs of two random
          halves of the repeats, averaged over 10 halvings. This is approximate: the noise of an RDM falls
          faster than with the number of repeats, so the ceiling of noisy data comes out low (0.42 where 0.50
          is right, but 0.82 for 0.85 and 0.96 for 0.96, in a simulation with three repeats). Of
          cross-validated dissimilarities random halves of the folds take the place of repeats, where ``folds`` names
          four or more. NaN without repeats, without agreement between the halves, over time with a ``noise`` by
          name, and for a single RDM;
        - ci_low, ci_high: 95 % over what `over` says; over stimuli wide with few, see `bootstrap_comparison`;
        - p: one-sided, stimulus labels exchangeable, for these subjects.

        ``table.attrs["evidence"].rdms`` holds the model and brain RDMs that were compared; over time, those of the
        brain at the time of the highest score of each region.

    Raises
    ------
    ValueError
        For unknown methods, stimuli that the features lack, responses over time without a window, subjects to be
        drawn where there is one, or a wrong type.

    Notes
    -----
    Features and brain are joined by stimulus id: features may hold more stimuli, in any order.

    References
    ----------
    Kriegeskorte, Mur & Bandettini (2008), Frontiers in Systems Neuroscience 2:4. Nili et al. (2014), PLoS
    Computational Biology 10:e1003553. Schuett et al. (2023), eLife 12:e82566. Lin & Kriegeskorte (2024), PNAS
    121:e2317881121.
    """
    options = _Options(rdm, compare, bootstrap, permutations, subjects, over)
    options.check()
    transform = Topology.of(topology)
    if step is not None and window is None:
        raise ValueError(f"step={step!r} needs window: the width of the windows in seconds.")
    recipe = Recipe(rdm, by, noise, folds, window, step)
    # Independent streams, so that the interval does not change with the number of permutations.
    for_bootstrap, for_permutation, for_splits = np.random.default_rng(seed).spawn(3)

    brain_rdms, n_units = brain_side(brain, recipe)
    ceilings: Ceilings = {}
    if subjects == "average":
        averaged = average_subjects(brain_rdms, n_units, compare, transform, for_splits)
        brain_rdms, n_units, ceilings = averaged
    model_rdms = model_side(features, recipe.for_models, brain_rdms.stimulus_ids)
    regions = regions_of(brain_rdms)
    known = set(ceilings)
    alone = [int(one.rows[0]) for one in regions if len(one.rows) == 1 and _place(one) not in known]
    splits = (recipe, compare, transform, for_splits)
    ceilings = split_half_ceilings(brain, brain_rdms[alone], *splits) | ceilings
    formula = _formula(options, recipe, transform, model_rdms.method, isinstance(brain, RDMs))
    if transform is not None:
        model_rdms, brain_rdms = transform(model_rdms), transform(brain_rdms)

    timed = "time" in brain_rdms.table
    streams = _Streams(for_bootstrap, for_permutation, shared=timed)
    scores: list[Score] = []
    times: list[float] = []
    comparison: dict[str, ModelComparison] = {}
    for block in _by_time(regions):
        result = _compared(model_rdms, brain_rdms, block, options, streams)
        for r, region in enumerate(block):
            if len(region.rows) > 1:
                ceiling_low, ceiling = rsa_ceiling(brain_rdms[region.rows], compare)
            else:
                ceiling_low = float("nan")
                ceiling = ceilings.get(_place(region), float("nan"))
            n_stimuli = _n_stimuli(brain_rdms[region.rows])
            for k, (model, layer) in enumerate(zip(*(model_rdms.table[c] for c in ("model", "layer")), strict=True)):
                scores.append(
                    Score(
                        model=model,
                        layer=layer,
                        dataset=str(getattr(brain, "name", "")),
                        subject=region.subject,
                        region=region.name,
                        metric=compare,
                        score=float(result.score[r, k]),
                        ceiling=ceiling,
                        ceiling_low=ceiling_low,
                        ci_low=float(result.low[r, k]),
                        ci_high=float(result.high[r, k]),
                        p=float(result.p[r, k]),
                        n_units=int(n_units[region.rows].sum()),
                        n_stimuli=n_stimuli,
                        formula=formula,
                        seed=int(seed) if isinstance(seed, (int, np.integer)) else None,
                    )
                )
                times.append(region.time)
        if not timed:
            comparison = result.comparison
    table = tabulate(scores)
    if timed:
        table["time"] = times
    shown = _at_peaks(table, brain_rdms, regions) if timed else brain_rdms
    table.attrs["evidence"] = Evidence(
        rdms=RDMs.concatenate([model_rdms, shown]),
        thumbnails=thumbnails(brain_rdms.stimuli, brain_rdms.stimulus_ids),
        comparison=comparison,
        provenance=provenance(
            analysis="rsa",
            rdm=rdm,
            compare=compare,
            bootstrap=bootstrap,
            permutations=permutations,
            by=by,
            seed=seed if isinstance(seed, (int, np.integer)) else repr(seed),
            **_stated(topology=transform, over=over, noise=noise, folds=folds, window=window, step=step),
        ),
    )
    return table


def model_comparison(
    features: Any,
    brain: Any,
    rdm: str = "correlation",
    compare: str = "rho-a",
    by: str = "region",
    *,
    topology: Any = None,
    noise: Any = None,
    folds: Any = None,
    **options: Any,
) -> ModelComparison:
    """Compare models with each other by how well their RDMs match those of one region.

    Parameters
    ----------
    features : Features, RDMs, models of RDMs, or a list of these
        As in `rsa`, with one model per layer; or those of `align.rdm_models`. They are compared in the order given.
    brain : Recording or RDMs
        Of one region; replicates as in `rsa`.
    rdm, compare, by, noise, folds
        As in `rsa`.
    topology : (lower, upper) or dict, optional
        As in `rsa`. Of models of RDMs every RDM is transformed on its own, before weights are fitted.
    **options
        Of `align.inference.compare_models`: over, bootstrap, crossvalidate, permutations, covariance, seed.

    Returns
    -------
    ModelComparison

    Raises
    ------
    ValueError
        For several regions, and as `rsa` and `compare_models`.
    """
    from .inference import compare_models

    check_method(rdm, "rdm")
    check_comparison(compare, "compare")
    recipe, transform = Recipe(rdm, by, noise, folds), Topology.of(topology)
    brain_rdms, _ = brain_side(brain, recipe)
    names = [f"{one.name} at {one.time:g} s" if one.time == one.time else one.name for one in regions_of(brain_rdms)]
    if len(names) > 1:
        shown = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
        raise ValueError(
            f"brain has {len(names)} regions ({shown}); compare models on one, e.g. brain.select({by}=...)."
        )
    models = _models(features, recipe.for_models, brain_rdms.stimulus_ids, transform)
    if transform is not None:
        brain_rdms = transform(brain_rdms)
    return compare_models(models, as_replicates(brain_rdms), compare, **options)


def _models(features: Any, method: str, stimulus_ids: Sequence[str], transform: Topology | None) -> RDMs | list[Any]:
    """RDMs of all models, and models of RDMs over these stimuli, in the order given and all transformed alike."""
    from .rdm_models import RDMModel

    given = list(features) if isinstance(features, (list, tuple)) else [features]
    plain = [one for one in given if not isinstance(one, RDMModel)]
    if len(plain) == len(given):
        rdms = model_side(given, method, stimulus_ids)
        return rdms if transform is None else transform(rdms)
    refuse_twins([one.model for one in plain if hasattr(one, "model")])
    parts: list[Any] = []
    n_before = 0
    for one in given:
        if isinstance(one, RDMModel):
            parts.append(one.on(stimulus_ids))
        else:
            parts.append(model_side(one, method, stimulus_ids, n_before))
            n_before += len(parts[-1])
    if transform is None:
        return parts
    # In one go, so that what cannot be transformed is counted once.
    whole = transform(RDMs(np.concatenate([part.vectors for part in parts]), stimulus_ids)).vectors
    ends = np.cumsum([len(part.vectors) for part in parts])
    return [
        part.with_vectors(v) if isinstance(part, RDMModel) else RDMs(v, stimulus_ids, part.table)
        for part, v in zip(parts, np.split(whole, ends[:-1]), strict=True)
    ]


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
class _Options:
    """What `rsa` was asked for, apart from how RDMs are made."""

    rdm: str
    compare: str
    bootstrap: int
    permutations: int
    subjects: str
    over: str

    def check(self) -> None:
        check_method(self.rdm, "rdm")
        check_comparison(self.compare, "compare")
        for name, known in (("subjects", SUBJECTS), ("over", OVER)):
            if getattr(self, name) not in known:
                raise ValueError(unknown(name, getattr(self, name), known))
        for name in ("bootstrap", "permutations"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)!r}; expected a number of resamples, or 0 for none.")
        if self.over != "stimuli" and self.subjects == "average":
            raise ValueError(
                f"over={self.over!r} draws subjects, and subjects='average' leaves one RDM per region; use "
                "subjects='each' with it, or over='stimuli'."
            )


@dataclass
class _Streams:
    """Randomness of resampling; `shared`: the same draws at every time, so that courses are smooth."""

    bootstrap: np.random.Generator
    permutation: np.random.Generator
    shared: bool = False

    def __post_init__(self) -> None:
        self._seeds = [int(rng.integers(2**62)) for rng in (self.bootstrap, self.permutation)] if self.shared else []

    def next(self) -> tuple[Seed, Seed]:
        return (self._seeds[0], self._seeds[1]) if self.shared else (self.bootstrap, self.permutation)


@dataclass(frozen=True)
class _Result:
    """Arrays (region, model), and the comparison of models per region where subjects were drawn."""

    score: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    comparison: dict[str, ModelComparison] = field(default_factory=dict)


def _compared(
    model_rdms: RDMs, stack: RDMs, regions: Sequence[Region], options: _Options, streams: _Streams
) -> _Result:
    """Scores of all models in some regions with intervals and p values."""
    rows = np.concatenate([region.rows for region in regions])
    order = np.sort(rows)
    places = [np.searchsorted(order, region.rows) for region in regions]
    brain_rdms, compare = stack[order], options.compare
    for_bootstrap, for_permutation = streams.next()

    def over_subjects(samples: np.ndarray) -> np.ndarray:
        """(..., model, brain RDM) to (..., region, model)."""
        return np.stack([samples[..., place].mean(-1) for place in places], axis=-2)

    observed = over_subjects(compare_rdms(model_rdms, brain_rdms, compare))
    low, high, p = np.full((3, *observed.shape), np.nan)
    comparison: dict[str, ModelComparison] = {}
    if options.bootstrap and options.over == "stimuli":
        resampled = bootstrap_similarities(model_rdms, brain_rdms, compare, options.bootstrap, for_bootstrap)
        columns = over_subjects(resampled).reshape(options.bootstrap, -1)
        low, high = (bound.reshape(observed.shape) for bound in percentile_interval(columns))
    elif options.bootstrap:
        comparison = _comparisons(model_rdms, stack, regions, options, for_bootstrap)
        bounds = np.stack([comparison[region.name].interval() for region in regions])  # (region, model, 2)
        low, high = bounds[..., 0], bounds[..., 1]
    if options.permutations:
        shuffled = permutation_similarities(model_rdms, brain_rdms, compare, options.permutations, for_permutation)
        p = permutation_p(observed, over_subjects(shuffled))
    return _Result(observed, low, high, p, comparison)


def _comparisons(
    model_rdms: RDMs, stack: RDMs, regions: Sequence[Region], options: _Options, seed: Seed
) -> dict[str, ModelComparison]:
    """Comparison of the models per region, all regions with the same draws."""
    from .inference import compare_models

    same = int(seed.integers(2**62)) if isinstance(seed, np.random.Generator) else seed
    found = {}
    for region in regions:
        if len(region.rows) < 2:
            raise ValueError(
                f"over={options.over!r} draws subjects, but region {region.name!r} has one RDM; use over='stimuli'."
            )
        found[region.name] = compare_models(
            model_rdms,
            as_replicates(stack[region.rows]),
            options.compare,
            over=options.over,
            bootstrap=options.bootstrap,
            seed=same,
        )
    return found


def _place(region: Region) -> tuple[str, str, float]:
    return place(region.subject, region.name, region.time)


def _by_time(regions: Sequence[Region]) -> list[list[Region]]:
    """Regions of one time together; all of them where there are no times."""
    blocks: dict[float, list[Region]] = {}
    for region in regions:
        blocks.setdefault(-np.inf if np.isnan(region.time) else region.time, []).append(region)
    return list(blocks.values())


def _n_stimuli(replicates: RDMs) -> int:
    """Stimuli with any known dissimilarity."""
    known = np.isfinite(replicates.matrices) & ~np.eye(replicates.n_stimuli, dtype=bool)
    return int(known.any((0, 1)).sum())


def _at_peaks(table: pd.DataFrame, brain_rdms: RDMs, regions: Sequence[Region]) -> RDMs:
    """Per region the RDM at the time of its highest score, mean over subjects: those of all times fill the memory."""
    best = table.groupby("region", sort=False)["score"].transform("max")
    peaks = table[table["score"] == best].drop_duplicates("region").set_index("region")["time"]
    stacks = []
    for region in regions:
        if peaks.get(region.name) == region.time:
            mean = brain_rdms[region.rows].mean()
            label = f"{region.name or 'brain'} at {region.time:.3g} s"
            row = {"kind": "brain", "region": region.name, "subject": region.subject, "label": label}
            described = pd.DataFrame([row | {"time": region.time}])
            stacks.append(RDMs(mean.vectors, mean.stimulus_ids, described, mean.method, mean.stimuli))
    return RDMs.concatenate(stacks) if stacks else brain_rdms[:0]


def _stated(**options: Any) -> dict[str, Any]:
    """Options as they are written down: nothing that was left out, and no array."""
    return {
        name: value if isinstance(value, (str, int, float)) else str(value) if isinstance(value, Topology) else "given"
        for name, value in options.items()
        if value is not None
    }


def _formula(options: _Options, recipe: Recipe, transform: Topology | None, model_method: str, given: bool) -> str:
    of_brain = recipe.method if not given and recipe.for_models != recipe.method else model_method or "rdm"
    parts = [f"rsa-{of_brain}-{options.compare}-1: "]
    if of_brain != model_method and model_method:
        parts[0] += f"models {model_method}, "
    if transform is not None:
        parts[0] += f"{transform}, "
    parts[0] += "mean over subjects" if options.subjects == "each" else "RDM averaged over subjects"
    if recipe.window is not None:
        parts.append(f"windows of {recipe.window:g} s")
    if options.bootstrap:
        drawn = {"stimuli": "bootstrap over stimuli", "subjects": "bootstrap over subjects, t"}
        parts.append(f"ci: {drawn.get(options.over, 'dual bootstrap over stimuli and subjects, t')}")
    if options.permutations:
        parts.append("p: stimulus-label permutation")
    return "; ".join(parts)
