"""Blocks of units as tasks for an executor: processes, a Dask cluster or a queue of jobs; and fits that resume.

Every block of units is a task of its own, a pure function of the design, the responses of the block and what is
asked. The design travels by the name of a file, responses on disk by the name of theirs. The numbers are those of one
process, because a block is computed by the same products wherever it is: bit for bit on machines of one kind with as
many threads, within rounding on others.
"""

from __future__ import annotations

import hashlib
import pickle
import threading
import uuid
import warnings
import zipfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np

from ...datasets.storage import atomic, open_hdf5
from ..features.digest import digest_of
from .assemble import Run, here
from .design import SpectralDesign
from .design_file import inputs_digest, known_spectra, load_design, save_design, take_spectra
from .responses import Responses
from .stream import BlockFit, BlockFitter, Task

_UNKNOWN = 64  # blocks in flight where an executor does not tell how many workers it has
_LOST = {"KilledWorker", "UncompletedJobError"}  # of Dask and submitit, which may not be installed


@contextmanager
def runner(executor: Any = None, folder: str | Path | None = None) -> Iterator[Run]:
    """What carries out the blocks of one fit: `fit_units(..., run=run)`.

    Parameters
    ----------
    executor : concurrent.futures.Executor, or None
        Anything with ``submit(function, *arguments)`` that returns something with ``result()``, such as a
        ProcessPoolExecutor, an AutoExecutor of submitit or a Dask client. None computes in this process. At most two
        blocks for each worker are under way at a time.
    folder : str or Path, optional
        Where the design and finished blocks are written; on a file system that all workers see. A folder that is
        given makes the fit resume: after an interruption, the same fit with the same folder reads the blocks that had
        been finished. They are known by a hash of their responses, the design and the question, so that nothing stale
        is read. When the fit is whole its blocks are removed; the design stays, for the next fit to the same
        features, until the folder is deleted. Without one, a temporary folder is used and removed.

    Yields
    ------
    Run

    Raises
    ------
    ValueError
        If `executor` cannot run tasks, or forks processes.

    Warns
    -----
    UserWarning
        Once, if workers were lost. Their blocks are submitted once more, then computed in this process.

    Notes
    -----
    Workers share the cores of a machine: give each its share, with
    ``ProcessPoolExecutor(8, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(2,))``, or
    OMP_NUM_THREADS in the environment of the workers (Dask's LocalCluster sets it to 1).

    A block is as wide as in one process that reads from the same place; a smaller `max_memory` makes more of them.
    """
    if executor is None and folder is None:
        yield here
        return
    executor = _checked_executor(executor)
    if folder is None:
        with TemporaryDirectory(prefix="neuralign-", ignore_cleanup_errors=True) as temporary:
            yield _Elsewhere(executor, Path(temporary), resumes=False)
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    elsewhere = _Elsewhere(executor, Path(folder).absolute(), resumes=True)
    yield elsewhere
    elsewhere.remove_blocks()


def _checked_executor(executor: Any) -> Any:
    if hasattr(executor, "get_executor"):  # a Dask client
        executor = executor.get_executor()
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise ValueError(
            f"executor={executor!r:.80}: expected an object with submit(function, *arguments), such as a "
            "ProcessPoolExecutor"
        )
    context = getattr(executor, "_mp_context", None)
    if context is not None and context.get_start_method() == "fork":
        raise ValueError(
            "executor forks processes, in which torch would wait forever for threads that were not copied; pass "
            "ProcessPoolExecutor(..., mp_context=multiprocessing.get_context('spawn'))"
        )
    return executor


# What travels to a worker


@dataclass(frozen=True)
class Shelved:
    """A design in a file.

    Attributes
    ----------
    path : str
        Its name holds a hash of its content where the fit can be resumed.
    resumes : bool
        Whether finished blocks are kept beside it.
    """

    path: str
    resumes: bool


@dataclass(frozen=True)
class OnDisk:
    """Responses in a file that every worker can open, (row, unit).

    Attributes
    ----------
    path : str
    dataset : str or None
        Of an HDF5 file; None for a memory map.
    layout : tuple of (dtype, shape, offset in bytes, order), or None
        Of a memory map.
    dtype : str or None
        To convert to.
    """

    path: str
    dataset: str | None
    layout: tuple[str, tuple[int, ...], int, str] | None
    dtype: str | None

    def read(self, part: slice) -> np.ndarray:
        """Some columns in memory."""
        if self.dataset is not None:
            with open_hdf5(self.path) as file:
                values = np.asarray(file[self.dataset][:, part])
        else:
            assert self.layout is not None
            dtype, shape, offset, order = self.layout
            array: np.ndarray = np.memmap(self.path, dtype, "r", offset, shape, order)  # type: ignore[call-overload]
            values = np.asarray(array[:, part])
        return values if self.dtype is None else values.astype(self.dtype, copy=False)


