"""From stimuli to batches, ahead of the pass that needs them."""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
import types
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import torch

from ....datasets.sources import Items, Rows
from ....datasets.stimuli import StimulusSet
from ..registry import Inputs
from ..vision import stacked

_MANY = 512  # stimuli from which on starting processes pays
_READING = (ValueError, OSError)  # what a stimulus that cannot be read raises
_T = TypeVar("_T")


@dataclass(frozen=True)
class Batch:
    """Stimuli that go through the model together.

    Attributes
    ----------
    rows : list of int
        Their positions.
    tensors : mapping
        What the module reads, as the inputs make it; decoded images still lack ``inputs.finish``.
    unreadable : mapping of int to str
        Positions of stimuli that were to be among them, and why they are not.
    """

    rows: list[int]
    tensors: Mapping[str, Any]
    unreadable: Mapping[int, str] = field(default_factory=dict)


def by_item(inputs: Inputs) -> bool:
    """Whether some stimuli can be read without the others.

    Inputs say so by a method ``decode`` (images, one by one), a method ``gather`` (words, with the context that they
    need) or an attribute ``by_item``, where what a stimulus becomes does not depend on the stimuli beside it. All
    others are read as one sequence, from its start: the columns of a table depend on all of its rows.
    """
    return any(hasattr(inputs, name) for name in ("decode", "gather")) or bool(getattr(inputs, "by_item", False))


def batches(
    inputs: Any, stimuli: StimulusSet, blocks: Iterable[Sequence[int]], size: int, workers: int, skip: bool
) -> Iterator[Batch]:
    """Batches that do not cross the ends of blocks.

    Parameters
    ----------
    inputs : Inputs
        For which `by_item` holds.
    stimuli : StimulusSet
    blocks : iterable of sequence of int
        Positions of stimuli; taken one at a time as they are needed.
    size : int
        Stimuli of a batch.
    workers : int
        Processes that decode; less than 2 for none.
    skip : bool
        Leave out what cannot be read instead of raising its error.
    """
    if not hasattr(inputs, "decode"):
        for block in blocks:
            yield from _of_block(inputs, stimuli, list(block), size, skip)
        return
    tasks = (list(block[i : i + size]) for block in blocks for i in range(0, len(block), size))
    if workers < 2:
        yield from (_decoded(inputs, stimuli, rows, skip) for rows in tasks)
    else:
        yield from _by_processes(inputs, stimuli, tasks, workers, skip)


def _decoded(inputs: Any, stimuli: StimulusSet, rows: list[int], skip: bool) -> Batch:
    try:
        return Batch(rows, {"x": stacked(stimuli, rows, inputs.decode(stimuli, rows))})
    except _READING as error:
        bad = _unreadable(inputs, stimuli, rows)
        if not bad:  # each can be read, but not all together
            raise
        if not skip:
            if len(bad) == 1:
                raise
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(
                f"{next(iter(bad.values()))} So are {len(bad) - 1} more of the {len(rows)} read with it; "
                "on_error='skip' leaves them out"
            ) from error
    kept = [row for row in rows if row not in bad]
    return Batch(kept, {"x": stacked(stimuli, kept, inputs.decode(stimuli, kept))} if kept else {}, bad)


def _of_block(inputs: Inputs, stimuli: StimulusSet, rows: list[int], size: int, skip: bool) -> Iterator[Batch]:
    left = rows
    while left:
        try:
            for found, tensors in _of_rows(inputs, stimuli, left, size):
                gone = set(found)
                left = [row for row in left if row not in gone]
                yield Batch(found, tensors)
            return
        except _READING:
            bad = _unreadable(inputs, stimuli, left) if skip else {}
            if not bad:
                raise
        left = [row for row in left if row not in bad]
        yield Batch([], {}, bad)


def _of_rows(
    inputs: Any, stimuli: StimulusSet, rows: list[int], size: int
) -> Iterator[tuple[list[int], Mapping[str, Any]]]:
    """Batches of some stimuli alone; words need those around them, too."""
    if hasattr(inputs, "gather"):
        yield from inputs.batches(stimuli, size, rows)
        return
    for places, tensors in inputs.batches(stimuli[rows], size):
        yield [rows[place] for place in places], tensors


