"""The noun `StimulusSet`: what was shown, read or heard, in order, with a content hash."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from .errors import unknown
from .media import decode_clip, decode_image, decode_sound, stack_images
from .selection import as_list, positions
from .sources import Files, Item, Items, Source, digest_item
from .stimulus_sources import (
    checked_objects,
    checked_texts,
    clips_source,
    folder_source,
    frame_rates,
    hdf5_source,
    images_source,
    joined_table,
    numbered,
    sounds_source,
    words_table,
    zip_source,
)

if TYPE_CHECKING:
    from PIL.Image import Image

Decoded = TypeVar("Decoded")

KINDS = ("image", "sentence", "word", "sound", "clip")


class StimulusSet:
    """Ordered stimuli with unique ids, read when asked for.

    Parameters
    ----------
    ids : sequence of str
        Unique names, one per stimulus.
    source : Source
        Where the items are read from.
    kind : {"image", "sentence", "word", "sound", "clip"}
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
        self.table = joined_table(table, self._index)
        self.objects = checked_objects(objects, self._index)

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
        found, source = images_source(images)
        return cls(found if ids is None else ids, source, "image", table, objects, name)

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
        ids, source = folder_source(path, pattern)
        return cls(ids, source, "image", table, objects, name)

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
        ids, source = zip_source(path)
        return cls(ids, source, "image", table, objects, name)

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
        source = hdf5_source(path, dataset)
        return cls(numbered("image", source) if ids is None else ids, source, "image", table, objects, name)

    @classmethod
    def from_sentences(
        cls,
        sentences: Sequence[str],
        ids: Sequence[str] | None = None,
        table: pd.DataFrame | None = None,
        name: str = "",
    ) -> StimulusSet:
        """Sentences (or passages), one stimulus each; ids "sentence-00001", ..."""
        source = Items(checked_texts(sentences, "sentences"))
        return cls(numbered("sentence", source) if ids is None else ids, source, "sentence", table, name=name)

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
        table = words_table(words, onsets, durations, runs)
        source = Items(list(table["word"]))
        return cls(numbered("word", source), source, "word", table, name=name)

    @classmethod
    def from_sounds(
        cls,
        sounds: Sequence[np.ndarray | str | Path],
        sampling_rate: int | None = None,
        ids: Sequence[str] | None = None,
        table: pd.DataFrame | None = None,
        name: str = "",
    ) -> StimulusSet:
        """Sounds: sample arrays, or paths of sound files (which carry their own sampling rate).

        Parameters
        ----------
        sounds : list of arrays (sample,) or (sample, channel), or of paths
            Floats within [-1, 1], or integers of full scale.
        sampling_rate : int
            Hertz, of the arrays; not used for files.

        Notes
        -----
        Wav files are read by scipy, others by soundfile (``pip install 'neuralign[audio]'``).
        """
        found, source = sounds_source(sounds, sampling_rate)
        return cls(found if ids is None else ids, source, "sound", table, name=name)

    @classmethod
    def from_clips(
        cls,
        clips: np.ndarray | Sequence[Any],
        fps: float | Sequence[float] | np.ndarray | None = None,
        ids: Sequence[str] | None = None,
        table: pd.DataFrame | None = None,
        name: str = "",
    ) -> StimulusSet:
        """Video clips: arrays, or paths of files.

        Parameters
        ----------
        clips : array (stimulus, frame, height, width, 3), or a list
            uint8, or floats within [0, 1]. A list may hold arrays (frame, height, width, 3) or (frame, height,
            width) of different sizes, or paths: ``.npy``, ``.gif``, ``.webp``, and video files where PyAV is
            installed (``pip install 'neuralign[video]'``).
        fps : float or array-like (stimulus,), optional
            Frames per second; default what a file says of itself. It becomes the column ``fps`` of the table.
        ids : sequence of str, optional
            Default: file stems for paths, else "clip-00001", ...

        Raises
        ------
        ValueError
            Another shape, dtype or range, or a frame rate that is not positive.
        """
        found, source = clips_source(clips)
        made = cls(found if ids is None else ids, source, "clip", table, name=name)
        if fps is not None:
            made.table = made.table.assign(fps=frame_rates(fps, len(made)))
        elif "fps" in made.table:
            frame_rates(made.table["fps"].to_numpy(), len(made))
        return made

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
        return self._decode(int(position), next(self._items(np.array([position]))), decode_image)

    def iter_images(self) -> Iterator[Image]:
        """RGB images in order, one at a time; an archive or HDF5 file is opened once.

        For a batch, ``stimuli[rows].iter_images()``.
        """
        self._require("image", "iter_images()")
        rows = range(len(self))
        items = zip(rows, self._items(np.arange(len(self))), strict=True)
        return (self._decode(row, item, decode_image) for row, item in items)

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
        self._require("image", "images()")
        rows = np.arange(len(self)) if ids is None else self.index(ids)
        items = zip(rows, self._items(rows), strict=True)
        images = ((self.ids[row], self._decode(int(row), item, decode_image)) for row, item in items)
        return stack_images(images, len(rows), size)

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
        return self._decode(int(position), next(self._items(np.array([position]))), decode_sound)

    def clip(self, index: int) -> tuple[np.ndarray, float]:
        """Frames and frame rate of the clip at a position.

        Returns
        -------
        frames : ndarray of uint8, shape (frame, height, width, 3)
            RGB.
        fps : float
            Frames per second: the column ``fps`` of the table, else what the file says, else NaN.
        """
        self._require("clip", "clip()")
        [position] = positions(index, len(self), "index")
        frames, fps = self._decode(int(position), next(self._items(np.array([position]))), decode_clip)
        return frames, float(self.table["fps"].iloc[position]) if "fps" in self.table else fps

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

    def _decode(self, row: int, item: Item, decode: Callable[[Any], Decoded]) -> Decoded:
        try:
            return decode(item)
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

    def digests_by(self, known: Callable[[Path], str | None]) -> tuple[str, ...]:
        """As `digests`, without reading the files whose SHA-256 is known already.

        Parameters
        ----------
        known : callable
            From the path of a file to the SHA-256 of its bytes, or None where it is not known.
        """
        if "digests" not in self.__dict__ and isinstance(self.source, Files):
            found = [known(Path(self.source.where(row))) for row in range(len(self))]
            unread = np.flatnonzero([one is None for one in found])
            for row, item in zip(unread, self._items(unread), strict=True):
                found[row] = digest_item(item)
            self.__dict__["digests"] = tuple(cast("list[str]", found))
        return self.digests

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
