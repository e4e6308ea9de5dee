"""Blocks of rows on their way from the pass to where they are kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from ..shards import Form

_PIECE = 2**22  # values that are looked through at a time: no mask as large as a block


class Store(Protocol):
    """Where the blocks of a layer go: an `Entry` on disk, or an array."""

    def done(self, holes: bool = False) -> set[int]: ...

    def claim(self, block: int) -> AbstractContextManager[bool]: ...

    def commit(self, block: int, values: np.ndarray, skipped: Collection[int] = ()) -> None: ...


class InMemory:
    """A layer in memory, with the manners of an `Entry`."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.array = np.empty((form.rows, *form.shape), form.dtype)
        self._done: dict[int, list[int]] = {}

    def done(self, holes: bool = False) -> set[int]:
        return {block for block, skipped in self._done.items() if holes or not skipped}

    def holes(self) -> list[int]:
        return sorted(row for rows in self._done.values() for row in rows)

    @contextmanager
    def claim(self, block: int) -> Iterator[bool]:
        yield block not in self.done()

    def read(self, holes: bool = False) -> np.ndarray:
        return self.array

    def commit(self, block: int, values: np.ndarray, skipped: Collection[int] = ()) -> None:
        self.array[slice(*self.form.span(block))] = values
        self._done[block] = list(skipped)


@dataclass
class _Open:
    """One block that is being filled."""

    start: int
    stop: int
    claims: ExitStack
    layers: set[str]
    left: int
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)


class Blocks:
    """Buffers of the blocks that are being computed; a thread commits those that are full.

    Parameters
    ----------
    stores : mapping of str to Store
    forms : mapping of str to Form
        Of equal rows and blocks.
    device : torch.device
        From which rows come; from a GPU they are copied beside the next pass.
    check : callable
        (layer, values, first row) -> None; raises on values that may not be kept.
    """

    def __init__(
        self,
        stores: Mapping[str, Store],
        forms: Mapping[str, Form],
        device: torch.device,
        check: Callable[[str, np.ndarray, int], None],
    ) -> None:
        self._stores, self.forms, self._check = stores, forms, check
        self._form = next(iter(forms.values()))
        self._open: dict[int, _Open] = {}
        self._free: list[dict[str, torch.Tensor]] = []
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._writer = ThreadPoolExecutor(1, "neuralign-writer")
        self._writing: Future[None] | None = None
        self.committed: set[int] = set()

    @property
    def layers(self) -> list[str]:
        return list(self.forms)

    def claim(self, block: int) -> bool:
        """Open a block for the layers that lack it, unless somebody else computes one of them."""
        claims, layers = ExitStack(), set()
        try:
            for layer, store in self._stores.items():
                if claims.enter_context(store.claim(block)):
                    layers.add(layer)
                elif block not in store.done():  # somebody is at it, and will want the other layers as well
                    layers.clear()
                    break
        except BaseException:
            claims.close()
            raise
        if not layers:
            claims.close()
            return False
        start, stop = self._form.span(block)
        self._open[block] = _Open(start, stop, claims, layers, stop - start)
        return True

    def wanted(self, rows: Collection[int]) -> set[str]:
        """Layers that are still to be computed for some of these rows."""
        found = [self._open[block].layers for block in self._blocks_of(rows) if block in self._open]
        return set().union(*found)

    def put(self, layer: str, rows: list[int], values: torch.Tensor) -> None:
        """Copy rows of a layer to their places; `values` may be overwritten as soon as this returns."""
        for block in self._blocks_of(rows):
            one = self._open.get(block)
            if one is None or layer not in one.layers:
                continue
            inside = [i for i, row in enumerate(rows) if one.start <= row < one.stop]
            part = values if len(inside) == len(rows) else values[inside]
            places = [rows[i] - one.start for i in inside]
            buffer = self._buffer(one, layer)
            if places == list(range(places[0], places[0] + len(places))):
                self._copy(buffer[places[0] : places[0] + len(places)], part)
            else:
                buffer[places] = part.to("cpu", buffer.dtype)

    def fill(self, rows: Collection[int], skipped: Collection[int] = ()) -> None:
        """Note that rows are in place, or never will be; a block with all of its rows is committed."""
        for row in skipped:
            if one := self._open.get(row // self._form.block):
                one.skipped.append(row)
                for layer in one.layers:
                    self._buffer(one, layer).numpy()[row - one.start] = 0
        counts: dict[int, int] = {}
        for row in (*rows, *skipped):
            counts[row // self._form.block] = counts.get(row // self._form.block, 0) + 1
        for block, n in counts.items():
            if one := self._open.get(block):
                one.left -= n
                if one.left == 0:
                    self._hand_over(block, self._open.pop(block))

    def finish(self) -> None:
        """Wait for the last commit; raises what it raised."""
        if self._writing is not None:
            self._writing.result()

    def close(self) -> None:
        """Leave what is not full to others."""
        with suppress(BaseException):  # what it raised was said by `finish`, or something else went wrong before
            self.finish()
        self._writer.shutdown()
        for one in self._open.values():
            one.claims.close()
        self._open.clear()

    # ------------------------------------------------------------------------------------------------------

    def _blocks_of(self, rows: Collection[int]) -> list[int]:
        return sorted({row // self._form.block for row in rows})

    def _buffer(self, one: _Open, layer: str) -> torch.Tensor:
        if not one.buffers and self._free:
            one.buffers = self._free.pop()
        if layer not in one.buffers:
            form = self.forms[layer]
            n = min(form.block, form.rows)
            dtype = torch.float16 if form.dtype == "float16" else torch.float32
            one.buffers[layer] = torch.empty((n, *form.shape), dtype=dtype, pin_memory=self._copies is not None)
        return one.buffers[layer]

    def _copy(self, place: torch.Tensor, values: torch.Tensor) -> None:
        if self._copies is None or values.device.type != "cuda":
            place.copy_(values)
            return
        values = values.to(place.dtype)  # on the device: half as much to copy
        if values.untyped_storage().nbytes() > 2 * values.nbytes:  # a view would keep the whole output alive
            values = values.clone()
        self._copies.wait_stream(torch.cuda.current_stream(values.device))
        with torch.cuda.stream(self._copies):
            place.copy_(values, non_blocking=True)
        values.record_stream(self._copies)

    def _hand_over(self, block: int, one: _Open) -> None:
        self.finish()  # one block on its way, one being filled: memory for two
        event = None if self._copies is None else self._copies.record_event()
        self._writing = self._writer.submit(self._commit, block, one, event)

    def _commit(self, block: int, one: _Open, event: torch.cuda.Event | None) -> None:
        with one.claims:
            if event is not None:
                event.synchronize()
            for layer in one.layers:
                values = one.buffers[layer][: one.stop - one.start].numpy()
                self._check(layer, values, one.start)
                self._stores[layer].commit(block, values, one.skipped)
        self.committed.add(block)
        self._free.append(one.buffers)


def not_finite(values: np.ndarray) -> np.ndarray:
    """Positions of rows with a value that is NaN or infinite."""
    flat = values.reshape(len(values), -1)
    n = max(1, _PIECE // max(1, flat.shape[1]))
    bad = [~np.isfinite(flat[i : i + n]).all(1) for i in range(0, len(flat), n)]
    return np.flatnonzero(np.concatenate(bad)) if bad else np.empty(0, int)
