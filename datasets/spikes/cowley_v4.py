"""Macaque V4 spike counts to natural images (Cowley et al., 2023)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from ..recording import Recording
from ..registry import DatasetCard, FileCard, find_file, register
from ..stimuli import StimulusSet

CARD = DatasetCard(
    name="cowley-v4",
    title="Macaque V4 spike counts to natural images, one population per recording day",
    citation=(
        "Cowley BR, Stan PL, Pillow JW, Smith MA (2023). Compact deep neural network models of visual cortex. "
        "bioRxiv 2023.11.22.568315"
    ),
    licence="GPL-3.0 (of the repository; the data have no licence of their own)",
    modality="spikes",
    source="https://github.com/cowleygroup/V4_compact_models (folder data_V4_responses)",
    files=(
        FileCard(
            "images/images_201025.zip", 4131376, "3abb63679107665eab7220bdeaf7863832a1df943bf3d7792501f5082a55b2e8"
        ),
        FileCard(
            "images/images_210325.zip", 1841475, "992774eca3508a2ad01accb1a31f5f3e3d90248c49f4eec314f2a915a263e454"
        ),
        FileCard(
            "responses_raw/responses_210325.npy",
            2560128,
            "4008dbbf31a47d9b1b8d8da609f4a7a3433c7071f0e45c611c220b217dd75b76",
        ),
        FileCard(
            "responses_repeat_averaged/responses_201025.npy",
            854528,
            "f729f3dc0d29aa38bd380c0da9e39aba916f9e2580949929b65d1714e7217a8a",
        ),
        FileCard(
            "responses_repeat_averaged/responses_210325.npy",
            256128,
            "555e67037182611969ab90da291dcc39601de4411f651a64ad60e90572cf59d3",
        ),
    ),
    folders=("cowley_v4", "data_V4_responses"),
    selection={"session": "day of the recording as YYMMDD (210325)"},
    notes=(
        "Spike counts per 100 ms bin. Repeats are kept apart where responses_raw holds the session; else the "
        "responses are means over repeats."
    ),
)


@register(CARD)
def load_cowley_v4(root: Path, session: str = "210325") -> Recording:
    """Responses of one recording day.

    Parameters
    ----------
    root : path
        Holds ``images/images_<session>.zip`` and ``responses_raw/responses_<session>.npy`` (unit, image,
        repeat) or ``responses_repeat_averaged/responses_<session>.npy`` (unit, image); all may lie flat in it.
    session : str

    Returns
    -------
    Recording
        Spike counts (presentation, unit) per 100 ms bin, float32; repeats that were not shown are left out.

    Raises
    ------
    FileNotFoundError
        Images or responses of the session are absent; the message lists the sessions that have both.
    ValueError
        Responses and images that do not fit together.
    """
    session = str(session)
    images = find_file(root, f"images/images_{session}.zip")
    path = _responses_file(root, session)
    if images is None or path is None:
        absent = " and ".join(what for what, found in (("images", images), ("responses", path)) if found is None)
        complete = _complete_sessions(root)
        raise FileNotFoundError(
            f"cowley-v4: session {session!r} has no {absent} in {root}. "
            f"Sessions with both: {', '.join(complete) or 'none'}. Get files from {CARD.source}."
        )
    stimuli = StimulusSet.from_zip(images, name=f"cowley-v4 {session}")
    counts = _read_counts(path, len(stimuli))
    shown = np.isfinite(counts).any(axis=0)  # (image, repeat)
    image, repeat = np.nonzero(shown)
    presentations = pd.DataFrame({"stimulus": np.array(stimuli.ids)[image], "repeat": repeat, "session": session})
    units = pd.DataFrame({"region": "V4", "subject": f"session-{session}"}, index=range(len(counts)))
    return Recording(
        np.ascontiguousarray(counts.transpose(1, 2, 0)[shown], dtype=np.float32),
        presentations,
        units,
        stimuli=stimuli,
        name=f"{CARD.name} {session}",
        info={"citation": CARD.citation, "licence": CARD.licence, "unit": "spikes per 100 ms"},
    )


def _responses_file(root: Path, session: str) -> Path | None:
    """The file with repeats where there is one."""
    name = f"responses_{session}.npy"
    for candidate in (root / "responses_raw" / name, root / "responses_repeat_averaged" / name, root / name):
        if candidate.is_file():
            return candidate
    return None


def _complete_sessions(root: Path) -> list[str]:
    names = {re.fullmatch(r"images_(\w+)\.zip", path.name) for path in root.rglob("images_*.zip")}
    sessions = sorted(match.group(1) for match in names if match)
    return [session for session in sessions if _responses_file(root, session) is not None]


def _read_counts(path: Path, n_images: int) -> np.ndarray:
    """Counts (unit, image, repeat); means over repeats come as one repeat."""
    try:
        counts = np.load(path)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a whole .npy file ({error}); fetch it again.") from error
    if counts.ndim not in (2, 3) or counts.shape[1] != n_images:
        raise ValueError(
            f"{path} has shape {counts.shape}; expected (unit, image[, repeat]) with the {n_images} images of the "
            "session's zip archive."
        )
    return counts if counts.ndim == 3 else counts[:, :, None]