def describe(responses: Responses) -> OnDisk | None:
    """How a worker finds the responses by itself; None where it has to be sent their values."""
    array, recording = responses._source, responses._recording
    dtype = None if recording is None else np.dtype(np.float64 if array.dtype == np.float64 else np.float32).str
    if isinstance(array, h5py.Dataset):
        # What this process is writing, or holds in memory alone, is not in the file for others.
        if array.file.mode != "r" or array.file.driver == "core":
            return None
        return OnDisk(str(Path(array.file.filename).absolute()), array.name, None, dtype)
    if not isinstance(array, np.memmap) or array.filename is None or array.mode == "c":
        return None
    if isinstance(array.base, np.ndarray):  # a part of a map, whose offset is that of the whole
        return None
    if array.mode != "r":
        array.flush()
    order = "C" if array.flags.c_contiguous else "F"
    layout = (array.dtype.str, array.shape, int(array.offset), order)
    return OnDisk(str(Path(str(array.filename)).absolute()), None, layout, dtype)


def run_block(
    design: Shelved, source: OnDisk | np.ndarray, part: slice, task: Task, index: np.ndarray | None, ticket: str
) -> tuple[BlockFit, str | None]:
    """One block of units, in whatever process this is called.

    Parameters
    ----------
    design : Shelved
    source : OnDisk or ndarray, shape (row, unit)
        Where to read, or the values of the block.
    part : slice
        Units of the block.
    task : Task
    index : ndarray of int, shape (unit,), or None
        Penalties of the block chosen already.
    ticket : str
        One for each submission: some executors take equal calls for one, and would repeat the failure of the first.

    Returns
    -------
    BlockFit
    str or None
        Name of the file that the block is kept in.
    """
    values = source.read(part) if isinstance(source, OnDisk) else source
    return _finished(_fitter(design.path, task), design, values, part, index)


_of_thread = threading.local()  # a fitter works in memory of its own, one block at a time


def _fitter(path: str, task: Task) -> BlockFitter:
    """The fitter of this thread, which goes on from block to block."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"no design at {path}, as seen by a worker; pass a folder on a file system that all workers share"
        )
    key = (path, file.stat().st_mtime_ns, pickle.dumps(task))
    if getattr(_of_thread, "key", None) != key:
        _of_thread.fitter = BlockFitter(_design(*key[:2]), task)
        _of_thread.key = key
    return _of_thread.fitter


@lru_cache(maxsize=2)
def _design(path: str, written: int) -> SpectralDesign:
    return load_design(path)


# Blocks that are finished


def _finished(
    fitter: BlockFitter, design: Shelved, values: np.ndarray, part: slice, index: np.ndarray | None
) -> tuple[BlockFit, str | None]:
    """A block from its file, or else fitted and kept there."""
    if not design.resumes:
        return fitter.fit(values, part, index), None
    place = Path(design.path)
    key = digest_of([place.stem, fitter.task, part.start, part.stop, index, values])
    name = f"block-{key[:32]}.npz"
    block = _read_block(place.with_name(name), part)
    if block is None:
        block = fitter.fit(values, part, index)
        _write_block(place.with_name(name), block)
    return block, name


def _write_block(path: Path, block: BlockFit) -> None:
    members = {field.name: getattr(block, field.name) for field in fields(block) if field.name != "part"}
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{name: member for name, member in members.items() if member is not None})


def _read_block(path: Path, part: slice) -> BlockFit | None:
    """A finished block; None where there is none, or a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found: dict[str, Any] = {name: file[name] for name in file.files}
        members: dict[str, Any] = {field.name: found.get(field.name) for field in fields(BlockFit)}
        return BlockFit(**members | {"part": part, "n_doubtful": int(found["n_doubtful"])})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


# The side that submits


