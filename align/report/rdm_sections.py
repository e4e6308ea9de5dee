"""The sections of a page about RDMs: the gallery, and maps of the stimuli."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from ...datasets.rdms import RDMs
from ..score import Evidence
from . import rdm_figures
from .geometry import even_rows
from .parts import Section, picture
from .summary import at_peak, averaged, best_layers, layer_name

MOST_RDMS = 12
MOST_MAPS = 6
MOST_CHAINS = 2  # models that are followed from layer to layer
MOST_STEPS = 7  # of their layers
MOST_STIMULI = {"gallery": 300, "map": 100}
Evidences = list[tuple[pd.DataFrame, Evidence]]


def gallery_section(evidence: Evidences) -> Section | None:
    """RDMs of regions and layers as pictures."""
    pictures = []
    for part, found in evidence:
        if found.rdms is None:
            continue
        brain, model = brain_rdms(found.rdms), model_rdms(found.rdms)
        shown = chosen_rdms(brain, model, best_layers(averaged(at_peak(part))))
        if not len(shown):
            continue
        n, most = shown.n_stimuli, MOST_STIMULI["gallery"]
        caption = (
            "Representational dissimilarity matrices: every row and column is a stimulus, every value how differently "
            "two of them are represented, as a rank within its RDM. Blue: brain regions, the mean over subjects where "
            "there are several; black: layers of models. Patterns that return from one RDM to the next are shared "
            "structure."
        )
        total = sum(len(rdms) for rdms in (brain, model) if rdms is not None)
        if len(shown) < total:
            caption += f" {len(shown)} of {total} RDMs are shown, the best layers among them."
        if n > most:
            caption += f" Drawn from {most} of {n} stimuli, taken at even distances."
        alt = "Pictures of RDMs: " + ", ".join(shown.table["label"].astype(str)) + "."
        # Hundreds of stimuli are noise to an image compressor: a palette makes them a quarter of the size.
        pictures.append(picture(rdm_figures.rdm_gallery(shown, most), alt, caption, "palette" if n > 100 else "svg"))
    return Section("RDM gallery", pictures) if pictures else None


def brain_rdms(rdms: RDMs) -> RDMs | None:
    """One brain RDM per region, the mean over subjects, labelled by the region where there are several subjects."""
    if "kind" not in rdms.table or not (rdms.table["kind"] == "brain").any():
        return None
    brain = rdms[(rdms.table["kind"] == "brain").to_numpy()]
    table = brain.table
    regions = table["region"].fillna("").astype(str) if "region" in table else pd.Series("", index=table.index)
    names = regions.where(regions != "", "brain")
    one_each = names.nunique() == len(names)
    labels = table["label"].astype(str) if one_each and "label" in table else names
    described = pd.DataFrame({"kind": "brain", "region": names, "label": labels})
    brain = RDMs(brain.vectors, brain.stimulus_ids, described, brain.method)
    return brain if one_each else brain.mean(by="region")


def model_rdms(rdms: RDMs) -> RDMs | None:
    """The RDMs that are no brain's, with the columns model and layer."""
    rows = (rdms.table["kind"] != "brain").to_numpy() if "kind" in rdms.table else np.ones(len(rdms), bool)
    if not rows.any():
        return None
    model = rdms[rows]
    text = {
        column: model.table[column].fillna("").astype(str) if column in model.table else ""
        for column in ("model", "layer", "label")
    }
    table = pd.DataFrame(text, index=model.table.index).assign(kind="model")
    named = [layer_name(*pair) for pair in zip(table["model"], table["layer"], strict=True)]
    table["label"] = [name or label for name, label in zip(named, table["label"], strict=True)]
    return RDMs(model.vectors, model.stimulus_ids, table, model.method)


