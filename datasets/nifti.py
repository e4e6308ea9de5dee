"""Volumes of NIfTI and MGH files, compressed or not, streamed once from the first to the last.

A compressed file cannot be read from the middle: asked for one slice of the last volume, a reader inflates all that
lies before it. So whoever needs some voxels of all volumes takes them in passing.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_SUFFIXES = (".nii", ".nii.gz", ".mgh", ".mgz")
_PIECE = 2**24
# No brain is larger; a header that says so is damaged or worse.
_LARGEST_VOLUME = 4 * 2**30


@dataclass(frozen=True)
class Volume:
    """What the header of a file of volumes says.

    Attributes
    ----------
    shape : (x, y, z)
    n : int
        Number of volumes; 1 for a file of three axes.
    dtype : numpy.dtype
        Of the stored values, in the byte order of this machine.
    slope, inter : float
        A value means ``slope * stored + inter``; 1 and 0 where the file says nothing.
    affine : ndarray (4, 4)
        From voxel indices, counted from 0, to millimetres.
    """

    shape: tuple[int, int, int]
    n: int
    dtype: np.dtype
    slope: float
    inter: float
    affine: np.ndarray

    @property
    def is_scaled(self) -> bool:
        return (self.slope, self.inter) != (1.0, 0.0)


def header(path: str | Path) -> Volume:
    """Shape, dtype, scaling and affine of a NIfTI or MGH file.

    Raises
    ------
    FileNotFoundError
    ValueError
        Another format, a header that is damaged, or values that are no plain numbers.
    """
    return _layout(Path(path))[0]


def volumes(path: str | Path, wanted: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """The stored values of every volume, in one pass through the file.

    Parameters
    ----------
    path : path
    wanted : ndarray of int (voxel,), optional
        Flat indices into a volume, with x running fastest (``order="F"`` of (x, y, z)); default all.

    Yields
    ------
    ndarray (voxel,)
        In the order of `wanted` and the stored dtype; `header` says how they are scaled.

    Raises
    ------
    ValueError
        Indices outside the volume; a file that is cut off (with the volume where it ends) or damaged.
    """
    path = Path(path)
    about, stored, offset = _layout(path)
    size = math.prod(about.shape)
    if wanted is not None:
        wanted = np.asarray(wanted)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= size):
            raise ValueError(
                f"wanted runs from {wanted.min()} to {wanted.max()}; a volume {about.shape} of {path} has voxels 0 to "
                f"{size - 1}."
            )
    with _opened(path) as file:
        _read(file, offset, path, "the header")
        for number in range(about.n):
            content = _read(file, size * stored.itemsize, path, f"volume {number + 1} of {about.n}")
            values = np.frombuffer(content, stored)
            values = values if wanted is None else values[wanted]
            yield values.astype(about.dtype)


def mask(path: str | Path) -> np.ndarray:
    """The values of a file of one volume: a mask, an atlas, a map.

    Returns
    -------
    ndarray (x, y, z)
        Of the stored dtype where the file does not scale, else float; NaN is kept.

    Raises
    ------
    ValueError
        The file holds several volumes.
    """
    about = header(path)
    if about.n != 1:
        raise ValueError(f"{path} holds {about.n} volumes {about.shape}; expected one, such as a mask or an atlas.")
    [values] = volumes(path)
    if about.is_scaled:
        values = values * about.slope + about.inter
    return values.reshape(about.shape, order="F")


def _layout(path: Path) -> tuple[Volume, np.dtype, int]:
    """The header, the dtype as it is stored, and the byte where values begin."""
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}.")
    if not path.name.endswith(_SUFFIXES):
        raise ValueError(f"{path} is no file of volumes by its name; expected {', '.join(_SUFFIXES)}.")
    proxy, affine = _proxy(path)
    stored = np.dtype(proxy.dtype)
    if stored.kind not in "iuf":
        raise ValueError(f"{path} holds {stored} values; expected integers or floats.")
    shape = tuple(int(n) for n in proxy.shape)
    if len(shape) < 3 or min(shape) < 1:
        raise ValueError(f"{path} has shape {shape}; expected (x, y, z) or (x, y, z, volume).")
    x, y, z = shape[:3]
    n_bytes = x * y * z * stored.itemsize
    if n_bytes > _LARGEST_VOLUME:
        raise ValueError(f"{path} says a volume is {(x, y, z)} {stored}, {n_bytes} bytes; no brain has so many.")
    slope, inter = float(proxy.slope), float(proxy.inter)
    about = Volume((x, y, z), math.prod(shape[3:]), stored.newbyteorder("="), slope, inter, affine)
    return about, stored, int(proxy.offset)


def _proxy(path: Path) -> tuple[Any, np.ndarray]:
    """nibabel's view of the file, of which only the header is read."""
    import nibabel

    kinds = (nibabel.Nifti1Image, nibabel.Nifti2Image, nibabel.MGHImage)
    try:
        image: Any = nibabel.load(path)
    except (
        *(nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError, zlib.error),
        *(OSError, EOFError, ValueError, TypeError, OverflowError),
    ) as error:
        raise ValueError(_damaged(path, str(error))) from error
    if type(image) not in kinds:
        raise ValueError(f"{path} is a {type(image).__name__}; expected one NIfTI or MGH file.")
    return image.dataobj, np.asarray(image.affine, float)


def _opened(path: Path) -> Any:
    return gzip.open(path) if path.suffix in (".gz", ".mgz") else path.open("rb")


def _read(file: Any, n_bytes: int, path: Path, what: str) -> bytearray:
    """Exactly so many bytes; a compressed file gives them in pieces."""
    content = bytearray()
    try:
        while len(content) < n_bytes:
            piece = file.read(min(_PIECE, n_bytes - len(content)))
            if not piece:
                break
            content += piece
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(_damaged(path, f"{error}, in {what}")) from error
    if len(content) < n_bytes:
        raise ValueError(_damaged(path, f"it ends in {what}: {len(content)} of {n_bytes} bytes"))
    return content


def _damaged(path: Path, why: str) -> str:
    return f"{path} ({path.stat().st_size} bytes) is cut off or damaged ({why}); get it again from its source."
