"""One's own arrays as a Recording."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .axes import as_array, as_responses
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
        numpy array, torch tensor, table, list, memory map or h5py.Dataset. NaN, or a mask, marks what was not
        recorded.
    stimuli : StimulusSet, array, list or path
        Images as an array (stimulus, height, width, 3), uint8 or floats within [0, 1]; a list of sentences; a
        list of image files; a folder, zip archive or HDF5 file of images; or a StimulusSet.
    regions : sequence of str, one per unit, or one str for all
    stimulus_ids : sequence, one per presentation
        The stimulus of each row of responses; needed when stimuli were repeated or are in another order.
        Numbers are positions: rows of `stimuli`, from 0. Strings are ids (file names without suffix for files);
        where rows equal stimuli and these have no names of their own, they name them in order.
    times : array (time,)
        Seconds; needed when responses have a time axis.

    Returns
    -------
    Recording

    Raises
    ------
    ValueError
        Shapes that do not fit together (with both numbers and the mend), fewer than two stimuli, responses
        without a finite value or with an infinite one, positions outside the stimuli, or numbers that could as
        well be the ids of other stimuli ("1", "002").
    """
    responses = as_responses(responses, "(presentation, unit) or (presentation, unit, time)")
    stimuli, named = _as_stimuli(stimuli)
    shape = tuple(responses.shape)
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
        shown, stimuli = _shown(as_array(stimulus_ids), shape[0], stimuli, named)
    units = pd.DataFrame(index=range(shape[1]))
    if regions is not None:
        names = [regions] * shape[1] if isinstance(regions, str) else [str(name) for name in regions]
        if len(names) != shape[1]:
            raise ValueError(f"regions has {len(names)} names for {shape[1]} units; give one per unit.")
        units["region"] = names
    recording = Recording(responses, pd.DataFrame({"stimulus": shown}), units, times, stimuli)
    _check_finite(recording)
    return recording


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
        return StimulusSet.from_images(np.asarray(as_array(stimuli))), False
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
    ids = pd.Series(ids).infer_objects().to_numpy()
    if ids.dtype.kind in "iuf":
        return _at_positions(ids, stimuli), stimuli
    shown = [str(one) for one in ids]
    if not named and rows == len(stimuli) == len(set(shown)) and not set(shown) & set(stimuli.ids):
        stimuli = StimulusSet(shown, stimuli.source, stimuli.kind)
    return shown, stimuli


def _at_positions(numbers: np.ndarray, stimuli: StimulusSet) -> list[str]:
    """Ids of the stimuli at positions, which could not mean other stimuli as well."""
    whole = np.isfinite(numbers) & (numbers == np.rint(numbers))
    if not whole.all():
        raise ValueError(
            f"stimulus_ids holds {numbers[~whole][0]}; numbers are positions of stimuli, whole and from 0. Give ids "
            "as strings."
        )
    positions = numbers.astype(np.int64)
    inside = positions.min() >= 0 and positions.max() < len(stimuli)
    shown = [stimuli.ids[position] for position in positions] if inside else []
    # Files 1.png, 2.png, ... have ids that a number could mean as well, perhaps with zeros in front.
    numbered = {int(one): one for one in stimuli.ids if one.isdecimal()}
    if set(positions.tolist()) <= set(numbered) and shown != [numbered[one] for one in positions.tolist()]:
        raise ValueError(
            f"stimulus_ids are numbers, and so are the ids of the stimuli ({stimuli.ids[0]!r}, {stimuli.ids[1]!r}, "
            "...), where they mean other stimuli. For ids give strings just like these; for positions (rows of "
            "stimuli, from 0) give [stimuli.ids[i] for i in positions]."
        )
    if not inside:
        raise ValueError(
            f"stimulus_ids runs from {positions.min()} to {positions.max()}; numbers are positions, and those of "
            f"{len(stimuli)} stimuli run from 0 to {len(stimuli) - 1}. Subtract 1 if they count from 1 (index base "
            "1), or give ids as strings."
        )
    return shown


def _check_finite(recording: Recording) -> None:
    infinite, finite = 0, False
    for _, block in recording.unit_blocks(_UNITS_PER_BLOCK):
        infinite += int(np.isinf(block).sum())
        finite = finite or bool(np.isfinite(block).any())
    if infinite:
        raise ValueError(f"responses holds {infinite} infinite values; write NaN where nothing was recorded.")
    if not finite:
        raise ValueError("responses is NaN throughout; at least some values are needed.")