def chosen_rdms(brain: RDMs | None, model: RDMs | None, best: Mapping[str, tuple[str, str]]) -> RDMs:
    """At most 12: half of them brain regions at most, then the best layers, then others at even distances."""
    stacks = []
    if brain is not None:
        most = MOST_RDMS if model is None else max(MOST_RDMS // 2, MOST_RDMS - len(model))
        stacks.append(brain[: min(len(brain), most)])
    if model is not None:
        room = MOST_RDMS - sum(map(len, stacks))
        names = list(zip(model.table["model"], model.table["layer"], strict=True))
        wanted = list(dict.fromkeys(names.index(layer) for layer in best.values() if layer in names))[:room]
        others = [row for row in range(len(model)) if row not in wanted]
        spare = min(room - len(wanted), len(others))
        picked = [others[k] for k in np.linspace(0, len(others) - 1, spare).round().astype(int)] if spare else []
        stacks.append(model[sorted(wanted + picked)])
    return RDMs.concatenate(stacks)


def map_section(evidence: Evidences) -> Section | None:
    """Regions beside their best layers."""
    pictures = []
    for part, found in evidence:
        brain, model, best = _sides(part, found)
        if brain is None or model is None:
            continue
        pairs = []
        for k, region in enumerate(brain.table["region"]):
            row = _row_of(model, best.get(region))
            if row is not None:
                pairs.append((region, brain[k], layer_name(*best[region]), model[row]))
        if not pairs:
            continue
        n, most = brain.n_stimuli, MOST_STIMULI["map"]
        caption = (
            "The stimuli as each region (left of each pair) and its best layer arrange them, by classical "
            "multidimensional scaling of their RDMs: near means alike. The map of a layer is rotated and mirrored to "
            "lie closest to that of its region. Below each map: the share of the structure that two dimensions can "
            "show; where it is small, distances mislead."
        )
        if n > most:
            caption += f" {most} of {n} stimuli, taken at even distances."
        if len(pairs) > MOST_MAPS:
            caption += f" The first {MOST_MAPS} of {len(pairs)} regions."
        thumbnails = _thumbnails(found, n)
        fig = rdm_figures.stimulus_maps(pairs[:MOST_MAPS], thumbnails, most)
        names = "; ".join(f"{region} beside {layer}" for region, _, layer, _ in pairs[:MOST_MAPS])
        alt = f"Maps of the stimuli: {names}."
        pictures.append(picture(fig, alt, caption, "svg" if thumbnails is None else "png"))
    return Section("Maps of the stimuli", pictures) if pictures else None


def layer_section(evidence: Evidences) -> Section | None:
    """The layers of the best models one after the other, and the region they come closest to."""
    pictures = []
    for part, found in evidence:
        brain, model, best = _sides(part, found)
        if brain is None or model is None:
            continue
        regions = {
            owner: region for region, (owner, _) in reversed(best.items()) if region in set(brain.table["region"])
        }
        drawn = 0
        for name in dict.fromkeys(owner for owner, _ in best.values()):
            rows = np.flatnonzero(model.table["model"] == name)
            if len(rows) < 3 or name not in regions or drawn == MOST_CHAINS:
                continue
            drawn += 1
            rows = rows[even_rows(len(rows), MOST_STEPS)]
            region = regions[name]
            steps = [(str(model.table["layer"].iloc[row]), model[int(row)]) for row in rows]
            steps.append((region, brain.select(region=region)))
            n, most = brain.n_stimuli, MOST_STIMULI["map"]
            caption = (
                f"How {name} arranges the stimuli from layer to layer, and at the end {region}. Every map is rotated "
                "and mirrored onto the one before (Procrustes), so that only what moves is seen to move."
            )
            if n > most:
                caption += f" {most} of {n} stimuli, taken at even distances."
            thumbnails = _thumbnails(found, n)
            fig = rdm_figures.layer_maps(steps, thumbnails, most, brain=[region])
            alt = f"Maps of the stimuli through {name}: " + ", ".join(step for step, _ in steps) + "."
            pictures.append(picture(fig, alt, caption, "svg" if thumbnails is None else "png"))
    return Section("From layer to layer", pictures) if pictures else None


def _sides(part: pd.DataFrame, found: Evidence) -> tuple[RDMs | None, RDMs | None, dict[str, tuple[str, str]]]:
    """RDMs of the regions and of the layers, and the best layer per region."""
    if found.rdms is None:
        return None, None, {}
    best = best_layers(averaged(at_peak(part.assign(dataset=""))))
    return brain_rdms(found.rdms), model_rdms(found.rdms), best


def _row_of(model: RDMs, layer: tuple[str, str] | None) -> int | None:
    names = list(zip(model.table["model"], model.table["layer"], strict=True))
    return names.index(layer) if layer in names else None


def _thumbnails(found: Evidence, n_stimuli: int) -> np.ndarray | None:
    return found.thumbnails if found.thumbnails is not None and len(found.thumbnails) == n_stimuli else None
