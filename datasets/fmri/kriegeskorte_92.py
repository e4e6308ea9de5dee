"""92 object images: RDMs of human and monkey IT, behaviour and models (Kriegeskorte et al., 2008)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import unknown
from ..matlab import read_mat
from ..rdms import RDMs
from ..registry import DatasetCard, FileCard, find_file, register
from ..stimuli import StimulusSet

_PUBLISHED = "Kriegeskorte_Neuron2008_supplementalData.mat"
_BRAIN = "92_brainRDMs.mat"
_BEHAVIOUR = "92_behavRDMs.mat"
_MODELS = "92_modelRDMs.mat"

SOURCES = ("human-it", "monkey-it", "behaviour", "models", "all")

CARD = DatasetCard(
    name="kriegeskorte-92",
    title="RDMs of 92 object images: human and monkey IT, similarity judgements, models; images included",
    citation=(
        "Kriegeskorte N, Mur M, Ruff DA, Kiani R, Bodurka J, Esteky H, Tanaka K, Bandettini PA (2008). Matching "
        "categorical object representations in inferior temporal cortex of man and monkey. Neuron 60:1126-1141. "
        "Behaviour: Mur M et al. (2013). Frontiers in Psychology 4:128"
    ),
    licence="MIT (of the repository; the published supplementary data have no licence of their own)",
    modality="fMRI RDMs",
    source="https://github.com/rsagroup/rsatoolbox (folder demos/92imageData)",
    files=(
        FileCard(_PUBLISHED, 3603779, "06f21214399a5d43dc264eed19a7f4b8daf11c8622a59eec3e106064ce5e3504"),
        FileCard(_BRAIN, 224663, "1743f90a15e895798a94318649e80e1123a7e5943a1703fa1dd7c31ea5780b7c"),
        FileCard(_BEHAVIOUR, 982719, "7a8e118c144c3840adeeeef6ea0706a0be2b3e80df719af15fbb56fc62562f5f"),
        FileCard(_MODELS, 333004, "e1d2b58bb2f9508bc13da4c81b94d1ab07823b25ed30b9563bd9d6d730c2a00a"),
    ),
    folders=("kriegeskorte_92", "rsatoolbox_92", "92imageData"),
    selection={"source": "human-it (default), monkey-it, behaviour, models or all"},
    notes="Human IT: 4 subjects in 2 sessions each. IT dissimilarities are 1 - Pearson r.",
)


@register(CARD)
def load_kriegeskorte_92(root: Path, source: str = "human-it") -> RDMs:
    """RDMs over the 92 images.

    Parameters
    ----------
    root : path
        The files are found anywhere below it by name.
    source : {"human-it", "monkey-it", "behaviour", "models", "all"}
        Human IT: 8 RDMs (4 subjects, 2 sessions), 1 - Pearson r over 316 voxels. Monkey IT: one RDM, 1 - Pearson r
        over 674 neurons of two monkeys. Behaviour: 16 subjects, multi-arrangement. Models: 8 RDMs.

    Returns
    -------
    RDMs
        ``table`` has columns kind ("brain", "behaviour", "model"), region, subject, session and label; `stimuli`
        are the images, annotated with category, human, face, animal and natural.
    """
    if source not in SOURCES:
        raise ValueError(unknown("source", source, SOURCES))
    stimuli = _stimuli(_read(root, _PUBLISHED, "stimuli_92objs"))
    readers = {
        "human-it": lambda: _human_it(root, stimuli),
        "monkey-it": lambda: _monkey_it(root, stimuli),
        "behaviour": lambda: _behaviour(root, stimuli),
        "models": lambda: _models(root, stimuli),
    }
    if source == "all":
        return RDMs.concatenate([read() for read in readers.values()])
    return readers[source]()


def _read(root: Path, name: str, variable: str) -> list[dict[str, Any]]:
    """Entries of a struct array, in the order in which MATLAB counts them."""
    path = find_file(root, name)
    if path is None:
        raise FileNotFoundError(f"kriegeskorte-92: no {name} below {root}. Get it from {CARD.source}.")
    return read_mat(path, [variable])[variable]


def _stimuli(entries: list[dict[str, Any]]) -> StimulusSet:
    flags = ("human", "face", "animal", "natural")
    table = pd.DataFrame({"category": [entry["category"] for entry in entries]})
    for flag in flags:
        table[flag] = [bool(entry[flag]) for entry in entries]
    ids = [f"stimulus-{number:02d}" for number in range(1, len(entries) + 1)]
    images = np.stack([entry["image"] for entry in entries])
    return StimulusSet.from_images(images, ids, table, name=CARD.name)


def _human_it(root: Path, stimuli: StimulusSet) -> RDMs:
    """Entries (1, subject, session), named like "hIT | BE | Session: 1"."""
    entries = sorted(_read(root, _BRAIN, "RDMs"), key=lambda entry: entry["name"])  # subject by subject
    labels = _names(entries)
    parts = [label.split(" | ") for label in labels]
    table = _table("brain", "human IT", labels)
    table["subject"] = [part[1] for part in parts]
    table["session"] = [part[2].removeprefix("Session: ") for part in parts]
    return RDMs.from_matrices(_matrices(entries), stimuli.ids, table, "correlation", stimuli)


def _monkey_it(root: Path, stimuli: StimulusSet) -> RDMs:
    [entry] = [one for one in _read(root, _PUBLISHED, "RDMs_mIT_hIT_fig1") if one["name"].startswith("mIT")]
    table = _table("brain", "monkey IT", [entry["name"]])
    table["subject"] = "two monkeys"
    return RDMs(entry["RDM"], stimuli.ids, table, "correlation", stimuli)


def _behaviour(root: Path, stimuli: StimulusSet) -> RDMs:
    """Entries (1, subject), named like "simJudge | subject1"."""
    entries = _read(root, _BEHAVIOUR, "rdms_behav_92")
    labels = _names(entries)
    table = _table("behaviour", "behaviour", labels)
    table["subject"] = [label.split(" | ")[1] for label in labels]
    return RDMs.from_matrices(_matrices(entries), stimuli.ids, table, "multi-arrangement", stimuli)


def _models(root: Path, stimuli: StimulusSet) -> RDMs:
    entries = _read(root, _MODELS, "Models")
    table = _table("model", "", _names(entries))
    return RDMs.from_matrices(_matrices(entries), stimuli.ids, table, "", stimuli)


def _names(entries: list[dict[str, Any]]) -> list[str]:
    return [entry["name"] for entry in entries]


def _matrices(entries: list[dict[str, Any]]) -> np.ndarray:
    return np.stack([entry["RDM"] for entry in entries])


def _table(kind: str, region: str, labels: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"kind": kind, "region": region, "subject": "", "session": "", "label": labels})
