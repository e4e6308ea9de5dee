"""One's own arrays as a Recording."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .media import IMAGE_SUFFIXES
from .recording import Recording
from .stimuli import StimulusSet

# Units looked at together when responses are searched for NaN and infinity.
_UNITS_PER_BLOCK = 1024


def from_arrays(
    responses: Any,
    stimuli: Any,
    regions: Sequence[str] | str | None = None,
    stimulus_ids: Sequence[Any] | np.ndarray | None = None,
    times: Any = None,
) -> Recording:
    """A Recording of one's own responses and stimuli.

    Parameters
    ----------
    responses : array (presentation, unit) or (presentation, unit, time)
        numpy array, torch tensor, memory map or h5py.Dataset. NaN marks what was not recorded.
    stimuli : StimulusSet, array, list or path
        Images as an array (stimulus, height, width, 3), uint8 or floats within [0, 1]; a list of sentences; a
        list of image files; a folder, zip archive or HDF5 file of images; or a StimulusSet.
    regions : sequence of str, one per unit, or one str for all
    stimulus_ids : sequence, one per presentation
        The stimulus of each row of responses; needed when stimuli were repeated or are in another order.
        Ids of the stimuli (file names without suffix for files), or positions (integers from 0). Where rows
        equal stimuli and these have no names of their own, it names them in order.
    times : array (time,)
        Seconds; needed when responses have a time axis.

    Returns
    -------
    Recording

    Raises
    ------
    ValueError
        Shapes that do not fit together (with both numbers and the mend), fewer than two stimuli, responses
        without a finite value or with an infinite one.
    """
    responses = _as_numpy(responses)
    stimuli, named = _as_stimuli(stimuli)
    shape = tuple(responses.shape)
    if len(shape) == 1:
        raise ValueError(f"responses has shape {shape}; for one unit pass responses[:, None].")
    if len(shape) == 3 and times is None:
        raise ValueError(
            f"responses has shape {shape} and no times were given; a third axis is time, in seconds. For repeats "
            "(stimulus, repeat, unit) pass responses.reshape(-1, n_units) and stimulus_ids=np.repeat(ids, n_repeats)."
        )
    if len(stimuli) < 2:
        raise ValueError("stimuli holds one stimulus; a comparison over stimuli needs at least two.")
    if stimulus_ids is None:
        if shape[0] != len(stimuli):
            raise ValueError(
                f"responses has {shape[0]} rows for {len(stimuli)} stimuli; give one row per stimulus, or "
                "stimulus_ids= with the stimulus of each row. If units come first, pass responses.T."
            )
        shown = list(stimuli.ids)
    else:
        shown, stimuli = _shown(np.asarray(stimulus_ids), shape[0], stimuli, named)
    units = pd.DataFrame(index=range(shape[1] if len(shape) > 1 else 0))
    if regions is not None:
        names = [regions] * shape[1] if isinstance(regions, str) else [str(name) for name in regions]
        if len(names) != shape[1]:
            raise ValueError(f"regions has {len(names)} names for {shape[1]} units; give one per unit.")
        units["region"] = names
    recording = Recording(responses, pd.DataFrame({"stimulus": shown}), units, times, stimuli)
    _check_finite(recording)
    return recording


def _as_numpy(array: Any) -> Any:
    if hasattr(array, "detach"):  # a torch tensor, perhaps on a GPU, perhaps bfloat16
        array = array.detach().cpu()
        return array.float().numpy() if "bfloat16" in str(array.dtype) else array.numpy()
    return array if hasattr(array, "shape") else np.asarray(array)


def _as_stimuli(stimuli: Any) -> tuple[StimulusSet, bool]:
    """The stimuli, and whether they have names of their own."""
    if isinstance(stimuli, StimulusSet):
        return stimuli, True
    if isinstance(stimuli, str | Path):
        path = Path(stimuli)
        if path.suffix.lower() == ".zip":
            return StimulusSet.from_zip(path), True
        if path.suffix.lower() in (".h5", ".hdf5"):
            return StimulusSet.from_hdf5(path), False
        return StimulusSet.from_folder(path), True
    if hasattr(stimuli, "shape"):
        return StimulusSet.from_images(np.asarray(_as_numpy(stimuli))), False
    entries = list(stimuli)
    if entries and all(isinstance(entry, str) for entry in entries):
        files = [entry for entry in entries if Path(entry).suffix.lower() in IMAGE_SUFFIXES]
        if len(files) < len(entries):
            return StimulusSet.from_sentences(entries), False
    return StimulusSet.from_images(entries), any(isinstance(entry, str | Path) for entry in entries)


def _shown(ids: np.ndarray, rows: int, stimuli: StimulusSet, named: bool) -> tuple[list[str], StimulusSet]:
    """Stimulus of each row, and the stimuli, renamed where the ids are their names."""
    if ids.shape != (rows,):
        raise ValueError(f"stimulus_ids has shape {ids.shape}; responses has {rows} rows: give one id per row.")
    if np.issubdtype(ids.dtype, np.integer) and not set(map(str, ids)) <= set(stimuli.ids):
        if ids.min() < 0 or ids.max() >= len(stimuli):
            raise ValueError(
                f"stimulus_ids runs from {ids.min()} to {ids.max()}; positions of {len(stimuli)} stimuli run from 0 "
                f"to {len(stimuli) - 1}. Subtract 1 if they count from 1."
            )
        return [stimuli.ids[position] for position in ids], stimuli
    shown = [str(one) for one in ids]
    if not named and rows == len(stimuli) == len(set(shown)) and not set(shown) & set(stimuli.ids):
        stimuli = StimulusSet(shown, stimuli.source, stimuli.kind)
    return shown, stimuli


def _check_finite(recording: Recording) -> None:
    infinite, finite = 0, False
    for _, block in recording.unit_blocks(_UNITS_PER_BLOCK):
        infinite += int(np.isinf(block).sum())
        finite = finite or bool(np.isfinite(block).any())
    if infinite:
        raise ValueError(f"responses holds {infinite} infinite values; write NaN where nothing was recorded.")
    if not finite:
        raise ValueError("responses is NaN throughout; at least some values are needed.")
