"""The noun `StimulusSet`: what was shown, read or heard, in order, with a content hash."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from .errors import unknown
from .media import (
    IMAGE_SUFFIXES,
    as_rgb,
    as_uint8,
    check_channels,
    check_stack,
    decode_image,
    decode_sound,
    existing_files,
    is_image_file,
    short_names,
)
from .selection import as_list, positions
from .sources import Files, Hdf5Rows, Item, Items, Rows, Source, ZipMembers, digest_item, open_zip

if TYPE_CHECKING:
    from PIL.Image import Image

KINDS = ("image", "sentence", "word", "sound")


class StimulusSet:
    """Ordered stimuli with unique ids, read when asked for.

    Parameters
    ----------
    ids : sequence of str
        Unique names, one per stimulus.
    source : Source
        Where the items are read from.
    kind : {"image", "sentence", "word", "sound"}
    table : pandas.DataFrame, optional
        Annotations, one row per stimulus; the index holds the ids (in any order), or is 0, 1, ... in the
        order of `ids`.
    objects : pandas.DataFrame, optional
        What is in the scenes: one row per object, column ``stimulus`` with the id, and any others (category,
        x, y, size, ...).
    name : str

    Notes
    -----
    Frozen by convention: every method returns a new object.
    """

    def __init__(
        self,
        ids: Sequence[str],
        source: Source,
        kind: str,
        table: pd.DataFrame | None = None,
        objects: pd.DataFrame | None = None,
        name: str = "",
    ):
        self.ids: tuple[str, ...] = tuple(str(one) for one in ids)
        if kind not in KINDS:
            raise ValueError(unknown("kind", kind, KINDS))
        if len(self.ids) != len(source):
            raise ValueError(f"ids has {len(self.ids)} names for {len(source)} stimuli; give each its own.")
        if len(self.ids) == 0:
            raise ValueError("a StimulusSet needs at least one stimulus; found none.")
        self._index = pd.Index(self.ids, dtype=object)
        if not self._index.is_unique:
            twice = self._index[self._index.duplicated()].unique()
            raise ValueError(f"ids must be unique; {len(twice)} occur more than once, the first is {twice[0]!r}.")
        self.source = source
        self.kind = kind
        self.name = name
        self.table = _annotations(table, self._index)
        self.objects = _objects(objects, self._index)

    # ---------------------------------------------------------------------------------------- constructors

    @classmethod
    def from_images(
        cls,
        images: np.ndarray | Sequence[Any],
        ids: Sequence[str] | None = None,
        table: pd.DataFrame | None = None,
        objects: pd.DataFrame | None = None,
        name: str = "",
    ) -> StimulusSet:
        """Images in memory, or a list of image files.

        Parameters
        ----------
        images : array (stimulus, height, width, 3) or (stimulus, height, width), or a list
            uint8, or floats within [0, 1], which become ``round(255 * value)``. A list may hold arrays of
            different sizes, PIL images (of any mode), or paths of image files (all paths or none).
        ids : sequence of str, optional
            Default: file stems for paths, else "image-00001", ...

        Raises
        ------
        ValueError
            Another shape, dtype or range.
        """
        source: Source
        if isinstance(images, np.ndarray):
            check_stack(images.shape, "images")
            source = Rows(as_uint8(images, "images"))
        else:
            entries = list(images)
            paths = [isinstance(entry, str | Path) for entry in entries]
            if entries and all(paths):
                files = existing_files(entries, "images")
                ids = short_names(files) if ids is None else ids
                source = Files(files)
            elif any(paths):
                raise ValueError("images mixes paths with arrays; give only one of them.")
            else:
                arrays = [np.asarray(as_rgb(e) if hasattr(e, "getexif") else e) for e in entries]
                for array in arrays:
                    check_channels(array.shape, "images")
                source = Items([as_uint8(array, f"images[{i}]") for i, array in enumerate(arrays)])
        return cls(_numbered("image", source) if ids is None else ids, source, "image", table, objects, name)

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        pattern: str | None = None,
        table: pd.DataFrame | None = None,
        objects: pd.DataFrame | None = None,
        name: str = "",
    ) -> StimulusSet:
        """Image files below a folder, sorted by their path in it.

        Parameters
        ----------
        path : folder
        pattern : str, optional
            Glob pattern within the folder, for instance ``"test/*.png"``; default all images at any depth.

        Notes
        -----
        Ids are file names without suffix; where two files share one, paths within the folder without suffix.
        """
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
        return cls(short_names(found), Files([folder / file for file in found]), "image", table, objects, name)

    @classmethod
    def from_zip(
        cls,
        path: str | Path,
        table: pd.DataFrame | None = None,
        objects: pd.DataFrame | None = None,
        name: str = "",
    ) -> StimulusSet:
        """Image members of a zip archive, sorted by name; read without unpacking.

        ``__MACOSX/`` entries and dot files are not stimuli. Ids as in :meth:`from_folder`.

        Raises
        ------
        FileNotFoundError
            No such file.
        ValueError
            The file is no zip archive, or was cut off, or holds no images.
        """
        archive = Path(path)
        with open_zip(archive) as file:
            files = (member.filename for member in file.infolist() if not member.is_dir())
            members = sorted(member for member in files if is_image_file(Path(member)))
        if not members:
            raise ValueError(f"{archive} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
        ids = short_names([Path(member) for member in members])
        return cls(ids, ZipMembers(archive, members), "image", table, objects, name)

    @classmethod
    def from_hdf5(
        cls,
        path: str | Path,
        dataset: str | None = None,
        ids: Sequence[str] | None = None,
        table: pd.DataFrame | None = None,
        objects: pd.DataFrame | None = None,
        name: str = "",
    ) -> StimulusSet:
        """Images in an HDF5 dataset, read by rows.

        Parameters
        ----------
        path : HDF5 file
        dataset : str, optional
            Name of a uint8 dataset (stimulus, height, width, 3) or (stimulus, height, width); default the
            only such four-dimensional one.

        Raises
        ------
        ValueError
            No such dataset, or one whose values lie in other files.
        """
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
            source = Hdf5Rows(path, key, np.arange(len(stack)))
        return cls(_numbered("image", source) if ids is None else ids, source, "image", table, objects, name)

    @classmethod
    def from_sentences(
        cls,
        sentences: Sequence[str],
        ids: Sequence[str] | None = None,
        table: pd.DataFrame | None = None,
        name: str = "",
    ) -> StimulusSet:
        """Sentences (or passages), one stimulus each; ids "sentence-00001", ..."""
        texts = _texts(sentences, "sentences")
        ids = _numbered("sentence", texts) if ids is None else ids
        return cls(ids, Items(texts), "sentence", table, name=name)

    @classmethod
    def from_words(
        cls,
        words: Sequence[str],
        onsets: Sequence[float] | np.ndarray,
        durations: Sequence[float] | np.ndarray | None = None,
        runs: Sequence[object] | np.ndarray | None = None,
        name: str = "",
    ) -> StimulusSet:
        """Words of a continuous text with their times; ids "word-00001", ...

        Parameters
        ----------
        words : sequence of str
        onsets, durations : array-like (word,)
            Seconds, from the start of the run.
        runs : array-like (word,), optional
            Label of the run of each word; default "1".

        Notes
        -----
        The table has columns word, onset, duration (NaN when not given) and run (str).
        """
        texts = _texts(words, "words")
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
        table = pd.DataFrame({"word": texts, **columns})
        return cls(_numbered("word", texts), Items(texts), "word", table, name=name)

    @classmethod
    def from_sounds(
        cls,
        sounds: Sequence[np.ndarray | str | Path],
        sampling_rate: int | None = None,
        ids: Sequence[str] | None = None,
        table: pd.DataFrame | None = None,
        name: str = "",
    ) -> StimulusSet:
        """Sounds: sample arrays, or paths of wav files (which carry their own sampling rate).

        Parameters
        ----------
        sounds : list of arrays (sample,) or (sample, channel), or of paths
            Floats within [-1, 1], or integers of full scale.
        sampling_rate : int
            Hertz, of the arrays; not used for wav files.
        """
        entries = list(sounds)
        source: Source
        if entries and all(isinstance(entry, str | Path) for entry in entries):
            files = existing_files(cast("list[Path]", entries), "sounds")
            source = Files(files)
            ids = short_names(files) if ids is None else ids
        else:
            if sampling_rate is None:
                raise ValueError("sampling_rate is missing: arrays do not carry one; give it in hertz.")
            source = Items([(np.asarray(entry), int(sampling_rate)) for entry in entries])
        return cls(_numbered("sound", source) if ids is None else ids, source, "sound", table, name=name)

    # ------------------------------------------------------------------------------------ order and subset

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __contains__(self, one: object) -> bool:
        return one in self._index

    def __repr__(self) -> str:
        title = f" {self.name!r}" if self.name else ""
        columns = f", table: {', '.join(map(str, self.table.columns))}" if len(self.table.columns) else ""
        return f"<StimulusSet{title}: {len(self)} {self.kind}s, {self.ids[0]} to {self.ids[-1]}{columns}>"

    def index(self, ids: str | Iterable[str]) -> np.ndarray:
        """Positions of ids.

        Returns
        -------
        ndarray of int, shape (id,)

        Raises
        ------
        ValueError
            An id that is not in the set (with the nearest ones).
        """
        wanted = [str(one) for one in as_list(ids)]
        found = self._index.get_indexer(pd.Index(wanted, dtype=object))
        if (found < 0).any():
            absent = [one for one, position in zip(wanted, found, strict=True) if position < 0]
            count = f"{len(absent)} of {len(wanted)} ids are not in the set: " if len(wanted) > 1 else ""
            raise ValueError(count + unknown("stimulus", absent[0], self.ids))
        return found

    def select(self, ids: str | Iterable[str]) -> StimulusSet:
        """The stimuli with these ids, in this order."""
        return self._subset(self.index(ids))

    def __getitem__(self, key: object) -> StimulusSet:
        """Subset by ids, mask, slice or positions, in that order."""
        if isinstance(key, str):
            return self.select(key)
        if not isinstance(key, slice):
            first = next(iter(as_list(key)), None)
            if isinstance(first, str):
                return self.select(as_list(key))
        return self._subset(positions(key, len(self), "stimuli"))

    def _subset(self, rows: np.ndarray) -> StimulusSet:
        ids = [self.ids[row] for row in rows]
        objects = self.objects
        if objects is not None:
            objects = objects[objects["stimulus"].isin(ids)]
        source, table = self.source.subset(rows), self.table.iloc[rows]
        subset = StimulusSet(ids, source, self.kind, table, objects, self.name)
        if "digests" in self.__dict__:
            subset.__dict__["digests"] = tuple(self.digests[row] for row in rows)
        return subset

    # ----------------------------------------------------------------------------------------- the content

    def image(self, index: int) -> Image:
        """The image at a position as a PIL RGB image."""
        self._require("image", "image()")
        [position] = positions(index, len(self), "index")
        return self._decode(int(position), next(self._items(np.array([position]))))

    def iter_images(self) -> Iterator[Image]:
        """RGB images in order, one at a time; an archive or HDF5 file is opened once.

        For a batch, ``stimuli[rows].iter_images()``.
        """
        self._require("image", "iter_images()")
        rows = range(len(self))
        return (self._decode(row, item) for row, item in zip(rows, self._items(np.arange(len(self))), strict=True))

    def images(self, ids: Iterable[str] | None = None, size: int | None = None) -> np.ndarray:
        """Images as one array.

        Parameters
        ----------
        ids : iterable of str, optional
            Default all, in order.
        size : int, optional
            Resize whole images (no crop) to ``size`` x ``size`` pixels by antialiased bicubic interpolation.

        Returns
        -------
        ndarray of uint8, shape (id, height, width, 3)
            RGB.

        Raises
        ------
        ValueError
            Images of different sizes without `size`; an image that cannot be decoded (names id and file).
        """
        from PIL.Image import Resampling

        self._require("image", "images()")
        rows = np.arange(len(self)) if ids is None else self.index(ids)
        out = np.empty((0, 0, 0, 3), dtype=np.uint8)
        for position, (row, item) in enumerate(zip(rows, self._items(rows), strict=True)):
            image = self._decode(int(row), item)
            if size is not None and image.size != (size, size):
                image = image.resize((size, size), Resampling.BICUBIC)
            if position == 0:
                out = np.empty((len(rows), image.height, image.width, 3), dtype=np.uint8)
            elif (image.height, image.width) != out.shape[1:3]:
                first = self.ids[rows[0]]
                raise ValueError(
                    f"images differ in size: {first!r} is {out.shape[2]} x {out.shape[1]} pixels, "
                    f"{self.ids[row]!r} is {image.width} x {image.height}; give size= to resize them."
                )
            out[position] = np.asarray(image)
        return out

    def texts(self, ids: Iterable[str] | None = None) -> list[str]:
        """Sentences or words, in order."""
        if self.kind not in ("sentence", "word"):
            raise ValueError(f"texts() needs sentences or words; these stimuli are {self.kind}s.")
        rows = np.arange(len(self)) if ids is None else self.index(ids)
        return [str(item) for item in self._items(rows)]

    def sound(self, index: int) -> tuple[np.ndarray, int]:
        """Samples and sampling rate of the sound at a position.

        Returns
        -------
        samples : ndarray of float32, shape (sample,) or (sample, channel)
            Within [-1, 1].
        rate : int
            Hertz.
        """
        self._require("sound", "sound()")
        [position] = positions(index, len(self), "index")
        item = next(self._items(np.array([position])))
        try:
            return decode_sound(cast("bytes | tuple[np.ndarray, int]", item))
        except ValueError as error:
            raise ValueError(self._unreadable(int(position), error)) from error

    def _items(self, rows: np.ndarray) -> Iterator[Item]:
        """Items at positions; a failing read names the stimulus and its file."""
        items = self.source.read_many(rows)
        for row in rows:
            try:
                yield next(items)
            except FileNotFoundError as error:
                raise FileNotFoundError(self._unreadable(int(row), error)) from error
            except (OSError, BadZipFile, zlib.error, EOFError, RuntimeError, KeyError) as error:
                raise ValueError(self._unreadable(int(row), error)) from error

    def _decode(self, row: int, item: Item) -> Image:
        try:
            return decode_image(cast("bytes | np.ndarray", item))
        except ValueError as error:
            raise ValueError(self._unreadable(row, error)) from error

    def _unreadable(self, row: int, error: Exception) -> str:
        return f"stimulus {self.ids[row]!r} ({self.source.where(row)}) cannot be read: {error}. Fetch it again."

    def _require(self, kind: str, method: str) -> None:
        if self.kind != kind:
            raise ValueError(f"{method} needs {kind}s; these stimuli are {self.kind}s.")

    # ---------------------------------------------------------------------------------------------- hashes

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of every item: bytes of files; dtype, shape and values of arrays; UTF-8 of texts."""
        return tuple(digest_item(item) for item in self._items(np.arange(len(self))))

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over kind, ids and items in order: equal for equal stimuli, whatever they are read from."""
        digest = hashlib.sha256(self.kind.encode())
        for one, item in zip(self.ids, self.digests, strict=True):
            digest.update(f"\n{len(one)} {one} {item}".encode())
        return digest.hexdigest()

    @cached_property
    def table_hash(self) -> str:
        """SHA-256 over the annotations `table` and `objects`, which `content_hash` leaves out; 1 is not "1"."""
        from .storage import cell_texts

        digest = hashlib.sha256("\n".join(self.ids).encode())
        for table in (self.table, self.objects):
            for column, cells in () if table is None else table.items():
                digest.update(f"\n{column}: {','.join(cell_texts(cells))}".encode())
            digest.update(b"\n\n")
        return digest.hexdigest()


def _annotations(table: pd.DataFrame | None, index: pd.Index) -> pd.DataFrame:
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


def _objects(objects: pd.DataFrame | None, index: pd.Index) -> pd.DataFrame | None:
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


def _numbered(kind: str, items: Source | Sequence[Any]) -> list[str]:
    return [f"{kind}-{number:05d}" for number in range(1, len(items) + 1)]


def _texts(texts: Sequence[str], argument: str) -> list[str]:
    if isinstance(texts, str):
        raise ValueError(f"{argument} is one string; give a list of strings.")
    entries = list(texts)
    for position, text in enumerate(entries):
        if not isinstance(text, str):
            raise ValueError(f"{argument}[{position}] is {type(text).__name__} {text!r}; expected a string.")
    return [str(text) for text in entries]
