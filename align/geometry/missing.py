"""Which pairs of stimuli are known: RDMs that miss the same pairs are computed together."""

from __future__ import annotations

import numpy as np

from ...datasets.rdms import pair_lookup


def is_complete(vectors: np.ndarray) -> bool:
    """Whether no pair is NaN. The sum tells in one pass; only where it overflows is there a closer look."""
    with np.errstate(all="ignore"):
        total = vectors.sum()
    return bool(np.isfinite(total)) or not np.isnan(vectors).any()


def same_pattern(vectors: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows, known pairs) for every set of rows that miss the same pairs."""
    if is_complete(vectors):
        return [(np.arange(len(vectors)), np.ones(vectors.shape[1], bool))] if len(vectors) else []
    known = ~np.isnan(vectors)
    rows: dict[bytes, list[int]] = {}
    for k, mask in enumerate(np.packbits(known, axis=1)):
        rows.setdefault(mask.tobytes(), []).append(k)
    return [(np.array(members), known[members[0]]) for members in rows.values()]


def known_stimuli(known: np.ndarray, n_stimuli: int) -> np.ndarray:
    """Positions of the stimuli that have any known pair.

    Parameters
    ----------
    known : bool array of shape (pair,)
    n_stimuli : int
    """
    first, second = np.triu_indices(n_stimuli, 1)
    present = np.zeros(n_stimuli, bool)
    present[first[known]] = present[second[known]] = True
    return np.flatnonzero(present)


def pairs_among(stimuli: np.ndarray, n_stimuli: int) -> np.ndarray:
    """Positions, in a vector over `n_stimuli`, of the pairs of `stimuli` (ascending), in the order of squareform."""
    first, second = np.triu_indices(len(stimuli), 1)
    return pair_lookup(n_stimuli)[stimuli[first], stimuli[second]]
