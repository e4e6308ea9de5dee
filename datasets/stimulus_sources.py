"""What the constructors of `StimulusSet` are given, turned into sources, ids and tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from .errors import unknown
from .media import (
    CLIP_SUFFIXES,
    IMAGE_SUFFIXES,
    as_frames,
    as_rgb,
    as_uint8,
    check_channels,
    check_stack,
    existing_files,
    is_image_file,
    short_names,
)
from .sources import Files, Hdf5Rows, Items, Rows, Source, ZipMembers, open_zip


def images_source(images: np.ndarray | Sequence[Any]) -> tuple[list[str], Source]:
    """Images in memory or image files, with names for them."""
    source: Source
    if isinstance(images, np.ndarray):
        check_stack(images.shape, "images")
        source = Rows(as_uint8(images, "images"))
    else:
        entries = list(images)
        files = _all_paths(entries, "images")
        if files:
            return short_names(files), Files(files)
        arrays = [np.asarray(as_rgb(e) if hasattr(e, "getexif") else e) for e in entries]
        for array in arrays:
            check_channels(array.shape, "images")
        source = Items([as_uint8(array, f"images[{i}]") for i, array in enumerate(arrays)])
    return numbered("image", source), source


def folder_source(path: str | Path, pattern: str | None) -> tuple[list[str], Source]:
    """Image files below a folder, sorted by their path in it."""
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}.")
    found = sorted(
        (
            file.relative_to(folder)
            for file in folder.glob(pattern or "**/*")
            if file.is_file() and is_image_file(file.relative_to(folder))
        ),
        key=lambda file: file.as_posix(),
    )
    if not found:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise FileNotFoundError(f"no images ({suffixes}) in {folder} match {pattern or '**/*'!r}.")
    return short_names(found), Files([folder / file for file in found])


def zip_source(path: str | Path) -> tuple[list[str], Source]:
    """Image members of a zip archive, sorted by name."""
    archive = Path(path)
    with open_zip(archive) as file:
        files = (member.filename for member in file.infolist() if not member.is_dir())
        members = sorted(member for member in files if is_image_file(Path(member)))
    if not members:
        raise ValueError(f"{archive} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    return short_names([Path(member) for member in members]), ZipMembers(archive, members)


def hdf5_source(path: str | Path, dataset: str | None) -> Source:
    """Images in an HDF5 dataset, by name or the only one that looks like images."""
    import h5py

    from .storage import open_hdf5, require_inside

    with open_hdf5(path) as file:
        arrays: dict[str, h5py.Dataset] = {}

        def collect(key: str, node: object) -> None:
            if isinstance(node, h5py.Dataset):
                arrays[key] = node

        file.visititems(collect)
        if dataset is None:
            stacks = [k for k, a in arrays.items() if a.ndim == 4 and a.shape[-1] == 3 and a.dtype == np.uint8]
            if len(stacks) != 1:
                raise ValueError(
                    f"{path} holds {len(stacks)} uint8 datasets of shape (n, height, width, 3): {stacks}; "
                    f"name the one to read with dataset=. The file has {sorted(arrays)[:20]}."
                )
            dataset = stacks[0]
        key = dataset.strip("/")
        if key not in arrays:
            raise ValueError(unknown("dataset", dataset, arrays))
        stack = arrays[key]
        if stack.dtype != np.uint8:
            raise ValueError(
                f"{path}:{key} is {stack.dtype} {stack.shape}; expected uint8 (stimulus, height, width, 3)."
            )
        check_stack(stack.shape, f"{path}:{key}")
        require_inside(stack)
        return Hdf5Rows(path, key, np.arange(len(stack)))


def clips_source(clips: np.ndarray | Sequence[Any]) -> tuple[list[str], Source]:
    """Clips in memory or files of clips, with names for them."""
    source: Source
    if isinstance(clips, np.ndarray) and clips.dtype != object:
        if clips.ndim != 5:
            raise ValueError(
                f"clips has shape {clips.shape}; expected (stimulus, frame, height, width, 3). Put a single clip in a "
                "list."
            )
        check_channels(clips.shape[2:], "clips")
        if clips.shape[1] == 0:
            raise ValueError(f"clips has shape {clips.shape}: clips without frames; leave them out.")
        source = Rows(as_uint8(clips, "clips"))
    else:
        entries = list(clips)
        files = _all_paths(entries, "clips")
        if files:
            strange = [file for file in files if file.suffix.lower() not in CLIP_SUFFIXES]
            if strange:
                raise ValueError(
                    f"{len(strange)} files of clips have no known suffix (first: {strange[0].name}); expected one of "
                    f"{', '.join(CLIP_SUFFIXES)}."
                )
            return short_names(files), Files(files)
        source = Items([as_frames(np.asarray(entry), f"clips[{i}]") for i, entry in enumerate(entries)])
    return numbered("clip", source), source


def sounds_source(sounds: Sequence[np.ndarray | str | Path], sampling_rate: int | None) -> tuple[list[str], Source]:
    """Sample arrays of one sampling rate, or sound files, with names for them."""
    entries = list(sounds)
    if entries and all(isinstance(entry, str | Path) for entry in entries):
        files = existing_files(cast("list[Path]", entries), "sounds")
        return short_names(files), Files(files)
    if sampling_rate is None:
        raise ValueError("sampling_rate is missing: arrays do not carry one; give it in hertz.")
    source = Items([(np.asarray(entry), int(sampling_rate)) for entry in entries])
    return numbered("sound", source), source


def words_table(
    words: Sequence[str],
    onsets: Sequence[float] | np.ndarray,
    durations: Sequence[float] | np.ndarray | None,
    runs: Sequence[object] | np.ndarray | None,
) -> pd.DataFrame:
    """Words with their times; columns word, onset, duration, run."""
    texts = checked_texts(words, "words")
    n = len(texts)
    columns = {
        "onset": np.asarray(onsets, dtype=float),
        "duration": np.full(n, np.nan) if durations is None else np.asarray(durations, dtype=float),
        "run": np.full(n, "1") if runs is None else np.asarray(runs).astype(str),
    }
    for argument, column in columns.items():
        if column.shape != (n,):
            raise ValueError(f"{argument}s has shape {column.shape} for {n} words; give one per word.")
    if not np.isfinite(columns["onset"]).all():
        n_bad = int((~np.isfinite(columns["onset"])).sum())
        raise ValueError(f"{n_bad} of {n} onsets are not finite numbers; leave those words out.")
    return pd.DataFrame({"word": texts, **columns})


def frame_rates(fps: float | Sequence[float] | np.ndarray, n: int) -> np.ndarray:
    """Frames per second of each clip, positive."""
    rates = np.asarray(fps, dtype=float)
    if rates.ndim == 0:
        rates = np.full(n, float(rates))
    if rates.shape != (n,):
        raise ValueError(f"fps has shape {rates.shape} for {n} clips; give one number, or one per clip.")
    if not (rates > 0).all() or not np.isfinite(rates).all():
        bad = rates[~(np.isfinite(rates) & (rates > 0))][0]
        raise ValueError(f"fps holds {bad:g}; expected frames per second above 0, or None where it is not known.")
    return rates


def _all_paths(entries: Sequence[Any], argument: str) -> list[Path]:
    """Existing files where all entries are paths, an empty list where none is."""
    paths = [isinstance(entry, str | Path) for entry in entries]
    if entries and all(paths):
        return existing_files(entries, argument)
    if any(paths):
        raise ValueError(f"{argument} mixes paths with arrays; give only one of them.")
    return []


def joined_table(table: pd.DataFrame | None, index: pd.Index) -> pd.DataFrame:
    """Annotations in the order of the ids."""
    if table is None:
        return pd.DataFrame(index=index)
    if len(table) != len(index):
        raise ValueError(f"table has {len(table)} rows for {len(index)} stimuli; give one row per stimulus.")
    if isinstance(table.index, pd.RangeIndex):
        return table.set_axis(index, axis=0)
    rows = table.index.astype(str)
    if not rows.is_unique or not rows.isin(index).all():
        absent = rows[~rows.isin(index)]
        example = f"for instance {absent[0]!r}" if len(absent) else "some occur twice"
        raise ValueError(f"the index of table must hold the stimulus ids; {example}. Use set_index(...).")
    return table.set_axis(rows, axis=0).loc[list(index)].set_axis(index, axis=0)


def checked_objects(objects: pd.DataFrame | None, index: pd.Index) -> pd.DataFrame | None:
    """Objects with their stimulus ids checked."""
    if objects is None:
        return None
    if "stimulus" not in objects.columns:
        raise ValueError(f"objects needs a column 'stimulus'; found {list(objects.columns)}.")
    objects = objects.assign(stimulus=objects["stimulus"].astype(str)).reset_index(drop=True)
    strangers = objects.loc[~objects["stimulus"].isin(index), "stimulus"]
    if len(strangers):
        raise ValueError(
            f"{len(strangers)} rows of objects name stimuli that are not in the set, first {strangers.iloc[0]!r}."
        )
    return objects


def numbered(kind: str, items: Source | Sequence[Any]) -> list[str]:
    """Ids of stimuli without names of their own."""
    return [f"{kind}-{number:05d}" for number in range(1, len(items) + 1)]


def checked_texts(texts: Sequence[str], argument: str) -> list[str]:
    """A list of strings, and nothing else."""
    if isinstance(texts, str):
        raise ValueError(f"{argument} is one string; give a list of strings.")
    entries = list(texts)
    for position, text in enumerate(entries):
        if not isinstance(text, str):
            raise ValueError(f"{argument}[{position}] is {type(text).__name__} {text!r}; expected a string.")
    return [str(text) for text in entries]