def _unreadable(inputs: Any, stimuli: StimulusSet, rows: Sequence[int]) -> dict[int, str]:
    """Positions of stimuli that cannot be read even by themselves, and why."""
    bad = {}
    for row in rows:
        try:
            alone(inputs, stimuli, row)
        except _READING as error:
            bad[row] = str(error)
    return bad


def alone(inputs: Any, stimuli: StimulusSet, row: int) -> Batch:
    """One stimulus as a batch."""
    return together(inputs, stimuli, [row])


def together(inputs: Any, stimuli: StimulusSet, rows: list[int]) -> Batch:
    """Some stimuli as one batch, or those of them that can be in one."""
    if hasattr(inputs, "decode"):
        return Batch(rows, {"x": stacked(stimuli, rows, inputs.decode(stimuli, rows))})
    return Batch(*next(iter(_of_rows(inputs, stimuli, rows, len(rows)))))


# -------------------------------------------------------------------------------------------------- ahead


def prefetched(source: Generator[_T, None, None]) -> Generator[_T, None, None]:
    """Items of a generator that a thread runs one item ahead; it is closed together with what is returned.

    Decoders and tensor operations let other threads run, so one thread hides the reading behind the pass without
    the second copy of everything that a process would hold.
    """
    ahead: queue.Queue[tuple[str, Any]] = queue.Queue(1)
    stopped = threading.Event()

    def put(what: str, item: Any) -> None:
        while not stopped.is_set():
            try:
                ahead.put((what, item), timeout=0.1)
                return
            except queue.Full:
                continue

    def fill() -> None:
        try:
            for item in source:
                put("item", item)
                if stopped.is_set():
                    break
                del item
            put("end", None)
        except BaseException as error:  # whatever it is, it belongs to whoever waits for the next item
            put("error", error)
        finally:
            source.close()

    thread = threading.Thread(target=fill, name="neuralign-loader", daemon=True)
    thread.start()
    try:
        while True:
            what, item = ahead.get()
            if what == "error":
                raise item
            if what == "end":
                return
            yield item
            del item
    finally:
        stopped.set()
        thread.join()


# ---------------------------------------------------------------------------------------------- processes


def pick_workers(workers: int | None, inputs: Inputs, stimuli: StimulusSet, device: torch.device) -> int:
    """How many processes decode.

    On the CPU none unless they are asked for: they would take the cores of the pass. On a GPU one per core, at most
    16, where many stimuli have to be decoded from files.

    Raises
    ------
    ValueError
        If `workers` is not a whole number, at least 0.
    """
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 0):
        raise ValueError(f"workers={workers!r}; expected a whole number, at least 0")
    if workers is None:
        pays = device.type != "cpu" and len(stimuli) >= _MANY and not isinstance(stimuli.source, Rows | Items)
        workers = min(16, os.cpu_count() or 1) if pays else 0
    return workers if workers > 1 and hasattr(inputs, "decode") and _travels(inputs, type(stimuli.source)) else 0


def _travels(*things: Any) -> bool:
    """Whether another process can be given these: they pickle, and nothing of them is defined in the script."""
    try:
        return b"__main__" not in pickle.dumps(things)
    except (pickle.PicklingError, TypeError, AttributeError):
        return False


_GIVEN: list[Any] = []  # inputs, stimuli and skip of a worker process


def _begin(*given: Any) -> None:
    torch.set_num_threads(1)
    _GIVEN[:] = given


def _work(rows: list[int]) -> Batch:
    inputs, stimuli, skip = _GIVEN
    return _decoded(inputs, stimuli, rows, skip)


def _by_processes(
    inputs: Inputs, stimuli: StimulusSet, tasks: Iterator[list[int]], workers: int, skip: bool
) -> Iterator[Batch]:
    # Spawned and not forked: a fork of a process whose torch has threads may never return from its first operation.
    context = torch.multiprocessing.get_context("spawn")  # tensors come back in shared memory
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(inputs, stimuli, skip))
    ahead: deque[Future[Batch]] = deque()

    def submit(n: int) -> None:
        for rows in islice(tasks, n):
            with unnamed_script():  # which may start one more process
                ahead.append(pool.submit(_work, rows))

    try:
        submit(2 * workers)
        while ahead:
            yield ahead.popleft().result()
            submit(1)
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def unnamed_script() -> Iterator[None]:
    """Processes that start here do not run the user's script again; without a guard it would extract in each."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
