"""78 images of the Algonauts 2019 challenge: RDMs of early visual and inferior temporal cortex, 15 subjects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from ..errors import unknown
from ..rdms import RDMs
from ..registry import DatasetCard, FileCard, find_file, register
from ..selection import as_list
from ..stimuli import StimulusSet

REGIONS = ("EVC", "IT")
_IMAGES = "stimuli_data"

CARD = DatasetCard(
    name="algonauts2019-78",
    title="RDMs of 78 images in early visual and inferior temporal cortex, 15 subjects; images included",
    citation=(
        "Cichy RM, Roig G, Andonian A, Dwivedi K, Lahner B, Lascelles A, Mohsenzadeh Y, Ramakrishnan K, Oliva A "
        "(2019). The Algonauts Project: a platform for communication between the sciences of biological and "
        "artificial intelligence. arXiv:1905.05675"
    ),
    licence="BSD-3-Clause (of the repository; the challenge's data and images have no licence of their own)",
    modality="fMRI RDMs",
    source="https://github.com/cvai-roig-lab/Net2Brain (folder net2brain/tests/data)",
    files=(
        FileCard(
            "brain_data/fmri_EVC_RDMs.npz", 730344, "c927ba9793234c4bf4845320ac66fbfbe85ec9afc4df9b12ca2a006dae753672"
        ),
        FileCard(
            "brain_data/fmri_IT_RDMs.npz", 730344, "b27cc1c7f87428516fabb4a67e0c1aafe3e6a7de4667e35b5b141e3582e53900"
        ),
    ),
    folders=("algonauts2019_78", "algonauts2019-78"),
    selection={"region": "EVC, IT, or both (default)", "subject": "01 to 15 (default all)"},
    notes=(
        "Dissimilarities are 1 - Pearson r. The subjects agree little: the published noise ceilings are squared "
        "Spearman correlations of 0.0640 (EVC) and 0.0647 (IT), from below 0.007 and 0.003."
    ),
)


@register(CARD)
def load_algonauts2019_78(
    root: Path, region: str | Sequence[str] | None = None, subject: str | Sequence[str] | None = None
) -> RDMs:
    """RDMs over the 78 images, one per region and subject.

    Parameters
    ----------
    root : path
        The files are found anywhere below it by name.
    region : {"EVC", "IT"} or several, optional
    subject : "01" to "15" or several, optional

    Returns
    -------
    RDMs
        1 - Pearson r over voxels, float64; ``table`` has columns kind ("brain"), region, subject and label. Ids are
        the names of the image files, "image_01" to "image_78". `stimuli` are the images, or None without them.

    Raises
    ------
    FileNotFoundError
        Without the file of a region.
    ValueError
        For an unknown region or subject, a file that is not whole, or as many images as the RDMs do not have.
    """
    wanted = REGIONS if region is None else tuple(as_list(region))
    for name in wanted:
        if name not in REGIONS:
            raise ValueError(unknown("region", name, REGIONS))
    matrices = {name: _matrices(root, name) for name in dict.fromkeys(wanted)}
    rows = [
        {"kind": "brain", "region": name, "subject": f"{k + 1:02d}", "label": f"{name} {k + 1:02d}"}
        for name, stack in matrices.items()
        for k in range(len(stack))
    ]
    stacked = np.concatenate(list(matrices.values()))
    n_stimuli = stacked.shape[1]
    stimuli = _stimuli(root, n_stimuli)
    ids = [f"image_{k:02d}" for k in range(1, n_stimuli + 1)] if stimuli is None else stimuli.ids
    rdms = RDMs.from_matrices(stacked, ids, pd.DataFrame(rows), "correlation", stimuli)
    return rdms if subject is None else rdms.select(subject=subject)


def _matrices(root: Path, region: str) -> np.ndarray:
    """(subject, stimulus, stimulus) of one region."""
    path = find_file(root, f"brain_data/fmri_{region}_RDMs.npz")
    if path is None:
        raise FileNotFoundError(f"{CARD.name}: no fmri_{region}_RDMs.npz below {root}. Get it from {CARD.source}.")
    try:
        with np.load(path) as file:
            matrices = file["arr_0"]
    except (BadZipFile, ValueError, OSError, EOFError, KeyError) as error:
        raise ValueError(f"{path} is not a whole file of RDMs ({error}); fetch it again.") from error
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2]:
        raise ValueError(f"{path} has shape {matrices.shape}; expected (subject, stimulus, stimulus).")
    return matrices


def _stimuli(root: Path, n_stimuli: int) -> StimulusSet | None:
    """The images in the order of their names, which is that of the RDMs; None where there are none."""
    first = find_file(root, f"{_IMAGES}/image_01.jpg")
    if first is None:
        return None
    stimuli = StimulusSet.from_folder(first.parent, "*.jpg", name=CARD.name)
    if len(stimuli) != n_stimuli:
        raise ValueError(
            f"{first.parent} holds {len(stimuli)} images and the RDMs are over {n_stimuli}; fetch both again from "
            f"{CARD.source}."
        )
    return stimuli