class _Elsewhere:
    """A `Run` whose blocks go through an executor, or through files, or both."""

    def __init__(self, executor: Any, folder: Path, resumes: bool):
        self._executor, self._folder, self._resumes = executor, folder, resumes
        self._shelf: tuple[SpectralDesign, Path, tuple[Any, ...]] | None = None
        self._names: set[str] = set()
        self._warned = False

    def __call__(
        self, design: SpectralDesign, responses: Responses, task: Task, width: int, index: np.ndarray | None
    ) -> Iterator[BlockFit]:
        shelved = self._shelved(design, task, scores=index is None)
        source = None if self._executor is None else describe(responses)
        fitter = BlockFitter(design, task)
        if self._executor is None:
            for part, values in responses.blocks(width):
                yield self._noted(_finished(fitter, shelved, values, part, _of(index, part)))
            return
        most = _in_flight(self._executor)
        waiting = deque((part, 0) for part in responses.slices(width))  # and how often it was lost
        under_way: list[tuple[Any, slice, int]] = []
        try:
            while waiting or under_way:
                while waiting and len(under_way) < most:
                    part, losses = waiting.popleft()
                    if losses == 2:
                        values = responses.read(part)
                        yield self._noted(_finished(fitter, shelved, values, part, _of(index, part)))
                        continue
                    sent = responses.read(part) if source is None else source
                    arguments = (shelved, sent, part, task, _of(index, part), uuid.uuid4().hex)
                    try:
                        under_way.append((self._executor.submit(run_block, *arguments), part, losses))
                    except BrokenExecutor as error:
                        self._lose(error)
                        waiting.appendleft((part, losses + 1))
                if not under_way:
                    continue
                future, part, losses = under_way.pop(_first_done([future for future, _, _ in under_way]))
                try:
                    block = self._noted(future.result())
                except Exception as error:
                    if not _is_loss(error):
                        raise
                    self._lose(error)
                    waiting.appendleft((part, losses + 1))
                else:
                    yield block
        finally:
            for future, _, _ in under_way:  # of a fit that has failed or was interrupted
                if hasattr(future, "cancel"):
                    future.cancel()

    def remove_blocks(self) -> None:
        """Remove the blocks of a fit that is whole."""
        for name in self._names:
            (self._folder / name).unlink(missing_ok=True)

    def _noted(self, result: tuple[BlockFit, str | None]) -> BlockFit:
        block, name = result
        if name is not None:
            self._names.add(name)
        return block

    def _lose(self, error: BaseException) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"a worker was lost ({type(error).__name__}: {str(error)[:200]}); its blocks are submitted again, and "
                "computed in this process if that fails too: nothing is lost but time",
                stacklevel=2,
            )

    def _shelved(self, design: SpectralDesign, task: Task, scores: bool) -> Shelved:
        """The design in a file, with all spectra that the task asks for."""
        if self._shelf is None or self._shelf[0] is not design:
            self._shelf = self._found(design) if self._resumes else None
        _prepare(design, task, scores)
        if self._shelf is None or self._shelf[2] != known_spectra(design):
            self._shelf = design, self._saved(design), known_spectra(design)
        return Shelved(str(self._shelf[1]), self._resumes)

    def _found(self, design: SpectralDesign) -> tuple[SpectralDesign, Path, tuple[Any, ...]] | None:
        """The spectra of an earlier fit, brought into the design.

        Weights are along axes whose signs are any, so that blocks of one fit must come from one decomposition.
        """
        inputs = inputs_digest(design)
        for path in sorted(self._folder.glob(f"design-{inputs[:32]}-*.pt")):
            try:
                known = load_design(path, design.device, mmap=False)
            except ValueError:  # damaged, or of another version
                continue
            if inputs_digest(known) == inputs:
                take_spectra(design, known)
                return design, path, known_spectra(known)
        return None

    def _saved(self, design: SpectralDesign) -> Path:
        """A new file; it is never written again, and its name holds a hash of its content, where others may read it."""
        draft = self._folder / f"{uuid.uuid4().hex}.pt"
        save_design(design, draft)
        if not self._resumes:
            return draft
        with draft.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        return draft.replace(self._folder / f"design-{inputs_digest(design)[:32]}-{content[:32]}.pt")


def _prepare(design: SpectralDesign, task: Task, scores: bool) -> None:
    """Compute all spectra that the blocks will ask for."""
    if scores and task.plan.method == "held-out":
        design.everything()
    elif scores:
        for layout in range(len(design.layouts)):
            design.trains(layout, task.plan.by_rows)
    design.whole(task.plan.by_rows)


def _of(index: np.ndarray | None, part: slice) -> np.ndarray | None:
    return None if index is None else index[part]


def _in_flight(executor: Any) -> int:
    """Two blocks for each worker, so that none waits for its next."""
    workers = getattr(executor, "_max_workers", None)
    if workers is None and hasattr(executor, "_client"):  # of Dask
        workers = sum(executor._client.nthreads().values())
    return 2 * workers if workers else _UNKNOWN


def _first_done(futures: list[Any]) -> int:
    """Position of one that is done; of the first, where only its result can be waited for."""
    if all(isinstance(future, Future) for future in futures):
        done = wait(futures, return_when=FIRST_COMPLETED).done
        return next(i for i, future in enumerate(futures) if future in done)
    return 0


def _is_loss(error: Exception) -> bool:
    """Whether a task failed because its worker did."""
    return isinstance(error, BrokenExecutor | CancelledError) or type(error).__name__ in _LOST
